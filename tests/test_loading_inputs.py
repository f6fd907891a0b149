"""Input specifications."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest
from onnx import TensorProto, helper

from batude_onnx.errors import ModelError
from batude_onnx.loading.inputs import InputSpec, input_specs
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


@pytest.mark.parametrize("size", [-1, 0, "?"])
def test_a_size_below_one_is_open(size: int | str) -> None:
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
