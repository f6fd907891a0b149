"""The times of a network, from disk where they are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from batude_onnx.records import Site
from batude_onnx.speed import cache
from batude_onnx.speed.model import SpeedModel, measure
from batude_onnx.validation import Feeds


def timed(
    model: ir.Model, sites: Sequence[Site], feeds: Feeds, block: int, provider: str, threads: int | None,
    count: Callable[[int, int], None],
) -> SpeedModel:  # fmt: skip
    """As `measure`, and kept if the machine was steady; or what was kept of the same network, run in the same way on the same
    machine."""
    place = cache.place(model, sites, feeds, block, provider, threads)
    known = cache.read(place)
    if known is None:
        known = measure(model, sites, feeds, block, provider, threads, count)
        if known.steady:
            cache.write(place, known)
    return known
