"""What a run says of itself: in the file that it writes, and in the report beside it."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import onnx_ir as ir
import torch

from batude_onnx.loading import write_text
from batude_onnx.opening import Case
from batude_onnx.records import FactorChain, RankPlan, TrainResult, Verdict
from batude_onnx.report import to_json


def metadata(case: Case, plan: RankPlan, chains: Mapping[str, FactorChain]) -> dict[str, str]:
    """What the file itself says of how it was made."""
    return {
        "batude_onnx.budget": "; ".join(f"{limit.text}: {limit.metric} <= {limit.limit}" for limit in case.budget.limits),
        "batude_onnx.methods": json.dumps(methods(chains)),
        "batude_onnx.ranks": json.dumps(plan.chosen()),
        "batude_onnx.recipe": case.settings.recipe if case.settings.data is not None else "training-free",
    }


def methods(chains: Mapping[str, FactorChain]) -> dict[str, str]:
    """How each layer was factored."""
    return {key: chain.method for key, chain in chains.items()}


def whole(case: Case, plan: RankPlan, kept: Mapping[str, str]) -> dict[str, str]:
    """Every layer left alone, with its reason; `kept` has those that came up on the way."""
    reasons = {}
    for site in case.seen.sites:
        if site.method is None:
            reasons[site.key] = str(site.reason)
        elif site.key in kept:
            reasons[site.key] = kept[site.key]
        elif site.key in case.terms.choices and case.terms.choices[site.key] is None:
            reasons[site.key] = "as it was asked for"
        elif site.key not in plan.ranks:
            held = f": it stands in a body of {' > '.join(site.inside)}" if site.inside else ""
            reasons[site.key] = f"nothing that was trained depends on it{held}"
        elif plan.ranks[site.key] is None:
            reasons[site.key] = "the budget pays for it as it is"
    return reasons


def facts(case: Case, result: TrainResult, seconds: float) -> dict[str, object]:
    """How and on what the run was made; it took `seconds`."""
    settings = case.settings
    return {
        "seconds": round(seconds, 1),
        "recipe": settings.recipe if settings.data is not None else "training-free",
        "epochs": round(sum({str(row["phase"]): float(row["epochs"]) for row in result.history}.values()), 2),
        "judged": {} if result.judged is None else {**asdict(result.judged), "helped": result.judged.helped},
        "seed": settings.seed,
        "training_samples": len(case.runs) if case.dataset is None else len(case.dataset.x_train),
        "inputs": {} if settings.data is not None else {name: asdict(given) for name, given in case.seen.feeding.given.items()},
        "predicted": asdict(result.plan.cost),
        "rank_alignment": asdict(case.terms.alignment),
        "device": settings.device,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnx_ir": ir.__version__,
    }


def write_report(verdict: Verdict, path: Path) -> None:
    """The verdict beside the model."""
    write_text(path, to_json(verdict))
