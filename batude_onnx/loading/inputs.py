"""What a model wants to be fed: name, type and shape of every input, and seeded values of that kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir

from batude_onnx.errors import ModelError

# Inputs of integers are mostly indices or flags: small values are valid for nearly all of them.
SMALL_INTEGERS = 4
# Elements of one input: 8 GB of floats.
MOST = 2**31


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
        return size.value
    return size if size > 0 else None  # some exporters (Paddle's) write -1 for an open size


def generate(
    specs: Sequence[InputSpec], batch: int, seed: int, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, npt.NDArray[Any]]:
    """Values for every input, the same for the same `seed`: standard normal floats, integers 0 to 3, random booleans.

    A first size that is not fixed becomes `batch`. Other sizes that are not fixed must come from `shapes`, which gives the
    whole shape of an input, batch included. Raises ModelError where a size stays unknown or `shapes` does not fit.
    """
    given = dict(shapes or {})
    require_fit(specs, given)
    generator = np.random.default_rng(seed)
    return {spec.name: _values(spec, _shape(spec, batch, given.get(spec.name)), generator) for spec in specs}


def require_fit(specs: Sequence[InputSpec], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ModelError where `shapes` names no input, or gives one a shape that it cannot have."""
    by_name = {spec.name: spec for spec in specs}
    for name, given in shapes.items():
        if name not in by_name:
            raise ModelError(f"a shape was given for {name!r}, which is no input; the inputs are {', '.join(by_name)}")
        spec = by_name[name]
        fits = len(given) == len(spec.shape) and all(
            size == wanted or not isinstance(wanted, int) for size, wanted in zip(given, spec.shape, strict=True)
        )
        if not fits or min(given, default=1) < 1:
            raise ModelError(f"shape {given} does not fit input {spec}; only sizes that are not numbers can be chosen, from 1 up")


def _shape(spec: InputSpec, batch: int, given: tuple[int, ...] | None) -> tuple[int, ...]:
    if given is not None:
        return given
    sizes: list[int] = []
    for axis, size in enumerate(spec.shape):
        if isinstance(size, int):
            sizes.append(size)
        elif axis == 0:
            sizes.append(batch)
        else:
            example = ",".join(
                str(s) if isinstance(s, int) else (str(batch) if a == 0 else "...") for a, s in enumerate(spec.shape)
            )
            raise ModelError(
                f"input {spec} leaves axis {axis} ({size or 'unnamed'}) open; give its shape: --input-shape {spec.name}={example}"
            )
    return tuple(sizes)


def _values(spec: InputSpec, shape: tuple[int, ...], generator: np.random.Generator) -> npt.NDArray[Any]:
    if prod(shape) > MOST:
        raise ModelError(f"input {spec} has {prod(shape):,} elements, more than can be run; correct its shape")
    if spec.dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(bool)
    if spec.dtype.kind in "iu":
        return generator.integers(0, SMALL_INTEGERS, shape).astype(spec.dtype)
    # Kind 'V' holds the small floats of ml_dtypes (bfloat16, float8), which cast like floats.
    if spec.dtype.kind in "fV":
        return generator.standard_normal(shape, dtype=np.float32).astype(spec.dtype)
    raise ModelError(f"input {spec} cannot be filled with numbers; only float, integer and boolean inputs can")
