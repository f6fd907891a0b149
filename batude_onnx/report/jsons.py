"""Records as JSON that every reader takes: JSON has no NaN and no infinity, so these become null."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from math import isfinite


def to_json(record: object) -> str:
    """A dataclass (or mappings and sequences of plain values) as indented JSON."""
    return json.dumps(_plain(record), indent=2, allow_nan=False)


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not isfinite(value):
        return None
    return value
