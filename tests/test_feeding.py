"""What inputs are fed: values by type, sizes by wish and by trial, samples of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from batude_onnx.errors import ModelError
from batude_onnx.feeding import Feeding, settle
from batude_onnx.loading.inputs import input_specs
from batude_onnx.records import Given, Wishes
from batude_onnx.validation import open_graph
from tests.loading_models import model_of

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
Input = tuple[str, int, list[int | str | None]]


def graph(nodes: list[onnx.NodeProto], *inputs: Input, held: dict[str, Any] | None = None) -> onnx.ModelProto:
    """Nodes of which the last one's outputs are the graph's."""
    outputs = [onnx.ValueInfoProto(name=name) for name in nodes[-1].output]
    return model_of(nodes, [helper.make_tensor_value_info(*value) for value in inputs], outputs, held)


def fed(proto: onnx.ModelProto, wishes: Wishes | None = None) -> Feeding:
    model = ir.from_proto(proto)
    return settle(model, input_specs(model), wishes or Wishes(), lambda: open_graph(model, threads=1).run)


def passed(*inputs: Input) -> onnx.ModelProto:
    """A graph that does nothing with its inputs but give the first."""
    return graph([helper.make_node("Identity", [inputs[0][0]], ["y"])], *inputs)


def test_values_follow_the_seed() -> None:
    feeding = fed(passed(("x", FLOAT, ["N", 3])))
    first, same, other = (feeding.values(1000, seed)["x"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
    assert first.shape == (1000, 3)
    assert first.dtype == np.float32
    # Standard normal: the mean of 3000 draws has a deviation of 0.018, their deviation one of 0.013.
    assert abs(first.mean()) < 0.1
    assert abs(first.std() - 1) < 0.1


def test_types() -> None:
    feeding = fed(
        passed(
            ("i", INT64, [100]),
            ("u", TensorProto.UINT8, [100]),
            ("b", TensorProto.BOOL, [100]),
            ("h2", TensorProto.FLOAT16, [100]),
            ("f", TensorProto.BFLOAT16, [100]),
            ("s", FLOAT, []),
        )
    )
    values = feeding.values(2, 0)
    for spec in feeding.specs:
        assert values[spec.name].dtype == spec.dtype
    for name in "iu":
        assert (values[name].min(), values[name].max()) == (0, 3)
    assert set(values["b"].tolist()) == {False, True}
    assert values["s"].shape == ()


def test_text_cannot_be_made_up() -> None:
    with pytest.raises(ModelError, match="only float, integer and boolean"):
        fed(passed(("t", TensorProto.STRING, [2]))).values(1, 0)


def test_what_is_too_large_is_refused() -> None:
    with pytest.raises(ModelError, match="more than can be run; correct its shape"):
        fed(passed(("x", FLOAT, [1, 2**16, 2**16]))).values(1, 0)


def test_a_fixed_batch_stays() -> None:
    assert fed(passed(("x", FLOAT, [1, 2]))).values(8, 0)["x"].shape == (1, 2)


@pytest.mark.parametrize(("kind", "name"), [(TensorProto.UINT8, "uint8"), (FLOAT, "float32")])
@pytest.mark.parametrize("shape", [[2, 3, 48, 40], [2, 48, 40, 3]])
def test_pictures_are_smooth(kind: int, name: str, shape: list[int]) -> None:
    pictures = fed(passed(("x", kind, [*shape]))).values(1, 0)["x"]
    low, high = (0, 255) if name == "uint8" else (-2, 2)
    assert pictures.dtype == name
    assert pictures.min() >= low
    assert pictures.max() <= high
    assert np.ptp(pictures.astype(float)) > 0.8 * (high - low)
    axis = 2 if shape[1] == 3 else 1
    near = np.abs(np.diff(pictures.astype(float), axis=axis)).mean()
    shuffled = np.random.default_rng(0).permuted(pictures.astype(float), axis=axis)
    assert near < 0.4 * np.abs(np.diff(shuffled, axis=axis)).mean()
    # The twin: what is no picture is noise, in which neighbours differ as much as any.
    noise = fed(passed(("x", FLOAT, [2, 5, 48, 40]))).values(1, 0)["x"]
    assert np.abs(np.diff(noise, axis=2)).mean() > 1


def test_a_given_range_is_kept_whatever_the_type() -> None:
    wishes = Wishes({"i": Given(None, 5, 7), "f": Given((4, 9), -3.0, -2.5), "x": Given(None, 0.0, 1.0), "c": Given(None, 8, 8)})
    inputs: list[Input] = [("i", INT64, ["N", 99]), ("f", FLOAT, ["N", "T"]), ("x", FLOAT, [1, 3, 16, 16]), ("c", FLOAT, [2])]
    values = fed(passed(*inputs), wishes).values(2, 0)
    assert set(values["i"].ravel().tolist()) == {5, 6, 7}
    assert values["f"].shape == (4, 9)
    assert -3.0 <= values["f"].min() < values["f"].max() <= -2.5
    assert 0.0 <= values["x"].min() < 0.2 < 0.8 < values["x"].max() <= 1.0
    assert values["c"].tolist() == [8.0, 8.0]


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        (TensorProto.UINT8, Given(None, 0, 256), "range 0..256 does not fit input x: uint8.*whole numbers from 0 to 255"),
        (TensorProto.UINT8, Given(None, -1, 1), "range -1..1 does not fit"),
        (INT64, Given(None, 0, 1.5), "range 0..1.5 does not fit"),
        (TensorProto.BOOL, Given(None, 0, 2), "whole numbers from 0 to 1"),
        (FLOAT, Given(None, -1e39, 1), "range -1e[+]39..1 does not fit input x: .* it takes numbers up to 3.4"),
        (TensorProto.FLOAT16, Given(None, 0, 1e5), "range 0..100000 does not fit"),
        (FLOAT, Given((10**22, 3, 5, 7)), "is too large; give sizes up to 2,147,483,647"),
        (FLOAT, Given((2, 3)), r"shape \(2, 3\) does not fit input x"),
        (FLOAT, Given((2, 4, 5, 7)), "does not fit input x"),
        (FLOAT, Given((2, 3, 0, 7)), "only sizes that are not numbers can be chosen, from 1 up"),
    ],
)
def test_what_an_input_cannot_hold_is_refused(kind: int, given: Given, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        fed(passed(("x", kind, ["N", 3, "H", None])), Wishes({"x": given}))


def test_wishes_for_what_is_not_there() -> None:
    model = passed(("x", FLOAT, ["N", 3, "H", "W"]), ("z", FLOAT, ["N", "T"]))
    with pytest.raises(ModelError, match="given for 'q', which is no input; the inputs are x, z"):
        fed(model, Wishes({"q": Given((1,))}))
    with pytest.raises(ModelError, match="no input has a dimension 'height'; there are N, H, W, T"):
        fed(model, Wishes(dims={"height": 4}))
    with pytest.raises(ModelError, match="no dimension of the inputs has a name; give --input NAME=SHAPE"):
        fed(passed(("x", FLOAT, [1, 3, None, None])), Wishes(dims={"height": 4}))
    with pytest.raises(ModelError, match=r"shape \(1, 3, 8, 8\) of input x: float32.* and dimension H=9 contradict each other"):
        fed(model, Wishes({"x": Given((1, 3, 8, 8))}, {"H": 9}))
    with pytest.raises(ModelError, match="dimension H=10000000000 is too large"):
        fed(model, Wishes(dims={"H": 10**10}))


def test_dimensions_are_fixed_by_name_in_all_inputs() -> None:
    model = passed(("x", FLOAT, ["N", 3, "H", "W"]), ("m", FLOAT, ["N", "H"]))
    feeding = fed(model, Wishes(dims={"H": 5, "W": 7, "N": 2}))
    assert feeding.taken == ""
    assert {name: array.shape for name, array in feeding.values(4, 0).items()} == {"x": (2, 3, 5, 7), "m": (2, 5)}


def test_only_what_is_left_open_is_chosen() -> None:
    feeding = fed(passed(("x", FLOAT, ["N", 3, "H", "W"])), Wishes(dims={"H": 48}))
    assert feeding.shapes(4) == {"x": (4, 3, 48, 224)}
    assert feeding.taken == "open input sizes were chosen: x=1,3,48,224; others by --dim W=SIZE or --input x=1,3,48,224"


def multiple_of_64() -> onnx.ModelProto:
    """Rows in groups of 64, which 224 are not."""
    nodes = [helper.make_node("Reshape", ["x", "s"], ["r"]), helper.make_node("ReduceMean", ["r"], ["y"])]
    return graph(nodes, ("x", FLOAT, ["N", 3, "H", "W"]), held={"s": np.array([1, 3, -1, 64 * 64])})


def test_sizes_are_tried_until_the_model_runs() -> None:
    feeding = fed(multiple_of_64())
    assert feeding.shapes() == {"x": (1, 3, 256, 256)}
    assert "x=1,3,256,256; others by --dim H=SIZE --dim W=SIZE or --input x=1,3,256,256" in feeding.taken


def test_where_no_size_runs_it_is_said_how_to_give_them() -> None:
    nodes = [helper.make_node("Reshape", ["x", "s"], ["y"])]
    model = graph(nodes, ("x", FLOAT, ["N", 3, "H", "W"]), held={"s": np.array([1, 3, 11, 13])})
    feeding = fed(model)
    assert feeding.shapes() == {}
    with pytest.raises(ModelError) as error:
        feeding.values(1, 0)
    said = str(error.value)
    assert said.startswith(
        "the sizes of x: float32[N, 3, H, W] are open, and none of the usual ones runs (onnxruntime cannot run"
    )
    assert said.endswith("give them: --dim H=SIZE --dim W=SIZE or --input x=1,3,SIZE,SIZE")
    assert fed(model, Wishes({"x": Given((1, 3, 11, 13))})).values(1, 0)["x"].shape == (1, 3, 11, 13)


def test_a_size_whose_outputs_are_no_numbers_is_passed_over() -> None:
    """0 / 0 for 224, of which an even number is subtracted that is its own."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], start=2, end=3),
        helper.make_node("Cast", ["s"], ["f"], to=FLOAT),
        helper.make_node("Sub", ["f", "c"], ["d"]),
        helper.make_node("Div", ["d", "d"], ["y"]),
    ]
    model = graph(nodes, ("x", FLOAT, [1, 3, "H", "W"]), held={"c": np.array([224], np.float32)})
    assert fed(model).shapes() == {"x": (1, 3, 256, 256)}


