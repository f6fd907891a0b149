"""How near to what the machine can do a network's layers run (the roofline of Williams et al., CACM 2009).

    roof of a node = max(2 MACs / best rate of arithmetic, bytes of input, output and weights / best rate of memory)

Both rates are the best that onnxruntime itself was seen to reach on this machine, with as many threads: what a stock operator
could do, not what is printed on the box. The rate of memory is that of a cache, where small layers stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from batude_onnx import speed
from batude_onnx.loading import load_model
from batude_onnx.pipeline import inspect
from batude_onnx.records import Site
from batude_onnx.validation import open_graph
from batude_onnx.validation.profiling import run_times

FLOAT = 4
SECONDS = 0.5
# Sides of square products, and elements of the arrays that are copied.
SIDES, LENGTHS = (256, 512, 1024), (2**14, 2**16, 2**18)


@dataclass(frozen=True)
class Machine:
    """The best rates seen: `macs` and `bytes` per ms."""

    macs: float
    bytes: float

    def roof(self, macs: int, moved: int) -> float:
        """The least time in ms."""
        return max(macs / self.macs, moved / self.bytes)


def measure(threads: int) -> Machine:
    """Large products of matrices, and arrays that are negated."""
    products = (side**3 / _fastest("MatMul", [(side, side), (side, side)], threads) for side in SIDES)
    copies = (2 * FLOAT * length / _fastest("Neg", [(length,)], threads) for length in LENGTHS)
    return Machine(max(products), max(copies))


def _fastest(op: str, shapes: Sequence[tuple[int, ...]], threads: int) -> float:
    """Of one node, in ms."""
    kind = ir.TensorType(ir.DataType.FLOAT)
    inputs = [ir.Value(name=f"x{number}", type=kind, shape=ir.Shape(shape)) for number, shape in enumerate(shapes)]
    node = ir.node(op, inputs, name="node")
    (output,) = node.outputs
    output.name, output.type, output.shape = "y", kind, inputs[0].shape
    graph = ir.Graph(inputs, [output], nodes=[node], opset_imports={"": 13}, name="one")
    session = open_graph(ir.Model(graph, ir_version=8), "cpu", threads)
    rng = np.random.default_rng(0)
    feeds = {str(value.name): rng.standard_normal(shape, np.float32) for value, shape in zip(inputs, shapes, strict=True)}
    return min(run_times(session, feeds, SECONDS))


def against(machine: Machine, first: Path, other: Path) -> dict[str, object]:
    """The roofs of the layers of two files, in ms: `first`, what stands in its place in the `other`, and that if it were one
    kernel that keeps to itself what passes between its factors."""
    model = load_model(other)
    whole, parts = ({site.key: site for site in inspect(path).sites} for path in (first, other))
    chains: dict[str, list[Site]] = {}
    for name, (key, _) in speed.links(model, speed.lengths(model, whole)).items():
        chains.setdefault(key, []).append(parts[name])
    layers = {key: _layer(machine, whole[key], chain) for key, chain in chains.items() if all(site.positions for site in chain)}
    return {**asdict(machine), "layers": layers}


def _layer(machine: Machine, site: Site, chain: list[Site]) -> Mapping[str, float]:
    """`chain` is given from the last to the first."""
    macs, inner = sum(link.macs for link in chain), sum(map(_given, chain[1:]))
    return {
        "first": _roof(machine, site),
        "other": sum(_roof(machine, link) for link in chain),
        "fused": machine.roof(macs, sum(map(_moved, chain)) - 2 * inner),
    }


def _roof(machine: Machine, site: Site) -> float:
    return machine.roof(site.macs, _moved(site))


def _given(site: Site) -> int:
    return FLOAT * site.channels_out * site.output_positions


def _moved(site: Site) -> int:
    return FLOAT * (site.params + site.channels_in * site.input_positions) + _given(site)
