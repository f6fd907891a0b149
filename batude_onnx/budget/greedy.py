"""Eq. 15 as the paper solves it: switch on the largest singular value left, over all layers and modes, until the budget is
reached (Algorithm 1, line 4)."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from batude_onnx.budget.problem import (
    Choice,
    Gains,
    bounds,
    cheapest,
    fixed_cost,
    plan_of,
    price,
    require_feasible,
    wasteful,
)
from batude_onnx.records import Budget, Cost, RankPlan, Site


def solve_greedy(sites: Sequence[Site], gains: Gains, budget: Budget, whole: Cost) -> RankPlan:
    """Ranks within `budget`; `whole` is what the untouched network costs. Raises BudgetError where there are none."""
    metric, fixed = budget.metric, fixed_cost(whole, sites)
    require_feasible(sites, budget, fixed)
    by_key = {site.key: site for site in sites}
    most = {site.key: bounds(site, gains[site.key]) for site in sites}
    choices: dict[str, Choice] = {site.key: cheapest(site, metric) for site in sites}
    left = budget.limit - fixed.of(metric) - sum(price(site, choices[site.key], metric) for site in sites)
    queue: list[tuple[float, str, int]] = []
    held: dict[str, list[int]] = {}  # modes that wait for another mode's rank to grow

    def push(key: str, mode: int) -> None:
        ranks = choices[key]
        if ranks is not None and ranks[mode] < most[key][mode]:
            heapq.heappush(queue, (-float(gains[key][mode][ranks[mode]]), key, mode))

    for site in sites:
        for mode in range(len(most[site.key])):
            push(site.key, mode)
    while queue:
        _, key, mode = heapq.heappop(queue)
        ranks, site = choices[key], by_key[key]
        if ranks is None:
            continue
        wanted: Choice = tuple(rank + (index == mode) for index, rank in enumerate(ranks))
        if wanted is not None and wasteful(site, wanted):
            held.setdefault(key, []).append(mode)
            continue
        if price(site, wanted, metric) >= price(site, None, metric):
            wanted = None
        step = price(site, wanted, metric) - price(site, ranks, metric)
        if step > left:
            continue  # prices only grow and what is left only shrinks: this mode will not fit again
        left -= step
        choices[key] = wanted
        for waiting in {mode, *held.pop(key, [])}:
            push(key, waiting)
    return plan_of(sites, choices, fixed)
