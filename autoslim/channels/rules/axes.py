"""Rules of operations that rearrange axes: concatenation, slicing, reshaping, transposing, shuffling."""

from math import prod

import torch
import torch.nn.functional as F
from torch import fx, nn

from autoslim.channels.rules.basics import Frozen, each, joined
from autoslim.channels.segments import Axis, Layout, Segment, fixed, merge


def cat(flow, node: fx.Node, *_) -> Layout:
    """Concatenation: the segments of the inputs in a row; all other axes are tied."""
    given = flow.arguments(node, "tensors", "dim")
    layouts, values = flow.tensors(given["tensors"])
    dims = flow.value(node).dim()
    dim = flow.plain(given.get("dim", 0)) % dims
    why = flow.describe(node, "concatenated beside a tensor of fixed width")
    out: list[Axis] = []
    for position in range(dims):
        axes = [layout[position] for layout in layouts]
        if position != dim:
            for other in axes[1:]:
                flow.ties.tie(axes[0], other, why)
            out.append(joined(axes))
        elif all(axis is None for axis in axes):
            out.append(None)
        else:
            pieces = [axis or (fixed(value.shape[position]),) for axis, value in zip(axes, values) if value.shape[position]]
            out.append(tuple(segment for piece in pieces for segment in piece))
    return tuple(out)


def stack(flow, node: fx.Node, *_) -> Layout:
    """Stack along a new axis; all other axes are tied."""
    given = flow.arguments(node, "tensors", "dim")
    layouts, _ = flow.tensors(given["tensors"])
    why = flow.describe(node, "stacked beside a tensor of fixed width")
    for other in layouts[1:]:
        for a, b in zip(layouts[0], other):
            flow.ties.tie(a, b, why)
    out = [joined(list(axes)) for axes in zip(*layouts)]
    out.insert(flow.plain(given.get("dim", 0)) % (len(out) + 1), None)
    return tuple(out)


# --- reshaping ---------------------------------------------------------------------------------------------------------


def reshape(flow, node: fx.Node, *_) -> Layout:
    """view, reshape, flatten, unflatten, squeeze, unsqueeze: axes are merged, split, added and dropped in order."""
    source = flow.first(node)
    layout, before, after = flow.layout(source), list(flow.value(source).shape), list(flow.value(node).shape)
    written = _written_sizes(flow, node, len(after))
    out: list[Axis] = []
    for old, new in _matching_axes(before, after):
        axes = [layout[i] for i in old]
        batch = 0 in old and layout[0] is None and before[0] > 1
        if batch and len(new) + len(old) > 2 and any(before[i] > 1 for i in old if i) and any(axes):
            raise Frozen("the channels are merged with the batch")
        merged = merge(axes, [before[i] for i in old])
        out += _spread(flow, merged, [after[i] for i in new], [written[i] for i in new])
    for size, axis in zip(written, out):
        if axis is not None:
            flow.size(node, None, None, size, axis)
    return tuple(out)


def _written_sizes(flow, node: fx.Node, dims: int) -> list:
    """Return what the code gives as the size of each axis of the result (numbers or nodes), None where it is silent."""
    if node.target in ("view", "reshape", torch.reshape):
        given = node.args[1:] or tuple(node.kwargs.values())
        sizes = [flow.item(given[0], i) for i in range(dims)] if flow.is_row(given[0]) else list(given)
        if len(sizes) == dims:
            return sizes
    if node.target in ("unflatten", torch.unflatten):
        given = flow.arguments(node, "input", "dim", "sizes")
        count = len(flow.value(given["sizes"]))
        at = flow.plain(given["dim"]) % (dims - count + 1)
        return [None] * at + [flow.item(given["sizes"], i) for i in range(count)] + [None] * (dims - at - count)
    return [None] * dims


def _matching_axes(before: list[int], after: list[int]):
    """Pair runs of axes of two shapes that hold the same number of elements."""
    i = j = 0
    while i < len(before) or j < len(after):
        old, new = [], []
        left = right = 1
        if i < len(before):
            old.append(i)
            left *= before[i]
            i += 1
        if j < len(after) and (not old or after[j] != 1 or left == 1):
            new.append(j)
            right *= after[j]
            j += 1
        while left != right:
            if left < right:
                old.append(i)
                left *= before[i]
                i += 1
            else:
                new.append(j)
                right *= after[j]
                j += 1
        yield old, new


