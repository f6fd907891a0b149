"""Two files run against each other: how fast, how much memory, and where the time of each goes, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from batude_onnx import speed
from batude_onnx.proving import Feeds, Survey
from batude_onnx.records import Benchmark, LayerTime
from batude_onnx.validation import Session, compare_latency, peak_memory, profile

PROFILE_SECONDS = 2.0


def run_against(
    paths: tuple[Path, Path],
    models: tuple[ir.Model, ir.Model],
    surveys: tuple[Survey, Survey],
    sessions: tuple[Session, Session],
    feeds: tuple[Feeds, Feeds],
    seconds: float,
) -> Benchmark:
    """`feeds` hold one sample, and a batch of them; each of the two timings takes `seconds`."""
    (first, other), (one, many) = sessions, feeds
    keys = [key for site in surveys[0].sites for key in site.keys]
    lengths = (dict.fromkeys(keys, 1), speed.lengths(models[1], keys))
    times, totals = [], []
    for model, session, length in zip(models, sessions, lengths, strict=True):
        kernels = profile(model, one, session.provider, session.threads, PROFILE_SECONDS)
        found = speed.attribute(model, kernels, length)
        times.append({key: sum(filter(None, links)) for key, links in found.items() if any(links)})
        totals.append(sum(kernel.ms for kernel in kernels))
    shared = [key for key in keys if all(key in found for found in times)]
    macs = [{site.key: site.macs for site in seen.sites} for seen in surveys]
    rows = tuple(_row(key, times, macs, speed.links(models[1], {key: lengths[1][key]})) for key in shared)
    memory = (
        peak_memory(paths[0], one, first.provider, first.threads),
        peak_memory(paths[1], one, other.provider, other.threads),
    )
    return Benchmark(
        str(paths[0]),
        str(paths[1]),
        compare_latency(first, other, one, runs=1000, seconds=seconds),
        compare_latency(first, other, many, runs=1000, seconds=seconds),
        memory,
        rows,
        totals[0] - sum(row.first_ms for row in rows),
        totals[1] - sum(row.other_ms for row in rows),
        surveys[0].cost.macs,
        surveys[1].cost.macs,
    )


def _row(key: str, times: Sequence[Mapping[str, float]], macs: Sequence[Mapping[str, int]], links: Iterable[str]) -> LayerTime:
    names = list(links)
    return LayerTime(
        key, len(names), times[0][key], times[1][key], macs[0].get(key, 0), sum(macs[1].get(name, 0) for name in names)
    )
