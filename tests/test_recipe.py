"""How fast training goes, what is decayed and what is averaged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from batude_onnx.decomposition import methods
from batude_onnx.training.averaging import Average
from batude_onnx.training.recipe import LONGEST, RECIPES, Phase
from tests.small_models import site


def test_one_cycle_rises_to_its_peak_and_falls_to_nothing() -> None:
    phase = Phase(lr=2.0, warmup=0.25)
    assert phase.rate(0.0, 0, 500) == pytest.approx(0.08)
    assert phase.rate(0.125, 0, 500) == pytest.approx(2 * (0.04 + 0.96 / 2))
    assert phase.rate(0.25, 0, 500) == pytest.approx(2.0)
    assert phase.rate(0.625, 0, 500) == pytest.approx(2 * (1e-4 + (1 - 1e-4) / 2))
    assert phase.rate(1.0, 0, 500) == pytest.approx(2e-4)
    rates = [phase.rate(step / 1000, 0, 500) for step in range(1001)]
    assert int(np.argmax(rates)) == 250
    assert (np.diff(rates[:251]) > 0).all()
    assert (np.diff(rates[250:]) < 0).all()
    assert max(abs(np.diff(rates))) < 0.015  # no jump where the halves meet
    assert Phase(lr=2.0, warmup=0.0).rate(0.0, 0, 500) == pytest.approx(2.0)


def test_longer_runs_may_go_faster() -> None:
    phase = Phase(lr=0.01, warmup=0.0, growth=0.5)
    assert [phase.rate(0.0, 0, steps) for steps in (250, 1000, 4000)] == pytest.approx([0.005, 0.01, 0.02])
    assert phase.rate(0.0, 0, 10 * LONGEST) == phase.rate(0.0, 0, LONGEST)


def test_a_layer_is_factored_by_what_the_recipe_can_use() -> None:
    """BC-ADL projects again and again, which must be cheap; a recipe without formats knows one method."""
    layer, default = site("y", (12, 10, 3, 3)), RECIPES["default"]
    fitted = {way.name for way in methods() if not way.exact}
    assert fitted
    offered = {
        recipe.name: {way.method for way in recipe.ways(layer)}
        for recipe in (default, RECIPES["batude"], RECIPES["paper"], replace(default, name="less", without=("separable",)))
    }
    assert offered["default"] > fitted
    assert offered["batude"] == offered["default"] - fitted
    assert offered["paper"] == {layer.method}
    assert offered["less"] == offered["default"] - {"separable"}


def test_an_average_is_that_of_the_last_share_of_a_run() -> None:
    net = torch.nn.BatchNorm1d(1)
    average = Average(net, 0.1)
    for step in range(1, 201):
        with torch.no_grad():
            net.weight.fill_(float(step))
            net.bias.fill_(3.0)
            assert net.running_mean is not None
            net.running_mean.fill_(2.0 * step)
        average.add(step, 200)
    average.put()
    # A window of 20 steps lags behind a straight line by 19 of them, in parameters and in buffers; what rests does not move.
    assert net.weight.item() == pytest.approx(200 - 19, abs=0.1)
    assert float(net.running_mean or 0) == pytest.approx(2 * (200 - 19), abs=0.2)
    assert net.bias.item() == pytest.approx(3.0)
    assert int(net.num_batches_tracked or 0) == 0


def test_averaging_starts_with_the_first_steps() -> None:
    net = torch.nn.Linear(1, 1, bias=False)
    average = Average(net, 0.1)
    with torch.no_grad():
        net.weight.fill_(7.0)
    average.add(1, 1000)
    average.put()
    assert net.weight.item() == 7.0


def test_the_papers_rate_falls_to_a_tenth_every_so_many_epochs() -> None:
    phase = Phase(lr=0.1, decay_epochs=30)
    rates = [phase.rate(0.5, epoch, 500) for epoch in (0, 29.99, 30, 59.9, 60, 90)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.0001])


def test_the_penalty_grows_geometrically_over_a_run() -> None:
    recipe = replace(RECIPES["default"], penalty=(0.01, 1.0))
    assert [recipe.penalty_at(progress) for progress in (0.0, 0.5, 1.0)] == pytest.approx([0.01, 0.1, 1.0])
