"""The `folder:` source: DIR/train/CLASS/* and DIR/test/CLASS/* or DIR/val/CLASS/*."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from autoslim.data.cache import cache_folder, cache_key, read_array, write_array
from autoslim.data.decode import decode_files, read_sizes, stored_size, with_margin
from autoslim.data.images import FileImages, ImageSet
from autoslim.errors import DataError

EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".pbm", ".tif", ".tiff", ".gif"
)  # fmt: skip
LAYOUT = "DIR/train/CLASS/* and DIR/test/CLASS/* or DIR/val/CLASS/*"

log = logging.getLogger("autoslim")


@dataclass(frozen=True)
class Listing:
    """Image files of one part, in class order; `stats` is (relative path, bytes, mtime in ns) a file."""

    paths: list[str]
    labels: list[int]
    stats: list[tuple[str, int, int]]


def class_names(part: Path) -> list[str]:
    """Return the visible folders in `part`, sorted by name; none where it is no folder."""
    if not part.is_dir():
        return []
    return sorted(child.name for child in part.iterdir() if child.is_dir() and not child.name.startswith("."))


def list_part(root: Path, part: str, classes: list[str]) -> Listing:
    """List the images of a part, labelled by their folder's place in `classes`.

    Raises:
        DataError: a class folder holds no image, or is none of `classes`.
    """
    found = class_names(root / part)
    unknown = [name for name in found if name not in set(classes)]
    if unknown:
        raise DataError(
            f"{root / part}: class {unknown[0]!r} is not in {root / 'train'}; "
            "every class that is tested must be trained, so add it there or remove it here"
        )
    listing = Listing([], [], [])
    empty, others = [], []
    for name in found:
        with os.scandir(root / part / name) as entries:
            visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
        files = [entry for entry in visible if is_image(entry)]
        others += [f"{name}/{entry.name}" for entry in visible if not is_image(entry)]
        if not files:
            empty.append(root / part / name)
        listing.labels.extend([classes.index(name)] * len(files))
        for entry in files:
            stat = entry.stat()
            listing.paths.append(entry.path)
            listing.stats.append((f"{part}/{name}/{entry.name}", stat.st_size, stat.st_mtime_ns))
    suffixes = " ".join(suffix[1:] for suffix in EXTENSIONS)
    if not listing.paths:
        raise DataError(f"{root / part}: no images; expected {LAYOUT} with files of type {suffixes}")
    if empty:
        raise DataError(f"{empty[0]}: class folder without images; add files of type {suffixes}, or remove the folder")
    if others and part == "train":
        log.info(
            "%s: %d entries of its class folders are no images of type %s, and are not read: %s",
            root / part, len(others), suffixes, ", ".join(others[:3]) + (", ..." if len(others) > 3 else ""),
        )  # fmt: skip
    return listing


def is_image(entry: os.DirEntry) -> bool:
    """Say whether a directory entry is a file with an image's extension."""
    return entry.name.lower().endswith(EXTENSIONS) and entry.is_file()


