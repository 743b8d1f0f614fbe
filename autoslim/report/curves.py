"""Training curves: loss and accuracy over epochs, one line for each switch of a network."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from autoslim.errors import RunError
from autoslim.report import series, style

if TYPE_CHECKING:
    import pandas

_MEASURES = ("loss", "accuracy", "error")
_AXES = {"loss": "loss", "accuracy": "top-1 accuracy (%)", "error": "top-1 error (%)"}
_FACTOR = {"loss": 1, "accuracy": 100, "error": 100}


def draw_curves(out: str | Path, table: pandas.DataFrame) -> Path:
    """Draw loss and accuracy (or error) of every switch over epochs as PNG or SVG; returns the path.

    Columns `loss_0.25`, `accuracy_0.25` or `error_0.25` belong to the switch 0.25; without such, `widest_loss` and
    `accuracy` are the widest and `narrowest_loss` the narrowest subnet of a supernet. Numbered switches are ordered
    by width, the widest darkest. Losses that span more than a factor of 20 get a logarithmic axis. An accuracy may be left
    empty in epochs in which it was not measured.

    Args:
        out: ends in .png or .svg.
        table: one training as pandas reads its metrics.csv, one row an epoch.

    Raises:
        RunError: another suffix, nothing to draw, values that do not fit, or the picture cannot be written.
    """
    out = style.check_out(out)
    return series.save(_figure(table), out)


def _figure(table) -> Figure:
    epochs = _epochs(table)
    columns = _columns(list(table.columns))
    names = _ordered(columns)
    measures = [measure for measure in _MEASURES if any(measure in columns[name] for name in names)]
    looks = dict(zip(names, series.ordered_looks(len(names))))

    figure = style.new_figure(2.2 + 3.6 * len(measures), 3.6)
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    for axes, measure in zip(panels, measures):
        values = []
        for order, name in enumerate(names):
            if measure not in columns[name]:
                continue
            xs, ys = _column(table, columns[name][measure], epochs, measure)
            values += ys
            every = max(1, math.ceil(len(xs) / 9))
            shift = min(order * every // len(names), len(xs) - 1)  # markers of close lines side by side
            axes.plot(
                xs, [_FACTOR[measure] * y for y in ys], **looks[name], label=_label(name), linewidth=1.5, markersize=4.5,
                markevery=(shift, every), markeredgecolor="white", markeredgewidth=0.5,
            )  # fmt: skip
        if len(epochs) == 1:
            axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
        style.tidy(axes)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("epoch", fontsize=style.NORMAL)
        axes.set_title(_AXES[measure], loc="left", fontsize=style.NORMAL)
        if measure == "loss" and min(values) > 0 and max(values) > 20 * min(values):
            series.logarithmic(axes)
        else:
            axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    lines = {line.get_label(): line for axes in panels for line in axes.get_lines()}
    series.legend_beside(panels[-1], [lines[_label(name)] for name in names], title=_heading(names))
    series.head_and_foot(figure, None, "measured on training images")
    return figure


def _heading(names: list[str]) -> str:
    if names == ["widest", "narrowest"]:
        return "Subnet"
    return "Switch" if len(names) > 1 else ""


def _epochs(table) -> list[float]:
    if "epoch" not in table.columns:
        raise RunError("the table has no column 'epoch'; pass metrics.csv of a training as pandas reads it")
    if not len(table):
        raise RunError("the table has no row, so there is no epoch to draw; train for at least one")
    epochs = [float(value) for value in table["epoch"]]
    if not all(math.isfinite(epoch) for epoch in epochs):
        raise RunError("column 'epoch' has a value that is not a finite number; pass metrics.csv of a training as it is")
    repeated = sorted({epoch for epoch in epochs if epochs.count(epoch) > 1})
    if repeated:
        raise RunError(f"epoch {repeated[0]:g} has {epochs.count(repeated[0])} rows; pass the rows of one training only")
    return epochs


def _columns(columns: list[str]) -> dict[str, dict[str, str]]:
    """Return `{switch: {measure: column}}`."""
    found: dict[str, dict[str, str]] = {}
    for column in columns:
        if match := re.fullmatch(rf"({'|'.join(_MEASURES)})_(.+)", str(column)):
            found.setdefault(match[2], {})[match[1]] = column
    if found:
        return found
    narrow = {measure: f"narrowest_{measure}" for measure in _MEASURES if f"narrowest_{measure}" in columns}
    wide = {measure: measure for measure in _MEASURES if measure in columns}
    if "widest_loss" in columns:
        wide["loss"] = "widest_loss"
    if not (wide or narrow):
        raise RunError("the table has no column loss, accuracy or error, with or without a switch (loss_0.25); nothing to draw")
    entries = {"widest" if "widest_loss" in columns else "all of a step" if narrow else "network": wide, "narrowest": narrow}
    return {name: entry for name, entry in entries.items() if entry}


def _ordered(columns: dict) -> list[str]:
    """Return the switches: the widest first, or as they come where they are not numbers."""
    numbers = {name: _number(name) for name in columns}
    if None in numbers.values():
        return list(columns)
    return sorted(columns, key=lambda name: -numbers[name])


def _number(name: str) -> float | None:
    try:
        return float(name.removesuffix("x"))
    except ValueError:
        return None


def _label(name: str) -> str:
    return f"{_number(name):g}x" if _number(name) is not None else series.name(name)


def _column(table, column: str, epochs: list[float], measure: str) -> tuple[list[float], list[float]]:
    try:
        values = [float(value) for value in table[column]]
    except (TypeError, ValueError):
        raise RunError(f"column {column!r} is not made of numbers; pass metrics.csv of a training as pandas reads it") from None
    points = []
    for epoch, value in sorted(zip(epochs, values)):
        if math.isnan(value) and measure != "loss":
            continue
        if not math.isfinite(value):
            raise RunError(f"{column} is {value} in epoch {epoch:g}, not a finite number; draw the epochs before that")
        if measure != "loss" and not 0 <= value <= 1:
            raise RunError(f"{column} is {value:g} in epoch {epoch:g}, not from 0 to 1; pass a fraction, not percent")
        points.append((epoch, value))
    if not points:
        raise RunError(f"column {column!r} has no value; leave it out of the table")
    return [epoch for epoch, _ in points], [value for _, value in points]
