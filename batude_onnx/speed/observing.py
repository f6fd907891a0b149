"""What is seen of a network as it runs: its kernels, recorded, and the whole run, with nothing recorded.

The two are held against each other. What a run takes beyond its kernels is so much for each kernel, and a share of what they
take (the shortest times of two kernels are of two runs), the same for all networks of one machine; one of which that is not so
was disturbed in one or the other, and is looked at again.
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
# Of a line through what was seen: steps; the error, as a share of a run, below which it is none; how far it may be from a run
# that takes what its kernels do.
STEPS, LEAST, WIDEST = 20, 1e-3, 0.1

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

    def longer(self, share: float) -> Seen:
        """The same with kernels that take `share` times as long."""
        return replace(self, kernels=tuple(replace(kernel, ms=share * kernel.ms) for kernel in self.kernels))

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


def beyond(seen: Sequence[Seen]) -> tuple[float, float]:
    """How many times what its kernels take a run does, and in ms how much longer for each of them: mostly below 0 where kernels
    are short, since the profiler counts its own work.

    The sum of the errors, each as a share of its run, is the least that can be, as what else the machine does falls on some
    networks only: by least squares, time and again, with weights that come down where the error is large.
    """
    total, kernels, run = np.array([(one.total, len(one.kernels), one.run) for one in seen], dtype=np.float64).T
    known, wanted = np.stack([total, kernels], axis=1) / run[:, None], 1 - total / run
    found, weights = np.zeros(2), np.ones(len(run))
    for _ in range(STEPS):
        found = np.linalg.lstsq(known * weights[:, None], wanted * weights, rcond=None)[0]
        weights = np.abs(known @ found - wanted).clip(LEAST) ** -0.5
    # A network that was disturbed while it was recorded may bend the line, but no further than it may be right.
    share = 1 + float(found[0].clip(-WIDEST, WIDEST))
    return share, float(np.median((run - share * total) / kernels))


def disturbed(seen: Sequence[Seen]) -> list[int]:
    """The places of those of which a run does not take what their kernels take and add."""
    share, node = beyond(seen)
    errors = (share * one.total + node * len(one.kernels) - one.run for one in seen)
    return [place for place, (error, one) in enumerate(zip(errors, seen, strict=True)) if abs(error) > DISTURBED * one.run]
