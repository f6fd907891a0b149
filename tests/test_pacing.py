"""Limits that can only be measured: the time of a run and the size of the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from onnx import helper

from batude_onnx import pacing
from batude_onnx.budget import smallest_of
from batude_onnx.decomposition import cp
from batude_onnx.errors import BudgetError, BudgetMissedError, TooSlowError
from batude_onnx.opening import Case, open_case
from batude_onnx.pipeline import compress, plan
from batude_onnx.records import Limit, Verdict
from batude_onnx.settings import Settings, Source, Watch
from batude_onnx.speed import cache
from batude_onnx.speed import observing as timing
from batude_onnx.training.planning import Planned
from batude_onnx.training.recipe import RECIPES
from batude_onnx.validation import Session
from tests.layer_models import one_node, values
from tests.pipelines import Listener, check, saved

pytestmark = pytest.mark.alone

MODEL = Path("models/resnet20-cifar10.onnx")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Short measurements, their results in a folder that all these tests share, and CP's fits, of which there are many, short."""
    monkeypatch.setattr(cp, "FITS", (1, 2))
    monkeypatch.setattr(timing, "SECONDS", 0.1)
    monkeypatch.setattr(timing, "PLAIN_SECONDS", 0.1)
    monkeypatch.setattr(pacing, "SECONDS", 0.5)
    monkeypatch.setattr(pacing, "LONG_SECONDS", 1.0)
    monkeypatch.setattr(pacing, "UNSTEADY", 100.0)
    monkeypatch.setenv(cache.FOLDER, str(tmp_path_factory.getbasetemp() / "times"))


class Said(Watch):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def run(folder: Path, budget: str, watch: Watch | None = None, **more: Any) -> Verdict:
    return compress(Settings(MODEL, folder / "out.onnx", budget, threads=1, **more), watch)


def test_a_latency_budget_holds_by_measurement(tmp_path: Path) -> None:
    said = Said()
    verdict = run(tmp_path, "latency=1.25x", said)
    check(verdict, Settings(MODEL, tmp_path / "out.onnx", "latency=1.25x"))
    assert float(verdict.comparison.latency["ratio"]) >= 1.25
    assert any("time predicted" in line for line in said.lines)
    # Whole blocks of channels, which are of 4, 8 or 16.
    assert all(rank % 4 == 0 for ranks in verdict.ranks.values() for rank in ranks)
    assert verdict.whole


def test_a_latency_faster_than_what_cannot_be_touched_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"the smallest budget that can be met is latency=\d\.\d\dx"):
        run(tmp_path, "latency=50x")
    with pytest.raises(BudgetError, match=r"the smallest budget that can be met is latency=0\.\d+ms"):
        run(tmp_path, "latency=0.001ms")
    assert not (tmp_path / "out.onnx").exists()


def least_time(folder: Path) -> tuple[float, float]:
    """What the smallest ranks in every layer are predicted to take, and the original, in ms."""
    case = open_case(Settings(MODEL, folder / "out.onnx", "latency=1.1x", threads=1), Watch(), ())
    (smallest,) = smallest_of(case.seen.compressible, case.terms, RECIPES["default"].ways)
    return float(smallest), float(case.terms.whole.of("latency"))


@pytest.mark.parametrize("taken", [0.9, 1.01], ids=["in time", "too slow"])
def test_a_limit_that_is_nearly_out_of_reach_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: float) -> None:
    """Predictions are off by some percent: what the smallest ranks take is measured before they are called too slow."""
    smallest, whole = least_time(tmp_path)
    budget = f"latency={1.04 * whole / smallest:.3f}x"
    monkeypatch.setattr(pacing, "_over", lambda *_: 1.03)
    monkeypatch.setattr(pacing, "_taken", lambda *_: taken)
    if taken < 1:
        said = Said()
        verdict = run(tmp_path, budget, said)
        assert verdict.budget.limits[0].limit < smallest
        assert any("predicted to be too slow" in line for line in said.lines)
        return
    monkeypatch.setattr(pacing, "LAST_TRIES", 1)
    with pytest.raises(BudgetError, match=r"the smallest ranks in every layer take 0\.\d+ ms, .* met is latency=\d\.\d\dx"):
        run(tmp_path, budget)
    assert not (tmp_path / "out.onnx").exists()


