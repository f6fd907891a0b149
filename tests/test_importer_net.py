"""The imported module itself: names, shared and indirect weights, steps, replacing and wrapping them."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from batude_onnx.importer import GraphNet, import_graph
from tests.importer_graphs import Array, assert_same, floats, imported, model_of, results_of, whole

X = floats(2, 4, 6, 6)
W, B = floats(4, 4, 3, 3, seed=1), floats(4, seed=2)


def conv(x: str, w: str, y: str, *bias: str) -> onnx.NodeProto:
    return helper.make_node("Conv", [x, w, *bias], [y], name=f"node of {y}", pads=[1, 1, 1, 1])


def two_convs() -> onnx.ModelProto:
    """x -> a -> relu -> b, with biases."""
    nodes = [conv("x", "w1", "a", "b1"), helper.make_node("Relu", ["a"], ["r"]), conv("r", "w2", "b", "b2")]
    return model_of(nodes, {"x": X}, ["b"], {"w1": W, "b1": B, "w2": W * 0.5, "b2": B})


def names_of(net: GraphNet) -> set[str]:
    return {name for name, _ in net.named_parameters()}


def run(net: GraphNet, x: Array = X) -> Tensor:
    (result,) = net(torch.from_numpy(x))
    assert isinstance(result, Tensor)
    return result


def gradients(*losses: Tensor) -> None:
    torch.autograd.backward(losses)


@pytest.mark.parametrize(
    "names",
    [
        ("a", "a.b"),
        ("a.b", "a"),
        ("a.b.c", "a.b"),
        ("training", "forward.weight"),
        ("weight", "step"),
        ("layer.type", "layer.training"),
        ("onnx::Conv_12", "/x/y.z/w:0"),
        ("a..b", "a."),
        (".lead", "0"),
        ("@steps.0.op", "@after"),
    ],
)
def test_weights_keep_their_names(names: tuple[str, str]) -> None:
    """Also odd ones, prefixes of each other, and names that nn.Module uses for itself."""
    first, second = names
    model = model_of([conv("x", first, "y"), conv("y", second, "z")], {"x": X}, ["z"], {first: W, second: W * 2})
    assert_same(model, {"x": X})
    net = imported(model)
    assert names_of(net) == {first, second} == set(net.state_dict())
    assert net.weight_names() == names
    torch.testing.assert_close(net.weight(second), torch.from_numpy(W * 2))
    assert dict(net.named_parameters())[second] is net.weight(second)
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.weight(first).zero_()
    if not first.startswith("."):
        other.load_state_dict(net.state_dict())
        torch.testing.assert_close(run(other), run(net))
    net.zero_grad()
    gradients(run(net).sum())
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_shared_weights_are_one_parameter() -> None:
    model = model_of([conv("x", "w", "y"), conv("y", "w", "z")], {"x": X}, ["z"], {"w": W})
    assert_same(model, {"x": X})
    net = imported(model)
    assert len(list(net.parameters())) == len(net.state_dict()) == 1
    y = torch.from_numpy(X)
    weight = torch.from_numpy(W).requires_grad_()
    for _ in range(2):
        y = torch.conv2d(y, weight, padding=1)
    gradients(y.square().sum(), run(net).square().sum())
    torch.testing.assert_close(net.weight("w").grad, weight.grad, rtol=1e-4, atol=1e-4)


def test_weights_behind_constant_and_identity() -> None:
    """They take the name of the initializer, or of the Constant node's output."""
    nodes = [
        helper.make_node("Constant", [], ["held"], value=numpy_helper.from_array(W)),
        helper.make_node("Identity", ["held"], ["same"]),
        helper.make_node("Identity", ["b"], ["again"]),
        conv("x", "same", "y", "again"),
        helper.make_node("Constant", [], ["slopes"], value_floats=[0.1]),
        helper.make_node("PRelu", ["y", "slopes"], ["p"]),
        conv("p", "held", "z", "b"),
    ]
    model = model_of(nodes, {"x": X}, ["z"], {"b": B})
    assert_same(model, {"x": X})
    net = imported(model)
    assert names_of(net) == {"held", "b", "slopes"}
    assert not net.has_step("same"), "what is known at import is not executed"


