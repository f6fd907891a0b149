"""The order of the rooms: load, find layers, import, plan, train, decompose, rewrite, simplify, validate."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from batude_onnx import bookkeeping, decomposition, layers
from batude_onnx.errors import (
    BudgetMissedError,
    DataError,
    ParityError,
    UnsupportedError,
)
from batude_onnx.importer import GraphNet, import_graph, inlined
from batude_onnx.loading import (
    load_model,
    save_model,
)
from batude_onnx.opening import Case, classes, load_data, open_case, report_path
from batude_onnx.outside import Outside
from batude_onnx.proving import Feeds, Survey, batch_of, hold_against, origin_of, outputs_of, parity_feeds, survey
from batude_onnx.records import Comparison, Computed, FactorChain, FloatArray, OutputDifference, Site, TrainResult, Verdict
from batude_onnx.rewriting import rewrite
from batude_onnx.settings import Settings, Source, Watch
from batude_onnx.simplify import simplify, skip_reason
from batude_onnx.spool import Chains, Spool
from batude_onnx.training import compressing, normalisation, planning, refit, sensitivity, statistics
from batude_onnx.training.batches import Augmentation, Batches, takes_any_batch
from batude_onnx.training.loop import train
from batude_onnx.training.recipe import RECIPES, Recipe
from batude_onnx.training.timetable import Timetable, seconds_per_epoch
from batude_onnx.validation import compare, open_file, open_graph, open_session, require

# Samples for BatchNorm statistics and re-fitting, for the moments of the metric, and for the truncation of each layer. Fewer
# are taken where the network is large, so that each stays a matter of minutes: each may take so many multiply-accumulates.
CALIBRATION, CALIBRATION_LEAST = 1024, 128
MOMENTS = 512
SENSITIVITY, SENSITIVITY_LEAST = 256, 16
AFFORDABLE_MACS = 10**13
# Rewriting, onnxsim, and the latency of the two models in turns.
WRITING_SECONDS = 7.0
# Nodes that cannot be imported and are named with their reasons.
REASONS = 5


def compress(settings: Settings, watch: Watch | None = None) -> Verdict:
    """Compress one model as `settings` say; the file is written only if every proof holds.

    Raises a `BatudeError`; then the output path is as it was.
    """
    began = time.monotonic()
    watch = watch or Watch()
    case = open_case(settings, watch)
    if case.large:
        watch.say("a large model: it is run piece by piece, and how fast it is not measured (batude-onnx validate does)")
    surgery = _prove_surgery(case)
    watch.say(f"rewriting all layers at full rank changes the outputs by at most {_worst(surgery):.1e}")
    with Spool(settings.output.parent) as spool:
        result, expected = _without_data(case, watch, spool) if case.dataset is None else _with_data(case, watch, began)
        notes = bookkeeping.metadata(case, result.plan, result.chains)
        keep = spool.keep if case.large else None
        finished = rewrite(case.model, result.chains, weights=result.weights, biases=result.biases, metadata=notes, keep=keep)
        if settings.simplify:
            finished = _simplified(finished, case, watch)
        proofs: list[tuple[tuple[OutputDifference, ...], Comparison]] = []
        save_model(finished, settings.output, lambda path: proofs.append(_prove(path, case, result, expected)))
        parity, comparison = proofs[0]
        methods = bookkeeping.methods(result.chains)
    verdict = Verdict(
        budget=case.budget,
        ranks=result.plan.chosen(),
        methods=methods,
        whole=bookkeeping.whole(case.seen, result.plan),
        surgery=surgery,
        parity=parity,
        comparison=comparison,
        facts=bookkeeping.facts(case, result, time.monotonic() - began),
        history=result.history,
    )
    bookkeeping.write_report(verdict, report_path(settings.output))
    return verdict


def inspect(path: Path, inputs: Mapping[str, tuple[int, ...]] | None = None) -> Survey:
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
    inputs: Mapping[str, tuple[int, ...]] | None = None,
) -> Comparison:
    """Hold `second` against `first`. Raises ParityError where their inputs or outputs are not the same ones."""
    models = load_model(first), load_model(second)
    one, other = (survey(model, inputs) for model in models)
    sessions = open_session(first, provider, threads), open_session(second, provider, threads)
    if [(spec.name, spec.dtype) for spec in one.specs] != [(spec.name, spec.dtype) for spec in other.specs]:
        raise ParityError(f"the inputs differ: {', '.join(map(str, one.specs))} against {', '.join(map(str, other.specs))}")
    if sessions[0].output_names != sessions[1].output_names:
        raise ParityError(
            f"the outputs differ: {', '.join(sessions[0].output_names)} against {', '.join(sessions[1].output_names)}"
        )
    dataset = None if data is None else load_data(data, one)
    feeds = parity_feeds(one.specs, dataset, seed, inputs)
    found = hold_against(*sessions, (one, other), (str(first), str(second)), feeds, dataset)
    if all(difference.within for difference in found.differences):
        return found
    return replace(found, divergence=origin_of(*models, feeds, sessions[0], one.half or other.half))


def _prove_surgery(case: Case) -> tuple[OutputDifference, ...]:
    """Every compressible layer rewritten at full rank must give the original's outputs, whichever method factors it.

    The worse difference of each output comes back.
    """
    sites = case.seen.compressible
    ways = [decomposition.alternatives(site) if RECIPES[case.settings.recipe].formats else (site,) for site in sites]
    rounds = [{way[0].key: way[min(number, len(way) - 1)] for way in ways} for number in range(max(map(len, ways), default=1))]
    proofs = [_surgery(case, sites) for sites in rounds]
    return tuple(max(same, key=lambda difference: difference.max_absolute) for same in zip(*proofs, strict=True))


def _surgery(case: Case, sites: Mapping[str, Site]) -> tuple[OutputDifference, ...]:
    """The outputs with all of these factored and nothing lost, held against the original's."""
    change = partial(_at_full_rank, sites)
    found = outputs_of(open_graph(case.model, case.settings.provider, case.settings.threads, change), case.feeds)
    differences = compare(outputs_of(case.original, case.feeds), found, half=case.seen.half)
    where = partial(_where, case, lambda: (case.model, change(case.model)))
    require(differences, "the rewrite at full rank does not equal the original", where)
    return differences


