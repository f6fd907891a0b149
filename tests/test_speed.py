"""The time of every layer: attribution to kernels, the fit between blocks, the cache, and predictions against reality."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from batude_onnx import speed
from batude_onnx.decomposition import alternatives, method_of
from batude_onnx.loading import load_model
from batude_onnx.proving import survey
from batude_onnx.records import Site
from batude_onnx.speed import cache, observing, timing
from batude_onnx.speed.attribution import attribute
from batude_onnx.speed.model import SpeedModel, _time, blocks, ladder, measure
from batude_onnx.speed.skeleton import skeleton
from batude_onnx.validation import Kernel, channel_block, compare_latency, open_graph, profile

pytestmark = pytest.mark.alone

MODEL = Path("models/resnet20-cifar10.onnx")
X = {"input": np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)}


@pytest.fixture(scope="module")
def model() -> ir.Model:
    return load_model(MODEL)


@pytest.fixture(scope="module")
def sites(model: ir.Model) -> list[Site]:
    return survey(model).compressible


@pytest.fixture(scope="module")
def block() -> int:
    return channel_block("cpu")


@pytest.fixture(scope="module")
def times(model: ir.Model, sites: list[Site], block: int) -> SpeedModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observing, "SECONDS", 0.25)
        patch.setattr(observing, "PLAIN_SECONDS", 0.2)
        for _ in range(3):
            found = measure(model, sites, X, block, "cpu", 1, lambda done, total: None)
            if found.steady:
                break
        # Of a machine that stays busy the tests see what a user of it gets.
        return found


def test_the_block_is_one_that_processors_have(block: int) -> None:
    assert block in (4, 8, 16)


def test_every_layer_of_the_untouched_network_has_a_kernel(model: ir.Model, sites: list[Site]) -> None:
    found = attribute(model, profile(model, X, "cpu", 1, 0.05), {site.key: 1 for site in sites})
    assert all(links[0] is not None and links[0] > 0 for links in found.values())


def test_every_link_of_every_chain_has_a_kernel_of_its_own(model: ir.Model, sites: list[Site], block: int) -> None:
    chosen = {site.key: (site, ladder(site, block)[0]) for site in sites if ladder(site, block)}
    rewritten = skeleton(model, chosen)
    lengths = {key: len(method_of(site).outline(site.shape, site.geometry, ranks)) for key, (site, ranks) in chosen.items()}
    kernels = profile(rewritten, X, "cpu", 1, 0.05)
    found = attribute(rewritten, kernels, lengths)
    assert all(None not in links for links in found.values())
    # No kernel counts twice: what is handed out is at most what there is.
    assert sum(ms or 0.0 for links in found.values() for ms in links) <= sum(kernel.ms for kernel in kernels) + 1e-9


def test_a_kernel_of_another_name_belongs_to_no_layer(model: ir.Model, sites: list[Site]) -> None:
    key = sites[0].key
    assert attribute(model, [Kernel("elsewhere_nchwc", "Conv", 1.0)], {key: 1}) == {key: [None]}
    assert attribute(model, [Kernel(f"{key}_nchwc_token_7", "Conv", 1.0)], {key: 1}) == {key: [1.0]}
    assert attribute(model, [Kernel(f"{key}_nchwc", "ReorderOutput", 1.0)], {key: 1}) == {key: [None]}


def test_a_link_is_as_slow_as_its_whole_blocks() -> None:
    into, out = np.meshgrid(np.arange(1, 9), np.arange(1, 9), indexing="ij")
    truth = 0.01 + 0.02 * into + 0.03 * out + 0.05 * into * out
    samples = [(int(a), int(b), float(truth[a - 1, b - 1])) for a, b in ((1, 1), (2, 4), (4, 2), (4, 4), (8, 6), (6, 8))]
    assert _time(samples, into, out) == pytest.approx(truth)
    assert blocks([1, 15, 16, 17], 16).tolist() == [1, 1, 1, 2]


@pytest.mark.parametrize("count", [2, 3, 5, 7])
def test_what_was_measured_is_predicted(count: int) -> None:
    """Times are not quite of the form that is fitted to them."""
    samples = [(1, 1, 0.01), (2, 2, 0.019), (3, 3, 0.031), (2, 4, 0.05), (4, 2, 0.03), (6, 6, 0.1), (5, 7, 0.09)][:count]
    into, out = (np.array(side) for side in list(zip(*samples, strict=True))[:2])
    assert _time(samples, into, out) == pytest.approx([ms for *_, ms in samples], rel=1e-4)


def test_a_small_layer_is_measured_at_the_ends_of_its_ranks(sites: list[Site]) -> None:
    site = next(site for site in sites if site.method == "tucker2")
    small = replace(site, shape=(16, 16, 3, 3))
    assert sorted(ladder(small, 8)) == [(8, 8), (8, 16), (16, 8), (16, 16)]


def test_a_layer_is_measured_where_its_chain_can_pay(sites: list[Site]) -> None:
    """CP is exact far beyond the ranks at which it has fewer MACs than the layer."""
    wide = next(way for site in sites for way in alternatives(site) if way.method == "cp" and way.shape[:2] == (64, 64))
    by, last = method_of(wide), ladder(wide, 8)[-1]
    assert wide.macs / 2 < by.cost(wide, last).macs < wide.macs
    assert by.max_ranks(wide.shape, 1)[0] > 2 * last[0]


def test_a_network_that_was_disturbed_is_looked_at_again(model: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of each takes 0.9 of its kernels, but for one that was disturbed while it ran, and one while it was recorded."""
    slow = {2: ((0.1, 0.2), 0.9), 3: ((0.8, 0.2), 0.27)}
    looks: list[int] = []

    def profiled(*_: object) -> tuple[tuple[Kernel, ...], float]:
        times, run = slow.get(len(looks), ((0.1, 0.2), 0.27))
        looks.append(len(looks))
        return tuple(Kernel(str(number), "Conv", ms) for number, ms in enumerate(times)), run

    monkeypatch.setattr(observing, "profiled", profiled)
    seen = observing.observe(model, [{}] * 5, X, "cpu", 1, lambda done, total: None)
    assert len(looks) == 7 + 2
    assert all(one.run == 0.27 and one.total == pytest.approx(0.3) for one in seen)
    share, node = observing.beyond(seen)
    assert share * 0.3 + node * 2 == pytest.approx(0.27)


