"""Multiply-adds of conv and linear layers whose width never changes, and what is computed for every image."""

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils._pytree import tree_leaves

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


def computed_for_images(graph: fx.Graph, batch_size: int) -> set[fx.Node]:
    """Return what is computed for every image anew; not what follows from a device, or from sizes that all images share."""
    found: set[fx.Node] = set()
    counted = any(node.meta.get("counted") for node in graph.nodes)  # len(x) leaves no other trace
    for node in graph.nodes:
        value = node.meta.get("value")
        sources = node.all_input_nodes
        if node.op == "placeholder":
            found.add(node)
        elif node.op != "output" and not found.isdisjoint(sources):
            if _holds_tensor(value) or _counts_images(node):
                found.add(node)
        elif counted and node.target in ("expand", "repeat") and _lengthened(node) == batch_size:
            found.add(node)  # expand(len(x), -1, -1)
    return found


def _lengthened(node: fx.Node) -> int | None:
    """Return how long the first axis of a tensor has become; None where it is as long as it was."""
    now, before = node.meta["value"].shape[:1], node.args[0].meta["value"].shape[:1]
    return None if now == before else now[0]


def _holds_tensor(value) -> bool:
    return any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(value))


def _counts_images(node: fx.Node) -> bool:
    """Tell whether a number, or row of numbers, that was read of what is computed for images counts them."""
    value = node.meta["value"]
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: source.meta["value"])
    held = args[0] if args else None
    if isinstance(held, torch.Size) and node.target is operator.getitem:
        picked = range(len(held))[args[1]]
        return picked == 0 if isinstance(picked, int) else 0 in picked
    if isinstance(held, torch.Tensor) and node.op != "call_module":
        axis = (*args[1:], kwargs.get("dim"), None)[0]
        axis = 0 if axis is None else axis
        return isinstance(value, torch.Size) or (node.target in ("size", "numel") and axis in (0, -held.dim()))
    return isinstance(value, (int, float, torch.Size))
