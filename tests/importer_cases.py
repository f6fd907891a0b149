"""One op at a time: a case is a node's inputs and attributes, to be tried at several opsets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import helper

from tests.importer_graphs import Array, assert_same, imported, model_of

# The last onnxruntime for Python 3.10 is 1.23.
NEWEST_OPSET = 23 if tuple(map(int, ort.__version__.split(".")[:2])) < (1, 24) else 26


@dataclass(frozen=True)
class Case:
    """`inputs`: None is an absent one. `computed`: also try with every input coming from outside, none a constant."""

    op: str
    inputs: Sequence[Array | None]
    opsets: Sequence[int]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    computed: bool = True

    def check(self, opset: int, constants: bool) -> None:
        """Compare with onnxruntime; the first input is always data, the others are constants or data."""
        names = [f"in{index}" if array is not None else "" for index, array in enumerate(self.inputs)]
        given = {name: array for name, array in zip(names, self.inputs, strict=True) if array is not None}
        first = next(iter(given))
        feeds = {name: array for name, array in given.items() if name == first or not constants}
        weights = {name: array for name, array in given.items() if name not in feeds}
        results = [f"out{index}" for index in range(self.outputs)]
        node = helper.make_node(self.op, names, results, name="node", **self.attributes)
        assert_same(model_of([node], feeds, results, weights, opset), feeds)

    def check_gradient(self, opset: int, data_only: bool = False) -> None:
        """Compare with differences, in double precision, for all inputs or only the first; all come from outside."""
        names = [f"in{index}" if array is not None else "" for index, array in enumerate(self.inputs)]
        given = {name: array for name, array in zip(names, self.inputs, strict=True) if array is not None}
        results = [f"out{index}" for index in range(self.outputs)]
        node = helper.make_node(self.op, names, results, name="node", **self.attributes)
        net = imported(model_of([node], given, results, {}, opset)).double()
        tensors = [torch.from_numpy(np.array(array)) for array in given.values()]
        tensors = [tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors]
        for tensor in tensors[:1] if data_only else tensors:
            tensor.requires_grad_(tensor.is_floating_point())
        assert torch.autograd.gradcheck(
            lambda *inputs: tuple(y for y in net(*inputs) if y.requires_grad), tensors, fast_mode=True
        )


def parameters(cases: Sequence[Case]) -> list[object]:
    """pytest's parameters (case, opset, constants)."""
    found: list[object] = []
    for number, case in enumerate(cases):
        several = sum(array is not None for array in case.inputs) > 1
        for opset in case.opsets:
            for constants in (True, False) if several and case.computed else (True,):
                form = "constant" if constants else "computed"
                too_new = pytest.mark.skipif(opset > NEWEST_OPSET, reason=f"onnxruntime here reads opsets up to {NEWEST_OPSET}")
                found.append(pytest.param(case, opset, constants, id=f"{case.op}-{number}-opset{opset}-{form}", marks=too_new))
    return found


def booleans(*shape: int) -> Array:
    return np.random.default_rng(0).random(shape) > 0.5
