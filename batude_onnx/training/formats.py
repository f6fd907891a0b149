"""Which of the methods that could factor a layer does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from batude_onnx.budget import frontier
from batude_onnx.budget.problem import fixed_cost, price
from batude_onnx.decomposition import alternatives
from batude_onnx.records import Budget, Cost, FloatArray, RankPlan, Site

Allowances = Mapping[str, float]


def alike(sites: Sequence[Site], budget: Budget, whole: Cost) -> dict[str, float]:
    """What each layer may cost if all of them shrink alike to meet the budget."""
    metric = budget.metric
    spare = budget.limit - fixed_cost(whole, sites).of(metric)
    share = spare / max(1, sum(price(site, None, metric) for site in sites))
    return {site.key: share * price(site, None, metric) for site in sites}


def planned(sites: Sequence[Site], plan: RankPlan, metric: str) -> dict[str, float]:
    """What each layer costs in `plan`; a layer left whole is not among them."""
    return {site.key: price(site, plan.ranks[site.key], metric) for site in sites if plan.ranks[site.key] is not None}


def choose(sites: Sequence[Site], losses: Callable[[Site], FloatArray], metric: str, allowances: Allowances) -> list[Site]:
    """`sites` with the method that loses least of each layer for what it may cost; one without an allowance stays as it is.

    `losses(site)`: the share of its energy that the site's method loses, by ranks. Where two lose the same, the first one stays.
    """

    def lost(site: Site) -> float:
        front = frontier(site, losses(site), metric)
        index = int(np.searchsorted(front.prices, allowances[site.key], side="right")) - 1
        return float(front.losses[index]) if index >= 0 else 1.0

    return [min(alternatives(site), key=lost) if site.key in allowances else site for site in sites]
