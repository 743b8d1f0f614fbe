"""More tiny networks in the manner of `tricky`: convolutions and norms of every kind, gates, attention, odd modules."""

from collections import namedtuple
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import FrozenBatchNorm2d, StochasticDepth
from tricky import HALF, OUTPUT, QUARTER, Tricky

THIRD, SIXTH = Fraction(1, 3), Fraction(1, 6)


class Layered(Tricky):
    """A class of its own so that the cases of this file are its subclasses."""


# Convolutions ------------------------------------------------------------------------------


class GroupedTwice(Layered):
    """Two groups, then three: both only fit parts of a sixth."""

    groups = {"stem": (16, 2, ("stem",)), "g1": (24, 6, ("g1",)), "g2": (12, 3, ("g2",))}
    segments = {
        "stem": [("stem", 8, HALF)] * 2,
        "g1": [("g1", 4, SIXTH)] * 6,
        "g2": [("g2", 4, THIRD)] * 3,
    }

    def __init__(self):
        super().__init__()
        self.stem, self.g1, self.g2 = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3, groups=2), nn.Conv2d(24, 12, 1, groups=3)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        return self.pooled(F.relu(self.g2(F.relu(self.g1(F.relu(self.stem(x)))))))


class MultiplierAdded(Layered):
    """Two channels of a depthwise conv for one of its input, added to a plain conv, which so moves in pairs."""

    groups = {"plain": (24, 2, ("plain", "stem", "wide"))}
    segments = {"stem": [("plain", 12, HALF)]}

    def __init__(self):
        super().__init__()
        self.plain, self.stem, self.head = nn.Conv2d(3, 24, 3), nn.Conv2d(3, 12, 1), nn.Linear(24, 5)
        self.wide = nn.Conv2d(12, 24, 3, groups=12)

    def forward(self, x):
        return self.pooled(F.relu(self.plain(x) + self.wide(F.relu(self.stem(x)))))


class TransposedDepthwise(Layered):
    groups = {"stem": (12, 1, ("stem", "up", "wide"))}
    segments = {"wide": [("stem", 24, 2)]}

    def __init__(self):
        super().__init__()
        self.stem, self.up = nn.Conv2d(3, 12, 3), nn.ConvTranspose2d(12, 12, 2, stride=2, groups=12, bias=False)
        self.wide, self.head = nn.ConvTranspose2d(12, 24, 3, groups=12), nn.Linear(24, 5)

    def forward(self, x):
        return self.pooled(F.relu(self.wide(F.relu(self.up(F.relu(self.stem(x)))))))


class BatchStandardized(nn.Conv2d):
    """timm's StdConv2d."""

    def forward(self, x):
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None, training=True, momentum=0.0, eps=1e-6
        ).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class ScaledStandardized(nn.Conv2d):
    """The NFNets' conv: variance and mean of each filter, a learned gain."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

    def forward(self, x):
        var, mean = torch.var_mean(self.weight, dim=[1, 2, 3], keepdim=True)
        weight = (self.weight - mean) / torch.sqrt(var + 1e-5) * self.gain
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Standardized(Layered):
    groups = {
        "stem": (16, 1, ("stem", "shortcut", "shortcut.gain")),
        "a": (12, 1, ("a",)),
        "b": (8, 2, ("b", "b.gain")),
        "c": (6, 2, ("c",)),
    }
    segments = {"b": [("b", 4, HALF)] * 2, "b.gain": [("b", 4, HALF)] * 2, "c": [("c", 3, HALF)] * 2}
    masked = False  # weights are normalised over the inputs that are there

    def __init__(self):
        super().__init__()
        self.stem, self.a = BatchStandardized(3, 16, 3), BatchStandardized(16, 12, 3, padding=1, bias=False)
        self.b = ScaledStandardized(12, 8, 1)
        self.c, self.shortcut, self.head = nn.Conv2d(8, 6, 1, groups=2), ScaledStandardized(3, 16, 3), nn.Linear(6, 5)

    def forward(self, x):
        x = F.relu(self.stem(x) + self.shortcut(x))
        return self.pooled(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))))


class CalledByFunction(Layered):
    """Layers whose weights are handed to a function."""

    groups = {
        "conv": (12, 1, ("conv", "bn", "depthwise")),
        "fc": (8, 1, ("fc",)),
    }
    masked = False  # no layer is called, so none can be masked

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12)
        self.depthwise, self.fc, self.head = nn.Conv2d(12, 12, 3, groups=12), nn.Linear(12, 8), nn.Linear(8, 5)

    def forward(self, x):
        x = F.conv2d(x, self.conv.weight, self.conv.bias, padding=1)
        bn = self.bn
        x = F.relu(F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, False, 0.1, bn.eps))
        x = F.conv2d(x, self.depthwise.weight, bias=self.depthwise.bias, groups=x.shape[1])
        return self.head(F.relu(F.linear(F.relu(x).mean((2, 3)), self.fc.weight, self.fc.bias)))


class SameConv(nn.Conv2d):
    """timm's Conv2dSame."""

    def forward(self, x):
        h, w = x.size()[-2:]
        (kh, kw), (sh, sw) = self.kernel_size, self.stride
        rows, columns = max((-(h // -sh) - 1) * sh + kh - h, 0), max((-(w // -sw) - 1) * sw + kw - w, 0)
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2), value=0)
        return F.conv2d(x, self.weight, self.bias, self.stride, (0, 0), self.dilation, self.groups)


class ActivatedNorm(nn.BatchNorm2d):
    """timm's BatchNormAct2d."""

    def __init__(self, features):
        super().__init__(features)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x):
        self._check_input_dim(x)
        factor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        training = self.training or (self.running_mean is None and self.running_var is None)
        x = F.batch_norm(
            x,
            self.running_mean if not self.training or self.track_running_stats else None,
            self.running_var if not self.training or self.track_running_stats else None,
            self.weight,
            self.bias,
            training,
            factor,
            self.eps,
        )
        return self.act(x)


