"""Accuracy and agreement against counts made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from batude_onnx.errors import DataError
from batude_onnx.validation.accuracy import agreement, classification, is_classifier


def scores(n: int, classes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, classes)).astype(np.float32)


def test_by_hand() -> None:
    logits = np.array([[0.1, 0.9, 0.0], [0.8, 0.1, 0.1], [0.2, 0.3, 0.5], [0.2, 0.3, 0.5]], dtype=np.float32)
    expected = -np.log([0.9, 0.8, 0.5, 0.2]).mean()  # rows that add up to 1 are probabilities
    result = classification(logits, np.array([1, 0, 2, 0]))
    assert result == {"top1": 75.0, "cross_entropy": pytest.approx(expected, rel=1e-6), "n": 4}


def test_probabilities_have_the_cross_entropy_of_their_logits() -> None:
    logits, labels = scores(50, 7), np.random.default_rng(1).integers(0, 7, 50)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wanted = classification(logits, labels)["cross_entropy"]
    assert classification(probabilities, labels)["cross_entropy"] == pytest.approx(wanted, rel=1e-5)
    assert classification(np.array([[1, 0]], np.float32), np.array([1]))["cross_entropy"] < 100


def test_labels_beyond_the_classes() -> None:
    with pytest.raises(DataError, match="labels from 0 to 3 do not fit 3 classes"):
        classification(scores(2, 3), np.array([0, 3]))


@pytest.mark.parametrize("classes", [2, 9, 10, 1000])
def test_against_a_plain_loop(classes: int) -> None:
    logits, labels = scores(200, classes), np.random.default_rng(1).integers(0, classes, 200)
    logits[np.arange(200), labels] += 1.0
    result = classification(logits, labels)
    ranks = [sorted(range(classes), key=lambda k: -row[k]).index(label) for row, label in zip(logits, labels, strict=True)]
    assert result["top1"] == pytest.approx(100 * np.mean([rank == 0 for rank in ranks]))
    assert ("top5" in result) == (classes >= 10)
    if "top5" in result:
        assert result["top5"] == pytest.approx(100 * np.mean([rank < 5 for rank in ranks]))
        assert result["top5"] > result["top1"]


def test_a_dead_network_earns_no_more_than_chance() -> None:
    labels = np.arange(1000) % 10
    uniform = {"top1": 10.0, "top5": 50.0, "cross_entropy": pytest.approx(np.log(10)), "n": 1000}
    assert classification(np.zeros((1000, 10), np.float32), labels) == uniform
    broken = classification(np.full((1000, 10), np.nan, np.float32), labels)
    assert broken["top1"] == 0
    assert np.isnan(broken["cross_entropy"])


@pytest.mark.parametrize(("shape", "labels"), [((4, 3), 5), ((0, 3), 0), ((4, 1), 4), ((4, 3, 2), 4)])
def test_shapes_that_do_not_fit(shape: tuple[int, ...], labels: int) -> None:
    with pytest.raises(DataError, match="do not fit labels"):
        classification(np.zeros(shape, np.float32), np.zeros(labels, np.int64))


def test_agreement_of_classifiers() -> None:
    a = np.array([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 2.0]], dtype=np.float32)
    b = np.array([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [0.0, 2.0]], dtype=np.float32)
    result = agreement(a, b)
    assert result == {"cosine": pytest.approx(0.75), "top1_agreement": 75.0}
    assert agreement(a, a) == {"cosine": pytest.approx(1.0), "top1_agreement": 100.0}


def test_agreement_of_images_has_a_cosine_only() -> None:
    a = np.random.default_rng(0).standard_normal((3, 1, 4, 4))
    assert agreement(a, 2 * a) == {"cosine": pytest.approx(1.0)}
    assert agreement(a, -a) == {"cosine": pytest.approx(-1.0)}


def test_agreement_weighs_every_sample_alike() -> None:
    a = np.array([[1e6, 0.0], [0.0, 1.0]])
    b = np.array([[1e6, 0.0], [1.0, 0.0]])
    assert agreement(a, b)["cosine"] == pytest.approx(0.5)


def test_a_broken_row_never_agrees() -> None:
    a = np.full((2, 3), np.nan, np.float32)
    a[0] = [1, 2, 3]
    assert agreement(a, a)["top1_agreement"] == 50.0


def test_agreement_refuses_other_shapes() -> None:
    with pytest.raises(DataError, match="cannot be compared"):
        agreement(np.zeros((2, 3)), np.zeros((3, 2)))


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (np.zeros((5, 10), np.float32), True),
        (np.zeros((5, 1), np.float32), False),
        (np.zeros((5, 10), np.int64), False),
        (np.zeros((5, 3, 8, 8), np.float32), False),
        (np.zeros(5, np.float32), False),
    ],
)
def test_what_counts_as_a_classifier(output: np.ndarray, expected: bool) -> None:
    assert is_classifier(output) is expected
