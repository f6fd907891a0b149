"""The steps of training that the pipeline calls: learn ranks, decompose, harvest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from batude_onnx.decomposition import Metric, method_of
from batude_onnx.errors import TrainingError
from batude_onnx.importer import GraphNet
from batude_onnx.records import FactorChain, FloatArray, RankPlan, Site, TrainResult
from batude_onnx.training import bcadl
from batude_onnx.training.batches import Batches
from batude_onnx.training.chain_module import ChainModule, dense, put
from batude_onnx.training.loop import Hooks, Report, train
from batude_onnx.training.normalisation import RestoredBatchNorm, fold
from batude_onnx.training.recipe import Recipe
from batude_onnx.training.statistics import canonical

History = tuple[Mapping[str, float | int | str], ...]


def current_weights(net: GraphNet, sites: Sequence[Site]) -> dict[str, Tensor]:
    """The canonical weights of the sites as they are now, detached."""
    return {site.key: canonical(site, net.weight(site.weight).detach()) for site in sites}


class _Learning(Hooks):
    """Algorithm 1 woven into the loop: Z and M every `solve_every` mini-batches, Eq. 19 in each."""

    def __init__(self, net: GraphNet, sites: Sequence[Site], recipe: Recipe, rules: bcadl.Rules, metric: str) -> None:
        self.net, self.sites, self.recipe, self.rules, self.metric = net, sites, recipe, rules, metric
        self.state = bcadl.init(current_weights(net, sites), rules)
        self.penalty = recipe.penalty_at(0.0)
        self.solved = 0.0

    def before(self, step: int, progress: float) -> None:
        if step % self.recipe.solve_every and (progress - self.solved) * self.recipe.least_solves < 1:
            return
        self.solved = progress
        w = current_weights(self.net, self.sites)
        for key, weight in w.items():
            if not bool(weight.isfinite().all()):
                raise TrainingError(f"the weights of {key} are no longer finite in step {step + 1} of BC-ADL: check the data")
        if self.state.plan is not None:
            self.state = bcadl.update_m(w, self.state, self.penalty)
        self.penalty = self.recipe.penalty_at(progress)
        self.state = bcadl.update_z(w, self.state, self.penalty, self.rules, frozen=progress >= self.recipe.freeze)

    def gradients(self) -> Iterable[tuple[nn.Parameter, Tensor]]:
        added = bcadl.gradient(current_weights(self.net, self.sites), self.state, self.penalty)
        for site in self.sites:
            if site.key in added:
                parameter = self.net.weight(site.weight)
                assert isinstance(parameter, nn.Parameter)
                yield parameter, site.layout.stored(added[site.key])

    def cost(self) -> int | None:
        return None if self.state.plan is None else self.state.plan.cost.of(self.metric)

    def gap(self) -> float | None:
        return bcadl.gap(current_weights(self.net, self.sites), self.state)


def learn_ranks(
    net: GraphNet,
    teacher: GraphNet,
    sites: Sequence[Site],
    batches: Batches,
    recipe: Recipe,
    rules: bcadl.Rules,
    *,
    metric: str,
    epochs: float,
    report: Report,
    seconds: float | None = None,
) -> tuple[RankPlan, History]:
    """BC-ADL: `net` is moved towards low rank in place, for `epochs` or for `seconds`; the ranks at the end of it come back."""
    learning = _Learning(net, sites, recipe, rules, metric)
    history = train(
        net, teacher, batches, recipe, recipe.bcadl,
        name="bc-adl", epochs=epochs, report=report, hooks=learning, seconds=seconds,
        keys=[site.key for site in sites],
    )  # fmt: skip
    assert learning.state.plan is not None
    return learning.state.plan, tuple(history)


def decompose(net: GraphNet, sites: Sequence[Site], plan: RankPlan, metrics: Mapping[str, Metric]) -> None:
    """Put the factor chain of each chosen layer in its place in `net`, also where another chain stands there.

    A chain stays where the plan has the layer whole.
    """
    for site in sites:
        ranks = plan.ranks[site.key]
        if ranks is None:
            continue
        weight, bias = dense(net, site)
        stored = weight.cpu().contiguous(), None if bias is None else bias.cpu()
        chain = method_of(site).factor(*stored, site.geometry, ranks, metrics.get(site.key))
        put(net, site, ChainModule(chain).to(weight.device))


def _array(tensor: Tensor) -> FloatArray:
    return tensor.detach().cpu().contiguous().numpy().copy()


def harvest(net: GraphNet, sites: Sequence[Site], plan: RankPlan, history: History = ()) -> TrainResult:
    """All that training has changed, as arrays, with the restored BatchNorms folded into the layers before them.

    `sites` are all layers of the graph, the ones left whole too. The plan of the result has the ranks of the chains that stand
    in `net`.
    """
    chains: dict[str, FactorChain] = {}
    weights: dict[str, FloatArray] = {name: _array(net.weight(name)) for name in net.weight_names()}
    biases: dict[str, FloatArray] = {}
    for site in sites:
        if not net.has_step(site.key):
            continue
        norm, op = net.after(site.key), net.operation(site.key)
        if isinstance(op, ChainModule):
            chain = op.trained()
            if isinstance(norm, RestoredBatchNorm):
                chain = _folded(chain, norm)
            chains[site.key] = chain
        elif isinstance(norm, RestoredBatchNorm):
            bias = None if site.bias is None else net.weight(site.bias).detach()
            folded, moved = fold(canonical(site, net.weight(site.weight).detach()), bias, norm)
            weights[site.weight] = _array(site.layout.stored(folded))
            if site.bias is None:
                biases[site.key] = _array(moved)
            else:
                weights[site.bias] = _array(moved)
    standing = replace(plan, ranks={**plan.ranks, **{key: chain.ranks for key, chain in chains.items()}})
    return TrainResult(standing, chains, weights, biases, history)


def _folded(chain: FactorChain, norm: RestoredBatchNorm) -> FactorChain:
    *first, last = chain.layers
    bias = None if last.bias is None else torch.from_numpy(last.bias).to(norm.gamma.device)
    weight, moved = fold(torch.from_numpy(last.weight).to(norm.gamma.device), bias, norm)
    return replace(chain, layers=(*first, replace(last, weight=_array(weight), bias=_array(moved))))