class SameAndActivated(Layered):
    groups = {"stem": (12, 1, ("stem", "bn", "depthwise", "bn2")), "project": (8, 1, ("project",))}

    def __init__(self):
        super().__init__()
        self.stem, self.bn = SameConv(3, 12, 3, stride=2, bias=False), ActivatedNorm(12)
        self.depthwise, self.bn2 = SameConv(12, 12, 3, groups=12, bias=False), ActivatedNorm(12)
        self.project, self.head = nn.Conv2d(12, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        x = self.bn2(self.depthwise(self.bn(self.stem(x))))
        return self.pooled(F.relu(self.project(x)))


class Normalized(nn.Module):
    """A parametrization of one's own: rows of unit length."""

    def forward(self, weight):
        return weight / weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


class OwnParametrization(Layered):
    groups = {"stem": (16, 1, ("stem",)), "conv": (12, 1, ("conv",)), "last": (8, 1, ("last",))}
    masked = False  # a weight is normalised over the inputs that are there

    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 12, 3)
        self.last, self.head = nn.Conv2d(12, 8, 1), nn.Linear(8, 5)
        nn.utils.parametrize.register_parametrization(self.conv, "weight", Normalized())

    def forward(self, x):
        return self.pooled(F.relu(self.last(F.relu(self.conv(F.relu(self.stem(x)))))))


# Norms -------------------------------------------------------------------------------------


class ChannelNorm(nn.LayerNorm):
    """torchvision's LayerNorm2d."""

    def forward(self, x):
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class ResponseNorm(nn.Module):
    """GRN of ConvNeXt V2, channels last."""

    def __init__(self, dim):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(1, 1, 1, dim)), nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, x):
        g = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        n = g / (g.mean(dim=-1, keepdim=True) + 1e-6)
        return self.gamma * (x * n) + self.beta + x


class ConvNeXt(Layered):
    groups = {
        "stem": (16, 1, ("stem", "norm0", "depthwise", "norm", "down", "scale")),
        "up": (24, 1, ("up", "grn.gamma", "grn.beta")),
    }
    masked = False  # means over the channels

    def __init__(self):
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 16, 3), ChannelNorm(16)
        self.depthwise, self.norm = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.LayerNorm(16, eps=1e-6)
        self.up, self.act, self.grn, self.down = nn.Linear(16, 24), nn.GELU(), ResponseNorm(24), nn.Linear(24, 16)
        self.scale, self.drop = nn.Parameter(1e-6 * torch.ones(16)), StochasticDepth(0.5, "row")
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.norm0(self.stem(x))
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(self.grn(self.act(self.up(y))))
        return self.pooled(x + self.drop(y.permute(0, 3, 1, 2)))


