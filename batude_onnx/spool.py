"""What a run makes of a large model, kept on disk until it is written: factors, each read when it is asked for."""

from __future__ import annotations

import ctypes
from collections import UserDict
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import numpy as np
import onnx_ir as ir

from batude_onnx.errors import OutputError
from batude_onnx.records import FactorChain, FloatArray, LayerSpec

FILE = "weights"


# glibc's parameter of that name (malloc.h), and a size that every weight worth speaking of is above.
MMAP_THRESHOLD, LARGE_BLOCK = -3, 2**19


def return_memory() -> None:
    """From now on have every large block of memory go back to the system when it is freed.

    glibc otherwise keeps freed blocks for later ones, into which small arrays that stay are then put: the next weight finds no
    room there, and layer by layer the process grows by as much as if it held them all. Elsewhere nothing is changed.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, LARGE_BLOCK)


class Spool:
    """A folder of its own in `folder`, gone at the end of the `with` block; errors name `target`."""

    def __init__(self, folder: Path, target: Path | None = None) -> None:
        try:
            self._folder = TemporaryDirectory(prefix=".batude-onnx.", dir=folder)
        except OSError as error:
            raise OutputError(f"{target or folder}: cannot be written ({error.strerror or error})") from error
        self._end = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._folder.cleanup()

    def keep(self, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        """The same tensor, on disk. Raises OutputError where there is no room for it."""
        content, offset = tensor.tobytes(), self._end
        try:
            with (Path(self._folder.name) / FILE).open("ab") as file:
                file.write(content)
        except OSError as error:
            raise OutputError(f"{self._folder.name}: factors cannot be written ({error.strerror or error})") from error
        self._end += len(content)
        return ir.ExternalTensor(
            FILE, offset, len(content), tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=str(tensor.name),
            doc_string=tensor.doc_string, metadata_props=dict(tensor.metadata_props), base_dir=self._folder.name,
        )  # fmt: skip


class Chains(UserDict[str, FactorChain]):
    """Chains by layer, whose arrays are in memory only while a chain that was asked for is."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        super().__init__()

    def __setitem__(self, key: str, chain: FactorChain) -> None:
        super().__setitem__(key, _mapped(chain, lambda array: self._spool.keep(ir.Tensor(np.ascontiguousarray(array), name=key))))

    def __getitem__(self, key: str) -> FactorChain:
        return _mapped(super().__getitem__(key), _read)


def _mapped(chain: FactorChain, change: Any) -> FactorChain:
    """`chain` with each of its arrays changed."""

    def layer(spec: LayerSpec) -> LayerSpec:
        return replace(spec, weight=change(spec.weight), bias=None if spec.bias is None else change(spec.bias))

    return replace(chain, layers=tuple(map(layer, chain.layers)))


def _read(tensor: ir.ExternalTensor) -> FloatArray:
    array: FloatArray = tensor.numpy().copy()
    tensor.release()
    return array
