"""Whole runs on models of several inputs, none of which is described on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from batude_onnx.errors import DataError, ModelError
from batude_onnx.pipeline import compress, inspect, validate
from batude_onnx.records import Given, Wishes
from batude_onnx.settings import Source
from tests.layer_models import values
from tests.loading_models import FLOAT, model_of
from tests.pipelines import Listener, check, saved, settings_for

node = helper.make_node


def several() -> onnx.ModelProto:
    """Ids looked up in a table and masked, averaged, a state added; all of it is lost unless the rate is 16000."""
    nodes = [
        node("Gather", ["table", "ids"], ["g"]),
        node("Unsqueeze", ["mask", "two"], ["u"]),
        node("Cast", ["u"], ["m"], to=FLOAT),
        node("Mul", ["g", "m"], ["gm"]),
        node("MatMul", ["gm", "w"], ["h"]),
        node("Relu", ["h"], ["hr"]),
        node("ReduceMean", ["hr", "one"], ["mean"], keepdims=0),
        node("Slice", ["state", "zero", "one", "zero"], ["first"]),
        node("Squeeze", ["first", "zero"], ["s"]),
        node("Add", ["mean", "s"], ["added"]),
        node("Equal", ["rate", "right"], ["is"]),
        node("Where", ["is", "added", "nothing"], ["kept"]),
        node("MatMul", ["kept", "v"], ["y"]),
    ]
    held: dict[str, Any] = {
        "table": values(50, 8), "w": values(8, 12), "v": values(12, 10, seed=1), "two": np.array([2]), "one": np.array([1]),
        "zero": np.array([0]), "right": np.int64(16000), "nothing": np.full((1, 12), np.nan, np.float32),
    }  # fmt: skip
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", "T"]),
        helper.make_tensor_value_info("mask", TensorProto.INT64, ["N", "T"]),
        helper.make_tensor_value_info("state", FLOAT, [2, "N", 12]),
        helper.make_tensor_value_info("rate", TensorProto.INT64, []),
    ]
    return model_of(nodes, inputs, [helper.make_tensor_value_info("y", FLOAT, ["N", 10])], held)


def test_several_inputs_are_compressed_and_validated(tmp_path: Path) -> None:
    settings, told = settings_for(saved(several(), tmp_path), tmp_path, "macs=1.2x"), Listener()
    verdict = compress(settings, told)
    check(verdict, settings)
    assert verdict.ranks
    chosen = "open input sizes were chosen: ids=1,64, mask=1,64; others by --dim T=SIZE or --input ids=1,64"
    assert chosen in told.said
    assert verdict.facts["inputs"] == {
        "ids": {"shape": (None, 64), "low": 0.0, "high": 49.0},
        "mask": {"shape": (None, 64), "low": 1.0, "high": 1.0},
        "state": {"shape": (2, None, 12), "low": -0.1, "high": 0.1},
        "rate": {"shape": (), "low": 16000.0, "high": 16000.0},
    }
    told = Listener()
    found = validate(settings.model, settings.output, threads=1, watch=told)
    assert told.said == [chosen]
    assert found.latency["batch"] == 1
    # Smaller, so not the same, but not far.
    assert 0.5 < found.differences[0].cosine < 1
    same = validate(settings.model, settings.model, threads=1, inputs=Wishes(dims={"T": 5}))
    assert same.differences[0].max_absolute == 0
    assert same.cost_original.macs == 5 * 8 * 12 + 12 * 10


def test_what_is_made_up_matters(tmp_path: Path) -> None:
    """The twin: with ids beyond the table, or another rate, there is nothing to compare."""
    path = saved(several(), tmp_path)
    for wishes, said in (
        (Wishes({"ids": Given(None, 50, 50)}), "check the shapes and types fed, such as --input ids="),
        (Wishes({"rate": Given(None, 8000, 8000)}), "output 'y' holds NaN, or infinities only, on inputs made up"),
    ):
        with pytest.raises(ModelError, match=said):
            compress(settings_for(path, tmp_path, "1.2x", inputs=Wishes(wishes.inputs, {"T": 7})))
        with pytest.raises(ModelError, match=said):
            validate(path, path, threads=1, inputs=Wishes(wishes.inputs, {"T": 7}))


def test_sizes_in_the_data_come_before_those_that_are_chosen(tmp_path: Path) -> None:
    nodes = [node("Conv", ["x", "w"], ["c"]), node("GlobalAveragePool", ["c"], ["p"]), node("Flatten", ["p"], ["y"])]
    x, y = helper.make_tensor_value_info("x", FLOAT, ["N", 8, "H", "W"]), helper.make_tensor_value_info("y", FLOAT, ["N", 12])
    path = saved(model_of(nodes, [x], [y], {"w": values(12, 8, 3, 3)}), tmp_path)
    np.savez(tmp_path / "x.npz", x_train=values(9, 8, 10, 12))
    told = Listener()
    assert validate(path, path, Source(tmp_path / "x.npz"), threads=1, watch=told).cost_other.macs == 12 * 8 * 9 * 8 * 10
    assert told.said == ["9 samples"]
    assert inspect(path).cost.macs == 12 * 8 * 9 * 222 * 222


def test_data_of_several_inputs_decide_whether_two_models_agree(tmp_path: Path) -> None:
    first = saved(several(), tmp_path)
    changed = several()
    (table,) = [tensor for tensor in changed.graph.initializer if tensor.name == "table"]
    array = numpy_helper.to_array(table).copy()
    array[7] += 1
    table.CopyFrom(numpy_helper.from_array(array, "table"))
    (tmp_path / "other").mkdir()
    second = saved(changed, tmp_path / "other")
    runs: dict[str, Any] = {
        "ids": np.array([[[1, 2, 3]], [[4, 5, 7]], [[8, 9, 10]]]), "mask": np.ones((3, 1, 3), np.int64),
        "state": values(3, 2, 1, 12), "rate": np.full(3, 16000),
    }  # fmt: skip
    np.savez(tmp_path / "runs.npz", **runs)
    told = Listener()
    found = validate(first, second, Source(tmp_path / "runs.npz"), threads=1, watch=told)
    assert told.said == []
    assert found.cost_original.macs == 3 * 8 * 12 + 12 * 10
    # Row 7 of the table is looked up in the second run only.
    assert found.differences[0].max_absolute > 1e-3
    assert found.divergence is not None
    assert found.divergence.node == "g"
    few = validate(first, second, Source(tmp_path / "runs.npz", 1), threads=1)
    assert few.differences[0].max_absolute == 0
    assert few.divergence is None
    with pytest.raises(DataError, match="are for models of one input of floating point"):
        validate(first, second, Source(tmp_path / "runs.npz", mean=(0.5,)), threads=1)
    np.savez(tmp_path / "runs.npz", **{name: array for name, array in runs.items() if name != "rate"})
    with pytest.raises(DataError, match="wants an array 'rate' whose first axis counts the runs"):
        validate(first, second, Source(tmp_path / "runs.npz"), threads=1)
