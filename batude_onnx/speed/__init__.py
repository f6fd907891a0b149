"""What a layer costs in time, on the machine and in the runtime that the user names."""

from batude_onnx.speed.attribution import attribute, lengths, links
from batude_onnx.speed.model import SpeedModel
from batude_onnx.speed.skeleton import skeleton
from batude_onnx.speed.timing import timed

__all__ = ["SpeedModel", "attribute", "lengths", "links", "skeleton", "timed"]
