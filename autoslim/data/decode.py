"""Image files to pixels, many at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image
from tqdm import tqdm

from autoslim.errors import DataError

LARGE_IMAGES = 96


def with_margin(size: tuple[int, int]) -> tuple[int, int]:
    """Return the (H, W) at which photos are stored for networks that see images of a size.

    Large images keep the usual margin for cropping, 256 pixels for 224 (Krizhevsky et al. 2012, section 4.1).
    """
    return (round(size[0] * 256 / 224), round(size[1] * 256 / 224)) if min(size) >= LARGE_IMAGES else size


def stored_size(paths: Iterable[str], wanted: tuple[int, int] | None) -> tuple[int, int]:
    """Choose the (H, W) at which a folder's images are stored.

    Images that all have one size keep it where that is the wanted (H, W) or where none is asked for. Headers
    are read only until two sizes differ. Files that cannot be opened are passed over.

    Raises:
        DataError: the sizes differ and no size is wanted, or no file can be opened.
    """
    if wanted is not None and with_margin(wanted) == wanted:
        return wanted
    first: tuple[str, tuple[int, int]] | None = None
    for path, (height, width) in read_sizes(paths):
        if first is None:
            first = path, (height, width)
        if wanted is None and (height, width) != first[1]:
            raise DataError(
                f"image sizes differ: {first[0]} is {first[1][1]}x{first[1][0]}, {path} is {width}x{height}; "
                "pass an image size to bring all to one"
            )
        if wanted is not None and (height, width) != wanted:
            return with_margin(wanted)
    if first is None:
        raise DataError("none of the files can be opened as an image; check that they are complete")
    return first[1]


def read_sizes(paths: Iterable[str]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the (H, W) in the header of every file that can be opened; the decoder reports the others."""
    for path in paths:
        try:
            with Image.open(path) as image:
                width, height = image.size
        except (OSError, ValueError, Image.DecompressionBombError):
            continue
        yield path, (height, width)


def decode_file(path: str, size: tuple[int, int]) -> np.ndarray:
    """Decode one file to uint8 [H, W, 3]; an image of another size is scaled by its shorter side, centre-cropped.

    Raises:
        DataError: the file is no complete 8-bit image.
    """
    height, width = size
    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":
                raise ValueError(f"pixels of mode {image.mode} have more than 8 bits")
            if image.size != (width, height):
                image.draft(None, (2 * width, 2 * height))
            if image.mode in ("P", "PA"):
                image = image.convert("RGBA")
            image = image.convert("RGB")
            if image.size != (width, height):
                scale = min(image.width / width, image.height / height)
                left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
                box = (left, top, left + scale * width, top + scale * height)
                image = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
            return np.asarray(image)
    except Exception as error:  # a damaged file can raise nearly anything: OSError, SyntaxError, struct.error, ...
        raise DataError(f"{path}: corrupt image ({error}); replace it, or leave such images out with --skip-corrupt") from error


def decode_files(
    paths: Sequence[str], size: tuple[int, int], *, skip_corrupt: bool = False, keep: bool = True, progress: str = ""
) -> tuple[np.ndarray, dict[int, str]]:
    """Decode files on all cores.

    Args:
        paths: N files.
        size: (H, W) of every result.
        skip_corrupt: report files that cannot be decoded instead of raising.
        keep: False only checks the files.
        progress: title of a bar on stderr; none where empty or where stderr is no terminal.

    Returns:
        uint8 [N, H, W, 3], black where a file was skipped ([0, H, W, 3] unless `keep`); index and reason of each
        skipped file.

    Raises:
        DataError: a file is corrupt and `skip_corrupt` is False.
    """
    pixels = np.empty((len(paths) if keep else 0, *size, 3), dtype=np.uint8)
    skipped: dict[int, str] = {}
    workers = os.cpu_count() or 1
    chunk = max(1, min(32, len(paths) // (4 * workers)))  # large enough to hide what a task costs

    def decode_range(start: int) -> int:
        stop = min(start + chunk, len(paths))
        for index in range(start, stop):
            try:
                image = decode_file(paths[index], size)
            except DataError as error:
                if not skip_corrupt:
                    raise
                skipped[index] = str(error)
                image = np.zeros((), dtype=np.uint8)
            if keep:
                pixels[index] = image
        return stop - start

    pool = ThreadPoolExecutor(workers)
    bar = tqdm(total=len(paths), desc=progress, unit="image", disable=None if progress else True)
    try:
        for count in pool.map(decode_range, range(0, len(paths), chunk)):
            bar.update(count)
    finally:
        bar.close()
        pool.shutdown(cancel_futures=True)
    return pixels, dict(sorted(skipped.items()))
