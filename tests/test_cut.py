"""Graphs of which a part cannot be imported: the rest is trained towards the original's values where it was cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from batude_onnx.errors import UnsupportedError
from batude_onnx.importer import import_graph
from batude_onnx.outside import Outside
from batude_onnx.pipeline import compress
from batude_onnx.validation import exposed, open_graph
from tests.importer_graphs import Array, floats
from tests.pipelines import Listener, saved, settings_for

SHAPE = (8, 10, 10)
MAP: list[str | int | None] = ["n", *SHAPE]


def conv(x: str, y: str) -> onnx.NodeProto:
    return helper.make_node("Conv", [x, f"w_{y}", f"b_{y}"], [y], name=f"node of {y}", pads=[1, 1, 1, 1])


def branching() -> onnx.ModelProto:
    """x -> Conv a -> Relu r -> If on the data: r twice as large, or r -> Conv y.

    The branches read r from outside of them, and nothing else does.
    """
    twice = helper.make_graph(
        [helper.make_node("Add", ["r", "r"], ["t"])], "then", [], [helper.make_tensor_value_info("t", TensorProto.FLOAT, MAP)]
    )
    once = helper.make_graph(
        [helper.make_node("Identity", ["r"], ["o"])], "else", [], [helper.make_tensor_value_info("o", TensorProto.FLOAT, MAP)]
    )
    nodes = [
        conv("x", "a"),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Greater", ["m", "zero"], ["yes"]),
        helper.make_node("If", ["yes"], ["i"], then_branch=twice, else_branch=once, name="branch"),
        conv("i", "y"),
    ]
    # Of low rank but for some noise, so that little need be lost.
    weights: dict[str, Array] = {"zero": np.array(0, np.float32)}
    for seed, name in enumerate("ay"):
        low = np.einsum("sr,rcij->scij", floats(8, 3, seed=seed), floats(3, 8, 3, 3, seed=seed + 5)) / 6
        weights[f"w_{name}"] = (low + 0.01 * floats(8, 8, 3, 3, seed=seed + 9)).astype(np.float32)
        weights[f"b_{name}"] = floats(8, seed=seed + 20)
    return model_of(nodes, weights)


def suppressed() -> onnx.ModelProto:
    """x -> Conv a -> Relu r -> Conv b -> boxes and scores -> NonMaxSuppression: no output has a gradient."""
    first = branching()
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in first.graph.initializer if tensor.name != "zero"}
    weights["w_b"], weights["b_b"] = weights.pop("w_y"), weights.pop("b_y")
    weights |= {"flat": np.array([1, 200, 4]), "one": np.array([1, 1, 200]), "axes": np.array([2]), "k": np.array([5])}
    nodes = [
        conv("x", "a"),
        helper.make_node("Relu", ["a"], ["r"]),
        conv("r", "b"),
        helper.make_node("Reshape", ["b", "flat"], ["boxes"]),
        helper.make_node("ReduceSum", ["boxes", "axes"], ["sums"], keepdims=0),
        helper.make_node("Reshape", ["sums", "one"], ["scores"]),
        helper.make_node("NonMaxSuppression", ["boxes", "scores", "k"], ["y"], name="nms"),
    ]
    return model_of(nodes, weights, TensorProto.INT64, batch=1)


def model_of(
    nodes: list[onnx.NodeProto], weights: dict[str, Array], kind: int = TensorProto.FLOAT, batch: int | str = "n"
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "cut",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *SHAPE])],
        [helper.make_tensor_value_info("y", kind, MAP if kind == TensorProto.FLOAT else ["found", 3])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def data_file(folder: Path) -> Path:
    x = floats(96, *SHAPE, seed=3)
    np.savez(folder / "data.npz", x_train=x[:64], x_test=x[64:])
    return folder / "data.npz"


def test_what_is_read_from_branches_is_an_output_and_what_they_give_is_fed() -> None:
    model = ir.from_proto(branching())
    with pytest.raises(UnsupportedError, match="1 of 6 nodes cannot be imported: If"):
        import_graph(model)
    net = import_graph(model, cut=True).eval()
    assert net.output_names == ("y", "r")
    assert net.given_names == ("i",)
    assert "node 'branch' (If" in net.refused
    x = floats(2, *SHAPE)
    with pytest.raises(ValueError, match="must be fed with i"):
        net(torch.from_numpy(x))
    net.feed(Outside(model, net.given_names))
    wanted = open_graph(exposed(model, net.output_names)).run({"x": x})
    for name, value in zip(net.output_names, net(torch.from_numpy(x)), strict=True):
        np.testing.assert_allclose(value.detach().numpy(), wanted[name], rtol=1e-4, atol=1e-4)
    assert [value.name for value in model.graph.outputs] == ["y"], "the model itself stays as it was"


def test_a_cut_that_leaves_nothing_to_learn_is_refused() -> None:
    nodes = [helper.make_node("Fused", ["x"], ["d"], name="first", domain="com.example"), helper.make_node("Relu", ["d"], ["y"])]
    with pytest.raises(UnsupportedError, match=r"node 'first' \(com\.example\.Fused"):
        import_graph(ir.from_proto(model_of(nodes, {})), cut=True)


@pytest.mark.parametrize("epochs", [0.0, 2.0])
def test_both_sides_of_a_branch_are_compressed(tmp_path: Path, epochs: float) -> None:
    path, listener = saved(branching(), tmp_path), Listener()
    verdict = compress(settings_for(path, tmp_path, "2x", data_file(tmp_path), epochs=epochs, simplify=False), listener)
    assert set(verdict.ranks) == {"a", "y"}
    (told,) = [line for line in listener.said if "1 of 6 nodes cannot be imported: If (1)" in line]
    assert ("values of y, r" in told) if epochs else told.startswith("no import: ")
    assert verdict.comparison.quality_other["cosine"] > 0.98
    written = onnx.load(tmp_path / "out.onnx")
    before = next(node for node in onnx.load(path).graph.node if node.op_type == "If")
    assert before in written.graph.node, "what was cut out is untouched"


def test_a_detector_is_trained_towards_what_its_suppression_reads(tmp_path: Path) -> None:
    path, listener = saved(suppressed(), tmp_path), Listener()
    verdict = compress(settings_for(path, tmp_path, "1.5x", data_file(tmp_path), epochs=1.0, simplify=False), listener)
    assert set(verdict.ranks) == {"a", "b"}
    assert "fine-tuning" in listener.phases
    assert any("values of boxes, scores" in line for line in listener.said)
