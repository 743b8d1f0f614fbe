"""Where to draw the steps of a network and the lines between them: layers from top to bottom, wrapped into columns."""

from collections import defaultdict
from dataclasses import dataclass, field

# Inches.
_BESIDE = 0.12
_LINES_APART = 0.08
_GAP, _BEND_GAP, _WIDE_GAP = 0.13, 0.22, 0.32
_WIDE_BEND = 1.6
# A line that passes a chain gives way to it.
_SKIP_WEIGHT = 1e-4

Point = tuple[float, float]


@dataclass(frozen=True)
class Layout:
    """Positions in inches, y downwards.

    Attributes:
        width, height: of everything.
        boxes: centre of every step's box.
        edges: (step, step that follows) to the pieces of the line: ("line", end) or ("curve", end), after ("move", start).
    """

    width: float
    height: float
    boxes: list[Point]
    edges: dict[tuple[int, int], list[tuple[str, Point]]]


@dataclass
class _Row:
    """Nodes side by side: (step, True) a box, (step, False) a line from that step that passes here."""

    nodes: list[tuple[int, bool]]
    column: int
    turn: bool = False
    height: float = 0.0
    x: dict[tuple[int, bool], float] = field(default_factory=dict)
    top: float = 0.0

    @property
    def bottom(self) -> float:
        return self.top + self.height


def arrange(inputs: list[tuple[int, ...]], sizes: list[tuple[float, float]], *, columns: int) -> Layout:
    """Lay out steps in the order of the graph.

    Args:
        inputs: for every step, the earlier steps that lines come from.
        sizes: (width, height) of every box.
        columns: pieces that the network is cut into, side by side.
    """
    return _Arrangement(inputs, sizes, columns).layout()


