"""Tiny networks, each with one trait that is easy to get wrong, and what must be found in it stated beside its forward.

Of every class:
    shapes   sizes of its inputs, without the batch
    groups   group name: (full channels, unit, members)
    frozen   group name: a word that its reasons must hold
    segments layers whose output is not one whole group: (group, elements at full width, active elements a channel)
    masked   whether the subnet computes what the full network computes with the dropped channels set to zero
"""

from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import nn

OUTPUT = {"head": "output"}
HALF, QUARTER = Fraction(1, 2), Fraction(1, 4)


class Tricky(nn.Module):
    shapes = ((3, 8, 8),)
    groups: dict = {}
    frozen: dict = OUTPUT
    segments: dict = {}
    masked = True

    def pooled(self, x):
        return self.head(x.mean((2, 3)))

    @classmethod
    def inputs(cls, count, generator=None):
        drawn = [torch.randn(count, *shape, generator=generator) for shape in cls.shapes]
        return drawn[0] if len(drawn) == 1 else tuple(drawn)


class Plain(Tricky):
    groups = {"conv1": (16, 1, ("conv1", "bn1")), "conv2": (24, 1, ("conv2", "bn2"))}

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 24, 3, stride=2), nn.BatchNorm2d(24)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        return self.pooled(F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))))


class Residual(Tricky):
    groups = {"stem": (16, 1, ("stem", "bn", "b", "bn_b")), "a": (12, 1, ("a", "bn_a"))}

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
        self.a, self.bn_a = nn.Conv2d(16, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.b, self.bn_b = nn.Conv2d(12, 16, 1), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = torch.relu(self.bn(self.stem(x)))
        x = x + self.bn_b(self.b(F.relu(self.bn_a(self.a(x)))))
        return self.pooled(x.relu())


class Downsample(Tricky):
    groups = {"stem": (8, 1, ("stem",)), "a": (16, 1, ("a", "bn_a", "shortcut.0", "shortcut.1"))}

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.a, self.bn_a = nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16)
        self.shortcut = nn.Sequential(nn.Conv2d(8, 16, 1, stride=2), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.stem(x), inplace=True)
        y = self.bn_a(self.a(x))
        y += self.shortcut(x)
        return self.pooled(F.relu(y))


class Depthwise(Tricky):
    groups = {"expand": (16, 1, ("expand", "bn", "depthwise", "bn_d")), "project": (12, 1, ("project",))}

    def __init__(self):
        super().__init__()
        self.expand, self.bn = nn.Conv2d(3, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.depthwise, self.bn_d = nn.Conv2d(16, 16, 3, groups=16, bias=False), nn.BatchNorm2d(16)
        self.project = nn.Conv2d(16, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = F.relu6(self.bn_d(self.depthwise(F.relu6(self.bn(self.expand(x))))))
        return self.pooled(self.project(x))


class DepthwiseMultiplier(Tricky):
    groups = {"stem": (12, 1, ("stem", "wide", "bn"))}
    segments = {"wide": [("stem", 24, 2)], "bn": [("stem", 24, 2)]}

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3)
        self.wide, self.bn = nn.Conv2d(12, 24, 3, groups=12), nn.BatchNorm2d(24)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        return self.pooled(F.relu(self.bn(self.wide(self.stem(x)))))


class Grouped(Tricky):
    groups = {"stem": (16, 4, ("stem", "bn")), "grouped": (24, 4, ("grouped",)), "last": (8, 1, ("last",))}
    segments = {
        "stem": [("stem", 4, QUARTER)] * 4,
        "bn": [("stem", 4, QUARTER)] * 4,
        "grouped": [("grouped", 6, QUARTER)] * 4,
    }

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 24, 3, groups=4)
        self.last = nn.Conv2d(24, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.pooled(F.relu(self.last(F.relu(self.grouped(F.relu(self.bn(self.stem(x))))))))


class SqueezeExcite(Tricky):
    groups = {"stem": (16, 1, ("stem", "bn", "expand")), "reduce": (8, 1, ("reduce",))}

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce, self.expand = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = F.silu(self.bn(self.stem(x)))
        return self.pooled(x * torch.sigmoid(self.expand(F.relu(self.reduce(self.pool(x))))))


class SqueezeExciteLinear(Tricky):
    groups = {"stem": (16, 1, ("stem", "expand")), "reduce": (8, 1, ("reduce",))}

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.reduce, self.expand = nn.Linear(16, 8), nn.Linear(8, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        n, c, _, _ = x.shape
        gate = self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1).view(n, c)))).sigmoid()
        return self.pooled(x * gate.view(n, c, 1, 1))


