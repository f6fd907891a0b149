"""What truncating each layer does to the outputs, measured in onnxruntime: weights are fed in, so that one session serves all.

As `training.sensitivity`, which does it in torch: each layer is truncated alone, at a few ranks along its frontier, fitted in
closed form to what it sees. Where no output is a floating-point number (a list of classes, of boxes kept), what the last
nodes read is compared in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor

from batude_onnx import layers
from batude_onnx.budget import Terms
from batude_onnx.calibration.probe import Probe
from batude_onnx.decomposition import method
from batude_onnx.records import FactorChain, FloatArray, Site
from batude_onnx.training.losses import Objective
from batude_onnx.training.refit import Regression
from batude_onnx.training.sensitivity import Curve, corners, curve_of
from batude_onnx.training.statistics import is_classifier
from batude_onnx.validation import Session

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]


def measure(
    model: ir.Model,
    sites: Sequence[Site],
    losses: Mapping[str, FloatArray],
    terms: Terms,
    samples: Sequence[Feeds],
    fits: Mapping[str, Regression],
    objective: Objective,
    report: Callable[[int, int], None],
    provider: str = "cpu",
    threads: int | None = None,
) -> dict[str, Curve]:
    """A curve for each site, from `losses` (the share of its energy lost, by ranks), on its frontier under `terms`.

    `fits`: the least squares of each site. `report(done, all)` is called after each.
    """
    session, fed = _open(model, sites, samples[0], provider, threads)
    wanted = [_floats(session.run({**feeds, **fed})) for feeds in samples]
    if not wanted[0]:
        return {}
    distance, curves = _Distance(objective, wanted), {}
    for number, site in enumerate(sites, 1):
        front, chosen = corners(site, losses[site.key], terms)
        damage = []
        for index in chosen:
            ranks = front.choice(index)
            assert ranks is not None
            changed = _changed(site, fits[site.key].chain(ranks), fed)
            found = (_floats(session.run({**feeds, **changed})) for feeds in samples)
            damage.append(sum(distance(sample, outputs) for sample, outputs in enumerate(found)) / len(samples))
        if chosen:
            curves[site.key] = curve_of(front, chosen, damage)
        report(number, len(sites))
    return curves


def _open(
    model: ir.Model, sites: Sequence[Site], feeds: Feeds, provider: str, threads: int | None
) -> tuple[Session, dict[str, Array]]:
    """A session that takes the weights and biases of all sites as inputs, and what these are as the file has them."""
    wanted: list[str] | None = None
    while True:
        probe = Probe(model)
        names = probe.give() if wanted is None else [name for value in wanted for name in probe.give(probe.values[value])]
        fed = _made_inputs(probe, sites)
        before = _before(probe, names)
        session = probe.open(provider, threads)
        if not before or _floats(session.run({**feeds, **fed})):
            return session, fed
        wanted = before


def _made_inputs(probe: Probe, sites: Sequence[Site]) -> dict[str, Array]:
    """Turn the constants of `sites` into inputs; a bias only where no other node reads it."""
    roots, fed = layers.constants_by_name(probe.model), {}
    for name, readers in [(name, len(site.keys)) for site in sites for name in (site.weight, site.bias) if name is not None]:
        root = roots[name]
        if layers.constants.uses(root) > readers:
            continue
        tensor = layers.constants.tensor(root)
        value = ir.Value(name=_fed(name), type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()))
        ir.convenience.replace_all_uses_with(root, value)
        probe.model.graph.inputs.append(value)
        fed[_fed(name)] = tensor.numpy()
    return fed


def _fed(name: str) -> str:
    return f"{name}@fed"


def _before(probe: Probe, names: Sequence[str]) -> list[str]:
    """What the nodes that give these values read, as far as nodes of the main graph compute it."""
    makers = [node for name in names if (node := probe.values[name].producer()) is not None]
    read = [value for node in makers for value in node.inputs if value is not None and value.producer() is not None]
    return list(dict.fromkeys(str(value.name) for value in read if layers.constants.source(value) is None))


def _changed(site: Site, chain: FactorChain, fed: Mapping[str, Array]) -> dict[str, Array]:
    """All that is fed, with the weight and bias that `chain` stands for in the place of the site's."""
    changed = {_fed(site.weight): site.layout.stored(method(chain.method).reconstruct(chain).numpy())}
    bias = chain.layers[-1].bias
    if site.bias is not None and bias is not None and _fed(site.bias) in fed:
        changed[_fed(site.bias)] = bias
    return {**fed, **{name: np.ascontiguousarray(array, dtype=fed[name].dtype) for name, array in changed.items()}}


def _floats(outputs: Mapping[str, Array]) -> list[Tensor]:
    """Those that are floating-point numbers."""
    arrays = [array for array in outputs.values() if isinstance(array, np.ndarray) and array.dtype.kind == "f" and array.size]
    return [torch.from_numpy(array).float() for array in arrays]


@dataclass(frozen=True)
class _Distance:
    """From what is wanted of all samples: a classifier's as in training, else the squared error of each output in units of its
    variance over all of them, as one run may give a single number."""

    objective: Objective
    wanted: Sequence[Sequence[Tensor]]

    @cached_property
    def scales(self) -> list[float]:
        columns = zip(*(outputs for outputs in self.wanted if len(outputs) == len(self.wanted[0])), strict=True)
        joined = [torch.cat([output.reshape(-1) for output in column]) for column in columns]
        return [max(float(values.var(correction=0)), 1e-12) for values in joined]

    def __call__(self, number: int, ours: Sequence[Tensor]) -> float:
        """Of sample `number`. Outputs of another shape, or that are no numbers any more, are as far off as noise would be."""
        wanted = self.wanted[number]
        if [output.shape for output in ours] != [output.shape for output in wanted] or len(wanted) != len(self.wanted[0]):
            return 1.0
        if is_classifier(wanted):
            distance = float(self.objective.distance(ours, wanted))
        else:
            pairs = zip(ours, wanted, self.scales, strict=True)
            distance = sum(float((a - b).square().mean()) / scale for a, b, scale in pairs)
        return distance if isfinite(distance) else 1.0
