"""What detectors do with boxes: pooling over regions of interest, non-maximum suppression."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from batude_onnx.importer.registry import Op, op
from batude_onnx.importer.view import NodeView


def _readers(begin: Tensor, end: Tensor, parts: int, each: int, size: int) -> tuple[Tensor, Tensor]:
    """Rows (parts * each, size) that read an axis at `each` even places in each of `parts` bins between begin and end.

    The first ones read the element at or before a place, the others the one behind it, with the weights of linear
    interpolation. Places up to one element outside take the border's value, those beyond nothing.
    """
    steps = (torch.arange(parts * each, device=begin.device, dtype=begin.dtype) + 0.5) / (parts * each)
    place = begin + (end - begin) * steps
    inside = ((place >= -1) & (place <= size)).unsqueeze(1)
    place = place.clamp(0, size - 1).unsqueeze(1)
    own = torch.arange(size, device=begin.device)
    lower = place.detach().floor()
    share = (place - lower) * inside
    return (own == lower) * (inside.to(share.dtype) - share), (own == lower + 1) * share


@op("RoiAlign", 10, 16, 22)
def roi_align(node: NodeView) -> Op:
    """x (N, C, H, W), rois (R, 4) as x1, y1, x2, y2, the image of each (R,) -> (R, C, height, width).

    Interpolation is linear along either axis, so a region's samples are rows x columns; every bin gives the mean of its own
    (https://arxiv.org/abs/1703.06870). Its maximum, in onnxruntime and in ONNX's own data, is not that of the samples, but of
    the weighted elements that they are sums of.
    """
    mode = node.attr_string("mode", "avg")
    coordinates = node.attr_string("coordinate_transformation_mode", "output_half_pixel" if node.opset < 16 else "half_pixel")
    height, width = node.attr_int("output_height", 1), node.attr_int("output_width", 1)
    ratio, scale = node.attr_int("sampling_ratio", 0), node.attr_float("spatial_scale", 1.0)
    if mode not in ("avg", "max"):
        raise node.refuse("mode", mode, "use avg or max")
    if coordinates not in ("half_pixel", "output_half_pixel"):
        raise node.refuse("coordinate_transformation_mode", coordinates, "use half_pixel or output_half_pixel")
    half = coordinates == "half_pixel"

    def run(x: Tensor, rois: Tensor, images: Tensor) -> Tensor:
        boxes = rois * scale - (0.5 if half else 0.0)
        pooled = []
        for (x1, y1, x2, y2), index in zip(boxes.unbind(0), images.unbind(0), strict=True):
            if not half:
                x2, y2 = torch.maximum(x2, x1 + 1), torch.maximum(y2, y1 + 1)
            down = ratio or math.ceil(float((y2 - y1).detach()) / height)
            across = ratio or math.ceil(float((x2 - x1).detach()) / width)
            if down <= 0 or across <= 0:
                # A region turned inside out has no samples.
                pooled.append(x.new_zeros((x.shape[1], height, width)))
                continue
            rows = _readers(y1, y2, height, down, x.shape[2])
            columns = _readers(x1, x2, width, across, x.shape[3])
            image = x.index_select(0, index.view(1).long())[0]
            if mode == "avg":
                samples = (rows[0] + rows[1]) @ image @ (columns[0] + columns[1]).t()
            else:
                corners = [row @ image @ column.t() for row in rows for column in columns]
                samples = torch.stack(corners).amax(0)
            bins = samples.view(-1, height, down, width, across)
            pooled.append(bins.mean((2, 4)) if mode == "avg" else bins.amax((2, 4)))
        return torch.stack(pooled) if pooled else x.new_zeros((0, x.shape[1], height, width))

    return run


@op("MaxRoiPool", 1, 22)
def max_roi_pool(node: NodeView) -> Op:
    """x (N, C, H, W), rois (R, 5) as image, x1, y1, x2, y2 -> (R, C, height, width); corners are rounded to elements, bins
    may overlap, an empty one gives 0."""
    shape, scale = node.attr_ints("pooled_shape"), node.attr_float("spatial_scale", 1.0)
    if shape is None or len(shape) != 2:
        raise node.refuse("pooled_shape", shape, "give 2 sizes")

    def edges(begin: float, end: float, parts: int, size: int) -> list[tuple[int, int]]:
        # Halves go up, as in C's round; torch's would go to the even number.
        first, last = math.floor(begin * scale + 0.5), math.floor(end * scale + 0.5)
        each = max(last - first + 1, 1) / parts
        found = [(math.floor(i * each) + first, math.ceil((i + 1) * each) + first) for i in range(parts)]
        return [(min(max(low, 0), size), min(max(high, 0), size)) for low, high in found]

    def run(x: Tensor, rois: Tensor) -> Tensor:
        pooled = []
        for image, x1, y1, x2, y2 in rois.tolist():
            rows, columns = edges(y1, y2, shape[0], x.shape[2]), edges(x1, x2, shape[1], x.shape[3])
            for top, bottom in rows:
                for left, right in columns:
                    part = x[int(image), :, top:bottom, left:right]
                    pooled.append(part.amax((1, 2)) if part.numel() else x.new_zeros(x.shape[1]))
        if not pooled:
            return x.new_zeros((0, x.shape[1], *shape))
        return torch.stack(pooled).view(len(rois), *shape, x.shape[1]).permute(0, 3, 1, 2)

    return run


def _overlaps(boxes: Tensor, centred: bool) -> Tensor:
    """(B, 4) -> (B, B): intersection over union; 0 where a box has no area."""
    a, b, c, d = boxes.unbind(1)
    if centred:
        lows, highs = torch.stack((a - c / 2, b - d / 2), 1), torch.stack((a + c / 2, b + d / 2), 1)
    else:
        lows = torch.stack((torch.minimum(a, c), torch.minimum(b, d)), 1)
        highs = torch.stack((torch.maximum(a, c), torch.maximum(b, d)), 1)
    areas = (highs - lows).prod(1)
    both = (torch.minimum(highs[:, None], highs) - torch.maximum(lows[:, None], lows)).clamp(min=0).prod(2)
    union = areas[:, None] + areas - both
    return torch.where((both > 0) & (union > 0), both / union, 0.0)


@op("NonMaxSuppression", 10, 11, host=(2, 3, 4), flat=True)
def non_max_suppression(node: NodeView) -> Op:
    """boxes (N, B, 4), scores (N, classes, B), limits -> (found, 3), int64: image, class, box.

    Of each class, the best box is kept and all that overlap it by more than the threshold are dropped, and so on.
    """
    centred = node.attr_int("center_point_box", 0)
    if centred not in (0, 1):
        raise node.refuse("center_point_box", centred, "use 0 or 1")
    fixed = [node.scalar(index) for index in (2, 3, 4)]

    def run(boxes: Tensor, scores: Tensor, *given: Tensor | None) -> Tensor:
        later = [*given, None, None, None][:3]
        most, overlap, least = (late.item() if late is not None else value for value, late in zip(fixed, later, strict=True))
        found: list[tuple[int, int, int]] = []
        for image in range(boxes.shape[0]):
            close = (_overlaps(boxes[image], centred != 0) > (overlap or 0.0)).cpu()
            for label in range(scores.shape[1]):
                score = scores[image, label].cpu()
                free = torch.ones_like(score, dtype=torch.bool) if least is None else score > least
                left = int(most or 0)
                for box in score.argsort(descending=True, stable=True).tolist():
                    if left and free[box]:
                        found.append((image, label, box))
                        left -= 1
                        free &= ~close[box]
        return torch.tensor(found, dtype=torch.int64, device=boxes.device).view(-1, 3)

    return run
