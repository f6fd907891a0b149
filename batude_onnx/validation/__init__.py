"""The written file proved in onnxruntime: the same outputs, how good, how fast."""

from batude_onnx.validation.accuracy import agreement, classification, is_classifier
from batude_onnx.validation.blocks import channel_block
from batude_onnx.validation.divergence import first_divergence
from batude_onnx.validation.exposing import exposed
from batude_onnx.validation.latency import compare_latency, cpu_name
from batude_onnx.validation.measuring import measure_shapes
from batude_onnx.validation.memory import peak_memory
from batude_onnx.validation.parity import compare, require
from batude_onnx.validation.profiling import Feeds, Kernel, profile, profiled
from batude_onnx.validation.randomness import draws
from batude_onnx.validation.sessions import Session, in_pieces, open_file, open_graph, open_session, run_batched, runtime_version

__all__ = [
    "Feeds",
    "Kernel",
    "Session",
    "agreement",
    "channel_block",
    "classification",
    "compare",
    "compare_latency",
    "cpu_name",
    "draws",
    "exposed",
    "first_divergence",
    "in_pieces",
    "is_classifier",
    "measure_shapes",
    "open_file",
    "open_graph",
    "open_session",
    "peak_memory",
    "profile",
    "profiled",
    "require",
    "run_batched",
    "runtime_version",
]
