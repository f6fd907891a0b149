"""Fashion-MNIST (Xiao, Rasul & Vollgraf, 2017) from its four idx files: loose in a folder, or in a Debian package."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from batude_onnx.errors import DataError
from tools.datasets.archives import deb_members
from tools.datasets.spec import Splits

FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def fashion_mnist(source: Path) -> Splits:
    """The data set from `source`: a folder with the four files, or the .deb of `dataset-fashion-mnist`."""
    members = _folder_members(source) if source.is_dir() else deb_members(source, FILES)
    missing = [name for name in FILES if name not in members]
    if missing:
        raise DataError(f"{source}: holds no {', '.join(missing)}; give the folder or Debian package with the four idx files")
    x_train, y_train, x_test, y_test = (_idx(members[name], f"{source}: {name}") for name in FILES)
    return Splits(x_train[..., None], y_train.astype(np.int64), x_test[..., None], y_test.astype(np.int64))


def _folder_members(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}


def _idx(content: bytes, name: str) -> npt.NDArray[np.uint8]:
    """An array of bytes in idx format: 0, 0, type 8, number of axes, each extent as big-endian uint32, the values."""
    try:
        raw = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}: not a whole gzip file ({error}); the copy is damaged, fetch it again") from error
    axes = raw[3] if len(raw) > 3 else 0
    wanted_axes = 3 if "idx3" in name else 1
    if raw[:3] != b"\0\0\x08" or axes != wanted_axes or len(raw) < 4 + 4 * axes:
        raise DataError(f"{name}: not an idx file of bytes with {wanted_axes} axes; this is another data set")
    shape = struct.unpack_from(f">{axes}I", raw, 4)
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * axes)
    if values.size != np.prod(shape, dtype=np.int64):
        raise DataError(f"{name}: {values.size} values for the shape {shape}; the copy is damaged, fetch it again")
    return values.reshape(shape)
