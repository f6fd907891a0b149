"""What a model wants to be fed: name, type and shape of every input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir

from batude_onnx.errors import ModelError


@dataclass(frozen=True)
class InputSpec:
    """One graph input. A size is an int where it is fixed, a str where it has a name ('N'), None where it is unknown."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name}: {self.dtype}[{sizes}]"


def input_specs(model: onnx_ir.Model) -> tuple[InputSpec, ...]:
    """The inputs that a caller must feed, in the graph's order; inputs that are initializers have a value already.

    Raises ModelError for an input that is no tensor, or whose type or number of dimensions is not declared.
    """
    return tuple(_spec(value) for value in model.graph.inputs if value.name not in model.graph.initializers)


def _spec(value: onnx_ir.Value) -> InputSpec:
    if not isinstance(value.type, onnx_ir.TensorType) or value.dtype in (None, onnx_ir.DataType.UNDEFINED):
        raise ModelError(f"input {value.name!r} is not a tensor ({value.type}); only tensor inputs can be fed")
    assert value.dtype is not None
    if value.shape is None:
        raise ModelError(f"input {value.name!r} declares no shape; export the model with shapes")
    return InputSpec(str(value.name), np.dtype(value.dtype.numpy()), tuple(_size(size) for size in value.shape))


def _size(size: int | onnx_ir.SymbolicDim) -> int | str | None:
    if isinstance(size, onnx_ir.SymbolicDim):
        return None if size.value == "?" else size.value  # Paddle's exporter names so what has no name
    return size if size > 0 else None  # some exporters (Paddle's) write -1 for an open size
