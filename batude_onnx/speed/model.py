"""The time of every layer, whole and as a chain of any ranks, measured inside the network that it belongs to.

The network is rewritten a few times with chains of other ranks in all layers at once, and each kernel is timed where it stands:
with the fusions, the memory layout and the caches that it will have. Between the ranks measured, the time of a link with r2
channels in and r1 out is taken as

    t = a + b r1 + c r2 + d r1 r2,      r1, r2 rounded up to the runtime's block of channels

corrected by what was measured nearby: at a place that was measured, it is what was measured. Where only one of the two changes,
it is linear between neighbours.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from batude_onnx.decomposition import alternatives, max_ranks, method_of
from batude_onnx.records import FloatArray, Geometry, Prices, Site, left_over
from batude_onnx.speed.attribution import attribute
from batude_onnx.speed.observing import Chosen, beyond, observe
from batude_onnx.speed.skeleton import Ranks, skeleton
from batude_onnx.validation import Feeds, Kernel

# Of the largest ranks that can pay: where the chains are measured. The first of each pair is taken where there is one rank.
SHARES = ((0.06, 0.06), (0.12, 0.25), (0.25, 0.12), (0.35, 0.35), (0.5, 0.6), (0.6, 0.4), (0.8, 0.8))
# With fewer samples the terms cannot be told apart: small layers are measured at the ends of their ranks as well.
FEW = 4
# A machine on which nothing else runs takes as long again within so much.
STEADY = 0.05

Sample = tuple[int, int, float]  # blocks in, blocks out, ms


@dataclass(frozen=True)
class SpeedModel:
    """Times in ms of one run. `fixed`: of what no layer can change; `whole`: of each layer as it is, by key; `chains`: of the
    links of its chain by (key, method), as samples. `block`: the runtime's block of channels. `node`: what a node adds. `drift`:
    by what share the untouched network was slower at the end of measuring than at its start, or faster."""

    fixed: float
    node: float
    block: int
    whole: Mapping[str, float]
    chains: Mapping[tuple[str, str], tuple[tuple[Sample, ...], ...]]
    drift: float = 0.0

    @property
    def steady(self) -> bool:
        """Whether nothing else seems to have kept the machine busy meanwhile."""
        return self.drift <= STEADY

    def prices(self, site: Site) -> Prices | None:
        """What `site` costs whole and, by its method, at each combination of ranks, without end where those could not be timed;
        None where not even the whole layer could."""
        if site.key not in self.whole:
            return None
        samples = self.chains.get((site.key, str(site.method)))
        most = max_ranks(site)
        if samples is None:
            return Prices(self.whole[site.key] + self.node, np.full(most, np.inf))
        ranks = tuple(axis + 1 for axis in np.indices(most))
        # Of what nodes add, all but one of a layer that is run in several places is among `fixed`.
        places = len(site.keys)
        total = np.full(most, (1 - places) * self.node)
        for (shape, geometry), link in zip(method_of(site).outline(site.shape, site.geometry, ranks), samples, strict=True):
            into, out = ends(shape, geometry, self.block)
            total = total + _time(link, into, out) + places * self.node
        return Prices(self.whole[site.key] + self.node, total)

    @property
    def total(self) -> float:
        """Of the untouched network."""
        return self.fixed + sum(self.whole.values()) + self.node * len(self.whole)


def blocks(channels: npt.ArrayLike, block: int) -> npt.NDArray[np.int64]:
    """How many blocks so many channels fill."""
    return -(-np.asarray(channels, dtype=np.int64) // block)


def ends(shape: tuple[int, ...], geometry: Geometry, block: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The blocks that a link's input and output fill; for the sizes of an outline, which may be arrays."""
    return blocks(shape[1] * geometry.groups, block), blocks(shape[0], block)


def measure(
    model: ir.Model, sites: Sequence[Site], feeds: Feeds, block: int, provider: str, threads: int | None,
    count: Callable[[int, int], None],
) -> SpeedModel:  # fmt: skip
    """Time `model` on `feeds` with all `sites` whole, and as chains at a few ranks; `count` is told how far it is."""
    ways = {site.key: [(way, ladder(way, block)) for way in alternatives(site)] for site in sites}
    tried = {key: [(way, ranks) for way, ladder in choices for ranks in ladder] for key, choices in ways.items()}
    variants: list[Chosen] = [
        {key: choices[number] for key, choices in tried.items() if number < len(choices)}
        for number in range(max(map(len, tried.values()), default=0))
    ]
    seen = observe(model, variants, feeds, provider, threads, count)
    share, node = beyond(seen)
    first, *others, last = (one.longer(share) for one in seen)
    samples: dict[tuple[str, str], list[list[Sample]]] = {}
    for chosen, one in zip(variants, others, strict=True):
        outlines = {key: method_of(way).outline(way.shape, way.geometry, ranks) for key, (way, ranks) in chosen.items()}
        some = {site: len(outlines[site.key]) for site in sites if site.key in outlines}
        found = _attributed(skeleton(model, chosen), one.kernels, some)
        for key, (way, _) in chosen.items():
            if None in found[key]:
                continue
            kept = samples.setdefault((key, str(way.method)), [[] for _ in outlines[key]])
            for link, (shape, geometry), ms in zip(kept, outlines[key], found[key], strict=True):
                assert ms is not None
                into, out = ends(shape, geometry, block)
                link.append((int(into), int(out), ms))
    untouched = first.least(last)
    times = _attributed(model, untouched.kernels, dict.fromkeys(sites, 1))
    whole = {key: links[0] for key, links in times.items() if links[0] is not None}
    drift = abs(last.total / first.total - 1)
    fixed = untouched.total - sum(whole.values()) + node * (len(untouched.kernels) - len(whole))
    return SpeedModel(fixed, node, block, whole, {key: tuple(map(tuple, links)) for key, links in samples.items()}, drift)


