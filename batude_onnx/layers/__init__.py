"""The kinds of layer that can be decomposed. Importing the room registers them."""

from batude_onnx.layers import constants
from batude_onnx.layers import conv as conv
from batude_onnx.layers import conv_transpose as conv_transpose
from batude_onnx.layers import foreign as foreign
from batude_onnx.layers import linear as linear
from batude_onnx.layers.conv_transpose import link as conv_link
from batude_onnx.layers.find import (
    constants_by_name,
    copied_biases,
    count,
    find_sites,
    in_half,
    nodes_by_key,
    read_bias,
    read_weight,
)
from batude_onnx.layers.registry import Maker, bias_type, kind_of, ops, weight_type
from batude_onnx.layers.scopes import all_graphs, all_nodes, distinct, holders
from batude_onnx.layers.shapes import infer_shapes
from batude_onnx.layers.twins import twins

__all__ = [
    "Maker",
    "all_graphs",
    "all_nodes",
    "bias_type",
    "constants",
    "constants_by_name",
    "conv_link",
    "copied_biases",
    "count",
    "distinct",
    "find_sites",
    "holders",
    "in_half",
    "infer_shapes",
    "kind_of",
    "nodes_by_key",
    "ops",
    "read_bias",
    "read_weight",
    "twins",
    "weight_type",
]
