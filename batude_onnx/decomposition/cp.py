"""CP: a KxK convolution as 1x1, depthwise KxK, 1x1 (Lebedev et al., ICLR 2015; Astrid & Lee, BigComp 2017).

    W(s,c,i,j) = sum over r of A(s,r) D(r,i,j) B(r,c)

    1x1 conv C -> R (B), depthwise KxK on R channels (D, with the stride, pads and dilation), 1x1 conv R -> S (A, with the bias).

Its one rank is that of the tensor (S, C, K*K), which no unfolding knows: where Tucker-2 spends most of its weights on a core that
mixes channels once more, each channel has a kernel of its own here. For as many weights that loses about half as much of a
trained 3x3 kernel. There is no closed form; alternating least squares start from one that is exact at full rank: the matrices
(S, C) in front of the kernel's K*K principal patterns, each with its singular vectors, the largest of all patterns together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch
from torch import Tensor

from batude_onnx.decomposition import linalg
from batude_onnx.decomposition.linalg import Metric
from batude_onnx.decomposition.registry import Method, Outline, Ranks, assembled, has_core, register
from batude_onnx.records import Cost, FactorChain, FloatArray, Geometry, Site

NAME = "cp"
# Rounds of the alternating least squares on the weight; of those on what the layer sees, and of the conjugate gradients within
# each. There are fewer, down to the least, where the layer is so large that they would take more multiply-accumulates than this.
FITS, SWEEPS, ITERATIONS = (5, 20), (1, 3), 8
AFFORDABLE = 5 * 10**10
# How much of the last round's move each of the former begins with (Mitchell, Ye & De Sterck, 2020): 20 reach what about 40 do
# without it.
MOMENTUM = 0.6
# Components that nearly cancel grow without bound (Phan et al., ECCV 2020): each step is drawn towards zero and towards the last.
DRAWN = 1e-4
# Costs of a chain, as shares of the layer's own, at which it is fitted to learn what it loses; at the first share fitting gains
# a hundredth or two, which is left out.
BARE, KNOTS = 1 / 32, (1 / 8, 1 / 4, 1 / 2)

# What a squared norm is at least.
LEAST = 1e-12

Factors = tuple[Tensor, Tensor, Tensor]
_Near = Callable[[Tensor], Tensor]


def max_ranks(shape: tuple[int, ...], groups: int) -> Ranks:
    """(R,) beyond which the chain is exact: all singular vectors of every pattern of the kernel."""
    out, into, k = shape[0] // groups, shape[1], prod(shape[2:])
    return (min(out, into) * min(k, out * into),)


def outline(shape: tuple[int, ...], geometry: Geometry, ranks: Ranks) -> Outline:
    """C -> R, each of R with its kernel, R -> S."""
    (rank,), groups, one = ranks, geometry.groups, (1,) * len(shape[2:])
    pointwise = Geometry.pointwise(len(one), groups)
    first, core, last = (groups * rank, shape[1], *one), (groups * rank, 1, *shape[2:]), (shape[0], rank, *one)
    return (first, pointwise), (core, replace(geometry, groups=groups * rank)), (last, pointwise)


def cost(site: Site, ranks: Ranks) -> Cost:
    """R*C + R*K*K + R*S per group: on the input's positions, on those of the kernel, on the output's."""
    (rank,) = ranks
    first, last = rank * site.channels_in, rank * site.channels_out
    core = site.geometry.groups * rank * prod(site.kernel)
    return Cost(first + core + last, first * site.input_positions + core * site.positions + last * site.output_positions)


@dataclass(frozen=True)
class _Closed:
    """The kernel's principal patterns (g, k, n), and u (g, S/g, m), v (g, C/g, m) and the singular values (g, m) of the matrices
    in front of all of them, largest first; `pattern` (g, m) is the one that each belongs to."""

    patterns: Tensor
    u: Tensor
    v: Tensor
    values: Tensor
    pattern: Tensor

    @staticmethod
    def of(white: Tensor) -> _Closed:
        patterns = linalg.leading(white, 2)[0]
        u, values, v = torch.linalg.svd(torch.einsum("gsck,gkn->gnsc", white, patterns), full_matrices=False)
        ordered, order = values.flatten(1).sort(dim=1, descending=True)
        left, right = (_columns(part.transpose(1, 2).flatten(2), order) for part in (u, v.mT))
        return _Closed(patterns, left, right, ordered, order // values.shape[-1])

    def factors(self, rank: int) -> Factors:
        """A (g, S/g, R), D (g, k, R), B (g, C/g, R) of the `rank` largest."""
        share = self.values[:, None, :rank].pow(1 / 3)
        d = _columns(self.patterns, self.pattern[:, :rank])
        return self.u[..., :rank] * share, d * share, self.v[..., :rank] * share


def _columns(matrix: Tensor, taken: Tensor) -> Tensor:
    """The columns `taken` (g, R) of `matrix` (g, n, m)."""
    return matrix.gather(2, taken[:, None].expand(-1, matrix.shape[1], -1))


def _rounds(bounds: tuple[int, int], each: float) -> int:
    """How many rounds are affordable of which `each` takes so many multiply-accumulates."""
    least, most = bounds
    return min(most, max(least, int(AFFORDABLE / each)))


def _fitted(white: Tensor, rank: int, closed: _Closed | None = None) -> Factors:
    """The factors of `white` (g, S/g, C/g, k), float64; what it shows of each through the others is worked out in float32."""
    a, d, b = (closed or _Closed.of(white)).factors(rank)
    if rank >= max_ranks((white.shape[1], *white.shape[2:]), 1)[0]:
        return a, d, b
    size = white.norm().clamp_min(linalg.NOTHING)
    a, d, b = (factor / size.pow(1 / 3) for factor in (a, d, b))
    narrow, last = (white / size).float(), (a, d, b)
    for _ in range(_rounds(FITS, 2 * white.numel() * rank + rank**3)):
        here = a, d, b
        a, d, b = (torch.lerp(old, new, 1 + MOMENTUM) for old, new in zip(last, here, strict=True))
        last = here
        half = torch.einsum("gsck,gcr->gskr", narrow, b.float())
        a = _step((half * d.float()[:, None]).sum(2), a, b, d)
        half = torch.einsum("gsck,gsr->gckr", narrow, a.float())
        b = _step((half * d.float()[:, None]).sum(2), b, a, d)
        d = _step((half * b.float()[:, :, None]).sum(1), d, a, b)
        a, d, b = _even(a, d, b)
    return a * size.pow(1 / 3), d * size.pow(1 / 3), b * size.pow(1 / 3)


def _step(wanted: Tensor, old: Tensor, *others: Tensor) -> Tensor:
    """Least squares for one factor, given what the tensor shows of it through the others."""
    first, second = others
    gram = (first.mT @ first) * (second.mT @ second)
    drawn = DRAWN * gram.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    root = torch.linalg.cholesky(linalg.ridged(gram, 2 * DRAWN))
    return torch.cholesky_solve((wanted.double() + drawn * old).mT, root).mT


def _even(*factors: Tensor) -> Factors:
    """Each component's norm spread evenly over its factors."""
    norms = [factor.norm(dim=1, keepdim=True).clamp_min(linalg.NOTHING) for factor in factors]
    common = torch.stack(norms).log().mean(0).exp()
    a, d, b = (factor * (common / norm) for factor, norm in zip(factors, norms, strict=True))
    return a, d, b


