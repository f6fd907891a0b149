"""Chosen layers replaced by their chains, in the original graph, the body or the function where each of them stands.

    x -> Conv(W) -> y      becomes      x -> Conv -> Conv -> Conv -> y

y keeps its name, type and shape. Nodes that are twins of a chosen one are replaced with it, and their chains read the same
constants. Everything that was not chosen stays as it was, apart from the values of weights that
training has changed. The input model is not touched: a clone is edited.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from batude_onnx.layers import Maker, bias_type, constants, constants_by_name, kind_of, nodes_by_key, twins
from batude_onnx.records import FactorChain, FloatArray

Keep = Callable[[ir.TensorProtocol], ir.TensorProtocol]

# Before this IR version every initializer is a graph input too.
INITIALIZERS_APART = 4


def rewrite(
    model: ir.Model,
    chains: Mapping[str, FactorChain],
    *,
    weights: Mapping[str, FloatArray] | None = None,
    biases: Mapping[str, FloatArray] | None = None,
    metadata: Mapping[str, str] | None = None,
    keep: Keep | None = None,
) -> ir.Model:
    """A copy of `model` with the layers named in `chains` replaced.

    `weights`: new values of other constants, by name, in the shape in which they are stored.
    `biases`: new biases of layers that stay whole, by the layer's key, (S,); a layer without one gets one.
    `metadata`: entries added to the model's metadata_props.
    `keep`: given each tensor that is in memory once a layer is replaced, it gives the one that stands for it from then on.
    """
    edited = model.clone()
    edited.meta.update(model.meta)
    nodes, roots = nodes_by_key(edited), constants_by_name(edited)
    for name, values in (weights or {}).items():
        if not np.array_equal(constants.read(roots[name]), values):
            constants.store(roots[name], values)
    for key, values in (biases or {}).items():
        _set_bias(edited, _everywhere(nodes[key]), values)
    for key, chain in chains.items():
        made: dict[str, ir.Value] = {}
        for node in _everywhere(nodes[key]):
            _replace(edited, node, chain, made)
        if keep is not None:
            _keep(edited, keep)
    if (edited.ir_version or 0) < INITIALIZERS_APART:
        _list_as_inputs(edited.graph)
    edited.metadata_props.update(metadata or {})
    return edited


def _everywhere(node: ir.Node) -> tuple[ir.Node, ...]:
    """A node and its twins; alone where unlike nodes read its weight, too."""
    return twins(node) or (node,)


def _keep(model: ir.Model, keep: Keep) -> None:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.Tensor):
                value.const_value = keep(value.const_value)


def _set_bias(model: ir.Model, nodes: Sequence[ir.Node], values: FloatArray) -> None:
    """The bias of a node and its twins: in place where it is their own, under a new name where they have none or share it with
    others."""
    held = nodes[0].inputs[2] if len(nodes[0].inputs) > 2 else None
    root = constants.source(held)
    if root is not None and constants.uses(root) == len(nodes):
        constants.store(root, values)
        return
    maker = Maker(model, nodes[0])
    fresh = maker.constant("bias", values, *bias_type(nodes[0]))
    _graph_of(nodes[0]).insert_before(nodes[0], maker.before)
    for node in nodes:
        node.resize_inputs(3)
        node.replace_input_with(2, fresh)
    if held is not None:
        _drop_unused(held)


def _list_as_inputs(graph: ir.Graph) -> None:
    listed = {value.name for value in graph.inputs}
    graph.inputs.extend(value for name, value in graph.initializers.items() if name not in listed)


def _graph_of(node: ir.Node) -> ir.Graph:
    assert isinstance(node.graph, ir.Graph)
    return node.graph


def _replace(model: ir.Model, node: ir.Node, chain: FactorChain, made: dict[str, ir.Value]) -> None:
    kind = kind_of(node)
    if kind is None or kind.chain is None:
        raise ValueError(f"{node.op_type} has no chain")
    output = node.outputs[0]
    new = kind.chain(node, chain, Maker(model, node, made))
    last = new[-1]
    # The description of the layer goes with the node that now gives its output.
    last.doc_string = node.doc_string
    last.metadata_props.update(node.metadata_props)
    last.outputs[0].doc_string = output.doc_string
    last.outputs[0].metadata_props.update(output.metadata_props)
    held = [value for value in node.inputs[1:] if value is not None]
    ir.convenience.replace_nodes_and_values(_graph_of(node), node, [node], new, [output], [last.outputs[0]])
    for value in held:
        _drop_unused(value)


def _drop_unused(value: ir.Value) -> None:
    """Remove a constant that nothing reads any more, and the nodes that led to it, from wherever they stand."""
    left = [value]
    while left:
        value = left.pop()
        if value.uses() or value.is_graph_output():
            continue
        producer, graph = value.producer(), value.graph
        if producer is not None:
            left += [given for given in producer.inputs if given is not None]
            _graph_of(producer).remove(producer, safe=True)
        elif graph is not None and value.is_initializer():
            if value.is_graph_input():
                graph.inputs.remove(value)
            del graph.initializers[str(value.name)]
