"""Ranks measured or learned, and factors trained, with the graph in torch: the order within a run that has data.

    import, measure, plan   |   BC-ADL, decompose, re-fit, fine-tune

What stands before the bar is `prepare`, what stands behind it `finish`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from batude_onnx import pacing
from batude_onnx.decomposition import Metric
from batude_onnx.errors import DataError
from batude_onnx.importer import GraphNet, any_batch, import_graph, inlined
from batude_onnx.opening import Case, classes
from batude_onnx.outside import Outside
from batude_onnx.proving import Feeds, batch_of, outputs_of
from batude_onnx.records import FloatArray, Judged, RankPlan, Site, TrainResult
from batude_onnx.settings import Watch
from batude_onnx.trainable import imported, listed, trained
from batude_onnx.training import compressing, judging, memory, normalisation, planning, refit, sensitivity, statistics, stride
from batude_onnx.training.batches import Augmentation, Batches, takes_any_batch
from batude_onnx.training.loop import train
from batude_onnx.training.planning import Planned
from batude_onnx.training.recipe import RECIPES, Recipe
from batude_onnx.training.timetable import Timetable, seconds_per_epoch

# Samples for BatchNorm statistics and re-fitting, for the moments of the metric, and for the truncation of each layer. Fewer
# are taken where the network is large, so that each stays a matter of minutes: each may take so many multiply-accumulates.
CALIBRATION, CALIBRATION_LEAST = 1024, 128
MOMENTS = 512
SENSITIVITY, SENSITIVITY_LEAST = 256, 16
AFFORDABLE_MACS = 10**13
# Samples on which it is told whether training has helped.
JUDGED, JUDGED_LEAST = 1024, 128
# Rewriting, onnxsim, and the latency of the two models in turns.
WRITING_SECONDS = 7.0


@dataclass(frozen=True)
class Prepared:
    """The networks, the data and what was measured, with the ranks that came of it."""

    net: GraphNet
    teacher: GraphNet
    batches: Batches
    calibration: list[Tensor]
    moments: list[Tensor]
    metrics: Mapping[str, Metric]
    planned: Planned


@memory.kept()
def prepare(case: Case, trains: bool, watch: Watch) -> tuple[Prepared | None, str]:
    """What training will need, and the ranks; None, and the reason, where the graph cannot be trained or need not be imported."""
    net, reason = imported(case, trains)
    if net is None:
        return None, reason
    settings, recipe = case.settings, RECIPES[case.settings.recipe]
    torch.manual_seed(settings.seed)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    net, graph, fixed = _opened(case, net.to(settings.device))
    teacher = import_graph(graph, cut=True).to(settings.device)
    teacher.requires_grad_(False)
    sites = [site for site in case.seen.compressible if trained(net, site)]
    if net.refused:
        _cut(case, net, teacher, watch)
    batches = _batches(case, net, recipe.batch, fixed, watch)
    calibration = batches.sample(_affordable(case, 2.0, CALIBRATION_LEAST, CALIBRATION), settings.seed)
    if not any(output.requires_grad for output in net.eval()(calibration[0])):
        return None, "no output has a gradient (an ArgMax has none): make its input the output to train it"
    moments = batches.sample(MOMENTS, settings.seed + 1)
    metrics = statistics.collect_metrics(net, sites, moments, settings.seed) if recipe.measures else {}
    # Of a network that is truncated in one layer, on the average half is run.
    passes = len(sites) * len(sensitivity.LOST) / 2
    tried = batches.sample(_affordable(case, passes, SENSITIVITY_LEAST, SENSITIVITY), settings.seed + 2)

    def measure(some: Sequence[Site], losses: Mapping[str, FloatArray]) -> Mapping[str, sensitivity.Curve]:
        counted = partial(watch.count, "measuring layers")
        return sensitivity.measure(net, some, losses, case.terms, tried, metrics, recipe.objective, counted)

    weights = compressing.current_weights(net, sites)
    planned = planning.plan_layers(sites, weights, pacing.within_reach(case), recipe, metrics, measure)
    return Prepared(net, teacher, batches, calibration, moments, metrics, pacing.paced(case, planned, watch)), ""


def _opened(case: Case, net: GraphNet) -> tuple[GraphNet, ir.Model, int | None]:
    """The network and the graph that it comes of, with the batch open where only written-down sizes fix it; the only batch that
    it takes, None where it takes any."""
    fixed, samples = batch_of(case.seen.specs[0]), case.feeds[case.seen.specs[0].name]
    if fixed is None or net.given_names:
        return net, case.model, fixed
    if takes_any_batch(net, samples):
        return net, case.model, None
    if net.refused:
        return net, case.model, fixed
    graph = any_batch(case.model, fixed)
    other = import_graph(graph, cut=True).to(case.settings.device)
    x = torch.from_numpy(samples[:fixed]).to(case.settings.device)
    with torch.no_grad():
        pairs = zip(net.eval()(x), other.eval()(x), strict=True)
        same = takes_any_batch(other, samples) and all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in pairs)
    return (other, graph, None) if same else (net, case.model, fixed)


@memory.kept()
def finish(case: Case, prepared: Prepared, watch: Watch, began: float) -> tuple[TrainResult, Feeds | None]:
    """The trained network's chains and weights, and what it gives for the parity samples (None where it is only a part)."""
    settings, recipe = case.settings, RECIPES[case.settings.recipe]
    net, teacher, batches, metrics = prepared.net, prepared.teacher, prepared.batches, prepared.metrics
    sites, plan = prepared.planned.sites, prepared.planned.plan
    if not plan.chosen():
        watch.say("every layer fits into the budget as it is: nothing is trained")
        return TrainResult(plan, {}, {}, {}), outputs_of(case.original, case.feeds)
    history: tuple[Mapping[str, float | int | str], ...] = ()
    judged: Judged | None = None
    keys = [site.key for site in sites]
    timetable = None if settings.seconds is None else Timetable(began, settings.seconds, _proving_seconds(case))
    epochs = settings.epochs if timetable is None else _epochs_in(timetable, net, teacher, batches, recipe, keys, watch)
    learning = recipe.share * epochs
    if epochs:
        if recipe.restore and batches.batch > 1:
            normalisation.restore(net, normalisation.restorable(case.seen.sites), prepared.calibration)
        if learning:
            plan, history = compressing.learn_ranks(
                net, teacher, sites, batches, recipe, prepared.planned.rules,
                metric=case.terms.metrics[0], epochs=learning, report=watch.train,
                seconds=None if timetable is None else recipe.share * timetable.left(),
            )  # fmt: skip
            metrics = statistics.collect_metrics(net, sites, prepared.moments, settings.seed) if recipe.measures else {}
    _factored(case, prepared, plan, metrics, watch)
    if epochs:
        # Both networks are run twice.
        trial = batches.trial(_affordable(case, 4.0, JUDGED_LEAST, JUDGED), settings.seed + 3)
        steps = batches.steps_in(epochs - learning)
        share = stride.share_of(net, teacher, batches, recipe, recipe.finetune, steps=steps, keys=keys)
        phase = recipe.finetune.times(share)
        tuned, judged = judging.kept_if_better(
            net, teacher, trial, recipe.objective,
            lambda: train(
                net, teacher, batches, recipe, phase, name="fine-tuning", epochs=epochs - learning, report=watch.train,
                seconds=None if timetable is None else max(timetable.left(), 1e-3), keys=keys,
            ),
        )  # fmt: skip
        history = (*history, *tuned)
        if judged is not None and not judged.helped:
            watch.say(
                f"training raised the loss that it was to lower ({judged.start:.3g} to {judged.trained:.3g}): what the fit in "
                "closed form gave is kept; more data or epochs may help"
            )
    result = replace(compressing.harvest(net, case.seen.sites, plan, history), judged=judged)
    return result, None if net.refused else _outputs(net, case)


