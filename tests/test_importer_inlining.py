"""If and Loop: what is known at import is inlined, under the file's names; what is not is refused, with the reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from batude_onnx.errors import UnsupportedError
from batude_onnx.importer import import_graph
from batude_onnx.rewriting import rewrite
from tests.importer_graphs import Array, assert_same, floats, imported, model_of, whole

X, W = floats(2, 4, 6, 6), floats(4, 4, 3, 3, seed=1)
YES, NO = np.array(True), np.array(False)
DEPENDS = "its condition depends on the data, or on a size that the file leaves open"


def graph(
    nodes: list[onnx.NodeProto],
    outputs: list[str],
    inputs: list[onnx.ValueInfoProto] | None = None,
    weights: dict[str, Array] | None = None,
) -> onnx.GraphProto:
    """A sub-graph; a type of its outputs is left open."""
    stored = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    return helper.make_graph(nodes, "body", inputs or [], [helper.make_empty_tensor_value_info(name) for name in outputs], stored)


def convolution(x: str, w: str, y: str) -> onnx.NodeProto:
    return helper.make_node("Conv", [x, w], [y], name=f"node of {y}", pads=[1, 1, 1, 1])


def branches(condition: str = "yes") -> onnx.NodeProto:
    """A convolution of an outer value by an inner weight, or the outer value itself made positive."""
    then = graph([convolution("a", "w", "c")], ["c"], weights={"w": W})
    return helper.make_node(
        "If", [condition], ["b"], then_branch=then, else_branch=graph([helper.make_node("Relu", ["a"], ["r"])], ["r"])
    )


def network(condition: Array | None = None, *more: onnx.NodeProto, opset: int = 17) -> onnx.ModelProto:
    nodes = [*more, helper.make_node("Tanh", ["x"], ["a"]), branches(), helper.make_node("Neg", ["b"], ["y"])]
    return model_of(nodes, {"x": X}, ["y"], {} if condition is None else {"yes": condition}, opset)


def refusal(model: onnx.ModelProto) -> str:
    with pytest.raises(UnsupportedError) as caught:
        imported(model)
    return str(caught.value)


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
@pytest.mark.parametrize("condition", [YES, NO, np.array([True])])
def test_the_chosen_branch_is_part_of_the_network(condition: Array, opset: int) -> None:
    model = network(condition, opset=opset)
    assert_same(model, {"x": X})
    net = imported(model)
    assert net.has_step("c") == bool(condition)
    assert {name for name, _ in net.named_parameters()} == ({"w"} if condition else set())
    assert net.weight_names() == (("w",) if condition else ())


def test_a_condition_computed_from_constants() -> None:
    compare = helper.make_node("Less", ["three", "four"], ["yes"])
    nodes = [compare, helper.make_node("Tanh", ["x"], ["a"]), branches(), helper.make_node("Neg", ["b"], ["y"])]
    model = model_of(nodes, {"x": X}, ["y"], {"three": whole(3), "four": whole(4)})
    assert_same(model, {"x": X})
    assert imported(model).has_step("c")


def sized(*nodes: onnx.NodeProto, shape: list[int | str]) -> onnx.ModelProto:
    """As older exporters write squeeze(axis 1): Squeeze where that axis has the size 1, else nothing."""
    squeezed = graph([helper.make_node("Squeeze", ["a", "one"], ["s"])], ["s"])
    all_nodes = [
        helper.make_node("Tanh", ["x"], ["a"]),
        *nodes,
        helper.make_node("Equal", ["size", "one"], ["yes"]),
        helper.make_node(
            "If", ["yes"], ["y"], then_branch=squeezed, else_branch=graph([helper.make_node("Identity", ["a"], ["i"])], ["i"])
        ),
    ]
    model = model_of(all_nodes, {"x": X}, ["y"], {"one": whole(1), "two": whole(2), "four": whole(4)})
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, shape))
    return model


GATHERED = [helper.make_node("Shape", ["a"], ["sizes"]), helper.make_node("Gather", ["sizes", "one"], ["size"])]


@pytest.mark.parametrize("channels", [1, 4])
def test_a_condition_on_a_size_that_the_file_fixes(channels: int) -> None:
    model = sized(*GATHERED, shape=["n", channels, "h", "w"])
    x, net = floats(2, channels, 3, 3), imported(model)
    assert net.has_step("s") == (channels == 1)
    # onnxruntime looks into both branches, and does not load a model that squeezes four channels.
    np.testing.assert_allclose(
        net(torch.from_numpy(x))[0].detach().numpy(), np.tanh(x).squeeze(1 if channels == 1 else ()), rtol=1e-6
    )


def test_a_condition_on_the_rank() -> None:
    model = sized(
        helper.make_node("Shape", ["a"], ["sizes"]), helper.make_node("Shape", ["sizes"], ["size"]), shape=["n", "c", "h"]
    )
    assert_same(model, {"x": floats(2, 3, 4)})
    assert not imported(model).has_step("s")


def test_a_condition_on_an_open_size_is_refused() -> None:
    """Also where the comparison would come out the same for most sizes, and where sizes are computed with."""
    assert DEPENDS in refusal(sized(*GATHERED, shape=["n", "c", "h", "w"]))
    product = [helper.make_node("Shape", ["a"], ["sizes"]), helper.make_node("ReduceProd", ["sizes"], ["size"], axes=[0])]
    assert DEPENDS in refusal(sized(*product, shape=["n", 4, "h", "w"]))
    assert DEPENDS in refusal(sized(helper.make_node("Size", ["a"], ["size"]), shape=["n", 4, 3, 3]))
    # The slice is one element long for sizes of 2 and more, but an empty one for a size of 1.
    chosen = [
        helper.make_node("Shape", ["a"], ["sizes"]),
        helper.make_node("Slice", ["sizes", "zero", "one"], ["n"]),
        helper.make_node("Slice", ["two", "one", "n"], ["none"]),
        helper.make_node("Concat", ["none", "one"], ["both"], axis=0),
        helper.make_node("Slice", ["both", "zero", "one"], ["size"]),
    ]
    model = sized(*chosen, shape=["n", 4, 3, 3])
    model.graph.initializer.append(numpy_helper.from_array(whole(0), "zero"))
    assert DEPENDS in refusal(model)


def test_a_condition_that_another_branch_makes_known() -> None:
    """The size that the second condition asks for is only known once the first branch has been chosen."""
    first = sized(*GATHERED, shape=["n", 1, 7, 7])
    first.graph.node[-1].output[0] = "z"
    squeezed = graph([helper.make_node("Squeeze", ["z", "one"], ["q"])], ["q"])
    other = graph([helper.make_node("Relu", ["z"], ["p"])], ["p"])
    first.graph.node.extend(
        [
            helper.make_node("Shape", ["z"], ["sizes2"]),
            helper.make_node("Gather", ["sizes2", "one"], ["size2"]),
            helper.make_node("Equal", ["size2", "one"], ["yes2"]),
            helper.make_node("If", ["yes2"], ["y"], then_branch=squeezed, else_branch=other),
        ]
    )
    assert_same(first, {"x": floats(2, 1, 7, 7)})
    net = imported(first)
    assert net.has_step("s")
    assert net.has_step("p")


def test_the_models_own_graph_is_left_alone() -> None:
    model = ir.from_proto(network(YES))
    before = ir.to_proto(model).SerializeToString()
    import_graph(model)
    assert ir.to_proto(model).SerializeToString() == before


def test_a_branch_may_give_an_output_of_the_network() -> None:
    model = model_of([helper.make_node("Tanh", ["x"], ["a"]), branches()], {"x": X}, ["b"], {"yes": YES})
    assert_same(model, {"x": X})
    assert imported(model).output_names == ("b",)


def test_branches_in_branches() -> None:
    """The inner one reads values of both graphs around it, and a weight that the graph itself holds."""
    inner = graph([helper.make_node("Add", ["half", "a"], ["s"]), convolution("s", "outer", "t")], ["t"])
    other = graph([helper.make_node("Identity", ["half"], ["i"])], ["i"])
    nodes = [
        helper.make_node("Mul", ["a", "two"], ["half"]),
        helper.make_node("If", ["yes"], ["u"], then_branch=inner, else_branch=other),
    ]
    outer = helper.make_node(
        "If", ["no"], ["b"], then_branch=graph([helper.make_node("Relu", ["a"], ["r"])], ["r"]), else_branch=graph(nodes, ["u"])
    )
    model = model_of(
        [helper.make_node("Tanh", ["x"], ["a"]), outer],
        {"x": X},
        ["b"],
        {"yes": YES, "no": NO, "two": np.array(0.5, np.float32), "outer": W},
    )
    assert_same(model, {"x": X})
    net = imported(model)
    assert {name for name, _ in net.named_parameters()} == {"outer"}
    net(torch.from_numpy(X))[0].square().sum().backward()
    gradient = net.weight("outer").grad
    assert gradient is not None
    assert gradient.any()


def test_names_that_two_branches_share_stay_apart() -> None:
    def relu_of(x: str, y: str, scale: float) -> onnx.NodeProto:
        nodes = [helper.make_node("Mul", [x, f"k{y}"], ["m"]), helper.make_node("Relu", ["m"], ["r"])]
        body = graph(nodes, ["r"], weights={f"k{y}": np.array(scale, np.float32)})
        return helper.make_node("If", ["yes"], [y], then_branch=body, else_branch=body)

    model = model_of([relu_of("x", "a", 2.0), relu_of("a", "y", 3.0)], {"x": X}, ["y"], {"yes": YES})
    # Both branches of each node hold the constant, under one name: it could not be written back.
    assert "two values of the model are called 'ka'" in refusal(model)
    for node in model.graph.node:
        (other,) = (attribute for attribute in node.attribute if attribute.name == "else_branch")
        other.g.CopyFrom(graph([helper.make_node("Identity", ["x"], ["i"])], ["i"]))
    assert_same(model, {"x": X})
    net = imported(model)
    assert net.has_step("m")
    assert net.has_step("m#1")


def test_trained_weights_of_a_branch_are_written_back_into_it() -> None:
    model = network(YES)
    net = imported(model)
    with torch.no_grad():
        net.weight("w").mul_(2)
    changed = rewrite(ir.from_proto(model), {}, weights={name: net.weight(name).detach().numpy() for name in net.weight_names()})
    node = next(node for node in changed.graph if node.op_type == "If")
    held = node.attributes["then_branch"].as_graph().initializers["w"].const_value
    assert held is not None
    np.testing.assert_array_equal(held.numpy(), W * 2)


def test_constants_computed_at_import_are_not_the_files() -> None:
    """They are buffers, but nothing that could be written back under their name."""
    nodes = [helper.make_node("Sqrt", ["c"], ["root"]), helper.make_node("Mul", ["x", "root"], ["y"])]
    net = imported(model_of(nodes, {"x": X}, ["y"], {"c": np.abs(floats(4, 1, 1))}))
    assert [name for name, _ in net.named_buffers()] == ["root"]
    assert net.weight_names() == ()


# Loops


def values(**types: tuple[int, list[int | None]]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in types.items()]


STATE = values(step=(TensorProto.INT64, []), go=(TensorProto.BOOL, []), state=(TensorProto.FLOAT, [None] * 4))


def loop(limit: bool = False, rows: bool = False, data: bool = False) -> onnx.NodeProto:
    """state -> tanh(conv(state, outer weight) + bias of the body * step); stops at step 2 where there is a limit."""
    nodes = [
        convolution("state", "w", "c"),
        helper.make_node("Cast", ["step"], ["s"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["s", "bias"], ["t"]),
        helper.make_node("Add", ["c", "t"], ["u"]),
        helper.make_node("Tanh", ["u"], ["next"]),
    ]
    if limit:
        nodes += [
            helper.make_node("Constant", [], ["last"], value=numpy_helper.from_array(np.array(2))),
            helper.make_node("Less", ["step", "last"], ["goes"]),
        ]
    elif data:
        nodes += [
            helper.make_node("ReduceMax", ["next"], ["most"], keepdims=0),
            helper.make_node("Greater", ["most", "bias"], ["goes"]),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["go"], ["goes"]))
    body = graph(nodes, ["goes", "next", *(["u"] if rows else [])], STATE, {"bias": np.array(0.1, np.float32)})
    outputs = ["y", *(["all"] if rows else [])]
    return helper.make_node("Loop", ["many", "yes"], outputs, body=body)


def looped(node: onnx.NodeProto, many: int = 4, opset: int = 17, **more: Any) -> onnx.ModelProto:
    node.input.append("x")
    return model_of([node], {"x": X}, list(node.output), {"many": np.array(many), "yes": YES, "w": W, **more}, opset)


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
@pytest.mark.parametrize(("limit", "rows"), [(False, False), (True, False), (False, True), (True, True)])
def test_a_loop_of_known_length_is_unrolled(limit: bool, rows: bool, opset: int) -> None:
    model = looped(loop(limit, rows), opset=opset)
    assert_same(model, {"x": X})
    net = imported(model)
    assert [net.has_step(name) for name in ("c", "c#1", "c#2", "c#3")] == [True, True, True, not limit]
    assert dict(net.named_parameters()).keys() == {"w"}
    # The body's constant only meets the number of the step, so that their product was computed at import.
    assert net.weight_names() == ("w",)
    net(torch.from_numpy(X))[0].square().sum().backward()
    assert net.weight("w").grad is not None


@pytest.mark.parametrize("many", [0, -2])
def test_a_loop_of_no_steps_gives_its_input(many: int) -> None:
    model = looped(loop(), many=many)
    assert_same(model, {"x": X})


def test_a_loop_without_condition_or_trip_count() -> None:
    for name, limit in (("many", True), ("yes", False)):
        node = loop(limit)
        node.input[["many", "yes"].index(name)] = ""
        model = looped(node)
        assert_same(model, {"x": X})


def test_what_depends_on_the_data_is_refused() -> None:
    model = network()
    model.graph.input.append(helper.make_tensor_value_info("yes", TensorProto.BOOL, []))
    assert f"node 'b' (If, opset 17): {DEPENDS}; export the network for one" in refusal(model)
    assert f"(Loop, opset 17): {DEPENDS}; export" in refusal(looped(loop(data=True)))
    model = looped(loop())
    del model.graph.initializer[0]
    model.graph.input.append(helper.make_tensor_value_info("many", TensorProto.INT64, []))
    assert "(Loop, opset 17): its trip count depends on the data, or on a size that the file leaves open; export" in refusal(
        model
    )


def test_one_that_is_refused_leaves_no_trace_beside_one_that_is_not() -> None:
    """The loop stops at a condition on the data after its first step; the branch behind it gives an output of the network."""
    node = loop(data=True)
    node.input[1] = "begins"
    node.input.append("x")
    nodes = [node, helper.make_node("Tanh", ["y"], ["a"]), branches()]
    weights = {"many": np.array(4), "begins": YES, "yes": NO, "w": W}
    first, *others = refusal(model_of(nodes, {"x": X}, ["b"], weights)).splitlines()
    # Tanh, the branch's node and one that gives the output its name are the others.
    assert first == "1 of 4 nodes cannot be imported: Loop (1)"
    assert len(others) == 1


def test_endless_loops_are_refused() -> None:
    node = loop()
    node.input[0] = ""
    assert "it has more than 256 steps; export the network with the loop unrolled" in refusal(looped(node))


def test_rows_of_no_steps_are_refused() -> None:
    assert "it has no steps, and the shapes of its rows are not known" in refusal(looped(loop(rows=True), many=0))


def test_other_ops_with_sub_graphs_are_refused() -> None:
    body = graph([helper.make_node("Identity", ["row"], ["out"])], ["out"], values(row=(TensorProto.FLOAT, [None] * 3)))
    node = helper.make_node("Scan", ["x"], ["y"], body=body, num_scan_inputs=1)
    assert "(Scan, opset 17): the op is not implemented by the importer: the length of its loop" in refusal(
        model_of([node], {"x": X}, ["y"])
    )


def test_a_branch_that_nothing_needs_does_not_count() -> None:
    nodes = [helper.make_node("Tanh", ["x"], ["a"]), branches("no data"), helper.make_node("Neg", ["a"], ["y"])]
    model = model_of(nodes, {"x": X, "no data": YES}, ["y"])
    assert imported(model).has_step("y")
