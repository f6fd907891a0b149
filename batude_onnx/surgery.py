"""What must hold before any rank is chosen: with all layers factored and nothing lost, a graph computes what it did."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import onnx_ir as ir

from batude_onnx import decomposition, layers, untrained
from batude_onnx.opening import Case
from batude_onnx.proving import Feeds, one_sample, origin_of, outputs_of, worst_of
from batude_onnx.records import OutputDifference, Site
from batude_onnx.rewriting import rewrite
from batude_onnx.training.recipe import RECIPES
from batude_onnx.validation import compare, open_graph, require

# Runs of a model of several inputs on which its rewrite is proved.
PROVED = 16
# Values between two factors of a layer that a proof may hold. What takes more of them is proved on one sample; a layer for which
# even that is too much only by its first method.
WIDE = 2**28


def runs_of(case: Case) -> tuple[Feeds, ...]:
    """What a proof feeds: the first runs that the data have, else what the outputs are compared on."""
    return case.runs[:PROVED] or (case.feeds,)


def proved(case: Case) -> tuple[OutputDifference, ...]:
    """Every compressible layer rewritten at full rank must give the original's outputs, whichever method factors it.

    The worse difference of each output comes back.
    """
    sites = case.seen.compressible
    ways = [RECIPES[case.settings.recipe].ways(site) for site in sites]
    fitting = [[way for way in some if way is some[0] or _width(way) <= WIDE] for some in ways]
    # A layer that has been factored in all of its ways stays whole in the rounds that others need.
    count = max(map(len, fitting), default=1)
    rounds = [{way[0].key: way[number] for way in fitting if number < len(way)} for number in range(count)]
    return worst_of(differences for sites in rounds for differences in _surgery(case, sites))


def _width(site: Site) -> int:
    """Values of one sample in the widest place between the factors at full rank."""
    outline = decomposition.method_of(site).outline(site.shape, site.geometry, decomposition.max_ranks(site))
    return max(shape[0] for shape, _ in outline) * max(site.positions, site.input_positions, site.output_positions)


def _surgery(case: Case, sites: Mapping[str, Site]) -> Iterator[tuple[OutputDifference, ...]]:
    """The outputs with all of these factored and nothing lost, held against the original's, once for each run that is proved."""
    change = partial(_at_full_rank, sites)
    session = open_graph(case.model, case.settings.provider, case.settings.threads, change)
    widest = max(map(_width, sites.values()), default=0)
    # Each run may take another way through the graph.
    for feeds in runs_of(case):
        if widest * max((len(array) for array in feeds.values() if array.ndim), default=1) > WIDE:
            feeds = one_sample(case.original, case.seen.feeding, feeds)
        differences = compare(outputs_of(case.original, feeds), outputs_of(session, feeds), half=case.seen.half)
        where = partial(where_differs, replace(case, feeds=feeds), lambda: (case.model, change(case.model)))
        require(differences, "the rewrite at full rank does not equal the original", where)
        yield differences


def _at_full_rank(sites: Mapping[str, Site], graph: ir.Model) -> ir.Model:
    """`graph` (or a piece of it) with those of the `sites` that stand in it factored and nothing lost."""
    nodes = layers.nodes_by_key(graph)
    chains = {}
    for key in [key for key in nodes if key in sites]:
        chains[key] = untrained.as_stored(sites[key], nodes[key], decomposition.max_ranks(sites[key]))
    return rewrite(graph, chains)


def where_differs(case: Case, graphs: Callable[[], tuple[ir.Model, ir.Model]]) -> str:
    """Where the difference between two graphs begins, in words; nothing of a large model, as both would have to be made whole."""
    if case.large:
        return ""
    reference, other = graphs()
    found = origin_of(reference, other, case.feeds, case.original, case.seen.half)
    return "all values on the way that both have are equal" if found is None else str(found)
