"""The order of the rooms: load, find layers, import, plan, train, decompose, rewrite, simplify, validate."""

from __future__ import annotations

import copy
import json
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from batude_onnx import decomposition, layers
from batude_onnx.budget import parse_budget
from batude_onnx.errors import BudgetError, BudgetMissedError, NothingToCompressError, ParityError
from batude_onnx.importer import GraphNet, import_graph
from batude_onnx.loading import (
    Dataset,
    check_writable,
    external_files,
    holdout,
    load_dataset,
    load_model,
    save_model,
    write_atomically,
)
from batude_onnx.proving import Feeds, Survey, hold_against, outputs_of, parity_feeds, survey
from batude_onnx.records import Budget, Comparison, FactorChain, OutputDifference, RankPlan, Site, TrainResult, Verdict
from batude_onnx.rewriting import rewrite
from batude_onnx.settings import Settings, Source, Watch
from batude_onnx.simplify import simplify, skip_reason
from batude_onnx.training import compressing, normalisation, refit, statistics
from batude_onnx.training.batches import Augmentation, Batches
from batude_onnx.training.loop import train
from batude_onnx.training.recipe import RECIPES
from batude_onnx.validation import Session, compare, open_graph, open_session, require

# Samples for BatchNorm statistics and re-fitting, and for the moments of the metric.
CALIBRATION = 1024
MOMENTS = 512


@dataclass(frozen=True)
class _Case:
    """What is known before anything is changed."""

    settings: Settings
    model: ir.Model
    seen: Survey
    budget: Budget
    dataset: Dataset | None
    feeds: Feeds
    original: Session


def compress(settings: Settings, watch: Watch | None = None) -> Verdict:
    """Compress one model as `settings` say; the file is written only if every proof holds.

    Raises a `BatudeError`; then the output path is as it was.
    """
    began = time.monotonic()
    watch = watch or Watch()
    case = _open(settings, watch)
    surgery = _prove_surgery(case)
    watch.say(f"rewriting all layers at full rank changes the outputs by at most {_worst(surgery):.1e}")
    result, expected = (_without_data if case.dataset is None else _with_data)(case, watch)
    finished = rewrite(
        case.model, result.chains, weights=result.weights, biases=result.biases, metadata=_metadata(case, result.plan)
    )
    if settings.simplify:
        finished = _simplified(finished, case, watch)
    proofs: list[tuple[tuple[OutputDifference, ...], Comparison]] = []
    save_model(finished, settings.output, lambda path: proofs.append(_prove(path, case, result, expected)))
    parity, comparison = proofs[0]
    verdict = Verdict(
        budget=case.budget,
        ranks=result.plan.chosen(),
        whole=_whole(case.seen, result.plan),
        surgery=surgery,
        parity=parity,
        comparison=comparison,
        facts=_facts(case, time.monotonic() - began),
        history=result.history,
    )
    _write_report(verdict, settings.output.with_suffix(".json"))
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
    one, other = survey(load_model(first), inputs), survey(load_model(second), inputs)
    sessions = open_session(first, provider, threads), open_session(second, provider, threads)
    if [(spec.name, spec.dtype) for spec in one.specs] != [(spec.name, spec.dtype) for spec in other.specs]:
        raise ParityError(f"the inputs differ: {', '.join(map(str, one.specs))} against {', '.join(map(str, other.specs))}")
    if sessions[0].output_names != sessions[1].output_names:
        raise ParityError(
            f"the outputs differ: {', '.join(sessions[0].output_names)} against {', '.join(sessions[1].output_names)}"
        )
    dataset = None if data is None else _load_data(data, one)
    feeds = parity_feeds(one.specs, dataset, seed, inputs)
    return hold_against(*sessions, (one.cost, other.cost), (str(first), str(second)), one.specs, feeds, dataset)


def _open(settings: Settings, watch: Watch) -> _Case:
    """Read and check everything that the run needs, so that what is wrong is said at once."""
    data = [] if settings.data is None else [settings.data.path]
    check_writable(settings.output, settings.model, *data)
    model = load_model(settings.model)
    check_writable(settings.output, settings.model, *data, *external_files(model))
    original = open_session(settings.model, settings.provider, settings.threads)
    seen = survey(model, settings.inputs)
    if not seen.compressible:
        reasons = "; ".join(f"{site.op} {site.key}: {site.reason}" for site in seen.sites[:3])
        found = f"{len(seen.sites)} layers, none of them compressible ({reasons})" if seen.sites else "no Conv, Gemm or MatMul"
        raise NothingToCompressError(f"{settings.model}: nothing to compress: {found}")
    if settings.metric == "macs" and not seen.cost.macs:
        raise BudgetError("MACs cannot be counted, since input sizes are open: give them with --input-shape NAME=1,3,224,224")
    budget = parse_budget(settings.budget, settings.metric, seen.cost)
    dataset = None
    if settings.data is not None:
        dataset = holdout(_load_data(settings.data, seen))
        tested = 0 if dataset.x_test is None else len(dataset.x_test)
        watch.say(f"{len(dataset.x_train):,} samples to train on, {tested:,} to test on")
    feeds = parity_feeds(seen.specs, dataset, settings.seed, settings.inputs)
    return _Case(settings, model, seen, budget, dataset, feeds, original)


