"""Truncated SVD: a layer whose kernel is one point (1x1 Conv, Gemm, MatMul) as two, C -> R -> S.

    W(s,c) = sum over r of B1(s,r) B2(r,c)

The first factor takes the stride and pads, so that both run on the smaller map.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from batude_onnx.decomposition import linalg
from batude_onnx.decomposition.linalg import Metric
from batude_onnx.decomposition.registry import Method, Outline, Ranks, assembled, register
from batude_onnx.records import Cost, FactorChain, Geometry, Site

NAME = "svd"
MODES = (0,)


def applies(shape: tuple[int, ...], groups: int) -> str | None:
    """For kernels of one point that mix channels."""
    if groups > 1 and shape[1] == 1:
        return "depthwise: every channel has a weight of its own, there is nothing to share"
    if prod(shape[2:]) > 1:
        return "kernel larger than one point"
    return None


def max_ranks(shape: tuple[int, ...], groups: int) -> Ranks:
    """(R,) beyond which the chain is exact."""
    return (min(shape[0] // groups, shape[1]),)


def outline(shape: tuple[int, ...], geometry: Geometry, ranks: Ranks) -> Outline:
    """C -> R, R -> S."""
    groups, one = geometry.groups, (1,) * len(shape[2:])
    first, last = (groups * ranks[0], shape[1], *one), (shape[0], ranks[0], *one)
    return (first, geometry), (last, Geometry.pointwise(len(one), groups))


def cost(site: Site, ranks: Ranks) -> Cost:
    """R*C weights where the layer's own kernel is applied, R*S at the output's positions."""
    first, last = ranks[0] * site.channels_in, ranks[0] * site.channels_out
    return Cost(first + last, first * site.positions + last * site.output_positions)


def _factors(weight: Tensor, groups: int, ranks: Ranks, metric: Metric | None) -> tuple[Tensor, Tensor]:
    """B1 (g, S/g, R), B2 (g, R, C/g), float64."""
    white = linalg.whiten(linalg.stack(weight, groups), metric)
    u = linalg.leading(white, 0)[0][..., : ranks[0]]
    v = u.mT @ white[..., 0]
    if metric is None:
        return u, v
    return metric.output_inverse @ u, v @ metric.input_inverse


def losses(weight: Tensor, groups: int, metric: Metric | None) -> Tensor:
    """What the nearest matrix of each rank loses of the squared norm."""
    return linalg.joint_losses(linalg.whiten(linalg.stack(weight, groups), metric), MODES)


def project(weight: Tensor, groups: int, ranks: Ranks, metric: Metric | None) -> Tensor:
    """The matrix of rank R nearest to `weight` in the metric."""
    b1, b2 = _factors(weight, groups, ranks, metric)
    return linalg.unstack(b1 @ b2, weight.shape).to(weight.dtype)


def factor(weight: Tensor, bias: Tensor | None, geometry: Geometry, ranks: Ranks, metric: Metric | None) -> FactorChain:
    """Two layers whose product is `project(weight, ...)`, their Frobenius norms made equal."""
    return _chain(*_factors(weight, geometry.groups, ranks, metric), weight, bias, geometry)


def regress(
    weight: Tensor, gram: Tensor, bias: Tensor | None, geometry: Geometry, ranks: Ranks, metric: Metric | None
) -> FactorChain:
    """Reduced-rank regression, which is exact."""
    target = linalg.stack(weight, geometry.groups)[..., 0]
    inner, outer = linalg.reduced_rank(gram, target, ranks[0], metric)
    return _chain(outer, inner, weight.float(), bias, geometry)


def _chain(b1: Tensor, b2: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> FactorChain:
    """The two layers; `weight` tells their shapes and type."""
    ranks = (b2.shape[1],)
    return assembled(NAME, (b2, b1), weight, bias, outline(tuple(weight.shape), geometry, ranks), ranks)


def reconstruct(chain: FactorChain) -> Tensor:
    """The dense (S, C/g, 1...) weight of the chain."""
    first, last = (torch.from_numpy(layer.weight).double() for layer in chain.layers)
    groups = chain.layers[0].geometry.groups
    dense = linalg.stack(last, groups)[..., 0] @ linalg.stack(first, groups)[..., 0]
    return dense.reshape(last.shape[0], *first.shape[1:])


METHOD = register(Method(NAME, MODES, applies, max_ranks, outline, cost, losses, project, factor, regress, reconstruct))
