"""What the default recipe is held against. Importing this registers the recipes under their names in the tables.

All of them fine-tune as the default recipe does from a start as far away as theirs, but for BatchNorms, which go by the batch.
Plain factors start farther from the original than others, but want no larger steps: see the ablations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from batude_onnx.budget import Terms, plan_of, require_feasible
from batude_onnx.decomposition import Metric, linalg, max_ranks, method_of
from batude_onnx.records import RankPlan, Site
from batude_onnx.training.bcadl import Copies
from batude_onnx.training.recipe import RECIPES, register
from batude_onnx.training.rules import MeasuredRules
from batude_onnx.training.sensitivity import Curve
from tools.tables.vbmf import evbmf_rank

Ranks = tuple[int, ...]


def scaled(sites: Sequence[Site], wanted: Mapping[str, Ranks], terms: Terms) -> RankPlan:
    """All `wanted` ranks times the largest common factor that the one limit allows; a layer that would not shrink stays whole."""
    require_feasible(sites, terms)
    (limit,) = terms.budget.limits

    def plan(factor: float) -> RankPlan:
        choices: dict[str, Ranks | None] = {}
        for site in sites:
            most = max_ranks(site)
            ranks = tuple(min(bound, max(1, int(factor * rank))) for rank, bound in zip(wanted[site.key], most, strict=True))
            worth = terms.price(site, ranks, limit.metric) < terms.price(site, None, limit.metric)
            choices[site.key] = ranks if worth else None
        return plan_of(sites, choices, terms)

    low, high = 0.0, float(max(max(site.shape[:2]) for site in sites))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if plan(middle).cost.of(limit.metric) <= limit.limit else (low, middle)
    return plan(low)


@dataclass(frozen=True)
class PlainRules:
    """One copy, projected in the plain norm."""

    sites: Sequence[Site]
    terms: Terms
    metrics: Mapping[str, Metric]
    curves: Mapping[str, Curve]

    def copies(self, key: str) -> int:
        return 1

    def ranks(self, v: Mapping[str, Copies]) -> RankPlan:
        raise NotImplementedError

    def nearest(self, key: str, v: Copies, ranks: Ranks) -> Copies:
        site = next(site for site in self.sites if site.key == key)
        return (method_of(site).project(v[0].detach().cpu(), site.geometry.groups, ranks, None).to(v[0]),)


class UniformRules(PlainRules):
    """The same fraction of the full ranks in every layer."""

    def ranks(self, v: Mapping[str, Copies]) -> RankPlan:
        most = {site.key: max_ranks(site) for site in self.sites}
        return scaled(self.sites, most, self.terms)


class VbmfRules(PlainRules):
    """Ranks by variational Bayes, which knows no budget, scaled to it."""

    def ranks(self, v: Mapping[str, Copies]) -> RankPlan:
        wanted = {}
        for site in self.sites:
            stack = linalg.stack(v[site.key][0].detach().cpu(), site.geometry.groups)
            ranks = []
            for mode in method_of(site).modes:
                sides = linalg.unfold(stack, mode).shape[1:]
                values = linalg.leading(stack, mode)[1][:, : min(sides)]
                ranks.append(max(1, *(evbmf_rank(one.numpy(), *sides) for one in values)))
            wanted[site.key] = tuple(ranks)
        return scaled(self.sites, wanted, self.terms)


class SolvedRules(PlainRules):
    """The default's ranks, with the plain projection."""

    def ranks(self, v: Mapping[str, Copies]) -> RankPlan:
        return MeasuredRules(self.sites, self.terms, self.metrics, self.curves).ranks(v)


# The default recipe with steps of one length, whatever the start bears, and BatchNorms that go by the batch.
EVEN = replace(RECIPES["default"], finetune=replace(RECIPES["default"].finetune, within=0.0), restore=True)
PLAIN = replace(EVEN, measures=False, formats=False, share=0.0, refit=False)
register(replace(PLAIN, name="std-tucker", rules=UniformRules))
register(replace(PLAIN, name="vbmf", rules=VbmfRules))
register(replace(EVEN, name="admm-tucker", rules=SolvedRules, formats=False, share=0.5, freeze=0.0, refit=False))