def _load_data(source: Source, seen: Survey) -> Dataset:
    if len(seen.specs) != 1:
        raise NothingToCompressError(f"data can be used with one input, and the model has {len(seen.specs)}: run without --data")
    return load_dataset(source.path, seen.specs[0], _classes(seen), limit=source.limit, mean=source.mean, std=source.std)


def _classes(seen: Survey) -> int | None:
    """How many classes a classifier has; None where the output is none."""
    outputs = [seen.shapes.get(name) for name in seen.outputs]
    shape = outputs[0] if len(outputs) == 1 else None
    return shape[1] if shape is not None and len(shape) == 2 and shape[1] > 1 else None


def _prove_surgery(case: _Case) -> tuple[OutputDifference, ...]:
    """Every compressible layer rewritten at full rank must give the original's outputs."""
    nodes = layers.nodes_by_key(case.model)
    chains = {}
    for site in case.seen.compressible:
        most = decomposition.method_of(site).max_ranks(site.shape, site.geometry.groups)
        chains[site.key] = _factor(site, nodes[site.key], most)
    rewritten = open_graph(rewrite(case.model, chains), case.settings.provider, case.settings.threads)
    differences = compare(outputs_of(case.original, case.feeds), outputs_of(rewritten, case.feeds))
    require(differences, "the rewrite at full rank does not equal the original")
    return differences


def _factor(site: Site, node: ir.Node, ranks: tuple[int, ...]) -> FactorChain:
    """The chain of a layer as it stands in the file."""
    bias = layers.read_bias(node)
    return decomposition.method_of(site).factor(
        torch.from_numpy(layers.read_weight(node).copy()),
        None if bias is None else torch.from_numpy(bias.copy()),
        site.geometry,
        ranks,
        None,
    )


def _without_data(case: _Case, watch: Watch) -> tuple[TrainResult, Feeds]:
    """Ranks and factors from the weights alone. What is expected: the original graph with the reconstructed dense weights."""
    watch.say("no data: the weights alone decide, nothing is trained, and accuracy is NOT protected (give --data to protect it)")
    sites, nodes = case.seen.compressible, layers.nodes_by_key(case.model)
    recipe = RECIPES[case.settings.recipe]
    rules = compressing.rules_of(recipe, sites, case.budget, case.seen.cost, {})
    weights = {site.key: torch.from_numpy(layers.read_weight(nodes[site.key]).copy()) for site in sites}
    plan = rules.ranks({key: (weight,) * rules.copies(key) for key, weight in weights.items()})
    by_key = {site.key: site for site in sites}
    chains = {key: _factor(by_key[key], nodes[key], ranks) for key, ranks in plan.chosen().items()}
    dense = {}
    for key, chain in chains.items():
        weight = decomposition.method(chain.method).reconstruct(chain).float().numpy()
        dense[by_key[key].weight] = np.ascontiguousarray(weight.T if by_key[key].transposed else weight)
    near = open_graph(rewrite(case.model, {}, weights=dense), case.settings.provider, case.settings.threads)
    return TrainResult(plan, chains, {}, {}), outputs_of(near, case.feeds)


def _with_data(case: _Case, watch: Watch) -> tuple[TrainResult, Feeds]:
    """Measured ranks, BC-ADL, factors re-fitted and fine-tuned. What is expected: what the trained torch module gives."""
    settings, dataset, sites = case.settings, case.dataset, case.seen.compressible
    assert dataset is not None
    recipe = RECIPES[settings.recipe]
    torch.manual_seed(settings.seed)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    net, teacher = import_graph(case.model).to(settings.device), import_graph(case.model).to(settings.device)
    teacher.requires_grad_(False)
    batches = _batches(case, recipe.batch)
    calibration = batches.sample(CALIBRATION, settings.seed)
    moments = batches.sample(MOMENTS, settings.seed + 1)
    metrics = {} if recipe.literal else statistics.collect_metrics(net, sites, moments, settings.seed)
    rules = compressing.rules_of(recipe, sites, case.budget, case.seen.cost, metrics)
    plan = compressing.solve_ranks(net, sites, rules)
    if not plan.chosen():
        watch.say("every layer fits into the budget as it is: nothing is trained")
        return TrainResult(plan, {}, {}, {}), outputs_of(case.original, case.feeds)
    history: tuple[Mapping[str, float | int | str], ...] = ()
    learning = recipe.share * settings.epochs
    if settings.epochs:
        normalisation.restore(net, normalisation.restorable(case.seen.sites), calibration)
        if learning:
            plan, history = compressing.learn_ranks(
                net, teacher, sites, batches, recipe, rules, metric=case.budget.metric, epochs=learning, report=watch.train
            )
            metrics = {} if recipe.literal else statistics.collect_metrics(net, sites, moments, settings.seed)
    dense = copy.deepcopy(net)
    compressing.decompose(net, sites, plan, metrics)
    if recipe.refit:
        chosen = [site for site in sites if site.key in plan.chosen()]
        refit.refit(net, dense, chosen, calibration, metrics, lambda done, total: watch.count("re-fitting", done, total))
    if settings.epochs:
        tuned = train(
            net, teacher, batches, recipe, recipe.finetune,
            name="fine-tuning", epochs=settings.epochs - learning, report=watch.train,
        )  # fmt: skip
        history = (*history, *tuned)
    return compressing.harvest(net, case.seen.sites, plan, history), _torch_outputs(net, case)


