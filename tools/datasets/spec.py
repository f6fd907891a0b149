"""What a data set must be: shapes, counts per class and one SHA-256 over everything, whatever container it came in."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from batude_onnx.errors import DataError

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

# Images are divided by 255 first. ImageNet's constants, as is usual for published CIFAR networks and as ours are trained.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Splits:
    """Images (N, H, W, C) uint8 and labels (N,) int64, for training and for testing."""

    x_train: Images
    y_train: Labels
    x_test: Images
    y_test: Labels

    def arrays(self) -> dict[str, Images | Labels]:
        """The four arrays by the names that they have in the file."""
        return {"x_train": self.x_train, "y_train": self.y_train, "x_test": self.x_test, "y_test": self.y_test}


@dataclass(frozen=True)
class Spec:
    """`shape` is (H, W, C), `mean` and `std` (C,) of images in 0..1, `sha256` what `checksum` gives for the true data."""

    name: str
    shape: tuple[int, int, int]
    classes: int
    train_per_class: int
    test_per_class: int
    sha256: str
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def check(self, splits: Splits, source: str) -> None:
        """Raises DataError, naming `source`, unless `splits` are this data set to the last bit."""
        parts = (
            ("training", splits.x_train, splits.y_train, self.train_per_class),
            ("test", splits.x_test, splits.y_test, self.test_per_class),
        )
        for part, images, labels, per_class in parts:
            where = f"{source}: {self.name}, {part} split"
            if images.dtype != np.uint8 or images.shape[1:] != self.shape:
                raise DataError(
                    f"{where}: images are {images.dtype} {images.shape[1:]}, not uint8 {self.shape}; "
                    "fetch it again or try another --source"
                )
            if labels.shape != images.shape[:1]:
                raise DataError(f"{where}: {len(images)} images but {len(labels)} labels; fetch it again or try another --source")
            if labels.size and not 0 <= labels.min() <= labels.max() < self.classes:
                raise DataError(
                    f"{where}: labels run from {labels.min()} to {labels.max()}, not within 0..{self.classes - 1}; "
                    "this is another data set"
                )
            counts = np.bincount(labels, minlength=self.classes)
            wrong = np.flatnonzero(counts != per_class)
            if wrong.size:
                raise DataError(
                    f"{where}: class {wrong[0]} has {counts[wrong[0]]} images, not {per_class} "
                    f"({wrong.size} of {self.classes} classes are wrong); the copy is incomplete, fetch it again"
                )
        found = checksum(splits)
        if found != self.sha256:
            raise DataError(
                f"{source}: {self.name}: SHA-256 of images and labels is {found}, not {self.sha256}; "
                "the copy is damaged or altered, fetch it again or try another --source"
            )

    def constants(self) -> dict[str, npt.NDArray[np.float32]]:
        """`mean` and `std`, (C,) float32, by the names that they have in the file."""
        return {"mean": np.array(self.mean, np.float32), "std": np.array(self.std, np.float32)}

    def is_held_by(self, path: Path) -> bool:
        """Whether the file `path` is there, readable, and holds exactly this data set."""
        if not path.is_file():
            return False
        try:
            # Opened here, because np.load leaves a damaged file open.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
                if not isinstance(held, np.lib.npyio.NpzFile):
                    return False
                splits = Splits(held["x_train"], held["y_train"], held["x_test"], held["y_test"])
                self.check(splits, str(path))
                return all(
                    np.array_equal(held[name], value) and held[name].dtype == value.dtype
                    for name, value in self.constants().items()
                )
        except (OSError, ValueError, KeyError, EOFError, zlib.error, BadZipFile, DataError):
            return False


def checksum(splits: Splits) -> str:
    """SHA-256 over name, type, shape and bytes (C order, little endian) of the four arrays."""
    digest = hashlib.sha256()
    for name, array in splits.arrays().items():
        portable = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        digest.update(f"{name} {portable.dtype.str} {portable.shape}\n".encode())
        digest.update(portable.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


CIFAR10 = Spec("cifar10", (32, 32, 3), 10, 5000, 1000, "3871edfba00d06286bdaf54a47f5b0abee25738a0dbd5391261fd1cfe67eded4")
CIFAR100 = Spec("cifar100", (32, 32, 3), 100, 500, 100, "38ac2c1f2ea7790455f50aec9117b3302b844cfe04e7a04957a3567959ddfead")
FASHION_SHA256 = "8a525097daa8ae4f449cb666047654b4341fc572609c4ed86b94f8630f457caf"
FASHION_MNIST = Spec("fashion-mnist", (28, 28, 1), 10, 6000, 1000, FASHION_SHA256, (0.2860,), (0.3530,))
