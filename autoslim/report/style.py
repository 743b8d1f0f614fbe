"""What all plots share: colours, fonts, amounts on axes, and how a picture gets onto the disk."""

import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from autoslim.errors import RunError
from autoslim.files import atomic_write

SUFFIXES = (".png", ".svg")
DPI = 150

# Hues from the palette of Okabe and Ito, which stay apart under the common colour deficiencies. No plot relies on them
# alone: marker shapes and line styles differ as well, for print in grey.
SEARCHED = "#D55E00"
UNIFORM = "#0072B2"
OTHERS = ("#009E73", "#AA4499", "#8C6D1F", "#444444")
INK = "#222222"
PALE = "#C8C8C8"
FAINT = "#ECECEC"

SMALL, NORMAL, LARGE = 7, 8.5, 10.5  # points


def check_out(out: str | Path, suffixes: tuple[str, ...] = SUFFIXES) -> Path:
    """Return the path of a picture.

    Raises:
        RunError: its suffix is not one that can be drawn.
    """
    out = Path(out)
    if out.suffix.lower() not in suffixes:
        names = " or ".join(f"plot{suffix}" for suffix in suffixes)
        raise RunError(f"{str(out)!r} does not end in {' or '.join(suffixes)}; name the picture {names}")
    return out


def new_figure(width: float, height: float) -> Figure:
    """Return an empty white figure, sizes in inches; it belongs to no window and no global list."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


def save_figure(figure: Figure, out: str | Path, suffixes: tuple[str, ...] = SUFFIXES) -> Path:
    """Write a figure in the format of its suffix (PNG has 150 dots an inch), whole or not at all; returns the path.

    Raises:
        RunError: another suffix, or the folder cannot be written.
    """
    out = check_out(out, suffixes)
    kind = out.suffix.lower()[1:]
    picture = io.BytesIO()
    # Without a date, the same results give the same PNG and PDF.
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    figure.savefig(picture, format=kind, dpi=DPI, metadata=dates.get(kind))
    with atomic_write(out, "wb") as file:
        file.write(picture.getvalue())
    return out


def tidy(axes: Axes, grid: str = "both") -> None:
    """Quiet frame and grid, small tick labels."""
    axes.set_facecolor("white")
    axes.set_axisbelow(True)
    if grid:
        axes.grid(True, axis=grid, color=FAINT, linewidth=0.8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#888888")
    axes.tick_params(labelsize=NORMAL, color="#888888", labelcolor=INK)


def macs_unit(macs) -> tuple[float, str]:
    """Return (divisor, letter) in which these multiply-adds are short to write: thousands, millions or billions."""
    most = max(macs, default=0)
    if most >= 2e9:
        return 1e9, "G"
    return (1e6, "M") if most >= 2e6 or most == 0 else (1e3, "k")


def literal(text: str) -> str:
    """Return text that is drawn as it is: no formula between dollar signs, no leading underscore that hides a label."""
    text = str(text).replace("$", r"\$")
    return " " + text if text.startswith("_") else text


def shorten(name: str, limit: int = 22) -> str:
    """Return a name of at most `limit` characters: the middle goes, the end says most about a layer."""
    if len(name) <= limit:
        return name
    head = limit // 3
    return f"{name[:head]}…{name[head + 1 - limit :]}"
