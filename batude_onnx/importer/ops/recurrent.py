"""RNN, GRU and LSTM, and ReverseSequence.

x (S, N, I) -> y (S, directions, N, H), last states (directions, N, H); with layout = 1 the batch comes first everywhere.
W (directions, gates H, I), R (directions, gates H, H), B (directions, 2 gates H) holds both biases, P (directions, 3 H).

A sequence shorter than S is read to its own end, and backwards from there; behind it y is 0 and the state stays. What
torch's own kernels can compute is left to them, since they are many times faster; everything else runs step by step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from batude_onnx.importer.registry import Op, op
from batude_onnx.importer.view import NodeView

Activation = Callable[[Tensor], Tensor]
# The inputs' part of the gates, hidden state, cell state -> both states a step later.
Cell = Callable[[Tensor, Tensor, Tensor], "tuple[Tensor, Tensor]"]

# name -> (alpha, beta) -> the function; and what alpha and beta are unless the node says it.
_ACTIVATIONS: dict[str, tuple[Callable[[float, float], Activation], float, float]] = {
    "relu": (lambda a, b: torch.relu, 0, 0),
    "tanh": (lambda a, b: torch.tanh, 0, 0),
    "sigmoid": (lambda a, b: torch.sigmoid, 0, 0),
    "affine": (lambda a, b: lambda x: a * x + b, 1.0, 0.0),
    "leakyrelu": (lambda a, b: lambda x: F.leaky_relu(x, a), 0.01, 0),
    "thresholdedrelu": (lambda a, b: lambda x: F.threshold(x, a, 0.0), 1.0, 0),
    "scaledtanh": (lambda a, b: lambda x: a * torch.tanh(b * x), 1.0, 1.0),
    "hardsigmoid": (lambda a, b: lambda x: torch.clamp(a * x + b, 0.0, 1.0), 0.2, 0.5),
    "elu": (lambda a, b: lambda x: F.elu(x, a), 1.0, 0),
    "softsign": (lambda a, b: F.softsign, 0, 0),
    "softplus": (lambda a, b: F.softplus, 0, 0),
}
_USES_ALPHA = ("affine", "leakyrelu", "thresholdedrelu", "scaledtanh", "hardsigmoid", "elu")
_USES_BETA = ("affine", "scaledtanh", "hardsigmoid")


@dataclass(frozen=True)
class Settings:
    """What all three kinds have in common; `activations`: the names, those of the backward direction behind the others."""

    directions: tuple[bool, ...]
    activations: tuple[str, ...]
    functions: tuple[Activation, ...]
    clip: float
    batch_first: bool

    @staticmethod
    def of(node: NodeView, defaults: tuple[str, ...]) -> Settings:
        """Read the attributes. Raises Refusal for what the op does not define."""
        direction = node.attr_string("direction", "forward")
        ways = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
        if direction not in ways:
            raise node.refuse("direction", direction, "use forward, reverse or bidirectional")
        directions = ways[direction]
        given = node.attr_strings("activations")
        names = [name.lower() for name in given or defaults * len(directions)]
        if len(names) != len(defaults) * len(directions):
            raise node.refuse("activations", given, f"give {len(defaults)} for each direction")
        alphas, betas = list(node.attr_floats("activation_alpha") or []), list(node.attr_floats("activation_beta") or [])
        functions = []
        for name in names:
            if name not in _ACTIVATIONS:
                raise node.refuse("activations", given, f"use some of {', '.join(_ACTIVATIONS)}")
            make, alpha, beta = _ACTIVATIONS[name]
            # The values are used up in order, by those functions that have such a parameter.
            alpha = alphas.pop(0) if name in _USES_ALPHA and alphas else alpha
            beta = betas.pop(0) if name in _USES_BETA and betas else beta
            functions.append(make(alpha, beta))
        clip = node.attr_float("clip") if node.given("clip") else 0.0
        return Settings(directions, tuple(names), tuple(functions), clip, node.attr_int("layout", 0) != 0)

    def clipped(self, x: Tensor) -> Tensor:
        """To [-clip, clip], where there is such a bound."""
        return x.clamp(-self.clip, self.clip) if self.clip else x


@dataclass(frozen=True)
class Weights:
    """Of one direction: w (gates H, I), r (gates H, H), the two biases (gates H,), p (3, H) or None."""

    w: Tensor
    r: Tensor
    wb: Tensor
    rb: Tensor
    p: Tensor | None


# Settings, one direction's activations and weights -> its cell, and the bias that the inputs' part has already.
MakeCell = Callable[[Settings, "tuple[Activation, ...]", Weights], "tuple[Cell, Tensor]"]
Fused = Callable[..., "tuple[Tensor, ...]"]


def _weights(w: Tensor, r: Tensor, b: Tensor, p: Tensor | None) -> list[Weights]:
    peepholes = [None] * len(w) if p is None else [own.view(3, -1) for own in p]
    found = []
    for own_w, own_r, own_b, own_p in zip(w, r, b, peepholes, strict=True):
        wb, rb = own_b.chunk(2)
        found.append(Weights(own_w, own_r, wb, rb, own_p))
    return found


def _reversed(x: Tensor, lengths: Tensor | None, time: int = 0, batch: int = 1) -> Tensor:
    """x with its first lengths[n] steps in the opposite order, for each n of the batch; what lies behind stays."""
    if lengths is None:
        return x.flip(time)
    step = torch.arange(x.shape[time], device=x.device).view([-1 if axis == time else 1 for axis in range(x.dim())])
    own = lengths.to(x.device).view([-1 if axis == batch else 1 for axis in range(x.dim())])
    return x.gather(time, torch.where(step < own, own - 1 - step, step).expand_as(x))


@op("ReverseSequence", 10, 28)
def reverse_sequence(node: NodeView) -> Op:
    """x (S, N, *) or (N, S, *), lengths (N,)."""
    time, batch = node.attr_int("time_axis", 0), node.attr_int("batch_axis", 1)
    return lambda x, lengths: _reversed(x, lengths, time, batch)


def _walk(cell: Cell, gates: Tensor, h: Tensor, c: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """gates (S, N, *), the inputs' part of the linear maps -> y (S, N, H), last h and c."""
    outputs = []
    for step, part in enumerate(gates.unbind(0)):
        next_h, next_c = cell(part, h, c)
        y = next_h
        if lengths is not None:
            alive = (step < lengths).unsqueeze(1)
            y = torch.where(alive, next_h, 0.0)
            next_h, next_c = torch.where(alive, next_h, h), torch.where(alive, next_c, c)
        h, c = next_h, next_c
        outputs.append(y)
    return torch.stack(outputs) if outputs else gates.new_zeros((0, *h.shape)), h, c


