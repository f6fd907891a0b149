"""The order of the rooms: load, find layers, import, plan, train, decompose, rewrite, simplify, validate."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from batude_onnx import benching, bookkeeping, decomposition, layers, outlook, pacing, surgery, trained, untrained
from batude_onnx.budget import amount, require_feasible
from batude_onnx.errors import (
    BudgetError,
    BudgetMissedError,
    OutputError,
    ParityError,
    TooSlowError,
    UnsupportedError,
)
from batude_onnx.loading import (
    Dataset,
    external_files,
    file_bytes,
    inherit,
    load_model,
    save_model,
)
from batude_onnx.opening import Case, in_runs, load_data, open_case, report_path, sized, with_runs
from batude_onnx.planfile import write_plan
from batude_onnx.pricing import bytes_of
from batude_onnx.proving import (
    Feeds,
    Survey,
    at_once,
    hold_against,
    one_sample,
    open_two,
    origin_of,
    outputs_of,
    parity_feeds,
    survey,
)
from batude_onnx.records import (
    Benchmark,
    Budget,
    Comparison,
    Cost,
    Outlook,
    OutputDifference,
    TrainResult,
    Verdict,
    Wishes,
)
from batude_onnx.rewriting import rewrite
from batude_onnx.settings import Settings, Source, Watch
from batude_onnx.simplify import simplify, skip_reason
from batude_onnx.spool import Spool
from batude_onnx.trainable import listed
from batude_onnx.training.planning import Planned
from batude_onnx.training.recipe import RECIPES
from batude_onnx.validation import Session, compare, compare_latency, draws, in_pieces, open_file, open_graph, require

# How often a finished file that is too slow is made smaller.
AGAIN = 2

Way = trained.Prepared | untrained.Sampled | Planned


def compress(settings: Settings, watch: Watch | None = None) -> Verdict:
    """Compress one model as `settings` say; the file is written only if every proof holds.

    Raises a `BatudeError`; then the output path is as it was.
    """
    began = time.monotonic()
    watch = watch or Watch()
    report = report_path(settings.output)
    if report == settings.output:
        raise OutputError(f"{settings.output}: the run's report goes there; give the model another suffix, such as .onnx")
    case = _open(settings, watch, (settings.output, report))
    if case.large:
        watch.say("a large model: it is run piece by piece, and how fast it is not measured (batude-onnx validate does)")
    full_rank = surgery.proved(case)
    watch.say(f"rewriting all layers at full rank changes the outputs by at most {_worst(full_rank):.1e}")
    with Spool(settings.output.parent, settings.output) as spool:
        way = _planned(case, watch)
        result, expected = _compressed(case, way, watch, began, spool)
        for last in (False,) * AGAIN + (True,):
            try:
                parity, comparison = _written(case, result, expected, watch, spool)
                break
            except TooSlowError as error:
                if last or (settings.seconds is not None and time.monotonic() - began > settings.seconds):
                    raise
                way, result, expected = _faster(case, way, result, error, watch, spool)
        methods = bookkeeping.methods(result.chains)
    verdict = Verdict(
        budget=case.budget,
        ranks=result.plan.chosen(),
        methods=methods,
        whole=bookkeeping.whole(case, result.plan, result.kept),
        surgery=full_rank,
        parity=parity,
        comparison=comparison,
        facts=bookkeeping.facts(case, result, time.monotonic() - began),
        history=result.history,
    )
    bookkeeping.write_report(verdict, report)
    return verdict


def plan(settings: Settings, watch: Watch | None = None, *, sweep: Sequence[str] = (), sensitivity: bool = False) -> Outlook:
    """The ranks that `compress` would take and what they promise, written to `settings.output` as JSON; nothing is trained.

    `sweep`: other budgets that are looked at. `sensitivity`: also what truncating each layer alone does, at some ranks.
    """
    watch = watch or Watch()
    case = _open(replace(settings, epochs=0.0, seconds=None), watch, (settings.output,))
    way = _planned(case, watch)
    planned = way if isinstance(way, Planned) else way.planned
    found = outlook.look(case, planned, sweep, sensitivity, bookkeeping.whole(case, planned.plan, {}))
    write_plan(found, settings.output)
    return found


def inspect(path: Path, inputs: Wishes | None = None) -> Survey:
    """All layers of a model, with their costs and whether they can be compressed."""
    model = load_model(path)
    seen = survey(model, inputs)
    return replace(seen, cost=replace(seen.cost, size=bytes_of(path, *external_files(model))))


def validate(
    first: Path,
    second: Path,
    data: Source | None = None,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    seed: int = 0,
    inputs: Wishes | None = None,
    watch: Watch | None = None,
) -> Comparison:
    """Hold `second` against `first`: outputs differ by as much as in the worst of the runs of a model of several inputs.

    Raises ParityError where their inputs or outputs are not the same ones.
    """
    held: list[Dataset] = []
    runs: list[Feeds] = []

    def see(model: ir.Model, wishes: Wishes | None) -> Survey:
        seen = survey(model, wishes)
        if data is None:
            return seen
        if in_runs(seen):
            given, seen = with_runs(model, seen, data, wishes or Wishes())
            runs.extend(given)
            return seen
        held.append(load_data(data, seen))
        return sized(model, seen, held[0])

    models, (one, other), sessions = open_two((first, second), provider, threads, inputs, see)
    dataset = held[0] if held else None
    if dataset is not None and watch is not None:
        watch.say(f"{len(dataset.x_train if dataset.x_test is None else dataset.x_test):,} samples{dataset.prepared}")
    if data is None and one.feeding.taken and watch is not None:
        watch.say(one.feeding.taken)
    runs = runs or [parity_feeds(sessions[0], one, dataset, seed)]
    steady = _steady(models[0], sessions[0]), _steady(models[1], sessions[1])
    found = hold_against(*steady, (one, other), (str(first), str(second)), runs, dataset)
    if not found.latency:
        found = replace(found, latency=compare_latency(*sessions, one_sample(sessions[0], one.feeding, runs[0])))
    half = one.half or other.half
    if all(difference.within for difference in found.differences):
        return found
    for feeds in runs:
        if (origin := origin_of(*models, feeds, sessions[0], half)) is not None:
            return replace(found, divergence=origin)
    return found


def _steady(model: ir.Model, session: Session) -> Session:
    """`session` of `model`, or where that draws numbers, one that draws the same ones each time; its times mean nothing."""
    return open_graph(model, session.provider, session.threads) if any(draws(model)) else session


def bench(
    first: Path,
    second: Path,
    *,
    batch: int = 8,
    seconds: float = 5.0,
    provider: str = "cpu",
    threads: int | None = None,
    seed: int = 0,
    inputs: Wishes | None = None,
    watch: Watch | None = None,
) -> Benchmark:
    """Run `second` against `first`: latency, throughput with `batch` samples, memory, and the time of each layer.

    Raises ParityError where their inputs or outputs are not the same ones.
    """
    models, surveys, sessions = open_two((first, second), provider, threads, inputs)
    if any(in_pieces(model) for model in models):
        raise UnsupportedError(
            "more than 1 GB of weights is run in pieces, and no layer is timed: batude-onnx validate times both"
        )
    feeding = surveys[0].feeding
    if feeding.taken and watch is not None:
        watch.say(feeding.taken)
    feeds = feeding.values(1, seed), feeding.values(batch, seed)
    return benching.run_against((first, second), models, surveys, sessions, feeds, seconds)


def _open(settings: Settings, watch: Watch, written: Sequence[Path]) -> Case:
    """What a run needs, and a budget that some ranks of some methods of its recipe meet."""
    case = open_case(settings, watch, written)
    try:
        require_feasible(case.seen.compressible, pacing.within_reach(case), RECIPES[settings.recipe].ways)
    except BudgetError as error:
        left = [site for site in case.seen.sites if site.method is None]
        if not left:
            raise
        largest = max(left, key=lambda site: (site.macs, site.params))
        count = f"{len(left)} of {len(case.seen.sites)} layers cannot be made smaller"
        raise BudgetError(f"{error}; {count} (the largest, {largest.key}: {largest.reason})") from error
    return case


def _compressed(case: Case, way: Way, watch: Watch, began: float, spool: Spool) -> tuple[TrainResult, Feeds]:
    """Ranks and factors, and what the finished file must give; by training where there is data and the graph can be imported."""
    if isinstance(way, trained.Prepared):
        result, outputs = trained.finish(case, way, watch, began)
        return result, outputs if outputs is not None else _dense_outputs(case, result)
    result = _untrained(case, way, watch, spool)
    return result, _dense_outputs(case, result)


def _untrained(case: Case, way: untrained.Sampled | Planned, watch: Watch, spool: Spool) -> TrainResult:
    if isinstance(way, untrained.Sampled):
        return untrained.from_samples(case, way, watch)
    return untrained.from_weights(case, way, spool)


def _faster(
    case: Case, way: Way, result: TrainResult, error: TooSlowError, watch: Watch, spool: Spool
) -> tuple[Way, TrainResult, Feeds]:
    """The same with smaller ranks, fitted to what was trained: no training is lost over a little time. Raises `error` where no
    ranks are small enough."""
    try:
        # Ranks that were learned are not those that were planned.
        measured = replace(way if isinstance(way, Planned) else way.planned, plan=result.plan)
        if isinstance(way, trained.Prepared):
            # By the methods that it has: a network of chains cannot be measured for others.
            measured = replace(measured, recipe=replace(measured.recipe, formats=False))
        planned = pacing.faster(case, measured, error.share)
    except BudgetError:
        raise error from None
    watch.say(f"the finished file takes {100 * (error.share - 1):.1f} % too long: its ranks are made smaller, and fitted again")
    if isinstance(way, trained.Prepared):
        prepared = replace(way, planned=planned)
        found, outputs = trained.smaller(case, prepared, watch)
        found = replace(found, history=result.history, judged=result.judged)
        return prepared, found, outputs if outputs is not None else _dense_outputs(case, found)
    again = planned if isinstance(way, Planned) else replace(way, planned=planned)
    found = _untrained(case, again, watch, spool)
    return again, found, _dense_outputs(case, found)


def _planned(case: Case, watch: Watch) -> Way:
    """The ranks, and what was measured for them: with torch, in onnxruntime, or nothing."""
    if case.settings.data is None:
        watch.say(
            "no data: the weights alone decide, nothing is trained, and accuracy is NOT protected (give --data to protect it)"
        )
        return untrained.plan_by_weights(case, watch)
    trains, recipe = bool(case.settings.epochs or case.settings.seconds), RECIPES[case.settings.recipe]
    prepared, reason = trained.prepare(case, trains, watch)
    if prepared is not None:
        return prepared
    head, *more = reason.splitlines()
    if trains and recipe.share:
        raise UnsupportedError(f"recipe {recipe.name!r} learns ranks in training, and {head}: take the default recipe")
    watch.say(f"{'nothing can be trained' if trains else 'no import'}: {head}")
    listed(more, watch)
    watch.say("ranks and factors come from what onnxruntime shows of the layers")
    return untrained.plan_by_samples(case, watch)


def _dense(case: Case, result: TrainResult, graph: ir.Model) -> ir.Model:
    """`graph` (or a piece of it) with the weights that the chains stand for and all else that was trained in their places."""
    weights = dict(result.weights)
    if graph is not case.model:
        present = {value.name for node in graph.graph.all_nodes() for value in (*node.inputs, *node.outputs) if value is not None}
        weights = {name: values for name, values in weights.items() if name in present}
    by_key, nodes = {site.key: site for site in case.seen.sites}, layers.nodes_by_key(graph)
    biases = {key: values for key, values in result.biases.items() if key in nodes}
    for key in [key for key in nodes if key in result.chains]:
        site, chain = by_key[key], result.chains[key]
        bias, held = chain.layers[-1].bias, layers.read_bias(nodes[key])
        weight = decomposition.method(chain.method).reconstruct(chain).float().numpy()
        weights[site.weight] = np.ascontiguousarray(site.layout.stored(weight))
        if bias is not None and (held is None or not np.array_equal(bias, held)):
            biases[key] = bias
    return rewrite(graph, {}, weights=weights, biases=biases)


def _dense_outputs(case: Case, result: TrainResult) -> Feeds:
    """What that graph gives."""
    change = partial(_dense, case, result)
    return outputs_of(open_graph(case.model, case.settings.provider, case.settings.threads, change), case.feeds)


def _simplified(model: ir.Model, case: Case, watch: Watch) -> ir.Model:
    """onnxsim's result; the model as it is, with the reason said, where onnxsim cannot be trusted with it."""
    skipped = "onnxsim would hold all of a large model in memory" if case.large else skip_reason(model)
    if skipped is None:
        try:
            found = inherit(simplify(model, at_once(case.original, case.seen.feeding, case.feeds)), model)
        except ParityError as error:
            skipped = str(error)
        else:
            (params, size), (more_params, more) = (_held(graph) for graph in (model, found))
            if more_params <= params and more <= size:
                return found
            if len(found.graph) == len(model.graph):
                return model  # there was nothing to simplify
            # It computes what constants give, or gives each reader its own copy of a weight.
            what = f"{size:,} to {more:,} bytes" if more > size else f"{params:,} to {more_params:,} params"
            skipped = f"onnxsim would make the file larger ({what})"
    watch.say(f"not simplified: {skipped}")
    return model


