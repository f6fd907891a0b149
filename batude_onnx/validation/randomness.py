"""Nodes that draw numbers give way to others that give the same each time: only so can two models be held against each other.

Of two sessions each draws its own, and a seed would not help: onnxruntime adds the node's place in the graph to it. So a normal
distribution gives what lies one deviation above its mean, a uniform one three quarters of its way, in all places, and a coin
falls on its likelier side: whatever stands behind them still has work to do on them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

NORMAL, UNIFORM, COIN = ("RandomNormal", "RandomNormalLike"), ("RandomUniform", "RandomUniformLike"), "Bernoulli"


def draws(model: ir.Model) -> Iterator[ir.Node]:
    """All nodes of `model`, of its bodies and functions that draw numbers, but for those whose numbers each call of a function
    chooses."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for node in graph.all_nodes():
            chosen = any(attribute.is_ref() for attribute in node.attributes.values())
            if node.op_type in (*NORMAL, *UNIFORM, COIN) and node.domain in ("", "ai.onnx") and not chosen:
                yield node


def make_steady(model: ir.Model) -> None:
    """Change such nodes in place."""
    for node in list(draws(model)):
        if node.op_type == COIN:
            _toss(node)
        else:
            _fill(node)


def _toss(node: ir.Node) -> None:
    kind = node.attributes.get_int("dtype", None)
    node.attributes.clear()
    if kind is None:
        node.op_type = "Round"
        return
    rounded = ir.node("Round", [node.inputs[0]])
    _before(node, rounded)
    node.op_type = "Cast"
    node.attributes["to"] = ir.AttrInt64("to", kind)


def _fill(node: ir.Node) -> None:
    attributes, data = node.attributes, node.inputs[0] if node.inputs else None
    low, high = attributes.get_float("low", 0.0), attributes.get_float("high", 1.0)
    mean, scale = attributes.get_float("mean", 0.0), attributes.get_float("scale", 1.0)
    number = mean + scale if node.op_type in NORMAL else low + 0.75 * (high - low)
    declared = ir.DataType.FLOAT if data is None or data.dtype is None else data.dtype
    dtype = ir.DataType(attributes.get_int("dtype", declared.value))
    sizes = () if data is not None else tuple(attributes.get_ints("shape", ()))
    attributes.clear()
    values = np.full((1,) if data is not None else sizes, number).astype(dtype.numpy())
    attributes["value"] = ir.AttrTensor("value", ir.Tensor(values, dtype))
    if data is None:
        node.op_type = "Constant"
        return
    _before(node, ir.node("Shape", [data]))
    node.op_type = "ConstantOfShape"


def _before(node: ir.Node, other: ir.Node) -> None:
    """`other` in front of `node`, which reads what it gives."""
    assert node.graph is not None
    # A name of its own: one that onnx-ir would take may stand in a graph around this one.
    other.outputs[0].name = f"{node.outputs[0].name}@steady"
    node.graph.insert_before(node, other)
    node.replace_input_with(0, other.outputs[0])
