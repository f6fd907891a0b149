"""`--input` and `--dim` as text."""

from __future__ import annotations

import re

import pytest

from batude_onnx.feeding import read_dims, read_inputs
from batude_onnx.records import Given

READ = {
    "x=1,3,640,640": ("x", Given((1, 3, 640, 640))),
    "image=1,3,8,8:0..255": ("image", Given((1, 3, 8, 8), 0.0, 255.0)),
    "ids=:0..30000": ("ids", Given(None, 0.0, 30000.0)),
    "serving:0=1,2": ("serving:0", Given((1, 2))),
    "a=b=4:-1.5..-0.5": ("a=b", Given((4,), -1.5, -0.5)),
    "rate=:16000": ("rate", Given(None, 16000.0, 16000.0)),
    "x= 1, 3 : .5 .. 1e3 ": ("x", Given((1, 3), 0.5, 1000.0)),
}


@pytest.mark.parametrize("text", READ)
def test_shapes_and_ranges(text: str) -> None:
    name, given = READ[text]
    assert read_inputs([text]) == {name: given}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x", "'x' is not NAME=SHAPE, NAME=SHAPE:LOW..HIGH or NAME=:LOW..HIGH"),
        ("x=", "is not NAME=SHAPE"),
        ("x=:", "is not NAME=SHAPE"),
        ("x=1,3:", "is not NAME=SHAPE"),
        ("=1,3", "is not NAME=SHAPE"),
        ("", "is not NAME=SHAPE"),
        ("x=1,a", "'x=1,a': '1,a' is not a list of sizes such as 1,3,224,224"),
        ("x=1,,3", "is not a list of sizes"),
        ("x=1.5,3", "is not a list of sizes"),
        ("x=0,3", "size 0 is not possible; sizes are from 1 up"),
        ("x=1,-3", "size -3 is not possible"),
        ("x=:a..b", "'a..b' is not a range such as 0..255 or -1..1"),
        ("x=:0..", "is not a range"),
        ("x=:..1", "is not a range"),
        ("x=:0,1", "is not a range"),
        ("x=:0..1..2", "is not a range"),
        ("x=:2..1", "from a lower to a higher number, both finite, and '2..1' does not"),
        ("x=:0..inf", "both finite"),
        ("x=:nan..1", "both finite"),
    ],
)
def test_malformed_inputs(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        read_inputs([text])
    assert "\n" not in str(error.value)


def test_an_input_that_is_given_twice() -> None:
    with pytest.raises(ValueError, match="input 'x' is given twice; give shape and range together"):
        read_inputs(["x=1,3", "x=:0..1"])
    assert len(read_inputs(["x=1,3", "y=:0..1"])) == 2


def test_dimensions() -> None:
    assert read_dims(["batch=1", "a=b=640"]) == {"batch": 1, "a=b": 640}
    assert read_dims(["batch=2", "batch=2"]) == {"batch": 2}


@pytest.mark.parametrize("text", ["batch", "batch=", "=1", "batch=0", "batch=-1", "batch=1.5", "batch=x", ""])
def test_malformed_dimensions(text: str) -> None:
    with pytest.raises(ValueError, match=f"'{text}' is not NAME=SIZE such as batch=1, with a size from 1 up"):
        read_dims([text])


def test_two_sizes_of_one_dimension() -> None:
    with pytest.raises(ValueError, match="'batch=2': dimension 'batch' is 1 already"):
        read_dims(["batch=1", "batch=2"])
