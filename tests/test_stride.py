"""Steps as long as the start of a network bears."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from batude_onnx.importer import GraphNet
from batude_onnx.training import normalisation
from batude_onnx.training.batches import Batches
from batude_onnx.training.judging import loss_of
from batude_onnx.training.loop import train
from batude_onnx.training.losses import Objective
from batude_onnx.training.recipe import RECIPES, Phase
from batude_onnx.training.stride import SHORTEST, share_of
from tests.importer_graphs import imported
from tests.small_models import floats, network, sites_of

RECIPE = replace(RECIPES["default"], batch=32, objective=Objective(distill=1.0))
LONG = Phase(lr=0.3, warmup=0.1, turn=0.1, within=0.5)
STEPS = 160


def beside(by: float) -> GraphNet:
    """The teacher with each weight moved at random by a share of its norm."""
    net, generator = imported(network()), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in net.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * by * parameter.norm() / noise.norm())
    return net


def batches(samples: int = 512) -> Batches:
    return Batches(floats(samples, 3, 8, 8), batch=32)


def share(net: GraphNet, phase: Phase, data: Batches | None = None, steps: int = STEPS) -> float:
    return share_of(net, imported(network()), data or batches(), RECIPE, phase, steps=steps, keys=())


def test_a_near_start_takes_shorter_steps_than_a_far_one() -> None:
    shares = [share(beside(by), LONG) for by in (0.01, 0.05, 0.8)]
    assert shares[0] < shares[1] < shares[2]
    assert shares[0] < 0.1


def test_it_is_the_steps_that_are_tried_and_not_their_share_of_the_phase() -> None:
    """Rates that are twice as high come down twice as far, to within the grid of what is tried."""
    once, twice = (share(beside(0.03), LONG.times(factor)) for factor in (1.0, 2.0))
    assert once / twice == pytest.approx(2.0, rel=0.6)


def test_short_steps_stay_whole() -> None:
    assert share(beside(0.8), LONG.times(0.02)) == 1.0
    assert share(beside(0.01), replace(LONG, within=0.0)) == 1.0


def test_a_start_that_long_steps_lose_is_bettered_by_those() -> None:
    def after(phase: Phase) -> float:
        net, teacher, data = beside(0.02), imported(network()), batches()
        train(net, teacher, data, RECIPE, phase, name="n", epochs=STEPS / len(data), report=lambda _: None)
        return loss_of(net, teacher, data.trial(128), RECIPE.objective)

    start = loss_of(beside(0.02), imported(network()), batches().trial(128), RECIPE.objective)
    assert after(LONG) > start
    assert after(LONG.times(share(beside(0.02), LONG))) < 0.8 * start


def test_neither_the_network_nor_what_comes_next_is_moved() -> None:
    net, data = beside(0.1), batches()
    before, (expected, _) = {name: value.clone() for name, value in net.state_dict().items()}, next(batches().shuffled())
    share(net, LONG, data)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(next(data.shuffled())[0], expected)


def test_fewer_samples_than_are_tried_go_round() -> None:
    assert 0 < share(beside(0.05), LONG, batches(32), steps=1000) < 0.5


def test_a_start_without_any_loss_takes_the_shortest_steps() -> None:
    assert share(imported(network()), LONG) == SHORTEST


def test_a_loss_that_is_no_number_ends_the_trial() -> None:
    x = floats(64, 3, 8, 8)
    x[40:] = np.nan
    assert share(beside(0.05), LONG, Batches(x, batch=32)) == SHORTEST


def test_batch_noise_is_no_loss_of_the_start() -> None:
    """BatchNorms that go by the batch move the start and the copy alike: the shortest steps are not all that is left."""
    net = beside(0.005)
    normalisation.restore(net, normalisation.restorable(sites_of(network())), batches().sample(256))
    found = share_of(net, imported(network()), batches(), replace(RECIPE, restore=True), LONG, steps=STEPS, keys=())
    assert found > 2 * SHORTEST
