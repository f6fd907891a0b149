"""The whole run on small trained networks and a slice of CIFAR-10."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from batude_onnx import proving, surgery
from batude_onnx.errors import (
    DataError,
)
from batude_onnx.loading import preprocess
from batude_onnx.pipeline import compress, validate
from batude_onnx.proving import Feeds
from batude_onnx.settings import Source
from batude_onnx.training.recipe import RECIPES, Phase
from batude_onnx.validation import Session, open_session
from tests.layer_models import values
from tests.loading_models import FLOAT, model_of
from tests.pipelines import Listener, agree, check, conv_macs, floats, saved, settings_for, stored, unlabelled


@pytest.mark.parametrize(
    ("options", "phases"),
    [
        ({"epochs": 0.0}, set()),
        ({"epochs": 0.5}, {"fine-tuning"}),
        ({"epochs": 0.5, "recipe": "batude"}, {"bc-adl", "fine-tuning"}),
        ({"epochs": 1.0, "recipe": "paper"}, {"bc-adl", "fine-tuning"}),
        ({"epochs": 0.0, "recipe": "paper"}, set()),
        ({"epochs": 0.5, "budget": "macs=2x"}, {"fine-tuning"}),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_with_labelled_images(
    trained: Path, cifar_slice: Path, tmp_path: Path, options: dict[str, Any], phases: set[str]
) -> None:
    listener = Listener()
    settings = settings_for(trained, tmp_path, data=cifar_slice, **({"budget": "2x"} | options))
    verdict = compress(settings, listener)
    check(verdict, settings)
    assert len(verdict.ranks) >= 2
    assert set(listener.phases) == phases
    assert {row["phase"] for row in verdict.history} == phases
    assert conv_macs(trained, (1, 3, 32, 32)) == verdict.comparison.cost_original.macs
    assert conv_macs(settings.output, (1, 3, 32, 32)) == verdict.comparison.cost_other.macs
    if "macs" in options.get("budget", ""):
        assert conv_macs(settings.output, (1, 3, 32, 32)) <= conv_macs(trained, (1, 3, 32, 32)) / 2
    with np.load(cifar_slice) as data:
        x, y = preprocess(data["x_test"], data["mean"], data["std"]), data["y_test"]
    for path, quality in ((trained, verdict.comparison.quality_original), (settings.output, verdict.comparison.quality_other)):
        guesses = open_session(path, threads=1).run({"x": x})["y"].argmax(1)
        assert quality["top1"] == pytest.approx(100 * float((guesses == y).mean()))
        assert quality["n"] == 160


def test_measured_and_refitted_factors_answer_like_the_original(trained: Path, cifar_slice: Path, tmp_path: Path) -> None:
    """Half of the parameters go, and nearly all answers stay; by the weights alone they do not."""
    with_data = compress(settings_for(trained, tmp_path, "3x", cifar_slice, epochs=0.0))
    compress(replace(settings_for(trained, tmp_path, "3x"), output=tmp_path / "blind.onnx"))
    blind = validate(trained, tmp_path / "blind.onnx", Source(cifar_slice), threads=1)
    good = with_data.comparison.quality_other["top1_agreement"]
    assert good > 80
    assert good > blind.quality_other["top1_agreement"] + 5


@pytest.mark.parametrize("make", [unlabelled, floats])
def test_without_labels_agreement_is_what_counts(
    trained: Path, cifar_slice: Path, tmp_path: Path, make: Callable[[Path, Path], Path]
) -> None:
    settings = settings_for(trained, tmp_path, "2x", make(cifar_slice, tmp_path), epochs=0.5)
    verdict = compress(settings)
    check(verdict, settings)
    assert set(verdict.comparison.quality_other) == {"n", "cosine", "top1_agreement"}
    # Without a test split a tenth of the training samples is held out.
    assert verdict.facts["training_samples"] == (288 if make is floats else 320)
    assert verdict.comparison.quality_other["top1_agreement"] > 50
    judged = verdict.facts["judged"]
    assert isinstance(judged, dict)
    assert judged["helped"] == (judged["trained"] <= judged["start"])


def test_training_that_does_harm_is_taken_back_and_said(
    trained: Path, cifar_slice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that throw every weight over leave what the fit in closed form gave, and the report has both losses."""
    wild = replace(RECIPES["default"], finetune=Phase(lr=0.01, turn=10.0))
    monkeypatch.setitem(RECIPES, "default", wild)
    listener = Listener()
    settings = settings_for(trained, tmp_path, "2x", cifar_slice, epochs=0.5)
    verdict = compress(settings, listener)
    check(verdict, settings)
    assert any("training raised the loss that it was to lower" in line for line in listener.said)
    assert verdict.facts["epochs"] == 0.5
    assert not json.loads(settings.output.with_suffix(".json").read_text())["facts"]["judged"]["helped"]
    assert verdict.comparison.quality_other["top1_agreement"] > 80


