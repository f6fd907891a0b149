"""What is best of one layer at each price: all choices that nothing beats, and the convex ones of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from batude_onnx.budget.options import Indices, choice_of, options
from batude_onnx.budget.terms import Choice, Mask
from batude_onnx.records import FloatArray, Prices


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
        return choice_of(self.ranks[index])


def frontier(table: FloatArray, prices: Prices, allowed: Mask, whole: bool = True) -> Frontier:
    """Draw one layer's frontier from its table of losses, `table[r1 - 1, r2 - 1, ...]`; `whole`: it may stay as it is."""
    found = options(table, [prices], allowed, whole)
    return Frontier(found.ranks, found.prices[0], found.losses, _hull(found.prices[0], found.losses))


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
