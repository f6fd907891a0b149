"""Weights that reach their layer behind Cast and Transpose: read as the node reads them, stored in the type that they had."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from batude_onnx.layers import count, infer_shapes, nodes_by_key, read_bias, read_weight
from batude_onnx.pipeline import compress, validate
from batude_onnx.proving import survey
from batude_onnx.rewriting import rewrite
from tests.layer_models import Array, one_node, read, values
from tests.loading_models import FLOAT
from tests.pipelines import Listener, check, saved, settings_for
from tests.rewritings import ATOL, RTOL, chains_of, checked, operators, outputs

HALF = TensorProto.FLOAT16
# float16 (eps 1e-3): three factors of values of order 1, each rounded.
HALF_TOLERANCE = 2e-2


def cast(bias: bool = True) -> onnx.ModelProto:
    """A Conv in float32 whose weight, and bias, are stored in float16."""
    held: dict[str, Array] = {"w": values(12, 8, 3, 3, seed=1).astype(np.float16)}
    if bias:
        held["b"] = values(12, seed=2).astype(np.float16)
    nodes = [helper.make_node("Cast", [name], [f"{name}.float"], to=FLOAT) for name in held]
    nodes.append(helper.make_node("Conv", ["x", *(f"{name}.float" for name in held)], ["y"], name="layer"))
    return one_node(nodes, (2, 8, 9, 8), (2, 12, 7, 6), held)


def cast_weight_only() -> onnx.ModelProto:
    proto = cast()
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(values(12, seed=2), "b"))
    proto.graph.node[2].input[2] = "b"
    del proto.graph.node[1]
    return proto


def narrowed() -> onnx.ModelProto:
    """A MatMul in float16 between float32 inputs and outputs, as converters that keep them make it; its weight is float32."""
    nodes = [
        helper.make_node("Cast", ["x"], ["x.half"], to=HALF),
        helper.make_node("Cast", ["w"], ["w.half"], to=HALF),
        helper.make_node("MatMul", ["x.half", "w.half"], ["y.half"], name="layer"),
        helper.make_node("Cast", ["y.half"], ["y"], to=FLOAT),
    ]
    return one_node(nodes, (3, 16), (3, 12), {"w": values(16, 12, seed=1)})


def half_inside() -> onnx.ModelProto:
    """The same with the weight in float16, too."""
    proto = narrowed()
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(values(16, 12, seed=1).astype(np.float16), "w.half"))
    del proto.graph.node[1]
    return proto


def turned(op: str, perm: list[int] | None, **attributes: Any) -> onnx.ModelProto:
    """y = x W' with W as the Transpose makes it of what is stored."""
    stored = (16, 12) if perm == [0, 1] or attributes.get("transB") else (12, 16)
    order: dict[str, Any] = {} if perm is None else {"perm": perm}
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], **order),
        helper.make_node(op, ["x", "t"], ["y"], name="layer", **attributes),
    ]
    return one_node(nodes, (3, 16), (3, 12), {"w": values(*stored, seed=1)})


def channels_last() -> onnx.ModelProto:
    """A kernel stored as (kh, kw, C, S), as TensorFlow has it, turned in two steps and with an Identity between them."""
    nodes = [
        helper.make_node("Transpose", ["w"], ["w1"], perm=[3, 0, 1, 2]),
        helper.make_node("Identity", ["w1"], ["w2"]),
        helper.make_node("Transpose", ["w2"], ["w3"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["x", "w3"], ["y"], name="layer", pads=[1, 1, 1, 1]),
    ]
    return one_node(nodes, (2, 8, 9, 8), (2, 12, 9, 8), {"w": values(3, 3, 8, 12, seed=1)})


def turned_and_cast() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"]),
        helper.make_node("Cast", ["t"], ["c"], to=FLOAT),
        helper.make_node("MatMul", ["x", "c"], ["y"], name="layer"),
    ]
    return one_node(nodes, (3, 16), (3, 12), {"w": values(12, 16, seed=1).astype(np.float16)})


