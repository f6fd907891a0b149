"""What moves the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from batude_onnx.training.optimizers import RelativeMuon, optimizers, orthogonalised
from tests.importer_graphs import imported
from tests.small_models import network


@pytest.mark.parametrize("shape", [(3, 6, 20), (2, 20, 6), (1, 8, 8)])
def test_all_singular_values_become_about_alike_in_the_same_directions(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    small = min(shape[1:])
    values = torch.logspace(0, -1.5, small)
    u, v = (torch.linalg.qr(torch.randn(shape[0], size, small)).Q for size in shape[1:])
    found = orthogonalised(u * values @ v.mT)
    torch.testing.assert_close(found.norm(dim=(1, 2)), torch.ones(shape[0]))
    core = u.mT @ found @ v
    diagonal = core.diagonal(dim1=1, dim2=2)
    assert float((core - torch.diag_embed(diagonal)).abs().max()) < 1e-4
    # From a range of 30 to one of less than 2.
    assert float(diagonal.max() / diagonal.min()) < 2.0


def test_nothing_but_zeros_moves_nothing() -> None:
    assert not orthogonalised(torch.zeros(1, 3, 4)).any()


def test_a_step_is_a_share_of_the_weights_norm_whatever_the_gradient() -> None:
    torch.manual_seed(0)
    weights = [nn.Parameter(scale * torch.randn(6, 4, 3, 3)) for scale in (0.01, 1.0, 100.0)]
    before = [weight.detach().clone() for weight in weights]
    mover = RelativeMuon(weights, lr=0.02, momentum=0.9)
    for weight, size in zip(weights, (1e3, 1.0, 1e-3), strict=True):
        weight.grad = size * torch.randn_like(weight)
    mover.step()
    for weight, old in zip(weights, before, strict=True):
        assert ((weight - old).norm() / old.norm()).item() == pytest.approx(0.02, rel=1e-4)
        assert weight.grad is not None
        assert ((weight - old) * weight.grad).sum().item() < 0


def test_a_badly_scaled_problem_is_solved_sooner_than_by_gradients() -> None:
    """|| A (W - W*) ||^2 with A of condition 100: the gradient hardly sees most of the directions."""
    torch.manual_seed(0)
    a, goal = torch.diag(torch.logspace(0, -2, 12)), torch.randn(12, 12)

    def lost(make: str, rate: float) -> float:
        weight = nn.Parameter(torch.ones(12, 12))
        mover = (
            RelativeMuon([weight], lr=rate, momentum=0.9) if make == "muon" else torch.optim.SGD([weight], lr=rate, momentum=0.9)
        )
        for step in range(200):
            for group in mover.param_groups:
                group["lr"] = rate * (1 - step / 200)
            mover.zero_grad()
            (a @ (weight - goal)).square().sum().backward()  # type: ignore[no-untyped-call]
            mover.step()
        return float((weight.detach() - goal).square().sum())

    assert min(lost("muon", rate) for rate in (0.02, 0.05, 0.1)) < 0.5 * min(lost("sgd", rate) for rate in (0.03, 0.1, 0.3))


@pytest.mark.parametrize("turn", [0.0, 0.02])
def test_each_parameter_has_one_mover_and_only_weights_are_decayed(turn: float) -> None:
    net = imported(network())
    movers = optimizers(net, 0.1, turn, 0.9, True, 0.3)
    groups = [group for mover in movers for group in mover.param_groups]
    held = [parameter for group in groups for parameter in group["params"]]
    assert len(held) == len({id(parameter) for parameter in held}) == len(list(net.parameters())) == 9
    for mover in movers:
        for group in mover.param_groups:
            weights = {parameter.ndim > 1 for parameter in group["params"]}
            assert len(weights) == 1
            muon = isinstance(mover, RelativeMuon)
            assert group.get("weight_decay", 0.0) == (0.3 if weights == {True} and not muon else 0.0)
            assert group["scale"] * 0.1 == pytest.approx(0.02 if muon else 0.1)
    assert any(isinstance(mover, RelativeMuon) for mover in movers) == bool(turn)
