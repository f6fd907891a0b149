"""Models and data read and checked; files written whole."""

from batude_onnx.loading.dataset import Dataset, holdout, load_dataset, preprocess
from batude_onnx.loading.fidelity import inherit
from batude_onnx.loading.inputs import InputSpec, input_specs
from batude_onnx.loading.model import external_files, load_model, without_functions
from batude_onnx.loading.runs import load_runs
from batude_onnx.loading.writing import check_writable, data_path, file_bytes, save_model, write_atomically, write_text

__all__ = [
    "Dataset",
    "InputSpec",
    "check_writable",
    "data_path",
    "external_files",
    "file_bytes",
    "holdout",
    "inherit",
    "input_specs",
    "load_dataset",
    "load_model",
    "load_runs",
    "preprocess",
    "save_model",
    "without_functions",
    "write_atomically",
    "write_text",
]