# The model, the type that weights are stored in, and the ops of the rewritten one.
CASES: dict[str, tuple[Callable[[], onnx.ModelProto], int, list[str]]] = {
    "float16 cast": (cast, HALF, ["Cast", "Conv"] * 2 + ["Cast", "Cast", "Conv"]),
    "float16 cast, no bias": (lambda: cast(bias=False), HALF, ["Cast", "Conv"] * 3),
    "float16 cast, bias not": (cast_weight_only, HALF, ["Cast", "Conv"] * 3),
    "float32 narrowed": (narrowed, FLOAT, ["Cast", "Cast", "MatMul", "Cast", "MatMul", "Cast"]),
    "float16 inside": (half_inside, HALF, ["Cast", "MatMul", "MatMul", "Cast"]),
    "MatMul turned": (lambda: turned("MatMul", [1, 0]), FLOAT, ["MatMul", "MatMul"]),
    "MatMul turned by default": (lambda: turned("MatMul", None), FLOAT, ["MatMul", "MatMul"]),
    "MatMul not really turned": (lambda: turned("MatMul", [0, 1]), FLOAT, ["MatMul", "MatMul"]),
    "Gemm turned": (lambda: turned("Gemm", [1, 0]), FLOAT, ["Gemm", "Gemm"]),
    "Gemm turned twice": (lambda: turned("Gemm", [1, 0], transB=1), FLOAT, ["Gemm", "Gemm"]),
    "channels last": (channels_last, FLOAT, ["Conv", "Conv", "Conv"]),
    "turned and cast": (turned_and_cast, HALF, ["Cast", "MatMul", "Cast", "MatMul"]),
}


def feed_of(proto: onnx.ModelProto) -> Array:
    return values(3, *(size.dim_value for size in proto.graph.input[0].type.tensor_type.shape.dim[1:]), seed=3)


def is_half(proto: onnx.ModelProto) -> bool:
    return survey(read(proto)).half


def key_of(proto: onnx.ModelProto) -> str:
    return next(str(node.output[0]) for node in proto.graph.node if node.name == "layer")


@pytest.mark.parametrize("name", CASES)
def test_at_full_rank_the_outputs_are_the_same_and_the_stored_type_stays(name: str) -> None:
    make, kind, expected = CASES[name]
    proto = make()
    onnx.checker.check_model(proto, full_check=True)
    model = read(proto)
    chains = chains_of(model)
    assert list(chains) == [key_of(proto)]
    after = checked(rewrite(model, chains))
    assert operators(after) == expected
    weights = [tensor for tensor in after.graph.initializer if "weight" in tensor.name]
    assert {tensor.data_type for tensor in weights} == {kind}
    before = {tensor.name for tensor in proto.graph.initializer}
    assert not before & {tensor.name for tensor in after.graph.initializer}
    x = feed_of(proto)
    wanted, found = outputs(proto, x=x)["y"], outputs(after, x=x)["y"]
    tolerance = HALF_TOLERANCE if is_half(proto) else ATOL
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)
    assert np.abs(wanted).max() > 0.1


@pytest.mark.parametrize("name", CASES)
def test_the_weight_is_what_the_node_reads_and_counts_once(name: str) -> None:
    proto = CASES[name][0]()
    model = read(proto)
    (site,) = survey(model).compressible
    node = nodes_by_key(model)[site.key]
    weight, bias = read_weight(node), read_bias(node)
    assert weight.dtype == np.float32
    assert weight.shape == site.shape
    stored = numpy_helper.to_array(proto.graph.initializer[0])
    np.testing.assert_array_equal(site.layout.stored(weight), stored.astype(np.float16) if is_half(proto) else stored)
    assert count(model, infer_shapes(model)).params == sum(int(np.prod(t.dims)) for t in proto.graph.initializer)
    if site.kernel == ():
        # The rounding of sums of 16 products in half precision.
        tolerance = HALF_TOLERANCE if is_half(proto) else 1e-5
        np.testing.assert_allclose(outputs(proto, x=feed_of(proto))["y"], feed_of(proto) @ weight.T, rtol=1e-2, atol=tolerance)
    assert (bias is None) == (site.bias is None)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("simplify", [True, False])
def test_a_run_without_data_keeps_the_budget_and_the_type(tmp_path: Path, name: str, simplify: bool) -> None:
    make, kind, _ = CASES[name]
    settings = settings_for(saved(make(), tmp_path), tmp_path, "1.4x", simplify=simplify)
    verdict = compress(settings)
    after = check(verdict, settings)
    assert verdict.ranks
    if not simplify:  # onnxsim computes casts of constants once and for all
        assert {tensor.data_type for tensor in after.graph.initializer if "weight" in tensor.name} == {kind}


