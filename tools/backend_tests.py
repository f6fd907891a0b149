"""How much of ONNX the importer covers: the onnx package's own backend node tests, run against it.

    python -m tools.backend_tests [--output docs/OPERATORS.md] [--only TEXT]

A test is a model of one node, or of the nodes of that op's function body (its "expanded" form), with inputs and expected
outputs; onnx generates them itself. All of a node's inputs are inputs of the model here, none is a constant.

A test is passed where the imported network gives the expected values, or, on a corner that the data and onnxruntime see
differently, onnxruntime's; not supported where the importer refuses the model, with its reason; failed in all other cases.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from batude_onnx.errors import UnsupportedError
from batude_onnx.importer import import_graph

Array = npt.NDArray[Any]

# onnxruntime's ways to say that it cannot run a model.
_CANNOT = (ort_errors.Fail, ort_errors.InvalidArgument, ort_errors.InvalidGraph, ort_errors.NotImplemented)
PASSED, FAILED, REFUSED, AS_ORT = "passed", "failed", "not supported", "passed with onnxruntime's values"
_EXPANDED = re.compile(r"_expanded(_ver\d+)?$")
# "node 'name' (Op, opset 17): reason; advice", as the importer reports it.
_REASON = re.compile(r"node '.*?' \((?P<op>[\w.]+), opset \d+\): (?P<why>[^;]*)")

_TYPE = re.compile(r"'?\b(U?INT|FLOAT)\d\w*'?")


@dataclass(frozen=True)
class Outcome:
    """One test: its name, the op that it is about, whether it holds the op's function body, and what came of it."""

    test: str
    op: str
    expanded: bool
    status: str
    reason: str = ""


def node_tests() -> list[TestCase]:
    """All of them, by name. Generating the data takes some seconds."""
    with warnings.catch_warnings():
        # Some of onnx's own computations divide by zero on purpose.
        warnings.simplefilter("ignore")
        return sorted(load_model_tests(kind="node"), key=lambda test: str(test.name))


def _array(value: object) -> Array:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def _tensor(value: object) -> torch.Tensor:
    array = _array(value)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def _differs(found: Sequence[torch.Tensor], expected: Sequence[object], test: TestCase) -> str:
    """What is wrong with the results, or nothing."""
    if len(found) != len(expected):
        return f"{len(found)} outputs instead of {len(expected)}"
    for index, (result, wanted) in enumerate(zip(found, expected, strict=True)):
        right = _tensor(wanted)
        if (result.dtype, result.shape) != (right.dtype, right.shape):
            return f"output {index} is {result.dtype} {list(result.shape)}, not {right.dtype} {list(right.shape)}"
        if not right.is_floating_point():
            if not torch.equal(result, right):
                return f"output {index} differs"
            continue
        # onnx's own tolerances, but never less than a rounding of the value, or of the largest one where sums cancel.
        rounding, numbers = torch.finfo(right.dtype).eps, right[right.isfinite()].double()
        scale = float(numbers.abs().max()) if numbers.numel() else 0.0
        rtol, atol = max(test.rtol, 2 * rounding), max(test.atol, rounding * scale)
        if not torch.allclose(result.double(), right.double(), rtol=rtol, atol=atol, equal_nan=True):
            return f"output {index} differs by up to {(result.double() - right.double()).abs().nan_to_num().max():.2g}"
    return ""


def _onnxruntime(model: onnx.ModelProto, inputs: Sequence[object]) -> list[Array] | None:
    """What onnxruntime computes, or None where it lacks the op or its version."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except _CANNOT:
        return None
    feeds = {value.name: _array(given) for value, given in zip(session.get_inputs(), inputs, strict=True)}
    results: list[Array] = session.run(None, feeds)
    return results


def _op_of(test: TestCase, by_name: dict[str, TestCase]) -> str:
    """Name of the op that a test is about, with its domain where that is not ONNX's own."""
    model = by_name[_EXPANDED.sub("", test.name)].model
    assert model is not None
    (node,) = model.graph.node
    return f"{node.domain}.{node.op_type}" if node.domain else str(node.op_type)


def _reasons(error: UnsupportedError, op: str) -> str:
    """Why a model was refused, without the names of values; the op is named where it is not the one that the test is about."""
    found: dict[str, None] = {}
    for match in _REASON.finditer(str(error)):
        why = re.sub(r"^tensor '.*?' has", "an input has", match["why"])
        why = re.sub(r"^'.*?' is no tensor.*", "an input is no tensor", why)
        why = re.sub(r"^the op is not implemented by the importer(: )?", "", why) or "not implemented"
        found[why if match["op"] == op else f"{match['op']}: {why}"] = None
    return "; ".join(found)


