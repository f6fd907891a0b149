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
from itertools import repeat

import numpy as np
import numpy.typing as npt

from batude_onnx.budget.problem import Choice, fixed_cost, plan_of, price, require_feasible, wasteful
from batude_onnx.decomposition import method_of
from batude_onnx.records import Budget, Cost, FloatArray, RankPlan, Site

# losses[key][r1 - 1, r2 - 1]: what a layer loses at these ranks, in one unit for all layers.
Losses = Mapping[str, FloatArray]


@dataclass(frozen=True)
class Frontier:
    """The choices of one layer that nothing beats, by rising price and falling loss; `hull` indexes the convex ones.

    `ranks` (points, modes); a row of zeros is the whole layer.
    """

    ranks: npt.NDArray[np.int64]
    prices: npt.NDArray[np.int64]
    losses: FloatArray
    hull: npt.NDArray[np.int64]

    def choice(self, index: int) -> Choice:
        """What stands at `index`."""
        ranks = tuple(int(rank) for rank in self.ranks[index])
        return ranks if all(ranks) else None


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
    worth = (prices < whole) & np.logical_not(wasteful(site, tuple(ranks.T)))
    ranks = np.vstack([ranks[worth], np.zeros((1, table.ndim), dtype=np.int64)])
    prices, losses = np.append(prices[worth], whole), np.append(losses[worth], 0.0)
    order = np.argsort(prices, kind="stable")
    best = np.minimum.accumulate(losses[order])
    order = order[np.append(True, best[1:] < best[:-1])]
    # Of several choices at one price the last of these is the best.
    order = order[np.append(prices[order][1:] > prices[order][:-1], True)]
    return Frontier(ranks[order], prices[order], losses[order], _hull(prices[order], losses[order]))


def _hull(prices: npt.NDArray[np.int64], losses: FloatArray) -> npt.NDArray[np.int64]:
    """Indices of the lower convex hull of points sorted by price.

    A point on or above the chord of its two neighbours is no corner of the hull, whichever other points go; what is left when
    none goes any more is convex.
    """
    hull = np.arange(len(prices))
    while True:
        slopes = np.diff(losses[hull]) / np.diff(prices[hull])
        corner = np.concatenate([[True], slopes[:-1] < slopes[1:], [True]])[: len(hull)]
        if corner.all():
            return hull
        hull = hull[corner]


def solve_frontier(sites: Sequence[Site], losses: Losses, budget: Budget, whole: Cost) -> RankPlan:
    """Ranks within `budget`; `whole` is what the untouched network costs. Raises BudgetError where there are none."""
    metric, fixed = budget.metric, fixed_cost(whole, sites)
    require_feasible(sites, budget, fixed)
    fronts = [frontier(site, losses[site.key], metric) for site in sites]
    left = budget.limit - fixed.of(metric) - sum(int(front.prices[0]) for front in fronts)
    segments: list[tuple[float, int, int, int]] = []
    for number, front in enumerate(fronts):
        slopes = np.diff(front.losses[front.hull]) / np.diff(front.prices[front.hull])
        segments += zip(slopes.tolist(), repeat(number), front.hull[:-1].tolist(), front.hull[1:].tolist(), strict=False)
    at = [0] * len(fronts)
    for _, number, a, b in sorted(segments):
        step = int(fronts[number].prices[b] - fronts[number].prices[a])
        if at[number] == a and step <= left:
            at[number], left = b, left - step
    _fill(fronts, at, left)
    choices = {site.key: front.choice(index) for site, front, index in zip(sites, fronts, at, strict=True)}
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
