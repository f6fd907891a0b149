"""A budget as people write it: `2.5x`, `40%`, `100k`, `20M`, `120000`."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

from batude_onnx.errors import BudgetError
from batude_onnx.records import Budget, Cost

METRICS = ("params", "macs")
_NUMBER = re.compile(r"(?P<number>\d+(\.\d*)?|\.\d+)\s*(?P<unit>[xX%kKMGmg]?)")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def parse_budget(text: str, metric: str, original: Cost) -> Budget:
    """The most that the new file may hold, in units of `metric`.

    `2.5x` is the original divided by 2.5, `40%` that share of it, a number (with k, M, G) the limit itself. Raises
    BudgetError for anything else, and for a budget that would let the model grow.
    """
    if metric not in METRICS:
        raise BudgetError(f"unknown metric {metric!r}: choose one of {', '.join(METRICS)}")
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise BudgetError(f"budget {text!r} is not understood: write a ratio (2.5x), a share (40%) or a number (100k)")
    # Exact, so that 1.001k is 1001 and a ratio is never overspent by a rounding.
    number, unit = Fraction(Decimal(match["number"])), match["unit"].lower()
    whole = original.of(metric)
    if unit == "x":
        if number < 1:
            raise BudgetError(f"budget {text!r} is not a reduction: the ratio must be 1x or more, such as 2.5x")
        limit = int(whole / number)
    elif unit == "%":
        if not 0 < number <= 100:
            raise BudgetError(f"budget {text!r} is out of range: the share must be above 0% and at most 100%")
        limit = int(whole * number / 100)
    else:
        limit = int(number * _UNITS[unit])
        if limit <= 0:
            raise BudgetError(f"budget {text!r} leaves nothing: give a number of {metric} above 0")
        if limit > whole:
            raise BudgetError(f"budget {text!r} is no reduction: the model has {whole:,} {metric}")
    return Budget(metric, limit, text)
