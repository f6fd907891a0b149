"""The Lagrangian relaxation: one multiplier for each limit, and a bound that no choice of options can beat.

    q(l) = sum_i min over j of (loss_ij + l . price_ij)  -  l . limits        <=  the least loss,     for every l >= 0

The best multipliers are the dual prices of the linear relaxation, which mixes whole choices x^k of all layers:

    min sum_k a_k loss(x^k)    subject to    sum_k a_k price(x^k) <= limits,    sum_k a_k = 1,    a >= 0

This has as many rows as there are limits and one more, so its basis is tiny, and the choice that enters it is found layer by
layer (Dantzig & Wolfe 1960). It is solved over a few options of each layer; those that its multipliers then prefer among all are
added until there are none. Layers with ten thousand options are looked through a few times only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from batude_onnx.budget.options import Indices, Options, shares
from batude_onnx.records import FloatArray

# Options of a layer to begin with, and how near, as a share of the value, the two sides must come.
SEEDS, NEAR = 96, 1e-7
# Neither loop has been seen to come near to these.
ROUNDS, PIVOTS = 40, 2000
# Numbers of the master problem below this are rounding.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Relaxation:
    """The best multipliers found (metrics,) and the bound that they prove.

    `mixed`: whether any mixture of choices keeps all limits.
    """

    multipliers: FloatArray
    bound: float
    mixed: bool


def relax(layers: Sequence[Options], limits: FloatArray) -> Relaxation:
    """The relaxation of `layers` under `limits` (metrics,)."""
    sets = [_seeds(layer) for layer in layers]
    units = shares(limits)
    best: FloatArray = np.zeros(len(limits))
    bound = -np.inf
    for _ in range(ROUNDS):
        width = max(map(len, sets))
        losses, prices = np.full((len(layers), width), np.inf), np.zeros((len(limits), len(layers), width))
        for row, (layer, some) in enumerate(zip(layers, sets, strict=True)):
            losses[row, : len(some)] = layer.losses[some]
            prices[:, row, : len(some)] = layer.prices[:, some] * units[:, None]
        multipliers, value, mixed = _master(losses, prices, limits * units)
        multipliers *= units
        chosen, told = [], -float(multipliers @ limits)
        for paid in penalised(layers, multipliers):
            chosen.append(int(paid.argmin()))
            told += float(paid[chosen[-1]])
        if told > bound:
            best, bound = multipliers, told
        fresh = [index not in some for index, some in zip(chosen, sets, strict=True)]
        if not any(fresh) or (mixed and value - bound <= NEAR * abs(value)):
            break
        sets = [np.append(some, index) if new else some for some, index, new in zip(sets, chosen, fresh, strict=True)]
    return Relaxation(best, bound, mixed)


def penalised(layers: Sequence[Options], multipliers: FloatArray) -> Iterator[FloatArray]:
    """loss + l . price of all options, (n + 1,) for each layer; the array is used again for the next one."""
    scratch = np.empty(max(len(layer.losses) for layer in layers))
    for layer in layers:
        paid = np.matmul(multipliers, layer.prices, out=scratch[: len(layer.losses)])
        paid += layer.losses
        yield paid


def _seeds(layer: Options) -> Indices:
    """Options spread over all, the cheapest under each metric, and the whole layer."""
    legal = np.flatnonzero(np.isfinite(layer.losses))
    spread = legal[np.linspace(0, len(legal) - 1, min(SEEDS, len(legal))).astype(int)]
    return np.unique([*spread, *layer.prices.argmin(1), int(layer.losses.argmin())])


def _master(losses: FloatArray, prices: FloatArray, limits: FloatArray) -> tuple[FloatArray, float, bool]:
    """Multipliers, value, and whether a mixture keeps `limits`; `losses` (layers, options), `prices` (metrics, layers, options).

    The revised simplex method. One column stands for no choice at all, at a loss above any: it is left where there is a mixture.
    """
    rows, every = len(limits), np.arange(len(losses))
    basis, right = np.eye(rows + 1), np.append(limits, 1.0)
    all_lost = float(np.where(np.isfinite(losses), losses, 0.0).max(1).sum()) or 1.0
    refused = 1e6 * all_lost
    costs = np.append(np.zeros(rows), refused)
    for _ in range(PIVOTS):
        dual = np.linalg.solve(basis.T, costs)
        multipliers = -dual[:rows]
        worst = int(multipliers.argmin())
        rounding = ROUNDING * max(costs.max(), all_lost)
        if multipliers[worst] < -rounding:
            column, cost = np.eye(rows + 1)[worst], 0.0
        else:
            multipliers = np.maximum(multipliers, 0.0)
            chosen = (losses + np.tensordot(multipliers, prices, 1)).argmin(1)
            cost = float(losses[every, chosen].sum())
            column = np.append(prices[:, every, chosen].sum(1), 1.0)
            if cost + multipliers @ column[:rows] - dual[rows] >= -rounding:
                break
        weights, direction = np.linalg.solve(basis, np.stack([right, column], axis=1)).T
        steps = np.where(direction > ROUNDING, weights / np.where(direction > ROUNDING, direction, 1.0), np.inf)
        leaving = int(steps.argmin())
        basis[:, leaving], costs[leaving] = column, cost
    weights = np.linalg.solve(basis, right)
    mixed = bool(weights[costs == refused].max(initial=0.0) < 1e-9)
    return np.maximum(multipliers, 0.0), float(costs @ weights), mixed
