"""One-layer ONNX models for the tests of layers and rewriting: every kind of layer, every place where a weight can live."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from batude_onnx.layers import find_sites, infer_shapes
from batude_onnx.records import Site
from tests.loading_models import FLOAT, model_of

Array = np.ndarray[Any, np.dtype[Any]]


def values(*shape: int, seed: int = 0) -> Array:
    """Reproducible float32 values of the size of real weights."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * np.float32(0.3)


@dataclass(frozen=True)
class Layer:
    """x -> op -> y. `shape` is the canonical weight's, `stored` how the file holds it, `out` what onnxruntime must give."""

    op: str
    x: tuple[int, ...]
    shape: tuple[int, ...]
    out: tuple[int, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    bias: bool = True

    @property
    def stored(self) -> tuple[int, ...]:
        if self.op == "ConvTranspose":
            groups = self.attributes.get("group", 1)
            return (self.shape[1] * groups, self.shape[0] // groups, *self.shape[2:])
        as_is = self.op == "Conv" or self.attributes.get("transB")
        return self.shape if as_is else self.shape[::-1]

    def model(self, *, opset: int = 18, ir_version: int = 10) -> onnx.ModelProto:
        """Weight w and bias b in initializers, batch open."""
        held = {"w": values(*self.stored, seed=1)}
        if self.bias:
            held["b"] = values(self.shape[0], seed=2)
        return one_node(
            helper.make_node(self.op, ["x", *held], ["y"], name="layer", **self.attributes),
            self.x, self.out, held, opset=opset, ir_version=ir_version,
        )  # fmt: skip


def one_node(
    node: onnx.NodeProto | Sequence[onnx.NodeProto],
    x: Sequence[int],
    y: Sequence[int | str],
    held: dict[str, Array],
    *,
    kind: int = FLOAT,
    opset: int = 18,
    ir_version: int = 10,
) -> onnx.ModelProto:
    """A checked model around `node`, from x to y, with the first size of x open."""
    nodes = [node] if isinstance(node, onnx.NodeProto) else list(node)
    inputs = [helper.make_tensor_value_info("x", kind, ["N", *x[1:]])]
    if ir_version < 4:
        inputs += [helper.make_tensor_value_info(name, FLOAT, array.shape) for name, array in held.items()]
    model = model_of(
        nodes, inputs, [helper.make_tensor_value_info("y", kind, ["N", *y[1:]])], held, opset=opset, ir_version=ir_version,
    )  # fmt: skip
    onnx.checker.check_model(model, full_check=True)
    return model


LAYERS: dict[str, Layer] = {
    "conv1d": Layer("Conv", (2, 4, 20), (6, 4, 5), (2, 6, 18), {"pads": [1, 1]}),
    "conv2d": Layer("Conv", (2, 4, 9, 8), (6, 4, 3, 3), (2, 6, 9, 8), {"pads": [1, 1, 1, 1]}),
    "conv2d without bias": Layer("Conv", (2, 4, 9, 8), (6, 4, 3, 3), (2, 6, 7, 6), bias=False),
    "conv3d": Layer("Conv", (2, 4, 5, 6, 7), (6, 4, 3, 3, 3), (2, 6, 3, 4, 5)),
    "asymmetric kernel and pads": Layer("Conv", (2, 4, 9, 8), (6, 4, 1, 5), (2, 6, 11, 7), {"pads": [0, 1, 2, 2]}),
    "strided": Layer(
        "Conv", (2, 4, 9, 8), (6, 4, 3, 3), (2, 6, 5, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    ),
    "dilated": Layer("Conv", (2, 4, 9, 8), (6, 4, 3, 3), (2, 6, 5, 2), {"dilations": [2, 3]}),
    "grouped": Layer("Conv", (2, 8, 9, 8), (12, 4, 3, 3), (2, 12, 9, 8), {"group": 2, "pads": [1, 1, 1, 1]}),
    "same upper": Layer("Conv", (2, 4, 9, 8), (6, 4, 3, 3), (2, 6, 5, 4), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same lower": Layer("Conv", (2, 4, 9, 8), (6, 4, 3, 3), (2, 6, 5, 4), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "valid": Layer("Conv", (2, 4, 9, 8), (6, 4, 3, 3), (2, 6, 7, 6), {"auto_pad": "VALID"}),
    "pointwise": Layer("Conv", (2, 8, 5, 4), (6, 8, 1, 1), (2, 6, 5, 4)),
    "pointwise strided and padded": Layer(
        "Conv", (2, 8, 5, 4), (6, 8, 1, 1), (2, 6, 4, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}
    ),
    "pointwise grouped": Layer("Conv", (2, 12, 5, 4), (16, 6, 1, 1), (2, 16, 5, 4), {"group": 2}),
    "gemm": Layer("Gemm", (3, 8), (6, 8), (3, 6)),
    "gemm transB": Layer("Gemm", (3, 8), (6, 8), (3, 6), {"transB": 1}),
    "gemm transB without bias": Layer("Gemm", (3, 8), (6, 8), (3, 6), {"transB": 1}, bias=False),
    "matmul": Layer("MatMul", (3, 8), (6, 8), (3, 6), bias=False),
    "matmul of 3-D": Layer("MatMul", (3, 5, 8), (6, 8), (3, 5, 6), bias=False),
}  # fmt: skip


def held_by(place: str, name: str, array: Array) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """Nodes and initializers by which the value `name` holds `array`, in one of `PLACES`."""
    tensor = numpy_helper.from_array(array, "")
    if place == "initializer":
        return [], {name: array}
    if place == "Constant":
        return [helper.make_node("Constant", [], [name], value=tensor)], {}
    if place == "Identity of initializer":
        return [helper.make_node("Identity", [f"{name}.held"], [name])], {f"{name}.held": array}
    if place == "Identity of Constant":
        constant = helper.make_node("Constant", [], [f"{name}.held"], value=tensor)
        return [constant, helper.make_node("Identity", [f"{name}.held"], [name])], {}
    assert place == "two Identities"
    first = helper.make_node("Identity", [f"{name}.held"], [f"{name}.again"])
    return [first, helper.make_node("Identity", [f"{name}.again"], [name])], {f"{name}.held": array}


# The place, and the name under which the weight "w" then is known.
PLACES = {
    "initializer": "w",
    "Constant": "w",
    "Identity of initializer": "w.held",
    "Identity of Constant": "w.held",
    "two Identities": "w.held",
}


def conv_with_weight_in(place: str, *, bias: bool = True) -> onnx.ModelProto:
    """x (N, 4, 9, 8) -> Conv 3x3 to 6 channels -> y, its weight and bias held as `place` says."""
    nodes, held = held_by(place, "w", values(6, 4, 3, 3, seed=1))
    names = ["w"]
    if bias:
        more, also = held_by(place, "b", values(6, seed=2))
        nodes, held, names = nodes + more, held | also, ["w", "b"]
    nodes.append(helper.make_node("Conv", ["x", *names], ["y"], name="layer"))
    return one_node(nodes, (2, 4, 9, 8), (2, 6, 7, 6), held)


def shortcut() -> onnx.ModelProto:
    """Two convolutions with an option-A shortcut between them, as torch exports it: pads made up in the graph from shapes.

    x (N, 3, 8, 8) -> a (N, 4, 8, 8) -> slice and pad -> p (N, 8, 4, 4) -> y (N, 6, 4, 4).
    """
    ints = {
        "axes": np.array([2, 3]), "starts": np.array([0, 0]), "ends": np.array([2**31, 2**31]), "steps": np.array([2, 2]),
        "given": np.array([0, 0, 0, 0, 2, 2]), "eight": np.array([8]), "minus": np.array([-1]), "two": np.array([-1, 2]),
        "flat": np.array([-1]), "first": np.array([-1]), "last": np.array([-(2**31)]), "zero": np.array([0]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Slice", ["a", "starts", "ends", "axes", "steps"], ["s"]),
        # What torch.nn.functional.pad becomes: missing pads are filled up to twice the rank of x, then reversed in pairs.
        helper.make_node("Shape", ["given"], ["length"]),
        helper.make_node("Sub", ["eight", "length"], ["missing"]),
        helper.make_node("ConstantOfShape", ["missing"], ["fill"], value=helper.make_tensor("v", TensorProto.INT64, [1], [0])),
        helper.make_node("Concat", ["given", "fill"], ["all"], axis=0),
        helper.make_node("Reshape", ["all", "two"], ["pairs"]),
        helper.make_node("Slice", ["pairs", "first", "last", "zero", "minus"], ["turned"]),
        helper.make_node("Transpose", ["turned"], ["columns"], perm=[1, 0]),
        helper.make_node("Reshape", ["columns", "flat"], ["pads"]),
        helper.make_node("Pad", ["s", "pads"], ["p"]),
        helper.make_node("Conv", ["p", "w2"], ["y"], pads=[1, 1, 1, 1]),
    ]
    held = {"w1": values(4, 3, 3, 3), "w2": values(6, 8, 3, 3), **ints}
    return one_node(nodes, (2, 3, 8, 8), ("N", 6, "h", "w"), held)


def attention() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["x", "t"], ["y"]),
    ]
    return one_node(nodes, (2, 3, 5, 7), (2, 3, 5, 5), {})


TRANSPOSED: dict[str, Layer] = {
    "1-D": Layer("ConvTranspose", (2, 8, 9), (6, 8, 4), (2, 6, 18), {"strides": [2], "pads": [1, 1]}),
    "2-D": Layer("ConvTranspose", (2, 8, 5, 4), (6, 8, 4, 4), (2, 6, 10, 8), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "3-D": Layer("ConvTranspose", (2, 4, 3, 2, 3), (6, 4, 2, 3, 2), (2, 6, 4, 4, 4)),
    "without bias": Layer("ConvTranspose", (2, 8, 5, 4), (6, 8, 3, 3), (2, 6, 7, 6), bias=False),
    "no overlap": Layer("ConvTranspose", (2, 8, 5, 4), (6, 8, 2, 2), (2, 6, 10, 8), {"strides": [2, 2]}),
    "holes": Layer("ConvTranspose", (2, 8, 5, 4), (6, 8, 2, 3), (2, 6, 14, 12), {"strides": [3, 3]}),
    "output_padding": Layer(
        "ConvTranspose", (2, 8, 5, 4), (6, 8, 3, 3), (2, 6, 10, 7),
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 0]},
    ),
    "asymmetric pads": Layer(
        "ConvTranspose", (2, 8, 5, 4), (6, 8, 3, 4), (2, 6, 10, 8), {"strides": [2, 2], "pads": [1, 0, 0, 2]}
    ),
    "dilated": Layer("ConvTranspose", (2, 8, 5, 4), (6, 8, 3, 3), (2, 6, 9, 10), {"dilations": [2, 3]}),
    "grouped": Layer(
        "ConvTranspose", (2, 8, 5, 4), (12, 4, 3, 3), (2, 12, 9, 7), {"group": 2, "strides": [2, 2], "pads": [1, 1, 1, 1]}
    ),
    "same upper": Layer(
        "ConvTranspose", (2, 8, 5, 4), (6, 8, 3, 3), (2, 6, 10, 8), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}
    ),
    "same lower": Layer(
        "ConvTranspose", (2, 8, 5, 4), (6, 8, 3, 4), (2, 6, 10, 8), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}
    ),
    "valid": Layer("ConvTranspose", (2, 8, 5, 4), (6, 8, 3, 3), (2, 6, 11, 9), {"auto_pad": "VALID", "strides": [2, 2]}),
    "pointwise": Layer("ConvTranspose", (2, 12, 5, 4), (10, 12, 1, 1), (2, 10, 5, 4)),
    "pointwise strided": Layer("ConvTranspose", (2, 12, 5, 4), (10, 12, 1, 1), (2, 10, 9, 7), {"strides": [2, 2]}),
}  # fmt: skip


def read(proto: onnx.ModelProto) -> ir.Model:
    """As the package holds it."""
    return ir.from_proto(proto)


def sites_of(proto: onnx.ModelProto) -> dict[str, Site]:
    """The layers of a model by key, no method assigned."""
    model = read(proto)
    return {site.key: site for site in find_sites(model, infer_shapes(model))}


def only(proto: onnx.ModelProto) -> Site:
    """The one layer of a model."""
    (site,) = sites_of(proto).values()
    return site