class Concat(Tricky):
    groups = {"a": (8, 1, ("a", "bn")), "b": (12, 1, ("b", "bn")), "mix": (16, 1, ("mix",))}
    segments = {"bn": [("a", 8, 1), ("b", 12, 1)]}

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 12, 3)
        self.bn, self.mix = nn.BatchNorm2d(20), nn.Conv2d(20, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.pooled(F.relu(self.mix(F.relu(self.bn(torch.cat([self.a(x), self.b(x)], dim=1))))))


class ConcatTwice(Tricky):
    groups = {"stem": (8, 1, ("stem", "bn")), "mix": (12, 1, ("mix",))}
    segments = {"bn": [("stem", 8, 1), ("stem", 8, 1)]}

    def __init__(self):
        super().__init__()
        self.stem, self.bn, self.mix = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.stem(x)
        return self.pooled(F.relu(self.mix(F.relu(self.bn(torch.cat([x, x], -3))))))


class ConcatInput(Tricky):
    groups = {"stem": (8, 1, ("stem", "bn")), "mix": (12, 1, ("mix",))}
    segments = {"bn": [(None, 3, 0), ("stem", 8, 1)]}

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(11)
        self.mix, self.head = nn.Conv2d(11, 12, 1), nn.Linear(12, 5)

    def forward(self, x):
        return self.pooled(F.relu(self.mix(F.relu(self.bn(torch.cat((x, self.stem(x)), 1))))))


class ConcatAdded(Tricky):
    groups = {"wide#0": (8, 1, ("wide", "a", "bn")), "wide#1": (12, 1, ("wide", "b", "bn"))}
    segments = {
        "wide": [("wide#0", 8, 1), ("wide#1", 12, 1)],
        "a": [("wide#0", 8, 1)],
        "b": [("wide#1", 12, 1)],
        "bn": [("wide#0", 8, 1), ("wide#1", 12, 1)],
    }

    def __init__(self):
        super().__init__()
        self.wide, self.a, self.b = nn.Conv2d(3, 20, 3), nn.Conv2d(3, 8, 3), nn.Conv2d(3, 12, 3)
        self.bn, self.head = nn.BatchNorm2d(20), nn.Linear(20, 5)

    def forward(self, x):
        return self.pooled(F.relu(self.bn(self.wide(x) + torch.cat([self.a(x), self.b(x)], 1))))


class Chunk(Tricky):
    groups = {"stem": (16, 2, ("stem",)), "left": (12, 1, ("left", "right"))}
    segments = {"stem": [("stem", 8, HALF)] * 2}

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.left, self.right = nn.Conv2d(8, 12, 1), nn.Conv2d(8, 12, 3, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        a, b = self.stem(x).chunk(2, dim=1)
        return self.pooled(F.relu(self.left(F.relu(a)) + self.right(b.tanh())))


class Split(Tricky):
    groups = {"stem": (12, 1, ("stem",))}
    frozen = {"sizes#0": "sizes are written out", "sizes#1": "sizes are written out", **OUTPUT}

    def __init__(self):
        super().__init__()
        self.stem, self.sizes = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 10, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        a, b = torch.split(self.sizes(F.relu(self.stem(x))), [4, 6], dim=1)
        return self.pooled(b * a.mean(dim=1, keepdim=True))


class Shuffle(Tricky):
    groups = {"stem": (16, 2, ("stem", "bn")), "mix": (8, 1, ("mix",))}
    segments = {"stem": [("stem", 8, HALF)] * 2, "bn": [("stem", 8, HALF)] * 2}

    def __init__(self):
        super().__init__()
        self.stem, self.bn, self.mix = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)))
        n, c, h, w = x.size()
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
        return self.pooled(F.relu(self.mix(x)))


class ShuffleChunk(Tricky):
    groups = {"stem": (16, 2, ("stem",)), "mix": (8, 1, ("mix",))}
    segments = {"stem": [("stem", 8, HALF)] * 2}
    masked = False  # the pieces of a narrower shuffle hold other channels

    def __init__(self):
        super().__init__()
        self.stem, self.mix, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        n, c, h, w = x.shape
        x = x.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        a, b = torch.chunk(x, 2, 1)
        return self.pooled(F.relu(self.mix(a)) + self.mix(b))


