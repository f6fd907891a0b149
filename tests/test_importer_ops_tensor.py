"""Elementwise ops, reductions, layout, slicing and resizing against onnxruntime."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests.importer_cases import Case, booleans, parameters
from tests.importer_graphs import Array, floats, whole

X, Y = floats(2, 4, 5, 6), floats(4, 1, 6, seed=1)
UNIT = np.tanh(X)
OPSETS = (9, 11, 13, 17, 21)
INTS, OTHERS = np.arange(-6, 6, dtype=np.int64), np.array([4] * 6 + [-4] * 6, dtype=np.int64)
HIGH = floats(3, seed=7)
SCALAR = np.array(2, np.float32)

ELEMENTWISE = [
    *(Case(op, [X, Y], OPSETS) for op in ("Add", "Sub", "Mul", "Div", "Greater", "Less", "Min", "Max", "Sum", "Mean")),
    *(Case(op, [X, Y, X], OPSETS) for op in ("Sum", "Min", "Max", "Mean")),
    *(Case(op, [X, Y], (12, 16)) for op in ("GreaterOrEqual", "LessOrEqual")),
    *(Case(op, [INTS, OTHERS], (9, 13, 17)) for op in ("Add", "Div", "Equal")),
    Case("Mod", [INTS, OTHERS], (10, 13)),
    Case("Mod", [X, Y], (13,), {"fmod": 1}),
    Case("Pow", [np.abs(X), Y], OPSETS),
    Case("Pow", [X, SCALAR], OPSETS),
    Case("Pow", [X, np.array([2.0], np.float32)], (13,)),
    Case("Pow", [X, np.array(3, np.int64)], (13,)),
    *(Case(op, [booleans(4, 5), booleans(4, 1)], (9, 17)) for op in ("And", "Or", "Xor")),
    Case("Not", [booleans(4, 5)], OPSETS),
    *(Case(op, [INTS, OTHERS], (18,)) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")),
    Case("BitwiseNot", [INTS], (18,)),
    Case("Where", [booleans(4, 1, 6), X, Y], (9, 17)),
    *(
        Case(op, [X], OPSETS)
        for op in ("Abs", "Neg", "Exp", "Floor", "Ceil", "Sign", "Erf", "Identity", "Sin", "Cos", "Sinh", "Cosh")
    ),
    *(Case(op, [UNIT], OPSETS) for op in ("Tan", "Asin", "Acos", "Atan", "Asinh", "Atanh", "Reciprocal")),
    *(Case(op, [np.abs(X) + 1], OPSETS) for op in ("Log", "Sqrt", "Acosh")),
    Case("Round", [np.array([0.5, 1.5, -0.5, 2.4, -2.6], np.float32)], (11,)),
    Case("IsNaN", [np.log(X[0].clip(-0.1, None) - 0.05 + 0.05j).real.astype(np.float32)], (9, 13)),
    Case("IsInf", [np.array([1, np.inf, -np.inf], np.float32)], (10, 20)),
    Case("IsInf", [np.array([1, np.inf, -np.inf], np.float32)], (10,), {"detect_negative": 0}),
    Case("Cast", [X * 3], OPSETS, {"to": 7}),
    Case("Cast", [X], OPSETS, {"to": 9}),
    Case("Cast", [INTS], OPSETS, {"to": 1}),
    Case("CastLike", [X, INTS], (15, 19)),
    Case("Dropout", [X], OPSETS),
]

REDUCTIONS = [
    *(Case(op, [X], (11, 13), {"axes": [2, -1]}) for op in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd")),
    *(Case(op, [X], (11, 13), {"axes": [1], "keepdims": 0}) for op in ("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceMean")),
    *(Case(op, [X], (11, 17)) for op in ("ReduceMean", "ReduceMax", "ReduceLogSumExp", "ReduceProd")),
    *(Case(op, [X, whole(2, 3)], (18, 21)) for op in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceProd")),
    *(
        Case(op, [X, whole(-1)], (18,), {"keepdims": 0})
        for op in ("ReduceMean", "ReduceL1", "ReduceSumSquare", "ReduceLogSumExp")
    ),
    Case("ReduceLogSum", [np.abs(X)], (13,), {"axes": [1]}),
    Case("ReduceSum", [X], (11,), {"axes": [1, 2]}),
    Case("ReduceSum", [X, whole(1, 2)], (13, 18)),
    Case("ReduceSum", [X, whole()], (13,), {"noop_with_empty_axes": 1}),
    Case("ReduceSum", [X], (13,), {"keepdims": 0}),
    Case("ReduceSum", [INTS], (13,)),
    Case("ReduceMean", [X, whole()], (18,), {"noop_with_empty_axes": 1}),
    *(Case(op, [X], OPSETS, {"axis": 1}) for op in ("ArgMax", "ArgMin")),
    Case("ArgMax", [np.round(X)], (12, 13), {"axis": -1, "keepdims": 0, "select_last_index": 1}),
    Case("TopK", [X], (9,), {"k": 3}, outputs=2),
    Case("TopK", [X, whole(3)], (10, 11, 17), {"axis": 1}, outputs=2),
    Case("TopK", [X, whole(2)], (11,), {"axis": 2, "largest": 0}, outputs=2),
    Case("TopK", [np.round(X), whole(4)], (11,), {"axis": 3}, outputs=2),
    Case("CumSum", [X, np.array(1)], (11, 14)),
    Case("CumSum", [X, np.array(-1)], (14,), {"exclusive": 1, "reverse": 1}),
    Case("OneHot", [INTS, whole(5), np.array([-1, 2], np.float32)], (11,), {"axis": -1}, computed=False),
    Case("OneHot", [INTS.reshape(3, 4), whole(5), np.array([0, 1], np.float32)], (11,), {"axis": 0}, computed=False),
]

LAYOUT = [
    Case("Reshape", [X, whole(0, -1, 6)], OPSETS),
    Case("Reshape", [X, whole(2, -1)], OPSETS),
    Case("Reshape", [floats(0, 4), whole(4, 0)], (14, 21), {"allowzero": 1}),
    *(Case("Flatten", [X], OPSETS, {"axis": axis}) for axis in (0, 1, 2)),
    Case("Flatten", [X], (13,), {"axis": -1}),
    Case("Transpose", [X], OPSETS),
    Case("Transpose", [X], OPSETS, {"perm": [0, 2, 3, 1]}),
    Case("Squeeze", [floats(2, 1, 5, 1)], (9, 11), {"axes": [1, 3]}),
    Case("Squeeze", [floats(2, 1, 5, 1)], OPSETS),
    Case("Squeeze", [floats(2, 1, 5, 1), whole(-1)], (13, 21)),
    Case("Unsqueeze", [X], (9, 11), {"axes": [0, 3]}),
    Case("Unsqueeze", [X, whole(-1, 1)], (13, 21)),
    Case("Unsqueeze", [X, whole(2)], (13,)),
    Case("Expand", [Y, whole(2, 4, 5, 1)], (9, 13)),
    Case("Expand", [Y, whole(6)], (13,)),
    Case("Tile", [Y, whole(2, 3, 1)], (9, 13)),
    Case("DepthToSpace", [floats(2, 8, 3, 2)], (9, 11, 13), {"blocksize": 2}),
    Case("DepthToSpace", [floats(2, 8, 3, 2)], (11, 13), {"blocksize": 2, "mode": "CRD"}),
    Case("SpaceToDepth", [floats(2, 3, 4, 6)], (9, 13), {"blocksize": 2}),
    Case("Trilu", [floats(5, 6)], (14,)),
    Case("Trilu", [floats(5, 6), np.array(-1)], (14,), {"upper": 0}),
    Case("Shape", [X], OPSETS),
    Case("Shape", [X], (15,), {"start": 1, "end": -1}),
    Case("Size", [X], OPSETS),
    Case("Range", [np.array(1), np.array(9), np.array(3)], (11,)),
    Case("ConstantOfShape", [whole(2, 3)], (9, 21)),
]

SLICING = [
    Case("Concat", [X, floats(2, 1, 5, 6)], OPSETS, {"axis": 1}),
    Case("Concat", [X, X, X], (13,), {"axis": -1}),
    Case("Split", [X], (9, 11), {"axis": 1, "split": [1, 3]}, outputs=2),
    Case("Split", [X, whole(1, 3)], (13, 18), {"axis": 1}, outputs=2),
    Case("Split", [X], (11, 13), {"axis": 1}, outputs=2),
    Case("Split", [X], (18,), {"axis": 2, "num_outputs": 2}, outputs=2),
    Case("Slice", [X], (9,), {"starts": [1, -3], "ends": [9999, -1], "axes": [1, 3]}),
    Case("Slice", [X], (9,), {"starts": [0, 1], "ends": [1, 3]}),
    Case("Slice", [X, whole(1, -3), whole(2**63 - 1, -1), whole(1, -1)], (10, 13)),
    Case("Slice", [X, whole(0, 1), whole(9, 5), whole(2, 3), whole(2, 3)], (10, 13)),
    Case("Slice", [X, whole(-1, 4), whole(-(2**63), 0), whole(2, 3), whole(-1, -2)], (10, 13)),
    Case("Slice", [X, whole(0), whole(1)], (13,)),
    Case("Pad", [X], (9,), {"pads": [0, 1, 0, 2, 0, 0, 1, 0], "value": 0.5}),
    Case("Pad", [X, whole(0, 0, 1, 2, 0, 0, 3, 0)], (11, 13, 21)),
    Case("Pad", [X, whole(0, 2, 0, -1, 0, 1, -2, 0), np.array(1.5, np.float32)], (11, 18)),
    Case("Pad", [X, whole(1, 2, 0, 1), None, whole(-1, 1)], (18,)),
    *(Case("Pad", [X, whole(0, 0, 1, 3, 0, 0, 2, 0)], (11, 18), {"mode": mode}) for mode in ("reflect", "edge")),
    Case("Pad", [X, whole(0, 0, 1, 3, 0, 0, 2, 0)], (19,), {"mode": "wrap"}),
    Case("Gather", [X, whole(0, -1, 2)], OPSETS, {"axis": 2}),
    Case("Gather", [X, np.array(-2)], OPSETS, {"axis": 1}),
    Case("Gather", [X, np.array([[0, 1], [1, 0]])], (13,)),
    Case("GatherElements", [X, np.zeros((2, 2, 5, 6), np.int64) - 1], (11, 13), {"axis": 1}),
    Case("GatherND", [X, np.array([[0, 1], [1, 3]])], (11, 13)),
    Case("ScatterElements", [floats(3, 3), np.array([[0, -1, 1]]), floats(1, 3)], (11, 16)),
    Case("ScatterElements", [floats(3, 3), np.array([[0, 1, 1]]), floats(1, 3)], (16, 18), {"reduction": "add"}),
]

ABSENT = np.array([], np.float32)
SCALES: list[tuple[float, ...]] = [(1, 1, 2, 2), (1, 1, 0.6, 1.7), (1, 1, 0.5, 0.5), (1, 1, 2.5, 3.3)]


def _resize(opsets: tuple[int, ...], target: dict[str, tuple[float, ...]], **attributes: object) -> Case:
    scales = np.array(target.get("scales", []), np.float32)
    inputs: list[Array | None] = [X, ABSENT, scales]
    if "sizes" in target:
        inputs.append(np.array(target["sizes"], np.int64))
        inputs[1:3] = [None, None] if min(opsets) >= 13 else [ABSENT, ABSENT]
    return Case("Resize", inputs, opsets, dict(attributes))


TARGETS: list[dict[str, tuple[float, ...]]] = [{"scales": scales} for scales in SCALES]
TARGETS += [{"sizes": (2, 4, 3, 10)}, {"sizes": (2, 4, 1, 5)}]
COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
RESIZING = [
    *(
        _resize((13,), target, mode=mode, coordinate_transformation_mode=coordinates)
        for target, mode, coordinates in itertools.product(TARGETS, ("linear", "cubic"), COORDINATES)
    ),
    *(
        _resize((13,), target, nearest_mode=nearest, coordinate_transformation_mode=coordinates)
        for target, nearest, coordinates in itertools.product(
            TARGETS[:5], ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"), ("half_pixel", "asymmetric")
        )
    ),
    *(_resize((11,), target, coordinate_transformation_mode="tf_half_pixel_for_nn") for target in TARGETS),
    *(_resize((18,), target, mode=mode, antialias=1) for target, mode in itertools.product(TARGETS, ("linear", "cubic"))),
    _resize((13,), TARGETS[1], mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1),
    _resize((18,), {"sizes": (3, 9)}, mode="linear", axes=[2, 3], keep_aspect_ratio_policy="not_larger"),
    _resize((18,), {"sizes": (3, 9)}, mode="linear", axes=[3, 2], keep_aspect_ratio_policy="not_smaller"),
    _resize((19,), TARGETS[1], mode="linear", coordinate_transformation_mode="half_pixel_symmetric"),
    Case("Resize", [X, np.array([1, 1, 2, 3], np.float32)], (10,)),
    Case("Resize", [X, np.array([1, 1, 2, 3], np.float32)], (10,), {"mode": "linear"}),
    Case("Upsample", [X, np.array([1, 1, 2, 3], np.float32)], (9,)),
    Case("Upsample", [X], (7,), {"scales": [1.0, 1.0, 2.0, 2.0], "mode": "linear"}),
]


@pytest.mark.parametrize(("case", "opset", "constants"), parameters(ELEMENTWISE + REDUCTIONS + LAYOUT + SLICING + RESIZING))
def test_matches_onnxruntime(case: Case, opset: int, constants: bool) -> None:
    case.check(opset, constants)
