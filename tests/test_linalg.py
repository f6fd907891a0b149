"""Unfoldings, truncations and the metric."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from batude_onnx.decomposition import (
    Metric,
    linalg,
)
from tests.small_models import a_metric, a_moment, a_weight


def test_truncation_is_the_nearest_matrix_of_rank_one() -> None:
    """Eckart-Young against every u v' s on a grid: 160 directions for u and v each, 81 lengths from zero up."""
    matrix = torch.tensor([[1.6, -0.3], [0.9, 0.8]], dtype=torch.float64)
    stack = matrix.reshape(1, 2, 2, 1)
    near = linalg.truncate(stack, 0, 1, linalg.leading(stack, 0)[0]).reshape(2, 2)
    assert int(torch.linalg.matrix_rank(near, atol=1e-9)) == 1
    angles, lengths = torch.arange(160) * (2 * torch.pi / 160), torch.linspace(0, 3, 81, dtype=torch.float64)
    u = torch.stack([angles.cos(), angles.sin()], -1).double()
    along = torch.einsum("ai,ij,bj->ab", u, matrix, u)
    squared = matrix.square().sum() - 2 * lengths * along[..., None] + lengths.square()
    assert float(squared[..., 0].min()) == pytest.approx(float(matrix.square().sum()))  # the zero matrix is among them
    error = float((matrix - near).square().sum())
    assert error <= float(squared.min()) + 1e-12
    # The grid is fine enough to tell: its best is less than 1 % of the norm worse.
    assert float(squared.min()) - error < 0.01 * float(matrix.square().sum())


def test_truncating_nothing_but_zeros_gives_zeros() -> None:
    stack = torch.zeros(1, 3, 2, 4)
    assert not linalg.truncate(stack, 1, 1, linalg.leading(stack, 1)[0]).any()


@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("shape", [(2, 7, 5, 9), (2, 40, 5, 1), (2, 5, 40, 1)], ids=["wide", "tall", "broad"])
def test_singular_values_are_those_of_an_svd(shape: tuple[int, ...], mode: int) -> None:
    stack = a_weight(shape).double()
    vectors, values = linalg.leading(stack, mode)
    expected = torch.linalg.svdvals(linalg.unfold(stack, mode))
    # The Gram matrix squares the condition number: 1e-8 of the largest is what float64 leaves.
    torch.testing.assert_close(values[..., : expected.shape[-1]], expected, rtol=0, atol=2e-8 * float(expected.max()))
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(values.shape[-1]).double().expand(2, -1, -1))
    core = linalg.unfold(linalg.multiply(stack, vectors.mT, mode), mode)
    torch.testing.assert_close(core.norm(dim=-1), values)


def test_the_vectors_of_a_tall_matrix_of_low_rank_are_orthogonal() -> None:
    """Also those of singular values that are zero, which are whatever is left."""
    matrix = (a_weight((50, 2)).double() @ a_weight((2, 6), 1).double())[None]
    vectors, values = linalg.left(matrix)
    assert vectors.shape == (1, 50, 6)
    assert float(values[0, 2]) < 1e-6 * float(values[0, 0])
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(6).double()[None])
    torch.testing.assert_close(vectors[..., :2] @ (vectors[..., :2].mT @ matrix), matrix)


def test_small_singular_values_of_a_low_rank_weight_are_near_zero() -> None:
    left, right = a_weight((9, 2)).double(), a_weight((2, 24), 1).double()
    values = linalg.leading((left @ right).reshape(1, 9, 4, 6), 0)[1][0]
    assert float(values[1]) > 1.0
    assert float(values[2]) < 1e-7 * float(values[0])


@pytest.mark.parametrize("groups", [1, 3])
def test_joint_losses_are_the_errors_of_a_truncated_hosvd(groups: int) -> None:
    stack = a_weight((groups, 5, 4, 6)).double()
    table = linalg.joint_losses(stack, (0, 1))
    assert table.shape == (5, 4)
    bases = [linalg.leading(stack, mode)[0] for mode in (0, 1)]
    for r1, r2 in product(range(1, 6), range(1, 5)):
        cut = linalg.truncate(linalg.truncate(stack, 0, r1, bases[0]), 1, r2, bases[1])
        assert float(table[r1 - 1, r2 - 1]) == pytest.approx(float((stack - cut).square().sum()), rel=1e-9, abs=1e-10)
    tails = [linalg.leading(stack, mode)[1].square().sum(0) for mode in (0, 1)]
    bound = tails[0][2:].sum() + tails[1][2:].sum()
    # The sum of the tails, which it replaces, is a bound and no more.
    assert float(table[1, 1]) < float(bound) * 0.95


def test_hooi_is_no_worse_than_hosvd_and_mostly_better() -> None:
    better = 0
    for seed in range(20):
        stack = a_weight((1, 8, 7, 9), seed).double()
        u1, u2 = linalg.hooi(stack, (2, 3))
        cut = linalg.multiply(linalg.multiply(stack, u1 @ u1.mT, 0), u2 @ u2.mT, 1)
        error, hosvd = float((stack - cut).square().sum()), float(linalg.joint_losses(stack, (0, 1))[1, 2])
        assert error <= hosvd + 1e-9
        better += error < hosvd * 0.999
    assert better >= 15


def test_a_metric_undoes_its_own_whitening() -> None:
    metric, stack = a_metric((6, 5, 3, 3), 1), a_weight((1, 6, 5, 9)).double()
    white = metric.whiten(stack)
    torch.testing.assert_close(metric.colour(white), stack)
    assert float((white - stack).norm()) > 1.0


def test_a_metric_measures_the_error_of_outputs() -> None:
    """|| G^1/2 E A^1/2 ||^2 = E_x (E x)' G (E x) for inputs x of second moment A, but for the ridge."""
    rows = a_weight((500, 5)).double() @ a_weight((5, 5), 1).double()
    output_moment, error = a_moment(1, 4, 3), a_weight((4, 5), 2).double()
    metric = Metric.of_moments((rows.mT @ rows)[None], output_moment, ridge=1e-9)
    told = float(metric.whiten(error.reshape(1, 4, 5, 1)).square().sum())
    seen = rows @ error.mT
    assert told == pytest.approx(float(torch.einsum("ns,st,nt->", seen, output_moment[0], seen)), rel=1e-5)


def test_balanced_factors_have_one_norm_and_the_same_product() -> None:
    a, b = torch.full((3, 2), 8.0), torch.full((2, 4), 0.125)
    first, second = linalg.balanced(a, b)
    assert float(first.norm()) == pytest.approx(float(second.norm()))
    torch.testing.assert_close(first @ second, a @ b)


@pytest.mark.parametrize("other", [1.0, float("nan")])
def test_factors_of_which_one_is_zero_stay_as_they_are(other: float) -> None:
    zero, rest = torch.zeros(2, 2), torch.full((2, 2), other)
    found = linalg.balanced(zero, rest)
    assert found[0] is zero
    assert found[1] is rest
