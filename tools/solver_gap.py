"""How far the rank solvers are from the optimum, and how long they take.

    python -m tools.solver_gap

Networks of three and four small layers against exhaustive search; ResNet-50, ResNet-152 and 150 layers of 256 channels against
the Lagrangian bound, which no choice of ranks can beat. Shapes and positions are those of the networks, energies are drawn: they
fall off exponentially along each mode, at a rate of each layer's own, with noise. A gap is (loss - least) / least, in percent,
where the least is the optimum or the bound. Times are of processor seconds on one core, prices of all ranks with them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import click
import numpy as np

from batude_onnx.budget import Gains, Losses, Terms, allocate, parse_budget, solve, solve_greedy
from batude_onnx.decomposition import assign, max_ranks
from batude_onnx.loading import write_text
from batude_onnx.records import Cost, FloatArray, Geometry, RankPlan, Site
from tools.tables.running import hardware, versions

BUDGETS = ("2.5x", "macs=2.5x", "2.5x,macs=3x")
SMALL, SEEDS, REPEATS = 100, 3, 3


@dataclass(frozen=True)
class Network:
    """Layers, their spectra, and what each combination of ranks loses."""

    sites: list[Site]
    gains: Gains
    losses: Losses

    def terms(self, budget: str) -> Terms:
        """Those of `budget` for this network."""
        whole = Cost(sum(site.params for site in self.sites), sum(site.macs for site in self.sites))
        return Terms(parse_budget([budget], whole), whole)

    def loss(self, plan: RankPlan) -> float:
        """What a plan loses."""
        chosen = plan.chosen().items()
        return sum(float(self.losses[key][tuple(rank - 1 for rank in ranks)]) for key, ranks in chosen)


def conv(key: str, out: int, into: int, kernel: int, positions: int, stride: int = 1) -> Site:
    """A square convolution; `positions` of its output."""
    geometry = Geometry((stride,) * 2, (kernel // 2,) * 4, (1, 1))
    shape, before = (out, into, kernel, kernel), positions * stride**2
    return assign(
        Site(key, key, "Conv", key, None, shape, geometry, positions, before, None, halfway_positions=positions * stride)
    )


def resnet(blocks: Sequence[int]) -> Iterator[Site]:
    """The convolutions and the last layer of a bottleneck ResNet at 224 x 224 (He et al., CVPR 2016)."""
    yield conv("stem", 64, 3, 7, 112**2, 2)
    into = 64
    for stage, count in enumerate(blocks):
        width, side = 64 * 2**stage, 56 // 2**stage
        for block in range(count):
            name, stride = f"{stage}.{block}", 2 if stage and not block else 1
            yield conv(f"{name}.1", width, into, 1, (side * stride) ** 2)
            yield conv(f"{name}.2", width, width, 3, side**2, stride)
            yield conv(f"{name}.3", 4 * width, width, 1, side**2)
            if not block:
                yield conv(f"{name}.skip", 4 * width, into, 1, side**2, stride)
            into = 4 * width
    yield assign(Site("fc", "fc", "Gemm", "fc", None, (1000, into), Geometry(), 1, 1, None))


def drawn(sites: Sequence[Site], rng: np.random.Generator) -> Network:
    """`sites` with random spectra."""
    gains: dict[str, list[FloatArray]] = {}
    losses: dict[str, FloatArray] = {}
    for site in sites:
        sizes = max_ranks(site)
        energy = rng.uniform(0.5, 1.5, sizes)
        for axis, size in enumerate(sizes):
            fall = np.exp(-rng.uniform(2, 12) * np.arange(size) / size)
            energy *= fall.reshape([-1 if other == axis else 1 for other in range(len(sizes))])
        energy *= rng.exponential() / energy.sum()
        kept = energy
        for axis in range(len(sizes)):
            kept = kept.cumsum(axis)
        others = [tuple(other for other in range(len(sizes)) if other != axis) for axis in range(len(sizes))]
        gains[site.key] = [np.sqrt(energy.sum(axis)) for axis in others]
        losses[site.key] = np.maximum(energy.sum() - kept, 0.0)
    return Network(list(sites), gains, losses)


def exhaustive(network: Network, terms: Terms) -> float | None:
    """The least loss of all choices; None where none is within the limits."""
    left = dict(zip(terms.metrics, terms.left(network.sites).tolist(), strict=True))
    lost, spent = np.zeros(1), {metric: np.zeros(1) for metric in left}
    for site in network.sites:
        mask = terms.allowed(site)
        lost = np.add.outer(lost, np.append(network.losses[site.key][mask], 0.0)).ravel()
        for metric in left:
            prices = terms.prices(site, metric)
            options = np.append(prices.ranks[mask], prices.whole)
            spent[metric] = np.add.outer(spent[metric], options).ravel()
    within = np.all([spent[metric] <= limit for metric, limit in left.items()], axis=0)
    return float(lost[within].min()) if within.any() else None


def bound(network: Network, terms: Terms) -> tuple[float, bool]:
    """What no choice can beat, and whether the solver's is proved to be the best."""
    found = allocate(
        network.losses,
        {metric: {site.key: terms.prices(site, metric) for site in network.sites} for metric in terms.metrics},
        dict(zip(terms.metrics, terms.left(network.sites).tolist(), strict=True)),
        {site.key: terms.allowed(site) for site in network.sites},
    )
    assert found is not None
    return found.bound, found.complete


