"""What layers and networks cost, what they may cost, and the ranks that come of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from batude_onnx.records.arrays import FloatArray


@dataclass(frozen=True)
class Cost:
    """What a layer or a network costs: weight elements, multiply-accumulates per sample, bytes of the file, ms of a run.

    The last two are None where nobody has asked.
    """

    params: int
    macs: int
    size: float | None = None
    latency: float | None = None

    def __add__(self, other: Cost) -> Cost:
        size, latency = _plus(self.size, other.size), _plus(self.latency, other.latency)
        return Cost(self.params + other.params, self.macs + other.macs, size, latency)

    def of(self, metric: str) -> Any:
        """The value of `metric`, the name of a field."""
        return getattr(self, metric)


def _plus(one: float | None, other: float | None) -> float | None:
    """What is not known adds nothing to what is."""
    return one if other is None else other if one is None else one + other


@dataclass(frozen=True)
class Limit:
    """The most that the written file may cost: `limit` in units of `metric`; `text` is what the user wrote.

    `ratio`: how many times less than the original that is, where it was asked for so.
    """

    metric: str
    limit: float
    text: str
    ratio: float | None = None


@dataclass(frozen=True)
class Budget:
    """Limits that must all hold, one for each metric that is limited."""

    limits: tuple[Limit, ...]

    @property
    def text(self) -> str:
        """As the user wrote it."""
        return ", ".join(limit.text for limit in self.limits)


# Blocks of output channels that a kernel of the CPU computes at a time, from one reading of the input.
TOGETHER = 4


def left_over(blocks: Any) -> Any:
    """Whether so many blocks leave a single one over, which takes nearly as long as two would; for a number, or an array."""
    return (blocks > TOGETHER) & (blocks % TOGETHER == 1)


@dataclass(frozen=True)
class Alignment:
    """Which ranks suit the runtime, whose `block` of channels is computed at a time.

    Whole blocks only in a mode whose largest useful rank is `whole_from` or more (None: in no mode): that is fastest, and
    `even`, no number of them that leaves one over. Else a rank may be as fine as a quarter of itself: multiples of 4 from one
    block up (other channels fall back to a slower path), of half a block from two, of a block from four.
    """

    block: int = 1
    whole_from: int | None = None
    even: bool = False

    def fits(self, rank: Any, most: int) -> Any:
        """For a number, or for an array of them, of a mode whose largest useful rank is `most`."""
        if self.block == 1 or (self.whole_from is not None and most >= self.whole_from):
            whole = rank % self.block == 0
            return whole & ~left_over(np.asarray(rank) // self.block) if self.even else whole
        fine = (rank < self.block) | (rank % min(4, self.block) == 0)
        half = (rank < 2 * self.block) | (rank % max(1, self.block // 2) == 0)
        return fine & half & ((rank < 4 * self.block) | (rank % self.block == 0))


@dataclass(frozen=True)
class Prices:
    """What a layer costs under one metric: whole, and at each combination of ranks, `ranks[r1 - 1, r2 - 1, ...]`."""

    whole: float
    ranks: FloatArray


@dataclass(frozen=True)
class RankPlan:
    """Ranks of every compressible site; None keeps that layer whole. `cost` is the whole network's, predicted."""

    ranks: Mapping[str, tuple[int, ...] | None]
    cost: Cost

    def chosen(self) -> dict[str, tuple[int, ...]]:
        """The sites that will be replaced, with their ranks."""
        return {key: ranks for key, ranks in self.ranks.items() if ranks is not None}
