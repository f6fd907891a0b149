"""Conv, 1-D to 3-D, grouped or not: one node becomes a chain of Conv nodes.

The layer of the chain that has the original's kernel size keeps the original's attributes as they are written (pads, also
asymmetric ones, auto_pad, strides, dilations), so that a padding which depends on the input's size stays correct.
"""

from __future__ import annotations

from math import prod

import onnx_ir as ir

from batude_onnx.layers import constants
from batude_onnx.layers.registry import Description, LayerKind, Link, Maker, Shapes, Whole, link_nodes, register
from batude_onnx.records import FactorChain, Geometry, LayerSpec

OP = "Conv"


def _ints(node: ir.Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    attribute = node.attributes.get(name)
    return default if attribute is None else tuple(attribute.as_ints())


def geometry_of(node: ir.Node, dimensions: int) -> Geometry:
    """The attributes of a (transposed) convolution, defaults filled in."""
    group, auto_pad = node.attributes.get("group"), node.attributes.get("auto_pad")
    return Geometry(
        _ints(node, "strides", (1,) * dimensions),
        _ints(node, "pads", (0,) * (2 * dimensions)),
        _ints(node, "dilations", (1,) * dimensions),
        1 if group is None else group.as_int(),
        "NOTSET" if auto_pad is None else auto_pad.as_string(),
    )


def describe(node: ir.Node) -> Description:
    """Weight (S, C/g, *kernel), input 1; bias, input 2."""
    weight = constants.source(node.inputs[1])
    if weight is None:
        raise Whole(f"its weight is {constants.made_by(node.inputs[1])}, not stored")
    held = constants.tensor(weight)
    if held.dtype not in constants.FLOATS:
        raise Whole(f"its weight is stored as {held.dtype.name}, not as floating point")
    if constants.uses(weight) > 1:
        raise Whole(f"its weight {weight.name} is shared by {constants.uses(weight)} nodes")
    given = node.inputs[2] if len(node.inputs) > 2 else None
    bias = constants.source(given)
    if given is not None and bias is None:
        raise Whole(f"its bias is {constants.made_by(given)}, not stored")
    shape = tuple(int(size) for size in held.shape.numpy())
    return Description(weight, bias, shape, geometry_of(node, len(shape) - 2))


def outline(node: ir.Node, shapes: Shapes) -> tuple[tuple[int, ...], Geometry]:
    """The stored shape is the canonical one."""
    shape = shapes.get(str(node.inputs[1].name), ()) if node.inputs[1] else ()
    return shape, geometry_of(node, max(0, len(shape) - 2))


def positions(node: ir.Node, shapes: Shapes) -> tuple[int, int, int]:
    """Output and input positions of one run, and those of the output along the first axis and the input along the others; 0
    where shapes are unknown."""
    out, into = shapes.get(str(node.outputs[0].name)), shapes.get(str(node.inputs[0].name)) if node.inputs[0] else None
    halfway = 0 if out is None or into is None else out[0] * prod(out[2:3]) * prod(into[3:])
    return 0 if out is None else out[0] * prod(out[2:]), 0 if into is None else into[0] * prod(into[2:]), halfway


def macs(node: ir.Node, shapes: Shapes) -> int | None:
    """S * C/g * kernel, at each output position."""
    weight = shapes.get(str(node.inputs[1].name)) if node.inputs[1] else None
    count = positions(node, shapes)[0]
    return None if weight is None or not count else prod(weight) * count


def chain(node: ir.Node, chain: FactorChain, maker: Maker) -> list[ir.Node]:
    """One Conv for each layer of the chain; the last one carries the bias."""

    def link(layer: LayerSpec) -> Link:
        geometry = layer.geometry
        padding = {"auto_pad": geometry.auto_pad} if geometry.auto_pad != "NOTSET" else {"pads": geometry.pads}
        attributes = {
            "kernel_shape": layer.weight.shape[2:],
            "strides": geometry.strides,
            "dilations": geometry.dilations,
            "group": geometry.groups,
            **padding,
        }
        return Link(OP, layer.weight, attributes)

    return link_nodes(node, chain, maker, link)


KIND = register(LayerKind(OP, describe, outline, macs, positions, chain))