def _at_full_rank(sites: Mapping[str, Site], graph: ir.Model) -> ir.Model:
    """`graph` (or a piece of it) with those of the `sites` that stand in it factored and nothing lost."""
    nodes = layers.nodes_by_key(graph)
    chains = {}
    for key in [key for key in nodes if key in sites]:
        most = decomposition.method_of(sites[key]).max_ranks(sites[key].shape, sites[key].geometry.groups)
        chains[key] = _factor(sites[key], nodes[key], most)
    return rewrite(graph, chains)


def _where(case: Case, graphs: Callable[[], tuple[ir.Model, ir.Model]]) -> str:
    """Where the difference between two graphs begins, in words; nothing of a large model, as both would have to be made whole."""
    if case.large:
        return ""
    reference, other = graphs()
    found = origin_of(reference, other, case.feeds, case.original, case.seen.half)
    return "all values on the way that both have are equal" if found is None else str(found)


def _factor(site: Site, node: ir.Node, ranks: tuple[int, ...]) -> FactorChain:
    """The chain of a layer as it stands in the file."""
    bias = layers.read_bias(node)
    return decomposition.method_of(site).factor(
        torch.from_numpy(layers.read_weight(node)),
        None if bias is None else torch.from_numpy(bias),
        site.geometry,
        ranks,
        None,
    )


def _without_data(case: Case, watch: Watch, spool: Spool) -> tuple[TrainResult, Feeds]:
    """Ranks and factors from the weights alone. What is expected: the original graph with the dense weights these stand for."""
    watch.say("no data: the weights alone decide, nothing is trained, and accuracy is NOT protected (give --data to protect it)")
    sites, nodes = case.seen.compressible, layers.nodes_by_key(case.model)
    weights = Computed(tuple(site.key for site in sites), lambda key: torch.from_numpy(layers.read_weight(nodes[key])))
    recipe = replace(RECIPES[case.settings.recipe], measures=False)
    sites, _, plan = planning.plan_layers(sites, weights, case.budget, case.whole, recipe, {}, planning.unmeasured)
    by_key = {site.key: site for site in sites}
    chains: MutableMapping[str, FactorChain] = Chains(spool) if case.large else {}
    for key, ranks in plan.chosen().items():
        chains[key] = _factor(by_key[key], nodes[key], ranks)
    result = TrainResult(plan, chains, {}, {})
    return result, _dense_outputs(case, result)


def _dense(case: Case, result: TrainResult, graph: ir.Model) -> ir.Model:
    """`graph` (or a piece of it) with the weights that the chains stand for and all else that was trained in their places."""
    present = {value.name for node in graph.graph.all_nodes() for value in (*node.inputs, *node.outputs) if value is not None}
    weights = {name: values for name, values in result.weights.items() if name in present}
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


