"""Measured times kept on disk, so that the next run of the same network on the same machine starts at once.

What time depends on is in the name of the file: the runtime and its version, the processor, the threads, the input's shapes, and
the graph with the shapes and types of its weights. What it does not depend on, their values, is not: a fine-tuned network finds
the times of the one that it came from.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import onnx_ir as ir

from batude_onnx.decomposition import alternatives
from batude_onnx.errors import OutputError
from batude_onnx.loading import write_text
from batude_onnx.records import Site
from batude_onnx.speed.model import SHARES, SpeedModel
from batude_onnx.validation import Feeds, cpu_name, runtime_version

FOLDER = "BATUDE_ONNX_CACHE"
# Rises whenever what stands in a file, or how it is measured, changes.
FORMAT = 7


def place(model: ir.Model, sites: Sequence[Site], feeds: Feeds, block: int, provider: str, threads: int | None) -> Path:
    """The file that holds, or will hold, the times of `model` run like this."""
    machine = (FORMAT, SHARES, runtime_version(), cpu_name(), os.cpu_count(), provider, threads, block)
    shapes = sorted((name, array.shape, str(array.dtype)) for name, array in feeds.items())
    ways = [(site.key, [way.method for way in alternatives(site)]) for site in sites]
    digest = hashlib.sha256(repr((machine, shapes, ways)).encode())
    for text in _structure(model):
        digest.update(text.encode())
    home = os.environ.get(FOLDER) or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "batude-onnx" / "latency" / f"{digest.hexdigest()[:32]}.json"


def _structure(model: ir.Model) -> Iterator[str]:
    for graph in (model.graph, *model.graph.subgraphs()):
        for name, value in graph.initializers.items():
            yield f"{name} {value.dtype} {value.shape}\n"
        for node in graph:
            attributes = sorted(f"{name}={_plain(attribute)}" for name, attribute in node.attributes.items())
            values = [[value and value.name for value in side] for side in (node.inputs, node.outputs)]
            yield f"{node.domain} {node.op_type} {values} {attributes}\n"


def _plain(attribute: ir.Attr) -> str:
    """An attribute without the values of tensors, and without sub-graphs, which have their turn."""
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return f"{tensor.dtype} {tensor.shape}"
    return "" if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) else str(attribute.value)


def read(path: Path) -> SpeedModel | None:
    """What was kept there; None where nothing is, or nothing that can be read."""
    try:
        held = json.loads(path.read_text())
        chains = {(key, method): tuple(tuple(map(tuple, link)) for link in links) for key, method, links in held.pop("chains")}
        return SpeedModel(chains=chains, **held)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write(path: Path, times: SpeedModel) -> None:
    """Keep `times` there, whole or not at all; where nothing can be written, the next run measures again."""
    held = asdict(times) | {"chains": [(key, method, links) for (key, method), links in times.chains.items()]}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(held))
    except (OSError, OutputError):
        return
