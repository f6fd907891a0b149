"""Files that were cut short or damaged: one line and an exit code, each time, and nothing is written.

Through the command line, in this process. Weights may change without harm, so bytes are flipped in what is not weights.
onnxruntime itself ends the process on some graphs that no checker refuses (a shape of 10^9 elements, computed in the graph);
none of these are here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from batude_onnx import errors
from batude_onnx.cli import main
from tests.layer_models import shortcut
from tests.loading_models import conv_bn
from tests.rich_models import rich
from tests.small_models import network
from tests.test_layers_stored import cast, channels_last
from tests.test_layers_transposed import generator

OURS = Path(__file__).parents[1] / "models" / "resnet20-cifar10.onnx"
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.BatudeError)]
CODES = {kind.exit_code for kind in KINDS if kind is not errors.BatudeError}
INSPECT = ("inspect", "m.onnx")
COMPRESS = ("compress", "m.onnx", "--budget", "1.5x", "-o", "out.onnx", "--no-simplify", "--threads", "1")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(content: bytes, *arguments: str) -> Result:
    """One command on a file of this content, held to what must be so however the file is damaged."""
    Path("m.onnx").write_bytes(content)
    result = CliRunner().invoke(main, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in CODES | {0}, result.stderr
    written = {path.name for path in Path.cwd().iterdir()} - {"m.onnx"}
    if result.exit_code:
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ")
        assert len(line) < 700
        assert not written
    for name in written:
        Path(name).unlink()
    return result


def test_a_real_model_cut_at_any_length_is_refused(place: Path) -> None:
    content = OURS.read_bytes()
    assert run(content, *INSPECT).exit_code == 0
    sizes = {int(size) for size in np.geomspace(1, len(content) - 1, 40)} | {len(content) - k for k in range(1, 40)}
    codes = {run(content[:size], *command).exit_code for size in sorted(sizes) for command in (INSPECT, COMPRESS)}
    assert codes == {errors.ModelError.exit_code}


def outside_of_weights(content: bytes) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Positions of all bytes that are not in a large tensor."""
    counted = np.ones(len(content), dtype=bool)
    for tensor in onnx.ModelProto.FromString(content).graph.initializer:
        place = content.find(tensor.raw_data)
        if len(tensor.raw_data) > 64 and place >= 0:
            counted[place : place + len(tensor.raw_data)] = False
    return np.flatnonzero(counted)


def damaged(content: bytes, seed: int) -> bytes:
    """One to three places with a bit flipped, another byte, or bytes missing."""
    rng, data = np.random.default_rng(seed), bytearray(content)
    for place in sorted(rng.choice(outside_of_weights(content), int(rng.integers(1, 4))).tolist(), reverse=True):
        way = int(rng.integers(3))
        if way == 0:
            data[place] ^= 1 << int(rng.integers(8))
        elif way == 1:
            data[place] = int(rng.integers(256))
        else:
            del data[place : place + int(rng.integers(1, 5))]
    return bytes(data)


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    make.__name__: make for make in (rich, network, generator, conv_bn, cast, channels_last)
}


@pytest.mark.parametrize("name", MODELS)
def test_damage_is_named_or_harmless(place: Path, name: str) -> None:
    content = MODELS[name]().SerializeToString()
    codes = [run(damaged(content, seed), *command).exit_code for seed in range(50) for command in (INSPECT, COMPRESS)]
    assert 0 in codes  # some is harmless: a letter of a name, a text
    assert codes.count(errors.ModelError.exit_code) > 20


def test_damage_to_a_real_model_is_named_or_harmless(place: Path) -> None:
    content = OURS.read_bytes()
    codes = [run(damaged(content, seed), *INSPECT).exit_code for seed in range(40)]
    assert errors.ModelError.exit_code in codes


def changed(make: Callable[[], onnx.ModelProto], change: Callable[[onnx.ModelProto], object]) -> bytes:
    model = make()
    change(model)
    return bytes(model.SerializeToString())


