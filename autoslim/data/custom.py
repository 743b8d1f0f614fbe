"""The `pkg.module:function` source: data sets that the user's own code returns."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import numbers
import os
import sys
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from autoslim.data.images import ImageSet
from autoslim.errors import DataError
from autoslim.factories import is_foreign

WANTED = "(train, test), each a torch Dataset of (image, int label) or a pair (uint8 [N, C, H, W], labels [N])"


def load_custom(spec: str) -> tuple[ImageSet, ImageSet, list[str]]:
    """Call the function that `spec` names and bring both parts it returns into memory.

    Class names are the training set's `classes` where it has them, else the numbers from 0 to the largest label.

    Raises:
        ImportError: there is no such module or function.
        DataError: what the function returns is no pair of labelled uint8 images of the same classes.
    """
    module_name, _, function_name = spec.partition(":")
    with working_directory_importable():
        refuse_foreign(spec, module_name)
        function = importlib.import_module(module_name)
        for name in function_name.split("."):
            if not hasattr(function, name):
                raise ImportError(f"module {module_name!r} has no {function_name!r}")
            function = getattr(function, name)
        if not callable(function):
            raise DataError(f"{spec} is a {type(function).__name__}, not a function that returns {WANTED}")
        refuse_foreign(spec, getattr(function, "__module__", None) or "builtins")
        parts = function()
        if not isinstance(parts, (tuple, list)) or len(parts) != 2:
            raise DataError(f"{spec} returned {describe(parts)}; it must return {WANTED}")
        train = convert_part(parts[0], f"{spec} train")
        test = convert_part(parts[1], f"{spec} test")
    names, others = (getattr(part, "classes", None) for part in parts)
    rows = [list(map(str, row)) for row in (names, others) if isinstance(row, (list, tuple))]
    if len(rows) == 2 and rows[0] != rows[1]:
        raise DataError(
            f"{spec}: the classes of train and test differ ({_differ(*rows)}), so that one label would stand "
            "for two classes; return both with the same classes, in one order"
        )
    if names is None:
        names = range(int(train.labels.max()) + 1 if len(train) else 0)
    return train, test, [str(name) for name in names]


def _differ(ours: list, theirs: list) -> str:
    pairs = enumerate(itertools.zip_longest(ours, theirs))
    label, (one, other) = next((label, pair) for label, pair in pairs if str(pair[0]) != str(pair[1]))
    return f"label {label} is {one!r} and {other!r}"


def refuse_foreign(spec: str, module: str) -> None:
    """Raise DataError for what is no data of the user's: a run folder that was sent names a function, too (os:abort)."""
    if is_foreign(module):
        raise DataError(f"data set {spec!r} belongs to {module}; name a function of your own that returns {WANTED}")


@contextlib.contextmanager
def working_directory_importable() -> Iterator[None]:
    """Search the working directory too while importing, as `python -m` does."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(folder)


def convert_part(part: object, name: str) -> ImageSet:
    """Convert one returned part to an ImageSet; `name` opens the errors."""
    if isinstance(part, (tuple, list)) and len(part) == 2 and is_array(part[0]):
        images, labels = as_tensor(part[0]), as_tensor(part[1])
        if images.ndim != 4 or images.dtype != torch.uint8:
            raise DataError(f"{name}: images are {describe(part[0])}; a pair must hold uint8 [N, C, H, W]")
        if labels.shape != images.shape[:1] or labels.is_floating_point() or labels.is_complex():
            raise DataError(f"{name}: labels are {describe(part[1])}; {len(images)} images need as many whole numbers")
        check_channels(images[0:1].permute(1, 2, 3, 0)[..., 0], name)
        return ImageSet(images, labels.long())
    if not hasattr(part, "__getitem__") or not hasattr(part, "__len__"):
        raise DataError(f"{name}: got {describe(part)}, without a length and items; expected {WANTED}")
    return convert_items(part, name)


def convert_items(dataset: object, name: str) -> ImageSet:
    """Read every (image, label) of a map-style data set."""
    images, labels = [], []
    for index in range(len(dataset)):
        here = f"{name}[{index}]"
        item = dataset[index]
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise DataError(f"{here}: got {describe(item)}; an item must be (image, int label)")
        images.append(to_pixels(item[0], here))
        if images[-1].shape != images[0].shape:
            raise DataError(
                f"{here}: image is {list(images[-1].shape)}, the first is {list(images[0].shape)}; "
                "resize them to one shape in the data set"
            )
        labels.append(to_label(item[1], here))
    if not images:
        raise DataError(f"{name}: the data set is empty; it needs at least one image")
    return ImageSet(torch.stack(images), torch.tensor(labels))


def to_pixels(image: object, name: str) -> Tensor:
    """Convert a PIL image, uint8 [C, H, W], or float [C, H, W] in 0..1 to uint8 [C, H, W]."""
    if isinstance(image, Image.Image):
        if image.mode[0] in "IF":
            raise DataError(f"{name}: pixels of mode {image.mode} have more than 8 bits; scale them to 8 in the data set")
        pixels = np.array(image if image.mode in ("L", "RGB") else image.convert("RGB"))
        pixels = torch.from_numpy(pixels)
        return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    if not is_array(image):
        raise DataError(f"{name}: image is {describe(image)}; expected a PIL image, a tensor or an array")
    image = as_tensor(image)
    if image.ndim != 3:
        raise DataError(f"{name}: image is {describe(image)}; expected [C, H, W]")
    check_channels(image, name)
    if image.is_floating_point():
        low, high = float(image.min()), float(image.max())
        if not (low >= 0 and high <= 1):
            raise DataError(
                f"{name}: pixels run from {low:.3g} to {high:.3g}; floats must lie in [0, 1], "
                "so leave normalisation out of the data set's transform"
            )
        return (image * 255).round().to(torch.uint8)
    if image.dtype != torch.uint8:
        raise DataError(f"{name}: image is {describe(image)}; expected uint8, or floats in [0, 1]")
    return image


def to_label(label: object, name: str) -> int:
    """Convert an int, a numpy integer or a tensor of one integer."""
    if is_array(label) and as_tensor(label).numel() == 1 and not as_tensor(label).is_floating_point():
        return int(label)
    if not isinstance(label, numbers.Integral):
        raise DataError(f"{name}: label is {describe(label)}; expected a class number, 0 for the first class")
    return int(label)


def check_channels(image: Tensor, name: str) -> None:
    """Raise DataError for [H, W, C], which would otherwise be read as many narrow channels."""
    channels, _, width = image.shape
    if width <= 4 < channels:
        raise DataError(f"{name}: image is {list(image.shape)}, which looks like [H, W, C]; move C to the front")


def is_array(value: object) -> bool:
    """Say whether a value is a torch tensor or numpy array."""
    return isinstance(value, (Tensor, np.ndarray))


def as_tensor(array: Tensor | np.ndarray) -> Tensor:
    """Return a CPU tensor; arrays are copied, so that read-only ones are welcome."""
    return array.detach().cpu() if isinstance(array, Tensor) else torch.tensor(array)


def describe(value: object) -> str:
    """Name a value's type, and an array's dtype and shape."""
    if is_array(value):
        return f"{value.dtype} {list(value.shape)}"
    size = f" of {len(value)}" if isinstance(value, (tuple, list)) else ""
    return f"{type(value).__name__}{size}"
