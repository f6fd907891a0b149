"""A budget as people write it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batude_onnx.budget import budget_metrics, parse_budget
from batude_onnx.errors import BudgetError
from batude_onnx.records import Cost, Limit

ORIGINAL = Cost(params=100_003, macs=50_000_000, size=1_000_000, latency=9.0)


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
    (found,) = parse_budget([text if metric == "params" else f"{metric}={text}"], ORIGINAL).limits
    assert (found.metric, found.limit) == (metric, limit)
    assert isinstance(found.limit, int)


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
        ("2.5", "params", "'2.5' is no number of params: write 2.5x for a ratio"),
        ("2.5x 3", "params", "'2.5x 3' is not understood"),
        ("0%", "params", "'0%' is out of range: the share must be above 0%"),
        ("120%", "params", "'120%' is out of range"),
        ("0", "params", "'0' leaves nothing: give a number of params above 0"),
        ("0.0001k", "params", "'0.0001k' leaves nothing"),
        ("100004", "params", "'100004' is no reduction: the model has 100,003 params"),
        ("51M", "macs", "'51M' is no reduction: the model has 50,000,000 macs"),
        ("2x", "flops", "limits 'flops': choose one of params, macs, size, latency"),
        ("2ms", "params", "'2ms' is not understood"),
        ("2kB", "macs", "'macs=2kB' is not understood"),
        ("10ms", "latency", "'10ms' is no reduction: the model has 9.000 ms"),
        ("2MB", "size", "'2MB' is no reduction: the model has 1,000,000 bytes"),
        ("0ms", "latency", "'0ms' leaves nothing"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(text: str, metric: str, message: str) -> None:
    with pytest.raises(BudgetError, match=re.escape(message)):
        parse_budget([text if metric == "params" else f"{metric}={text}"], ORIGINAL)


@settings(max_examples=200, deadline=None)
@given(whole=st.integers(1, 10**12), hundredths=st.integers(100, 10_000))
def test_a_ratio_is_never_overspent_and_wastes_less_than_one(whole: int, hundredths: int) -> None:
    limit = parse_budget([f"{hundredths / 100:.2f}x"], Cost(whole, 0)).limits[0].limit
    assert limit * hundredths <= whole * 100 < (limit + 1) * hundredths


def test_several_limits_are_read_from_one_text_or_from_many() -> None:
    both = (Limit("params", 50_001, "2x", 2.0), Limit("latency", 4.5, "latency=4.5ms"))
    assert parse_budget(["2x,latency=4.5ms"], ORIGINAL).limits == both
    assert parse_budget(["2x", " latency = 4.5 ms"], ORIGINAL).limits[1].limit == 4.5
    assert parse_budget(["params=2x", "latency=4500us"], ORIGINAL).limits[0].limit == 50_001
    assert parse_budget(["latency=50%"], ORIGINAL).limits == (Limit("latency", 4.5, "latency=50%", 2.0),)
    assert parse_budget(["size=900kB"], ORIGINAL).limits[0].limit == 900_000
    assert parse_budget(["size=500KiB"], ORIGINAL).limits[0].limit == 512_000
    assert budget_metrics(["2x,latency=4.5ms", "size=1MB"]) == ("params", "latency", "size")


def test_two_limits_of_one_metric_are_refused() -> None:
    with pytest.raises(BudgetError, match="is the second one for params"):
        parse_budget(["2x", "params=100k"], ORIGINAL)
