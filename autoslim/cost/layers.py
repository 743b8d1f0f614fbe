"""Counts beside multiply-adds and parameters that the papers print: average pooling, layers and norms apart, S-Nets."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from autoslim.channels.trace import as_inputs, two_of
from autoslim.slimmable.modes import eval_mode

_POOLINGS = {
    F.avg_pool1d, F.avg_pool2d, F.avg_pool3d,
    F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
}  # fmt: skip


class _PoolingInputs(TorchFunctionMode):
    """Adds up the input elements of every average pooling that runs, as a module or as a function."""

    elements = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in _POOLINGS:
            self.elements += (args[0] if args else kwargs["input"]).numel()
        return function(*args, **kwargs)


@torch.no_grad()
def pooling_macs(network: nn.Module, example) -> int:
    """Return one for each input element of every average pooling, for one example; the network runs once, in eval mode.

    The profiler of the slimmable networks code adds these to the multiply-adds of conv and linear layers.

    Args:
        example: one input `[N, C, H, W]` or a tuple of inputs, on the network's device.
    """
    inputs = as_inputs(tree_map(two_of, example))
    counter = _PoolingInputs()
    with eval_mode(network), counter:
        network(*inputs)
    (batch, *_) = (x.shape[0] for x in tree_leaves(inputs) if isinstance(x, torch.Tensor))
    return counter.elements // batch


def layer_params(network: nn.Module) -> int:
    """Return the parameters of conv and linear layers, biases included."""
    return _count(p for m in network.modules() if isinstance(m, (_ConvNd, nn.Linear)) for p in m.parameters())


def norm_params(network: nn.Module) -> int:
    """Return the scales and biases of batch norms; their statistics are no parameters."""
    return _count(p for m in network.modules() if isinstance(m, _BatchNorm) for p in m.parameters(recurse=False))


def _count(parameters) -> int:
    return sum({id(p): p.numel() for p in parameters}.values())


def slimmable_params(switches: Sequence[nn.Module]) -> dict[str, int]:
    """Return the parameters of one slimmable network (S-Net) that runs at several widths.

    The widest network's weights serve all widths, and every width has a batch norm of its own. A batch norm that is as wide
    at every width is one for all, as the tail of MobileNet v2 in the published code (1812.08928, table 3).

    Args:
        switches: the plain network at every width.

    Returns:
        layer_params, norm_params, and params: all, what is neither layer nor norm included.
    """
    widest = max(switches, key=layer_params)
    norms: dict[str, list[int]] = {}
    for network in switches:
        for name, module in network.named_modules():
            if isinstance(module, _BatchNorm):
                norms.setdefault(name, []).append(_count(module.parameters(recurse=False)))
    norm = sum(sizes[0] if len(set(sizes)) == 1 else sum(sizes) for sizes in norms.values())
    total = _count(widest.parameters()) - norm_params(widest) + norm
    return {"layer_params": layer_params(widest), "norm_params": norm, "params": total}
