"""Layers that are left as they are, each with its reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from batude_onnx.layers import count, find_sites, infer_shapes
from batude_onnx.pipeline import compress
from batude_onnx.proving import survey
from batude_onnx.records import Cost
from tests.layer_models import LAYERS, Array, Layer, attention, one_node, only, read, sites_of, values
from tests.loading_models import FLOAT, model_of
from tests.pipelines import settings_for


def depthwise() -> onnx.ModelProto:
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=8, pads=[1, 1, 1, 1])
    return one_node(node, (2, 8, 9, 8), (2, 8, 9, 8), {"w": values(8, 1, 3, 3)})


def quantized(stored: bool) -> onnx.ModelProto:
    """A Conv whose weight comes from int8, by DequantizeLinear; or (not `stored`) a MatMul."""
    eight = np.arange(6 * 4 * 9).astype(np.int8)
    held = {"q": eight.reshape(6, 4, 3, 3) if stored else eight[:48].reshape(8, 6), "scale": np.array(0.1, np.float32)}
    nodes = [helper.make_node("DequantizeLinear", ["q", "scale"], ["w"])]
    if stored:
        return one_node([*nodes, helper.make_node("Conv", ["x", "w"], ["y"])], (2, 4, 9, 8), (2, 6, 7, 6), held)
    return one_node([*nodes, helper.make_node("MatMul", ["x", "w"], ["y"])], (2, 8), (2, 6), held)


def integer_matmul() -> onnx.ModelProto:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return one_node(node, (2, 8), (2, 6), {"w": np.ones((8, 6), np.int32)}, kind=TensorProto.INT32)


def gemm(bias: tuple[int, ...] = (6,), x: tuple[int, ...] = (8, 8), **attributes: Any) -> onnx.ModelProto:
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], **attributes)
    model = model_of(
        [node],
        [helper.make_tensor_value_info("x", FLOAT, x)],
        [helper.make_tensor_value_info("y", FLOAT, [8, 6])],
        {"w": values(8, 6), "b": values(*bias)},
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def left_constant() -> onnx.ModelProto:
    return one_node(helper.make_node("MatMul", ["w", "x"], ["y"]), (2, 8, 5), (2, 6, 5), {"w": values(6, 8)})


def batched_constant() -> onnx.ModelProto:
    return one_node(helper.make_node("MatMul", ["x", "w"], ["y"]), (2, 3, 5, 8), (2, 3, 5, 6), {"w": values(3, 8, 6)})


def fed_weight() -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in (("x", (2, 8)), ("w", (8, 6)))]
    return model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], inputs, [helper.make_tensor_value_info("y", FLOAT, [2, 6])])


def computed_bias() -> onnx.ModelProto:
    nodes = [helper.make_node("Neg", ["n"], ["b"]), helper.make_node("Conv", ["x", "w", "b"], ["y"])]
    return one_node(nodes, (2, 4, 9, 8), (2, 6, 7, 6), {"w": values(6, 4, 3, 3), "n": values(6)})


def shared(place: str = "initializer") -> onnx.ModelProto:
    """Two convolutions, one after the other, that read one weight."""
    identity = [] if place == "initializer" else [helper.make_node("Identity", ["w"], ["v"])]
    second = "w" if place == "initializer" else "v"
    nodes = [
        *identity,
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", second], ["y"], pads=[1, 1, 1, 1]),
    ]
    return one_node(nodes, (2, 4, 9, 8), (2, 4, 9, 8), {"w": values(4, 4, 3, 3)})


def turned() -> onnx.ModelProto:
    """int8 weights, one scale for each output channel, (C, S, ...) in the file."""
    held: dict[str, Array] = {
        "q": np.arange(6 * 4 * 9).reshape(4, 6, 3, 3).astype(np.int8),
        "scale": np.full(6, 0.1, np.float32),
        "zero": np.zeros(6, np.int8),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], axis=1),
        helper.make_node("Transpose", ["d"], ["w"], perm=[1, 0, 2, 3]),
        helper.make_node("Conv", ["x", "w"], ["y"]),
    ]
    return one_node(nodes, (2, 4, 9, 8), (2, 6, 7, 6), held)


def fake() -> onnx.ModelProto:
    """As quantization-aware training leaves it: a float weight that is rounded in every run."""
    nodes = [
        helper.make_node("QuantizeLinear", ["f", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["w"]),
        helper.make_node("Conv", ["x", "w"], ["y"]),
    ]
    held = {"f": values(6, 4, 3, 3), "scale": np.array(0.1, np.float32), "zero": np.array(0, np.int8)}
    return one_node(nodes, (2, 4, 9, 8), (2, 6, 7, 6), held)


def cast_integers() -> onnx.ModelProto:
    nodes = [helper.make_node("Cast", ["q"], ["w"], to=FLOAT), helper.make_node("Conv", ["x", "w"], ["y"])]
    return one_node(nodes, (2, 4, 9, 8), (2, 6, 7, 6), {"q": np.arange(216).reshape(6, 4, 3, 3).astype(np.int8)})


def bfloat() -> onnx.ModelProto:
    nodes = [helper.make_node("Cast", ["f"], ["w"], to=TensorProto.BFLOAT16), helper.make_node("Gemm", ["x", "w"], ["y"])]
    return one_node(nodes, (2, 8), (2, 6), {"f": values(8, 6)}, kind=TensorProto.BFLOAT16)


def bfloat_cast() -> onnx.ModelProto:
    proto = one_node(
        [helper.make_node("Cast", ["b"], ["w"], to=FLOAT), helper.make_node("Conv", ["x", "w"], ["y"])],
        (2, 4, 9, 8), (2, 6, 7, 6), {"b": values(6, 4, 3, 3)},
    )  # fmt: skip
    proto.graph.initializer[0].CopyFrom(helper.make_tensor("b", TensorProto.BFLOAT16, [6, 4, 3, 3], values(6, 4, 3, 3).ravel()))
    return proto


def sized() -> onnx.ModelProto:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], output_shape=[10, 8])
    return one_node(node, (2, 8, 5, 4), (2, 6, 10, 8), {"w": values(8, 6, 3, 3)})


ROUNDED = ", and factors rounded once more would not compute the same: compress the float model and quantize the result"

REASONS: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "weight dequantized": (lambda: quantized(True), f"its weight is stored as INT8 (behind DequantizeLinear){ROUNDED}"),
    "factor dequantized": (lambda: quantized(False), f"its right factor is stored as INT8 (behind DequantizeLinear){ROUNDED}"),
    "dequantized and turned": (turned, f"its weight is stored as INT8 (behind DequantizeLinear){ROUNDED}"),
    "rounded for training": (fake, f"its weight is rounded on the way to it (behind DequantizeLinear){ROUNDED}"),
    "integers cast": (cast_integers, "its weight is stored as INT8, not as floating point"),
    "read as bfloat16": (bfloat, "its weight is read as BFLOAT16, not as floating point that can be factored"),
    "bfloat16 cast": (
        bfloat_cast,
        "its weight is stored as BFLOAT16, and factors rounded to its 8 bits once more are too far off to be proved: compress "
        "the model in single precision and round the result",
    ),
    "integers": (integer_matmul, "its weight is stored as INT32, not as floating point"),
    "transA": (lambda: gemm(transA=1), "Gemm with transA = 1"),
    "alpha": (lambda: gemm(alpha=0.5), "Gemm with alpha or beta other than 1"),
    "beta": (lambda: gemm(beta=2.0), "Gemm with alpha or beta other than 1"),
    "one bias for all": (lambda: gemm(bias=(1,)), "its bias is not one value for each output"),
    "left constant": (left_constant, "its constant factor is the left one"),
    "both computed": (attention, "its right factor is computed in the graph (by Transpose), not stored"),
    "batched constant": (batched_constant, "its constant factor has 3 dimensions, not 2"),
    "weight fed": (fed_weight, "its right factor is fed as an input, not stored"),
    "output_shape": (sized, "a transposed convolution with output_shape, by which its pads depend on the size of its input"),
    "bias computed": (computed_bias, "its bias is computed in the graph (by Neg), not stored"),
}


@pytest.mark.parametrize("name", REASONS)
def test_a_layer_left_alone_says_why(name: str) -> None:
    make, reason = REASONS[name]
    site = only(make())
    assert (site.method, site.reason, site.weight) == (None, reason, "")


@pytest.mark.parametrize("place", ["initializer", "Identity"])
def test_nodes_that_share_a_weight_are_one_layer_and_count_once(place: str) -> None:
    model = read(shared(place))
    shapes = infer_shapes(model)
    (site,) = find_sites(model, shapes)
    assert (site.keys, site.reason, site.positions) == (("a", "y"), None, 144)
    assert count(model, shapes) == Cost(4 * 4 * 9, 2 * 4 * 4 * 9 * 72)


def test_a_weight_that_is_also_an_output_counts_as_shared() -> None:
    model = LAYERS["matmul"].model()
    model.graph.output.append(helper.make_tensor_value_info("w", FLOAT, [8, 6]))
    assert only(model).reason == "its weight w is shared by 2 nodes"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (depthwise, "depthwise: every channel has a weight of its own, there is nothing to share"),
        (LAYERS["conv2d"].model, None),
        (Layer("Conv", (1, 2, 5, 5), (2, 2, 1, 1), (1, 2, 5, 5)).model, "would not get smaller: 4 weights at rank 1, 4 now"),
    ],
)
def test_a_method_is_assigned_or_refused_with_a_reason(make: Any, reason: str | None) -> None:
    (site,) = survey(read(make())).sites
    assert site.reason == reason
    assert (site.method is None) == (reason is not None)


def test_a_weight_that_an_inner_graph_reads_too_is_shared() -> None:
    branches = {
        name: helper.make_graph(
            [helper.make_node(op, ["w"], [name])], name, [], [helper.make_tensor_value_info(name, FLOAT, None)]
        )
        for name, op in (("then", "Neg"), ("else", "Abs"))
    }
    model = model_of(
        [
            helper.make_node("MatMul", ["x", "w"], ["y"]),
            helper.make_node("If", ["flag"], ["z"], then_branch=branches["then"], else_branch=branches["else"]),
        ],
        [helper.make_tensor_value_info("x", FLOAT, [2, 8]), helper.make_tensor_value_info("flag", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in (("y", [2, 6]), ("z", [8, 6]))],
        {"w": values(8, 6)},
    )
    assert only(model).reason == "its weight w is shared by 3 nodes"


def test_ops_of_other_domains_are_no_layers() -> None:
    model = LAYERS["gemm"].model()
    model.graph.node[0].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    assert sites_of(model) == {}


def of_domain(op: str, inputs: list[str], held: dict[str, Any], **attributes: Any) -> onnx.ModelProto:
    """x (2, 4, 9, 8) -> a node of onnxruntime's own -> y, with a Relu behind it that says the shape."""
    nodes = [helper.make_node(op, inputs, ["f"], domain="com.microsoft", **attributes), helper.make_node("Relu", ["f"], ["y"])]
    x = helper.make_tensor_value_info("x", FLOAT, ["N", 4, 9, 8])
    model = model_of(nodes, [x], [helper.make_tensor_value_info("y", FLOAT, ["N", *[None] * 3])], held)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def integer_conv() -> onnx.ModelProto:
    node = helper.make_node("ConvInteger", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    return model_of(
        [node],
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["N", 4, 9, 8])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, ["N", 6, 9, 8])],
        {"w": np.ones((6, 4, 3, 3), np.uint8)},
    )


