"""Where nodes live: in the main graph, in bodies of If, Loop and Scan at any depth, in local functions.

Bodies may use a name of one another, and functions any name at all, so a name alone does not tell a value. Each value has a
distinct name in the whole model: its own where it comes first (the main graph first of all), else `name@2`, `name@3`, ...
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import onnx_ir as ir


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node, a body's behind the node that holds it, functions last."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def all_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """The main graph first, then all bodies, then functions with theirs."""
    yield from (model.graph, *model.graph.subgraphs())
    for function in model.functions.values():
        yield from (function.graph, *function.graph.subgraphs())


def holders(model: ir.Model) -> dict[ir.Graph, ir.Node]:
    """The node that holds each body."""
    held = {}
    for node in all_nodes(model):
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                held[attribute.as_graph()] = node
            elif attribute.type == ir.AttributeType.GRAPHS:
                held |= dict.fromkeys(attribute.as_graphs(), node)
    return held


def distinct_names(model: ir.Model) -> dict[ir.Value, str]:
    """The distinct name of each value."""
    names: dict[ir.Value, str] = {}
    taken: set[str] = set()
    for graph in all_graphs(model):
        made = (value for node in graph for value in node.outputs)
        for value in (*graph.inputs, *graph.initializers.values(), *made):
            if value in names:
                continue  # an initializer that is an input too
            name, number = str(value.name), 1
            while name in taken:
                number += 1
                name = f"{value.name}@{number}"
            taken.add(name)
            names[value] = name
    return names


def distinct(model: ir.Model) -> ir.Model:
    """`model` where all names are distinct, else a copy in which they are."""
    if all(value.name == name for value, name in distinct_names(model).items() if value.name):
        return model
    renamed = model.clone()
    for value, name in distinct_names(renamed).items():
        if not value.name or value.name == name:
            continue
        if (tensor := value.const_value) is not None:
            # The tensor itself is the original's too, and would be renamed there.
            value.const_value = ir.LazyTensor(partial(_same, tensor), tensor.dtype, ir.Shape(tensor.shape.numpy()), name=name)
        value.name = name
    return renamed


def _same(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return tensor
