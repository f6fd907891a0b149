"""Everything that a run needs, read and checked before anything is changed, so that what is wrong is said at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from batude_onnx import layers
from batude_onnx.budget import parse_budget
from batude_onnx.budget.problem import fixed_cost, require_feasible
from batude_onnx.errors import BudgetError, DataError, NothingToCompressError, OutputError, RuntimeMissingError, UnsupportedError
from batude_onnx.loading import (
    Dataset,
    InputSpec,
    check_writable,
    external_files,
    holdout,
    load_dataset,
    load_model,
    preprocess,
    without_functions,
)
from batude_onnx.proving import Feeds, Survey, parity_feeds, survey
from batude_onnx.records import Budget, Cost
from batude_onnx.settings import Settings, Source, Watch
from batude_onnx.validation import Session, open_file


@dataclass(frozen=True)
class Case:
    """What is known before anything is changed. `whole`: what the network costs, with the copies that chains make of biases."""

    settings: Settings
    model: ir.Model
    seen: Survey
    whole: Cost
    budget: Budget
    dataset: Dataset | None
    feeds: Feeds
    original: Session

    @property
    def large(self) -> bool:
        """Whether the model is too large for all of its weights to be in memory."""
        return not self.original.whole


def report_path(output: Path) -> Path:
    """Where the verdict of a run goes: beside the model, under the same name."""
    return output.with_suffix(".json")


def open_case(settings: Settings, watch: Watch) -> Case:
    """Raises the `BatudeError` that fits the first thing that is wrong."""
    data = [] if settings.data is None else [settings.data.path]
    report = report_path(settings.output)
    if report == settings.output:
        raise OutputError(f"{settings.output}: the run's report goes there; give the model another suffix, such as .onnx")
    for path in (settings.output, report):
        check_writable(path, settings.model, *data)
    _require_device(settings.device)
    model = load_model(settings.model)
    if data and model.functions:
        watch.say(f"{len(model.functions)} functions are put in the place of their calls, as their weights are trained too")
        model = without_functions(model)
    for path in (settings.output, report):
        check_writable(path, settings.model, *data, *external_files(model))
    original = open_file(settings.model, model, settings.provider, settings.threads)
    seen = survey(model, settings.inputs)
    if not seen.compressible:
        reasons = "; ".join(f"{site.op} {site.key}: {site.reason}" for site in seen.sites[:3])
        found = f"{len(seen.sites)} layers, none of them compressible ({reasons})" if seen.sites else "no Conv, Gemm or MatMul"
        raise NothingToCompressError(f"{settings.model}: nothing to compress: {found}")
    nodes = layers.nodes_by_key(model)
    dataset = None
    if settings.data is not None:
        _require_trainable(seen, nodes)
        if any(_is_open(spec) and spec.name not in settings.inputs for spec in seen.specs):
            dataset = load_data(settings.data, seen)
            settings = replace(settings, inputs={seen.specs[0].name: _sizes(seen.specs[0], dataset)})
            seen = survey(model, settings.inputs)
    uncounted = [site.key for site in seen.sites if not site.positions]
    if settings.metric == "macs" and (uncounted or not seen.cost.macs):
        given = " ".join(_example_shape(spec) for spec in seen.specs if _is_open(spec))
        if given:
            raise BudgetError(f"MACs cannot be counted, since input sizes are open: give them, such as {given}")
        raise BudgetError(f"MACs cannot be counted, as the sizes in layer {uncounted[0]} are not known: give a budget of params")
    budget = parse_budget(settings.budget, settings.metric, seen.cost)
    whole = seen.cost
    if budget.limit < whole.of(settings.metric):
        whole += Cost(layers.copied_biases(nodes[site.key] for site in seen.compressible), 0)
    require_feasible(seen.compressible, budget, fixed_cost(whole, seen.compressible))
    if settings.data is not None:
        dataset = holdout(dataset or load_data(settings.data, seen))
        tested = 0 if dataset.x_test is None else len(dataset.x_test)
        watch.say(f"{len(dataset.x_train):,} samples to train on, {tested:,} to test on")
    feeds = parity_feeds(seen.specs, dataset, settings.seed, settings.inputs)
    return Case(settings, model, seen, whole, budget, dataset, feeds, original)


def _require_device(device: str) -> None:
    """Raises RuntimeMissingError where torch has no such device."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise RuntimeMissingError(f"torch has no device {device!r} here ({reason}); use --device cpu") from error


def _require_trainable(seen: Survey, nodes: Mapping[str, ir.Node]) -> None:
    """Raises UnsupportedError for a model of another precision than float32, which torch would not train as it is."""
    for spec in seen.specs:
        if spec.dtype.kind == "f" and spec.dtype != np.float32:
            raise UnsupportedError(f"input {spec} is not float32, which training needs: convert the model, or run without --data")
    for site in seen.compressible:
        stored, read = layers.weight_type(nodes[site.key])
        if {stored, read} != {ir.DataType.FLOAT}:
            held = f"stored as {stored.name}" if stored != ir.DataType.FLOAT else f"read as {read.name}"
            raise UnsupportedError(
                f"weight {site.weight} is {held}, and training needs FLOAT: convert the model, or run without --data"
            )


def load_data(source: Source, seen: Survey) -> Dataset:
    """The data held against the model's input and classes; raises DataError where they do not fit."""
    if len(seen.specs) != 1:
        raise DataError(f"data can be used with one input, and the model has {len(seen.specs)}: run without --data")
    return load_dataset(source.path, seen.specs[0], classes(seen), limit=source.limit, mean=source.mean, std=source.std)


def classes(seen: Survey) -> int | None:
    """How many classes a classifier has; None where the output is none."""
    outputs = [seen.shapes.get(name) for name in seen.outputs]
    shape = outputs[0] if len(outputs) == 1 else None
    return shape[1] if shape is not None and len(shape) == 2 and shape[1] > 1 else None


def _is_open(spec: InputSpec) -> bool:
    """Whether sizes besides the batch are left open."""
    return any(not isinstance(size, int) for size in spec.shape[1:])


def _sizes(spec: InputSpec, dataset: Dataset) -> tuple[int, ...]:
    """The whole shape of an input with open sizes, as the samples have them."""
    batch = spec.shape[0] if isinstance(spec.shape[0], int) else 1
    return (batch, *preprocess(dataset.x_train[:1], dataset.mean, dataset.std).shape[1:])


def _example_shape(spec: InputSpec) -> str:
    """How to give one input's open sizes on the command line: 1 for the batch, 224 for the others."""
    sizes = [size if isinstance(size, int) else 224 if axis else 1 for axis, size in enumerate(spec.shape)]
    return f"--input-shape {spec.name}={','.join(map(str, sizes))}"
