"""The channel axis of a tensor as a row of segments, and which segments must have one width (union-find)."""

from dataclasses import dataclass
from math import prod

FIXED = None


@dataclass(frozen=True)
class Segment:
    """A run of channels that keeps its leading part when it is slimmed.

    Attributes:
        source: (producer, part): the producing layer and which part of its output this is; `FIXED` never changes width.
        full: channels of the source part at full width.
        inner: consecutive elements of the axis that stand for one channel (49 after flattening a 7x7 map).
    """

    source: tuple[str, int] | None
    full: int
    inner: int = 1

    @property
    def size(self) -> int:
        """Elements of the axis at full width."""
        return self.full * self.inner


# One axis of a tensor: None where no width can change, else its segments in order. A layout has one entry an axis.
Axis = tuple[Segment, ...] | None
Layout = tuple[Axis, ...]


def fixed(size: int) -> Segment:
    """Return a segment that always keeps its `size` channels."""
    return Segment(FIXED, size)


def axis_size(axis: tuple[Segment, ...]) -> int:
    """Return the elements of an axis at full width."""
    return sum(segment.size for segment in axis)


class NeedCut(Exception):
    """A producer's output must be treated as several parts: the analysis starts again with these cuts (channel offsets)."""

    def __init__(self, producer: str, offsets: set[int]):
        super().__init__(producer)
        self.producer = producer
        self.offsets = offsets


class Mismatch(Exception):
    """Two axes cannot be lined up segment by segment."""


