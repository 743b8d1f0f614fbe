"""MobileNet v1, and torchvision's MobileNet v2 in a layout for 32-pixel images."""

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models import MobileNetV2

from .widths import initialise, scaled

V1_CHANNELS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
V1_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)

# Expansion, channels, blocks, stride of the first block. The 24-channel stage keeps its resolution.
V2_CIFAR_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class Stem(nn.Module):
    """3x3 convolution, BN, ReLU: [N, in, H, W] -> [N, out, H / stride, W / stride]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.norm(self.conv(x)))


class SeparableBlock(nn.Module):
    """Depthwise 3x3, then pointwise 1x1, each with BN and ReLU: [N, in, H, W] -> [N, out, H / stride, W / stride]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(in_channels)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.pointwise_norm = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.depthwise_norm(self.depthwise(x)))
        return self.relu(self.pointwise_norm(self.pointwise(x)))


class MobileNetV1(nn.Module):
    """A stem, thirteen depthwise-separable blocks, average pooling, one linear layer. See `mobilenet_v1`."""

    def __init__(
        self,
        in_channels: int,
        stem_channels: int,
        channels: Sequence[int],
        stem_stride: int,
        strides: Sequence[int],
        num_classes: int,
        dropout: float,
    ):
        super().__init__()
        self.stem = Stem(in_channels, stem_channels, stem_stride)
        inputs = [stem_channels, *channels[:-1]]
        self.blocks = nn.Sequential(*map(SeparableBlock, inputs, channels, strides))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels[-1], num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.blocks(self.stem(x))).flatten(1)  # [N, C]
        return self.classifier(self.dropout(x))


def mobilenet_v1(
    width_mult: float = 1.0,
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    stem_stride: int = 2,
    strides: Sequence[int] = V1_STRIDES,
    dropout: float = 0.0,
    round_nearest: int = 8,
) -> nn.Module:
    """Build MobileNet v1: [N, in_channels, H, W] -> [N, num_classes].

    Every width is rounded to a multiple of round_nearest, the last one (1024 at 1.0x) included. The defaults halve the
    image five times, for 224 pixels; `stem_stride=1, strides=(1, 1, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)` halves it three
    times, for 32 pixels.

    Raises ValueError if strides does not hold 13 numbers.
    Source: Howard et al. 2017 (1704.04861), table 1.
    """
    if len(strides) != len(V1_CHANNELS):
        raise ValueError(f"strides has {len(strides)} numbers; MobileNet v1 takes {len(V1_CHANNELS)}, one for each block")
    channels = [scaled(c, width_mult, round_nearest) for c in V1_CHANNELS]
    stem = scaled(32, width_mult, round_nearest)
    return MobileNetV1(in_channels, stem, channels, stem_stride, strides, num_classes, dropout)


def mobilenet_v2_cifar(width_mult: float = 1.0, num_classes: int = 10, *, dropout: float = 0.0) -> nn.Module:
    """Build torchvision's MobileNetV2 for 32-pixel images: [N, 3, 32, 32] -> [N, num_classes].

    Stem and 24-channel stage have stride 1, so the last map is 4x4. Widths are multiples of 8; the hidden width of a
    block is 6 x its rounded input; the head is 1280 * max(1, width_mult), so it does not shrink below 1.0x.

    Source: Sandler et al. 2018 (1801.04381), table 2; the CIFAR-10 budgets of AutoSlim (1903.11728), table 2, are its
    1.0x, 0.75x and 0.5x.
    """
    stages = [list(stage) for stage in V2_CIFAR_STAGES]
    model = MobileNetV2(num_classes, width_mult, inverted_residual_setting=stages, dropout=dropout)
    model.features[0][0].stride = (1, 1)
    return model
