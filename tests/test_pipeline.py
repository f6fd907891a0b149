"""`compress` from file to file: the budget kept on what is written, the proofs, and nothing written where one of them fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from batude_onnx import pipeline, proving, rewriting
from batude_onnx.errors import (
    BatudeError,
    BudgetError,
    BudgetMissedError,
    DataError,
    ModelError,
    NothingToCompressError,
    OutputError,
    ParityError,
    RuntimeMissingError,
    UnsupportedError,
)
from batude_onnx.loading import preprocess
from batude_onnx.pipeline import compress, inspect, validate
from batude_onnx.records import Cost, FactorChain, Verdict
from batude_onnx.settings import Settings, Source, Watch
from batude_onnx.training.loop import Progress
from batude_onnx.validation import open_session
from tests.layer_models import LAYERS, one_node, shortcut, values
from tests.loading_models import FLOAT, conv_bn, model_of


class Listener(Watch):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.counted: list[tuple[str, int, int]] = []
        self.phases: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def count(self, what: str, done: int, total: int) -> None:
        self.counted.append((what, done, total))

    def train(self, progress: Progress) -> None:
        self.phases.append(progress.phase)


def saved(proto: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    onnx.checker.check_model(proto, full_check=True)
    path = folder / name
    onnx.save(proto, path)
    return path


def settings_for(model: Path, folder: Path, budget: str, data: Path | Source | None = None, **options: Any) -> Settings:
    source = Source(data) if isinstance(data, Path) else data
    return Settings(model=model, output=folder / "out.onnx", budget=budget, data=source, threads=1, **options)


def stored(path: Path) -> int:
    """Floating-point weights in a file, counted without the package."""
    model = onnx.load(path)
    held = list(model.graph.initializer)
    held += [attribute.t for node in model.graph.node if node.op_type == "Constant" for attribute in node.attribute]
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
    return sum(int(np.prod(tensor.dims)) for tensor in held if tensor.data_type in kinds)


def conv_macs(path: Path, x: tuple[int, ...]) -> int:
    """MACs of one sample of a file of Conv and Gemm, from the shapes of a run in onnxruntime, without the package's count."""
    model = onnx.load(path)
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=n.output[0]) for n in layers if n.output[0] not in known)
    outputs = open_session(model.SerializeToString(), threads=1).run({"x": values(1, *x[1:])})
    total = 0
    for node in layers:
        positions = np.prod(outputs[node.output[0]].shape[2:]) if node.op_type == "Conv" else 1
        total += int(np.prod(weights[node.input[1]]) * positions)
    return total


def check(verdict: Verdict, settings: Settings) -> onnx.ModelProto:
    """What must hold of every finished run."""
    output = settings.output
    before, after = onnx.load(settings.model), onnx.load(output)
    onnx.checker.check_model(after, full_check=True)
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    assert (after.opset_import, after.ir_version) == (before.opset_import, before.ir_version)
    metric = verdict.budget.metric
    assert verdict.comparison.cost_other.of(metric) <= verdict.budget.limit
    if metric == "params":
        assert stored(output) <= verdict.budget.limit
    assert stored(output) == verdict.comparison.cost_other.params
    assert stored(settings.model) == verdict.comparison.cost_original.params
    assert all(difference.within for difference in (*verdict.surgery, *verdict.parity))
    assert not set(verdict.ranks) & set(verdict.whole)
    assert set(verdict.ranks) | set(verdict.whole) == {site.key for site in inspect(settings.model, settings.inputs).sites}
    properties = {prop.key: prop.value for prop in after.metadata_props}
    assert json.loads(properties["batude_onnx.ranks"]) == {key: list(ranks) for key, ranks in verdict.ranks.items()}
    assert properties["batude_onnx.budget"].startswith(settings.budget)
    report = json.loads(output.with_suffix(".json").read_text())
    assert report == json.loads(json.dumps(asdict(verdict)))
    return after


