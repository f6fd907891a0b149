"""From measurements to a plan: how each layer is factored, what that does to the outputs, and so its ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from batude_onnx.decomposition import Metric
from batude_onnx.importer import GraphNet
from batude_onnx.records import Budget, Cost, RankPlan, Site
from batude_onnx.training import formats, sensitivity
from batude_onnx.training.bcadl import Rules
from batude_onnx.training.compressing import current_weights, solve_ranks
from batude_onnx.training.recipe import Recipe
from batude_onnx.training.rules import share_lost
from batude_onnx.training.sensitivity import Curve


def plan_layers(
    net: GraphNet,
    sites: Sequence[Site],
    budget: Budget,
    whole: Cost,
    recipe: Recipe,
    metrics: Mapping[str, Metric],
    inputs: Sequence[Tensor],
    report: Callable[[int, int], None],
) -> tuple[list[Site], Rules, RankPlan]:
    """`sites` with the methods that factor them, the rules of `recipe` for them, and the ranks of the weights as they are.

    Which method loses least depends on how far a layer must shrink, and that on how much its loss hurts: methods are chosen as if
    all layers shrank alike, and once more for what the first plan gives to each. `inputs` are those on which truncations are
    measured. `report(done, all)` is called after each layer measured.
    """
    weights = current_weights(net, sites)
    if recipe.formats:
        sites = formats.choose(sites, weights, metrics, budget.metric, formats.alike(sites, budget, whole))
    curves = _curves(net, sites, weights, budget, recipe, metrics, inputs, report)
    rules = recipe.rules(sites, budget, whole, metrics, curves)
    plan = solve_ranks(net, sites, rules)
    if not recipe.formats:
        return list(sites), rules, plan
    again = formats.choose(sites, weights, metrics, budget.metric, formats.planned(sites, plan, budget.metric))
    changed = [new for new, old in zip(again, sites, strict=True) if new.method != old.method]
    if changed:
        curves |= _curves(net, changed, weights, budget, recipe, metrics, inputs, report)
        rules = recipe.rules(again, budget, whole, metrics, curves)
        plan = solve_ranks(net, again, rules)
    return again, rules, plan


def _curves(
    net: GraphNet,
    sites: Sequence[Site],
    weights: Mapping[str, Tensor],
    budget: Budget,
    recipe: Recipe,
    metrics: Mapping[str, Metric],
    inputs: Sequence[Tensor],
    report: Callable[[int, int], None],
) -> dict[str, Curve]:
    """The damage that truncating each layer does to the outputs, where the recipe measures it."""
    if not recipe.measures:
        return {}
    losses = {site.key: share_lost(site, weights[site.key], metrics.get(site.key)) for site in sites}
    return sensitivity.measure(net, sites, losses, budget.metric, inputs, metrics, recipe.objective, report)
