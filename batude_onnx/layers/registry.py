"""The registry of layer kinds: ops whose weight can be read as one canonical kernel and written back as a chain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import onnx_ir as ir

from batude_onnx.layers.constants import ONNX_DOMAINS, Held, as_stored, held, tensor
from batude_onnx.layers.scopes import all_graphs
from batude_onnx.records import FactorChain, FloatArray, Geometry, LayerSpec, Layout

Shapes = dict[str, tuple[int, ...]]


class Whole(Exception):
    """Raised by `describe` for a node that is left alone; the text is the reason that the user reads."""


class Positions(NamedTuple):
    """Positions per run, 0 where shapes are unknown: where the kernel is applied, of the input, where a kernel that walks over
    the first spatial axis alone is applied (or, of a transposed convolution, what it gives), and of the output."""

    kernel: int
    input: int
    halfway: int
    output: int


@dataclass(frozen=True)
class Description:
    """What a node says of its layer: where its weight and bias live, the canonical shape, the geometry, and the layout."""

    weight: Held
    bias: Held | None
    shape: tuple[int, ...]
    geometry: Geometry
    layout: Layout


@dataclass(frozen=True)
class LayerKind:
    """One op of one domain; `weight` is the input that holds its weight.

    `describe(node)`: the layer, or raises `Whole`.
    `outline(node, shapes)`: the canonical shape, () where it is unknown, and the geometry, also of a node that is left alone.
    `macs(node, shapes)`: multiply-accumulates of one run, None where shapes are unknown.
    `positions(node, shapes)`: how often the kernel and its parts are applied.
    `chain(node, chain, maker)`: the nodes that compute the chain; `maker` names values and adds initializers.
    """

    op: str
    describe: Callable[[ir.Node], Description]
    outline: Callable[[ir.Node, Shapes], tuple[tuple[int, ...], Geometry]]
    macs: Callable[[ir.Node, Shapes], int | None]
    positions: Callable[[ir.Node, Shapes], Positions]
    chain: Callable[[ir.Node, FactorChain, Maker], list[ir.Node]] | None
    domain: str = ""
    weight: int = 1


class Maker:
    """Makes the constants and values of new nodes, under names derived from the replaced node's output.

    Constants are initializers of the main graph; in a function, which cannot hold any, and in a body they are nodes. They are
    stored in the type in which the file holds the node's weight and bias, and cast where the node reads another. `before`: nodes
    that have to stand in front of the one that reads them. `opset`: of the ONNX ops where the node stands. `made`: constants by
    suffix, which this one adds to, and which it takes where a twin of the node has them already.
    """

    def __init__(self, model: ir.Model, node: ir.Node, made: dict[str, ir.Value] | None = None) -> None:
        self._made = {} if made is None else made
        self._main = model.graph if node.graph is model.graph else None
        self._base = str(node.outputs[0].name)
        self.before: list[ir.Node] = []
        function = next((one for one in model.functions.values() if any(node is made for made in one.all_nodes())), None)
        imports = (model if function is None else function).opset_imports
        self.opset: int = imports.get("", imports.get("ai.onnx", 1))
        self._taken: set[str | None] = set()
        # Names of other graphs count too, since a value of an inner one may not have the name of an outer one.
        for scope in all_graphs(model):
            self._taken |= set(scope.initializers) | {value.name for value in scope.inputs}
            self._taken |= {made.name for made in scope} | {value.name for made in scope for value in made.outputs}

    def name(self, suffix: str) -> str:
        """`<base>_<suffix>`, numbered where the graph already has that name."""
        wanted = f"{self._base}_{suffix}"
        name, k = wanted, 1
        while name in self._taken:
            name, k = f"{wanted}_{k}", k + 1
        self._taken.add(name)
        return name

    def constant(self, suffix: str, values: FloatArray, stored: ir.DataType, read: ir.DataType) -> ir.Value:
        """A new constant of the type `stored`, as a value of the type `read`; `before` takes up the nodes that are needed."""
        if suffix not in self._made:
            self._made[suffix] = self._constant(suffix, values, stored, read)
        return self._made[suffix]

    def _constant(self, suffix: str, values: FloatArray, stored: ir.DataType, read: ir.DataType) -> ir.Value:
        name = self.name(suffix)
        tensor = ir.Tensor(as_stored(values, stored), name=name)
        if self._main is None:
            value = self._node("Constant", [], {"value": tensor}, f"{suffix}_node", name, stored)
        else:
            value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(stored), const_value=tensor)
            self._main.register_initializer(value)
        if stored == read:
            return value
        return self._node("Cast", [value], {"to": int(read)}, f"{suffix}_cast", self.name(f"{suffix}_{read.name.lower()}"), read)

    def _node(
        self, op: str, inputs: list[ir.Value], attributes: dict[str, Any], suffix: str, output: str, kind: ir.DataType
    ) -> ir.Value:
        node = ir.node(op, inputs, attributes, name=self.name(suffix))
        node.outputs[0].name, node.outputs[0].type = output, ir.TensorType(kind)
        self.before.append(node)
        return node.outputs[0]


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
    weight, bias = weight_type(node), bias_type(node)
    for number, layer in enumerate(chain.layers, 1):
        form = link(layer)
        inputs = [data, maker.constant(f"factor{number}_weight", form.weight, *weight)]
        if layer.bias is not None:
            inputs.append(maker.constant(f"factor{number}_bias", layer.bias, *bias))
        made = ir.node(
            form.op, inputs, form.attributes, domain=node.domain, name=maker.name(f"factor{number}_node"), version=node.version
        )
        made.outputs[0].name = maker.name(f"factor{number}")
        made.outputs[0].type = node.outputs[0].type
        nodes += [*maker.before, made]
        maker.before.clear()
        data = made.outputs[0]
    return nodes


def weight_type(node: ir.Node) -> tuple[ir.DataType, ir.DataType]:
    """In which type a layer's weight is stored, and in which the node reads it."""
    weight = held(node.inputs[1])
    assert weight is not None
    return tensor(weight.root).dtype, weight.dtype


def bias_type(node: ir.Node) -> tuple[ir.DataType, ir.DataType]:
    """The same of its bias; of a new one where it has none yet."""
    bias = held(node.inputs[2]) if len(node.inputs) > 2 else None
    return (weight_type(node)[1],) * 2 if bias is None else (tensor(bias.root).dtype, bias.dtype)


_KINDS: dict[tuple[str, str], LayerKind] = {}


def register(kind: LayerKind) -> LayerKind:
    """Add a kind; a second one of the same op is a programming error."""
    if (kind.domain, kind.op) in _KINDS:
        raise ValueError(f"layer kind {kind.op!r} is registered twice")
    _KINDS[kind.domain, kind.op] = kind
    return kind


def kind_of(node: ir.Node) -> LayerKind | None:
    """The kind of a node, None for all other ops, and for one that has no input or no output at all."""
    if not node.inputs or not node.outputs:
        return None
    return _KINDS.get(("" if node.domain in ONNX_DOMAINS else node.domain, node.op_type))


def ops() -> frozenset[str]:
    """The names of all registered ops."""
    return frozenset(op for _, op in _KINDS)
