"""The FLOPs-accuracy spectrum: what the supernet estimated, and what networks trained from scratch reached."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from autoslim.errors import RunError
from autoslim.report import style
from autoslim.report.tables import SPECTRUM_COLUMNS

Point = tuple[float, float]  # (MACs, accuracy from 0 to 1)

# Configuration kind to (name in the legend, colour, marker, line style).
_KNOWN = {
    "searched": ("searched configurations", style.SEARCHED, "o", "-"),
    "uniform": ("uniform configurations", style.UNIFORM, "s", (0, (5, 1.5))),
}
_OTHER_MARKERS = ("^", "D", "v", "P")
_EMITTED = ("D", "^", "v", "<")
_ESTIMATES = "Supernet estimates\n(shared weights, search images)"
# By the kinds of accuracy that trained networks have.
_TRAINED = {
    frozenset(["retrained accuracy"]): "Retrained accuracies\n(trained from scratch, test images)",
    frozenset(["jointly trained accuracy"]): "Jointly trained accuracies\n(shared weights, test images)",
}
_SEVERAL = "Retrained accuracies, and jointly\ntrained ones (test images)"


def draw_spectrum(
    out: str | Path,
    *,
    uniform: list[list[Point]],
    paths: list[list[Point]],
    found: list[Point],
    retrained: list[dict],
    compared: Mapping[str, list[Point]] | None = None,
) -> Path:
    """Draw accuracy over multiply-adds as PNG or SVG; returns the path.

    Estimates are thin lines with small markers, retrained networks large filled markers; a second panel enlarges the
    retrained networks where they would share less than two fifths of the height. Every retrained network, every found
    configuration and the uniform ones of their sizes are inside the axes; of the other estimates, those far below are cut off
    and counted in a note.

    Args:
        out: ends in .png or .svg.
        uniform, paths: of each search, supernet estimates `(macs, accuracy)` of uniform subnets, and of searched ones from full
            width down: of every step where all were scored on all images, else of the full network and of those that were found.
        found: supernet estimates of the configurations that the search emitted.
        compared: supernet estimates of what other orders of search emitted, by their names.
        retrained: `{"macs", "accuracy", "configuration", "seed", "kind"}`, test accuracies, "retrained accuracy" from scratch or
            "jointly trained accuracy" of several networks with shared weights, one entry a network;
            those with the same configuration ("searched", "uniform", or any other word) and macs are seeds of one network.

    Raises:
        RunError: another suffix, nothing to draw, or the picture cannot be written.
    """
    out = style.check_out(out)
    figure = _figure(uniform=uniform, paths=paths, found=found, retrained=retrained, compared=compared)
    return style.save_figure(figure, out)


def read_spectrum(path: str | Path) -> tuple[list[Point], list[Point]]:
    """Read the CSV of supernet estimates that a search wrote; returns (uniform, greedy), accuracy from 0 to 1.

    Uniform subnets are sorted by multiply-adds; searched ones keep their order, from the full network down.

    Raises:
        RunError: the file is missing, or is not whole.
    """
    again = "run `autoslim search` again to write it"
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise RunError(f"{path} does not exist; {again}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read ({getattr(error, 'strerror', None) or 'not text'}); {again}") from error
    series: dict[str, list[Point]] = {"uniform": [], "greedy": []}
    reader = csv.reader(lines, strict=True)
    try:
        if next(reader, None) != SPECTRUM_COLUMNS:
            raise RunError(f"{path} is not a spectrum (columns {','.join(SPECTRUM_COLUMNS)}); {again}")
        for cells in reader:
            name, macs, error, _, _ = cells
            if name not in series:
                raise ValueError(f"series {name!r} is neither uniform nor greedy")
            macs, error = float(macs), float(error)
            if not (0 <= error <= 1 and 0 <= macs < math.inf):
                raise ValueError(f"error {error} or macs {macs:g} is out of range")
            series[name].append((macs, 1 - error))
    except (ValueError, csv.Error) as error:
        raise RunError(f"{path} line {reader.line_num} is damaged ({error}); {again}") from error
    return sorted(series["uniform"]), series["greedy"]


def _figure(*, uniform, paths, found, retrained, compared=None) -> Figure:
    compared = compared or {}
    emitted = [*found, *(point for points in compared.values() for point in points)]
    greedy = [point for path in paths for point in path]
    lines, uniform = uniform, [point for line in uniform for point in line]
    estimates = [*uniform, *greedy, *emitted]
    networks = [(run["macs"], run["accuracy"]) for run in retrained]
    if not estimates and not networks:
        raise RunError(
            "there is no supernet estimate and no retrained network to draw; pass the folder of a search or of a retraining"
        )
    scale, letter = style.macs_unit([macs for macs, _ in estimates + networks])
    low, high = accuracy_limits([*uniform, *greedy], [*emitted, *networks])
    low = min([low, *(accuracy for _, accuracy in _beside(uniform, emitted))])
    enlarge = bool(estimates) and len(networks) > 1 and _span(networks) < 0.4 * (high - low)

    figure = style.new_figure(11.2 if enlarge else 7.8, 4.4)
    panels = figure.subplots(1, 2 if enlarge else 1, squeeze=False, width_ratios=[1.25, 1] if enlarge else [1])[0]
    heading = _TRAINED.get(frozenset(run["kind"] for run in retrained), _SEVERAL)
    legends = [(_ESTIMATES, _draw_estimates(panels[0], scale, lines, paths, found, compared)), (heading, [])]
    for axes in panels:
        legends[1] = (heading, _draw_retrained(axes, scale, retrained))
        style.tidy(axes)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
        axes.set_xlabel(f"multiply-adds ({letter})", fontsize=style.NORMAL)
        axes.set_ylabel("top-1 accuracy (%)", fontsize=style.NORMAL)
    _frame(panels[0], [macs / scale for macs, _ in estimates + networks], 100 * low, 100 * high)
    _note_hidden(panels[0], [*uniform, *greedy], low)
    if enlarge:
        values = [accuracy for _, accuracy in networks]
        _frame(panels[1], [macs / scale for macs, _ in networks], 100 * min(values), 100 * max(values))
        panels[0].set_title("all", loc="left", fontsize=style.NORMAL)
        panels[1].set_title("only the trained networks, enlarged", loc="left", fontsize=style.NORMAL)
    _legends(panels[-1], [entry for entry in legends if entry[1]])
    figure.supxlabel(
        "1 multiply-add (MAC) = 2 floating-point operations", x=0.01, ha="left", fontsize=style.SMALL, color="#555555"
    )
    return figure


def accuracy_limits(estimates: list[Point], shown: list[Point]) -> tuple[float, float]:
    """Return the lowest and highest accuracy of the axis.

    All of `shown` is inside (without any, the better half of the estimates). Estimates below that may take as much height
    again, at least 2 points; so one narrow subnet near chance does not flatten the rest.
    """
    values = sorted(accuracy for _, accuracy in [*estimates, *shown])
    firm = [accuracy for _, accuracy in shown] or values[len(values) // 2 :]
    low, high = min(firm), values[-1]
    return max(values[0], low - max(high - low, 0.02)), high


def _beside(uniform: list[Point], found: list[Point]) -> list[Point]:
    """Return the uniform subnets that found ones are compared with: from the next one below the smallest found one on."""
    smallest = min((macs for macs, _ in found), default=math.inf)
    below = [macs for macs, _ in uniform if macs <= smallest]
    return [point for point in uniform if found and point[0] >= max(below, default=0)]


def _span(points: list[Point]) -> float:
    values = [accuracy for _, accuracy in points]
    return max(values) - min(values)


def _frame(axes: Axes, xs: list[float], low: float, high: float) -> None:
    wide = max(xs) - min(xs) or max(xs) or 1
    tall = max(high - low, 0.4)  # percentage points; no axis that magnifies rounding
    axes.set_xlim(min(xs) - 0.06 * wide, max(xs) + 0.06 * wide)
    axes.set_ylim(low - 0.08 * tall, high + 0.08 * tall)


def _draw_estimates(axes: Axes, scale: float, uniform, paths, found, compared) -> list[Line2D]:
    """Thin lines; returns what the legend shows."""
    drawn = []
    thin = {"linewidth": 1, "markersize": 4, "markerfacecolor": "white", "markeredgewidth": 0.9}
    for i, line in enumerate(filter(None, uniform)):
        xs, ys = _columns(sorted(line), scale)
        lines = axes.plot(xs, ys, "s", linestyle=":", color=style.UNIFORM, label="uniform subnets", zorder=2, **thin)
        drawn += lines if i == 0 else []
    for i, path in enumerate(filter(None, paths)):
        xs, ys = _columns(sorted(path), scale)
        every = max(1, len(xs) // 40)  # enough dots to say that these are steps
        lines = axes.plot(
            xs, ys, ".", linestyle="--", color=style.SEARCHED, label="searched subnets", zorder=2, markevery=every,
            linewidth=1, markersize=3,
        )  # fmt: skip
        drawn += lines if i == 0 else []
    emitted = {"found for a target": found, **{f"found, order {name}": compared[name] for name in sorted(compared)}}
    for i, (label, points) in enumerate(emitted.items()):
        if points:
            xs, ys = _columns(sorted(points), scale)
            drawn += axes.plot(
                xs, ys, _EMITTED[i % len(_EMITTED)], linestyle="none", color="black" if i else style.SEARCHED, label=label,
                zorder=4, markersize=7, markerfacecolor="white", markeredgewidth=1.4,
            )  # fmt: skip
    return drawn


def _draw_retrained(axes: Axes, scale: float, retrained: list[dict]) -> list[Line2D]:
    """Mean and range of the seeds at their multiply-adds, each seed a few points beside; returns what the legend shows."""
    networks: dict[str, dict[float, list[float]]] = {}
    for run in retrained:
        networks.setdefault(run["configuration"], {}).setdefault(run["macs"], []).append(run["accuracy"])
    drawn = []
    kinds = sorted(networks, key=lambda kind: (kind != "searched", kind != "uniform", kind))
    others = [kind for kind in kinds if kind not in _KNOWN]
    for index, kind in enumerate(kinds):
        label, color, marker, line = _KNOWN.get(kind) or _other(kind, others.index(kind))
        table = sorted(networks[kind].items())
        means = [(macs, sum(seeds) / len(seeds)) for macs, seeds in table]
        xs, ys = _columns(means, scale)
        below = [y - 100 * min(seeds) for y, (_, seeds) in zip(ys, table)]
        above = [100 * max(seeds) - y for y, (_, seeds) in zip(ys, table)]
        several = any(len(seeds) > 1 for _, seeds in table)
        if several:
            # The mean of equal numbers can be off by rounding; a bar has no negative length.
            bars = [[max(0.0, length) for length in side] for side in (below, above)]
            axes.errorbar(xs, ys, bars, fmt="none", ecolor=color, elinewidth=1.4, capsize=3, capthick=1.4, zorder=5)
            # Beside the bar: searched to the left, uniform to the right, so that equal costs do not hide each other.
            beside = axes.transData + ScaledTranslation((-6, 6)[index % 2] / 72, 0, axes.figure.dpi_scale_trans)
            points = [(macs, accuracy) for macs, seeds in table if len(seeds) > 1 for accuracy in seeds]
            axes.plot(
                *_columns(points, scale), marker, linestyle="none", color=color, markersize=3, alpha=0.75, zorder=5,
                markeredgewidth=0, transform=beside,
            )  # fmt: skip
        drawn += axes.plot(
            xs, ys, marker, linestyle=line, color=color, linewidth=2, markersize=8.5, markeredgecolor=style.INK,
            markeredgewidth=0.9, label=style.literal(label), zorder=6,
        )  # fmt: skip
        if several:
            counts = sorted({len(seeds) for _, seeds in table})
            seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
            drawn[-1].set_label(f"{drawn[-1].get_label()},\nmean of {seeds} seeds; bar: lowest to\nhighest; small: each seed")
    return drawn


def _other(kind: str, index: int) -> tuple:
    color, marker = style.OTHERS[index % len(style.OTHERS)], _OTHER_MARKERS[index % len(_OTHER_MARKERS)]
    return kind, color, marker, "-."


def _columns(points: list[Point], scale: float) -> tuple[list[float], list[float]]:
    return [macs / scale for macs, _ in points], [100 * accuracy for _, accuracy in points]


def _note_hidden(axes: Axes, estimates: list[Point], low: float) -> None:
    hidden = [accuracy for _, accuracy in estimates if accuracy < low]
    if hidden:
        what = "1 estimate lies" if len(hidden) == 1 else f"{len(hidden)} estimates lie"
        axes.text(
            0.99, 0.015, f"↓ {what} below this axis, down to {min(hidden):.0%}", transform=axes.transAxes, ha="right", va="bottom",
            fontsize=style.SMALL, color="#555555",
        )  # fmt: skip


def _legends(axes: Axes, parts: list[tuple[str, list[Line2D]]]) -> None:
    """One titled legend for each kind of accuracy, in a column beside the axes."""
    for index, (heading, lines) in enumerate(parts):
        place = ("upper left", (1.02, 1.0)) if index == 0 else ("lower left", (1.02, 0.0))
        legend = Legend(
            axes, lines, [line.get_label() for line in lines], loc=place[0], bbox_to_anchor=place[1], title=heading,
            frameon=False, fontsize=style.NORMAL, title_fontproperties={"size": style.NORMAL, "weight": "bold"},
            alignment="left", borderaxespad=0, handlelength=3, labelspacing=0.7,
        )  # fmt: skip
        axes.add_artist(legend)
        # Clipped to the axes, it would not be counted in the layout.
        legend.set_clip_on(False)
