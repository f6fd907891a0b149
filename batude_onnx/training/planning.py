"""From weights and measurements to a plan: how each layer is factored, what that does to the outputs, and so its ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from batude_onnx.budget import Terms
from batude_onnx.decomposition import Metric
from batude_onnx.records import Computed, FloatArray, RankPlan, Site
from batude_onnx.training import formats
from batude_onnx.training.bcadl import Rules
from batude_onnx.training.recipe import Recipe
from batude_onnx.training.rules import damage, share_lost
from batude_onnx.training.sensitivity import Curve

Measure = Callable[[Sequence[Site], Mapping[str, FloatArray]], Mapping[str, Curve]]


def unmeasured(sites: Sequence[Site], losses: Mapping[str, FloatArray]) -> dict[str, Curve]:
    """Where there is nothing to measure with."""
    return {}


@dataclass(frozen=True)
class Planned:
    """Sites with the methods that factor them, the rules by which their ranks are chosen, and the ranks; what they came of."""

    sites: list[Site]
    rules: Rules
    plan: RankPlan
    weights: Mapping[str, Tensor]
    recipe: Recipe
    metrics: Mapping[str, Metric]
    curves: Mapping[str, Curve]
    measure: Measure

    @property
    def measured(self) -> bool:
        """Whether the damage to the outputs was measured."""
        return bool(self.curves)

    def damage(self) -> Mapping[str, FloatArray]:
        """What truncating each layer does, by its ranks: to the outputs where that was measured, else the share of it lost."""
        return damage(self.sites, self.weights, self.metrics, self.curves)

    def loss(self) -> float:
        """The damage of all layers of the plan added up, each truncated alone."""
        damage, chosen = self.damage(), self.plan.chosen()
        return float(sum(damage[key][tuple(rank - 1 for rank in ranks)] for key, ranks in chosen.items()))

    def afresh(self, terms: Terms) -> Planned:
        """Methods and ranks of the same layers chosen for other terms; raises BudgetError where there are none."""
        return plan_layers(self.sites, self.weights, terms, self.recipe, self.metrics, self.measure)

    def under(self, terms: Terms) -> Planned:
        """The ranks of the same layers under other terms, by the same methods unless those cannot be made small enough.

        Raises BudgetError where there are none.
        """
        if self.recipe.formats and formats.feasible(self.sites, terms, self.recipe.ways) != self.sites:
            return self.afresh(terms)
        rules = self.recipe.rules(self.sites, terms, self.metrics, self.curves)
        return replace(self, rules=rules, plan=_solved(rules, self.sites, self.weights))


def plan_layers(
    sites: Sequence[Site],
    weights: Mapping[str, Tensor],
    terms: Terms,
    recipe: Recipe,
    metrics: Mapping[str, Metric],
    measure: Measure,
) -> Planned:
    """`sites` with the methods that factor them, the rules of `recipe` for them, and the ranks of `weights` (canonical).

    Which method loses least depends on how far a layer must shrink, and that on how much its loss hurts: methods are chosen as if
    all layers shrank alike, and once more for what the first plan gives to each. `measure(sites, shares of their energy lost, by
    ranks)` gives the curves of the damage that truncating them does; a recipe that does not measure never calls it.
    """

    def lost(site: Site) -> FloatArray:
        return share_lost(site, weights[site.key], metrics.get(site.key))

    def curves_of(changed: Sequence[Site]) -> Mapping[str, Curve]:
        return measure(changed, {site.key: lost(site) for site in changed}) if recipe.measures else {}

    def solved(curves: Mapping[str, Curve]) -> tuple[Rules, RankPlan]:
        rules = recipe.rules(sites, terms, metrics, curves)
        return rules, _solved(rules, sites, weights)

    if recipe.formats:
        sites = formats.choose(sites, lost, terms, formats.alike(sites, terms), recipe.ways)
    curves = curves_of(sites)
    rules, plan = solved(curves)
    if recipe.formats:
        before, sites = sites, formats.choose(sites, lost, terms, formats.planned(sites, plan, terms), recipe.ways)
        changed = [new for new, old in zip(sites, before, strict=True) if new.method != old.method]
        if changed:
            curves = {**curves, **curves_of(changed)}
            rules, plan = solved(curves)
    return Planned(list(sites), rules, plan, weights, recipe, metrics, curves, measure)


def _solved(rules: Rules, sites: Sequence[Site], weights: Mapping[str, Tensor]) -> RankPlan:
    keys = tuple(site.key for site in sites)
    return rules.ranks(Computed(keys, lambda key: (weights[key],) * rules.copies(key)))
