"""Batches of normalised, augmented images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Generator, Tensor

from autoslim.data import augment
from autoslim.data.images import FileImages, ImageSet, height_and_width
from autoslim.errors import DataError

CROPS = ("none", "pad", "resized")


class Loader:
    """Iterate over images in batches: x float32 [B, C, H, W] (channels-last in memory on a GPU), y int64 [B].

    An epoch's order and augmentation depend on nothing but `seed` and the epoch's number, so a run that is resumed
    with `set_epoch` sees what it would have seen. Without it, each pass over the loader is the next epoch. torch's
    global random state is neither read nor changed.

    Args:
        images: what to iterate over.
        batch_size: B; the last batch may be smaller.
        mean, std: of each channel, over pixels scaled to [0, 1], as from `channel_statistics`.
        crop: "none" takes the middle `image_size` pixels, as evaluation does; "pad" a random window after adding
            `pad` pixels of the mean colour (0 once normalised) on each side; "resized" scales a random box.
        pad: pixels, for "pad".
        min_scale: least share of the area that a box covers, for "resized".
        flip: mirror half of the images left to right.
        image_size: (H, W) of the images that come out, or the side of square ones; None keeps the stored size.
        shuffle: draw a new order every epoch.
        seed: of the order and of the augmentation.
        device: where the batches are computed and stay.
        drop_last: leave out a smaller last batch.

    Raises:
        DataError: an option is out of its range, or there would be no batch.
    """

    def __init__(
        self,
        images: ImageSet | FileImages,
        *,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        crop: str = "none",
        pad: int = 4,
        min_scale: float = 0.25,
        flip: bool = False,
        image_size: int | tuple[int, int] | None = None,
        shuffle: bool = False,
        seed: int = 0,
        device: str | torch.device = "cpu",
        drop_last: bool = False,
    ):
        channels, high, wide = images.image_shape
        if crop not in CROPS:
            raise DataError(f"unknown crop {crop!r}; choose one of {', '.join(CROPS)}")
        if batch_size < 1:
            raise DataError(f"batch size {batch_size} is below 1; pass a number of images")
        if drop_last and batch_size > len(images):
            raise DataError(
                f"batch size {batch_size} leaves no batch of {len(images)} images when a smaller last one is dropped; "
                f"lower it to {len(images)} or keep the last batch"
            )
        if not len(images):
            raise DataError("the image set is empty; a loader needs at least one image")
        if len(mean) != channels or len(std) != channels or min(std) <= 0:
            raise DataError(f"mean {mean} and std {std} must give {channels} numbers each, std above 0")
        if pad < 0:
            raise DataError(f"pad {pad} is below 0; pass a number of pixels")
        if not 0 < min_scale <= 1:
            raise DataError(f"min_scale {min_scale} must be above 0 and at most 1")
        size = height_and_width(image_size) or (high, wide)
        if not (1 <= size[0] <= high and 1 <= size[1] <= wide):
            raise DataError(
                f"image size {image_size} is not between 1 and the stored {wide}x{high} pixels; "
                f"load the data with image_size={image_size}"
            )
        self.images = images
        self.batch_size = batch_size
        self.crop = crop
        self.pad = pad
        self.min_scale = min_scale
        self.flip = flip
        self.size = size
        self.shuffle = shuffle
        self.seed = seed
        self.device = torch.device(device)
        self.drop_last = drop_last
        self.epoch = 0
        centre, spread = torch.tensor(mean), torch.tensor(std)
        self._fill = (centre * 255).round().to(torch.uint8).to(self.device)
        self._scale = (1 / (255 * spread)).to(self.device)
        self._shift = (-centre / spread).to(self.device)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        whole, rest = divmod(len(self.images), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass epoch number `epoch`, counted from 0."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        return self._batches(epoch)

    @property
    def plain(self) -> bool:
        """Whether every pass gives the same images, in the order in which they are stored."""
        return self.crop == "none" and not self.flip and not self.shuffle

    def stored(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of a plain loader as bytes, for `prepare`: uint8 [B, H, W, C] and int64 [B], on the device."""
        for pixels, labels in self._read(torch.arange(len(self.images))):
            yield augment.centre_crop(pixels, self.size), labels

    def prepare(self, pixels: Tensor) -> Tensor:
        """Turn bytes [B, H, W, C] into what the loader gives: normalised float32 [B, C, H, W]."""
        scale, shift = self._scale.to(pixels.device), self._shift.to(pixels.device)
        return _laid_out(augment.normalise(pixels, scale, shift))

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = seeded_generator(self.seed, epoch)
        count = len(self.images)
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        for pixels, labels in self._read(order):
            yield _laid_out(self._augment(pixels, generator)), labels

    def _read(self, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield uint8 [B, H, W, C] and labels on the device."""
        parts = order.split(self.batch_size)[: len(self)]
        for indices, pixels in zip(parts, self._fetched(parts), strict=True):
            labels = self.images.labels[indices].to(self.device)
            yield to_device(pixels, self.device).permute(0, 2, 3, 1), labels

    def _fetched(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the pixels of each part; those on disk are decoded while the part before is in use."""
        if isinstance(self.images, ImageSet):
            yield from map(self.images.fetch, parts)
            return
        with ThreadPoolExecutor(1) as ahead:
            waiting = ahead.submit(self.images.fetch, parts[0])
            for part in parts[1:]:
                pixels, waiting = waiting.result(), ahead.submit(self.images.fetch, part)
                yield pixels
            yield waiting.result()

    def _augment(self, pixels: Tensor, generator: Generator) -> Tensor:
        """Turn uint8 [B, H, W, C] into normalised float32 [B, *size, C]."""
        batch, high, wide, _ = pixels.shape
        flips = augment.draw_flips(batch, generator) if self.flip else None
        if self.crop == "resized":
            boxes = augment.draw_boxes(batch, high, wide, self.min_scale, generator)
            floats = augment.normalise(pixels, self._scale, self._shift)
            return augment.resize_boxes(floats, boxes, flips, self.size)
        if self.crop == "pad":
            top = torch.randint(high + 2 * self.pad - self.size[0] + 1, (batch,), generator=generator)
            left = torch.randint(wide + 2 * self.pad - self.size[1] + 1, (batch,), generator=generator)
            pixels = augment.cut_windows(pixels, top, left, flips, self.size, self.pad, self._fill)
        else:
            pixels = augment.centre_crop(pixels, self.size)
            if flips is not None:
                still = torch.zeros(batch, dtype=torch.int64)
                pixels = augment.cut_windows(pixels, still, still, flips, self.size, 0, self._fill)
        return augment.normalise(pixels, self._scale, self._shift)


def _laid_out(floats: Tensor) -> Tensor:
    """Return [B, H, W, C] as [B, C, H, W], in the memory layout that a device takes best."""
    x = floats.permute(0, 3, 1, 2)
    # On CPUs, channels-last convolutions whose channels are no multiple of 8 overwrite memory (seen with torch 2.15).
    return x.clone(memory_format=torch.contiguous_format) if x.device.type == "cpu" else x


def seeded_generator(seed: int, epoch: int) -> Generator:
    """Return a generator whose numbers depend on both, without epochs of neighbouring seeds coinciding."""
    state = np.random.SeedSequence([seed % 2**64, epoch]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def to_device(pixels: Tensor, device: torch.device) -> Tensor:
    """Copy to `device`; to a GPU through pinned memory, so that the copy does not hold up the CPU."""
    return pixels.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else pixels.to(device)