def _spread(flow, axis: Axis, sizes: list[int], written: list) -> list[Axis]:
    """Split one axis over several; the width stays on one of them and the others are fixed."""
    out: list[Axis] = [None] * len(sizes)
    if axis is None:
        return out
    wide = [i for i, size in enumerate(sizes) if size > 1] or list(range(len(sizes)))
    if not wide:
        raise Frozen("the channels are dropped")
    # The code says which of the sizes follows from the tensor: -1, else one that is computed, else one it may set.
    ranks = {i: 1 if written[i] is None else flow.freedom(written[i]) for i in wide}
    free = [i for i in wide if ranks[i] == max(ranks.values())]

    def goes_evenly(i: int) -> bool:
        return i == wide[0] and all(s.inner % prod(sizes[i + 1 :]) == 0 for s in axis)

    at = next((i for i in free if goes_evenly(i)), free[-1])
    inner = prod(sizes[at + 1 :])
    if inner > 1:
        axis = flow.ties.as_channels(axis, inner)
    outer = prod(sizes[:at])
    out[at] = flow.ties.blocks(axis, outer)[0] if outer > 1 else axis
    return out


def permute(flow, node: fx.Node, *_) -> Layout:
    """permute(dims)."""
    layout = flow.layout(flow.first(node))
    rest = node.args[1:] if len(node.args) > 1 else (node.kwargs["dims"],)
    dims = rest[0] if isinstance(rest[0], (tuple, list, fx.Node)) and flow.is_row(rest[0]) else rest
    return tuple(layout[flow.plain(flow.item(dims, i))] for i in range(len(layout)))


def permute_module(flow, node: fx.Node, module: nn.Module) -> Layout:
    """torchvision.ops.Permute."""
    layout = flow.layout(flow.first(node))
    return tuple(layout[d] for d in module.dims)


def transpose(flow, node: fx.Node, *_) -> Layout:
    """transpose(a, b), swapaxes."""
    layout = list(flow.layout(flow.first(node)))
    a, b = (flow.plain(d) for d in (*node.args[1:], *node.kwargs.values()))
    layout[a], layout[b] = layout[b], layout[a]
    return tuple(layout)


def movedim(flow, node: fx.Node, *_) -> Layout:
    """movedim(source, destination) of one axis."""
    layout = list(flow.layout(flow.first(node)))
    a, b = (flow.plain(d) for d in (*node.args[1:], *node.kwargs.values()))
    axis = layout.pop(a)
    layout.insert(b % (len(layout) + 1), axis)
    return tuple(layout)


def repeat(flow, node: fx.Node, *_) -> Layout:
    """repeat(times): the whole axis is written several times in a row."""
    layout = flow.layout(flow.first(node))
    rest = node.args[1:]
    count = len(flow.value(node).shape)
    times = [flow.plain(flow.item(rest[0] if flow.is_row(rest[0]) else rest, i)) for i in range(count)]
    layout = (None,) * (count - len(layout)) + tuple(layout)
    return tuple(axis and axis * n for axis, n in zip(layout, times))


def repeat_interleave(flow, node: fx.Node, *_) -> Layout:
    """repeat_interleave(n, dim): each channel is written several times in a row."""
    given = flow.arguments(node, "input", "repeats", "dim")
    layout = list(flow.layout(given["input"]))
    if flow.is_tensor(given["repeats"]) or given.get("dim") is None:
        raise Frozen("channels are repeated unevenly")
    dim = flow.plain(given["dim"])
    axis, times = layout[dim], flow.plain(given["repeats"])
    layout[dim] = axis and tuple(Segment(s.source, s.full, s.inner * times) for s in axis)
    return tuple(layout)


def along(flow, node: fx.Node, *_):
    """flip, roll, sort, topk, running sums: the axis they walk along must not be that of the channels."""
    layout, value = flow.layout(flow.first(node)), flow.value(node)
    name = getattr(node.target, "__name__", node.target)
    given = flow.arguments(node, *(("input", "amount", "dim") if name in ("roll", "topk") else ("input", "dim")))
    dims = given.get("dims", given.get("dim", -1 if name in ("sort", "argsort", "topk") else None))
    rows = [flow.item(dims, i) for i in range(len(flow.value(dims)))] if flow.is_row(dims) else [dims]
    if any(axis is not None for axis in layout) and any(row is None or layout[flow.plain(row)] is not None for row in rows):
        raise Frozen("no rule for an order or a running sum of channels")
    return layout if isinstance(value, torch.Tensor) else [layout] * len(value)


