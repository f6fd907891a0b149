"""Networks of half precision: results of the file's own type, near to those of single precision; they train."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from onnx import helper

from tests.importer_cases import Case
from tests.importer_graphs import Array, floats, imported, model_of, whole

X = floats(2, 4, 6, 6)
MOMENTS: list[Array] = [floats(4, seed=3), floats(4, seed=4), floats(4, seed=5), np.abs(floats(4, seed=6)) + 0.5]
CASES = [
    Case("Conv", [X, floats(3, 4, 3, 3, seed=1), floats(3)], (17,)),
    Case("ConvTranspose", [X, floats(4, 3, 3, 3, seed=1)], (17,), {"strides": [2, 2]}),
    Case("MatMul", [X, floats(6, 5, seed=1)], (17,)),
    Case("BatchNormalization", [X, *MOMENTS], (17,)),
    Case("LayerNormalization", [X, floats(6), floats(6, seed=1)], (17,)),
    Case("GroupNormalization", [X, floats(4), floats(4, seed=1)], (21,), {"num_groups": 2}),
    Case("InstanceNormalization", [X, floats(4), floats(4, seed=1)], (17,)),
    Case("RMSNormalization", [X, floats(6)], (23,)),
    Case("PRelu", [X, floats(4, 1, 1)], (17,)),
    Case("LSTM", [floats(5, 2, 4), floats(1, 12, 4, seed=1), floats(1, 12, 3, seed=2), floats(1, 24)], (14,), {"hidden_size": 3}),
    Case("GRU", [floats(5, 2, 4), floats(1, 9, 4, seed=1), floats(1, 9, 3, seed=2)], (14,), {"hidden_size": 3}),
    *(Case(op, [X], (22,)) for op in ("Softmax", "Gelu", "HardSwish", "Mish", "GlobalAveragePool", "LpNormalization")),
    *(Case("Resize", [X, None, np.array([1, 1, 2, 1.5], np.float32)], (18,), {"mode": mode}) for mode in ("nearest", "linear")),
    Case("AveragePool", [X], (17,), {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}),
    Case("Pad", [X, whole(0, 0, 1, 1, 0, 0, 1, 1)], (17,), {"mode": "reflect"}),
    Case("Attention", [floats(2, 2, 5, 8)] * 3, (23,), {"is_causal": 1}),
    Case("STFT", [floats(2, 32, 1), np.array(4), floats(8)], (17,)),
    Case("QuantizeLinear", [X, np.array(0.1, np.float32), np.array(3, np.uint8)], (19,)),
]


def halved(case: Case, kind: Any) -> list[Array | None]:
    """The inputs in that type; of Resize only the data."""
    inputs: list[Array | None] = []
    for index, array in enumerate(case.inputs):
        real = array is not None and array.dtype == np.float32 and (case.op != "Resize" or index == 0)
        inputs.append(array.astype(kind) if array is not None and real else array)
    return inputs


def run(case: Case, inputs: list[Array | None]) -> torch.Tensor:
    """The first output; the first input is the data, and the others, of which some are learned, are constants."""
    names = [f"in{index}" if array is not None else "" for index, array in enumerate(inputs)]
    weights = {name: array for name, array in zip(names, inputs, strict=True) if array is not None}
    x = weights.pop("in0")
    node = helper.make_node(case.op, names, ["y"], **case.attributes)
    net = imported(model_of([node], {"in0": x}, ["y"], weights, case.opsets[0]))
    data = torch.from_numpy(x.astype(np.float32)).to(
        torch.bfloat16 if x.dtype == ml_dtypes.bfloat16 else torch.from_numpy(x).dtype
    )
    y: torch.Tensor = net(data.requires_grad_())[0]
    if y.is_floating_point():
        torch.autograd.backward(y.float().square().sum())
        assert data.grad is not None
        assert all(parameter.grad is not None and parameter.dtype is data.dtype for parameter in net.parameters())
    return y.detach()


@pytest.mark.parametrize(
    ("kind", "dtype", "tolerance"), [(np.float16, torch.float16, 1e-2), (ml_dtypes.bfloat16, torch.bfloat16, 6e-2)]
)
@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: f"{CASES[number].op}-{number}")
def test_results_and_gradients(number: int, kind: Any, dtype: torch.dtype, tolerance: float) -> None:
    case = CASES[number]
    half = halved(case, kind)
    found = run(case, half)
    single = run(case, [array.astype(np.float32) if array is not None and array.dtype == kind else array for array in half])
    if found.is_floating_point():
        assert found.dtype is dtype
    scale = float(single.double().abs().max())
    torch.testing.assert_close(found.double(), single.double(), rtol=tolerance, atol=tolerance * scale)


def test_statistics_in_single_precision() -> None:
    """As a half-precision export may keep them; the scale is learned in its own type."""
    names = ["scale", "bias", "mean", "var"]
    weights = {
        name: array if name in ("mean", "var") else array.astype(np.float16) for name, array in zip(names, MOMENTS, strict=True)
    }
    node = helper.make_node("BatchNormalization", ["x", *names], ["y"])
    net = imported(model_of([node], {"x": X.astype(np.float16)}, ["y"], weights))
    for training in (False, True):
        net.train(training)
        assert net(torch.from_numpy(X).half())[0].dtype is torch.float16
    assert net.weight("scale").dtype is torch.float16
