"""Nodes that read one weight and compute alike: one layer that is run in several places, and is factored as one."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from batude_onnx.layers import constants
from batude_onnx.layers.registry import kind_of


def twins(node: ir.Node) -> tuple[ir.Node, ...]:
    """All nodes that compute what `node` does, with the same constants and in the same graph, itself among them, in the order of
    the graph; none at all where something else reads its weight, too."""
    kind = kind_of(node)
    root = None if kind is None else constants.source(node.inputs[kind.weight])
    if kind is None or root is None:
        return ()
    own = _what_it_is(node)
    alike = [reader for reader, place in constants.readers(root) if place == kind.weight and _what_it_is(reader) == own]
    if constants.uses(root) != len(alike):
        return ()
    if len(alike) == 1:
        return (node,)
    assert node.graph is not None
    return tuple(one for one in node.graph if one in alike)


def _what_it_is(node: ir.Node) -> Any:
    """What two twins have in common."""
    attributes = sorted((name, attribute.type, attribute.value) for name, attribute in node.attributes.items())
    return node.domain, node.op_type, node.graph, [constants.held(value) for value in node.inputs[1:]], attributes
