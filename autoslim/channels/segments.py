"""The channel axis of a tensor as a row of segments, and which segments must have one width (union-find)."""

from dataclasses import dataclass
from itertools import accumulate
from math import gcd, lcm, prod

FIXED = None
# A weight's axis ("features.0.weight", 0) and which part of it.
Source = tuple[tuple[str, int], int]


@dataclass(frozen=True)
class Segment:
    """A run of channels that keeps its leading part when it is slimmed.

    Attributes:
        source: the axis of a parameter that these channels come from, and the part of it; `FIXED` never changes width.
        full: channels of the source part at full width.
        inner: consecutive elements of the axis that stand for one channel (49 after flattening a 7x7 map).
    """

    source: Source | None
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


class Refine(Exception):
    """A parameter's axis must be seen as finer parts, or as channels of several elements: the analysis starts again.

    Attributes:
        axis: the axis of a parameter.
        cuts: offsets, in elements, at which a new part begins.
        inner: elements that stand for one channel.
    """

    def __init__(self, axis: tuple[str, int], cuts: set[int] = frozenset(), inner: int = 1):
        super().__init__(axis)
        self.axis = axis
        self.cuts = set(cuts)
        self.inner = inner


class Mismatch(Exception):
    """Two axes cannot be lined up segment by segment."""


class Refinements:
    """What is known so far of how the parameters' axes fall into parts and channels."""

    def __init__(self):
        self.cuts: dict[tuple[str, int], set[int]] = {}
        self.inner: dict[tuple[str, int], int] = {}

    def add(self, wanted: Refine) -> bool:
        """Take up one request; return whether it says anything new."""
        cuts, inner = self.cuts.setdefault(wanted.axis, set()), self.inner.get(wanted.axis, 1)
        new = not (wanted.cuts <= cuts and inner % wanted.inner == 0)
        cuts.update(wanted.cuts)
        self.inner[wanted.axis] = lcm(inner, wanted.inner)
        return new


