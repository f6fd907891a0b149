"""The surgery: what is replaced computes the same, and what is not replaced stays exactly as it was."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from batude_onnx import decomposition
from batude_onnx.layers import count, find_sites, infer_shapes, nodes_by_key, read_bias, read_weight
from batude_onnx.loading import load_model
from batude_onnx.records import FactorChain, FloatArray
from batude_onnx.rewriting import rewrite
from batude_onnx.validation import open_session
from tests.layer_models import LAYERS, PLACES, conv_with_weight_in, one_node, read, values
from tests.loading_models import FLOAT, model_of


def chains_of(model: ir.Model, ranks: dict[str, tuple[int, ...]] | None = None) -> dict[str, FactorChain]:
    """Every layer's chain: at full rank, or at the ranks given for some of them."""
    nodes, chains = nodes_by_key(model), {}
    for site in map(decomposition.assign, find_sites(model, infer_shapes(model))):
        if site.reason is not None or (ranks is not None and site.key not in ranks):
            continue
        method, bias = decomposition.method_of(site), read_bias(nodes[site.key])
        chains[site.key] = method.factor(
            torch.from_numpy(read_weight(nodes[site.key]).copy()),
            None if bias is None else torch.from_numpy(bias.copy()),
            site.geometry,
            method.max_ranks(site.shape, site.geometry.groups) if ranks is None else ranks[site.key],
            None,
        )
    return chains


def checked(model: ir.Model) -> onnx.ModelProto:
    """The model as it would be written, accepted by the strict ONNX checker."""
    proto: onnx.ModelProto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def outputs(proto: onnx.ModelProto, **feeds: Any) -> dict[str, FloatArray]:
    return open_session(proto.SerializeToString(), threads=1).run(feeds)


def operators(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


# One element is a sum of at most 4*27 products of order 0.3: float32 rounding of a three-layer chain stays below 2e-6 of it.
ATOL, RTOL = 1e-5, 1e-5


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


def elaborate() -> onnx.ModelProto:
    """A model with something in every field: two convolutions of which one gets replaced, an If, and a custom domain."""
    branch = {
        name: helper.make_graph(
            [helper.make_node(op, ["r"], [f"{name}_out"], name=f"{name}_node", doc_string="inner")], f"{name}_graph", [],
            [helper.make_tensor_value_info(f"{name}_out", FLOAT, ["N", 6, 5, 4], doc_string="inner output")],
        )
        for name, op in (("then", "Sigmoid"), ("else", "Tanh"))
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], name="first", pads=[1, 1, 1, 1], doc_string="the first layer"),
        helper.make_node("Relu", ["a"], ["n"], name="act", doc_string="between"),
        helper.make_node("Conv", ["n", "w2"], ["c"], name="second", doc_string="the second layer"),
        helper.make_node(
            "Constant", [], ["half"], name="constant", value=numpy_helper.from_array(np.array([0.5], np.float32), "kept")
        ),
        helper.make_node("Mul", ["c", "half"], ["r"], name="scale"),
        helper.make_node(
            "If", ["flag"], ["i"], name="branch", doc_string="either", then_branch=branch["then"], else_branch=branch["else"]
        ),
        helper.make_node("Shape", ["i"], ["size"], name="shape", start=1),
    ]
    nodes[0].metadata_props.add(key="from", value="module.first")
    nodes[1].metadata_props.add(key="from", value="module.act")
    inputs = [
        helper.make_tensor_value_info("x", FLOAT, ["N", 4, 7, 6], doc_string="the image"),
        helper.make_tensor_value_info("flag", TensorProto.BOOL, [], doc_string="which"),
    ]
    outs = [
        helper.make_tensor_value_info("i", FLOAT, ["N", 6, 5, 4], doc_string="the features"),
        helper.make_tensor_value_info("size", TensorProto.INT64, [3]),
        helper.make_tensor_value_info("a", FLOAT, ["N", 8, 7, 6], doc_string="of the first layer"),
    ]
    held = {"w1": values(8, 4, 3, 3, seed=1), "b1": values(8, seed=2), "w2": values(6, 8, 3, 3, seed=3)}
    model = model_of(nodes, inputs, outs, held, opset=17, ir_version=9)
    model.graph.initializer[0].doc_string = "a weight"
    for name, sizes in (("n", (8, 7, 6)), ("c", (6, 5, 4)), ("r", (6, 5, 4))):
        model.graph.value_info.append(helper.make_tensor_value_info(name, FLOAT, ["N", *sizes], doc_string=f"value {name}"))
    model.opset_import.append(helper.make_opsetid("com.example", 3))
    model.producer_name, model.producer_version, model.domain = "maker", "3.1", "org.example"
    model.model_version, model.doc_string, model.graph.doc_string = 7, "a model", "a graph"
    helper.set_model_props(model, {"licence": "none", "classes": "6"})
    onnx.checker.check_model(model, full_check=True)
    return model


