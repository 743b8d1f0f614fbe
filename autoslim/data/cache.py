"""Decoded pixels kept between runs. A cache that cannot be used costs time, never the run."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from autoslim.errors import RunError
from autoslim.files import atomic_write

log = logging.getLogger("autoslim")


def cache_folder(cache_dir: str | os.PathLike | None) -> Path:
    """Return `cache_dir`, else $AUTOSLIM_CACHE, else ~/.cache/autoslim."""
    return Path(cache_dir or os.environ.get("AUTOSLIM_CACHE") or "~/.cache/autoslim").expanduser()


def cache_key(root: Path, files: Iterable[tuple[str, int, int]], *options: object) -> str:
    """Digest a folder, (path in it, bytes, mtime in ns) of every file, and whatever else decides the pixels."""
    digest = hashlib.sha256(repr(("autoslim.images/2", *options)).encode())
    digest.update(os.fsencode(root.resolve()) + b"\n")
    for path, size, mtime in files:
        digest.update(os.fsencode(path) + f"\0{size}\0{mtime}\n".encode())
    return digest.hexdigest()[:32]


def read_array(path: Path, dtype: type) -> np.ndarray | None:
    """Map a .npy file of this dtype into memory; None where it is missing, truncated or something else."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        log.warning("%s: not a complete cache file (%s); decoding the images again", path, error)
        return None
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        log.warning("%s: not a cache file of this program; decoding the images again", path)
        return None
    return array


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file in one step; where that fails, log a warning and leave nothing behind."""
    try:
        with atomic_write(path, "wb") as file:
            np.save(file, array, allow_pickle=False)
    except RunError as error:
        log.warning("cannot cache decoded images (%s); they will be decoded again next time", error)
