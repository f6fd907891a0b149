"""LSTM, GRU and RNN against onnxruntime: directions, states, biases, layouts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper

from batude_onnx.errors import UnsupportedError
from tests.importer_cases import Case, parameters
from tests.importer_graphs import Array, floats, imported, model_of

TIMES, N, WIDTH, H = 4, 3, 5, 6
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STATES = {"LSTM": 2, "GRU": 1, "RNN": 1}


def inputs(
    op: str, directions: int, *, biased: bool = True, started: bool = False, batch_first: bool = False
) -> list[Array | None]:
    gates = GATES[op] * H
    x = floats(N, TIMES, WIDTH) if batch_first else floats(TIMES, N, WIDTH)
    found: list[Array | None] = [x, floats(directions, gates, WIDTH, seed=1), floats(directions, gates, H, seed=2)]
    found.append(floats(directions, 2 * gates, seed=3) if biased else None)
    if started:
        shape = (N, directions, H) if batch_first else (directions, N, H)
        found += [None, *(floats(*shape, seed=4 + k) for k in range(STATES[op]))]
    return found


def case(op: str, direction: str = "forward", opsets: tuple[int, ...] = (14, 22), **options: Any) -> Case:
    attributes: dict[str, Any] = {name: options.pop(name) for name in ("linear_before_reset", "activations") if name in options}
    both = direction == "bidirectional"
    if options.get("batch_first"):
        attributes["layout"] = 1
    made = inputs(op, 1 + both, **options)
    return Case(op, made, opsets, {"hidden_size": H, "direction": direction, **attributes}, outputs=1 + STATES[op])


CASES = [
    *(case(op, direction, (7, 14, 22)) for op in GATES for direction in ("forward", "reverse", "bidirectional")),
    *(case(op, direction, biased=False, started=True) for op in GATES for direction in ("forward", "bidirectional")),
    *(case("GRU", direction, linear_before_reset=1) for direction in ("forward", "reverse", "bidirectional")),
    case("RNN", activations=["Relu"]),
    case("RNN", "bidirectional", activations=["Relu", "Relu"]),
    case("LSTM", activations=["Sigmoid", "Tanh", "Tanh"]),
]


@pytest.mark.parametrize(("case", "opset", "constants"), parameters(CASES))
def test_matches_onnxruntime(case: Case, opset: int, constants: bool) -> None:
    case.check(opset, constants)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_batch_first_is_the_same_turned(op: str, direction: str) -> None:
    """onnxruntime's CPU kernels refuse layout 1, so it is held against layout 0."""
    both = direction == "bidirectional"
    first, second = inputs(op, 1 + both, started=True), inputs(op, 1 + both, started=True, batch_first=True)
    for index in (0, *range(5, len(first))):
        array = first[index]
        assert array is not None
        second[index] = array.swapaxes(0, 1)
    found = []
    for layout, given in enumerate((first, second)):
        names = [f"in{k}" if array is not None else "" for k, array in enumerate(given)]
        outputs = [f"out{k}" for k in range(1 + STATES[op])]
        node = helper.make_node(op, names, outputs, hidden_size=H, direction=direction, layout=layout)
        held = {name: array for name, array in zip(names, given, strict=True) if array is not None}
        net = imported(model_of([node], {"in0": held.pop("in0")}, outputs, held, 14))
        with torch.no_grad():
            found.append(net(torch.from_numpy(given[0])))
    torch.testing.assert_close(found[1][0], found[0][0].permute(2, 0, 1, 3))
    for one, other in zip(found[1][1:], found[0][1:], strict=True):
        torch.testing.assert_close(one, other.transpose(0, 1))


@pytest.mark.parametrize("op", GATES)
def test_all_weights_learn(op: str) -> None:
    x, w, r, b = inputs(op, 2)
    node = helper.make_node(op, ["x", "w", "r", "b"], ["y"], hidden_size=H, direction="bidirectional")
    assert x is not None
    assert w is not None
    assert r is not None
    assert b is not None
    net = imported(model_of([node], {"x": x}, ["y"], {"w": w, "r": r, "b": b}, 17))
    assert set(net.weight_names()) == {"w", "r", "b"}
    torch.autograd.backward(net(torch.from_numpy(x))[0].square().sum())
    for name in ("w", "r", "b"):
        gradient = net.weight(name).grad
        assert gradient is not None
        assert bool((gradient != 0).any(dim=-1).all())


@pytest.mark.parametrize(
    ("op", "attributes", "extra", "words"),
    [
        ("LSTM", {"direction": "sideways"}, {}, "direction = 'sideways' is not supported; use one of forward"),
        ("LSTM", {"activations": ["Sigmoid", "Relu", "Tanh"]}, {}, "use Sigmoid, Tanh, Tanh"),
        ("LSTM", {"input_forget": 1}, {}, "input_forget = 1"),
        ("GRU", {"clip": 3.0}, {}, "clip = 'given' is not supported; leave it out"),
        ("RNN", {}, {4: np.array([4, 4, 2], np.int32)}, "sequence_lens = 'given'"),
        ("LSTM", {}, {7: floats(1, 3 * H)}, "without peepholes"),
    ],
)
def test_reasons(op: str, attributes: dict[str, Any], extra: dict[int, Array], words: str) -> None:
    given = [*inputs(op, 1), None, None, None, None]
    for index, array in extra.items():
        given[index] = array
    names = [f"in{k}" if array is not None else "" for k, array in enumerate(given)]
    held = {name: array for name, array in zip(names, given, strict=True) if array is not None}
    node = helper.make_node(op, names, ["y"], hidden_size=H, **attributes)
    with pytest.raises(UnsupportedError, match=words):
        imported(model_of([node], {"in0": held.pop("in0")}, ["y"], held, 17))
