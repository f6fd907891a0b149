"""A file written aside and moved into place: the path holds the old file or the whole new one, never a part.

Everything is written under a temporary folder beside the target (the same file system, so a move is a rename), synced to
disk, then renamed. Files that the writer leaves beside the main one (external data) move first, so that a model never
appears before its weights; if a later move fails, they are put back. Only a power cut between two renames can separate
them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir

from batude_onnx.errors import OutputError
from batude_onnx.loading import fidelity
from batude_onnx.loading.model import external_files

# Protobuf ends at 2 GB; some room is left for what is not weights.
EXTERNAL_ABOVE_BYTES = 1_500_000_000


def data_path(path: Path) -> Path:
    """Where the weights of the model `path` lie if they are stored outside of it."""
    return path.with_name(path.name + ".data")


def check_writable(path: Path, *inputs: Path) -> None:
    """Raises OutputError if `path` cannot be written, or if writing it would replace one of the `inputs`.

    Meant to be called before hours of training, not after.
    """
    folder = path.parent
    try:
        path.exists()
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error}); choose another output") from error
    if not folder.is_dir():
        raise OutputError(f"{path}: the folder {folder} does not exist; create it or choose another output")
    if path.is_dir():
        raise OutputError(f"{path}: this is a folder; give the name of a file in it")
    # A rename onto a device such as /dev/null would replace the device.
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: this is not a regular file; choose another output")
    if path.exists() and not os.access(path, os.W_OK):
        raise OutputError(f"{path}: no permission to write here; choose another output")
    # What can be written is only known by writing: not every file system tells, nor how long a name may be.
    try:
        _aside(path).rmdir()
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error}); choose another output") from error
    for source in inputs:
        for written in (path, data_path(path)):
            if _same(written, source):
                raise OutputError(f"{path}: writing it would overwrite the input {source}; choose another output")


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Calls `write` with a temporary path of the same name, then moves what it wrote to `path`.

    Other files that `write` leaves beside its path move along. On any failure nothing of it stays and the old files are as
    they were; an OSError becomes an OutputError, every other exception passes.
    """
    try:
        aside = _aside(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
    try:
        write(aside / path.name)
        for file in aside.iterdir():
            _sync(file)
        _move_into_place(aside, path)
        _sync(path.parent)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error}); nothing was changed") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _aside(path: Path) -> Path:
    """A new folder beside `path`. Raises OSError."""
    return Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))


def write_text(path: Path, text: str) -> None:
    """`path` holds `text` afterwards, and a line's end, or what it held before. Raises OutputError."""
    write_atomically(path, lambda target: _put(target, text))


def _put(target: Path, text: str) -> None:
    target.write_text(text + "\n")


def file_bytes(model: onnx_ir.Model) -> int:
    """What `model` takes as a file, weights in other files included."""
    held = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    apart = sum(tensor.nbytes for tensor in held if isinstance(tensor, onnx_ir.ExternalTensor))
    proto = onnx_ir.to_proto(model)
    fidelity.restore(proto, model)
    return apart + int(proto.ByteSize())


def save_model(model: onnx_ir.Model, path: Path, prove: Callable[[Path], None] | None = None, *, apart: bool = False) -> None:
    """Writes `model` to `path` whole or not at all.

    `prove` is called with the finished file while it still lies aside; what it raises leaves `path` as it was. The weights go
    to `data_path(path)` where they are more than 1.5 GB, came from external data, or are to lie `apart`; otherwise the one file
    holds everything.
    Raises OutputError, also where that data file is the one that the weights are being read from.
    """
    sources = external_files(model)
    check_writable(path, *sources)
    weights = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    size = sum(weight.nbytes for weight in weights if weight is not None)
    external = data_path(path).name if apart or sources or size > EXTERNAL_ABOVE_BYTES else None

    def write(target: Path) -> None:
        if external is None:
            proto = onnx_ir.to_proto(model)
        else:
            onnx_ir.save(model, target, format="protobuf", external_data=external)
            proto = onnx.load(target, format="protobuf", load_external_data=False)
        fidelity.restore(proto, model)
        target.write_bytes(proto.SerializeToString())
        if prove is not None:
            prove(target)

    write_atomically(path, write)


def _move_into_place(aside: Path, path: Path) -> None:
    """Moves the files of `aside` beside `path`, `path` itself last; puts the others back if one move fails."""
    kept = aside / "replaced"
    written = [file for file in sorted(aside.iterdir()) if file.name != path.name]
    kept.mkdir()
    moved: list[Path] = []
    try:
        for file in written:
            target = path.with_name(file.name)
            if target.exists():
                target.replace(kept / file.name)
            moved.append(target)
            file.replace(target)
        (aside / path.name).replace(path)
    except BaseException:
        for target in moved:
            target.unlink(missing_ok=True)
        for old in kept.iterdir():
            old.replace(path.with_name(old.name))
        raise


def _sync(path: Path) -> None:
    """Forces `path` (a file or a folder) to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _same(one: Path, other: Path) -> bool:
    try:
        if one.exists() and other.exists():
            return one.samefile(other)
        return one.resolve() == other.resolve()
    except (OSError, RuntimeError):
        # A name that is too long, or a link to itself, is no file.
        return False
