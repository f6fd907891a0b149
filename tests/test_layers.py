"""Layers found in a graph: shape, geometry, positions and costs against numbers worked out by hand, and every reason."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from batude_onnx.errors import ModelError
from batude_onnx.layers import count, find_sites, infer_shapes, nodes_by_key, read_bias, read_weight
from batude_onnx.layers.registry import LayerKind, register
from batude_onnx.proving import survey
from batude_onnx.records import Cost, Geometry, Given, Wishes
from batude_onnx.validation import open_session
from tests.layer_models import LAYERS, PLACES, attention, conv_with_weight_in, one_node, only, read, shortcut, sites_of, values
from tests.loading_models import FLOAT, model_of


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_read_in_its_canonical_form(name: str) -> None:
    layer = LAYERS[name]
    site = only(layer.model())
    assert (site.key, site.node, site.op, site.data) == ("y", "layer", layer.op, "x")
    assert (site.weight, site.bias) == ("w", "b" if layer.bias else None)
    assert (site.method, site.reason) == (None, None)
    assert site.shape == layer.shape
    assert site.layout.swapped == (layer.stored != layer.shape)
    assert site.params == prod(layer.shape)


@pytest.mark.parametrize("name", LAYERS)
def test_the_declared_output_shape_is_what_onnxruntime_gives(name: str) -> None:
    """The numbers that the other tests are worked out from."""
    layer = LAYERS[name]
    x = values(*layer.x, seed=3)
    assert open_session(layer.model().SerializeToString(), threads=1).run({"x": x})["y"].shape == layer.out


@pytest.mark.parametrize("name", LAYERS)
def test_the_weight_read_computes_the_layer(name: str) -> None:
    """The canonical weight, applied as a plain sum, gives the layer's output at one place."""
    layer = LAYERS[name]
    model = read(layer.model())
    node = nodes_by_key(model)["y"]
    weight, bias = read_weight(node), read_bias(node)
    assert weight.shape == layer.shape
    assert (bias is not None) == layer.bias
    if len(layer.shape) == 2:
        x = values(*layer.x, seed=3)
        y = open_session(layer.model().SerializeToString(), threads=1).run({"x": x})["y"]
        np.testing.assert_allclose(y, x @ weight.T + (0 if bias is None else bias), rtol=1e-5, atol=1e-5)
    else:
        stored = numpy_helper.to_array(layer.model().graph.initializer[0])
        np.testing.assert_array_equal(weight, stored)