@pytest.mark.alone
def test_a_run_takes_the_time_that_it_is_given(trained: Path, cifar_slice: Path, tmp_path: Path) -> None:
    listener = Listener()
    settings = replace(settings_for(trained, tmp_path, "2x", cifar_slice), seconds=14.0, recipe="batude")
    verdict = compress(settings, listener)
    check(verdict, settings)
    assert set(listener.phases) == {"bc-adl", "fine-tuning"}
    assert any("of 14 s are for training, which is about" in line for line in listener.said)
    # What is reserved for the end is meant for real models, and this one is small.
    assert 6 < float(str(verdict.facts["seconds"])) < 1.1 * 14
    assert float(str(verdict.facts["epochs"])) > 0.5


def test_too_little_time_trains_nothing_and_says_so(trained: Path, cifar_slice: Path, tmp_path: Path) -> None:
    listener = Listener()
    settings = replace(settings_for(trained, tmp_path, "2x", cifar_slice), seconds=1.0)
    verdict = compress(settings, listener)
    check(verdict, settings)
    assert listener.phases == []
    assert any("nothing is trained" in line for line in listener.said)
    assert verdict.facts["epochs"] == 0


def test_a_limit_and_no_augmentation(trained: Path, cifar_slice: Path, tmp_path: Path) -> None:
    source = Source(cifar_slice, limit=100, augment=False, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    settings = settings_for(trained, tmp_path, "2x", source, epochs=0.5)
    verdict = compress(settings)
    check(verdict, settings)
    assert verdict.facts["training_samples"] == 100


def test_without_data_it_says_that_accuracy_is_not_protected(trained: Path, tmp_path: Path) -> None:
    listener = Listener()
    settings = settings_for(trained, tmp_path, "2.5x")
    verdict = compress(settings, listener)
    after = check(verdict, settings)
    assert any("accuracy is NOT protected" in line for line in listener.said)
    assert {prop.value for prop in after.metadata_props if prop.key == "batude_onnx.recipe"} == {"training-free"}
    assert verdict.comparison.quality_other == {}


@pytest.mark.parametrize("budget", ["2x", "40%", "9k", "8549"])
def test_every_way_to_write_a_budget(trained: Path, tmp_path: Path, budget: str) -> None:
    settings = settings_for(trained, tmp_path, budget)
    verdict = compress(settings)
    check(verdict, settings)
    assert stored(settings.output) > 0.85 * verdict.budget.limits[0].limit  # and it is spent


@pytest.mark.parametrize("with_data", [True, False])
def test_at_full_budget_the_outputs_are_equal(trained: Path, cifar_slice: Path, tmp_path: Path, with_data: bool) -> None:
    settings = settings_for(trained, tmp_path, "1x", cifar_slice if with_data else None, epochs=1.0)
    verdict = compress(settings)
    check(verdict, settings)
    assert verdict.ranks == {}
    agree(trained, settings.output, values(5, 3, 32, 32), 1e-5)
    # Every layer at full rank, which is more than the budget, was held against the original, too.
    assert 0 < verdict.surgery[0].max_absolute < 1e-5


@pytest.mark.parametrize(("wide", "rounds", "samples"), [(2**28, 4, 64), (2**18, 4, 1), (1, 1, 1)])
def test_the_proof_at_full_rank_keeps_to_its_memory(
    trained: Path, cifar_slice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wide: int, rounds: int, samples: int
) -> None:
    """The factors of some methods have many more channels between them than the layer has, with all of its ranks."""
    seen, outputs_of = [], proving.outputs_of

    def watched(session: Session, feeds: Feeds) -> Any:
        seen.append(len(feeds["x"]))
        return outputs_of(session, feeds)

    monkeypatch.setattr(surgery, "outputs_of", watched)
    monkeypatch.setattr(surgery, "WIDE", wide)
    settings = settings_for(trained, tmp_path, "2x", cifar_slice, epochs=0.0)
    check(compress(settings), settings)
    # Of the original, and of what is held against it.
    assert seen == [samples] * 2 * rounds


def fixed(trained: Path, batch: int, folder: Path) -> Path:
    """The trained network with the batch written down, as an exporter without dynamic axes does."""
    model = onnx.load(trained)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].Clear()
        value.type.tensor_type.shape.dim[0].dim_value = batch
    del model.graph.value_info[:]
    return saved(model, folder, f"fixed{batch}.onnx")


