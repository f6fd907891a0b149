"""Conv, 1-D to 3-D, grouped or not: one node becomes a chain of Conv nodes.

The layer of the chain that has the original's kernel size keeps the original's attributes as they are written (pads, also
asymmetric ones, auto_pad, strides, dilations), so that a padding which depends on the input's size stays correct.
"""

from __future__ import annotations

from math import prod
from typing import Any

import onnx_ir as ir

from batude_onnx.layers.registry import Description, LayerKind, Link, Maker, Positions, Shapes, link_nodes, register
from batude_onnx.layers.weights import stored_bias, stored_weight
from batude_onnx.records import FactorChain, Geometry, LayerSpec, Layout

OP = "Conv"


def ints(node: ir.Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """An attribute that is a list of integers."""
    attribute = node.attributes.get(name)
    return default if attribute is None else tuple(attribute.as_ints())


def geometry_of(node: ir.Node, dimensions: int) -> Geometry:
    """The attributes of a (transposed) convolution, defaults filled in."""
    group, auto_pad = node.attributes.get("group"), node.attributes.get("auto_pad")
    return Geometry(
        ints(node, "strides", (1,) * dimensions),
        ints(node, "pads", (0,) * (2 * dimensions)),
        ints(node, "dilations", (1,) * dimensions),
        1 if group is None else group.as_int(),
        "NOTSET" if auto_pad is None else auto_pad.as_string(),
    )


def describe(node: ir.Node) -> Description:
    """Weight (S, C/g, *kernel), input 1; bias, input 2."""
    weight, shape = stored_weight(node.inputs[1], "its weight")
    geometry = geometry_of(node, len(shape) - 2)
    return Description(weight, stored_bias(node), shape, geometry, Layout(weight.axes, groups=geometry.groups))


def outline(node: ir.Node, shapes: Shapes) -> tuple[tuple[int, ...], Geometry]:
    """The stored shape is the canonical one."""
    shape = shapes.get(str(node.inputs[1].name), ()) if node.inputs[1] else ()
    return shape, geometry_of(node, max(0, len(shape) - 2))


def positions(node: ir.Node, shapes: Shapes) -> Positions:
    """The kernel is applied at each position of the output."""
    out, into = _sizes(node.outputs[0], shapes), _sizes(node.inputs[0], shapes)
    halfway = out[0] * prod(out[2:3]) * prod(into[3:]) if out and into else 0
    after, before = (shape[0] * prod(shape[2:]) if shape else 0 for shape in (out, into))
    return Positions(after, before, halfway, after)


def _sizes(value: ir.Value | None, shapes: Shapes) -> tuple[int, ...]:
    """(N, C, ...) of a value, () where it is unknown (or is none of these)."""
    shape = () if value is None else shapes.get(str(value.name), ())
    return shape if len(shape) > 1 else ()


def macs(node: ir.Node, shapes: Shapes) -> int | None:
    """S * C/g * kernel, at each output position."""
    weight = shapes.get(str(node.inputs[1].name)) if node.inputs[1] else None
    count = positions(node, shapes)[0]
    return None if weight is None or not count else prod(weight) * count


def chain(node: ir.Node, chain: FactorChain, maker: Maker) -> list[ir.Node]:
    """One Conv for each layer of the chain; the last one carries the bias."""
    return link_nodes(node, chain, maker, link)


def link(layer: LayerSpec) -> Link:
    """One layer of a chain as a Conv."""
    return Link(OP, layer.weight, attributes_of(layer))


def attributes_of(layer: LayerSpec) -> dict[str, Any]:
    """Those that Conv and ConvTranspose have in common."""
    geometry = layer.geometry
    padding = {"auto_pad": geometry.auto_pad} if geometry.auto_pad != "NOTSET" else {"pads": geometry.pads}
    return {
        "kernel_shape": layer.weight.shape[2:],
        "strides": geometry.strides,
        "dilations": geometry.dilations,
        "group": geometry.groups,
        **padding,
    }


KIND = register(LayerKind(OP, describe, outline, macs, positions, chain))
