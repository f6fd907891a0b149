"""Truncated SVD: a layer whose kernel is one point (1x1 Conv, Gemm, MatMul) as two, C -> R -> S.

    W(s,c) = sum over r of B1(s,r) B2(r,c)

The first factor takes the stride and pads, so that both run on the smaller map.
"""

from __future__ import annotations

from math import prod

from batude_onnx.decomposition.narrowing import narrowing
from batude_onnx.decomposition.registry import depthwise, register


def applies(shape: tuple[int, ...], groups: int) -> str | None:
    """For kernels of one point that mix channels."""
    if depthwise(shape, groups):
        return "depthwise: every channel has a weight of its own, there is nothing to share"
    if prod(shape[2:]) > 1:
        return "kernel larger than one point"
    return None


METHOD = register(narrowing("svd", (0,), applies))