def _batches(case: _Case, batch: int) -> Batches:
    dataset, source, spec = case.dataset, case.settings.data, case.seen.specs[0]
    assert dataset is not None
    assert source is not None
    images = dataset.x_train.dtype == np.uint8
    augmentation = Augmentation()
    if images and source.augment:
        augmentation = Augmentation(shift=dataset.x_train.shape[1] // 8, flip=dataset.x_train.shape[3] == 3)
    fixed = spec.shape[0]
    return Batches(
        dataset.x_train,
        dataset.y_train if _classes(case.seen) else None,
        batch=fixed if isinstance(fixed, int) else batch,
        mean=dataset.mean,
        std=dataset.std,
        augmentation=augmentation,
        device=case.settings.device,
        seed=case.settings.seed,
    )


def _torch_outputs(net: GraphNet, case: _Case) -> Feeds:
    net.eval()
    fixed = case.seen.specs[0].shape[0]
    size = fixed if isinstance(fixed, int) else len(next(iter(case.feeds.values())))
    samples = len(next(iter(case.feeds.values())))
    parts = []
    with torch.no_grad():
        for start in range(0, samples - size + 1, size):
            given = [
                torch.from_numpy(case.feeds[name][start : start + size]).to(case.settings.device) for name in net.input_names
            ]
            parts.append([output.cpu().numpy() for output in net(*given)])
    return {name: np.concatenate([part[k] for part in parts]) for k, name in enumerate(net.output_names)}


def _simplified(model: ir.Model, case: _Case, watch: Watch) -> ir.Model:
    """onnxsim's result; the model as it is, with the reason said, where onnxsim cannot be trusted with it."""
    skipped = skip_reason(model)
    if skipped is None:
        try:
            return simplify(model, {name: array.shape for name, array in case.feeds.items()})
        except ParityError as error:
            skipped = str(error)
    watch.say(f"not simplified: {skipped}")
    return model


def _prove(path: Path, case: _Case, result: TrainResult, expected: Feeds) -> tuple[tuple[OutputDifference, ...], Comparison]:
    """The finished file counted and run; raises where it is over the budget or does not compute what was trained."""
    written = survey(load_model(path), case.settings.inputs)
    spent = written.cost.of(case.budget.metric)
    if spent > case.budget.limit:
        raise BudgetMissedError(
            f"the finished file has {spent:,} {case.budget.metric}, the budget {case.budget.text!r} allows "
            f"{case.budget.limit:,}; nothing was written"
        )
    session = open_session(path, case.settings.provider, case.settings.threads)
    parity = compare(expected, outputs_of(session, case.feeds))
    require(parity, "the written file does not compute what was trained")
    comparison = hold_against(
        case.original, session, (case.seen.cost, written.cost), (str(case.settings.model), str(case.settings.output)),
        case.seen.specs, case.feeds, case.dataset,
    )  # fmt: skip
    return parity, comparison


def _metadata(case: _Case, plan: RankPlan) -> dict[str, str]:
    """What the file itself says of how it was made."""
    return {
        "batude_onnx.budget": f"{case.budget.text} {case.budget.metric} <= {case.budget.limit}",
        "batude_onnx.ranks": json.dumps(plan.chosen()),
        "batude_onnx.recipe": case.settings.recipe if case.dataset is not None else "training-free",
    }


def _whole(seen: Survey, plan: RankPlan) -> dict[str, str]:
    """Every layer left alone, with its reason."""
    reasons = {}
    for site in seen.sites:
        if site.method is None:
            reasons[site.key] = str(site.reason)
        elif plan.ranks[site.key] is None:
            reasons[site.key] = "the budget pays for it as it is"
    return reasons


def _facts(case: _Case, seconds: float) -> dict[str, object]:
    settings = case.settings
    return {
        "seconds": round(seconds, 1),
        "recipe": settings.recipe if case.dataset is not None else "training-free",
        "epochs": settings.epochs if case.dataset is not None else 0,
        "seed": settings.seed,
        "training_samples": 0 if case.dataset is None else len(case.dataset.x_train),
        "device": settings.device,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnx_ir": ir.__version__,
    }


def _worst(differences: tuple[OutputDifference, ...]) -> float:
    return max(difference.max_absolute for difference in differences)


def _write_report(verdict: Verdict, path: Path) -> None:
    """The verdict beside the model."""
    write_atomically(path, lambda target: _dump(verdict, target))


def _dump(verdict: Verdict, target: Path) -> None:
    target.write_text(json.dumps(asdict(verdict), indent=2) + "\n")
