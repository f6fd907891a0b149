"""Arrays as one `.npz` file, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from batude_onnx.loading.writing import write_atomically


def save_arrays(arrays: Mapping[str, Any], path: Path) -> None:
    """`path` holds the whole new file afterwards, or what it held before. Raises OutputError."""

    def save(target: Path) -> None:
        with target.open("wb") as file:
            np.savez(file, **arrays)

    write_atomically(path, save)
