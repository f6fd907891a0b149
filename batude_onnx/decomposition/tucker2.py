"""Tucker-2: a KxK convolution as 1x1, KxK, 1x1 (Eq. 2-5).

    W(s,c,i,j) = sum over r1, r2 of B1(r1,s) Core(r1,r2,i,j) B2(r2,c)

    1x1 conv C -> R2 (B2), KxK conv R2 -> R1 (Core, with the stride, pads and dilation), 1x1 conv R1 -> S (B1, with the bias).

A grouped convolution is factored group by group with the same ranks, as three grouped convolutions.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from batude_onnx.decomposition import linalg
from batude_onnx.decomposition.linalg import Metric
from batude_onnx.decomposition.registry import Method, Outline, Ranks, assembled, has_core, register
from batude_onnx.records import Cost, FactorChain, Geometry, Site

NAME = "tucker2"
MODES = (0, 1)
# Of the alternating least squares, and of the conjugate gradients within each.
SWEEPS, ITERATIONS = 3, 12


def max_ranks(shape: tuple[int, ...], groups: int) -> Ranks:
    """(R1, R2) beyond which the chain is exact: the two unfoldings' own bounds."""
    out, into, k = shape[0] // groups, shape[1], prod(shape[2:])
    return min(out, into * k), min(into, out * k)


def outline(shape: tuple[int, ...], geometry: Geometry, ranks: Ranks) -> Outline:
    """C -> R2, R2 -> R1 with the kernel, R1 -> S."""
    (r1, r2), groups, one = ranks, geometry.groups, (1,) * len(shape[2:])
    pointwise = Geometry.pointwise(len(one), groups)
    first, core, last = (groups * r2, shape[1], *one), (groups * r1, r2, *shape[2:]), (shape[0], r1, *one)
    return (first, pointwise), (core, geometry), (last, pointwise)


def cost(site: Site, ranks: Ranks) -> Cost:
    """R2*C + R1*R2*K*K + R1*S per group: on the input's positions, on those of the kernel, on the output's."""
    r1, r2 = ranks
    groups = site.geometry.groups
    first, last = r2 * site.channels_in, r1 * site.channels_out
    core = groups * r1 * r2 * prod(site.kernel)
    macs = first * site.input_positions + core * site.positions + last * site.output_positions
    return Cost(first + core + last, macs)


def _factors(weight: Tensor, groups: int, ranks: Ranks, metric: Metric | None) -> tuple[Tensor, Tensor, Tensor]:
    """B1 (g, S/g, R1), core (g, R1, R2, k), B2 (g, R2, C/g), float64."""
    white = linalg.whiten(linalg.stack(weight, groups), metric)
    u1, u2 = linalg.hooi(white, (ranks[0], ranks[1]))
    core = linalg.multiply(linalg.multiply(white, u1.mT, 0), u2.mT, 1)
    if metric is None:
        return u1, core, u2.mT
    return metric.output_inverse @ u1, core, u2.mT @ metric.input_inverse


def losses(weight: Tensor, groups: int, metric: Metric | None) -> Tensor:
    """What a truncated HOSVD of each (R1, R2) loses of the squared norm."""
    return linalg.joint_losses(linalg.whiten(linalg.stack(weight, groups), metric), MODES)


def project(weight: Tensor, groups: int, ranks: Ranks, metric: Metric | None) -> Tensor:
    """The Tucker-2 tensor of ranks (R1, R2) nearest to `weight` in the metric."""
    b1, core, b2 = _factors(weight, groups, ranks, metric)
    dense = linalg.multiply(linalg.multiply(core, b1, 0), b2.mT, 1)
    return linalg.unstack(dense, weight.shape).to(weight.dtype)


def factor(weight: Tensor, bias: Tensor | None, geometry: Geometry, ranks: Ranks, metric: Metric | None) -> FactorChain:
    """Three layers whose product is `project(weight, ...)`, their Frobenius norms made equal."""
    return _chain(*_factors(weight, geometry.groups, ranks, metric), weight, bias, geometry)


