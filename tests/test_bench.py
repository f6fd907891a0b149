"""Two files run against each other, from the command line and layer by layer."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result
from rich.console import Console
from rich.table import Table

from batude_onnx import speed
from batude_onnx.cli import main
from batude_onnx.errors import ParityError
from batude_onnx.loading import load_model, save_model
from batude_onnx.proving import survey
from batude_onnx.records import Benchmark, LayerTime
from batude_onnx.report import benchmark_table, time_table
from batude_onnx.speed import skeleton
from batude_onnx.validation import peak_memory

MODEL = Path("models/resnet20-cifar10.onnx")


def text_of(table: Table) -> str:
    console = Console(width=120, record=True, quiet=False, file=StringIO())
    console.print(table)
    return console.export_text()


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, arguments), "--seconds", "0.1", "--threads", "1"])


@pytest.fixture(scope="module")
def slimmer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with its three last convolutions as chains, the very last one so large that it must be slower."""
    model = load_model(MODEL)
    sites = [site for site in survey(model).compressible if site.kernel][-3:]
    ranks = ((16, 16), (16, 16), (64, 64))
    path = tmp_path_factory.mktemp("bench") / "slimmer.onnx"
    save_model(skeleton(model, {site.key: (site, pair) for site, pair in zip(sites, ranks, strict=True)}), path)
    return path


@pytest.mark.alone
def test_layers_of_both_files_are_paired_and_the_slower_ones_named(slimmer: Path) -> None:
    told = bench(MODEL, slimmer, "--json")
    assert told.exit_code == 0, told.output
    found = json.loads(told.output)
    rows = {row["key"]: row for row in found["layers"]}
    assert len(rows) == 20
    assert [row["links"] for row in found["layers"]].count(3) == 3
    first, _, last = list(rows.values())[-4:-1]
    assert first["first_ms"] > first["other_ms"]
    assert first["macs_first"] > 5 * first["macs_other"] > 0
    assert last["macs_first"] < last["macs_other"]
    assert last["other_ms"] > last["first_ms"]
    assert found["macs_first"] == 40_551_040
    assert found["throughput"]["batch"] == 8
    assert found["latency"]["batch"] == 1
    assert all(size > 2**20 for size in found["memory"])


def test_tables_are_printed(slimmer: Path) -> None:
    told = bench(MODEL, slimmer, "--batch", "2")
    assert told.exit_code == 0, told.output
    for wanted in ("latency, batch 1", "throughput, batch 2", "peak memory", "all else"):
        assert wanted in told.output


def test_what_is_slower_is_named_and_what_is_not_is_not() -> None:
    rows = (LayerTime("a", 3, 1.0, 1.5, 10, 5), LayerTime("b", 1, 1.0, 1.01, 10, 0), LayerTime("c", 3, 0.01, 0.02, 10, 5))
    timing: dict[str, float | int | str] = {
        "ratio": 1.0,
        "spread": 0.0,
        "min_a_ms": 2.0,
        "min_b_ms": 1.0,
        "batch": 4,
        "provider": "cpu",
    }
    found = Benchmark("x", "y", timing, timing, (2**20, 2**21), rows, 0.5, 0.0, 20, 10)
    lines = text_of(time_table(found)).splitlines()
    assert "lost 0.500 ms" in next(line for line in lines if line.startswith("a "))
    # Twice the time of a layer that takes hardly any is no loss worth a name.
    assert not any("lost" in line for line in lines if line.startswith(("b ", "c ")))
    assert "2,000.0 /s" in text_of(benchmark_table(found))


def test_models_of_other_inputs_are_refused(tmp_path: Path) -> None:
    model = load_model(MODEL)
    model.graph.inputs[0].name = "other"
    other = tmp_path / "other.onnx"
    ir.save(model, other)
    told = bench(MODEL, other)
    assert told.exit_code == ParityError.exit_code
    assert "the inputs differ" in told.output


def test_chains_are_found_by_what_they_give_and_take(slimmer: Path) -> None:
    keys = [site.key for site in survey(load_model(MODEL)).sites]
    lengths = speed.lengths(load_model(slimmer), keys)
    assert sorted(lengths) == sorted(keys)
    assert sorted(lengths.values())[-4:] == [1, 3, 3, 3]
    assert speed.lengths(load_model(MODEL), ["nowhere"]) == {}


def test_a_larger_model_needs_more_memory(tmp_path: Path) -> None:
    values = ir.Tensor(np.zeros((3 * 32 * 32, 8192), np.float32), name="w")  # 96 MiB
    model = load_model(MODEL)
    weight = ir.Value(name="w", type=ir.TensorType(ir.DataType.FLOAT), shape=values.shape, const_value=values)
    flat = ir.node("Flatten", [model.graph.inputs[0]])
    more = ir.node("MatMul", [flat.outputs[0], weight])
    model.graph.register_initializer(weight)
    model.graph.extend([flat, more])
    model.graph.outputs.append(more.outputs[0])
    ir.save(model, tmp_path / "large.onnx")
    feeds = {"input": np.zeros((1, 3, 32, 32), np.float32)}
    small, large = (peak_memory(path, feeds, "cpu", 1) for path in (MODEL, tmp_path / "large.onnx"))
    assert large - small > 80 * 2**20
