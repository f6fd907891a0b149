"""Exported networks: the imported one computes what onnxruntime does, at any batch size, and can be trained."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from batude_onnx.importer import import_graph
from tests.importer_graphs import assert_same, floats, imported, reference
from tests.networks import NETWORKS, build, export

# Opsets 13, 15 and 17 come from torch's older exporter, which keeps BatchNorm; 18 and 21 from the newer, which folds it.
OPSETS = (13, 15, 17, 18, 21)


@cache
def exported(name: str, opset: int) -> onnx.ModelProto:
    return export(build(name), opset)


@pytest.mark.parametrize(
    ("name", "opset"),
    # The newer exporter is slow and writes the same ops at 18 and 21, so two networks stand for all there.
    [(name, opset) for name in NETWORKS for opset in OPSETS if opset != 21 or name in ("resnet", "inception")],
)
def test_matches_onnxruntime(name: str, opset: int) -> None:
    model = exported(name, opset)
    for batch in (1, 3):
        assert_same(model, {"x": floats(batch, 3, 32, 32, seed=batch)})


@pytest.mark.parametrize("name", ["vgg", "mobilenet", "densenet"])
def test_matches_at_old_opsets(name: str) -> None:
    for opset in (9, 11):
        assert_same(export(build(name), opset, fold=True), {"x": floats(3, 3, 32, 32)})


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_are_those_of_the_exported_network(name: str) -> None:
    """The older exporter keeps torch's names, so names, shapes and values can be compared one by one.

    A layer normalisation is spelt out as Mul and Add below opset 17, and a group normalisation always, so that their
    weights are constants of an arithmetic op: these are imported as buffers.
    """
    network, net = build(name), imported(exported(name, 17))
    found, expected = net.state_dict(), network.state_dict()
    for key, value in network.named_parameters():
        if key.startswith("norm2."):
            continue
        torch.testing.assert_close(found[key], value.detach())
        assert key in dict(net.named_parameters())
    means = [key for key in expected if key.endswith("running_var")]
    assert all(key in dict(net.named_buffers()) for key in means)


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_reach_every_parameter(name: str, opset: int) -> None:
    net = imported(exported(name, opset)).train()
    net(torch.from_numpy(floats(3, 3, 32, 32)))[0].square().sum().backward()
    assert list(net.parameters())
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


def test_gradients_and_statistics_equal_the_torch_network() -> None:
    network, net = build("resnet").train(), imported(exported("resnet", 17)).train()
    x = torch.from_numpy(floats(4, 3, 32, 32))
    for module in (network, net):
        y = module(x)
        (y[0] if isinstance(y, tuple) else y).square().sum().backward()
    mine, theirs = dict(net.named_parameters()), dict(network.named_parameters())
    assert mine.keys() == theirs.keys()
    for key, parameter in theirs.items():
        torch.testing.assert_close(mine[key].grad, parameter.grad, rtol=1e-4, atol=1e-5)
    buffers = dict(network.named_buffers())
    for key, buffer in net.named_buffers():
        torch.testing.assert_close(buffer, buffers[key])
        if key.endswith("running_mean"):
            assert not torch.equal(buffer, dict(build("resnet").named_buffers())[key]), "it must have moved"


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "unet"])
def test_channels_last(name: str) -> None:
    model = exported(name, 17)
    x = floats(2, 3, 32, 32)
    net = imported(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        y = net(torch.from_numpy(x).contiguous(memory_format=torch.channels_last))[0]
    np.testing.assert_allclose(y.numpy(), reference(model, {"x": x})[0], rtol=1e-5, atol=1e-5)


def test_double_precision() -> None:
    """Moving the network to another type moves its constants too."""
    net = imported(exported("unet", 17)).double()
    assert net(torch.from_numpy(floats(1, 3, 32, 32)).double())[0].dtype is torch.float64


def test_a_chain_of_shape_arithmetic() -> None:
    """(N, C, H, W) -> (N, H * W, C) with all sizes read at run time, as exporters write it."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Gather", ["s", "one"], ["c"]),
        helper.make_node("Slice", ["s", "two", "four", "axis"], ["hw"]),
        helper.make_node("ReduceProd", ["hw"], ["area"], keepdims=1, axes=[0]),
        helper.make_node("Unsqueeze", ["n", "axis"], ["n1"]),
        helper.make_node("Unsqueeze", ["c", "axis"], ["c1"]),
        helper.make_node("Concat", ["n1", "c1", "area"], ["flat"], axis=0),
        helper.make_node("Reshape", ["x", "flat"], ["y"]),
        helper.make_node("Transpose", ["y"], ["turned"], perm=[0, 2, 1]),
        # The number of positions also enters the data, as a float.
        helper.make_node("Cast", ["area"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Sqrt", ["real"], ["root"]),
        helper.make_node("Div", ["turned", "root"], ["scaled"]),
    ]
    constants = {"zero": 0, "one": 1, "two": [2], "four": [4], "axis": [0]}
    weights = [numpy_helper.from_array(np.array(value, np.int64), key) for key, value in constants.items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "c", "h", "w"])],
        [helper.make_empty_tensor_value_info("scaled")],
        weights,
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])
    for shape in ((1, 3, 4, 5), (2, 5, 3, 3)):
        assert_same(model, {"x": floats(*shape)})
    net = imported(model)
    seen: list[torch.device] = []
    net.step("flat").register_forward_hook(lambda module, inputs, output: seen.append(output.device))
    net.to("meta")(torch.zeros(2, 3, 4, 5, device="meta"))
    assert seen == [torch.device("cpu")], "sizes stay in CPU memory wherever the data is"


@pytest.mark.parametrize("name", NETWORKS)
def test_no_value_of_the_data_is_read_by_the_host(name: str) -> None:
    """A meta tensor has no values: any step that had to read one would raise."""
    net = import_graph(ir.from_proto(exported(name, 17))).to("meta").train()
    y = net(torch.zeros(2, 3, 32, 32, device="meta"))[0]
    assert y.shape[0] == 2


def test_compiles() -> None:
    """torch.compile accepts the network (graph breaks are allowed; here there are none)."""
    net = imported(exported("resnet", 18))
    x = torch.from_numpy(floats(2, 3, 32, 32))
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x)[0], net(x)[0])


def test_names_survive_for_any_module() -> None:
    """The names are torch's own, so a torch network can load the imported one's state."""
    network, net = build("vgg", seed=1), imported(exported("vgg", 17))
    network.load_state_dict(net.state_dict())
    assert isinstance(network, nn.Module)
    x = torch.from_numpy(floats(1, 3, 32, 32))
    torch.testing.assert_close(network(x), net(x)[0])
