"""A budget as people write it: `2.5x`, `40%`, `100k`, `macs=3x`, `size=900kB`, `latency=4.5ms`, several with commas between."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction

from batude_onnx.errors import BudgetError
from batude_onnx.records import Budget, Cost, Limit

# For each metric: what a plain number counts, its units, and how one is written.
_THOUSANDS: dict[str, int | Fraction] = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_BYTES: dict[str, int | Fraction] = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
METRICS: dict[str, tuple[dict[str, int | Fraction], str]] = {
    "params": (_THOUSANDS, "params=100k"),
    "macs": (_THOUSANDS, "macs=20M"),
    "size": (_BYTES, "size=900kB"),
    "latency": ({"ms": 1, "s": 1000, "us": Fraction(1, 1000)}, "latency=4.5ms"),
}
_NUMBER = re.compile(r"(?P<number>\d+(\.\d*)?|\.\d+)\s*(?P<unit>%|[a-zA-Z]*)")


def budget_metrics(texts: Iterable[str]) -> tuple[str, ...]:
    """The metrics that a budget limits, before any model is looked at. Raises BudgetError for one that there is not, and for a
    text that says no amount."""
    parts = _parts(texts)
    for metric, text in parts:
        _amount(metric, text)
    return tuple(metric for metric, _ in parts)


def parse_budget(texts: Iterable[str], original: Cost) -> Budget:
    """The limits, in units of their metrics; a text without a metric counts parameters.

    `2.5x` is the original divided by 2.5, `40%` that share of it, a number the limit itself. Raises BudgetError for anything
    else, for a budget that would let the model grow, and for two limits of one metric.
    """
    return Budget(tuple(_limit(metric, text, original) for metric, text in _parts(texts)))


def _parts(texts: Iterable[str]) -> list[tuple[str, str]]:
    parts: dict[str, str] = {}
    for text in (part for given in texts for part in given.split(",")):
        metric, equals, value = text.rpartition("=")
        metric = metric.strip().lower() if equals else "params"
        if metric not in METRICS:
            raise BudgetError(f"budget {text.strip()!r} limits {metric!r}: choose one of {', '.join(METRICS)}")
        if metric in parts:
            raise BudgetError(
                f"budget {text.strip()!r} is the second one for {metric}: give one for each; commas stand between them"
            )
        parts[metric] = value
    return list(parts.items())


def _shown(metric: str, text: str) -> str:
    """A limit as it was asked for."""
    return text if metric == "params" else f"{metric}={text.strip()}"


def _amount(metric: str, text: str) -> tuple[Fraction, str]:
    """The number that a text says, and its unit: `x`, `%`, or one of the metric's."""
    units, example = METRICS[metric]
    match = _NUMBER.fullmatch(text.strip())
    unit = "" if match is None else match["unit"].lower()
    if match is None or unit not in ("x", "%", *units):
        raise BudgetError(
            f"budget {_shown(metric, text)!r} is not understood: write a ratio (2.5x), a share (40%) or an amount ({example})"
        )
    # Exact, so that 1.001k is 1001 and a ratio is never overspent by a rounding.
    number = Fraction(Decimal(match["number"]))
    if not unit and number.denominator > 1:
        raise BudgetError(f"budget {text!r} is no number of {metric}: write {text.strip()}x for a ratio")
    return number, unit


def _limit(metric: str, text: str, original: Cost) -> Limit:
    units, _ = METRICS[metric]
    number, unit = _amount(metric, text)
    whole = original.of(metric)
    shown = _shown(metric, text)
    if unit == "x":
        if number < 1:
            raise BudgetError(f"budget {text!r} is not a reduction: the ratio must be 1x or more, such as 2.5x")
        limit, ratio = Fraction(whole) / number, number
    elif unit == "%":
        if not 0 < number <= 100:
            raise BudgetError(f"budget {text!r} is out of range: the share must be above 0% and at most 100%")
        limit, ratio = Fraction(whole) * number / 100, 100 / number
    else:
        limit, ratio = number * units[unit], None
        if limit <= 0 or (metric != "latency" and limit < 1):
            raise BudgetError(f"budget {text!r} leaves nothing: give a number of {metric} above 0")
        if limit > whole:
            had = f"{whole:.3f} ms" if metric == "latency" else f"{whole:,} {'bytes' if metric == 'size' else metric}"
            raise BudgetError(f"budget {text!r} is no reduction: the model has {had}")
    return Limit(metric, float(limit) if metric == "latency" else int(limit), shown, None if ratio is None else float(ratio))
