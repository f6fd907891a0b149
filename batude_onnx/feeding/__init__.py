"""What a model is fed where no data are given: sizes, ranges and values of every input."""

from batude_onnx.feeding.feeding import Feeding, senseless, settle
from batude_onnx.feeding.text import read_dims, read_inputs

__all__ = ["Feeding", "read_dims", "read_inputs", "senseless", "settle"]
