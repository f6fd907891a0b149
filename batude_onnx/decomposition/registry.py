"""The registry of decompositions. Outside its own file no method is ever named.

A method is a handful of pure functions and the modes whose unfolding ranks it chooses. Weights are torch tensors in the canonical
form (S, C/groups, *kernel); ranks are per group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

from torch import Tensor

from batude_onnx.decomposition import linalg
from batude_onnx.decomposition.linalg import Metric
from batude_onnx.records import Cost, FactorChain, Geometry, LayerSpec, Site

Ranks = tuple[int, ...]
Outline = tuple[tuple[tuple[int, ...], Geometry], ...]

DEPTHWISE = "depthwise: every channel has a kernel of its own, there is nothing to share"


@dataclass(frozen=True)
class Method:
    """One way to factor a layer.

    `applies(shape, groups)`: None, or why the method is not for such a layer.
    `modes`: for each rank, the axis of the weight whose unfolding it bounds (0 output, 1 input); () where a rank belongs to no
    single axis. Such a method is an alternative to one that has modes: Eq. 15 knows no ranks for it.
    `max_ranks(shape, groups)`: the largest useful ranks.
    `outline(shape, geometry, ranks)`: shape and geometry of each layer of the chain; ranks may be arrays, and sizes then are.
    `cost(site, ranks)`: parameters and MACs of the chain, biases left out.
    `losses(weight, groups, metric)`: the squared norm, in the metric, that is lost at each combination of ranks, as a table
    [r1 - 1, r2 - 1, ...] of at least the largest useful ranks.
    `project(weight, groups, ranks, metric)`: the nearest tensor of those ranks, same shape and dtype.
    `factor(weight, bias, geometry, ranks, metric)`: the chain that computes the projected layer.
    `regress(weight, gram, bias, geometry, ranks, metric)`: the chain nearest to `weight` (float64) where inputs are known to
    have the second moment `gram` (g, D, D), float64, of whole patches, D = C/g * kernel.
    `reconstruct(chain)`: the dense weight that a chain stands for, float64.
    `exact`: whether projections are in closed form, and so cheap enough to be made again and again in training.
    """

    name: str
    modes: tuple[int, ...]
    applies: Callable[[tuple[int, ...], int], str | None]
    max_ranks: Callable[[tuple[int, ...], int], Ranks]
    outline: Callable[[tuple[int, ...], Geometry, Ranks], Outline]
    cost: Callable[[Site, Ranks], Cost]
    losses: Callable[[Tensor, int, Metric | None], Tensor]
    project: Callable[[Tensor, int, Ranks, Metric | None], Tensor]
    factor: Callable[[Tensor, Tensor | None, Geometry, Ranks, Metric | None], FactorChain]
    regress: Callable[[Tensor, Tensor, Tensor | None, Geometry, Ranks, Metric | None], FactorChain]
    reconstruct: Callable[[FactorChain], Tensor]
    exact: bool = True


_METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Add a method; a second one of the same name is a programming error."""
    if method.name in _METHODS:
        raise ValueError(f"decomposition {method.name!r} is registered twice")
    _METHODS[method.name] = method
    return method


def methods() -> tuple[Method, ...]:
    """All registered methods, in the order of registration."""
    return tuple(_METHODS.values())


def method(name: str) -> Method:
    """The method of that name."""
    return _METHODS[name]


def method_of(site: Site) -> Method:
    """The method assigned to a compressible site."""
    if site.method is None:
        raise ValueError(f"{site.key} is left whole: {site.reason}")
    return _METHODS[site.method]


def depthwise(shape: tuple[int, ...], groups: int) -> bool:
    """Whether no channel is mixed with another."""
    return groups > 1 and shape[1] == 1


def has_core(shape: tuple[int, ...], groups: int) -> str | None:
    """For kernels larger than one point that mix channels: None, or why a layer has no core to share."""
    if depthwise(shape, groups):
        return DEPTHWISE
    return "kernel of one point: nothing for a spatial core" if prod(shape[2:]) == 1 else None


def max_ranks(site: Site) -> Ranks:
    """The largest useful rank of each mode, by the method assigned to a compressible site."""
    return method_of(site).max_ranks(site.shape, site.geometry.groups)


def ones(by: Method, site: Site) -> Ranks:
    """Rank 1 throughout."""
    return (1,) * len(by.max_ranks(site.shape, site.geometry.groups))


def alternatives(site: Site) -> tuple[Site, ...]:
    """A compressible site with each of the methods that could factor it and make it smaller, the first of `assign` first."""
    ways = sorted(_METHODS.values(), key=lambda way: not way.modes)
    fitting = [way for way in ways if way.applies(site.shape, site.geometry.groups) is None]
    return tuple(replace(site, method=way.name) for way in fitting if way.cost(site, ones(way, site)).params < site.params)


def assembled(
    name: str, factors: Sequence[Tensor], weight: Tensor, bias: Tensor | None, outline: Outline, ranks: Ranks
) -> FactorChain:
    """The chain of `factors`, their Frobenius norms made equal, in the shapes of `outline` and the type of `weight`."""
    balanced = linalg.balanced(*factors)
    layers = [
        LayerSpec(factor.reshape(shape).to(weight.dtype).numpy(), None, geometry)
        for factor, (shape, geometry) in zip(balanced, outline, strict=True)
    ]
    layers[-1] = replace(layers[-1], bias=None if bias is None else bias.numpy())
    return FactorChain(name, tuple(layers), ranks)


def dense_cost(site: Site) -> Cost:
    """What the untouched layer costs, bias left out."""
    return Cost(site.params, site.macs)


def assign(site: Site) -> Site:
    """Give a site its first method, or the reason why it stays whole."""
    if site.reason is not None:
        return site
    refusals: list[str] = []
    for candidate in _METHODS.values():
        if not candidate.modes:
            continue
        refusal = candidate.applies(site.shape, site.geometry.groups)
        if refusal is None:
            smallest = candidate.cost(site, ones(candidate, site))
            if smallest.params < site.params:
                return replace(site, method=candidate.name)
            # A method made for such a layer knows better why not than the ones that are made for others.
            refusals.insert(0, f"would not get smaller: {smallest.params} weights at rank 1, {site.params} now")
        else:
            refusals.append(refusal)
    return replace(site, reason=refusals[0])
