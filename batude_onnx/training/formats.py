"""Which of the methods that could factor a layer does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from batude_onnx.budget import frontier
from batude_onnx.budget.problem import fixed_cost, price
from batude_onnx.decomposition import Metric, alternatives
from batude_onnx.records import Budget, Cost, RankPlan, Site
from batude_onnx.training.rules import share_lost

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


def choose(
    sites: Sequence[Site], weights: Mapping[str, Tensor], metrics: Mapping[str, Metric], metric: str, allowances: Allowances
) -> list[Site]:
    """`sites` with the method that loses least of each layer for what it may cost; one without an allowance stays as it is.

    `weights` are canonical; losses are shares of a layer's energy, in its metric where there is one. Where two lose the same,
    the first one stays.
    """

    def lost(site: Site) -> float:
        front = frontier(site, share_lost(site, weights[site.key], metrics.get(site.key)), metric)
        index = int(np.searchsorted(front.prices, allowances[site.key], side="right")) - 1
        return float(front.losses[index]) if index >= 0 else 1.0

    return [min(alternatives(site), key=lost) if site.key in allowances else site for site in sites]
