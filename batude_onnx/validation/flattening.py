"""What a run gives as arrays alone: the parts of a sequence or a map each under a name of their own.

    y: [a, b]                                          ->   y[0]: a, y[1]: b
    y: [{"cat": 0.1, "dog": 0.9}, {"cat": 0.7, ...}]   ->   y['cat']: [0.1, 0.7], y['dog']: [0.9, ...]

What two models give can so be compared array by array.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt


def flattened(named: Iterable[tuple[str, Any]]) -> dict[str, npt.NDArray[Any]]:
    """All arrays of what onnxruntime gave, by name; an optional value that is not there has none."""
    return {name: array for whole, given in named for name, array in _parts(whole, given)}


def _parts(name: str, given: Any) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    if isinstance(given, Mapping):
        inner = [(f"{name}[{key!r}]", part) for key, part in given.items()]
    elif isinstance(given, list):
        inner = [(f"{name}[{number}]", part) for number, part in enumerate(given)]
        # A classifier of another kind than a network gives a map of all classes for each sample.
        if given and all(isinstance(part, Mapping) and part.keys() == given[0].keys() for part in given):
            inner = [(f"{name}[{key!r}]", np.array([part[key] for part in given])) for key in given[0]]
    else:
        if given is not None:
            yield name, np.asarray(given)
        return
    for part, held in inner:
        yield from _parts(part, held)
