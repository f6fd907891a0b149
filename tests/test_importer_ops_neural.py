"""Convolutions, pools, normalisations, activations and linear layers against onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from tests.importer_cases import Case, parameters
from tests.importer_graphs import Array, floats, imported, model_of, reference, results_of

X1, X2, X3 = floats(2, 4, 9), floats(2, 4, 7, 8), floats(2, 4, 5, 6, 5)
OPSETS = (9, 11, 13, 17, 21)
NEW = (18, 21)

CONVOLUTIONS = [
    Case("Conv", [X2, floats(6, 4, 3, 3, seed=1), floats(6, seed=2)], OPSETS, {"pads": [1, 1, 1, 1], "strides": [2, 1]}),
    Case("Conv", [X2, floats(6, 4, 3, 3, seed=1)], OPSETS, {"pads": [0, 1, 2, 1], "kernel_shape": [3, 3]}),
    Case("Conv", [X2, floats(4, 1, 3, 3, seed=1), floats(4)], (11, 22), {"group": 4, "dilations": [2, 2]}),
    Case("Conv", [X2, floats(6, 2, 2, 3, seed=1)], (11, 22), {"group": 2, "auto_pad": "SAME_UPPER", "strides": [2, 3]}),
    Case("Conv", [X2, floats(6, 4, 4, 3, seed=1)], (11, 22), {"auto_pad": "SAME_LOWER", "strides": [2, 1]}),
    Case("Conv", [X2, floats(6, 4, 3, 3, seed=1)], (11,), {"auto_pad": "VALID"}),
    Case("Conv", [X1, floats(6, 4, 3, seed=1), floats(6)], (11, 17), {"pads": [2, 1], "dilations": [2]}),
    Case("Conv", [X3, floats(2, 4, 3, 2, 3, seed=1)], (11, 17), {"strides": [2, 1, 1], "pads": [1, 0, 1, 1, 1, 1]}),
    Case("ConvTranspose", [X2, floats(4, 3, 3, 3, seed=1), floats(3)], OPSETS, {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("ConvTranspose", [X2, floats(4, 3, 3, 3, seed=1)], (11,), {"strides": [2, 2], "pads": [1, 0, 0, 2]}),
    Case("ConvTranspose", [X2, floats(4, 3, 2, 2, seed=1), floats(6)], (11, 22), {"group": 2, "strides": [2, 2]}),
    Case("ConvTranspose", [X2, floats(4, 3, 3, 3, seed=1)], (11,), {"strides": [2, 2], "output_padding": [1, 1]}),
    Case("ConvTranspose", [X2, floats(4, 3, 4, 3, seed=1)], (11,), {"strides": [2, 3], "auto_pad": "SAME_UPPER"}),
    Case("ConvTranspose", [X2, floats(4, 3, 1, 1, seed=1)], (11,), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    Case("ConvTranspose", [X2, floats(4, 3, 3, 3), floats(3)], (11,), {"strides": [3, 2], "output_shape": [22, 16]}),
    Case("ConvTranspose", [X1, floats(4, 3, 3, seed=1), floats(3)], (11,), {"strides": [2], "dilations": [2]}),
]

POOLS = [
    Case("MaxPool", [X2], OPSETS, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("MaxPool", [X2], (10, 19), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "pads": [0, 0, 1, 1]}),
    Case("MaxPool", [X2], (10, 22), {"kernel_shape": [2, 2], "dilations": [2, 2], "pads": [1, 0, 1, 1]}),
    Case("MaxPool", [X2], (9, 13), {"kernel_shape": [2, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    Case("MaxPool", [X1], (11,), {"kernel_shape": [3], "auto_pad": "SAME_LOWER"}),
    Case("MaxPool", [X3], (11,), {"kernel_shape": [2, 2, 2], "strides": [2, 2, 2]}),
    Case("AveragePool", [X2], OPSETS, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("AveragePool", [X2], OPSETS, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    Case("AveragePool", [X2], (11, 19), {"kernel_shape": [2, 2], "strides": [3, 3], "pads": [0, 1, 1, 0], "ceil_mode": 1}),
    Case("AveragePool", [X2], (11,), {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1], "count_include_pad": 1}),
    Case("AveragePool", [X2], (13,), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    Case("AveragePool", [X2], (19, 22), {"kernel_shape": [2, 2], "dilations": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("AveragePool", [X1], (11,), {"kernel_shape": [2], "strides": [2]}),
    Case("LpPool", [X2], (11, 18), {"kernel_shape": [2, 2], "strides": [2, 2], "p": 3}),
    Case("GlobalAveragePool", [X2], OPSETS),
    Case("GlobalMaxPool", [X3], OPSETS),
    Case("GlobalLpPool", [X2], (11,), {"p": 2}),
]

MOMENTS: list[Array] = [floats(4, seed=3), floats(4, seed=4), floats(4, seed=5), np.abs(floats(4, seed=6)) + 0.5]
NORMALISATIONS = [
    Case("BatchNormalization", [X2, *MOMENTS], OPSETS, {"epsilon": 1e-3}),
    Case("BatchNormalization", [X1, *MOMENTS], (9, 15)),
    Case("LayerNormalization", [X2, floats(8), floats(8, seed=1)], (17,)),
    Case("LayerNormalization", [X2, floats(7, 8)], (17,), {"axis": 2, "epsilon": 1e-2}),
    Case("LayerNormalization", [X2, floats(4, 7, 8), floats(4, 7, 8, seed=1)], (17,), {"axis": 1}),
    Case("InstanceNormalization", [X2, floats(4), floats(4, seed=1)], OPSETS, {"epsilon": 1e-3}),
    Case("GroupNormalization", [X2, floats(2), floats(2, seed=1)], (18,), {"num_groups": 2}),
    Case("GroupNormalization", [X2, floats(4), floats(4, seed=1)], (21,), {"num_groups": 2}),
    Case("LRN", [floats(2, 7, 4, 4)], OPSETS, {"size": 5, "alpha": 0.3, "beta": 0.6, "bias": 1.5}),
    Case("LRN", [floats(2, 7, 4, 4)], (13,), {"size": 3}),
    Case("LpNormalization", [X2], OPSETS, {"axis": 1, "p": 2}),
    Case("LpNormalization", [X2], (11,), {"axis": -1, "p": 1}),
    Case("MeanVarianceNormalization", [X2], (13,)),
]

WIDE = X2 * 4
ACTIVATIONS = [
    *(Case(op, [WIDE], OPSETS) for op in ("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign")),
    *(Case(op, [WIDE], OPSETS) for op in ("LeakyRelu", "Elu", "Selu", "HardSigmoid")),
    Case("LeakyRelu", [WIDE], (13,), {"alpha": 0.2}),
    Case("Elu", [WIDE], (13,), {"alpha": 0.7}),
    Case("Selu", [WIDE], (13,), {"alpha": 1.2, "gamma": 0.9}),
    Case("HardSigmoid", [WIDE], (13,), {"alpha": 1 / 6, "beta": 0.5}),
    Case("Celu", [WIDE], (12, 17), {"alpha": 0.8}),
    Case("ThresholdedRelu", [WIDE], (11,), {"alpha": 0.8}),
    Case("Shrink", [WIDE], (11,), {"lambd": 0.6, "bias": 0.2}),
    Case("HardSwish", [WIDE], (14, 22)),
    Case("Mish", [WIDE], (18,)),
    Case("Swish", [WIDE], (24,), {"alpha": 0.7}),
    Case("Gelu", [WIDE], (20,)),
    Case("Gelu", [WIDE], (20,), {"approximate": "tanh"}),
    Case("PRelu", [WIDE, floats(4, 1, 1, seed=1)], OPSETS),
    Case("PRelu", [WIDE, floats(1, seed=1)], (11,)),
    Case("PRelu", [WIDE, floats(8, seed=1)], (11,)),
    Case("Clip", [WIDE], (9,), {"min": -1.0, "max": 2.0}),
    Case("Clip", [WIDE, np.array(0, np.float32), np.array(6, np.float32)], (11, 13, 17)),
    Case("Clip", [WIDE, None, np.array(0.5, np.float32)], (13,)),
    Case("Clip", [WIDE], (13,)),
    *(Case(op, [WIDE], OPSETS) for op in ("Softmax", "LogSoftmax")),
    *(Case(op, [WIDE], OPSETS, {"axis": 2}) for op in ("Softmax", "LogSoftmax")),
    Case("Hardmax", [WIDE], (13,), {"axis": 1}),
]

A, B, C = floats(5, 6), floats(6, 3, seed=1), floats(3, seed=2)
LINEAR = [
    Case("Gemm", [A, B, C], OPSETS),
    Case("Gemm", [A, np.ascontiguousarray(B.T), C], OPSETS, {"transB": 1}),
    Case("Gemm", [A, B], (11, 13)),
    Case("Gemm", [A, B, floats(5, 1)], (11,), {"alpha": 0.5, "beta": 2.0}),
    Case("Gemm", [np.ascontiguousarray(A.T), B, floats(5, 3)], (13,), {"transA": 1, "beta": 0.0}),
    Case("MatMul", [A, B], OPSETS),
    Case("MatMul", [floats(2, 4, 5, 6), B], (13,)),
    Case("MatMul", [floats(2, 1, 5, 6), floats(4, 6, 3, seed=1)], (13,)),
    Case("Einsum", [floats(2, 5, 6), B], (12, 17), {"equation": "bij, jk -> bki"}),
]


@pytest.mark.parametrize(("case", "opset", "constants"), parameters(CONVOLUTIONS + POOLS + NORMALISATIONS + ACTIVATIONS + LINEAR))
def test_matches_onnxruntime(case: Case, opset: int, constants: bool) -> None:
    case.check(opset, constants)


def test_a_wrong_attribute_is_noticed() -> None:
    """The twin of the test above: the comparison does fail where the importer would compute something else."""
    right = Case("LeakyRelu", [WIDE], (13,), {"alpha": 0.2})
    right.check(13, True)
    model = model_of([helper.make_node("LeakyRelu", ["x"], ["y"], alpha=0.2)], {"x": WIDE}, ["y"])
    wrong = model_of([helper.make_node("LeakyRelu", ["x"], ["y"], alpha=0.2001)], {"x": WIDE}, ["y"])
    found = results_of(imported(wrong), {"x": WIDE})
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(found[0], reference(model, {"x": WIDE})[0], rtol=1e-5, atol=1e-5)
