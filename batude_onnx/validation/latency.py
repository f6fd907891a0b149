"""Which of two models is faster, by how much, and how sure that is.

The two run in turns (a b b a, a b b a, ...), so that whatever else the machine does falls on both alike. The figure is the
ratio of the two minima, since a minimum is the run that was disturbed least: absolute medians were seen to spread by 42 %
where that ratio spread by 3 %. Of the two runs of each in a turn one comes behind the other model, which has left its own weights
in the caches, and one behind its like: their sum is what is held against the other's, turn by turn, to tell the spread.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from batude_onnx.validation.sessions import Session, runtime_version

# With fewer turns, neither a minimum nor a spread means anything.
FEWEST_TURNS = 2


def compare_latency(
    a: Session, b: Session, feeds: Mapping[str, npt.NDArray[Any]], runs: int = 50, warmup: int = 3, seconds: float = 3.0
) -> dict[str, float | int | str]:
    """Times `a` (the original) and `b` on the same `feeds`: at most `runs` runs of each, and no more than fit into `seconds`.

    `ratio` is min(a) / min(b), above 1 where b is faster; `median_a_ms`, `median_b_ms`, `min_a_ms`, `min_b_ms` are
    milliseconds a run; `spread` is the interquartile range of the ratios of the turns over their median; `runs` is the
    number of runs of each. Always 1 warm-up run and 2 turns of two runs each at least, however slow the models are. On a GPU the
    copies of inputs and outputs count.
    """
    for _ in range(max(1, warmup)):
        a.run(feeds)
        b.run(feeds)
    times_a: list[float] = []
    times_b: list[float] = []
    end = perf_counter() + seconds
    while len(times_a) < 2 * FEWEST_TURNS or (len(times_a) + 2 <= runs and perf_counter() < end):
        times_a.append(_time(a, feeds))
        times_b.append(_time(b, feeds))
        times_b.append(_time(b, feeds))
        times_a.append(_time(a, feeds))
    first, second = np.array(times_a), np.array(times_b)
    turns = first.reshape(-1, 2).sum(1) / second.reshape(-1, 2).sum(1)
    low, middle, high = np.percentile(turns, [25, 50, 75])
    sizes = [len(array) for array in feeds.values() if array.ndim]
    return {
        "ratio": float(first.min() / second.min()),
        "spread": float((high - low) / middle),
        "median_a_ms": float(np.median(first) * 1e3),
        "median_b_ms": float(np.median(second) * 1e3),
        "min_a_ms": float(first.min() * 1e3),
        "min_b_ms": float(second.min() * 1e3),
        "runs": len(times_a),
        "batch": sizes[0] if sizes else 1,
        "threads": b.threads or "default",
        "provider": b.provider,
        "onnxruntime": runtime_version(),
        "cpu": cpu_name(),
        "cores": os.cpu_count() or 0,
    }


def _time(session: Session, feeds: Mapping[str, npt.NDArray[Any]]) -> float:
    """Seconds of one run."""
    start = perf_counter()
    session.run(feeds)
    return perf_counter() - start


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine() or "unknown"
