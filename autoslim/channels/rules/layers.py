"""Rules of layers with weights, as modules and as functions: conv, linear, norms, prelu, attention's products."""

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

from autoslim.channels.rules.basics import Frozen, each, joined, moving
from autoslim.channels.segments import Axis, Layout, Segment

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONV_FUNCTIONS = (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def _operands(flow, node: fx.Node, module: nn.Module | None, *names: str) -> dict:
    """Return the arguments of the functional form, by name; for a layer, its own attributes and tensors."""
    if module is None:
        return {**dict.fromkeys(names), **flow.arguments(node, "input", *names)}
    given = {name: getattr(module, name, None) for name in names}
    return given | {"input": flow.first(node)}


def _owner(flow, module: nn.Module | None, weight, kinds: tuple) -> nn.Module | None:
    """Return the layer that keeps the sizes: `module`, or the one whose own weight a function is given."""
    if module is None and isinstance(weight, fx.Node) and weight.op == "get_attr":
        owner = flow.traced.modules.get(weight.target.rpartition(".")[0])
        return owner if isinstance(owner, kinds) else None
    return module


def _sizes(flow, node, module: nn.Module | None, **axes: Axis) -> None:
    for name, axis in axes.items() if module is not None else ():
        flow.size(node, module, name, None, axis)


def _bind(flow, node, module, given: dict, axes: dict) -> None:
    for name, axis in axes.items():
        weight = flow.weight(node, module, name, given.get(name))
        if weight is not None and weight.shape[0] > 1:
            weight.bind(0, axis)


def _spatial(flow, node: fx.Node, layout: Layout) -> tuple[Axis, ...]:
    """Return the spatial axes after a convolution; channels may lie along one of them where its size is kept (ECA)."""
    before, after = flow.value(flow.first(node)).shape, flow.value(node).shape
    for i in moving(layout):
        if i >= 2 and before[i] != after[i]:
            raise Frozen("the channels lie along a spatial axis")
    return layout[2:]


def conv(flow, node: fx.Node, module: nn.Module | None) -> Layout:
    """Conv1d/2d/3d: plain, depthwise (output follows the input) and grouped (every group keeps its leading channels)."""
    given = _operands(flow, node, module, "weight", "bias", "stride", "padding", "dilation", "groups")
    layout = flow.layout(given["input"])
    weight = flow.weight(node, module, "weight", given["weight"])
    if len(layout) != len(weight.shape):
        raise Frozen("an input without batch axis")
    if layout[0] is not None:
        raise Frozen("the channels are merged with the batch")
    spatial = _spatial(flow, node, layout)
    stride = given["stride"] if given["stride"] is not None else 1
    if any(axis is not None for axis in spatial) and {flow.plain(s) for s in (stride if _is_row(stride) else [stride])} != {1}:
        raise Frozen("the channels lie along a spatial axis that is strided over")
    axis, groups = layout[1], flow.plain(given["groups"] or 1)
    owner = _owner(flow, module, given["weight"], CONVS)
    if groups == 1:
        weight.bind(1, axis)
        out = weight.axis(0)
    elif weight.shape[1] == 1 and (axis is not None or weight.shape[0] == groups):
        multiplier = weight.shape[0] // groups
        if axis is None:
            out = weight.axis(0)
            flow.ties.freeze(out, flow.describe(node, "depthwise over a tensor of fixed width"))
        else:
            out = tuple(Segment(s.source, s.full, s.inner * multiplier) for s in axis)
            weight.bind(0, out)
        flow.size(node, module, "groups", given["groups"], axis)
        _sizes(flow, node, owner, groups=axis)
    else:
        weight.bind(1, flow.blocks(axis, groups)[0])
        out = weight.axis(0)
        flow.blocks(out, groups)
    after = flow.value(node).shape
    out = flow.layer(node, weight, out, [(after[0], None), *zip(after[2:], spatial)])
    _bind(flow, node, module, given, {"bias": out})
    _sizes(flow, node, owner, in_channels=axis, out_channels=out)
    return (None, out, *spatial)


def conv_transpose(flow, node: fx.Node, module: nn.Module | None) -> Layout:
    """ConvTranspose1d/2d/3d: weights are `[in, out / groups, ...]`."""
    given = _operands(flow, node, module, "weight", "bias", "stride", "padding", "output_padding", "groups")
    layout = flow.layout(given["input"])
    weight = flow.weight(node, module, "weight", given["weight"])
    if len(layout) != len(weight.shape):
        raise Frozen("an input without batch axis")
    if any(i != 1 for i in moving(layout)):
        raise Frozen("the channels are not on axis 1")
    axis, groups = layout[1], flow.plain(given["groups"] or 1)
    weight.bind(0, axis)
    if groups == 1:
        out = weight.axis(1)
    elif groups == weight.shape[0] and axis is not None:
        multiplier = weight.shape[1]
        out = tuple(Segment(s.source, s.full, s.inner * multiplier) for s in axis)
        flow.size(node, module, "groups", given["groups"], axis)
    else:
        flow.blocks(axis, groups)
        out = weight.axis(1) and weight.axis(1) * groups
    before = flow.value(given["input"]).shape
    out = flow.layer(node, weight, out, [(before[0], None), *((n, None) for n in before[2:])])
    _bind(flow, node, module, given, {"bias": out})
    _sizes(flow, node, _owner(flow, module, given["weight"], TRANSPOSED), in_channels=axis, out_channels=out)
    return (None, out, *layout[2:])


def linear(flow, node: fx.Node, module: nn.Module | None) -> Layout:
    """Linear over the last axis."""
    given = _operands(flow, node, module, "weight", "bias")
    layout = flow.layout(given["input"])
    weight = flow.weight(node, module, "weight", given["weight"])
    weight.bind(1, layout[-1])
    out = weight.axis(0)
    out = flow.layer(node, weight, out, list(zip(flow.value(node).shape[:-1], layout[:-1])))
    _bind(flow, node, module, given, {"bias": out})
    owner = _owner(flow, module, given["weight"], (nn.Linear,))
    _sizes(flow, node, owner, in_features=layout[-1], out_features=out)
    return (*layout[:-1], out)


def batch_norm(flow, node: fx.Node, module: nn.Module | None) -> Layout:
    """Batch norm: as wide as axis 1 of its input."""
    tensors = ("running_mean", "running_var", "weight", "bias")
    given = _operands(flow, node, module, *tensors)
    layout = flow.layout(given["input"])
    if layout[0] is not None:
        raise Frozen("the channels are merged with the batch")
    _bind(flow, node, module, given, dict.fromkeys(tensors, layout[1]))
    _sizes(flow, node, _owner(flow, module, given["weight"], BATCH_NORMS), num_features=layout[1])
    flow.member(node, layout[1])
    return layout


def instance_norm(flow, node: fx.Node, module: nn.Module | None) -> Layout:
    """Instance norm: as wide as axis 1 of its input."""
    given = _operands(flow, node, module, "running_mean", "running_var", "weight", "bias")
    layout = flow.layout(given["input"])
    if any(i != 1 for i in moving(layout)):
        raise Frozen("the channels are not on axis 1")
    if given["running_mean"] is not None:
        raise Frozen("instance statistics are kept over batches, which no width can share")
    _bind(flow, node, module, given, {"weight": layout[1], "bias": layout[1]})
    flow.size(node, module, "num_features", None, layout[1])
    flow.member(node, layout[1])
    return layout


def layer_norm(flow, node: fx.Node, module: nn.Module | None) -> Layout:
    """Layer norm and RMS norm over the last axes."""
    given = _operands(flow, node, module, "normalized_shape", "weight", "bias")
    layout = flow.layout(given["input"])
    dims = len(flow.value(given["normalized_shape"]))
    for name in ("weight", "bias"):
        weight = flow.weight(node, module, name, given[name])
        for dim, axis in enumerate(layout[len(layout) - dims :] if weight is not None else ()):
            weight.bind(dim, axis)
    flow.size(node, module, "normalized_shape", given["normalized_shape"], list(layout[len(layout) - dims :]))
    flow.member(node, layout[-1])
    return layout


def group_norm(flow, node: fx.Node, module: nn.Module | None) -> Layout:
    """Group norm: the width stays divisible by the number of groups, which stays what it is unless it is one a channel."""
    given = _operands(flow, node, module, "num_groups", "weight", "bias")
    layout = flow.layout(given["input"])
    if layout[0] is not None:
        raise Frozen("the channels are merged with the batch")
    axis, groups = layout[1], flow.plain(given["num_groups"])
    if groups == flow.value(given["input"]).shape[1]:
        flow.size(node, module, "num_groups", given["num_groups"], axis)
    else:
        flow.ties.keep_multiple(axis, groups, flow.describe(node, f"{groups} groups do not fit every part"))
    _bind(flow, node, module, given, {"weight": axis, "bias": axis})
    flow.size(node, module, "num_channels", None, axis)
    flow.member(node, axis)
    return layout


def prelu(flow, node: fx.Node, module: nn.Module | None) -> Layout:
    """PReLU with one slope for all channels, or one a channel."""
    given = _operands(flow, node, module, "weight")
    layout = flow.layout(given["input"])
    if len(layout) > 1:
        _bind(flow, node, module, given, {"weight": layout[1]})
        if flow.weight(node, module, "weight", given["weight"]).shape[0] > 1:
            flow.size(node, module, "num_parameters", None, layout[1])
    return layout


def weight_norm(flow, node: fx.Node, *_) -> Layout:
    """torch._weight_norm(v, g, dim): as `v`, with one magnitude in `g` for each row."""
    v, g = node.args[:2]
    why = flow.describe(node, "combined with a tensor of fixed width")
    for a, b, size in zip(flow.layout(v), flow.layout(g), flow.value(g).shape):
        if size > 1:
            flow.ties.tie(a, b, why)
    return flow.layout(v)


def matmul(flow, node: fx.Node, *_) -> Layout:
    """Matrix product `[..., m, k] @ [..., k, n]`: the inner axes are tied, and so are the batch axes."""
    a, b = (flow.layout(x) for x in node.args[:2])
    if min(len(a), len(b)) < 2:
        raise Frozen("a product with a vector")
    why = flow.describe(node, "multiplied with a tensor of fixed width")
    flow.ties.tie(a[-1], b[-2], why)
    dims = flow.value(node).dim()
    batch = []
    for position in range(-dims, -2):
        present = [(x, layout) for x, layout in zip(node.args, (a, b)) if len(layout) >= -position]
        wide = [layout[position] for x, layout in present if flow.value(x).shape[position] != 1]
        for other in wide[1:]:
            flow.ties.tie(wide[0], other, why)
        batch.append(joined(wide))
    return (*batch, a[-2], b[-1])


def einsum(flow, node: fx.Node, *_) -> Layout:
    """Einsum: axes of one letter are tied."""
    equation, operands = node.args[0], node.args[1:]
    if not isinstance(equation, str) or "." in equation or "->" not in equation:
        raise Frozen("an einsum without written-out letters")
    operands = operands[0] if isinstance(operands[0], (list, tuple)) else operands
    inputs, output = equation.replace(" ", "").split("->")
    why = flow.describe(node, "multiplied with a tensor of fixed width")
    axes: dict[str, Axis] = {}
    for letters, operand in zip(inputs.split(","), operands, strict=True):
        if len(set(letters)) < len(letters):
            raise Frozen("an einsum over a diagonal")
        for letter, axis in zip(letters, flow.layout(operand)):
            if letter in axes:
                flow.ties.tie(axes[letter], axis, why)
            axes[letter] = joined([axes.get(letter, axis), axis])
    return tuple(axes[letter] for letter in output)


def attention(flow, node: fx.Node, *_) -> Layout:
    """Scaled dot product attention: q `[..., L, E]`, k `[..., S, E]`, v `[..., S, V]` to `[..., L, V]`."""
    given = flow.arguments(node, "query", "key", "value", "attn_mask")
    q, k, v = (flow.layout(given[name]) for name in ("query", "key", "value"))
    why = flow.describe(node, "multiplied with a tensor of fixed width")
    flow.ties.tie(q[-1], k[-1], why)
    flow.ties.tie(k[-2], v[-2], why)
    if flow.is_tensor(given.get("attn_mask")) and k[-2] is not None:
        raise Frozen("a mask over channels")
    for a, b in ((q, k), (k, v)):
        for left, right in zip(a[:-2], b[:-2]):
            flow.ties.tie(left, right, why)
    return (*q[:-1], v[-1])


def _is_row(value) -> bool:
    return isinstance(value, (tuple, list))


def table() -> dict:
    """Return the rules of this file by function, method name or module type."""
    rules: dict = dict.fromkeys((*CONVS, *CONV_FUNCTIONS[:3]), conv)
    rules |= dict.fromkeys((*TRANSPOSED, *CONV_FUNCTIONS[3:]), conv_transpose)
    rules |= dict.fromkeys((nn.Linear, F.linear), linear)
    rules |= dict.fromkeys((*BATCH_NORMS, *each((F,), "batch_norm")), batch_norm)
    rules |= dict.fromkeys((*INSTANCE_NORMS, F.instance_norm), instance_norm)
    rules |= dict.fromkeys((nn.LayerNorm, F.layer_norm, *each((nn,), "RMSNorm"), *each((F,), "rms_norm")), layer_norm)
    rules |= dict.fromkeys((nn.GroupNorm, F.group_norm), group_norm)
    rules |= dict.fromkeys((nn.PReLU, F.prelu, torch.prelu), prelu)
    rules |= {torch._weight_norm: weight_norm, torch.einsum: einsum, F.scaled_dot_product_attention: attention}
    rules |= dict.fromkeys((torch.matmul, torch.bmm, operator.matmul, "matmul", "bmm", "__matmul__"), matmul)
    return rules


# Layers whose own tensors are followed: their output has the width that their rule says.
LAYERS = {*CONVS, *TRANSPOSED, *BATCH_NORMS, *INSTANCE_NORMS, nn.Linear, nn.LayerNorm, nn.GroupNorm, nn.PReLU}
LAYERS |= set(each((nn,), "RMSNorm"))
