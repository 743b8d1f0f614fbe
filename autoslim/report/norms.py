"""Batch norm of every switch over depth: what each width needs for itself."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from autoslim.errors import RunError
from autoslim.report import series, style

_PARTS = {"scale": "scale (γ)", "bias": "bias (β)", "mean": "running mean", "variance": "running variance"}


def draw_norms(out: str | Path, norms: list[dict], *, title: str | None = None) -> Path:
    """Draw scale, bias, mean and variance of batch norm over depth, one line a switch, as PNG or SVG; returns the path.

    A line is the median over the channels of a layer, its band goes from the lower to the upper quartile; variances have a
    logarithmic axis (Slimmable Networks, figure 4). What no layer has is left out, and a note says so.

    Args:
        out: ends in .png or .svg.
        norms: `{"switch", "layer", "index", "scale", "bias", "mean", "variance"}`: name and place of a layer, and what it
            holds for its channels at that switch, arrays `[C]` or None. Switches are in the order of the legend, up to six.
        title: over the picture.

    Raises:
        RunError: another suffix, nothing to draw, values that do not fit, or the picture cannot be written.
    """
    out = style.check_out(out)
    return series.save(_figure(norms, title=title), out)


def _figure(norms, *, title=None) -> Figure:
    norms = series.check_rows(norms, ("switch", "layer", "index"), "batch norm")
    switches = list(dict.fromkeys(str(row["switch"]) for row in norms))
    series.check_repeats(norms, ("switch", "index"))
    parts = [part for part in _PARTS if any(row.get(part) is not None for row in norms)]
    if not parts:
        raise RunError("the batch norms hold neither scale, bias, mean nor variance; pass layers with weights or statistics")
    layers = dict(sorted({row["index"]: str(row["layer"]) for row in norms}.items()))
    lines, columns = (2, 2) if len(parts) == 4 else (1, len(parts))
    figure = style.new_figure(1.8 + (3.5 if columns == 3 else 4.1) * columns, 0.8 + 2.5 * lines + (0.7 if _few(layers) else 0))
    grid = figure.subplots(lines, columns, squeeze=False)
    panels = grid.flatten()
    looks = dict(zip(switches, series.ordered_looks(len(switches))))
    dead = 0
    for axes, part in zip(panels, parts):
        for switch in switches:
            rows = sorted((row for row in norms if str(row["switch"]) == switch), key=lambda row: row["index"])
            points = [(row["index"], _quartiles(row, part)) for row in rows if row.get(part) is not None]
            if points:
                _draw(axes, points, looks[switch], series.name(switch), alpha=0.2 / len(switches) + 0.05)
                dead += part == "variance" and sum(low <= 0 for _, (low, _, _) in points)
        _dress(axes, part, layers)
    for row in grid[:-1]:
        for axes in row:
            axes.tick_params(labelbottom=False)
            axes.set_xlabel("")
    series.legend_beside(grid[0][-1], _every_switch(panels, switches), title="Switch")
    missing = [_PARTS[part] for part in _PARTS if part not in parts]
    note = f"; left out, as no layer has it: {', '.join(missing)}" if missing else ""
    if dead:
        note += f"; variance below its axis: lower quartiles that are 0 ({dead} of them)"
    series.head_and_foot(figure, title, f"line: median over the channels of a layer; band: lower to upper quartile{note}")
    return figure


def _every_switch(panels, switches: list[str]) -> list:
    known = {line.get_label(): line for axes in panels for line in axes.get_lines()}
    return [known[series.name(switch)] for switch in switches if series.name(switch) in known]


def _few(layers: dict) -> bool:
    return len(layers) <= 14


def _quartiles(row: dict, part: str) -> tuple[float, float, float]:
    values = np.asarray(row[part], dtype=float)
    name = f"{part} of {row['layer']!r} at {row['switch']}"
    if values.ndim != 1 or not values.size:
        raise RunError(f"{name} has shape {list(values.shape)}; pass one value for each of its channels")
    if not np.isfinite(values).all():
        raise RunError(f"{name} has values that are not finite numbers; calibrate the statistics again or leave the layer out")
    if part == "variance" and values.min() < 0:
        raise RunError(f"{name} has the negative value {values.min():g}; calibrate the statistics again")
    low, middle, high = np.percentile(values, [25, 50, 75])
    return float(low), float(middle), float(high)


def _draw(axes: Axes, points: list, looks: dict, label: str, alpha: float):
    xs = [x for x, _ in points]
    lows, middles, highs = ([triple[i] for _, triple in points] for i in range(3))
    axes.fill_between(xs, lows, highs, color=looks["color"], alpha=alpha, linewidth=0, zorder=2)
    looks = {**looks, "marker": looks["marker"] if len(xs) <= 24 else "none"}
    (line,) = axes.plot(
        xs, middles, **looks, label=label, linewidth=1.4, markersize=4.2, markeredgecolor="white", markeredgewidth=0.4, zorder=3
    )
    return line


def _dress(axes: Axes, part: str, layers: dict) -> None:
    style.tidy(axes)
    axes.set_title(_PARTS[part], loc="left", fontsize=style.NORMAL)
    if _few(layers):
        names = [style.literal(style.shorten(name, 18)) for name in layers.values()]
        axes.set_xticks(list(layers), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=style.SMALL)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set_xlabel("batch norm layer, from input to output", fontsize=style.NORMAL)
    if part == "variance":
        series.logarithmic(axes)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
