"""Nodes that compute as a layer does and are kept as they are: those that onnxruntime fuses, and those that work on integers.

They are counted, and each says why it stays.
"""

from __future__ import annotations

from math import prod

import onnx_ir as ir

from batude_onnx.layers import conv, linear
from batude_onnx.layers.registry import Description, LayerKind, Shapes, Whole, register
from batude_onnx.records import Geometry

FUSED = "onnxruntime made it of several nodes when it optimized the model: give the model as it was before"
INTEGER = (
    "it computes with rounded numbers, and factors rounded once more would not compute the same: "
    "compress the float model and quantize the result"
)

MICROSOFT = "com.microsoft"
# domain, op, whether it convolves, the input that is its weight, why it stays
KEPT = (
    ("", "ConvInteger", True, 1, INTEGER),
    ("", "QLinearConv", True, 3, INTEGER),
    ("", "MatMulInteger", False, 1, INTEGER),
    ("", "QLinearMatMul", False, 3, INTEGER),
    (MICROSOFT, "QLinearConv", True, 3, INTEGER),
    (MICROSOFT, "QGemm", False, 3, INTEGER),
    (MICROSOFT, "MatMulIntegerToFloat", False, 1, INTEGER),
    (MICROSOFT, "DynamicQuantizeMatMul", False, 1, INTEGER),
    (MICROSOFT, "MatMulNBits", False, 1, INTEGER),
    (MICROSOFT, "FusedConv", True, 1, FUSED),
    (MICROSOFT, "NhwcFusedConv", True, 1, FUSED),
    (MICROSOFT, "FusedGemm", False, 1, FUSED),
    (MICROSOFT, "FusedMatMul", False, 1, FUSED),
    ("com.microsoft.nchwc", "Conv", True, 1, FUSED),
    ("com.ms.internal.nhwc", "Conv", True, 1, FUSED),
)


def _kept(domain: str, op: str, convolves: bool, weight: int, reason: str) -> LayerKind:
    """The kind of one row of `KEPT`."""
    named = f"{op} of {domain}" if domain else op

    def describe(node: ir.Node) -> Description:
        raise Whole(f"{named} is kept: {reason}")

    def outline(node: ir.Node, shapes: Shapes) -> tuple[tuple[int, ...], Geometry]:
        shape = _of_input(node, shapes, weight)
        if convolves:
            return shape, conv.geometry_of(node, max(0, len(shape) - 2))
        return (shape[::-1] if len(shape) == 2 else ()), Geometry.pointwise(0)

    def macs(node: ir.Node, shapes: Shapes) -> int | None:
        out, left, held = shapes.get(str(node.outputs[0].name)), _of_input(node, shapes, 0), _of_input(node, shapes, weight)
        if out is None or not left or (convolves and not held):
            return None
        return prod(held) * out[0] * prod(out[2:]) if convolves else prod(out) * left[-1]

    positions = conv.positions if convolves else linear.positions
    return LayerKind(op, describe, outline, macs, positions, None, domain, weight)


def _of_input(node: ir.Node, shapes: Shapes, index: int) -> tuple[int, ...]:
    value = node.inputs[index] if index < len(node.inputs) else None
    return () if value is None else shapes.get(str(value.name), ())


KINDS = tuple(register(_kept(*row)) for row in KEPT)
