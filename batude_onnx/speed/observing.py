"""What is seen of a network as it runs: its kernels, recorded, and the whole run, with nothing recorded.

The two are held against each other. What a run takes beyond its kernels is so much for each kernel, the same in all networks of
one machine; one of which that is not so was disturbed in one or the other, and is looked at again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from batude_onnx.records import Site
from batude_onnx.speed.skeleton import Ranks, skeleton
from batude_onnx.validation import Feeds, Kernel, profiled

# How long each network is run recorded, and how long besides.
SECONDS, PLAIN_SECONDS = 1.0, 0.5
# How often those that were disturbed are looked at again, and from what share of a run on they were.
AGAIN, DISTURBED = 2, 0.05

Chosen = Mapping[str, tuple[Site, Ranks]]


@dataclass(frozen=True)
class Seen:
    """Of one network: its kernels, and in ms a run of it with nothing recorded."""

    kernels: tuple[Kernel, ...]
    run: float

    @property
    def total(self) -> float:
        """Of the kernels, in ms."""
        return sum(kernel.ms for kernel in self.kernels)

    @property
    def beyond(self) -> float:
        """What a run takes beyond them, in ms for each; mostly below 0, since the profiler counts its own work."""
        return (self.run - self.total) / len(self.kernels)

    def least(self, other: Seen) -> Seen:
        """The shortest times of both."""
        times = {kernel.name: kernel.ms for kernel in other.kernels}
        kernels = (replace(kernel, ms=min(kernel.ms, times.get(kernel.name, kernel.ms))) for kernel in self.kernels)
        return Seen(tuple(kernels), min(self.run, other.run))


def observe(
    model: ir.Model, variants: Sequence[Chosen], feeds: Feeds, provider: str, threads: int | None,
    count: Callable[[int, int], None],
) -> list[Seen]:  # fmt: skip
    """`model` untouched, with each of the `variants` of chains in place of its layers, and untouched again; `count` is told how
    far it is."""
    networks: list[Chosen] = [{}, *variants, {}]

    def look(number: int) -> Seen:
        return Seen(*profiled(skeleton(model, networks[number]), feeds, provider, threads, SECONDS, PLAIN_SECONDS))

    seen = []
    for number in range(len(networks)):
        count(number, len(networks))
        seen.append(look(number))
    for _ in range(AGAIN):
        for number in disturbed(seen):
            seen[number] = seen[number].least(look(number))
    count(len(networks), len(networks))
    return seen


def added(seen: Sequence[Seen]) -> float:
    """What a kernel adds to a run, in ms: the median, as what else the machine does falls on some of the networks."""
    return float(np.median([one.beyond for one in seen]))


def disturbed(seen: Sequence[Seen]) -> list[int]:
    """The places of those of which a run does not take what their kernels take and add."""
    node = added(seen)
    return [place for place, one in enumerate(seen) if abs(one.beyond - node) * len(one.kernels) > DISTURBED * one.run]
