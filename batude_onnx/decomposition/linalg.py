"""Unfoldings, their singular values, and the metric in which "nearest" is measured.

A weight (S, C/g, *kernel) of a layer with g groups is handled as a stack of g independent tensors (g, S/g, C/g, k), k the
kernel's size, so that one batched routine serves plain and grouped layers. Mode 0 is the output axis (the paper's mode 1),
mode 1 the input axis (the paper's mode 2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

# A moment below this is one of zeros.
NOTHING = 1e-100


def stack(weight: Tensor, groups: int) -> Tensor:
    """(S, C/g, *kernel) -> (g, S/g, C/g, k)."""
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def unstack(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """(g, S/g, C/g, k) -> `shape`, the inverse of `stack`."""
    return tensor.reshape(tuple(shape))


def unfold(tensor: Tensor, mode: int) -> Tensor:
    """Mode-`mode` unfolding of each tensor of the stack: (g, n_mode, rest)."""
    moved = tensor.movedim(mode + 1, 1)
    return moved.reshape(moved.shape[0], moved.shape[1], -1)


def multiply(tensor: Tensor, matrix: Tensor, mode: int) -> Tensor:
    """Mode product: `matrix` (g, m, n_mode) applied to axis `mode` of each (g, S/g, C/g, k)."""
    return torch.einsum("gmn,gnck->gmck" if mode == 0 else "gmn,gsnk->gsmk", matrix, tensor)


def leading(tensor: Tensor, mode: int) -> tuple[Tensor, Tensor]:
    """`left` of the mode-`mode` unfolding."""
    return left(unfold(tensor, mode))


def left(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors (g, n, k) and singular values (g, k), k = min(n, m), largest first, of `matrix` (g, n, m).

    By the eigenvectors of the smaller Gram matrix in float64: ten times cheaper than an SVD where one side is long, and exact
    to about 1e-8 of the largest singular value, far below a float32 weight's own precision.
    """
    matrix = matrix.double()
    tall = matrix.shape[-2] > matrix.shape[-1]
    values, vectors = torch.linalg.eigh(matrix.mT @ matrix if tall else matrix @ matrix.mT)
    vectors, values = vectors.flip(-1), values.flip(-1).clamp_min(0.0).sqrt()
    # Of a tall one these are the right vectors; QR keeps what they are turned into orthogonal where it is nearly zero, too.
    return torch.linalg.qr(matrix @ vectors)[0] if tall else vectors, values


def tails(values: Tensor) -> Tensor:
    """The squared norm that each rank leaves out, summed over the stack, of singular `values` (g, k), largest first."""
    energy = values.square().sum(0)
    return (energy.sum() - energy.cumsum(0)).clamp_min(0.0)


def _basis(tensor: Tensor, mode: int, rank: int) -> Tensor:
    """The `rank` leading vectors of an unfolding, made up to as many where it has fewer columns."""
    vectors = leading(tensor, mode)[0]
    return (vectors if rank <= vectors.shape[-1] else torch.linalg.qr(vectors, mode="complete")[0])[..., :rank]


def joint_losses(tensor: Tensor, modes: Sequence[int]) -> Tensor:
    """What a truncation of several modes at once loses: squared norm, summed over the stack.

    Entry [r1 - 1, r2 - 1, ...] is the energy of the core outside its leading (r1, r2, ...) corner. Exact for a truncated
    HOSVD (De Lathauwer et al., SIAM J. Matrix Anal. Appl. 21(4), 2000), where the sum of the modes' tails is a bound.
    """
    core = tensor.double()
    for mode in modes:
        core = multiply(core, leading(tensor, mode)[0].mT, mode)
    energy = core.square().sum(0).movedim(tuple(modes), tuple(range(len(modes))))
    energy = energy.reshape(*energy.shape[: len(modes)], -1).sum(-1)
    kept = energy
    for axis in range(len(modes)):
        kept = kept.cumsum(axis)
    return (energy.sum() - kept).clamp_min(0.0)


def truncate(tensor: Tensor, mode: int, rank: int, vectors: Tensor) -> Tensor:
    """The nearest tensor whose mode-`mode` unfolding has rank `rank` (Eckart-Young): the paper's hard S_tau, Eq. 13-14."""
    kept = vectors[..., :rank]
    return multiply(tensor.double(), kept @ kept.mT, mode)


def hooi(tensor: Tensor, ranks: tuple[int, int], sweeps: int = 3) -> tuple[Tensor, Tensor]:
    """Factors (g, S/g, R1) and (g, C/g, R2) of the best Tucker-2 approximation found by alternating from the HOSVD.

    De Lathauwer et al., SIAM J. Matrix Anal. Appl. 21(4), 2000: each sweep can only lower the error, and a few suffice; none
    where the ranks lose nothing.
    """
    tensor = tensor.double()
    u1, u2 = (_basis(tensor, mode, rank) for mode, rank in enumerate(ranks))
    _, s, c, k = tensor.shape
    exact = ranks[0] >= min(s, c * k) and ranks[1] >= min(c, s * k)
    for _ in range(0 if exact else sweeps):
        u1 = _basis(multiply(tensor, u2.mT, 1), 0, ranks[0])
        u2 = _basis(multiply(tensor, u1.mT, 0), 1, ranks[1])
    return u1, u2


