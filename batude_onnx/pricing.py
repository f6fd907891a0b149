"""What a budget means for one model on one machine: its limits in numbers, what its layers cost, and which ranks suit them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import onnx_ir as ir

from batude_onnx import layers, speed
from batude_onnx.budget import Terms, parse_budget
from batude_onnx.decomposition import alternatives
from batude_onnx.errors import BudgetError
from batude_onnx.loading import external_files
from batude_onnx.proving import Feeds, Survey, one_sample
from batude_onnx.records import Alignment, Budget, Cost, Limit, Prices
from batude_onnx.settings import Settings, Watch
from batude_onnx.validation import Session, channel_block

# A layer that fills so many blocks loses little by whole blocks only, and gains their speed.
BLOCKS = 4


def terms_of(
    settings: Settings, model: ir.Model, seen: Survey, session: Session, feeds: Feeds, metrics: Sequence[str], watch: Watch
) -> Terms:
    """The terms on which ranks are chosen; a model that is run in pieces is not timed. Raises BudgetError for a budget that makes
    no sense."""
    times: dict[tuple[str, str], Prices] = {}
    cost = replace(seen.cost, size=bytes_of(settings.model, *external_files(model)))
    if "latency" in metrics:
        if not session.whole:
            raise BudgetError("a model this large is run in pieces, so its time cannot be limited: limit params, macs or size")
        if not session.timed:
            raise BudgetError("a model that draws numbers is run without them, so its time cannot be limited: limit macs instead")
        cost, times = _timed(settings, model, seen, sample_of(settings, seen, session, feeds), cost, watch)
    budget = parse_budget([settings.budget], cost)
    nodes = layers.nodes_by_key(model)
    if any(limit.metric == "params" and limit.limit < cost.params for limit in budget.limits):
        # Chains make copies of biases that other nodes read as well.
        cost += Cost(layers.copied_biases(nodes[site.key] for site in seen.compressible), 0)
    itemsize = {site.key: int(layers.weight_type(nodes[site.key])[0].itemsize) for site in seen.compressible}
    return Terms(budget, cost, times, itemsize, alignment(settings, metrics))


def timed_terms(settings: Settings, model: ir.Model, seen: Survey, sample: Feeds, terms: Terms, watch: Watch) -> Terms:
    """`terms` with the time of every layer, and ranks that suit a limit of it; the budget is as before."""
    cost, times = _timed(settings, model, seen, sample, terms.whole, watch)
    return replace(terms, whole=cost, times=times, alignment=alignment(settings, (*terms.metrics, "latency")))


def as_fast(terms: Terms, ratio: float) -> Terms:
    """Timed `terms` and one limit more: that a run is `ratio` times as fast as the original's."""
    assert terms.whole.latency is not None
    limit = Limit("latency", terms.whole.latency / ratio, f"latency={ratio:.2f}x", ratio)
    return replace(terms, budget=Budget((*terms.budget.limits, limit)))


def alignment(settings: Settings, metrics: Sequence[str]) -> Alignment:
    """What was asked for; else whole blocks where time is limited, and in layers of many blocks where MACs are."""
    if settings.rank_multiple is not None:
        return Alignment(settings.rank_multiple, 0)
    block = channel_block(settings.provider)
    whole_from = 0 if "latency" in metrics else BLOCKS * block if "macs" in metrics else None
    return Alignment(block, whole_from, even=settings.provider == "cpu")


def sample_of(settings: Settings, seen: Survey, session: Session, feeds: Feeds) -> Feeds:
    """What a run whose time is limited is fed: so many samples as were asked for, or the batch that the file fixes."""
    return one_sample(session, seen.feeding, feeds) if settings.batch == 1 else seen.feeding.values(settings.batch, settings.seed)


def _timed(
    settings: Settings, model: ir.Model, seen: Survey, sample: Feeds, cost: Cost, watch: Watch
) -> tuple[Cost, dict[tuple[str, str], Prices]]:
    """`cost` with the time of the whole network, and the prices in ms of every layer by every method."""
    if settings.provider != "cpu":
        raise BudgetError(f"the time of single layers cannot be told on {settings.provider}: limit macs instead, in whole blocks")
    times = speed.timed(
        model, seen.compressible, sample, channel_block(settings.provider), settings.provider, settings.threads,
        partial(watch.count, "timing layers"),
    )  # fmt: skip
    if not times.steady:
        watch.say(f"the times of layers drifted by {100 * times.drift:.0f} %: the machine is busy, and they are not kept")
    prices = {}
    for site in (way for layer in seen.compressible for way in alternatives(layer)):
        found = times.prices(site)
        if found is not None:
            prices[site.key, str(site.method)] = found
    return replace(cost, latency=times.total), prices


def bytes_of(*files: Path) -> int:
    """On disk, a model's external data included where it is among `files`."""
    return sum(path.stat().st_size for path in files)
