"""Every layer of a graph as a `Site`, and what a graph costs as it stands."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import prod

import onnx_ir as ir

from batude_onnx.layers import constants
from batude_onnx.layers.registry import Shapes, Whole, kind_of
from batude_onnx.records import Cost, FloatArray, Site

HALVES = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


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
        positions = kind.positions(node, shapes)
        data = "" if node.inputs[0] is None else str(node.inputs[0].name)
        shape, geometry = kind.outline(node, shapes)
        blank = Site(
            str(node.outputs[0].name), node.name or "", node.op_type, "", None, shape, geometry,
            positions.kernel, positions.input, None, data=data, halfway_positions=positions.halfway,
            outgoing_positions=positions.output if geometry.transposed else None,
        )  # fmt: skip
        try:
            described = kind.describe(node)
        except Whole as reason:
            # A factor that is computed is no parameter of the model.
            given = node.inputs[kind.weight] if kind.weight < len(node.inputs) else None
            stored = constants.source(given) is not None
            sites.append(replace(blank, shape=shape if stored else (), reason=str(reason)))
            continue
        bias = None if described.bias is None else constants.name_of(described.bias.root)
        sites.append(
            replace(
                blank,
                weight=constants.name_of(described.weight.root),
                bias=bias,
                shape=described.shape,
                geometry=described.geometry,
                reason=None if kind.chain else "not decomposed",
                layout=described.layout,
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
    weight: FloatArray = described.layout.canonical(constants.read(described.weight.root, described.weight.dtype))
    return weight


def read_bias(node: ir.Node) -> FloatArray | None:
    """The bias (S,) of a layer, None where it has none."""
    kind = kind_of(node)
    assert kind is not None
    bias = kind.describe(node).bias
    return None if bias is None else constants.read(bias.root, bias.dtype)


def copied_biases(nodes: Iterable[ir.Node]) -> int:
    """Elements of the biases of `nodes` that something else reads as well: a chain in the node's place has a copy."""
    copied = 0
    for node in nodes:
        root = constants.source(node.inputs[2]) if len(node.inputs) > 2 else None
        if root is not None and constants.uses(root) > 1:
            copied += constants.tensor(root).size
    return copied


def in_half(model: ir.Model) -> bool:
    """Whether the weight of any layer is stored, or read, in half precision, so that all that comes of it is rounded to that."""
    for node in model.graph:
        kind = kind_of(node)
        given = node.inputs[kind.weight] if kind is not None and kind.weight < len(node.inputs) else None
        weight = constants.held(given)
        if weight is not None and HALVES & {weight.dtype, constants.tensor(weight.root).dtype}:
            return True
    return False


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
