"""Decompositions: exact at full rank, nearest below it, and what they cost and compute held against onnxruntime."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from batude_onnx.decomposition import (
    Method,
    Metric,
    alternatives,
    assign,
    dense_cost,
    linalg,
    method,
    method_of,
    methods,
    ones,
    register,
)
from batude_onnx.layers import count, infer_shapes
from batude_onnx.records import FactorChain, Geometry, Site
from tests.small_models import a_metric, a_weight, conv_model, floats, linear_model, output, rewritten, site, sites_of

# (shape, groups)
SHAPES = [
    ((6, 5, 3, 3), 1),
    ((8, 3, 3, 3), 2),
    ((20, 1, 3, 3), 1),
    ((7, 6, 5), 1),
    ((6, 4, 2, 3, 2), 1),
    ((9, 5, 1, 1), 1),
    ((8, 6, 1), 2),
    ((5, 7, 1, 1, 1), 1),
    ((6, 11), 1),
]
CASES = [
    pytest.param(way, shape, groups, id=f"{way.name}-{'x'.join(map(str, shape))}-{groups}")
    for way, (shape, groups) in product(methods(), SHAPES)
    if way.applies(shape, groups) is None
]


def geometry(shape: tuple[int, ...], groups: int) -> Geometry:
    axes = len(shape) - 2
    return Geometry((1,) * axes, (0,) * 2 * axes, (1,) * axes, groups)


def distance(a: Tensor, b: Tensor, groups: int, metric: Metric | None) -> float:
    return float(linalg.whiten(linalg.stack(a.double() - b.double(), groups), metric).norm())


def half(ranks: tuple[int, ...]) -> tuple[int, ...]:
    return tuple((rank + 1) // 2 for rank in ranks)


def few(way: Method, shape: tuple[int, ...], groups: int, share: float = 1.0) -> tuple[int, ...]:
    """About half of the largest useful ranks, or as many as make the chain smaller than this share of the layer."""
    ranks, whole = half(way.max_ranks(shape, groups)), site("y", shape, groups=groups)
    while way.cost(whole, ranks).params > share * whole.params and max(ranks) > 1:
        ranks = half(ranks)
    return ranks


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize(("way", "shape", "groups"), CASES)
def test_full_rank_reproduces_the_weight_and_less_does_not(
    way: Method, shape: tuple[int, ...], groups: int, measured: bool
) -> None:
    weight, metric = a_weight(shape), a_metric(shape, groups) if measured else None
    most = way.max_ranks(shape, groups)
    near = way.project(weight, groups, most, metric)
    assert (near.shape, near.dtype) == (weight.shape, weight.dtype)
    torch.testing.assert_close(near, weight, rtol=0, atol=2e-6)
    chain = way.factor(weight, None, geometry(shape, groups), most, metric)
    # Factors are rounded to float32 once each.
    torch.testing.assert_close(way.reconstruct(chain), weight.double(), rtol=0, atol=2e-5)
    assert distance(way.project(weight, groups, few(way, shape, groups), metric), weight, groups, metric) > 1e-2
    # What has no closed form may be exact with less, too.
    for mode, rank in enumerate(most if way.exact else ()):
        if rank > 1:
            less = tuple(rank - (index == mode) for index, rank in enumerate(most))
            assert distance(way.project(weight, groups, less, metric), weight, groups, metric) > 1e-2


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize(("way", "shape", "groups"), CASES)
def test_the_chain_stands_for_the_projected_weight(way: Method, shape: tuple[int, ...], groups: int, measured: bool) -> None:
    weight, metric, ranks = a_weight(shape), a_metric(shape, groups) if measured else None, few(way, shape, groups)
    chain = way.factor(weight, None, geometry(shape, groups), ranks, metric)
    near = way.project(weight, groups, ranks, metric)
    torch.testing.assert_close(way.reconstruct(chain), near.double(), rtol=0, atol=2e-5)
    norms = [float(np.linalg.norm(layer.weight)) for layer in chain.layers]
    assert norms == pytest.approx([norms[0]] * len(norms), rel=1e-5)


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize(("way", "shape", "groups"), CASES)
def test_the_projection_is_the_nearest_of_its_rank(way: Method, shape: tuple[int, ...], groups: int, measured: bool) -> None:
    """No random tensor of these ranks, with the best core for its factors, and no small step away comes nearer."""
    weight, metric, ranks = a_weight(shape), a_metric(shape, groups) if measured else None, few(way, shape, groups)
    white = linalg.whiten(linalg.stack(weight, groups), metric)
    near = linalg.whiten(linalg.stack(way.project(weight, groups, ranks, metric), groups), metric)
    best = float((white - near).norm())
    assert best < float(white.norm())
    if not way.modes:
        return  # held against numpy below
    generator = torch.Generator().manual_seed(0)
    for step in [1e-3, 1e-2, 0.1, 1.0, 1e3] * 6:
        other = white
        for mode, rank in zip(way.modes, ranks, strict=True):
            base = linalg.leading(near, mode)[0][..., :rank]
            noise = torch.randn(base.shape, generator=generator, dtype=base.dtype)
            basis = torch.linalg.qr(base + step * noise).Q
            other = linalg.multiply(other, basis @ basis.mT, mode)
        # HOOI stops after a few sweeps, a little above the minimum.
        assert float((white - other).norm()) >= best * (1 - 1e-4)


@pytest.mark.parametrize(("way", "shape", "groups"), CASES)
def test_losses_are_what_projections_lose(way: Method, shape: tuple[int, ...], groups: int) -> None:
    """Of one rank exactly; of several together at most, since a projection may better a truncated HOSVD. What has no closed form
    is told between two ranks at which it was fitted."""
    weight, metric = a_weight(shape), a_metric(shape, groups)
    table, most = way.losses(weight, groups, metric), way.max_ranks(shape, groups)
    assert float(table[tuple(rank - 1 for rank in most)]) == pytest.approx(0.0, abs=1e-8)
    for ranks in {few(way, shape, groups, 0.5), ones(way, site("y", shape, groups=groups))}:
        lost = distance(way.project(weight, groups, ranks, metric), weight, groups, metric) ** 2
        told = float(table[tuple(rank - 1 for rank in ranks)])
        if not way.exact:
            assert lost == pytest.approx(told, rel=0.5)
            continue
        assert lost <= told * (1 + 1e-4)
        if len(ranks) == 1:
            assert lost == pytest.approx(told, rel=1e-4)


def test_a_separable_projection_loses_the_singular_values_that_it_leaves_out() -> None:
    """Those of the matrix of (input channel, row) against (output channel, column), worked out with numpy."""
    weight = floats(6, 5, 3, 4)
    values = np.linalg.svd(weight.astype(np.float64).transpose(1, 2, 0, 3).reshape(15, 24), compute_uv=False)
    near = method("separable").project(torch.from_numpy(weight), 1, (4,), None).numpy()
    assert np.square(weight - near).sum() == pytest.approx(np.square(values[4:]).sum(), rel=1e-5)


def test_a_kernel_that_separates_is_found_exactly() -> None:
    """Every slice of a stack of box filters is one column times one row."""
    columns, rows = floats(4, 3, 5), floats(4, 3, 3, seed=1)
    weight = torch.from_numpy(np.einsum("sci,scj->scij", columns, rows))
    assert float(method("separable").losses(weight, 1, None)[11]) < 1e-9
    one = torch.from_numpy(np.einsum("ci,sj->scij", columns[0], rows[:, 0]))
    torch.testing.assert_close(method("separable").project(one, 1, (1,), None), one)


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_a_sum_of_few_components_is_found(scale: float) -> None:
    """Of each a column of outputs, one of inputs and a kernel of its own."""
    outputs, inputs, kernels = floats(12, 4), floats(8, 4, seed=1), floats(3, 3, 4, seed=2)
    weight = torch.from_numpy(np.einsum("sr,cr,ijr->scij", outputs, inputs, kernels) * np.float32(scale))
    by, norm = method("cp"), float(weight.norm())
    assert distance(by.project(weight, 1, (4,), None), weight, 1, None) < 5e-3 * norm
    table = by.losses(weight, 1, None)
    assert bool((table.diff() <= 0).all())
    assert float(table[6]) < 1e-3 * norm**2
    # Tucker-2 cannot say the same with half as many weights again.
    tucker = method("tucker2").project(weight, 1, (4, 3), None)
    assert method("tucker2").cost(site("y", (12, 8, 3, 3)), (4, 3)).params > 1.5 * by.cost(site("y", (12, 8, 3, 3)), (4,)).params
    assert distance(tucker, weight, 1, None) > 0.05 * norm


def test_a_weight_of_zeros_has_components_of_zeros() -> None:
    zeros = torch.zeros(6, 5, 3, 3)
    assert not method("cp").project(zeros, 1, (3,), None).any()
    assert not method("cp").losses(zeros, 1, None).any()
    chain = method("cp").regress(zeros.double(), torch.zeros(1, 45, 45).double(), None, geometry((6, 5, 3, 3), 1), (3,), None)
    assert not method("cp").reconstruct(chain).any()


def test_fitting_betters_the_closed_form() -> None:
    """For as many weights a kernel whose channels are mixed at random loses less than in any of the other ways."""
    weight, whole = torch.from_numpy(floats(16, 16, 3, 3)), site("y", (16, 16, 3, 3))
    lost = {}
    for found in alternatives(whole):
        by = method_of(found)
        table = by.losses(weight, 1, None)
        affordable = [
            float(value) for ranks, value in np.ndenumerate(table) if by.cost(found, tuple(r + 1 for r in ranks)).params <= 900
        ]
        lost[by.name] = min(affordable)
    assert lost["cp"] < 0.8 * min(value for name, value in lost.items() if name != "cp")


@pytest.mark.parametrize(("way", "shape", "groups"), CASES)
def test_the_metric_decides_what_is_near(way: Method, shape: tuple[int, ...], groups: int) -> None:
    weight, metric, ranks = a_weight(shape), a_metric(shape, groups), few(way, shape, groups)
    plain, measured = way.project(weight, groups, ranks, None), way.project(weight, groups, ranks, metric)
    assert distance(measured, weight, groups, metric) < 0.97 * distance(plain, weight, groups, metric)
    assert distance(plain, weight, groups, None) < 0.97 * distance(measured, weight, groups, None)


@pytest.mark.parametrize(("way", "shape", "groups"), CASES)
def test_cost_is_what_is_counted_in_the_written_graph(way: Method, shape: tuple[int, ...], groups: int) -> None:
    weight = floats(*shape)
    axes = len(shape) - 2
    # A stride, so that the maps in front of and behind the core differ in size.
    attributes: dict[str, Any] = {"strides": [2] * axes, "group": groups} if axes else {}
    model = conv_model(weight, None, (9, 8, 7)[:axes], **attributes) if axes else linear_model("Gemm", weight, transB=1)
    found = replace(sites_of(model)[0], method=way.name, reason=None)
    before = ir.from_proto(model)
    assert count(before, infer_shapes(before)) == dense_cost(found)
    for ranks in {way.max_ranks(shape, groups), half(way.max_ranks(shape, groups)), ones(way, found)}:
        chain = way.factor(torch.from_numpy(weight), None, found.geometry, ranks, None)
        after = ir.from_proto(rewritten(model, {"y": chain}))
        assert way.cost(found, ranks) == count(after, infer_shapes(after))
        assert way.cost(found, ranks).params == chain.weights


GEOMETRIES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": ((6, 5, 3, 3), (7, 8), {}),
    "strided": ((6, 5, 3, 3), (7, 8), {"strides": [2, 3], "pads": [1, 1, 1, 1]}),
    "asymmetric": ((6, 5, 3, 3), (7, 8), {"strides": [2, 2], "pads": [0, 2, 1, 0]}),
    "dilated": ((6, 5, 3, 3), (7, 8), {"dilations": [2, 1], "pads": [2, 1, 2, 1]}),
    "same_upper": ((6, 5, 3, 3), (7, 8), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same_lower": ((6, 5, 2, 3), (7, 8), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "valid": ((6, 5, 3, 3), (7, 8), {"auto_pad": "VALID"}),
    "groups": ((8, 3, 3, 3), (7, 8), {"group": 2, "pads": [1, 1, 1, 1], "strides": [2, 2]}),
    "1-D": ((7, 6, 5), (11,), {"pads": [2, 1], "strides": [2], "dilations": [2]}),
    "3-D": ((6, 4, 2, 3, 2), (4, 5, 4), {"pads": [1, 0, 0, 0, 2, 1], "strides": [1, 2, 1]}),
    "point": ((9, 5, 1, 1), (7, 8), {"strides": [2, 2], "pads": [1, 0, 0, 2]}),
    "point groups": ((8, 6, 1), (9,), {"group": 2, "strides": [2]}),
    "point same": ((9, 5, 1, 1), (7, 8), {"strides": [3, 2], "auto_pad": "SAME_UPPER"}),
}


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("biased", [False, True])
def test_the_chain_computes_what_the_dense_layer_computes(name: str, biased: bool) -> None:
    shape, size, attributes = GEOMETRIES[name]
    weight, bias = floats(*shape), floats(shape[0], seed=1) if biased else None
    model = conv_model(weight, bias, size, **attributes)
    x = floats(2, shape[1] * attributes.get("group", 1), *size, seed=2)
    for found in alternatives(sites_of(model)[0]):
        way = method_of(found)
        ranks = few(way, shape, found.geometry.groups)
        held = None if bias is None else torch.from_numpy(bias)
        chain = way.factor(torch.from_numpy(weight), held, found.geometry, ranks, None)
        dense = output(conv_model(way.reconstruct(chain).float().numpy(), bias, size, **attributes), x)
        np.testing.assert_allclose(output(rewritten(model, {"y": chain}), x), dense, rtol=1e-5, atol=2e-5)
        assert np.abs(output(model, x) - dense).max() > 0.1


def test_a_factor_of_full_input_rank_is_left_out_for_nothing() -> None:
    """Tucker-1 is Tucker-2 of full input rank: the same tensor, one layer less."""
    weight, geometry = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0)), Geometry((2, 2), (1,) * 4, (1, 1))
    one, two = (
        method(name).factor(weight, None, geometry, ranks, None) for name, ranks in (("tucker1", (4,)), ("tucker2", (4, 3)))
    )
    torch.testing.assert_close(method("tucker1").reconstruct(one), method("tucker2").reconstruct(two), atol=1e-5, rtol=0)
    assert [layer.weight.shape for layer in one.layers] == [(4, 3, 3, 3), (8, 4, 1, 1)]
    assert one.layers[0].geometry == geometry
    assert one.weights == two.weights - 9
    lost = (weight.double() - method("tucker1").reconstruct(one)).square().sum()
    torch.testing.assert_close(method("tucker1").losses(weight, 1, None)[3], lost, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "groups", "names"),
    [
        ((6, 5, 3, 3), 1, ["tucker2", "cp", "separable", "tucker1"]),
        ((8, 3, 3, 3), 2, ["tucker2", "cp", "separable", "tucker1"]),
        ((6, 4, 2, 3, 2), 1, ["tucker2", "cp", "separable", "tucker1"]),
        ((7, 6, 5), 1, ["tucker2", "cp", "tucker1"]),
        ((7, 6, 5, 1), 1, ["tucker2", "cp", "tucker1"]),
        ((7, 6, 1, 5), 1, ["tucker2", "cp", "tucker1"]),
        ((6, 5, 1, 1), 1, ["svd"]),
        ((6, 11), 1, ["svd"]),
    ],
)
def test_a_layer_has_its_alternatives(shape: tuple[int, ...], groups: int, names: list[str]) -> None:
    assert [found.method for found in alternatives(site("y", shape, groups=groups))] == names


@pytest.mark.parametrize(
    ("op", "attributes", "biased"),
    [("Gemm", {}, True), ("Gemm", {"transB": 1}, True), ("Gemm", {}, False), ("MatMul", {}, False)],
)
def test_a_linear_chain_computes_what_the_dense_layer_computes(op: str, attributes: dict[str, Any], biased: bool) -> None:
    stored, bias = floats(6, 11), None
    out = 6 if attributes else 11
    bias = floats(out, seed=1) if biased else None
    model = linear_model(op, stored, bias, **attributes)
    found = sites_of(model)[0]
    way, weight = method_of(found), torch.from_numpy(stored if attributes else stored.T.copy())
    chain = way.factor(weight, None if bias is None else torch.from_numpy(bias), found.geometry, (3,), None)
    dense = way.reconstruct(chain).float().numpy()
    x = floats(4, 17 - out, seed=2)
    wanted = output(linear_model(op, dense if attributes else np.ascontiguousarray(dense.T), bias, **attributes), x)
    np.testing.assert_allclose(output(rewritten(model, {"y": chain}), x), wanted, rtol=1e-5, atol=1e-5)
    assert np.abs(output(model, x) - wanted).max() > 0.1


def test_a_layer_that_nothing_reaches_is_still_projected() -> None:
    weight = a_weight((6, 5, 3, 3))
    dead = Metric.of_moments(torch.zeros(1, 5, 5), torch.zeros(1, 6, 6))
    near = method("tucker2").project(weight, 1, (2, 2), dead)
    assert bool(near.isfinite().all())


@pytest.mark.parametrize(
    ("shape", "groups", "reason"),
    [
        ((8, 1, 3, 3), 8, "depthwise"),
        ((16, 1, 5), 8, "depthwise"),
        ((8, 1, 1, 1), 8, "depthwise"),
        ((2, 2, 1, 1), 1, "would not get smaller: 4 weights at rank 1, 4 now"),
        ((1, 9), 1, "would not get smaller: 10 weights at rank 1, 9 now"),
        ((1, 1, 3, 3), 1, "would not get smaller: 11 weights at rank 1, 9 now"),
        ((2, 1, 3), 1, "would not get smaller: 6 weights at rank 1, 6 now"),
    ],
)
def test_a_layer_left_whole_has_its_reason(shape: tuple[int, ...], groups: int, reason: str) -> None:
    found = site("y", shape, groups=groups)
    assert found.method is None
    assert found.reason is not None
    assert found.reason.startswith(reason)
    with pytest.raises(ValueError, match="y is left whole: "):
        method_of(found)


@pytest.mark.parametrize(
    ("shape", "groups", "name"),
    [((6, 5, 3, 3), 1, "tucker2"), ((6, 5, 1, 1), 1, "svd"), ((6, 5), 1, "svd"), ((8, 4, 3), 2, "tucker2"), ((3, 1), 1, None)],
)
def test_each_layer_gets_the_method_made_for_it(shape: tuple[int, ...], groups: int, name: str | None) -> None:
    assert site("y", shape, groups=groups).method == name


def test_a_reason_given_before_stays() -> None:
    found = assign(replace(site("y", (6, 5, 3, 3)), method=None, reason="its weight is shared"))
    assert (found.method, found.reason) == (None, "its weight is shared")


def test_a_method_is_registered_once() -> None:
    with pytest.raises(ValueError, match="'tucker2' is registered twice"):
        register(method("tucker2"))


def mixed_gram(groups: int, size: int) -> Tensor:
    """A second moment of patches whose neighbouring entries go together, and of which few directions carry nearly everything."""
    rows = torch.from_numpy(floats(groups, 4 * size, size)).double() * torch.logspace(0, -2, size).double()
    rows = rows + rows.roll(1, -1)
    return rows.mT @ rows / rows.shape[1]


@pytest.mark.parametrize("shape", [(8, 6, 3, 3), (9, 7, 3), (10, 8), (9, 8, 1, 1), (6, 5, 2, 2, 2)])
@pytest.mark.parametrize("groups", [1, 2])
def test_regression_is_exact_at_full_rank_and_better_than_the_plain_factors_below(shape: tuple[int, ...], groups: int) -> None:
    """In the metric that it is given, where the plain factors know of no patches at all."""
    if groups > 1 and len(shape) == 2:
        return
    shape = (shape[0] * groups, *shape[1:])
    for found in alternatives(site("y", shape, groups=groups)):
        check_regression(found, shape, groups)


def check_regression(found: Site, shape: tuple[int, ...], groups: int) -> None:
    by, size = method_of(found), int(np.prod(shape[1:]))
    weight, gram = torch.from_numpy(floats(*shape)), mixed_gram(groups, size)

    def lost(chain: FactorChain) -> float:
        away = (by.reconstruct(chain) - weight.double()).reshape(groups, -1, size)
        return float(torch.einsum("gsd,gde,gse->", away, gram, away))

    scale = float(torch.einsum("gsd,gde,gse->", *(part := weight.double().reshape(groups, -1, size), gram, part)))
    full = by.max_ranks(shape, groups)
    exact = by.regress(weight.double(), gram, None, found.geometry, full, None)
    assert exact.ranks == full
    assert lost(exact) < 1e-6 * scale
    ranks = few(by, shape, groups)
    chain = by.regress(weight.double(), gram, None, found.geometry, ranks, None)
    plain = by.factor(weight, None, found.geometry, ranks, None)
    assert chain.weights == plain.weights
    assert chain.ranks == ranks
    assert 1e-4 * scale < lost(chain) < 0.8 * lost(plain)