class FlattenLinear(Tricky):
    groups = {"stem": (8, 1, ("stem", "bn")), "hidden": (12, 1, ("hidden",))}

    def __init__(self):
        super().__init__()
        self.stem, self.bn, self.pool = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.MaxPool2d(2)
        self.flatten, self.hidden, self.head = nn.Flatten(), nn.Linear(72, 12), nn.Linear(12, 5)

    def forward(self, x):
        x = self.flatten(self.pool(F.relu(self.bn(self.stem(x)))))
        return self.head(F.dropout(F.relu(self.hidden(x)), 0.0, self.training))


class ReusedConv(Tricky):
    groups = {"stem": (16, 1, ("stem", "twice"))}

    def __init__(self):
        super().__init__()
        self.stem, self.twice = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.pooled(F.relu(self.twice(F.max_pool2d(F.relu(self.twice(x)), 2))))


class SharedWeight(Tricky):
    groups = {"stem": (16, 1, ("stem", "a", "b"))}

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = (
            nn.Conv2d(3, 16, 3),
            nn.Conv2d(16, 16, 1, bias=False),
            nn.Conv2d(16, 16, 1, bias=False),
        )
        self.b.weight = self.a.weight
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.pooled(F.relu(self.b(F.relu(self.a(F.relu(self.stem(x)))))))


class SharedWeightOwnBias(SharedWeight):
    def __init__(self):
        super().__init__()
        self.a.bias, self.b.bias = nn.Parameter(torch.randn(16)), nn.Parameter(torch.randn(16))


class TwoInputs(Tricky):
    shapes = ((3, 8, 8), (2, 8, 8))
    groups = {"a": (12, 1, ("a", "b"))}

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 12, 3), nn.Conv2d(2, 12, 3), nn.Linear(12, 5)

    def forward(self, x, y):
        return self.pooled(F.relu(torch.add(self.a(x), self.b(y))))


class AuxHead(Tricky):
    groups = {"stem": (16, 1, ("stem",)), "last": (12, 1, ("last",)), "aux": (8, 1, ("aux", "bn_aux"))}
    frozen = {"head": "output", "aux_head": "output"}

    def __init__(self):
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 12, 3)
        self.aux, self.bn_aux, self.aux_head = nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8), nn.Linear(8, 5)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        main = self.pooled(F.relu(self.last(x)))
        if self.training:
            return main, self.aux_head(F.relu(self.bn_aux(self.aux(x))).mean((2, 3)))
        return main


class DataBranch(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)

    def forward(self, x):
        y = self.bn(self.conv(x))
        if y.sum() > 0:
            return y
        return y + 1


class Untraceable(Tricky):
    groups = {"first": (12, 1, ("first",)), "last": (8, 1, ("last",))}
    frozen = {"before": "cannot be traced", **OUTPUT}

    def __init__(self):
        super().__init__()
        self.first, self.before, self.branch = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 16, 1), DataBranch()
        self.last, self.head = nn.Conv2d(16, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        return self.pooled(F.relu(self.last(self.branch(self.before(F.relu(self.first(x)))))))


class UnknownOperation(Tricky):
    groups = {"first": (12, 1, ("first",)), "last": (8, 1, ("last",))}
    frozen = {"before": "cumsum: no rule", **OUTPUT}

    def __init__(self):
        super().__init__()
        self.first, self.before, self.last = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 16, 1), nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.pooled(F.relu(self.last(self.before(F.relu(self.first(x))).cumsum(dim=1))))


class WrittenSizes(Tricky):
    groups = {"first": (12, 1, ("first",))}
    frozen = {"before": "sizes are written out", **OUTPUT}

    def __init__(self):
        super().__init__()
        self.first, self.before, self.head = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 8, 1), nn.Linear(8 * 36, 5)

    def forward(self, x):
        return self.head(F.relu(self.before(F.relu(self.first(x)))).view(-1, 8 * 36))


class WrittenMultiplier(Tricky):
    groups = {"first": (12, 1, ("first",))}
    frozen = {"before": "sizes are written out", **OUTPUT}

    def __init__(self):
        super().__init__()
        self.first, self.before, self.head = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 8, 1), nn.Linear(4, 5)

    def forward(self, x):
        x = self.before(F.relu(self.first(x)))
        return self.pooled(x.reshape(x.shape[0], 2, 4, 6, 6).sum(1))


