"""Methods chosen layer by layer, and the plan that follows from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from batude_onnx.budget import Terms, require_feasible
from batude_onnx.decomposition import alternatives, method_of
from batude_onnx.errors import BudgetError
from batude_onnx.records import Budget, Cost, FloatArray, Limit, Prices, RankPlan, Site
from batude_onnx.training import formats, planning
from batude_onnx.training.compressing import current_weights
from batude_onnx.training.recipe import RECIPES
from batude_onnx.training.rules import share_lost
from batude_onnx.training.sensitivity import Curve
from tests.importer_graphs import floats, imported
from tests.small_models import conv_model, network, site, sites_of, terms

SHAPE = (12, 10, 3, 3)
# A layer of shared channels, and one of shared lines, each of rank 2 in its own way and of nothing less in the other's.
CHANNELS = np.einsum("sa,abij,bc->scij", floats(12, 2), floats(2, 2, 3, 3, seed=1), floats(2, 10, seed=2)).astype(np.float32)
LINES = np.einsum("sjr,rci->scij", floats(12, 3, 2), floats(2, 10, 3, seed=1)).astype(np.float32)
WEIGHTS = {"channels": torch.from_numpy(CHANNELS), "lines": torch.from_numpy(LINES)}
SITES = [site(key, SHAPE) for key in WEIGHTS]
WHOLE = Cost(2 * 1080 + 50, 0)
PARAMS = terms(300, WHOLE)


def losses_in(weights: Mapping[str, torch.Tensor]) -> Callable[[Site], FloatArray]:
    return lambda made: share_lost(made, weights[made.key], None)


def test_each_layer_gets_the_method_that_loses_least_of_it() -> None:
    assert [made.method for made in SITES] == ["tucker2", "tucker2"]
    allowed = dict.fromkeys(WEIGHTS, 140.0)
    chosen = formats.choose(SITES, losses_in(WEIGHTS), PARAMS, allowed)
    assert [made.method for made in chosen] == ["tucker2", "separable"]
    # Chosen once more from what was chosen, nothing changes: the first method stays among the alternatives.
    assert formats.choose(chosen, losses_in(WEIGHTS), PARAMS, allowed) == chosen
    swapped = {"channels": WEIGHTS["lines"], "lines": WEIGHTS["channels"]}
    assert [made.method for made in formats.choose(chosen, losses_in(swapped), PARAMS, allowed)] == ["separable", "tucker2"]


def test_a_layer_without_an_allowance_keeps_its_method() -> None:
    chosen = formats.choose(SITES, losses_in(WEIGHTS), PARAMS, {"channels": 140.0})
    assert [made.method for made in chosen] == ["tucker2", "tucker2"]


def test_layers_of_one_method_pass_through() -> None:
    made = site("y", (6, 11))
    assert formats.choose([made], losses_in({"y": torch.from_numpy(floats(6, 11))}), PARAMS, {"y": 30.0}) == [made]


@pytest.mark.parametrize("metric", ["params", "macs"])
def test_allowances_of_layers_alike_are_the_budget(metric: str) -> None:
    sites = [site("a", SHAPE, positions=9), site("b", (6, 5, 3, 3), positions=4)]
    whole = Cost(2000, 20000)
    few = terms(900, whole, metric)
    allowed = formats.alike(sites, few)
    assert sum(allowed.values()) == pytest.approx(900 - few.fixed(sites, metric))
    assert allowed["a"] / allowed["b"] == pytest.approx(few.price(sites[0], None, metric) / few.price(sites[1], None, metric))


def test_a_planned_layer_is_allowed_its_price() -> None:
    plan = RankPlan({"channels": (2, 2), "lines": None}, Cost(0, 0))
    assert formats.planned(SITES, plan, PARAMS) == {"channels": 2 * 12 + 2 * 10 + 4 * 9}


def test_a_plan_is_made_of_the_chosen_methods() -> None:
    recipe = replace(RECIPES["default"], measures=False)
    whole = Cost(1080 + 12, 0)
    for weight, name in ((CHANNELS, "tucker2"), (LINES, "separable")):
        model = conv_model(weight, floats(12), (6, 6))
        few = terms(170, whole)
        planned = planning.plan_layers(sites_of(model), {"y": torch.from_numpy(weight)}, few, recipe, {}, planning.unmeasured)
        assert [made.method for made in planned.sites] == [name]
        assert planned.plan.cost.params <= 170
        near = planned.rules.nearest("y", (torch.from_numpy(weight),), planned.plan.chosen()["y"])[0]
        torch.testing.assert_close(near, torch.from_numpy(weight), rtol=0, atol=1e-5)


def test_all_layers_that_change_their_method_are_measured_again() -> None:
    model = network()
    net, sites = imported(model), sites_of(model)
    whole = Cost(sum(made.params for made in sites), 0)
    few = terms(9 * whole.params // 10, whole)
    recipe, weights = RECIPES["default"], current_weights(net, sites)
    measured: list[list[str]] = []

    def measure(some: Sequence[Site], losses: Mapping[str, FloatArray]) -> Mapping[str, Curve]:
        # One layer hurts a thousand times less than the others, and so has to pay for them.
        measured.append([made.key for made in some])
        return {made.key: Curve((0.01, 0.5), (1e-6, 1e-3) if made.key == "c1" else (1e-3, 1.0)) for made in some}

    planned = planning.plan_layers(sites, weights, few, recipe, {}, measure)
    chosen, plan = planned.sites, planned.plan
    first = formats.choose(sites, losses_in(weights), few, formats.alike(sites, few))
    changed = [one.key for one, other in zip(first, chosen, strict=True) if one.method != other.method]
    assert changed
    assert measured == [[made.key for made in sites], changed]
    assert plan.cost.params <= 9 * whole.params // 10
    for made in chosen:
        assert made in alternatives(next(old for old in sites if old.key == made.key))
        ranks = plan.ranks[made.key]
        assert ranks is None or len(ranks) == len(method_of(made).max_ranks(made.shape, made.geometry.groups))
    measured.clear()
    silent = replace(recipe, formats=False, measures=False)
    assert planning.plan_layers(sites, weights, few, silent, {}, measure).sites == sites
    assert not measured


def timed(limit: float) -> Terms:
    """A limit of time, under which separable chains can be made small, and no others."""
    prices = {}
    for way in (way for made in SITES for way in alternatives(made)):
        most = method_of(way).max_ranks(way.shape, way.geometry.groups)
        dear = np.full(most, 0.9)
        prices[way.key, str(way.method)] = Prices(
            1.0, np.where(np.arange(most[0]) == 0, 0.2, dear) if way.method == "separable" else dear
        )
    budget = Budget((Limit("latency", limit, f"latency={limit}ms"),))
    return Terms(budget, replace(WHOLE, latency=2.5), prices)


def test_a_limit_that_one_method_meets_can_be_met() -> None:
    ways = RECIPES["default"].ways
    require_feasible(SITES, timed(1.0), ways)
    with pytest.raises(BudgetError, match=r"latency=0\.900ms"):
        require_feasible(SITES, timed(0.8), ways)
    with pytest.raises(BudgetError, match=r"latency=2\.300ms"):
        require_feasible(SITES, timed(1.0), RECIPES["paper"].ways)
    chosen = formats.choose(SITES, losses_in(WEIGHTS), timed(1.0), dict.fromkeys(WEIGHTS, 1.0))
    assert [made.method for made in chosen] == ["separable", "separable"]


def test_layers_change_their_method_where_measuring_calls_for_less_than_it_can_give() -> None:
    recipe = replace(RECIPES["default"], measures=False)
    loose = planning.plan_layers(SITES, WEIGHTS, timed(2.4), recipe, {}, planning.unmeasured)
    assert "tucker2" in [made.method for made in loose.sites]
    tight = loose.under(timed(1.0))
    assert [made.method for made in tight.sites] == ["separable", "separable"]
    assert tight.plan.cost.of("latency") <= 1.0


def test_of_two_methods_that_lose_the_same_the_cheaper_is_taken() -> None:
    """All 4 input channels are needed and 2 of the output: a chain that leaves the input alone says the same with less."""
    weight = torch.from_numpy(np.einsum("sa,acij->scij", floats(12, 2), floats(2, 4, 3, 3, seed=1)).astype(np.float32))
    chosen = formats.choose([site("y", (12, 4, 3, 3))], losses_in({"y": weight}), terms(200, Cost(450, 0)), {"y": 200.0})
    assert [made.method for made in chosen] == ["tucker1"]


def test_a_method_without_times_is_not_taken_for_one_that_costs_nothing() -> None:
    """As in a first layer, whose three input channels fill no block."""
    some = timed(2.4)
    whole = {key: prices.whole for key, prices in some.times.items()}
    unknown = {key: Prices(whole[key], np.full_like(prices.ranks, np.inf)) for key, prices in some.times.items()}
    times = {key: prices if key[1] == "tucker1" else unknown[key] for key, prices in some.times.items()}
    for limit in (2.4, 2.31):
        terms = replace(some.tightened({"latency": limit}), times=times)
        require_feasible(SITES, terms, RECIPES["default"].ways)
        assert {made.method for made in formats.feasible(SITES, terms)} <= {"tucker2", "tucker1"}
        planned = planning.plan_layers(
            SITES, WEIGHTS, terms, replace(RECIPES["default"], measures=False), {}, planning.unmeasured
        )
        assert planned.plan.cost.of("latency") <= limit
    with pytest.raises(BudgetError, match=r"latency=2\.300ms"):
        require_feasible(SITES, replace(some.tightened({"latency": 2.2}), times=times), RECIPES["default"].ways)


def test_a_method_that_keeps_all_limits_is_found() -> None:
    """Of one layer: separable chains are faster, and cannot have so few parameters."""
    (layer,) = SITES[1:]
    both = (Limit("params", 60, "60"), Limit("latency", 0.95, "latency=0.95ms"))
    terms = replace(timed(1.0), budget=Budget(both), whole=Cost(1080, 0, 0, 1.0))
    slow = replace(layer, method="tucker1")
    assert [made.method for made in formats.feasible([slow], terms)] == ["tucker2"]
