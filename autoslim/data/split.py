"""Held-out images and pixel statistics of an image set."""

from __future__ import annotations

import torch

from autoslim.data.images import FileImages, ImageSet
from autoslim.errors import DataError

STATISTICS_IMAGES = 10_000


def split(images: ImageSet, held_out: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Split images in two, class by class, so that a small set keeps its class balance on both sides.

    Each class gives its share of the held-out images, rounded so that the total is exact and at least one image of
    every class stays. Both parts come in a random order, and together they are the whole.

    Args:
        images: N labelled images.
        held_out: a fraction between 0 and 1 (a float), or a number of images (an int).
        seed: decides which images are held out.

    Returns:
        The remaining images and the held-out ones.

    Raises:
        DataError: nothing would be held out, or some class would have nothing left.
    """
    counts = torch.bincount(images.labels)
    most = int((counts - 1).clamp(min=0).sum())
    whole = isinstance(held_out, int) and not isinstance(held_out, bool)
    if not whole and not 0 < held_out < 1:
        raise DataError(f"held-out fraction {held_out} must lie between 0 and 1; a number of images must be whole")
    wanted = held_out if whole else round(held_out * len(images))
    if not 1 <= wanted <= most:
        amount = f"{held_out}" if whole else f"{held_out} of {len(images)}"
        if not most:
            raise DataError(
                f"cannot hold out any of {len(images)} images: no class has two or more, and each has to keep one; add images"
            )
        raise DataError(
            f"cannot hold out {amount} images: of {len(images)}, between 1 and {most} can be held out "
            "so that every class keeps one; pass such a number, or a fraction (--held-out 0.1)"
        )
    shares = class_shares(counts, wanted)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    labels = images.labels[order]
    is_held = torch.zeros(len(images), dtype=torch.bool)
    for label, share in enumerate(shares.tolist()):
        is_held[(labels == label).nonzero().squeeze(1)[:share]] = True
    return images.subset(order[~is_held]), images.subset(order[is_held])


def class_shares(counts: torch.Tensor, wanted: int) -> torch.Tensor:
    """Divide `wanted` among classes by size: largest remainders first, always fewer than a class has."""
    room = (counts - 1).clamp(min=0)
    exact = counts.double() * wanted / counts.sum()
    shares = torch.minimum(exact.floor().long(), room)
    while (missing := wanted - int(shares.sum())) > 0:
        remainder = (exact - shares).masked_fill(shares >= room, -torch.inf)
        first = remainder.argsort(descending=True, stable=True)[:missing]
        shares[first[shares[first] < room[first]]] += 1
    return shares


def channel_statistics(images: ImageSet | FileImages) -> tuple[list[float], list[float]]:
    """Measure the mean and standard deviation of each channel, over pixels scaled to [0, 1].

    At most 10,000 images are looked at, always the same ones. A channel that is constant gets 1 for its deviation.
    """
    indices = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:STATISTICS_IMAGES]
    counts = torch.zeros(images.image_shape[0], 256, dtype=torch.float64)
    for part in indices.split(256):
        pixels = images.fetch(part)
        for channel, histogram in enumerate(counts):
            histogram += torch.bincount(pixels[:, channel].flatten(), minlength=256)
    levels = torch.arange(256, dtype=torch.float64) / 255
    total = counts.sum(dim=1)
    mean = counts @ levels / total
    variance = (counts * (levels - mean[:, None]).square()).sum(dim=1) / total
    deviation = torch.where(variance > 1e-12, variance.sqrt(), 1.0)
    return mean.tolist(), deviation.tolist()
