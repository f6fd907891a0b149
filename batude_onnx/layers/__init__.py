"""The kinds of layer that can be decomposed. Importing the room registers them."""

from batude_onnx.layers import constants
from batude_onnx.layers import conv as conv
from batude_onnx.layers import conv_transpose as conv_transpose
from batude_onnx.layers import linear as linear
from batude_onnx.layers.find import copied_biases, count, find_sites, nodes_by_key, read_bias, read_weight, stored_type
from batude_onnx.layers.registry import Maker, kind_of
from batude_onnx.layers.shapes import infer_shapes

__all__ = [
    "Maker",
    "constants",
    "copied_biases",
    "count",
    "find_sites",
    "infer_shapes",
    "kind_of",
    "nodes_by_key",
    "read_bias",
    "read_weight",
    "stored_type",
]
