"""What a model is fed: settled once, then the same for every file that is held against it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from batude_onnx.errors import ModelError
from batude_onnx.feeding.ranges import range_of
from batude_onnx.feeding.sizes import Shape, batch_axis, left_open, require_fit, shapes_to_try
from batude_onnx.feeding.values import fill
from batude_onnx.loading import InputSpec
from batude_onnx.records import Given, Wishes

Feeds = dict[str, npt.NDArray[Any]]
# Of what onnxruntime says, so many characters at most are passed on.
LONGEST = 200
Run = Callable[[Mapping[str, npt.NDArray[Any]]], Mapping[str, npt.NDArray[Any]]]


@dataclass(frozen=True)
class Feeding:
    """Shape and range of every input. `taken`: which sizes were chosen for open dimensions and how to choose others, or "";
    `refused`: why none could be, or ""."""

    specs: tuple[InputSpec, ...]
    given: Mapping[str, Given]
    taken: str = ""
    refused: str = ""

    def wishes(self) -> Wishes:
        """For another file with the same inputs."""
        return Wishes(self.given)

    def shapes(self, batch: int = 1) -> dict[str, tuple[int, ...]]:
        """Whole shapes, by input; inputs with a size that is not known are left out."""
        held = {spec.name: (spec, self.given[spec.name].shape) for spec in self.specs}
        return {
            name: tuple(
                size if isinstance(size, int) else batch if chosen is None else chosen
                for size, chosen in zip(spec.shape, shape, strict=True)
            )
            for name, (spec, shape) in held.items()
            if shape is not None
        }

    def values(self, batch: int, seed: int) -> Feeds:
        """Values of every input, the same for the same `seed`. Raises ModelError where a size is not known."""
        if self.refused:
            raise ModelError(self.refused)
        generator, shapes = np.random.default_rng(seed), self.shapes(batch)
        return {
            spec.name: fill(spec, shapes[spec.name], self.given[spec.name].low, self.given[spec.name].high, generator)
            for spec in self.specs
        }

    def first(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Feeds:
        """One sample of `feeds`, or one batch where the model fixes its size, or the user does: as many as there are, at most."""
        found = {}
        for spec in self.specs:
            axis, array, shape = batch_axis(spec, self.specs), feeds[spec.name], self.given[spec.name].shape
            if spec.shape and isinstance(spec.shape[0], int):
                array = array[: spec.shape[0]]
            if axis is not None:
                count = (None if shape is None else shape[axis]) or 1
                array = np.take(array, range(min(count, array.shape[axis])), axis)
            found[spec.name] = array
        return found

    def example(self) -> str:
        """How to give the first input on the command line."""
        if not self.specs:
            return "another model, as this one has no inputs"
        spec = self.specs[0]
        sizes = self.shapes().get(spec.name) or ["SIZE" if isinstance(size, str | None) else size for size in spec.shape]
        return f"--input {spec.name}={','.join(map(str, sizes))}:0..1"


def settle(model: ir.Model, specs: Sequence[InputSpec], wishes: Wishes, opened: Callable[[], Run]) -> Feeding:
    """What `wishes` leave open is chosen by type, shape, name and use.

    Where sizes besides the batch are open, usual ones are tried in the run that `opened` gives, until one is computed without
    a NaN. Raises ModelError where `wishes` do not fit the inputs.
    """
    require_fit(specs, wishes)
    left = {spec.name: axes for spec in specs if (axes := left_open(spec, specs, wishes))}
    run, reason = None, ""
    for shapes in shapes_to_try(specs, wishes):
        feeding = _feeding(model, specs, wishes, shapes)
        if not left:
            return feeding
        try:
            run = run or opened()
            outputs = run(feeding.values(1, 0))
        except ModelError as error:
            reason = str(error)
            continue
        if senseless(outputs) is None:
            shown = feeding.shapes()
            chosen = ", ".join(f"{name}={','.join(map(str, shown[name]))}" for name in left)
            return replace(feeding, taken=f"open input sizes were chosen: {chosen}; others by {_how(specs, left, shown)}")
        reason = "the outputs are not finite"
    given = {name: replace(given, shape=None) if name in left else given for name, given in feeding.given.items()}
    refused = (
        f"the sizes of {', '.join(map(str, (spec for spec in specs if spec.name in left)))} are open, and none of the usual "
        f"ones runs ({reason[:LONGEST]}); give them: {_how(specs, left, {})}"
    )
    return replace(feeding, given=given, refused=refused)


def senseless(outputs: Mapping[str, npt.NDArray[Any]]) -> str | None:
    """The first output that holds a NaN, or nothing but infinities; a score of -Inf among others has its sense."""
    for name, array in outputs.items():
        # A sequence is no array.
        if isinstance(array, np.ndarray) and array.dtype.kind == "f" and array.size:
            finite = np.isfinite(array)
            if not finite.any() or (not finite.all() and np.isnan(array).any()):
                return name
    return None


def _feeding(model: ir.Model, specs: Sequence[InputSpec], wishes: Wishes, shapes: Mapping[str, Shape]) -> Feeding:
    by_name, values = {spec.name: spec for spec in specs}, {str(value.name): value for value in model.graph.inputs}
    given = {}
    for name, spec in by_name.items():
        asked = wishes.inputs.get(name, Given())
        found = (asked.low, asked.high) if asked.low is not None else range_of(values[name], spec, shapes, by_name)
        given[name] = Given(shapes[name], *(found or (None, None)))
    return Feeding(tuple(specs), given)


def _how(specs: Sequence[InputSpec], left: Mapping[str, Sequence[int]], shown: Mapping[str, Sequence[object]]) -> str:
    """The options that give open sizes: those of names, then the whole shape of the first input that has one open."""
    named = dict.fromkeys(spec.shape[axis] for spec in specs for axis in left.get(spec.name, ()))
    first = next(spec for spec in specs if spec.name in left)
    unknown = [
        size if isinstance(size, int) else "SIZE" if axis in left[first.name] else 1 for axis, size in enumerate(first.shape)
    ]
    sizes = shown.get(first.name, unknown)
    options = [f"--dim {name}=SIZE" for name in named if name is not None]
    return " ".join(options) + (" or " if options else "") + f"--input {first.name}={','.join(map(str, sizes))}"
