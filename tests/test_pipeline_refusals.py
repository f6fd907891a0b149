"""Proofs that fail, input that cannot be used, and what is said of files alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from batude_onnx import pipeline, proving, rewriting, surgery, untrained
from batude_onnx.errors import (
    BatudeError,
    BudgetMissedError,
    NothingToCompressError,
    OutputError,
    ParityError,
    RuntimeMissingError,
)
from batude_onnx.pipeline import compress, inspect, validate
from batude_onnx.records import Cost, FactorChain
from batude_onnx.settings import Source
from tests.layer_models import one_node, values
from tests.pipelines import Listener, check, half, saved, settings_for, stored


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def spoiled(model: ir.Model) -> ir.Model:
    """Its first large weight is off by a hundredth."""
    value = next(v for v in model.graph.initializers.values() if v.const_value is not None and v.const_value.size > 50)
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy() + np.float32(0.01), name=value.name)
    return model


Patch = Callable[[pytest.MonkeyPatch], None]


def wrong_simplify(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pipeline, "simplify", lambda model, shapes: spoiled(model.clone()))


def wrong_rewrite(calls: int) -> Patch:
    """Spoils the result of the rewrite of that number: the first four are the proof of the surgery, the last the file's own."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        seen: list[int] = []

        def rewrite(*args: Any, **kwargs: Any) -> ir.Model:
            seen.append(1)
            result = rewriting.rewrite(*args, **kwargs)
            return spoiled(result) if len(seen) == calls else result

        for place in (surgery, pipeline):
            patch.setattr(place, "rewrite", rewrite)

    return apply


def wrong_chain(patch: pytest.MonkeyPatch) -> None:
    """A bias is lost on the way into the chain."""
    real = untrained.factor

    def factor(*args: Any) -> FactorChain:
        chain = real(*args)
        *first, last = chain.layers
        return replace(chain, layers=(*first, replace(last, bias=None)))

    patch.setattr(untrained, "factor", factor)


def too_large(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pipeline, "survey", lambda *args: replace(proving.survey(*args), cost=Cost(10**6, 10**9)))


FAILURES: dict[str, tuple[Patch, type[BatudeError], str]] = {
    "simplify": (wrong_simplify, ParityError, "the written file does not compute what was trained: output 'y' is off by"),
    "surgery": (wrong_rewrite(1), ParityError, "the rewrite at full rank does not equal the original: output 'y' is off by"),
    "surgery of the other method": (wrong_rewrite(2), ParityError, "the rewrite at full rank does not equal the original"),
    "rewrite": (wrong_rewrite(5), ParityError, "the written file does not compute what was trained: output 'y' is off by"),
    "chain": (wrong_chain, ParityError, "the rewrite at full rank does not equal the original"),
    "count": (too_large, BudgetMissedError, "has 1,000,000 params, the budget '2x' allows 8,549 params; nothing was written"),
}


@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.parametrize("there", [True, False])
def test_a_proof_that_fails_leaves_everything_as_it_was(
    trained: Path, cifar_slice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, there: bool
) -> None:
    patch, error, said = FAILURES[name]
    settings = settings_for(trained, tmp_path, "2x", cifar_slice, epochs=0.0)
    if there:
        settings.output.write_bytes(b"the old file")
        settings.output.with_suffix(".json").write_text("the old report")
    before = listing(tmp_path)
    patch(monkeypatch)
    with pytest.raises(error, match=said):
        compress(settings)
    assert listing(tmp_path) == before


def test_what_onnxsim_cannot_do_is_left_out_and_said(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> ir.Model:
        raise ParityError("onnxsim's result computes something else")

    monkeypatch.setattr(pipeline, "simplify", refuse)
    listener = Listener()
    settings = settings_for(trained, tmp_path, "2x")
    check(compress(settings, listener), settings)
    assert "not simplified: onnxsim's result computes something else" in listener.said


def test_the_report_may_not_replace_anything_that_is_read(trained: Path, cifar_slice: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="the run's report goes there"):
        compress(replace(settings_for(trained, tmp_path, "2x"), output=tmp_path / "out.json"))
    model = tmp_path / "out.json"
    model.write_bytes(trained.read_bytes())
    before = listing(tmp_path)
    with pytest.raises(OutputError, match="would overwrite the input"):
        compress(settings_for(model, tmp_path, "2x"))
    assert listing(tmp_path) == before


def test_nothing_to_compress_names_the_reasons(tmp_path: Path) -> None:
    relu = one_node(helper.make_node("Relu", ["x"], ["y"]), (2, 3), (2, 3), {})
    with pytest.raises(NothingToCompressError, match="no Conv, Gemm or MatMul"):
        compress(settings_for(saved(relu, tmp_path), tmp_path, "2x"))
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=8)
    depthwise = one_node(node, (2, 8, 9, 8), (2, 8, 7, 6), {"w": values(8, 1, 3, 3)})
    with pytest.raises(NothingToCompressError, match=r"1 layers, none of them compressible \(Conv y: depthwise"):
        compress(settings_for(saved(depthwise, tmp_path), tmp_path, "2x"))


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_a_device_that_is_not_there(trained: Path, tmp_path: Path, device: str) -> None:
    with pytest.raises(RuntimeMissingError, match=f"torch has no device '{device}' here .*use --device cpu"):
        compress(settings_for(trained, tmp_path, "2x", device=device))
    assert listing(tmp_path) == {}


def test_inspect_counts_without_touching(trained: Path) -> None:
    before = trained.read_bytes()
    seen = inspect(trained)
    assert [site.shape for site in seen.sites] == [(16, 3, 3, 3), (32, 16, 3, 3), (32, 32, 3, 3), (64, 32, 1, 1), (10, 64)]
    assert all(site.method for site in seen.sites)
    weights = 16 * 27 + 32 * 16 * 9 + 32 * 32 * 9 + 64 * 32 + 640
    assert seen.cost.params == stored(trained) == weights + 16 + 32 + 32 + 64 + 10
    assert seen.cost.macs == 16 * 27 * 1024 + 32 * 16 * 9 * 256 + 32 * 32 * 9 * 64 + 64 * 32 * 64 + 640
    assert trained.read_bytes() == before


def test_validate_says_how_two_files_differ(trained: Path, cifar_slice: Path, tmp_path: Path) -> None:
    same = validate(trained, trained, Source(cifar_slice), threads=1)
    assert [(d.output, d.max_absolute, d.within) for d in same.differences] == [("y", 0.0, True)]
    assert same.quality_other["top1_agreement"] == 100
    settings = settings_for(trained, tmp_path, "4x")
    compress(settings)
    other = validate(trained, settings.output, threads=1)
    assert not other.differences[0].within
    assert other.differences[0].max_absolute > 0.01
    assert other.cost_other.params <= other.cost_original.params / 4
    assert (other.original, other.other) == (str(trained), str(settings.output))


def test_validate_refuses_files_that_cannot_be_compared(trained: Path, tmp_path: Path) -> None:
    renamed = onnx.load(trained)
    renamed.graph.node[-1].output[0] = renamed.graph.output[0].name = "z"
    other = saved(renamed, tmp_path)
    with pytest.raises(ParityError, match="the outputs differ: y against z"):
        validate(trained, other)
    other = saved(half(), tmp_path)
    with pytest.raises(ParityError, match=r"the inputs differ: x: float32\[batch, 3, 32, 32\] against x: float16"):
        validate(trained, other)
