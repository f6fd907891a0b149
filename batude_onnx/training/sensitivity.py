"""What truncating each layer does to the network's outputs, measured.

The energy that a truncation loses in the metric of a layer's inputs and output gradients ranks the truncations of one layer well;
across layers it is off by a factor of a hundred, since both moments are means over positions, taken to be independent, and
linear in what follows. So each layer is truncated alone, at a few ranks along its frontier, its factors fitted in closed form,
and the distance of the outputs from the original's is taken: that makes a curve from energy lost to damage done, by which all
layers are then compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import torch
from torch import Tensor

from batude_onnx.budget import Frontier, Terms, frontier
from batude_onnx.decomposition import Metric, method
from batude_onnx.importer import GraphNet, Pass
from batude_onnx.records import FactorChain, FloatArray, Site
from batude_onnx.training.features import collect
from batude_onnx.training.losses import Objective
from batude_onnx.training.refit import Regression
from batude_onnx.training.statistics import canonical

# Shares of a layer's energy at which it is truncated.
LOST = tuple(np.geomspace(0.002, 0.5, 6).tolist())
# Damage below this is rounding.
LEAST = 1e-9


@dataclass(frozen=True)
class Curve:
    """Damage to the outputs against the share of a layer's energy lost, both rising; between points a power law."""

    lost: tuple[float, ...]
    damage: tuple[float, ...]

    def __call__(self, lost: FloatArray) -> FloatArray:
        """Damage for each entry of `lost`; outside of what was measured it is proportional."""
        x, y = np.log(self.lost), np.log(self.damage)
        at = np.log(np.maximum(lost, 1e-15))
        within = np.interp(at, x, y) + np.minimum(at - x[0], 0.0) + np.maximum(at - x[-1], 0.0)
        return np.where(lost > 0, np.exp(within), 0.0)


def measure(
    net: GraphNet,
    sites: Sequence[Site],
    losses: Mapping[str, FloatArray],
    terms: Terms,
    inputs: Sequence[Tensor],
    metrics: Mapping[str, Metric],
    objective: Objective,
    report: Callable[[int, int], None],
) -> dict[str, Curve]:
    """A curve for each site, from `losses` (the share of its energy lost, by ranks), on its frontier under `terms`.

    `sites` are in the graph's order: for each of them only what lies behind it is run. `net` is left as it was.
    `report(done, all)` is called after each site.
    """
    net.eval()
    curves = {}
    with torch.no_grad():
        running = [net.begin(x) for x in inputs]
        wanted = [one.fork().finish() for one in running]
        for number, site in enumerate(sites, 1):
            front, chosen = corners(site, losses[site.key], terms)
            if chosen:
                own = canonical(site, net.weight(site.weight))
                regression = Regression(site, collect(site, running), own, metrics.get(site.key))
                damage = []
                for index in chosen:
                    ranks = front.choice(index)
                    assert ranks is not None
                    damage.append(_damage(net, site, regression.chain(ranks), inputs, running, wanted, objective))
                curves[site.key] = curve_of(front, chosen, damage)
            report(number, len(sites))
    return curves


def corners(site: Site, losses: FloatArray, terms: Terms) -> tuple[Frontier, list[int]]:
    """A site's frontier, and where on it truncating the site is tried: by falling rank, none where nothing can be lost."""
    front = frontier(losses, terms.scalar(site), terms.allowed(site))
    there = front.hull[front.losses[front.hull] > LEAST]
    if not len(there):
        return front, []
    nearest = [np.abs(np.log(front.losses[there] / share)).argmin() for share in LOST]
    return front, [int(index) for index in there[sorted(set(nearest), reverse=True)]]


def curve_of(front: Frontier, tried: Sequence[int], damage: Sequence[float]) -> Curve:
    """The curve through the `damage` done at the points `tried` of a frontier."""
    rising = np.maximum.accumulate(np.maximum(damage, LEAST))
    return Curve(tuple(front.losses[list(tried)].tolist()), tuple(rising.tolist()))


def _damage(
    net: GraphNet,
    site: Site,
    chain: FactorChain,
    inputs: Sequence[Tensor],
    running: Sequence[Pass],
    wanted: Sequence[tuple[Tensor, ...]],
    objective: Objective,
) -> float:
    """Mean distance of the outputs from `wanted` with the weight that `chain` stands for in the layer's place.

    The passes of `inputs` stand in front of the layer.
    """
    held = {site.weight: site.layout.stored(method(chain.method).reconstruct(chain))}
    bias = chain.layers[-1].bias
    if site.bias is not None and bias is not None:
        held[site.bias] = torch.from_numpy(bias)
    kept = {name: net.weight(name).clone() for name in held}
    for name, value in held.items():
        net.weight(name).copy_(value)
    total = 0.0
    for x, one, outputs in zip(inputs, running, wanted, strict=True):
        total += float(objective.distance(one.fork().finish(), outputs)) * len(x)
    for name, value in kept.items():
        net.weight(name).copy_(value)
    # Outputs that are no numbers any more are as far off as noise would be.
    return total / sum(len(x) for x in inputs) if isfinite(total) else 1.0
