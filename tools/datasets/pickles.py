"""Python pickles of arrays, read without letting them run anything.

A pickle may name any callable and have it called. Here three names exist, each a small function or type of our own choosing:
what the official CIFAR archives (written by Python 2) use to spell an array. All other names are refused.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

from batude_onnx.errors import DataError


def read_pickle(content: bytes, name: str) -> dict[bytes, Any]:
    """The dictionary pickled in `content`; text of Python 2 stays bytes. Raises DataError, naming `name`."""
    try:
        value = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    # What a damaged pickle raises is not fixed (see the module pickle); these are what its opcodes can do.
    except (
        pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, KeyError, TypeError, ValueError,
        OverflowError, MemoryError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())
        raise DataError(f"{name}: refused as a pickle of arrays ({reason}); it is damaged or unsafe, fetch it again") from error
    if not isinstance(value, dict):
        raise DataError(f"{name}: holds a {type(value).__name__}, not a dictionary; this is another data set")
    return value


def _empty_array(*_: object) -> np.ndarray:
    """Stands for numpy's `_reconstruct`: an array that the pickle's next opcode fills in."""
    return np.ndarray((0,), np.uint8)


def _number_type(code: bytes | str, *_: object) -> np.dtype[Any]:
    """Stands for `numpy.dtype`; the flags `align` and `copy`, integers in old pickles, mean nothing for plain numbers."""
    dtype = np.dtype(code.decode("ascii") if isinstance(code, bytes) else code)
    if dtype.kind not in "biuf":
        raise pickle.UnpicklingError(f"an array of type {dtype}")
    return dtype


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _number_type,
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None
