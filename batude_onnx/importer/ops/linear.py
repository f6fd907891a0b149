"""Gemm, MatMul and Einsum."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from batude_onnx.importer.registry import Op, op
from batude_onnx.importer.view import NodeView


@op("Gemm", 7, 9, 11, 13, learned=(1, 2))
def gemm(node: NodeView) -> Op:
    """alpha a b + beta c, a and b transposed on request; a (M, K), b (K, N), c broadcast to (M, N)."""
    alpha, beta = node.attr_float("alpha", 1.0), node.attr_float("beta", 1.0)
    turn_a, turn_b = node.attr_int("transA", 0) != 0, node.attr_int("transB", 0) != 0

    if alpha == 1 and beta == 1 and not turn_a and (not node.has(2) or node.rank(2) == 1):
        if turn_b:

            def linear(x: Tensor, w: Tensor, c: Tensor | None = None) -> Tensor:
                return F.linear(x, w, c)

            return linear

        def linear_turned(x: Tensor, w: Tensor, c: Tensor | None = None) -> Tensor:
            return F.linear(x, w.t(), c)

        return linear_turned

    def general(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        y = torch.matmul(a.t() if turn_a else a, b.t() if turn_b else b)
        if alpha != 1:
            y = alpha * y
        if c is None or beta == 0:
            return y
        return y + (c if beta == 1 else beta * c)

    return general


@op("MatMul", 1, 9, 13, learned=(0, 1))
def matmul(node: NodeView) -> Op:
    """numpy's matmul; an operand that is a stored constant is a learned weight."""
    return torch.matmul


@op("Einsum", 12, 28)
def einsum(node: NodeView) -> Op:
    """ONNX's equation is numpy's."""
    equation = node.attr_string("equation")

    def run(*inputs: Tensor) -> Tensor:
        return torch.einsum(equation, *inputs)

    return run
