"""onnx's own node tests against the importer: nothing that is supported fails, and docs/OPERATORS.md says how it stands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from onnx.backend.test.case.test_case import TestCase

from tests.importer_graphs import Array, floats, model_of
from tools import backend_tests
from tools.backend_tests import AS_ORT, FAILED, PASSED, REFUSED, Outcome, render, run, run_all

PAGE = Path(__file__).parent.parent / "docs" / "OPERATORS.md"


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = run_all()
    torch.set_num_threads(threads)
    return found


def test_nothing_that_is_imported_fails(outcomes: list[Outcome]) -> None:
    assert [outcome for outcome in outcomes if outcome.status == FAILED] == []


def test_what_is_not_supported_has_a_reason(outcomes: list[Outcome]) -> None:
    assert all(outcome.reason for outcome in outcomes if outcome.status == REFUSED)


def test_most_is_supported(outcomes: list[Outcome]) -> None:
    passed = [outcome for outcome in outcomes if outcome.status in (PASSED, AS_ORT)]
    assert len(passed) >= 1400
    for op in ("Conv", "LSTM", "Resize", "GridSample", "RoiAlign", "STFT", "Attention", "GroupNormalization"):
        assert op in {outcome.op for outcome in passed}


def test_the_page_is_up_to_date(outcomes: list[Outcome]) -> None:
    page = PAGE.read_text()
    if f"onnx {onnx.__version__}," not in page:
        pytest.skip("the page was written with another version of onnx")
    assert page == render(outcomes), "run `make operators`"


def case(model: onnx.ModelProto, inputs: list[Array], outputs: list[Array]) -> TestCase:
    return TestCase("test_it", "it", None, None, model, [(inputs, outputs)], "node", 1e-3, 1e-7)


def test_a_wrong_result_is_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: the comparison does find what is wrong."""
    x = floats(3, 4)
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": x}, ["y"])
    right = np.maximum(x, 0)
    assert run(case(model, [x], [right]), "Relu").status == PASSED
    # onnxruntime agrees with the importer, of course.
    assert run(case(model, [x], [right + 0.01]), "Relu").status == AS_ORT
    monkeypatch.setattr(backend_tests, "_onnxruntime", lambda model, inputs: None)
    for wrong in (right + 0.01, right.astype(np.float64), right[:2], np.where(right > 0, right, np.nan).astype(np.float32)):
        assert run(case(model, [x], [wrong]), "Relu").status == FAILED


def test_a_refused_model_is_not_supported() -> None:
    model = model_of([helper.make_node("Bernoulli", ["x"], ["y"])], {"x": floats(3)}, ["y"])
    outcome = run(case(model, [floats(3)], [floats(3)]), "Bernoulli")
    assert (outcome.status, outcome.reason) == (REFUSED, "it draws random numbers")


def test_reasons_that_differ_in_a_type_are_one() -> None:
    found = [
        Outcome("a", "Cast", False, REFUSED, "to = 'INT4' is not supported"),
        Outcome("b", "Cast", False, REFUSED, "to = 'INT2' is not supported"),
        Outcome("c", "Cast", False, PASSED),
        Outcome("d", "Add", False, REFUSED, "not implemented"),
    ]
    page = render(found)
    assert "| Add | 0 | 0 | 1 | not implemented (1) |" in page
    assert "| Cast | 1 | 0 | 2 | to = INT2, INT4 is not supported (2) |" in page
    assert "4 tests of 2 ops: 1 passed, 0 failed, 3 not supported. 1 ops are supported, 0 of them in all" in page
