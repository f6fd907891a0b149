"""The order of the rooms: load, find layers, import, plan, train, decompose, rewrite, simplify, validate."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from batude_onnx import benching, bookkeeping, decomposition, layers, outlook, pacing, trained, untrained
from batude_onnx.budget import amount
from batude_onnx.errors import (
    BudgetMissedError,
    OutputError,
    ParityError,
    UnsupportedError,
)
from batude_onnx.loading import (
    Dataset,
    load_model,
    save_model,
)
from batude_onnx.opening import Case, load_data, open_case, report_path, sized
from batude_onnx.planfile import write_plan
from batude_onnx.pricing import bytes_of
from batude_onnx.proving import Feeds, Survey, hold_against, open_two, origin_of, outputs_of, parity_feeds, survey
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
from batude_onnx.trainable import listed
from batude_onnx.training.planning import Planned
from batude_onnx.training.recipe import RECIPES
from batude_onnx.validation import compare, open_graph, open_session, require

# Runs of a model of several inputs on which its rewrite is proved.
PROVED = 16


def compress(settings: Settings, watch: Watch | None = None) -> Verdict:
    """Compress one model as `settings` say; the file is written only if every proof holds.

    Raises a `BatudeError`; then the output path is as it was.
    """
    began = time.monotonic()
    watch = watch or Watch()
    report = report_path(settings.output)
    if report == settings.output:
        raise OutputError(f"{settings.output}: the run's report goes there; give the model another suffix, such as .onnx")
    case = open_case(settings, watch, (settings.output, report))
    surgery = _prove_surgery(case)
    watch.say(f"rewriting all layers at full rank changes the outputs by at most {_worst(surgery):.1e}")
    result, expected = _compressed(case, watch, began)
    notes = bookkeeping.metadata(case, result.plan, result.chains)
    finished = rewrite(case.model, result.chains, weights=result.weights, biases=result.biases, metadata=notes)
    if settings.simplify:
        finished = _simplified(finished, case, watch)
    proofs: list[tuple[tuple[OutputDifference, ...], Comparison]] = []
    save_model(finished, settings.output, lambda path: proofs.append(_prove(path, case, result, expected)))
    parity, comparison = proofs[0]
    verdict = Verdict(
        budget=case.budget,
        ranks=result.plan.chosen(),
        methods=bookkeeping.methods(result.chains),
        whole=bookkeeping.whole(case, result.plan, result.kept),
        surgery=surgery,
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
    case = open_case(replace(settings, epochs=0.0, seconds=None), watch, (settings.output,))
    way = _planned(case, watch)
    planned = way if isinstance(way, Planned) else way.planned
    found = outlook.look(case, planned, sweep, sensitivity, bookkeeping.whole(case, planned.plan, {}))
    write_plan(found, settings.output)
    return found


def inspect(path: Path, inputs: Wishes | None = None) -> Survey:
    """All layers of a model, with their costs and whether they can be compressed."""
    return survey(load_model(path), inputs)


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
    """Hold `second` against `first`. Raises ParityError where their inputs or outputs are not the same ones."""
    held: list[Dataset] = []

    def see(model: ir.Model, wishes: Wishes | None) -> Survey:
        seen = survey(model, wishes)
        if data is None:
            return seen
        held.append(load_data(data, seen))
        return sized(model, seen, held[0])

    models, (one, other), sessions = open_two((first, second), provider, threads, inputs, see)
    dataset = held[0] if held else None
    if dataset is None and one.feeding.taken and watch is not None:
        watch.say(one.feeding.taken)
    feeds = parity_feeds(sessions[0], one, dataset, seed)
    found = hold_against(*sessions, (one, other), (str(first), str(second)), feeds, dataset)
    if all(difference.within for difference in found.differences):
        return found
    return replace(found, divergence=origin_of(*models, feeds, sessions[0], one.half or other.half))


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
    feeding = surveys[0].feeding
    if feeding.taken and watch is not None:
        watch.say(feeding.taken)
    feeds = feeding.values(1, seed), feeding.values(batch, seed)
    return benching.run_against((first, second), models, surveys, sessions, feeds, seconds)


def _prove_surgery(case: Case) -> tuple[OutputDifference, ...]:
    """Every compressible layer rewritten at full rank must give the original's outputs, whichever method factors it.

    The worse difference of each output comes back.
    """
    sites = case.seen.compressible
    ways = [decomposition.alternatives(site) if RECIPES[case.settings.recipe].formats else (site,) for site in sites]
    weights, biases = untrained.stored(case, sites)
    proofs = []
    for number in range(max(map(len, ways), default=1)):
        chains = {}
        for site in (way[min(number, len(way) - 1)] for way in ways):
            most = decomposition.method_of(site).max_ranks(site.shape, site.geometry.groups)
            chains[site.key] = untrained.factor(site, weights[site.key], biases.get(site.key), most)
        rewritten = rewrite(case.model, chains)
        session = open_graph(rewritten, case.settings.provider, case.settings.threads)
        # Each run may take another way through the graph.
        for feeds in case.runs[:PROVED] or (case.feeds,):
            proofs.append(compare(outputs_of(case.original, feeds), outputs_of(session, feeds), half=case.seen.half))
            where = partial(_where, case.model, rewritten, replace(case, feeds=feeds))
            require(proofs[-1], "the rewrite at full rank does not equal the original", where)
    return tuple(max(same, key=lambda difference: difference.max_absolute) for same in zip(*proofs, strict=True))


def _where(reference: ir.Model, other: ir.Model, case: Case) -> str:
    """Where the difference between two graphs begins, in words."""
    found = origin_of(reference, other, case.feeds, case.original, case.seen.half)
    return "all values on the way that both have are equal" if found is None else str(found)


def _compressed(case: Case, watch: Watch, began: float) -> tuple[TrainResult, Feeds]:
    """Ranks and factors, and what the finished file must give; by training where there is data and the graph can be imported."""
    way = _planned(case, watch)
    if isinstance(way, trained.Prepared):
        result, outputs = trained.finish(case, way, watch, began)
        return result, outputs if outputs is not None else _dense_outputs(case, result)
    if isinstance(way, untrained.Sampled):
        result = untrained.from_samples(case, way, watch)
        return result, _dense_outputs(case, result)
    result = untrained.from_weights(case, way)
    return result, _dense_outputs(case, result)


def _planned(case: Case, watch: Watch) -> trained.Prepared | untrained.Sampled | Planned:
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


def _dense(case: Case, result: TrainResult) -> ir.Model:
    """The original graph with the weights that the chains stand for and all else that was trained in their places."""
    weights, biases = dict(result.weights), dict(result.biases)
    by_key, nodes = {site.key: site for site in case.seen.sites}, layers.nodes_by_key(case.model)
    for key, chain in result.chains.items():
        site, bias, held = by_key[key], chain.layers[-1].bias, layers.read_bias(nodes[key])
        weight = decomposition.method(chain.method).reconstruct(chain).float().numpy()
        weights[site.weight] = np.ascontiguousarray(site.layout.stored(weight))
        if bias is not None and (held is None or not np.array_equal(bias, held)):
            biases[key] = bias
    return rewrite(case.model, {}, weights=weights, biases=biases)


def _dense_outputs(case: Case, result: TrainResult) -> Feeds:
    """What that graph gives."""
    return outputs_of(open_graph(_dense(case, result), case.settings.provider, case.settings.threads), case.feeds)


def _simplified(model: ir.Model, case: Case, watch: Watch) -> ir.Model:
    """onnxsim's result; the model as it is, with the reason said, where onnxsim cannot be trusted with it."""
    skipped = skip_reason(model)
    if skipped is None:
        try:
            return simplify(model, case.feeds)
        except ParityError as error:
            skipped = str(error)
    watch.say(f"not simplified: {skipped}")
    return model


def _prove(path: Path, case: Case, result: TrainResult, expected: Feeds) -> tuple[tuple[OutputDifference, ...], Comparison]:
    """The finished file counted and run; raises where it is over the budget or does not compute what was trained."""
    model = load_model(path)
    written = survey(model, case.seen.feeding.wishes())
    _hold_to(case.budget, replace(written.cost, size=bytes_of(path)))
    session = open_session(path, case.settings.provider, case.settings.threads)
    parity = compare(expected, outputs_of(session, case.feeds), half=case.seen.half)
    require(parity, "the written file does not compute what was trained", lambda: _where(_dense(case, result), model, case))
    comparison = hold_against(
        case.original, session, (case.seen, written), (str(case.settings.model), str(case.settings.output)),
        case.feeds, case.dataset,
    )  # fmt: skip
    if "latency" in case.terms.metrics:
        comparison = replace(comparison, latency=pacing.held(case, session, comparison.latency))
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
