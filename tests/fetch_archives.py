"""Small archives in the layouts in which CIFAR and Fashion-MNIST are really published, made from random images."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import pickle
import struct
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from tools.datasets.cifar import BATCHES, in_digest_order
from tools.datasets.fashion_mnist import FILES
from tools.datasets.spec import Images, Labels, Spec, Splits, checksum


def random_splits(classes: int, train: int, test: int, shape: tuple[int, int, int] = (32, 32, 3), seed: int = 0) -> Splits:
    """`train` and `test` images of every class, shuffled."""
    rng = np.random.default_rng(seed)
    parts: list[Any] = []
    for count in (train, test):
        labels = rng.permutation(np.repeat(np.arange(classes), count))
        parts += [rng.integers(0, 256, (len(labels), *shape), np.uint8), labels]
    return Splits(*parts)


def spec_of(splits: Splits, name: str = "cifar10") -> Spec:
    """What the tool would pin for `splits`."""
    classes = int(splits.y_train.max()) + 1
    height, width, channels = splits.x_train.shape[1:]
    train, test = len(splits.y_train) // classes, len(splits.y_test) // classes
    return Spec(
        name, (height, width, channels), classes, train, test, checksum(splits), (0.5,) * channels, (0.25,) * channels
    )  # fmt: skip


def digest_ordered(splits: Splits) -> Splits:
    return Splits(*in_digest_order(splits.x_train, splits.y_train), *in_digest_order(splits.x_test, splits.y_test))


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def batches(splits: Splits) -> dict[str, tuple[Images, Labels]]:
    """The training split in five equal parts, and the test split, by the names of the official files."""
    parts = zip(BATCHES, np.split(splits.x_train, 5), np.split(splits.y_train, 5), strict=True)
    return {name: (x, y) for name, x, y in parts} | {"test_batch": (splits.x_test, splits.y_test)}


class _Python2(pickle._Pickler):
    """Spells pickles as Python 2 did: text as byte strings, flags as integers, numpy's old module name."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)  # type: ignore[attr-defined]
        self.memoize(value)  # type: ignore[attr-defined]

    def save_bool(self, value: bool) -> None:
        self.write(pickle.BININT1 + bytes([value]))  # type: ignore[attr-defined]

    dispatch[bytes] = save_bytes
    dispatch[bool] = save_bool


def python2_pickle(value: object) -> bytes:
    stream = io.BytesIO()
    _Python2(stream, protocol=2).dump(value)
    return stream.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def planes(images: Images) -> Images:
    """(N, H, W, C) -> (N, C*H*W), the rows of the official archives."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


def official_cifar10(path: Path, splits: Splits) -> Path:
    files = {
        f"cifar-10-batches-py/{name}": python2_pickle({b"data": planes(x), b"labels": y.tolist(), b"filenames": [b"a.png"]})
        for name, (x, y) in batches(splits).items()
    }
    return write_tar(path, {"cifar-10-batches-py/readme.html": b"<html>", **files})


def npm_cifar10(path: Path, splits: Splits) -> Path:
    files = {f"package/{name}.png": png(x.reshape(len(x), 1024, 3)) for name, (x, _) in batches(splits).items()}
    labels = {"train_lables.json": splits.y_train, "test_lables.json": splits.y_test}
    return write_tar(path, files | {f"package/{name}": json.dumps(y.tolist()).encode() for name, y in labels.items()})


def official_cifar100(path: Path, splits: Splits) -> Path:
    parts = {"train": (splits.x_train, splits.y_train), "test": (splits.x_test, splits.y_test)}
    files = {
        f"cifar-100-python/{name}": python2_pickle(
            {b"data": planes(x), b"fine_labels": y.tolist(), b"coarse_labels": [0] * len(y)}
        )
        for name, (x, y) in parts.items()
    }
    return write_tar(path, files)


def class_folders(root: Path, splits: Splits) -> Path:
    for part, images, labels in (("train", splits.x_train, splits.y_train), ("test", splits.x_test, splits.y_test)):
        for k, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            file = root / part / f"class_{'abcdefgh'[label]}" / f"{k:03d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(image))
    return root


def fashion_folder(root: Path, splits: Splits) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, content in fashion_files(splits).items():
        (root / name).write_bytes(content)
    return root


def fashion_deb(path: Path, splits: Splits) -> Path:
    """An `ar` archive of debian-binary, control.tar.xz and data.tar.xz, as deb(5) says."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in fashion_files(splits).items():
            member = tarfile.TarInfo(f"./usr/share/datasets/fashion-mnist/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    # The odd length of the second member tests the padding.
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": lzma.compress(stream.getvalue())}
    packed = b"!<arch>\n"
    for name, content in members.items():
        packed += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode() + content + b"\n" * (len(content) % 2)
        )
    path.write_bytes(packed)
    return path


def fashion_files(splits: Splits) -> dict[str, bytes]:
    arrays: list[Any] = [splits.x_train[..., 0], splits.y_train, splits.x_test[..., 0], splits.y_test]
    return {name: gzip.compress(idx(array.astype(np.uint8))) for name, array in zip(FILES, arrays, strict=True)}


def idx(array: Images) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def png(pixels: Images) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def altered(splits: Splits) -> Splits:
    """One bit of one pixel differs."""
    pixels = splits.x_train.copy()
    pixels[3, 5, 7, 0] ^= 1
    return replace(splits, x_train=pixels)
