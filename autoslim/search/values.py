"""What is known of the base of a step and of its candidates, kept from step to step."""

import contextlib
import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from autoslim.cost.amounts import KINDS

log = logging.getLogger("autoslim")
Key = tuple[str | None, str, int]
Found = TypeVar("Found")


class Values:
    """Values of operations, by `(name, what, batch)`: of the base (None) or a candidate, what it was run for, and the batch.

    Those that it was run for to "calibrate" are all kept, so that all batches know the same: their statistics are combined.
    Those to "score" are kept as far as there is room.

    Attributes:
        keep: operations whose values are kept, of the base (None) and of candidates.
        held: bytes that values to score take.
    """

    def __init__(self):
        self.keep: Mapping[str | None, frozenset[int]] = {}
        self.held = 0
        self._room = 0.0
        self._found_room = math.inf  # that a GPU turned out to have
        self._known: dict[Key, dict[int, object]] = {}

    def __getitem__(self, key: Key) -> Mapping[int, object]:
        """Return what is known, by operation."""
        return self._known.get(key, {})

    def choose(self, keep: Mapping[str | None, frozenset[int]], room: float) -> None:
        """Choose the operations whose values are kept, and how many bytes those to score may take."""
        self.keep, self._room = keep, min(room, self._found_room)
        self._replace({key: _of(keep[key[0]], known) for key, known in self._known.items()})

    def put(self, key: Key, values: Mapping[int, object]) -> None:
        """Keep those of some values that are to be kept, in place of what was known; where there is no room, leave that."""
        new = _of(self.keep[key[0]], values)
        if key[1] == "score":
            more = _bytes(new) - _bytes(self[key])
            if more > 0 and self.held + more > self._room:
                return
            self.held += more
        self._known[key] = new

    def with_room(self, work: Callable[[], Found]) -> Found:
        """Return what some work returns; where a GPU runs out of memory, keep half as much from then on, and do it again.

        Raises:
            torch.cuda.OutOfMemoryError: it runs out though nothing to score is kept.
        """
        while True:
            before, known = dict(self._known), self.held
            try:
                return work()
            except torch.cuda.OutOfMemoryError:
                if not self.held:
                    raise
            # Not while the exception is handled, which holds on to what the work had made.
            self._room = self._found_room = self.held / 2
            self._replace(before)
            torch.cuda.empty_cache()
            left, known = (KINDS["memory"].format(size, 3) for size in (self.held, known))
            log.warning("the GPU ran out of memory: %s are kept of %s, and more is computed again", left, known)

    def clear(self) -> None:
        """Forget everything."""
        self._found_room = math.inf
        self._replace({})

    def forget(self, name: str) -> dict[Key, dict[int, object]]:
        """Forget what is known of a candidate, and return it."""
        known = {key: values for key, values in self._known.items() if key[0] == name}
        self._replace({key: values for key, values in self._known.items() if key[0] != name})
        return known

    def advance(self, winner: str, narrow: Callable[[Mapping[int, object]], dict[int, object]]) -> None:
        """Take a candidate's values for the base's, and of all others what `narrow` leaves of them."""
        of_winner = self.forget(winner)
        for key in list(self._known):  # one after another, as a narrowed value may be a copy
            self._known[key] = narrow(self._known.pop(key))
        for (_, what, batch), values in of_winner.items():
            self._known.setdefault((None, what, batch), {}).update(values)
        self._replace(self._known)

    def arrange(self, before: Sequence[Tensor], after: Sequence[Tensor], own: Collection[int], moving: Collection[int]) -> None:
        """Let values to score go along with their images; those of a batch whose images are not all known are forgotten.

        Args:
            before, after: the images of every batch, so far and from now on, as places among all of them; batches whose images
                change are of one size.
            own: batches that this process runs.
            moving: operations whose values are of an image each, `[N, ...]`, in memory without gaps; others are forgotten, and
                what it takes too much room to copy.
        """
        changed = {b for b, (old, new) in enumerate(zip(before, after, strict=True)) if not torch.equal(old, new)}
        left: dict[str | None, dict[int, dict[int, object]]] = {}  # what is known of batches that change, by name and batch
        for key in [key for key in self._known if key[1] == "score" and key[2] in changed]:
            left.setdefault(key[0], {})[key[2]] = self._known.pop(key)
        ways: dict[tuple[int, ...], dict[int, Tensor]] = {}
        for name, batches in left.items():
            for i in self.keep[name]:
                held = self.held - sum(map(_bytes, batches.values()))
                parts = {b: values.pop(i) for b, values in batches.items() if i in values}
                self.held = held + sum(map(_bytes, batches.values()))
                size = sum(part.nbytes for part in parts.values()) if i in moving else 0
                if not size or self.held + 2 * size > self._room:
                    continue
                if (known := tuple(parts)) not in ways:
                    rows = _rows(before, known, {b: after[b] for b in changed.intersection(own)})
                    ways[known] = {b: row.to(parts[known[0]].device) for b, row in rows.items()}
                with contextlib.suppress(torch.cuda.OutOfMemoryError):
                    for b, value in _moved(parts, ways[known]).items():
                        self._known.setdefault((name, "score", b), {})[i] = value
                        self.held += value.nbytes
        self._replace(self._known)

    def _replace(self, known: dict[Key, dict[int, object]]) -> None:
        self._known = known
        sizes = {key: _bytes(values) for key, values in known.items() if key[1] == "score"}
        self.held = sum(sizes.values())
        for key in sorted(sizes, key=lambda key: -key[2]):  # the last batches are seen by fewest
            if self.held <= self._room:
                break
            self.held -= sizes[key]
            del known[key]


def _rows(before: Sequence[Tensor], known: Iterable[int], batches: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Return the rows of images among those of known batches, for batches of which all are known."""
    joined = torch.cat([before[b] for b in known])
    row = torch.full((sum(map(len, before)),), -1)
    row[joined] = torch.arange(len(joined))
    return {b: row[images] for b, images in batches.items() if (row[images] >= 0).all()}


def _moved(parts: dict[int, Tensor], rows: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Return of the joined parts, which are given away, the rows of every batch, laid out in memory as they are."""
    layout = torch.empty_like(next(iter(parts.values())), device="meta")
    joined = torch.cat(list(parts.values()))
    parts.clear()
    found = {}
    for b, of_batch in rows.items():
        found[b] = torch.empty_like(layout, device=joined.device)
        torch.index_select(joined, 0, of_batch, out=found[b])
    return found


def _of(keep: Collection[int], values: Mapping[int, object]) -> dict[int, object]:
    return {i: value for i, value in values.items() if i in keep}


def _bytes(values: Mapping[int, object]) -> int:
    """Return the bytes that values take; what shares its memory is counted once."""
    stored = (leaf.untyped_storage() for value in values.values() for leaf in tree_leaves(value) if isinstance(leaf, Tensor))
    return sum({storage.data_ptr(): storage.nbytes() for storage in stored}.values())
