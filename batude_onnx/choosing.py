"""What is asked for single layers, by a plan or by patterns of their names, held against the layers that there are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from batude_onnx.decomposition import alternatives, max_ranks
from batude_onnx.errors import PlanError
from batude_onnx.planfile import PlanFile
from batude_onnx.records import Site
from batude_onnx.settings import LayerWishes


@dataclass(frozen=True)
class Chosen:
    """`sites`: with the methods that ranks were asked for; `choices`: ranks, or None for whole, of those that have no other
    choice; `least`: the smallest rank of each of the others, where one was asked for."""

    sites: list[Site]
    choices: dict[str, tuple[int, ...] | None]
    least: dict[str, int]


def choose_layers(sites: Sequence[Site], wishes: LayerWishes, plan: PlanFile | None, source: Path | None) -> Chosen:
    """Raises PlanError for a layer that there is not, a pattern that fits none, and ranks that a layer cannot have.

    `sites`: those that can be compressed. A layer that the plan does not name stays whole.
    """
    _require_used(sites, (*wishes.include, *wishes.exclude, *wishes.ranks, *wishes.least))
    chosen = Chosen(list(sites), {}, {})
    if plan is not None:
        unknown = plan.layers.keys() - {site.key for site in sites}
        named = sorted(key for key in unknown if plan.layers[key][1] is not None)
        if named:
            raise PlanError(f"{source}: the model has no layer {named[0]!r} that can be compressed; see `batude-onnx inspect`")
        for site in sites:
            _settle(chosen, site, *plan.layers.get(site.key, (None, None)), str(source))
    for site in sites:
        pattern = _first(site, wishes.ranks)
        if pattern is not None:
            _settle(chosen, site, None, wishes.ranks[pattern], f"--ranks {pattern}")
        elif _first(site, wishes.exclude) or (wishes.include and not _first(site, wishes.include)):
            chosen.choices[site.key] = None
        if (floor := _first(site, wishes.least)) is not None:
            chosen.least[site.key] = wishes.least[floor]
            if min(chosen.choices.get(site.key) or [wishes.least[floor]]) < wishes.least[floor]:
                asked = " x ".join(map(str, chosen.choices[site.key] or ()))
                raise PlanError(f"--least-rank {floor}: layer {site.key} was given ranks {asked} by a plan or --ranks")
    return chosen


def _settle(chosen: Chosen, site: Site, method: str | None, ranks: tuple[int, ...] | None, source: str) -> None:
    """The one choice of a layer; by the method named, else by the first that has as many ranks."""
    if ranks is not None:
        ways = [way for way in alternatives(site) if method in (None, way.method)]
        fitting = [way for way in ways if len(max_ranks(way)) == len(ranks)]
        if not fitting:
            ranked = " or ".join(f"{len(max_ranks(way))} ({way.method})" for way in alternatives(site))
            raise PlanError(
                f"{source}: layer {site.key} has {ranked} ranks, not {len(ranks)}{f' by {method!r}' if method else ''}"
            )
        most = max_ranks(fitting[0])
        if any(rank > bound for rank, bound in zip(ranks, most, strict=True)):
            raise PlanError(f"{source}: layer {site.key} has ranks of at most {' x '.join(map(str, most))}, not {ranks}")
        chosen.sites[:] = [fitting[0] if one.key == site.key else one for one in chosen.sites]
    chosen.choices[site.key] = ranks


def _first(site: Site, patterns: Iterable[str]) -> str | None:
    """The first pattern that a layer's name, or its node's, fits."""
    return next((pattern for pattern in patterns if _fits(site, pattern)), None)


def _fits(site: Site, pattern: str) -> bool:
    # A name may hold what means something in a pattern, such as [0].
    return any(name == pattern or fnmatchcase(name, pattern) for name in (site.key, site.node) if name)


def _require_used(sites: Sequence[Site], patterns: Iterable[str]) -> None:
    for pattern in patterns:
        if not any(_fits(site, pattern) for site in sites):
            raise PlanError(f"no layer that can be compressed is called {pattern!r}; see `batude-onnx inspect`")


def with_methods(sites: Sequence[Site], chosen: Chosen) -> tuple[Site, ...]:
    """All `sites` of a model, with the methods that were asked for."""
    methods = {site.key: site.method for site in chosen.sites}
    return tuple(replace(site, method=methods[site.key]) if site.key in methods else site for site in sites)
