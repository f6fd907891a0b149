"""Sampling, regions, scattering, pooling with places, attention and audio against onnxruntime; gradients."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from tests.importer_cases import Case, booleans, parameters
from tests.importer_graphs import Array, assert_same, floats, imported, model_of, results_of, whole

X = floats(2, 4, 7, 8)
ROIS = np.array([[0.5, 1.2, 5.1, 6.3], [-2.71, -2.13, 3.17, 9.41], [2.03, 2.11, 2.42, 2.37], [6.12, 5.23, 11.9, 9.3]], np.float32)
IMAGES = whole(0, 1, 1, 0)
GRID = np.tanh(floats(2, 3, 5, 2, seed=1)) * 1.3
BOXES = np.random.default_rng(0).random((2, 9, 4)).astype(np.float32)
SCORES = np.random.default_rng(1).random((2, 3, 9)).astype(np.float32)
CENTRED = {"center_point_box": 1}
LIMITS: list[Array] = [whole(3), np.array([0.3], np.float32), np.array([0.4], np.float32)]

SAMPLING = [
    *(
        Case("GridSample", [X, GRID], (16,), {"mode": mode, "padding_mode": padding, "align_corners": aligned})
        for mode, padding, aligned in itertools.product(
            ("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection"), (0, 1)
        )
    ),
    Case("GridSample", [X, GRID], (20, 22), {"mode": "linear"}),
    Case("GridSample", [floats(1, 2, 3, 4, 5), np.tanh(floats(1, 2, 3, 2, 3))], (20,), {"mode": "linear"}),
    *(Case("AffineGrid", [floats(2, 2, 3), whole(2, 3, 4, 5)], (20,), {"align_corners": aligned}) for aligned in (0, 1)),
    Case("AffineGrid", [floats(2, 3, 4), whole(2, 3, 4, 5, 2)], (20,)),
    Case("AffineGrid", [floats(2, 3, 4), whole(2, 3, 4, 1, 2)], (20,), {"align_corners": 1}),
    Case("DeformConv", [X, floats(6, 4, 3, 3, seed=1), floats(2, 18, 5, 6, seed=2)], (19, 22)),
    Case(
        "DeformConv",
        [X, floats(6, 2, 3, 2, seed=1), floats(2, 24, 4, 8, seed=2), floats(6, seed=3), floats(2, 12, 4, 8, seed=4)],
        (19,),
        {"group": 2, "offset_group": 2, "strides": [2, 1], "pads": [1, 1, 1, 0], "kernel_shape": [3, 2]},
    ),
    Case("DeformConv", [X, floats(2, 4, 2, 2, seed=1), floats(2, 8, 5, 6, seed=2)], (19,), {"dilations": [2, 2]}),
    # An axis of one element has an inside and an outside, too.
    Case("DeformConv", [X[:, :, :1], floats(2, 4, 3, 3, seed=1), floats(2, 18, 1, 8, seed=2)], (19,), {"pads": [1, 1, 1, 1]}),
]

REGIONS = [
    *(
        Case("RoiAlign", [X, ROIS, IMAGES], (10, 16), {"output_height": 3, "output_width": 2, "sampling_ratio": ratio})
        for ratio in (0, 2)
    ),
    Case("RoiAlign", [X, ROIS, IMAGES], (16,), {"coordinate_transformation_mode": "output_half_pixel", "spatial_scale": 0.5}),
    Case("RoiAlign", [X, ROIS[:, [2, 3, 0, 1]], IMAGES], (16,), {"output_height": 2, "output_width": 2}),
    Case(
        "MaxRoiPool",
        [X, np.concatenate([[[0], [1], [1], [0]], ROIS.clip(0)], 1).astype(np.float32)],
        (7,),
        {"pooled_shape": [3, 2]},
    ),
    Case("NonMaxSuppression", [BOXES, SCORES, *LIMITS], (10, 11)),
    Case("NonMaxSuppression", [BOXES, SCORES, *LIMITS[:2]], (11,), CENTRED),
    Case("NonMaxSuppression", [BOXES, SCORES, whole(9)], (11,)),
    Case("NonMaxSuppression", [BOXES, SCORES], (11,)),
]

PLACES = np.array([[0, 1], [-1, 2], [1, 0]])
SCATTERING = [
    Case("ScatterND", [floats(3, 4, 5), PLACES, floats(3, 5)], (11, 13)),
    Case("ScatterND", [floats(3, 4), PLACES, floats(3)], (16,), {"reduction": "add"}),
    Case("ScatterND", [floats(3, 4), np.array([[1], [1]]), floats(2, 4)], (16,), {"reduction": "mul"}),
    *(Case("ScatterND", [floats(3, 4), np.array([[1], [1]]), floats(2, 4)], (18,), {"reduction": way}) for way in ("max", "min")),
    *(
        Case("ScatterElements", [floats(3, 3), np.array([[0, 1, 1]]), floats(1, 3)], (18,), {"reduction": w})
        for w in ("mul", "max", "min")
    ),
    Case("Scatter", [floats(3, 3), np.array([[0, 2, 1]]), floats(1, 3)], (9,), {"axis": 0}),
    Case("GatherND", [X, np.array([[[1], [2]], [[0], [3]]])], (12, 13), {"batch_dims": 1}),
    Case("GatherND", [floats(2, 3, 4), np.zeros((2, 3, 2, 1), np.int64) - 1], (13,), {"batch_dims": 2}),
    Case("NonZero", [np.round(floats(3, 4))], (9, 13)),
    Case("Compress", [X, booleans(4)], (9, 11), {"axis": 1}),
    Case("Compress", [X, booleans(9)], (11,)),
    Case("Unique", [np.round(floats(20) * 2)], (11,), outputs=4),
    Case("Unique", [np.round(floats(20) * 2)], (11,), {"sorted": 0}, outputs=4),
    Case("Unique", [np.round(floats(6, 2))], (11,), {"axis": 0}, outputs=4),
    Case("TensorScatter", [floats(2, 3, 6, 4), floats(2, 3, 2, 4, seed=1), whole(1, 3)], (24,)),
    Case("EyeLike", [floats(3, 4)], (9, 22), {"k": 1}),
    Case("EyeLike", [floats(3, 4)], (9,), {"dtype": TensorProto.INT64}),
    Case("OneHot", [whole(1, -1, 7), whole(5), np.array([0, 1], np.float32)], (11,)),
    Case("CumProd", [X, np.array(1)], (26,), {"exclusive": 1, "reverse": 1}),
    Case("BitShift", [np.array([1, 200, 7], np.uint8), np.array([1, 2, 3], np.uint8)], (11,), {"direction": "LEFT"}),
    Case("BitShift", [np.array([1, 200, 7], np.uint8), np.array([1, 2, 3], np.uint8)], (11,), {"direction": "RIGHT"}),
    Case("Det", [floats(2, 3, 3)], (11, 22)),
    *(Case("Hardmax", [X], (9, 11, 13), {"axis": axis}) for axis in (1, 2)),
    *(Case(op, [floats(3, 0, 2)], (13,), {"axes": [1], "keepdims": 0}) for op in ("ReduceMax", "ReduceMin")),
    Case("CenterCropPad", [X, whole(2, 3, 9, 8)], (18,)),
    Case("CenterCropPad", [X, whole(10, 5)], (18,), {"axes": [2, 3]}),
    Case("Col2Im", [floats(2, 12, 30), whole(6, 7), whole(2, 2)], (18,)),
    Case(
        "Col2Im",
        [floats(1, 8, 15), whole(5, 6), whole(2, 2)],
        (18,),
        {"pads": [1, 0, 0, 1], "strides": [2, 1], "dilations": [1, 2]},
        computed=False,
    ),
]

POOLS = [
    Case("MaxPool", [X], (11, 22), {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}, outputs=2),
    Case("MaxPool", [X], (12,), {"kernel_shape": [2, 2], "ceil_mode": 1, "strides": [2, 3], "dilations": [2, 1]}, outputs=2),
    Case("MaxPool", [X], (12,), {"kernel_shape": [2, 2], "strides": [2, 2], "storage_order": 1}, outputs=2),
    Case("MaxPool", [floats(2, 3, 9)], (12,), {"kernel_shape": [3], "auto_pad": "SAME_UPPER"}, outputs=2),
    Case("LpPool", [X], (18,), {"kernel_shape": [2, 2], "dilations": [2, 1]}),
]

Q, K, V = floats(2, 4, 5, 8), floats(2, 2, 6, 8, seed=1), floats(2, 2, 6, 3, seed=2)
HEADS = {"q_num_heads": 4, "kv_num_heads": 2}
FLAT: list[Array] = [x.transpose(0, 2, 1, 3).reshape(2, x.shape[2], -1).copy() for x in (Q, K, V)]
ANGLES: list[Array] = [np.cos(floats(7, 4)), np.sin(floats(7, 4))]
ATTENTION = [
    Case("Attention", [Q, K, V], (23,)),
    Case("Attention", [Q, K, V], (23,), {"is_causal": 1, "softcap": 2.0, "scale": 0.2}),
    Case("Attention", FLAT, (23,), HEADS),
    Case("Attention", [*FLAT, floats(5, 6, seed=3)], (23,), HEADS),
    Case("Attention", [Q, K, V, booleans(2, 1, 5, 6)], (23,)),
    Case("Attention", [Q, K, V, None, floats(2, 2, 3, 8), floats(2, 2, 3, 3)], (23,), {"is_causal": 1}, outputs=3),
    Case("RotaryEmbedding", [floats(2, 3, 5, 8), *ANGLES, np.array([[0, 1, 2, 3, 4], [2, 3, 4, 5, 6]])], (23,)),
    Case(
        "RotaryEmbedding", [floats(2, 5, 24), *ANGLES, np.array([[0, 1, 2, 3, 4]] * 2)], (23,), {"num_heads": 3, "interleaved": 1}
    ),
    Case("RMSNormalization", [X, floats(8)], (23,)),
    Case("RMSNormalization", [X, floats(7, 8)], (23,), {"axis": 2, "epsilon": 0.1}),
    Case("LayerNormalization", [X, floats(7, 8), floats(7, 8)], (17,), {"axis": 2}, outputs=3),
]

SIGNAL = floats(2, 32, 1)
AUDIO = [
    Case("DFT", [SIGNAL], (17, 20)),
    Case("DFT", [SIGNAL, np.array(20)], (17,), {"onesided": 1}),
    Case("DFT", [floats(2, 16, 2), None, np.array(1)], (20,), {"inverse": 1}),
    Case("DFT", [floats(3, 16, 5, 1), np.array(8), np.array(1)], (20,), {"onesided": 1}),
    Case("STFT", [SIGNAL, np.array(4), np.hanning(8).astype(np.float32)], (17,)),
    Case("STFT", [SIGNAL, np.array(5), None, np.array(10)], (17,), {"onesided": 0}),
    Case("STFT", [SIGNAL[..., 0], np.array(4), np.hanning(8).astype(np.float32)], (17,)),
    *(
        Case(name, [np.array(11)], (17,), {"periodic": periodic})
        for name in ("HannWindow", "HammingWindow", "BlackmanWindow")
        for periodic in (0, 1)
    ),
    Case("MelWeightMatrix", [*(np.array(n) for n in (10, 256, 16000)), *(np.array(f, np.float32) for f in (50, 7000))], (17,)),
]  # fmt: skip

CROPS = [
    Case(
        "Resize",
        [X, np.array([0, 0, 0.2, -0.31, 1, 1, 0.9, 1.2], np.float32), np.array([1, 1, 1.5, 0.8], np.float32)],
        (13,),
        attributes,
    )
    for attributes in (
        {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 7.0},
        {"mode": "nearest", "coordinate_transformation_mode": "tf_crop_and_resize"},
    )
]

ALL = SAMPLING + REGIONS + SCATTERING + POOLS + ATTENTION + AUDIO + CROPS


@pytest.mark.parametrize(("case", "opset", "constants"), parameters(ALL))
def test_matches_onnxruntime(case: Case, opset: int, constants: bool) -> None:
    case.check(opset, constants)


SMOOTH = [
    case
    for case in ALL
    if case.inputs[0] is not None
    and case.inputs[0].dtype == np.float32
    and case.inputs[0].size
    and case.op not in ("NonMaxSuppression", "NonZero", "Hardmax", "EyeLike", "Unique")
    and case.attributes.get("mode") != "nearest"
    # Its statistics are single precision by definition.
    and not (case.op == "LayerNormalization" and case.outputs > 1)
]


@pytest.mark.parametrize("number", range(len(SMOOTH)), ids=lambda number: f"{SMOOTH[number].op}-{number}")
def test_gradients(number: int) -> None:
    case = SMOOTH[number]
    # Regions that are rounded to elements, and scales that decide on sizes, have no gradient.
    case.check_gradient(max(case.opsets), data_only=case.op in ("MaxRoiPool", "Resize"))


def test_unpooling_puts_values_back_where_they_were() -> None:
    nodes = [
        helper.make_node("MaxPool", ["x"], ["y", "places"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("MaxUnpool", ["y", "places"], ["z"], kernel_shape=[2, 2], strides=[2, 2]),
    ]
    x = floats(2, 3, 6, 8)
    model = model_of(nodes, {"x": x}, ["z"])
    assert_same(model, {"x": x})
    (found,) = results_of(imported(model), {"x": x})
    kept = x == x.reshape(2, 3, 3, 2, 4, 2).max((3, 5), keepdims=True).repeat(2, 3).repeat(2, 5).reshape(x.shape)
    np.testing.assert_array_equal(found, np.where(kept, x, 0))


def test_the_maximum_of_a_region() -> None:
    """onnxruntime warns of it, so it only runs in tests of its own."""
    case = Case("RoiAlign", [X, ROIS, IMAGES], (16,), {"mode": "max", "output_height": 2, "output_width": 2, "sampling_ratio": 2})
    case.check(16, True)


def test_a_fully_masked_query_gives_zero() -> None:
    mask = np.ones((5, 6), bool)
    mask[2] = False
    net = imported(
        model_of([helper.make_node("Attention", ["q", "k", "v", "m"], ["y"])], {"q": Q, "k": K, "v": V, "m": mask}, ["y"], {}, 23)
    )
    (y,) = net(*(torch.from_numpy(array) for array in (Q, K, V, mask)))
    assert not y[:, :, 2].any()
    assert y[:, :, 1].all()
