"""What happens to one batch of training images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoslim.channels.trace import as_inputs
from autoslim.errors import ModelError
from autoslim.slimmable.supernet import Supernet


def logits_of(output) -> Tensor:
    """Return the class scores `[N, K]` of a network's output: itself, or the first entry of a tuple or dict."""
    while not isinstance(output, Tensor):
        if isinstance(output, dict) and output:
            output = next(iter(output.values()))
        elif isinstance(output, (tuple, list)) and output:
            output = output[0]
        else:
            raise ModelError(f"the network returns {type(output).__name__}; return class scores [N, K], or a tuple led by them")
    return output


def sandwich_step(
    net: Supernet, x, target: Tensor, *, random_widths: int, label_smoothing: float, generator: torch.Generator
) -> dict[str, float]:
    """Accumulate the gradients of one batch over the widest, the narrowest and random configurations.

    Sandwich rule with inplace distillation (US-Nets, sections 3.2 and 3.3): only the widest sees the labels; the others see
    its softmax, detached. The loss is the plain sum; the caller makes one optimizer step.

    Args:
        x: images `[N, C, H, W]`, or a tuple or list of inputs.
        target: labels `[N]`.
        random_widths: configurations besides the two ends, each group drawn on its own.

    Returns:
        loss of the widest and of the narrowest, and the part of the batch that the widest gets right.
    """
    net.set(net.full())
    inputs = as_inputs(x)
    logits = logits_of(net(*inputs))
    widest = F.cross_entropy(logits, target, label_smoothing=label_smoothing)
    widest.backward()
    logits = logits.detach()
    soft = logits.softmax(dim=1)
    losses = []
    for config in (net.narrowest(), *(net.random(generator) for _ in range(random_widths))):
        net.set(config)
        loss = F.cross_entropy(logits_of(net(*inputs)), soft)
        loss.backward()
        losses.append(loss.item())
    net.set(net.full())
    right = (logits.argmax(dim=1) == target).float().mean().item()
    return {"loss": widest.item(), "narrowest_loss": losses[0], "accuracy": right}


def plain_step(network: nn.Module, x, target: Tensor, *, label_smoothing: float) -> dict[str, float]:
    """Accumulate the gradients of one batch for a single network."""
    logits = logits_of(network(*as_inputs(x)))
    loss = F.cross_entropy(logits, target, label_smoothing=label_smoothing)
    loss.backward()
    return {"loss": loss.item(), "accuracy": (logits.argmax(dim=1) == target).float().mean().item()}
