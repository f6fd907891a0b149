"""Gemm and MatMul with a constant right factor: one node becomes a chain of the same op.

The canonical weight is (S, C): a MatMul's stored (C, S) transposed, a Gemm's likewise unless transB is set.
"""

from __future__ import annotations

from math import prod

import onnx_ir as ir

from batude_onnx.layers import constants
from batude_onnx.layers.constants import Held
from batude_onnx.layers.registry import Description, LayerKind, Link, Maker, Positions, Shapes, Whole, link_nodes, register
from batude_onnx.layers.weights import stored_bias, stored_weight
from batude_onnx.records import FactorChain, Geometry, LayerSpec, Layout

# From this opset on.
GEMM_BIAS_OPTIONAL = 11


def _number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.value)


def _stored_as_is(node: ir.Node) -> bool:
    return _number(node, "transB", 0) != 0


def _weight(node: ir.Node) -> tuple[Held, tuple[int, ...], Layout]:
    if constants.source(node.inputs[1]) is None and constants.source(node.inputs[0]) is not None:
        raise Whole("its constant factor is the left one")
    weight, shape = stored_weight(node.inputs[1], "its right factor")
    if len(shape) != 2:
        raise Whole(f"its constant factor has {len(shape)} dimensions, not 2")
    layout = Layout(weight.axes, swapped=not _stored_as_is(node))
    return weight, shape[::-1] if layout.swapped else shape, layout


def describe_matmul(node: ir.Node) -> Description:
    """x (..., C) @ B (C, S)."""
    weight, shape, layout = _weight(node)
    return Description(weight, None, shape, Geometry.pointwise(0), layout)


def describe_gemm(node: ir.Node) -> Description:
    """alpha x B + beta C, with alpha = beta = 1 and x not transposed."""
    if _number(node, "transA", 0):
        raise Whole("Gemm with transA = 1")
    if _number(node, "broadcast", 0):
        raise Whole("Gemm of an opset before 7")
    if _number(node, "alpha", 1.0) != 1.0 or _number(node, "beta", 1.0) != 1.0:
        raise Whole("Gemm with alpha or beta other than 1")
    weight, shape, layout = _weight(node)
    bias = stored_bias(node)
    if bias is not None and tuple(constants.tensor(bias.root).shape.numpy()) != shape[:1]:
        raise Whole("its bias is not one value for each output")
    return Description(weight, bias, shape, Geometry.pointwise(0), layout)


def outline(node: ir.Node, shapes: Shapes) -> tuple[tuple[int, ...], Geometry]:
    """The last two axes of the right factor."""
    shape = shapes.get(str(node.inputs[1].name), ()) if node.inputs[1] else ()
    return shape[-2:] if _stored_as_is(node) else shape[-2:][::-1], Geometry.pointwise(0)


def positions(node: ir.Node, shapes: Shapes) -> Positions:
    """Rows of the left factor, over all leading axes."""
    out = shapes.get(str(node.outputs[0].name))
    count = 0 if out is None else prod(out[:-1])
    return Positions(count, count, count, count)


def macs(node: ir.Node, shapes: Shapes) -> int | None:
    """Output elements times the length of the sum."""
    out, left = shapes.get(str(node.outputs[0].name)), shapes.get(str(node.inputs[0].name)) if node.inputs[0] else None
    if out is None or not left:
        return None
    return prod(out) * left[0 if _number(node, "transA", 0) else -1]


def chain(node: ir.Node, chain: FactorChain, maker: Maker) -> list[ir.Node]:
    """One node of the same op for each layer of the chain; before opset 11 a Gemm without a bias has to be a MatMul."""

    def link(layer: LayerSpec) -> Link:
        op = "MatMul" if layer.bias is None and maker.opset < GEMM_BIAS_OPTIONAL else node.op_type
        as_is = op == node.op_type and _stored_as_is(node)
        return Link(op, layer.weight if as_is else layer.weight.T, {"transB": 1} if as_is else {})

    return link_nodes(node, chain, maker, link)


GEMM = register(LayerKind("Gemm", describe_gemm, outline, macs, positions, chain))
MATMUL = register(LayerKind("MatMul", describe_matmul, outline, macs, positions, chain))