def agree(first: Path, second: Path, x: np.ndarray[Any, Any], atol: float) -> None:
    a, b = (open_session(path, threads=1).run({"x": x}) for path in (first, second))
    for name in a:
        np.testing.assert_allclose(b[name], a[name], atol=atol, rtol=atol)


def floats(cifar_slice: Path, folder: Path) -> Path:
    """The slice as float32 (N, C, H, W) without labels or a test split."""
    with np.load(cifar_slice) as data:
        x = preprocess(data["x_train"], data["mean"], data["std"])
    path = folder / "floats.npz"
    np.savez(path, x_train=x)
    return path


def unlabelled(cifar_slice: Path, folder: Path) -> Path:
    with np.load(cifar_slice) as data:
        np.savez(folder / "unlabelled.npz", **{key: data[key] for key in ("x_train", "x_test", "mean", "std")})
    return folder / "unlabelled.npz"


@pytest.mark.parametrize(
    ("options", "phases"),
    [
        ({"epochs": 0.0}, set()),
        ({"epochs": 0.5}, {"bc-adl", "fine-tuning"}),
        ({"epochs": 1.0, "recipe": "paper"}, {"bc-adl", "fine-tuning"}),
        ({"epochs": 0.0, "recipe": "paper"}, set()),
        ({"epochs": 0.5, "metric": "macs"}, {"bc-adl", "fine-tuning"}),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_with_labelled_images(
    trained: Path, cifar_slice: Path, tmp_path: Path, options: dict[str, Any], phases: set[str]
) -> None:
    listener = Listener()
    settings = settings_for(trained, tmp_path, "2x", cifar_slice, **options)
    verdict = compress(settings, listener)
    check(verdict, settings)
    assert len(verdict.ranks) >= 2
    assert set(listener.phases) == phases
    assert {row["phase"] for row in verdict.history} == phases
    assert conv_macs(trained, (1, 3, 32, 32)) == verdict.comparison.cost_original.macs
    assert conv_macs(settings.output, (1, 3, 32, 32)) == verdict.comparison.cost_other.macs
    if options.get("metric") == "macs":
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


def test_a_run_takes_the_time_that_it_is_given(trained: Path, cifar_slice: Path, tmp_path: Path) -> None:
    listener = Listener()
    settings = replace(settings_for(trained, tmp_path, "2x", cifar_slice), seconds=14.0)
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
    assert stored(settings.output) > 0.85 * verdict.budget.limit  # and it is spent


@pytest.mark.parametrize("with_data", [True, False])
def test_at_full_budget_the_outputs_are_equal(trained: Path, cifar_slice: Path, tmp_path: Path, with_data: bool) -> None:
    settings = settings_for(trained, tmp_path, "1x", cifar_slice if with_data else None, epochs=1.0)
    verdict = compress(settings)
    check(verdict, settings)
    assert verdict.ranks == {}
    agree(trained, settings.output, values(5, 3, 32, 32), 1e-5)
    # Every layer at full rank, which is more than the budget, was held against the original, too.
    assert 0 < verdict.surgery[0].max_absolute < 1e-5


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


def reshaping(batch: int, folder: Path) -> Path:
    """Like the above, but a Reshape fixes the batch inside of the graph as well."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Reshape", ["p", "target"], ["f"]),
        helper.make_node("Gemm", ["f", "v", "d"], ["y"], transB=1),
    ]
    held = {"w": values(16, 3, 5, 5), "b": values(16), "v": values(10, 16), "d": values(10), "target": np.array([batch, 16])}
    x = helper.make_tensor_value_info("x", FLOAT, [batch, 3, 32, 32])
    return saved(model_of(nodes, [x], [helper.make_tensor_value_info("y", FLOAT, [batch, 10])], held), folder)


@pytest.mark.parametrize("batch", [1, 6])
def test_a_batch_that_the_graph_itself_fixes(cifar_slice: Path, tmp_path: Path, batch: int) -> None:
    listener = Listener()
    settings = settings_for(reshaping(batch, tmp_path), tmp_path, "1.5x", cifar_slice, epochs=0.1)
    check(compress(settings, listener), settings)
    assert any(f"takes batches of {batch} only" in line for line in listener.said)


def test_too_few_samples_for_a_fixed_batch(cifar_slice: Path, tmp_path: Path) -> None:
    settings = settings_for(reshaping(6, tmp_path), tmp_path, "1.5x", Source(cifar_slice, limit=5))
    with pytest.raises(DataError, match="5 training samples do not fill a batch of 6"):
        compress(settings)


def two_inputs(folder: Path, second: list[int | str]) -> Path:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Mul", ["a", "s"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", FLOAT, ["N", 8, 9, 8]), helper.make_tensor_value_info("s", FLOAT, second)]
    out = helper.make_tensor_value_info("y", FLOAT, ["N", 12, 9, 8])
    return saved(model_of(nodes, inputs, [out], {"w": values(12, 8, 3, 3)}), folder)


@pytest.mark.parametrize("second", [["N", 12, 1, 1], [12, 1, 1], [1], []], ids=str)
def test_two_inputs_without_data(tmp_path: Path, second: list[int | str]) -> None:
    settings = settings_for(two_inputs(tmp_path, second), tmp_path, "2x")
    verdict = compress(settings)
    check(verdict, settings)
    assert list(verdict.ranks) == ["y"] or list(verdict.ranks) == ["a"]


def test_data_for_two_inputs_is_refused(cifar_slice: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one input, and the model has 2: run without --data"):
        compress(settings_for(two_inputs(tmp_path, [1]), tmp_path, "2x", cifar_slice))


def eights(folder: Path) -> Path:
    path = folder / "eights.npz"
    np.savez(path, x_train=np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8))
    return path


@pytest.mark.parametrize("simplify", [True, False])
@pytest.mark.parametrize("with_data", [True, False])
def test_batchnorm_that_is_still_there(tmp_path: Path, simplify: bool, with_data: bool) -> None:
    """And an output that is no classifier's."""
    settings = settings_for(
        saved(conv_bn(), tmp_path), tmp_path, "1.5x", eights(tmp_path) if with_data else None, epochs=1.0, simplify=simplify
    )
    verdict = compress(settings)
    after = check(verdict, settings)
    operators = [node.op_type for node in after.graph.node]
    (ranks,) = verdict.ranks.values()
    # A core has as many neighbours as ranks.
    assert operators == ["Conv"] * (len(ranks) + 1) + ([] if simplify else ["BatchNormalization"]) + ["Relu"]
    assert after.doc_string == "a model"
    assert {prop.key for prop in after.metadata_props} >= {"licence"}
    if with_data:
        assert set(verdict.comparison.quality_other) == {"n", "cosine"}


def nhwc() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "w", "b"], ["c"], pads=[0, 1, 2, 1], strides=[2, 1]),
        helper.make_node("Transpose", ["c"], ["y"], perm=[0, 2, 3, 1]),
    ]
    return one_node(nodes, (2, 9, 8, 6), (2, 5, 8, 12), {"w": values(12, 6, 3, 3), "b": values(12)})


