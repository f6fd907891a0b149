"""Low-rank factorisations of one layer. Importing the room registers its methods."""

from batude_onnx.decomposition import cp as cp
from batude_onnx.decomposition import separable as separable
from batude_onnx.decomposition import svd as svd
from batude_onnx.decomposition import tucker1 as tucker1
from batude_onnx.decomposition import tucker2 as tucker2
from batude_onnx.decomposition.linalg import Metric
from batude_onnx.decomposition.registry import (
    Method,
    alternatives,
    assign,
    dense_cost,
    max_ranks,
    method,
    method_of,
    methods,
    ones,
    register,
)

__all__ = [
    "Method",
    "Metric",
    "alternatives",
    "assign",
    "dense_cost",
    "max_ranks",
    "method",
    "method_of",
    "methods",
    "ones",
    "register",
]