def test_several_limits_hold_together(tmp_path: Path) -> None:
    verdict = run(tmp_path, "2x,macs=1.6x,size=640kB")
    check(verdict, Settings(MODEL, tmp_path / "out.onnx", "2x,macs=1.6x,size=640kB"))
    assert [limit.metric for limit in verdict.budget.limits] == ["params", "macs", "size"]
    assert (tmp_path / "out.onnx").stat().st_size <= 640_000
    cost = verdict.comparison.cost_other
    assert cost.params <= 134_517
    assert cost.macs <= 40_551_040 / 1.6


def test_a_size_is_spent(tmp_path: Path) -> None:
    run(tmp_path, "size=700kB")
    assert 0.93 * 700_000 < (tmp_path / "out.onnx").stat().st_size <= 700_000


def test_a_limit_that_measuring_never_meets_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "_over", lambda *_: 1.001)
    with pytest.raises(BudgetError, match="was not met in 6 rounds of measuring"):
        run(tmp_path, "size=700kB")


def test_no_plan_is_measured_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Being over by next to nothing calls for another plan, too: costs go in steps."""
    plans: list[Mapping[str, object]] = []

    def over(case: Case, limit: Limit, shapes: ir.Model, planned: Planned, watch: Watch) -> float:
        plans.append(planned.plan.chosen())
        return 1.0001

    monkeypatch.setattr(pacing, "_over", over)
    with pytest.raises(BudgetError, match="was not met in 6 rounds of measuring"):
        run(tmp_path, "latency=1.2x")
    assert len(plans) == 6
    assert all(one != other for number, one in enumerate(plans) for other in plans[:number])


def test_a_finished_file_that_is_too_slow_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "_over", lambda *_: 0.5)
    monkeypatch.setattr(pacing, "_taken", lambda *_: 1.2)
    monkeypatch.setattr(pacing, "LONG_SECONDS", 0.05)
    with pytest.raises(BudgetMissedError, match="as fast as the original"):
        run(tmp_path, "latency=1.1x")
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("trains", [True, False], ids=["trained", "from its weights"])
def test_a_finished_file_that_is_too_slow_is_made_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cifar_slice: Path, trains: bool
) -> None:
    """As on a machine that has slowed down since the plan was measured."""
    held, first, proved = pacing.held, iter([1.05]), []

    def at_first_too_slow(case: Case, session: Session) -> Mapping[str, float | int | str]:
        proved.append(session)
        if (share := next(first, None)) is not None:
            raise TooSlowError("too slow", share)
        return held(case, session)

    monkeypatch.setattr(pacing, "held", at_first_too_slow)
    told, more = Listener(), {"data": Source(cifar_slice), "epochs": 1.0} if trains else {}
    verdict = run(tmp_path, "latency=1.15x", told, **more)
    check(verdict, Settings(MODEL, tmp_path / "out.onnx", "latency=1.15x"))
    assert "the finished file takes 5.0 % too long: its ranks are made smaller, and fitted again" in told.said
    assert float(verdict.comparison.latency["ratio"]) >= 1.15
    assert len(proved) == 2
    if trains:
        # What was trained is kept, and says so.
        assert {row["phase"] for row in verdict.history} == {"fine-tuning"}
        assert verdict.comparison.quality_other["top1"] > verdict.comparison.quality_original["top1"] - 10


def test_a_file_that_stays_too_slow_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []

    def slow(case: Case, session: Session) -> Mapping[str, float | int | str]:
        shares.append(1.02)
        raise TooSlowError("too slow", 1.02)

    monkeypatch.setattr(pacing, "held", slow)
    with pytest.raises(TooSlowError):
        run(tmp_path, "latency=1.1x")
    assert len(shares) == 3
    assert not (tmp_path / "out.onnx").exists()


def test_the_minima_of_all_tries_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each try is disturbed in one of the two models."""
    tries = iter([(2.0, 1.5), (3.0, 1.0)])

    def compared(*_: object, **__: object) -> dict[str, float | int | str]:
        first, second = next(tries)
        return {"min_a_ms": first, "min_b_ms": second, "ratio": first / second, "runs": 10, "spread": 0.1}

    case = open_case(Settings(MODEL, tmp_path / "out.onnx", "latency=2x", threads=1), Watch(), ())
    monkeypatch.setattr(pacing, "compare_latency", compared)
    found = pacing.held(case, case.original)
    assert (found["min_a_ms"], found["min_b_ms"], found["ratio"], found["runs"]) == (2.0, 1.0, 2.0, 20)


