"""ResNet-50 with a width multiplier; at 1.0x its weights are torchvision's, name by name."""

from torch import Tensor, nn

from .widths import initialise, scaled

# Channels inside a block and number of blocks of each stage; a stage puts out four times as many channels.
STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1, and a shortcut: [N, in, H, W] -> [N, out, H / stride, W / stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        hidden = outputs // 4
        self.conv1 = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet50(nn.Module):
    """A stem, four stages of bottleneck blocks, average pooling, one linear layer. See `resnet50`."""

    def __init__(self, in_channels: int, stem: int, outputs: list[int], num_classes: int, small_images: bool):
        super().__init__()
        kernel, stride = (3, 1) if small_images else (7, 2)
        self.conv1 = nn.Conv2d(in_channels, stem, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small_images else nn.MaxPool2d(3, stride=2, padding=1)
        blocks = [count for _, count in STAGES]
        self.layer1 = _stage(stem, outputs[0], blocks[0], stride=1)
        self.layer2 = _stage(outputs[0], outputs[1], blocks[1], stride=2)
        self.layer3 = _stage(outputs[1], outputs[2], blocks[2], stride=2)
        self.layer4 = _stage(outputs[2], outputs[3], blocks[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(outputs[3], num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))  # [N, 64, 56, 56] at 1.0x and 224 pixels
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # [N, 2048, 7, 7]
        return self.fc(self.avgpool(x).flatten(1))


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [Bottleneck(outputs, outputs) for _ in range(blocks - 1)]
    return nn.Sequential(Bottleneck(inputs, outputs, stride), *rest)


def resnet50(
    width_mult: float = 1.0,
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    small_images: bool = False,
    round_nearest: int = 1,
) -> nn.Module:
    """Build ResNet-50, stride on the 3x3 convolutions: [N, in_channels, H, W] -> [N, num_classes].

    The stem is 64 * width_mult wide, a stage puts out 256, 512, 1024 or 2048 * width_mult channels, and the inside of a
    block is a quarter of that; all are rounded down. With round_nearest above 1, stem and insides are multiples of it,
    and a stage puts out four times its inside; quarters of 1.0x stay what they are up to 16. With small_images the stem
    is a 3x3 convolution of stride 1 and there is no max-pooling, for 32 pixels.

    Raises ValueError if width_mult leaves a block without channels.
    Source: He et al. 2015 (1512.03385), table 1; the width rule of Slimmable Networks (1812.08928).
    """
    if round_nearest > 1:
        stem = scaled(64, width_mult, round_nearest)
        outputs = [4 * scaled(hidden, width_mult, round_nearest) for hidden, _ in STAGES]
    elif 64 * width_mult >= 1:
        stem = int(64 * width_mult)
        outputs = [int(4 * hidden * width_mult) for hidden, _ in STAGES]
    else:
        raise ValueError(f"width_mult={width_mult} leaves no channel of 64; pass at least {1 / 64}")
    return ResNet50(in_channels, stem, outputs, num_classes, small_images)
