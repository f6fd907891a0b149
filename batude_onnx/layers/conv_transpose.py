"""ConvTranspose: counted, not yet decomposed."""

from __future__ import annotations

from math import prod

import onnx_ir as ir

from batude_onnx.layers.conv import positions
from batude_onnx.layers.registry import Description, LayerKind, Shapes, Whole, register

OP = "ConvTranspose"


def describe(node: ir.Node) -> Description:
    """Always left whole."""
    raise Whole("transposed convolutions are not decomposed")


def macs(node: ir.Node, shapes: Shapes) -> int | None:
    """C * S/g * kernel, at each *input* position."""
    weight = shapes.get(str(node.inputs[1].name)) if node.inputs[1] else None
    count = positions(node, shapes)[1]
    return None if weight is None or not count else prod(weight) * count


KIND = register(LayerKind(OP, describe, macs, positions, None))
