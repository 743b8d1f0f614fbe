"""Multiply-adds of conv and linear layers whose width never changes."""

import torch
import torch.nn.functional as F
from torch import fx, nn

from autoslim.channels.flow import Flow

_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
FUNCTIONS = (F.conv1d, F.conv2d, F.conv3d, F.linear, *_TRANSPOSED)


def function_macs(flow: Flow, node: fx.Node) -> int:
    """Multiply-adds of a functional conv or linear that no rule followed, for the whole batch."""
    weight = flow.value(node.args[1] if len(node.args) > 1 else node.kwargs["weight"])
    over = flow.value(flow.first(node)) if node.target in _TRANSPOSED else node.meta["value"]
    return over.numel() // weight.shape[0] * weight.numel()


def layer_macs(module: nn.Module, args: tuple, out) -> int:
    """Multiply-adds of a conv or linear layer for the whole batch; 0 for other modules."""
    if not args or not isinstance(x := args[0], torch.Tensor):
        return 0
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return x.numel() // module.in_channels * module.weight.numel()
    if isinstance(module, nn.modules.conv._ConvNd):
        return out.numel() // module.out_channels * module.weight.numel()
    if isinstance(module, nn.Linear):
        return out.numel() // module.out_features * module.weight.numel()
    if isinstance(module, nn.MultiheadAttention):
        query, key, value = (t.numel() for t in args[:3])
        return module.embed_dim * (2 * query + key + value)  # three projections, and one of the output
    return 0
