"""ShuffleNet v1 with three groups, the variant of Slimmable Networks."""

import torch
from torch import Tensor, nn

from .mobilenet import Stem
from .widths import initialise, scaled

GROUPS = 3
STEM = 24
# Channels at 1.0x and number of units of each stage; the first unit of a stage halves the map.
STAGES = ((240, 4), (480, 8), (960, 4))


def shuffle(x: Tensor) -> Tensor:
    """Deal the channels of the groups out in turn: [N, 3 * k, H, W] -> [N, k * 3, H, W]."""
    rows = x.unflatten(1, (GROUPS, -1))  # [N, 3, k, H, W]
    return rows.transpose(1, 2).flatten(1, 2)


class ShuffleUnit(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1: [N, in, H, W] -> [N, out, H / stride, W / stride].

    With stride 1 the input is added; with stride 2 its 3x3 average stands beside the out - in channels of the branch.
    The inside has a quarter of the output's channels, rounded down to whole groups.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int = GROUPS):
        super().__init__()
        hidden = outputs // (4 * GROUPS) * GROUPS
        branch = outputs - inputs if stride == 2 else outputs
        self.reduce = nn.Conv2d(inputs, hidden, 1, groups=groups, bias=False)
        self.reduce_norm = nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(hidden)
        self.expand = nn.Conv2d(hidden, branch, 1, groups=GROUPS, bias=False)
        self.expand_norm = nn.BatchNorm2d(branch)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = shuffle(self.relu(self.reduce_norm(self.reduce(x))))
        y = self.expand_norm(self.expand(self.depthwise_norm(self.depthwise(y))))
        return self.relu(x + y if self.pool is None else torch.cat([self.pool(x), y], 1))


class ShuffleNet(nn.Module):
    """A stem, three stages of shuffle units, average pooling, one linear layer. See `shufflenet`."""

    def __init__(self, in_channels: int, stem: int, outputs: list[int], num_classes: int, small_images: bool):
        super().__init__()
        self.stem = Stem(in_channels, stem, 1 if small_images else 2)
        self.maxpool = nn.Identity() if small_images else nn.MaxPool2d(3, stride=2)
        stages, inputs = [], stem
        for out, (_, units) in zip(outputs, STAGES):
            # The stem has too few channels to cut its first convolution into groups.
            first = ShuffleUnit(inputs, out, stride=2, groups=GROUPS if stages else 1)
            stages.append(nn.Sequential(first, *(ShuffleUnit(out, out, stride=1) for _ in range(units - 1))))
            inputs = out
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.stem(x))  # [N, 24, 55, 55] at 1.0x and 224 pixels
        return self.classifier(self.pool(self.stages(x)).flatten(1))


def shufflenet(
    width_mult: float = 1.0, num_classes: int = 1000, *, in_channels: int = 3, small_images: bool = False
) -> nn.Module:
    """Build ShuffleNet v1, g = 3: [N, in_channels, H, W] -> [N, num_classes].

    The stem has 24 * width_mult channels, rounded to a multiple of 3; the stages 10, 20 and 40 times as many. The
    max-pooling has no padding (112 -> 55). With small_images the stem has stride 1 and there is no max-pooling, for 32
    pixels.

    Source: Zhang et al. 2017 (1707.01083), table 1; stem, widths and ungrouped first convolution of Slimmable Networks
    (1812.08928).
    """
    stem = scaled(STEM, width_mult, GROUPS)
    outputs = [channels // STEM * stem for channels, _ in STAGES]
    return ShuffleNet(in_channels, stem, outputs, num_classes, small_images)