def held(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    (found,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    assert isinstance(found, onnx.TensorProto)
    return found


def not_text() -> bytes:
    return bytes(conv_bn().SerializeToString()).replace(b"the relu", b"the\xffrelu")


def not_text_in_an_attribute() -> bytes:
    return bytes(network().SerializeToString()).replace(b"SAME_UPPER", b"SAME_\xa2PPER")


def read_from_nowhere(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[3] = "vcr"


def read_from_nowhere_inside(model: onnx.ModelProto) -> None:
    branch = next(node for node in model.graph.node if node.op_type == "If")
    branch.attribute[0].g.node[0].input[0] = "vcr"


def given_from_nowhere(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "vcr"


def untyped(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UNDEFINED


def huge(model: onnx.ModelProto) -> None:
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 2**40


# What went wrong once, and what is now said.
SAID: dict[str, tuple[Callable[[], bytes], str]] = {
    "not text": (not_text, "damaged: NodeProto.doc_string"),
    "not text in an attribute": (not_text_in_an_attribute, "damaged: attribute auto_pad b'SAME_\\xa2PPER' is not UTF-8"),
    "read from nowhere": (
        lambda: changed(conv_bn, read_from_nowhere), "node 'norm' (BatchNormalization) reads 'vcr', which nothing gives",
    ),
    "read from nowhere inside": (lambda: changed(rich, read_from_nowhere_inside), "reads 'vcr', which nothing gives"),
    "given from nowhere": (lambda: changed(conv_bn, given_from_nowhere), "output 'vcr' is what nothing gives"),
    "a type that is none": (lambda: changed(conv_bn, untyped), "m.onnx: "),
    "an input that no memory holds": (lambda: changed(conv_bn, huge), "more than can be run"),
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_what_is_said_of_damage(place: Path, name: str) -> None:
    make, said = SAID[name]
    result = run(make(), *COMPRESS)
    assert result.exit_code == errors.ModelError.exit_code
    assert said in result.stderr
    run(make(), *INSPECT)


def test_a_number_that_no_shape_holds_ends_at_once(place: Path) -> None:
    """Shape inference would go through a vector of that length element by element."""

    def enlarge(model: onnx.ModelProto) -> None:
        held(model, "eight").CopyFrom(numpy_helper.from_array(np.array([2**57 + 8]), "eight"))

    assert run(changed(shortcut, enlarge), *INSPECT).exit_code == errors.ModelError.exit_code


def test_ends_of_slices_may_be_as_large_as_they_are(place: Path) -> None:
    """The twin: 2^63 - 1 is how many exporters say 'to the end', and what comes of it is known."""

    def enlarge(model: onnx.ModelProto) -> None:
        held(model, "ends").CopyFrom(numpy_helper.from_array(np.array([2**63 - 1, 2**63 - 1]), "ends"))

    plain, large = run(shortcut().SerializeToString(), *INSPECT), run(changed(shortcut, enlarge), *INSPECT)
    assert (large.exit_code, large.stdout) == (0, plain.stdout)


def test_what_makes_no_sense_on_the_way_to_a_weight_is_no_traceback(place: Path) -> None:
    """An order of axes that is none, and a type that is none: the ONNX checker lets both pass."""

    def order(model: onnx.ModelProto) -> None:
        model.graph.node[0].attribute[0].CopyFrom(helper.make_attribute("perm", [3, 0, 1, 9]))

    def kind(model: onnx.ModelProto) -> None:
        model.graph.node[1].attribute[0].i = 127

    for content in (changed(channels_last, order), changed(cast, kind)):
        assert run(content, *INSPECT).exit_code in (0, errors.ModelError.exit_code)
        assert run(content, *COMPRESS).exit_code == errors.ModelError.exit_code


def test_shapes_inside_of_a_branch_that_contradict_it_are_left_to_a_run(place: Path) -> None:
    """onnxruntime runs such a file, and so its layers are found all the same."""

    def contradict(model: onnx.ModelProto) -> None:
        branch = next(node for node in model.graph.node if node.op_type == "If")
        branch.attribute[0].g.value_info[0].type.tensor_type.shape.dim[1].dim_value = 4

    result = run(changed(rich, contradict), *INSPECT)
    assert result.exit_code == 0
    assert "2 of 2 layers compressible" in result.stdout
