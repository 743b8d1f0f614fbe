"""What happens to one batch of training images."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

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


class Objective:
    """What is minimised: a loss against the labels for the widest network, one against its output for the others.

    Args:
        label_smoothing: of the cross-entropy that is the loss where none is given.
        loss: `(output, target) -> scalar`.
        distill: True for soft labels (US-Nets, section 3.3), `(output, widest output) -> scalar`, or False: the others see
            the labels, too.
    """

    def __init__(self, label_smoothing: float = 0.0, loss: Callable | None = None, distill: Callable | bool = True):
        self._smoothing = label_smoothing
        self._loss = loss
        self._distill = distill

    def loss(self, output, target) -> Tensor:
        """Return the loss against the labels."""
        if self._loss is not None:
            return self._loss(output, target)
        return F.cross_entropy(logits_of(output), target, label_smoothing=self._smoothing)

    def for_others(self, widest_output, target) -> Callable[..., Tensor]:
        """Return the loss of a narrower network as a function of its output."""
        widest_output = tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, widest_output)
        if callable(self._distill):
            return lambda output: self._distill(output, widest_output)
        if not self._distill:
            return lambda output: self.loss(output, target)
        soft = logits_of(widest_output).softmax(dim=1)
        return lambda output: F.cross_entropy(logits_of(output), soft)

    def accuracy(self, output, target) -> dict[str, float]:
        """Return the part of the labels that the class scores get right; nothing where a loss of one's own knows better."""
        if self._loss is not None:
            return {}
        return {"accuracy": (logits_of(output).argmax(dim=1) == target).float().mean().item()}


def sandwich_step(
    net: Supernet, x, target, *, random_widths: int, objective: Objective, generator: torch.Generator
) -> dict[str, float]:
    """Accumulate the gradients of one batch over the widest, the narrowest and random configurations.

    Sandwich rule with inplace distillation (US-Nets, sections 3.2 and 3.3): only the widest sees the labels; the others see
    its softmax, detached. The loss is the plain sum; the caller makes one optimizer step.

    Args:
        x: images `[N, C, H, W]`, or a tuple or list of inputs.
        target: labels `[N]`, or whatever the objective's loss takes.
        random_widths: configurations besides the two ends, each group drawn on its own.

    Returns:
        loss of the widest and of the narrowest, and the part of the batch that the widest gets right.
    """
    net.set(net.full())
    inputs = as_inputs(x)
    output = net(*inputs)
    widest = objective.loss(output, target)
    widest.backward()
    follow = objective.for_others(output, target)
    losses = []
    for config in (net.narrowest(), *(net.random(generator) for _ in range(random_widths))):
        net.set(config)
        loss = follow(net(*inputs))
        loss.backward()
        losses.append(loss.item())
    net.set(net.full())
    return {"loss": widest.item(), "narrowest_loss": losses[0], **objective.accuracy(output, target)}


def plain_step(network: nn.Module, x, target, *, objective: Objective) -> dict[str, float]:
    """Accumulate the gradients of one batch for a single network."""
    output = network(*as_inputs(x))
    loss = objective.loss(output, target)
    loss.backward()
    return {"loss": loss.item(), **objective.accuracy(output, target)}
