"""Input specifications and the seeded values that fit them."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest
from onnx import TensorProto, helper

from batude_onnx.errors import ModelError
from batude_onnx.loading.inputs import InputSpec, generate, input_specs
from tests.loading_models import conv_bn, model_of


def specs_of(*inputs: tuple[str, int, list[int | str | None] | None]) -> tuple[InputSpec, ...]:
    values = [helper.make_tensor_value_info(*value) for value in inputs]
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    model = model_of([helper.make_node("Identity", [inputs[0][0]], ["out"])], values, [output])
    return input_specs(onnx_ir.from_proto(model))


def test_sizes_are_numbers_names_or_unknown() -> None:
    specs = specs_of(("x", TensorProto.FLOAT16, ["N", 3, None, 8]))
    assert specs == (InputSpec("x", np.dtype(np.float16), ("N", 3, None, 8)),)
    assert str(specs[0]) == "x: float16[N, 3, ?, 8]"


@pytest.mark.parametrize("size", [-1, 0])
def test_a_size_below_one_is_open(size: int) -> None:
    """As PaddlePaddle's exporter writes them."""
    assert specs_of(("x", TensorProto.FLOAT, [size, 3, size]))[0].shape == (None, 3, None)


@pytest.mark.parametrize("ir_version", [3, 10])
def test_initializers_are_not_inputs(ir_version: int) -> None:
    """Before IR version 4 every initializer is listed among the inputs too."""
    model = onnx_ir.from_proto(conv_bn(ir_version=ir_version))
    assert [spec.name for spec in input_specs(model)] == ["x"]


def test_an_input_without_a_shape() -> None:
    with pytest.raises(ModelError, match="input 'x' declares no shape"):
        specs_of(("x", TensorProto.FLOAT, None))


def test_an_input_that_is_no_tensor() -> None:
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    output = helper.make_tensor_value_info("n", TensorProto.INT64, [])
    model = model_of([helper.make_node("SequenceLength", ["s"], ["n"])], [sequence], [output])
    with pytest.raises(ModelError, match="input 's' is not a tensor"):
        input_specs(onnx_ir.from_proto(model))


def test_values_follow_the_seed() -> None:
    specs = specs_of(("x", TensorProto.FLOAT, ["N", 3]))
    first, same, other = (generate(specs, 1000, seed)["x"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
    assert first.shape == (1000, 3)
    assert first.dtype == np.float32
    # Standard normal: the mean of 3000 draws has a deviation of 0.018, their deviation one of 0.013.
    assert abs(first.mean()) < 0.1
    assert abs(first.std() - 1) < 0.1


def test_types() -> None:
    specs = specs_of(
        ("i", TensorProto.INT64, [100]),
        ("u", TensorProto.UINT8, [100]),
        ("b", TensorProto.BOOL, [100]),
        ("h", TensorProto.FLOAT16, [100]),
        ("f", TensorProto.BFLOAT16, [100]),
        ("s", TensorProto.FLOAT, []),
    )
    values = generate(specs, 2, 0)
    for spec in specs:
        assert values[spec.name].dtype == spec.dtype
    for name in "iu":
        assert values[name].min() >= 0
        assert 0 < values[name].max() < 4
    assert set(values["b"].tolist()) == {False, True}
    assert values["s"].shape == ()


def test_text_cannot_be_generated() -> None:
    with pytest.raises(ModelError, match="only float, integer and boolean"):
        generate(specs_of(("t", TensorProto.STRING, [2])), 1, 0)


def test_a_fixed_batch_stays() -> None:
    assert generate(specs_of(("x", TensorProto.FLOAT, [1, 2])), 8, 0)["x"].shape == (1, 2)


def test_an_open_size_says_which_and_what_to_do() -> None:
    specs = specs_of(("x", TensorProto.FLOAT, ["N", 3, "H", None]))
    with pytest.raises(ModelError, match=r"axis 2 \(H\) open; give its shape: --input-shape x=4,3,\.\.\.,\.\.\.$"):
        generate(specs, 4, 0)
    assert generate(specs, 4, 0, {"x": (2, 3, 5, 7)})["x"].shape == (2, 3, 5, 7)


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 4, 5, 7), (2, 3, 0, 7)])
def test_a_given_shape_that_does_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="does not fit input x"):
        generate(specs_of(("x", TensorProto.FLOAT, ["N", 3, "H", None])), 4, 0, {"x": shape})


def test_a_shape_for_no_input() -> None:
    with pytest.raises(ModelError, match="given for 'z', which is no input; the inputs are x"):
        generate(specs_of(("x", TensorProto.FLOAT, ["N"])), 4, 0, {"z": (1,)})
