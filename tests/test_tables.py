"""The harness of docs/RESULTS.md."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from batude_onnx.decomposition import method_of
from batude_onnx.records import Cost
from batude_onnx.training.recipe import RECIPES
from tests.small_models import network, site, sites_of, terms
from tools.tables import baselines
from tools.tables.baselines import PlainRules, scaled
from tools.tables.rendering import load, render
from tools.tables.rows import METHODS, ROWS, Row
from tools.tables.running import finished
from tools.tables.variants import GROUPS
from tools.tables.vbmf import evbmf_rank

ROOT = Path(__file__).parent.parent


ALL = (*ROWS, *(row for group in GROUPS for row in group.rows()))


def test_the_page_is_rendered_from_the_results() -> None:
    assert (ROOT / "docs" / "RESULTS.md").read_text() == render(load(ROOT / "results"))


def test_every_result_is_a_row_that_says_what_it_ran_on() -> None:
    names = {row.name for row in ALL}
    assert len(names) == len(set(ALL))
    for path in (ROOT / "results").glob("*.json"):
        record = json.loads(path.read_text())
        assert path.stem in names
        assert finished(Row(**record["row"]), path.parent), f"{path.stem} was made by settings that are no longer in force"
        assert {"row", "before", "after", "seconds", "hardware", "versions", "test_images"} <= set(record)


def test_every_method_of_the_tables_is_a_recipe() -> None:
    assert {row.method for row in ALL} <= set(RECIPES)
    assert set(METHODS) <= set(RECIPES)


@pytest.mark.parametrize(("shape", "rank"), [((40, 60), 5), ((30, 30), 3), ((16, 400), 8), ((400, 16), 8)])
def test_variational_bayes_finds_the_rank_under_noise(shape: tuple[int, int], rank: int) -> None:
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(shape[0], rank)) @ rng.normal(size=(rank, shape[1]))
    noise = rng.normal(size=shape)
    singular = np.linalg.svd(signal + noise, compute_uv=False)
    assert evbmf_rank(singular, *shape) == rank
    # Nothing but noise has no rank, and neither has nothing.
    assert evbmf_rank(np.linalg.svd(noise, compute_uv=False), *shape) == 0
    assert evbmf_rank(np.zeros(min(shape)), *shape) == 0


def test_common_factor_spends_the_budget() -> None:
    sites = [site("a", (32, 32, 3, 3)), site("b", (64, 32, 3, 3))]
    whole = Cost(sum(each.params for each in sites), 0)
    plan = scaled(sites, {each.key: method_of(each).max_ranks(each.shape, 1) for each in sites}, terms(9000, whole))
    assert 0.8 * 9000 < plan.cost.params <= 9000
    (a, b) = (plan.ranks["a"], plan.ranks["b"])
    assert a is not None
    assert b is not None
    assert abs(a[0] / 32 - b[0] / 64) <= 1 / 32


@pytest.mark.parametrize("kind", [baselines.UniformRules, baselines.VbmfRules, baselines.SolvedRules])
def test_each_baseline_keeps_the_budget_and_projects_to_its_ranks(kind: type[PlainRules]) -> None:
    sites = [each for each in sites_of(network(1)) if each.method is not None]
    whole = Cost(sum(each.params for each in sites), 0)
    torch.manual_seed(0)
    v = {each.key: (torch.randn(each.shape),) for each in sites}
    rules = kind(sites, terms(whole.params // 2, whole), {}, {})
    plan = rules.ranks(v)
    assert plan.cost.params <= whole.params // 2
    for key, ranks in plan.chosen().items():
        (near,) = rules.nearest(key, v[key], ranks)
        assert near.shape == v[key][0].shape
        assert not torch.allclose(near, v[key][0])
