"""What a user would pick instead, at equal measured latency and after the same fine-tuning.

Ranks by variational Bayes as in MUSCO, scaled to the speed, and a pruner of channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from batude_onnx import trained
from batude_onnx.errors import BudgetError
from batude_onnx.importer import GraphNet, import_graph
from batude_onnx.loading import load_model, preprocess, save_model, write_text
from batude_onnx.opening import load_data, open_case
from batude_onnx.pipeline import compress, inspect, validate
from batude_onnx.proving import outputs_of, survey
from batude_onnx.records import RankPlan
from batude_onnx.rewriting import rewrite
from batude_onnx.settings import Settings, Source, Watch
from batude_onnx.training import compressing, normalisation
from batude_onnx.training.loop import train
from batude_onnx.training.recipe import RECIPES
from batude_onnx.validation import classification, compare, compare_latency, open_file, require
from tools.speed import channels
from tools.tables import baselines as baselines
from tools.tables.running import hardware, versions

MODEL, DATA = Path("models/resnet20-cifar10.onnx"), Path("data/cifar10.npz")
BUILD = Path("build/speed/equal")
EPOCHS, SEED, THREADS = 5.0, 0, 1
# Training images by whose loss the ways of pruning are told apart, and the time in which each file is measured.
JUDGED, SECONDS = 1024, 2.0
# Larger steps that are tried for a pruned network, and for how many epochs.
LARGER, TRIED = (1.0, 3.0, 10.0), 1.0


@dataclass(frozen=True)
class Row:
    """One way to a network that is `wanted` times as fast."""

    method: str
    wanted: float

    @property
    def name(self) -> str:
        """Of its files."""
        return f"resnet20-cifar10-{self.wanted:g}x-{self.method}"

    @property
    def output(self) -> Path:
        return BUILD / f"{self.name}.onnx"

    @property
    def note(self) -> Path:
        return self.output.with_suffix(".txt")


def by_recipe(row: Row, watch: Watch) -> str:
    """The file as `batude-onnx compress` writes it, ranks by the recipe of the row's name."""
    compress(replace(_settings(row, f"latency={row.wanted:g}x"), recipe=row.method), watch)
    return ""


def by_channels(row: Row, watch: Watch, steps: Sequence[float] = (1.0,)) -> str:
    """The file that a pruner of channels gives; how it counted them out, and how many times as large as the recipe's the steps
    were, of those that were tried."""
    thin = row.output.with_suffix(".pruned.onnx")
    way = _prune(row, thin, watch)
    settings = replace(_settings(row, f"params={inspect(thin).cost.params}"), model=thin)
    case = open_case(settings, watch, (row.output,))
    prepared, reason = trained.prepare(case, True, watch)
    assert prepared is not None, reason
    # A pruned network is far from the original, and its BatchNorms have lost their statistics.
    recipe = replace(RECIPES[settings.recipe], restore=True)
    net, teacher = prepared.net, import_graph(load_model(MODEL)).requires_grad_(False)
    normalisation.restore(net, normalisation.restorable(case.seen.sites), prepared.calibration)

    def tune(net: GraphNet, larger: float, epochs: float) -> None:
        """Train by the recipe, with steps so many times as large."""
        phase = replace(recipe.finetune, lr=recipe.finetune.lr * larger, turn=recipe.finetune.turn * larger)
        name = f"fine-tuning, steps x{larger:g}"
        train(net, teacher, prepared.batches, recipe, phase, name=name, epochs=epochs, report=watch.train)

    images = load_data(Source(DATA, JUDGED), case.seen)
    assert images.y_train is not None
    pictures = torch.from_numpy(preprocess(images.x_train, images.mean, images.std))
    lost: dict[float, float] = {}
    for larger in steps if len(steps) > 1 else ():
        tried = copy.deepcopy(net)
        tune(tried, larger, TRIED)
        with torch.no_grad():
            scores = tried.eval()(pictures)[0].numpy()
        lost[larger] = classification(scores, images.y_train)["cross_entropy"]
        watch.say(f"steps x{larger:g}: cross-entropy {lost[larger]:.3f} after {TRIED:g} epochs")
    larger = min(steps, key=lambda larger: lost.get(larger, 0.0))
    tune(net, larger, EPOCHS)
    nothing = RankPlan({site.key: None for site in case.seen.sites}, case.seen.cost)
    tuned = compressing.harvest(net, case.seen.sites, nothing)
    save_model(rewrite(case.model, {}, weights=tuned.weights, biases=tuned.biases), row.output, lambda path: None)
    session = open_file(row.output, load_model(row.output))
    net.eval()
    (samples,) = case.feeds.values()
    expected = {net.output_names[0]: net(torch.from_numpy(samples))[0].detach().numpy()}
    require(compare(expected, outputs_of(session, case.feeds)), "the written file does not compute what was trained")
    return f"{way}, steps x{larger:g}" if len(steps) > 1 else str(way)


