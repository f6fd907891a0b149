"""Tables of what a plan promises."""

from __future__ import annotations

from math import log10

from rich.table import Table
from rich.text import Text

from batude_onnx.records import Cost, Outlook
from batude_onnx.report.tables import number

BAR = 24
# Damage that is white, and that is red, in powers of ten.
MILD, SEVERE = -4.0, 0.0


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    return table


def plan_table(found: Outlook) -> Table:
    """Ranks, and what each layer costs before and after."""
    timed = found.predicted.latency is not None
    table = _table("layer", "ranks", "params", "", "MACs", "", *(("ms", "") if timed else ()), "loss")
    table.columns[1].justify = "left"
    for layer in found.layers:
        if layer.ranks is None:
            table.add_row(layer.key, f"whole: {layer.reason}")
            continue
        a, b = layer.before, layer.after
        times = (f"{a.latency:.3f}", f"{b.latency:.3f}") if a.latency is not None and b.latency is not None else ()
        ranks = f"{' x '.join(map(str, layer.ranks))} ({layer.method})"
        macs = (number(a.macs or None), number(b.macs or None))
        table.add_row(layer.key, ranks, number(a.params), number(b.params), *macs, *times, f"{layer.loss:.2g}")
    return table


def promise_table(found: Outlook) -> Table:
    """The whole network before and after, as predicted."""
    table = _table("", "original", "predicted", "change")
    for name, values in _values(found.original, found.predicted).items():
        table.add_row(name, *values)
    what = "distance of the outputs, sum of layers" if found.measured else "share of the weights' energy lost, sum of layers"
    table.add_row(what, "", f"{found.loss:.3g}", "")
    return table


def _values(a: Cost, b: Cost) -> dict[str, tuple[str, str, str]]:
    rows = {"parameters": (number(a.params), number(b.params), _less(a.params, b.params))}
    if a.macs:
        rows["MACs"] = number(a.macs), number(b.macs), _less(a.macs, b.macs)
    if a.size is not None and b.size is not None:
        rows["bytes of the file"] = number(a.size), number(b.size), _less(a.size, b.size)
    if a.latency is not None and b.latency is not None:
        rows["latency"] = f"{a.latency:.3f} ms", f"{b.latency:.3f} ms", f"{a.latency / b.latency:.2f}x as fast"
    return rows


def _less(before: float, after: float) -> str:
    return f"{before / after:.2f}x smaller" if after else "-"


def sweep_table(found: Outlook) -> Table:
    """Predicted loss against the budget, with bars."""
    losses = [step.loss for step in found.sweep if step.loss is not None]
    most = max(losses, default=0.0) or 1.0
    table = _table("budget", "params", "MACs", "loss", "")
    table.columns[-1].justify = "left"
    for step in found.sweep:
        if step.predicted is None or step.loss is None:
            table.add_row(step.budget, "cannot be met")
            continue
        bar = "\N{FULL BLOCK}" * max(1, round(BAR * step.loss / most)) if step.loss else ""
        macs = number(step.predicted.macs) if step.predicted.macs else "-"
        table.add_row(step.budget, number(step.predicted.params), macs, f"{step.loss:.3g}", bar)
    return table


def sensitivity_table(found: Outlook) -> Table:
    """What each layer alone does to the outputs at some shares of its price: the redder, the worse."""
    shares = sorted({tried.share for rows in found.sensitivity.values() for tried in rows}, reverse=True)
    table = _table("layer alone, at a share of its price", *(f"{100 * share:.0f} %" for share in shares))
    for key, rows in found.sensitivity.items():
        cells = {tried.share: tried for tried in rows}
        table.add_row(key, *(_cell(cells[share].damage) if share in cells else "-" for share in shares))
    return table


def _cell(damage: float) -> Text:
    heat = (log10(max(damage, 1e-12)) - MILD) / (SEVERE - MILD)
    calm = round(255 * (1 - min(1.0, max(0.0, heat))))
    return Text(f" {damage:.1e} ", style=f"black on rgb(255,{calm},{calm})")