def _factors(weight: Tensor, groups: int, rank: int, metric: Metric | None) -> Factors:
    """A (g, S/g, R), D (g, k, R), B (g, C/g, R), float64, nearest to `weight` in the metric."""
    a, d, b = _fitted(linalg.whiten(linalg.stack(weight, groups), metric), rank)
    return (a, d, b) if metric is None else (metric.output_inverse @ a, d, metric.input_inverse @ b)


def _dense(a: Tensor, d: Tensor, b: Tensor) -> Tensor:
    """(g, S/g, C/g, k)."""
    dense: Tensor = torch.einsum("gsr,gcr,gkr->gsck", a, b, d)
    return dense


def losses(weight: Tensor, groups: int, metric: Metric | None) -> Tensor:
    """What is lost of the squared norm at each rank: by the closed form, times the part of it that fitting leaves at a few ranks.

    Between those, and behind them, that part is a power law of the rank.
    """
    white = linalg.whiten(linalg.stack(weight, groups), metric)
    closed = _Closed.of(white)
    table, equal = linalg.tails(closed.values), white[0].numel() / sum(white.shape[1:])
    bare, *ranks = sorted({min(max(1, int(share * equal)), len(table)) for share in (BARE, *KNOTS)})
    lost = [float((white - _dense(*_fitted(white, rank, closed))).square().sum()) for rank in ranks]
    left = [min(1.0, max(LEAST, one / max(float(table[rank - 1]), LEAST))) for rank, one in zip(ranks, lost, strict=True)]
    return (table * torch.from_numpy(_power_law([bare, *ranks], [1.0, *left], len(table)))).cummin(0).values


def _power_law(x: list[int], y: list[float], count: int) -> FloatArray:
    """`y` between and behind its places `x` at each of 1..count, at most 1."""
    at, known, value = np.log(np.arange(1, count + 1)), np.log(x), np.log(y)
    slope = min(0.0, (value[-1] - value[-2]) / (known[-1] - known[-2])) if len(x) > 1 else 0.0
    law: FloatArray = np.exp(np.interp(at, known, value) + slope * np.maximum(at - known[-1], 0.0))
    return law