def test_new_values_and_new_biases_go_where_they_are_stored() -> None:
    new, moved = values(12, 8, 3, 3, seed=7), values(12, seed=8)
    after = checked(rewrite(read(cast()), {}, weights={"w": new}, biases={"y": moved}))
    held = {tensor.name: tensor for tensor in after.graph.initializer}
    assert {tensor.data_type for tensor in held.values()} == {HALF}
    np.testing.assert_array_equal(numpy_helper.to_array(held["w"]), new.astype(np.float16))
    np.testing.assert_array_equal(numpy_helper.to_array(held["b"]), moved.astype(np.float16))
    # A layer without a bias gets one of the type that it reads.
    after = checked(rewrite(read(cast(bias=False)), {}, biases={"y": moved}))
    np.testing.assert_array_equal(numpy_helper.to_array(after.graph.initializer[1]), moved)


def test_a_bias_that_two_layers_cast_is_copied_in_its_type() -> None:
    proto = cast()
    proto.graph.initializer.append(numpy_helper.from_array(values(12, 8, 3, 3, seed=5), "v"))
    proto.graph.node.append(helper.make_node("Conv", ["x", "v", "b.float"], ["z"]))
    proto.graph.output.append(helper.make_tensor_value_info("z", FLOAT, ["N", 12, 7, 6]))
    after = checked(rewrite(read(proto), {}, biases={"y": values(12, seed=8)}))
    assert operators(after) == ["Cast", "Cast", "Cast", "Conv", "Conv"]
    held = {tensor.name: tensor.data_type for tensor in after.graph.initializer}
    assert held == {"w": HALF, "b": HALF, "v": FLOAT, "y_bias": HALF}
    x = values(2, 8, 9, 8, seed=3)
    difference = (values(12, seed=8) - values(12, seed=2))[:, None, None]
    wanted = outputs(proto, x=x)
    found = outputs(after, x=x)
    np.testing.assert_allclose(found["y"] - wanted["y"], np.broadcast_to(difference, wanted["y"].shape), atol=5e-3)
    np.testing.assert_allclose(found["z"], wanted["z"], rtol=RTOL, atol=ATOL)


def test_a_weight_that_is_turned_for_one_layer_and_not_for_another_is_shared() -> None:
    held = {"w": values(8, 8)}
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"]),
        helper.make_node("MatMul", ["x", "t"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["y"]),
    ]
    sites = survey(read(one_node(nodes, (2, 8), (2, 8), held))).sites
    assert [site.reason for site in sites] == ["its weight w is shared by 2 nodes"] * 2


@pytest.mark.parametrize(("make", "held"), [(cast, "stored as FLOAT16"), (narrowed, "read as FLOAT16")])
def test_they_are_not_trained(tmp_path: Path, make: Callable[[], onnx.ModelProto], held: str) -> None:
    proto = make()
    np.savez(tmp_path / "x.npz", x_train=values(8, *feed_of(proto).shape[1:]))
    listener = Listener()
    compress(settings_for(saved(proto, tmp_path), tmp_path, "1.4x", tmp_path / "x.npz"), listener)
    assert f"nothing can be trained: weight w is {held}, and training needs FLOAT" in listener.said
    assert not listener.phases


def test_a_turned_weight_is_trained(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x_train=values(96, 8, 9, 8))
    settings = settings_for(saved(channels_last(), tmp_path), tmp_path, "2x", tmp_path / "x.npz", epochs=2.0, recipe="batude")
    verdict = compress(settings)
    check(verdict, settings)
    assert verdict.ranks


def scaled(proto: onnx.ModelProto, kind: type) -> onnx.ModelProto:
    """Its weight larger by 0.2 %."""
    held = proto.graph.initializer[0]
    held.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(held) * 1.002).astype(kind), held.name))
    return proto


def test_outputs_of_half_precision_weights_are_compared_as_such(tmp_path: Path) -> None:
    """float32 on the outside; the twin: what float32 weights must not show."""
    first = saved(half_inside(), tmp_path)
    moved = scaled(half_inside(), np.float16)
    assert validate(first, saved(moved, tmp_path, "moved.onnx")).differences[0].within
    single = saved(turned("MatMul", [1, 0]), tmp_path, "single.onnx")
    other = scaled(turned("MatMul", [1, 0]), np.float32)
    assert not validate(single, saved(other, tmp_path, "other.onnx")).differences[0].within
