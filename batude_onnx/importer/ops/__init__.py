"""The op families; importing this package registers all of them."""

from batude_onnx.importer.ops import (
    activation,
    constants,
    convolution,
    elementwise,
    layout,
    linear,
    normalization,
    pooling,
    recurrent,
    reduction,
    resize,
    slicing,
)

__all__ = [
    "activation",
    "constants",
    "convolution",
    "elementwise",
    "layout",
    "linear",
    "normalization",
    "pooling",
    "recurrent",
    "reduction",
    "resize",
    "slicing",
]
