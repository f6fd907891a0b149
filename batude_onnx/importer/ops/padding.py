"""Windows that slide over spatial axes, shared by convolutions and pools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from batude_onnx.importer.view import NodeView


@dataclass(frozen=True)
class Window:
    """Strides, dilations and pads in ONNX's order (all begins, then all ends); pads is None for auto_pad SAME_*."""

    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...] | None
    auto_pad: str

    @staticmethod
    def of(node: NodeView, axes: int) -> Window:
        """Read the attributes. Raises Refusal for a length that is not `axes`, or an unknown auto_pad."""
        strides = tuple(node.attr_ints("strides") or [1] * axes)
        dilations = tuple(node.attr_ints("dilations") or [1] * axes)
        pads = tuple(node.attr_ints("pads") or [0] * (2 * axes))
        for name, values, length in (("strides", strides, axes), ("dilations", dilations, axes), ("pads", pads, 2 * axes)):
            if len(values) != length:
                raise node.refuse(name, values, f"give {length} values for {axes} spatial axes")
        auto_pad = node.attr_string("auto_pad", "NOTSET")
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            return Window(strides, dilations, None, auto_pad)
        if auto_pad not in ("NOTSET", "VALID"):
            raise node.refuse("auto_pad", auto_pad, "use NOTSET, VALID, SAME_UPPER or SAME_LOWER")
        return Window(strides, dilations, pads if auto_pad == "NOTSET" else (0,) * (2 * axes), auto_pad)


def same_pads(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], auto_pad: str
) -> tuple[int, ...]:
    """Pads that give ceil(size / stride) outputs; the odd one goes to the end for SAME_UPPER."""
    begins, ends = [], []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + dilation * (k - 1) + 1 - size)
        small, large = total // 2, total - total // 2
        begins.append(small if auto_pad == "SAME_UPPER" else large)
        ends.append(large if auto_pad == "SAME_UPPER" else small)
    return (*begins, *ends)


def torch_pads(pads: Sequence[int]) -> list[int]:
    """ONNX's (begins, ends) over some last axes as torch's pairs, last axis first; zeros of the outer axes left out."""
    axes = len(pads) // 2
    pairs = [(pads[axis], pads[axes + axis]) for axis in reversed(range(axes))]
    while pairs and pairs[-1] == (0, 0):
        pairs.pop()
    return [pad for pair in pairs for pad in pair]