def _by_torch(
    fused: Fused,
    x: Tensor,
    state: Tensor | tuple[Tensor, Tensor],
    weights: list[Weights],
    order: tuple[int, ...],
    directions: tuple[bool, ...],
) -> tuple[Tensor, ...]:
    """torch's kernel, on gates in its own order; backward only is forward on the reversed input."""

    def sorted_gates(value: Tensor) -> Tensor:
        parts = value.chunk(len(order))
        return torch.cat([parts[index] for index in order])

    flat = [sorted_gates(value) for own in weights for value in (own.w, own.r, own.wb, own.rb)]
    only_backward = directions == (True,)
    # Biases, one layer, no dropout, training: cuDNN only keeps what a backward pass needs where it is told that one may come.
    y, *states = fused(x.flip(0) if only_backward else x, state, flat, True, 1, 0.0, True, len(directions) == 2, False)
    y = y.flip(0) if only_backward else y
    return (y.reshape(*y.shape[:2], len(directions), -1).transpose(1, 2), *states)


def _recurrent(node: NodeView, settings: Settings, make_cell: MakeCell, fused: Fused | None, order: tuple[int, ...]) -> Op:
    """The op's callable. `fused`: torch's kernel, if it computes the same; `order`: its gates, by their place in the file."""
    directions, functions = settings.directions, settings.functions
    many = len(functions) // len(directions)
    has_cell = len(order) == 4

    def by_steps(x: Tensor, h: Tensor, c: Tensor, lengths: Tensor | None, weights: list[Weights]) -> tuple[Tensor, ...]:
        ys, hs, cs = [], [], []
        for index, (backward, own) in enumerate(zip(directions, weights, strict=True)):
            cell, bias = make_cell(settings, functions[many * index : many * (index + 1)], own)
            gates = F.linear(_reversed(x, lengths) if backward else x, own.w, bias)
            y, last_h, last_c = _walk(cell, gates, h[index], c[index], lengths)
            ys.append(_reversed(y, lengths) if backward else y)
            hs.append(last_h)
            cs.append(last_c)
        return torch.stack(ys, 1), torch.stack(hs), *([torch.stack(cs)] if has_cell else [])

    def run(x: Tensor, w: Tensor, r: Tensor, *more: Tensor | None) -> tuple[Tensor, ...]:
        b, lengths, h, c, p = [*more, None, None, None, None, None][:5]
        if settings.batch_first:
            x = x.transpose(0, 1)
            h, c = (None if value is None else value.transpose(0, 1) for value in (h, c))
        size = r.shape[2]
        if b is None:
            b = w.new_zeros((len(directions), 2 * len(order) * size))
        h, c = (x.new_zeros((len(directions), x.shape[1], size)) if value is None else value for value in (h, c))
        weights = _weights(w, r, b, p)
        if fused is not None and lengths is None and p is None:
            y, *states = _by_torch(fused, x, (h, c) if has_cell else h, weights, order, directions)
        else:
            y, *states = by_steps(x, h, c, lengths, weights)
        if settings.batch_first:
            return (y.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in states))
        return (y, *states)

    return run


