"""What the finished file holds and where: no larger than it must be, and in as many files as the original."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from batude_onnx.pipeline import compress
from batude_onnx.settings import LayerWishes
from tests.layer_models import one_node, values
from tests.pipelines import Listener, check, saved, settings_for

WEIGHTS = {"w": values(24, 16, 3, 3), "v": values(24, 24, 3, 3, seed=1)}


def convolutions(**more: np.ndarray) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4, name="first"),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "v"], ["y"], pads=[1] * 4),
    ]
    return one_node(nodes, [2, 16, 8, 8], [2, 24, 8, 8], {**WEIGHTS, **more})


def test_half_precision_behind_a_cast_stays(tmp_path: Path) -> None:
    """onnxsim computes the casts of constants, which would make single precision of them."""
    proto = convolutions()
    for tensor in list(proto.graph.initializer):
        half = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name + "16")
        tensor.CopyFrom(half)
        name = half.name.removesuffix("16")
        proto.graph.node.insert(0, helper.make_node("Cast", [half.name], [name], to=TensorProto.FLOAT))
    path, told = saved(proto, tmp_path), Listener()
    settings = settings_for(path, tmp_path, "1.6x")
    check(compress(settings, told), settings)
    assert settings.output.stat().st_size < path.stat().st_size / 1.4
    assert any("onnxsim would make the file larger" in line for line in told.said)
    assert {tensor.data_type for tensor in onnx.load(settings.output).graph.initializer} == {TensorProto.FLOAT16}


def test_a_constant_that_is_computed_is_not_stored(tmp_path: Path) -> None:
    proto = convolutions(shape=np.array([1, 24, 128, 128]))
    proto.graph.node.append(helper.make_node("ConstantOfShape", ["shape"], ["z"]))
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 24, 128, 128]))
    path = saved(proto, tmp_path)
    settings = settings_for(path, tmp_path, "1.5x")
    check(compress(settings), settings)
    assert settings.output.stat().st_size < path.stat().st_size


def test_simplified_or_not_what_is_kept_is_kept_as_it_was(tmp_path: Path) -> None:
    proto = convolutions()
    proto.graph.node[1].doc_string = "what is below zero is cut"
    proto.graph.value_info.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, [2, 24, "rows", "columns"]))
    settings = settings_for(saved(proto, tmp_path), tmp_path, "1.5x")
    check(compress(settings), settings)
    made = onnx.load(settings.output).graph
    assert made.value_info[0] == proto.graph.value_info[0]
    assert proto.graph.node[1] in made.node


@pytest.mark.parametrize("simplify", [True, False])
def test_external_data_lie_beside_the_new_file_too(tmp_path: Path, simplify: bool) -> None:
    proto = convolutions()
    path = tmp_path / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    settings = settings_for(path, tmp_path, "1.5x", simplify=simplify)
    check(compress(settings), settings)
    assert settings.output.stat().st_size < 3000 < (tmp_path / "out.onnx.data").stat().st_size


def test_external_data_of_constant_nodes_are_the_models_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the tool is started, and whatever else of that name lies there."""
    proto, folder, elsewhere = convolutions(), tmp_path / "model", tmp_path / "elsewhere"
    held = {tensor.name: tensor for tensor in proto.graph.initializer}
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["v"], value=held["v"]))
    proto.graph.initializer.remove(held["v"])
    folder.mkdir()
    elsewhere.mkdir()
    path = folder / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=0, convert_attribute=True)
    (elsewhere / "weights.bin").write_bytes(bytes((folder / "weights.bin").stat().st_size))
    monkeypatch.chdir(elsewhere)
    settings = settings_for(path, tmp_path, "1.5x")
    verdict = compress(settings)
    check(verdict, settings)
    assert "y" in verdict.ranks


def test_weights_that_callers_may_replace_stay_inputs(tmp_path: Path) -> None:
    proto = convolutions()
    proto.graph.input.append(helper.make_tensor_value_info("v", TensorProto.FLOAT, [24, 24, 3, 3]))
    settings, told = settings_for(saved(proto, tmp_path), tmp_path, "1.2x", layers=LayerWishes(include=("c",))), Listener()
    verdict = compress(settings, told)
    check(verdict, settings)
    assert set(verdict.ranks) == {"c"}
    assert any("callers may replace weights" in line for line in told.said)
