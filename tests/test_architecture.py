"""ARCHITECTURE.md's table, read from the file itself, held against the imports of every module; and the house rules that
a syntax tree can show."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from batude_onnx import decomposition
from batude_onnx.layers import registry as kinds

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "batude_onnx"
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 400

# What a cell may say in place of names.
NOTHING, EVERYTHING = "-", "all rooms"
# Names in the table that are one library, or stand for what is imported under another name.
ALSO = {"onnx": {"google"}}
# These may be imported by every room.
COMMON = {"records", "errors"}


def room_of(path: Path) -> str:
    """'layers' for batude_onnx/layers/conv.py, 'cli' for batude_onnx/cli.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def table() -> dict[str, set[str] | None]:
    """Room -> what it may import besides itself and what is common; None: everything."""
    lines = (ROOT / "ARCHITECTURE.md").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| room |"))
    rooms: dict[str, set[str] | None] = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        room, _, allowed = (cell.strip() for cell in line.strip("|").split(" | "))
        names = {name.strip(" `/") for name in allowed.split(",")} - {NOTHING}
        rooms[room.strip("`/").removesuffix(".py")] = None if EVERYTHING in names else names
    return rooms


def imports(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, also inside of functions, but not for type checking only."""
    tree = ast.parse(path.read_text())
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            # `from batude_onnx import layers` imports a room, not the package.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("import_module", "importlib.import_module", "__import__"):
            assert isinstance(node.args[0], ast.Constant), f"{path}: what is imported cannot be read"
            yield str(node.args[0].value)


def used_by(path: Path) -> set[str]:
    """Rooms and third-party libraries that a file imports, its own room and what is common left out."""
    used = set()
    for name in imports(path):
        first, *rest = name.split(".")
        if first == "batude_onnx":
            if rest and rest[0] != "__version__":
                used.add(rest[0])
        elif first not in sys.stdlib_module_names:
            used.add(first)
    return used - {room_of(path)}


def test_the_table_names_every_room_and_no_other() -> None:
    assert set(table()) | {"__init__"} == {room_of(path) for path in FILES} | {"__init__"}
    assert len(table()) > 10


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_what_the_table_allows_its_room(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        assert used_by(path) == set()
        return
    allowed = table()[room]
    if allowed is None:
        allowed = set(table()) - {"cli"}
        allowed |= {name for other in table().values() if other is not None for name in other}
    extra = {name for key in allowed for name in ALSO.get(key, set())}
    assert used_by(path) <= allowed | extra | COMMON


@pytest.mark.parametrize("room", sorted({room_of(path) for path in FILES} - {"__init__"}))
def test_the_table_allows_no_more_than_is_used(room: str) -> None:
    """So that a line of it cannot stay behind when the code moves on."""
    allowed = table()[room]
    if allowed is not None:
        used = set().union(*(used_by(path) for path in FILES if room_of(path) == room))
        assert allowed <= used


def test_the_rules_can_fail(tmp_path: Path) -> None:
    """The twin: what must not be found is found where it is."""
    file = tmp_path / "file.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import rich\ndef f():\n"
        "    from batude_onnx import layers\n    import torch.nn\n    import_module('onnxsim')\n    print(x == 'Conv')\n"
    )
    found = set(imports(file))
    assert found == {"typing.TYPE_CHECKING", "batude_onnx.layers", "torch.nn", "onnxsim"}
    assert list(printing(file)) == ["print"]
    assert set(compared(file)) == {"Conv"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_package_imports_neither_tools_nor_tests(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & {"tools", "tests"}


def printing(path: Path) -> Iterator[str]:
    """Calls that write to the terminal."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called == "print" or re.search(r"(^|\.)(console|_console|click|stdout|stderr)\.(print|echo|write|log)$", called):
                yield called


# progress.py prints on the console that the command line hands to it.
PRINTS = {"cli", "report/progress.py"}


def test_only_the_command_line_prints() -> None:
    found = {str(path.relative_to(PACKAGE)) for path in FILES if any(printing(path))}
    assert {"cli" if name.startswith("cli/") else name for name in found} == PRINTS


def compared(path: Path) -> Iterator[str]:
    """Strings that something is compared with, looked up by, or matched against."""
    for node in ast.walk(ast.parse(path.read_text())):
        parts: list[ast.AST] = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, (ast.match_case, ast.Subscript)):
            parts = [node.pattern if isinstance(node, ast.match_case) else node.slice]
        elif isinstance(node, ast.Dict):
            parts = [key for key in node.keys if key is not None]
        for inner in (inner for part in parts for inner in ast.walk(part)):
            if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                yield inner.value


METHODS = {method.name for method in decomposition.methods()}
KINDS = {op for _, op in kinds._KINDS}


def test_no_method_is_named_outside_of_its_file() -> None:
    assert len(METHODS) >= 2
    named = {str(path.relative_to(PACKAGE)) for path in FILES if METHODS & set(compared(path))}
    assert named == set()
    for path in FILES:
        strings = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        own = METHODS & strings
        assert own <= {path.stem}, f"{path} names {own}"


def test_no_kind_of_layer_is_named_outside_of_its_file() -> None:
    """The importer converts all ops, these too, and is free to name them."""
    assert {"Conv", "ConvTranspose", "Gemm", "MatMul"} <= KINDS
    named = {str(path.relative_to(PACKAGE)) for path in FILES if room_of(path) != "importer" and KINDS & set(compared(path))}
    assert named == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_is_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_and_public_thing_says_what_it_is(path: Path) -> None:
    """Public functions and classes of the module; the docstring of a registered op would only repeat its name."""
    tree = ast.parse(path.read_text())
    if tree.body:
        assert ast.get_docstring(tree), "the module has no docstring"
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        if not any(ast.unparse(decorator).startswith("op(") for decorator in node.decorator_list):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


def test_every_error_has_an_exit_code_of_its_own() -> None:
    from batude_onnx import errors

    kinds_of_error = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.BatudeError)]
    # One that only says more of an error of another kind takes that one's.
    codes = [kind.exit_code for kind in kinds_of_error if "exit_code" in vars(kind)]
    assert len(codes) == len(set(codes)) > 9
    assert 2 not in codes  # click's, for wrong use of the command line
