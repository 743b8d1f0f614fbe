"""Labelled images behind one `fetch`, whether they lie in memory or on disk."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from autoslim.data.decode import decode_files
from autoslim.errors import DataError


def height_and_width(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Return the (H, W) that an image size stands for: one number is the side of square images."""
    return (image_size, image_size) if isinstance(image_size, int) else image_size


class ImageSet:
    """Hold labelled images in memory as one uint8 tensor.

    Args:
        images: uint8 [N, C, H, W]; brought to channels-last memory, from which batches are gathered fastest.
        labels: int64 [N].

    Raises:
        DataError: the tensors do not have these types and shapes.
    """

    def __init__(self, images: Tensor, labels: Tensor):
        if images.ndim != 4 or images.dtype != torch.uint8:
            raise DataError(f"images are {images.dtype} {list(images.shape)}; they must be uint8 [N, C, H, W]")
        if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
            raise DataError(f"labels are {labels.dtype} {list(labels.shape)}; {len(images)} images need int64 [{len(images)}]")
        self._pixels = images.permute(0, 2, 3, 1).contiguous()
        self._rows: Tensor | None = None
        self.labels = labels

    @property
    def images(self) -> Tensor:
        """uint8 [N, C, H, W]; a fresh copy where this set is a subset of another."""
        pixels = self._pixels if self._rows is None else self._pixels[self._rows]
        return pixels.permute(0, 3, 1, 2)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the stored images."""
        _, height, width, channels = self._pixels.shape
        return channels, height, width

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor | Sequence[int]) -> ImageSet:
        """Return the images at `indices`, in that order; the pixels are shared, not copied."""
        indices = torch.as_tensor(indices, dtype=torch.int64)
        chosen = object.__new__(ImageSet)
        chosen._pixels = self._pixels
        chosen._rows = indices if self._rows is None else self._rows[indices]
        chosen.labels = self.labels[indices]
        return chosen

    def resized(self, size: tuple[int, int] | None) -> ImageSet:
        """Return the images at (H, W), bilinear with antialiasing; this set where nothing changes."""
        if size is None or self.image_shape[1:] == size:
            return self
        parts = self.images.split(1024)
        resized = [F.interpolate(part, size, mode="bilinear", antialias=True) for part in parts]
        return ImageSet(torch.cat(resized), self.labels)

    def fetch(self, indices: Tensor) -> Tensor:
        """Copy the images at `indices` (int64 [B]) into uint8 [B, C, H, W], channels-last in memory."""
        rows = indices if self._rows is None else self._rows[indices]
        # Ten times the speed of pixels[rows]: whole images are copied as flat rows.
        flat = self._pixels.view(len(self._pixels), -1).index_select(0, rows)
        return flat.view(len(rows), *self._pixels.shape[1:]).permute(0, 3, 1, 2)


class FileImages:
    """Leave labelled images on disk and decode them batch by batch; otherwise like `ImageSet`.

    Args:
        paths: image files.
        labels: int64 [N].
        size: (H, W) at which they are decoded.

    Raises:
        DataError: from `fetch`, when a file cannot be decoded.
    """

    def __init__(self, paths: Sequence[str], labels: Tensor, size: tuple[int, int]):
        self.paths = np.asarray(paths, dtype=object)
        self.labels = labels
        self.size = size

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the decoded images."""
        return 3, *self.size

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor | Sequence[int]) -> FileImages:
        """Return the images at `indices`, in that order."""
        indices = torch.as_tensor(indices, dtype=torch.int64)
        return FileImages(self.paths[indices.numpy()], self.labels[indices], self.size)

    def fetch(self, indices: Tensor) -> Tensor:
        """Decode the images at `indices` (int64 [B]) to uint8 [B, C, H, W], channels-last in memory."""
        pixels, _ = decode_files(list(self.paths[indices.numpy()]), self.size)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)
