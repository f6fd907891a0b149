"""Arrays read from an .npz or .npy file. Pickled objects are never loaded: they can run code."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batude_onnx.errors import DataError

# The names that keras gives to the parts of a data set, and what other tools call the training part.
KEYS = ("x_train", "y_train", "x_test", "y_test", "mean", "std")
ALIASES = {"x_train": ("x", "images"), "y_train": ("y", "labels")}

# What NumPy and zipfile raise for files that are cut, altered, or of another format.
_UNREADABLE = (ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, MemoryError, KeyError, SyntaxError)


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The known arrays of `path` by keras name (see `KEYS`); a single .npy array is 'x_train'.

    Raises DataError for a path that is no file, bytes that are neither .npz nor .npy, files cut short, pickled objects, and
    an .npz without training samples (the message lists the keys found).
    """
    return _read(path, partial(_known, path=path))


def read_named(path: Path) -> dict[str, npt.NDArray[Any]]:
    """All arrays of `path` by their own names; refused as by `read_arrays`."""
    return _read(path, lambda loaded: {name: loaded[name] for name in loaded.files})


def _read(path: Path, pick: Callable[[np.lib.npyio.NpzFile], dict[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
    """What `pick` takes of an .npz, or the one array of an .npy as 'x_train'."""
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise DataError(f"{path}: {what}; give an .npz with x_train and y_train, or an .npy")
    try:
        # Opened here, since numpy.load leaves a file that it cannot read open.
        with path.open("rb") as file:
            magic = file.read(6)
            if magic[:4] not in (b"PK\x03\x04", b"PK\x05\x06") and magic != b"\x93NUMPY":
                raise DataError(f"{path}: neither .npz nor .npy; write it with numpy.savez_compressed(x_train=..., y_train=...)")
            file.seek(0)
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {"x_train": loaded}
            with loaded:
                return pick(loaded)
    except _UNREADABLE as error:
        raise DataError(f"{path}: cannot be read as NumPy arrays ({_reason(error)}); write or download it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _known(loaded: np.lib.npyio.NpzFile, path: Path) -> dict[str, npt.NDArray[Any]]:
    arrays: dict[str, npt.NDArray[Any]] = {}
    for key in KEYS:
        name = next((name for name in (key, *ALIASES.get(key, ())) if name in loaded.files), None)
        if name is not None:
            arrays[key] = loaded[name]
    if "x_train" not in arrays:
        found = ", ".join(loaded.files) or "none"
        raise DataError(f"{path}: holds no x_train (nor x, images); keys found: {found}; name the training samples x_train")
    if "y_test" in arrays and "x_test" not in arrays:
        raise DataError(f"{path}: holds y_test but no x_test; add the samples or leave out the labels")
    return arrays


def _reason(error: BaseException) -> str:
    text = str(error)
    if "allow_pickle" in text or "Object arrays" in text:
        return "it holds pickled Python objects, which are refused because they can run code"
    return text.splitlines()[0][:200] if text else type(error).__name__
