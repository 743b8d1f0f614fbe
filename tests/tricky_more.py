"""More tiny networks in the manner of `tricky`: concatenations, pieces, shuffles, reshapes, convolutions of every kind."""

from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import nn
from tricky import HALF, OUTPUT, QUARTER, Tricky

THIRD, SIXTH = Fraction(1, 3), Fraction(1, 6)
WRITTEN = "sizes are written out"


class Piecewise(Tricky):
    """A class of its own so that the cases of this file are its subclasses."""


# Concatenations ----------------------------------------------------------------------------


class CatNested(Piecewise):
    groups = {"a": (8, 1, ("a", "bn")), "b": (12, 1, ("b", "bn")), "mix": (16, 1, ("mix",))}
    segments = {"bn": [("a", 8, 1), ("b", 12, 1), ("a", 8, 1), ("a", 8, 1)]}

    def __init__(self):
        super().__init__()
        self.a, self.b, self.bn = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 12, 3), nn.BatchNorm2d(36)
        self.mix, self.head = nn.Conv2d(36, 16, 1), nn.Linear(16, 5)

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        x = torch.cat([torch.cat((a, b), 1), torch.cat(tensors=[a, a], dim=1)], axis=1)
        return self.pooled(F.relu(self.mix(F.relu(self.bn(x)))))


class CatFrozen(Piecewise):
    groups = {"a": (8, 1, ("a", "bn")), "mix": (12, 1, ("mix",))}
    frozen = {"b": "no rule", **OUTPUT}
    segments = {"bn": [("a", 8, 1), (None, 6, 0), ("a", 8, 1)]}

    def __init__(self):
        super().__init__()
        self.a, self.b, self.bn = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 6, 3), nn.BatchNorm2d(22)
        self.mix, self.head = nn.Conv2d(22, 12, 1), nn.Linear(12, 5)

    def forward(self, x):
        a = self.a(x)
        return self.pooled(F.relu(self.mix(F.relu(self.bn(torch.cat([a, self.b(x).cumsum(1), a], 1))))))


class CatGrouped(Piecewise):
    groups = {"a": (8, 1, ("a", "b")), "grouped": (12, 3, ("grouped",))}
    segments = {"b": [("a", 8, 1)] * 2, "grouped": [("grouped", 4, THIRD)] * 3}

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 16, 3)
        self.grouped, self.head = nn.Conv2d(24, 12, 3, groups=3), nn.Linear(12, 5)

    def forward(self, x):
        return self.pooled(F.relu(self.grouped(F.relu(torch.cat([self.a(x), self.b(x)], 1)))))


class CatGroupedAcross(Piecewise):
    """The end of a group lies inside the second tensor: [a0 a1 a2 b0 | b1 b2 b3 b4], in pairs of channels."""

    groups = {"a": (6, 1, ("a", "b")), "b#0": (4, 2, ("b",)), "grouped": (8, 2, ("grouped",))}
    segments = {
        "b": [("b#0", 2, HALF), ("a", 6, 1), ("b#0", 2, HALF)],
        "grouped": [("grouped", 4, HALF)] * 2,
    }

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 10, 3)
        self.grouped, self.head = nn.Conv2d(16, 8, 3, groups=2), nn.Linear(8, 5)

    def forward(self, x):
        return self.pooled(F.relu(self.grouped(F.relu(torch.cat([self.a(x), self.b(x)], 1)))))