def regress(
    weight: Tensor, gram: Tensor, bias: Tensor | None, geometry: Geometry, ranks: Ranks, metric: Metric | None
) -> FactorChain:
    """Alternating least squares for || G^1/2 (W - B1 Core B2) gram^1/2 ||, from the factors that see each pixel alone.

    B1 and the core together are a reduced-rank regression for a given B2, and exact; B2 for a given core is one of ordinary
    least squares, solved by conjugate gradients. Neither step can raise the error.
    """
    target = linalg.stack(weight, geometry.groups)
    g, _, c, k = target.shape
    blocks = gram.reshape(g, c, k, c, k)
    pixel, white, inverse = linalg.pixelwise(target, gram, metric)
    b2 = linalg.hooi(white, (ranks[0], ranks[1]))[1].mT @ inverse
    for sweep in range(SWEEPS + 1):
        half = torch.einsum("grc,gckdl->grkdl", b2, blocks)
        seen = torch.einsum("grkdl,gqd->grkql", half, b2).reshape(g, ranks[1] * k, ranks[1] * k)
        seen = linalg.ridged(seen, 1e-9)
        wanted = torch.einsum("grkdl,gsdl->grks", half, target).reshape(g, ranks[1] * k, -1)
        inner, b1 = linalg.reduced_rank(seen, torch.linalg.solve(seen, wanted).mT, ranks[0], metric)
        core = inner.reshape(g, ranks[0], ranks[1], k)
        if sweep < SWEEPS:
            b2 = _input_factor(b2, core, torch.einsum("gsr,gsck->grck", linalg.weighed(b1, metric), target), gram, pixel)
    return _chain(b1, core, b2, weight.float(), bias, geometry)


def _input_factor(b2: Tensor, core: Tensor, target: Tensor, gram: Tensor, pixel: Tensor) -> Tensor:
    """B2 (g, R2, C/g) that brings Core B2 nearest to `target` (g, R1, C/g, k) in the metric `gram`, starting from `b2`.

    Conjugate gradients, preconditioned by what the normal equations would be if neighbouring pixels were independent.
    """

    def descent(difference: Tensor) -> Tensor:
        seen = (difference.reshape(*difference.shape[:2], -1) @ gram).reshape(difference.shape)
        return torch.einsum("grqk,grck->gqc", core, seen)

    def applied(factor: Tensor) -> Tensor:
        return torch.einsum("grqk,gqc->grck", core, factor)

    left = torch.linalg.inv(linalg.ridged(torch.einsum("grqk,grpk->gqp", core, core), 1e-6))
    right = torch.linalg.inv(linalg.ridged(pixel, 1e-6))
    return linalg.conjugate_gradients(
        b2,
        descent(target - applied(b2)),
        lambda step: descent(applied(step)),
        lambda residual: left @ residual @ right,
        ITERATIONS,
    )


def _chain(b1: Tensor, core: Tensor, b2: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> FactorChain:
    """The three layers; `weight` tells their shapes and type."""
    ranks = core.shape[1], core.shape[2]
    return assembled(NAME, (b2, core, b1), weight, bias, outline(tuple(weight.shape), geometry, ranks), ranks)


def reconstruct(chain: FactorChain) -> Tensor:
    """The dense (S, C/g, *kernel) weight of the chain."""
    first, middle, last = (torch.from_numpy(layer.weight).double() for layer in chain.layers)
    groups = chain.layers[1].geometry.groups
    b2, core, b1 = (linalg.stack(part, groups) for part in (first, middle, last))
    dense = linalg.multiply(linalg.multiply(core, b1[..., 0], 0), b2[..., 0].mT, 1)
    return dense.reshape(last.shape[0], first.shape[1], *middle.shape[2:])


METHOD = register(Method(NAME, MODES, has_core, max_ranks, outline, cost, losses, project, factor, regress, reconstruct))
