"""Peak memory of a network, from the sizes and lifetimes of its tensors."""

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from autoslim.channels.trace import trace


def peak_memory_bytes(network: nn.Module, example) -> int:
    """Return weights plus the largest sum of activations that are alive at once, for one example, in bytes.

    Inference in the order of the network's forward: a tensor is alive from the operation that makes it to the last one that
    reads it, residual branches included; views and in-place operations share their memory. What an operation needs inside
    (workspaces of convolutions) is not counted.

    Args:
        network: the plain network.
        example: one input `[N, C, H, W]` or a tuple of inputs; only shapes are used.
    """
    traced = trace(network, example)
    nodes = list(traced.graphs["eval"].nodes)
    storages, sizes = {}, {}
    for node in nodes:
        found = set()
        if node.op not in ("get_attr", "output"):
            for tensor in tree_leaves(node.meta["value"]):
                if isinstance(tensor, torch.Tensor):
                    storage = tensor.untyped_storage()
                    found.add(storage._cdata)
                    sizes[storage._cdata] = storage.nbytes()
        storages[node] = found
    last_use = {}
    for position, node in enumerate(nodes):
        for read in (node, *node.all_input_nodes):
            last_use.update(dict.fromkeys(storages[read], position))
    alive: set[int] = set()
    peak = 0
    for position, node in enumerate(nodes):
        alive |= storages[node]
        peak = max(peak, sum(sizes[storage] for storage in alive))
        alive = {storage for storage in alive if last_use[storage] > position}
    weights = sum(t.numel() * t.element_size() for t in (*network.parameters(), *network.buffers()))
    return weights + peak // traced.batch_size