class Norms(Layered):
    groups = {
        "a": (16, 4, ("a", "gn")),
        "b": (12, 1, ("b", "frozen_bn", "one", "each")),
        "c": (8, 1, ("c", "inst", "bare")),
        "d": (8, 1, ("d", "rms")),
    }
    masked = False  # norms over several channels

    def __init__(self):
        super().__init__()
        self.a, self.gn = nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16)
        self.b, self.one, self.each = nn.Conv2d(16, 12, 3, padding=1), nn.GroupNorm(1, 12), nn.GroupNorm(12, 12)
        self.frozen_bn = FrozenBatchNorm2d(12)
        self.c, self.inst, self.bare = nn.Conv2d(12, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.InstanceNorm2d(8)
        self.d, self.rms, self.head = nn.Linear(8, 8), nn.RMSNorm(8), nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.gn(self.a(x)))
        x = F.relu(self.each(self.one(self.frozen_bn(self.b(x)))))
        x = F.relu(self.bare(self.inst(self.c(x))) + 0.1)
        return self.head(F.relu(self.rms(self.d(x.mean((2, 3))))))


class MaskableNorms(Layered):
    groups = {"a": (16, 1, ("a", "sync")), "b": (12, 1, ("b",)), "c": (8, 1, ("c", "inst"))}

    def __init__(self):
        super().__init__()
        self.a, self.sync, self.slopes = nn.Conv2d(3, 16, 3), nn.SyncBatchNorm(16), nn.PReLU(16)
        self.b, self.slope = nn.Conv2d(16, 12, 3), nn.PReLU()
        self.near, self.c, self.inst = nn.LocalResponseNorm(2), nn.Conv2d(12, 8, 3), nn.InstanceNorm2d(8, affine=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.near(self.slopes(self.sync(self.a(x))))
        x = self.slope(self.b(x))
        return self.pooled(F.relu(self.inst(self.c(x))))


# Gates -------------------------------------------------------------------------------------


class Gates(Layered):
    """Efficient channel attention by a conv over the channels; then squeeze and excitation with a hard sigmoid."""

    groups = {
        "stem": (16, 1, ("stem",)),
        "mid": (12, 1, ("mid", "fc2")),
        "fc1": (8, 1, ("fc1",)),
    }
    frozen = {"eca": "one channel", **OUTPUT}

    def __init__(self):
        super().__init__()
        self.stem, self.eca = nn.Conv2d(3, 16, 3), nn.Conv1d(1, 1, kernel_size=3, padding=1, bias=False)
        self.mid, self.fc1, self.fc2 = nn.Conv2d(16, 12, 1), nn.Conv2d(12, 8, 1), nn.Conv2d(8, 12, 1)
        self.pool, self.gate, self.head = nn.AdaptiveAvgPool2d(1), nn.Hardsigmoid(inplace=True), nn.Linear(12, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = self.eca(self.pool(x).squeeze(-1).transpose(-1, -2))
        x = x * y.transpose(-1, -2).unsqueeze(-1).sigmoid().expand_as(x)
        x = self.mid(x)
        return self.pooled(x * self.gate(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True))))))


class BlockAttention(Layered):
    """CBAM."""

    groups = {"stem": (16, 1, ("stem", "mlp.2")), "mlp.0": (8, 1, ("mlp.0",))}
    frozen = {"spatial": "one channel", **OUTPUT}
    masked = False  # a mean over the channels knows how many there are

    def __init__(self):
        super().__init__()
        self.stem, self.spatial = nn.Conv2d(3, 16, 3), nn.Conv2d(2, 1, 3, padding=1, bias=False)
        self.mlp = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 16))
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        gate = self.mlp(x.mean((2, 3))) + self.mlp(F.adaptive_max_pool2d(x, 1).flatten(1))
        x = x * gate.sigmoid()[:, :, None, None]
        gate = torch.cat([torch.max(x, dim=1, keepdim=True)[0], torch.mean(x, dim=1, keepdim=True)], dim=1)
        return self.pooled(x * torch.sigmoid(self.spatial(gate)))


