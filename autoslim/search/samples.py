"""Labelled inputs that are gone through many times, batch by batch."""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from autoslim.channels.trace import to_device
from autoslim.data.loader import Loader
from autoslim.errors import DataError
from autoslim.training.steps import IGNORED

# Batches of a strand, see `most_first`, at least. With half as many an exact search executes 5 % more multiply-adds.
STRAND = 15


class Samples:
    """Batches of `(inputs, labels)` on a device, read as often as it takes.

    What a `Loader` gives as it is stored is kept so, in one piece, and turned into floats whenever a batch is read: a quarter
    of the memory.

    Args:
        batches: `(inputs, labels)` pairs, or inputs `[N, ...]` alone; an input may be several tensors.
        device: where they are kept.
        least: leading batches are taken until they hold this many images; all by default.
        labels: whether labels are kept; batches have None in their place otherwise.

    Attributes:
        sizes: images of every batch.
    """

    def __init__(self, batches: Iterable, device: torch.device, *, least: float = math.inf, labels: bool = True):
        self._prepare = lambda x: x
        self._piece: tuple | None = None  # of memory that all stored batches are parts of
        own = isinstance(batches, (Loader, Samples, list, tuple))  # other loaders may give the next batch in the same memory
        if isinstance(batches, Loader) and batches.plain:
            batches, self._prepare = self._in_one_piece(batches, device, least, labels), batches.prepare
        self._stored: list[tuple] = []
        # Which stored batch a batch is from, and which images of it; None for all.
        self._rows: list[tuple[int, slice | Tensor | None]] = []
        self.sizes: list[int] = []
        for batch in batches:
            x, target = (*batch, None)[:2] if isinstance(batch, (tuple, list)) else (batch, None)
            if not own:
                x, target = tree_map(partial(_of_its_own, device), (x, target if labels else None))
            self._stored.append((to_device(x, device), to_device(target, device) if labels else None))
            self._rows.append((len(self._rows), None))
            self.sizes.append(images_of(x))
            if self.images >= least:
                break

    def _in_one_piece(self, loader: Loader, device: torch.device, least: float, labels: bool) -> Iterator[tuple]:
        """Yield the leading batches of a plain loader, as they are stored; joining them later copies nothing."""
        size, most = loader.batch_size, len(loader.images)
        count = min(most, size * min(len(loader), math.ceil(min(least, most) / size)))
        done = 0
        for batch in loader.stored():
            if self._piece is None:
                x, target = (torch.empty((count, *t.shape[1:]), dtype=t.dtype, device=device) for t in batch)
                self._piece = x, target if labels else None
            part = slice(done, done + len(batch[0]))
            x[part], target[part] = batch
            yield x[part], target[part]
            done = part.stop

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
        x, target = self._stored[part]
        if rows is not None:
            x, target = tree_map(lambda t: t[rows] if isinstance(t, Tensor) else t, (x, target))
        return self._prepare(x), target

    def shapes(self) -> set[tuple]:
        """Return the shapes that inputs and labels of one image have, the labels' last; numbers among the inputs are told apart."""
        return {_shapes(batch) for batch in self._stored}

    def of_every_size(self, count: int) -> dict[tuple, object]:
        """Return a few inputs of every size that inputs have, by what `shapes` says: `count`, where a batch has so many.

        Where all images are of one size they may be of several batches.
        """
        if len(shapes := {_shapes(x) for x, _ in self._stored}) == 1:
            return {shapes.pop(): self.leading(count)[0][0]}
        found: dict[tuple, object] = {}
        for x, _ in self._stored:
            size = _shapes(x)
            if size not in found or images_of(found[size]) < min(count, images_of(x)):
                found[size] = self._prepare(first_of(x, count))
        return found

    def per_image(self) -> bool:
        """Tell whether there is a label, or a map of labels, for every image."""
        labels = [(x, target) for x, target in self._stored if isinstance(target, Tensor)]
        return all(target.dim() > 0 and len(target) == images_of(x) for x, target in labels)

    def labelled(self) -> float:
        """Return which part of the labels is not `IGNORED`; 1 where they are no tensors."""
        labels = [target for _, target in self._stored if isinstance(target, Tensor)]
        total = sum(target.numel() for target in labels)
        return sum((target.long() != IGNORED).sum().item() for target in labels) / total if total else 1.0

    def labels_of_one(self) -> float:
        """Return how many labels an image has on average that are not `IGNORED`, where all have as many."""
        *_, shape = next(iter(self.shapes()))
        return self.labelled() * (math.prod(shape) if isinstance(shape, torch.Size) else 1)

    def leading(self, count: int) -> "Samples":
        """Return the first images that were stored as one batch: `count` of them where all are of one size, else of the first batch."""
        parts = [self._stored[0]]
        if len(self.shapes()) == 1:
            for part in self._stored[1:]:
                if sum(images_of(x) for x, _ in parts) >= count:
                    break
                parts.append(part)
        whole = self._with(parts, [(i, None) for i in range(len(parts))], [images_of(x) for x, _ in parts])
        return whole.joined().cut(count, most=count)

    def joined(self) -> "Samples":
        """Return all images as one batch, in one piece of memory."""
        if len(self._stored) == 1:
            return self
        piece = self._piece or tree_map(
            lambda *parts: torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0], *self._stored
        )
        return self._with([piece], [(0, None)], [self.images])

    def cut(self, size: int, *, most: float = math.inf, alike: bool = False) -> "Samples":
        """Return the leading images as they were given, `most` at most, in batches of no more than `size`.

        The memory is shared.

        Args:
            alike: a batch is cut into parts of about one size, and where `most` would leave less than half a batch that is left
                out, so that none is small.
        """
        rows: list = []
        sizes: list[int] = []
        for part, (x, _) in enumerate(self._stored):
            end = int(min(images_of(x), most - sum(sizes)))
            if alike and sizes and end < min(images_of(x), size / 2):
                break
            count = -(-end // size)
            borders = [end * i // count for i in range(count)] if alike else range(0, end, size)
            for start, stop in pairwise([*borders, end]):
                rows.append((part, slice(start, stop)))
                sizes.append(stop - start)
        return self._with(self._stored, rows, sizes)

    def reordered(self, order: Sequence[int]) -> "Samples":
        """Return the same batches in another order. The memory is shared."""
        return self._with(self._stored, [self._rows[i] for i in order], [self.sizes[i] for i in order])

    def arranged(self, order: Sequence[Tensor]) -> "Samples":
        """Return joined images in other batches: for each, the places of its images as they were given.

        The memory is shared.
        """
        (batch,) = self._stored
        device = next(t.device for t in tree_leaves(batch) if isinstance(t, Tensor))
        return self._with(self._stored, [(0, places.to(device)) for places in order], [len(places) for places in order])

    def _with(self, stored: list, rows: list, sizes: list[int]) -> "Samples":
        samples = object.__new__(Samples)
        samples._prepare, samples._stored, samples._rows, samples.sizes = self._prepare, stored, rows, sizes
        samples._piece = None
        return samples


def _shapes(values) -> tuple:
    return tuple(t.shape[1:] if isinstance(t, Tensor) else repr(t) for t in tree_leaves(values))


def _of_its_own(device: torch.device, value):
    return value.to(device, copy=True) if isinstance(value, Tensor) else value


def images_of(x) -> int:
    """Return how many images the inputs of a network are.

    Raises:
        DataError: there is no tensor among them.
    """
    count = next((len(t) for t in tree_leaves(x) if isinstance(t, Tensor) and t.dim()), None)
    if count is None:
        raise DataError(f"images are {type(x).__name__}, not a tensor [N, C, H, W]; pass batches of tensors")
    return count


def first_of(x, count: int):
    """Return the inputs of the first images, `count` of them."""
    return tree_map(lambda t: t[:count] if isinstance(t, Tensor) else t, x)


def examples(count: int, *several: Samples) -> list:
    """Return a few inputs of every size that inputs have, the one that has most numbers an image first."""
    found: dict[tuple, object] = {}
    for samples in several:
        for size, x in samples.of_every_size(count).items():
            found[size] = max(found.get(size, x), x, key=images_of)
    return sorted(found.values(), key=values_of_one, reverse=True)


def values_of_one(x) -> int:
    """Return how many numbers the inputs of one image are."""
    return sum(t[:1].numel() for t in tree_leaves(x) if isinstance(t, Tensor))


def most_first(order: Sequence[Tensor], costs: Tensor) -> list[Tensor]:
    """Return the batches of images in another order, those that cost most first.

    A first batch of another size than the others stays as it is. The others are dealt to 1, 2, 4, ... strands in turn, as many as
    have `STRAND` batches each, or two of two batches, and images are sorted within a strand: as many processes that take batches
    in turn keep their images, and with them what they know of those.

    Args:
        order: for every batch, the places of its images; batches are of one size, but for the first.
        costs: what each image costs `[N]`, by place.
    """
    size = len(order[-1])
    first = int(len(order[0]) != size)
    batches = len(order) - first
    strands = max(1 << max(0, (batches // STRAND).bit_length() - 1), min(2, batches // 2))
    new = list(order)
    for start in range(first, first + strands):
        images = torch.cat(list(order[start::strands])).sort().values
        new[start::strands] = images[costs[images].argsort(descending=True, stable=True)].split(size)
    return new
