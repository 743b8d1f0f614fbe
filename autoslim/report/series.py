"""What the plots of studies share: the look of each series, means and ranges over seeds, and the check of their rows."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from autoslim.errors import RunError
from autoslim.report import style

GREY = "#555555"
FOOT = "1 multiply-add (MAC) = 2 floating-point operations"
_TEXT = ("label", "stage", "switch", "layer")
_COLOURS = (style.SEARCHED, style.UNIFORM, *style.OTHERS, "#3FA0D8", "#B8860B")
_MARKERS = "os^Dv<>h"
# Dashes in units of the line width.
_LINES = ("-", (0, (5, 1.5)), "-.", (0, (1, 1.2)), (0, (7, 1.5, 1, 1.5, 1, 1.5)), (0, (2.5, 1.2)), (0, (9, 3)))


def look(index: int) -> dict:
    """Return colour, marker and line style of the n-th series; the three repeat at different lengths, so no two are alike."""
    return {"color": _COLOURS[index % 8], "marker": _MARKERS[index % 8], "linestyle": _LINES[index % 7]}


def ordered_looks(count: int, start: int = 0) -> list[dict]:
    """Return looks for series that have an order, dark to light; the lightest still stands out from white.

    Markers and line styles begin with the one numbered `start`.
    """
    scale = matplotlib.colormaps["viridis"]
    places = [0.06 + 0.76 * i / max(count - 1, 1) for i in range(count)]
    return [{**look(start + i), "color": to_hex(scale(place))} for i, place in enumerate(places)]


def check_rows(rows: Sequence[dict], keys: tuple[str, ...], what: str) -> list[dict]:
    """Return the rows as a list after checking that `keys` are finite numbers and accuracies go from 0 to 1.

    Raises:
        RunError: there is no row, or a value does not fit.
    """
    rows = list(rows)
    if not rows:
        raise RunError(f"there is no {what} to draw; pass at least one row with {', '.join(keys)}")
    for place, row in enumerate(rows, 1):
        for key in keys:
            if key not in row:
                raise RunError(f"row {place} has no {key!r}; every row of the {what}s needs {', '.join(keys)}")
            value, name = row[key], f"row {place}: {key} {row[key]!r}"
            if key in _TEXT:
                continue
            try:
                finite = math.isfinite(value)
            except TypeError:
                finite = False
            if not finite:
                raise RunError(f"{name} is not a finite number; measure it again or leave the row out")
            if key == "accuracy" and not 0 <= value <= 1:
                raise RunError(f"{name} is not from 0 to 1; pass a fraction, not percent")
            if key == "macs" and value < 0:
                raise RunError(f"{name} is negative; pass the multiply-adds of the network")
    return rows


def check_repeats(rows: Iterable[dict], keys: tuple[str, ...]) -> None:
    """Raise RunError where two rows stand for the same measurement."""
    seen = set()
    for row in rows:
        key = tuple(row[name] for name in keys)
        if key in seen:
            raise RunError(f"two rows have {', '.join(f'{k} {v!r}' for k, v in zip(keys, key))}; leave one out")
        seen.add(key)


def over_seeds(rows: Iterable[dict]) -> list[tuple[float, list[float]]]:
    """Return `(multiply-adds, accuracies of their seeds)`, ascending."""
    found: dict[float, list[float]] = {}
    for row in rows:
        found.setdefault(row["macs"], []).append(row["accuracy"])
    return sorted(found.items())


def draw_mean(axes: Axes, points: list[tuple[float, list[float]]], looks: dict, **options) -> list:
    """Draw the mean line in percent and, where there are several seeds, the band from lowest to highest; returns the line."""
    xs = [x for x, _ in points]
    if any(len(seeds) > 1 for _, seeds in points):
        lows, highs = ([100 * end(seeds) for _, seeds in points] for end in (min, max))
        axes.fill_between(xs, lows, highs, color=looks["color"], alpha=0.14, linewidth=0, zorder=2)
    return axes.plot(xs, [100 * sum(seeds) / len(seeds) for _, seeds in points], **{**looks, **options})


def seeds_note(points: Iterable[list[float]]) -> list[Line2D]:
    """Say in the legend what lines and bands are; nothing where there is one seed everywhere."""
    counts = {len(seeds) for seeds in points}
    if max(counts) == 1:
        return []
    many = f"{max(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    text = f"line: mean of {many} seeds\nband: lowest to highest"
    return [Line2D([], [], color=style.PALE, linewidth=7, solid_capstyle="butt", label=text)]


def percent_axes(axes: Axes, letter: str) -> None:
    """Dress axes of accuracy in percent over multiply-adds."""
    style.tidy(axes)
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]))
    axes.set_xlabel(f"multiply-adds ({letter})", fontsize=style.NORMAL)
    axes.margins(x=0.04, y=0.06)


def logarithmic(axes: Axes) -> None:
    """Give axes a logarithmic y axis with plain numbers at 1, 2 and 5 of every decade, fewer where there are many."""
    axes.set_yscale("log", nonpositive="clip")
    low, high = axes.get_ylim()
    if high < 5 * low:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    else:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1e3 * low else (1,), numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def legend_beside(axes: Axes, lines: list, title: str = "", place: str = "upper left") -> Legend:
    """Put a legend in the column right of the axes, counted in the layout."""
    legend = Legend(
        axes, lines, [line.get_label() for line in lines], loc=place, bbox_to_anchor=(1.02, 1.0 if "upper" in place else 0.0),
        title=title or None, frameon=False, fontsize=style.NORMAL, alignment="left", borderaxespad=0, handlelength=3.6,
        labelspacing=0.7, title_fontproperties={"size": style.NORMAL, "weight": "bold"},
    )  # fmt: skip
    axes.add_artist(legend)
    # Clipped to the axes, it would not be counted in the layout.
    legend.set_clip_on(False)
    return legend


def head_and_foot(figure: Figure, title: str | None, foot: str) -> None:
    """Write the title over a figure and a small remark under it, both flush left."""
    figure.supxlabel(foot, x=0.01, ha="left", fontsize=style.SMALL, color=GREY)
    if title:
        figure.suptitle(style.literal(title), fontsize=style.LARGE, x=0.01, ha="left")


def name(text: str, limit: int = 26) -> str:
    """Return a label for a legend: literal, and on several lines where it is long."""
    lines, words = [""], str(text).split(" ")
    for word in words:
        word = style.shorten(word, limit)
        if lines[-1] and len(lines[-1]) + 1 + len(word) > limit:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    return style.literal("\n".join(lines))


def save(figure: Figure, out: str | Path) -> Path:
    """Write a figure so that the same data give the same bytes, in SVG too; returns the path."""
    with matplotlib.rc_context({"svg.hashsalt": "autoslim"}):
        return style.save_figure(figure, out)