class _Arrangement:
    def __init__(self, inputs, sizes, columns):
        self._inputs, self._sizes = inputs, sizes
        self._rows = self._cut(self._ranks(), columns)
        self._row_of = {step: r for r, row in enumerate(self._rows) for step, box in row.nodes if box}
        self._targets = defaultdict(list)
        for step, before in enumerate(inputs):
            for source in before:
                self._targets[source].append(self._row_of[step])
        for source, rows in self._targets.items():
            for r in range(self._row_of[source] + 1, max(rows)):
                self._rows[r].nodes.append((source, False))

    def layout(self) -> Layout:
        self._order()
        self._place_sideways({})
        for _ in range(2):
            self._place_sideways(self._trunks())
        width = self._shift_columns()
        height = self._place_downwards()
        boxes = [self._centre(step) for step in range(len(self._inputs))]
        edges = {(source, step): self._route(source, step) for step, before in enumerate(self._inputs) for source in before}
        return Layout(width, height, boxes, edges)

    def _ranks(self) -> list[list[int]]:
        rank = []
        for before in self._inputs:
            rank.append(max((rank[source] + 1 for source in before), default=0))
        for step, before in enumerate(self._inputs):
            if not before:
                after = [rank[other] for other, sources in enumerate(self._inputs) if step in sources]
                rank[step] = min(after, default=1) - 1
        rows = [[] for _ in range(max(rank, default=-1) + 1)]
        for step, r in enumerate(rank):
            rows[r].append(step)
        return rows

    def _cut(self, ranks: list[list[int]], columns: int) -> list[_Row]:
        """Break the rows into columns, preferably where few lines cross; a turn is a row of lines at each end of a cut."""
        rank_of = {step: r for r, steps in enumerate(ranks) for step in steps}
        crossing = [set() for _ in ranks]
        for step, before in enumerate(self._inputs):
            for source in before:
                for r in range(rank_of[source], rank_of[step]):
                    crossing[r].add(source)
        heights = [max(self._sizes[step][1] for step in steps) + _GAP for steps in ranks]
        rows, column, start, left = [], 0, 0, sum(heights)
        while start < len(ranks):
            end, wanted = len(ranks), left / (columns - column)
            if column < columns - 1:
                done, places = 0.0, []
                for r in range(start, len(ranks) - 1):
                    done += heights[r]
                    if done > 0.7 * wanted and (done <= 1.12 * wanted or not places):
                        places.append((len(crossing[r]), abs(done - wanted), r + 1))
                end = min(places)[2] if places else end
            rows += [_Row([(step, True) for step in steps], column, height=0) for steps in ranks[start:end]]
            left -= sum(heights[start:end])
            start, column = end, column + 1
            if start < len(ranks):
                rows += [_Row([], column - 1, turn=True), _Row([], column, turn=True)]
        for row in rows:
            row.height = max((self._sizes[step][1] for step, _ in row.nodes), default=0.0)
        return rows

    def _before(self, node, r) -> list[tuple[int, bool]]:
        """Return the nodes one row up that lines come from."""
        step, box = node
        sources = self._inputs[step] if box else (step,)
        return [(source, self._row_of[source] == r - 1) for source in sources]

    def _skips(self, node, r) -> bool:
        """Whether this is a line past something that its own step feeds."""
        return not node[1] and min(self._targets[node[0]]) <= r

    def _leading(self, node, r) -> list[tuple[int, bool]]:
        before = self._before(node, r)
        return [other for other in before if not self._skips(other, r - 1)] or before

    def _order(self) -> None:
        place = {}
        for r, row in enumerate(self._rows):

            def key(node, r=r, place=place):
                leading = [place[other] for other in self._leading(node, r)]
                return sum(leading) / len(leading) if leading else -1.0, self._skips(node, r), node[0]

            row.nodes.sort(key=key)
            place = {node: i for i, node in enumerate(row.nodes)}

    def _place_sideways(self, trunks) -> None:
        above = {}
        for r, row in enumerate(self._rows):
            wanted, weights = [], []
            for node in row.nodes:
                skips = self._skips(node, r)
                leading = [above[other] for other in self._leading(node, r)]
                middle = sum(leading) / len(leading) if leading else 0.0
                wanted.append(trunks.get((row.column, node[0]), middle) if skips else middle)
                weights.append(_SKIP_WEIGHT if skips else 1.0)
            row.x = dict(zip(row.nodes, _spread(wanted, weights, self._distances(row))))
            above = row.x
            if row.turn and r and self._rows[r - 1].turn:
                # The next column starts from its own middle.
                middle = sum(row.x.values()) / len(row.x)
                row.x = above = {node: x - middle for node, x in row.x.items()}

    def _distances(self, row) -> list[float]:
        halves = [self._sizes[step][0] / 2 + _BESIDE / 2 if box else _LINES_APART / 2 for step, box in row.nodes]
        return [one + other for one, other in zip(halves, halves[1:])]

    def _trunks(self) -> dict[tuple[int, int], float]:
        """Return how far out each passing line has to go in its column, so that it can stay straight."""
        found = {}
        for r, row in enumerate(self._rows):
            for node, x in row.x.items():
                if self._skips(node, r):
                    key = (row.column, node[0])
                    found[key] = max(found.get(key, x), x, key=abs)
        return found

    def _shift_columns(self) -> float:
        self._gutters, edge = {}, 0.0
        for column in range(self._rows[-1].column + 1):
            rows = [row for row in self._rows if row.column == column]
            if column:
                lines = len(rows[0].nodes)
                self._gutters[column] = edge + 0.16
                edge += 0.32 + _LINES_APART * max(lines - 1, 0)
            spans = [(x, self._sizes[step][0] / 2 if box else 0.0) for row in rows for (step, box), x in row.x.items()]
            shift = edge - min(x - half for x, half in spans)
            edge = shift + max(x + half for x, half in spans)
            for row in rows:
                row.x = {node: x + shift for node, x in row.x.items()}
        return edge

    def _place_downwards(self) -> float:
        lines = max((len(row.nodes) for row in self._rows if row.turn), default=0)
        margin = _LINES_APART * lines
        y, bottom = margin, 0.0
        for r, row in enumerate(self._rows):
            if r and self._rows[r - 1].column != row.column:
                y = margin
            elif r:
                bend = self._bend(r)
                y += _GAP if bend < 0.01 else _BEND_GAP if bend < _WIDE_BEND else _WIDE_GAP
            row.top = y
            y = row.bottom
            bottom = max(bottom, y)
        return bottom + margin

    def _bend(self, r) -> float:
        """Return how far sideways a line between the row above and this one goes, at most."""
        above = self._rows[r - 1].x
        return max((abs(x - above[other]) for node, x in self._rows[r].x.items() for other in self._before(node, r)), default=0.0)

    def _centre(self, step) -> Point:
        row = self._rows[self._row_of[step]]
        return row.x[step, True], row.top + row.height / 2

    def _route(self, source, step) -> list[tuple[str, Point]]:
        first, last = self._row_of[source], self._row_of[step]
        (x, y), (end_x, end_y) = self._centre(source), self._centre(step)
        if last > first + 1 and self._skips((source, False), last - 1):
            end_x += _aside(self._rows[last - 1].x[source, False] - end_x, self._sizes[step][0])
        if last > first + 1 and self._skips((source, False), first + 1):
            x += _aside(self._rows[first + 1].x[source, False] - x, self._sizes[source][0])
        pieces = [("move", (x, y + self._sizes[source][1] / 2)), ("line", (x, self._rows[first].bottom))]
        for r in range(first + 1, last):
            row = self._rows[r]
            x = row.x[source, False]
            if row.turn and self._rows[r - 1].turn:
                pieces += self._turn(source, r)
            else:
                pieces += [("curve", (x, row.top)), ("line", (x, row.bottom))]
        return [*pieces, ("curve", (end_x, self._rows[last].top)), ("line", (end_x, end_y - self._sizes[step][1] / 2))]

    def _turn(self, source, r) -> list[tuple[str, Point]]:
        above, row = self._rows[r - 1], self._rows[r]
        k = above.nodes.index((source, False))
        down = above.bottom + _LINES_APART * (len(above.nodes) - k)
        up = row.top - _LINES_APART * (len(above.nodes) - k)
        x = self._gutters[row.column] + _LINES_APART * (len(above.nodes) - 1 - k)
        end = row.x[source, False]
        corners = [(above.x[source, False], down), (x, down), (x, up), (end, up), (end, row.bottom)]
        return [("line", corner) for corner in corners]


def _aside(towards: float, width: float) -> float:
    return max(-0.3 * width, min(0.3 * width, towards))


def _spread(wanted: list[float], weights: list[float], distances: list[float]) -> list[float]:
    """Return ascending places at least `distances` apart, nearest to the wanted ones in weighted squares."""
    offsets = [0.0]
    for distance in distances:
        offsets.append(offsets[-1] + distance)
    # Pool adjacent violators: each block moves as one.
    blocks: list[list[float]] = []
    for place, weight, offset in zip(wanted, weights, offsets):
        blocks.append([place - offset, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, weight, count = blocks.pop()
            other = blocks[-1]
            total = other[1] + weight
            blocks[-1] = [(other[0] * other[1] + mean * weight) / total, total, other[2] + count]
    means = [mean for mean, _, count in blocks for _ in range(count)]
    return [mean + offset for mean, offset in zip(means, offsets)]
