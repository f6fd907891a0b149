"""A plan made better by small steps: what is left of the limits is spent, and layers give to one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from batude_onnx.records import FloatArray

# A sum of shares that is over 1 by no more than this is not over it.
ROUNDING = 1e-12
# More layers than these leave so little to gain that pairs of them are not tried.
MOST_LAYERS = 40


@dataclass(frozen=True)
class Points:
    """What one layer may be: `ranks` (points, modes), zeros for the whole layer; `shares` (points, limits) of what each limit
    leaves; `losses` (points,)."""

    ranks: npt.NDArray[np.int64]
    shares: FloatArray
    losses: FloatArray


def filled(points: Sequence[Points], at: Sequence[int]) -> list[int]:
    """Spend what is left, each time on the affordable change that lowers the loss most."""
    at = list(at)
    left = _left(points, at)
    while True:
        steps = [_best(one, at[number], left) for number, one in enumerate(points)]
        number = max(range(len(points)), key=lambda index: steps[index][0], default=-1)
        if number < 0 or steps[number][0] <= 0:
            return at
        left = left + points[number].shares[at[number]] - points[number].shares[steps[number][1]]
        at[number] = steps[number][1]


def exchanged(points: Sequence[Points], at: Sequence[int]) -> list[int]:
    """Let one layer take less wherever another gains more by what that frees, until nothing is gained by it any more."""
    at = list(at)
    gain = 1.0 if len(points) <= MOST_LAYERS else 0.0
    while gain > 0:
        gain, chosen, left = 0.0, None, _left(points, at)
        for giver, one in enumerate(points):
            for less in np.flatnonzero((one.shares < one.shares[at[giver]]).any(1)):
                freed, lost = left + one.shares[at[giver]] - one.shares[less], one.losses[less] - one.losses[at[giver]]
                if (freed < -ROUNDING).any():
                    continue
                for taker, other in enumerate(points):
                    if taker == giver:
                        continue
                    saved, more = _best(other, at[taker], freed)
                    if saved - lost > max(gain, 1e-12 * abs(lost)):
                        gain, chosen = saved - lost, (giver, int(less), taker, more)
        if chosen is not None:
            at[chosen[0]], at[chosen[2]] = chosen[1], chosen[3]
    return at


def _left(points: Sequence[Points], at: Sequence[int]) -> FloatArray:
    left: FloatArray = 1 - np.sum([one.shares[i] for one, i in zip(points, at, strict=True)], axis=0)
    return left


def _best(one: Points, at: int, left: FloatArray) -> tuple[float, int]:
    """The most that the loss of a layer falls within what is left, and the point that does it."""
    fits = (one.shares - one.shares[at] <= left + ROUNDING).all(1)
    losses = np.where(fits, one.losses, np.inf)
    index = int(losses.argmin())
    return float(one.losses[at] - losses[index]), index
