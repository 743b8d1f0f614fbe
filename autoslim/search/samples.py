"""Labelled inputs that are gone through many times, batch by batch."""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from autoslim.channels.trace import to_device
from autoslim.data.loader import Loader


class Samples:
    """Batches of `(inputs, labels)` on a device, read as often as it takes.

    What a `Loader` gives as it is stored is kept so, and turned into floats whenever a batch is read: a quarter of the memory.

    Args:
        batches: `(inputs, labels)` pairs, or inputs `[N, ...]` alone; an input may be several tensors.
        device: where they are kept.
        least: leading batches are taken until they hold this many images; all by default.

    Attributes:
        sizes: images of every batch.
    """

    def __init__(self, batches: Iterable, device: torch.device, *, least: float = math.inf):
        self._prepare = lambda x: x
        if isinstance(batches, Loader) and batches.plain:
            batches, self._prepare = batches.stored(), batches.prepare
        self._stored: list[tuple] = []
        self.sizes: list[int] = []
        for batch in batches:
            x, target = (*batch, None)[:2] if isinstance(batch, (tuple, list)) else (batch, None)
            self._stored.append((to_device(x, device), to_device(target, device)))
            self.sizes.append(images_of(x))
            if self.images >= least:
                break
        # Which stored batch a batch is from, and which images of it.
        self._rows: list[tuple[int, slice | Tensor]] = [(i, slice(n)) for i, n in enumerate(self.sizes)]
        self._order: Tensor | None = None

    @classmethod
    def of(cls, batches: Iterable, device: torch.device, **options) -> "Samples":
        """Return samples as they are, and others in new ones."""
        return batches if isinstance(batches, cls) else cls(batches, device, **options)

    @property
    def images(self) -> int:
        """How many images all batches hold."""
        return sum(self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[tuple]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> tuple:
        part, rows = self._rows[i]
        x, target = _take(self._stored[part], rows)
        return self._prepare(x), target

    def shapes(self) -> set[tuple]:
        """Return the shapes that inputs and labels of one image have, the labels' last."""
        return {tuple(t.shape[1:] for t in tree_leaves(batch) if isinstance(t, Tensor)) for batch in self._stored}

    def cut(self, size: int, *, most: float = math.inf) -> "Samples":
        """Return the leading images, `most` at most, in batches of no more than `size`; the memory is shared."""
        cut = self._alike()
        for part, (x, _) in enumerate(self._stored):
            end = int(min(images_of(x), most - cut.images))
            for start in range(0, end, size):
                cut._add(part, slice(start, min(start + size, end)))
        return cut

    def arranged(self, order: Tensor, size: int) -> "Samples":
        """Return all images in another order, of their places as they were given, in batches of `size`.

        They are brought into one piece of memory the first time; it is shared from then on.
        """
        arranged = self._alike()
        if len(self._stored) > 1:
            joined = tree_map(lambda *parts: torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0], *self._stored)
            arranged._stored = [joined]
        arranged._order = order
        device = next(t.device for t in tree_leaves(self._stored) if isinstance(t, Tensor))
        for rows in order.to(device).split(size):
            arranged._add(0, rows)
        return arranged

    def as_given(self, values: Tensor) -> Tensor:
        """Bring values `[..., N]` of all images into the order in which the images were given."""
        return values if self._order is None else values[..., self._order.argsort()]

    def _alike(self) -> "Samples":
        alike = object.__new__(Samples)
        alike._prepare, alike._stored, alike._order = self._prepare, self._stored, self._order
        alike.sizes, alike._rows = [], []
        return alike

    def _add(self, part: int, rows: slice | Tensor) -> None:
        self._rows.append((part, rows))
        self.sizes.append(rows.stop - rows.start if isinstance(rows, slice) else len(rows))


def images_of(x) -> int:
    """Return how many images the inputs of a network are."""
    return next(len(t) for t in tree_leaves(x) if isinstance(t, Tensor))


def _take(batch: tuple, rows: slice | Tensor) -> tuple:
    return tree_map(lambda t: t[rows] if isinstance(t, Tensor) else t, batch)
