"""The documents say what the code does."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from batude_onnx import errors
from batude_onnx.cli import main
from batude_onnx.cli.options import INTERRUPTED
from batude_onnx.pipeline import compress
from batude_onnx.settings import Settings
from tools import adopt_model, bench_speed
from tools.render_models import render
from tools.speed import page
from tools.transcript import MARK
from tools.zoo import rendering as zoo

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MODELS = sorted((ROOT / "models").glob("*.json"))


def test_every_command_and_every_option_of_compress_is_in_the_readme() -> None:
    for name, command in main.commands.items():
        assert f"batude-onnx {name} " in README
        assert command.help
    compress = main.commands["compress"]
    for parameter in compress.params:
        if isinstance(parameter, click.Option):
            assert parameter.opts[-1] in README, parameter.opts


def test_every_option_has_a_help_text_or_a_telling_default() -> None:
    for command in main.commands.values():
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help or parameter.show_default, (command.name, parameter.opts)


def test_exit_codes_are_distinct_and_listed_in_the_readme() -> None:
    kinds = [
        kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.BatudeError)
    ]  # fmt: skip
    # One that only says more of an error of another kind takes that one's.
    codes = [kind.exit_code for kind in kinds if kind is not errors.BatudeError and "exit_code" in vars(kind)]
    assert len(set(codes)) == len(codes)
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    assert listed == {0, 2, INTERRUPTED, *codes}


def test_the_transcripts_were_made_by_the_commands_that_they_show() -> None:
    shown = list(MARK.finditer(README))
    assert shown
    for match in shown:
        assert f"$ {match['command']}\n" in match[0]


def test_the_page_of_the_models_is_rendered_from_their_facts() -> None:
    assert (ROOT / "models" / "README.md").read_text() == render(ROOT / "models")


def test_the_pages_of_speed_and_of_real_models_are_rendered_from_committed_results() -> None:
    measured = bench_speed.load(ROOT / "results")
    assert measured
    assert (ROOT / "docs" / "SPEED.md").read_text() == page.render(measured)
    results = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "results" / "zoo").glob("*.json"))}
    assert results
    assert (ROOT / "docs" / "ZOO.md").read_text() == zoo.render(results)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_the_models_are_the_files_that_were_measured(path: Path) -> None:
    facts = json.loads(path.read_text())
    assert hashlib.sha256((path.parent / facts["file"]).read_bytes()).hexdigest() == facts["sha256"]


def test_a_model_is_adopted_with_what_its_run_said(tmp_path: Path) -> None:
    made, folder = tmp_path / "small.onnx", tmp_path / "models"
    folder.mkdir()
    verdict = compress(Settings(ROOT / "models" / "resnet20-cifar10.onnx", made, "1.2x", threads=1))
    report = {"comparison": {"quality_original": {"top1": 91.523}, "quality_other": {"top1": 90.0, "n": 100}}}
    written = json.loads(made.with_suffix(".json").read_text())
    written["comparison"] |= report["comparison"]
    made.with_suffix(".json").write_text(json.dumps(written))
    told = CliRunner().invoke(adopt_model.main, [str(made), "--folder", str(folder)])
    assert told.exit_code == 0, told.output
    facts = json.loads((folder / "small.json").read_text())
    assert (folder / "small.onnx").read_bytes() == made.read_bytes()
    assert facts["sha256"] == hashlib.sha256(made.read_bytes()).hexdigest()
    assert facts["parameters"] == f"269,034 to {verdict.comparison.cost_other.params:,}"
    assert facts["of_the_original"] == 91.52
    threads = json.loads(made.with_suffix(".json").read_text())["facts"]["threads"]
    assert facts["commands"][0].endswith(f"cifar10.onnx --budget 1.2x --seed 0 --threads {threads} -o models/small.onnx")
    assert "| budget | 1.2x |" in (folder / "README.md").read_text()


def test_the_models_are_there() -> None:
    assert MODELS