class Affine(Layered):
    """Learned tensors: a scale a channel in a list, an affine map, an embedding of the position, a query."""

    groups = {
        "stem": (16, 1, ("stem", "scales.0", "scales.1", "alpha", "beta", "key")),
        "value": (12, 1, ("value",)),
    }
    masked = False  # constants are added to what was zero

    def __init__(self):
        super().__init__()
        self.stem, self.scales = nn.Conv2d(3, 16, 3), nn.ParameterList([nn.Parameter(torch.rand(16)) for _ in range(2)])
        self.alpha, self.beta = nn.Parameter(torch.ones(1, 16, 1, 1)), nn.Parameter(torch.zeros(1, 16, 1, 1))
        self.position, self.query = nn.Parameter(torch.randn(1, 36, 16)), nn.Parameter(torch.randn(1, 2, 16))
        self.key, self.value, self.head = nn.Linear(16, 16), nn.Linear(16, 12), nn.Linear(12, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        for scale in self.scales:
            x = x * scale.view(1, -1, 1, 1)
        x = self.alpha * x + self.beta
        x = x.flatten(2).transpose(1, 2) + self.position
        x = torch.cat([self.query.expand(x.shape[0], -1, -1), x], dim=1)
        attention = (self.query.expand(x.shape[0], -1, -1) @ self.key(x).transpose(1, 2)).softmax(-1)
        return self.head((attention @ F.relu(self.value(x))).sum(1))


# Attention ---------------------------------------------------------------------------------


class Heads(Layered):
    """Heads by numbers that the module keeps: each head narrows, the stem does not care."""

    groups = {"stem": (16, 1, ("stem", "proj")), "qkv": (48, 12, ("qkv",))}
    segments = {"qkv": [("qkv", 4, Fraction(1, 12))] * 12}
    masked = False  # the scale knows the width of a head

    def __init__(self):
        super().__init__()
        self.heads, self.head_dim = 4, 4
        self.stem, self.qkv, self.proj = nn.Conv2d(3, 16, 3), nn.Linear(16, 48), nn.Linear(16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.stem(x)).flatten(2).transpose(1, 2)
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        attention = ((q * self.head_dim**-0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
        x = x + self.proj((attention @ v).transpose(1, 2).reshape(n, t, -1))
        return self.head(x.mean(1))


class HeadsOfShape(Layered):
    """Heads as C // heads of the input: all narrow together."""

    groups = {"stem": (16, 4, ("stem", "qkv", "proj"))}
    segments = {
        "stem": [("stem", 4, QUARTER)] * 4,
        "qkv": [("stem", 4, QUARTER)] * 12,
        "proj": [("stem", 4, QUARTER)] * 4,
    }
    masked = False  # scaled by the width of a head

    def __init__(self):
        super().__init__()
        self.heads = 4
        self.stem, self.qkv, self.proj = nn.Conv2d(3, 16, 3), nn.Linear(16, 48), nn.Linear(16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.stem(x)).flatten(2).transpose(1, 2)
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.head((x + self.proj(y.transpose(1, 2).reshape(n, t, c))).mean(1))


class NonLocal(Layered):
    groups = {"stem": (16, 1, ("stem", "out")), "g": (8, 1, ("g", "theta", "phi"))}

    def __init__(self):
        super().__init__()
        self.inter = 8
        self.stem, self.out, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 16, 1), nn.Linear(16, 5)
        self.theta, self.phi, self.g = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        n = x.size(0)
        g = self.g(x).view(n, self.inter, -1).permute(0, 2, 1)
        theta = self.theta(x).view(n, self.inter, -1).permute(0, 2, 1)
        y = torch.bmm(torch.matmul(theta, self.phi(x).view(n, self.inter, -1)).softmax(dim=-1), g)
        y = y.permute(0, 2, 1).contiguous().view(n, self.inter, *x.size()[2:])
        return self.pooled(x + self.out(y))


class Einsum(Layered):
    groups = {"stem": (16, 1, ("stem", "out")), "q": (8, 1, ("q", "k")), "v": (12, 1, ("v",))}

    def __init__(self):
        super().__init__()
        self.stem, self.out, self.head = nn.Conv2d(3, 16, 3), nn.Linear(12, 16), nn.Linear(16, 5)
        self.q, self.k, self.v = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 1), nn.Conv2d(16, 12, 1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        q, k, v = self.q(x).flatten(2), self.k(x).flatten(2), self.v(x).flatten(2)
        attention = torch.einsum("ncs, nct -> nst", q, k).softmax(-1)
        y = self.out(torch.einsum("nst,nct->nsc", attention, v))
        return self.pooled(x + y.transpose(1, 2).unflatten(2, x.shape[2:]))


class TorchAttention(Layered):
    groups = {"first": (12, 1, ("first",)), "last": (8, 1, ("last",))}
    frozen = {"before": "MultiheadAttention attention: no rule", **OUTPUT}

    def __init__(self):
        super().__init__()
        self.first, self.before, self.attention = (
            nn.Conv2d(3, 12, 3),
            nn.Conv2d(12, 16, 1),
            nn.MultiheadAttention(16, 4, batch_first=True),
        )
        self.last, self.head = nn.Linear(16, 8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.before(F.relu(self.first(x))).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(F.relu(self.last(x)).mean(1))


# Odd modules -------------------------------------------------------------------------------


class Pyramid(Layered):
    """FPN: lateral convs added top down, one head on every level; a dict of outputs."""

    groups = {
        "c1": (8, 1, ("c1",)),
        "c2": (12, 1, ("c2",)),
        "inner.0": (16, 1, ("inner.0", "inner.1")),
        "tower": (8, 1, ("tower",)),
    }
    frozen = {"head": "output"}

    def __init__(self):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.inner = nn.ModuleList([nn.Conv2d(8, 16, 1), nn.Conv2d(12, 16, 1)])
        self.tower, self.head = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        features = {}
        features["a"] = F.relu(self.c1(x))
        features["b"] = F.relu(self.c2(features["a"]))
        inner = [conv(y) for conv, y in zip(self.inner, features.values())]
        inner[0] = inner[0] + F.interpolate(inner[1], size=inner[0].shape[-2:], mode="nearest")
        return {name: self.head(F.relu(self.tower(y))) for name, y in zip(features, inner)}


class SharedHead(Layered):
    """One head on two feature maps of different layers ties them; a named tuple of outputs."""

    groups = {"p3": (12, 1, ("p3", "p4")), "tower": (8, 1, ("tower", "bn"))}
    frozen = {"head": "output"}

    def __init__(self):
        super().__init__()
        self.p3, self.p4 = nn.Conv2d(3, 12, 3), nn.Conv2d(3, 12, 3, stride=2)
        self.tower, self.bn, self.head = nn.Conv2d(12, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return Levels(*(self.head(F.relu(self.bn(self.tower(F.relu(p))))) for p in (self.p3(x), self.p4(x))))


Levels = namedtuple("Levels", "p3 p4")


class Bag(Layered):
    """A dict of modules, a hook, `isinstance` in forward, a number that is both a size and a factor."""

    groups = {"layers.a": (16, 1, ("layers.a",)), "layers.b": (12, 1, ("layers.b",))}
    masked = False  # multiplied by the width

    def __init__(self):
        super().__init__()
        self.width = 16
        self.layers = nn.ModuleDict({"a": nn.Conv2d(3, 16, 3), "b": nn.Conv2d(16, 12, 1)})
        self.layers["b"].register_forward_hook(_double)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        assert isinstance(x, torch.Tensor) and not torch.jit.is_scripting()
        for name, layer in self.layers.items():
            x = F.relu(layer(x))
            if name == "a":
                x = x.reshape(x.shape[0], self.width, -1) * self.width**-0.5
                x = x.view(-1, self.width, 6, 6) if x.dim() == 3 else x
        return self.pooled(x)


def _double(module, inputs, out):
    return out * 2


class Sigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = x.sigmoid()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return grad * y * (1 - y)


class OwnSigmoid(nn.Module):
    def forward(self, x):
        return Sigmoid.apply(x)


class OwnFunction(Layered):
    groups = {"first": (12, 1, ("first",)), "before": (16, 1, ("before",)), "last": (8, 1, ("last",))}
    masked = False  # sigmoid(0) is not 0

    def __init__(self):
        super().__init__()
        self.first, self.before, self.act = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 16, 1), OwnSigmoid()
        self.last, self.head = nn.Conv2d(16, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        return self.pooled(F.relu(self.last(self.act(self.before(F.relu(self.first(x)))))))


class DictInput(Layered):
    shapes = ((3, 8, 8), (2, 8, 8))
    groups = {"a": (12, 1, ("a", "b"))}

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 12, 3), nn.Conv2d(2, 12, 3), nn.Linear(12, 5)

    def forward(self, batch):
        x = self.a(batch["image"])
        if "depth" in batch:
            x = x + self.b(batch["depth"])
        return self.pooled(F.relu(x))

    @classmethod
    def inputs(cls, count, generator=None):
        return dict(zip(("image", "depth"), super().inputs(count, generator)))


CASES = Layered.__subclasses__()