class Perceptron(Tricky):
    shapes = ((10,),)
    groups = {"a": (16, 1, ("a", "bn")), "b": (12, 1, ("b",))}

    def __init__(self):
        super().__init__()
        self.a, self.bn, self.b, self.head = nn.Linear(10, 16), nn.BatchNorm1d(16), nn.Linear(16, 12), nn.Linear(12, 5)

    def forward(self, x):
        return self.head(F.relu(self.b(F.relu(self.bn(self.a(x))))))


class Padding(Tricky):
    groups = {"stem": (16, 1, ("stem",)), "dilated": (12, 1, ("dilated",)), "same": (8, 1, ("same",))}

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, padding_mode="reflect")
        self.dilated = nn.Conv2d(16, 12, 3, dilation=2, padding=(2, 1), padding_mode="circular")
        self.same, self.head = nn.Conv2d(12, 8, 3, padding="same"), nn.Linear(8, 5)

    def forward(self, x):
        return self.pooled(F.relu(self.same(F.relu(self.dilated(F.relu(self.stem(x)))))))


class OneDimension(Tricky):
    shapes = ((3, 12),)
    groups = {"a": (16, 1, ("a", "bn")), "b": (8, 1, ("b",))}

    def __init__(self):
        super().__init__()
        self.a, self.bn = nn.Conv1d(3, 16, 3), nn.BatchNorm1d(16)
        self.pool, self.b, self.head = nn.AvgPool1d(2), nn.Conv1d(16, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(F.relu(self.b(self.pool(F.relu(self.bn(self.a(x)))))).amax(dim=-1))


class ThreeDimensions(Tricky):
    shapes = ((2, 4, 6, 6),)
    groups = {"a": (8, 1, ("a", "bn")), "b": (12, 1, ("b",))}

    def __init__(self):
        super().__init__()
        self.a, self.bn = nn.Conv3d(2, 8, 3), nn.BatchNorm3d(8)
        self.b, self.head = nn.Conv3d(8, 12, (1, 3, 3)), nn.Linear(12, 5)

    def forward(self, x):
        return self.head(F.relu(self.b(F.relu(self.bn(self.a(x))))).mean(dim=[2, 3, 4]))


class Parametrized(Tricky):
    groups = {"before": (16, 1, ("before",)), "normed": (12, 1, ("normed",)), "last": (8, 1, ("last",))}
    masked = False  # a weight is normalised over the inputs that are there

    def __init__(self):
        super().__init__()
        self.before, self.last, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(12, 8, 1), nn.Linear(8, 5)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(16, 12, 3))

    def forward(self, x):
        return self.pooled(F.relu(self.last(F.relu(self.normed(F.relu(self.before(x)))))))


class BareNorms(Tricky):
    groups = {"a": (16, 1, ("a", "bare")), "b": (12, 1, ("b", "forgetful"))}

    def __init__(self):
        super().__init__()
        self.a, self.bare = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16, affine=False)
        self.b, self.forgetful = nn.Conv2d(16, 12, 3), nn.BatchNorm2d(12, track_running_stats=False)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        return self.pooled(F.relu(self.forgetful(self.b(F.relu(self.bare(self.a(x)))))))


class Constant(Tricky):
    masked = False  # a constant is added to what was zero
    groups = {"first": (12, 1, ("first",)), "before": (16, 1, ("before", "shift"))}

    def __init__(self):
        super().__init__()
        self.first, self.before, self.head = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 16, 1), nn.Linear(16, 5)
        self.shift = nn.Parameter(torch.randn(1, 16, 1, 1))
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x):
        x = F.relu(self.first(x) * self.scale + 1) / 3
        return self.pooled(self.before(x) + self.shift)


class ChannelsLast(Tricky):
    groups = {"stem": (16, 1, ("stem", "down")), "up": (12, 1, ("up",))}

    def __init__(self):
        super().__init__()
        self.stem, self.up, self.down = nn.Conv2d(3, 16, 3), nn.Linear(16, 12), nn.Linear(12, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = self.down(F.gelu(self.up(x.permute(0, 2, 3, 1))))
        return self.pooled(x + y.permute(0, 3, 1, 2))


class OneReluTwice(Tricky):
    groups = {"body.0": (16, 1, ("body.0",)), "body.2": (12, 1, ("body.2",))}

    def __init__(self):
        super().__init__()
        relu = nn.ReLU(inplace=True)
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3), relu, nn.Conv2d(16, 12, 3), relu)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        return self.pooled(self.body(x))


