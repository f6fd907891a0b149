"""The tool that measures the rank solvers, and what it has written down."""

from __future__ import annotations

import numpy as np

from tools.solver_gap import bound, conv, drawn, exhaustive, large, resnet


def test_the_networks_are_those_that_they_are_named_after() -> None:
    """Published: 25,557,032 parameters, of which 53,120 are BatchNorm's and 1,000 the last bias; 4.09 G multiply-accumulates."""
    sites = list(resnet((3, 4, 6, 3)))
    assert len(sites) == 54
    assert sum(site.params for site in sites) == 25_557_032 - 53_120 - 1_000
    assert sum(site.macs for site in sites) == 4_089_184_256
    assert len(list(resnet((3, 8, 36, 3)))) == 156


def test_the_bound_is_below_the_optimum_and_the_gap_is_measured_from_it() -> None:
    network = drawn([conv(str(k), 6, 5, 3, 9 - 2 * k) for k in range(3)], np.random.default_rng(3))
    terms = network.terms("2x,macs=2x")
    least = exhaustive(network, terms)
    assert least is not None
    below, complete = bound(network, terms)
    assert complete
    assert 0.5 * least < below <= least
    row = large("three", network.sites, "2x")
    assert row["layers"] == 3