def test_weights_behind_layout_ops_stay_parameters_of_the_file() -> None:
    nodes = [
        helper.make_node("Transpose", ["w"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["y"]),
        helper.make_node("Mul", ["y", "two"], ["z"]),
    ]
    weights = {"w": floats(5, 6), "bias": floats(5), "two": np.array([2], np.float32)}
    model = model_of(nodes, {"x": floats(3, 6)}, ["z"], weights)
    assert_same(model, {"x": floats(3, 6)})
    net = imported(model)
    assert names_of(net) == {"w", "bias"}, "the bias of a MatMul is learned"
    assert [name for name, _ in net.named_buffers()] == ["two"], "a constant elsewhere is not"


def test_computed_weights_are_frozen() -> None:
    """A kernel that other nodes compute from constants is folded at import, and cannot be written back: a buffer."""
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["w"], value=helper.make_tensor("v", 1, [1], [0.5])),
        conv("x", "w", "y"),
    ]
    model = model_of(nodes, {"x": X}, ["y"], {"shape": whole(3, 4, 3, 3)})
    assert_same(model, {"x": X})
    net = imported(model)
    assert not names_of(net)
    assert [name for name, _ in net.named_buffers()] == ["w"]


def test_inputs_and_outputs() -> None:
    """Initializers that are also listed as inputs (IR version 3) are no inputs; an output may be an input or a weight."""
    nodes = [helper.make_node("Add", ["p", "q"], ["sum"]), helper.make_node("Relu", ["sum"], ["r"])]
    model = model_of(nodes, {"p": X, "w": W, "q": X}, ["r", "sum", "w"], {"w": W})
    net = imported(model)
    assert net.input_names == ("p", "q")
    assert net.output_names == ("r", "sum", "w")
    results = results_of(net, {"p": X, "q": -0.5 * X})
    np.testing.assert_allclose(results[0], np.maximum(0.5 * X, 0))
    np.testing.assert_array_equal(results[2], W)
    with pytest.raises(ValueError, match=r"takes 2 inputs \(p, q\), not 1"):
        net(torch.from_numpy(X))


def test_the_model_is_left_alone() -> None:
    model = ir.from_proto(two_convs())
    before = ir.to_proto(model).SerializeToString()
    net = import_graph(model).train()
    gradients(run(net).sum())
    with torch.no_grad():
        net.weight("w1").zero_()
    assert ir.to_proto(model).SerializeToString() == before


def test_nodes_in_any_order() -> None:
    proto = two_convs()
    assert_same(proto, {"x": X})
    expected = results_of(imported(proto), {"x": X})
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes[::-1])
    np.testing.assert_array_equal(results_of(imported(proto), {"x": X})[0], expected[0])


def test_functions_are_inlined() -> None:
    proto = two_convs()
    del proto.graph.node[:]
    domain = helper.make_opsetid("", 17)
    twice = helper.make_function("local", "Twice", ["v"], ["t"], [helper.make_node("Add", ["v", "v"], ["t"])], [domain])
    proto.functions.append(twice)
    proto.opset_import.append(helper.make_opsetid("local", 1))
    proto.graph.node.extend([conv("r", "w2", "b", "b2"), helper.make_node("Twice", ["x"], ["r"], domain="local")])
    expected = torch.conv2d(torch.from_numpy(2 * X), torch.from_numpy(W * 0.5), torch.from_numpy(B), padding=1)
    torch.testing.assert_close(run(imported(proto)), expected)


def test_a_hook_sees_the_data_and_the_result() -> None:
    net = imported(two_convs())
    seen: list[tuple[Tensor, Tensor]] = []
    handle = net.step("b").register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    y = run(net)
    handle.remove()
    run(net)
    ((data, result),) = seen
    assert result is y or torch.equal(result, y)
    expected = torch.conv2d(torch.from_numpy(X), torch.from_numpy(W), torch.from_numpy(B), padding=1).relu()
    torch.testing.assert_close(data, expected)
    with pytest.raises(KeyError, match="no step has the first output 'nothing'"):
        net.step("nothing")


