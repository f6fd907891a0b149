"""A fixed batch opened: sizes that are written down in the graph follow the data."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper

from batude_onnx.importer import any_batch, import_graph
from tests.layer_models import read, values
from tests.loading_models import FLOAT, model_of


def model(target: list[int], back: list[int], batch: int, *, held_as: str = "initializer") -> onnx.ModelProto:
    """(batch, 4, 6) is reshaped to `target`, scaled, and reshaped to `back`."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Reshape", ["m", "there"], ["r"]),
        helper.make_node("Mul", ["r", "k"], ["s"]),
        helper.make_node("Reshape", ["s", "back"], ["y"]),
    ]
    held = {"w": values(6, 6), "k": values(1), "there": np.array(target), "back": np.array(back)}
    if held_as == "Constant":
        there = onnx.numpy_helper.from_array(held.pop("there"))
        nodes.insert(0, helper.make_node("Constant", [], ["there"], value=there))
    x, y = (helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in (("x", [batch, 4, 6]), ("y", None)))
    return model_of(nodes, [x], [y], held)


@pytest.mark.parametrize(
    ("target", "back", "batch"),
    [
        ([1, 24], [1, 4, 6], 1),
        ([1, -1], [1, 4, 6], 1),
        ([4, 6], [1, 4, 6], 1),  # the batch is merged with another axis, and taken apart again
        ([2, 24], [2, -1, 6], 2),
        ([8, 6], [2, 4, 6], 2),
        ([0, 24], [0, 4, 6], 2),
        ([-1, 24], [-1, 4, 6], 1),
    ],
)
@pytest.mark.parametrize("held_as", ["initializer", "Constant"])
def test_each_sample_gives_what_it_gave_alone(target: list[int], back: list[int], batch: int, held_as: str) -> None:
    graph = read(model(target, back, batch, held_as=held_as))
    before = ir.to_proto(graph).SerializeToString()
    net, opened = import_graph(graph), import_graph(any_batch(graph, batch))
    assert ir.to_proto(graph).SerializeToString() == before
    x = torch.from_numpy(values(3 * batch, 4, 6, seed=3))
    (many,) = opened(x)
    for start in range(0, len(x), batch):
        (few,) = net(x[start : start + batch])
        torch.testing.assert_close(many[start : start + batch], few)