def quantized_conv() -> onnx.ModelProto:
    scale, zero, held = np.array(0.1, np.float32), np.array(3, np.uint8), np.ones((6, 4, 3, 3), np.uint8)
    node = helper.make_node("QLinearConv", ["x", "s", "z", "w", "s", "z", "s", "z"], ["y"])
    return model_of(
        [node],
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["N", 4, 9, 8])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, ["N", 6, 7, 6])],
        {"w": held, "s": scale, "z": zero},
    )


def fused_conv() -> onnx.ModelProto:
    return of_domain("FusedConv", ["x", "w", "b"], {"w": values(6, 4, 3, 3), "b": values(6)}, activation="Relu", strides=[2, 2])


def fused_matmul() -> onnx.ModelProto:
    return of_domain("FusedMatMul", ["x", "w"], {"w": values(8, 6)}, alpha=0.5)


# shape, MACs of one sample, parameters, and how the reason begins and ends
FOREIGN: dict[str, tuple[Callable[[], onnx.ModelProto], tuple[int, ...], int, int, str, str]] = {
    "FusedConv": (
        fused_conv, (6, 4, 3, 3), 216 * 4 * 3, 222, "FusedConv of com.microsoft is kept: ", "give the model as it was before",
    ),
    "FusedMatMul": (
        fused_matmul, (6, 8), 48 * 4 * 9, 48, "FusedMatMul of com.microsoft is kept: ", "give the model as it was before",
    ),
    "ConvInteger": (integer_conv, (6, 4, 3, 3), 216 * 72, 0, "ConvInteger is kept: ", "and quantize the result"),
    "QLinearConv": (quantized_conv, (6, 4, 3, 3), 216 * 42, 1, "QLinearConv is kept: ", "and quantize the result"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_nodes_that_only_onnxruntime_or_integers_have_are_counted_and_kept_with_the_reason(name: str) -> None:
    make, shape, macs, params, begins, ends = FOREIGN[name]
    seen = survey(read(make()))
    (site,) = seen.sites
    assert site.reason is not None
    assert site.reason.startswith(begins)
    assert site.reason.endswith(ends)
    assert (site.method, site.op, site.shape, site.macs) == (None, name, shape, macs)
    assert seen.cost == Cost(params, macs)


def test_a_fused_node_is_still_there_when_the_rest_is_compressed(tmp_path: Path) -> None:
    proto = fused_conv()
    proto.graph.node[1].CopyFrom(helper.make_node("Conv", ["f", "v"], ["y"]))
    proto.graph.initializer.append(numpy_helper.from_array(values(12, 6, 3, 3, seed=4), "v"))
    path = tmp_path / "fused.onnx"
    onnx.save(proto, path)
    settings = settings_for(path, tmp_path, "1.5x", simplify=False)
    verdict = compress(settings)
    assert list(verdict.ranks) == ["y"]
    assert verdict.whole["f"].startswith("FusedConv of com.microsoft is kept")
    assert onnx.load(settings.output).graph.node[0] == proto.graph.node[0]
