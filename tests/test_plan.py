"""Plans: what they say, what may be asked for single layers, and that a run obeys the file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from batude_onnx.cli import main
from batude_onnx.errors import BudgetError, PlanError
from batude_onnx.pipeline import compress, plan
from batude_onnx.records import Outlook
from batude_onnx.settings import LayerWishes, Settings, Source

MODEL = Path("models/resnet20-cifar10.onnx")
LARGE = "getitem_48"


def settings(folder: Path, budget: str = "2x", **more: Any) -> Settings:
    return Settings(MODEL, folder / "plan.json", budget, threads=1, **more)


def planned(folder: Path, budget: str = "2x", **more: Any) -> Outlook:
    return plan(settings(folder, budget, **more))


def ranks_of(found: Outlook) -> dict[str, tuple[int, ...] | None]:
    return {layer.key: layer.ranks for layer in found.layers}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_plan_adds_up_and_a_run_obeys_it(tmp_path: Path) -> None:
    found = planned(tmp_path)
    assert found.predicted.params <= found.original.params // 2
    saved = sum(layer.before.params - layer.after.params for layer in found.layers)
    assert found.predicted.params == found.original.params - saved
    assert not found.measured
    verdict = compress(Settings(MODEL, tmp_path / "out.onnx", "", plan=tmp_path / "plan.json", threads=1))
    assert verdict.ranks == {key: ranks for key, ranks in ranks_of(found).items() if ranks is not None}
    assert verdict.comparison.cost_other.params == found.predicted.params
    assert verdict.budget.text == "2x"


def test_a_plan_may_be_edited(tmp_path: Path) -> None:
    planned(tmp_path)
    path = tmp_path / "plan.json"
    record = json.loads(path.read_text())
    record["layers"][LARGE] = {"method": "tucker2", "ranks": [9, 7]}
    record["layers"].pop("getitem_51")
    record["layers"]["getitem_54"] = {"ranks": [12]}
    path.write_text(json.dumps(record))
    verdict = compress(Settings(MODEL, tmp_path / "out.onnx", "1.5x", plan=path, threads=1))
    assert verdict.ranks[LARGE] == (9, 7)
    assert verdict.methods[LARGE] == "tucker2"
    assert verdict.ranks["getitem_54"] == (12,)
    assert verdict.whole["getitem_51"] == "as it was asked for"
    with pytest.raises(BudgetError, match="the smallest budget that can be met"):
        compress(Settings(MODEL, tmp_path / "other.onnx", "9x", plan=path, threads=1))
    assert not (tmp_path / "other.onnx").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layers": {"nowhere": {"ranks": [3]}}}, "the model has no layer 'nowhere' that can be compressed"),
        (
            {"layers": {LARGE: {"ranks": [1, 2, 3]}}},
            f"layer {LARGE} has 2 (tucker2) or 1 (cp) or 1 (separable) or 1 (tucker1) ranks, not 3",
        ),
        ({"layers": {LARGE: {"ranks": [3], "method": "tucker2"}}}, "ranks, not 1 by 'tucker2'"),
        ({"layers": {LARGE: {"ranks": [65, 3]}}}, "ranks of at most 64 x 64, not (65, 3)"),
        ({"layers": {LARGE: {"ranks": [0, 3]}}}, "must have 'ranks', a list of numbers from 1 up"),
        ({"layers": {LARGE: {"ranks": "all"}}}, "must have 'ranks', a list of numbers from 1 up"),
        ({"layers": {LARGE: {"rank": [3, 3]}}}, "has no 'ranks': give a list of numbers, or null for the whole layer"),
        ({"layers": {LARGE: 3}}, "must have 'ranks', a list of numbers from 1 up"),
        ({"layers": []}, "no plan: it must hold 'budget', a text, and 'layers', an object"),
        ({"budget": 2}, "no plan: it must hold 'budget', a text, and 'layers', an object"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({"budget": "2x", "layers": {}} | change))
    told = run("compress", MODEL, "--plan", tmp_path / "plan.json", "-o", tmp_path / "out.onnx")
    assert told.exit_code == PlanError.exit_code, told.output
    assert said in told.output
    assert told.output.count("\n") == 1
    assert not (tmp_path / "out.onnx").exists()


def test_files_that_are_no_plan_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("ranks")
    for name, said in (("text.json", "not JSON"), ("nowhere.json", "cannot be read")):
        told = run("compress", MODEL, "--plan", tmp_path / name, "-o", tmp_path / "out.onnx")
        assert (told.exit_code, said in told.output) == (PlanError.exit_code, True), told.output


def test_layers_are_left_whole_by_pattern(tmp_path: Path) -> None:
    found = ranks_of(planned(tmp_path, "1.5x", layers=LayerWishes(exclude=("getitem_5?", LARGE))))
    assert found[LARGE] is found["getitem_51"] is found["getitem_54"] is None
    assert found["getitem_45"] is not None
    only = ranks_of(planned(tmp_path, "1.2x", layers=LayerWishes(include=("getitem_5*",))))
    assert {key for key, ranks in only.items() if ranks is not None} <= {"getitem_51", "getitem_54"}
    reasons = {layer.key: layer.reason for layer in planned(tmp_path, layers=LayerWishes(exclude=(LARGE,))).layers}
    assert reasons[LARGE] == "as it was asked for"


def test_ranks_that_save_nothing_are_kept_if_they_were_asked_for(tmp_path: Path) -> None:
    """Of the largest layer all ranks: it costs more than before, and the others pay for it."""
    found = ranks_of(planned(tmp_path, "1.2x", layers=LayerWishes(ranks={"getitem_54": (64, 64)})))
    assert found["getitem_54"] == (64, 64)
    with pytest.raises(BudgetError, match="the smallest budget that can be met"):
        planned(tmp_path, "8x", layers=LayerWishes(ranks={"getitem_54": (64, 64)}))


def test_ranks_and_least_ranks_are_kept(tmp_path: Path) -> None:
    wishes = LayerWishes(ranks={"getitem_54": (20, 12), "getitem_51": None}, least={"getitem_4*": 24})
    found = ranks_of(planned(tmp_path, "1.8x", layers=wishes))
    assert found["getitem_54"] == (20, 12)
    assert found["getitem_51"] is None
    floors = [ranks for key, ranks in found.items() if re.match("getitem_4", key) and ranks is not None]
    assert floors
    assert all(min(ranks) >= 24 for ranks in floors)


def test_a_least_rank_above_the_ranks_of_a_plan_is_refused(tmp_path: Path) -> None:
    planned(tmp_path, layers=LayerWishes(ranks={LARGE: (8, 8)}))
    wishes = ("--least-rank", f"{LARGE}=16", "-o", tmp_path / "out.onnx")
    told = run("compress", MODEL, "--plan", tmp_path / "plan.json", *wishes)
    assert told.exit_code == PlanError.exit_code, told.output
    assert f"layer {LARGE} was given ranks 8 x 8 by a plan or --ranks" in told.output


def test_a_pattern_that_fits_nothing_is_refused(tmp_path: Path) -> None:
    told = run("plan", MODEL, "--budget", "2x", "--exclude", "layer9*", "-o", tmp_path / "p.json")
    assert told.exit_code == PlanError.exit_code
    assert "no layer that can be compressed is called 'layer9*'" in told.output


@pytest.mark.parametrize("text", ["conv1", "conv1=", "conv1=0", "conv1=a,b", "=3"])
def test_ranks_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    told = run("plan", MODEL, "--budget", "2x", "--ranks", text, "-o", tmp_path / "p.json")
    assert told.exit_code == 2
    assert "is not PATTERN=RANKS" in told.output


def test_a_budget_or_a_plan_must_be_given(tmp_path: Path) -> None:
    told = run("plan", MODEL, "-o", tmp_path / "p.json")
    assert told.exit_code == 2
    assert "Missing option '--budget'" in told.output


def test_a_sweep_loses_more_with_every_step(tmp_path: Path) -> None:
    found = plan(settings(tmp_path, "2x"), sweep=["1.5x", "2x", "3x", "5x", "5000x"])
    losses = [step.loss for step in found.sweep]
    assert losses[1] == pytest.approx(found.loss)
    assert losses[-1] is None
    assert losses[:-1] == sorted(loss for loss in losses if loss is not None)
    assert losses[0] != losses[3]
    with pytest.raises(BudgetError, match="limits what the budget does not"):
        plan(settings(tmp_path, "2x"), sweep=["macs=2x"])


def test_sensitivity_is_measured_on_data(tmp_path: Path, cifar_slice: Path, trained: Path) -> None:
    made = Settings(trained, tmp_path / "p.json", "2x", data=Source(cifar_slice), threads=1)
    found = plan(made, sensitivity=True)
    assert found.measured
    for rows in found.sensitivity.values():
        damage = [tried.damage for tried in rows]
        assert damage == sorted(damage)
    assert sum(len(rows) > 2 for rows in found.sensitivity.values()) > 1


def test_the_tables_are_printed(tmp_path: Path) -> None:
    told = run("plan", MODEL, "--budget", "2x,macs=1.5x", "--sweep", "2x,4x", "--sensitivity", "-o", tmp_path / "p.json")
    assert told.exit_code == 0, told.output
    for wanted in ("whole: ", "predicted", "energy lost", "layer alone", "--plan", "\N{FULL BLOCK}"):
        assert wanted in told.output
    told = run("plan", MODEL, "--budget", "2x", "--json", "-o", tmp_path / "q.json")
    assert json.loads(told.stdout)["budget"]["limits"][0]["metric"] == "params"
