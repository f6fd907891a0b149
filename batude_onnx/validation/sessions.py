"""onnxruntime sessions: the provider that was asked for is the one that runs, and refusals are one line.

onnxruntime comes by extra, `[cpu]` or `[gpu]`, and is imported on first use. The GPU package lists CUDA on machines without
a GPU and then runs on the CPU without an error, so the provider is checked on the session that was made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir

from batude_onnx.errors import ModelError, RuntimeMissingError

Arrays = Mapping[str, npt.NDArray[Any]]

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# Where in onnxruntime's own code something was found: a file, a line and a signature.
SOURCE = re.compile(r"/\S+\.(?:h|cc):\d+ .*?\) ")
# onnxruntime's log severity for what ends the process only: an error comes as an exception, and would be printed twice.
FATAL_ONLY = 4


class Session:
    """One model loaded in onnxruntime.

    `provider` is 'cpu' or 'cuda', `threads` the number inside one operator (None: onnxruntime's choice). `input_shapes` has
    an int for each fixed size, and a str or None for the others.
    """

    def __init__(self, native: Any, provider: str, threads: int | None) -> None:
        self._native = native
        self.provider = provider
        self.threads = threads
        self.input_names = tuple(str(value.name) for value in native.get_inputs())
        self.output_names = tuple(str(value.name) for value in native.get_outputs())
        self.input_shapes: dict[str, tuple[int | str | None, ...]] = {
            value.name: tuple(_size(size) for size in value.shape) for value in native.get_inputs()
        }
        self._half_inputs = {value.name for value in native.get_inputs() if value.type == "tensor(float16)"}

    def run(self, feeds: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Outputs by name. A float feed of a float16 input is cast to it. Raises ModelError if onnxruntime cannot run it."""
        ready = {name: array.astype(np.float16) if name in self._half_inputs else array for name, array in feeds.items()}
        try:
            outputs = self._native.run(None, ready)
        except native_errors() as error:
            raise ModelError(f"onnxruntime cannot run the model: {one_line(error)}; check the shapes and types fed") from error
        return dict(zip(self.output_names, outputs, strict=True))

    def end_profiling(self) -> Path:
        """The file that onnxruntime's profiler has written; for a session opened with it."""
        return Path(self._native.end_profiling())


def _size(size: int | str | None) -> int | str | None:
    return None if isinstance(size, int) and size <= 0 else size  # some exporters write -1 for an open size


def open_session(
    model: bytes | Path, provider: str = "cpu", threads: int | None = None, extras: Mapping[str, object] | None = None
) -> Session:
    """A session of `model`, its bytes or its path (needed where weights lie in external data).

    `extras`: further fields of onnxruntime's SessionOptions.

    Raises RuntimeMissingError for a missing onnxruntime, an unknown provider, or a provider that is not really there;
    ModelError for a model that onnxruntime rejects.
    """
    if provider not in PROVIDERS:
        raise RuntimeMissingError(f"unknown provider {provider!r}; choose one of {', '.join(PROVIDERS)}")
    runtime = _onnxruntime(provider)
    wanted = PROVIDERS[provider]
    if wanted not in runtime.get_available_providers():
        raise _not_there(provider)
    options = runtime.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    for name, value in (extras or {}).items():
        setattr(options, name, value)
    source = model if isinstance(model, bytes) else str(model)
    chain = [wanted] if wanted == PROVIDERS["cpu"] else [wanted, PROVIDERS["cpu"]]
    try:
        native = runtime.InferenceSession(source, sess_options=options, providers=chain)
    except native_errors() as error:
        name = "the model" if isinstance(model, bytes) else str(model)
        raise ModelError(f"onnxruntime {runtime.__version__} rejects {name}: {one_line(error)}") from error
    if native.get_providers()[0] != wanted:
        raise _not_there(provider)
    return Session(native, provider, threads)


def open_graph(
    model: onnx_ir.Model, provider: str = "cpu", threads: int | None = None, extras: Mapping[str, object] | None = None
) -> Session:
    """A session of a model in memory, refused as by `open_session`."""
    held = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    if not any(isinstance(tensor, onnx_ir.ExternalTensor) for tensor in held):
        return open_session(onnx_ir.to_proto(model).SerializeToString(), provider, threads, extras)
    # External weights cannot be found from bytes, and may be more than a message can hold.
    with TemporaryDirectory(prefix="batude-onnx-") as folder:
        path = Path(folder) / "model.onnx"
        onnx_ir.save(model.clone(), path, external_data="weights")
        return open_session(path, provider, threads, extras)


def run_batched(session: Session, feeds: Arrays, batch: int) -> dict[str, npt.NDArray[Any]]:
    """Outputs over all samples, run `batch` at a time and joined along axis 0.

    Feeds without axes (a sampling rate, say) go into every batch as they are; all others must hold the same number of
    samples. A model with a fixed batch size is run in chunks of that size; the last one is filled up with copies of its
    last sample, whose outputs are cut off again. Raises ModelError where lengths differ, or where a filled-up chunk gives
    an output without one row (or a fixed number of rows) per sample.
    """
    lengths = {name: len(array) for name, array in feeds.items() if array.ndim > 0}
    if len(set(lengths.values())) != 1 or min(lengths.values()) == 0:
        raise ModelError(f"inputs hold {lengths} samples; all must hold the same number, at least 1")
    samples = next(iter(lengths.values()))
    fixed = {shape[0] for name, shape in session.input_shapes.items() if name in lengths and shape and isinstance(shape[0], int)}
    if len(fixed) > 1:
        raise ModelError(f"the inputs have different fixed batch sizes ({sorted(map(str, fixed))}); give one sample at a time")
    size = int(str(next(iter(fixed)))) if fixed else batch
    parts: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in session.output_names}
    for start in range(0, samples, size):
        count = min(size, samples - start)
        filled = size if fixed else count
        chunk = {name: _rows(array, start, count, filled) if name in lengths else array for name, array in feeds.items()}
        for name, output in session.run(chunk).items():
            parts[name].append(_cut(name, output, count, filled))
    return {name: np.concatenate(outputs, axis=0) for name, outputs in parts.items()}


