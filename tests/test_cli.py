"""The command line: one clear line and an exit code for whatever is wrong, and nothing written then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import helper

from batude_onnx import __version__, errors
from batude_onnx.cli import main
from batude_onnx.layers import count, infer_shapes
from batude_onnx.loading import load_model
from tests.cli_places import (
    data_with,
    folder_there,
    indexed,
    model_bytes,
    nan,
    no_layers,
    not_numbers,
    nothing,
    only_depthwise,
    picky,
    unsupported,
    without_gradient,
)
from tests.layer_models import one_node, values

COMMAND = Path(sys.executable).with_name("batude-onnx")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def listing(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def place(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a good model and good data, which is also where the command runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(trained.read_bytes())
    with np.load(Path(__file__).parent / "data" / "cifar10_slice.npz") as data:
        np.savez(tmp_path / "data.npz", **{key: data[key] for key in data.files})
    return tmp_path


COMPRESS = ("compress", "model.onnx", "--budget", "2x", "-o", "out.onnx")
WITH_DATA = (*COMPRESS, "--data", "data.npz", "--epochs", "0")


def compress(**options: str) -> tuple[str, ...]:
    """COMPRESS with options exchanged or added."""
    named = {"budget": "2x", "output": "out.onnx"} | options
    model = named.pop("model", "model.onnx")
    return ("compress", model, *(word for name, value in named.items() for word in (f"--{name.replace('_', '-')}", value)))


Case = tuple[Callable[[Path], None], tuple[str, ...], type[errors.BatudeError], str]
WRONG: dict[str, Case] = {
    "no such model": (nothing, compress(model="nowhere.onnx"), errors.ModelError, "nowhere.onnx: no such file"),
    "model is a folder": (folder_there, compress(model="folder"), errors.ModelError, "folder: this is not a file"),
    "empty file": (model_bytes(lambda _: b""), COMPRESS, errors.ModelError, "model.onnx: the file is empty"),
    "not ONNX": (model_bytes(lambda _: b"not a model, but text\n" * 9), COMPRESS, errors.ModelError, "not an ONNX model"),
    "cut by one byte": (model_bytes(lambda all: all[:-1]), COMPRESS, errors.ModelError, "not an ONNX model, or cut short"),
    "cut in half": (model_bytes(lambda all: all[: len(all) // 2]), COMPRESS, errors.ModelError, "or cut short"),
    "nothing to compress": (no_layers, COMPRESS, errors.NothingToCompressError, "no Conv, Gemm or MatMul"),
    "nothing compressible": (only_depthwise, COMPRESS, errors.NothingToCompressError, "depthwise"),
    "budget 0x": (nothing, compress(budget="0x"), errors.BudgetError, "budget '0x' is not a reduction"),
    "budget 0.5x": (nothing, compress(budget="0.5x"), errors.BudgetError, "the ratio must be 1x or more"),
    "budget abc": (nothing, compress(budget="abc"), errors.BudgetError, "budget 'abc' is not understood"),
    "budget empty": (nothing, compress(budget=""), errors.BudgetError, "budget '' is not understood"),
    "budget 120%": (nothing, compress(budget="120%"), errors.BudgetError, "budget '120%' is out of range"),
    "budget above the model": (nothing, compress(budget="1M"), errors.BudgetError, "the model has 17,098 params"),
    "budget unreachable": (nothing, compress(budget="1000x"), errors.BudgetError, "the smallest budget that can be met is"),
    "metric unknown": (nothing, compress(budget="bytes=2x"), errors.BudgetError, "limits 'bytes': choose one of params, macs"),
    "two budgets of a kind": (nothing, compress(budget="2x,params=9k"), errors.BudgetError, "is the second one for params"),
    "latency of a GPU that is not there": (
        nothing, compress(budget="latency=2x", provider="cuda"), errors.RuntimeMissingError, "no working CUDA"
    ),
    "budget in MACs unreachable": (nothing, compress(budget="macs=1k"), errors.BudgetError, "the smallest budget that"),
    "data of a wrong size": (
        data_with(x_train=np.zeros((320, 28, 28, 3), np.uint8)), WITH_DATA, errors.DataError,
        "data.npz: x_train has shape (320, 28, 28, 3)",
    ),
    "data of a wrong type": (
        data_with(x_train=np.zeros((320, 3, 32, 32), np.int32)), WITH_DATA, errors.DataError, "x_train is int32",
    ),
    "data with NaN": (
        data_with(x_train=nan(), y_train=np.arange(4), x_test=nan()), WITH_DATA, errors.DataError,
        "x_train holds 1 values that are NaN or Inf in float32, the first at index (2, 1, 5, 6)",
    ),
    "labels out of range": (
        data_with(y_train=np.full(320, 10)), WITH_DATA, errors.DataError, "allowed: 0..9, as the model has 10 classes",
    ),
    "labels negative": (data_with(y_test=np.full(160, -1)), WITH_DATA, errors.DataError, "y_test[0] is -1 (160 such labels)"),
    "labels too few": (data_with(y_train=np.zeros(9, int)), WITH_DATA, errors.DataError, "holds 9 labels for 320 samples"),
    "data missing": (nothing, compress(data="none.npz"), errors.DataError, "none.npz: no such file"),
    "data no arrays": (nothing, compress(data="model.onnx"), errors.DataError, "model.onnx: neither .npz nor .npy"),
    "mean of a wrong length": (nothing, (*WITH_DATA, "--mean", "0.5,0.5"), errors.DataError, "the images have 3 channels"),
    "output folder missing": (nothing, compress(output="no/out.onnx"), errors.OutputError, "the folder no does not exist"),
    "output is a folder": (folder_there, compress(output="folder"), errors.OutputError, "folder: this is a folder"),
    "output is the model": (nothing, compress(output="model.onnx"), errors.OutputError, "would overwrite the input model.onnx"),
    "output is the data": (
        nothing, (*compress(output="data.npz"), "--data", "data.npz"), errors.OutputError, "would overwrite the input data.npz",
    ),
    "output is the report": (nothing, compress(output="out.json"), errors.OutputError, "the run's report goes there"),
    "report is a folder": (
        lambda place: (place / "out.json").mkdir(), COMPRESS, errors.OutputError, "out.json: this is a folder",
    ),
    "provider unknown": (nothing, compress(provider="tpu"), errors.RuntimeMissingError, "unknown provider 'tpu'"),
    "device unknown": (nothing, compress(device="tpu"), errors.RuntimeMissingError, "torch has no device 'tpu' here"),
    "device not there": (nothing, compress(device="cuda:99"), errors.RuntimeMissingError, "use --device cpu"),
    "shape of no input": (nothing, compress(input="z=1,3"), errors.ModelError, "'z', which is no input; the inputs are x"),
    "shape does not fit": (nothing, compress(input="x=1,4,9,9"), errors.ModelError, "shape (1, 4, 9, 9) does not fit input x"),
    "dimension of no input": (nothing, compress(dim="H=32"), errors.ModelError, "no input has a dimension 'H'; there are "),
    "no sizes run": (picky, compress(), errors.ModelError, "none of the usual ones runs"),
    "sizes for MACs": (picky, compress(budget="macs=2x"), errors.BudgetError, "give them: --dim H=SIZE --dim W=SIZE or --input"),
    "sizes do not run": (picky, compress(dim="H=9"), errors.ModelError, "none of the usual ones runs"),
    "outputs are no numbers": (
        not_numbers, COMPRESS, errors.ModelError, "say what they hold, such as --input x=1,3,4,4:0..1",
    ),
    "index out of range": (
        indexed, compress(input="i=:0..99"), errors.ModelError, "check the shapes and types fed, such as --input x=1,3,4,4:0..1",
    ),
    "inspect no model": (nothing, ("inspect", "data.npz"), errors.ModelError, "data.npz: not an ONNX model"),
    "validate no model": (nothing, ("validate", "model.onnx", "none.onnx"), errors.ModelError, "none.onnx: no such file"),
    "validate provider": (
        nothing, ("validate", "model.onnx", "model.onnx", "--provider", "x"), errors.RuntimeMissingError, "unknown provider 'x'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_one_line_and_an_exit_code_and_changes_nothing(place: Path, name: str) -> None:
    prepare, arguments, error, said = WRONG[name]
    prepare(place)
    before = listing(place)
    result = run(*arguments)
    assert (result.exit_code, isinstance(result.exception, SystemExit)) == (error.exit_code, True)
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert len(line) < 400
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert listing(place) == before


def test_what_cannot_be_imported_is_listed(place: Path) -> None:
    unsupported(place)
    np.savez(place / "data.npz", x_train=np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), np.uint8))
    result = run(*WITH_DATA)
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "2 of 5 nodes cannot be imported: ConcatFromSequence (1), SequenceConstruct (1)" in said
    assert "ranks and factors come from what onnxruntime shows of the layers" in said
    assert "node 'first'" in said
    assert "node 'second'" in said
    # Without data nothing has to be imported.
    assert "cannot be imported" not in run(*COMPRESS, "-o", "blind.onnx").output


def test_an_output_without_a_gradient(place: Path) -> None:
    without_gradient(place)
    np.savez(place / "data.npz", x_train=np.zeros((9, 4, 4, 3), np.uint8))
    result = run(*WITH_DATA)
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "nodes cannot be imported: ArgMax (1)" in said
    assert "no gradient passes through it" in said


USAGE = {
    "no budget": (("compress", "model.onnx"), "Missing option '--budget'"),
    "no model": (("compress", "--budget", "2x"), "Missing argument 'MODEL'"),
    "recipe unknown": (compress(recipe="magic"), "'magic' is not one of 'batude', 'default', 'paper'"),
    "no such option": ((*COMPRESS, "--fast"), "No such option"),
    "epochs negative": (compress(epochs="-1"), "-1.0 is not in the range x>=0"),
    "epochs no number": (compress(epochs="nan"), "nan is not a number of epochs"),
    "epochs without end": (compress(epochs="inf"), "inf is not a number of epochs"),
    "time without unit": (compress(time="20"), "'20' is not a time such as 90s, 20m or 1.5h"),
    "no time": (compress(time="0m"), "'0m' is not a time"),
    "time and epochs": ((*WITH_DATA, "--time", "1m", "--epochs", "1"), "--epochs and --time both say how long to train"),
    "epochs without data": (compress(epochs="3"), "--epochs without --data"),
    "time without data": (compress(time="20m"), "--time without --data"),
    "seed negative": (compress(seed="-1"), "-1 is not in the range"),
    "threads zero": (compress(threads="0"), "0 is not in the range"),
    "limit zero": (compress(limit="0"), "0 is not in the range"),
    "mean no numbers": (compress(mean="a,b,c"), "'a,b,c' is not a list of numbers such as 0.485,0.456,0.406"),
    "input no shape": (compress(input="x"), "'x' is not NAME=SHAPE"),
    "no input-shape": (compress(input_shape="x=1,3,32,32"), "No such option"),
    "dim no size": (compress(dim="N"), "'N' is not NAME=SIZE"),
    "mean without data": (compress(mean="0,0,0"), "--mean without --data"),
    "limit without data": (compress(limit="9"), "--limit without --data"),
    "no such command": (("shrink", "model.onnx"), "No such command 'shrink'"),
}


@pytest.mark.parametrize("name", USAGE)
def test_wrong_use_is_clicks_own_error(place: Path, name: str) -> None:
    arguments, said = USAGE[name]
    before = listing(place)
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert said in result.stderr.splitlines()[-1]
    assert result.stdout == ""
    assert listing(place) == before


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(place: Path) -> None:
    folder_there(place)
    (place / "folder").chmod(0o500)
    result = run(*compress(output="folder/out.onnx"))
    assert result.exit_code == errors.OutputError.exit_code
    assert "cannot be written (Permission denied)" in result.stderr


def test_a_place_that_cannot_be_written_after_all(place: Path) -> None:
    """/proc looks like a folder that root may write; it cannot hold a file."""
    if not Path("/proc/self").is_dir():
        pytest.skip("no /proc here")
    result = run(*compress(output="/proc/out.onnx"))
    assert result.exit_code == errors.OutputError.exit_code
    assert result.stderr.startswith("error: /proc/out.onnx: ")


def test_cuda_that_is_not_there(place: Path) -> None:
    import onnxruntime
    import torch

    before = listing(place)
    tried = 0
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        result, tried = run(*compress(provider="cuda")), tried + 1
        assert result.exit_code == errors.RuntimeMissingError.exit_code
        assert "onnxruntime has no working CUDA here" in result.stderr
    if not torch.cuda.is_available():
        result, tried = run(*compress(device="cuda")), tried + 1
        assert result.exit_code == errors.RuntimeMissingError.exit_code
        assert "torch has no device 'cuda' here" in result.stderr
    if not tried:
        pytest.skip("CUDA is there")
    assert listing(place) == before


def test_an_old_output_survives_a_failure_and_is_replaced_by_success(place: Path) -> None:
    (place / "out.onnx").write_bytes(b"old")
    assert run(*compress(budget="1000x")).exit_code == errors.BudgetError.exit_code
    assert (place / "out.onnx").read_bytes() == b"old"
    assert run(*COMPRESS).exit_code == 0
    onnx.checker.check_model(place / "out.onnx", full_check=True)
    assert sorted(listing(place)) == ["data.npz", "model.onnx", "out.json", "out.onnx"]


def test_compress_tells_what_it_did(place: Path) -> None:
    result = run(*COMPRESS, "--threads", 1)
    assert (result.exit_code, result.stderr) == (0, "")
    for said in (
        "no data: the weights alone decide", "accuracy is NOT protected", "parameters", "17,098", "2,343,552", "latency",
        "budget 2x: at most 8,549 params, kept", "parity with what was factored", "out.onnx and out.json",
    ):  # fmt: skip
        assert said in result.stdout


def test_compress_with_data_shows_the_training_and_the_accuracy(place: Path) -> None:
    result = run(*compress(data="data.npz", epochs="0.5", threads="1", recipe="batude"))
    assert (result.exit_code, result.stderr) == (0, "")
    for said in ("320 samples to train on, 160 to test on", "bc-adl: ", "fine-tuning: ", "loss ", "P ", "top-1 accuracy"):
        assert said in result.stdout


def test_the_default_output_is_here_and_named_after_the_budget(place: Path) -> None:
    assert run("compress", "model.onnx", "--budget", "40%").exit_code == 0
    assert {"model-40pct.onnx", "model-40pct.json"} <= set(listing(place))


@pytest.mark.parametrize("data", [(), ("--data", "data.npz", "--epochs", "0.2")])
def test_json_is_all_there_is_on_stdout(place: Path, data: tuple[str, ...]) -> None:
    result = run(*COMPRESS, *data, "--json", "--threads", 1)
    assert result.exit_code == 0
    verdict = json.loads(result.stdout)
    assert verdict == json.loads((place / "out.json").read_text())
    cost = verdict["comparison"]["cost_other"]["params"]
    model = load_model(place / "out.onnx")
    assert cost == count(model, infer_shapes(model)).params <= verdict["budget"]["limits"][0]["limit"] == 8549
    assert "full rank" in result.stderr  # what a person reads goes there


def test_json_of_a_failure_is_nothing_on_stdout(place: Path) -> None:
    result = run(*compress(budget="abc"), "--json")
    assert (result.exit_code, result.stdout) == (errors.BudgetError.exit_code, "")


def test_inspect(place: Path) -> None:
    before = listing(place)
    result = run("inspect", "model.onnx")
    assert (result.exit_code, result.stderr) == (0, "")
    for said in ("16x3x3x3", "yes (tucker2)", "yes (svd)", "9,216", "53.9%", "589,824", "17,098 parameters, 2,343,552 MACs"):
        assert said in result.stdout
    assert "5 of 5 layers compressible" in result.stdout
    assert listing(place) == before


def test_inspect_of_layers_left_alone(place: Path) -> None:
    only_depthwise(place)
    result = run("inspect", "model.onnx")
    assert result.exit_code == 0
    assert "no: depthwise" in result.stdout
    assert "0 of 1 layers compressible" in result.stdout


def test_inspect_as_json(place: Path) -> None:
    seen = json.loads(run("inspect", "model.onnx", "--json").stdout)
    assert (seen["cost"]["params"], seen["cost"]["macs"]) == (17098, 2343552)
    assert seen["layers"][0]["shape"] == [16, 3, 3, 3]
    assert sum(layer["macs"] for layer in seen["layers"]) == 2343552
    assert [layer["params"] for layer in seen["layers"]] == [432, 4608, 9216, 2048, 640]


def test_validate(place: Path) -> None:
    assert run(*COMPRESS).exit_code == 0
    before = listing(place)
    result = run("validate", "model.onnx", "out.onnx", "--data", "data.npz", "--threads", 1)
    assert (result.exit_code, result.stderr) == (0, "")
    for said in ("parameters", "17,098", "top-1 accuracy", "largest difference", "latency"):
        assert said in result.stdout
    comparison = json.loads(run("validate", "model.onnx", "out.onnx", "--json").stdout)
    assert comparison["differences"][0]["output"] == "y"
    assert comparison["differences"][0]["within"] is False
    assert listing(place) == before


def test_validate_equal_fails_where_the_outputs_differ(place: Path) -> None:
    assert run(*COMPRESS).exit_code == 0
    assert run("validate", "model.onnx", "model.onnx", "--equal").exit_code == 0
    result = run("validate", "model.onnx", "out.onnx", "--equal")
    assert result.exit_code == errors.ParityError.exit_code
    assert result.stderr.startswith("error: output 'y' of out.onnx is off by ")
    assert "; the first to differ is node " in result.stderr
    assert "the first to differ is node " in run("validate", "model.onnx", "out.onnx").stdout


def test_json_knows_no_infinity(place: Path) -> None:
    """A NaN in an output is infinitely far, which JSON cannot say."""
    nodes = [helper.make_node("Gemm", ["x", "w"], ["g"]), helper.make_node("Sqrt", ["g"], ["y"])]
    for name, scale in (("a", 1.0), ("b", -1.0)):
        onnx.save(one_node(nodes, (2, 8), (2, 6), {"w": scale * np.abs(values(8, 6))}), place / f"{name}.onnx")
    text = run("validate", "a.onnx", "b.onnx", "--json", "--input", "x=:0..1").stdout
    assert json.loads(text, parse_constant=pytest.fail)["differences"][0]["max_absolute"] is None


@pytest.mark.parametrize("command", [(), *((name,) for name in main.commands)], ids=str)
def test_every_command_and_option_is_documented(command: tuple[str, ...]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    if not command:
        for name in main.commands:
            assert name in result.stdout
        return
    described = main.commands[command[0]]
    assert described.help
    for parameter in described.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
            assert max(parameter.opts, key=len) in result.stdout


def test_the_version() -> None:
    assert __version__ in run("--version").stdout


def spawn(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The installed command, as a user runs it."""
    return subprocess.run([COMMAND, *arguments], cwd=place, capture_output=True, text=True, timeout=60, check=False)


def test_the_installed_command(place: Path) -> None:
    good = spawn(place, *COMPRESS, "--json", "--threads", "1")
    assert good.returncode == 0, good.stderr
    assert json.loads(good.stdout)["comparison"]["cost_other"]["params"] <= 8549
    bad = spawn(place, *compress(budget="abc"))
    assert (bad.returncode, bad.stdout) == (errors.BudgetError.exit_code, "")
    assert len(bad.stderr.splitlines()) == 1