def _with_data(case: Case, watch: Watch, began: float) -> tuple[TrainResult, Feeds]:
    """Measured ranks, BC-ADL, factors re-fitted and fine-tuned. What is expected: what the trained torch module gives."""
    settings, dataset, sites = case.settings, case.dataset, case.seen.compressible
    assert dataset is not None
    recipe = RECIPES[settings.recipe]
    torch.manual_seed(settings.seed)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    net, teacher = import_graph(case.model, cut=True).to(settings.device), import_graph(case.model, cut=True).to(settings.device)
    teacher.requires_grad_(False)
    sites = [site for site in sites if site.weight in net.weight_names() and net.has_step(site.key)]
    if net.refused:
        _cut(case, net, teacher, watch)
    batches = _batches(case, net, recipe.batch, watch)
    calibration = batches.sample(_affordable(case, 2.0, CALIBRATION_LEAST, CALIBRATION), settings.seed)
    if not any(output.requires_grad for output in net.eval()(calibration[0])):
        raise UnsupportedError("no output has a gradient (an ArgMax has none): make its input the output, or run without --data")
    moments = batches.sample(MOMENTS, settings.seed + 1)
    metrics = statistics.collect_metrics(net, sites, moments, settings.seed) if recipe.measures else {}
    # Of a network that is truncated in one layer, on the average half is run.
    passes = len(sites) * len(sensitivity.LOST) / 2
    tried = batches.sample(_affordable(case, passes, SENSITIVITY_LEAST, SENSITIVITY), settings.seed + 2)

    def measure(some: Sequence[Site], losses: Mapping[str, FloatArray]) -> Mapping[str, sensitivity.Curve]:
        return sensitivity.measure(
            net, some, losses, case.budget.metric, tried, metrics, recipe.objective,
            lambda done, total: watch.count("measuring layers", done, total),
        )  # fmt: skip

    weights = compressing.current_weights(net, sites)
    sites, rules, plan = planning.plan_layers(sites, weights, case.budget, case.whole, recipe, metrics, measure)
    if not plan.chosen():
        watch.say("every layer fits into the budget as it is: nothing is trained")
        return TrainResult(plan, {}, {}, {}), outputs_of(case.original, case.feeds)
    history: tuple[Mapping[str, float | int | str], ...] = ()
    keys = [site.key for site in sites]
    timetable = None if settings.seconds is None else Timetable(began, settings.seconds, _proving_seconds(case))
    epochs = settings.epochs if timetable is None else _epochs_in(timetable, net, teacher, batches, recipe, keys, watch)
    learning = recipe.share * epochs
    if epochs:
        if recipe.restore and batches.batch > 1:
            normalisation.restore(net, normalisation.restorable(case.seen.sites), calibration)
        if learning:
            plan, history = compressing.learn_ranks(
                net, teacher, sites, batches, recipe, rules,
                metric=case.budget.metric, epochs=learning, report=watch.train,
                seconds=None if timetable is None else recipe.share * timetable.left(),
            )  # fmt: skip
            metrics = statistics.collect_metrics(net, sites, moments, settings.seed) if recipe.measures else {}
    dense = copy.deepcopy(net)
    compressing.decompose(net, sites, plan, metrics)
    if recipe.refit:
        chosen = [site for site in sites if site.key in plan.chosen()]
        refit.refit(net, dense, chosen, calibration, metrics, lambda done, total: watch.count("re-fitting", done, total))
    if epochs:
        tuned = train(
            net, teacher, batches, recipe, recipe.finetune, name="fine-tuning", epochs=epochs - learning, report=watch.train,
            seconds=None if timetable is None else max(timetable.left(), 1e-3), keys=keys,
        )  # fmt: skip
        history = (*history, *tuned)
    result = compressing.harvest(net, case.seen.sites, plan, history)
    return result, _torch_outputs(net, case) if not net.refused else _dense_outputs(case, result)


def _cut(case: Case, net: GraphNet, teacher: GraphNet, watch: Watch) -> None:
    """Say what was left out of `net`, and feed both networks with what that part gives in the original."""
    head, *reasons = net.refused.splitlines()
    watch.say(f"{head}; the others are trained towards the original's values of {', '.join(net.output_names)}")
    for reason in reasons[:REASONS]:
        watch.say(reason)
    if len(reasons) > REASONS:
        watch.say(f"  and {len(reasons) - REASONS} more")
    if net.given_names:
        outside = Outside(inlined(case.model), net.given_names, case.settings.provider, case.settings.threads)
        net.feed(outside)
        teacher.feed(outside)


