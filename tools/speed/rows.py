"""Budgets met on full-size networks, measured on the written files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from batude_onnx.pipeline import bench, compress
from batude_onnx.settings import Settings
from tools.full_size import NETWORKS, export
from tools.speed import roofline
from tools.tables.running import hardware, versions

BUILD = Path("build/speed")
SECONDS = 10.0


@dataclass(frozen=True)
class Row:
    """One network under one budget; `multiple`: of ranks, None for what suits the runtime. `wanted`: the share of the cut in MACs
    that is to be seen as speed; for a limit of time, the speed itself."""

    network: str
    budget: str
    multiple: int | None
    threads: int
    wanted: float

    @property
    def name(self) -> str:
        """Of its files, of which those under results/speed/ also bear the processor's."""
        ranks = "" if self.multiple is None else f"-multiple{self.multiple}"
        return f"{self.network}-{self.budget.replace('=', '-').replace(',', '-')}{ranks}-threads{self.threads}"


ROWS = (
    Row("resnet18", "macs=2.3x", 1, 1, 0.95),
    Row("resnet18", "macs=2.3x", None, 1, 0.95),
    Row("resnet18", "macs=2.3x", None, 2, 0.95),
    # 0.95 of that cut, asked for.
    Row("resnet18", "macs=2.3x,latency=2.19x", None, 1, 2.19),
    Row("resnet50", "macs=2x", None, 1, 0.85),
    Row("vgg16", "macs=4x", None, 1, 0.9),
    # Its last layers have few MACs and many weights to read: a limit of MACs alone leaves them, and their time, as they are.
    Row("vgg16", "macs=4x,latency=3.6x", None, 1, 3.6),
    Row("resnet18", "latency=2x", None, 1, 2.0),
    Row("resnet18", "latency=2x", None, 2, 2.0),
    Row("resnet20-cifar10", "latency=1.5x", None, 1, 1.5),
    Row("resnet20-cifar10", "latency=1.5x", None, 2, 1.5),
)


def processor(machine: Mapping[str, object]) -> str:
    """The name of a machine's processor, as `hardware` tells it, and how wide it computes: one name is borne by several."""
    name, _, instructions = str(machine["cpu"]).partition(" (")
    return f"{name}, {'AVX-512' if 'avx512' in instructions else 'AVX2' if 'avx2' in instructions else 'no AVX2'}"


def file_name(row: Row) -> str:
    """Of a row measured here: what is fast on one processor is not on another, and both are worth knowing."""
    return f"{row.name}-{processor(hardware('cpu')).lower().replace(',', '').replace('-', '').replace(' ', '-')}.json"


def run(row: Row) -> dict[str, object]:
    """Compress and measure one row."""
    BUILD.mkdir(parents=True, exist_ok=True)
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
        "roofline": roofline.against(roofline.measure(row.threads), model, output),
        "hardware": hardware("cpu"),
        "versions": versions(),
    }
