"""ConvTranspose, 1-D to 3-D, grouped or not: one node becomes a chain in which the factors of one point are Conv nodes.

    x (C) -> ConvTranspose(W) -> y (S)    becomes, say,    x -> Conv 1x1 -> ConvTranspose KxK -> Conv 1x1 -> y

A ConvTranspose scatters what Conv gathers,

    y(s,p) = sum of W(s,c,k) x(c,i) over all c, k and i with stride i + dilation k - pad = p,

and is as linear in its channels, so every factorisation of W serves for both. The factor that has the kernel keeps strides,
pads and output_padding as they are written.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import onnx_ir as ir

from batude_onnx.layers import conv
from batude_onnx.layers.registry import Description, LayerKind, Link, Maker, Positions, Shapes, Whole, link_nodes, register
from batude_onnx.layers.weights import stored_bias, stored_weight
from batude_onnx.records import FactorChain, Geometry, LayerSpec, Layout

OP = "ConvTranspose"


def _geometry_of(node: ir.Node, dimensions: int) -> Geometry:
    padding = conv.ints(node, "output_padding", (0,) * dimensions)
    return replace(conv.geometry_of(node, dimensions), transposed=True, output_padding=padding)


def describe(node: ir.Node) -> Description:
    """Weight (C, S/g, *kernel), input 1; bias, input 2."""
    if "output_shape" in node.attributes:
        raise Whole("a transposed convolution with output_shape, by which its pads depend on the size of its input")
    weight, shape = stored_weight(node.inputs[1], "its weight")
    geometry = _geometry_of(node, len(shape) - 2)
    layout = Layout(weight.axes, swapped=True, groups=geometry.groups)
    return Description(weight, stored_bias(node), _canonical(shape, geometry), geometry, layout)


def _canonical(shape: tuple[int, ...], geometry: Geometry) -> tuple[int, ...]:
    return (shape[1] * geometry.groups, shape[0] // geometry.groups, *shape[2:])


def outline(node: ir.Node, shapes: Shapes) -> tuple[tuple[int, ...], Geometry]:
    """Stored as (C, S/g, *kernel); canonical is (S, C/g, *kernel)."""
    shape = shapes.get(str(node.inputs[1].name), ()) if node.inputs[1] else ()
    geometry = _geometry_of(node, max(0, len(shape) - 2))
    return (_canonical(shape, geometry) if len(shape) > 1 else ()), geometry


def positions(node: ir.Node, shapes: Shapes) -> Positions:
    """The kernel is applied once at each *input* position."""
    found = conv.positions(node, shapes)
    return found._replace(kernel=found.input)


def macs(node: ir.Node, shapes: Shapes) -> int | None:
    """C * S/g * kernel, at each *input* position."""
    weight = shapes.get(str(node.inputs[1].name)) if node.inputs[1] else None
    count = positions(node, shapes).kernel
    return None if weight is None or not count else prod(weight) * count


def chain(node: ir.Node, chain: FactorChain, maker: Maker) -> list[ir.Node]:
    """One node for each layer of the chain; the last one carries the bias."""
    return link_nodes(node, chain, maker, link)


def link(layer: LayerSpec) -> Link:
    """One layer of a chain: a Conv where it is not transposed itself."""
    geometry = layer.geometry
    if not geometry.transposed:
        return conv.link(layer)
    stored = Layout(swapped=True, groups=geometry.groups).stored(layer.weight)
    attributes = {**conv.attributes_of(layer), "kernel_shape": stored.shape[2:], "output_padding": geometry.output_padding}
    return Link(OP, stored, attributes)


KIND = register(LayerKind(OP, describe, outline, macs, positions, chain))