def seconds(call: Callable[[], object]) -> float:
    """The least of a few times."""
    times = []
    for _ in range(REPEATS):
        began = time.process_time()
        call()
        times.append(time.process_time() - began)
    return min(times)


def small(budget: str) -> dict[str, object]:
    """Gaps to the optimum on small networks."""
    gaps: dict[str, list[float]] = {"greedy": [], "solver": []}
    for seed in range(SMALL):
        rng = np.random.default_rng(seed)
        shapes = [(int(rng.integers(3, 7)), int(rng.integers(3, 7)), int(rng.choice([1, 3]))) for _ in range(3 + seed % 2)]
        sites = [conv(str(number), *shape, int(rng.integers(1, 5)) ** 2) for number, shape in enumerate(shapes)]
        network = drawn([site for site in sites if site.method], rng)
        terms = network.terms(budget)
        least = exhaustive(network, terms)
        if least is None:
            continue
        for name, plan in (("greedy", _greedy(network, budget)), ("solver", _solved(network, budget))):
            gaps[name].append(100 * (network.loss(plan) - least) / least)
    return {"networks": len(gaps["solver"]), **{name: _summary(values) for name, values in gaps.items()}}


def _greedy(network: Network, budget: str) -> RankPlan:
    return solve_greedy(network.sites, network.gains, network.terms(budget))


def _solved(network: Network, budget: str) -> RankPlan:
    return solve(network.sites, network.losses, network.terms(budget))


def _summary(values: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "max": float(np.max(values)), "exact": sum(value < 1e-9 for value in values)}


def large(name: str, sites: Sequence[Site], budget: str) -> dict[str, object]:
    """Gaps to the bound on one network, over several draws, and the time."""
    gaps: dict[str, list[float]] = {"greedy": [], "solver": []}
    times: dict[str, list[float]] = {"greedy": [], "solver": []}
    proved = 0
    for seed in range(SEEDS):
        network = drawn(sites, np.random.default_rng(seed))
        least, complete = bound(network, network.terms(budget))
        proved += complete
        for kind, plan in (("greedy", _greedy(network, budget)), ("solver", _solved(network, budget))):
            gaps[kind].append(100 * (network.loss(plan) - least) / least)
        times["greedy"].append(seconds(partial(_greedy, network, budget)))
        times["solver"].append(seconds(partial(_solved, network, budget)))
    return {
        "network": name,
        "layers": len(sites),
        "budget": budget,
        "networks": SEEDS,
        "proved_best": proved,
        **{kind: {**_summary(gaps[kind]), "seconds": float(np.mean(times[kind]))} for kind in gaps},
    }


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("results/solver/gap.json"), show_default=True)
def main(output: Path) -> None:
    """Print the gaps, and write them down."""
    networks = {
        "ResNet-50": [site for site in resnet((3, 4, 6, 3)) if site.method],
        "ResNet-152": [site for site in resnet((3, 8, 36, 3)) if site.method],
        "150 layers of 256 channels": [conv(str(number), 256, 256, 3, 196) for number in range(150)],
    }
    rows: list[dict[str, object]] = []
    for budget in BUDGETS:
        rows.append({"network": "3 or 4 small layers", "layers": "3-4", "budget": budget, **small(budget)})
        click.echo(json.dumps(rows[-1]))
    for (name, sites), budget in product(networks.items(), BUDGETS):
        rows.append(large(name, sites, budget))
        click.echo(json.dumps(rows[-1]))
    record = {"command": "python -m tools.solver_gap", "hardware": hardware("cpu"), "versions": versions(), "rows": rows}
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
