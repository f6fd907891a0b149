"""From weights and measurements to a plan: how each layer is factored, what that does to the outputs, and so its ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import Tensor

from batude_onnx.budget import frontier
from batude_onnx.budget.frontier import Frontier
from batude_onnx.decomposition import Metric, method_of
from batude_onnx.records import Budget, Computed, Cost, FloatArray, RankPlan, Site
from batude_onnx.training import formats
from batude_onnx.training.bcadl import Rules
from batude_onnx.training.recipe import Recipe
from batude_onnx.training.rules import share_lost
from batude_onnx.training.sensitivity import Curve

Measure = Callable[[Sequence[Site], Mapping[str, FloatArray]], Mapping[str, Curve]]


def unmeasured(sites: Sequence[Site], losses: Mapping[str, FloatArray]) -> dict[str, Curve]:
    """Where there is nothing to measure with."""
    return {}


def _table(site: Site, front: Frontier) -> FloatArray:
    """The losses that `front` was drawn from, where they are on it: the others, which something beats, count as infinite."""
    table = np.full(method_of(site).max_ranks(site.shape, site.geometry.groups), np.inf)
    factored = front.ranks.all(axis=1)
    table[tuple(front.ranks[factored].T - 1)] = front.losses[factored]
    return table


def plan_layers(
    sites: Sequence[Site],
    weights: Mapping[str, Tensor],
    budget: Budget,
    whole: Cost,
    recipe: Recipe,
    metrics: Mapping[str, Metric],
    measure: Measure,
) -> tuple[list[Site], Rules, RankPlan]:
    """`sites` with the methods that factor them, the rules of `recipe` for them, and the ranks of `weights` (canonical).

    Which method loses least depends on how far a layer must shrink, and that on how much its loss hurts: methods are chosen as if
    all layers shrank alike, and once more for what the first plan gives to each. `measure(sites, shares of their energy lost, by
    ranks)` gives the curves of the damage that truncating them does; a recipe that does not measure never calls it.
    """
    # Of each table the part that counts: the tables of all layers may be as large as their weights.
    known: dict[tuple[str, str | None], Frontier] = {}

    def lost(site: Site) -> FloatArray:
        made = site.key, site.method
        if made not in known:
            known[made] = frontier(site, share_lost(site, weights[site.key], metrics.get(site.key)), budget.metric)
        return _table(site, known[made])

    def curves_of(changed: Sequence[Site]) -> Mapping[str, Curve]:
        return measure(changed, {site.key: lost(site) for site in changed}) if recipe.measures else {}

    def solved(curves: Mapping[str, Curve]) -> tuple[Rules, RankPlan]:
        rules = recipe.rules(sites, budget, whole, metrics, curves)
        keys = tuple(site.key for site in sites)
        return rules, rules.ranks(Computed(keys, lambda key: (weights[key],) * rules.copies(key)))

    if recipe.formats:
        sites = formats.choose(sites, lost, budget.metric, formats.alike(sites, budget, whole))
    curves = curves_of(sites)
    rules, plan = solved(curves)
    if recipe.formats:
        before, sites = sites, formats.choose(sites, lost, budget.metric, formats.planned(sites, plan, budget.metric))
        changed = [new for new, old in zip(sites, before, strict=True) if new.method != old.method]
        if changed:
            rules, plan = solved({**curves, **curves_of(changed)})
    return list(sites), rules, plan
