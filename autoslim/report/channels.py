"""Channels per layer: of found configurations against the default network, and along a search."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from autoslim.errors import RunError
from autoslim.report import style

_STYLES = ((style.SEARCHED, "o"), (style.UNIFORM, "s"), *zip(style.OTHERS, "^Dv<"))


def draw_channels(out: str | Path, configs: list[tuple[str, dict]], *, default: dict[str, int] | None = None) -> Path:
    """Draw the channels of every group, in layer order, as PNG or SVG; returns the path.

    Args:
        out: ends in .png or .svg.
        configs: `(label, {group: (chosen, full)})`, all of one network.
        default: `{group: channels}` of the default network, drawn as black bars.

    Raises:
        RunError: another suffix, nothing to draw, or the picture cannot be written.
    """
    out = style.check_out(out)
    return style.save_figure(_channels_figure(configs, default=default), out)


def draw_path(
    out: str | Path, steps: list[dict[str, int]], groups: dict[str, int], *, macs: list[int] | None = None, marks: list = ()
) -> Path:
    """Draw the width of every group after each step of a search as a heat map; returns the path.

    Args:
        out: ends in .png or .svg.
        steps: `{group: channels}` after each step, the full network first.
        groups: `{group: full channels}` in layer order.
        macs: multiply-adds after each step, for the axis on top.
        marks: `(step, label)` of steps to point out, such as those that met a target.

    Raises:
        RunError: another suffix, nothing to draw, or the picture cannot be written.
    """
    out = style.check_out(out)
    return style.save_figure(_path_figure(steps, groups, macs=macs, marks=marks), out)


def _channels_figure(configs, *, default=None) -> Figure:
    if not configs:
        raise RunError("there is no configuration to draw; pass the folder of a search")
    groups = {name: full for name, (_, full) in configs[0][1].items()}
    places = range(len(groups))
    figure = style.new_figure(max(6.4, 1.8 + 0.34 * len(groups)), 4.6)
    axes = figure.subplots()
    axes.bar(places, list(groups.values()), width=0.86, color=style.FAINT, edgecolor=style.PALE, label="full width (supernet)")
    if default:
        lengths = [default.get(name, 0) for name in groups]
        axes.hlines(
            lengths, [p - 0.43 for p in places], [p + 0.43 for p in places], color=style.INK, lw=1.4, label="default network"
        )
    for (label, channels), (colour, marker) in zip(configs, _STYLES * len(configs)):
        widths = [channels[name][0] for name in groups]
        axes.plot(places, widths, color=colour, marker=marker, ms=4.5, lw=1, alpha=0.9, label=f"found, {style.literal(label)}")
    _name_groups(axes, groups)
    axes.set_ylabel("channels", fontsize=style.NORMAL)
    axes.set_ylim(0, None)
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    style.tidy(axes, grid="y")
    axes.set_xlim(-0.7, len(groups) - 0.3)
    figure.legend(loc="outside upper left", ncols=3, fontsize=style.NORMAL, frameon=False)
    return figure


def _name_groups(axes, groups: dict[str, int]) -> None:
    labels = [style.literal(style.shorten(name)) for name in groups]
    axes.set_xticks(range(len(groups)), labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=style.SMALL)


def _path_figure(steps, groups, *, macs=None, marks=()) -> Figure:
    if not steps:
        raise RunError("the search has no step to draw; run `autoslim search` first")
    ratios = [[step[name] / full for step in steps] for name, full in groups.items()]
    figure = style.new_figure(7.8, max(3.0, 1.6 + 0.2 * len(groups)))
    axes = figure.subplots()
    edges = (-0.5, len(steps) - 0.5, len(groups) - 0.5, -0.5)
    picture = axes.imshow(ratios, aspect="auto", cmap="cividis", vmin=0, vmax=1, interpolation="nearest", extent=edges)
    labels = [f"{style.literal(style.shorten(name))}  ({full})" for name, full in groups.items()]
    axes.set_yticks(range(len(groups)), labels, fontsize=style.SMALL)
    axes.set_xlabel("steps of the search, from full width", fontsize=style.NORMAL)
    axes.set_ylabel("channel group (full channels)", fontsize=style.NORMAL)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.tick_params(axis="x", labelsize=style.NORMAL)
    for step, label in marks:
        axes.axvline(step, color=style.SEARCHED, lw=1.6)
        axes.text(
            step, len(groups) - 0.6, f" {style.literal(label)} ", rotation=90, va="bottom", ha="right",
            color="white", fontsize=style.SMALL, bbox={"facecolor": style.SEARCHED, "edgecolor": "none", "pad": 1.0},
        )  # fmt: skip
    if macs:
        scale, letter = style.macs_unit(macs)
        top = axes.secondary_xaxis("top")
        chosen = sorted({round(i * (len(steps) - 1) / 6) for i in range(7)})
        amounts = [macs[i] / scale for i in chosen]
        labels = [f"{amount:.0f}" if amount >= 100 else f"{amount:.3g}" for amount in amounts]
        top.set_xticks(chosen, labels, fontsize=style.NORMAL)
        top.set_xlabel(f"multiply-adds ({letter})", fontsize=style.NORMAL)
    bar = figure.colorbar(picture, ax=axes, pad=0.02)
    bar.set_label("width / full width", fontsize=style.NORMAL)
    bar.ax.tick_params(labelsize=style.NORMAL)
    return figure
