"""What can be said of a model, and of two models held against each other, from the files alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from batude_onnx import decomposition, layers
from batude_onnx.errors import ModelError, ParityError
from batude_onnx.feeding import Feeding, senseless, settle
from batude_onnx.loading import Dataset, InputSpec, input_specs, load_model, preprocess
from batude_onnx.records import Comparison, Cost, Divergence, OutputDifference, Site, Wishes
from batude_onnx.validation import (
    Session,
    agreement,
    classification,
    compare,
    compare_latency,
    first_divergence,
    is_classifier,
    measure_shapes,
    open_graph,
    open_session,
    run_batched,
)

Made = TypeVar("Made")
Feeds = dict[str, npt.NDArray[Any]]

# Samples on which outputs are compared number by number.
PARITY_SAMPLES = 64
# Samples made up where there are none: a few in one run where the model takes them, whole groups where it wants those (the frames
# of a film).
MADE_UP = (4, 1, 8, 16)
# Samples run at a time when a whole data set is scored.
SCORE_BATCH = 250


@dataclass(frozen=True)
class Survey:
    """A model's layers and what it costs. `shapes` are those of one sample; `outputs` the names of the graph's outputs;
    `feeding`: what is fed where there are no data.

    `half`: weights are rounded to half precision, and with them whatever the type of an output, its values.
    """

    feeding: Feeding
    outputs: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    sites: tuple[Site, ...]
    cost: Cost
    half: bool = False

    @property
    def specs(self) -> tuple[InputSpec, ...]:
        return self.feeding.specs

    @property
    def compressible(self) -> list[Site]:
        return [site for site in self.sites if site.method is not None]


def survey(model: ir.Model, wishes: Wishes | None = None) -> Survey:
    """Find and count every layer. `wishes`: what is asked of the inputs; what they leave open is chosen.

    Shapes are inferred; where that does not reach a layer, the model is run once in onnxruntime to see them. Where no sizes are
    found for inputs that leave them open, parameters are counted, and MACs are not.
    """
    specs, model = input_specs(model), layers.distinct(model)
    feeding = settle(model, specs, wishes or Wishes(), lambda: open_graph(model).run)
    shapes = layers.infer_shapes(model, feeding.shapes())
    sites = layers.find_sites(model, shapes)
    outputs = tuple(str(value.name) for value in model.graph.outputs)
    unknown = any(not (site.positions and site.input_positions and site.output_positions) for site in sites)
    if (unknown or not shapes.keys() >= set(outputs)) and not feeding.refused:
        wanted, inferred = {name for site in sites for name in (site.key, site.data)} | set(outputs), shapes

        def seen(batch: int) -> dict[str, tuple[int, ...]]:
            known = inferred if batch == 1 else layers.infer_shapes(model, feeding.shapes(batch))
            return {**known, **measure_shapes(model, wanted, feeding.values(batch, 0))}

        shapes = _first_that_runs(feeding, sorted(MADE_UP), seen)
        sites = layers.find_sites(model, shapes)
    assigned = tuple(decomposition.assign(site) for site in sites)
    return Survey(feeding, outputs, shapes, assigned, layers.count(model, shapes), layers.in_half(model))


def open_two(
    paths: tuple[Path, Path],
    provider: str,
    threads: int | None,
    wishes: Wishes | None = None,
    see: Callable[[ir.Model, Wishes | None], Survey] = survey,
) -> tuple[tuple[ir.Model, ir.Model], tuple[Survey, Survey], tuple[Session, Session]]:
    """Two files to be held against each other, the first one as `see` sees it, the other with the same inputs.

    Raises ParityError where their inputs or outputs are not the same ones.
    """
    first, second = (load_model(path) for path in paths)
    specs, theirs = input_specs(first), input_specs(second)
    if [(spec.name, spec.dtype) for spec in specs] != [(spec.name, spec.dtype) for spec in theirs]:
        raise ParityError(f"the inputs differ: {', '.join(map(str, specs))} against {', '.join(map(str, theirs))}")
    one = see(first, wishes)
    other = survey(second, one.feeding.wishes())
    sessions = open_session(paths[0], provider, threads), open_session(paths[1], provider, threads)
    outputs = [", ".join(session.output_names) for session in sessions]
    if outputs[0] != outputs[1]:
        raise ParityError(f"the outputs differ: {outputs[0]} against {outputs[1]}")
    return (first, second), (one, other), sessions


def parity_feeds(session: Session, seen: Survey, dataset: Dataset | None, seed: int) -> Feeds:
    """Realistic samples to compare outputs on: from the test data, else made up by what the graph does with them.

    Raises ModelError where onnxruntime cannot run the model on what was made up, or where outputs are not finite.
    """
    if dataset is None:
        return _made_up(session, seen.feeding, seed)
    samples = dataset.x_train if dataset.x_test is None else dataset.x_test
    batch = batch_of(seen.specs[0]) or 1
    # Whole batches, where the model fixes their size; few samples are repeated to fill one.
    count = max(1, min(PARITY_SAMPLES, len(samples)) // batch) * batch
    chosen = np.arange(count) % len(samples)
    return {seen.specs[0].name: preprocess(samples[chosen], dataset.mean, dataset.std)}


def _made_up(session: Session, feeding: Feeding, seed: int) -> Feeds:
    def run(batch: int) -> tuple[Feeds, Feeds]:
        feeds = feeding.values(batch, seed)
        return feeds, outputs_of(session, feeds)

    feeds, outputs = _first_that_runs(feeding, MADE_UP, run)
    if (name := senseless(outputs)) is not None:
        raise ModelError(
            f"output {name!r} holds NaN, or infinities only, on inputs made up by type, name and use: say what they hold, such "
            f"as {feeding.example()}"
        )
    return feeds


def _first_that_runs(feeding: Feeding, batches: Iterable[int], run: Callable[[int], Made]) -> Made:
    """What `run` gives for the first size of a batch that it can be given; else what was wrong with the smallest is raised, with
    a way to say what the inputs hold."""
    failures: dict[int, ModelError] = {}
    for batch in batches:
        try:
            return run(batch)
        except ModelError as error:  # noqa: PERF203 -- a run is what takes the time
            failures[batch] = error
    smallest = failures[min(failures)]
    raise ModelError(f"{smallest}, such as {feeding.example()}") from smallest


def batch_of(spec: InputSpec) -> int | None:
    """The batch size that the model fixes, None where it is open."""
    return spec.shape[0] if spec.shape and isinstance(spec.shape[0], int) else None


def outputs_of(session: Session, feeds: Feeds) -> dict[str, npt.NDArray[Any]]:
    """Outputs for all samples of `feeds`: in batches, or in one run where several inputs need not have one sample each."""
    return run_batched(session, feeds, SCORE_BATCH) if len(feeds) == 1 else session.run(feeds)


def one_sample(session: Session, feeding: Feeding, feeds: Feeds) -> Feeds:
    """The first sample of `feeds`, or all of them where the model takes no single one (frames of a film in eights, say)."""
    return _one_that_runs(session, feeding.first(feeds), feeds)


def at_once(session: Session, feeding: Feeding, feeds: Feeds) -> Feeds:
    """`feeds`, or as much of them as the model takes in one run."""
    return _one_that_runs(session, feeds, feeding.first(feeds))


def _one_that_runs(session: Session, wanted: Feeds, other: Feeds) -> Feeds:
    """What is wanted, unless the model does not take it."""
    try:
        session.run(wanted)
    except ModelError:
        return other
    return wanted


def quality(original: Session, other: Session, specs: tuple[InputSpec, ...], dataset: Dataset) -> tuple[dict[str, float], ...]:
    """How good two models are on the test data: (of the original, of the other).

    With labels: top-1 and top-5 accuracy in %; for any model, how far the other agrees with the original.
    """
    samples = dataset.x_train if dataset.x_test is None else dataset.x_test
    labels = dataset.y_train if dataset.x_test is None else dataset.y_test
    ours: list[npt.NDArray[Any]] = []
    theirs: list[npt.NDArray[Any]] = []
    for start in range(0, len(samples), SCORE_BATCH):
        feeds = {specs[0].name: preprocess(samples[start : start + SCORE_BATCH], dataset.mean, dataset.std)}
        ours.append(_first(outputs_of(original, feeds)))
        theirs.append(_first(outputs_of(other, feeds)))
    a, b = np.concatenate(ours), np.concatenate(theirs)
    before: dict[str, float] = {"n": len(samples)}
    after: dict[str, float] = {"n": len(samples), **agreement(a, b)}
    if labels is not None and is_classifier(a):
        before.update(classification(a, labels))
        after.update(classification(b, labels))
    return before, after


def _first(outputs: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return next(iter(outputs.values()))


def origin_of(reference: ir.Model, other: ir.Model, feeds: Feeds, session: Session, half: bool) -> Divergence | None:
    """The first node whose value differs, run as `session` is; None where none does, or where onnxruntime cannot show it."""
    try:
        return first_divergence(reference, other, feeds, session.provider, session.threads, half=half)
    except ModelError:
        # Of values on the way it may have none to show (a kind that it cannot give out); the difference itself stands.
        return None


def worst_of(proofs: Iterable[Sequence[OutputDifference]]) -> tuple[OutputDifference, ...]:
    """Of several comparisons of the same outputs, the worst of each: one that is not within its tolerance, before all."""
    same: dict[str, list[OutputDifference]] = {}
    for differences in proofs:
        # A sequence may have more parts in one run than in another.
        for difference in differences:
            same.setdefault(difference.output, []).append(difference)
    return tuple(max(found, key=lambda one: (not one.within, one.max_absolute)) for found in same.values())


def _over_runs(original: Session, other: Session, runs: Sequence[Feeds], half: bool) -> tuple[OutputDifference, ...]:
    """How the outputs of two models differ, at worst, over `runs`."""
    return worst_of(compare(outputs_of(original, feeds), outputs_of(other, feeds), half=half) for feeds in runs)


def hold_against(
    original: Session,
    other: Session,
    surveys: tuple[Survey, Survey],
    names: tuple[str, str],
    runs: Sequence[Feeds],
    dataset: Dataset | None,
    timed: bool = True,
) -> Comparison:
    """Compare two open models on `runs` (one at least) and, where there is one, on the test data; then, if they are to be `timed`
    and their times mean something, their speed, one sample at a time."""
    first, second = surveys
    differences = _over_runs(original, other, runs, first.half or second.half)
    scores: tuple[dict[str, float], ...] = ({}, {}) if dataset is None else quality(original, other, first.specs, dataset)
    latency: Mapping[str, float | int | str] = {}
    if timed and original.timed and other.timed:
        latency = compare_latency(original, other, one_sample(original, first.feeding, runs[0]))
    return Comparison(names[0], names[1], first.cost, second.cost, differences, scores[0], scores[1], latency)