@pytest.mark.parametrize("batch", [1, 4, 6])
@pytest.mark.parametrize("with_data", [True, False])
def test_a_fixed_batch(trained: Path, cifar_slice: Path, tmp_path: Path, batch: int, with_data: bool) -> None:
    settings = settings_for(fixed(trained, batch, tmp_path), tmp_path, "2x", cifar_slice if with_data else None, epochs=0.5)
    verdict = compress(settings)
    check(verdict, settings)
    assert verdict.comparison.latency["batch"] == batch
    if with_data:  # 160 is no multiple of 6
        assert verdict.comparison.quality_other["n"] == 160


def reshaping(batch: int, folder: Path, *, truly: bool = False) -> Path:
    """Like the above, but sizes that are written down fix the batch inside of the graph as well; or, `truly`, a constant does."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], strides=[2, 2]),
        helper.make_node("Resize", ["c", "", "", "sizes"], ["s"]),
        helper.make_node("Relu", ["s"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Concat", ["p", "of all"] if truly else ["p"], ["q"], axis=1),
        helper.make_node("Reshape", ["q", "target"], ["f"]),
        helper.make_node("Gemm", ["f", "v", "d"], ["y"], transB=1),
    ]
    wide = 20 if truly else 16
    held = {"w": values(16, 3, 5, 5), "b": values(16), "v": values(10, wide), "d": values(10), "target": np.array([batch, wide])}
    held |= {"sizes": np.array([batch, 16, 20, 20])} | ({"of all": values(batch, 4, 1, 1)} if truly else {})
    x = helper.make_tensor_value_info("x", FLOAT, [batch, 3, 32, 32])
    return saved(model_of(nodes, [x], [helper.make_tensor_value_info("y", FLOAT, [batch, 10])], held), folder)


@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("truly", [True, False])
def test_a_batch_that_the_graph_itself_fixes(cifar_slice: Path, tmp_path: Path, batch: int, truly: bool) -> None:
    """It is trained with larger batches unless it really takes no others; the file keeps its own."""
    listener = Listener()
    settings = settings_for(reshaping(batch, tmp_path, truly=truly), tmp_path, "1.5x", cifar_slice, epochs=1.0)
    check(compress(settings, listener), settings)
    assert any(f"takes batches of {batch} only" in line for line in listener.said) is truly


def test_too_few_samples_for_a_fixed_batch(cifar_slice: Path, tmp_path: Path) -> None:
    settings = settings_for(reshaping(6, tmp_path, truly=True), tmp_path, "1.5x", Source(cifar_slice, limit=5))
    with pytest.raises(DataError, match="5 training samples do not fill a batch of 6"):
        compress(settings)
