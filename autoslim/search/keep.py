"""Which values are worth their memory from one step of a search to the next."""

import heapq
import math
from collections import Counter
from collections.abc import Collection, Iterable

from autoslim.search.influence import Influence
from autoslim.search.partial import PartialNet


def kept_of(influence: Influence, group: str, keep: Iterable[int]) -> frozenset[int]:
    """Return those of some operations whose values a candidate has for itself, being others than the base's."""
    return frozenset(keep) & influence.again(group)


class Keeping:
    """Chooses the operations whose values are kept from step to step, for every candidate and for the base.

    Once a group is narrowed, candidates that lie before it go on from what its layers read, or from what the next ones read.
    Taken greedily: next is kept what saves most multiply-adds a byte, as if every group were as likely to be narrowed; what room
    is left goes to values of the base alone. What keeping some values saves is the same at every step, and reckoned once.

    Args:
        partial: the supernet that is run in parts.
    """

    def __init__(self, partial: PartialNet):
        influence, widths = partial.influence, partial.net.widths
        full = tuple(width.full for width in widths)
        self._partial = partial
        self._groups = [width.name for width in widths if len(width.choices) > 1]
        runs = Counter(i for name in self._groups for i in influence.again(name))
        self._macs = {i: count * partial.macs_of([i], full) for i, count in runs.items()}  # of all candidates
        # The values that a group reads are kept together. The network's inputs are not: they are read from the images.
        ways = influence.frontiers, influence.origins
        self._options = {of[name].difference(partial.inputs) for name in self._groups for of in ways}
        every = frozenset().union(*self._options)
        self._own = {name: kept_of(influence, name, every) for name in self._groups}
        # What still holds when a group is narrowed.
        self._holding = {n: every & influence.leading[n] | every - influence.changed[n] for n in self._groups}
        self._macs_behind: dict[frozenset[int], int] = {}
        self._bytes: dict[frozenset[int], int] = {}
        self._worth: dict[frozenset[int], tuple[int, int]] = {}

    def choose(self, images: float, base_images: float, room: float) -> tuple[frozenset[int], frozenset[int]]:
        """Return the operations whose values are to be kept.

        Args:
            images, base_images: examples whose values are kept at the same time, of every candidate and of the base.
            room: bytes.

        Returns:
            those of candidates (each has its own of them: `kept_of`), and those of the base, which are no fewer.
        """
        bytes_of = self._partial.bytes_of
        keep = frozenset()
        now, held_now = self._worth_of(keep)[0], 0
        # What an option saves falls as others are kept: one that stays best when it is reckoned again is the best.
        queue = [(-math.inf, sorted(option), option) for option in self._options]
        heapq.heapify(queue)
        while queue:
            _, order, option = heapq.heappop(queue)
            more = keep | option
            macs, own = self._worth_of(more)
            held_more = images * own + base_images * bytes_of(more)
            if held_more > room:
                continue
            saved = now - macs
            value = -saved / (1 + held_more - held_now)
            if queue and value > queue[0][0]:
                heapq.heappush(queue, (value, order, option))
            elif saved > 0:
                keep, now, held_now = more, macs, held_more
        of_base, of_candidates = keep, images * self._worth_of(keep)[1]
        for option in sorted(self._options, key=lambda option: (bytes_of(option), sorted(option))):
            if of_candidates + base_images * bytes_of(of_base | option) <= room:
                of_base |= option
        return keep, of_base

    def _worth_of(self, keep: frozenset[int]) -> tuple[int, int]:
        """Return the multiply-adds of all candidates, summed over the groups that may have been narrowed, and the bytes that all
        of them keep of one example."""
        if keep not in self._worth:
            macs = kept = 0
            for name in self._groups:
                holding, own = keep & self._holding[name], keep & self._own[name]
                if holding not in self._macs_behind:
                    behind = _behind(self._partial.influence, holding, self._partial.output)
                    self._macs_behind[holding] = sum(self._macs.get(i, 0) for i in behind)
                if own not in self._bytes:
                    self._bytes[own] = self._partial.bytes_of(own)
                macs += self._macs_behind[holding]
                kept += self._bytes[own]
            self._worth[keep] = macs, kept
        return self._worth[keep]


def _behind(influence: Influence, holding: Collection[int], output: int) -> set[int]:
    """Return what lies between values that hold when a group is narrowed, and the output."""
    behind: set[int] = set()
    stack = [output]
    while stack:
        i = stack.pop()
        if i not in behind and i not in holding:
            behind.add(i)
            stack += influence.sources[i]
    return behind
