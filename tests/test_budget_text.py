"""A budget as people write it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batude_onnx.budget import parse_budget
from batude_onnx.errors import BudgetError
from batude_onnx.records import Budget, Cost

ORIGINAL = Cost(params=100_003, macs=50_000_000)


@pytest.mark.parametrize(
    ("text", "metric", "limit"),
    [
        ("2.5x", "params", 40_001),
        ("1x", "params", 100_003),
        (" 3 X ", "params", 33_334),
        ("40%", "params", 40_001),
        ("100%", "macs", 50_000_000),
        (".5%", "params", 500),
        ("100k", "params", 100_000),
        ("20M", "macs", 20_000_000),
        ("0.05g", "macs", 50_000_000),
        ("1.001k", "params", 1001),
        ("12345", "params", 12_345),
        ("200000x", "params", 0),
    ],
)
def test_a_budget_is_read_as_written(text: str, metric: str, limit: int) -> None:
    assert parse_budget(text, metric, ORIGINAL) == Budget(metric, limit, text)


@pytest.mark.parametrize(
    ("text", "metric", "message"),
    [
        ("0x", "params", "'0x' is not a reduction: the ratio must be 1x or more"),
        ("0.5x", "params", "'0.5x' is not a reduction: the ratio must be 1x or more"),
        ("abc", "params", "'abc' is not understood: write a ratio"),
        ("", "params", "'' is not understood"),
        ("nan", "params", "'nan' is not understood"),
        ("-3", "params", "'-3' is not understood"),
        ("1e3", "params", "'1e3' is not understood"),
        ("2.5x 3", "params", "'2.5x 3' is not understood"),
        ("0%", "params", "'0%' is out of range: the share must be above 0%"),
        ("120%", "params", "'120%' is out of range"),
        ("0", "params", "'0' leaves nothing: give a number of params above 0"),
        ("0.0001k", "params", "'0.0001k' leaves nothing"),
        ("100004", "params", "'100004' is no reduction: the model has 100,003 params"),
        ("51M", "macs", "'51M' is no reduction: the model has 50,000,000 macs"),
        ("2x", "latency", "unknown metric 'latency': choose one of params, macs"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(text: str, metric: str, message: str) -> None:
    with pytest.raises(BudgetError, match=re.escape(message)):
        parse_budget(text, metric, ORIGINAL)


@settings(max_examples=200, deadline=None)
@given(whole=st.integers(1, 10**12), hundredths=st.integers(100, 10_000))
def test_a_ratio_is_never_overspent_and_wastes_less_than_one(whole: int, hundredths: int) -> None:
    limit = parse_budget(f"{hundredths / 100:.2f}x", "params", Cost(whole, 0)).limit
    assert limit * hundredths <= whole * 100 < (limit + 1) * hundredths
