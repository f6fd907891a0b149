"""What docs/SPEED.md is made of: the pruner of channels, the roofline, and the page itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from batude_onnx.loading import load_model
from batude_onnx.pipeline import compress, inspect
from batude_onnx.settings import LayerWishes, Settings
from batude_onnx.validation import open_file
from tools.networks import BasicBlock
from tools.speed import channels, equal, page, roofline, rows

MODEL = Path("models/resnet20-cifar10.onnx")


def test_the_network_that_is_pruned_is_the_one_in_the_file() -> None:
    x = np.random.default_rng(0).standard_normal((3, 3, 32, 32), np.float32)
    (expected,) = open_file(MODEL, load_model(MODEL)).run({"input": x}).values()
    with torch.no_grad():
        np.testing.assert_allclose(channels.dense(MODEL)(torch.from_numpy(x)).numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("everywhere", [False, True])
def test_channels_go_within_blocks_only(everywhere: bool) -> None:
    thin = channels.pruned(channels.dense(MODEL), channels.Way(everywhere, 4), 0.5)
    blocks = [block for block in thin.modules() if isinstance(block, BasicBlock)]
    inner = [block.conv1.out_channels for block in blocks]
    assert all(width % 4 == 0 for width in inner)
    assert 0.4 <= sum(inner) / (3 * (16 + 32 + 64)) <= 0.6
    assert [block.conv2.out_channels for block in blocks] == [16] * 3 + [32] * 3 + [64] * 3
    assert [block.conv2.in_channels for block in blocks] == inner
    assert thin(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


# torch's exporter uses what torch has deprecated.
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_the_least_is_pruned_that_reaches_the_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed told by the parameters, so that the answer does not hang on the machine."""
    net, way, path = channels.dense(MODEL), channels.Way(False, 4), tmp_path / "thin.onnx"
    whole = inspect(MODEL).cost.params
    monkeypatch.setattr(channels, "STEPS", 2)

    def speed(file: Path) -> float:
        return whole / inspect(file).cost.params

    assert channels.to_speed(net, way, 2.0, path, speed) is not None
    assert 2.0 <= speed(path) < 4.0
    monkeypatch.setattr(channels, "STEPS", 1)
    assert channels.to_speed(net, way, 1e6, path, speed) is None


def test_the_roofline_of_a_layer_is_what_bounds_it(tmp_path: Path) -> None:
    output = tmp_path / "small.onnx"
    wishes = LayerWishes(include=("getitem_54",), ranks={"getitem_54": (16, 8)})
    compress(Settings(MODEL, output, "1.05x", threads=1, layers=wishes))
    work, memory = roofline.Machine(macs=1e3, bytes=1e12), roofline.Machine(macs=1e12, bytes=1e3)
    layers: Any = [roofline.against(machine, MODEL, output)["layers"] for machine in (work, memory)]
    assert len(layers[0]) == 20
    macs, moved = (found["getitem_54"] for found in layers)
    chain = 64 * 8 * 64 + 9 * 16 * 8 * 64 + 16 * 64 * 64
    assert macs == pytest.approx({"first": 9 * 64 * 64 * 64 / 1e3, "other": chain / 1e3, "fused": chain / 1e3})
    weights, ends, inner = 64 * 8 + 9 * 16 * 8 + 16 * 64, 2 * 64 * 64, (16 + 8) * 64
    first, other, fused = 9 * 64 * 64 + ends, weights + ends + 2 * inner, weights + ends
    assert moved == pytest.approx({"first": 4 * first / 1e3, "other": 4 * other / 1e3, "fused": 4 * fused / 1e3})


def test_a_machine_has_rates() -> None:
    found = roofline.measure(1)
    assert 1e5 < found.macs < 1e10
    assert 1e5 < found.bytes < 1e10


def test_rows_that_were_not_run_say_so() -> None:
    empty = page.render({})
    assert empty.count("not run") == len(rows.ROWS) + len(equal.ROWS)
    assert "Not run." in empty
