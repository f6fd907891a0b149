"""QuantizeLinear and DequantizeLinear against onnxruntime, and the gradients that pass through them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import helper

from tests.importer_cases import Case, parameters
from tests.importer_graphs import Array, assert_same, floats, imported, model_of

X = floats(2, 4, 5, 6) * 3
SCALE, SCALES = np.array(0.04, np.float32), np.array([0.01, 0.02, 0.03, 0.5], np.float32)
BYTES = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 6)).astype(np.uint8)
SIGNED = (BYTES.astype(np.int16) - 128).astype(np.int8)
ZEROS: list[Array] = [np.array([3, 100, 0, 255], np.uint8), np.array([-3, 100, 0, 127], np.int8)]

CASES = [
    Case("QuantizeLinear", [X, SCALE], (10, 13, 21)),
    Case("QuantizeLinear", [X, SCALE, np.array(128, np.uint8)], (10, 13, 19, 21)),
    Case("QuantizeLinear", [X, SCALE, np.array(-7, np.int8)], (10, 13)),
    *(Case("QuantizeLinear", [X, SCALES, zero], (13, 21)) for zero in ZEROS),
    Case("QuantizeLinear", [X.transpose(0, 2, 1, 3).copy(), SCALES, ZEROS[0]], (13,), {"axis": -2}),
    Case("QuantizeLinear", [X, SCALE, np.array(300, np.uint16)], (21,)),
    Case("QuantizeLinear", [X, np.abs(floats(2, 2, 5, 6)) + 0.1], (21,), {"axis": 1, "block_size": 2, "output_dtype": 3}),
    Case("DequantizeLinear", [BYTES, SCALE], (10, 13)),
    Case("DequantizeLinear", [BYTES, SCALE, np.array(128, np.uint8)], (10, 13, 21)),
    Case("DequantizeLinear", [SIGNED, SCALES, ZEROS[1]], (13, 21)),
    Case("DequantizeLinear", [np.array([2**30 + 1, -5], np.int32), SCALE], (10, 13)),
    Case("DequantizeLinear", [SIGNED, np.abs(floats(2, 2, 5, 6))], (21,), {"axis": 1, "block_size": 2}),
    Case("DynamicQuantizeLinear", [X], (11,), outputs=3),
    Case("DynamicQuantizeLinear", [np.abs(X)], (11,), outputs=3),
]


@pytest.mark.parametrize(("case", "opset", "constants"), parameters(CASES))
def test_matches_onnxruntime(case: Case, opset: int, constants: bool) -> None:
    case.check(opset, constants)


def pair(*inner: str) -> list[object]:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    return [*nodes, *(helper.make_node(op, ["q"], ["other"]) for op in inner)]


def test_the_gradient_passes_straight_through() -> None:
    """1 where the value is kept, 0 where it is saturated; the values are onnxruntime's."""
    x = np.array([-9.0, -0.33, 0.05, 0.11, 9.0], np.float32)
    weights: dict[str, Array] = {"s": np.array(0.02, np.float32), "z": np.array(7, np.int8)}
    model = model_of(pair(), {"x": x}, ["y"], weights)  # type: ignore[arg-type]
    assert_same(model, {"x": x})
    given = torch.from_numpy(x).requires_grad_()
    imported(model)(given)[0].sum().backward()
    assert given.grad is not None
    assert given.grad.tolist() == [0, 1, 1, 1, 0]


def test_other_readers_get_integers() -> None:
    x = floats(3, 4)
    weights: dict[str, Array] = {"s": np.array(0.02, np.float32), "z": np.array(7, np.uint8)}
    model = model_of(pair("Identity"), {"x": x}, ["y", "other"], weights)  # type: ignore[arg-type]
    assert_same(model, {"x": x})
    assert imported(model)(torch.from_numpy(x))[1].dtype is torch.uint8


def test_a_quantised_weight_is_trained() -> None:
    """Quantised while training (QAT): the stored weight stays the parameter, and gets its gradient through the pair."""
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"], axis=0),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["dq"], axis=0),
        helper.make_node("Conv", ["x", "dq"], ["y"]),
    ]
    x, w = floats(2, 3, 6, 6), floats(4, 3, 3, 3, seed=1)
    weights: dict[str, Array] = {"w": w, "s": np.full(4, 0.03, np.float32), "z": np.zeros(4, np.int8)}
    model = model_of(nodes, {"x": x}, ["y"], weights)
    assert_same(model, {"x": x})
    net = imported(model)
    assert {name for name, _ in net.named_parameters()} == {"w"}
    net(torch.from_numpy(x))[0].square().sum().backward()
    gradient = net.weight("w").grad
    assert gradient is not None
    assert gradient.any()