def audio() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], strides=[2], dilations=[2]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "w2", "b2"], ["c"], auto_pad="SAME_UPPER"),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w3"], ["y"]),
    ]
    held = {"w1": values(16, 2, 9), "w2": values(24, 16, 5), "b2": values(24), "w3": values(24, 12)}
    return one_node(nodes, (2, 2, 100), (2, 12), held)


@pytest.mark.parametrize("make", [nhwc, audio, shortcut, LAYERS["conv3d"].model, LAYERS["grouped"].model])
def test_other_kinds_of_models_without_data(tmp_path: Path, make: Callable[[], onnx.ModelProto]) -> None:
    proto = make()
    settings = settings_for(saved(proto, tmp_path), tmp_path, "1.6x")
    verdict = compress(settings)
    check(verdict, settings)
    assert verdict.ranks


def test_a_one_dimensional_network_is_trained_on_floats(tmp_path: Path) -> None:
    np.savez(tmp_path / "sound.npz", x_train=values(64, 2, 100), y_train=np.arange(64) % 12)
    settings = settings_for(saved(audio(), tmp_path), tmp_path, "1.6x", tmp_path / "sound.npz", epochs=1.0)
    verdict = compress(settings)
    check(verdict, settings)
    assert "top1" in verdict.comparison.quality_other


