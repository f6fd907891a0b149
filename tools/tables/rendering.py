"""docs/RESULTS.md from the JSON files under results/, and from nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tools.tables.rows import DEFAULTS, LONG, METHODS, MODELS, PAPER, ROWS, SHORT, Target
from tools.tables.variants import BUDGET, GROUPS, MODEL, Group

Record = dict[str, Any]
Results = dict[str, Record]

HEAD = """# Results

Rendered from `results/*.json` by `make tables-render`; no figure is typed by hand. Every row starts from the same ONNX file, is
compressed, proved and scored in onnxruntime, once: the tables on the whole test set, the ablations on 5,000 training images held
out (`tools/hold_out.py`), with a network that was trained without them. Parameters and MACs are counted in the written file. The
settings of the default recipe were chosen on these, with one seed each; the baselines fine-tune with the same ones, and take
whole steps, as the default does from a start far from the original.
`default` solves the ranks once and gives all epochs to the factors; `restored` is the same with whole steps and with BatchNorms
that go by the batch in training, as those of all the others do; `no-cp` is that without CP among the methods that may factor a
layer, and `batude` has the first fifth of the epochs given to BC-ADL. *change* is against each one's own baseline, the paper's
against the paper's. A row that has not been run is marked so. Where training raised the loss that it was to lower, it was taken
back, and *Evidence* says so (of rows run since it is written down). *s* is time on the clock: runs shared the machine, and one of
admm-tucker stood still for 90 minutes of it.
"""


def load(folder: Path) -> Results:
    """Every result by its row's name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def change(record: Record) -> float:
    """Points of top-1 gained or lost."""
    return round(float(record["after"]["top1"] - record["before"]["top1"]), 2)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean, and the standard deviation where there are several."""
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def _unsure(found: Sequence[Record]) -> str:
    """Cross-entropy of the labels, which tells two methods apart sooner than accuracy does."""
    values = [record["after"]["cross_entropy"] for record in found if "cross_entropy" in record["after"]]
    return spread(values, 4) if values else ""


def _paper(results: Results, targets: Iterable[Target]) -> str:
    rows = []
    for target, row in product(targets, ROWS):
        if (row.model, row.budget, row.epochs) != (target.model, target.budget, LONG):
            continue
        record = results.get(row.name)
        ours = ["not run", "", "", ""]
        if record is not None:
            before, after = record["before"], record["after"]
            ours = [
                f"{before['top1']:.2f} → {after['top1']:.2f}", f"**{change(record):+.2f}**",
                f"{before['params'] / after['params']:.2f}x / {before['macs'] / after['macs']:.2f}x", f"{record['seconds']:.0f}",
            ]  # fmt: skip
        paper = [f"{target.baseline:.2f} → {target.compressed:.2f}", f"{target.change:+.2f}"]
        rows.append([MODELS[target.model].title, target.budget, *paper, row.method, *ours])
    head = ["model", "params budget", "paper", "change", "recipe", f"ours, {LONG:g} epochs", "change", "params / MACs", "s"]
    return table(head, rows)


def _short(results: Results, model: str, budget: str, methods: Sequence[str]) -> str:
    rows = []
    for method in methods:
        wanted = [row for row in ROWS if (row.model, row.budget, row.method, row.epochs) == (model, budget, method, SHORT)]
        found = [results[row.name] for row in wanted if row.name in results]
        if not found:
            rows.append([method, "not run", "", "", "", "", "", ""])
            continue
        one = found[0]
        rows.append([
            method, spread([record["after"]["top1"] for record in found]), spread([change(record) for record in found]),
            _unsure(found),
            f"{one['before']['params'] / one['after']['params']:.2f}x", f"{one['before']['macs'] / one['after']['macs']:.2f}x",
            f"{mean(record['seconds'] for record in found):.0f}", ", ".join(str(record["row"]["seed"]) for record in found),
        ])  # fmt: skip
    return table(["method", "top-1 %", "change", "cross-entropy", "params", "MACs", "s", "seeds"], rows)


def _untrained(results: Results) -> str:
    rows = []
    for row in ROWS:
        if row.epochs or MODELS[row.model].pictures:
            continue
        record = results.get(row.name)
        filled = ["not run", "", "", ""]
        if record is not None:
            filled = [
                f"{record['after']['top1']:.2f}", f"{change(record):+.2f}", str(record["training_samples"]),
                f"{record['seconds']:.0f}",
            ]  # fmt: skip
        rows.append([row.budget, row.method, *filled])
    return table(["params budget", "recipe", "top-1 %", "change", "unlabelled images", "s"], rows)


def _pictures(results: Results) -> str:
    rows = []
    for row in ROWS:
        if not MODELS[row.model].pictures:
            continue
        record = results.get(row.name)
        filled = ["not run", "", "", "", ""]
        if record is not None:
            before, after = record["before"], record["after"]
            filled = [
                f"{before['psnr']:.2f} → {after['psnr']:.2f}", f"{after['psnr'] - before['psnr']:+.2f}",
                f"{before['params'] / after['params']:.2f}x / {before['macs'] / after['macs']:.2f}x",
                f"{record['latency']['ratio']:.2f}x", f"{record['seconds']:.0f}",
            ]  # fmt: skip
        rows.append([MODELS[row.model].title, row.budget, row.method, f"{row.epochs:g}", *filled])
    head = ["model", "MACs budget", "recipe", "epochs", "PSNR, dB", "change", "params / MACs", "as fast", "s"]
    return table(head, rows)


def _ablation(results: Results, group: Group) -> str:
    rows = []
    for name in group.names:
        found = [results[row.name] for row in group.rows() if row.method == name and row.name in results]
        filled = ["not run", "", "", "", ""]
        if found:
            filled = [
                spread([record["after"]["top1"] for record in found]), spread([change(record) for record in found]),
                _unsure(found), f"{found[0]['before']['macs'] / found[0]['after']['macs']:.2f}x",
                ", ".join(str(record["row"]["seed"]) for record in found),
            ]  # fmt: skip
        rows.append([name, *filled])
    head = ["variant", "top-1 %", "change", "cross-entropy", "MACs", "seeds"]
    return f"### {group.title}, {group.epochs:g} epochs\n\n" + table(head, rows)


def _evidence(results: Results) -> str:
    """Every row with what it ran on."""
    rows = []
    for name, record in results.items():
        machine, versions = record["hardware"], record["versions"]
        where = machine.get("gpu") or f"{machine['cores']} cores, {machine['cpu']}"
        ran = f"torch {versions['torch']}, Python {versions['python']}"
        rows.append([name, str(record["test_images"]), _judged(record), where, ran])
    return table(["results/", "n", "loss in training", "hardware", "versions"], rows)


def _judged(record: Record) -> str:
    """The loss that training was to lower, before and after; empty where nothing was trained, or it was not written down."""
    judged = record.get("judged")
    if not judged:
        return ""
    trained = "no number" if judged["trained"] is None else f"{judged['trained']:.3f}"
    return f"{judged['start']:.3f} → {trained}" + ("" if judged["helped"] else ", taken back")


def render(results: Results) -> str:
    """The page."""
    ten = [target for target in PAPER if MODELS[target.model].data == "cifar10"]
    hundred = [target for target in PAPER if MODELS[target.model].data == "cifar100"]
    model = MODELS["resnet20-c10"].title
    return "\n".join([
        HEAD,
        "## The paper's Table 1: CIFAR-10\n", _paper(results, ten),
        "## The paper's Table 2: CIFAR-100\n", _paper(results, hundred),
        f"## Methods at equal epochs: {model}, 2.6x parameters, {SHORT:g} epochs\n",
        _short(results, "resnet20-c10", "2.6x", METHODS),
        f"## {model}, 6.8x parameters, {SHORT:g} epochs\n", _short(results, "resnet20-c10", "6.8x", DEFAULTS),
        f"## Nothing trained: {model}\n", _untrained(results),
        "## Super-resolution: distilled from patches, no ground truth\n", _pictures(results),
        f"## Ablations: {MODELS[MODEL].title}, {BUDGET} parameters where no other budget stands\n",
        "`no-cp` with one thing changed (`tools/tables/variants.py`), on the held-out images; `restored` and\n"
        "`default` factor layers by CP, too, and `default` and what is named after it take steps as long as their start bears.\n",
        *(_ablation(results, group) for group in GROUPS),
        "## Evidence\n", _evidence(results),
    ])  # fmt: skip
