"""Every layer of a graph as a `Site`, and what a graph costs as it stands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod

import onnx_ir as ir

from batude_onnx.layers import constants
from batude_onnx.layers.registry import Positions, Shapes, Whole, kind_of
from batude_onnx.layers.scopes import all_graphs, all_nodes, distinct_names, holders
from batude_onnx.layers.twins import twins
from batude_onnx.records import Cost, FloatArray, Geometry, Site

HALVES = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


def find_sites(model: ir.Model, shapes: Shapes) -> tuple[Site, ...]:
    """Every node of a registered kind, in graph order: a body's behind the node that holds it, functions last.

    The names of `model` are distinct. A site that cannot be changed carries the reason; the others have neither method nor reason
    yet. Nodes that compute the same with one weight are one site.
    """
    sites: list[Site] = []
    inside = _places(model)
    for node in all_nodes(model):
        if node.op_type == "Add" and sites and _only_reader(node, sites[-1]):
            sites[-1] = replace(sites[-1], joined=str(node.outputs[0].name))
        kind = kind_of(node)
        if kind is None or node.graph is None:
            continue
        if left := constants.left_to_callers(node):
            reason = f"its {', '.join(left)} differs from call to call of the function"
            sites.append(Site(*_named(node), "", None, (), Geometry(), 0, 0, None, reason, inside=inside[node.graph]))
            continue
        place = inside[node.graph]
        # How often such a body is run is not known.
        known = {} if set(place) - {"If"} else shapes
        positions = kind.positions(node, known)
        data = "" if node.inputs[0] is None else str(node.inputs[0].name)
        shape, geometry = kind.outline(node, shapes)
        blank = Site(
            *_named(node), "", None, shape, geometry,
            positions.kernel, positions.input, None, data=data, halfway_positions=positions.halfway,
            outgoing_positions=positions.output if geometry.transposed else None, inside=place,
        )  # fmt: skip
        try:
            described = kind.describe(node)
            alike = twins(node)
            if not alike:
                root = described.weight.root
                raise Whole(f"its weight {root.name} is shared by {constants.uses(root)} nodes")
        except Whole as reason:
            # A factor that is computed is no parameter of the model.
            given = node.inputs[kind.weight] if kind.weight < len(node.inputs) else None
            stored = constants.source(given) is not None
            # Exporters hand weights to a loop as a state that it carries.
            handed = place and given is not None and given.is_graph_input()
            told = f"its weight is handed to the body of {place[-1]} as an input, not stored" if handed else str(reason)
            sites.append(replace(blank, shape=shape if stored else (), reason=told))
            continue
        if alike[0] is not node:
            continue
        if len(alike) > 1:
            blank = _in_all_places(blank, [kind.positions(one, known) for one in alike])
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
                twins=tuple(str(one.outputs[0].name) for one in alike[1:]),
            )
        )
    return tuple(sites)


def _in_all_places(site: Site, positions: Sequence[Positions]) -> Site:
    """A layer applied in several places, at all of them together; unknown where one of them is."""
    kernel, into, halfway, out = (sum(counts) if all(counts) else 0 for counts in zip(*positions, strict=True))
    outgoing = None if site.outgoing_positions is None else out
    return replace(site, positions=kernel, input_positions=into, halfway_positions=halfway, outgoing_positions=outgoing)


def _named(node: ir.Node) -> tuple[str, str, str]:
    """Key, node and op of a site."""
    return str(node.outputs[0].name), node.name or "", node.op_type


def _only_reader(node: ir.Node, site: Site) -> bool:
    """Whether nothing but `node` reads the output of `site`."""
    value = next((value for value in node.inputs if value is not None and value.name == site.key), None)
    return value is not None and len(value.uses()) == 1 and not value.is_graph_output()


def _places(model: ir.Model) -> dict[ir.Graph, tuple[str, ...]]:
    """For each graph what it is the body of, outermost first: ops, and functions by name."""
    places: dict[ir.Graph, tuple[str, ...]] = {model.graph: ()}
    places |= {function.graph: (f"function {function.name}",) for function in model.functions.values()}
    # A node comes behind the one that holds its graph.
    for body, node in holders(model).items():
        assert node.graph is not None
        places[body] = (*places[node.graph], node.op_type)
    return places


def nodes_by_key(model: ir.Model) -> dict[str, ir.Node]:
    """All nodes by the distinct name of their first output."""
    names = distinct_names(model)
    return {names[node.outputs[0]]: node for node in all_nodes(model) if node.outputs}


def constants_by_name(model: ir.Model) -> dict[str, ir.Value]:
    """Every place where a constant lives, by its distinct name."""
    return {name: value for value, name in distinct_names(model).items() if constants.source(value) is value}


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
    """Elements of the biases of `nodes` that something else reads as well: a chain in the node's place has a copy, one for all of
    its twins."""
    copied = 0
    for node in nodes:
        root = constants.source(node.inputs[2]) if len(node.inputs) > 2 else None
        if root is not None and constants.uses(root) > len(twins(node)):
            copied += constants.tensor(root).size
    return copied


def in_half(model: ir.Model) -> bool:
    """Whether the weight of any layer is stored, or read, in half precision, so that all that comes of it is rounded to that."""
    for node in all_nodes(model):
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
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype.is_floating_point():
                params += value.const_value.size
    macs = 0
    for node in all_nodes(model):
        if node.op_type == "Constant" and constants.source(node.outputs[0]) is not None:
            held = constants.tensor(node.outputs[0])
            if held.dtype.is_floating_point():
                params += prod(held.shape.numpy())
        kind = kind_of(node)
        if kind is not None and not constants.left_to_callers(node):
            macs += kind.macs(node, shapes) or 0
    return Cost(params, macs)
