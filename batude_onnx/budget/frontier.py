"""Eq. 15 by gain for each unit of the budget.

Buying ranks one at a time is short-sighted: a layer costs R1*R2*K*K, so each rank of one mode makes the other dearer, and the
sum of the two modes' tails is only a bound on what is lost. Here every layer first draws its own frontier, over all (R1, R2)
at once and the whole layer too,

    loss(R1, R2) = energy of the core outside its leading R1 x R2 corner      against      price(R1, R2),

and the lower convex hulls of all frontiers are then walked together, steepest segment first. That is the exact optimum of the
Lagrangian relaxation at each breakpoint (Everett 1963); what a last, unaffordable segment leaves over is filled greedily.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from batude_onnx.budget.problem import Choice, fixed_cost, plan_of, price, require_feasible
from batude_onnx.decomposition import method_of
from batude_onnx.records import Budget, Cost, FloatArray, RankPlan, Site

# losses[key][r1 - 1, r2 - 1]: what a layer loses at these ranks, in one unit for all layers.
Losses = Mapping[str, FloatArray]


@dataclass(frozen=True)
class Frontier:
    """The choices of one layer that nothing beats, by rising price and falling loss; `hull` indexes the convex ones."""

    choices: list[Choice]
    prices: npt.NDArray[np.int64]
    losses: FloatArray
    hull: list[int]


def frontier(site: Site, table: FloatArray, metric: str) -> Frontier:
    """Draw one layer's frontier from its table of losses, `table[r1 - 1, r2 - 1, ...]`."""
    method = method_of(site)
    most = method.max_ranks(site.shape, site.geometry.groups)
    table = np.asarray(table, dtype=np.float64)[tuple(slice(0, bound) for bound in most)]
    ranks = np.indices(table.shape).reshape(table.ndim, -1).T + 1
    losses = table.ravel()
    # A method's cost is a polynomial in the ranks, so arrays pass through it as numbers do.
    prices = np.asarray(method.cost(site, tuple(ranks.T)).of(metric), dtype=np.int64)
    whole = price(site, None, metric)
    worth = prices < whole
    prices = np.append(prices[worth], whole)
    losses = np.append(losses[worth], 0.0)
    kept = np.flatnonzero(worth)
    order = np.lexsort((losses, prices))
    best = np.minimum.accumulate(losses[order])
    falls = np.append(True, best[1:] < best[:-1])
    order = order[falls]
    choices: list[Choice] = [None if index == len(kept) else tuple(int(rank) for rank in ranks[kept[index]]) for index in order]
    return Frontier(choices, prices[order], losses[order], _hull(prices[order], losses[order]))


def _hull(prices: npt.NDArray[np.int64], losses: FloatArray) -> list[int]:
    """Indices of the lower convex hull of points sorted by price (Andrew's monotone chain)."""
    hull: list[int] = []
    for index in range(len(prices)):
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            if (losses[a] - losses[b]) * (prices[index] - prices[b]) > (losses[b] - losses[index]) * (prices[b] - prices[a]):
                break
            hull.pop()
        hull.append(index)
    return hull


def solve_frontier(sites: Sequence[Site], losses: Losses, budget: Budget, whole: Cost) -> RankPlan:
    """Ranks within `budget`; `whole` is what the untouched network costs. Raises BudgetError where there are none."""
    metric, fixed = budget.metric, fixed_cost(whole, sites)
    require_feasible(sites, budget, fixed)
    fronts = [frontier(site, losses[site.key], metric) for site in sites]
    left = budget.limit - fixed.of(metric) - sum(int(front.prices[0]) for front in fronts)
    segments = []
    for number, front in enumerate(fronts):
        for a, b in zip(front.hull, front.hull[1:], strict=False):
            slope = (front.losses[a] - front.losses[b]) / float(front.prices[b] - front.prices[a])
            segments.append((-slope, number, a, b))
    at = [0] * len(fronts)
    for _, number, a, b in sorted(segments):
        step = int(fronts[number].prices[b] - fronts[number].prices[a])
        if at[number] == a and step <= left:
            at[number], left = b, left - step
    _fill(fronts, at, left)
    choices = {site.key: front.choices[index] for site, front, index in zip(sites, fronts, at, strict=True)}
    return plan_of(sites, choices, fixed)


def _fill(fronts: list[Frontier], at: list[int], left: int) -> None:
    """Spend what is left, each time on the affordable step that lowers the loss most."""
    while True:
        best, chosen = 0.0, None
        for number, front in enumerate(fronts):
            index = int(np.searchsorted(front.prices, front.prices[at[number]] + left, side="right")) - 1
            gain = float(front.losses[at[number]] - front.losses[index])
            if gain > best:
                best, chosen = gain, (number, index)
        if chosen is None:
            return
        number, index = chosen
        left -= int(fronts[number].prices[index] - fronts[number].prices[at[number]])
        at[number] = index
