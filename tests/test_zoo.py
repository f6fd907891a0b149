"""The page of real models, from records as a run leaves them; and a run of a small one."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from batude_onnx.feeding import read_inputs
from tests.cli_places import indexed, no_layers, picky
from tools.zoo.models import MODELS, Model
from tools.zoo.rendering import render
from tools.zoo.running import run


def test_every_model_is_named_once_and_its_inputs_are_understood() -> None:
    assert len({model.name for model in MODELS}) == len(MODELS)
    for model in MODELS:
        read_inputs(model.inputs)


def place_of(name: str, page: str) -> str:
    (row,) = [line for line in page.splitlines() if line.startswith(f"| {name} |")][:1]
    return row


def test_a_model_that_is_compressed(tmp_path: Path) -> None:
    """Two inputs, one of which is an index into a table."""
    indexed(tmp_path)
    record = run(Model("opennsfw", "", "model.onnx"), tmp_path / "model.onnx", tmp_path / "out.onnx")
    assert onnx.load(tmp_path / "out.onnx").graph.node
    assert (record["layers"], record["compressible"], record["imported"]) == (1, 1, "whole")
    assert record["inputs"] == {"x": [1, 3, 4, 4], "i": [1]}
    assert record["macs"] * 1.5 <= record["cost"]["macs"] * 1.01
    row = place_of("opennsfw", render({"opennsfw": record}))
    assert "| 3 | 3 | 18 | 1x3x4x4, 1 | 1 of 1 | whole | 0.0 → 0.0 M |" in row
    assert "failed" not in row


@pytest.mark.parametrize(
    ("make", "key", "said"), [(no_layers, "refused", "nothing to compress"), (picky, "failed", "--dim H=SIZE")]
)
def test_a_refusal_is_no_failure(tmp_path: Path, make: object, key: str, said: str) -> None:
    assert callable(make)
    make(tmp_path)
    record = run(Model("vdsr", "", "model.onnx"), tmp_path / "model.onnx", tmp_path / "out.onnx")
    assert {"refused", "failed"} & set(record) == {key}
    assert str(tmp_path) not in record[key]
    row = place_of("vdsr", render({"vdsr": record}))
    assert said in row
    assert ("**failed**" in row) == (key == "failed")


def test_a_model_without_a_record_is_not_run() -> None:
    assert "| not run |" in place_of("vdsr", render({}))


def test_what_was_said_of_a_model_that_is_slower_stands_on_the_page(tmp_path: Path) -> None:
    indexed(tmp_path)
    record = run(Model("opennsfw", "", "model.onnx"), tmp_path / "model.onnx", tmp_path / "out.onnx")
    assert any("full rank" in line for line in record["said"])
    line = "no ranks within the budget are as fast as the original"
    slower, faster = ({**record, "latency": ratio, "said": [*record["said"], line]} for ratio in (0.9, 1.0))
    page = render({"opennsfw": slower, "vdsr": faster})
    assert page.count(line) == 1
    assert f"- `opennsfw`: {line}" in page
    assert "slower" not in render({"vdsr": faster})
