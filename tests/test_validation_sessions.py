"""Sessions on real onnxruntime: what is asked for is what runs, or a one-line refusal."""

from __future__ import annotations

import sys
from pathlib import Path
from time import process_time, sleep
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from batude_onnx.errors import BatudeError, ModelError, RuntimeMissingError
from batude_onnx.validation.sessions import Session, open_session, run_batched
from tests.loading_models import FLOAT, add_constant, conv_bn, model_of


def session_of(model: onnx.ModelProto) -> Session:
    return open_session(model.SerializeToString(), threads=1)


def test_bytes_and_paths_give_the_same(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(conv_bn(), path, save_as_external_data=True, location="m.bin", size_threshold=0)
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8), dtype=np.float32)
    from_bytes, from_path = session_of(conv_bn()), open_session(path, threads=1)
    np.testing.assert_array_equal(from_bytes.run({"x": x})["y"], from_path.run({"x": x})["y"])
    assert (from_path.provider, from_path.threads) == ("cpu", 1)
    assert (from_path.input_names, from_path.output_names) == (("x",), ("y",))
    assert from_path.input_shapes == {"x": ("N", 3, 8, 8)}


def test_the_run_computes_the_model() -> None:
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(session_of(add_constant(1.5)).run({"x": x})["y"], x + 1.5)


def test_a_session_holds_no_core_between_its_runs() -> None:
    """Or whatever is timed in turns with it would seem slower than it is."""
    session = open_session(Path("models/resnet20-cifar10.onnx"), threads=2)
    images = {session.input_names[0]: np.zeros((1, 3, 32, 32), np.float32)}
    resting = []
    for _ in range(5):
        session.run(images)
        start = process_time()
        sleep(0.02)
        resting.append(process_time() - start)
    # Threads that wait in a busy loop take all of it.
    assert min(resting) < 0.01


def test_floats_are_cast_for_a_half_input() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["N", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["N", 2])
    output = session_of(model_of([helper.make_node("Neg", ["x"], ["y"])], [x], [y])).run({"x": np.ones((1, 2), np.float32)})
    assert output["y"].dtype == np.float16


def listing() -> onnx.ModelProto:
    """x (N, 2) -> the list [-x, x] as y, and a map of x's columns for each sample as z."""
    nodes = [
        helper.make_node("Neg", ["x"], ["n"]),
        helper.make_node("SequenceConstruct", ["n", "x"], ["y"]),
        helper.make_node("ZipMap", ["x"], ["z"], domain="ai.onnx.ml", classlabels_strings=["cat", "dog"]),
    ]
    outputs = [helper.make_tensor_sequence_value_info("y", FLOAT, None), onnx.ValueInfoProto(name="z")]
    scores = outputs[1].type.sequence_type.elem_type.map_type
    scores.key_type, scores.value_type.tensor_type.elem_type = TensorProto.STRING, FLOAT
    model = model_of(nodes, [helper.make_tensor_value_info("x", FLOAT, ["N", 2])], outputs)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    return model


@pytest.mark.parametrize("batch", [1, 2, 9])
def test_sequences_and_maps_are_given_in_parts(batch: int) -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    session = session_of(listing())
    found = run_batched(session, {"x": x}, batch)
    wanted = {"y[0]": -x, "y[1]": x, "z['cat']": x[:, 0], "z['dog']": x[:, 1]}
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)
    assert session.output_names == ("y", "z")


def refusal(kind: type[BatudeError], action: Any) -> str:
    with pytest.raises(kind) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_model_that_onnxruntime_rejects(tmp_path: Path) -> None:
    model = conv_bn()
    model.opset_import[0].version = 99
    message = refusal(ModelError, lambda: session_of(model))
    assert onnxruntime.__version__ in message
    assert "99" in message or "opset" in message.lower()
    refusal(ModelError, lambda: open_session(b"not a model"))
    assert "none.onnx" in refusal(ModelError, lambda: open_session(tmp_path / "none.onnx"))


@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {"z": np.zeros((1, 4), np.float32)},
        {"x": np.zeros((1, 5), np.float32)},
        {"x": np.zeros((1, 4), np.int64)},
        {"x": np.zeros(4, np.float32)},
    ],
    ids=["nothing", "other name", "other size", "other type", "other rank"],
)
def test_feeds_that_do_not_fit(feeds: dict[str, np.ndarray]) -> None:
    assert "onnxruntime cannot run the model" in refusal(ModelError, lambda: session_of(add_constant(1)).run(feeds))


def test_an_unknown_provider_lists_the_known_ones() -> None:
    message = refusal(RuntimeMissingError, lambda: open_session(conv_bn().SerializeToString(), provider="tpu"))
    assert "'tpu'; choose one of cpu, cuda" in message


