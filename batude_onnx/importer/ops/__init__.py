"""The op families; importing this package registers all of them."""

from batude_onnx.importer.ops import (
    activation,
    constants,
    control,
    convolution,
    elementwise,
    layout,
    left_out,
    linear,
    normalization,
    pooling,
    reduction,
    resize,
    scattering,
    slicing,
)

__all__ = [
    "activation",
    "constants",
    "control",
    "convolution",
    "elementwise",
    "layout",
    "left_out",
    "linear",
    "normalization",
    "pooling",
    "reduction",
    "resize",
    "scattering",
    "slicing",
]
