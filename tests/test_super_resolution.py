"""Patches for, and scores of, super-resolution networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper
from PIL import Image

from tests.loading_models import model_of
from tools.super_resolution import cut_patches, enlarged, luma, main, psnr


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two smooth colour pictures and a grey one, 60 x 50, each with its copy shrunk and enlarged by 2."""
    rng = np.random.default_rng(0)
    for number in range(3):
        small = Image.fromarray(rng.integers(0, 256, (8, 9, 3), dtype=np.uint8)).resize((60, 50), Image.Resampling.BICUBIC)
        picture = small.convert("L") if number == 2 else small
        picture.save(tmp_path / f"p{number}_GT.bmp")
        soft = picture.resize((30, 25), Image.Resampling.BICUBIC).resize((60, 50), Image.Resampling.BICUBIC)
        soft.save(tmp_path / f"p{number}_GT_scale_2.bmp")
    return tmp_path


def test_luma_runs_from_16_to_235() -> None:
    ends = luma(np.array([[[0, 0, 0], [255, 255, 255]]], dtype=np.uint8))
    np.testing.assert_allclose(ends * 255, [[16, 235]], atol=1e-3)


def test_psnr_is_in_decibels_for_a_peak_of_one_within_the_border() -> None:
    truth = np.full((10, 10), 0.5, dtype=np.float32)
    ours = truth + 0.1
    ours[0] = 1.0  # in the border, which does not count
    assert psnr(ours, truth, 2) == pytest.approx(20.0, abs=1e-4)
    assert psnr(truth + 0.01, truth, 2) == pytest.approx(40.0, abs=1e-4)


def test_enlarging_loses_detail_and_keeps_the_size() -> None:
    image = np.random.default_rng(0).random((20, 31)).astype(np.float32)
    soft = enlarged(image, 3)
    assert soft.shape == image.shape
    assert soft.std() < 0.7 * image.std()


def test_patches_come_from_all_pictures_in_the_same_way_each_time(pictures: Path) -> None:
    one, other = cut_patches(pictures, 40, 16, 0), cut_patches(pictures, 40, 16, 0)
    assert one.shape == (40, 1, 16, 16)
    assert one.dtype == np.float32
    np.testing.assert_array_equal(one, other)
    assert not np.array_equal(one, cut_patches(pictures, 40, 16, 1))


def test_a_network_that_changes_nothing_scores_as_bicubic_does(pictures: Path) -> None:
    sizes: list[str | int | None] = ["N", 1, "H", "W"]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name in "xy")
    onnx.save(model_of([helper.make_node("Identity", ["x"], ["y"])], [x], [y], {}), pictures / "same.onnx")
    result = CliRunner().invoke(main, ["score", str(pictures), str(pictures / "same.onnx")])
    assert result.exit_code == 0, result.output
    bicubic, ours = result.output.splitlines()
    assert bicubic.split()[1] == ours.split()[1]
    assert ours.endswith("over 3 pictures")
    assert CliRunner().invoke(main, ["score", str(pictures), str(pictures / "same.onnx"), "--scale", "4"]).exit_code == 1


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    result = CliRunner().invoke(main, ["patches", str(tmp_path), str(tmp_path / "out.npz")])
    assert result.exit_code == 1
    assert "bad.png: not a readable picture" in result.output
    assert not (tmp_path / "out.npz").exists()
