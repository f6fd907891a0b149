"""Parity: what passes, and beside each case its twin that must not."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from batude_onnx.errors import ParityError
from batude_onnx.proving import worst_of
from batude_onnx.records import OutputDifference
from batude_onnx.validation.parity import compare, cosine, require, tolerances
from batude_onnx.validation.sessions import open_session, run_batched
from tests.loading_models import conv_bn, weights


def one(a: np.ndarray, b: np.ndarray, atol: float | None = None, rtol: float | None = None) -> OutputDifference:
    (difference,) = compare({"y": a}, {"y": b}, atol, rtol)
    return difference


def signal(scale: float = 1.0, seed: int = 0) -> np.ndarray:
    return scale * np.random.default_rng(seed).standard_normal((4, 100)).astype(np.float32)


def test_equal_is_zero() -> None:
    difference = one(signal(), signal())
    assert difference.within
    assert (difference.max_absolute, difference.max_relative) == (0.0, 0.0)
    assert difference.cosine == pytest.approx(1.0, abs=1e-12)


def test_figures_by_hand() -> None:
    difference = one(np.array([1.0, -2.0, 4.0]), np.array([1.0, -2.5, 4.4]), atol=0.1, rtol=0.1)
    assert difference.max_absolute == pytest.approx(0.5)
    assert difference.max_relative == pytest.approx(0.25)
    assert difference.cosine == pytest.approx((1 + 5 + 17.6) / (21**0.5 * (1 + 6.25 + 19.36) ** 0.5))
    assert not difference.within  # 0.5 > 0.1 + 0.1 * 2
    assert one(np.array([1.0, -2.0, 4.0]), np.array([1.0, -2.5, 4.4]), atol=0.301, rtol=0.1).within


@pytest.mark.parametrize(("atol", "rtol", "within"), [(0.01, 0, True), (0.0099, 0, False), (0, 0.001, True), (0, 0.0009, False)])
def test_both_tolerances_count_element_by_element(atol: float, rtol: float, within: bool) -> None:
    a, b = np.array([10.0, 0.0]), np.array([10.00999, 0.0])
    assert one(a, b, atol, rtol).within is within


def test_the_rule_is_relative_to_the_reference() -> None:
    a, b = np.array([1.0]), np.array([2.0])
    assert not one(a, b, 0.0, 0.6).within
    assert one(b, a, 0.0, 0.6).within


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_the_defaults_follow_the_outputs_scale(scale: float) -> None:
    """Rounding noise of 2e-5 rms passes at any scale, an error of 1 % of it at none."""
    noise = signal(seed=1)
    assert one(signal(scale), (signal(scale) + 2e-5 * scale * noise).astype(np.float32)).within
    assert not one(signal(scale), (signal(scale) + 1e-2 * scale * noise).astype(np.float32)).within


def test_the_floor_forgives_a_saturated_output() -> None:
    quiet = np.full((2, 50), 4e-5, dtype=np.float32)
    assert one(quiet, quiet * np.float32(1.14)).within
    assert not one(quiet, quiet + np.float32(1e-3)).within


def test_half_precision_has_its_own_defaults() -> None:
    a = signal().astype(np.float16)
    b = (signal() * np.float32(1.003)).astype(np.float16)
    assert one(a, b).within
    assert not one(a.astype(np.float32), b.astype(np.float32)).within
    assert tolerances(a)[1] > tolerances(a.astype(np.float32))[1]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_special_values(value: float) -> None:
    a, b = signal(), signal()
    a[1, 2] = value
    assert not one(a, b, 1e9, 1e9).within
    assert not one(b, a, 1e9, 1e9).within
    assert one(a, b).max_absolute == np.inf
    assert one(a, a.copy()).within
    b[1, 2] = -value if np.isinf(value) else np.inf
    assert not one(a, b, 1e9, 1e9).within


def test_shapes_and_kinds_must_agree() -> None:
    a = np.ones((2, 3), np.float32)
    for b in (np.ones((3, 2), np.float32), np.ones((2, 1), np.float32), np.ones((2, 3), np.int64)):
        difference = one(a, b, 1e9, 1e9)
        assert not difference.within
        assert difference.max_absolute == np.inf


def test_integers_and_booleans_are_exact() -> None:
    a = np.array([1, 2, 1000])
    assert one(a, a.copy()).within
    off = one(a, np.array([1, 2, 1001]), 1e9, 1e9)
    assert (off.within, off.max_absolute, off.max_relative) == (False, 1.0, 0.001)
    large = np.array([2**60])
    assert not one(large, large + 1).within, "lost in float64"
    assert not one(np.array([True, False]), np.array([True, True])).within
    assert one(np.array(["a"]), np.array(["a"])).within
    assert not one(np.array(["a"]), np.array(["b"])).within


def test_outputs_that_only_one_side_has() -> None:
    differences = compare({"p": signal(), "q": signal()}, {"q": signal(), "r": signal()})
    assert [(difference.output, difference.within) for difference in differences] == [("p", False), ("q", True), ("r", False)]


def test_empty_and_zero_outputs() -> None:
    assert one(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)).within
    zero = one(np.zeros(5, np.float32), np.zeros(5, np.float32))
    assert (zero.within, zero.cosine) == (True, 1.0)


def test_exact_zeros_leave_the_relative_figure_finite() -> None:
    difference = one(np.array([0.0, 1.0]), np.array([1e-9, 1.0]))
    assert difference.within
    json.dumps(asdict(difference), allow_nan=False)


def test_cosine() -> None:
    x = np.array([1.0, 2.0, 3.0])
    assert cosine(x, -x) == pytest.approx(-1)
    assert cosine(1e200 * x, 1e-200 * x) == pytest.approx(1)
    assert cosine(np.array([1.0, 0.0]), np.array([0.0, 5.0])) == 0
    assert cosine(x, 0 * x) == 0
    assert cosine(np.array([65504, 1], np.float16), np.array([65504, 1], np.float16)) == pytest.approx(1)


def test_require_names_the_worst_output() -> None:
    good = OutputDifference("good", 9.0, 0.0, 1.0, within=True)
    small = OutputDifference("small", 0.5, 0.1, 0.99, within=False)
    large = OutputDifference("large", 2.0, 0.25, 0.9, within=False)
    require([good], "the rewrite")
    with pytest.raises(ParityError, match=r"the rewrite: output 'large' is off by 2 \(relative 0.25, .*2 of 3 outputs"):
        require([good, small, large], "the rewrite")
    with pytest.raises(ParityError, match="no output was compared"):
        require([], "the rewrite")


def test_real_graphs_that_are_the_same_and_that_are_not() -> None:
    """BatchNorm folded by hand equals the graph; with its shift lost, or one weight off by 2 %, it does not."""

    def outputs(model: object) -> dict[str, np.ndarray]:
        x = np.random.default_rng(5).standard_normal((6, 3, 8, 8), dtype=np.float32)
        return run_batched(open_session(model.SerializeToString(), threads=1), {"x": x}, 4)  # type: ignore[attr-defined]

    def altered(name: str, factor: float) -> object:
        model = conv_bn()
        for tensor in model.graph.initializer:
            if tensor.name == name:
                tensor.raw_data = (weights()[name] * np.float32(factor)).tobytes()
        return model

    reference = outputs(conv_bn())
    require(compare(reference, outputs(conv_bn(1))), "a fixed batch")
    require(compare(reference, outputs(altered("w", 1 + 1e-6))), "a rounding")
    for wrong in (altered("shift", 0.0), altered("w", 1.02)):
        with pytest.raises(ParityError, match="output 'y' is off"):
            require(compare(reference, outputs(wrong)), "a wrong rewrite")


def test_the_worst_of_several_runs_is_told_of_each_output() -> None:
    """A sequence may have more parts in one run than in another."""
    one, two = {"y[0]": np.ones(3)}, {"y[0]": np.ones(3), "y[1]": np.ones(2)}
    near, far = compare(one, {"y[0]": np.ones(3) * 1.1}), compare(two, {"y[0]": np.ones(3) * 1.2, "y[1]": np.ones(2)})
    found = worst_of([near, far])
    assert [difference.output for difference in found] == ["y[0]", "y[1]"]
    assert found[0].max_absolute == pytest.approx(0.2)
