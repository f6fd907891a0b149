"""Every layer of a graph as a `Site`, and what a graph costs as it stands."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import prod

import onnx_ir as ir

from batude_onnx.layers import constants
from batude_onnx.layers.registry import Shapes, Whole, kind_of
from batude_onnx.records import Cost, FloatArray, Site


def find_sites(model: ir.Model, shapes: Shapes) -> tuple[Site, ...]:
    """Every node of a registered kind in the main graph, in graph order.

    A site that cannot be changed carries the reason; the others have neither method nor reason yet.
    """
    sites: list[Site] = []
    for node in model.graph:
        if node.op_type == "Add" and sites and _only_reader(node, sites[-1]):
            sites[-1] = replace(sites[-1], joined=str(node.outputs[0].name))
        kind = kind_of(node)
        if kind is None:
            continue
        out, into, halfway = kind.positions(node, shapes)
        data = "" if node.inputs[0] is None else str(node.inputs[0].name)
        shape, geometry = kind.outline(node, shapes)
        blank = Site(
            str(node.outputs[0].name), node.name or "", node.op_type, "", None, shape, geometry, out, into, None, data=data,
            halfway_positions=halfway,
        )  # fmt: skip
        try:
            described = kind.describe(node)
        except Whole as reason:
            # A factor that is computed is no parameter of the model.
            stored = constants.source(node.inputs[1]) is not None
            sites.append(replace(blank, shape=shape if stored else (), reason=str(reason)))
            continue
        bias = None if described.bias is None else constants.name_of(described.bias)
        sites.append(
            replace(
                blank,
                weight=constants.name_of(described.weight),
                bias=bias,
                shape=described.shape,
                geometry=described.geometry,
                reason=None if kind.chain else "not decomposed",
                transposed=described.transposed,
                normalised=any(user.op_type == "BatchNormalization" for user, _ in node.outputs[0].uses()),
            )
        )
    return tuple(sites)


def _only_reader(node: ir.Node, site: Site) -> bool:
    """Whether nothing but `node` reads the output of `site`."""
    value = next((value for value in node.inputs if value is not None and value.name == site.key), None)
    return value is not None and len(value.uses()) == 1 and not value.is_graph_output()


def nodes_by_key(model: ir.Model) -> dict[str, ir.Node]:
    """The nodes of the main graph by their first output's name."""
    return {str(node.outputs[0].name): node for node in model.graph if node.outputs}


def read_weight(node: ir.Node) -> FloatArray:
    """The canonical weight (S, C/groups, *kernel) of a layer."""
    kind = kind_of(node)
    assert kind is not None
    described = kind.describe(node)
    stored = constants.read(described.weight)
    return stored.T if described.transposed else stored


def read_bias(node: ir.Node) -> FloatArray | None:
    """The bias (S,) of a layer, None where it has none."""
    kind = kind_of(node)
    assert kind is not None
    bias = kind.describe(node).bias
    return None if bias is None else constants.read(bias)


def copied_biases(nodes: Iterable[ir.Node]) -> int:
    """Elements of the biases of `nodes` that something else reads as well: a chain in the node's place has a copy."""
    copied = 0
    for node in nodes:
        root = constants.source(node.inputs[2]) if len(node.inputs) > 2 else None
        if root is not None and constants.uses(root) > 1:
            copied += constants.tensor(root).size
    return copied


def stored_type(node: ir.Node) -> ir.DataType:
    """The type in which a layer's weight is stored."""
    root = constants.source(node.inputs[1])
    assert root is not None
    return constants.tensor(root).dtype


def count(model: ir.Model, shapes: Shapes) -> Cost:
    """Parameters and MACs of the graph as it stands.

    Parameters: elements of all floating-point constants, shared ones once, wherever they are held. MACs per sample (per
    batch where the file fixes it): all convolutions and matrix products; one whose shapes are unknown counts as nothing.
    """
    params = 0
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype.is_floating_point():
                params += value.const_value.size
    macs = 0
    for node in model.graph.all_nodes():
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            held = constants.tensor(node.outputs[0])
            if held.dtype.is_floating_point():
                params += prod(held.shape.numpy())
        kind = kind_of(node)
        if kind is not None:
            macs += kind.macs(node, shapes) or 0
    return Cost(params, macs)
