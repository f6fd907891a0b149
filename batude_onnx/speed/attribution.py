"""Which kernel of the optimised graph does the work of which layer.

onnxruntime fuses what follows a layer into it, changes its memory layout and renames it: a kernel bears the name of a node, or of
a value that a node gave before it was fused. From there the way back to the layer is short.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

from batude_onnx import layers
from batude_onnx.validation import Kernel

# What onnxruntime's passes add to a name.
_ADDED = re.compile(r"^fused |_token_\d+$|_nchwc(_\d+)?$|/\w+Fusion/?$")


def lengths(model: ir.Model, keys: Iterable[str]) -> dict[str, int]:
    """How many layers in a row stand in the place of each layer of another model, by the name of its output; those not here are
    left out. The row begins behind the first value that is an output of such a layer, or of something else."""
    nodes, wanted = layers.nodes_by_key(model), set(keys)
    found = {}
    for key in wanted & nodes.keys():
        length, node = 0, nodes.get(key)
        while node is not None and layers.kind_of(node) is not None:
            length += 1
            data = str(node.inputs[0].name) if node.inputs[0] is not None else ""
            node = None if data in wanted else nodes.get(data)
        if length:
            found[key] = length
    return found


def links(model: ir.Model, keys: Mapping[str, int]) -> dict[str, tuple[str, int]]:
    """The nodes of layers, by their output's name: (key of the layer, place in its chain). `keys`: how long each chain is."""
    nodes, found = layers.nodes_by_key(model), {}
    for key, length in keys.items():
        name = key
        for place in reversed(range(length)):
            found[name] = key, place
            data = nodes[name].inputs[0]
            name = "" if data is None else str(data.name)
    return found


def attribute(model: ir.Model, kernels: Sequence[Kernel], keys: Mapping[str, int]) -> dict[str, list[float | None]]:
    """Times in ms of each layer's links, by the layer's key; None for a link that no kernel could be found for."""
    wanted = links(model, keys)
    times: dict[str, list[float | None]] = {key: [None] * length for key, length in keys.items()}
    names: dict[str, ir.Node] = {}
    for node in model.graph:
        names |= {str(value.name): node for value in node.outputs}
    # A node's own name says more than that of a value.
    names |= {node.name: node for node in model.graph if node.name}
    for kernel in kernels:
        if not any(op in kernel.op for op in layers.ops()):
            continue
        for node in _back(_origin(kernel.name, names)):
            key, place = wanted.get(str(node.outputs[0].name), ("", 0))
            if key and times[key][place] is None:
                times[key][place] = kernel.ms
                break
    return times


def _origin(name: str, names: Mapping[str, ir.Node]) -> ir.Node | None:
    """The node whose name, or whose value's, was made into `name`."""
    while name not in names:
        shorter = _ADDED.sub("", name)
        if shorter == name:
            return None
        name = shorter
    return names[name]


def _back(node: ir.Node | None) -> Iterable[ir.Node]:
    """The nearest layers from `node` on against the data's direction."""
    front = [] if node is None else [node]
    while front:
        found = [node for node in front if layers.kind_of(node) is not None]
        if found:
            yield from found
            return
        givers = [value.producer() for node in front for value in node.inputs if value is not None]
        front = [giver for giver in givers if giver is not None]
