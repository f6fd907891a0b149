"""All choices near to the relaxation's, layer by layer.

A partial choice is dropped where it can no longer keep the limits, where it must cost more beyond the bound than is wanted, and
where another costs no more and loses no more. Where there are still too many, the best of each cell of a grid over their prices
stay; but for that, what comes out is the optimum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from batude_onnx.budget.options import Indices, Options, undominated
from batude_onnx.budget.relaxation import Relaxation, penalised
from batude_onnx.records import FloatArray

# Options looked at, of all layers together, and of one in any case; so many partial choices are extended in one sweep.
OPTIONS, WIDEST, WORK = 8000, 64, 1_500_000


def sweep(layers: Sequence[Options], limits: FloatArray, relaxed: Relaxation, within: float) -> tuple[list[int] | None, bool]:
    """The best choice that costs at most `within` beyond the bound, None where none is found; and whether all were looked at."""
    cores, complete = _cores(layers, relaxed, within)
    # Those whose options differ most come first: the last ones can still use up what is left.
    spread = [float(relaxed.multipliers @ np.ptp(core.prices, axis=1)) for core in cores]
    order = sorted((i for i, core in enumerate(cores) if len(core.indices) > 1), key=lambda i: -spread[i])
    below = _behind([cores[i].prices.min(1) for i in order], limits)
    above = _behind([cores[i].prices.max(1) for i in order], limits)
    room = WORK // max(1, sum(len(cores[i].indices) for i in order))
    prices = np.zeros((len(limits), 1)) + sum(core.prices for core in cores if len(core.indices) == 1)
    beyond, trail = np.zeros(1), []
    for step, i in enumerate(order, 1):
        prices = (prices[:, :, None] + cores[i].prices[:, None, :]).reshape(len(limits), -1)
        beyond = (beyond[:, None] + cores[i].reduced).ravel()
        unused = np.maximum(limits[:, None] - prices - above[step][:, None], 0.0)
        fits = (prices + below[step][:, None] <= limits[:, None]).all(0)
        kept = np.flatnonzero(fits & (beyond + relaxed.multipliers @ unused <= within))
        kept = kept[undominated(prices[:, kept], beyond[kept] - relaxed.multipliers @ prices[:, kept])]
        if len(kept) > room:
            kept, complete = kept[_cells(prices[:, kept], beyond[kept], room)], False
        trail.append(kept)
        prices, beyond = prices[:, kept], beyond[kept]
    fits = (prices <= limits[:, None]).all(0)
    if not fits.any():
        return None, complete
    at = int(np.where(fits, beyond - relaxed.multipliers @ prices, np.inf).argmin())
    chosen = [int(core.indices[0]) for core in cores]
    for i, kept in zip(reversed(order), reversed(trail), strict=True):
        at, option = divmod(int(kept[at]), len(cores[i].indices))
        chosen[i] = int(cores[i].indices[option])
    return chosen, complete


@dataclass(frozen=True)
class _Core:
    """Options of one layer: which they are, what they cost beyond its best (n,), and their prices (metrics, n)."""

    indices: Indices
    reduced: FloatArray
    prices: FloatArray


def _cores(layers: Sequence[Options], relaxed: Relaxation, within: float) -> tuple[list[_Core], bool]:
    """The options of each layer that cost at most `within` beyond its best; and whether these are all of them."""
    widest, cores, complete = max(WIDEST, OPTIONS // len(layers)), [], True
    for layer, paid in zip(layers, penalised(layers, relaxed.multipliers), strict=True):
        least = paid.min()
        core = np.flatnonzero(paid <= least + within)
        core = core[undominated(layer.prices[:, core], layer.losses[core])]
        reduced = paid[core] - least
        if len(core) > widest:
            nearest = np.argpartition(reduced, widest)[:widest]
            core, reduced, complete = core[nearest], reduced[nearest], False
        cores.append(_Core(core, reduced, layer.prices[:, core]))
    return cores, complete


def _behind(parts: Sequence[FloatArray], limits: FloatArray) -> list[FloatArray]:
    """Sums of all `parts` from each one on; the last is zero."""
    sums: list[FloatArray] = [np.zeros(len(limits))]
    for part in reversed(parts):
        sums.append(sums[-1] + part)
    return sums[::-1]


def _cells(prices: FloatArray, beyond: FloatArray, room: int) -> Indices:
    """The least of `beyond` in each cell of a grid of at most `room` cells."""
    sides = max(2, int(room ** (1 / len(prices))))
    low, high = prices.min(1, keepdims=True), prices.max(1, keepdims=True)
    places = ((prices - low) / np.where(high > low, high - low, 1.0) * (sides - 1e-6)).astype(np.intp)
    cell = np.ravel_multi_index(tuple(places), (sides,) * len(prices))
    order = np.lexsort((beyond, cell))
    first: Indices = order[np.append(True, np.diff(cell[order]) > 0)]
    return first
