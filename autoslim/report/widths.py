"""Accuracy over multiply-adds of slimmable networks at many widths, several networks in one plot."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from autoslim.errors import RunError
from autoslim.report import series, style

_KEYS = ("label", "seed", "width", "macs", "accuracy", "trained")


def draw_widths(
    out: str | Path,
    curves: list[dict],
    *,
    chance: float | None = None,
    measure: str = "top-1 accuracy",
) -> Path:
    """Draw accuracy over multiply-adds, one line a network, as PNG or SVG; returns the path.

    A line is the mean over seeds, its band goes from the lowest to the highest seed. A filled marker is a width at which the
    network was trained, a hollow one a width that it never saw. The axis on top has the width multipliers where all networks
    agree on their multiply-adds (US-Nets, figure 2 of the supplementary).

    Args:
        out: ends in .png or .svg.
        curves: `{"label", "seed", "width", "macs", "accuracy", "trained"}`, accuracy from 0 to 1; rows with one label and
            width are seeds of one network. The order of the labels is that of the legend.
        chance: accuracy of guessing, from 0 to 1, drawn as a line.
        measure: says which accuracy this is, and of which images.

    Raises:
        RunError: another suffix, nothing to draw, values that do not fit, or the picture cannot be written.
    """
    out = style.check_out(out)
    return series.save(_figure(curves, chance=chance, measure=measure), out)


def _figure(curves, *, chance=None, measure="top-1 accuracy") -> Figure:
    curves = series.check_rows(curves, _KEYS, "network")
    series.check_repeats(curves, ("label", "seed", "width"))
    if chance is not None and not 0 <= chance <= 1:
        raise RunError(f"chance {chance!r} is not from 0 to 1; pass 1 / number of classes")
    networks = _networks(curves)
    scale, letter = style.macs_unit([row["macs"] for row in curves])

    figure = style.new_figure(8.4, 4.8)
    axes = figure.subplots()
    drawn = [_draw(axes, label, rows, scale, series.look(i)) for i, (label, rows) in enumerate(networks.items())]
    series.percent_axes(axes, letter)
    axes.set_ylabel(f"{style.literal(measure)} (%)", fontsize=style.NORMAL)
    if chance is not None:
        _draw_chance(axes, chance)
    series.legend_beside(axes, drawn)
    if notes := _notes(curves):
        series.legend_beside(axes, notes, place="lower left")
    _frame(axes)
    _draw_multipliers(axes, networks, scale)
    series.head_and_foot(figure, None, series.FOOT)
    return figure


def _networks(curves: list[dict]) -> dict[str, list[dict]]:
    networks: dict[str, list[dict]] = {}
    for row in curves:
        networks.setdefault(str(row["label"]), []).append(row)
    for label, rows in networks.items():
        macs: dict[float, float] = {}
        for row in rows:
            if macs.setdefault(row["width"], row["macs"]) != row["macs"]:
                raise RunError(
                    f"network {label!r} has {macs[row['width']]} and {row['macs']} MACs at width {row['width']}; "
                    f"its seeds are one network and cost the same, name another network another label"
                )
    return networks


def _draw(axes: Axes, label: str, rows: list[dict], scale: float, looks: dict) -> Line2D:
    """One line through the means; markers say which widths were trained; returns what the legend shows."""
    rows = [{**row, "macs": row["macs"] / scale} for row in rows]
    points = series.over_seeds(rows)
    (line,) = series.draw_mean(axes, points, looks, marker="none", linewidth=1.6, zorder=3)
    unseen = {row["macs"] for row in rows if not row["trained"]}
    means = [(x, 100 * sum(seeds) / len(seeds)) for x, seeds in points]
    size = 5.2 if len(points) <= 20 else 3.2
    for trained in (False, True):
        places = [(x, y) for x, y in means if (x not in unseen) == trained]
        if places:
            face = looks["color"] if trained else "white"
            axes.plot(
                *zip(*places), looks["marker"], linestyle="none", color=looks["color"], markerfacecolor=face,
                markersize=size + 1.4 * trained, markeredgewidth=1, zorder=4 + trained,
            )  # fmt: skip
    filled = looks["color"] if len(unseen) < len(means) else "white"
    return Line2D([], [], **looks, linewidth=1.6, markersize=6, markerfacecolor=filled, label=series.name(label))


def _draw_chance(axes: Axes, chance: float) -> None:
    axes.axhline(100 * chance, color="#888888", linewidth=1, linestyle=(0, (1, 2)), zorder=1)
    axes.annotate(
        f"chance ({100 * chance:.3g} %)", (1, 100 * chance), xycoords=axes.get_yaxis_transform(), xytext=(-2, -3),
        textcoords="offset points", ha="right", va="top", fontsize=style.SMALL, color=series.GREY,
        annotation_clip=True,
    )  # fmt: skip


def _frame(axes: Axes) -> None:
    """Set the range of accuracies."""
    low, high = axes.get_ylim()
    if high - low < 0.4:  # percentage points; no axis that magnifies rounding
        low, high = (low + high) / 2 - 0.2, (low + high) / 2 + 0.2
    axes.set_ylim(low, high)


def _notes(curves: list[dict]) -> list[Line2D]:
    """What filled, hollow and bands mean, as far as they occur."""
    notes = []
    some_unseen = not all(row["trained"] for row in curves)
    for trained, face, text in ((True, series.GREY, "trained at this width"), (False, "white", "not trained at this width")):
        if some_unseen and any(bool(row["trained"]) == trained for row in curves):
            looks = {"color": series.GREY, "markerfacecolor": face, "linestyle": "none", "markersize": 5.5}
            notes.append(Line2D([], [], marker="o", label=text, **looks))
    seeds: dict[tuple, list[float]] = {}
    for row in curves:
        seeds.setdefault((row["label"], row["width"]), []).append(row["accuracy"])
    return notes + series.seeds_note(seeds.values())


def _draw_multipliers(axes: Axes, networks: dict[str, list[dict]], scale: float) -> None:
    """An axis on top with the widths; round and outer ones first, as many as there is room for."""
    places = _multipliers(networks)
    left, right = axes.get_xlim()
    chosen: list[float] = []
    ends = {min(places), max(places)} if places else set()
    for width in sorted(places, key=lambda width: (width not in ends, _roundness(width), -width)):
        if all(abs(places[width] - places[other]) / scale > 0.072 * (right - left) for other in chosen):
            chosen.append(width)
    if chosen:
        top = axes.secondary_xaxis("top")
        top.set_xticks([places[width] / scale for width in chosen], [f"{width:.4g}x" for width in chosen])
        top.set_xlabel("width multiplier", fontsize=style.NORMAL)
        top.tick_params(labelsize=style.NORMAL, color="#888888", labelcolor=style.INK)
        top.spines["top"].set_color("#888888")


def _multipliers(networks: dict[str, list[dict]]) -> dict[float, float]:
    """Return `{width: macs}` of the widths that mean the same cost for every network that has them."""
    costs: dict[float, set[float]] = {}
    for rows in networks.values():
        for row in rows:
            costs.setdefault(row["width"], set()).add(row["macs"])
    return {width: macs.pop() for width, macs in sorted(costs.items()) if len(macs) == 1}


def _roundness(width: float) -> int:
    grids = (0.25, 0.1, 0.05)
    return next((i for i, grid in enumerate(grids) if abs(width / grid - round(width / grid)) < 1e-6), len(grids))