def project(weight: Tensor, groups: int, ranks: Ranks, metric: Metric | None) -> Tensor:
    """A tensor of rank R near to `weight` in the metric."""
    return _dense(*_factors(weight, groups, ranks[0], metric)).reshape(weight.shape).to(weight.dtype)


def factor(weight: Tensor, bias: Tensor | None, geometry: Geometry, ranks: Ranks, metric: Metric | None) -> FactorChain:
    """Three layers whose product is `project(weight, ...)`, their Frobenius norms made equal."""
    return _chain(*_factors(weight, geometry.groups, ranks[0], metric), weight, bias, geometry)


def regress(
    weight: Tensor, gram: Tensor, bias: Tensor | None, geometry: Geometry, ranks: Ranks, metric: Metric | None
) -> FactorChain:
    """Alternating least squares for || G^1/2 (W - A D B) gram^1/2 ||, from the factors that see each pixel alone.

    A for given D and B is ordinary least squares, and exact; the other two are solved by conjugate gradients, preconditioned by
    what the normal equations would be if neighbouring pixels were independent. No step can raise the error.
    """
    target = linalg.stack(weight, geometry.groups)
    pixel, white, inverse = linalg.pixelwise(target, gram, metric)
    a, d, b = _fitted(white, ranks[0])
    b = inverse @ b
    sweeps = _rounds(SWEEPS, 2 * ITERATIONS * target.shape[1] * gram.numel())
    for sweep in range(sweeps + 1):
        inner = _inner(d, b)
        moments = inner @ gram
        a = torch.linalg.solve(linalg.ridged(moments @ inner.mT, 1e-9), moments @ target.flatten(2).mT).mT
        if sweep < sweeps:
            d, b = _moved(a, d, b, target, gram, pixel, metric)
    return _chain(a, d, b, weight.float(), bias, geometry)


def _inner(d: Tensor, b: Tensor) -> Tensor:
    """What each of the R channels sees of a patch: (g, R, C/g k)."""
    return torch.einsum("gkr,gcr->grck", d, b).flatten(2)


def _moved(
    a: Tensor, d: Tensor, b: Tensor, target: Tensor, gram: Tensor, pixel: Tensor, metric: Metric | None
) -> tuple[Tensor, Tensor]:
    """D and B, one after the other, that bring A D B nearer to `target` (g, S/g, C/g, k) in the metric `gram`."""
    outer = linalg.weighed(a, metric)
    mixed, shape = outer.mT @ a, (*b.mT.shape, d.shape[1])

    def solved(start: Tensor, inner: Callable[[Tensor], Tensor], adjoint: str, other: Tensor, near: _Near) -> Tensor:
        def descent(difference: Tensor) -> Tensor:
            found: Tensor = torch.einsum(adjoint, (outer.mT @ (difference @ gram)).reshape(shape), other)
            return found

        first = descent(target.flatten(2) - a @ inner(start))
        return linalg.conjugate_gradients(start, first, lambda step: descent(a @ inner(step)), near, ITERATIONS)

    right = torch.linalg.inv(linalg.ridged(pixel, 1e-6))
    left = torch.linalg.inv(linalg.ridged(mixed * (d.mT @ d), 1e-6))
    b = solved(b, lambda step: _inner(d, step), "grck,gkr->gcr", d, lambda rest: right @ rest @ left)
    line = torch.linalg.inv(linalg.ridged(mixed * (b.mT @ pixel @ b), 1e-6))
    d = solved(d, lambda step: _inner(step, b), "grck,gcr->gkr", b, lambda rest: rest @ line)
    return d, b


def _chain(a: Tensor, d: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> FactorChain:
    """The three layers; `weight` tells their shapes and type."""
    ranks = (a.shape[-1],)
    shapes = outline(tuple(weight.shape), geometry, ranks)
    return assembled(NAME, (b.mT, d.mT, a), weight, bias, shapes, ranks)


def reconstruct(chain: FactorChain) -> Tensor:
    """The dense (S, C/g, *kernel) weight of the chain."""
    first, middle, last = (torch.from_numpy(layer.weight).double() for layer in chain.layers)
    groups = chain.layers[0].geometry.groups
    b, d, a = (linalg.stack(part, groups) for part in (first, middle, last))
    # (g, R, C/g, 1), (g, R, 1, k), (g, S/g, R, 1)
    dense = torch.einsum("gsr,grc,grk->gsck", a[..., 0], b[..., 0], d[:, :, 0])
    return dense.reshape(last.shape[0], first.shape[1], *middle.shape[2:])


METHOD = register(
    Method(NAME, (), has_core, max_ranks, outline, cost, losses, project, factor, regress, reconstruct, exact=False)
)
