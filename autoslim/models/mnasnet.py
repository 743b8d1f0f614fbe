"""MNasNet-B1, the base network of AutoSlim-MNasNet."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from .widths import initialise, scaled

# Expansion, channels, blocks, stride of the first block, kernel of the depthwise convolutions.
STAGES = (
    (1, 16, 1, 1, 3),
    (3, 24, 3, 2, 3),
    (3, 40, 3, 2, 5),
    (6, 80, 3, 2, 5),
    (6, 96, 2, 1, 3),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
STRIDES = tuple(stage[3] for stage in STAGES)


def _conv_norm(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, relu: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    layers = OrderedDict(conv=conv, norm=nn.BatchNorm2d(outputs))
    if relu:
        layers["relu"] = nn.ReLU6(inplace=True)
    return nn.Sequential(layers)


class MobileBlock(nn.Module):
    """1x1 expansion (none where it is 1), depthwise kxk, 1x1 projection; added to its input where the shapes allow.

    [N, in, H, W] -> [N, out, H / stride, W / stride].
    """

    def __init__(self, inputs: int, outputs: int, stride: int, kernel: int, expansion: int):
        super().__init__()
        hidden = expansion * inputs
        self.expand = _conv_norm(inputs, hidden) if expansion != 1 else nn.Identity()
        self.depthwise = _conv_norm(hidden, hidden, kernel, stride, groups=hidden)
        self.project = _conv_norm(hidden, outputs, relu=False)
        self.adds_input = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.adds_input else y


class MNasNet(nn.Module):
    """A stem, seventeen mobile blocks, a 1x1 head, average pooling, one linear layer. See `mnasnet`."""

    def __init__(self, in_channels: int, widths: Sequence[int], stem_stride: int, strides: Sequence[int], num_classes: int):
        super().__init__()
        stem, *outputs, head = widths
        self.stem = _conv_norm(in_channels, stem, 3, stem_stride)
        blocks, inputs = [], stem
        for (expansion, _, count, _, kernel), out, stride in zip(STAGES, outputs, strides):
            for index in range(count):
                blocks.append(MobileBlock(inputs, out, 1 if index else stride, kernel, expansion))
                inputs = out
        self.blocks = nn.Sequential(*blocks)
        self.head = _conv_norm(inputs, head)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(head, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))  # [N, 1280, 7, 7] at 1.0x and 224 pixels
        return self.classifier(self.pool(x).flatten(1))


def mnasnet(
    width_mult: float = 1.0,
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    stem_stride: int = 2,
    strides: Sequence[int] = STRIDES,
    round_nearest: int = 8,
) -> nn.Module:
    """Build MNasNet-B1 with ReLU6 and no dropout: [N, in_channels, H, W] -> [N, num_classes].

    Widths are multiples of round_nearest; the hidden width of a block is 3 or 6 x its rounded input; the head is
    1280 * max(1, width_mult). The defaults halve the image five times, for 224 pixels; `stem_stride=1,
    strides=(1, 1, 2, 2, 1, 2, 1)` halves it three times, for 32 pixels.

    Raises ValueError if strides does not hold 7 numbers.
    Source: Tan et al. 2018 (1807.11626), figure 7 without squeeze-excite; the block table of AutoSlim (1903.11728).
    """
    if len(strides) != len(STAGES):
        raise ValueError(f"strides has {len(strides)} numbers; MNasNet takes {len(STAGES)}, one for each stage")
    outputs = [scaled(stage[1], width_mult, round_nearest) for stage in STAGES]
    widths = [scaled(32, width_mult, round_nearest), *outputs, scaled(1280, max(1.0, width_mult), round_nearest)]
    return MNasNet(in_channels, widths, stem_stride, strides, num_classes)
