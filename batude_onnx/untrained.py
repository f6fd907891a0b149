"""Ranks and factors without training: from the weights alone, or from what onnxruntime shows of the layers on a few samples."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_ir as ir
import torch

from batude_onnx import calibration, decomposition, layers, pacing
from batude_onnx.decomposition import Metric
from batude_onnx.errors import UnsupportedError
from batude_onnx.loading import preprocess
from batude_onnx.opening import Case
from batude_onnx.proving import Feeds, batch_of
from batude_onnx.records import Computed, FactorChain, FloatArray, Site, TrainResult
from batude_onnx.rewriting import rewrite
from batude_onnx.settings import Watch
from batude_onnx.spool import Chains, Spool
from batude_onnx.training import planning, sensitivity
from batude_onnx.training.features import Sums
from batude_onnx.training.planning import Planned
from batude_onnx.training.recipe import RECIPES
from batude_onnx.training.refit import Regression

# Samples for the moments of each layer, for the truncation of each, and for re-fitting. Fewer are taken where the network is
# large: each stage may take so many multiply-accumulates.
MOMENTS, SENSITIVITY, CALIBRATION, LEAST = 512, 256, 1024, 8
AFFORDABLE_MACS = 10**13
# Samples in a run, and multiply-accumulates of all of them, beyond which values on the way would take too much memory.
BATCH, BATCH_MACS = 64, 10**10


def factor(site: Site, weight: torch.Tensor, bias: torch.Tensor | None, ranks: tuple[int, ...]) -> FactorChain:
    """The chain of a layer as it stands in the file."""
    return decomposition.method_of(site).factor(weight, bias, site.geometry, ranks, None)


def as_stored(site: Site, node: ir.Node, ranks: tuple[int, ...]) -> FactorChain:
    """The chain of a layer by what its node holds."""
    bias = layers.read_bias(node)
    return factor(site, torch.from_numpy(layers.read_weight(node)), None if bias is None else torch.from_numpy(bias), ranks)


def stored(case: Case, sites: Sequence[Site]) -> Mapping[str, torch.Tensor]:
    """Canonical weights by key; those of a large model are read each time that they are asked for."""
    nodes = layers.nodes_by_key(case.model)

    weights = Computed(tuple(site.key for site in sites), lambda key: torch.from_numpy(layers.read_weight(nodes[key])))
    return weights if case.large else dict(weights)


def stored_biases(case: Case, sites: Sequence[Site]) -> dict[str, torch.Tensor]:
    """Of the layers that have one, by key."""
    nodes = layers.nodes_by_key(case.model)
    biases = {site.key: layers.read_bias(nodes[site.key]) for site in sites}
    return {key: torch.from_numpy(bias) for key, bias in biases.items() if bias is not None}


def plan_by_weights(case: Case, watch: Watch) -> Planned:
    """Ranks by the weights alone."""
    weights = stored(case, case.seen.compressible)
    recipe = replace(RECIPES[case.settings.recipe], measures=False)
    planned = planning.plan_layers(case.seen.compressible, weights, pacing.within_reach(case), recipe, {}, planning.unmeasured)
    return pacing.paced(case, planned, watch)


def from_weights(case: Case, planned: Planned, spool: Spool) -> TrainResult:
    """Each layer of the plan nearest to what it is in the file; the chains of a large model lie in `spool`."""
    nodes, by_key, plan = layers.nodes_by_key(case.model), {site.key: site for site in planned.sites}, planned.plan
    chains: MutableMapping[str, FactorChain] = Chains(spool) if case.large else {}
    for key, ranks in plan.chosen().items():
        chains[key] = as_stored(by_key[key], nodes[key], ranks)
    return TrainResult(plan, chains, {}, {})


@dataclass(frozen=True)
class Sampled:
    """What the layers see of the training samples, and the ranks that came of it."""

    planned: Planned
    sums: Mapping[str, Sums]
    metrics: Mapping[str, Metric]
    biases: Mapping[str, torch.Tensor]

    def fits(self, some: Sequence[Site]) -> dict[str, Regression]:
        """Each of these layers fitted to what it sees."""
        return _fits(some, self.sums, self.planned.weights, self.metrics)


def plan_by_samples(case: Case, watch: Watch) -> Sampled:
    """Ranks by what the layers see of the training samples, and by what truncating each of them does to the outputs.

    A layer that no sample reaches stays whole. Raises UnsupportedError where that are all of them.
    """
    settings, recipe = case.settings, RECIPES[case.settings.recipe]
    where = settings.provider, settings.threads
    weights, biases = stored(case, case.seen.compressible), stored_biases(case, case.seen.compressible)
    sums = calibration.collect(
        case.model, case.seen.compressible, weights, biases, case.seen.shapes, _samples(case, 2.0, MOMENTS, 1), *where
    )
    sites = [site for site in case.seen.compressible if site.key in sums]
    if not sites:
        raise UnsupportedError("no sample reaches any layer that can be compressed: give other samples, or run without --data")
    metrics = {site.key: calibration.metric_of(site, sums[site.key]) for site in sites} if recipe.measures else {}

    def measure(some: Sequence[Site], losses: Mapping[str, FloatArray]) -> Mapping[str, sensitivity.Curve]:
        tried = _samples(case, len(some) * len(sensitivity.LOST), SENSITIVITY, 2)
        counted, fits = partial(watch.count, "measuring layers"), _fits(some, sums, weights, metrics)
        return calibration.measure(case.model, some, losses, case.terms, tried, fits, recipe.objective, counted, *where)

    planned = planning.plan_layers(sites, weights, pacing.within_reach(case), recipe, metrics, measure)
    return Sampled(pacing.paced(case, planned, watch), sums, metrics, biases)


def _fits(
    some: Sequence[Site],
    sums: Mapping[str, Sums],
    weights: Mapping[str, torch.Tensor],
    metrics: Mapping[str, Metric],
) -> dict[str, Regression]:
    return {site.key: Regression(site, sums[site.key], weights[site.key], metrics.get(site.key)) for site in some}


def from_samples(case: Case, sampled: Sampled, watch: Watch) -> TrainResult:
    """The layers of the plan fitted in order to the features of the original, later ones making up for earlier ones."""
    settings, planned = case.settings, sampled.planned
    plan, chosen = planned.plan, [site for site in planned.sites if site.key in planned.plan.chosen()]
    if RECIPES[settings.recipe].refit:
        chains = calibration.refit(
            case.model, partial(rewrite, case.model), chosen, plan.chosen(), planned.weights, sampled.fits(chosen),
            sampled.metrics, _samples(case, len(chosen), CALIBRATION, 0), partial(watch.count, "re-fitting"),
            settings.provider, settings.threads,
        )  # fmt: skip
    else:
        chains = {
            site.key: factor(site, planned.weights[site.key], sampled.biases.get(site.key), plan.chosen()[site.key])
            for site in chosen
        }
    kept = {site.key: "no sample reaches it" for site in case.seen.compressible if site.key not in sampled.sums}
    return TrainResult(plan, chains, {}, {}, kept=kept)


def _samples(case: Case, passes: float, most: int, number: int) -> list[Feeds]:
    """Training samples in batches, as many as may go through the network `passes` times; another draw for each `number`."""
    dataset, spec, macs = case.dataset, case.seen.specs[0], max(1, case.seen.cost.macs)
    affordable = min(most, max(LEAST, int(AFFORDABLE_MACS / (macs * max(1.0, passes)))))
    if dataset is None:
        return list(case.runs[:affordable])
    batch = batch_of(spec) or max(1, min(BATCH, BATCH_MACS // macs))
    order = np.random.default_rng(case.settings.seed + number).permutation(len(dataset.x_train))
    order = np.resize(order, max(len(order), batch))[: max(affordable, batch) // batch * batch]
    parts = np.array_split(order[: len(order) // batch * batch], len(order) // batch)
    return [{spec.name: preprocess(dataset.x_train[part], dataset.mean, dataset.std)} for part in parts]
