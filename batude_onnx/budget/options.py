"""The rank problem without the network: each layer takes one option, all limits hold, and the losses add up to the least.

    min sum_i loss_i(x_i)    subject to    sum_i price_im(x_i) <= limit_m    for every metric m

which is a multiple-choice knapsack of several dimensions. An option is a combination of ranks, or to leave the layer whole.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from batude_onnx.budget.terms import Choice, Mask
from batude_onnx.records import FloatArray, Prices

Indices = npt.NDArray[np.intp]

# So many points are compared pair by pair.
PAIRS = 300
# Finer steps of a rank than so many are not told apart where there are two modes.
FINEST = 128


@dataclass(frozen=True)
class Options:
    """Those of one layer: `ranks` (n, modes), zeros for the whole layer, `losses` (n,) and `prices` (metrics, n)."""

    ranks: Indices
    losses: FloatArray
    prices: FloatArray

    def choice(self, index: int) -> Choice:
        """The ranks of an option."""
        return choice_of(self.ranks[index])


def choice_of(ranks: Indices) -> Choice:
    """A row of ranks, of which zeros are the whole layer."""
    chosen = tuple(int(rank) for rank in ranks)
    return chosen if all(chosen) else None


def options(losses: FloatArray, prices: Sequence[Prices], allowed: Mask | None, whole: bool = True) -> Options:
    """`losses[r1 - 1, r2 - 1, ...]` may go beyond what is priced. Factoring that saves under no metric is left out where the
    layer may stay as it is (`whole`); so is what another choice betters, where there is one metric."""
    shape = prices[0].ranks.shape
    fits: Mask = np.any([one.ranks < one.whole for one in prices], axis=0) if whole else np.ones(shape, dtype=bool)
    if allowed is not None:
        fits &= allowed
    coarsen(fits)
    lost = np.append(losses[tuple(map(slice, shape))][fits], 0.0)
    priced = np.stack([np.append(one.ranks[fits], one.whole) for one in prices])
    ranks = np.vstack([np.argwhere(fits) + 1, np.zeros((1, len(shape)), dtype=np.intp)])
    kept = np.arange(len(lost) if whole else len(lost) - 1)
    if len(prices) == 1:
        kept = kept[undominated(priced[:, kept], lost[kept])]
    return Options(ranks[kept], lost[kept], priced[:, kept])


def coarsen(fits: Mask) -> None:
    """Of a table with very many ranks a grid stays: so fine a difference is not worth the time and memory that it would take."""
    if fits.sum() <= FINEST**2:
        return
    for axis, bound in enumerate(fits.shape):
        skipped = np.arange(1, bound + 1) % -(-bound // FINEST) != 0
        fits[(slice(None),) * axis + (skipped,)] = False


def options_of(
    losses: Mapping[str, FloatArray],
    prices: Mapping[str, Mapping[str, Prices]],
    allowed: Mapping[str, Mask | None],
    factored: Collection[str] = (),
) -> list[Options]:
    """Of every layer in `losses`, by key; `prices` by metric and key; `allowed` by key, None or nothing where all may be;
    `factored`: those that may not stay whole."""
    return [
        options(table, [quoted[key] for quoted in prices.values()], allowed.get(key), key not in factored)
        for key, table in losses.items()
    ]


def spent(layers: Sequence[Options], chosen: Sequence[int]) -> FloatArray:
    """What the options cost together, (metrics,)."""
    total: FloatArray = np.sum([layer.prices[:, index] for layer, index in zip(layers, chosen, strict=True)], axis=0)
    return total


def lost(layers: Sequence[Options], chosen: Sequence[int]) -> float:
    """What they lose together."""
    return float(sum(layer.losses[index] for layer, index in zip(layers, chosen, strict=True)))


def cheapest(layers: Sequence[Options], limits: FloatArray) -> list[int]:
    """Of each layer the option that costs least where prices are shares of the limits, added up."""
    return [int((shares(limits) @ layer.prices).argmin()) for layer in layers]


def shares(limits: FloatArray) -> FloatArray:
    """What one unit of each metric is of its limit, (metrics,); a limit of nothing counts as one unit."""
    return 1.0 / np.where(limits > 0, limits, 1.0)


def undominated(prices: FloatArray, losses: FloatArray) -> Indices:
    """Of points with prices (metrics, n) and losses (n,): those that no other equals or betters in all, by rising price; all of
    them where that would take too long."""
    if len(prices) == 1:
        return _falling(prices[0], losses)
    order = np.lexsort((losses, *prices[::-1]))
    worse: Mask = np.zeros(len(order), dtype=bool)
    if len(order) <= PAIRS:
        points = np.vstack([prices, losses])[:, order]
        # What betters a point is in front of it.
        worse |= np.tril((points[:, None, :] <= points[:, :, None]).all(0), -1).any(1)
    kept: Indices = order[~worse]
    return kept


def _falling(prices: FloatArray, losses: FloatArray) -> Indices:
    """The same under one metric: prices rise and losses fall."""
    order = np.argsort(prices, kind="stable")
    lost = losses[order]
    better: Mask = np.ones(len(order), dtype=bool)
    better[1:] = lost[1:] < np.minimum.accumulate(lost)[:-1]
    kept: Indices = order[better]
    # Of those that cost the same, the last one loses least.
    last: Mask = np.ones(len(kept), dtype=bool)
    last[:-1] = np.diff(prices[kept]) > 0
    return kept[last]