# --- shuffles ----------------------------------------------------------------------------------------------------------


def pixel_shuffle(flow, node: fx.Node, module: nn.Module | None) -> Layout:
    """`[N, C r r, H, W]` to `[N, C, H r, W r]`: r*r elements stand for one channel."""
    factor = module.upscale_factor if module is not None else flow.arguments(node, "input", "upscale_factor")["upscale_factor"]
    layout = flow.layout(flow.first(node))
    if any(axis is not None for axis in layout[-2:]):
        raise Frozen("the channels lie along a spatial axis")
    axis = layout[-3]
    return (*layout[:-3], axis and flow.ties.as_channels(axis, flow.plain(factor) ** 2), None, None)


def pixel_unshuffle(flow, node: fx.Node, module: nn.Module | None) -> Layout:
    """`[N, C, H r, W r]` to `[N, C r r, H, W]`."""
    given = None if module is not None else flow.arguments(node, "input", "downscale_factor")
    factor = module.downscale_factor if module is not None else given["downscale_factor"]
    layout = flow.layout(flow.first(node))
    if any(axis is not None for axis in layout[-2:]):
        raise Frozen("the channels lie along a spatial axis")
    times, axis = flow.plain(factor) ** 2, layout[-3]
    return (*layout[:-3], axis and tuple(Segment(s.source, s.full, s.inner * times) for s in axis), None, None)


def channel_shuffle(flow, node: fx.Node, module: nn.Module | None) -> Layout:
    """`[g c]` to `[c g]`: the groups are interleaved."""
    groups = module.groups if module is not None else flow.arguments(node, "input", "groups")["groups"]
    groups, layout = flow.plain(groups), flow.layout(flow.first(node))
    if layout[1] is None or groups == 1:
        return layout
    block = flow.ties.blocks(layout[1], groups)[0]
    return (layout[0], tuple(Segment(s.source, s.full, s.inner * groups) for s in block), *layout[2:])


def unfold(flow, node: fx.Node, module: nn.Module | None) -> Layout:
    """F.unfold: `[N, C, H, W]` to `[N, C k k, L]`."""
    layout = flow.layout(flow.first(node))
    if any(axis is not None for axis in layout[2:]):
        raise Frozen("the channels lie along a spatial axis")
    times = flow.value(node).shape[1] // flow.value(flow.first(node)).shape[1]
    return (layout[0], layout[1] and tuple(Segment(s.source, s.full, s.inner * times) for s in layout[1]), None)


def table() -> dict:
    """Return the rules of this file by function, method name or module type."""
    rules: dict = dict.fromkeys((torch.cat, torch.concat, torch.concatenate), cat) | {torch.stack: stack}
    names = ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "reshape_as", "view_as", "squeeze_", "unsqueeze_")
    rules |= dict.fromkeys((*names, *each((torch,), *names), nn.Flatten, nn.Unflatten), reshape)
    rules |= dict.fromkeys(("permute", torch.permute), permute)
    names = ("transpose", "swapaxes", "swapdims", "transpose_")
    rules |= dict.fromkeys((*names, *each((torch,), *names)), transpose)
    rules |= dict.fromkeys(("movedim", "moveaxis", torch.movedim, torch.moveaxis), movedim)
    rules |= {"repeat": repeat, "repeat_interleave": repeat_interleave, torch.repeat_interleave: repeat_interleave}
    walks = ("flip", "roll", "cumsum", "cumprod", "sort", "argsort", "topk", "cummax", "cummin")
    rules |= dict.fromkeys((*walks, *each((torch,), *walks)), along)
    rules |= dict.fromkeys((nn.PixelShuffle, F.pixel_shuffle), pixel_shuffle)
    rules |= dict.fromkeys((nn.PixelUnshuffle, F.pixel_unshuffle), pixel_unshuffle)
    rules |= dict.fromkeys((nn.ChannelShuffle, *each((F, torch), "channel_shuffle", "native_channel_shuffle")), channel_shuffle)
    rules |= dict.fromkeys((nn.Unfold, F.unfold), unfold)
    return rules
