"""Where a model's time goes: the shortest time of each kernel, as onnxruntime's own profiler tells it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy.typing as npt
import onnx_ir

from batude_onnx.validation.sessions import Session, open_graph

Feeds = Mapping[str, npt.NDArray[Any]]

# Of the runs, as many as fit into the time, but enough for a minimum that nothing has disturbed; of those that are recorded, no
# more than can soon be read.
FEWEST, MOST = 5, 300
_SUFFIX = "_kernel_time"


@dataclass(frozen=True)
class Kernel:
    """One node of the optimised graph: its name there, its op, and its shortest time in ms."""

    name: str
    op: str
    ms: float


def profile(model: onnx_ir.Model, feeds: Feeds, provider: str, threads: int | None, seconds: float) -> tuple[Kernel, ...]:
    """The kernels of `model` in the order in which they run, from as many runs on `feeds` as fit into `seconds`."""
    return _recorded(model, feeds, provider, threads, seconds)[0]


def profiled(
    model: onnx_ir.Model, feeds: Feeds, provider: str, threads: int | None, seconds: float, alone: float
) -> tuple[tuple[Kernel, ...], float]:
    """The same, and the shortest time in ms of a run with nothing recorded, of as many as fit into `alone` seconds."""
    kernels, session = _recorded(model, feeds, provider, threads, seconds)
    # The session goes on without recording: what it laid out in memory is the same for both.
    return kernels, min(run_times(session, feeds, alone))


def _recorded(
    model: onnx_ir.Model, feeds: Feeds, provider: str, threads: int | None, seconds: float
) -> tuple[tuple[Kernel, ...], Session]:
    with TemporaryDirectory(prefix="batude-onnx-") as folder:
        options = {"enable_profiling": True, "profile_file_prefix": str(Path(folder) / "profile")}
        session = open_graph(model, provider, threads, extras=options)
        run_times(session, feeds, seconds, MOST)
        events = json.loads(session.end_profiling().read_text())
    shortest: dict[tuple[str, str], float] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            key = event["name"].removesuffix(_SUFFIX), event["args"].get("op_name", "")
            shortest[key] = min(shortest.get(key, float("inf")), event["dur"] / 1e3)
    return tuple(Kernel(name, op, ms) for (name, op), ms in shortest.items()), session


def run_times(session: Session, feeds: Feeds, seconds: float, most: float = inf) -> list[float]:
    """Times in ms of as many runs as fit into `seconds`, at most so many, after one that is not counted."""
    session.run(feeds)
    times: list[float] = []
    end = perf_counter() + seconds
    while len(times) < FEWEST or (len(times) < most and perf_counter() < end):
        began = perf_counter()
        session.run(feeds)
        times.append((perf_counter() - began) * 1e3)
    return times
