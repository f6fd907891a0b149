"""docs/SPEED.md, from the JSON files under results/; a row without one says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tools.speed import equal, rows
from tools.tables.rendering import table

Results = Mapping[str, Mapping[str, Any]]

HEAD = """# Speed

Rendered from `results/speed/` and `results/solver/` by `make bench`; no figure is typed by hand. All times are of onnxruntime
on the CPU, batch 1, of two files that run in turns: *as fast* is the ratio of the shortest times, *spread* the interquartile
range of the ratios of single turns (two runs of each) over their median."""

BUDGETS = """## Budgets, and the speed that they give

Each row is compressed without data; full-size networks have random weights. *of the cut* is the speed-up as a share of the cut
in MACs. By default ranks suit the runtime's block of channels. Under a limit of time, the figure to reach is the speed-up
itself. Where a limit of MACs gives a speed below 0.9 of the cut, ranks that are 0.95 times as fast as it says are taken if they
lose little more (VGG's first Gemm has few MACs, but 411 MB of weights to read). They may cut more MACs than were asked for, of
which *of the cut* is the share then. VGG's row of the Intel Xeon was measured before that, and the times of rows of the Intel
Xeon and of AVX2 were predicted by a rule that was mended since. All rows were measured before a layer could be factored by CP."""

EQUAL = """## Peers at equal latency

ResNet-20 on CIFAR-10 made so much faster, one thread, by each method; all are then fine-tuned by the default recipe, for as
many epochs and towards the same original. `default`: `batude-onnx compress --budget latency=...`. `vbmf`: Tucker-2 ranks by
variational Bayes as in MUSCO, scaled to the speed. `channels`: torch-pruning, by the norms of groups; of its ways to count
channels out, the one that leaves the lowest loss on 1,024 training images before fine-tuning. `channels-larger-steps`: of
steps of the recipe's size, 3 and 10 times that, those that leave the lowest loss on the same images after one epoch."""

ROOF = """## What stock operators leave

Layers of the rows above: their time (as onnxruntime's profiler tells it) beside the roofline, which is what they would take at
the best rates of arithmetic and memory that onnxruntime was seen to reach on the machine, with large products of matrices and
with copies in the cache. *fused*: the roofline of a kernel that computes the whole chain of a layer and keeps to itself what
passes between its factors. What lies between *after* and *fused* is what kernels of one's own could gain at most."""

SOLVER = """## Rank solvers

How much more is lost than by the best choice of ranks (`python -m tools.solver_gap`): in percent of the optimum, found by
trying all choices, on small networks, and of the Lagrangian bound, which no choice can beat, on large ones. Spectra are drawn.
Seconds are of one core, with the prices of all ranks."""


def render(results: Results) -> str:
    """The page. `results`: by their path under results/."""
    solver = results.get("solver/gap")
    parts = [HEAD, BUDGETS, _budgets(results), EQUAL, _equal(results), ROOF, _roof(results), SOLVER]
    parts += ["Not run." if solver is None else _solver(solver["rows"]), "## Evidence", _evidence(results)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _of(row: rows.Row, results: Results) -> dict[str, Mapping[str, Any]]:
    """What there is of one row, by its name and the machine's."""
    return {name: record for name, record in results.items() if record.get("row") == asdict(row)}


def _budgets(results: Results) -> str:
    lines = []
    for row in rows.ROWS:
        ranks = "default" if row.multiple is None else f"multiples of {row.multiple}"
        for record in _of(row, results).values() or [None]:
            found = ["not run", "", "", "", "", ""] if record is None else [rows.processor(record["hardware"]), *_speed(record)]
            lines.append([row.network, row.budget, ranks, str(row.threads), *found, f"{row.wanted:.2f}"])
    head = ["network", "budget", "ranks", "threads", "on", "MACs", "as fast", "spread", "of the cut", "predicted", "to reach"]
    return table(head, lines)


def _speed(record: Mapping[str, Any]) -> list[str]:
    latency, (before, after) = record["latency"], record["macs"]
    ratio, cut, predicted = latency["ratio"], before / after, record["predicted"]["latency"]
    told = f"{predicted:.2f} of {latency['min_b_ms']:.2f} ms" if predicted else "-"
    return [f"{cut:.2f}x", f"{ratio:.2f}x", _percent(latency["spread"]), f"{ratio / cut:.2f}", told]


def _equal(results: Results) -> str:
    lines = []
    for row in equal.ROWS:
        record = results.get(f"speed/equal/{row.name}")
        head = [f"{row.wanted:g}x", row.method]
        if record is None:
            lines.append([*head, "not run", "", "", "", "", ""])
        elif "refused" in record:
            lines.append([*head, f"cannot be met: {record['refused']}", "", "", "", "", ""])
        else:
            before, after, latency = record["before"], record["after"], record["latency"]
            cuts = [f"{before[name] / after[name]:.2f}x" for name in ("params", "macs")]
            fast = f"{latency['ratio']:.2f}x ({_percent(latency['spread'])})"
            change = f"{after['top1'] - before['top1']:+.2f}"
            lines.append([*head, fast, f"{after['top1']:.2f}", f"**{change}**", *cuts, record["note"]])
    return table(["wanted", "method", "as fast (spread)", "top-1 %", "change", "params", "MACs", "how"], lines)


def _roof(results: Results) -> str:
    lines = []
    measured = ((row, record) for row in rows.ROWS for record in _of(row, results).values() if "roofline" in record)
    for row, record in measured:
        roofs, times = record["roofline"]["layers"], {layer["key"]: layer for layer in record["layers"]}
        shared = [key for key in roofs if key in times]
        before, after = (sum(times[key][f"{which}_ms"] for key in shared) for which in ("first", "other"))
        first, other, fused = (sum(roofs[key][which] for key in shared) for which in ("first", "other", "fused"))
        worst = sorted(shared, key=lambda key: roofs[key]["other"] - times[key]["other_ms"])[:3]
        named = ", ".join(f"`{key}` {times[key]['other_ms']:.3f} for {roofs[key]['other']:.3f}" for key in worst)
        shares = [f"{before:.2f}", _percent(first / before), f"{after:.2f}", _percent(other / after), f"{fused:.2f}"]
        lines.append([row.name, rows.processor(record["hardware"]), *shares, named])
    head = ["row", "on", "layers before, ms", "roofline of it", "after, ms", "roofline of it", "fused, ms"]
    return table([*head, "most is lost in (ms)"], lines)


def _solver(found: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for row in found:
        gaps = [f"{row[kind]['mean']:.3f} ({row[kind]['max']:.3f})" for kind in ("solver", "greedy")]
        times = [f"{row[kind]['seconds']:.2f}" if "seconds" in row[kind] else "-" for kind in ("solver", "greedy")]
        proved = f"{row['proved_best']} of {row['networks']}" if "proved_best" in row else f"all of {row['networks']}"
        lines.append([row["network"], str(row["layers"]), row["budget"], proved, *gaps, *times])
    head = ["network", "layers", "budget", "optimum known", "solver, mean (most) %", "paper's greedy, mean (most) %"]
    return table([*head, "solver, s", "greedy, s"], lines)


def _evidence(results: Results) -> str:
    lines = []
    for name, record in results.items():
        if "hardware" not in record:
            continue
        machine, timing = record["hardware"], record.get("latency", {})
        versions = [f"torch {record['versions']['torch']}", *([f"onnxruntime {timing['onnxruntime']}"] if timing else [])]
        what = [f"{timing['runs']} runs of each"] if timing else []
        if "epochs" in record and timing:
            what.append(f"{record['after']['n']:,} test images, {record['epochs']:g} epochs")
        on = f"{machine['cores']} cores, {machine['cpu']}"
        lines.append([name, ", ".join(what) or "-", str(record.get("seed", "-")), on, ", ".join(versions)])
    return table(["results/", "n", "seed", "hardware", "versions"], lines)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
