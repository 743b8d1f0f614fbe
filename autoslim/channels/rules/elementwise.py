"""Rules of operations that keep the channels where they are: elementwise, pooling, padding, reductions."""

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn
from torchvision.ops import stochastic_depth

from autoslim.channels.rules.basics import Frozen, each, joined, no_axes
from autoslim.channels.segments import Axis, Layout, fixed

_MODULES = """
    ReLU ReLU6 RReLU LeakyReLU ELU CELU SELU GELU SiLU Mish Sigmoid Tanh Hardswish Hardsigmoid Hardtanh Hardshrink Softshrink
    Tanhshrink Threshold Softplus Softsign LogSigmoid Softmax Softmin LogSoftmax Softmax2d Identity Dropout Dropout1d Dropout2d
    Dropout3d AlphaDropout FeatureAlphaDropout LocalResponseNorm CrossMapLRN2d
"""
_UNARY = """
    relu relu6 rrelu leaky_relu elu celu selu gelu silu mish sigmoid tanh hardswish hardsigmoid hardtanh hardshrink softshrink
    tanhshrink threshold softplus softsign logsigmoid softmax softmin log_softmax dropout dropout1d dropout2d dropout3d
    alpha_dropout feature_dropout feature_alpha_dropout local_response_norm normalize exp expm1 log log1p log2 sqrt rsqrt square
    reciprocal abs absolute neg negative pos positive sign sin cos erf floor ceil round clamp clip clamp_min clamp_max nan_to_num
    contiguous to float half double bfloat16 long int bool cpu cuda type type_as detach clone alias requires_grad_ zero_ fill_
    bernoulli bernoulli_ uniform_ normal_ random_ zeros_like ones_like empty_like full_like rand_like randn_like isnan isinf
    logical_not bitwise_not invert cumsum_ fake_quantize sinc trunc frac logit
"""
_SEVERAL = """
    add sub subtract rsub mul multiply div divide true_divide truediv floordiv floor_divide mod remainder fmod pow maximum minimum
    fmax fmin where masked_fill lerp addcmul addcdiv eq ne lt le gt ge and_ or_ xor logical_and logical_or logical_xor atan2
    copy_ copysign hypot
"""
_IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow)
_REDUCTIONS = (
    "mean sum amax amin prod var std logsumexp nansum nanmean all any argmax argmin max min median var_mean std_mean norm"
)


def same(flow, node: fx.Node, *_) -> Layout:
    """Elementwise with one tensor: the layout of the first input."""
    return flow.layout(flow.first(node))


def fresh(flow, node: fx.Node, *_):
    """New tensors of sizes that the code gives: no axis changes (checked at other widths)."""
    return no_axes(flow.value(node))


def pool(dims: int):
    """Pooling or resizing over the last `dims` axes."""

    def rule(flow, node: fx.Node, *_):
        layout = flow.layout(flow.first(node))
        if any(axis is not None for axis in layout[len(layout) - dims :]):
            raise Frozen("the channels lie along a pooled axis")
        value = flow.value(node)
        return [layout] * len(value) if isinstance(value, (tuple, list)) else layout

    return rule


def unpool(flow, node: fx.Node, *_) -> Layout:
    """MaxUnpool: the indices of the maxima are as wide as the input."""
    layout, given = flow.layout(flow.first(node)), flow.arguments(node, "input", "indices")
    for axis, other in zip(layout, flow.layout(given["indices"])):
        flow.ties.tie(axis, other, flow.describe(node, "unpooled to where maxima of fixed width were"))
    return pool(len(layout) - 2)(flow, node)


def resize(flow, node: fx.Node, *_) -> Layout:
    """F.interpolate, nn.Upsample, grid_sample: everything after the channel axis is spatial."""
    layout = flow.layout(flow.first(node))
    return pool(len(layout) - 2)(flow, node)