def test_what_a_run_takes_beyond_its_kernels() -> None:
    """A share of them and so much for each, whatever disturbs one of the networks."""
    rng = np.random.default_rng(0)
    sizes = [(int(count), float(total)) for count, total in zip(rng.integers(20, 60, 9), rng.uniform(5, 50, 9), strict=True)]

    def seen(slower: float) -> list[observing.Seen]:
        runs = [1.03 * total - 0.02 * count for count, total in sizes]
        runs[4] *= slower
        return [
            observing.Seen(tuple(Kernel(str(number), "Conv", total / count) for number in range(count)), run)
            for (count, total), run in zip(sizes, runs, strict=True)
        ]

    assert observing.beyond(seen(1.0)) == pytest.approx((1.03, -0.02), rel=1e-3)
    assert observing.beyond(seen(1.5)) == pytest.approx((1.03, -0.02), rel=0.02)
    assert observing.disturbed(seen(1.0)) == []
    assert observing.disturbed(seen(1.5)) == [4]


def test_between_two_ranks_the_time_of_an_outer_link_is_linear_and_beyond_them_in_proportion() -> None:
    samples = [(4, 2, 2.0), (4, 4, 6.0)]
    assert _time(samples, np.array([4]), np.array([1, 2, 3, 4, 8])) == pytest.approx([1.5, 2.0, 4.0, 6.0, 12.0])