def _attributed(model: ir.Model, kernels: Sequence[Kernel], lengths: Mapping[Site, int]) -> dict[str, list[float | None]]:
    """Times in ms of each layer's links, added up over where it is run; None for one that was not found everywhere."""
    found = attribute(model, kernels, {key: length for site, length in lengths.items() for key in site.keys})
    places = {site.key: zip(*(found[key] for key in site.keys), strict=True) for site in lengths}
    return {key: [None if None in times else sum(filter(None, times)) for times in links] for key, links in places.items()}


def ladder(site: Site, block: int) -> list[Ranks]:
    """The ranks at which the chain of `site` is measured: whole blocks of which none is left over, each combination once; none
    where a block is too much."""
    if min(max_ranks(site)) < block:
        return []
    most = [max(1, bound // block) for bound in _useful(site)]
    found: dict[Ranks, None] = {}
    for shares in SHARES:
        counts = [max(1, round(share * bound)) for share, bound in zip(shares, most, strict=False)]
        found[tuple(block * (count - int(left_over(count))) for count in counts)] = None
    if len(found) < FEW:
        found |= {tuple(block * end for end in corner): None for corner in product(*((1, bound) for bound in most))}
    return list(found)


def _useful(site: Site) -> list[int]:
    """Of each mode the largest rank at which, with rank 1 in all others, a chain has fewer MACs than the layer has."""
    by, bounds = method_of(site), max_ranks(site)

    def macs(mode: int, rank: int) -> int:
        return by.cost(site, (*(1,) * mode, rank, *(1,) * (len(bounds) - mode - 1))).macs

    return [bisect_left(range(1, bound + 1), site.macs, key=partial(macs, mode)) for mode, bound in enumerate(bounds)]


def _time(samples: Sequence[Sample], into: npt.NDArray[np.int64], out: npt.NDArray[np.int64]) -> FloatArray:
    """The time of a link at these numbers of blocks, in ms."""
    known = np.array(samples, dtype=np.float64)
    if len(np.unique(known[:, 0])) == 1:
        return _between(known[:, 1], known[:, 2], out)
    if len(np.unique(known[:, 1])) == 1:
        return _between(known[:, 0], known[:, 2], into)
    # Of all numbers of blocks, which are few, and not of all ranks.
    at = np.stack(np.meshgrid(*(np.arange(1.0, 1 + np.max(side)) for side in (into, out)), indexing="ij"), axis=-1)
    terms = _terms if len(known) >= FEW else _product
    factors = np.linalg.lstsq(terms(known[:, :2]) / known[:, 2:], np.ones(len(known)), rcond=None)[0]

    def fitted(places: FloatArray) -> FloatArray:
        found: FloatArray = np.maximum(terms(places) @ factors, known[:, 2].min() / 2)
        return found

    times = fitted(at) * _near(known[:, :2], known[:, 2] / fitted(known[:, :2]), at)
    return np.asarray(times[into - 1, out - 1])


def _near(places: FloatArray, values: FloatArray, at: FloatArray) -> FloatArray:
    """The values of the places nearest to each point, by the inverse square of the distance between logarithms: at a place its
    own, so that what was measured is predicted."""
    apart = np.square(np.log(at)[..., None, :] - np.log(places)).sum(-1)
    weights = 1 / (apart + 1e-6)
    near: FloatArray = (weights * values).sum(-1) / weights.sum(-1)
    return near


def _terms(at: FloatArray) -> FloatArray:
    into, out = at[..., 0], at[..., 1]
    terms: FloatArray = np.stack([np.ones_like(into), into, out, into * out], axis=-1)
    return terms


def _product(at: FloatArray) -> FloatArray:
    terms: FloatArray = np.stack([np.ones_like(at[..., 0]), at.prod(-1)], axis=-1)
    return terms


def _between(places: FloatArray, times: FloatArray, at: npt.NDArray[np.int64]) -> FloatArray:
    """Linear between neighbours; beyond the last of them in proportion."""
    known = np.unique(places)
    means = np.array([times[places == place].min() for place in known])
    ends = np.concatenate([[0.0], known, [2 * known[-1]]])
    heights = np.concatenate([[means[0] / 2], means, [2 * means[-1]]])
    found: FloatArray = np.interp(at, ends, heights)
    return found
