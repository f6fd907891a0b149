"""The rank problem of Eq. 15, as both solvers see it.

    max sum of gains of the ranks switched on   subject to   P(ranks) <= beta

over all unfoldings of all layers at once. Three facts of real networks go with it: each rank is at least 1; a layer whose chain
would cost as much as the layer itself stays whole; a rank larger than its unfolding allows is not bought.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from batude_onnx.decomposition import dense_cost, method_of, ones
from batude_onnx.errors import BudgetError
from batude_onnx.records import Budget, Cost, FloatArray, RankPlan, Site

# gains[key][k][r]: what the (r+1)-th rank of the k-th mode adds, descending in r.
Gains = Mapping[str, Sequence[FloatArray]]
Choice = tuple[int, ...] | None  # ranks, or None: the layer stays whole


def fixed_cost(whole: Cost, sites: Sequence[Site]) -> Cost:
    """What the network costs besides `sites`."""
    return Cost(whole.params - sum(site.params for site in sites), whole.macs - sum(site.macs for site in sites))


def price(site: Site, choice: Choice, metric: str) -> int:
    """What a layer costs under a choice."""
    cost = dense_cost(site) if choice is None else method_of(site).cost(site, choice)
    return cost.of(metric)


def cheapest(site: Site, metric: str) -> Choice:
    """Rank 1 in every mode, or whole where that costs no more."""
    least = ones(method_of(site), site)
    return least if price(site, least, metric) < price(site, None, metric) else None


def bounds(site: Site, gains: Sequence[FloatArray]) -> tuple[int, ...]:
    """The largest useful rank of each mode."""
    most = method_of(site).max_ranks(site.shape, site.geometry.groups)
    return tuple(min(bound, len(mode)) for bound, mode in zip(most, gains, strict=True))


def wasteful(site: Site, ranks: tuple[Any, ...]) -> Any:
    """Whether one rank is larger than the rest of the core can fill; for ints, or for arrays of them one rank a mode."""
    whole = prod(ranks) * prod(site.kernel)
    wasted: Any = False
    for rank in ranks if len(ranks) > 1 else ():
        wasted = wasted | (rank > whole // rank)
    return wasted


def require_feasible(sites: Sequence[Site], budget: Budget, fixed: Cost) -> None:
    """Raise BudgetError, naming the smallest budget that could be met, where even rank 1 everywhere costs too much."""
    metric = budget.metric
    least = fixed.of(metric) + sum(price(site, cheapest(site, metric), metric) for site in sites)
    if least > budget.limit:
        raise BudgetError(
            f"budget {budget.text!r} allows {budget.limit:,} {metric}, but rank 1 in every layer already takes {least:,}: "
            f"the smallest budget that can be met is {least}"
        )


def plan_of(sites: Sequence[Site], choices: Mapping[str, Choice], fixed: Cost) -> RankPlan:
    """The plan with its predicted cost."""
    cost = fixed
    for site in sites:
        ranks = choices[site.key]
        cost = cost + (dense_cost(site) if ranks is None else method_of(site).cost(site, ranks))
    return RankPlan(dict(choices), cost)
