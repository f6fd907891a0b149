"""Names as users and files give them: nothing in them is read as markup or as more than it says."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from batude_onnx import errors
from batude_onnx.cli import main
from batude_onnx.report import ConsoleWatch
from tests.small_models import network

# Closes a tag that was never opened, is a colour, is a picture.
NAMES = ("blk[/0]/conv", "[red]", ":smile:")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, where the command runs, with a network of which three layers have such names."""
    monkeypatch.chdir(tmp_path)
    model = network()
    names = dict(zip(("c1", "c2", "c3"), NAMES, strict=True))
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


COMPRESS = ("compress", "model.onnx", "--budget", "1.2x", "--threads", "1", "--no-simplify")


def test_names_are_shown_as_they_are(place: Path) -> None:
    for arguments in (("inspect", "model.onnx"), (*COMPRESS, "-o", "[red].onnx"), ("plan", *COMPRESS[1:-1], "-o", "[red].json")):
        result = run(*arguments)
        assert (result.exit_code, result.stderr) == (0, "")
        for name in NAMES:
            assert f"\n{name} " in result.stdout
        assert arguments[0] == "inspect" or "[red]." in result.stdout
    for command in ("validate", "bench"):
        result = run(command, "model.onnx", "[red].onnx", *(("--seconds", "0.1") if command == "bench" else ()))
        assert (result.exit_code, result.stderr) == (0, "")


def test_so_they_are_in_bars() -> None:
    out = StringIO()
    with ConsoleWatch(Console(file=out, width=110, force_terminal=True)) as watch:
        watch.count("the layers of [/0]", 1, 1)
    assert "the layers of [/0]" in out.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_is_chosen_by_its_very_name(place: Path, name: str) -> None:
    result = run(*COMPRESS, "--json", "--exclude", name)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["whole"][name] == "as it was asked for"
    # The twin: a pattern still is one.
    result = run(*COMPRESS, "--json", "--exclude", "blk[[]/[0-9]]/*")
    assert json.loads(result.stdout)["whole"][NAMES[0]] == "as it was asked for"
    assert run(*COMPRESS, "--include", "[rot]").exit_code == errors.PlanError.exit_code