class Ties:
    """Which source parts share one width, and which of those are frozen, with the reasons."""

    def __init__(self, cuts: dict[str, set[int]]):
        self._cuts = cuts
        self._parent: dict[tuple[str, int], tuple[str, int]] = {}
        self._starts: dict[tuple[str, int], int] = {}
        self._reasons: dict[tuple[str, int], list[str]] = {}

    def produce(self, producer: str, channels: int) -> tuple[Segment, ...]:
        """Return the output axis of a layer: one segment a part, in the order of its channels."""
        bounds = [0, *sorted(self._cuts.get(producer, ())), channels]
        axis = []
        for part, (start, end) in enumerate(zip(bounds, bounds[1:])):
            source = (producer, part)
            self._parent.setdefault(source, source)
            self._starts[source] = start
            axis.append(Segment(source, end - start))
        return tuple(axis)

    def root(self, source: tuple[str, int]) -> tuple[str, int]:
        """Return the representative of the source parts that share a width with `source`."""
        while self._parent[source] != source:
            self._parent[source] = self._parent[self._parent[source]]
            source = self._parent[source]
        return source

    def classes(self) -> dict[tuple[str, int], list[tuple[str, int]]]:
        """Return the source parts of each shared width, in the order in which they were produced."""
        classes: dict[tuple[str, int], list[tuple[str, int]]] = {}
        for source in self._parent:
            classes.setdefault(self.root(source), []).append(source)
        return classes

    def reasons(self, source: tuple[str, int]) -> list[str]:
        """Return why the width of `source` is frozen; empty if it is free."""
        root = self.root(source)
        found = [why for other, whys in self._reasons.items() if self.root(other) == root for why in whys]
        return list(dict.fromkeys(found))

    def freeze(self, axis: Axis, why: str) -> None:
        """Keep every segment of an axis at full width."""
        for segment in axis or ():
            if segment.source is not FIXED:
                self._reasons.setdefault(segment.source, []).append(why)

    def tie(self, a: Axis, b: Axis, why: str) -> None:
        """Give two axes one width, segment by segment; what meets a fixed axis is frozen for the reason `why`.

        Raises:
            NeedCut: a segment of one meets several of the other.
        """
        if a is None or b is None:
            self.freeze(a or b, why)
            return
        try:
            for left, right in self._pairs(a, b):
                self._tie_segment(left, right, why)
        except Mismatch:
            self.freeze(a, why)
            self.freeze(b, why)

    def _tie_segment(self, a: Segment, b: Segment, why: str) -> None:
        if a.source is FIXED or b.source is FIXED:
            self.freeze((a, b), why)
        else:
            self._parent[self.root(b.source)] = self.root(a.source)

    def blocks(self, axis: tuple[Segment, ...], count: int) -> list[tuple[Segment, ...]]:
        """Split an axis into `count` blocks of one size, alike in their segments, and tie them.

        Raises:
            NeedCut: a segment reaches over the end of a block.
            Mismatch: the blocks cannot be made alike.
        """
        if axis_size(axis) % count:
            raise Mismatch
        if len(axis) == 1 and axis[0].inner % count == 0:
            # Interleaved channels (a shuffle): every block takes its share of each channel's run.
            return [(Segment(axis[0].source, axis[0].full, axis[0].inner // count),)] * count
        blocks = self.split(axis, [axis_size(axis) // count] * count)
        if all(segment.source is FIXED for segment in axis):
            return blocks
        for block in blocks[1:]:
            if any(s.source is FIXED for s in (*block, *blocks[0])):
                raise Mismatch
            for left, right in self._pairs(blocks[0], block):
                self._tie_segment(left, right, "")
        return blocks

    def split(self, axis: tuple[Segment, ...], sizes: list[int]) -> list[tuple[Segment, ...]]:
        """Cut an axis into consecutive pieces of the given sizes (elements at full width).

        Raises:
            NeedCut: a boundary falls inside a segment.
            Mismatch: a boundary falls inside one channel's run of elements.
        """
        pieces, rest = [], list(axis)
        for size in sizes:
            piece = []
            while size:
                segment = rest.pop(0)
                if segment.size > size:
                    segment, remainder = self._cut(segment, size)
                    rest.insert(0, remainder)
                piece.append(segment)
                size -= segment.size
            pieces.append(tuple(piece))
        return pieces

    def _cut(self, segment: Segment, offset: int) -> tuple[Segment, Segment]:
        if offset % segment.inner:
            raise Mismatch
        if segment.source is FIXED:
            channels = offset // segment.inner
            return Segment(FIXED, channels, segment.inner), Segment(FIXED, segment.full - channels, segment.inner)
        raise self.need_cut(segment, {offset // segment.inner})

    def need_cut(self, segment: Segment, offsets: set[int]) -> NeedCut:
        """Return the exception that asks for cuts at channel offsets inside a segment."""
        start = self._starts[segment.source]
        return NeedCut(segment.source[0], {start + offset for offset in offsets})

    def _pairs(self, a: tuple[Segment, ...], b: tuple[Segment, ...]):
        """Pair the segments of two axes of one size; a longer segment is cut to the length of its partner."""
        if axis_size(a) != axis_size(b):
            raise Mismatch
        left, right = list(a), list(b)
        while left:
            x, y = left.pop(0), right.pop(0)
            if x.inner != y.inner:
                raise Mismatch
            if x.full > y.full:
                x, remainder = self._cut(x, y.size)
                left.insert(0, remainder)
            elif y.full > x.full:
                y, remainder = self._cut(y, x.size)
                right.insert(0, remainder)
            yield x, y

    def even_blocks(self, axis: tuple[Segment, ...], count: int) -> list[tuple[Segment, ...]]:
        """Like `blocks`, but asks for all the cuts of a single free segment at once."""
        only = axis[0]
        plain = len(axis) == 1 and only.source is not FIXED and only.inner == 1
        if plain and count > 1 and only.full % count == 0:
            block = only.full // count
            raise self.need_cut(only, {block * i for i in range(1, count)})
        return self.blocks(axis, count)


def merge(axes: list[Axis], sizes: list[int]) -> Axis:
    """Return the axis that several neighbouring axes become when they are flattened, outermost first.

    Raises:
        Mismatch: two of the axes can change width.
    """
    moving = [i for i, axis in enumerate(axes) if axis is not None]
    if not moving:
        return None
    if len(moving) > 1:
        raise Mismatch
    at = moving[0]
    outer, inner = prod(sizes[:at]), prod(sizes[at + 1 :])
    return tuple(Segment(s.source, s.full, s.inner * inner) for s in axes[at]) * outer