def pad(flow, node: fx.Node, *_) -> Layout:
    """F.pad: two numbers for each of the last axes; along channels it adds constant ones."""
    given = flow.arguments(node, "input", "pad", "mode", "value")
    layout = list(flow.layout(given["input"]))
    amounts = [flow.plain(flow.item(given["pad"], i)) for i in range(len(flow.value(given["pad"])))]
    for i in range(len(amounts) // 2):
        axis, before, after = layout[-1 - i], *amounts[2 * i : 2 * i + 2]
        if axis is None or before == after == 0:
            continue
        if given.get("mode", "constant") != "constant" or min(before, after) < 0:
            raise Frozen("channels are padded by others")
        layout[-1 - i] = (*((fixed(before),) if before else ()), *axis, *((fixed(after),) if after else ()))
    return tuple(layout)


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
        out.append(joined(wide))
    for operand in operands:
        own, tensor = [axis for axis in flow.layout(operand) if axis is not None], flow.own_tensor(operand)
        if len(own) == 1 and tensor is not None:
            flow.member(tensor, own[0])
    return tuple(out)


def expand(flow, node: fx.Node, *_) -> Layout:
    """expand(sizes): axes are lined up from the right; one element stretches to the size of another tensor's axis, or a fixed one."""
    source, dims = flow.first(node), flow.value(node).dim()
    rest = node.args[1:] or tuple(node.kwargs.values())
    layout, before = flow.layout(source), flow.value(source).shape
    out: list[Axis] = []
    for position in range(-dims, 0):
        if -position <= len(layout) and before[position] > 1:
            out.append(layout[position])
        else:
            given = flow.item(rest[0], dims + position) if flow.is_row(rest[0]) else rest[dims + position]
            out.append(flow.shape_axis(given))
    return tuple(out)


def reduce(flow, node: fx.Node, *_):
    """mean, sum, max, var, ... over some axes; `max(x, dim)` gives values and indices."""
    given = flow.arguments(node, "input", "dim")
    if flow.is_tensor(given.get("dim")) or flow.is_tensor(given.get("other")):
        return broadcast(flow, node)
    dims = given.get("dim")
    return _over_axes(flow, node, None if isinstance(dims, bool) else dims)  # var(unbiased) and std(unbiased)


def norm(flow, node: fx.Node, *_):
    """norm(p, dim) and linalg.vector_norm(ord, dim)."""
    given = flow.arguments(node, "input", "p", "dim")
    return _over_axes(flow, node, given.get("dim"))


def _over_axes(flow, node: fx.Node, dims):
    layout, value = flow.layout(flow.first(node)), flow.value(node)
    several = isinstance(value, (tuple, list))
    if dims is None:
        gone = set(range(len(layout)))
    else:
        count = len(flow.value(dims)) if isinstance(flow.value(dims), (tuple, list)) else 0
        dims = [flow.item(dims, i) for i in range(count)] if count else [dims]
        gone = {flow.plain(d) % len(layout) for d in dims}
    if (value[0] if several else value).dim() == len(layout):
        out = tuple(None if i in gone else axis for i, axis in enumerate(layout))
    else:
        out = tuple(axis for i, axis in enumerate(layout) if i not in gone)
    return [out] * len(value) if several else out


def attribute(flow, node: fx.Node, *_) -> Layout:
    """x.data, x.T and x.mT; `values` and `indices` of what max, min and median along an axis give."""
    source, name = node.args[:2]
    if isinstance(flow.layouts[source], list):
        places = [i for i, piece in enumerate(flow.value(source)) if piece is getattr(flow.value(source), name)]
        if not places:
            raise Frozen("no rule for this attribute")
        return flow.layouts[source][places[0]]
    layout = flow.layout(source)
    if name in ("data", "real", "grad"):
        return layout
    if name in ("T", "mT") and len(layout) >= 2:
        return (*layout[:-2], layout[-1], layout[-2]) if name == "mT" else tuple(reversed(layout))
    raise Frozen("no rule for this attribute")


def _unary(text: str) -> list:
    names = [form for name in text.split() for form in (name, f"{name}_")]
    return [*names, *each((torch, F, operator, torch.special), *names)]


def table() -> dict:
    """Return the rules of this file by function, method name or module type."""
    rules: dict = dict.fromkeys([*each((nn,), *_MODULES.split()), *_unary(_UNARY), stochastic_depth], same)
    rules.update(dict.fromkeys((*_unary(_SEVERAL), *_IN_PLACE, "__and__", "__or__", "expand_as"), broadcast))
    for d, name in ((1, "1d"), (2, "2d"), (3, "3d")):
        kinds = ("MaxPool", "AvgPool", "LPPool", "AdaptiveAvgPool", "AdaptiveMaxPool", "FractionalMaxPool")
        kinds += ("ZeroPad", "ConstantPad", "ReflectionPad", "ReplicationPad", "CircularPad")
        kinds += ("max_pool", "avg_pool", "lp_pool", "adaptive_avg_pool", "adaptive_max_pool", "fractional_max_pool")
        rules.update(dict.fromkeys(each((nn, F, torch), *(kind + name for kind in kinds)), pool(d)))
        rules.update(dict.fromkeys(each((F, torch), f"max_pool{name}_with_indices"), pool(d)))
        rules.update(dict.fromkeys(each((nn, F), f"MaxUnpool{name}", f"max_unpool{name}"), unpool))
    upsample = each((nn, F), "Upsample", "UpsamplingNearest2d", "UpsamplingBilinear2d", "interpolate", "upsample", "grid_sample")
    rules.update(dict.fromkeys(upsample, resize))
    rules.update(dict.fromkeys((F.pad, torch._C._nn.pad), pad))
    rules.update({"expand": expand, torch.Tensor.expand: expand})
    rules.update(dict.fromkeys([*_REDUCTIONS.split(), *each((torch,), *_REDUCTIONS.split())], reduce))
    rules.update(dict.fromkeys(("norm", torch.norm, torch.linalg.vector_norm), norm))
    rules[getattr] = attribute
    made = ("new_zeros", "new_ones", "new_empty", "new_full", "new_tensor")
    made += ("zeros", "ones", "empty", "full", "rand", "randn", "arange", "linspace", "tensor", "eye", "as_tensor")
    rules.update(dict.fromkeys([*made, *each((torch,), *made)], fresh))
    return rules
