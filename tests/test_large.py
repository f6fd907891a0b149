"""A large model through the whole tool: the same result as of a small one, in far less memory than its weights take."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from batude_onnx import untrained
from batude_onnx.errors import OutputError, ParityError
from batude_onnx.loading import data_path
from batude_onnx.pipeline import compress
from batude_onnx.records import FactorChain, Geometry, LayerSpec, Site
from batude_onnx.spool import Chains, Spool
from batude_onnx.validation import pieces, sessions
from tests.layer_models import values
from tests.pipelines import Listener, agree, check, settings_for
from tests.small_models import network
from tools.large.making import Plan, make

# About 134 MB in 64 layers of 2 MB, each of them factored in milliseconds.
PLAN = Plan(kernel=32, channels=32, wide=16384, kernels=0, points=24, linear=8)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "WHOLE_BYTES", 0)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 1000)


def external(folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(network(), path, save_as_external_data=True, location="model.bin", size_threshold=100)
    return path


def test_the_same_file_comes_out_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = external(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    run = settings_for(path, tmp_path, "1.5x", simplify=False)
    whole, parts = replace(run, output=tmp_path / "a.onnx"), replace(run, output=tmp_path / "b.onnx")
    first, watch = compress(whole), Listener()
    monkeypatch.setattr(sessions, "WHOLE_BYTES", 0)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 1000)
    second = compress(parts, watch)
    assert any("piece by piece" in line for line in watch.said)
    assert (first.ranks, first.methods, first.whole) == (second.ranks, second.methods, second.whole)
    assert first.comparison.latency
    assert not second.comparison.latency
    check(second, parts)
    agree(whole.output, parts.output, np.random.default_rng(0).standard_normal((3, 3, 8, 8), dtype=np.float32), 0)
    written = {"a.onnx", "a.onnx.data", "a.json", "b.onnx", "b.onnx.data", "b.json"}
    assert {file.name for file in tmp_path.iterdir()} == written | set(before), "something is left over"
    assert all((tmp_path / name).read_bytes() == content for name, content in before.items())
    assert data_path(parts.output).read_bytes() == data_path(whole.output).read_bytes()


def test_a_large_model_that_comes_out_wrong_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_pieces: None
) -> None:
    path = external(tmp_path)
    run = settings_for(path, tmp_path, "1.5x")
    right = untrained.as_stored

    def wrong(site: Site, node: ir.Node, ranks: tuple[int, ...]) -> FactorChain:
        chain = right(site, node, ranks)
        last = chain.layers[-1]
        return replace(chain, layers=(*chain.layers[:-1], replace(last, weight=last.weight * 1.01)))

    monkeypatch.setattr(untrained, "as_stored", wrong)
    with pytest.raises(ParityError, match="full rank"):
        compress(run)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.bin", "model.onnx"]


def test_chains_come_back_from_disk_as_they_were(tmp_path: Path) -> None:
    first = LayerSpec(values(4, 6, 1, 1, seed=1).transpose(1, 0, 2, 3), None, Geometry.pointwise(2))
    last = LayerSpec(values(8, 4, 3, 3, seed=2).astype(np.float64), values(8, seed=3), Geometry((2, 2), (1, 1, 1, 1), (1, 1)))
    with Spool(tmp_path) as spool:
        chains = Chains(spool)
        chains["a"] = FactorChain("one", (first, last), (4,))
        chains["b"] = FactorChain("two", (last,), (1,))
        assert list(chains) == ["a", "b"]
        assert (chains["a"].method, chains["a"].ranks, chains["b"].layers[0].geometry) == ("one", (4,), last.geometry)
        for layer, kept in ((first, chains["a"].layers[0]), (last, chains["a"].layers[1]), (last, chains["b"].layers[0])):
            assert kept.weight.dtype == layer.weight.dtype
            np.testing.assert_array_equal(kept.weight, layer.weight)
            assert (kept.bias is None) == (layer.bias is None)
        assert [folder.is_dir() for folder in tmp_path.iterdir()] == [True]
    assert not list(tmp_path.iterdir())


def test_a_spool_without_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="none"):
        Spool(tmp_path / "none")


GROWTH = """
import sys
from pathlib import Path
from batude_onnx.pipeline import compress, inspect
from batude_onnx.settings import Settings
from batude_onnx.validation import memory, pieces, sessions

def peak():
    return memory.peak_so_far() / 2**20

sessions.WHOLE_BYTES, pieces.PIECE_BYTES = int(sys.argv[2]), 1_000_000
path = Path(sys.argv[1])
inspect(path)
before = peak()
compress(Settings(model=path, output=path.with_name("out.onnx"), budget="1.5x", threads=1))
print(peak() - before)
"""


def growth(path: Path, whole: int) -> float:
    """By how many MB compressing in a process of its own raises the peak of its memory; up to `whole` bytes are held whole."""
    done = subprocess.run([sys.executable, "-c", GROWTH, str(path), str(whole)], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return float(done.stdout.splitlines()[-1])


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """And the twin: a run that holds the model whole takes more than its weights."""
    path = tmp_path / "large.onnx"
    size = make(path, PLAN) / 1e6
    assert size > 120
    assert growth(path, 0) < 0.75 * size
    assert growth(path, 10**9) > 2 * size
