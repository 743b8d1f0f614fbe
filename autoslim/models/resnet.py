"""The ResNets of 6n + 2 layers for 32-pixel images."""

from collections import OrderedDict

from torch import Tensor, nn

from .mobilenet import Stem
from .widths import initialise, scaled


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: [N, in, H, W] -> [N, out, H / stride, W / stride]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(out_channels)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm1(self.conv1(x)))
        return self.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNetCifar(nn.Module):
    """A stem, three stages of basic blocks, average pooling, one linear layer. See `resnet_cifar`."""

    def __init__(self, in_channels: int, widths: tuple[int, int, int], blocks: int, num_classes: int, stem_stride: int):
        super().__init__()
        first, second, third = widths
        self.stem = Stem(in_channels, first, stem_stride)
        self.stage1 = _stage(first, first, blocks, stride=1)
        self.stage2 = _stage(first, second, blocks, stride=2)
        self.stage3 = _stage(second, third, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(third, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # [N, 16, 32, 32] at 1.0x
        x = self.stage3(self.stage2(self.stage1(x)))  # [N, 64, 8, 8]
        return self.classifier(self.pool(x).flatten(1))


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [BasicBlock(out_channels, out_channels) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(in_channels, out_channels, stride), *rest)


def resnet_cifar(
    depth: int = 20,
    width_mult: float = 1.0,
    num_classes: int = 10,
    *,
    in_channels: int = 3,
    stem_stride: int = 1,
    round_nearest: int = 4,
) -> nn.Module:
    """Build the CIFAR ResNet of 16, 32 and 64 channels: [N, in_channels, 32, 32] -> [N, num_classes].

    Where the map shrinks, the shortcut is a 1x1 convolution with BN (option B), not zero padding (option A, which the
    paper uses on CIFAR), so that every shortcut is an ordinary layer with a width. A stem_stride of 2 quarters the cost.

    Raises ValueError if depth is not 6n + 2.
    Source: He et al. 2015 (1512.03385), section 4.2.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth={depth} is not 6n + 2; take 8, 14, 20, 32, 44, 56 or 110")
    first, second, third = (scaled(c, width_mult, round_nearest) for c in (16, 32, 64))
    return ResNetCifar(in_channels, (first, second, third), depth // 6, num_classes, stem_stride)
