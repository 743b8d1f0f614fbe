"""Rules of operations that take pieces of an axis: chunk, split, slices, single entries."""

import operator
from math import gcd

import torch
import torch.nn.functional as F
from torch import fx, nn

from autoslim.channels.rules.basics import Frozen, no_axes
from autoslim.channels.segments import Axis, Layout, Segment, axis_size

WRITTEN = "sizes are written out in the code"


def chunk(flow, node: fx.Node, *_):
    """chunk(n, dim): equal pieces, each keeps its leading channels."""
    given = flow.arguments(node, "input", "chunks", "dim")
    return _equal_pieces(flow, node, flow.plain(given.get("dim", 0)))


def glu(flow, node: fx.Node, module: nn.Module | None) -> Layout:
    """F.glu, nn.GLU: the first half of an axis times the sigmoid of the second."""
    layout = list(flow.layout(flow.first(node)))
    dim = module.dim if module is not None else flow.plain(flow.arguments(node, "input", "dim").get("dim", -1))
    if layout[dim] is not None:
        layout[dim] = flow.ties.blocks(layout[dim], 2)[0]
    return tuple(layout)


def split(flow, node: fx.Node, *_):
    """split(size or sizes, dim): pieces of the sizes that the code gives."""
    given = flow.arguments(node, "input", "split_size", "dim")
    sizes = given.get("split_size", given.get("split_size_or_sections"))
    dim = flow.plain(given.get("dim", 0))
    if flow.layout(given["input"])[dim] is None:
        return [flow.layout(given["input"])] * len(flow.value(node))
    if not flow.is_row(sizes):
        pieces = _equal_pieces(flow, node, dim)
        if isinstance(sizes, int):
            flow.ties.freeze(pieces[0][dim], flow.describe(node, WRITTEN))
        flow.size(node, None, None, sizes, pieces[0][dim])
        return pieces
    rows = [flow.item(sizes, i) for i in range(len(flow.value(sizes)))]
    elements = [piece.shape[dim] for piece in flow.value(node)]
    return _pieces(flow, node, flow.layout(given["input"]), dim, elements, rows)


def unbind(flow, node: fx.Node, *_):
    """unbind(dim): the axis is dropped."""
    given = flow.arguments(node, "input", "dim")
    layout = flow.layout(given["input"])
    dim = flow.plain(given.get("dim", 0)) % len(layout)
    if layout[dim] is not None:
        raise Frozen("channels are taken one by one")
    return [(*layout[:dim], *layout[dim + 1 :])] * len(flow.value(node))


def _equal_pieces(flow, node: fx.Node, dim: int):
    layout, pieces = flow.layout(flow.first(node)), flow.value(node)
    dim %= len(layout)
    if layout[dim] is None:
        return [tuple(layout)] * len(pieces)
    if len({piece.shape[dim] for piece in pieces}) != 1:
        raise Frozen("pieces of different sizes")
    blocks = flow.ties.blocks(layout[dim], len(pieces))
    return [(*layout[:dim], block, *layout[dim + 1 :]) for block in blocks]