class CatGroupNorm(Piecewise):
    groups = {"a": (8, 4, ("a", "gn")), "b": (12, 4, ("b", "gn")), "mix": (8, 1, ("mix", "each"))}
    segments = {"gn": [("a", 8, 1), ("b", 12, 1)]}
    masked = False  # a norm over several channels knows how many there are

    def __init__(self):
        super().__init__()
        self.a, self.b, self.gn = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 12, 3), nn.GroupNorm(4, 20)
        self.mix, self.each, self.head = nn.Conv2d(20, 8, 1), nn.GroupNorm(8, 8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.gn(torch.cat([self.a(x), self.b(x)], 1))
        return self.pooled(F.relu(self.each(self.mix(F.relu(x)))))


class FocusAndPyramid(Piecewise):
    """YOLO: pixels to channels by slicing, then one tensor pooled several times, each time beside the others."""

    groups = {"stem": (8, 1, ("stem", "bn")), "mix": (12, 1, ("mix",)), "last": (8, 1, ("last",))}
    segments = {"bn": [("stem", 8, 1)] * 4}

    def __init__(self):
        super().__init__()
        self.stem, self.bn, self.mix = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(32), nn.Conv2d(32, 12, 1)
        self.pool, self.last, self.head = nn.MaxPool2d(3, 1, 1), nn.Conv2d(36, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[:, :, ::2, 1::2], x[..., 1::2, 1::2]], 1)
        y = [F.relu(self.mix(F.relu(self.bn(x))))]
        y.extend(self.pool(y[-1]) for _ in range(2))
        return self.pooled(F.relu(self.last(torch.cat(y, 1))))


