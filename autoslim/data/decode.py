"""Image files to pixels, many at a time."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image
from tqdm import tqdm

from autoslim.errors import DataError

LARGE_IMAGES = 96
_ORIENTATION, _ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)  # EXIF tag, and its values that exchange width and height
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class CorruptImage(DataError):
    """A file that can be read, and is no whole image."""


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
                if _orientation(image) in _ON_ITS_SIDE:
                    width, height = height, width
        except (OSError, ValueError, Image.DecompressionBombError):
            continue
        yield path, (height, width)


def decode_file(path: str, size: tuple[int, int]) -> np.ndarray:
    """Decode one file to uint8 [H, W, 3], upright by its EXIF orientation.

    An image of another size is scaled by its shorter side, centre-cropped.

    Raises:
        CorruptImage: the file is no complete 8-bit image.
        DataError: the file cannot be read.
    """
    height, width = size
    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":
                raise ValueError(f"pixels of mode {image.mode} have more than 8 bits")
            turn = _orientation(image)
            across, down = (height, width) if turn in _ON_ITS_SIDE else (width, height)
            if image.size != (across, down):
                image.draft(None, (2 * across, 2 * down))
            if turn != 1:
                image = image.transpose(_TURNS[turn])
            if image.mode in ("P", "PA"):
                image = image.convert("RGBA")
            image = image.convert("RGB")
            if image.size != (width, height):
                image = image.resize((width, height), Image.Resampling.BILINEAR, box=_middle(image.size, (width, height)))
            return np.asarray(image)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything: OSError, SyntaxError, struct.error, ...
        # Of the file system: Pillow's own have no number, and a damaged offset is no valid one.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise DataError(f"{path} cannot be read ({error.strerror}); check the file and its permissions") from error
        raise CorruptImage(
            f"{path}: corrupt image ({error}); replace it, or train with --skip-corrupt, which leaves such images out"
        ) from error


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation in the header of an image, from 1 (upright) to 8; `getexif` would decode a PNG for it."""
    if image.format == "TIFF":  # which Pillow turns itself
        return 1
    data = image.info.get("exif", b"")
    try:
        data = data.removeprefix(b"Exif\0\0")
        order = {b"II": "<", b"MM": ">"}[data[:2]]
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, start)
        for entry in range(count):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", data, start + 2 + 12 * entry)
            if tag == _ORIENTATION:
                return value if value in _TURNS else 1
    except (struct.error, KeyError, AttributeError, TypeError):
        pass  # the pixels can be whole all the same
    return 1


def _middle(size: tuple[int, int], shape: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the largest box of the proportions of `shape` (W, H) in the middle of an image of `size` (W, H)."""
    scale = min(size[0] / shape[0], size[1] / shape[1])
    # A side that is taken whole could come out longer than it is, by rounding.
    sides = [min(scale * side, whole) for side, whole in zip(shape, size)]
    left, top = ((whole - side) / 2 for whole, side in zip(size, sides))
    return left, top, left + sides[0], top + sides[1]


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
        DataError: a file cannot be read, or is corrupt and `skip_corrupt` is False.
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
            except CorruptImage as error:
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