GEOMETRIES = {
    "conv1d": Geometry((1,), (1, 1), (1,)),
    "conv2d": Geometry((1, 1), (1, 1, 1, 1), (1, 1)),
    "conv3d": Geometry((1, 1, 1), (0, 0, 0, 0, 0, 0), (1, 1, 1)),
    "asymmetric kernel and pads": Geometry((1, 1), (0, 1, 2, 2), (1, 1)),
    "strided": Geometry((2, 2), (1, 1, 1, 1), (1, 1)),
    "dilated": Geometry((1, 1), (0, 0, 0, 0), (2, 3)),
    "grouped": Geometry((1, 1), (1, 1, 1, 1), (1, 1), 2),
    "same upper": Geometry((2, 2), (0, 0, 0, 0), (1, 1), 1, "SAME_UPPER"),
    "same lower": Geometry((2, 2), (0, 0, 0, 0), (1, 1), 1, "SAME_LOWER"),
    "valid": Geometry((1, 1), (0, 0, 0, 0), (1, 1), 1, "VALID"),
    "gemm": Geometry(),
    "matmul": Geometry(),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_geometry_is_the_nodes_with_defaults_filled_in(name: str) -> None:
    assert only(LAYERS[name].model()).geometry == GEOMETRIES[name]


# (output positions, input positions, MACs) of one sample, by hand.
COSTS = {
    "conv1d": (18, 20, 6 * 4 * 5 * 18),
    "conv2d": (72, 72, 6 * 4 * 9 * 72),
    "conv3d": (60, 210, 6 * 4 * 27 * 60),
    "asymmetric kernel and pads": (77, 72, 6 * 4 * 5 * 77),
    "strided": (20, 72, 6 * 4 * 9 * 20),
    "dilated": (10, 72, 6 * 4 * 9 * 10),
    "grouped": (72, 72, 12 * 4 * 9 * 72),
    "same upper": (20, 72, 6 * 4 * 9 * 20),
    "pointwise strided and padded": (12, 20, 6 * 8 * 12),
    "gemm": (1, 1, 48),
    "gemm transB": (1, 1, 48),
    "matmul": (1, 1, 48),
    "matmul of 3-D": (5, 5, 5 * 48),
}


@pytest.mark.parametrize("name", COSTS)
def test_positions_and_macs_of_one_sample(name: str) -> None:
    model = read(LAYERS[name].model())
    shapes = infer_shapes(model)
    (site,) = find_sites(model, shapes)
    assert (site.positions, site.input_positions, site.macs) == COSTS[name]
    bias = LAYERS[name].shape[0] if LAYERS[name].bias else 0
    assert count(model, shapes) == Cost(prod(LAYERS[name].shape) + bias, COSTS[name][2])


@pytest.mark.parametrize("place", PLACES)
def test_a_weight_is_found_wherever_it_is_stored(place: str) -> None:
    model = read(conv_with_weight_in(place))
    (site,) = find_sites(model, infer_shapes(model))
    assert (site.reason, site.weight, site.bias) == (None, PLACES[place], PLACES[place].replace("w", "b"))
    assert site.shape == (6, 4, 3, 3)
    np.testing.assert_array_equal(read_weight(nodes_by_key(model)["y"]), values(6, 4, 3, 3, seed=1))
    assert count(model, infer_shapes(model)) == Cost(6 * 4 * 9 + 6, 6 * 4 * 9 * 42)


def test_a_half_precision_weight_is_read_as_float32() -> None:
    half = values(6, 8).astype(np.float16)
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    model = read(one_node(node, (2, 8), (2, 6), {"w": half}, kind=TensorProto.FLOAT16))
    (site,) = find_sites(model, infer_shapes(model))
    assert site.reason is None
    weight = read_weight(nodes_by_key(model)["y"])
    assert weight.dtype == np.float32
    np.testing.assert_array_equal(weight, half.astype(np.float32))


def test_a_computed_factor_is_no_parameter() -> None:
    model = read(attention())
    shapes = infer_shapes(model)
    (site,) = find_sites(model, shapes)
    assert (site.shape, site.params) == ((), 1)
    assert count(model, shapes) == Cost(0, 3 * 5 * 7 * 5)


def test_layers_in_bodies_are_found_and_counted() -> None:
    inside = helper.make_graph(
        [helper.make_node("Conv", ["x", "inner_w"], ["then"])], "then", [],
        [helper.make_tensor_value_info("then", FLOAT, None)], [numpy_helper.from_array(values(6, 4, 3, 3), "inner_w")],
    )  # fmt: skip
    outside = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["else"])], "else", [], [helper.make_tensor_value_info("else", FLOAT, None)]
    )
    model = model_of(
        [
            helper.make_node("If", ["flag"], ["i"], then_branch=inside, else_branch=outside),
            helper.make_node("Conv", ["i", "w2"], ["y"]),
        ],
        [helper.make_tensor_value_info("x", FLOAT, [1, 4, 9, 8]), helper.make_tensor_value_info("flag", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", FLOAT, [1, 6, 5, 4])],
        {"w": values(6, 4, 3, 3), "w2": values(6, 6, 3, 3)},
    )
    sites = sites_of(model)
    assert {key: (site.inside, site.positions) for key, site in sites.items()} == {
        "else": (("If",), 42), "then": (("If",), 42), "y": ((), 20),
    }  # fmt: skip
    assert count(read(model), infer_shapes(read(model))) == Cost(2 * 6 * 4 * 9 + 6 * 6 * 9, 2 * 216 * 42 + 324 * 20)


def test_whether_a_batchnorm_reads_the_layer() -> None:
    norm = {"scale": values(6), "shift": values(6), "mean": values(6), "var": values(6) ** 2}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("BatchNormalization", ["a", *norm], ["n"]),
        helper.make_node("Conv", ["n", "v"], ["y"]),
    ]
    model = one_node(nodes, (2, 4, 9, 8), (2, 3, 5, 4), {"w": values(6, 4, 3, 3), "v": values(3, 6, 3, 3), **norm})
    assert {key: site.normalised for key, site in sites_of(model).items()} == {"a": True, "y": False}


def open_sizes(sizes: list[int | str | None]) -> onnx.ModelProto:
    model = LAYERS["conv2d"].model()
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", FLOAT, sizes))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", FLOAT, None))
    return model