class UNet(Piecewise):
    groups = {
        "enc1": (8, 1, ("enc1",)),
        "enc2": (12, 1, ("enc2",)),
        "dec": (8, 1, ("dec",)),
    }
    frozen = {"head": "output"}

    def __init__(self):
        super().__init__()
        self.enc1, self.enc2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.dec, self.head = nn.Conv2d(20, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x1 = F.relu(self.enc1(x))
        x2 = F.interpolate(F.relu(self.enc2(x1)), size=x1.shape[2:], mode="bilinear", align_corners=False)
        rows, columns = x1.size(2) - x2.size(2), x1.size(3) - x2.size(3)
        x2 = F.pad(x2, [rows // 2, rows - rows // 2, columns // 2, columns - columns // 2])
        return self.head(F.relu(self.dec(torch.cat([x2, x1], dim=1))))


# Pieces ------------------------------------------------------------------------------------


class SplitByAttribute(Piecewise):
    """One size for all pieces, kept as an attribute."""

    groups = {"stem": (16, 2, ("stem",)), "left": (12, 1, ("left", "right"))}
    segments = {"stem": [("stem", 8, HALF)] * 2}

    def __init__(self):
        super().__init__()
        self.half = 8
        self.stem, self.left, self.right = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 12, 1), nn.Conv2d(8, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        a, b = torch.split(self.stem(x), self.half, dim=1)
        return self.pooled(F.relu(self.left(F.relu(a)) + self.right(b.tanh())))


class SplitBySizes(Piecewise):
    groups = {"stem#0": (4, 1, ("stem",)), "stem#1": (12, 1, ("stem",)), "left": (8, 1, ("left", "right"))}
    segments = {"stem": [("stem#0", 4, 1), ("stem#1", 12, 1)]}

    def __init__(self):
        super().__init__()
        self.sizes = [4, 12]
        self.stem, self.left, self.right = nn.Conv2d(3, 16, 3), nn.Conv2d(4, 8, 1), nn.Conv2d(12, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        a, b = self.stem(x).split(self.sizes, 1)
        return self.pooled(F.relu(self.left(F.relu(a)) + self.right(b.tanh())))


class SplitFromShape(Piecewise):
    groups = {"stem": (16, 4, ("stem",)), "left": (8, 1, ("left", "right"))}
    segments = {"stem": [("stem", 4, QUARTER)] * 4}
    masked = True

    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 16, 3), nn.Conv2d(4, 8, 1), nn.Conv2d(12, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        c = x.shape[1]
        a, b = torch.split(x, [c // 4, c - c // 4], dim=1)
        return self.pooled(F.relu(self.left(F.relu(a)) + self.right(b.tanh())))


class TensorSplit(Piecewise):
    groups = {"stem": (12, 3, ("stem",)), "left": (8, 1, ("left", "right"))}
    frozen = {"rows": WRITTEN, **OUTPUT}
    segments = {"stem": [("stem", 4, THIRD)] * 3}

    def __init__(self):
        super().__init__()
        self.stem, self.rows = nn.Conv2d(3, 12, 3), nn.Conv2d(3, 12, 3)
        self.left, self.right, self.head = nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        a, b, c = self.stem(x).tensor_split(3, dim=1)
        d, _, e = torch.tensor_split(self.rows(x), (4, 8), dim=1)
        return self.pooled(F.relu(self.left(F.relu(a) * b.tanh() + c)) * self.right(d + e))


class ChunkUneven(Piecewise):
    groups = {"even": (9, 3, ("even",)), "last": (8, 1, ("last",))}
    frozen = {"odd": "different sizes", **OUTPUT}
    segments = {"even": [("even", 3, THIRD)] * 3}

    def __init__(self):
        super().__init__()
        self.even, self.odd = nn.Conv2d(3, 9, 3), nn.Conv2d(3, 10, 3)
        self.last, self.head = nn.Conv2d(4, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        a, b, c = self.even(x).chunk(4, 1)  # three pieces of three
        *_, d = self.odd(x).chunk(4, 1)
        return self.pooled(F.relu(self.last(torch.cat([(a * b + c).mean(1, keepdim=True), d, d, d], 1))))

    masked = False  # a mean over channels


class Unbound(Piecewise):
    groups = {"stem": (16, 2, ("stem",)), "mix": (8, 1, ("mix",))}
    frozen = {"taken": "one by one", **OUTPUT}
    segments = {"stem": [("stem", 8, HALF)] * 2}

    def __init__(self):
        super().__init__()
        self.stem, self.taken = nn.Conv2d(3, 16, 3), nn.Conv2d(3, 2, 3)
        self.mix, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        gate, _ = self.taken(x).unbind(1)
        x = self.stem(x)
        n, c, h, w = x.shape
        a, b = x.view(n, 2, c // 2, h, w).unbind(dim=1)
        return self.pooled(F.relu(self.mix(F.relu(a) * b.sigmoid())) * gate.unsqueeze(1))


class Slices(Piecewise):
    groups = {
        "own#0": (4, 1, ("own",)),
        "own#1": (8, 1, ("own",)),
        "twofold": (16, 2, ("twofold",)),
        "first#1": (12, 1, ("first",)),
        "behind#0": (6, 1, ("behind",)),
        "mix": (8, 1, ("mix", "other")),
    }
    frozen = {"first#0": WRITTEN, "behind#1": WRITTEN, **OUTPUT}
    segments = {
        "own": [("own#0", 4, 1), ("own#1", 8, 1)],
        "twofold": [("twofold", 8, HALF)] * 2,
        "first": [(None, 4, 0), ("first#1", 12, 1)],
        "behind": [("behind#0", 6, 1), (None, 8, 0)],
    }

    def __init__(self):
        super().__init__()
        self.c = 4
        self.own, self.twofold = nn.Conv2d(3, 12, 3), nn.Conv2d(3, 16, 3)
        self.first, self.behind = nn.Conv2d(3, 16, 3), nn.Conv2d(3, 14, 3)
        self.mix, self.other, self.head = nn.Conv2d(4 + 8 + 4 + 8, 8, 1), nn.Conv2d(8 + 8 + 12 + 6, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        own, half, first, behind = self.own(x), self.twofold(x), self.first(x), self.behind(x)
        c = half.size(1)
        a = torch.cat([own[:, : self.c], half[:, c // 2 :], first[:, :4], behind[:, -8:]], 1)
        b = torch.cat([own[:, self.c :, ...], half[:, : c // 2], first[:, 4:], behind[:, :-8]], 1)
        return self.pooled(F.relu(self.mix(F.relu(a)) + self.other(b.sigmoid() - 0.5)))

    masked = True


class Narrow(Piecewise):
    groups = {"twofold": (16, 2, ("twofold",)), "plain#1": (8, 1, ("plain",)), "mix": (8, 1, ("mix",))}
    frozen = {"plain#0": WRITTEN, **OUTPUT}
    segments = {"twofold": [("twofold", 8, HALF)] * 2, "plain": [(None, 4, 0), ("plain#1", 8, 1)]}

    def __init__(self):
        super().__init__()
        self.twofold, self.plain = nn.Conv2d(3, 16, 3), nn.Conv2d(3, 12, 3)
        self.mix, self.head = nn.Conv2d(8 + 4 + 12, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        half, plain = self.twofold(x), self.plain(x)
        half = half.narrow(1, 0, half.shape[1] // 2)
        return self.pooled(F.relu(self.mix(F.relu(torch.cat([half, torch.narrow(plain, 1, 0, 4), plain], 1)))))


class SelectiveKernel(Piecewise):
    groups = {"a": (16, 1, ("a", "b", "choose")), "squeeze": (8, 1, ("squeeze",))}
    segments = {"choose": [("a", 16, 1)] * 2}

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 16, 3, padding=2, dilation=2)
        self.squeeze, self.choose, self.head = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 32, 1), nn.Linear(16, 5)

    def forward(self, x):
        x = torch.stack([F.relu(self.a(x)), F.relu(self.b(x))], dim=1)
        gate = self.choose(F.relu(self.squeeze(x.sum(1).mean((2, 3), keepdim=True))))
        n, c, h, w = gate.shape
        gate = torch.softmax(gate.view(n, 2, c // 2, h, w), dim=1)
        return self.pooled((x * gate).sum(dim=1))


class Res2Net(Piecewise):
    """The last piece passes; the last of the convs is added to nothing."""

    groups = {
        "stem": (16, 4, ("stem", "bn", "convs.0", "convs.1")),
        "convs.2": (4, 1, ("convs.2",)),
        "mix": (12, 1, ("mix", "shortcut")),
    }
    segments = {
        "stem": [("stem", 4, QUARTER)] * 4,
        "bn": [("stem", 4, QUARTER)] * 4,
        "convs.0": [("stem", 4, QUARTER)],
        "convs.1": [("stem", 4, QUARTER)],
    }

    def __init__(self):
        super().__init__()
        self.width, self.count = 4, 3
        self.stem, self.bn = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
        self.convs = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)])
        self.mix, self.shortcut, self.head = nn.Conv2d(16, 12, 1), nn.Conv2d(3, 12, 3), nn.Linear(12, 5)

    def forward(self, x):
        pieces = torch.split(F.relu(self.bn(self.stem(x))), self.width, 1)
        piece = out = None
        for i in range(self.count):
            piece = F.relu(self.convs[i](pieces[i] if i == 0 else piece + pieces[i]))
            out = piece if i == 0 else torch.cat((out, piece), 1)
        out = torch.cat((out, pieces[self.count]), 1)
        return self.pooled(F.relu(self.mix(out) + self.shortcut(x)))


class Halves(Piecewise):
    """Gated linear units, and the fields of what `max` and `median` give."""

    groups = {"a": (16, 2, ("a",)), "b": (12, 2, ("b",)), "c": (8, 1, ("c",))}
    segments = {"a": [("a", 8, HALF)] * 2, "b": [("b", 6, HALF)] * 2}

    def __init__(self):
        super().__init__()
        self.a, self.b, self.glu = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 12, 1), nn.GLU(1)
        self.c, self.head = nn.Conv2d(6, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.c(self.glu(self.b(F.glu(self.a(x), dim=-3))))).flatten(2)
        return self.head(x.max(2).values + torch.median(x, dim=-1)[0] - x.min(dim=-1).values)


class Ghost(Piecewise):
    """The first module keeps all it makes, the second makes more than it keeps."""

    groups = {
        "primary": (8, 1, ("primary", "cheap")),
        "second#0": (4, 1, ("second", "cheap2")),
        "second#1": (4, 1, ("second", "cheap2")),
    }
    segments = {
        "second": [("second#0", 4, 1), ("second#1", 4, 1)],
        "cheap2": [("second#0", 4, 1), ("second#1", 4, 1)],
    }

    def __init__(self):
        super().__init__()
        self.out_chs, self.out_chs2 = 16, 12
        self.primary, self.cheap = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.second, self.cheap2 = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        a = F.relu(self.primary(x))
        x = torch.cat([a, F.relu(self.cheap(a))], dim=1)[:, : self.out_chs, :, :]
        a = F.relu(self.second(x))
        return self.pooled(torch.cat([a, F.relu(self.cheap2(a))], dim=1)[:, : self.out_chs2, :, :])


class PartialConv(Piecewise):
    """FasterNet: a part of the channels is convolved, the others pass."""

    groups = {
        "stem#0": (4, 1, ("stem", "down")),
        "stem#1": (12, 1, ("stem", "down")),
        "conv": (4, 1, ("conv",)),
        "up": (24, 1, ("up",)),
    }
    segments = {
        "stem": [("stem#0", 4, 1), ("stem#1", 12, 1)],
        "down": [("stem#0", 4, 1), ("stem#1", 12, 1)],
    }

    def __init__(self):
        super().__init__()
        self.dim_conv, self.dim_untouched = 4, 12
        self.stem, self.conv = nn.Conv2d(3, 16, 3), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.up, self.down, self.head = nn.Conv2d(16, 24, 1), nn.Conv2d(24, 16, 1), nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        a, b = torch.split(x, [self.dim_conv, self.dim_untouched], dim=1)
        y = torch.cat((self.conv(a), b), 1)
        return self.pooled(x + self.down(F.gelu(self.up(y))))


class CrossStage(Piecewise):
    """YOLOv8's C2f."""

    groups = {
        "cv1": (16, 2, ("cv1", "m.0.1", "m.1.1")),
        "m.0.0": (6, 1, ("m.0.0",)),
        "m.1.0": (6, 1, ("m.1.0",)),
        "cv2": (12, 1, ("cv2",)),
    }
    segments = {"cv1": [("cv1", 8, HALF)] * 2, "m.0.1": [("cv1", 8, HALF)], "m.1.1": [("cv1", 8, HALF)]}

    def __init__(self):
        super().__init__()
        self.cv1, self.cv2 = nn.Conv2d(3, 16, 1), nn.Conv2d(32, 12, 1)
        self.m = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 3, padding=1)) for _ in range(2))
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(y[-1] + m(y[-1]) for m in self.m)
        return self.pooled(F.relu(self.cv2(torch.cat(y, 1))))


class PaddedShortcut(Piecewise):
    """CIFAR ResNet, option A: zeros before and behind the channels of the shortcut."""

    groups = {"stem": (8, 1, ("stem", "wide"))}
    frozen = {"wide#0": "fixed width", "wide#2": "fixed width", **OUTPUT}
    segments = {"wide": [(None, 4, 0), ("stem", 8, 1), (None, 4, 0)]}

    def __init__(self):
        super().__init__()
        self.planes = 16
        self.stem, self.wide = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.planes // 4, self.planes // 4), "constant", 0)
        return self.pooled(F.relu(self.wide(x) + shortcut))


class Zeros(Piecewise):
    """Zeros that are made in forward: as wide as a tensor beside a sum, of a written width in a concatenation."""

    groups = {"first": (8, 1, ("first",)), "b": (12, 1, ("b",))}
    frozen = {"stem": "fixed width", **OUTPUT}

    def __init__(self):
        super().__init__()
        self.first, self.stem, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(12, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.stem(F.relu(self.first(x)))
        x = x + torch.zeros(x.shape[0], 8, 1, 1)
        x = torch.cat([x, torch.ones(x.shape[0], 4, *x.shape[2:])], 1)
        return self.pooled(F.relu(self.b(x)))


# Shuffles ----------------------------------------------------------------------------------


class Shuffles(Piecewise):
    groups = {"stem": (16, 4, ("stem",)), "mid": (12, 2, ("mid",)), "last": (8, 1, ("last",))}
    segments = {"stem": [("stem", 4, QUARTER)] * 4, "mid": [("mid", 6, HALF)] * 2}

    def __init__(self):
        super().__init__()
        self.stem, self.shuffle, self.mid = nn.Conv2d(3, 16, 3), nn.ChannelShuffle(4), nn.Conv2d(16, 12, 1)
        self.last, self.head = nn.Conv2d(12, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.mid(self.shuffle(self.stem(x))))
        return self.pooled(F.relu(self.last(F.channel_shuffle(x, 2))))


class ShuffledCat(Piecewise):
    """ShuffleNet v2: two branches, interleaved; then each conv of a group sees one channel of each."""

    groups = {"a": (8, 1, ("a", "b", "depthwise", "grouped")), "mix": (12, 1, ("mix",))}
    segments = {"depthwise": [("a", 16, 2)], "grouped": [("a", 8, 1)]}

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.grouped, self.mix, self.head = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 12, 1), nn.Linear(12, 5)

    def forward(self, x):
        a = self.a(x)
        x = torch.cat((a, self.b(x)), dim=1)
        n, channels, h, w = x.data.size()
        x = x.view(n, 2, channels // 2, h, w)
        x = torch.transpose(x, 1, 2).contiguous()
        x = self.depthwise(x.view(n, -1, h, w))
        return self.pooled(F.relu(self.mix(F.relu(self.grouped(x) + a))))


class PixelShuffles(Piecewise):
    groups = {"stem": (16, 4, ("stem",)), "up": (20, 4, ("up",)), "deep": (6, 1, ("deep", "bn")), "last": (8, 1, ("last",))}
    segments = {"bn": [("deep", 24, 4)]}

    def __init__(self):
        super().__init__()
        self.stem, self.shuffle = nn.Conv2d(3, 16, 3), nn.PixelShuffle(2)
        self.up, self.deep = nn.Conv2d(4, 20, 1), nn.Conv2d(5, 6, 1)
        self.unshuffle, self.bn, self.last = nn.PixelUnshuffle(2), nn.BatchNorm2d(24), nn.Conv2d(96, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.up(self.shuffle(self.stem(x))))
        x = self.deep(F.pixel_shuffle(x, 2))
        x = F.relu(self.bn(self.unshuffle(x)))
        return self.pooled(F.relu(self.last(F.pixel_unshuffle(x, downscale_factor=2))))


class SpaceToDepth(Piecewise):
    """By hand, as TResNet (blocks outermost) and back as ESPCN (channels outermost)."""

    groups = {"stem": (8, 1, ("stem", "bn")), "mix": (24, 4, ("mix",)), "last": (8, 1, ("last",))}
    segments = {"bn": [("stem", 8, 1)] * 4}

    def __init__(self):
        super().__init__()
        self.bs = 2
        self.stem, self.bn, self.mix = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(32), nn.Conv2d(32, 24, 1)
        self.last, self.head = nn.Conv2d(6, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        n, c, h, w = x.size()
        x = x.view(n, c, h // self.bs, self.bs, w // self.bs, self.bs).permute(0, 3, 5, 1, 2, 4).contiguous()
        x = F.relu(self.bn(x.view(n, c * self.bs**2, h // self.bs, w // self.bs)))
        x = self.mix(x)
        n, c, h, w = x.size()
        x = x.view(n, c // self.bs**2, self.bs, self.bs, h, w).permute(0, 1, 4, 2, 5, 3).contiguous()
        x = x.view(n, c // self.bs**2, h * self.bs, w * self.bs)
        return self.pooled(F.relu(self.last(x)))


CASES = Piecewise.__subclasses__()
