"""Everything that a run needs, read and checked before anything is changed, so that what is wrong is said at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
import torch

from batude_onnx.budget import Terms, budget_metrics
from batude_onnx.choosing import choose_layers, with_methods
from batude_onnx.errors import BudgetError, DataError, NothingToCompressError, OutputError, RuntimeMissingError
from batude_onnx.loading import (
    Dataset,
    check_writable,
    external_files,
    holdout,
    load_dataset,
    load_model,
    load_runs,
    preprocess,
    without_functions,
)
from batude_onnx.planfile import read_plan
from batude_onnx.pricing import terms_of
from batude_onnx.proving import Feeds, Survey, parity_feeds, survey
from batude_onnx.records import Budget, Given, Site, Wishes
from batude_onnx.settings import Settings, Source, Watch
from batude_onnx.spool import return_memory
from batude_onnx.validation import Session, open_file


@dataclass(frozen=True)
class Case:
    """What is known before anything is changed. `runs`: the data of a model of several inputs, in the place of `dataset`."""

    settings: Settings
    model: ir.Model
    seen: Survey
    terms: Terms
    dataset: Dataset | None
    feeds: Feeds
    original: Session
    runs: tuple[Feeds, ...] = ()

    @property
    def budget(self) -> Budget:
        return self.terms.budget

    @property
    def large(self) -> bool:
        """Whether the model is too large for all of its weights to be in memory."""
        return not self.original.whole


def report_path(output: Path) -> Path:
    """Where the verdict of a run goes: beside the model, under the same name."""
    if not output.name:
        raise OutputError(f"{output}: this is a folder; give the name of a file to write")
    return output.with_suffix(".json")


def open_case(settings: Settings, watch: Watch, written: Sequence[Path]) -> Case:
    """`written`: the files that the run will write. Raises the `BatudeError` that fits the first thing that is wrong."""
    data = [path for path in (None if settings.data is None else settings.data.path, settings.plan) if path is not None]
    for path in written:
        check_writable(path, settings.model, *data)
    _require_device(settings.device)
    model = load_model(settings.model)
    plan = None if settings.plan is None else read_plan(settings.plan)
    if plan is not None and not settings.budget:
        settings = replace(settings, budget=plan.budget)
    metrics = budget_metrics([settings.budget])
    if model.functions and (data or {"macs", "latency"} & set(metrics)):
        why = "as their weights are trained too" if data else "to see how often each layer is run"
        watch.say(f"{len(model.functions)} functions are put in the place of their calls, {why}")
        model = without_functions(model)
    for path in written:
        check_writable(path, settings.model, *data, *external_files(model))
    original = open_file(settings.model, model, settings.provider, settings.threads)
    if not original.whole:
        return_memory()
    seen = survey(model, settings.inputs)
    if not seen.compressible:
        distinct = {site.reason: site for site in reversed(seen.sites)}
        reasons = "; ".join(f"{site.op} {site.key}: {reason}" for reason, site in list(distinct.items())[-1:-4:-1])
        found = f"{len(seen.sites)} layers, none of them compressible ({reasons})" if seen.sites else "no Conv, Gemm or MatMul"
        raise NothingToCompressError(f"{settings.model}: nothing to compress: {found}")
    dataset = None
    runs: tuple[Feeds, ...] = ()
    if settings.data is not None and in_runs(seen):
        runs, seen = with_runs(model, seen, settings.data, settings.inputs)
        watch.say(f"{len(runs):,} runs of {len(seen.specs)} inputs" if len(seen.specs) > 1 else f"{len(runs):,} runs")
    elif settings.data is not None and (seen.feeding.taken or seen.feeding.refused):
        dataset = load_data(settings.data, seen)
        seen = sized(model, seen, dataset)
    if not original.whole:
        seen = replace(seen, sites=_in_pieces(seen.sites))
    if "macs" in metrics:
        seen = _counted(seen, watch)
    if seen.feeding.taken:
        watch.say(seen.feeding.taken)
    if settings.data is not None and not runs:
        dataset = holdout(dataset or load_data(settings.data, seen))
        tested = 0 if dataset.x_test is None else len(dataset.x_test)
        watch.say(f"{len(dataset.x_train):,} samples to train on, {tested:,} to test on{dataset.prepared}")
    chosen = choose_layers(seen.compressible, settings.layers, plan, settings.plan)
    seen = replace(seen, sites=with_methods(seen.sites, chosen))
    feeds = runs[0] if runs else parity_feeds(original, seen, dataset, settings.seed)
    terms = replace(terms_of(settings, model, seen, original, feeds, metrics, watch), choices=chosen.choices, least=chosen.least)
    return Case(settings, model, seen, terms, dataset, feeds, original, runs)


def _in_pieces(sites: Sequence[Site]) -> tuple[Site, ...]:
    """The sites of a model that is run piece by piece: twins may stand in several of them."""
    reason = "several nodes share its weight, and a model this large is run in pieces"
    return tuple(replace(site, method=None, reason=reason) if site.twins else site for site in sites)


def _counted(seen: Survey, watch: Watch) -> Survey:
    """The survey for a limit of MACs: layers whose MACs cannot be counted are left alone, and are said.

    Raises BudgetError where these are all that could be compressed.
    """
    uncounted = [site for site in seen.sites if not site.positions]
    if seen.feeding.refused and (uncounted or not seen.cost.macs):
        raise BudgetError(f"MACs cannot be counted: {seen.feeding.refused}")
    if not uncounted:
        return seen
    reason = "the sizes in it are not known, so its MACs cannot be counted: a budget of params would take it in"
    sites = tuple(
        replace(site, method=None, reason=reason) if site.method and not site.positions else site for site in seen.sites
    )
    if not any(site.method for site in sites):
        key = next(site.key for site in uncounted if site.method is not None)
        raise BudgetError(f"MACs cannot be counted, as the sizes in layer {key} are not known: give a budget of params")
    names = f"the MACs of {len(uncounted)} layers that stay as they are ({uncounted[0].key}, ...) are not known"
    watch.say(f"{names}: they are left out of all counts")
    return replace(seen, sites=sites)


def _require_device(device: str) -> None:
    """Raises RuntimeMissingError where torch has no such device."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise RuntimeMissingError(f"torch has no device {device!r} here ({reason}); use --device cpu") from error