METHODS: dict[str, Callable[[Row, Watch], str]] = {
    "default": by_recipe,
    "vbmf": by_recipe,
    "channels": by_channels,
    # A pruned network starts further away than factors do, so larger steps may suit it.
    "channels-larger-steps": partial(by_channels, steps=LARGER),
}
ROWS = tuple(Row(method, wanted) for wanted in (1.5, 1.2) for method in METHODS)


def _settings(row: Row, budget: str) -> Settings:
    return Settings(MODEL, row.output, budget, data=Source(DATA), epochs=EPOCHS, seed=SEED, threads=THREADS)


def _prune(row: Row, path: Path, watch: Watch) -> channels.Way:
    """The best of all ways of pruning to the row's speed, at `path`. Raises BudgetError where none reaches it."""
    net = channels.dense(MODEL)
    model = load_model(MODEL)
    seen = survey(model)
    original, feeds = open_file(MODEL, model, threads=THREADS), seen.feeding.values(1, SEED)
    images = load_data(Source(DATA, JUDGED), seen)
    assert images.y_train is not None
    samples = {seen.specs[0].name: preprocess(images.x_train, images.mean, images.std)}

    def speed(file: Path) -> float:
        other = open_file(file, load_model(file), threads=THREADS)
        return float(compare_latency(original, other, feeds, runs=1000, seconds=SECONDS)["ratio"])

    found: list[tuple[float, channels.Way, Path]] = []
    for number, way in enumerate(channels.WAYS, 1):
        watch.count("pruning", number, len(channels.WAYS))
        tried = path.with_suffix(f".{number}.onnx")
        if channels.to_speed(net, way, row.wanted, tried, speed):
            (scores,) = outputs_of(open_file(tried, load_model(tried)), samples).values()
            found.append((classification(scores, images.y_train)["cross_entropy"], way, tried))
    if not found:
        raise BudgetError(f"no share of channels makes it {row.wanted:g}x as fast")
    for loss, way, _ in sorted(found, key=lambda one: one[0]):
        watch.say(f"{way}: cross-entropy {loss:.3f} before fine-tuning")
    _, way, best = min(found, key=lambda one: one[0])
    best.replace(path)
    return way


def make(row: Row, watch: Watch) -> None:
    """Write the row's file, and a note of how it came about. Raises BudgetError where none is so fast."""
    row.output.parent.mkdir(parents=True, exist_ok=True)
    write_text(row.note, METHODS[row.method](row, watch))


def measure(row: Row) -> dict[str, object]:
    """Score the row's file, and time it in turns with the original."""
    found = validate(MODEL, row.output, Source(DATA), threads=THREADS, seed=SEED)
    return _record(
        row,
        note=row.note.read_text().strip(),
        before={**asdict(found.cost_original), **found.quality_original},
        after={**asdict(found.cost_other), **found.quality_other},
        latency=found.latency,
    )


def refused(row: Row, error: BudgetError) -> dict[str, object]:
    """Why there can be no such file."""
    return _record(row, refused=str(error))


def _record(row: Row, **found: object) -> dict[str, object]:
    """`found`, with everything that it depends on."""
    return {"row": asdict(row), "epochs": EPOCHS, "seed": SEED, **found, "hardware": hardware("cpu"), "versions": versions()}
