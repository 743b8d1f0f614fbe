"""Run a network's graphs at other widths on the meta device, to find code that has sizes written out."""

import random

import torch
from torch import fx
from torch.utils._pytree import tree_map

from autoslim.channels.flow import Flow, axes_in
from autoslim.channels.proxies import read_size
from autoslim.channels.segments import FIXED, Axis, Source
from autoslim.channels.trace import run_node

_WHY = "sizes are written out in the code"
_PLAIN = "its channels are counted in plain Python"


def check_sizes(flow: Flow) -> dict[Source, str]:
    """Return the sources that meet code with fixed sizes, with the reason; empty when every width will run.

    Layers are trusted to give the width that their rule says; every other operation must produce the sizes that its rule
    predicted, at the narrowest widths and at drawn ones.
    """
    frozen, multiples = flow.ties.reasons(), flow.ties.multiples()
    free = {root: sources[0] for root, sources in flow.ties.classes().items() if root not in frozen}
    full = {root: flow.ties.full_of(root) for root in free}
    steps = {root: multiples.get(root, 1) for root in free}
    rng = random.Random(0)
    # Two channels where there are some: the statistics of a single number (a weight standardised over one input) are refused.
    least = {root: 2 if full[root] // steps[root] >= 4 else 1 for root in free}
    draws = [{root: least[root] * steps[root] for root in free}]
    draws += [{root: steps[root] * rng.randint(least[root], full[root] // steps[root]) for root in free} for _ in range(2)]
    flow.branches.clear()
    for mode, graph in flow.traced.graphs.items():
        flow.traced.modules[""].train(mode == "train")
        for widths in draws:
            with torch.no_grad(), torch.device("meta"):
                wrong = _Run(flow, widths).over(graph)
            if wrong:
                return wrong
    return {}


class _Run:
    """One run of one graph at some widths."""

    def __init__(self, flow: Flow, widths: dict[Source, int]):
        self._flow = flow
        self._widths = widths

    def over(self, graph: fx.Graph) -> dict[Source, str]:
        """Return the sources that the first operation with other sizes than predicted depends on."""
        flow, values = self._flow, {}
        root = flow.traced.modules[""]
        for node in graph.nodes:
            if node.op == "output":
                continue
            expected = self._expected(flow.layouts[node], node.meta["value"])
            if node.target is read_size:
                values[node] = self._number(node)
                if node.meta.get("plain") and values[node] != node.meta["value"]:
                    axes = [axis for place, axis in flow.sizes.items() if place[:2] == node.args and axis]
                    return dict.fromkeys(self._free(axes), flow.describe(node, _PLAIN))
                continue
            if node.op in ("placeholder", "get_attr") or flow.is_layer(node) or node.target in flow.traced.opaque:
                values[node] = node.meta["value"] if expected is None else expected
                continue
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            try:
                values[node] = run_node(node, args, kwargs, root)
                fits = expected is None or _sizes(values[node]) == _sizes(expected)
            except Exception:
                fits = False
            if fits and node.meta.get("decided") and bool(values[node]) != bool(node.meta["value"]):
                flow.branches[node.meta["where"]] = None
            changed = fits and node.meta.get("plain") and values[node] != node.meta["value"]
            if not fits or changed:
                bound = self._sources(node)
                if bound:
                    return dict.fromkeys(bound, flow.describe(node, _PLAIN if changed else _WHY))
                values[node] = node.meta["value"] if expected is None else expected
        return {}

    def _number(self, node: fx.Node):
        """Return a module's number, or row of numbers, at these widths."""
        place, value = node.args, node.meta["value"]
        if isinstance(value, int):
            axis = self._flow.sizes.get((*place, None))
            return value if axis is None else self._active(axis)
        row = [self._flow.sizes.get((*place, i)) for i in range(len(value))]
        return type(value)(n if axis is None else self._active(axis) for n, axis in zip(value, row))

    def _sources(self, node: fx.Node) -> list[Source]:
        """Return the free sources that an operation reads, through whatever numbers were computed from shapes."""
        axes = self._flow.moving_inputs(node)
        seen, todo = set(), [n for n in node.all_input_nodes if not axes or not isinstance(n.meta.get("value"), torch.Tensor)]
        while todo:
            source = todo.pop()
            if source in seen:
                continue
            seen.add(source)
            if source.target is read_size:
                axes = axes + [axis for place, axis in self._flow.sizes.items() if place[:2] == source.args and axis]
            elif isinstance(source.meta.get("value"), torch.Tensor):
                axes = axes + axes_in(self._flow.layouts[source])
            else:
                todo += source.all_input_nodes
        return self._free(axes)

    def _free(self, axes: list[Axis]) -> list[Source]:
        sources = [s.source for axis in axes for s in axis if s.source is not FIXED]
        return [source for source in sources if self._flow.ties.root(source) in self._widths]

    def _expected(self, layout, value):
        if isinstance(value, torch.Tensor):
            axes = layout or (None,) * value.dim()
            sizes = [size if axis is None else self._active(axis) for axis, size in zip(axes, value.shape)]
            return value if sizes == list(value.shape) else torch.empty(sizes, dtype=value.dtype, device="meta")
        if isinstance(value, (list, tuple)) and isinstance(layout, (list, tuple)) and len(layout) == len(value):
            return [self._expected(a, v) for a, v in zip(layout, value)]
        return None

    def _active(self, axis: Axis) -> int:
        ties, widths = self._flow.ties, self._widths
        return sum(s.size if s.source is FIXED else widths.get(ties.root(s.source), s.full) * s.inner for s in axis)


def _sizes(value):
    """Return the shapes in a value, lists and tuples alike."""
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        return [_sizes(v) for v in value]
    return tree_map(lambda v: tuple(v.shape) if isinstance(v, torch.Tensor) else v, value)
