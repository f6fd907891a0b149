"""Conv and ConvTranspose over 1 to 3 spatial axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional as F

from batude_onnx.importer.ops.padding import Window, same_pads, torch_pads
from batude_onnx.importer.registry import Op, op
from batude_onnx.importer.view import NodeView

_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def _spatial(node: NodeView) -> int:
    """Number of spatial axes, from whatever in the file says it."""
    kernel = node.attr_ints("kernel_shape")
    axes = len(kernel) if kernel is not None else (node.rank(1) or node.rank(0) or 0) - 2
    if axes not in _CONV:
        raise node.refuse("number of spatial axes", axes, "use 1, 2 or 3, and set kernel_shape")
    return axes


@op("Conv", 1, 11, 22, learned=(1, 2))
def conv(node: NodeView) -> Op:
    """x (N, C, *in), w (S, C/groups, *kernel), b (S,) -> (N, S, *out)."""
    axes = _spatial(node)
    run, groups = _CONV[axes], node.attr_int("group", 1)
    window = Window.of(node, axes)
    strides, dilations, pads = window.strides, window.dilations, window.pads

    if pads is not None and pads[:axes] == pads[axes:]:
        symmetric = pads[:axes]

        def plain(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
            return run(x, w, b, strides, symmetric, dilations, groups)

        return plain

    def padded(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        ends = pads
        if ends is None:
            ends = same_pads(x.shape[2:], w.shape[2:], strides, dilations, window.auto_pad)
        begins = ends[:axes]
        if begins == ends[axes:]:
            return run(x, w, b, strides, begins, dilations, groups)
        return run(F.pad(x, torch_pads(ends)), w, b, strides, 0, dilations, groups)

    return padded


@op("ConvTranspose", 1, 11, 22, learned=(1, 2))
def conv_transpose(node: NodeView) -> Op:
    """x (N, C, *in), w (C, S/groups, *kernel), b (S,) -> (N, S, *out).

    The full result has stride * (in - 1) + output_padding + dilation * (kernel - 1) + 1 positions on each axis; pads are
    what is cut off of it, so torch computes it without padding wherever the two sides are cut differently.
    """
    axes = _spatial(node)
    run, groups = _TRANSPOSED[axes], node.attr_int("group", 1)
    window = Window.of(node, axes)
    strides, dilations = window.strides, window.dilations
    extra = tuple(node.attr_ints("output_padding") or [0] * axes)
    wanted = node.attr_ints("output_shape")
    fixed = window.pads if wanted is None else None

    def transposed(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        pads = fixed
        if pads is None:
            pads = _cut(x.shape[2:], w.shape[2:], strides, dilations, extra, wanted, window.auto_pad)
        begins, ends = pads[:axes], pads[axes:]
        if begins == ends and min(begins) >= 0:
            return run(x, w, b, strides, begins, extra, groups, dilations)
        y = F.pad(run(x, w, None, strides, 0, extra, groups, dilations), [-pad for pad in torch_pads(pads)])
        # The bias comes last, since it also belongs to positions that no window reaches.
        return y if b is None else y + b.reshape(-1, *[1] * axes)

    return transposed


def _cut(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    extra: Sequence[int],
    wanted: Sequence[int] | None,
    auto_pad: str,
) -> tuple[int, ...]:
    """Pads of a ConvTranspose that give the output sizes `wanted`, or stride * in for auto_pad SAME_*."""
    begins, ends = [], []
    targets = (wanted or [size * stride for size, stride in zip(sizes, strides, strict=True)])[-len(sizes) :]
    for size, k, stride, dilation, more, target in zip(sizes, kernel, strides, dilations, extra, targets, strict=True):
        total = stride * (size - 1) + more + dilation * (k - 1) + 1 - target
        if total < 0:
            # Asked for more than there is: onnxruntime appends positions for output_shape, and only for that.
            begins.append(0)
            ends.append(total if wanted else 0)
            continue
        # SAME_UPPER cuts the larger half off the end; every other mode, off the beginning (ONNX's formula).
        begins.append(total // 2 if auto_pad == "SAME_UPPER" else total - total // 2)
        ends.append(total - begins[-1])
    return (*begins, *ends)
