"""A run as it is seen in the terminal: lines and progress bars on a console."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from batude_onnx.settings import Watch

if TYPE_CHECKING:
    from batude_onnx.training.loop import Progress as Training

# A console that is no terminal (a log file) gets a line now and then instead of a bar.
LOG_SECONDS = 30.0


class ConsoleWatch(Watch):
    """Use as a context: bars are taken down at its end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[detail]}", markup=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._logged = 0.0

    def __enter__(self) -> ConsoleWatch:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def _advance(self, name: str, done: int, total: int, detail: str) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total, detail=detail)
        self._bars.update(self._tasks[name], completed=done, detail=detail)
        now = time.monotonic()
        if not self._console.is_terminal and (done == total or now - self._logged > LOG_SECONDS):
            self._logged = now
            self._console.print(f"{name}: {done}/{total} {detail}", highlight=False, markup=False, soft_wrap=True)

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def count(self, what: str, done: int, total: int) -> None:
        self._advance(what, done, total, f"layer {done} of {total}")

    def train(self, progress: Training) -> None:
        done = progress.epochs * progress.step / progress.steps
        parts = [f"epoch {done:.1f} of {round(progress.epochs, 1):g}", f"loss {progress.loss:.3f}"]
        if progress.agreement is not None:
            parts.append(f"accuracy {progress.agreement:.1f} %")
        if progress.cost is not None:
            parts.append(f"P {progress.cost:,}")
        if progress.gap is not None:
            parts.append(f"gap {progress.gap:.3f}")
        left = progress.seconds / progress.step * (progress.steps - progress.step)
        parts.append(f"{left:.0f} s left")
        self._advance(progress.phase, progress.step, progress.steps, " ".join(parts))
