"""A picture of a network: its layers from top to bottom, filled with the colours of their channel groups."""

import colorsys
import math
import textwrap
from functools import lru_cache
from itertools import groupby
from pathlib import Path as File

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon, Rectangle
from matplotlib.path import Path
from matplotlib.textpath import TextToPath

from autoslim.channels.map import ChannelGroup, ChannelMap, Step
from autoslim.errors import RunError
from autoslim.report import style
from autoslim.report.layout import Layout, arrange

SUFFIXES = (".png", ".svg", ".pdf")
JOINS = {"add": "+", "mul": "×", "cat": "cat"}

# Inches, but for the sizes of letters, which are points.
_LETTERS, _SMALL_LETTERS = 6.2, 5.6
_BOX_HEIGHT, _JOIN_HEIGHT, _PAD = 0.3, 0.16, 0.05
_LEGEND_LINE, _LEGEND_WIDTH = 0.135, 2.9
_MARGIN, _TITLE = 0.25, 0.5
_ASPECT = 1.35
_NAME_LIMIT = 22
_LINE, _FROZEN, _FIXED = "#555555", "#D9D9D9", "white"


def draw_network(found: ChannelMap, path: str | File, *, title: str) -> File:
    """Draw the inference graph with its channel groups in colour, as PNG, SVG or PDF; returns the path.

    Raises:
        RunError: another suffix, nothing to draw, or the picture cannot be written.
    """
    path = style.check_out(path, SUFFIXES)
    return style.save_figure(_network_figure(found, title=title), path, SUFFIXES)


def group_labels(found: ChannelMap) -> dict[str, str]:
    """Return a short label for every group, by its name: g1, g2, ... and f1, ... for the frozen ones."""
    free = {group.name: f"g{i}" for i, group in enumerate(found.groups, 1)}
    return {**free, **{group.name: f"f{i}" for i, group in enumerate(found.frozen, 1)}}


def drawn_inputs(steps: tuple[Step, ...]) -> list[tuple[int, ...]]:
    """Return the steps that lines come from; a concatenation that goes on where an earlier one ended continues that one.

    A dense block then has two lines into each concatenation in place of one from every layer before it.
    """
    inputs, cats = [], []
    for i, step in enumerate(steps):
        before = step.after
        if step.kind == "cat":
            earlier = [cat for cat in cats if _continues(step, steps[cat])]
            if earlier:
                last = max(earlier, key=lambda cat: len(steps[cat].after))
                before = (last, *before[len(steps[last].after) :])
            cats.append(i)
        inputs.append(before)
    return inputs


def _continues(step: Step, earlier: Step) -> bool:
    inputs, runs = len(earlier.after), len(earlier.channels)
    longer = len(step.after) > inputs and len(step.channels) > runs
    return longer and step.after[:inputs] == earlier.after and step.channels[:runs] == earlier.channels


def short_names(names: list[str], limit: int = _NAME_LIMIT) -> dict[str, str]:
    """Return names of layers of at most `limit` characters: what most begin with goes, outer modules become initials."""
    heads = [name.split(".")[0] for name in names if "." in name]
    common = max(set(heads), key=heads.count) if heads else ""
    drop = f"{common}." if heads.count(common) > 0.7 * len(names) else ""
    found = {name: _initials(name.removeprefix(drop), limit) for name in names}
    kept = list(found.values())
    return {name: short if kept.count(short) == 1 else style.shorten(name, limit) for name, short in found.items()}


def _initials(name: str, limit: int) -> str:
    parts = name.split(".")
    for i, part in enumerate(parts[:-1]):
        if len(".".join(parts)) <= limit:
            break
        digits = next((k for k, letter in enumerate(part) if letter.isdigit()), len(part))
        parts[i] = part[:1] + part[digits:] if digits else part
    return style.shorten(".".join(parts), limit)


@lru_cache(maxsize=4096)
def _text_width(text: str, size: float, weight: str = "normal") -> float:
    """Return inches."""
    font = FontProperties(size=size, weight=weight)
    return TextToPath().get_text_width_height_descent(text, font, ismath=False)[0] / 72


def _tint(i: int) -> tuple[float, float, float]:
    """Return the i-th of a row of light colours in which neighbours differ."""
    return colorsys.hls_to_rgb((0.58 + i * 0.618034) % 1, (0.80, 0.72, 0.86)[i % 3], 0.75)


def _network_figure(found: ChannelMap, *, title: str) -> Figure:
    if not found.steps:
        raise RunError(f"{title} has no layer to draw; inspect a network with conv or linear layers")
    return _Picture(found, title).figure()