def _held(model: ir.Model) -> tuple[int, int]:
    """Parameters, and bytes as a file."""
    return layers.count(model, {}).params, file_bytes(model)


def _written(
    case: Case, result: TrainResult, expected: Feeds, watch: Watch, spool: Spool
) -> tuple[tuple[OutputDifference, ...], Comparison]:
    """The file written, if every proof holds: what was proved."""
    notes = bookkeeping.metadata(case, result.plan, result.chains)
    keep = spool.keep if case.large else None
    finished = rewrite(case.model, result.chains, weights=result.weights, biases=result.biases, metadata=notes, keep=keep)
    if case.settings.simplify:
        finished = _simplified(finished, case, watch)
    proofs: list[tuple[tuple[OutputDifference, ...], Comparison]] = []
    # Simplified or not: what lay beside the original lies beside the new file.
    apart = bool(external_files(case.model))
    save_model(finished, case.settings.output, lambda path: proofs.append(_prove(path, case, result, expected)), apart=apart)
    return proofs[0]


def _prove(path: Path, case: Case, result: TrainResult, expected: Feeds) -> tuple[tuple[OutputDifference, ...], Comparison]:
    """The finished file counted and run; raises where it is over the budget or does not compute what was trained."""
    model = load_model(path)
    written = survey(model, case.seen.feeding.wishes())
    _hold_to(case.budget, replace(written.cost, size=bytes_of(path, *external_files(model))))
    session = open_file(path, model, case.settings.provider, case.settings.threads)
    parity = compare(expected, outputs_of(session, case.feeds), half=case.seen.half)
    require(
        parity,
        "the written file does not compute what was trained",
        lambda: surgery.where_differs(case, lambda: (_dense(case, result, case.model), model)),
    )
    limited = "latency" in case.terms.metrics
    comparison = hold_against(
        case.original, session, (case.seen, written), (str(case.settings.model), str(case.settings.output)),
        surgery.runs_of(case), case.dataset, timed=not limited,
    )  # fmt: skip
    if limited:
        comparison = replace(comparison, latency=pacing.held(case, session))
    return parity, comparison


def _hold_to(budget: Budget, cost: Cost) -> None:
    """Raises BudgetMissedError where what was counted is over a limit; time is not counted, but measured."""
    for limit in budget.limits:
        spent = cost.of(limit.metric)
        if limit.metric != "latency" and spent > limit.limit:
            raise BudgetMissedError(
                f"the finished file has {amount(spent, limit.metric)}, the budget {limit.text!r} allows "
                f"{amount(limit.limit, limit.metric)}; nothing was written"
            )


def _worst(differences: tuple[OutputDifference, ...]) -> float:
    return max(difference.max_absolute for difference in differences)
