"""Ranks for the layers of a network: those that lose least within all limits.

Buying ranks one at a time is short-sighted: a layer costs R1*R2*K*K, so each rank of one mode makes the other dearer, and the
sum of the two modes' tails is only a bound on what is lost. Here all (R1, R2) of each layer are weighed at once, and the whole
layer too, by what they lose and what they cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from batude_onnx.budget.allocation import allocate
from batude_onnx.budget.terms import Terms, plan_of, require_feasible
from batude_onnx.errors import BudgetError
from batude_onnx.records import Computed, FloatArray, Prices, RankPlan, Site

# losses[key][r1 - 1, r2 - 1]: what a layer loses at these ranks, in one unit for all layers.
Losses = Mapping[str, FloatArray]


def solve(sites: Sequence[Site], losses: Losses, terms: Terms) -> RankPlan:
    """Ranks within all limits of `terms`. Raises BudgetError where there are none."""
    require_feasible(sites, terms)
    by_key = {site.key: site for site in sites}
    keys = tuple(by_key)

    def priced(metric: str) -> Mapping[str, Prices]:
        return Computed(keys, lambda key: terms.prices(by_key[key], metric))

    found = allocate(
        losses,
        {metric: priced(metric) for metric in terms.metrics},
        dict(zip(terms.metrics, terms.left(sites).tolist(), strict=True)),
        Computed(keys, lambda key: terms.allowed(by_key[key])),
        [site.key for site in sites if not terms.may_stay_whole(site)],
    )
    if found is None:
        raise BudgetError(f"the limits of budget {terms.budget.text!r} cannot all be met together: loosen one of them")
    return plan_of(sites, found.choices, terms)