def ridged(moment: Tensor, ridge: float) -> Tensor:
    """Symmetric (g, n, n) `moment` with `ridge` of its mean diagonal added, so that it can be inverted; all zeros become ones."""
    mean = moment.diagonal(dim1=-2, dim2=-1).mean(-1)
    added = torch.where(mean > 0, ridge * mean, torch.ones_like(mean))
    return moment + added[:, None, None] * torch.eye(moment.shape[-1], dtype=moment.dtype)


def reduced_rank(gram: Tensor, target: Tensor, rank: int, metric: Metric | None) -> tuple[Tensor, Tensor]:
    """Reduced-rank regression (Izenman, J. Multivariate Anal. 5, 1975): inner (g, R, D) and outer (g, S/g, R), such that
    outer @ inner is the matrix of rank R nearest to `target` (g, S/g, D) in the metric of the outputs and of the second moment
    `gram` (g, D, D) of what it is applied to. `outer` is orthonormal in the metric of the outputs."""
    weighed = target if metric is None else metric.output_root @ target
    vectors = torch.linalg.eigh(weighed @ gram @ weighed.mT)[1][..., -rank:]
    return vectors.mT @ weighed, vectors if metric is None else metric.output_inverse @ vectors


def conjugate_gradients(
    start: Tensor,
    residual: Tensor,
    normal: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
    iterations: int,
) -> Tensor:
    """`start` moved so that `residual`, what the normal equations leave there, becomes small.

    `normal` applies their symmetric positive matrix, `precondition` something near to its inverse.
    """
    step = near = precondition(residual)
    power = (residual * near).sum()
    for _ in range(iterations):
        if not power > 0:
            break
        moved = normal(step)
        length = power / (step * moved).sum()
        start, residual = start + length * step, residual - length * moved
        near = precondition(residual)
        before, power = power, (residual * near).sum()
        step = near + power / before * step
    return start


def roots(moment: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Square root and inverse square root of symmetric (g, n, n) `moment`, after adding `ridge` of its mean eigenvalue.

    Where that is nothing (only zeros were seen), those of the identity, in some units.
    """
    moment = moment.double()
    size = moment.shape[-1]
    mean = moment.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
    mean = torch.where(mean > NOTHING, mean, 1.0)
    values, vectors = torch.linalg.eigh(moment / mean[..., None] + ridge * torch.eye(size, dtype=torch.float64))
    values = values.clamp_min(ridge) * mean
    return (vectors * values.sqrt()[..., None, :]) @ vectors.mT, (vectors * values.rsqrt()[..., None, :]) @ vectors.mT


@dataclass(frozen=True)
class Metric:
    """Weights are compared by what they do: || G^1/2 (W - W') A^1/2 ||, not || W - W' ||.

    A (g, C/g, C/g) is the second moment of the input's channels, G (g, S/g, S/g) that of the loss gradient at the output;
    held as square roots and their inverses, float64, on the CPU.
    """

    output_root: Tensor
    output_inverse: Tensor
    input_root: Tensor
    input_inverse: Tensor

    @staticmethod
    def of_moments(input_moment: Tensor, output_moment: Tensor, ridge: float = 1e-3) -> Metric:
        """From A and G; `ridge` (a share of the mean eigenvalue) keeps directions that the samples did not excite."""
        output_root, output_inverse = roots(output_moment, ridge)
        input_root, input_inverse = roots(input_moment, ridge)
        return Metric(output_root, output_inverse, input_root, input_inverse)

    def whiten(self, tensor: Tensor) -> Tensor:
        """G^1/2 W A^1/2 of a stack (g, S/g, C/g, k)."""
        return multiply(multiply(tensor.double(), self.output_root, 0), self.input_root, 1)

    def colour(self, tensor: Tensor) -> Tensor:
        """The inverse of `whiten`."""
        return multiply(multiply(tensor.double(), self.output_inverse, 0), self.input_inverse, 1)


def whiten(tensor: Tensor, metric: Metric | None) -> Tensor:
    """`tensor` in the space in which distances count; float64."""
    return tensor.double() if metric is None else metric.whiten(tensor)


def colour(tensor: Tensor, metric: Metric | None) -> Tensor:
    """Back from that space."""
    return tensor if metric is None else metric.colour(tensor)


def balanced(*factors: Tensor) -> tuple[Tensor, ...]:
    """The factors of a product with their Frobenius norms made equal; as they are where one of them is zero."""
    norms = [float(factor.norm()) for factor in factors]
    if not all(norms):
        return factors
    common = prod(norms) ** (1 / len(norms))
    return tuple(factor * (common / norm) for factor, norm in zip(factors, norms, strict=True))


def weighed(factor: Tensor, metric: Metric | None) -> Tensor:
    """G `factor`, of outputs (g, S/g, n): what of a difference counts when it is projected on the factor."""
    return factor if metric is None else metric.output_root @ metric.output_root @ factor


def pixelwise(target: Tensor, gram: Tensor, metric: Metric | None) -> tuple[Tensor, Tensor, Tensor]:
    """`target` (g, S/g, C/g, k) as if each pixel were seen alone: A (g, C/g, C/g), the second moment of one pixel's channels, of
    `gram` (g, C/g k, C/g k), that of patches; G^1/2 target A^1/2; and A^-1/2."""
    g, _, c, k = target.shape
    pixel = gram.reshape(g, c, k, c, k).diagonal(dim1=2, dim2=4).mean(-1)
    root, inverse = roots(pixel, 1e-6)
    outer = target if metric is None else multiply(target, metric.output_root, 0)
    return pixel, multiply(outer, root, 1), inverse
