"""What stands in the folder in which a command is run: models and data that fit, or do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.layer_models import one_node, values
from tests.loading_models import FLOAT, model_of


def data_with(**changes: np.ndarray[Any, Any]) -> Callable[[Path], None]:
    """data.npz with some arrays exchanged."""

    def write(place: Path) -> None:
        with np.load(place / "data.npz") as data:
            arrays = {key: data[key] for key in data.files} | changes
        np.savez(place / "data.npz", **arrays)

    return write


def model_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def write(place: Path) -> None:
        (place / "model.onnx").write_bytes(change((place / "model.onnx").read_bytes()))

    return write


def no_layers(place: Path) -> None:
    onnx.save(one_node(helper.make_node("Relu", ["x"], ["y"]), (2, 3), (2, 3), {}), place / "model.onnx")


def only_depthwise(place: Path) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=8)
    onnx.save(one_node(node, (2, 8, 9, 8), (2, 8, 7, 6), {"w": values(8, 1, 3, 3)}), place / "model.onnx")


def unsupported(place: Path) -> None:
    """Ops that onnxruntime runs and the importer does not know."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("SequenceConstruct", ["c"], ["s"], name="first"),
        helper.make_node("ConcatFromSequence", ["s"], ["a"], name="second", axis=0),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Add", ["a", "r"], ["y"]),
    ]
    onnx.save(one_node(nodes, (2, 3, 4, 4), (2, 12, 2, 2), {"w": values(12, 3, 3, 3)}), place / "model.onnx")


def without_gradient(place: Path) -> None:
    """The class itself is the output, as in many models for segmentation."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("ArgMax", ["c"], ["a"], axis=1, keepdims=0),
        helper.make_node("Cast", ["a"], ["y"], to=onnx.TensorProto.FLOAT),
    ]
    onnx.save(one_node(nodes, (2, 3, 4, 4), (2, 2, 2), {"w": values(12, 3, 3, 3)}), place / "model.onnx")


def nothing(place: Path) -> None:
    pass


def folder_there(place: Path) -> None:
    (place / "folder").mkdir()


def nan() -> np.ndarray[Any, Any]:
    x = np.zeros((4, 3, 32, 32), np.float32)
    x[2, 1, 5, 6] = np.nan
    return x


def _image_net(place: Path, tail: list[onnx.NodeProto], held: dict[str, Any], sizes: list[int | str], *more: Any) -> None:
    """x -> Conv 3x3 to 12 channels -> c -> `tail` -> y."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), *tail]
    x = helper.make_tensor_value_info("x", FLOAT, [1, 3, *sizes])
    flat = tail[-1].op_type == "MatMul"
    y = helper.make_tensor_value_info("y", FLOAT, ["a", "b"] if flat else ["a", "b", "c", "d"])
    onnx.save(model_of(nodes, [x, *more], [y], {"w": values(12, 3, 3, 3)} | held), place / "model.onnx")


def picky(place: Path) -> None:
    """Height and width are open, and pictures of 11 x 13 are all that it takes."""
    tail = [helper.make_node("Reshape", ["c", "s"], ["r"]), helper.make_node("MatMul", ["r", "v"], ["y"])]
    _image_net(place, tail, {"s": np.array([1, 12 * 9 * 11]), "v": values(12 * 9 * 11, 2)}, ["H", "W"])


def not_numbers(place: Path) -> None:
    _image_net(place, [helper.make_node("Sqrt", ["c"], ["y"])], {}, [4, 4])


def indexed(place: Path) -> None:
    """A second input that is an index into a table of 5."""
    tail = [helper.make_node("Gather", ["t", "i"], ["g"]), helper.make_node("Add", ["c", "g"], ["y"])]
    _image_net(place, tail, {"t": values(5)}, [4, 4], helper.make_tensor_value_info("i", TensorProto.INT64, [1]))
