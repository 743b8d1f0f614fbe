"""One rule an operation: from the layouts of its inputs to the layout of its output, tying and freezing on the way."""

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils._pytree import tree_map
from torchvision.ops import stochastic_depth

from autoslim.channels.segments import Axis, Layout, Mismatch, Segment, fixed, merge

CONVS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def no_axes(value):
    """Return the layout of values that have no channel to slim: every axis fixed."""
    return tree_map(lambda v: Fixed(v.dim()) if isinstance(v, torch.Tensor) else None, value)


class Fixed(tuple):
    """A layout in which no axis can change; a class of its own so that it is a leaf among nested outputs."""

    def __new__(cls, dims: int):
        return super().__new__(cls, (None,) * dims)


class Frozen(Exception):
    """An operation that cannot follow the widths of its inputs; the message says why."""


def _moving(layout: Layout) -> list[int]:
    return [i for i, axis in enumerate(layout) if axis is not None]


# --- layers ----------------------------------------------------------------------------------------------------------


def conv(flow, node: fx.Node, module: nn.Module) -> Layout:
    """Conv1d/2d/3d: plain, depthwise (output follows the input) and grouped (every group keeps its leading channels)."""
    layout = flow.layout(flow.first(node))
    if len(layout) != CONVS[type(module)] + 2:
        raise Frozen("an input without batch axis")
    axis, spatial = layout[1], layout[2:]
    if any(a is not None for a in spatial):
        raise Frozen("the channels lie along a spatial axis")
    if module.groups == 1:
        out = flow.produce(node.target, module.out_channels)
    elif module.groups == module.in_channels:
        multiplier = module.out_channels // module.in_channels
        out = axis and tuple(Segment(s.source, s.full, s.inner * multiplier) for s in axis)
    else:
        if axis is not None:
            axis = tuple(s for block in flow.ties.even_blocks(axis, module.groups) for s in block)
        out = flow.produce(node.target, module.out_channels)
        flow.ties.even_blocks(out, module.groups)
    flow.use(node, module, axis, out)
    return (layout[0], out, *spatial)


def linear(flow, node: fx.Node, module: nn.Linear) -> Layout:
    """Linear over the last axis."""
    layout = flow.layout(flow.first(node))
    out = flow.produce(node.target, module.out_features)
    flow.use(node, module, layout[-1], out)
    return (*layout[:-1], out)


def batch_norm(flow, node: fx.Node, module: nn.Module) -> Layout:
    """Batch norm: as wide as its input."""
    layout = flow.layout(flow.first(node))
    if any(i != 1 for i in _moving(layout)):
        raise Frozen("the channels are not on axis 1")
    flow.use(node, module, layout[1], layout[1])
    return layout


def prelu(flow, node: fx.Node, module: nn.PReLU) -> Layout:
    """PReLU with one slope for all channels."""
    if module.num_parameters > 1:
        raise Frozen("one slope a channel")
    return flow.layout(flow.first(node))


# --- operations that keep the channels as they are ---------------------------------------------------------------------


def same(flow, node: fx.Node, *_) -> Layout:
    """Elementwise with one tensor: the layout of the first input."""
    return flow.layout(flow.first(node))


def pool(dims: int):
    """Pooling, padding or resizing over the last `dims` axes."""

    def rule(flow, node: fx.Node, *_) -> Layout:
        layout = flow.layout(flow.first(node))
        if any(axis is not None for axis in layout[len(layout) - dims :]):
            raise Frozen("the channels lie along a pooled axis")
        return layout

    return rule


