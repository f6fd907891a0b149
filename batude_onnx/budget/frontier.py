"""Eq. 15 by gain for each unit of the budget, a multiple-choice knapsack over all layers.

Buying ranks one at a time is short-sighted: a layer costs R1*R2*K*K, so each rank of one mode makes the other dearer, and the
sum of the two modes' tails is only a bound on what is lost. Here every layer first draws its own frontier, over all (R1, R2)
at once and the whole layer too,

    loss(R1, R2) = energy of the core outside its leading R1 x R2 corner      against      price(R1, R2),

and the lower convex hulls of all frontiers are then walked together, steepest segment first. That is the exact optimum of the
Lagrangian relaxation at each breakpoint (Everett 1963); what a last, unaffordable segment leaves over is filled greedily.

Several limits become one by a surrogate constraint (Glover 1968), price = sum of w_m price_m / limit_m with weights w that add up
to 1: a limit that is overspent gains weight, and one with room to spare loses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import numpy.typing as npt

from batude_onnx.budget.exchange import Points, exchanged, filled
from batude_onnx.budget.terms import Choice, Mask, Terms, plan_of, require_feasible
from batude_onnx.decomposition import method_of
from batude_onnx.errors import BudgetError
from batude_onnx.records import FloatArray, Prices, RankPlan, Site

# losses[key][r1 - 1, r2 - 1]: what a layer loses at these ranks, in one unit for all layers.
Losses = Mapping[str, FloatArray]
Indices = npt.NDArray[np.int64]

# Finer steps of a rank than so many are not told apart.
FINEST = 128
# Weights of several limits are sought in so many rounds, and the share of the limits that can be spent in so many halvings.
ROUNDS, HALVINGS = 24, 10


@dataclass(frozen=True)
class Frontier:
    """The choices of one layer that nothing beats, by rising price and falling loss; `hull` indexes the convex ones.

    `ranks` (points, modes); a row of zeros is the whole layer.
    """

    ranks: Indices
    prices: FloatArray
    losses: FloatArray
    hull: Indices

    def choice(self, index: int) -> Choice:
        """What stands at `index`."""
        return _choice(self.ranks[index])


def _choice(ranks: Indices) -> Choice:
    chosen = tuple(int(rank) for rank in ranks)
    return chosen if all(chosen) else None


def frontier(site: Site, table: FloatArray, prices: Prices, allowed: Mask, whole: bool = True) -> Frontier:
    """Draw one layer's frontier from its table of losses, `table[r1 - 1, r2 - 1, ...]`; `whole`: it may stay as it is."""
    ranks, losses = _candidates(site, table, allowed, whole)
    cost = _costs(prices.ranks, prices.whole, ranks)
    order = _unbeaten(cost, losses)
    return Frontier(ranks[order], cost[order], losses[order], _hull(cost[order], losses[order]))