@memory.kept()
def smaller(case: Case, prepared: Prepared, watch: Watch) -> tuple[TrainResult, Feeds | None]:
    """The network that `finish` has trained with the ranks of another plan, fitted in closed form to what it was."""
    net, plan = prepared.net, prepared.planned.plan
    _factored(case, prepared, plan, prepared.metrics, watch)
    return compressing.harvest(net, case.seen.sites, plan), None if net.refused else _outputs(net, case)


def _factored(case: Case, prepared: Prepared, plan: RankPlan, metrics: Mapping[str, Metric], watch: Watch) -> None:
    """The layers of the plan as chains in `prepared.net`, later ones fitted to make up for earlier ones."""
    net, sites, recipe = prepared.net, prepared.planned.sites, RECIPES[case.settings.recipe]
    before = copy.deepcopy(net)
    compressing.decompose(net, sites, plan, metrics)
    if recipe.refit:
        chosen = [site for site in sites if site.key in plan.chosen()]
        refit.refit(net, before, chosen, prepared.calibration, metrics, partial(watch.count, "re-fitting"))


def _cut(case: Case, net: GraphNet, teacher: GraphNet, watch: Watch) -> None:
    """Say what was left out of `net`, and feed both networks with what that part gives in the original."""
    head, *reasons = net.refused.splitlines()
    watch.say(f"{head}; the others are trained towards the original's values of {', '.join(net.output_names)}")
    listed(reasons, watch)
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
    """What comes after training: both models scored on the test data, and a few seconds for writing and the latency, more of them
    where it is limited."""
    dataset, spec = case.dataset, case.seen.specs[0]
    assert dataset is not None
    samples = len(dataset.x_train if dataset.x_test is None else dataset.x_test)
    outputs_of(case.original, case.feeds)  # the first run also sets memory up
    start = time.monotonic()
    outputs_of(case.original, case.feeds)
    timing = pacing.LONG_SECONDS if "latency" in case.terms.metrics else 0.0
    return 2 * samples * (time.monotonic() - start) / len(case.feeds[spec.name]) + WRITING_SECONDS + timing


def _affordable(case: Case, passes: float, least: int, most: int) -> int:
    """How many samples may go through the network `passes` times."""
    return min(most, max(least, int(AFFORDABLE_MACS / (max(1, case.seen.cost.macs) * max(1.0, passes)))))


def _batches(case: Case, net: GraphNet, batch: int, fixed: int | None, watch: Watch) -> Batches:
    """`fixed`: the only batch that the network takes, if there is one."""
    dataset, source = case.dataset, case.settings.data
    assert dataset is not None
    assert source is not None
    images = dataset.x_train.dtype == np.uint8
    augmentation = Augmentation()
    if images and source.augment:
        augmentation = Augmentation(shift=dataset.x_train.shape[1] // 8, flip=dataset.x_train.shape[3] == 3)
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


def _outputs(net: GraphNet, case: Case) -> Feeds:
    """What the trained network gives for the parity samples, which are whole batches where the model fixes their size."""
    net.eval()
    (samples,) = case.feeds.values()
    x = torch.from_numpy(samples).to(case.settings.device)
    with torch.no_grad():
        parts = [net(part) for part in torch.split(x, batch_of(case.seen.specs[0]) or len(x))]
    # A weight may be an output, and an output a single number.
    joined = {
        name: torch.cat([part[k].detach().reshape(part[k].shape or 1) for part in parts])
        for k, name in enumerate(net.output_names)
    }
    return {name: output.cpu().numpy() for name, output in joined.items()}
