"""A small network for 8x8 grey images, with one link of each kind that a search has to respect."""

from torch import Tensor, nn

from .mobilenet import SeparableBlock, Stem
from .resnet import BasicBlock
from .widths import initialise, scaled


class DigitsCNN(nn.Module):
    """A stem, a stride-2 convolution, a residual block, separable blocks, one linear layer. See `digits_cnn`."""

    def __init__(self, in_channels: int, widths: list[int], num_classes: int):
        super().__init__()
        stem, body, middle, top = widths
        self.stem = Stem(in_channels, stem)
        self.down = Stem(stem, body, stride=2)
        self.residual = BasicBlock(body, body)
        self.blocks = nn.Sequential(
            SeparableBlock(body, middle),
            SeparableBlock(middle, middle),
            SeparableBlock(middle, top, stride=2),
            SeparableBlock(top, top),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(top, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.residual(self.down(self.stem(x)))  # [N, 32, 4, 4] at 1.0x
        return self.classifier(self.pool(self.blocks(x)).flatten(1))


def digits_cnn(width_mult: float = 1.0, num_classes: int = 10, *, in_channels: int = 1, round_nearest: int = 4) -> nn.Module:
    """Build the network of the demo: [N, in_channels, 8, 8] -> [N, num_classes].

    Its widths are 16, 32, 48 and 64 at 1.0x. Seven of them can differ: the stem, the residual trunk, the inside of the
    residual block, and the output of each of four separable blocks.
    """
    widths = [scaled(c, width_mult, round_nearest) for c in (16, 32, 48, 64)]
    return DigitsCNN(in_channels, widths, num_classes)
