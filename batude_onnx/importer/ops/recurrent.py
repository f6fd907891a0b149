"""LSTM, GRU and RNN, through torch's own where the two agree.

ONNX keeps the gates in another order than torch (i o f c against i f c o; z r h against r z h) and both biases in one tensor;
weights are put in torch's order in each forward pass, so that training changes the ones in the file. X (T, N, I), W (d, G H, I),
R (d, G H, H), B (d, 2 G H) with d directions, G gates, H units; Y (T, d, N, H), Y_h and Y_c (d, N, H). `layout` 1 puts N first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from batude_onnx.importer.registry import Op, op
from batude_onnx.importer.view import NodeView

VERSIONS = (7, 14, 22)
DIRECTIONS = ("forward", "reverse", "bidirectional")

# (input, initial states, weights in torch's order, whether there are biases, whether both directions) -> Y, final states.
Cell = Callable[[Tensor, Sequence[Tensor], list[Tensor], bool, bool], Sequence[Tensor]]


def _lstm(x: Tensor, states: Sequence[Tensor], weights: list[Tensor], biased: bool, both: bool) -> Sequence[Tensor]:
    found: Sequence[Tensor] = torch.lstm(x, list(states), weights, biased, 1, 0.0, False, both, False)
    return found


def _gru(x: Tensor, states: Sequence[Tensor], weights: list[Tensor], biased: bool, both: bool) -> Sequence[Tensor]:
    found: Sequence[Tensor] = torch.gru(x, states[0], weights, biased, 1, 0.0, False, both, False)
    return found


def _tanh(x: Tensor, states: Sequence[Tensor], weights: list[Tensor], biased: bool, both: bool) -> Sequence[Tensor]:
    found: Sequence[Tensor] = torch.rnn_tanh(x, states[0], weights, biased, 1, 0.0, False, both, False)
    return found


def _relu(x: Tensor, states: Sequence[Tensor], weights: list[Tensor], biased: bool, both: bool) -> Sequence[Tensor]:
    found: Sequence[Tensor] = torch.rnn_relu(x, states[0], weights, biased, 1, 0.0, False, both, False)
    return found


def _early_reset(x: Tensor, states: Sequence[Tensor], weights: list[Tensor], biased: bool, both: bool) -> Sequence[Tensor]:
    """A GRU whose reset gate acts before the recurrent product, which torch does not have:

    h' = z h + (1 - z) tanh(W x + R (r h) + b).
    """
    step = 4 if biased else 2
    sequences, finals = [], []
    for number in range(len(weights) // step):
        w, r, *biases = weights[number * step : (number + 1) * step]
        part = torch.nn.functional.linear(x.flip(0) if number else x, w, biases[0] + biases[1] if biased else None)
        h, steps = states[0][number], []
        r_gates, r_new = r[: -h.shape[-1]], r[-h.shape[-1] :]
        for row in part:
            reset, update = (row[:, : len(r_gates)] + h @ r_gates.mT).sigmoid().chunk(2, 1)
            new = (row[:, len(r_gates) :] + (reset * h) @ r_new.mT).tanh()
            h = update * h + (1 - update) * new
            steps.append(h)
        sequence = torch.stack(steps)
        sequences.append(sequence.flip(0) if number else sequence)
        finals.append(h)
    return torch.cat(sequences, dim=-1), torch.stack(finals)


def _recurrent(node: NodeView, order: Sequence[int], states: int, activations: Sequence[str], cell: Cell) -> Op:
    """The callable of a node with gates in `order` (torch's, as indices into ONNX's) and so many `states`."""
    direction = node.attr_string("direction", "forward")
    if direction not in DIRECTIONS:
        raise node.refuse("direction", direction, f"use one of {', '.join(DIRECTIONS)}")
    both = direction == "bidirectional"
    given = node.attr_strings("activations")
    if given is not None and [name.lower() for name in given] != [name.lower() for name in activations] * (1 + both):
        raise node.refuse("activations", given, f"use {', '.join(activations)}")
    for name in ("clip", "activation_alpha", "activation_beta"):
        if node.given(name):
            raise node.refuse(name, "given", "leave it out")
    if node.has(4):
        raise node.refuse("sequence_lens", "given", "leave it out, so that every sequence has the whole length")
    batch_first = node.attr_int("layout", 0) == 1
    units = node.attr_int("hidden_size")
    reverse = direction == "reverse"

    def ordered(stacked: Tensor) -> Tensor:
        gates = torch.split(stacked, units)
        return torch.cat([gates[index] for index in order])

    def run(x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, _: Tensor | None = None, *rest: Tensor | None) -> object:
        if batch_first:
            x = x.transpose(0, 1)
        started = [*rest, None, None][:states]
        first = []
        for state in started:
            if state is None:
                first.append(x.new_zeros(len(w), x.shape[1], units))
            else:
                first.append(state.transpose(0, 1).contiguous() if batch_first else state)
        weights = []
        for d in range(len(w)):
            weights += [ordered(w[d]), ordered(r[d])]
            if b is not None:
                weights += [ordered(half) for half in b[d].chunk(2)]
        y, *last = cell(x.flip(0) if reverse else x, first, weights, b is not None, both)
        y = y.reshape(*y.shape[:2], len(w), units).transpose(1, 2)
        y = y.flip(0) if reverse else y
        if batch_first:
            return y.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in last)
        return y, *last

    return run  # type: ignore[return-value]


@op("LSTM", *VERSIONS, learned=(1, 2, 3))
def lstm(node: NodeView) -> Op:
    """c' = f c + i g,  h' = o tanh(c'); no peepholes."""
    if node.has(7):
        raise node.refuse("P", "given", "use an LSTM without peepholes")
    if node.attr_int("input_forget", 0):
        raise node.refuse("input_forget", 1, "use 0")
    return _recurrent(node, (0, 2, 3, 1), 2, ("Sigmoid", "Tanh", "Tanh"), _lstm)


@op("GRU", *VERSIONS, learned=(1, 2, 3))
def gru(node: NodeView) -> Op:
    """h' = z h + (1 - z) g; `linear_before_reset` says whether the reset gate acts behind the recurrent product."""
    late = node.attr_int("linear_before_reset", 0) != 0
    return _recurrent(node, (1, 0, 2), 1, ("Sigmoid", "Tanh"), _gru if late else _early_reset)


@op("RNN", *VERSIONS, learned=(1, 2, 3))
def rnn(node: NodeView) -> Op:
    """h' = f(W x + R h + b)."""
    given = node.attr_strings("activations")
    rectified = given is not None and {name.lower() for name in given} == {"relu"}
    return _recurrent(node, (0,), 1, ("Relu",) if rectified else ("Tanh",), _relu if rectified else _tanh)
