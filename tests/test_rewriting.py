"""The surgery: what is replaced computes the same. What is not replaced is in test_rewriting_rest.py."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from batude_onnx import decomposition
from batude_onnx.layers import count, find_sites, nodes_by_key, read_bias, read_weight
from batude_onnx.loading import load_model
from batude_onnx.records import FactorChain
from batude_onnx.rewriting import rewrite
from tests.layer_models import LAYERS, PLACES, conv_with_weight_in, one_node, read, values
from tests.loading_models import FLOAT, model_of
from tests.rewritings import ATOL, RTOL, by_name, chains_of, checked, operators, outputs


@pytest.mark.parametrize("name", LAYERS)
def test_at_full_rank_the_rewritten_layer_gives_the_same_outputs(name: str) -> None:
    layer = LAYERS[name]
    model = read(layer.model())
    chains = chains_of(model)
    assert set(chains) == {"y"}
    written = checked(rewrite(model, chains))
    assert operators(written) == [layer.op] * len(chains["y"].layers)
    x = values(*layer.x, seed=3)
    before, after = outputs(layer.model(), x=x)["y"], outputs(written, x=x)["y"]
    np.testing.assert_allclose(after, before, rtol=RTOL, atol=ATOL)
    assert np.abs(before).max() > 0.1  # not the equality of zeros


@pytest.mark.parametrize("name", ["conv2d", "grouped", "pointwise", "gemm", "gemm transB", "matmul"])
def test_below_full_rank_the_outputs_differ_and_are_those_of_the_reconstructed_weight(name: str) -> None:
    """The twin: rank 1 is not the same, so the equality above is not there for any chain."""
    layer = LAYERS[name]
    model = read(layer.model())
    chains = chains_of(model, {"y": (1,) * (2 if prod(layer.shape[2:]) > 1 else 1)})
    written = checked(rewrite(model, chains))
    dense = decomposition.method(chains["y"].method).reconstruct(chains["y"]).float().numpy()
    stored = dense if layer.stored == layer.shape else dense.T
    near = checked(rewrite(model, {}, weights={"w": stored}))
    x = values(*layer.x, seed=3)
    before, after, expected = (outputs(proto, x=x)["y"] for proto in (layer.model(), written, near))
    np.testing.assert_allclose(after, expected, rtol=RTOL, atol=ATOL)
    assert np.abs(after - before).max() > 0.1


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("bias", [True, False])
def test_a_replaced_weight_is_gone_wherever_it_was_stored(place: str, bias: bool) -> None:
    proto = conv_with_weight_in(place, bias=bias)
    model = read(proto)
    written = checked(rewrite(model, chains_of(model)))
    assert operators(written) == ["Conv"] * 3
    names = {f"y_factor{k}_weight" for k in (1, 2, 3)} | ({"y_factor3_bias"} if bias else set())
    assert {tensor.name for tensor in written.graph.initializer} == names
    x = values(2, 4, 9, 8, seed=3)
    np.testing.assert_allclose(outputs(written, x=x)["y"], outputs(proto, x=x)["y"], rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 21])
@pytest.mark.parametrize("name", ["gemm", "gemm transB"])
def test_gemm_of_every_opset(name: str, opset: int) -> None:
    """Before opset 11 a Gemm cannot do without a bias, so the factor without one is a MatMul."""
    proto = LAYERS[name].model(opset=opset, ir_version=8)
    model = read(proto)
    written = checked(rewrite(model, chains_of(model)))
    assert operators(written) == ["MatMul" if opset < 11 else "Gemm", "Gemm"]
    x = values(3, 8, seed=3)
    np.testing.assert_allclose(outputs(written, x=x)["y"], outputs(proto, x=x)["y"], rtol=RTOL, atol=ATOL)
    chain = chains_of(model)["y"]
    assert count(rewrite(model, {"y": chain}), {}).params == chain.weights + 6


def test_names_come_from_the_replaced_output() -> None:
    model = read(LAYERS["conv2d"].model())
    written = checked(rewrite(model, chains_of(model)))
    assert [node.name for node in written.graph.node] == [f"y_factor{k}_node" for k in (1, 2, 3)]
    assert [list(node.output) for node in written.graph.node] == [["y_factor1"], ["y_factor2"], ["y"]]


def all_names(graph: onnx.GraphProto) -> tuple[list[str], list[str]]:
    """Names of nodes, and of everything that a value can be."""
    held = [tensor.name for tensor in graph.initializer] + [name for node in graph.node for name in node.output]
    fed = [value.name for value in graph.input if value.name not in held]
    return [node.name for node in graph.node], held + fed


def test_rewriting_what_was_rewritten_makes_no_name_twice() -> None:
    proto = LAYERS["conv2d"].model()
    model = read(proto)
    once = rewrite(model, chains_of(model, {"y": (5, 4)}))
    twice = rewrite(once, chains_of(once))
    again = rewrite(twice, chains_of(twice, {site.key: (2,) for site in find_sites(twice, {}) if site.key == "y"}))
    for written in map(checked, (once, twice, again)):
        for names in all_names(written.graph):
            assert len(set(names)) == len(names)
    x = values(2, 4, 9, 8, seed=3)
    np.testing.assert_allclose(outputs(checked(twice), x=x)["y"], outputs(checked(once), x=x)["y"], rtol=RTOL, atol=ATOL)


def test_names_that_are_taken_are_left_alone() -> None:
    """By a node, an input, an initializer, a value, and inside of another graph."""
    inside = {
        name: helper.make_graph(
            [helper.make_node("Neg", ["y_factor1"], [f"{name}_y_factor2" if name == "else" else "y_factor2_weight"])], name, [],
            [helper.make_tensor_value_info(f"{name}_y_factor2" if name == "else" else "y_factor2_weight", FLOAT, ["m", "n"])],
        )
        for name in ("then", "else")
    }  # fmt: skip
    proto = model_of(
        [
            helper.make_node("Gemm", ["x", "w"], ["y"], name="layer"),
            helper.make_node("Relu", ["y"], ["y_factor2"], name="y_factor1_node"),
            helper.make_node("Mul", ["y_factor2", "y_factor1_weight"], ["z"], name="y_factor2_node"),
            helper.make_node("If", ["flag"], ["i"], then_branch=inside["then"], else_branch=inside["else"]),
        ],
        [
            helper.make_tensor_value_info("x", FLOAT, [2, 8]),
            helper.make_tensor_value_info("y_factor1", FLOAT, [1, 2]),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("z", FLOAT, [2, 6]), helper.make_tensor_value_info("i", FLOAT, ["m", "n"])],
        {"w": values(8, 6), "y_factor1_weight": values(6)},
    )
    onnx.checker.check_model(proto, full_check=True)
    model = read(proto)
    written = checked(rewrite(model, chains_of(model)))
    assert [node.name for node in written.graph.node[:2]] == ["y_factor1_node_1", "y_factor2_node_1"]
    assert list(written.graph.node[0].input) == ["x", "y_factor1_weight_1"]
    assert list(written.graph.node[0].output) == ["y_factor1_1"]
    assert list(written.graph.node[1].input) == ["y_factor1_1", "y_factor2_weight_1"]
    feeds = {"x": values(2, 8, seed=3), "y_factor1": values(1, 2), "flag": np.array(True)}
    before, after = outputs(proto, **feeds), outputs(written, **feeds)
    for name in ("z", "i"):
        np.testing.assert_allclose(after[name], before[name], rtol=RTOL, atol=ATOL)


def test_a_weight_that_something_else_reads_stays() -> None:
    """The bias is added again further on."""
    held = {"w": values(6, 4, 3, 3), "b": values(6)}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"]),
        helper.make_node("Transpose", ["c"], ["t"], perm=[0, 2, 3, 1]),
        helper.make_node("Add", ["t", "b"], ["y"]),
    ]
    proto = one_node(nodes, (2, 4, 9, 8), (2, 7, 6, 6), held)
    model = read(proto)
    written = checked(rewrite(model, chains_of(model)))
    assert "b" in by_name(written.graph.initializer)
    assert "w" not in by_name(written.graph.initializer)
    x = values(2, 4, 9, 8, seed=3)
    np.testing.assert_allclose(outputs(written, x=x)["y"], outputs(proto, x=x)["y"], rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("ir_version", [3, 10])
def test_weights_that_are_listed_as_inputs(ir_version: int) -> None:
    """Before IR version 4 every initializer is an input too, afterwards it may be."""
    proto = LAYERS["conv2d"].model(opset=8, ir_version=ir_version)
    if ir_version > 3:
        proto.graph.input.extend(helper.make_tensor_value_info(t.name, FLOAT, t.dims) for t in proto.graph.initializer)
    assert [value.name for value in proto.graph.input] == ["x", "w", "b"]
    model = read(proto)
    written = checked(rewrite(model, chains_of(model)))
    weights = [tensor.name for tensor in written.graph.initializer]
    assert len(weights) == 4
    assert [value.name for value in written.graph.input] == ["x", *(weights if ir_version == 3 else [])]
    x = values(2, 4, 9, 8, seed=3)
    np.testing.assert_allclose(outputs(written, x=x)["y"], outputs(proto, x=x)["y"], rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("place", PLACES)
def test_new_values_go_where_the_weight_is_stored(place: str) -> None:
    new = {PLACES[place]: values(6, 4, 3, 3, seed=7), PLACES[place].replace("w", "b"): values(6, seed=8)}
    before = conv_with_weight_in(place)
    written = rewrite(read(before), {}, weights=new)
    assert operators(checked(written)) == operators(before)
    node = nodes_by_key(written)["y"]
    np.testing.assert_array_equal(read_weight(node), values(6, 4, 3, 3, seed=7))
    np.testing.assert_array_equal(read_bias(node), values(6, seed=8))
    x = values(1, 4, 9, 8, seed=3)
    assert np.abs(outputs(checked(written), x=x)["y"] - outputs(before, x=x)["y"]).max() > 0.1


def half_precision() -> onnx.ModelProto:
    held = {"w": values(6, 8).astype(np.float16), "b": values(6).astype(np.float16)}
    return one_node(helper.make_node("Gemm", ["x", *held], ["y"], transB=1), (2, 8), (2, 6), held, kind=TensorProto.FLOAT16)


def test_half_precision_stays_half_precision() -> None:
    model = read(half_precision())
    new = checked(rewrite(model, {}, weights={"w": values(6, 8, seed=7)}))
    assert {tensor.data_type for tensor in new.graph.initializer} == {TensorProto.FLOAT16}
    np.testing.assert_array_equal(
        numpy_helper.to_array(by_name(new.graph.initializer)["w"]), values(6, 8, seed=7).astype(np.float16)
    )
    written = checked(rewrite(model, chains_of(model)))
    assert {tensor.data_type for tensor in written.graph.initializer} == {TensorProto.FLOAT16}
    x = values(2, 8, seed=3).astype(np.float16)
    # Values of order 1 in float16 (eps 1e-3), two layers.
    np.testing.assert_allclose(outputs(written, x=x)["y"], outputs(half_precision(), x=x)["y"], atol=5e-3, rtol=5e-3)


def test_values_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"w: \(6, 4, 3, 3\) cannot take values of shape \(4, 6, 3, 3\)"):
        rewrite(read(LAYERS["conv2d"].model()), {}, weights={"w": values(4, 6, 3, 3)})


def test_a_layer_without_a_bias_gets_one() -> None:
    model = read(LAYERS["conv2d without bias"].model())
    written = checked(rewrite(model, {}, biases={"y": values(6, seed=8)}))
    assert list(written.graph.node[0].input) == ["x", "w", "y_bias"]
    x = values(2, 4, 9, 8, seed=3)
    expected = outputs(LAYERS["conv2d without bias"].model(), x=x)["y"] + values(6, seed=8)[:, None, None]
    np.testing.assert_allclose(outputs(written, x=x)["y"], expected, rtol=RTOL, atol=ATOL)


def test_a_bias_of_its_own_is_changed_in_place_and_a_shared_one_left_to_the_others() -> None:
    own = checked(rewrite(read(LAYERS["conv2d"].model()), {}, biases={"y": values(6, seed=8)}))
    assert list(own.graph.node[0].input) == ["x", "w", "b"]
    np.testing.assert_array_equal(numpy_helper.to_array(by_name(own.graph.initializer)["b"]), values(6, seed=8))

    nodes = [
        helper.make_node("Conv", ["x", "v", "b"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "w", "b"], ["y"]),
    ]
    held = {"v": values(4, 4, 3, 3), "w": values(4, 4, 3, 3, seed=1), "b": values(4)}
    model = read(one_node(nodes, (2, 4, 9, 8), (2, 4, 7, 6), held))
    written = checked(rewrite(model, {}, biases={"y": values(4, seed=8)}))
    assert [list(node.input)[2] for node in written.graph.node] == ["b", "y_bias"]
    np.testing.assert_array_equal(numpy_helper.to_array(by_name(written.graph.initializer)["b"]), values(4))


def test_a_layer_whose_kind_has_no_chain_is_refused() -> None:
    node = helper.make_node("ConvInteger", ["x", "w"], ["y"])
    model = read(model_of(
        [node], [helper.make_tensor_value_info("x", TensorProto.UINT8, [2, 4, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [2, 6, 3, 3])], {"w": np.ones((6, 4, 3, 3), np.uint8)},
    ))  # fmt: skip
    with pytest.raises(ValueError, match="ConvInteger has no chain"):
        rewrite(model, {"y": FactorChain("any", ())})


def test_weights_in_another_file_are_followed(tmp_path: Any) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(LAYERS["conv2d"].model(), path, save_as_external_data=True, location="weights", size_threshold=100)
    assert (tmp_path / "weights").stat().st_size >= 6 * 4 * 9 * 4
    model = load_model(path)
    written = checked(rewrite(model, chains_of(model)))
    x = values(2, 4, 9, 8, seed=3)
    before = outputs(LAYERS["conv2d"].model(), x=x)["y"]
    np.testing.assert_allclose(outputs(written, x=x)["y"], before, rtol=RTOL, atol=ATOL)
