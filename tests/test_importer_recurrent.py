"""RNN, GRU and LSTM against onnxruntime, and against themselves with the batch first, which onnxruntime lacks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper

from tests.importer_cases import Case
from tests.importer_graphs import Array, assert_same, floats, imported, model_of, results_of

S, N, FEATURES, H = 5, 3, 4, 2
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
LENGTHS = np.array([5, 1, 3], np.int32)
X = floats(S, N, FEATURES)


def inputs_of(op: str, directions: int, **given: bool) -> list[Array | None]:
    """x, W, R and what is asked for of B, lengths, initial states and peepholes."""
    gates = GATES[op] * H
    inputs: list[Array | None] = [X, floats(directions, gates, FEATURES, seed=1), floats(directions, gates, H, seed=2)]
    inputs.append(floats(directions, 2 * gates, seed=3) if given.get("bias") else None)
    inputs.append(LENGTHS if given.get("lengths") else None)
    inputs.append(floats(directions, N, H, seed=4) if given.get("states") else None)
    if op == "LSTM":
        inputs.append(floats(directions, N, H, seed=5) if given.get("states") else None)
        inputs.append(floats(directions, 3 * H, seed=6) if given.get("peepholes") else None)
    while inputs[-1] is None:
        inputs.pop()
    return inputs


def case(op: str, direction: str = "forward", attributes: dict[str, Any] | None = None, **given: bool) -> Case:
    both = 2 if direction == "bidirectional" else 1
    settings = {"hidden_size": H, "direction": direction, **(attributes or {})}
    return Case(op, inputs_of(op, both, **given), (7, 14), settings, outputs=3 if op == "LSTM" else 2)


CASES = [
    *(case(op) for op in GATES),
    *(case(op, way, bias=True) for op in GATES for way in ("forward", "reverse", "bidirectional")),
    *(case(op, way, bias=True, lengths=True, states=True) for op in GATES for way in ("forward", "reverse", "bidirectional")),
    *(case(op, "reverse", bias=True, states=True) for op in GATES),
    *(case(op, "bidirectional", {"clip": 0.3}, bias=True) for op in GATES),
    case("GRU", "bidirectional", {"linear_before_reset": 1}, bias=True, states=True),
    case("GRU", "forward", {"linear_before_reset": 1, "clip": 0.3}, bias=True),
    case("LSTM", "bidirectional", bias=True, states=True, peepholes=True),
    case("LSTM", "forward", {"input_forget": 1}, bias=True),
    case("RNN", "bidirectional", {"activations": ["Relu", "Tanh"]}, bias=True),
    case("RNN", "forward", {"activations": ["Relu"]}, bias=True),
    case("RNN", "forward", {"activations": ["LeakyRelu"], "activation_alpha": [0.3]}, bias=True),
    case("RNN", "forward", {"activations": ["Affine"], "activation_alpha": [0.3], "activation_beta": [0.2]}, bias=True),
    *(case("RNN", "forward", {"activations": [name]}) for name in ("Sigmoid", "Softsign", "Softplus", "HardSigmoid", "Elu")),
    case("LSTM", "forward", {"activations": ["HardSigmoid", "Softsign", "Relu"], "activation_alpha": [0.3]}, bias=True),
    case(
        "GRU",
        "forward",
        {"activations": ["HardSigmoid", "ScaledTanh"], "activation_alpha": [0.2, 1.1], "activation_beta": [0.4, 0.9]},
    ),
]


@pytest.mark.parametrize("number", range(len(CASES)))
@pytest.mark.parametrize("opset", [7, 14])
def test_matches_onnxruntime(number: int, opset: int) -> None:
    for constants in (True, False):
        CASES[number].check(opset, constants)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_gradients(number: int) -> None:
    CASES[number].check_gradient(14)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("lengths", [False, True])
def test_batch_first(op: str, lengths: bool) -> None:
    """The same numbers with the first two axes exchanged; y (N, S, directions, H), states (N, directions, H)."""
    plain = case(op, "bidirectional", bias=True, lengths=lengths, states=True)
    found = {}
    for layout in (0, 1):
        arrays = [
            array if array is None or not layout or index not in (0, 5, 6) else array.swapaxes(0, 1).copy()
            for index, array in enumerate(plain.inputs)
        ]
        names = [f"in{index}" if array is not None else "" for index, array in enumerate(arrays)]
        outputs = [f"out{index}" for index in range(plain.outputs)]
        feeds = {name: array for name, array in zip(names, arrays, strict=True) if array is not None}
        node = helper.make_node(op, names, outputs, layout=layout, **plain.attributes)
        found[layout] = results_of(imported(model_of([node], feeds, outputs, {}, 14)), feeds)
    (y, *states), (batch_first, *others) = found[0], found[1]
    np.testing.assert_allclose(batch_first, y.transpose(2, 0, 1, 3), rtol=1e-5, atol=1e-6)
    for state, other in zip(states, others, strict=True):
        np.testing.assert_allclose(other, state.swapaxes(0, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op", GATES)
def test_weights_are_parameters_under_their_own_names(op: str) -> None:
    _, w, r, b = inputs_of(op, 1, bias=True)
    assert w is not None
    assert r is not None
    assert b is not None
    node = helper.make_node(op, ["x", "rnn.w", "rnn.r", "rnn.b"], ["y"], hidden_size=H)
    model = model_of([node], {"x": X}, ["y"], {"rnn.w": w, "rnn.r": r, "rnn.b": b})
    assert_same(model, {"x": X})
    net = imported(model)
    assert {name for name, _ in net.named_parameters()} == {"rnn.w", "rnn.r", "rnn.b"}
    net(torch.from_numpy(X))[0].square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())


def test_reverse_sequence() -> None:
    lengths = np.array([2, 4, 1])
    Case("ReverseSequence", [floats(5, 3, 2), lengths], (10,)).check(10, False)
    Case("ReverseSequence", [floats(3, 5), lengths], (10,), {"time_axis": 1, "batch_axis": 0}).check(10, True)
