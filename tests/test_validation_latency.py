"""Interleaved timing: the arithmetic on a clock that the test holds, and one run on real models."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper

from batude_onnx.validation import latency
from batude_onnx.validation.latency import compare_latency
from batude_onnx.validation.sessions import open_session
from tests.loading_models import FLOAT, conv_bn, model_of


class Clock:
    """Time that passes only while a fake session runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def session(self, name: str, duration: Callable[[int], float]) -> Any:
        clock = self

        class Fake:
            provider, threads, runs = "cpu", 1, 0

            def run(self, feeds: object) -> None:
                clock.now += duration(self.runs)
                clock.order.append(name)
                self.runs += 1

        return Fake()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    held = Clock()
    monkeypatch.setattr(latency, "perf_counter", lambda: held.now)
    return held


FEEDS = {"x": np.zeros((4, 3), np.float32)}


def test_figures(clock: Clock) -> None:
    # a: 10, 11, 12, ... ms, b: 5, 5, 5, ... ms; the first run of each is the warm-up.
    a, b = clock.session("a", lambda k: (9 + k) / 1e3), clock.session("b", lambda k: 5 / 1e3)
    result = compare_latency(a, b, FEEDS, runs=5, warmup=1, seconds=100)
    assert result["runs"] == 4
    assert result["batch"] == 4
    assert result["ratio"] == pytest.approx(2.0)
    assert result["median_a_ms"] == pytest.approx(11.5)
    assert result["median_b_ms"] == pytest.approx(5)
    assert result["min_a_ms"] == pytest.approx(10)
    assert result["spread"] == pytest.approx((24 - 22) / 23)


def test_they_take_turns(clock: Clock) -> None:
    a, b = clock.session("a", lambda k: 1e-3), clock.session("b", lambda k: 1e-3)
    compare_latency(a, b, FEEDS, runs=4, warmup=1, seconds=100)
    assert "".join(clock.order) == "ab" + "abbaabba"


def test_a_machine_that_slows_down_does_not_bend_the_ratio(clock: Clock) -> None:
    """Twice as slow from run 20 on: the ratio of pairs stays 2, where one block after the other would have said 1."""
    a = clock.session("a", lambda k: 2e-3 * (1 if k < 20 else 2))
    b = clock.session("b", lambda k: 1e-3 * (1 if k < 20 else 2))
    result = compare_latency(a, b, FEEDS, runs=40, warmup=1, seconds=100)
    assert result["ratio"] == pytest.approx(2.0)
    assert result["spread"] == pytest.approx(0.0, abs=1e-9)


def test_what_the_other_model_leaves_in_the_caches_is_no_spread(clock: Clock) -> None:
    """Behind the other model each takes half as long again: every second run of each."""

    def behind(name: str, own: float) -> Callable[[int], float]:
        return lambda k: own * (1 if clock.order[-1:] == [name] else 1.5)

    a, b = clock.session("a", behind("a", 2e-3)), clock.session("b", behind("b", 1e-3))
    result = compare_latency(a, b, FEEDS, runs=40, warmup=1, seconds=100)
    assert result["ratio"] == pytest.approx(2.0)
    assert float(result["spread"]) < 0.02


def test_time_is_bounded_but_two_turns_are_run(clock: Clock) -> None:
    a, b = clock.session("a", lambda k: 1.0), clock.session("b", lambda k: 1.0)
    assert compare_latency(a, b, FEEDS, runs=1000, warmup=1, seconds=10)["runs"] == 6
    slow_a, slow_b = clock.session("a", lambda k: 60.0), clock.session("b", lambda k: 60.0)
    assert compare_latency(slow_a, slow_b, FEEDS, runs=1000, warmup=0, seconds=1)["runs"] == 4


@pytest.mark.alone
def test_real_models() -> None:
    """Sixteen convolutions against one: whatever the machine does, the ratio says which is slower."""
    names = ["x", *(f"c{k}" for k in range(15)), "y"]
    nodes = [helper.make_node("Conv", [names[k], "w"], [names[k + 1]], pads=[1, 1, 1, 1]) for k in range(16)]
    value = {"w": np.full((16, 16, 3, 3), 0.01, dtype=np.float32)}

    def session(nodes: list[Any], last: str) -> Any:
        x, y = (helper.make_tensor_value_info(name, FLOAT, ["N", 16, 32, 32]) for name in ("x", last))
        return open_session(model_of(nodes, [x], [y], value).SerializeToString(), threads=1)

    slow, fast = session(nodes, "y"), session(nodes[:1], "c0")
    result = compare_latency(slow, fast, {"x": np.ones((1, 16, 32, 32), np.float32)}, runs=20, seconds=1)
    assert float(result["ratio"]) > 3
    same = compare_latency(slow, slow, {"x": np.ones((1, 16, 32, 32), np.float32)}, runs=20, seconds=1)
    assert 0.5 < float(same["ratio"]) < 2
    assert (result["threads"], result["provider"], result["onnxruntime"]) == (1, "cpu", onnxruntime.__version__)
    assert result["cpu"]
    json.dumps(result, allow_nan=False)


def test_threads_left_to_onnxruntime_are_named() -> None:
    session = open_session(conv_bn().SerializeToString())
    result = compare_latency(session, session, {"x": np.zeros((1, 3, 8, 8), np.float32)}, runs=3)
    assert result["threads"] == "default"