def run(test: TestCase, op: str) -> Outcome:
    """Import the model of one test, and compare."""
    expanded = _EXPANDED.search(test.name) is not None
    model, data = test.model, test.data_sets
    assert model is not None
    assert data is not None
    try:
        net = import_graph(ir.from_proto(model)).eval()
    except UnsupportedError as error:
        return Outcome(test.name, op, expanded, REFUSED, _reasons(error, op))
    for given, expected in data:
        inputs = [value for value in given if value is not None]
        try:
            with torch.no_grad():
                found = net(*[_tensor(value) for value in inputs])
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, KeyError) as error:
            # What a step may raise that was imported but cannot be computed; it is reported, and counted as failed.
            return Outcome(test.name, op, expanded, FAILED, f"{type(error).__name__}: {error}".splitlines()[0])
        wrong = _differs(found, expected, test)
        if wrong:
            other = _onnxruntime(model, inputs)
            agreed = other is not None and not _differs(found, other, test)
            return Outcome(test.name, op, expanded, AS_ORT if agreed else FAILED, wrong)
    return Outcome(test.name, op, expanded, PASSED)


def run_all(only: str = "") -> list[Outcome]:
    """The outcome of every node test whose name holds `only`, by name."""
    tests = node_tests()
    by_name = {str(test.name): test for test in tests}
    return [run(test, _op_of(test, by_name)) for test in tests if only in test.name]


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """One row an op: counts, and why what is not supported is not."""
    lines = ["| op | passed | failed | not supported | why not |", "|---|---:|---:|---:|---|"]
    for op in sorted({outcome.op for outcome in outcomes}, key=lambda name: ("." in name, name)):
        own = [outcome for outcome in outcomes if outcome.op == op]
        counts = Counter(PASSED if outcome.status == AS_ORT else outcome.status for outcome in own)
        why = _grouped([outcome.reason for outcome in own if outcome.status == REFUSED])
        lines.append(f"| {op} | {counts[PASSED]} | {counts[FAILED]} | {counts[REFUSED]} | {why} |")
    return lines


def _grouped(reasons: Sequence[str]) -> str:
    """Reasons with their counts; those that differ in nothing but an element type are one."""
    types: dict[tuple[str, str], list[str]] = {}
    for reason in reasons:
        match = _TYPE.search(reason)
        head, tail = (reason, "") if match is None else (reason[: match.start()], reason[match.end() :])
        types.setdefault((head, tail), []).append("" if match is None else match[0].strip("'"))
    return "; ".join(
        f"{head}{', '.join(sorted(set(names)))}{tail} ({len(names)})".replace("|", "\\|")
        for (head, tail), names in sorted(types.items())
    )


def _sums(outcomes: Sequence[Outcome]) -> str:
    """Tests and ops in words; an op counts as supported where any of its tests is passed."""
    counts = Counter(PASSED if outcome.status == AS_ORT else outcome.status for outcome in outcomes)
    ops = {outcome.op for outcome in outcomes}
    works = {outcome.op for outcome in outcomes if outcome.status in (PASSED, AS_ORT)}
    fails = {outcome.op for outcome in outcomes if outcome.status == FAILED}
    whole = works - fails - {outcome.op for outcome in outcomes if outcome.status == REFUSED}
    return (
        f"{len(outcomes)} tests of {len(ops)} ops: {counts[PASSED]} passed, {counts[FAILED]} failed, "
        f"{counts[REFUSED]} not supported. {len(works)} ops are supported, {len(whole)} of them in all that is tested; "
        f"{len(ops - works)} are not."
    )


def render(outcomes: Sequence[Outcome]) -> str:
    """The page docs/OPERATORS.md."""
    single = [outcome for outcome in outcomes if not outcome.expanded]
    bodies = [outcome for outcome in outcomes if outcome.expanded]
    agreed = [outcome for outcome in outcomes if outcome.status == AS_ORT]
    lines = [
        "# Operators",
        "",
        f"The backend node tests of onnx {onnx.__version__}, run against the importer by `make operators`. All inputs of a node",
        "are computed in these tests, none is a constant. A test is not supported where the importer refuses the model, which it",
        "does before anything is trained, with the reason given here; failed would be a wrong result. If and Loop are supported",
        "where their course is known at import, which it is in none of these tests but where sizes decide.",
        "",
        "## Ops",
        _sums(single),
        "",
        *table(single),
        "",
        "## Function bodies",
        "The same tests where ONNX defines an op by others, with these in its place. The reason names the op that is refused.",
        "",
        _sums(bodies),
        "",
        *table(bodies),
    ]
    if agreed:
        lines += [
            "",
            "## Where onnx's data and onnxruntime differ",
            "The importer computes what onnxruntime does; these count as passed.",
            "",
            *(f"- `{outcome.test}`: {outcome.reason}" for outcome in agreed),
        ]
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--output", type=click.Path(path_type=Path), help="Write the page here instead of printing its sums.")
@click.option("--only", default="", help="Only tests whose name holds this text.")
def main(output: Path | None, only: str) -> None:
    """Run the tests; the exit code is 1 where one has failed."""
    outcomes = run_all(only)
    if output is not None:
        output.parent.mkdir(exist_ok=True)
        output.write_text(render(outcomes))
    click.echo(_sums(outcomes))
    failed = [outcome for outcome in outcomes if outcome.status == FAILED]
    for outcome in failed:
        click.echo(f"{outcome.test}: {outcome.reason}", err=True)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
