"""Super-resolution networks: patches to distil from, and PSNR on Set5.

    python -m tools.super_resolution patches FOLDER data/patches.npz      any folder of pictures; no ground truth goes in
    python -m tools.super_resolution score FOLDER MODEL.onnx [MODEL.onnx ...]

The networks take luma 0..1, N x 1 x H x W, already enlarged by bicubic interpolation, as VDSR does (Kim et al., CVPR 2016).
FOLDER of `score` holds NAME_GT.bmp and NAME_GT_scale_K.bmp, the latter shrunk and enlarged again by K.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
from PIL import Image

from batude_onnx.validation import open_session
from tools.datasets.saving import save_arrays

Luma = npt.NDArray[np.float32]
PICTURES = (".bmp", ".jpg", ".jpeg", ".png")
# ITU-R BT.601, in the range 16..235 that super-resolution is scored in.
WEIGHTS, OFFSET = np.array([65.481, 128.553, 24.966]), 16.0


def luma(pixels: npt.NDArray[np.uint8]) -> Luma:
    """RGB (H, W, 3) -> Y (H, W) in 0..1."""
    y: Luma = ((OFFSET + pixels.astype(np.float64) @ WEIGHTS / 255) / 255).astype(np.float32)
    return y


def enlarged(image: Luma, scale: int) -> Luma:
    """(H, W) shrunk by `scale` and enlarged to its own size again, bicubic both times."""
    height, width = image.shape
    small = Image.fromarray(image, "F").resize((max(1, width // scale), max(1, height // scale)), Image.Resampling.BICUBIC)
    again: Luma = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    return again


def read(path: Path) -> npt.NDArray[np.uint8]:
    """A picture as RGB (H, W, 3), whatever its own mode."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise click.ClickException(f"{path}: not a readable picture ({error})") from error


def psnr(ours: Luma, truth: Luma, border: int) -> float:
    """In dB for a peak of 1, `border` pixels cut on each side."""
    away = (np.clip(ours, 0, 1) - truth)[border:-border, border:-border].astype(np.float64)
    return float(-10 * np.log10(np.mean(away**2)))


def cut_patches(folder: Path, count: int, size: int, seed: int) -> Luma:
    """`count` patches (count, 1, size, size), each enlarged by 2, 3 or 4, from the different pictures under `folder`."""
    rng = np.random.default_rng(seed)
    found: dict[bytes, Luma] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in PICTURES:
            picture = luma(read(path))
            if min(picture.shape) >= size:
                found[hashlib.sha256(path.read_bytes()).digest()] = picture
    if not found:
        raise click.ClickException(f"{folder}: no picture of at least {size} x {size} pixels below it")
    soft = [enlarged(picture, scale) for picture in found.values() for scale in (2, 3, 4)]
    patches = []
    for _ in range(count):
        image = soft[rng.integers(len(soft))]
        top, left = (int(rng.integers(side - size + 1)) for side in image.shape)
        patches.append(image[top : top + size, left : left + size])
    return np.stack(patches)[:, None]


def pairs_of(folder: Path, scale: int) -> list[tuple[Luma, Luma]]:
    """The pictures of `folder` as (enlarged again by `scale`, true)."""
    pairs = []
    for path in sorted(folder.glob("*_GT.bmp")):
        soft = path.with_name(f"{path.stem}_scale_{scale}.bmp")
        if soft.exists():
            pairs.append((luma(read(soft)), luma(read(path))))
    if not pairs:
        raise click.ClickException(f"{folder}: holds no NAME_GT.bmp with NAME_GT_scale_{scale}.bmp")
    return pairs


def mean_psnr(model: Path, pairs: Sequence[tuple[Luma, Luma]], scale: int) -> float:
    """Of `model` over `pairs`, in dB."""
    session = open_session(model)
    name = session.input_names[0]
    made = [session.run({name: soft[None, None]})[session.output_names[0]][0, 0] for soft, _ in pairs]
    return float(np.mean([psnr(image, truth, scale) for image, (_, truth) in zip(made, pairs, strict=True)]))


@click.group()
def main() -> None:
    """Patches and PSNR for super-resolution networks."""


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--count", default=8000, show_default=True)
@click.option("--size", default=41, show_default=True)
@click.option("--seed", default=0, show_default=True)
def patches(folder: Path, output: Path, count: int, size: int, seed: int) -> None:
    """Write patches of the pictures in FOLDER to OUTPUT (.npz)."""
    cut = cut_patches(folder, count, size, seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    save_arrays({"x_train": cut}, output)
    click.echo(f"{output}: {len(cut)} patches of {size} x {size}")


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("models", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--scale", default=2, show_default=True)
def score(folder: Path, models: tuple[Path, ...], scale: int) -> None:
    """Mean PSNR of each of MODELS over the pictures in FOLDER."""
    pairs = pairs_of(folder, scale)
    click.echo(f"bicubic {np.mean([psnr(soft, truth, scale) for soft, truth in pairs]):.2f} dB")
    for path in models:
        click.echo(f"{path.name} {mean_psnr(path, pairs, scale):.2f} dB over {len(pairs)} pictures")


if __name__ == "__main__":
    main()
