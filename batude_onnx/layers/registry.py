"""The registry of layer kinds: ops whose weight can be read as one canonical kernel and written back as a chain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from batude_onnx.records import FactorChain, FloatArray, Geometry, LayerSpec

Shapes = dict[str, tuple[int, ...]]


class Whole(Exception):
    """Raised by `describe` for a node that is left alone; the text is the reason that the user reads."""


@dataclass(frozen=True)
class Description:
    """What a node says of its layer: where its weight and bias live, the canonical shape, and the geometry.

    `transposed`: the weight is stored as (C, S).
    """

    weight: ir.Value
    bias: ir.Value | None
    shape: tuple[int, ...]
    geometry: Geometry
    transposed: bool = False


@dataclass(frozen=True)
class LayerKind:
    """One op.

    `describe(node)`: the layer, or raises `Whole`.
    `outline(node, shapes)`: the canonical shape, () where it is unknown, and the geometry, also of a node that is left alone.
    `macs(node, shapes)`: multiply-accumulates of one run, None where shapes are unknown.
    `positions(node, shapes)`: how often the kernel is applied, on the output's and on the input's side, and how often one that
    walks over the first spatial axis alone is.
    `chain(node, chain, maker)`: the nodes that compute the chain; `maker` names values and adds initializers.
    """

    op: str
    describe: Callable[[ir.Node], Description]
    outline: Callable[[ir.Node, Shapes], tuple[tuple[int, ...], Geometry]]
    macs: Callable[[ir.Node, Shapes], int | None]
    positions: Callable[[ir.Node, Shapes], tuple[int, int, int]]
    chain: Callable[[ir.Node, FactorChain, Maker], list[ir.Node]] | None


class Maker:
    """Makes the initializers and values of new nodes, under names derived from the replaced node's output."""

    def __init__(self, graph: ir.Graph, base: str, dtype: ir.DataType) -> None:
        self._graph, self._base, self._dtype = graph, base, dtype
        self._taken: set[str | None] = set()
        # Names of inner graphs count too, since a value of theirs may not have the name of an outer one.
        for scope in (graph, *graph.subgraphs()):
            self._taken |= set(scope.initializers) | {value.name for value in scope.inputs}
            self._taken |= {node.name for node in scope} | {value.name for node in scope for value in node.outputs}

    @property
    def opset(self) -> int:
        """Of the ONNX ops."""
        imports = self._graph.opset_imports
        return imports.get("", imports.get("ai.onnx", 1))

    def name(self, suffix: str) -> str:
        """`<base>_<suffix>`, numbered where the graph already has that name."""
        wanted = f"{self._base}_{suffix}"
        name, k = wanted, 1
        while name in self._taken:
            name, k = f"{wanted}_{k}", k + 1
        self._taken.add(name)
        return name

    def initializer(self, suffix: str, values: FloatArray) -> ir.Value:
        """A new constant in the stored type of the weight that it replaces."""
        name = self.name(suffix)
        array = np.ascontiguousarray(values.astype(self._dtype.numpy()))
        value = ir.Value(
            name=name, shape=ir.Shape(array.shape), type=ir.TensorType(self._dtype), const_value=ir.Tensor(array, name=name)
        )
        self._graph.register_initializer(value)
        return value


@dataclass(frozen=True)
class Link:
    """One layer of a chain as a node: its op, its weight as stored, and its attributes."""

    op: str
    weight: FloatArray
    attributes: Mapping[str, Any]


def link_nodes(node: ir.Node, chain: FactorChain, maker: Maker, link: Callable[[LayerSpec], Link]) -> list[ir.Node]:
    """The nodes that take the place of `node`, one for each layer of the chain, each fed by the one before it."""
    nodes: list[ir.Node] = []
    data = node.inputs[0]
    for number, layer in enumerate(chain.layers, 1):
        form = link(layer)
        inputs = [data, maker.initializer(f"factor{number}_weight", form.weight)]
        if layer.bias is not None:
            inputs.append(maker.initializer(f"factor{number}_bias", layer.bias))
        made = ir.node(
            form.op, inputs, form.attributes, domain=node.domain, name=maker.name(f"factor{number}_node"), version=node.version
        )
        made.outputs[0].name = maker.name(f"factor{number}")
        made.outputs[0].type = node.outputs[0].type
        nodes.append(made)
        data = made.outputs[0]
    return nodes


_KINDS: dict[str, LayerKind] = {}


def register(kind: LayerKind) -> LayerKind:
    """Add a kind; a second one of the same op is a programming error."""
    if kind.op in _KINDS:
        raise ValueError(f"layer kind {kind.op!r} is registered twice")
    _KINDS[kind.op] = kind
    return kind


def kind_of(node: ir.Node) -> LayerKind | None:
    """The kind of a node, None for all other ops."""
    return _KINDS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