def find_parts(root: Path) -> tuple[Listing, Listing, list[str]]:
    """List the training images, the test images and the class names of a data folder.

    test/ is read before val/; a folder without class folders in it, as an unlabelled test/ has, is passed over.

    Raises:
        DataError: the folder does not have the layout above.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected {LAYOUT}")
    classes = class_names(root / "train")
    if not (root / "train").is_dir():
        here = f"; it holds {', '.join(class_names(root)[:3])}, ..." if class_names(root) else ""
        raise DataError(f"{root}: no train/ in it{here}; expected {LAYOUT}")
    if len(classes) == 1:
        raise DataError(f"{root / 'train'}: only one class, {classes[0]!r}; two or more are needed to classify")
    train = list_part(root, "train", classes)
    parts = [name for name in ("test", "val") if class_names(root / name)]
    if not parts:
        raise DataError(f"{root}: no test/ or val/ with class folders in it; expected {LAYOUT}")
    if len(parts) > 1:
        log.info("%s: testing on test/; val/ is not read", root)
    return train, list_part(root, parts[0], classes), classes


def load_folder(
    root: Path,
    *,
    size: tuple[int, int] | None,
    skip_corrupt: bool,
    cache_dir: str | os.PathLike | None,
    memory_limit: int,
) -> tuple[ImageSet | FileImages, ImageSet | FileImages, list[str], tuple[int, int], list[tuple[str, int]]]:
    """Read a data folder: training images, test images, class names, the (H, W) of the first image's file, and path in the folder
    and bytes of the training images' files.

    Pixels are decoded once and cached outside the folder. Where they would take more than `memory_limit` bytes the
    files are decoded batch by batch instead, and are checked beforehand only if corrupt ones are to be skipped.

    Raises:
        DataError: the layout, the image sizes or a file are not as they must be.
    """
    train, test, classes = find_parts(root)
    paths = train.paths + test.paths
    labels = np.array(train.labels + test.labels, dtype=np.int64)
    key = cache_key(root, train.stats + test.stats, size, skip_corrupt)
    pixels_file = cache_folder(cache_dir) / f"{key}.npy"
    kept_file = cache_folder(cache_dir) / f"{key}.kept.npy"

    kept = read_kept(kept_file, len(paths)) if skip_corrupt else np.arange(len(paths))
    pixels = None if kept is None else read_pixels(pixels_file, len(kept), size)
    size = stored_size(paths, size) if pixels is None else pixels.shape[1:3]
    in_memory = len(paths) * size[0] * size[1] * 3 <= memory_limit

    if kept is None or (in_memory and pixels is None):
        title = f"{'decoding' if in_memory else 'checking'} {root.name}"
        decoded, skipped = decode_files(paths, size, skip_corrupt=skip_corrupt, keep=in_memory, progress=title)
        kept = np.setdiff1d(np.arange(len(paths)), list(skipped))
        if skip_corrupt:
            write_array(kept_file, kept)
        if in_memory:
            pixels = decoded[kept] if skipped else decoded
            write_array(pixels_file, pixels)
    report_skipped(paths, kept)
    check_classes(labels, kept, len(train.paths), classes, root)

    original = next((found for _, found in read_sizes(paths)), size)
    border = int(np.searchsorted(kept, len(train.paths)))
    files = [train.stats[index][:2] for index in kept[:border]]
    targets = torch.from_numpy(labels[kept])
    if not in_memory:
        chosen = FileImages([paths[index] for index in kept], targets, size)
        return chosen.subset(range(border)), chosen.subset(range(border, len(kept))), classes, original, files
    images = torch.from_numpy(np.array(pixels) if isinstance(pixels, np.memmap) else pixels).permute(0, 3, 1, 2)
    return ImageSet(images[:border], targets[:border]), ImageSet(images[border:], targets[border:]), classes, original, files


def read_kept(path: Path, files: int) -> np.ndarray | None:
    """Read the cached indices of the files that could be decoded; None where they do not fit `files` files."""
    kept = read_array(path, np.int64)
    if kept is None or kept.ndim != 1 or not 0 < len(kept) <= files:
        return None
    kept = np.array(kept)
    return kept if kept[0] >= 0 and kept[-1] < files and (np.diff(kept) > 0).all() else None


def read_pixels(path: Path, images: int, size: tuple[int, int] | None) -> np.ndarray | None:
    """Read cached pixels, uint8 [images, H, W, 3]; None where they are missing or have another shape."""
    pixels = read_array(path, np.uint8)
    if pixels is None or pixels.ndim != 4 or pixels.shape[0] != images or pixels.shape[3] != 3:
        return None
    return pixels if size is None or pixels.shape[1:3] in (size, with_margin(size)) else None


def report_skipped(paths: list[str], kept: np.ndarray) -> None:
    """Log how many corrupt images were left out, and the first few of them."""
    missing = np.setdiff1d(np.arange(len(paths)), kept)
    if len(missing):
        names = ", ".join(paths[index] for index in missing[:3]) + (", ..." if len(missing) > 3 else "")
        log.warning("skipped %d of %d images that are corrupt: %s", len(missing), len(paths), names)


def check_classes(labels: np.ndarray, kept: np.ndarray, train_files: int, classes: list[str], root: Path) -> None:
    """Raise DataError where skipping corrupt images left a class or the test set without any."""
    counts = np.bincount(labels[kept[kept < train_files]], minlength=len(classes))
    if not counts.all():
        folder = root / "train" / classes[int(counts.argmin())]
        raise DataError(f"{folder}: every image is corrupt; replace them, or remove the class")
    if kept[-1] < train_files:
        raise DataError(f"{root}: every test image is corrupt; replace them")
