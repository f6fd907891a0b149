"""A data set without its test split: part of the training images takes its place.

    python -m tools.hold_out data/cifar10.npz data/cifar10-dev.npz

Hyper-parameters are chosen on this file, and on a network trained on it (`tools.train_baseline`), so that no choice ever sees
the test images and none is made on images that the network already knows. The split is `batude_onnx.loading.holdout`'s.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from batude_onnx.loading import Dataset, holdout
from tools.datasets.saving import save_arrays


def held_out(path: Path) -> dict[str, np.ndarray]:
    """The arrays of the new file."""
    with np.load(path) as arrays:
        split = holdout(Dataset(arrays["x_train"], arrays["y_train"]))
        constants = {name: arrays[name] for name in ("mean", "std") if name in arrays}
    assert split.x_test is not None
    assert split.y_train is not None
    assert split.y_test is not None
    return {"x_train": split.x_train, "y_train": split.y_train, "x_test": split.x_test, "y_test": split.y_test, **constants}


@click.command()
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
def main(source: Path, output: Path) -> None:
    """Write OUTPUT with the training images of SOURCE alone, 5,000 of them as its test split."""
    arrays = held_out(source)
    output.parent.mkdir(parents=True, exist_ok=True)
    save_arrays(arrays, output)
    click.echo(f"{output}: {len(arrays['x_train'])} images to train on, {len(arrays['x_test'])} held out")


if __name__ == "__main__":
    main()
