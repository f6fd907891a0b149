"""Data sets: what is accepted comes out in one form, and every misfit is a DataError of one line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batude_onnx.errors import DataError
from batude_onnx.loading.dataset import Dataset, holdout, load_dataset, preprocess
from batude_onnx.loading.inputs import InputSpec
from batude_onnx.training.batches import Batches

SPEC = InputSpec("x", np.dtype(np.float32), ("N", 3, 6, 5))
N = 20


def images(n: int = N) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 6, 5, 3), dtype=np.uint8)


def floats(n: int = N) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((n, 3, 6, 5), dtype=np.float32)


def labels(n: int = N) -> np.ndarray:
    return np.arange(n) % 4


def load(folder: Path, arrays: dict[str, Any], spec: InputSpec = SPEC, classes: int | None = 4, **options: Any) -> Dataset:
    path = folder / "data.npz"
    np.savez_compressed(path, **arrays)
    return load_dataset(path, spec, classes, **options)


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_keras_names(tmp_path: Path) -> None:
    arrays = {"x_train": images(), "y_train": labels()[:, None].astype(np.uint8), "x_test": images(8), "y_test": labels(8)}
    data = load(tmp_path, {**arrays, "mean": [0.1, 0.2, 0.3], "std": np.array([0.5, 0.6, 0.7], dtype=np.float32)})
    assert data.y_train is not None
    assert data.x_test is not None
    assert data.y_test is not None
    assert data.mean is not None
    assert data.std is not None
    np.testing.assert_array_equal(data.x_train, images())
    np.testing.assert_array_equal(data.y_train, labels())
    assert data.y_train.dtype == np.int64
    assert data.x_test.shape == (8, 6, 5, 3)
    np.testing.assert_allclose(data.mean, [0.1, 0.2, 0.3])
    np.testing.assert_allclose(data.std, [0.5, 0.6, 0.7])


@pytest.mark.parametrize(("x", "y"), [("x", "y"), ("images", "labels"), ("x_train", "labels")])
def test_aliases(tmp_path: Path, x: str, y: str) -> None:
    data = load(tmp_path, {x: images(), y: labels()})
    assert data.y_train is not None
    assert data.x_test is None
    assert data.y_test is None


def test_samples_alone_are_enough(tmp_path: Path) -> None:
    data = load(tmp_path, {"x_train": images()})
    assert data.y_train is None
    np.testing.assert_array_equal(data.mean, np.zeros(3))
    np.testing.assert_array_equal(data.std, np.ones(3))


def test_options_override_the_file(tmp_path: Path) -> None:
    data = load(tmp_path, {"x": images(), "mean": [0.1] * 3, "std": [0.2] * 3}, mean=[0.5, 0.5, 0.5], std=[0.25])
    np.testing.assert_array_equal(data.mean, [0.5] * 3)
    np.testing.assert_array_equal(data.std, [0.25] * 3)


def test_one_npy_array(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, floats())
    data = load_dataset(path, SPEC, None)
    np.testing.assert_array_equal(data.x_train, floats())
    assert (data.y_train, data.mean, data.std) == (None, None, None)


def test_images_with_channels_first_are_turned(tmp_path: Path) -> None:
    data = load(tmp_path, {"x": images().transpose(0, 3, 1, 2)})
    np.testing.assert_array_equal(data.x_train, images())


def test_images_for_open_sizes(tmp_path: Path) -> None:
    data = load(tmp_path, {"x": images()}, InputSpec("x", np.dtype(np.float32), ("N", 3, "H", None)))
    assert data.x_train.shape == (N, 6, 5, 3)


def test_grey_images_without_a_channel_axis(tmp_path: Path) -> None:
    data = load(tmp_path, {"x": images()[..., 0]}, InputSpec("x", np.dtype(np.float32), ("N", 1, 6, 5)))
    assert data.x_train.shape == (N, 6, 5, 1)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_pass_untouched(tmp_path: Path, dtype: type[np.floating]) -> None:
    x = floats().astype(dtype)
    data = load(tmp_path, {"x": x, "mean": [9.0], "std": [9.0]})
    assert data.x_train.dtype == np.float32
    np.testing.assert_array_equal(data.x_train, x.astype(np.float32))
    assert (data.mean, data.std) == (None, None)


def test_a_fixed_batch_does_not_bound_the_samples(tmp_path: Path) -> None:
    assert len(load(tmp_path, {"x": floats()}, InputSpec("x", np.dtype(np.float32), (1, 3, 6, 5))).x_train) == N


def test_the_limit_is_a_fixed_random_part_of_training(tmp_path: Path) -> None:
    x = np.arange(N, dtype=np.float32)[:, None]
    spec = InputSpec("x", np.dtype(np.float32), ("N", 1))
    arrays = {"x_train": x, "y_train": np.arange(N), "x_test": x, "y_test": np.arange(N)}
    data, again = (load(tmp_path, arrays, spec, None, limit=7) for _ in range(2))
    assert data.y_train is not None
    assert data.x_test is not None
    np.testing.assert_array_equal(data.x_train, again.x_train)
    assert len(set(data.y_train)) == 7
    assert data.y_train.tolist() != list(range(7)), "sorted data would leave whole classes out"
    np.testing.assert_array_equal(data.x_train[:, 0], data.y_train)
    assert len(data.x_test) == N
    assert len(load(tmp_path, arrays, spec, None, limit=1000).x_train) == N


# name -> (arrays, options, what the message must say)
MISFITS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no samples key": ({"a": images(), "b": labels()}, {}, r"no x_train .* keys found: a, b"),
    "test labels alone": ({"x": images(), "y_test": labels()}, {}, "y_test but no x_test"),
    "zero samples": ({"x": images(0)}, {}, "x_train holds no samples"),
    "zero test samples": ({"x": images(), "x_test": images(0)}, {}, "x_test holds no samples"),
    "a scalar": ({"x": np.float32(1)}, {}, "x_train holds no samples"),
    "other size": ({"x": images()[:, :5]}, {}, r"shape \(20, 5, 5, 3\); .*x: float32\[N, 3, 6, 5\] wants .*\(N, 6, 5, 3\)"),
    "other channels": ({"x": images()[..., :2]}, {}, r"\(20, 6, 5, 2\)"),
    "flat floats": ({"x": floats().reshape(N, -1)}, {}, r"\(20, 90\).*wants floats \(N, 3, 6, 5\)"),
    "floats, channels last": ({"x": floats().transpose(0, 2, 3, 1)}, {}, r"transpose\(0, 3, 1, 2\)"),
    "int64 samples": ({"x": images().astype(np.int64)}, {}, "x_train is int64; give uint8"),
    "two types": ({"x_train": images(), "x_test": floats()}, {}, "x_train is uint8 but x_test is float32"),
    "text": ({"x": np.array(["a", "b"])}, {}, "x_train is <U1"),
    "pickled": ({"x": np.array([{}, {}], dtype=object)}, {}, "pickled Python objects"),
    "too few labels": ({"x": images(), "y": labels(19)}, {}, "y_train holds 19 labels for 20 samples"),
    "float labels": ({"x": images(), "y": labels().astype(np.float32)}, {}, r"float32, not integer; .*astype\('int64'\)"),
    "one-hot labels": ({"x": images(), "y": np.eye(4, dtype=int)[labels()]}, {}, r"one-hot\? give y_train.argmax\(axis=1\)"),
    "high label": ({"x": images(), "y": labels() + 1}, {}, r"y_train\[3\] is 4 \(5 such labels\); allowed: 0..3"),
    "low label": ({"x": images(), "y": labels() - 1}, {}, r"y_train\[0\] is -1 .*allowed: 0..3"),
    "low label, classes unknown": ({"x": images(), "y": labels() - 1}, {"classes": None}, "allowed: 0 and up"),
    "high test label": ({"x": images(), "x_test": images(2), "y_test": [0, 9]}, {}, r"y_test\[1\] is 9"),
    "mean of bytes": (
        {"x": images()},
        {"mean": (125.3, 123.0, 113.9)},
        "scaled to 0..1: divide it, and std, by 255",
    ),
    "std 0": ({"x": images(), "std": [0.1, 0.0, 0.1]}, {}, r"std is \[0.1, 0.0, 0.1\].*above 0"),
    "std NaN": ({"x": images()}, {"std": [0.1, np.nan, 0.1]}, "every value must be finite"),
    "short mean": ({"x": images(), "mean": [0.1, 0.2]}, {}, r"mean has shape \(2,\); the images have 3 channels"),
    "mean of text": ({"x": images(), "mean": ["a", "b", "c"]}, {}, "mean is not a list of numbers"),
    "mean for floats": ({"x": floats()}, {"mean": [0.1]}, "taken as they are; leave them out"),
    "limit 0": ({"x": images()}, {"limit": 0}, "a limit of 0"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_misfits(tmp_path: Path, name: str) -> None:
    arrays, options, said = MISFITS[name]
    message = refusal(lambda: load(tmp_path, arrays, **options))
    assert message.startswith(str(tmp_path / "data.npz"))
    assert re.search(said, message), message


@pytest.mark.parametrize(
    ("value", "dtype"), [(np.nan, np.float32), (np.inf, np.float16), (-np.inf, np.float64), (1e300, np.float64)]
)
def test_values_that_are_not_finite(tmp_path: Path, value: float, dtype: type[np.floating]) -> None:
    x = np.zeros((3000, 3, 6, 5), dtype=dtype)  # more than is searched at once
    x[2500, 1, 2, 3] = x[2999, 0, 0, 0] = value
    message = refusal(lambda: load(tmp_path, {"x": x}))
    assert "2 values" in message
    assert "index (2500, 1, 2, 3)" in message


def test_images_for_a_model_with_channels_last(tmp_path: Path) -> None:
    square = InputSpec("x", np.dtype(np.float32), ("N", 6, 6, 3))
    x = np.zeros((2, 6, 6, 3), dtype=np.uint8)
    assert "channels last; give float32" in refusal(lambda: load(tmp_path, {"x": x}, square))
    assert load(tmp_path, {"x": x.astype(np.float32)}, square).x_train.shape == x.shape


def test_images_for_a_model_without_images(tmp_path: Path) -> None:
    flat = InputSpec("x", np.dtype(np.float32), ("N", 90))
    assert "is no image" in refusal(lambda: load(tmp_path, {"x": images().reshape(N, 90)}, flat))


def test_a_model_of_integers(tmp_path: Path) -> None:
    assert "not a float input" in refusal(lambda: load(tmp_path, {"x": images()}, InputSpec("x", np.dtype(np.int64), ("N", 4))))


def test_files_that_are_no_data(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    assert "no such file" in refusal(lambda: load_dataset(path, SPEC, None))
    assert "a folder" in refusal(lambda: load_dataset(tmp_path, SPEC, None))
    for content in (b"", b"text", b"\x80\x04K\x01.", b"PK\x03\x04" + bytes(60), b"\x93NUMPY", b"\x93NUMPY" + bytes(200)):
        path.write_bytes(content)
        assert re.search("neither .npz nor .npy|cannot be read", refusal(lambda: load_dataset(path, SPEC, None)))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_cut_and_altered_archives(tmp_path: Path, save: Callable[..., None]) -> None:
    path = tmp_path / "data.npz"
    save(path, x_train=images())
    content = path.read_bytes()
    for size in range(0, len(content) - 1, 97):
        path.write_bytes(content[:size])
        refusal(lambda: load_dataset(path, SPEC, None))
    altered = bytearray(content)
    altered[len(altered) // 2] ^= 0xFF
    path.write_bytes(altered)
    assert "cannot be read as NumPy arrays" in refusal(lambda: load_dataset(path, SPEC, None))


def test_a_cut_npy(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, floats())
    path.write_bytes(path.read_bytes()[:-1])
    assert "cannot be read as NumPy arrays" in refusal(lambda: load_dataset(path, SPEC, None))


def test_a_header_that_claims_too_much(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (100000000000000, 3, 6, 5), }"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    assert "cannot be read as NumPy arrays" in refusal(lambda: load_dataset(path, SPEC, None))


def test_holdout_moves_a_random_part() -> None:
    x = np.arange(N, dtype=np.float32)[:, None]
    data = holdout(Dataset(x, np.arange(N)), fraction=0.25, seed=3)
    assert data.x_test is not None
    assert data.y_train is not None
    assert data.y_test is not None
    assert (len(data.x_train), len(data.x_test)) == (15, 5)
    assert sorted([*data.y_train, *data.y_test]) == list(range(N))
    np.testing.assert_array_equal(data.x_test[:, 0], data.y_test)
    assert data.y_test.tolist() != list(range(5))
    again, other = holdout(Dataset(x, np.arange(N)), 0.25, seed=3), holdout(Dataset(x, np.arange(N)), 0.25, seed=4)
    np.testing.assert_array_equal(data.x_test, again.x_test)
    assert other.x_test is not None
    assert (data.x_test != other.x_test).any()


@pytest.mark.parametrize(("samples", "fraction", "most", "held"), [(2, 0.1, 5000, 1), (100, 0.5, 7, 7), (3, 1.0, 5000, 2)])
def test_holdout_leaves_both_parts_something(samples: int, fraction: float, most: int, held: int) -> None:
    data = holdout(Dataset(np.zeros((samples, 1), dtype=np.float32)), fraction, most)
    assert data.x_test is not None
    assert (len(data.x_test), len(data.x_train)) == (held, samples - held)
    assert data.y_test is None


def test_holdout_keeps_a_test_split_and_refuses_one_sample() -> None:
    whole = Dataset(floats(), x_test=floats(2))
    assert holdout(whole) is whole
    assert "give at least 2" in refusal(lambda: holdout(Dataset(floats(1))))


@pytest.mark.parametrize("constants", [(None, None), ([0.49, 0.48, 0.45], [0.25, 0.24, 0.26])])
def test_preprocess_equals_the_training_batches(constants: tuple[list[float] | None, list[float] | None]) -> None:
    mean, std = (None if values is None else np.array(values) for values in constants)
    wanted = next(Batches(images(), mean=mean, std=std, batch=N).in_order())[0].numpy()
    got = preprocess(images(), mean, std)
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    # Two float32 roundings of values up to 2.5.
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)
    shifted = preprocess(images(), np.full(3, 1e-5) if mean is None else mean + 1e-5, std)
    assert np.abs(shifted - wanted).max() > 1e-6, "the comparison cannot fail"


def test_preprocess_is_the_textbook_formula() -> None:
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.4, 0.5, 0.6])
    wanted = ((images() / 255.0 - mean) / std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(preprocess(images(), mean, std), wanted, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(preprocess(floats(), mean, std), floats())