def _rows(array: npt.NDArray[Any], start: int, count: int, filled: int) -> npt.NDArray[Any]:
    rows = array[start : start + count]
    return rows if count == filled else np.concatenate([rows, np.repeat(rows[-1:], filled - count, axis=0)])


def _cut(name: str, output: npt.NDArray[Any], count: int, filled: int) -> npt.NDArray[Any]:
    output = np.atleast_1d(output)
    if count == filled:
        return output
    if len(output) % filled:
        raise ModelError(
            f"output {name!r} has shape {output.shape} for {filled} samples, so no part of it belongs to {count} of them; "
            f"give a multiple of {filled} samples"
        )
    return output[: len(output) // filled * count]


def runtime_version() -> str:
    """The version of onnxruntime, for reports."""
    return str(_onnxruntime("cpu").__version__)


def _onnxruntime(provider: str) -> Any:
    extra = "gpu" if provider == "cuda" else "cpu"
    advice = f"pip install 'batude-onnx[{extra}]'"
    try:
        runtime = import_module("onnxruntime")
    except ImportError as error:
        other = "cpu" if extra == "gpu" else "gpu"
        raise RuntimeMissingError(f"onnxruntime is not installed; {advice} (or [{other}], never both)") from error
    # Of onnxruntime and onnxruntime-gpu installed together, removing one leaves an empty package behind.
    if not hasattr(runtime, "InferenceSession"):
        raise RuntimeMissingError(
            f"onnxruntime is broken; pip uninstall onnxruntime onnxruntime-gpu, remove what is left of it, then {advice}"
        )
    return runtime


def _not_there(provider: str) -> RuntimeMissingError:
    if provider == "cuda":
        return RuntimeMissingError(
            "onnxruntime has no working CUDA here; pip install 'batude-onnx[gpu]' with a GPU and its driver, or use provider cpu"
        )
    return RuntimeMissingError(f"onnxruntime has no {provider} provider; pip install 'batude-onnx[cpu]'")


def native_errors() -> tuple[type[Exception], ...]:
    """What onnxruntime raises: its own exceptions share no base class, and missing inputs are a ValueError."""
    state = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    own = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*own, ValueError, RuntimeError)


def one_line(error: Exception) -> str:
    """What a library said, on one line of at most 300 characters: of nodes that hold others the innermost, and no C++."""
    innermost = " ".join(str(error).split()).rpartition("status code returned while running ")[2]
    return SOURCE.sub("", innermost)[:300]
