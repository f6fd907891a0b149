"""The whole run on graphs that hold more than layers: a recurrent net, a branch, a computed constant, fake quantisation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from batude_onnx.pipeline import compress, validate
from batude_onnx.settings import LayerWishes
from tests.layer_models import one_node, values
from tests.pipelines import check, saved, settings_for

IMAGE, FEATURES = (2, 3, 8, 8), (2, 16, 8, 8)
CONV = helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1])


def recurrent() -> onnx.ModelProto:
    """The columns of what a convolution gives, read by a bidirectional LSTM, as in OCR networks."""
    nodes = [
        CONV,
        helper.make_node("ReduceMean", ["c", "rows"], ["m"], keepdims=0),
        helper.make_node("Transpose", ["m"], ["t"], perm=[2, 0, 1]),
        helper.make_node("LSTM", ["t", "lw", "lr", "lb"], ["s"], hidden_size=5, direction="bidirectional"),
        helper.make_node("Transpose", ["s"], ["b"], perm=[2, 0, 1, 3]),
        helper.make_node("Flatten", ["b"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["y"]),
    ]
    held = {"w": values(16, 3, 3, 3), "lw": values(2, 20, 16), "lr": values(2, 20, 5), "lb": values(2, 40), "v": values(80, 10)}
    held["rows"] = np.array([2])
    return one_node(nodes, IMAGE, (2, 10), held)


def computed() -> onnx.ModelProto:
    """A scale that the graph computes from a constant."""
    nodes = [CONV, helper.make_node("Exp", ["k"], ["e"]), helper.make_node("Mul", ["c", "e"], ["y"])]
    return one_node(nodes, IMAGE, FEATURES, {"w": values(16, 3, 3, 3), "k": values(16, 1, 1)})


def quantised() -> onnx.ModelProto:
    nodes = [
        CONV,
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("Conv", ["d", "u"], ["y"]),
    ]
    held = {"w": values(16, 3, 3, 3), "u": values(16, 16, 1, 1), "s": np.array(0.05, np.float32), "z": np.array(0, np.int8)}
    return one_node(nodes, IMAGE, FEATURES, held)


def images(folder: Path) -> Path:
    path = folder / "images.npz"
    np.savez(path, x_train=np.random.default_rng(0).integers(0, 256, (48, 8, 8, 3), dtype=np.uint8))
    return path


@pytest.mark.parametrize("make", [recurrent, computed, quantised])
def test_trained_whole(tmp_path: Path, make: object) -> None:
    assert callable(make)
    settings = settings_for(saved(make(), tmp_path), tmp_path, "1.2x", images(tmp_path), epochs=1.0, simplify=False)
    verdict = compress(settings)
    after = check(verdict, settings)
    assert verdict.ranks
    if make is recurrent:
        held = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
        assert np.abs(held["lw"] - values(2, 20, 16)).max() > 0


def test_the_weights_of_a_branch_are_trained_too(tmp_path: Path) -> None:
    """They lie in a sub-graph, are part of the network, and are written back to where they came from."""
    inner = {"u": values(16, 16, 1, 1)}
    then = helper.make_graph(
        [helper.make_node("Conv", ["c", "u"], ["d"])],
        "then",
        [],
        [helper.make_empty_tensor_value_info("d")],
        [numpy_helper.from_array(array, name) for name, array in inner.items()],
    )
    other = helper.make_graph([helper.make_node("Relu", ["c"], ["r"])], "else", [], [helper.make_empty_tensor_value_info("r")])
    nodes = [CONV, helper.make_node("If", ["yes"], ["y"], then_branch=then, else_branch=other)]
    held = {"w": values(16, 3, 3, 3), "yes": np.array(True)}
    model = one_node(nodes, IMAGE, FEATURES, held)
    first = LayerWishes(exclude=("d",))
    settings = settings_for(saved(model, tmp_path), tmp_path, "1.6x", images(tmp_path), epochs=5.0, simplify=False, layers=first)
    verdict = compress(settings)
    assert all(difference.within for difference in (*verdict.surgery, *verdict.parity))
    (node,) = [node for node in onnx.load(settings.output).graph.node if node.op_type == "If"]
    (branch,) = [attribute.g for attribute in node.attribute if attribute.name == "then_branch"]
    assert np.abs(numpy_helper.to_array(branch.initializer[0]) - inner["u"]).max() > 0


@pytest.mark.parametrize("with_data", [True, False])
def test_what_an_output_that_is_a_list_holds_is_proved_too(tmp_path: Path, with_data: bool) -> None:
    nodes = [CONV, helper.make_node("Relu", ["c"], ["y"]), helper.make_node("SequenceConstruct", ["y", "c"], ["s"])]
    model = one_node(nodes, IMAGE, FEATURES, {"w": values(16, 3, 3, 3)})
    model.graph.output.append(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None))
    settings = settings_for(saved(model, tmp_path), tmp_path, "1.2x", images(tmp_path) if with_data else None, epochs=1.0)
    verdict = compress(settings)
    check(verdict, settings)
    found = validate(settings.model, settings.output, threads=1)
    for differences in (verdict.surgery, verdict.comparison.differences, found.differences):
        assert [difference.output for difference in differences] == ["y", "s[0]", "s[1]"]
    assert found.differences[2].max_absolute > 0