def test_prices_rise_with_the_ranks_by_whole_blocks(times: SpeedModel, sites: list[Site], block: int) -> None:
    site = max((site for site in sites if site.kernel), key=lambda site: site.params)
    prices = times.prices(site)
    assert prices is not None
    assert prices.ranks.shape == method_of(site).max_ranks(site.shape, site.geometry.groups)
    assert prices.ranks[0, 0] == prices.ranks[block - 1, block - 1] < prices.ranks[-1, -1]
    assert prices.ranks[0, 0] < prices.whole


def test_a_layer_that_was_not_timed_has_no_prices(sites: list[Site]) -> None:
    assert SpeedModel(1.0, 0.0, 16, {}, {}).prices(sites[0]) is None
    # Where the layer was and its chain was not, it costs what it does, and the chain can be had for no price.
    alone = SpeedModel(1.0, 0.0, 16, {sites[0].key: 2.0}, {}).prices(sites[0])
    assert alone is not None
    assert alone.whole == 2.0
    assert np.isinf(alone.ranks).all()


def test_predictions_hold_in_the_whole_network(model: ir.Model, sites: list[Site], times: SpeedModel, block: int) -> None:
    chosen, predicted = {}, times.total
    for site in sites:
        prices, measured = times.prices(site), ladder(site, block)
        if prices is None or not measured:
            continue
        ranks = measured[0]
        price = prices.ranks[tuple(rank - 1 for rank in ranks)]
        if price < prices.whole:
            chosen[site.key] = site, ranks
            predicted += price - prices.whole
    real = compare_latency(open_graph(model, "cpu", 1), open_graph(skeleton(model, chosen), "cpu", 1), X, seconds=2)
    assert len(chosen) > 5
    # On a quiet machine they are within a few percent of each other; here anything may run beside the tests.
    assert times.total / predicted == pytest.approx(real["ratio"], rel=0.2)
    assert times.total / predicted > 1.1


def test_times_come_back_from_disk_for_the_same_network_alone(
    model: ir.Model, sites: list[Site], times: SpeedModel, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cache.FOLDER, str(tmp_path))
    place = cache.place(model, sites, X, block, "cpu", 1)
    assert cache.read(place) is None
    cache.write(place, times)
    assert cache.read(place) == times
    assert speed.timed(model, sites, X, block, "cpu", 1, lambda done, total: pytest.fail("measured again")) == times
    others = [
        cache.place(model, sites, {"input": np.repeat(X["input"], 2, 0)}, block, "cpu", 1),
        cache.place(model, sites, X, block, "cpu", 2),
        cache.place(load_model(Path("models/resnet20-cifar10-dev.onnx")), sites[:-1], X, block, "cpu", 1),
    ]
    assert place not in others
    assert cache.place(load_model(Path("models/resnet20-cifar10-dev.onnx")), sites, X, block, "cpu", 1) == place


@pytest.mark.parametrize("drift", [0.01, 0.2])
def test_times_of_a_busy_machine_are_not_kept(
    drift: float, model: ir.Model, sites: list[Site], times: SpeedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cache.FOLDER, str(tmp_path))
    monkeypatch.setattr(timing, "measure", lambda *_: replace(times, drift=drift))
    assert speed.timed(model, sites, X, times.block, "cpu", 1, lambda done, total: None).drift == drift
    assert (cache.read(cache.place(model, sites, X, times.block, "cpu", 1)) is None) == (drift > 0.1)


def test_a_damaged_file_is_measured_again(tmp_path: Path) -> None:
    for text in ("", "{", "[]", "{}", '{"chains": 1}'):
        (tmp_path / "x.json").write_text(text)
        assert cache.read(tmp_path / "x.json") is None


def test_a_folder_that_cannot_be_written_is_no_error(times: SpeedModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache.write(tmp_path / "file" / "x.json", times)
    assert cache.read(tmp_path / "file" / "x.json") is None
