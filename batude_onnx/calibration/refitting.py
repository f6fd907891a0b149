"""Factors fitted in closed form, in the order of the graph, to the original's features; both graphs run in onnxruntime.

As `training.refit`: each layer is fitted to what it really sees behind the layers that have been fitted before it, so that it
makes up for what they have lost. A layer in a body is fitted to what it sees in the original.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor

from batude_onnx.calibration.probe import Probe
from batude_onnx.decomposition import Metric
from batude_onnx.records import FactorChain, Site
from batude_onnx.training.features import Sums, add_rows
from batude_onnx.training.refit import Regression
from batude_onnx.validation import Session

Feeds = Mapping[str, npt.NDArray[Any]]
Rewrite = Callable[[Mapping[str, FactorChain]], ir.Model]


def refit(
    model: ir.Model,
    rewritten: Rewrite,
    sites: Sequence[Site],
    ranks: Mapping[str, tuple[int, ...]],
    weights: Mapping[str, Tensor],
    fits: Mapping[str, Regression],
    metrics: Mapping[str, Metric],
    samples: Sequence[Feeds],
    report: Callable[[int, int], None],
    provider: str = "cpu",
    threads: int | None = None,
) -> dict[str, FactorChain]:
    """The chains of `sites`, which are in the graph's order, of the given `ranks`.

    `rewritten(chains)` is `model` with some chains in it; `weights`: canonical, by key; `fits`: the least squares of each site in
    the original. `report(done, all)` is called after each.
    """
    chains: dict[str, FactorChain] = {}
    for number, site in enumerate(sites, 1):
        fit = fits[site.key]
        if not site.inside and chains:
            seen = _seen(site, (rewritten(chains), model), samples, provider, threads)
            fit = Regression(site, seen, weights[site.key], metrics.get(site.key))
        chains[site.key] = fit.chain(ranks[site.key])
        report(number, len(sites))
    return chains


def _seen(site: Site, models: tuple[ir.Model, ir.Model], samples: Sequence[Feeds], provider: str, threads: int | None) -> Sums:
    """What the layer sees in the first model, and what it should give as in the second."""
    (ours, given), (theirs, _) = (_open(model, site, provider, threads) for model in models)
    sums, generator = Sums(), torch.Generator().manual_seed(0)
    for feeds in samples:
        here, there = {**feeds, **ours.run(feeds)}, theirs.run(feeds)
        wanted = _tensor(there[site.key])
        if site.joined is not None and here[site.joined].shape == wanted.shape:
            # The other side of the sum is made up for, too.
            wanted = _tensor(here[site.key]) + _tensor(there[site.joined]) - _tensor(here[site.joined])
        add_rows(sums, site, _tensor(here[given]), wanted, generator)
    return sums


def _open(model: ir.Model, site: Site, provider: str, threads: int | None) -> tuple[Session, str]:
    """A session that gives the output of a layer, what it is added to, and its input, the name of which comes back."""
    probe = Probe(model)
    node = probe.values[site.key].producer()
    assert node is not None
    data = node.inputs[0]
    assert data is not None
    for value in (probe.values[site.key], *([] if site.joined is None else [probe.values[site.joined]])):
        probe.give(value)
    if data.producer() is not None:
        probe.give(data)
    return probe.open(provider, threads), str(data.name)


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).float()