def plain(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Without what onnx-ir adds: value_info of initializers, which say their shape themselves; metadata in its old order."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    for value in [value for value in proto.graph.value_info if value.name in weights]:
        proto.graph.value_info.remove(value)
    helper.set_model_props(proto, dict(sorted(((p.key, p.value) for p in proto.metadata_props), reverse=True)))
    return proto


def by_name(items: Any) -> dict[str, Any]:
    return {item.name: item for item in items}


@pytest.mark.parametrize("chosen", ["a", "c"])
def test_all_that_was_not_chosen_stays_as_it_was_field_by_field(chosen: str) -> None:
    before = elaborate()
    model = read(before)
    after = checked(rewrite(model, chains_of(model, {chosen: (3, 3)}), metadata={"batude_onnx.budget": "2x"}))

    fields = {field.name for field in before.DESCRIPTOR.fields} - {"graph", "metadata_props"}
    for field in fields:
        assert getattr(after, field) == getattr(before, field), field
    added = {"batude_onnx.budget": "2x"}
    assert {prop.key: prop.value for prop in after.metadata_props} == {"licence": "none", "classes": "6"} | added

    changing = {"node", "initializer", "value_info"}
    for field in {field.name for field in before.graph.DESCRIPTOR.fields} - changing:
        assert getattr(after.graph, field) == getattr(before.graph, field), field

    replaced, gone = {"a": ("first", {"w1", "b1"}), "c": ("second", {"w2"})}[chosen]
    made = [f"{chosen}_factor{k}_node" for k in (1, 2, 3)]
    order = [name for node in before.graph.node for name in (made if node.name == replaced else [node.name])]
    assert [node.name for node in after.graph.node] == order
    for name, node in by_name(before.graph.node).items():
        if name != replaced:
            assert by_name(after.graph.node)[name] == node, name
    for name, tensor in by_name(before.graph.initializer).items():
        if name not in gone:
            assert by_name(after.graph.initializer)[name] == tensor, name
    assert not gone & set(by_name(after.graph.initializer))
    for name, value in by_name(before.graph.value_info).items():
        assert by_name(after.graph.value_info)[name] == value, name

    feeds = {"x": values(3, 4, 7, 6), "flag": np.array(False)}
    assert [array.shape for array in outputs(after, **feeds).values()] == [
        array.shape for array in outputs(before, **feeds).values()
    ]


def test_what_is_said_of_a_layer_goes_to_the_node_that_gives_its_output() -> None:
    model = read(elaborate())
    after = by_name(checked(rewrite(model, chains_of(model, {"a": (3, 3)}))).graph.node)
    assert after["a_factor3_node"].doc_string == "the first layer"
    assert [(prop.key, prop.value) for prop in after["a_factor3_node"].metadata_props] == [("from", "module.first")]


def test_the_input_model_is_not_changed() -> None:
    model = read(elaborate())
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    new = {"w2": values(6, 8, 3, 3, seed=9), "half": np.array([0.25], np.float32)}
    rewrite(model, chains_of(model, {"a": (3, 3)}), weights=new, biases={"c": values(6)}, metadata={"a": "b"})
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_nothing_chosen_changes_nothing() -> None:
    assert plain(checked(rewrite(read(elaborate()), {}))) == elaborate()


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


def test_equal_values_leave_the_stored_tensor_alone() -> None:
    model = read(elaborate())
    assert plain(checked(rewrite(model, {}, weights={"w1": values(8, 4, 3, 3, seed=1)}))) == elaborate()


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


def test_two_layers_in_a_row_are_both_replaced() -> None:
    model = read(elaborate())
    written = checked(rewrite(model, chains_of(model)))
    feeds = {"x": values(3, 4, 7, 6), "flag": np.array(False)}
    before, after = outputs(elaborate(), **feeds), outputs(written, **feeds)
    for name in before:
        np.testing.assert_allclose(after[name], before[name], rtol=RTOL, atol=ATOL)
    assert operators(written).count("Conv") == 6


def test_a_layer_whose_kind_has_no_chain_is_refused() -> None:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"])
    model = read(one_node(node, (2, 4, 5, 5), (2, 6, 7, 7), {"w": values(4, 6, 3, 3)}))
    with pytest.raises(ValueError, match="ConvTranspose has no chain"):
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