def asked(**shapes: tuple[int, ...]) -> Wishes:
    return Wishes({name: Given(shape) for name, shape in shapes.items()})


@pytest.mark.parametrize("size", ["H", None, -1])
def test_open_sizes_are_chosen_until_they_are_given(size: str | int | None) -> None:
    model = read(open_sizes(["N", 4, size, size]))
    chosen = survey(model)
    assert chosen.cost == Cost(6 * 4 * 9 + 6, 6 * 4 * 9 * 224**2)
    assert "open input sizes were chosen: x=1,4,224,224; others by" in chosen.feeding.taken
    known = survey(model, asked(x=(1, 4, 10, 12)))
    assert known.feeding.taken == ""
    assert (known.sites[0].positions, known.sites[0].input_positions) == (120, 120)
    assert known.cost.macs == 6 * 4 * 9 * 120


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (asked(z=(1, 4, 9, 8)), "'z', which is no input; the inputs are x"),
        (asked(x=(1, 4, 9)), r"shape \(1, 4, 9\) does not fit input x"),
        (asked(x=(1, 5, 9, 8)), r"shape \(1, 5, 9, 8\) does not fit input x"),
    ],
)
def test_shapes_that_do_not_fit_the_inputs_are_refused(inputs: Wishes, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        survey(read(open_sizes(["N", 4, "H", "W"])), inputs)


def test_a_batch_written_as_minus_one_is_open() -> None:
    assert survey(read(open_sizes([-1, 4, 9, 8]))).sites[0].positions == 72


def test_shapes_that_only_a_run_can_find() -> None:
    model = read(shortcut())
    inferred = {site.key: site.input_positions for site in find_sites(model, infer_shapes(model))}
    assert inferred["y"] == 0  # the twin: without a run nothing is known of it
    sites = {site.key: site for site in survey(model).sites}
    assert (sites["y"].positions, sites["y"].input_positions) == (16, 16)
    assert survey(model).cost == Cost(4 * 27 + 6 * 72, 4 * 27 * 64 + 6 * 72 * 16)


def test_the_output_shape_is_known_where_only_a_run_can_find_it() -> None:
    """The number of classes comes from it."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("NonZero", ["ones"], ["places"]),
        helper.make_node("Shape", ["places"], ["sizes"]),
        helper.make_node("ReduceSum", ["sizes"], ["summed"], keepdims=1),
        helper.make_node("Mul", ["summed", "zero"], ["nothing"]),
        helper.make_node("Concat", ["one", "nothing"], ["target"], axis=0),
        helper.make_node("Reshape", ["r", "target"], ["y"]),
    ]
    ints = {"ones": np.ones(3, np.float32), "zero": np.array([0]), "one": np.array([0])}
    model = read(one_node(nodes, (2, 4, 3, 3), ("N", "k"), {"w": values(6, 4, 3, 3), **ints}))
    assert "y" not in infer_shapes(model)
    assert all(site.positions for site in find_sites(model, infer_shapes(model)))
    assert survey(model).shapes["y"] == (1, 6)


def test_scalars_and_constants_count_as_parameters_and_integers_do_not() -> None:
    nodes = [
        helper.make_node("Constant", [], ["half"], value_float=0.5),
        helper.make_node("Constant", [], ["three"], value_floats=[1.0, 2.0, 3.0]),
        helper.make_node("Constant", [], ["sizes"], value_ints=[1, 3]),
        helper.make_node("Mul", ["x", "half"], ["a"]),
        helper.make_node("Add", ["a", "three"], ["b"]),
        helper.make_node("Expand", ["b", "sizes"], ["y"]),
    ]
    model = read(one_node(nodes, (2, 3), (2, 3), {}))
    assert count(model, infer_shapes(model)) == Cost(4, 0)


def test_a_kind_registered_twice_is_refused() -> None:
    from batude_onnx.layers.conv import KIND

    assert isinstance(KIND, LayerKind)
    with pytest.raises(ValueError, match="'Conv' is registered twice"):
        register(KIND)
