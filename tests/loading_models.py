"""Small real ONNX models for the tests of loading, validation and simplify."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Conv weight w (8, 3, 3, 3) and the four vectors of a BatchNorm over 8 channels."""
    generator = np.random.default_rng(seed)
    values = {
        "w": generator.normal(size=(8, 3, 3, 3)),
        "scale": generator.uniform(0.5, 2.0, 8),
        "shift": generator.normal(size=8),
        "mean": generator.normal(size=8),
        "var": generator.uniform(0.5, 2.0, 8),
    }
    return {name: value.astype(np.float32) for name, value in values.items()}


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: dict[str, np.ndarray] | None = None,
    *,
    opset: int = 18,
    ir_version: int = 10,
) -> onnx.ModelProto:
    held = [numpy_helper.from_array(value, name) for name, value in (initializers or {}).items()]
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def conv_bn(
    batch: int | str = "N", *, height: int | str = 8, width: int | str = 8, opset: int = 18, ir_version: int = 10, seed: int = 0
) -> onnx.ModelProto:
    """x (batch, 3, height, width) -> Conv 3x3 -> BatchNorm -> Relu -> y (batch, 8, height, width), fully annotated."""
    values = weights(seed)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1], doc_string="the conv"),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["n"], name="norm"),
        helper.make_node("Relu", ["n"], ["y"], name="relu", doc_string="the relu"),
    ]
    x = helper.make_tensor_value_info("x", FLOAT, [batch, 3, height, width], doc_string="the image")
    y = helper.make_tensor_value_info("y", FLOAT, [batch, 8, height, width], doc_string="the features")
    inputs = [x]
    if ir_version < 4:  # then every initializer must be an input too
        inputs += [helper.make_tensor_value_info(name, FLOAT, value.shape) for name, value in values.items()]
    model = model_of(nodes, inputs, [y], values, opset=opset, ir_version=ir_version)
    model.producer_name, model.producer_version = "maker", "3.1"
    model.domain, model.model_version, model.doc_string = "org.example", 7, "a model"
    model.graph.doc_string = "a graph"
    helper.set_model_props(model, {"licence": "none"})
    return model


def add_constant(amount: float, batch: int | str = "N") -> onnx.ModelProto:
    """x (batch, 4) -> y = x + amount."""
    return model_of(
        [helper.make_node("Add", ["x", "c"], ["y"])],
        [helper.make_tensor_value_info("x", FLOAT, [batch, 4])],
        [helper.make_tensor_value_info("y", FLOAT, [batch, 4])],
        {"c": np.array([amount], dtype=np.float32)},
    )
