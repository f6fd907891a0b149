"""Separable: a KxK convolution as Kx1 and 1xK (Jaderberg et al., BMVC 2014; Tai et al., ICLR 2016).

    W(s,c,i,j) = sum over r of B1(s,r,j) B2(r,c,i)

    Kx1 conv C -> R (B2, along the first spatial axis), 1xK conv R -> S (B1, along all others, with the bias).

Its one rank is that of the matrix (C K) x (S K), which is no unfolding of a single axis: what Tucker-2 must leave whole, the
kernel, is shared here. Trained 3x3 kernels are often near to it. Each factor walks over its own axes as the layer does.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from batude_onnx.decomposition import linalg
from batude_onnx.decomposition.linalg import Metric
from batude_onnx.decomposition.registry import DEPTHWISE, Method, Outline, Ranks, assembled, depthwise, register
from batude_onnx.records import Cost, FactorChain, Geometry, Site

NAME = "separable"
# Of the alternating least squares, and of the conjugate gradients within each.
SWEEPS, ITERATIONS = 3, 12


def applies(shape: tuple[int, ...], groups: int) -> str | None:
    """For kernels of two axes and more that mix channels."""
    if depthwise(shape, groups):
        return DEPTHWISE
    if len(shape) < 4 or shape[2] == 1 or prod(shape[3:]) == 1:
        return "kernel of one axis: nothing to separate"
    return None


def max_ranks(shape: tuple[int, ...], groups: int) -> Ranks:
    """(R,) beyond which the chain is exact."""
    return (min(shape[1] * shape[2], shape[0] // groups * prod(shape[3:])),)


def outline(shape: tuple[int, ...], geometry: Geometry, ranks: Ranks) -> Outline:
    """C -> R along the first spatial axis, R -> S along the others."""
    first = (geometry.groups * ranks[0], *shape[1:3], *(1,) * len(shape[3:]))
    last = (shape[0], ranks[0], 1, *shape[3:])
    return (first, _along(geometry, range(1))), (last, _along(geometry, range(1, len(shape) - 2)))


def cost(site: Site, ranks: Ranks) -> Cost:
    """R*C*K for the first factor, which walks over the first axis as the layer does and over the input's others; R*S*K.

    Each transposed factor is applied at the positions that it reads, every other at those that it gives.
    """
    first = ranks[0] * site.channels_in * site.kernel[0]
    last = ranks[0] * site.channels_out * prod(site.kernel[1:])
    halfway = site.halfway_positions
    before, behind = (site.positions, halfway) if site.geometry.transposed else (halfway, site.positions)
    return Cost(first + last, first * before + last * behind)


def _matrix(tensor: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """(g, S/g, C/g, k) -> (g, C/g K, S/g K')."""
    g, s, c, _ = tensor.shape
    return tensor.reshape(g, s, c, kernel[0], -1).permute(0, 2, 3, 1, 4).reshape(g, c * kernel[0], -1)


def _factors(weight: Tensor, groups: int, ranks: Ranks, metric: Metric | None) -> tuple[Tensor, Tensor]:
    """B1 (g, S/g, R, K'), B2 (g, R, C/g, K), float64."""
    white = linalg.whiten(linalg.stack(weight, groups), metric)
    g, s, c, _ = white.shape
    matrix = _matrix(white, tuple(weight.shape[2:]))
    u = linalg.left(matrix)[0][..., : ranks[0]]
    b1 = (u.mT @ matrix).reshape(g, ranks[0], s, -1).transpose(1, 2)
    b2 = u.mT.reshape(g, ranks[0], c, -1)
    if metric is None:
        return b1, b2
    return torch.einsum("gst,gtrj->gsrj", metric.output_inverse, b1), torch.einsum("grci,gcd->grdi", b2, metric.input_inverse)


def _dense(b1: Tensor, b2: Tensor) -> Tensor:
    """(g, S/g, C/g, K, K')."""
    return torch.einsum("gsrj,grci->gscij", b1, b2)


def losses(weight: Tensor, groups: int, metric: Metric | None) -> Tensor:
    """What the nearest tensor of each rank loses of the squared norm."""
    white = linalg.whiten(linalg.stack(weight, groups), metric)
    return linalg.tails(linalg.left(_matrix(white, tuple(weight.shape[2:])))[1])


def project(weight: Tensor, groups: int, ranks: Ranks, metric: Metric | None) -> Tensor:
    """The separable tensor of rank R nearest to `weight` in the metric."""
    return _dense(*_factors(weight, groups, ranks, metric)).reshape(weight.shape).to(weight.dtype)


def factor(weight: Tensor, bias: Tensor | None, geometry: Geometry, ranks: Ranks, metric: Metric | None) -> FactorChain:
    """Two layers whose product is `project(weight, ...)`, their Frobenius norms made equal."""
    return _chain(*_factors(weight, geometry.groups, ranks, metric), weight, bias, geometry)


def regress(
    weight: Tensor, gram: Tensor, bias: Tensor | None, geometry: Geometry, ranks: Ranks, metric: Metric | None
) -> FactorChain:
    """Alternating least squares for || G^1/2 (W - B1 B2) gram^1/2 ||, from the factors that see each line alone.

    B1 for a given B2 is ordinary least squares, and exact; B2 for a given B1 is solved by conjugate gradients, preconditioned by
    what the normal equations would be if neighbouring lines were independent. Neither step can raise the error.
    """
    target = linalg.stack(weight, geometry.groups)
    g, s, c, _ = target.shape
    k = weight.shape[2]
    target = target.reshape(g, s, c, k, -1)
    after = target.shape[-1]
    blocks = gram.reshape(g, c * k, after, c * k, after)
    line = blocks.diagonal(dim1=2, dim2=4).mean(-1)  # (g, C/g K, C/g K): the second moment of what B2 sees
    root, inverse = linalg.roots(line, 1e-6)
    outer = target if metric is None else torch.einsum("gst,gtcij->gscij", metric.output_root, target)
    b2 = (linalg.left(root @ _matrix(outer.flatten(3), (k,)))[0][..., : ranks[0]].mT @ inverse).reshape(g, ranks[0], c, k)
    right = torch.linalg.inv(linalg.ridged(line, 1e-6))
    for sweep in range(SWEEPS + 1):
        half = torch.einsum("grx,gxjyl->grjyl", b2.flatten(2), blocks)
        seen = torch.einsum("grjyl,gqy->grjql", half, b2.flatten(2)).reshape(g, ranks[0] * after, -1)
        wanted = torch.einsum("grjyl,gsyl->grjs", half, target.flatten(2, 3)).reshape(g, ranks[0] * after, s)
        b1 = torch.linalg.solve(linalg.ridged(seen, 1e-9), wanted).mT.reshape(g, s, ranks[0], after)
        if sweep < SWEEPS:
            b2 = _first_factor(b1, b2, target, gram, right, metric)
    return _chain(b1, b2, weight.float(), bias, geometry)


def _first_factor(b1: Tensor, b2: Tensor, target: Tensor, gram: Tensor, right: Tensor, metric: Metric | None) -> Tensor:
    """B2 that brings B1 B2 nearest to `target` (g, S/g, C/g, K, K') in the metric `gram`, starting from `b2`."""
    weighed = linalg.weighed(b1.flatten(2), metric).reshape(b1.shape)
    left = torch.linalg.inv(linalg.ridged(torch.einsum("gsrj,gsqj->grq", weighed, b1), 1e-6))

    def descent(difference: Tensor) -> Tensor:
        seen = (difference.flatten(2) @ gram).reshape(difference.shape)
        return torch.einsum("gsrj,gscij->grci", weighed, seen)

    return linalg.conjugate_gradients(
        b2,
        descent(target - _dense(b1, b2)),
        lambda step: descent(_dense(b1, step)),
        lambda residual: (left @ residual.flatten(2) @ right).reshape(residual.shape),
        ITERATIONS,
    )


def _chain(b1: Tensor, b2: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> FactorChain:
    """The two layers; `weight` tells their shapes and type."""
    ranks = (b2.shape[1],)
    return assembled(NAME, (b2, b1), weight, bias, outline(tuple(weight.shape), geometry, ranks), ranks)


def _along(geometry: Geometry, axes: range) -> Geometry:
    """`geometry` on these spatial axes alone; on the others a kernel of one point stays where it is."""
    count = len(geometry.strides)

    def kept(values: tuple[int, ...], default: int) -> tuple[int, ...]:
        return tuple(value if axis % count in axes else default for axis, value in enumerate(values))

    return replace(
        geometry,
        strides=kept(geometry.strides, 1),
        pads=kept(geometry.pads, 0),
        dilations=kept(geometry.dilations, 1),
        output_padding=kept(geometry.output_padding, 0),
    )


def reconstruct(chain: FactorChain) -> Tensor:
    """The dense (S, C/g, *kernel) weight of the chain."""
    first, last = (torch.from_numpy(layer.weight).double() for layer in chain.layers)
    groups = chain.layers[0].geometry.groups
    dense = _dense(linalg.stack(last, groups), linalg.stack(first, groups))
    return dense.reshape(last.shape[0], *first.shape[1:3], *last.shape[3:])


METHOD = register(Method(NAME, (), applies, max_ranks, outline, cost, losses, project, factor, regress, reconstruct))