def test_values_are_freed_after_their_last_use() -> None:
    """Of a chain of 8 results, no more than two are alive at once."""
    nodes = [helper.make_node("Tanh", [f"v{i}"], [f"v{i + 1}"]) for i in range(8)]
    net = imported(model_of(nodes, {"v0": X}, ["v8"]))
    alive: set[int] = set()
    most = 0

    class Watched(Tensor):
        def __del__(self) -> None:
            alive.discard(id(self))

    class Tanh(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal most
            y = torch.tanh(x.as_subclass(Tensor)).as_subclass(Watched)
            alive.add(id(y))
            most = max(most, len(alive))
            return y

    for index in range(8):
        net.replace(f"v{index + 1}", Tanh())
    with torch.no_grad():
        run(net)
    assert most == 2


def test_replace() -> None:
    net = imported(two_convs())
    seen: list[int] = []
    net.step("a").register_forward_hook(lambda module, inputs, output: seen.append(len(inputs)))
    module = nn.Conv2d(4, 4, 3, padding=1)
    expected = run(imported(two_convs()))
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(W))
        assert module.bias is not None
        module.bias.copy_(torch.from_numpy(B))
    net.replace("a", module)
    torch.testing.assert_close(run(net), expected)
    assert seen == [1], "it is called with its data input only, and hooks stay"
    assert net.operation("a") is module
    assert any(parameter is module.weight for parameter in net.parameters())
    assert not {"w1", "b1"} & {*names_of(net), *net.state_dict(), *net.weight_names()}
    with pytest.raises(KeyError, match="no step uses a weight named 'w1'"):
        net.weight("w1")
    assert {"w2", "b2"} <= names_of(net)
    assert net.train().step("a").training
    assert module.training
    net.eval()
    assert not module.training


def test_a_pass_stops_and_goes_on_with_what_stands_there_by_then() -> None:
    net = imported(two_convs())
    ran: list[str] = []
    net.step("a").register_forward_hook(lambda module, inputs, output: ran.append("a"))
    with torch.no_grad():
        halfway = net.begin(torch.from_numpy(X))
        halfway.advance("b")
        before = halfway.fork().finish()[0]
        torch.testing.assert_close(before, run(net))
        net.replace("a", nn.Identity())
        torch.testing.assert_close(halfway.fork().finish()[0], before, msg="a step that has been passed does not count")
        net.weight("w2").mul_(2)
        bias = net.weight("b2")[:, None, None]
        torch.testing.assert_close(halfway.fork().finish()[0] - bias, 2 * (before - bias))
        net.wrap("b", nn.ReLU())
        torch.testing.assert_close(halfway.finish()[0], (2 * (before - bias) + bias).relu())
    assert ran == ["a", "a"], "once for the pass, once for the whole run beside it"
    with pytest.raises(ValueError, match="step 'a' lies behind"):
        halfway.advance("a")
    with pytest.raises(KeyError, match="no step"):
        halfway.advance("none")


def test_replace_keeps_weights_that_others_use() -> None:
    model = model_of([conv("x", "w", "y"), conv("y", "w", "z")], {"x": X}, ["z"], {"w": W})
    net = imported(model)
    net.replace("y", nn.Identity())
    assert names_of(net) == {"w"}
    net.replace("z", nn.Identity())
    assert not names_of(net)
    torch.testing.assert_close(run(net), torch.from_numpy(X))


def test_replace_refuses_a_step_without_data() -> None:
    nodes = [helper.make_node("MatMul", ["w", "x"], ["y"])]
    net = imported(model_of(nodes, {"x": floats(6, 3)}, ["y"], {"w": floats(5, 6)}))
    with pytest.raises(ValueError, match="no data in its first input"):
        net.replace("y", nn.Identity())


