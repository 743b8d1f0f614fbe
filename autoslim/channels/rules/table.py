"""All rules, by function, method name or module type."""

from torchvision.ops import Permute

from autoslim.channels.rules import axes, elementwise, layers, pieces

RULES: dict = {**elementwise.table(), **axes.table(), **pieces.table(), **layers.table(), Permute: axes.permute_module}
