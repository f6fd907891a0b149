"""Smaller, and as much faster: budgets met on full-size networks, measured on the written files, for docs/SPEED.md.

    python -m tools.bench_speed run [--only TEXT]
    python -m tools.bench_speed render

The full-size networks have random weights, which serve for speed. Each row compresses without data, and runs the written file in
turns with the original (`batude-onnx bench`). Its JSON file under results/speed/ says that it is done.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from batude_onnx.loading import write_text
from batude_onnx.pipeline import bench, compress
from batude_onnx.report import to_json
from batude_onnx.settings import Settings
from tools.full_size import NETWORKS, export
from tools.tables.running import hardware, versions

RESULTS, BUILD = Path("results/speed"), Path("build/speed")
# The share of the cut in MACs that is to be seen as speed (and for a limit of time, the speed itself).
SECONDS = 10.0


@dataclass(frozen=True)
class Row:
    """One network under one budget; `multiple`: of ranks, None for what suits the runtime."""

    network: str
    budget: str
    multiple: int | None
    threads: int
    wanted: float

    @property
    def name(self) -> str:
        """Of its file under results/speed/."""
        ranks = "" if self.multiple is None else f"-multiple{self.multiple}"
        return f"{self.network}-{self.budget.replace('=', '-')}{ranks}-threads{self.threads}"


ROWS = (
    Row("resnet18", "macs=2.3x", 1, 1, 0.95),
    Row("resnet18", "macs=2.3x", None, 1, 0.95),
    Row("resnet18", "macs=2.3x", None, 2, 0.95),
    Row("resnet50", "macs=2x", None, 1, 0.85),
    Row("vgg16", "macs=4x", None, 1, 0.9),
    Row("resnet18", "latency=2x", None, 1, 2.0),
    Row("resnet20-cifar10", "latency=1.5x", None, 1, 1.5),
)


@click.group()
def main() -> None:
    """The rows of docs/SPEED.md."""


@main.command("run")
@click.option("--only", default="", help="Only rows whose name holds this text.")
@click.option("--again", is_flag=True, help="Also those that have a result already.")
def run_rows(only: str, again: bool) -> None:
    """Run the rows that have no result yet, one at a time."""
    BUILD.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    for row in ROWS:
        path = RESULTS / f"{row.name}.json"
        if only not in row.name or (path.exists() and not again):
            continue
        click.echo(f"{row.name}: running")
        record = run(row)
        write_text(path, to_json(record))
        click.echo(f"{row.name}: {record['latency']['ratio']:.2f}x as fast")  # type: ignore[index]


def run(row: Row) -> dict[str, object]:
    """Compress and measure one row."""
    model = Path("models") / f"{row.network}.onnx"
    if row.network in NETWORKS:
        model = BUILD / f"{row.network}.onnx"
        if not model.exists():
            export(row.network, model)
    output = BUILD / f"{row.name}.onnx"
    settings = Settings(model, output, row.budget, threads=row.threads, rank_multiple=row.multiple)
    verdict = compress(settings)
    found = bench(model, output, threads=row.threads, seconds=SECONDS)
    return {
        "row": asdict(row),
        "latency": dict(found.latency),
        "throughput": dict(found.throughput),
        "memory": found.memory,
        "macs": (found.macs_first, found.macs_other),
        "predicted": verdict.facts["predicted"],
        "seconds": verdict.facts["seconds"],
        "seed": verdict.facts["seed"],
        "ranks": verdict.ranks,
        "layers": [asdict(layer) for layer in found.layers],
        "hardware": hardware("cpu"),
        "versions": versions(),
    }


@main.command("render")
@click.option("--output", type=click.Path(path_type=Path), default=Path("docs/SPEED.md"), show_default=True)
def render_page(output: Path) -> None:
    """Write the page."""
    output.write_text(render({path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}))


def render(results: dict[str, dict[str, object]]) -> str:
    """The page, from the results by name; a row without one says so."""
    lines = [
        "# Speed",
        "",
        "Rendered from `results/speed/*.json` by `make bench`; no figure is typed by hand. Each row is compressed without data,",
        "and the written file is run in turns with the original, batch 1, in onnxruntime on the CPU: the ratio of minima.",
        "*of the cut* is the speed-up as a share of the cut in MACs. Full-size networks have random weights. By default",
        "ranks suit the runtime's block of channels. Under a limit of time, the figure to reach is the speed-up itself.",
        "",
        "| network | budget | ranks | threads | MACs | as fast | spread | of the cut | predicted | to reach |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in ROWS:
        ranks = "default" if row.multiple is None else f"multiples of {row.multiple}"
        head = f"| {row.network} | {row.budget} | {ranks} | {row.threads} |"
        lines.append(f"{head} {_figures(results[row.name]) if row.name in results else 'not run | | | | |'} {row.wanted:.2f} |")
    lines += ["", "## Evidence", "", "| results/speed/ | pairs of runs | seed | hardware | versions | s |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for row in ROWS:
        record = results.get(row.name)
        if record is not None:
            machine, timing, used = record["hardware"], record["latency"], record["versions"]
            lines.append(
                f"| {row.name} | {timing['runs']} | {record['seed']} | {machine['cores']} cores, {machine['cpu']} | "  # type: ignore[index]
                f"onnxruntime {timing['onnxruntime']}, torch {used['torch']} | {record['seconds']:.0f} |"  # type: ignore[index]
            )
    return "\n".join(lines) + "\n"


def _figures(record: dict[str, object]) -> str:
    latency, (before, after) = record["latency"], record["macs"]  # type: ignore[misc]
    ratio, cut = float(latency["ratio"]), float(before) / float(after)  # type: ignore[index, has-type]
    predicted = float(record["predicted"]["latency"])  # type: ignore[index]
    told = f"{predicted:.2f} of {float(latency['min_b_ms']):.2f} ms" if predicted else "-"  # type: ignore[index]
    spread = f"{100 * float(latency['spread']):.0f} %"  # type: ignore[index]
    return f"{cut:.2f}x | {ratio:.2f}x | {spread} | {ratio / cut:.2f} | {told} |"


if __name__ == "__main__":
    main()
