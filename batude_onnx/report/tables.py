"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from batude_onnx.records import Benchmark, Comparison, Cost, Site, Verdict

# A layer that takes so much longer than before is named, if that is a part of the whole time that matters: less may be chance.
LOST, MATTERS = 1.05, 0.01


def number(value: float | None, unit: str = "") -> str:
    """A count with its thousands apart; a dash for what is not known."""
    return "-" if value is None else f"{value:,.0f}{unit}"


def _plain(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    return table


def layer_table(sites: Sequence[Site], cost: Cost) -> Table:
    """One row a layer: what it is, what it costs, its share, and whether it can be compressed.

    The weight is S x C/groups x kernel.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("layer", "op", "weight"):
        table.add_column(column, overflow="fold")
    for column in ("groups", "params", "share", "MACs", "share"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("compressible", overflow="fold")
    for site in sites:
        known = bool(site.shape)
        table.add_row(
            site.key,
            site.op,
            "x".join(map(str, site.shape)) or "-",
            str(site.geometry.groups),
            number(site.params if known else None),
            f"{100 * site.params / cost.params:.1f}%" if known and cost.params else "-",
            number(site.macs if known and site.positions else None),
            f"{100 * site.macs / cost.macs:.1f}%" if known and cost.macs and site.positions else "-",
            _answer(site),
        )
    return table


def _answer(site: Site) -> str:
    """Whether a layer can be compressed, and in how many places it is run."""
    places = f", run in {len(site.keys)} places" if site.twins else ""
    return f"yes ({site.method}{places})" if site.method else f"no: {site.reason}"


def _row(table: Table, name: str, before: float | None, after: float | None, change: str) -> None:
    table.add_row(name, number(before), number(after), change)


def _ratio(before: float, after: float) -> str:
    return f"{before / after:.2f}x smaller" if after else "-"


def _quality(table: Table, before: Mapping[str, float], after: Mapping[str, float]) -> None:
    for key, name in (("top1", "top-1 accuracy"), ("top5", "top-5 accuracy")):
        if key in before and key in after:
            table.add_row(name, f"{before[key]:.2f} %", f"{after[key]:.2f} %", f"{after[key] - before[key]:+.2f}")
    if "cross_entropy" in before and "cross_entropy" in after:
        first, second = before["cross_entropy"], after["cross_entropy"]
        table.add_row("cross-entropy", f"{first:.4f}", f"{second:.4f}", f"{second - first:+.4f}")
    if "top1_agreement" in after:
        table.add_row("same top-1 as the original", "", f"{after['top1_agreement']:.2f} %", "")
    if "cosine" in after:
        table.add_row("cosine to the original's outputs", "", f"{after['cosine']:.5f}", "")


def comparison_table(comparison: Comparison, names: tuple[str, str] = ("original", "compressed")) -> Table:
    """Size, work, quality and speed of two models side by side."""
    table = _plain("", names[0], names[1], "change")
    a, b = comparison.cost_original, comparison.cost_other
    _row(table, "parameters", a.params, b.params, _ratio(a.params, b.params))
    if a.macs and b.macs:
        _row(table, "MACs", a.macs, b.macs, _ratio(a.macs, b.macs))
    _quality(table, comparison.quality_original, comparison.quality_other)
    latency = comparison.latency
    if latency:
        table.add_row(f"latency, batch {latency['batch']}, {latency['provider']}", *_faster(latency))
    return table


def difference_table(comparison: Comparison) -> Table:
    """How far each output of the two models lies apart."""
    table = _plain("output", "largest difference", "relative", "cosine", "equal")
    for difference in comparison.differences:
        table.add_row(
            difference.output,
            f"{difference.max_absolute:.3g}",
            f"{difference.max_relative:.3g}",
            f"{difference.cosine:.6f}",
            "yes" if difference.within else "no",
        )
    return table


def rank_table(verdict: Verdict) -> Table:
    """What became of each layer: ranks and method of those replaced, and the reason of those left whole."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer", overflow="fold")
    table.add_column("ranks", no_wrap=True)
    table.add_column("method", no_wrap=True)
    for key, ranks in verdict.ranks.items():
        table.add_row(key, " x ".join(map(str, ranks)), verdict.methods[key])
    for key, reason in verdict.whole.items():
        table.add_row(key, f"whole: {reason}")
    return table


def benchmark_table(found: Benchmark) -> Table:
    """Work, speed and memory of two models side by side."""
    table = _plain("", "first", "second", "change")
    if found.macs_first and found.macs_other:
        _row(table, "MACs", found.macs_first, found.macs_other, _ratio(found.macs_first, found.macs_other))
    latency, throughput = found.latency, found.throughput
    table.add_row(f"latency, batch {latency['batch']}, {latency['provider']}", *_faster(latency))
    first, other = (float(throughput["batch"]) / float(throughput[key]) * 1e3 for key in ("min_a_ms", "min_b_ms"))
    table.add_row(
        f"throughput, batch {throughput['batch']}",
        f"{first:,.1f} /s",
        f"{other:,.1f} /s",
        f"{other / first:.2f}x as much (spread {100 * float(throughput['spread']):.0f} %)",
    )
    before, after = found.memory
    table.add_row("peak memory", f"{before / 2**20:,.1f} MiB", f"{after / 2**20:,.1f} MiB", "")
    return table


def time_table(found: Benchmark) -> Table:
    """Where the time goes: each layer of the first model and what stands in its place in the second, and what got slower."""
    table = _plain("layer", "links", "first ms", "second ms", "as fast", "fewer MACs", "")
    least = MATTERS * (found.rest_first + sum(row.first_ms for row in found.layers))
    for row in found.layers:
        fewer = f"{row.macs_first / row.macs_other:.2f}x" if row.macs_first and row.macs_other else "-"
        more = row.other_ms - row.first_ms
        lost = f"lost {more:.3f} ms" if row.other_ms > LOST * row.first_ms and more > least else ""
        ratio = f"{row.first_ms / row.other_ms:.2f}x"
        table.add_row(row.key, str(row.links), f"{row.first_ms:.3f}", f"{row.other_ms:.3f}", ratio, fewer, lost)
    rest = f"{found.rest_first / found.rest_other:.2f}x" if found.rest_other > 0 else "-"
    table.add_row("all else", "", f"{found.rest_first:.3f}", f"{found.rest_other:.3f}", rest, "", "")
    return table


def _faster(latency: Mapping[str, float | int | str]) -> tuple[str, str, str]:
    first, second = float(latency["min_a_ms"]), float(latency["min_b_ms"])
    ratio, spread = float(latency["ratio"]), 100 * float(latency["spread"])
    return f"{first:.3f} ms", f"{second:.3f} ms", f"{ratio:.2f}x as fast (spread {spread:.0f} %)"
