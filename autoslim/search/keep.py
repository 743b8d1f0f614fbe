"""Which values are worth their memory from one step of a search to the next."""

import heapq
import math
from collections import Counter
from collections.abc import Collection, Iterable
from weakref import WeakKeyDictionary

from autoslim.search.influence import Influence
from autoslim.search.partial import PartialNet


def kept_of(influence: Influence, group: str, keep: Iterable[int]) -> frozenset[int]:
    """Return those of some operations whose values a candidate has for itself, being others than the base's."""
    return frozenset(keep) & influence.again(group)


def worth_keeping(partial: PartialNet, images: float, base_images: float, room: float) -> tuple[frozenset[int], frozenset[int]]:
    """Return the operations whose values are to be kept from step to step, for every candidate and for the base.

    Once a group is narrowed, candidates that lie before it go on from what its layers read, or from what the next ones read.
    What saves most multiply-adds a byte besides what is kept already, were all groups as likely to be narrowed, is kept next;
    what fits after that, for the base alone.

    Args:
        images, base_images: examples whose values are kept at the same time, of every candidate and of the base.
        room: bytes.

    Returns:
        those of candidates (each has its own of them: `kept_of`), and those of the base, which are no fewer.
    """
    if partial not in _KNOWN:
        _KNOWN[partial] = _Worth(partial)
    known = _KNOWN[partial]

    def of_candidates(keep: frozenset[int]) -> float:
        return images * known.of(partial, keep)[1]

    def held(keep: frozenset[int]) -> float:
        return of_candidates(keep) + base_images * partial.bytes_of(keep)

    keep, now, held_now = frozenset(), known.of(partial, frozenset())[0], 0
    # What an option saves falls as others are kept: one that stays best when it is reckoned again is the best.
    queue = [(-math.inf, sorted(option), option) for option in known.options]
    heapq.heapify(queue)
    while queue:
        _, order, option = heapq.heappop(queue)
        more = keep | option
        held_more = held(more)
        if held_more > room:
            continue
        saved = now - known.of(partial, more)[0]
        value = -saved / (1 + held_more - held_now)
        if queue and value > queue[0][0]:
            heapq.heappush(queue, (value, order, option))
        elif saved > 0:
            keep, now, held_now = more, now - saved, held_more
    of_base = keep
    for option in sorted(known.options, key=lambda option: (partial.bytes_of(option), sorted(option))):
        if of_candidates(keep) + base_images * partial.bytes_of(of_base | option) <= room:
            of_base |= option
    return keep, of_base


class _Worth:
    """What keeping values saves, and what memory it takes: the same at every step, of which a search asks much the same.

    Attributes:
        options: operations whose values may be kept, those together that one group reads.
    """

    def __init__(self, partial: PartialNet):
        influence, widths = partial.influence, partial.net.widths
        full = tuple(width.full for width in widths)
        self._groups = [width.name for width in widths if len(width.choices) > 1]
        runs = Counter(i for name in self._groups for i in influence.again(name))
        self._macs = {i: count * partial.macs_of([i], full) for i, count in runs.items()}  # of all candidates
        # The network's inputs are not kept: they are read from the images.
        ways = influence.frontiers, influence.origins
        self.options = {of[name].difference(partial.inputs) for name in self._groups for of in ways}
        every = frozenset().union(*self.options)
        self._own = {name: kept_of(influence, name, every) for name in self._groups}
        # What still holds when a group is narrowed.
        self._holding = {n: every & influence.leading[n] | every - influence.changed[n] for n in self._groups}
        self._macs_behind: dict[tuple, int] = {}
        self._bytes: dict[frozenset[int], int] = {}
        self._known: dict[frozenset[int], tuple[int, int]] = {}

    def of(self, partial: PartialNet, keep: frozenset[int]) -> tuple[int, int]:
        """Return multiply-adds of all candidates, summed over the groups that may have been narrowed, and bytes that they keep of
        an example."""
        if keep in self._known:
            return self._known[keep]
        macs = kept = 0
        for name in self._groups:
            holding, own = keep & self._holding[name], keep & self._own[name]
            if (name, holding) not in self._macs_behind:
                behind = _behind(partial.influence, holding, partial.output)
                self._macs_behind[name, holding] = sum(self._macs.get(i, 0) for i in behind)
            if own not in self._bytes:
                self._bytes[own] = partial.bytes_of(own)
            macs += self._macs_behind[name, holding]
            kept += self._bytes[own]
        self._known[keep] = macs, kept
        return macs, kept


_KNOWN: WeakKeyDictionary[PartialNet, _Worth] = WeakKeyDictionary()


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