def _epochs_in(
    timetable: Timetable, net: GraphNet, teacher: GraphNet, batches: Batches, recipe: Recipe, keys: list[str], watch: Watch
) -> float:
    """About how many epochs fit into the time that is left; 0 where not even a few mini-batches do."""
    each = seconds_per_epoch(net, teacher, batches, recipe, keys)
    left = timetable.left()
    if left * len(batches) < 10 * each:
        watch.say(f"{timetable.seconds:.0f} s are spent on measuring and proving: nothing is trained (give more time)")
        return 0.0
    watch.say(f"{left:.0f} of {timetable.seconds:.0f} s are for training, which is about {left / each:.2g} epochs")
    return left / each


def _proving_seconds(case: Case) -> float:
    """What comes after training: both models scored on the test data, and a few seconds for writing and the latency."""
    dataset, spec = case.dataset, case.seen.specs[0]
    assert dataset is not None
    samples = len(dataset.x_train if dataset.x_test is None else dataset.x_test)
    outputs_of(case.original, case.feeds)  # the first run also sets memory up
    start = time.monotonic()
    outputs_of(case.original, case.feeds)
    return 2 * samples * (time.monotonic() - start) / len(case.feeds[spec.name]) + WRITING_SECONDS


def _affordable(case: Case, passes: float, least: int, most: int) -> int:
    """How many samples may go through the network `passes` times."""
    return min(most, max(least, int(AFFORDABLE_MACS / (max(1, case.seen.cost.macs) * max(1.0, passes)))))


def _batches(case: Case, net: GraphNet, batch: int, watch: Watch) -> Batches:
    dataset, source, spec = case.dataset, case.settings.data, case.seen.specs[0]
    assert dataset is not None
    assert source is not None
    images = dataset.x_train.dtype == np.uint8
    augmentation = Augmentation()
    if images and source.augment:
        augmentation = Augmentation(shift=dataset.x_train.shape[1] // 8, flip=dataset.x_train.shape[3] == 3)
    fixed = batch_of(spec)
    if fixed is not None and not net.given_names and takes_any_batch(net, case.feeds[spec.name]):
        fixed = None
    if fixed is not None:
        watch.say(f"the model takes batches of {fixed} only, and is trained with those: an open batch would train better")
        if len(dataset.x_train) < fixed:
            raise DataError(f"{source.path}: {len(dataset.x_train)} training samples do not fill a batch of {fixed}")
    return Batches(
        dataset.x_train,
        dataset.y_train if classes(case.seen) and not net.refused else None,
        batch=fixed or batch,
        whole=fixed is not None,
        mean=dataset.mean,
        std=dataset.std,
        augmentation=augmentation,
        device=case.settings.device,
        seed=case.settings.seed,
    )


def _torch_outputs(net: GraphNet, case: Case) -> Feeds:
    """What the trained network gives for the parity samples, which are whole batches where the model fixes their size."""
    net.eval()
    (samples,) = case.feeds.values()
    x = torch.from_numpy(samples).to(case.settings.device)
    with torch.no_grad():
        parts = [net(part) for part in torch.split(x, batch_of(case.seen.specs[0]) or len(x))]
    return {name: torch.cat([part[k] for part in parts]).cpu().numpy() for k, name in enumerate(net.output_names)}


def _simplified(model: ir.Model, case: Case, watch: Watch) -> ir.Model:
    """onnxsim's result; the model as it is, with the reason said, where onnxsim cannot be trusted with it."""
    skipped = "onnxsim would hold all of a large model in memory" if case.large else skip_reason(model)
    if skipped is None:
        try:
            return simplify(model, {name: array.shape for name, array in case.feeds.items()})
        except ParityError as error:
            skipped = str(error)
    watch.say(f"not simplified: {skipped}")
    return model


def _prove(path: Path, case: Case, result: TrainResult, expected: Feeds) -> tuple[tuple[OutputDifference, ...], Comparison]:
    """The finished file counted and run; raises where it is over the budget or does not compute what was trained."""
    model = load_model(path)
    written = survey(model, case.settings.inputs)
    spent = written.cost.of(case.budget.metric)
    if spent > case.budget.limit:
        raise BudgetMissedError(
            f"the finished file has {spent:,} {case.budget.metric}, the budget {case.budget.text!r} allows "
            f"{case.budget.limit:,}; nothing was written"
        )
    session = open_file(path, model, case.settings.provider, case.settings.threads)
    parity = compare(expected, outputs_of(session, case.feeds), half=case.seen.half)
    require(
        parity,
        "the written file does not compute what was trained",
        lambda: _where(case, lambda: (_dense(case, result, case.model), model)),
    )
    comparison = hold_against(
        case.original, session, (case.seen, written), (str(case.settings.model), str(case.settings.output)),
        case.feeds, case.dataset,
    )  # fmt: skip
    return parity, comparison


def _worst(differences: tuple[OutputDifference, ...]) -> float:
    return max(difference.max_absolute for difference in differences)
