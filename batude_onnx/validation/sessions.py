"""onnxruntime sessions: the provider that was asked for is the one that runs, and refusals are one line.

onnxruntime comes by extra, `[cpu]` or `[gpu]`, and is imported on first use. The GPU package lists CUDA on machines without
a GPU and then runs on the CPU without an error, so the provider is checked on the session that was made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir

from batude_onnx.errors import ModelError, RuntimeMissingError
from batude_onnx.validation.flattening import flattened
from batude_onnx.validation.pieces import Pieces, weight_bytes
from batude_onnx.validation.randomness import draws, make_steady

Arrays = Mapping[str, npt.NDArray[Any]]
Change = Callable[[onnx_ir.Model], onnx_ir.Model]

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# Where in onnxruntime's own code something was found: a file, a line and a signature.
SOURCE = re.compile(r"/\S+\.(?:h|cc):\d+ .*?\) ")
# onnxruntime's log severity for what ends the process only: an error comes as an exception, and would be printed twice.
FATAL_ONLY = 4
# Models with more weights than this are run in pieces: whole, onnxruntime takes that and often twice that.
WHOLE_BYTES = 1_000_000_000
# A protobuf message ends at 2 GB; some room is left for what is not weights.
LARGEST_MESSAGE = 1_900_000_000
SMALL_BYTES = 10_000
# Where the external data of a model given as bytes lies; weights read as they are stored, not packed for the kernels.
FOLDER, UNPACKED = "session.model_external_initializers_file_folder_path", "session.disable_prepacking"
# The threads of a session wait for its next run in a busy loop, and so hold cores while another session runs: two that took turns
# on two cores took up to twice as long as each alone. During a run they may; at its end they stop.
AT_REST = {"session.force_spinning_stop": "1"}


class Session:
    """One model loaded in onnxruntime.

    `provider` is 'cpu' or 'cuda', `threads` the number inside one operator (None: onnxruntime's choice). `input_shapes` has
    an int for each fixed size, and a str or None for the others. `whole`: all of it is in memory. `timed`: times mean something,
    which they do not of a model in pieces, or of one that has constants in the place of what it draws.
    """

    def __init__(self, native: Any, provider: str, threads: int | None, *, whole: bool = True) -> None:
        self.whole = self.timed = whole
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
        """Outputs by name, those that are no arrays in parts (see `flattening`). A float feed of a float16 input is cast to it.

        Raises ModelError if onnxruntime cannot run it.
        """
        return flattened(self.run_as_given(feeds).items())

    def run_as_given(self, feeds: Arrays) -> dict[str, Any]:
        """The same with sequences and maps as they are, as another session may be fed with them."""
        ready = {name: array.astype(np.float16) if name in self._half_inputs else array for name, array in feeds.items()}
        if not self.whole:
            # What fails in a piece says so itself.
            return dict(zip(self.output_names, self._native.run(None, ready), strict=True))
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
    return _open(model, provider, threads, {}, extras=extras)


def _open(
    model: bytes | Path,
    provider: str,
    threads: int | None,
    entries: Mapping[str, str],
    *,
    mapped: bool = False,
    extras: Mapping[str, object] | None = None,
) -> Session:
    """`entries`: of onnxruntime's configuration; `mapped`: external weights are read where they lie, and nothing is packed."""
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
    if mapped:
        options.enable_cpu_mem_arena = False
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        entries = {**entries, UNPACKED: "1"}
    for name, value in {**AT_REST, **entries}.items():
        options.add_session_config_entry(name, value)
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
    model: onnx_ir.Model,
    provider: str = "cpu",
    threads: int | None = None,
    change: Change | None = None,
    extras: Mapping[str, object] | None = None,
) -> Session:
    """A session of a model in memory, refused as by `open_session`; in pieces where it has more than `WHOLE_BYTES` of weights.

    Nodes that draw numbers give the same ones each time. `change` is given the graph, or each of its pieces when its turn comes,
    and gives what is run in its place. `extras`: further fields of onnxruntime's SessionOptions, for a graph that is run whole.
    """
    changed = change or (lambda piece: piece)
    if not in_pieces(model):
        whole = _open_whole(changed(model), provider, threads, extras=extras)
        whole.timed = not any(draws(model))
        return whole

    def run(piece: onnx_ir.Model, feeds: Arrays) -> dict[str, Any]:
        return _open_whole(changed(piece), provider, threads, mapped=True).run_as_given(feeds)

    return Session(Pieces(model, run), provider, threads, whole=False)


def open_file(path: Path, model: onnx_ir.Model, provider: str = "cpu", threads: int | None = None) -> Session:
    """A session of the file in `path`, from which `model` was read: by `open_session`, or by `open_graph` where it is large, or
    draws numbers."""
    if not in_pieces(model):
        return open_graph(model, provider, threads) if any(draws(model)) else open_session(path, provider, threads)
    # It is opened as it lies there all the same: of external weights onnxruntime then reads nothing.
    _open(path, "cpu", threads, {}, mapped=True)
    return open_graph(model, provider, threads)


def in_pieces(model: onnx_ir.Model) -> bool:
    """Whether a model is too large to be run whole where memory is kept low."""
    return weight_bytes(model) > WHOLE_BYTES


def _open_whole(
    model: onnx_ir.Model, provider: str, threads: int | None, *, mapped: bool = False, extras: Mapping[str, object] | None = None
) -> Session:
    held = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    folders = {str(tensor.base_dir) for tensor in held if isinstance(tensor, onnx_ir.ExternalTensor)}
    apart = sum(tensor.nbytes for tensor in held if isinstance(tensor, onnx_ir.ExternalTensor))
    if len(folders) <= 1 and weight_bytes(model) - apart < LARGEST_MESSAGE:
        entries = {FOLDER: folders.pop()} if folders else {}
        return _open(
            onnx_ir.to_proto(_held(model)).SerializeToString(),
            provider,
            threads,
            entries,
            mapped=mapped,
            extras=extras,
        )
    # Weights that lie in several folders, or more of them than a message can hold.
    with TemporaryDirectory(prefix="batude-onnx-") as folder:
        path = Path(folder) / "model.onnx"
        onnx_ir.save(_held(model), path, external_data="weights")
        return _open(path, provider, threads, {}, mapped=mapped, extras=extras)


def _held(model: onnx_ir.Model) -> onnx_ir.Model:
    """A copy of `model` that draws no numbers, with small external tensors in memory: of those, shape inference must see the
    values."""
    held = model.clone()
    make_steady(held)
    for graph in held.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, onnx_ir.ExternalTensor) and tensor.nbytes < SMALL_BYTES:
                value.const_value = onnx_ir.Tensor(tensor.numpy().copy(), tensor.dtype, name=tensor.name)
                tensor.release()
    return held


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
    parts: dict[str, list[npt.NDArray[Any]]] = {}
    for start in range(0, samples, size):
        count = min(size, samples - start)
        filled = size if fixed else count
        chunk = {name: _rows(array, start, count, filled) if name in lengths else array for name, array in feeds.items()}
        for name, output in session.run(chunk).items():
            parts.setdefault(name, []).append(_cut(name, output, count, filled))
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
