"""A model whose layers stand in the main graph, in branches, in a loop within a branch, and in a function."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.layer_models import Array, values
from tests.loading_models import FLOAT

LOCAL = "local"
PADS: dict[str, Any] = {"pads": [1, 1, 1, 1]}


def _constant(name: str, held: Array) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(held, ""))


def _graph(nodes: list[onnx.NodeProto], name: str, outs: list[str], held: dict[str, Array] | None = None) -> onnx.GraphProto:
    graph = helper.make_graph(
        nodes, name, [], [helper.make_tensor_value_info(out, FLOAT, None) for out in outs],
        [numpy_helper.from_array(array, key) for key, array in (held or {}).items()], doc_string=f"the {name}",
    )  # fmt: skip
    for key in ("z", "a"):  # in an order that onnx-ir does not keep
        graph.metadata_props.add(key=key, value=name)
    return graph


def _loop() -> onnx.NodeProto:
    """Three times: state -> Conv with an outer weight -> Tanh."""
    body = _graph(
        [
            helper.make_node("Conv", ["state", "w_loop"], ["l"], name="in the loop", **PADS),
            helper.make_node("Tanh", ["l"], ["next"]),
            helper.make_node("Identity", ["go"], ["goes"]),
        ],
        "body", [],
    )  # fmt: skip
    body.input.extend([
        helper.make_tensor_value_info("step", TensorProto.INT64, []), helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        helper.make_tensor_value_info("state", FLOAT, ["N", 8, 6, 6]),
    ])  # fmt: skip
    body.output.extend([helper.make_tensor_value_info("goes", TensorProto.BOOL, []),
                        helper.make_tensor_value_info("next", FLOAT, ["N", 8, 6, 6])])  # fmt: skip
    return helper.make_node("Loop", ["three", "", "t"], ["end"], name="repeat", body=body)


def _function() -> onnx.FunctionProto:
    """y = Conv(Relu(x)), strides given by the call for a second layer."""
    strided = helper.make_node("Conv", ["c", "w"], ["y"], name="strided", **PADS)
    strided.attribute.add(name="strides", type=onnx.AttributeProto.INTS, ref_attr_name="strides")
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], doc_string="first"),
        _constant("k", values(8, 8, 3, 3, seed=5)),
        helper.make_node("Conv", ["r", "k"], ["c"], name="in the function", **PADS),
        _constant("w", values(8, 8, 3, 3, seed=6)),
        strided,
    ]
    made = helper.make_function(LOCAL, "Block", ["x"], ["y"], nodes, [helper.make_opsetid("", 17)], ["strides"])
    for key in ("z", "a"):
        made.metadata_props.add(key=key, value="of the function")
    return made


def nested() -> onnx.ModelProto:
    """x (N, 4, 6, 6), flag -> Conv a -> If -> Block twice -> y (N, 8, 3, 3).

    then: Conv c (weight in the branch) -> Conv d; else: Conv c (an initializer of the branch) -> Loop of Conv l. Both branches
    have a further Conv of one weight.
    """
    then = _graph(
        [
            _constant("k", values(8, 8, 3, 3, seed=2)),
            helper.make_node("Conv", ["a", "k"], ["c"], name="then", doc_string="of then", **PADS),
            helper.make_node("Conv", ["c", "shared"], ["d"], **PADS),
        ],
        "then", ["d"],
    )  # fmt: skip
    other = _graph(
        [
            helper.make_node("Conv", ["a", "k", "b"], ["c"], name="else", **PADS),
            helper.make_node("Conv", ["c", "shared"], ["t"], **PADS),
            _loop(),
            helper.make_node("Dropout", ["end"], ["d", ""]),
        ],
        "else", ["d"], {"k": values(8, 8, 3, 3, seed=3), "b": values(8)},
    )  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w_a"], ["a"], name="first", **PADS),
        helper.make_node("If", ["flag"], ["i"], name="branch", doc_string="either", then_branch=then, else_branch=other),
        helper.make_node("Block", ["i"], ["f"], domain=LOCAL, strides=[1, 1]),
        helper.make_node("Block", ["f"], ["y"], domain=LOCAL, strides=[2, 2]),
    ]
    held = {"w_a": values(8, 4, 3, 3), "w_loop": values(8, 8, 3, 3, seed=4), "shared": values(8, 8, 3, 3, seed=7)}
    held |= {"three": np.array(3)}
    graph = helper.make_graph(
        nodes, "nested",
        [helper.make_tensor_value_info("x", FLOAT, ["N", 4, 6, 6]), helper.make_tensor_value_info("flag", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", FLOAT, ["N", 8, 3, 3])],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(LOCAL, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=[_function()])
