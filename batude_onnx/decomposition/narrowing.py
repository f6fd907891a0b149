"""A layer as two: itself with R outputs in the place of S, then one of one point, R -> S. What methods of that shape share.

    W(s,c,...) = sum over r of B(s,r) Core(r,c,...)

The first takes the stride, pads and dilation, so that the second runs on the smaller map; it has the bias. R is the rank of the
output's unfolding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod

import torch
from torch import Tensor

from batude_onnx.decomposition import linalg
from batude_onnx.decomposition.linalg import Metric
from batude_onnx.decomposition.registry import Method, Outline, Ranks, assembled
from batude_onnx.records import Cost, FactorChain, Geometry, Site


def narrowing(name: str, modes: tuple[int, ...], applies: Callable[[tuple[int, ...], int], str | None]) -> Method:
    """The method of that name, for the layers that it `applies` to."""
    made, fitted = partial(factor, name), partial(regress, name)
    return Method(name, modes, applies, max_ranks, outline, cost, losses, project, made, fitted, reconstruct)


def max_ranks(shape: tuple[int, ...], groups: int) -> Ranks:
    """(R,) beyond which the chain is exact."""
    return (min(shape[0] // groups, prod(shape[1:])),)


def outline(shape: tuple[int, ...], geometry: Geometry, ranks: Ranks) -> Outline:
    """C -> R with the kernel, R -> S."""
    one = (1,) * len(shape[2:])
    core, last = (geometry.groups * ranks[0], *shape[1:]), (shape[0], ranks[0], *one)
    return (core, geometry), (last, Geometry.pointwise(len(one), geometry.groups))


def cost(site: Site, ranks: Ranks) -> Cost:
    """R*C*K*K where the layer's own kernel is applied, R*S at the output's positions."""
    core, last = ranks[0] * site.channels_in * prod(site.kernel), ranks[0] * site.channels_out
    return Cost(core + last, core * site.positions + last * site.output_positions)


def _factors(weight: Tensor, groups: int, ranks: Ranks, metric: Metric | None) -> tuple[Tensor, Tensor]:
    """B (g, S/g, R), core (g, R, C/g, k), float64."""
    white = linalg.whiten(linalg.stack(weight, groups), metric)
    u = linalg.leading(white, 0)[0][..., : ranks[0]]
    core = linalg.multiply(white, u.mT, 0)
    return (u, core) if metric is None else (metric.output_inverse @ u, linalg.multiply(core, metric.input_inverse, 1))


def losses(weight: Tensor, groups: int, metric: Metric | None) -> Tensor:
    """What the nearest tensor of each rank loses of the squared norm."""
    return linalg.tails(linalg.leading(linalg.whiten(linalg.stack(weight, groups), metric), 0)[1])


def project(weight: Tensor, groups: int, ranks: Ranks, metric: Metric | None) -> Tensor:
    """The tensor of rank R nearest to `weight` in the metric."""
    b, core = _factors(weight, groups, ranks, metric)
    return linalg.unstack(linalg.multiply(core, b, 0), weight.shape).to(weight.dtype)


def factor(
    name: str, weight: Tensor, bias: Tensor | None, geometry: Geometry, ranks: Ranks, metric: Metric | None
) -> FactorChain:
    """Two layers whose product is `project(weight, ...)`, their Frobenius norms made equal."""
    return _chain(name, *_factors(weight, geometry.groups, ranks, metric), weight, bias, geometry)


def regress(
    name: str, weight: Tensor, gram: Tensor, bias: Tensor | None, geometry: Geometry, ranks: Ranks, metric: Metric | None
) -> FactorChain:
    """Reduced-rank regression, which is exact: the chain nearest to `weight` in the metric `gram`."""
    target = linalg.stack(weight, geometry.groups)
    inner, b = linalg.reduced_rank(gram, target.flatten(2), ranks[0], metric)
    return _chain(name, b, inner.reshape(len(target), ranks[0], *target.shape[2:]), weight.float(), bias, geometry)


def _chain(name: str, b: Tensor, core: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> FactorChain:
    """The two layers; `weight` tells their shapes and type."""
    ranks = (core.shape[1],)
    return assembled(name, (core, b), weight, bias, outline(tuple(weight.shape), geometry, ranks), ranks)


def reconstruct(chain: FactorChain) -> Tensor:
    """The dense (S, C/g, *kernel) weight of the chain."""
    core, last = (torch.from_numpy(layer.weight).double() for layer in chain.layers)
    groups = chain.layers[0].geometry.groups
    dense = linalg.multiply(linalg.stack(core, groups), linalg.stack(last, groups)[..., 0], 0)
    return dense.reshape(last.shape[0], *core.shape[1:])
