"""Where a model's time goes: the shortest time of each kernel, as onnxruntime's own profiler tells it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir

from batude_onnx.validation.sessions import Session, open_graph

Feeds = Mapping[str, npt.NDArray[Any]]

# Of the runs, as many as fit into the time, but enough for a minimum that nothing has disturbed.
FEWEST, MOST = 5, 300
_SUFFIX = "_kernel_time"
_TINY = (8, 208)


@dataclass(frozen=True)
class Kernel:
    """One node of the optimised graph: its name there, its op, and its shortest time in ms."""

    name: str
    op: str
    ms: float


def profile(model: onnx_ir.Model, feeds: Feeds, provider: str, threads: int | None, seconds: float) -> tuple[Kernel, ...]:
    """The kernels of `model` in the order in which they run, from as many runs on `feeds` as fit into `seconds`."""
    with TemporaryDirectory(prefix="batude-onnx-") as folder:
        options = {"enable_profiling": True, "profile_file_prefix": str(Path(folder) / "profile")}
        session = open_graph(model, provider, threads, extras=options)
        run_times(session, feeds, seconds)
        events = json.loads(session.end_profiling().read_text())
    shortest: dict[tuple[str, str], float] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            key = event["name"].removesuffix(_SUFFIX), event["args"].get("op_name", "")
            shortest[key] = min(shortest.get(key, float("inf")), event["dur"] / 1e3)
    return tuple(Kernel(name, op, ms) for (name, op), ms in shortest.items())


def run_times(session: Session, feeds: Feeds, seconds: float) -> list[float]:
    """Times in ms of as many runs as fit into `seconds`, after one that is not counted."""
    session.run(feeds)
    times: list[float] = []
    end = perf_counter() + seconds
    while len(times) < FEWEST or (len(times) < MOST and perf_counter() < end):
        began = perf_counter()
        session.run(feeds)
        times.append((perf_counter() - began) * 1e3)
    return times


def overheads(provider: str, threads: int | None) -> tuple[float, float]:
    """(a node, a run): what each adds, in ms, to the sum of the kernels' times.

    That of a node is mostly below 0, since the profiler counts its own work. From two graphs of nodes that do next to nothing.
    """
    known = []
    for count in _TINY:
        model, feeds = _tiny(count), {"v0": np.zeros((1, 4), np.float32)}
        plain = min(run_times(open_graph(model, provider, threads), feeds, 0.1))
        known.append(plain - sum(kernel.ms for kernel in profile(model, feeds, provider, threads, 0.2)))
    node = (known[1] - known[0]) / (_TINY[1] - _TINY[0])
    return node, known[0] - node * _TINY[0]


def _tiny(count: int) -> onnx_ir.Model:
    """`count` nodes in a row that nothing folds into one another."""
    kind, shape = onnx_ir.TensorType(onnx_ir.DataType.FLOAT), onnx_ir.Shape([1, 4])
    first = value = onnx_ir.Value(name="v0", type=kind, shape=shape)
    nodes = []
    for number in range(count):
        node = onnx_ir.node("Sin", [value], name=f"n{number}")
        value = node.outputs[0]
        value.name, value.type, value.shape = f"v{number + 1}", kind, shape
        nodes.append(node)
    return onnx_ir.Model(onnx_ir.Graph([first], [value], nodes=nodes, opset_imports={"": 13}, name="tiny"), ir_version=8)
