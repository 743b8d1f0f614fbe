"""All rules, by function, method name or module type."""

from torchvision.ops import Permute

from autoslim.channels.rules import axes, elementwise, layers

RULES: dict = {**elementwise.table(), **axes.table(), **layers.table(), Permute: axes.permute_module}