def test_wrap_and_unwrap() -> None:
    net = imported(two_convs()).train()
    plain = run(net).detach()
    after = nn.BatchNorm2d(4)
    seen: list[Tensor] = []
    net.step("a").register_forward_hook(lambda module, inputs, output: seen.append(output))
    net.wrap("a", after)
    assert net.after("a") is after
    assert net.after("b") is None
    wrapped = run(net)
    assert not torch.allclose(wrapped, plain)
    hidden = torch.conv2d(torch.from_numpy(X), torch.from_numpy(W), torch.from_numpy(B), padding=1)
    torch.testing.assert_close(seen[0], hidden), "a hook on the step sees the op's own result"
    assert any(parameter is after.weight for parameter in net.parameters())
    with pytest.raises(ValueError, match="wrapped already"):
        net.wrap("a", nn.Identity())
    assert net.unwrap("a") is after
    torch.testing.assert_close(run(net), plain)
    assert not any(parameter is after.weight for parameter in net.parameters())
    with pytest.raises(ValueError, match="not wrapped"):
        net.unwrap("a")


def test_wrapping_refuses_several_outputs() -> None:
    net = imported(model_of([helper.make_node("Split", ["x"], ["p", "q"], axis=1)], {"x": X}, ["p", "q"]))
    with pytest.raises(ValueError, match="has 2 outputs"):
        net.wrap("p", nn.Identity())


def test_replace_and_wrap_compose() -> None:
    double, halve = nn.Conv2d(4, 4, 1, bias=False), nn.Hardtanh(-0.5, 0.5)
    for order in ("wrap first", "replace first"):
        net = imported(two_convs())
        if order == "wrap first":
            net.wrap("a", halve)
        net.replace("a", double)
        if order == "replace first":
            net.wrap("a", halve)
        hidden = halve(double(torch.from_numpy(X))).relu()
        torch.testing.assert_close(run(net), torch.conv2d(hidden, torch.from_numpy(W * 0.5), torch.from_numpy(B), padding=1))
        assert net.unwrap("a") is halve
        assert net.operation("a") is double


def test_copies_share_nothing() -> None:
    net = imported(two_convs())
    net.replace("a", nn.Conv2d(4, 4, 1))
    net.wrap("b", nn.BatchNorm2d(4))
    net.eval()
    other = copy.deepcopy(net)
    before = run(net).detach()
    torch.testing.assert_close(run(other), before)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.unwrap("b")
    torch.testing.assert_close(run(net), before)
    assert not torch.allclose(run(other), before)
    assert net.state_dict().keys() != other.state_dict().keys()


def test_exchanged_weights_are_seen() -> None:
    """Neither assigning a state nor torch.func's functional call may leave the old tensors in use."""
    net = imported(two_convs())
    zeros = {name: torch.zeros_like(value) for name, value in net.state_dict().items()}
    functional = torch.func.functional_call(net, zeros, (torch.from_numpy(X),))[0]
    assert not functional.any()
    assert run(net).any()
    net.load_state_dict(zeros, assign=True)
    assert not run(net).any()


def test_batch_normalisation_trains() -> None:
    """Batch statistics while training; the running ones are buffers that move by 0.1."""
    node = helper.make_node("BatchNormalization", ["x", "scale", "bias", "mean", "var"], ["y"], epsilon=1e-3)
    weights = {"scale": B, "bias": B, "mean": np.zeros(4, np.float32), "var": np.ones(4, np.float32)}
    net = imported(model_of([node], {"x": X}, ["y"], weights))
    assert names_of(net) == {"scale", "bias"}
    assert [name for name, _ in net.named_buffers()] == ["mean", "var"]
    run(net)
    assert not net.weight("mean").any(), "nothing moves in evaluation mode"
    net.train()
    run(net)
    torch.testing.assert_close(net.weight("mean"), torch.from_numpy(0.1 * X.mean((0, 2, 3))))
    torch.testing.assert_close(net.weight("var"), torch.from_numpy(0.9 + 0.1 * X.var((0, 2, 3), ddof=1)))
