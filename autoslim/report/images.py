"""The images that excite one channel most, at every switch."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath

from autoslim.errors import RunError
from autoslim.report import series, style

_CELL = 112  # pixels, about three quarters of an inch
_GAP = 10
_UNDER = 26  # for the activation under an image


def draw_top_images(out: str | Path, rows: list[dict], *, title: str | None = None) -> Path:
    """Draw the top-activating images of one channel, one row a switch, as PNG or SVG; returns the path.

    Small images are enlarged by a whole number, so every pixel of theirs is a sharp square. Under each image is its
    activation (Slimmable Networks, figure 3).

    Args:
        out: ends in .png or .svg.
        rows: `{"label", "images", "activations"}`: images uint8 `[K, H, W, 3]` or `[K, H, W, 1]`, activations `[K]`.
        title: over the picture.

    Raises:
        RunError: another suffix, nothing to draw, values that do not fit, or the picture cannot be written.
    """
    out = style.check_out(out)
    return series.save(_figure(rows, title=title), out)


def _figure(rows, *, title=None) -> Figure:
    rows = [_checked(row) for row in rows]
    if not rows:
        raise RunError("there is no image to draw; pass at least one row of label, images and activations")
    labels = [series.name(label, 24) for label, _, _ in rows]
    most = max(len(images) for _, images, _ in rows)
    tall, wide = (max(images.shape[axis] for _, images, _ in rows) for axis in (1, 2))
    factor = max(1.0, _CELL // max(tall, wide)) if max(tall, wide) <= _CELL else _CELL / max(tall, wide)
    tall, wide = round(tall * factor), round(wide * factor)

    left = round(max(_width(line, style.NORMAL) for label in labels for line in label.split("\n"))) + 4 * _GAP
    top = 52 if title else 2 * _GAP
    width = left + most * (wide + _GAP) + _GAP
    if title:
        width = max(width, round(_width(style.literal(title), style.LARGE)) + 4 * _GAP)
    height = top + len(rows) * (tall + _UNDER + _GAP)
    figure = style.new_figure(width / style.DPI, height / style.DPI)
    figure.set_layout_engine("none")  # pixels are placed by hand, to the dot
    if title:
        figure.text(_GAP / width, 1 - _GAP / height, style.literal(title), fontsize=style.LARGE, va="top")
    for i, (label, (_, images, activations)) in enumerate(zip(labels, rows)):
        bottom = height - top - i * (tall + _UNDER + _GAP) - tall
        figure.text(
            (left - 2 * _GAP) / width, (bottom + tall / 2) / height, label, fontsize=style.NORMAL, ha="right", va="center"
        )
        for j, (image, activation) in enumerate(zip(images, activations)):
            x = left + j * (wide + _GAP)
            axes = figure.add_axes((x / width, bottom / height, wide / width, tall / height))
            _show(axes, image)
            figure.text(
                (x + wide / 2) / width, (bottom - 5) / height, f"{activation:.3g}", fontsize=style.SMALL, ha="center", va="top",
                color=series.GREY,
            )  # fmt: skip
    return figure


def _show(axes, image: np.ndarray) -> None:
    grey = {"cmap": "gray", "vmin": 0, "vmax": 255} if image.shape[-1] == 1 else {}
    small = max(image.shape[:2]) <= _CELL
    axes.imshow(image[..., 0] if grey else image, interpolation="nearest" if small else "antialiased", **grey)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=style.PALE, linewidth=0.5)


def _checked(row: dict) -> tuple[str, np.ndarray, np.ndarray]:
    if missing := [key for key in ("label", "images", "activations") if key not in row]:
        raise RunError(f"a row of images has no {missing[0]!r}; every row needs label, images and activations")
    label, images, activations = row["label"], np.asarray(row["images"]), np.asarray(row["activations"], dtype=float)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise RunError(f"images of {label!r} have shape {list(images.shape)}; pass [K, H, W, 3] or [K, H, W, 1], K of 1 or more")
    if images.dtype != np.uint8:
        raise RunError(f"images of {label!r} are {images.dtype}, not uint8; scale them to 0..255 and round")
    if activations.shape != (len(images),):
        raise RunError(f"{label!r} has {len(images)} images but activations of shape {list(activations.shape)}; pass one each")
    if not np.isfinite(activations).all():
        raise RunError(f"activations of {label!r} are not finite numbers; measure them again or leave the images out")
    return str(label), images, activations


def _width(text: str, size: float) -> float:
    """Return the width of a line of text in pixels of the picture."""
    text = text.strip() or " "
    return TextPath((0, 0), text.replace(r"\$", "S"), size=size).get_extents().width * style.DPI / 72 if text != " " else 0.0