class TwoNames(Tricky):
    groups = {"stem": (12, 1, ("stem", "twice"))}

    def __init__(self):
        super().__init__()
        self.stem, self.twice, self.head = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 1), nn.Linear(12, 5)
        self.again = self.twice

    def forward(self, x):
        return self.pooled(F.relu(self.again(F.relu(self.twice(F.relu(self.stem(x)))))))


class PlainList(Tricky):
    groups = {"a": (16, 1, ("a",)), "b": (12, 1, ("b",))}

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 12, 3), nn.Linear(12, 5)
        self.stages = [self.a, self.b]

    def forward(self, x):
        for stage in self.stages:
            x = F.relu(stage(x))
        return self.pooled(x)


class StandardizedConv(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class OwnConv(Tricky):
    groups = {
        "first": (12, 1, ("first",)),
        "before": (8, 1, ("before",)),
        "own": (8, 1, ("own",)),
        "last": (8, 1, ("last",)),
    }
    masked = False  # a weight is centred over the inputs that are there

    def __init__(self):
        super().__init__()
        self.first, self.before, self.own = (
            nn.Conv2d(3, 12, 3),
            nn.Conv2d(12, 8, 1),
            StandardizedConv(8, 8, 3, padding=1),
        )
        self.last, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        return self.pooled(F.relu(self.last(F.relu(self.own(F.relu(self.before(F.relu(self.first(x)))))))))


class Transposed(Tricky):
    groups = {
        "first": (12, 1, ("first",)),
        "before": (16, 1, ("before",)),
        "up": (12, 1, ("up",)),
        "last": (8, 1, ("last",)),
    }

    def __init__(self):
        super().__init__()
        self.first, self.before = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 16, 1)
        self.up, self.last, self.head = nn.ConvTranspose2d(16, 12, 2, stride=2), nn.Conv2d(12, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        return self.pooled(F.relu(self.last(F.relu(self.up(F.relu(self.before(F.relu(self.first(x)))))))))


class WeightRead(Tricky):
    groups = {"first": (12, 1, ("first",)), "stem": (8, 1, ("stem",)), "hidden": (16, 1, ("hidden",))}
    masked = False  # a mean of the weights that are there

    def __init__(self):
        super().__init__()
        self.first, self.stem = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 8, 1)
        self.hidden, self.head = nn.Linear(8, 16), nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.stem(F.relu(self.first(x)))).mean((2, 3))
        return self.head(F.relu(self.hidden(x))) + self.hidden.weight.mean()


class Tokens(Tricky):
    shapes = ((12,),)
    groups = {"conv": (16, 1, ("conv",))}

    def __init__(self):
        super().__init__()
        self.embed, self.conv, self.head = nn.Embedding(10, 6), nn.Conv1d(6, 16, 3), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(F.relu(self.conv(self.embed(x).transpose(1, 2))).mean(2))

    @classmethod
    def inputs(cls, count, generator=None):
        return torch.randint(0, 10, (count, 12), generator=generator)


class SpatialAttention(Tricky):
    groups = {"stem": (16, 1, ("stem",))}
    frozen = {"gate": "one channel", **OUTPUT}
    masked = False  # a mean over the channels knows how many there are

    def __init__(self):
        super().__init__()
        self.stem, self.gate, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(1, 1, 3, padding=1), nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.pooled(x * self.gate(x.mean(1, keepdim=True)).sigmoid())


class BatchFolded(Tricky):
    shapes = ((2, 3, 8, 8),)
    groups = {"stem": (16, 1, ("stem", "bn")), "mix": (12, 1, ("mix",))}

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
        self.mix, self.head = nn.Linear(16, 12), nn.Linear(12, 5)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x.flatten(0, 1)))).mean((-1, -2))
        x = x.view(-1, 2, x.shape[-1])
        return self.head(F.relu(self.mix(x)).sum(1))


CASES = [*Tricky.__subclasses__(), SharedWeightOwnBias]


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and BN statistic a value of its own, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = max(1, parameter[0].numel()) if parameter.dim() > 1 else 1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model


def call(network: nn.Module, inputs):
    """Run a network on one input or on a tuple of inputs."""
    return network(*inputs) if isinstance(inputs, tuple) else network(inputs)
