"""Activations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from batude_onnx.importer.registry import Op, op
from batude_onnx.importer.view import NodeView


def _without_attributes(name: str, *since: int, run: Callable[[Tensor], Tensor]) -> None:
    op(name, *since)(lambda node: run)


_without_attributes("Relu", 1, 6, 13, 14, run=torch.relu)
_without_attributes("Sigmoid", 1, 6, 13, run=torch.sigmoid)
_without_attributes("Tanh", 1, 6, 13, run=torch.tanh)
_without_attributes("Softplus", 1, 22, run=F.softplus)
_without_attributes("Softsign", 1, 22, run=F.softsign)
_without_attributes("HardSwish", 14, 22, run=F.hardswish)
_without_attributes("Mish", 18, 22, run=F.mish)


@op("LeakyRelu", 1, 6, 16)
def leaky_relu(node: NodeView) -> Op:
    alpha = node.attr_float("alpha")
    return lambda x: F.leaky_relu(x, alpha)


@op("Elu", 1, 6, 22)
def elu(node: NodeView) -> Op:
    alpha = node.attr_float("alpha")
    return lambda x: F.elu(x, alpha)


@op("Celu", 12, 28)
def celu(node: NodeView) -> Op:
    alpha = node.attr_float("alpha")
    return lambda x: F.celu(x, alpha)


@op("Selu", 6, 22)
def selu(node: NodeView) -> Op:
    """gamma x where x > 0, else gamma alpha (e^x - 1)."""
    alpha, gamma = node.attr_float("alpha"), node.attr_float("gamma")
    return lambda x: gamma * F.elu(x, alpha)


@op("ThresholdedRelu", 10, 22)
def thresholded_relu(node: NodeView) -> Op:
    alpha = node.attr_float("alpha")
    return lambda x: F.threshold(x, alpha, 0.0)


@op("HardSigmoid", 6, 22)
def hard_sigmoid(node: NodeView) -> Op:
    """min(1, max(0, alpha x + beta))."""
    alpha, beta = node.attr_float("alpha"), node.attr_float("beta")
    if abs(alpha - 1 / 6) < 1e-7 and beta == 0.5:
        return F.hardsigmoid
    return lambda x: torch.clamp(alpha * x + beta, 0.0, 1.0)


@op("Swish", 24)
def swish(node: NodeView) -> Op:
    """x sigmoid(alpha x)."""
    alpha = node.attr_float("alpha", 1.0)
    return lambda x: x * torch.sigmoid(alpha * x)


@op("SwiGLU", 28)
def swiglu(node: NodeView) -> Op:
    """swish(a) b, where swish(a) = a sigmoid(alpha a)."""
    alpha = node.attr_float("alpha", 1.0)
    return lambda a, b: a * torch.sigmoid(alpha * a) * b


@op("Shrink", 9)
def shrink(node: NodeView) -> Op:
    """x + bias below -lambd, x - bias above lambd, 0 between."""
    bias, lambd = node.attr_float("bias"), node.attr_float("lambd")

    def run(x: Tensor) -> Tensor:
        return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, torch.zeros_like(x)))

    return run


@op("Gelu", 20)
def gelu(node: NodeView) -> Op:
    approximate = node.attr_string("approximate")
    if approximate not in ("none", "tanh"):
        raise node.refuse("approximate", approximate, "use none or tanh")
    return lambda x: F.gelu(x, approximate=approximate)


@op("PRelu", 7, 9, 16, learned=(1,))
def prelu(node: NodeView) -> Op:
    """x where x > 0, else slope x; slope broadcasts to x, (C, 1, ...) being one value a channel."""

    def run(x: Tensor, slope: Tensor) -> Tensor:
        count = slope.numel()
        if count == 1 or (x.dim() > 1 and slope.dim() == x.dim() - 1 and count == slope.shape[0] == x.shape[1]):
            return F.prelu(x, slope.reshape(-1))
        return torch.where(x > 0, x, x * slope)

    return run


@op("Clip", 6)
def clip_attributes(node: NodeView) -> Op:
    low, high = node.attr_float("min"), node.attr_float("max")
    return lambda x: torch.clamp(x, low, high)


@op("Clip", 11, 12, 13)
def clip(node: NodeView) -> Op:
    """Bounds are inputs, either of which may be absent."""
    low, high = node.scalar(1), node.scalar(2)
    fixed = all(not node.has(index) or index in node.bound for index in (1, 2))
    if fixed:
        if low is None and high is None:
            return lambda x, *_: x
        return lambda x, *_: torch.clamp(x, low, high)

    def run(x: Tensor, least: Tensor | None = None, most: Tensor | None = None) -> Tensor:
        for bound, value, limit in ((low, least, torch.maximum), (high, most, torch.minimum)):
            if bound is not None:
                value = torch.as_tensor(bound, dtype=x.dtype, device=x.device)
            x = x if value is None else limit(x, value)
        return x

    return run


def _softmax(name: str, run: Callable[..., Tensor]) -> None:
    def over_axis(node: NodeView) -> Op:
        axis = node.attr_int("axis", -1)
        return lambda x: run(x, dim=axis)

    def over_rest(node: NodeView) -> Op:
        """Before opset 13 the input is flattened to two axes at `axis`, and the second one is normalised."""
        axis = node.attr_int("axis", 1)

        def flat(x: Tensor) -> Tensor:
            at = axis % x.dim()
            return run(x.flatten(at), dim=-1).view_as(x)

        return flat

    op(name, 13)(over_axis)
    op(name, 1, 11)(over_rest)


_softmax("Softmax", torch.softmax)
_softmax("LogSoftmax", torch.log_softmax)


def _hardmax(x: Tensor, dim: int) -> Tensor:
    """1 at the first maximum along the axis, 0 elsewhere."""
    return torch.zeros_like(x).scatter_(dim, x.argmax(dim, keepdim=True), 1)


_softmax("Hardmax", _hardmax)