class Ties:
    """Which source parts share one width, which of those a layer produces, and which are frozen, with the reasons."""

    def __init__(self, refinements: Refinements):
        self._refinements = refinements
        self._parent: dict[Source, Source] = {}
        self._starts: dict[Source, int] = {}
        self._full: dict[Source, int] = {}
        self._inner: dict[tuple[str, int], int] = {}
        self._reasons: dict[Source, list[str]] = {}
        self._multiples: dict[Source, int] = {}
        self._divisible: list[tuple[Axis, int, str]] = []
        self.producers: dict[Source, str] = {}

    def variable(self, axis: tuple[str, int], size: int) -> tuple[Segment, ...]:
        """Return the axis of a parameter: one segment a part, in the order of its elements."""
        cuts, inner = self._refinements.cuts.get(axis, ()), self._refinements.inner.get(axis, 1)
        if size % inner or any(cut % inner for cut in cuts):
            inner = 1  # no whole channels: whoever asked for them meets a mismatch
        self._inner[axis] = inner
        bounds = [0, *sorted(cuts), size]
        row = []
        for part, (start, end) in enumerate(zip(bounds, bounds[1:])):
            source = (axis, part)
            self._parent.setdefault(source, source)
            self._starts[source] = start
            self._full[source] = (end - start) // inner
            row.append(Segment(source, (end - start) // inner, inner))
        return tuple(row)

    def root(self, source: Source) -> Source:
        """Return the representative of the source parts that share a width with `source`."""
        while self._parent[source] != source:
            self._parent[source] = self._parent[self._parent[source]]
            source = self._parent[source]
        return source

    def classes(self) -> dict[Source, list[Source]]:
        """Return the source parts of each shared width that a layer produces, in the order in which they were produced."""
        classes: dict[Source, list[Source]] = {}
        for source in self.producers:
            classes.setdefault(self.root(source), []).append(source)
        return classes

    def reasons(self) -> dict[Source, list[str]]:
        """Return why the widths that are frozen are, by their representatives."""
        found: dict[Source, dict[str, None]] = {}
        for source, whys in self._reasons.items():
            found.setdefault(self.root(source), {}).update(dict.fromkeys(whys))
        return {root: list(whys) for root, whys in found.items()}

    def multiples(self) -> dict[Source, int]:
        """Return what the channels of a part must be a multiple of, by their representatives, where that is not 1."""
        found: dict[Source, int] = {}
        for source, multiple in self._multiples.items():
            root = self.root(source)
            found[root] = lcm(found.get(root, 1), multiple)
        return found

    def spread_cuts(self, wanted: list[Refine]) -> None:
        """Cut what shares a width with a part that is cut in the same way; it would be asked for in the next pass."""
        sharing: dict[Source, list[Source]] = {}
        for source in self._parent:
            sharing.setdefault(self.root(source), []).append(source)
        for need in wanted:
            parts = [source for source in self._parent if source[0] == need.axis] if need.cuts else ()
            for source in parts:
                inner, start = self.inner_of(need.axis), self._starts[source]
                inside = [cut - start for cut in need.cuts if 0 < cut - start < self._full[source] * inner]
                for other in sharing[self.root(source)] if inside else ():
                    scale, first = self.inner_of(other[0]), self._starts[other]
                    self._refinements.add(Refine(other[0], {first + cut // inner * scale for cut in inside}))

    def full_of(self, source: Source) -> int:
        """Return the channels of a part at full width."""
        return self._full[source]

    def parts_of(self, axis: tuple[str, int]) -> int:
        """Return into how many parts the axis of a parameter falls."""
        return len(self._refinements.cuts.get(axis, ())) + 1

    def inner_of(self, axis: tuple[str, int]) -> int:
        """Return how many elements of a parameter's axis stand for one channel."""
        return self._inner.get(axis, 1)

    def produce(self, axis: Axis, layer: str) -> None:
        """Record that a layer's output has these channels: they are worth slimming."""
        for segment in axis or ():
            if segment.source is not FIXED:
                self.producers.setdefault(segment.source, layer)

    def freeze(self, axis: Axis, why: str) -> None:
        """Keep every segment of an axis at full width."""
        for segment in axis or ():
            if segment.source is not FIXED:
                self._reasons.setdefault(segment.source, []).append(why)

    def freeze_source(self, source: Source, why: str) -> None:
        """Keep one source part, and all that share its width, at full width."""
        self._reasons.setdefault(source, []).append(why)

    def row_of(self, sources: list[Source]) -> tuple[Segment, ...]:
        """Return the parts of the first source's axis among some sources that share a width, as a row."""
        axis = sources[0][0]
        return tuple(Segment(s, self._full[s], self.inner_of(axis)) for s in sources if s[0] == axis)

    def can_tie(self, a: tuple[Segment, ...], b: tuple[Segment, ...]) -> bool:
        """Tell whether two axes can be lined up.

        Raises:
            Refine: finer parts must be known first.
        """
        try:
            self._pairs(a, b)
        except Mismatch:
            return False
        return True

    def unfreeze(self, source: Source) -> None:
        """Forget why a shared width was frozen."""
        root = self.root(source)
        for other in [s for s in self._reasons if self.root(s) == root]:
            del self._reasons[other]

    def keep_multiple(self, axis: Axis, count: int, why: str) -> None:
        """Ask that the elements of an axis stay divisible by `count`; `settle` sees to it when all ties are known."""
        if axis is not None:
            self._divisible.append((axis, count, why))

    def settle(self) -> None:
        """Find what widths must be multiples of, width by width; freeze what cannot be divided as it was asked."""
        for axis, count, why in self._divisible:
            terms = self._terms(axis)
            full = {root: 1 if root is FIXED else self._full[root] for root in terms}
            if any(full[root] * total % count for root, total in terms.items()):
                self.freeze(axis, why)
                continue
            for root in terms.keys() - {FIXED}:
                self._multiples[root] = lcm(self._multiples.get(root, 1), count // gcd(count, terms[root]))

    def tie(self, a: Axis, b: Axis, why: str) -> None:
        """Give two axes one width, segment by segment; what meets a fixed axis is frozen for the reason `why`.

        Raises:
            Refine: a segment of one meets several of the other.
        """
        if a is None or b is None:
            self.freeze(a or b, why)
            return
        if a == b:
            return
        try:
            for left, right in self._pairs(a, b):
                self._tie_segment(left, right, why)
        except Mismatch:
            self.freeze(a, why)
            self.freeze(b, why)

    def tie_sizes(self, a: tuple[Segment, ...], b: tuple[Segment, ...]) -> None:
        """Let two axes have one size, if they can be lined up; where they cannot, a check at other widths finds it out."""
        if self._terms(a) != self._terms(b):
            try:
                for left, right in self._pairs(a, b):
                    if left.source is not FIXED and right.source is not FIXED:
                        self._tie_segment(left, right, "")
            except Mismatch:
                return
            except Refine as wanted:
                if wanted.cuts:  # other units of channels are for layers to ask, not for a number
                    raise

    def _terms(self, axis: tuple[Segment, ...]) -> dict:
        """Return how the size of an axis is made up of shared widths."""
        terms: dict = {}
        for segment in axis:
            root, size = (FIXED, segment.size) if segment.source is FIXED else (self.root(segment.source), segment.inner)
            terms[root] = terms.get(root, 0) + size
        return terms

    def _tie_segment(self, a: Segment, b: Segment, why: str) -> None:
        if a.source is FIXED or b.source is FIXED:
            self.freeze((a, b), why)
        else:
            self._parent[self.root(b.source)] = self.root(a.source)

    def blocks(self, axis: tuple[Segment, ...], count: int) -> list[tuple[Segment, ...]]:
        """Split an axis into `count` blocks of one size, alike in their segments, and tie them.

        Raises:
            Refine: a segment reaches over the end of a block; all cuts of a single segment are asked for at once.
            Mismatch: the blocks cannot be made alike.
        """
        if axis_size(axis) % count:
            raise Mismatch
        only = axis[0]
        if len(axis) == 1 and only.inner % count == 0:
            # Interleaved channels (a shuffle): every block takes its share of each channel's run.
            return [(Segment(only.source, only.full, only.inner // count),)] * count
        block = axis_size(axis) // count
        if len(axis) == 1 and only.source is not FIXED and count > 1 and block % only.inner == 0:
            raise self._refine_at(only, {block * i for i in range(1, count)})
        blocks = self.split(axis, [block] * count)
        if all(segment.source is FIXED for segment in axis):
            return blocks
        for other in blocks[1:]:
            if any((a.source is FIXED) != (b.source is FIXED) for a, b in self._pairs(blocks[0], other)):
                raise Mismatch
            for left, right in self._pairs(blocks[0], other):
                if left.source is not FIXED:
                    self._tie_segment(left, right, "")
        return blocks

    def split(self, axis: tuple[Segment, ...], sizes: list[int]) -> list[tuple[Segment, ...]]:
        """Cut an axis into consecutive pieces of the given sizes (elements at full width).

        Raises:
            Refine: a boundary falls inside a segment.
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

    def as_channels(self, axis: tuple[Segment, ...], inner: int) -> tuple[Segment, ...]:
        """Return the axis with `inner` elements of it taken as one.

        Raises:
            Refine: channels of that many elements are needed.
            Mismatch: a segment does not hold whole ones.
        """
        for segment in axis:
            if segment.size % inner:
                raise Mismatch
            if segment.inner % inner and segment.source is not FIXED:
                raise Refine(segment.source[0], inner=inner // gcd(inner, segment.inner) * self.inner_of(segment.source[0]))
        return tuple(fixed(s.size // inner) if s.source is FIXED else Segment(s.source, s.full, s.inner // inner) for s in axis)

    def _cut(self, segment: Segment, offset: int) -> tuple[Segment, Segment]:
        if segment.source is FIXED:
            return fixed(offset), fixed(segment.size - offset)
        if offset % segment.inner:
            raise Mismatch
        raise self._refine_at(segment, {offset})

    def _refine_at(self, segment: Segment, offsets: set[int]) -> Refine:
        """Ask for cuts of a segment's source at offsets in elements of the axis that the segment lies on."""
        inner = self.inner_of(segment.source[0])
        start = self._starts[segment.source]
        return Refine(segment.source[0], {start + offset // segment.inner * inner for offset in offsets})

    def _pairs(self, a: tuple[Segment, ...], b: tuple[Segment, ...]) -> list[tuple[Segment, Segment]]:
        """Pair the segments of two axes of one size; a longer segment is cut to the length of its partner."""
        if axis_size(a) != axis_size(b):
            raise Mismatch
        self._ask_for_cuts(a, b)
        self._ask_for_cuts(b, a)
        left, right, pairs = list(a), list(b), []
        while left:
            x, y = left.pop(0), right.pop(0)
            if x.size > y.size:
                x, remainder = self._cut(x, y.size)
                left.insert(0, remainder)
            elif y.size > x.size:
                y, remainder = self._cut(y, x.size)
                right.insert(0, remainder)
            if x.inner != y.inner and x.source is not FIXED and y.source is not FIXED:
                self._even_inner(x, y)
            pairs.append((x, y))
        return pairs

    def _ask_for_cuts(self, axis: tuple[Segment, ...], other: tuple[Segment, ...]) -> None:
        """Ask for all cuts of a segment at once where several segments of the other axis meet it."""
        ends = list(accumulate(segment.size for segment in other))
        start = 0
        for segment in axis:
            inside = {end - start for end in ends if start < end < start + segment.size}
            if len(inside) > 1 and segment.source is not FIXED:
                if any(offset % segment.inner for offset in inside):
                    raise Mismatch
                raise self._refine_at(segment, inside)
            start += segment.size

    def _even_inner(self, x: Segment, y: Segment) -> None:
        """Ask for the smaller channels to be taken together, so that both segments have as many."""
        for small, large in ((x, y), (y, x)):
            wanted = large.inner // small.inner if large.inner % small.inner == 0 else 1
            if wanted > 1:
                raise Refine(small.source[0], inner=wanted * self.inner_of(small.source[0]))
        raise Mismatch


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
