"""Arithmetic, comparison, logic and unary functions, with numpy's broadcasting (opset 7 and later)."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import onnx_ir as ir
import torch
from torch import Tensor

from batude_onnx.importer.constants import weight_behind
from batude_onnx.importer.registry import Op, op
from batude_onnx.importer.view import NodeView, Refusal

# torch stores these types, but has most of its arithmetic for none of them.
_ONLY_STORED = (ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64)


def _simple(name: str, *since: int, run: Callable[..., Tensor]) -> None:
    op(name, *since)(lambda node: run)


def _refuse_unsigned(node: NodeView) -> None:
    for index in range(node.inputs):
        kind = node.dtype(index)
        if kind in _ONLY_STORED:
            raise Refusal(f"torch does not compute it on {kind.name}", "cast to INT64 in front of it")


def _signed(name: str, *since: int, run: Callable[..., Tensor]) -> None:
    """An op that torch has for all types but the wide unsigned ones."""

    def convert(node: NodeView) -> Op:
        _refuse_unsigned(node)
        return run

    op(name, *since)(convert)


def _bias_of_matmul(node: NodeView) -> tuple[int, ...]:
    """The constant of an Add is a bias, and learned, where the other operand is a MatMul by a constant weight."""
    for index in (0, 1):
        source = node.source(1 - index)
        if source is None or source.op_type != "MatMul":
            continue
        if any(value is not None and weight_behind(value) is not None for value in source.inputs):
            return (index,)
    return ()


@op("Add", 7, 13, 14, learned=_bias_of_matmul)
def add(node: NodeView) -> Op:
    _refuse_unsigned(node)
    return torch.add


_signed("Sub", 7, 13, 14, run=torch.sub)
_simple("Mul", 7, 13, 14, run=torch.mul)
_simple("And", 7, run=torch.logical_and)
_simple("Or", 7, run=torch.logical_or)
_simple("Xor", 7, run=torch.logical_xor)
_simple("Not", 1, run=torch.logical_not)
_simple("Equal", 7, 11, 13, 19, run=torch.eq)
_signed("Greater", 7, 9, 13, run=torch.gt)
_signed("Less", 7, 9, 13, run=torch.lt)
_signed("GreaterOrEqual", 12, 16, run=torch.ge)
_signed("LessOrEqual", 12, 16, run=torch.le)
_simple("BitwiseAnd", 18, run=torch.bitwise_and)
_simple("BitwiseOr", 18, run=torch.bitwise_or)
_simple("BitwiseXor", 18, run=torch.bitwise_xor)
_signed("BitwiseNot", 18, run=torch.bitwise_not)
_simple("Where", 9, 16, run=torch.where)

_simple("Abs", 6, 13, run=torch.abs)
_simple("Neg", 6, 13, run=torch.neg)
_simple("Exp", 6, 13, run=torch.exp)
_simple("Log", 6, 13, run=torch.log)
_simple("Sqrt", 6, 13, run=torch.sqrt)
_simple("Reciprocal", 6, 13, run=torch.reciprocal)
_simple("Floor", 6, 13, run=torch.floor)
_simple("Ceil", 6, 13, run=torch.ceil)
_simple("Round", 11, 22, run=torch.round)
_simple("Sign", 9, 13, run=torch.sign)
_simple("Erf", 9, 13, run=torch.erf)
_simple("IsNaN", 9, 13, 20, run=torch.isnan)
_simple("Sin", 7, 22, run=torch.sin)
_simple("Cos", 7, 22, run=torch.cos)
_simple("Tan", 7, 22, run=torch.tan)
_simple("Asin", 7, 22, run=torch.asin)
_simple("Acos", 7, 22, run=torch.acos)
_simple("Atan", 7, 22, run=torch.atan)
_simple("Sinh", 9, 22, run=torch.sinh)
_simple("Cosh", 9, 22, run=torch.cosh)
_simple("Asinh", 9, 22, run=torch.asinh)
_simple("Acosh", 9, 22, run=torch.acosh)
_simple("Atanh", 9, 22, run=torch.atanh)


@op("Div", 7, 13, 14)
def div(node: NodeView) -> Op:
    """Integers are divided towards zero, as in C."""
    _refuse_unsigned(node)

    def run(a: Tensor, b: Tensor) -> Tensor:
        return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")

    return run


@op("Mod", 10, 13, 28)
def mod(node: NodeView) -> Op:
    """The sign of the divisor, or of the dividend where fmod = 1."""
    _refuse_unsigned(node)
    return torch.fmod if node.attr_int("fmod", 0) else torch.remainder


@op("BitShift", 11, 28)
def bit_shift(node: NodeView) -> Op:
    """Zeros are shifted in; a shift by the type's width or more gives 0, or -1 where a negative number is shifted right."""
    direction = node.attr_string("direction")
    if direction not in ("LEFT", "RIGHT"):
        raise node.refuse("direction", direction, "use LEFT or RIGHT")
    _refuse_unsigned(node)
    return torch.bitwise_left_shift if direction == "LEFT" else torch.bitwise_right_shift


@op("Det", 11, 22)
def determinant(node: NodeView) -> Op:
    """(*, M, M) -> (*)."""
    return lambda x: torch.linalg.det(x)


@op("Pow", 7, 12, 13, 15)
def power(node: NodeView) -> Op:
    """The result has the base's element type."""
    exponent = node.peek(1)
    if exponent is not None and exponent.size == 1 and exponent.ndim <= 1 and node.scalar(1) is not None:
        number = exponent.reshape(-1)[0].item()
        assert isinstance(number, (int, float))
        if exponent.ndim == 0:
            return lambda x, _: torch.pow(x, number)
        node.bound.discard(1)

    def run(x: Tensor, y: Tensor) -> Tensor:
        return torch.pow(x, y).to(x.dtype)

    return run


@op("IsInf", 10, 20)
def is_inf(node: NodeView) -> Op:
    negative, positive = node.attr_int("detect_negative", 1) != 0, node.attr_int("detect_positive", 1) != 0

    def run(x: Tensor) -> Tensor:
        found = torch.isinf(x)
        if not negative:
            found = found & (x > 0)
        return found if positive else found & (x < 0)

    return run


def _variadic(name: str, *since: int, join: Callable[[Tensor, Tensor], Tensor]) -> None:
    def convert(node: NodeView) -> Op:
        _refuse_unsigned(node)
        if node.inputs == 2:
            return join
        return lambda *inputs: reduce(join, inputs)

    op(name, *since)(convert)


_variadic("Sum", 6, 8, 13, join=torch.add)
_variadic("Max", 6, 8, 12, 13, join=torch.maximum)
_variadic("Min", 6, 8, 12, 13, join=torch.minimum)


@op("Mean", 6, 8, 13)
def mean(node: NodeView) -> Op:
    count = node.inputs
    return lambda *inputs: reduce(torch.add, inputs) / count