def _candidates(site: Site, table: FloatArray, allowed: Mask, whole: bool) -> tuple[Indices, FloatArray]:
    """Ranks that may be taken and what they lose, the whole layer last."""
    most = method_of(site).max_ranks(site.shape, site.geometry.groups)
    table = np.asarray(table, dtype=np.float64)[tuple(slice(0, bound) for bound in most)]
    fits = allowed.copy() if allowed.sum() > FINEST**2 else allowed
    for axis, bound in enumerate(most if fits is not allowed else ()):
        coarse = np.arange(1, bound + 1) % -(-bound // FINEST) != 0
        fits[(slice(None),) * axis + (coarse,)] = False
    ranks, losses = np.argwhere(fits) + 1, table[fits]
    if whole:
        ranks, losses = np.vstack([ranks, np.zeros((1, table.ndim), dtype=np.int64)]), np.append(losses, 0.0)
    return ranks, losses


def _costs(table: FloatArray, whole: float, ranks: Indices) -> FloatArray:
    """Prices of the candidates; a row of zeros is the whole layer."""
    within = ranks[:, 0] > 0
    cost = np.full(len(ranks), float(whole))
    cost[within] = table[tuple(ranks[within].T - 1)]
    return cost


def _unbeaten(cost: FloatArray, losses: FloatArray) -> Indices:
    """By rising price, the candidates that lose less than all cheaper ones."""
    order = np.argsort(cost, kind="stable")
    best = np.minimum.accumulate(losses[order])
    order = order[np.append(True, best[1:] < best[:-1])] if len(order) else order
    # Of several choices at one price the last of these is the best.
    kept: Indices = order[np.append(cost[order][1:] > cost[order][:-1], True)] if len(order) else order
    return kept


def _hull(prices: FloatArray, losses: FloatArray) -> Indices:
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


def solve_frontier(sites: Sequence[Site], losses: Losses, terms: Terms) -> RankPlan:
    """Ranks within all limits of `terms`. Raises BudgetError where there are none."""
    require_feasible(sites, terms)
    left = terms.left(sites)
    points = [_points(site, losses[site.key], terms, left) for site in sites]
    at = _walked(points, np.ones(1), 1.0)[0] if len(left) == 1 else _surrogate(points, len(left), terms)
    at = exchanged(points, filled(points, at))
    return plan_of(sites, {site.key: _choice(one.ranks[i]) for site, one, i in zip(sites, points, at, strict=True)}, terms)


def lower_bound(sites: Sequence[Site], losses: Losses, terms: Terms) -> float:
    """No plan within the one limit of `terms` loses less than this: the Lagrangian relaxation, in which layers may be mixed."""
    points = [_points(site, losses[site.key], terms, terms.left(sites)) for site in sites]
    at, missed = _walked(points, np.ones(1), 1.0)
    return float(sum(one.losses[i] for one, i in zip(points, at, strict=True)) - missed)


def _points(site: Site, lost: FloatArray, terms: Terms, left: FloatArray) -> Points:
    """The candidates of one layer, their costs as shares of what the limits leave. Under several limits those that are unbeaten
    for some of the weights that these may have."""
    allowed = terms.allowed(site)
    ranks, losses = _candidates(site, lost, allowed, terms.may_stay_whole(site))
    tables = zip(terms.table(site), terms.wholes(site), np.maximum(left, 1e-9), strict=True)
    shares = np.stack([_costs(table / unit, whole / unit, ranks) for table, whole, unit in tables], axis=1)
    if shares.shape[1] == 1:
        kept = _unbeaten(shares[:, 0], losses)
    else:
        mixed = np.vstack([np.eye(shares.shape[1]), np.random.default_rng(0).dirichlet(np.ones(shares.shape[1]), 12)])
        kept = np.unique(np.concatenate([_unbeaten(shares @ weights, losses) for weights in mixed]))
    return Points(ranks[kept], shares[kept], losses[kept])


def _walked(points: Sequence[Points], weights: FloatArray, capacity: float) -> tuple[list[int], float]:
    """Which point of each layer the walk along all hulls reaches within `capacity`, and how much less the first segment that did
    not fit would have lost for what was left then."""
    orders, hulls = [], []
    segments: list[tuple[float, int, int, int]] = []
    for number, one in enumerate(points):
        cost = one.shares @ weights
        order = _unbeaten(cost, one.losses)
        hull = _hull(cost[order], one.losses[order])
        orders.append(order)
        hulls.append((cost[order], hull))
        slopes = np.diff(one.losses[order][hull]) / np.diff(cost[order][hull])
        segments += zip(slopes.tolist(), repeat(number), hull[:-1].tolist(), hull[1:].tolist(), strict=False)
    at, missed = [0] * len(points), 0.0
    left = capacity - sum(float(cost[0]) for cost, _ in hulls)
    for slope, number, a, b in sorted(segments):
        step = float(hulls[number][0][b] - hulls[number][0][a])
        if at[number] == a and step <= left * (1 + 1e-12):
            at[number], left = b, left - step
        elif not missed:
            missed = -slope * max(left, 0.0)
    return [int(order[i]) for order, i in zip(orders, at, strict=True)], missed


def _surrogate(points: Sequence[Points], limits: int, terms: Terms) -> list[int]:
    """The best of what the walks under changing weights give, each within as much as all limits allow."""
    weights, best, least = np.full(limits, 1 / limits), None, np.inf
    for number in range(ROUNDS):
        at, _ = _walked(points, weights, 1.0)
        spent = _spent(points, at)
        low, high = 0.0, 1.0
        for _ in range(HALVINGS if (spent > 1).any() else 0):
            middle = (low + high) / 2
            tried, _ = _walked(points, weights, middle)
            fits = (_spent(points, tried) <= 1).all()
            low, high = (middle, high) if fits else (low, middle)
            at = tried if fits else at
        if (_spent(points, at) <= 1).all():
            at = filled(points, at)
            loss = sum(float(one.losses[i]) for one, i in zip(points, at, strict=True))
            if loss < least:
                best, least = at, loss
        weights = weights * np.exp(np.clip(spent - 1, -2, 2) * 2 / (1 + number / 4))
        weights /= weights.sum()
    if best is None:
        raise BudgetError(f"the limits of budget {terms.budget.text!r} cannot all be met together: loosen one of them")
    return best


def _spent(points: Sequence[Points], at: Sequence[int]) -> FloatArray:
    spent: FloatArray = np.sum([one.shares[i] for one, i in zip(points, at, strict=True)], axis=0)
    return spent