def _cell_of_rnn(settings: Settings, functions: tuple[Activation, ...], own: Weights) -> tuple[Cell, Tensor]:
    """h = f(W x + R h + b)."""
    (f,) = functions

    def cell(x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return f(settings.clipped(x + F.linear(h, own.r))), c

    return cell, own.wb + own.rb


@op("RNN", 7, 14, 22, learned=(1, 2, 3))
def rnn(node: NodeView) -> Op:
    """One gate, tanh unless the node says another."""
    settings = Settings.of(node, ("tanh",))
    kernels: dict[str, Fused] = {"tanh": torch.rnn_tanh, "relu": torch.rnn_relu}
    same = len(set(settings.activations)) == 1 and not settings.clip
    return _recurrent(node, settings, _cell_of_rnn, kernels.get(settings.activations[0]) if same else None, (0,))


@op("GRU", 7, 14, 22, learned=(1, 2, 3))
def gru(node: NodeView) -> Op:
    """Gates z, r, h: new = g(W x + R (r h) + b), or g(W x + b + r (R h + b')) where linear_before_reset is set;
    h' = (1 - z) new + z h."""
    settings, inner = Settings.of(node, ("sigmoid", "tanh")), node.attr_int("linear_before_reset", 0) != 0

    def make_cell(settings: Settings, functions: tuple[Activation, ...], own: Weights) -> tuple[Cell, Tensor]:
        f, g = functions
        r_zr, r_h = own.r.tensor_split([2 * own.r.shape[1]])
        b_zr, b_h = own.rb.tensor_split([2 * own.r.shape[1]])

        def cell(x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
            x_zr, x_h = x.tensor_split([2 * h.shape[1]], 1)
            z, r = f(settings.clipped(x_zr + F.linear(h, r_zr, b_zr))).chunk(2, 1)
            recurrent = r * F.linear(h, r_h, b_h) if inner else F.linear(r * h, r_h, b_h)
            new = g(settings.clipped(x_h + recurrent))
            return (1 - z) * new + z * h, c

        return cell, own.wb

    plain = set(settings.activations[::2]) == {"sigmoid"} and set(settings.activations[1::2]) == {"tanh"}
    fused = torch.gru if plain and inner and not settings.clip else None
    return _recurrent(node, settings, make_cell, fused, (1, 0, 2))


@op("LSTM", 7, 14, 22, learned=(1, 2, 3, 7))
def lstm(node: NodeView) -> Op:
    """Gates i, o, f, c: c' = f c + i g(...), h' = o h(c'); peepholes let i and f see c, and o see c'."""
    settings, coupled = Settings.of(node, ("sigmoid", "tanh", "tanh")), node.attr_int("input_forget", 0) != 0

    def make_cell(settings: Settings, functions: tuple[Activation, ...], own: Weights) -> tuple[Cell, Tensor]:
        f, g, last = functions
        peep_i, peep_o, peep_f = (None, None, None) if own.p is None else own.p.unbind(0)

        def gate(x: Tensor, c: Tensor, peep: Tensor | None) -> Tensor:
            return f(settings.clipped(x if peep is None else x + peep * c))

        def cell(x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
            i, o, forget, new = (x + F.linear(h, own.r)).chunk(4, 1)
            i = gate(i, c, peep_i)
            kept = 1 - i if coupled else gate(forget, c, peep_f)
            c = kept * c + i * g(settings.clipped(new))
            return gate(o, c, peep_o) * last(c), c

        return cell, own.wb + own.rb

    names = settings.activations
    plain = set(names[::3]) == {"sigmoid"} and {*names[1::3], *names[2::3]} == {"tanh"}
    fused = torch.lstm if plain and not coupled and not settings.clip else None
    return _recurrent(node, settings, make_cell, fused, (0, 2, 3, 1))
