"""How much memory a model needs to be loaded and run, seen from outside, in a process of its own."""

from __future__ import annotations

import resource
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from batude_onnx.validation.sessions import Arrays, open_session

RUNS = 3


def peak_memory(path: Path, feeds: Arrays, provider: str, threads: int | None) -> int:
    """Bytes by which loading and running the model in `path` raises the peak of a process's memory.

    Raises what `open_session` raises.
    """
    context = get_context("spawn")
    with context.Pool(1) as pool:
        return int(pool.apply(_peak, (path, dict(feeds), provider, threads)))


def _peak(path: Path, feeds: dict[str, Any], provider: str, threads: int | None) -> int:
    before = peak_so_far()
    session = open_session(path, provider, threads)
    for _ in range(RUNS):
        session.run(feeds)
    return peak_so_far() - before


def peak_so_far() -> int:
    """The most memory, in bytes, that this process has held so far."""
    status = Path("/proc/self/status")
    if status.is_file():
        # What getrusage says on Linux begins with what the parent had held.
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    # Bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