class _Picture:
    def __init__(self, found: ChannelMap, title: str):
        self._found, self._title = found, title
        self._labels = group_labels(found)
        frozen = {group.name: {"facecolor": _FROZEN, "hatch": "////"} for group in found.frozen}
        self._fills = {**{group.name: {"facecolor": _tint(i)} for i, group in enumerate(found.groups)}, **frozen}
        self._short = short_names([step.name for step in found.steps if step.kind not in JOINS])

    def figure(self) -> Figure:
        steps = self._found.steps
        inputs = drawn_inputs(steps)
        sizes = self._sizes()
        legend = self._legend_lines()
        best = min((self._page(arrange(inputs, sizes, columns=n), legend) for n in range(1, 13)), key=_strangeness)
        layout, width, height, rows = best
        figure = style.new_figure(width, height)
        figure.set_layout_engine("none")
        self._axes = figure.add_axes((0, 0, 1, 1))
        self._axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
        self._axes.axis("off")
        self._text(_MARGIN, 0.22, self._title, size=style.LARGE, weight="bold")
        self._text(_MARGIN, 0.39, self._summary(), size=_LETTERS + 1, color="#555555")
        for (source, step), pieces in layout.edges.items():
            self._edge(source, step, pieces)
        for i, step in enumerate(steps):
            x, y = layout.boxes[i]
            self._step(i, step, x + _MARGIN, y + _MARGIN + _TITLE, *sizes[i])
        self._legend(legend, _MARGIN + layout.width + 0.35, rows)
        return figure

    def _page(self, layout: Layout, legend: list) -> tuple[Layout, float, float, int]:
        rows = max(math.floor(max(layout.height, 3.2) / _LEGEND_LINE), 1)
        width = 2 * _MARGIN + layout.width + 0.35 + _LEGEND_WIDTH * math.ceil(len(legend) / rows)
        return layout, width, 2 * _MARGIN + _TITLE + max(layout.height, rows * _LEGEND_LINE), rows

    def _summary(self) -> str:
        free, frozen = len(self._found.groups), len(self._found.frozen)
        return f"{free} channel groups that can be slimmed, {frozen} frozen. Boxes with one label always have the same width."

    def _sizes(self) -> list[tuple[float, float]]:
        """Return (width, height) of every box; those of layers are all as wide as the widest needs."""
        steps = self._found.steps
        layers = [step for step in steps if step.kind not in JOINS]
        wide = max(max(self._needs(step)) for step in layers) if layers else 1.0
        sizes = []
        for step in steps:
            if step.kind == "cat":
                sizes.append((wide, _JOIN_HEIGHT))
            elif step.kind in JOINS:
                sizes.append((self._needs(step)[0], _JOIN_HEIGHT))
            else:
                sizes.append((wide, _BOX_HEIGHT if step.kind not in ("input", "output") else _JOIN_HEIGHT + 0.03))
        return sizes

    def _needs(self, step: Step) -> tuple[float, float]:
        """Return the widths of the two lines of text of a box."""
        if step.kind in JOINS:
            return 3 * _PAD + _text_width(self._join_text(step), _SMALL_LETTERS), 0.0
        name = 0.05 + _text_width(self._label(step), _LETTERS, "bold") + _text_width(self._short[step.name], _LETTERS)
        kind = 0.1 + _text_width(_kind(step), _SMALL_LETTERS) + _text_width(_channels(step), _SMALL_LETTERS)
        return name + 2 * _PAD, kind + 2 * _PAD

    def _label(self, step: Step) -> str:
        labels = list(dict.fromkeys(self._labels[name] for name, _ in step.channels if name in self._labels))
        return "+".join(labels) if len(labels) < 3 else f"{labels[0]}…{labels[-1]}"

    def _join_text(self, step: Step) -> str:
        return " ".join(filter(None, [JOINS[step.kind], self._label(step), _channels(step)]))

    def _step(self, i: int, step: Step, x: float, y: float, width: float, height: float) -> None:
        left, top = x - width / 2, y - height / 2
        join = step.kind in JOINS
        rounding = height / 2 if join else 0.03
        outline = FancyBboxPatch(
            (left, top), width, height, boxstyle=f"round,pad=0,rounding_size={rounding}", mutation_aspect=1,
            facecolor="white", edgecolor="none", gid=f"step-{i}", zorder=3,
        )  # fmt: skip
        self._axes.add_patch(outline)
        ends = (0.3, _text_width(_channels(step), _SMALL_LETTERS) + 0.1) if step.kind == "cat" else (0.0, 0.0)
        self._stripes(i, step, left + ends[0], top, width - sum(ends), height, outline)
        border = FancyBboxPatch(
            (left, top), width, height, boxstyle=f"round,pad=0,rounding_size={rounding}", mutation_aspect=1,
            facecolor="none", edgecolor="#444444", linewidth=0.6, zorder=5,
        )  # fmt: skip
        self._axes.add_patch(border)
        if step.kind == "cat":
            self._text(left + 0.15, y, "cat", size=_SMALL_LETTERS, ha="center")
            self._text(left + width - 0.05, y, _channels(step), size=_SMALL_LETTERS, ha="right")
        elif join:
            self._text(x, y, self._join_text(step), size=_SMALL_LETTERS, ha="center")
        elif step.kind in ("input", "output"):
            self._text(left + _PAD, y, step.kind, size=_LETTERS)
            self._text(left + width - _PAD, y, _channels(step), size=_SMALL_LETTERS, ha="right")
        else:
            label = self._label(step)
            self._text(left + _PAD, y - 0.065, label, size=_LETTERS, weight="bold")
            name = left + _PAD + (_text_width(label, _LETTERS, "bold") + 0.05 if label else 0)
            self._text(name, y - 0.065, self._short[step.name], size=_LETTERS)
            self._text(left + _PAD, y + 0.07, _kind(step), size=_SMALL_LETTERS)
            self._text(left + width - _PAD, y + 0.07, _channels(step), size=_SMALL_LETTERS, ha="right")

    def _stripes(self, i: int, step: Step, left: float, top: float, width: float, height: float, outline) -> None:
        runs = list(step.channels)
        if step.kind != "cat":
            runs = [(name, sum(size for _, size in some)) for name, some in groupby(runs, key=lambda run: run[0])]
        total = sum(size for _, size in runs)
        for k, (name, size) in enumerate(runs):
            wide = width * size / total
            # Only a concatenation shows where its parts meet; its line colour is also that of a hatch.
            edge = {"edgecolor": "#8A8A8A", "linewidth": 0.4} if step.kind == "cat" else {"edgecolor": "#B4B4B4", "linewidth": 0}
            fill = self._fills.get(name, {"facecolor": _FIXED})
            stripe = Rectangle((left, top), wide, height, **edge, **fill, gid=f"stripe-{i}-{k}", zorder=4)
            self._axes.add_patch(stripe)
            stripe.set_clip_path(outline)
            label = self._labels.get(name, "")
            if step.kind == "cat" and label and _text_width(label, _SMALL_LETTERS) < wide - 0.02:
                self._text(left + wide / 2, top + height / 2, label, size=_SMALL_LETTERS, ha="center")
            left += wide

    def _edge(self, source: int, step: int, pieces) -> None:
        moved = [(what, (x + _MARGIN, y + _MARGIN + _TITLE)) for what, (x, y) in pieces]
        points, codes = [moved[0][1]], [Path.MOVETO]
        for what, (x, y) in moved[1:]:
            if what == "curve":
                x0, middle = points[-1][0], (points[-1][1] + y) / 2
                points += [(x0, middle), (x, middle), (x, y)]
                codes += [Path.CURVE4] * 3
            else:
                points.append((x, y))
                codes.append(Path.LINETO)
        line = PathPatch(Path(points, codes), facecolor="none", edgecolor=_LINE, linewidth=0.7, zorder=1,
                         gid=f"edge-{source}-{step}", joinstyle="round")  # fmt: skip
        self._axes.add_patch(line)
        x, y = points[-1]
        self._axes.add_patch(Polygon([(x, y), (x - 0.025, y - 0.06), (x + 0.025, y - 0.06)], facecolor=_LINE, zorder=2))

    def _legend_lines(self) -> list[tuple[str, str | None, str]]:
        """Return (label, group to show in its colour, text), a line each."""
        lines = [
            ("", None, "LAYER   group, name; kind, channels at full width"),
            ("+  ×", None, "branches are added, multiplied (tied to one width)"),
            ("cat", None, "branches are put side by side, each with its own colour"),
            ("", None, ""),
            ("", None, "GROUP   first layer, channels at full width"),
        ]
        lines += [(self._labels[group.name], group.name, _entry(group)) for group in self._found.groups]
        if self._found.frozen:
            lines += [("", None, ""), ("", None, "FROZEN   the width stays as it is")]
        for group in self._found.frozen:
            lines.append((self._labels[group.name], group.name, _entry(group)))
            lines += [("", None, text) for text in textwrap.wrap(group.frozen[0], 52, max_lines=2, placeholder=" …")]
        return lines

    def _legend(self, lines, left: float, rows: int) -> None:
        for k, (label, name, text) in enumerate(lines):
            x, y = left + _LEGEND_WIDTH * (k // rows), _MARGIN + _TITLE + (k % rows + 0.5) * _LEGEND_LINE
            if name is not None:
                swatch = Rectangle((x, y - 0.05), 0.33, 0.1, edgecolor="#B4B4B4", linewidth=0.4, **self._fills[name], zorder=3)
                self._axes.add_patch(swatch)
            self._text(x + 0.165, y, label, size=_LETTERS, weight="bold", ha="center")
            self._text(x + (0.4 if label or not text.isupper() else 0), y, text, size=_LETTERS)

    def _text(self, x: float, y: float, text: str, **look) -> None:
        if text:
            look = {"va": "center_baseline", "color": style.INK, "zorder": 6, **look}
            self._axes.text(x, y, style.literal(text), **look)


def _strangeness(page) -> float:
    _, width, height, _ = page
    return abs(math.log(width / height / _ASPECT))


def _kind(step: Step) -> str:
    return style.shorten(step.kind.replace("Conv2d", "Conv"), 24)


def _channels(step: Step) -> str:
    return str(sum(size for _, size in step.channels) or "")


def _entry(group: ChannelGroup) -> str:
    return f"{style.shorten(group.name, 42)}  {group.full}"
