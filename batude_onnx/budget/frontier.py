"""What is best of one layer at each price: all choices that nothing beats, and the convex ones of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from batude_onnx.budget.options import coarsen
from batude_onnx.budget.terms import Choice, Mask
from batude_onnx.decomposition import method_of
from batude_onnx.records import FloatArray, Prices, Site

Indices = npt.NDArray[np.int64]


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
    table, fits = np.asarray(table, dtype=np.float64)[tuple(slice(0, bound) for bound in most)], allowed.copy()
    coarsen(fits)
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