def test_a_package_that_lists_cuda_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU package falls back to the CPU without an error: only the session tells."""
    real = onnxruntime.InferenceSession

    def fallen_back(source: Any, sess_options: Any, providers: list[str]) -> Any:
        assert providers[0] == "CUDAExecutionProvider"
        return real(source, sess_options=sess_options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", fallen_back)
    message = refusal(RuntimeMissingError, lambda: open_session(conv_bn().SerializeToString(), provider="cuda"))
    assert "no working CUDA" in message
    assert "batude-onnx[gpu]" in message


def test_a_package_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    message = refusal(RuntimeMissingError, lambda: open_session(conv_bn().SerializeToString(), provider="cuda"))
    assert "no working CUDA" in message


@pytest.mark.parametrize(("provider", "extra"), [("cpu", "cpu"), ("cuda", "gpu")])
def test_onnxruntime_not_installed(monkeypatch: pytest.MonkeyPatch, provider: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    message = refusal(RuntimeMissingError, lambda: open_session(b"", provider=provider))
    assert f"pip install 'batude-onnx[{extra}]'" in message


def test_the_empty_package_that_an_uninstall_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    assert "onnxruntime is broken" in refusal(RuntimeMissingError, lambda: open_session(b""))


@pytest.mark.parametrize("samples", [1, 4, 7, 8])
@pytest.mark.parametrize("batch", ["N", 1, 4])
def test_batches_join_to_the_whole(samples: int, batch: int | str) -> None:
    x = np.random.default_rng(samples).standard_normal((samples, 3, 8, 8), dtype=np.float32)
    whole = session_of(conv_bn()).run({"x": x})["y"]
    joined = run_batched(session_of(conv_bn(batch)), {"x": x}, 3)["y"]
    # The batch changes how onnxruntime orders its sums, by a rounding or two of outputs around 10.
    np.testing.assert_allclose(joined, whole, rtol=0, atol=1e-5)


def test_batches_are_really_of_that_size(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    session = session_of(add_constant(1))
    run = session.run

    def spy(feeds: Any) -> Any:
        seen.append(len(feeds["x"]))
        return run(feeds)

    monkeypatch.setattr(session, "run", spy)
    run_batched(session, {"x": np.zeros((7, 4), np.float32)}, 3)
    assert seen == [3, 3, 1]


def test_inputs_without_axes_go_into_every_batch() -> None:
    model = model_of(
        [helper.make_node("Mul", ["x", "s"], ["y"])],
        [helper.make_tensor_value_info("x", FLOAT, ["N", 2]), helper.make_tensor_value_info("s", FLOAT, [])],
        [helper.make_tensor_value_info("y", FLOAT, ["N", 2])],
    )
    x = np.arange(10, dtype=np.float32).reshape(5, 2)
    feeds = {"x": x, "s": np.array(3.0, dtype=np.float32)}
    np.testing.assert_array_equal(run_batched(session_of(model), feeds, 2)["y"], 3 * x)


def test_lengths_that_differ_and_none_at_all() -> None:
    session = session_of(add_constant(1))
    for feeds in ({"x": np.zeros((2, 4)), "z": np.zeros((3, 4))}, {"x": np.zeros((0, 4))}, {}):
        assert "same number, at least 1" in refusal(ModelError, lambda feeds=feeds: run_batched(session, feeds, 2))


def test_an_output_without_samples_cannot_be_cut() -> None:
    model = model_of(
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)],
        [helper.make_tensor_value_info("x", FLOAT, [4, 2])],
        [helper.make_tensor_value_info("y", FLOAT, [])],
    )
    session = session_of(model)
    assert run_batched(session, {"x": np.ones((8, 2), np.float32)}, 4)["y"].tolist() == [8.0, 8.0]
    message = refusal(ModelError, lambda: run_batched(session, {"x": np.ones((5, 2), np.float32)}, 4))
    assert "give a multiple of 4 samples" in message


def test_a_batch_of_minus_one_is_open() -> None:
    model = add_constant(1.0, -1)
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "M"
    session = session_of(model)
    assert session.input_shapes == {"x": (None, 4)}
    assert run_batched(session, {"x": np.zeros((5, 4), np.float32)}, 2)["y"].shape == (5, 4)


def test_a_failing_run_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """The twin of a message on one line: onnxruntime logs errors of its own unless told not to."""
    model = model_of(
        [helper.make_node("Reshape", ["x", "s"], ["y"])],
        [helper.make_tensor_value_info("x", FLOAT, ["N"])],
        [helper.make_tensor_value_info("y", FLOAT, [2, 2])],
        {"s": np.array([2, 2], dtype=np.int64)},
    )
    session = session_of(model)
    refusal(ModelError, lambda: session.run({"x": np.zeros(3, np.float32)}))
    assert capfd.readouterr() == ("", "")
