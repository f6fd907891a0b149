"""How ranks are chosen and what "nearest" means: the paper's way, and the one that the default recipe uses.

All kinds of rules are made from the same things, so that a recipe only names its kind.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from batude_onnx.budget import Terms, solve, solve_greedy
from batude_onnx.decomposition import Metric, linalg, method_of
from batude_onnx.records import Computed, FloatArray, RankPlan, Site
from batude_onnx.training.bcadl import Copies
from batude_onnx.training.sensitivity import Curve


def _site(sites: Sequence[Site], key: str) -> Site:
    return next(site for site in sites if site.key == key)


# Entries of a table beyond which it is made again: one of all ranks of two modes may be as large as the weight.
KEPT = 2**18
# What was found of each weight, by method and metric, as long as the weight is there: several plans are made of the same ones.
_LOST: MutableMapping[Tensor, dict[str | None, tuple[Metric | None, FloatArray]]] = WeakIdKeyDictionary()


def share_lost(site: Site, weight: Tensor, metric: Metric | None) -> FloatArray:
    """Which share of a layer's squared norm, in the metric, is lost at each combination of its ranks: [r1 - 1, r2 - 1, ...].

    `weight` is not changed in place between two calls.
    """
    known = _LOST.setdefault(weight, {})
    found = known.get(site.method)
    if found is None or found[0] is not metric:
        found = metric, _share_lost(site, weight, metric)
        if found[1].size <= KEPT:
            known[site.method] = found
    return found[1]


def _share_lost(site: Site, weight: Tensor, metric: Metric | None) -> FloatArray:
    held, groups = weight.detach().cpu(), site.geometry.groups
    scale = float(linalg.whiten(linalg.stack(held, groups), metric).square().sum()) or 1.0
    lost: FloatArray = (method_of(site).losses(held, groups, metric) / scale).numpy()
    return lost


def damage(
    sites: Sequence[Site], weights: Mapping[str, Tensor], metrics: Mapping[str, Metric], curves: Mapping[str, Curve]
) -> Mapping[str, FloatArray]:
    """What each layer's truncation does to the outputs, by its ranks; where that was not measured, the share of it lost.

    Each table is made when it is asked for.
    """
    by_key = {site.key: site for site in sites}

    def made(key: str) -> FloatArray:
        lost = share_lost(by_key[key], weights[key], metrics.get(key))
        return curves[key](lost) if key in curves else lost

    return Computed(tuple(by_key), made)


def _first(v: Mapping[str, Copies]) -> Mapping[str, Tensor]:
    return Computed(tuple(v), lambda key: v[key][0])


@dataclass(frozen=True)
class PaperRules:
    """One copy for each mode, truncated in that mode alone; ranks by the largest singular values of all layers together."""

    sites: Sequence[Site]
    terms: Terms
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    # The copy that each unfolding was last decomposed for, with its singular vectors and values: ranks and projections take both.
    _spectra: dict[tuple[str, int], tuple[Tensor, tuple[Tensor, Tensor]]] = field(default_factory=dict, repr=False)

    def _spectrum(self, key: str, part: Tensor, mode: int) -> tuple[Tensor, Tensor]:
        held = self._spectra.get((key, mode))
        if held is None or held[0] is not part:
            stack = linalg.stack(part.detach().cpu(), _site(self.sites, key).geometry.groups)
            held = self._spectra[key, mode] = part, linalg.leading(stack, mode)
        return held[1]

    def copies(self, key: str) -> int:
        return len(method_of(_site(self.sites, key)).modes)

    def ranks(self, v: Mapping[str, Copies]) -> RankPlan:
        gains = {}
        for site in self.sites:
            pairs = zip(v[site.key], method_of(site).modes, strict=True)
            # The groups of a layer share their ranks: what one more rank keeps is the norm over all groups.
            values = [self._spectrum(site.key, part, mode)[1] for part, mode in pairs]
            gains[site.key] = [value.square().sum(0).sqrt().numpy() for value in values]
        return solve_greedy(self.sites, gains, self.terms)

    def nearest(self, key: str, v: Copies, ranks: tuple[int, ...]) -> Copies:
        site = _site(self.sites, key)
        nearest = []
        for part, mode, rank in zip(v, method_of(site).modes, ranks, strict=True):
            stack = linalg.stack(part.detach().cpu(), site.geometry.groups)
            cut = linalg.truncate(stack, mode, rank, self._spectrum(key, part, mode)[0])
            nearest.append(linalg.unstack(cut, part.shape).to(part))
        return tuple(nearest)


@dataclass(frozen=True)
class MeasuredRules:
    """One copy, projected on all modes at once in the metric of the layer's own inputs and output gradients; ranks by what they
    save of the loss for what they cost.

    Without metrics the plain norm is used. What a layer loses is a share of its own norm, since BatchNorm makes the layers'
    scales arbitrary; with `curves`, the damage to the outputs that was measured for that share.
    """

    sites: Sequence[Site]
    terms: Terms
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)

    def copies(self, key: str) -> int:
        return 1

    def ranks(self, v: Mapping[str, Copies]) -> RankPlan:
        return solve(self.sites, damage(self.sites, _first(v), self.metrics, self.curves), self.terms)

    def nearest(self, key: str, v: Copies, ranks: tuple[int, ...]) -> Copies:
        site = _site(self.sites, key)
        whole = v[0].detach().cpu()
        near = method_of(site).project(whole, site.geometry.groups, ranks, self.metrics.get(key))
        return (near.to(v[0]),)
