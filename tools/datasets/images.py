"""PNG files as arrays. Pillow is needed for these alone, so it is looked for only here."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from batude_onnx.errors import DataError
from tools.datasets.spec import Images


def read_rgb(content: bytes | Path, name: str) -> Images:
    """The picture in `content` (a file, or its bytes) as (H, W, 3) uint8. Raises DataError, naming `name`."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("reading PNG images needs Pillow: pip install 'batude-onnx[datasets]'") from error
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            mode = image.mode
            pixels = np.asarray(image)
    # Pillow reports a broken PNG chunk as SyntaxError, and a picture of absurd size in a class of its own.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: not a readable picture ({error}); the copy is damaged, fetch it again") from error
    if mode != "RGB":
        raise DataError(f"{name}: the picture has mode {mode}, not RGB; this is another data set")
    return pixels
