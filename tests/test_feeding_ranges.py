"""What an input holds, as its name and the graph show it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.layer_models import values
from tests.test_feeding import FLOAT, INT64, Input, fed, graph, passed

node = helper.make_node


def span(proto: onnx.ModelProto, name: str = "x") -> tuple[float | None, float | None]:
    given = fed(proto).given[name]
    return given.low, given.high


IMAGE: Input = ("x", FLOAT, [1, 3, 8, 8])
SHORT: Input = ("x", INT64, [3, 2])
IDS: Input = ("x", INT64, ["N", 16])
NOTHING = (None, None)


def one(op: str, held: Any, *, swapped: bool = False, x: Input = IMAGE, **attributes: Any) -> onnx.ModelProto:
    return graph([node(op, ["c", "x"] if swapped else ["x", "c"], ["y"], **attributes)], x, held={"c": np.asarray(held)})


def f(*numbers: float) -> np.ndarray[Any, Any]:
    return np.array(numbers, np.float32)


def normalised() -> onnx.ModelProto:
    """Bytes to floats, scaled, then normalised: the first of these tells."""
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        node("Div", ["t", "c"], ["d"]),
        node("Sub", ["d", "m"], ["y"]),
    ]
    return graph(nodes, ("x", FLOAT, [1, 8, 8, 3]), held={"c": f(255), "m": f(0.5)})


def batchnorm() -> onnx.ModelProto:
    held = {"s": f(1, 1, 1), "b": f(0, 0, 0), "m": f(100, 120, 130), "v": f(2500, 2500, 2500)}
    return graph([node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"])], IMAGE, held=held)


def quantized(x: Input) -> onnx.ModelProto:
    return graph([node("QuantizeLinear", ["x", "s", "z"], ["y"])], x, held={"s": f(0.5)[0], "z": np.uint8(55)})


def recurrent(name: str = "x") -> onnx.ModelProto:
    """x is a state of two layers, of which the first is read."""
    nodes = [
        node("Slice", [name, "zero", "one", "zero"], ["h"]),
        node("GRU", ["d", "w", "r", "", "", "h"], ["y"], hidden_size=2),
    ]
    held = {"w": values(1, 6, 4), "r": values(1, 6, 2), "zero": np.array([0]), "one": np.array([1])}
    return graph(nodes, (name, FLOAT, [2, 1, 2]), ("d", FLOAT, [5, 1, 4]), held=held)


def counted() -> onnx.ModelProto:
    """x is how many of 5 steps count."""
    held = {"w": values(1, 6, 4), "r": values(1, 6, 2)}
    gru = node("GRU", ["d", "w", "r", "", "x"], ["y"], hidden_size=2)
    return graph([gru], ("d", FLOAT, [5, 1, 4]), ("x", TensorProto.INT32, [1]), held=held)


def rate() -> onnx.ModelProto:
    """What an If asks of a sampling rate."""
    nodes = [node("Equal", ["x", "c"], ["e"]), node("Cast", ["e"], ["y"], to=FLOAT)]
    return graph(nodes, ("x", INT64, []), held={"c": np.int64(16000)})


def two_tables() -> onnx.ModelProto:
    nodes = [
        node("Unsqueeze", ["x", "a"], ["u"]),
        node("Gather", ["t", "u"], ["g"]),
        node("Gather", ["s", "x"], ["h"]),
        node("Add", ["g", "h"], ["y"]),
    ]
    return graph(nodes, ("x", INT64, [3]), held={"t": values(30, 2), "s": values(20, 2), "a": np.array([1])})


def gathered(axis: int) -> onnx.ModelProto:
    return graph([node("Gather", ["t", "x"], ["y"], axis=axis)], IDS, held={"t": values(30, 20)})


SHOWN = {
    "bytes divided": (normalised, (0, 255)),
    "bytes multiplied": (lambda: one("Mul", f(1 / 255)), (0, 255)),
    "a mean of bytes": (lambda: one("Sub", f(103.9, 116.8, 123.7).reshape(1, 3, 1, 1)), (0, 255)),
    "a negative mean is added": (lambda: one("Add", f(-127.5)), (0, 255)),
    "a mean of 0..1": (lambda: one("Sub", f(0.485, 0.456, 0.406).reshape(1, 3, 1, 1)), (0, 1)),
    "doubled": (lambda: one("Mul", f(2)), (0, 1)),
    "cast to bytes": (lambda: graph([node("Cast", ["x"], ["y"], to=TensorProto.UINT8)], IMAGE), (0, 255)),
    "statistics": (batchnorm, (0, 230)),
    "no normalisation": (lambda: passed(IMAGE), (-2, 2)),
    "quantized": (lambda: quantized(IMAGE), (-27.5, 100)),
    "quantized, no picture": (lambda: quantized(("x", FLOAT, [1, 80])), (-27.5, 100)),
    "arithmetic on what is no picture": (lambda: one("Div", f(255), x=("x", FLOAT, [1, 80])), NOTHING),
    "a table": (lambda: gathered(0), (0, 29)),
    "columns of a table": (lambda: gathered(-1), (0, 19)),
    "two tables": (two_tables, (0, 19)),
    "one-hot": (
        lambda: graph([node("OneHot", ["x", "d", "v"], ["y"])], IDS, held={"d": np.array(7), "v": f(0, 1)}), (0, 6),
    ),
    "elements": (
        lambda: graph([node("GatherElements", ["t", "x"], ["y"], axis=1)], SHORT, held={"t": values(3, 9)}),
        (0, 8),
    ),
    "integers of no known use": (lambda: passed(IDS), (0, 3)),
    "a flag that is compared": (rate, (16000, 16000)),
    "ids that are compared": (lambda: one("Equal", np.int64(7), x=IDS), (0, 3)),
    "a state": (recurrent, (-0.1, 0.1)),
    "a count of steps": (counted, (1, 1)),
    "a long wave": (lambda: passed(("x", FLOAT, ["N", 16000])), (-1, 1)),
    "bytes": (lambda: passed(("x", TensorProto.UINT8, [1, 3, 8, 8])), (0, 255)),
    "a picture of bytes": (lambda: passed(("x", TensorProto.UINT8, [8, 8, 3])), (0, 255)),
    "signed bytes": (lambda: passed(("x", TensorProto.INT8, [1, 3, 8, 8])), (-128, 127)),
}  # fmt: skip


@pytest.mark.parametrize("case", SHOWN)
def test_what_the_graph_shows(case: str) -> None:
    make, wanted = SHOWN[case]
    assert span(make()) == pytest.approx(wanted) if wanted != NOTHING else span(make()) == NOTHING


NAMED: dict[str, tuple[Input, tuple[float, float] | tuple[None, None]]] = {
    "attention_mask": (("attention_mask", INT64, ["N", 16]), (1, 1)),
    "mask of floats": (("src_mask", FLOAT, ["N", 16]), (1, 1)),
    "mask of flags": (("mask", TensorProto.BOOL, ["N", 16]), (1, 1)),
    "padding mask": (("key_padding_mask", TensorProto.BOOL, ["N", 16]), (0, 0)),
    "length": (("audio_length", INT64, ["N"]), (12, 12)),
    "lens": (("x_lens", TensorProto.INT32, ["N"]), (12, 12)),
    "no length": (("silence", INT64, ["N"]), (0, 3)),
    "lengths that are many": (("lengths", INT64, ["N", 40]), (0, 3)),
    "scale": (("scale_factor", FLOAT, ["N", 2]), (1, 1)),
    "state": (("state", FLOAT, [2, "N", 4]), (-0.1, 0.1)),
    "h0": (("h0", FLOAT, [2, "N", 4]), (-0.1, 0.1)),
    "cache": (("conv_cache.1", FLOAT, ["N", 4]), (-0.1, 0.1)),
    "hidden states are features": (("encoder_hidden_states", FLOAT, ["N", 4, 8]), NOTHING),
    "sound": (("noisy_wav", FLOAT, ["N", 160]), (-1, 1)),
    "features": (("features", FLOAT, ["N", 160]), NOTHING),
}


@pytest.mark.parametrize("case", NAMED)
def test_what_a_name_shows(case: str) -> None:
    value, wanted = NAMED[case]
    assert span(passed(("data", FLOAT, ["N", 12, 20]), value), value[0]) == wanted


@pytest.mark.parametrize(
    ("other", "size"),
    [
        (("data", FLOAT, ["N", 80, "T"]), 64),  # the axis that is open
        (("data", FLOAT, ["N", 12, 20]), 12),  # else the smaller, which is never too long
        (("data", FLOAT, ["N", 3, 32, 48]), 32),  # of a picture its height
    ],
)
def test_a_length_is_that_of_the_largest_other_input(other: Input, size: int) -> None:
    assert span(passed(other, ("n_length", INT64, [1]), ("small", FLOAT, [1, 2])), "n_length") == (size, size)


def test_ids_made_up_are_run() -> None:
    """The twin of the ranges: below a table's size all is well, at it onnxruntime refuses."""
    from batude_onnx.errors import ModelError
    from batude_onnx.records import Given, Wishes
    from batude_onnx.validation import open_session

    model = gathered(0)
    session = open_session(model.SerializeToString(), threads=1)
    session.run(fed(model).values(8, 0))
    with pytest.raises(ModelError, match="Gather"):
        session.run(fed(model, Wishes({"x": Given(None, 30, 30)})).values(8, 0))
