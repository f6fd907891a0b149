"""Mini-batches: augmented, normalised, drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from batude_onnx.training.batches import Augmentation, Batches, takes_any_batch
from tests.importer_graphs import imported
from tests.loading_models import model_of
from tests.small_models import floats, network


def images(n: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(n, 5, 6, 3)."""
    return np.random.default_rng(seed).integers(1, 256, (n, 5, 6, 3)).astype(np.uint8)


def every_variant(image: np.ndarray[Any, Any], shift: int, flip: bool) -> dict[bytes, tuple[int, int, bool]]:
    """The slow way: the image shifted by each (down, right), zeros entering, then each of these mirrored."""
    height, width, _ = image.shape
    variants = {}
    for down in range(-shift, shift + 1):
        for right in range(-shift, shift + 1):
            moved = np.zeros_like(image)
            for row in range(height):
                for column in range(width):
                    if 0 <= row - down < height and 0 <= column - right < width:
                        moved[row, column] = image[row - down, column - right]
            for mirrored in (False, True) if flip else (False,):
                shown = moved[:, ::-1] if mirrored else moved
                variants[np.ascontiguousarray(shown).tobytes()] = (down, right, mirrored)
    return variants


@pytest.mark.parametrize(("shift", "flip"), [(0, True), (1, False), (2, True)])
def test_augmentation_only_shifts_and_mirrors(shift: int, flip: bool) -> None:
    given = images(400)
    given[1:] = given[0]
    augmented = Augmentation(shift, flip)(torch.from_numpy(given), torch.Generator().manual_seed(0)).numpy()
    assert (augmented.shape, augmented.dtype) == (given.shape, given.dtype)
    variants = every_variant(given[0], shift, flip)
    assert len(variants) == (2 * shift + 1) ** 2 * (1 + flip)
    drawn = [variants[image.tobytes()] for image in augmented]  # a KeyError for anything else
    # Every variant turns up, none far too often: the draws are uniform.
    counts = np.array([drawn.count(variant) for variant in variants.values()])
    assert counts.min() > 0
    assert counts.max() < 5 * len(given) / len(variants)


def test_each_image_is_augmented_by_itself() -> None:
    given = images(64)
    augmented = Augmentation(2, True)(torch.from_numpy(given), torch.Generator().manual_seed(1)).numpy()
    kinds = {every_variant(image, 2, True)[shown.tobytes()] for image, shown in zip(given, augmented, strict=True)}
    assert len(kinds) > 25
    assert Augmentation()(torch.from_numpy(given), torch.Generator()).numpy() is not augmented
    np.testing.assert_array_equal(Augmentation()(torch.from_numpy(given), torch.Generator()).numpy(), given)


def test_images_are_scaled_and_normalised_channel_by_channel() -> None:
    given, mean, std = images(7), np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.25, 0.5])
    batches = Batches(given, np.arange(7), batch=4, mean=mean, std=std)
    parts = list(batches.in_order())
    assert [len(x) for x, _ in parts] == [4, 3]
    x = torch.cat([part for part, _ in parts])
    wanted = ((given / 255.0 - mean) / std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(x.numpy(), wanted, rtol=1e-5, atol=1e-5)
    assert x.dtype == torch.float32
    assert [int(label) for _, labels in parts if labels is not None for label in labels] == list(range(7))
    assert [len(part) for part, _ in batches.in_order(limit=5)] == [4, 1]


def test_floats_pass_untouched_and_without_labels() -> None:
    given = floats(6, 3, 4, 4)
    batches = Batches(given, batch=2, augmentation=Augmentation(1, True))
    for x, labels in batches.shuffled():
        assert labels is None
        for sample in x.numpy():
            assert any((sample == one).all() for one in given)


def test_an_epoch_holds_each_sample_once_and_repeats_with_its_seed() -> None:
    given, labels = images(50), np.arange(50)

    def epochs(seed: int) -> list[tuple[Tensor, Tensor]]:
        batches = Batches(given, labels, batch=16, augmentation=Augmentation(1, True), seed=seed)
        assert (len(batches), batches.samples) == (3, 50)
        return [(x, y) for _ in range(2) for x, y in batches.shuffled() if y is not None]

    first, again, other = epochs(0), epochs(0), epochs(1)
    assert [len(x) for x, _ in first] == [16] * 6
    for (x, y), (same_x, same_y) in zip(first, again, strict=True):
        torch.testing.assert_close(x, same_x, rtol=0, atol=0)
        torch.testing.assert_close(y, same_y, rtol=0, atol=0)
    orders = [torch.cat([y for _, y in part]).tolist() for part in (first[:3], first[3:], other[:3])]
    assert all(len(set(order)) == 48 for order in orders)
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]
    assert not torch.equal(first[0][0], other[0][0])


def test_fewer_samples_than_a_batch_are_one_batch() -> None:
    batches = Batches(images(5), np.arange(5), batch=16)
    assert len(batches) == 1
    assert [len(x) for x, _ in batches.shuffled()] == [5]


def test_a_sample_is_drawn_without_repeats_and_as_it_is() -> None:
    given = images(40)
    batches = Batches(given, batch=16, augmentation=Augmentation(2, True))
    parts = batches.sample(25, seed=3)
    assert [len(part) for part in parts] == [16, 9]
    drawn = {tuple((part[k] * 255).round().flatten().int().tolist()) for part in parts for k in range(len(part))}
    held = {tuple(image.transpose(2, 0, 1).flatten().tolist()) for image in given}
    assert len(drawn) == 25
    assert drawn <= held
    assert [len(part) for part in batches.sample(100)] == [16, 16, 8]
    assert [len(part) for part in Batches(given, batch=16, whole=True).sample(25)] == [16]
    assert torch.equal(parts[0], batches.sample(25, seed=3)[0])
    assert not torch.equal(parts[0], batches.sample(25, seed=4)[0])


def test_a_trial_comes_as_in_training_and_leaves_training_as_it_is() -> None:
    images, labels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8), np.arange(40)

    def batches() -> Batches:
        return Batches(images, labels, batch=16, augmentation=Augmentation(shift=2, flip=True), seed=5)

    made, other = batches(), batches()
    trial = made.trial(40, seed=3)
    drawn = torch.cat([found for _, found in trial if found is not None])
    assert sorted(drawn.tolist()) == list(range(40))
    plain = torch.cat([x for x, _ in made.in_order()])[drawn]
    assert not torch.equal(torch.cat([x for x, _ in trial]), plain)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(trial, batches().trial(40, seed=3), strict=True))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(made.shuffled(), other.shuffled(), strict=True))


def test_whether_a_network_takes_any_batch_is_seen_by_trying() -> None:
    assert takes_any_batch(imported(network()), floats(4, 3, 8, 8))
    for size, wanted in (([4, 12], False), ([-1, 12], True)):
        nodes = [
            helper.make_node("Reshape", ["x", "size"], ["r"]),
            helper.make_node("MatMul", ["r", "w"], ["y"]),
        ]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 3, 4])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 5])
        model = model_of(nodes, [x], [y], {"w": floats(12, 5), "size": np.array(size)})
        assert takes_any_batch(imported(model), floats(4, 3, 4)) is wanted
