"""Runs of the whole pipeline and what every one of them must hold."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from batude_onnx.loading import preprocess
from batude_onnx.pipeline import inspect
from batude_onnx.records import Verdict
from batude_onnx.settings import Settings, Source, Watch
from batude_onnx.training.loop import Progress
from batude_onnx.validation import open_session
from tests.layer_models import one_node, values


class Listener(Watch):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.counted: list[tuple[str, int, int]] = []
        self.phases: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def count(self, what: str, done: int, total: int) -> None:
        self.counted.append((what, done, total))

    def train(self, progress: Progress) -> None:
        self.phases.append(progress.phase)


def saved(proto: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    onnx.checker.check_model(proto, full_check=True)
    path = folder / name
    onnx.save(proto, path)
    return path


def settings_for(model: Path, folder: Path, budget: str, data: Path | Source | None = None, **options: Any) -> Settings:
    source = Source(data) if isinstance(data, Path) else data
    return Settings(model=model, output=folder / "out.onnx", budget=budget, data=source, threads=1, **options)


def stored(path: Path) -> int:
    """Floating-point weights in a file, counted without the package."""
    model = onnx.load(path)
    held = list(model.graph.initializer)
    held += [attribute.t for node in model.graph.node if node.op_type == "Constant" for attribute in node.attribute]
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
    return sum(int(np.prod(tensor.dims)) for tensor in held if tensor.data_type in kinds)


def conv_macs(path: Path, x: tuple[int, ...]) -> int:
    """MACs of one sample of a file of Conv and Gemm, from the shapes of a run in onnxruntime, without the package's count."""
    model = onnx.load(path)
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=n.output[0]) for n in layers if n.output[0] not in known)
    outputs = open_session(model.SerializeToString(), threads=1).run({"x": values(1, *x[1:])})
    total = 0
    for node in layers:
        positions = np.prod(outputs[node.output[0]].shape[2:]) if node.op_type == "Conv" else 1
        total += int(np.prod(weights[node.input[1]]) * positions)
    return total


def check(verdict: Verdict, settings: Settings) -> onnx.ModelProto:
    """What must hold of every finished run."""
    output = settings.output
    before, after = onnx.load(settings.model), onnx.load(output)
    onnx.checker.check_model(after, full_check=True)
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    assert (after.opset_import, after.ir_version) == (before.opset_import, before.ir_version)
    for limit in verdict.budget.limits:
        if limit.metric in ("params", "macs"):
            assert verdict.comparison.cost_other.of(limit.metric) <= limit.limit
        if limit.metric == "params":
            assert stored(output) <= limit.limit
        if limit.metric == "size":
            assert output.stat().st_size <= limit.limit
    assert stored(output) == verdict.comparison.cost_other.params
    assert stored(settings.model) == verdict.comparison.cost_original.params
    assert all(difference.within for difference in (*verdict.surgery, *verdict.parity))
    assert not set(verdict.ranks) & set(verdict.whole)
    assert set(verdict.ranks) | set(verdict.whole) == {site.key for site in inspect(settings.model, settings.inputs).sites}
    properties = {prop.key: prop.value for prop in after.metadata_props}
    assert json.loads(properties["batude_onnx.ranks"]) == {key: list(ranks) for key, ranks in verdict.ranks.items()}
    assert properties["batude_onnx.budget"].startswith(verdict.budget.limits[0].text)
    report = json.loads(output.with_suffix(".json").read_text())
    assert report == json.loads(json.dumps(asdict(verdict)))
    return after


def agree(first: Path, second: Path, x: np.ndarray[Any, Any], atol: float) -> None:
    a, b = (open_session(path, threads=1).run({"x": x}) for path in (first, second))
    for name in a:
        np.testing.assert_allclose(b[name], a[name], atol=atol, rtol=atol)


def floats(cifar_slice: Path, folder: Path) -> Path:
    """The slice as float32 (N, C, H, W) without labels or a test split."""
    with np.load(cifar_slice) as data:
        x = preprocess(data["x_train"], data["mean"], data["std"])
    path = folder / "floats.npz"
    np.savez(path, x_train=x)
    return path


def unlabelled(cifar_slice: Path, folder: Path) -> Path:
    with np.load(cifar_slice) as data:
        np.savez(folder / "unlabelled.npz", **{key: data[key] for key in ("x_train", "x_test", "mean", "std")})
    return folder / "unlabelled.npz"


def half() -> onnx.ModelProto:
    held = {"w": values(12, 8, 3, 3).astype(np.float16)}
    return one_node(helper.make_node("Conv", ["x", "w"], ["y"]), (2, 8, 9, 8), (2, 12, 7, 6), held, kind=TensorProto.FLOAT16)
