"""Layers and networks of a few hundred weights, as ONNX models and as sites, for the tests of compression."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import TensorProto, helper
from torch import Tensor

from batude_onnx.budget import Terms
from batude_onnx.decomposition import Metric, assign
from batude_onnx.layers import find_sites, infer_shapes
from batude_onnx.records import Budget, Cost, FactorChain, FloatArray, Geometry, Limit, Site
from batude_onnx.rewriting import rewrite
from tests.importer_graphs import Array, floats, reference
from tests.loading_models import model_of


def site(
    key: str, shape: tuple[int, ...], *, groups: int = 1, positions: int = 1, input_positions: int = 1, bias: str | None = None
) -> Site:
    """A layer that exists in no file, with its method or its reason."""
    axes = len(shape) - 2
    geometry = Geometry((1,) * axes, (0,) * 2 * axes, (1,) * axes, groups)
    op = "Conv" if axes else "Gemm"
    halfway = input_positions
    made = Site(key, key, op, f"{key}.w", bias, shape, geometry, positions, input_positions, None, halfway_positions=halfway)
    return assign(made)


def terms(limit: float, whole: Cost, metric: str = "params", **more: Any) -> Terms:
    """One limit on a network that costs `whole`."""
    return Terms(Budget((Limit(metric, limit, str(limit)),)), whole, **more)


def conv_model(weight: FloatArray, bias: FloatArray | None, size: tuple[int, ...], **attributes: Any) -> onnx.ModelProto:
    """x (N, C, *size) -> Conv -> y; weight "w", bias "b"."""
    channels = weight.shape[1] * attributes.get("group", 1)
    held = {"w": weight} if bias is None else {"w": weight, "b": bias}
    return model_of(
        [helper.make_node("Conv", ["x", *held], ["y"], **attributes)],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", channels, *size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", weight.shape[0], *[None] * len(size)])],
        held,
    )


def transposed_model(weight: FloatArray, bias: FloatArray, size: tuple[int, ...], **attributes: Any) -> onnx.ModelProto:
    """x (N, C, *size) -> ConvTranspose -> y; weight "w" as it is stored, (C, S/g, *kernel), bias "b"."""
    return model_of(
        [helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], **attributes)],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", weight.shape[0], *size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", len(bias), *[None] * len(size)])],
        {"w": weight, "b": bias},
    )


def linear_model(op: str, stored: FloatArray, bias: FloatArray | None = None, **attributes: Any) -> onnx.ModelProto:
    """x (N, C) -> Gemm or MatMul -> y (N, S); `stored` is (C, S), or (S, C) with transB = 1."""
    into, out = stored.shape[::-1] if attributes.get("transB") else stored.shape
    held = {"w": stored} if bias is None else {"w": stored, "b": bias}
    return model_of(
        [helper.make_node(op, ["x", *held], ["y"], **attributes)],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", into])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", out])],
        held,
    )


def network(seed: int = 0, *, classes: int = 5) -> onnx.ModelProto:
    """x (N, 3, 8, 8) -> logits y (N, classes), through every kind of layer that is compressed.

    c1: 3x3, 3 to 8. c2: 3x3, two groups, stride 2, asymmetric pads, 8 to 12. c3: 1x1, 12 to 16, no bias. c4: 3 wide, 1-D,
    16 to 10. y: Gemm with transB.
    """
    rng = np.random.default_rng(seed)
    shapes = {"w1": (8, 3, 3, 3), "w2": (12, 4, 3, 3), "w3": (16, 12, 1, 1), "w4": (10, 16, 3), "w5": (classes, 10)}
    held: dict[str, Array] = {
        name: (rng.normal(size=shape) * (2 / np.prod(shape[1:])) ** 0.5).astype(np.float32) for name, shape in shapes.items()
    }
    held |= {f"b{k}": (0.2 * rng.normal(size=len(held[f"w{k}"]))).astype(np.float32) for k in (1, 2, 4, 5)}
    held["row"] = np.array([0, 16, -1], dtype=np.int64)
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], pads=[0, 1, 1, 0], strides=[2, 2], group=2),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Conv", ["r2", "w3"], ["c3"]),
        helper.make_node("Relu", ["c3"], ["r3"]),
        helper.make_node("Reshape", ["r3", "row"], ["l"]),
        helper.make_node("Conv", ["l", "w4", "b4"], ["c4"], auto_pad="SAME_UPPER"),
        helper.make_node("Relu", ["c4"], ["r4"]),
        helper.make_node("ReduceMean", ["r4", "axis"], ["m"], keepdims=0),
        helper.make_node("Gemm", ["m", "w5", "b5"], ["y"], transB=1),
    ]
    held["axis"] = np.array([2], dtype=np.int64)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])
    return model_of(nodes, [x], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", classes])], held)


def a_layer_without_gradient() -> onnx.ModelProto:
    """Two convolutions of one input; what u gives only an ArgMax reads."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"]),
        helper.make_node("Conv", ["x", "u"], ["s"]),
        helper.make_node("ArgMax", ["s"], ["z"], axis=1),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 5, 5])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 3, 3])
    z = helper.make_tensor_value_info("z", TensorProto.INT64, ["N", 1, 3, 3])
    return model_of(nodes, [x], [y, z], {"w": floats(4, 4, 3, 3), "u": floats(4, 4, 3, 3, seed=1)})


def sites_of(model: onnx.ModelProto) -> list[Site]:
    """All layers, each with its method or its reason."""
    graph = ir.from_proto(model)
    return [assign(found) for found in find_sites(graph, infer_shapes(graph))]


def rewritten(model: onnx.ModelProto, chains: Mapping[str, FactorChain], **changed: Any) -> onnx.ModelProto:
    """The model with chains in the place of layers; `changed` as in `rewrite`."""
    return ir.to_proto(rewrite(ir.from_proto(model), chains, **changed))


def output(model: onnx.ModelProto, x: Array) -> Array:
    """What onnxruntime gives for the model's single input and output."""
    return reference(model, {"x": x})[0]


__all__ = ["conv_model", "floats", "linear_model", "network", "output", "rewritten", "site", "sites_of", "transposed_model"]


def a_weight(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.from_numpy(floats(*shape, seed=seed))


def a_moment(groups: int, size: int, seed: int) -> Tensor:
    """Positive definite, with eigenvalues over two decades."""
    rows = torch.from_numpy(floats(groups, size, size, seed=seed)).double()
    return rows @ torch.diag(torch.logspace(-1, 1, size, dtype=torch.float64)) @ rows.mT


def a_metric(shape: tuple[int, ...], groups: int) -> Metric:
    return Metric.of_moments(a_moment(groups, shape[1], 1), a_moment(groups, shape[0] // groups, 2))