def test_a_sweep_may_change_how_layers_are_factored(tmp_path: Path) -> None:
    wide = {"w": values(64, 3, 3, 3), "v": values(64, 64, 3, 3, seed=1)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4), helper.make_node("Conv", ["c", "v"], ["y"], pads=[1] * 4)]
    path = saved(one_node(nodes, [1, 3, 8, 8], [1, 64, 8, 8], wide), tmp_path)
    found = plan(Settings(path, tmp_path / "p.json", "18000", threads=1), sweep=["9000", "400"])
    few = found.sweep[1].predicted
    assert few is not None
    assert few.params <= 400
    losses = [found.loss, *(step.loss for step in found.sweep if step.loss is not None)]
    assert len(losses) == 3
    assert losses == sorted(set(losses))


def test_a_plan_says_what_each_layer_takes(tmp_path: Path) -> None:
    found = plan(Settings(MODEL, tmp_path / "p.json", "latency=1.2x", threads=1))
    before, after = found.original.of("latency"), found.predicted.of("latency")
    assert 0 < after < before
    saved = sum(layer.before.of("latency") - layer.after.of("latency") for layer in found.layers)
    assert after == pytest.approx(before - saved)
    assert all(layer.after.of("latency") < layer.before.of("latency") for layer in found.layers if layer.ranks)
    # What was not limited is not known.
    assert found.predicted.size is None


