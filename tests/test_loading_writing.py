"""A path holds the old file or the whole new one, whatever goes wrong on the way."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest

from batude_onnx.errors import OutputError
from batude_onnx.loading import writing
from batude_onnx.loading.model import external_files, load_model
from batude_onnx.loading.writing import check_writable, data_path, save_model, write_atomically
from tests.loading_models import conv_bn, weights


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_file_appears_whole_and_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"

    def write(target: Path) -> None:
        assert not path.exists()
        assert target.name == path.name, "writers may derive other names or a format from it"
        target.write_bytes(b"new")

    write_atomically(path, write)
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["out.bin"]


def test_the_file_gets_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").write_bytes(b"")
    write_atomically(tmp_path / "out", lambda target: target.touch())
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("a bug"), KeyboardInterrupt()])
def test_a_failed_write_changes_nothing(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")

    def write(target: Path) -> None:
        target.write_bytes(b"half")
        target.with_name("out.bin.data").write_bytes(b"side")
        raise error

    expected = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught:
        write_atomically(path, write)
    if expected is OutputError:
        assert "No space left" in str(caught.value)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["out.bin"]


def test_side_files_come_along(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    (tmp_path / "out.bin.data").write_bytes(b"old side")

    def write(target: Path) -> None:
        target.write_bytes(b"new")
        target.with_name("out.bin.data").write_bytes(b"new side")

    write_atomically(path, write)
    assert names(tmp_path) == ["out.bin", "out.bin.data"]
    assert (tmp_path / "out.bin.data").read_bytes() == b"new side"


def test_side_files_are_put_back_if_the_last_move_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    (tmp_path / "out.bin.data").write_bytes(b"old side")
    replace = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if self.name == "out.bin":
            raise OSError(5, "Input/output error")
        return replace(self, target)

    def write(target: Path) -> None:
        target.write_bytes(b"new")
        target.with_name("out.bin.data").write_bytes(b"new side")
        target.with_name("another").write_bytes(b"new side")

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OutputError, match="Input/output error"):
        write_atomically(path, write)
    assert path.read_bytes() == b"old"
    assert (tmp_path / "out.bin.data").read_bytes() == b"old side"
    assert names(tmp_path) == ["out.bin", "out.bin.data"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "none" / "out.onnx"
    with pytest.raises(OutputError, match=r"the folder .*none does not exist"):
        check_writable(path)
    with pytest.raises(OutputError, match="cannot be written"):
        write_atomically(path, lambda target: None)


def test_paths_that_are_no_place_for_a_file(tmp_path: Path) -> None:
    check_writable(tmp_path / "out.onnx")
    with pytest.raises(OutputError, match="this is a folder"):
        check_writable(tmp_path)
    with pytest.raises(OutputError, match="not a regular file"):
        check_writable(Path("/dev/null"))


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Asked through os.access, as tests that run as root may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    (tmp_path / "out.onnx").touch()
    with pytest.raises(OutputError, match="no permission"):
        check_writable(tmp_path / "out.onnx")


def test_a_place_where_nothing_can_be_made(tmp_path: Path) -> None:
    # What each of the two is called depends on the system; that nothing can be written there does not.
    with pytest.raises(OutputError, match="cannot be written"):
        check_writable(tmp_path / f"{'n' * 250}.onnx")
    if Path("/proc/self").is_dir():
        with pytest.raises(OutputError, match="cannot be written"):
            check_writable(Path("/proc/self/out.onnx"))
    assert not list(tmp_path.iterdir())


def test_an_input_that_cannot_be_there_is_not_the_output(tmp_path: Path) -> None:
    loop = tmp_path / "loop.onnx"
    loop.symlink_to(loop)
    check_writable(tmp_path / "out.onnx", loop, tmp_path / f"{'n' * 300}.onnx")


def test_the_input_is_never_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "in.onnx"
    source.write_bytes(b"x")
    (tmp_path / "link.onnx").symlink_to(source)
    monkeypatch.chdir(tmp_path)
    for path in (source, Path("in.onnx"), Path("../") / tmp_path.name / "in.onnx", tmp_path / "link.onnx"):
        with pytest.raises(OutputError, match="overwrite the input"):
            check_writable(path, source)
    check_writable(tmp_path / "out.onnx", source)


def test_an_inputs_data_file_is_safe_too(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="overwrite the input"):
        check_writable(tmp_path / "out.onnx", tmp_path / "out.onnx.data")


def saved(folder: Path, *, external: str | None) -> Path:
    path = folder / "in.onnx"
    onnx.save(conv_bn(), path, save_as_external_data=external is not None, location=external, size_threshold=0)
    return path


def check_weights(path: Path) -> None:
    model = load_model(path)
    for name, value in weights().items():
        tensor = model.graph.initializers[name].const_value
        assert tensor is not None
        np.testing.assert_array_equal(tensor.numpy(), value)


def test_a_small_model_is_one_file(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    save_model(load_model(saved(tmp_path, external=None)), out)
    assert names(tmp_path) == ["in.onnx", "out.onnx"]
    check_weights(out)


def test_external_weights_stay_external_under_the_new_name(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    model = load_model(saved(tmp_path, external="in.bin"))
    save_model(model, out)
    assert names(tmp_path) == ["in.bin", "in.onnx", "out.onnx", "out.onnx.data"]
    (tmp_path / "in.bin").unlink()
    assert external_files(load_model(out)) == (data_path(out),)
    check_weights(out)


def test_a_large_model_goes_external(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "EXTERNAL_ABOVE_BYTES", 800)
    save_model(onnx_ir.from_proto(conv_bn()), tmp_path / "out.onnx")
    assert names(tmp_path) == ["out.onnx", "out.onnx.data"]
    check_weights(tmp_path / "out.onnx")


def test_weights_are_not_overwritten_while_they_are_read(tmp_path: Path) -> None:
    model = load_model(saved(tmp_path, external="out.onnx.data"))
    before = (tmp_path / "out.onnx.data").read_bytes()
    with pytest.raises(OutputError, match="overwrite the input"):
        save_model(model, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").read_bytes() == before
    assert not (tmp_path / "out.onnx").exists()
