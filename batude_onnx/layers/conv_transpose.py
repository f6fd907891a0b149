"""ConvTranspose: counted, not yet decomposed."""

from __future__ import annotations

from math import prod

import onnx_ir as ir

from batude_onnx.layers import conv
from batude_onnx.layers.registry import Description, LayerKind, Shapes, Whole, register
from batude_onnx.records import Geometry

OP = "ConvTranspose"


def describe(node: ir.Node) -> Description:
    """Always left whole."""
    raise Whole("transposed convolutions are not decomposed")


def outline(node: ir.Node, shapes: Shapes) -> tuple[tuple[int, ...], Geometry]:
    """Stored as (C, S/g, *kernel); canonical is (S, C/g, *kernel)."""
    shape, geometry = conv.outline(node, shapes)
    if len(shape) < 2:
        return (), geometry
    return (shape[1] * geometry.groups, shape[0] // geometry.groups, *shape[2:]), geometry


def positions(node: ir.Node, shapes: Shapes) -> tuple[int, int, int]:
    """The kernel is applied once at each *input* position."""
    into = conv.positions(node, shapes)[1]
    return into, into, into


def macs(node: ir.Node, shapes: Shapes) -> int | None:
    """C * S/g * kernel, at each *input* position."""
    weight = shapes.get(str(node.inputs[1].name)) if node.inputs[1] else None
    count = positions(node, shapes)[0]
    return None if weight is None or not count else prod(weight) * count


KIND = register(LayerKind(OP, describe, outline, macs, positions, None))