def open_image() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    return one_node(nodes, ("N", 8, "H", "W"), ("N", 12), {"w": values(12, 8, 3, 3), "b": values(12)})  # type: ignore[arg-type]


def test_open_image_sizes_are_given(tmp_path: Path) -> None:
    path = saved(open_image(), tmp_path)
    with pytest.raises(ModelError, match=r"--input-shape x=4,8,\.\.\.,\.\.\."):
        compress(settings_for(path, tmp_path, "2x"))
    with pytest.raises(BudgetError, match="MACs cannot be counted, since input sizes are open"):
        compress(settings_for(path, tmp_path, "2x", metric="macs"))
    settings = settings_for(path, tmp_path, "2x", metric="macs", inputs={"x": (2, 8, 10, 12)})
    verdict = compress(settings)
    check(verdict, settings)
    assert verdict.comparison.cost_original.macs == 2 * 12 * 8 * 9 * 120


def test_open_image_sizes_come_with_the_data(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x_train=values(40, 8, 10, 12))
    settings = settings_for(saved(open_image(), tmp_path), tmp_path, "2x", tmp_path / "x.npz", epochs=1.0)
    check(compress(settings), settings)


def half() -> onnx.ModelProto:
    held = {"w": values(12, 8, 3, 3).astype(np.float16)}
    return one_node(helper.make_node("Conv", ["x", "w"], ["y"]), (2, 8, 9, 8), (2, 12, 7, 6), held, kind=TensorProto.FLOAT16)


def test_half_precision_without_data(tmp_path: Path) -> None:
    settings = settings_for(saved(half(), tmp_path), tmp_path, "2x")
    after = check(compress(settings), settings)
    assert {tensor.data_type for tensor in after.graph.initializer} == {TensorProto.FLOAT16}


def test_half_precision_is_not_trained(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x_train=values(8, 8, 9, 8))
    with pytest.raises(UnsupportedError, match=r"input x: float16.* is not float32, which training needs"):
        compress(settings_for(saved(half(), tmp_path), tmp_path, "2x", tmp_path / "x.npz"))
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["h", "w"], ["c"]),
        helper.make_node("Cast", ["c"], ["y"], to=FLOAT),
    ]
    inside = one_node(nodes, (2, 8, 9, 8), (2, 12, 7, 6), {"w": values(12, 8, 3, 3).astype(np.float16)})
    with pytest.raises(UnsupportedError, match="weight w is stored as FLOAT16, and training needs FLOAT"):
        compress(settings_for(saved(inside, tmp_path), tmp_path, "2x", tmp_path / "x.npz"))


def test_weights_in_another_file(trained: Path, cifar_slice: Path, tmp_path: Path) -> None:
    path = tmp_path / "external.onnx"
    onnx.save(onnx.load(trained), path, save_as_external_data=True, location="weights", size_threshold=1000)
    before = (tmp_path / "weights").read_bytes()
    for simplify in (True, False):
        settings = settings_for(path, tmp_path, "2x", cifar_slice, epochs=0.0, simplify=simplify)
        verdict = compress(settings)
        assert stored(settings.output) == verdict.comparison.cost_other.params <= verdict.budget.limit
    assert (tmp_path / "weights").read_bytes() == before
    other = tmp_path / "plain"
    other.mkdir()
    compress(settings_for(trained, other, "2x", cifar_slice, epochs=0.0, simplify=False))
    agree(other / "out.onnx", settings.output, values(2, 3, 32, 32), 1e-5)


@pytest.mark.parametrize("epochs", [0.0, 0.5])
def test_the_same_seed_gives_the_same_file(trained: Path, cifar_slice: Path, tmp_path: Path, epochs: float) -> None:
    files = []
    for seed in (3, 3, 4):
        settings = settings_for(trained, tmp_path, "2x", cifar_slice, epochs=epochs, seed=seed)
        compress(settings)
        files.append(settings.output.read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]