@pytest.mark.parametrize("name", ["N", "batch_size", None])
def test_the_batch_of_a_state_comes_second(name: str | None) -> None:
    """Also where its name is another than that of the first input's batch, or none."""
    model = passed(("x", FLOAT, [name, 8]), ("h", FLOAT, [2, name, 16]))
    feeding = fed(model)
    feeds = feeding.values(4, 0)
    assert {key: array.shape for key, array in feeds.items()} == {"x": (4, 8), "h": (2, 4, 16)}
    assert {key: array.shape for key, array in feeding.first(feeds).items()} == {"x": (1, 8), "h": (2, 1, 16)}


def test_a_size_of_two_inputs_is_the_batch_of_both() -> None:
    """A sequence has its length first."""
    model = passed(("s", FLOAT, ["N", 48]), ("xs", FLOAT, ["T", "N", 32]))
    feeds = fed(model).values(4, 0)
    assert [feeds["s"].shape, feeds["xs"].shape[1:]] == [(4, 48), (4, 32)]
    for asked in (Wishes(dims={"N": 3}), Wishes({"s": Given((3, 48)), "xs": Given((5, 3, 32))})):
        given = fed(model, asked)
        assert {key: array.shape[-2] for key, array in given.first(given.values(1, 0)).items()} == {"s": 3, "xs": 3}
    # Of more data as many as were asked for.
    one = fed(passed(("x", FLOAT, ["N", 8])), Wishes(dims={"N": 1}))
    assert one.first({"x": np.zeros((64, 8), np.float32)})["x"].shape == (1, 8)


def test_one_sample_of_a_fixed_batch_is_the_batch() -> None:
    feeding = fed(passed(("x", FLOAT, [2, 8])))
    assert feeding.first({"x": np.zeros((6, 8), np.float32)})["x"].shape == (2, 8)


def test_an_open_size_that_is_no_batch_is_chosen() -> None:
    assert fed(passed(("x", FLOAT, [1, 1, 64, "width"]))).shapes(4) == {"x": (1, 1, 64, 224)}