def _pieces(flow, node: fx.Node, layout: Layout, dim: int, elements: list[int], sizes: list):
    """Cut an axis into pieces of `elements`; `sizes` says how the code gives each: a number, a node, None where it is silent."""
    dim %= len(layout)
    part = gcd(*elements)
    if any(flow.freedom(size) == 2 for size in sizes if size is not None) and sum(elements) // part <= 16:
        # Sizes that follow from the tensor itself keep their ratio at every width.
        blocks = flow.ties.blocks(layout[dim], sum(elements) // part)
        starts = [sum(elements[:i]) // part for i in range(len(elements) + 1)]
        pieces = [tuple(s for block in blocks[a:b] for s in block) for a, b in zip(starts, starts[1:])]
    else:
        pieces = flow.ties.split(layout[dim], elements)
    for piece, size in zip(pieces, sizes):
        if isinstance(size, int):
            flow.ties.freeze(piece, flow.describe(node, WRITTEN))
        elif size is not None:
            flow.size(node, None, None, size, piece)
    return [(*layout[:dim], piece, *layout[dim + 1 :]) for piece in pieces]


def narrow(flow, node: fx.Node, *_) -> Layout:
    """narrow(dim, start, length)."""
    given = flow.arguments(node, "input", "dim", "start", "length")
    layout = flow.layout(given["input"])
    dim = flow.plain(given["dim"]) % len(layout)
    if layout[dim] is None:
        return layout
    total, start, length = axis_size(layout[dim]), flow.plain(given["start"]), flow.plain(given["length"])
    if start + length < total or start < 0:
        elements, sizes = [start % total, length], [given["start"], given["length"]]
        elements.append(total - sum(elements))
        sizes = sizes + [None]
    else:
        elements, sizes = [start, length], [given["start"], None if start else given["length"]]
    kept = [i for i in range(len(elements)) if elements[i]]
    pieces = _pieces(flow, node, layout, dim, [elements[i] for i in kept], [sizes[i] for i in kept])
    return pieces[kept.index(1)]


def select(flow, node: fx.Node, *_) -> Layout:
    """select(dim, index): the axis is dropped."""
    given = flow.arguments(node, "input", "dim", "index")
    layout = flow.layout(given["input"])
    dim = flow.plain(given["dim"]) % len(layout)
    if layout[dim] is not None:
        raise Frozen("channels are picked by index")
    return (*layout[:dim], *layout[dim + 1 :])


def getitem(flow, node: fx.Node, *_):
    """Pick from a list of tensors, or slice a tensor."""
    source, index = node.args
    if not flow.is_tensor(source):
        layouts = flow.layouts.get(source)
        index = flow.value(index)
        return layouts[index] if layouts is not None and not isinstance(index, slice) else no_axes(flow.value(node))
    layout = list(flow.layout(source))
    index = index if isinstance(index, tuple) else (index,)
    if any(entry is Ellipsis for entry in index):
        at = next(i for i, entry in enumerate(index) if entry is Ellipsis)
        missing = len(layout) - (len(index) - 1 - sum(i is None for i in index))
        index = (*index[:at], *[slice(None)] * missing, *index[at + 1 :])
    index = (*index, *[slice(None)] * (len(layout) - sum(i is not None for i in index)))
    out: list[Axis] = []
    for entry in index:
        axis = None if entry is None else layout.pop(0)
        if isinstance(entry, slice) and axis is not None:
            axis = _slice(flow, node, axis, entry)
        elif axis is not None and entry is not None:
            raise Frozen("channels are picked by index")
        if entry is None or isinstance(entry, slice):
            out.append(axis)
        elif not isinstance(flow.value(entry), int):
            raise Frozen("indexing with a tensor")
    return tuple(out)


def _slice(flow, node: fx.Node, axis: tuple[Segment, ...], entry: slice) -> Axis:
    if entry.step is not None and flow.plain(entry.step) != 1:
        raise Frozen("every n-th channel is picked")
    size = axis_size(axis)
    start, stop, _ = slice(*(None if b is None else flow.plain(b) for b in (entry.start, entry.stop))).indices(size)
    if stop <= start:
        raise Frozen("no channel is picked")
    if start == 0 and (entry.stop is None or isinstance(entry.stop, int) and entry.stop > size):
        return axis
    from_end = isinstance(entry.start, int) and entry.start < 0
    to_end = isinstance(entry.stop, int) and entry.stop < 0
    # How the code gives the sizes of what lies before, of what is taken and of what lies behind.
    before = None if from_end else entry.start
    taken = None
    if entry.stop is None:
        taken = -entry.start if from_end else None
    elif not to_end and start == 0:
        taken = entry.stop
    elif isinstance(entry.start, int) and isinstance(entry.stop, int):
        taken = stop - start
    behind = -entry.stop if to_end else None
    rows = [(start, before), (stop - start, taken), (size - stop, behind)]
    kept = [i for i, (elements, _) in enumerate(rows) if elements]
    pieces = _pieces(flow, node, (axis,), 0, [rows[i][0] for i in kept], [rows[i][1] for i in kept])
    return pieces[kept.index(1)][0]


def index_select(flow, node: fx.Node, *_) -> Layout:
    """Picking by a tensor of indices is followed along other axes than the channels'."""
    given = flow.arguments(node, "input", "dim", "index")
    layout = list(flow.layout(given["input"]))
    if layout[flow.plain(given["dim"])] is not None:
        raise Frozen("channels are picked by index")
    return tuple(layout)


def table() -> dict:
    """Return the rules of this file by function, method name or module type."""
    rules: dict = dict.fromkeys(("chunk", "tensor_split", torch.chunk, torch.tensor_split), chunk)
    rules |= dict.fromkeys(("split", torch.split, "split_with_sizes", torch.split_with_sizes), split)
    rules |= {nn.GLU: glu, F.glu: glu}
    rules |= {"unbind": unbind, torch.unbind: unbind, "narrow": narrow, torch.narrow: narrow}
    rules |= {"select": select, torch.select: select, "index_select": index_select, torch.index_select: index_select}
    rules[operator.getitem] = getitem
    return rules