def in_runs(seen: Survey) -> bool:
    """Whether data of a model are runs of it, not samples to train on: it has several inputs, or one that holds no float."""
    return len(seen.specs) > 1 or any(spec.dtype.kind != "f" for spec in seen.specs)


def with_runs(model: ir.Model, seen: Survey, source: Source, wishes: Wishes) -> tuple[tuple[Feeds, ...], Survey]:
    """The data of a model of several inputs, and the survey with its open sizes as the data have them.

    Raises DataError where they do not fit.
    """
    if source.mean or source.std:
        raise DataError("a mean and a deviation are for models of one input of floating point: leave them out")
    runs = load_runs(source.path, seen.specs, source.limit)
    shapes = {name: Given(array.shape) for name, array in runs[0].items()}
    return runs, survey(model, replace(wishes, inputs=shapes))


def load_data(source: Source, seen: Survey) -> Dataset:
    """The data held against the classes and the only input of a model; raises DataError where they do not fit."""
    return load_dataset(source.path, seen.specs[0], classes(seen), limit=source.limit, mean=source.mean, std=source.std)


def classes(seen: Survey) -> int | None:
    """How many classes a classifier has; None where the output is none."""
    outputs = [seen.shapes.get(name) for name in seen.outputs]
    shape = outputs[0] if len(outputs) == 1 else None
    return shape[1] if shape is not None and len(shape) == 2 and shape[1] > 1 else None


def sized(model: ir.Model, seen: Survey, dataset: Dataset) -> Survey:
    """The survey with open sizes as the samples have them, where they were chosen, or could not be."""
    if not (seen.feeding.taken or seen.feeding.refused):
        return seen
    spec = seen.specs[0]
    batch = spec.shape[0] if isinstance(spec.shape[0], int) else None
    shape = (batch, *preprocess(dataset.x_train[:1], dataset.mean, dataset.std).shape[1:])
    return survey(model, Wishes({spec.name: Given(shape)}))