def test_a_network_that_would_be_slower_gets_other_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though nobody asked for speed; the budget holds as before."""
    monkeypatch.setattr(pacing, "SLOWER", 0.01)
    monkeypatch.setattr(pacing, "BEHIND", 0.0)
    said = Said()
    verdict = run(tmp_path, "macs=1.5x", said)
    check(verdict, Settings(MODEL, tmp_path / "out.onnx", "macs=1.5x"))
    assert any("to spare those that would get slower" in line for line in said.lines)
    assert any("time predicted" in line for line in said.lines)
    assert verdict.comparison.cost_other.macs <= 40_551_040 / 1.5
    # Whole blocks of channels.
    assert all(rank % 4 == 0 for ranks in verdict.ranks.values() for rank in ranks)
    assert verdict.comparison.cost_other.latency is None
    assert "latency" not in verdict.budget.text


def test_ranks_that_are_faster_and_lose_much_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = run(tmp_path, "macs=1.5x", rank_multiple=1).ranks
    monkeypatch.setattr(pacing, "SLOWER", 0.01)
    monkeypatch.setattr(pacing, "BEHIND", 0.0)
    monkeypatch.setattr(pacing, "WORTH", 0.0)
    said = Said()
    run(tmp_path, "macs=1.5x", said)
    assert any(line.startswith("ranks as fast as the original would lose ") for line in said.lines)
    # Whoever says of what ranks are to be multiples has said what matters.
    asked = Said()
    assert run(tmp_path, "macs=1.5x", asked, rank_multiple=1).ranks == usual
    assert not any("get slower" in line for line in asked.lines)


@pytest.mark.parametrize("ratio", [1.35, 1.2], ids=["at a price", "taken"])
def test_speed_that_is_far_behind_the_cut_in_macs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratio: float) -> None:
    """Ranks that are nearer to it are taken where they lose little more, and named where not."""
    seen: list[float] = []

    def glance(*_: object) -> dict[str, float]:
        seen.append(ratio if not seen else 2.0)
        return {"ratio": seen[-1], "min_a_ms": 1.0, "min_b_ms": 0.5, "spread": 0.05}

    monkeypatch.setattr(pacing, "_timed", glance)
    run(tmp_path, "macs=1.6x", rank_multiple=1)
    assert not seen
    monkeypatch.setattr(pacing, "_goals", lambda *_: [])
    usual = run(tmp_path, "macs=1.6x").ranks
    seen.clear()
    said = Said()
    # To be taken it must be out of reach of the usual ranks, which are faster than 1.1.
    goal = (1.5, 100.0) if ratio < 1.3 else (1.1, 0.0)
    monkeypatch.setattr(pacing, "_goals", lambda *_: [goal])
    verdict = run(tmp_path, "macs=1.6x", said)
    check(verdict, Settings(MODEL, tmp_path / "out.onnx", "macs=1.6x"))
    assert verdict.budget.text == "macs=1.6x"
    (line,) = [line for line in said.lines if "its layers are timed" in line]
    assert line.endswith("to spare those that would gain little")
    assert f"{ratio:.2f}x as fast as the original for 1.6" in line
    named = [line for line in said.lines if "--budget macs=1.6x,latency=1.10x" in line]
    assert len(named) == (ratio > 1.3)
    assert (verdict.ranks == usual) == (ratio > 1.3)


def test_a_machine_that_is_too_busy_to_tell_changes_no_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "_goals", lambda *_: [])
    usual = run(tmp_path, "macs=1.6x").ranks
    monkeypatch.setattr(pacing, "_goals", lambda *_: [(1.1, 100.0)])
    monkeypatch.setattr(pacing, "UNSTEADY", -1.0)
    said = Said()
    assert run(tmp_path, "macs=1.6x", said).ranks == usual
    assert any(line.startswith("whether these ranks make it slow is not told: times") for line in said.lines)
    assert not any("its layers are timed" in line for line in said.lines)


def test_how_fast_a_plan_should_be(tmp_path: Path) -> None:
    def goals(budget: str, ratio: float, cut: float) -> list[tuple[float, float]]:
        case = open_case(Settings(MODEL, tmp_path / "out.onnx", budget, threads=1), Watch(), ())
        return pacing._goals(case, ratio, cut)

    assert goals("macs=2x", 1.85, 2.0) == []
    (goal,) = goals("macs=2x", 1.6, 2.0)
    assert goal == pytest.approx((1.9, (1.9 / 1.6) ** 2))
    # Parameters promise no speed, but a smaller network should not be slower.
    assert goals("2x", 1.0, 2.0) == []
    assert goals("2x", 0.9, 2.0) == [(1.0, pacing.WORTH)]
    assert [goal for goal, _ in goals("macs=2x", 0.9, 2.0)] == [pytest.approx(1.9), 1.0]
    assert [goal for goal, _ in goals("macs=1.02x", 0.9, 1.02)] == [1.0]


def test_a_budget_that_only_slower_ranks_can_meet_is_met_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacing, "SHORT", 0.0)
    monkeypatch.setattr(pacing, "SLOWER", 0.01)
    path = saved(
        one_node(
            [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)], [1, 4, 4, 4], [1, 4, 4, 4], {"w": values(4, 4, 3, 3)}
        ),
        tmp_path,
    )
    said = Said()
    verdict = compress(Settings(path, tmp_path / "out.onnx", "2x", threads=1), said)
    assert any(line.startswith("no ranks within the budget are as fast as the original") for line in said.lines)
    assert verdict.comparison.cost_other.params <= 72