@pytest.mark.parametrize("with_data", [True, False])
def test_a_bias_that_two_layers_share_is_budgeted_as_the_copies_that_it_becomes(tmp_path: Path, with_data: bool) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "v", "b"], ["y"], pads=[1, 1, 1, 1]),
    ]
    held = {"w": values(16, 4, 3, 3), "v": values(16, 16, 3, 3), "b": values(16)}
    np.savez(tmp_path / "x.npz", x_train=values(40, 4, 9, 8))
    settings = settings_for(
        saved(one_node(nodes, (2, 4, 9, 8), (2, 16, 9, 8), held), tmp_path), tmp_path, "1.5x",
        tmp_path / "x.npz" if with_data else None, epochs=1.0, simplify=False,
    )  # fmt: skip
    check(compress(settings), settings)
    whole = replace(settings, budget="1x")
    assert compress(whole).ranks == {}


@pytest.mark.parametrize("with_data", [True, False])
def test_a_model_with_functions(tmp_path: Path, with_data: bool) -> None:
    """Their weights can only be trained in the place of the call."""
    model = one_node(
        [helper.make_node("Conv", ["x", "w", "b"], ["c"]), helper.make_node("Relu", ["c"], ["y"], name="call")],
        (2, 4, 9, 8), (2, 6, 7, 6), {"w": values(6, 4, 3, 3), "b": values(6)},
    )  # fmt: skip
    scale = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(values(1, 6, 1, 1)))
    body = [scale, helper.make_node("Mul", ["a", "k"], ["o"])]
    model.functions.append(helper.make_function("local", "Scale", ["a"], ["o"], body, [helper.make_opsetid("", 18)]))
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.graph.node[1].op_type, model.graph.node[1].domain = "Scale", "local"
    np.savez(tmp_path / "x.npz", x_train=values(40, 4, 9, 8))
    settings = settings_for(
        saved(model, tmp_path), tmp_path, "1.5x", tmp_path / "x.npz" if with_data else None, epochs=1.0, simplify=False
    )
    compress(settings)
    after = onnx.load(settings.output)
    assert len(after.functions) == (0 if with_data else 1)
    assert stored(settings.output) <= 222 / 1.5 + 6


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
    """Spoils the result of the rewrite of that number: the first two are the proof of the surgery, the last the file's own."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        seen: list[int] = []

        def rewrite(*args: Any, **kwargs: Any) -> ir.Model:
            seen.append(1)
            result = rewriting.rewrite(*args, **kwargs)
            return spoiled(result) if len(seen) == calls else result

        patch.setattr(pipeline, "rewrite", rewrite)

    return apply


def wrong_chain(patch: pytest.MonkeyPatch) -> None:
    """A bias is lost on the way into the chain."""
    real = pipeline._factor

    def factor(*args: Any) -> FactorChain:
        chain = real(*args)
        *first, last = chain.layers
        return replace(chain, layers=(*first, replace(last, bias=None)))

    patch.setattr(pipeline, "_factor", factor)


def too_large(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pipeline, "survey", lambda *args: replace(proving.survey(*args), cost=Cost(10**6, 10**9)))


FAILURES: dict[str, tuple[Patch, type[BatudeError], str]] = {
    "simplify": (wrong_simplify, ParityError, "the written file does not compute what was trained: output 'y' is off by"),
    "surgery": (wrong_rewrite(1), ParityError, "the rewrite at full rank does not equal the original: output 'y' is off by"),
    "surgery of the other method": (wrong_rewrite(2), ParityError, "the rewrite at full rank does not equal the original"),
    "rewrite": (wrong_rewrite(3), ParityError, "the written file does not compute what was trained: output 'y' is off by"),
    "chain": (wrong_chain, ParityError, "the rewrite at full rank does not equal the original"),
    "count": (too_large, BudgetMissedError, "has 1,000,000 params, the budget '2x' allows 8,549; nothing was written"),
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