def pad(flow, node: fx.Node, *_) -> Layout:
    """F.pad: two numbers for each of the last axes."""
    amounts = node.args[1] if len(node.args) > 1 else node.kwargs["pad"]
    return pool(len(amounts) // 2)(flow, node)


def resize(flow, node: fx.Node, *_) -> Layout:
    """F.interpolate and nn.Upsample: everything after the channel axis is spatial."""
    layout = flow.layout(flow.first(node))
    return pool(len(layout) - 2)(flow, node)


def broadcast(flow, node: fx.Node, *_) -> Layout:
    """Elementwise with several tensors: axes are lined up from the right and tied; an axis of one element stretches."""
    operands = [a for a in (*node.args, *node.kwargs.values()) if flow.is_tensor(a)]
    dims = flow.value(node).dim()
    why = flow.describe(node, "combined with a tensor of fixed width")
    out: list[Axis] = []
    for position in range(-dims, 0):
        present = [a for a in operands if flow.value(a).dim() >= -position]
        wide = [flow.layout(a)[position] for a in present if flow.value(a).shape[position] != 1]
        for other in wide[1:]:
            flow.ties.tie(wide[0], other, why)
        out.append(next((axis for axis in wide if axis is not None), None))
    return tuple(out)


def expand(flow, node: fx.Node, *_) -> Layout:
    """expand(sizes): axes are lined up from the right; those of one element stretch to a fixed size."""
    source, dims = flow.first(node), flow.value(node).dim()
    layout, before = flow.layout(source), flow.value(source).shape
    kept = tuple(axis if size > 1 else None for axis, size in zip(layout, before))
    return (None,) * (dims - len(kept)) + kept


def reduce(flow, node: fx.Node, *_) -> Layout:
    """mean, sum, amax, ... over some axes."""
    layout = flow.layout(flow.first(node))
    args = dict(zip(("input", "dim", "keepdim"), node.args)) | node.kwargs
    dims = args.get("dim", args.get("axis"))
    dims = range(len(layout)) if dims is None else [dims] if isinstance(dims, int) else list(dims)
    gone = {d % len(layout) for d in dims}
    if args.get("keepdim", False):
        return tuple(None if i in gone else axis for i, axis in enumerate(layout))
    return tuple(axis for i, axis in enumerate(layout) if i not in gone)


# --- operations that rearrange axes ------------------------------------------------------------------------------------


def cat(flow, node: fx.Node, *_) -> Layout:
    """Concatenation: the segments of the inputs in a row; all other axes are tied."""
    args = dict(zip(("tensors", "dim"), node.args)) | node.kwargs
    layouts, values = flow.tensors(args["tensors"])
    dims = flow.value(node).dim()
    dim = flow.plain(args.get("dim", args.get("axis", 0))) % dims
    why = flow.describe(node, "concatenated beside a tensor of fixed width")
    out: list[Axis] = []
    for position in range(dims):
        axes = [layout[position] for layout in layouts]
        if position != dim:
            for other in axes[1:]:
                flow.ties.tie(axes[0], other, why)
            out.append(next((axis for axis in axes if axis is not None), None))
        elif all(axis is None for axis in axes):
            out.append(None)
        else:
            pieces = [axis or (fixed(value.shape[position]),) for axis, value in zip(axes, values)]
            out.append(tuple(segment for piece in pieces for segment in piece))
    return tuple(out)


def reshape(flow, node: fx.Node, *_) -> Layout:
    """view, reshape, flatten, unflatten, squeeze, unsqueeze: axes are merged, split, added and dropped in order."""
    source = flow.first(node)
    layout, before, after = flow.layout(source), list(flow.value(source).shape), list(flow.value(node).shape)
    out: list[Axis] = []
    for old, new in _matching_axes(before, after):
        axes = [layout[i] for i in old]
        if 0 in old and len(new) + len(old) > 2 and any(before[i] > 1 for i in old if i) and any(axes):
            raise Frozen("the channels are merged with the batch")
        merged = merge(axes, [before[i] for i in old])
        out += _spread(flow, merged, [after[i] for i in new])
    return tuple(out)


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


def _spread(flow, axis: Axis, sizes: list[int]) -> list[Axis]:
    """Split one axis over several; the width stays on one of them and the others are fixed."""
    if axis is None:
        return [None] * len(sizes)
    wide = [i for i, size in enumerate(sizes) if size > 1]
    if not wide:
        raise Frozen("the channels are dropped")
    out: list[Axis] = [None] * len(sizes)
    if len(wide) == 1:
        out[wide[0]] = axis
        return out
    inner = 1
    for i in reversed(wide[1:]):
        inner *= sizes[i]
    if len(wide) == 2 and not all(s.inner % inner == 0 for s in axis):
        # [g * c] as [g, c]: g blocks alike, the width stays inside the block.
        out[wide[1]] = flow.ties.even_blocks(axis, sizes[wide[0]])[0]
        return out
    if any(s.inner % inner for s in axis):
        raise Mismatch
    out[wide[0]] = tuple(Segment(s.source, s.full, s.inner // inner) for s in axis)
    return out


def permute(flow, node: fx.Node, *_) -> Layout:
    """permute(dims)."""
    layout = flow.layout(flow.first(node))
    rest = node.args[1:] if len(node.args) > 1 else (node.kwargs["dims"],)
    dims = rest[0] if isinstance(rest[0], (tuple, list)) else rest
    return tuple(layout[flow.plain(d)] for d in dims)


def transpose(flow, node: fx.Node, *_) -> Layout:
    """transpose(a, b), swapaxes."""
    layout = list(flow.layout(flow.first(node)))
    a, b = (flow.plain(d) for d in (*node.args[1:], *node.kwargs.values()))
    layout[a], layout[b] = layout[b], layout[a]
    return tuple(layout)


def chunk(flow, node: fx.Node, *_):
    """chunk and split into equal pieces: every piece keeps its leading channels."""
    source = flow.first(node)
    layout, pieces = flow.layout(source), flow.value(node)
    args = dict(zip(("input", "n", "dim"), node.args)) | node.kwargs
    dim = flow.plain(args.get("dim", 0)) % len(layout)
    if layout[dim] is None:
        return [tuple(layout)] * len(pieces)
    sizes = {piece.shape[dim] for piece in pieces}
    if len(sizes) != 1:
        raise Frozen("pieces of different sizes")
    blocks = flow.ties.even_blocks(layout[dim], len(pieces))
    return [(*layout[:dim], block, *layout[dim + 1 :]) for block in blocks]


def getitem(flow, node: fx.Node, *_):
    """Pick from a list of tensors, or slice a tensor along axes whose width does not change."""
    source, index = node.args
    if not flow.is_tensor(source):
        layouts = flow.layouts.get(source)
        return layouts[index] if layouts is not None and not isinstance(index, slice) else no_axes(flow.value(node))
    layout = list(flow.layout(source))
    index = index if isinstance(index, tuple) else (index,)
    if Ellipsis in index:
        at = index.index(Ellipsis)
        missing = len(layout) - (len(index) - 1 - sum(i is None for i in index))
        index = (*index[:at], *[slice(None)] * missing, *index[at + 1 :])
    index = (*index, *[slice(None)] * (len(layout) - sum(i is not None for i in index)))
    out: list[Axis] = []
    for entry in index:
        axis = None if entry is None else layout.pop(0)
        if axis is not None and entry != slice(None):
            raise Frozen("channels are picked by index")
        if entry is None or isinstance(entry, slice):
            out.append(axis)
        elif not isinstance(entry, (int, fx.Node)) or (isinstance(entry, fx.Node) and flow.is_tensor(entry)):
            raise Frozen("indexing with a tensor")
    return tuple(out)


def _unary(*names: str) -> list:
    """Collect the elementwise functions of these names from torch, torch.nn.functional and operator, and the methods."""
    names = (*names, *(f"{name}_" for name in names))
    return [*names, *(getattr(place, name) for place in (torch, F, operator) for name in names if hasattr(place, name))]


def _table() -> dict:
    """Map every known function, method name and module type to its rule."""
    rules: dict = dict.fromkeys(CONVS, conv) | dict.fromkeys(NORMS, batch_norm)
    rules |= {nn.Linear: linear, nn.PReLU: prelu, nn.Flatten: reshape, nn.Unflatten: reshape}
    elementwise = [nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh]
    elementwise += [nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Softmax]
    elementwise += [nn.LogSoftmax, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout]
    elementwise += _unary("relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "sigmoid", "tanh")
    elementwise += _unary("hardswish", "hardsigmoid", "hardtanh", "softplus", "softsign", "logsigmoid", "softmax", "exp")
    elementwise += _unary("log_softmax", "dropout", "dropout1d", "dropout2d", "dropout3d", "clamp", "abs", "neg", "sqrt", "log")
    elementwise += _unary("contiguous", "to", "float", "half", "double", "bfloat16", "detach", "clone", "type", "square")
    elementwise += [stochastic_depth]
    rules |= dict.fromkeys(elementwise, same)
    for d, name in ((1, "1d"), (2, "2d"), (3, "3d")):
        for kind in ("MaxPool", "AvgPool", "LPPool", "AdaptiveAvgPool", "AdaptiveMaxPool", "ZeroPad", "ConstantPad"):
            rules[getattr(nn, kind + name)] = pool(d)
        for kind in ("ReflectionPad", "ReplicationPad", "CircularPad"):
            rules[getattr(nn, kind + name)] = pool(d)
        for kind in ("max_pool", "avg_pool", "lp_pool", "adaptive_avg_pool", "adaptive_max_pool"):
            rules |= {operation: pool(d) for place in (F, torch) if (operation := getattr(place, kind + name, None))}
    rules |= dict.fromkeys((nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, F.interpolate), resize)
    rules |= {F.pad: pad, torch._C._nn.pad: pad}
    rules |= dict.fromkeys(_unary("add", "sub", "mul", "div", "truediv", "maximum", "minimum", "pow"), broadcast)
    rules |= {operator.iadd: broadcast, operator.isub: broadcast, operator.imul: broadcast, operator.itruediv: broadcast}
    rules |= {"expand_as": broadcast, "expand": expand}
    rules |= dict.fromkeys(("mean", "sum", "amax", "amin", torch.mean, torch.sum, torch.amax, torch.amin), reduce)
    rules |= dict.fromkeys((torch.cat, torch.concat, torch.concatenate), cat)
    rules |= dict.fromkeys(("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"), reshape)
    rules |= dict.fromkeys((torch.reshape, torch.flatten, torch.squeeze, torch.unsqueeze), reshape)
    rules |= dict.fromkeys(("permute", torch.permute), permute)
    rules |= dict.fromkeys(("transpose", "swapaxes", torch.transpose, torch.swapaxes), transpose)
    rules |= dict.fromkeys(("chunk", "split", "tensor_split", torch.chunk, torch.split, torch.tensor_split), chunk)
    rules[operator.getitem] = getitem
    return rules


RULES = _table()
LAYERS = {*CONVS, *NORMS, nn.Linear}
