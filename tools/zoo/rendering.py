"""docs/ZOO.md from the JSON files under results/zoo/, and from nothing else."""

from __future__ import annotations

from typing import Any

from tools.tables.rendering import table
from tools.zoo.models import MODELS
from tools.zoo.running import RATIO

# Below this a model is slower than the original by more than two measurements of it differ, and a line is of its speed.
SLOWER, SPEED = 0.97, "as fast as the original"

HEAD = f"""# Real models

Rendered from `results/zoo/*.json` by `make zoo`. Each model is imported (or cut where a node cannot be imported), compressed
from its weights alone so that the compressible layers' MACs fall {RATIO:g} times (their parameters, where sizes in a body are
not known), rewritten, simplified and proved in onnxruntime. *surgery*: the largest difference that replacing all layers at
full rank makes; *parity*: that between the written file and the graph with the weights that it stands for; *as fast*: the
original's latency over the new one's, one sample; *s*, *MB*: what the whole run took, and its peak memory. Inputs are made up
by the tool; sizes that a file leaves open are those in use where `tools/zoo/models.py` names them, and the tool's own choice
where it does not. No row says anything of accuracy: nothing was trained and no data were used.
Speeds are of two threads, measured when the idle threads of one session still took cores from the other.
"""


def render(results: dict[str, dict[str, Any]]) -> str:
    """The page."""
    head = [
        "model", "ops", "nodes", "opset", "inputs", "layers", "imported", "MACs", "x", "surgery", "parity", "as fast", "s", "MB",
        "left alone, and why",
    ]  # fmt: skip
    rows = [_row(results.get(model.name), model.name) for model in MODELS]
    slow = [
        f"- `{name}`: {line}" for name, record in results.items() if record.get("latency", 1.0) < SLOWER
        for line in record.get("said", ()) if SPEED in line
    ]  # fmt: skip
    packages = [[model.name, model.package or "published weights", f"`{model.member}`"] for model in MODELS]
    told = ["## What was said of those that are slower\n", *slow, ""] if slow else []
    return "\n".join([HEAD, table(head, rows), *told, "## Where they come from\n", table(["model", "package", "file"], packages)])


def _row(record: dict[str, Any] | None, name: str) -> list[str]:
    if record is None:
        return [name, *[""] * 5, "not run", *[""] * 8]
    told = [name, str(len(record.get("ops", ()))), str(record.get("nodes", "")), str(record.get("opset", ""))]
    told.append(", ".join("x".join(map(str, shape)) or "1" for shape in record.get("inputs", {}).values()))
    told += [f"{record['compressible']} of {record['layers']}" if "layers" in record else "", record.get("imported", "")]
    spent = [f"{record['seconds']:.0f}", str(record["peak_mb"])]
    if "failed" in record or "refused" in record:
        return [*told, *[""] * 5, *spent, f"**failed**: {record['failed']}" if "failed" in record else record["refused"]]
    metric = record.get("metric", "macs")
    before, after = record["cost"][metric], record[metric]
    cut = f"{before / 1e6:.1f} → {after / 1e6:.1f} M{'' if metric == 'macs' else ' ' + metric}"
    reasons = "; ".join(f"{reason} ({count})" for reason, count in sorted(_short(record["left_alone"]).items()))
    return [
        *told, cut, f"{before / after:.2f}", f"{record['surgery']['max_absolute']:.0e}",
        f"{record['parity']['max_absolute']:.0e}", f"{record['latency']:.2f}x", *spent, reasons,
    ]  # fmt: skip


def _short(reasons: dict[str, int]) -> dict[str, int]:
    """Reasons without what differs from layer to layer."""
    found: dict[str, int] = {}
    for reason, count in reasons.items():
        short = reason.split(":")[0]
        found[short] = found.get(short, 0) + count
    return found
