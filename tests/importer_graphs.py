"""Small ONNX graphs, and what onnxruntime computes for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from onnx import helper, numpy_helper

from batude_onnx.importer import GraphNet, import_graph

Array = npt.NDArray[Any]


def floats(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Normal noise, (shape), float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def whole(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Array],
    outputs: Sequence[str],
    weights: Mapping[str, Array] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    """A model whose inputs have the arrays' types and ranks, and no fixed sizes but those of integer vectors."""
    declared = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), _sizes(array))
        for name, array in inputs.items()
    ]
    results = [helper.make_empty_tensor_value_info(name) for name in outputs]
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "graph", declared, results, stored)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", opset)])


def _sizes(array: Array) -> list[int | None]:
    # onnxruntime takes a vector of sizes whose length it does not know for an empty one.
    return list(array.shape) if array.ndim == 1 and array.dtype == np.int64 else [None] * array.ndim


def imported(model: onnx.ModelProto) -> GraphNet:
    """The network in evaluation mode."""
    return import_graph(ir.from_proto(model)).eval()


def reference(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """onnxruntime's results, unoptimised, so that nothing is hidden by fusions."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results: list[Array] = session.run(None, dict(feeds))
    return results


def results_of(net: GraphNet, feeds: Mapping[str, Array]) -> list[Array]:
    with torch.no_grad():
        results = net(*[torch.from_numpy(np.array(feeds[name])) for name in net.input_names])
    return [result.numpy() for result in results]


def assert_same(model: onnx.ModelProto, feeds: Mapping[str, Array], tolerance: float = 1e-5) -> None:
    """The imported network gives onnxruntime's values, shapes and element types."""
    expected, found = reference(model, feeds), results_of(imported(model), feeds)
    assert len(expected) == len(found)
    for one, other in zip(expected, found, strict=True):
        assert (other.dtype, other.shape) == (one.dtype, one.shape)
        np.testing.assert_allclose(other, one, rtol=tolerance, atol=tolerance)
