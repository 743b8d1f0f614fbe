"""What a data set is called, and the call that reads it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from autoslim.allocator import machine_memory
from autoslim.data.custom import load_custom
from autoslim.data.folder import load_folder
from autoslim.data.images import FileImages, ImageSet, height_and_width
from autoslim.data.standard import TORCHVISION_SETS, load_digits, load_torchvision
from autoslim.errors import DataError

FORMS = "digits, cifar10:DIR, cifar100:DIR, fashion-mnist:DIR, folder:DIR or pkg.module:function"


@dataclass(frozen=True)
class Data:
    """A classification data set: images to train on, images only the final evaluation may see, class names.

    `image_size` is the (H, W) that was asked for; photos are stored larger than that, to leave room for crops. `original_size` is
    the (H, W) that images came in, of a folder that of the first one. `digest` tells which training images there are and in
    which order: by labels and pixels, in a folder by labels, paths and file sizes.
    """

    train: ImageSet | FileImages
    test: ImageSet | FileImages
    classes: tuple[str, ...]
    image_size: tuple[int, int] | None = None
    original_size: tuple[int, int] | None = None
    digest: str = ""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) that a network is to see: `image_size` where one was asked for, else as stored."""
        channels, *stored = self.train.image_shape
        return channels, *(self.image_size or stored)


def load_data(
    spec: str,
    *,
    image_size: int | tuple[int, int] | None = None,
    skip_corrupt: bool = False,
    cache_dir: str | os.PathLike | None = None,
    memory_limit: int | None = None,
) -> Data:
    """Read a data set; nothing is ever downloaded.

    Args:
        spec: `digits` (8x8 grey images that come with scikit-learn), `cifar10:DIR`, `cifar100:DIR`,
            `fashion-mnist:DIR` (as torchvision stores them), `folder:DIR` (train/CLASS/* and test/CLASS/* or
            val/CLASS/*), or `pkg.module:function` (returns train and test; the working directory is searched too).
        image_size: (H, W) of the images a network is to see, or the side of square ones. Images of a folder are scaled until
            they cover it and cropped; from 96 pixels on they are stored with a margin of 256 : 224. Others are resized.
        skip_corrupt: leave out corrupt images of a folder, with a logged warning, instead of raising.
        cache_dir: where decoded folders are kept; $AUTOSLIM_CACHE, else ~/.cache/autoslim.
        memory_limit: bytes of pixels beyond which a folder is decoded batch by batch; 8 GiB by default, and no more than a third
            of the memory there is.

    Raises:
        DataError: the data set is unknown, missing, incomplete or damaged.
    """
    size = height_and_width(image_size)
    if size is not None and min(size) < 1:
        raise DataError(f"image size {image_size} is below 1; pass a number of pixels")
    if memory_limit is None:
        memory_limit = int(min(8 * 2**30, machine_memory() / 3))
    files = None
    scheme, _, place = spec.partition(":")
    if spec == "digits":
        train, test, classes = load_digits()
    elif scheme in (*TORCHVISION_SETS, "folder"):
        if not place:
            raise DataError(f"data set {spec!r} names no folder; write {scheme}:DIR")
        root = Path(place).expanduser()
        try:
            if scheme == "folder":
                train, test, classes, original, files = load_folder(
                    root,
                    size=size,
                    skip_corrupt=skip_corrupt,
                    cache_dir=cache_dir,
                    memory_limit=memory_limit,
                )
            else:
                train, test, classes = load_torchvision(scheme, root)
        except OSError as error:
            raise DataError(f"data set {spec!r} cannot be read: {error}; check the path and its permissions") from error
    elif place and scheme and scheme != "digits":
        try:
            train, test, classes = load_custom(spec)
        except ImportError as error:
            raise DataError(f"data set {spec!r} cannot be imported: {error}; known forms are {FORMS}") from error
        except DataError:
            raise
        except Exception as error:  # the user's own code may raise anything
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise DataError(f"data set {spec!r} failed in its own code with {reason}; call it from Python") from error
    else:
        raise DataError(f"unknown data set {spec!r}; known forms are {FORMS}")
    digest = images_digest(train, files)
    if scheme != "folder":
        original = train.image_shape[1:]
        train, test = train.resized(size), test.resized(size)
        if train.image_shape != test.image_shape:
            raise DataError(
                f"{spec}: train images are {list(train.image_shape)}, test images {list(test.image_shape)}; "
                "make them one shape [C, H, W]"
            )
    check_labels(spec, train.labels, test.labels, len(classes))
    return Data(train, test, tuple(classes), size, original, digest)


def images_digest(images: ImageSet | FileImages, files: list[tuple[str, int]] | None) -> str:
    """Digest labels and pixels of images, or in place of their pixels the paths and bytes of the files they came from."""
    sha = hashlib.sha256(images.labels.numpy().tobytes())
    if files is not None:
        for path, size in files:
            sha.update(os.fsencode(path) + f"\0{size}\n".encode())
        return sha.hexdigest()[:16]
    for part in torch.arange(len(images)).split(1024):
        sha.update(images.fetch(part).permute(0, 2, 3, 1).numpy().tobytes())
    return sha.hexdigest()[:16]


def check_labels(spec: str, train: torch.Tensor, test: torch.Tensor, classes: int) -> None:
    """Raise DataError unless both parts have images, labels are 0..classes-1, and classes can be told apart."""
    for part, labels in (("train", train), ("test", test)):
        if not len(labels):
            raise DataError(f"{spec}: the {part} set is empty; it needs at least one image")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise DataError(f"{spec}: {part} labels run from {low} to {high}; {classes} classes allow 0 to {classes - 1}")
    if classes < 2:
        raise DataError(f"{spec}: only one class; two or more are needed to classify")
