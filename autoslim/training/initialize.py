"""Fresh weights for the widths a network has."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrize import is_parametrized

from autoslim.slimmable.supernet import Supernet
from autoslim.slimmable.switchable import SwitchableNet


@torch.no_grad()
def initialize(network: nn.Module, seed: int = 0) -> nn.Module:
    """Draw new weights: conv normal with variance 2 / (kernel * out / groups), linear normal 0.01, norms 1 and 0, biases 0.

    The initialisation of the papers' code, with the fan-out of each group for depthwise and grouped convolutions. Layers of
    other kinds draw their weights by their own `reset_parameters`; parameters of no layer, and those that do not require a
    gradient, stay as they are. The global random state is left alone.
    """
    # The layers of the plain network hold the full tensors, whatever width is set.
    modules = list((network.source if isinstance(network, (Supernet, SwitchableNet)) else network).modules())
    if isinstance(network, SwitchableNet):
        modules += network.norms.modules()
    with torch.random.fork_rng(devices={p.device for p in network.parameters() if p.device.type == "cuda"}):
        torch.manual_seed(seed)
        for module in modules:
            if isinstance(module, nn.modules.conv._ConvNd):
                of_group = module.weight.shape[1] if module.transposed else module.weight.shape[0] / module.groups
                _normal(module, (2 / (module.weight[0, 0].numel() * of_group)) ** 0.5)
            elif isinstance(module, nn.Linear):
                _normal(module, 0.01)
            elif _is_fixed(module):
                continue
            elif isinstance(module, _NormBase) or hasattr(module, "reset_parameters"):
                module.reset_parameters()
            elif isinstance(module, nn.MultiheadAttention):
                module._reset_parameters()
            if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) and module.bias is not None and module.bias.requires_grad:
                nn.init.zeros_(module.bias)
    return network


def _is_fixed(module: nn.Module) -> bool:
    """Tell whether a module has parameters, none of which is trained: a blur, a frozen batch norm."""
    own = list(module.parameters())
    return bool(own) and not any(parameter.requires_grad for parameter in own)


def _normal(layer: nn.Module, std: float) -> None:
    weight = layer._parameters.get("weight")
    if _is_fixed(layer) or (weight is not None and not weight.requires_grad):
        return
    # Drawn on the CPU, so that one seed means the same weights on every device.
    drawn = torch.randn(layer.weight.shape) * std
    if is_parametrized(layer, "weight"):
        layer.weight = drawn.to(layer.weight)  # a copy into what weight_norm computed would be lost
    else:
        layer.weight.copy_(drawn)
