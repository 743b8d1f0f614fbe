"""What happens to one batch of training images."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from autoslim.channels.trace import as_inputs
from autoslim.errors import DataError, ModelError
from autoslim.sandwich import Sandwich
from autoslim.slimmable.supernet import Supernet
from autoslim.slimmable.switchable import SwitchableNet

IGNORED = -100  # the label of what counts neither as right nor as wrong, as in torch's cross_entropy


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


def class_labels(scores: Tensor, labels) -> Tensor:
    """Return labels as int64, once they are known to be classes of the scores.

    Args:
        scores: class scores `[N, K]`, or a map of them `[N, K, ...]`.
        labels: whole numbers from 0 to K - 1, or `IGNORED`: `[N]`, or a map of them `[N, ...]`.

    Raises:
        DataError: they are no such labels.
    """
    other = (
        "for another task pass loss= to the training, evaluator= (anything with score(config) -> autoslim.Score) to the search"
    )
    if scores.dim() < 2 or scores.shape[1] < 2:
        raise DataError(f"the network returns {list(scores.shape)}; class scores are [N, K] of 2 classes or more; {other}")
    shape, last = [len(scores), *scores.shape[2:]], scores.shape[1] - 1
    found = type(labels).__name__
    if isinstance(labels, Tensor):
        found = f"{str(labels.dtype).removeprefix('torch.')} {list(labels.shape)}"
        if list(labels.shape) == shape and not labels.is_floating_point() and not labels.is_complex():
            labels = labels.long()
            known = labels[labels != IGNORED]
            if not len(known) or (known.min() >= 0 and known.max() <= last):
                return labels
            found = f"from {known.min().item()} to {known.max().item()}"
    raise DataError(
        f"labels are {found}; for class scores {list(scores.shape)} they are integers {shape} from 0 to {last}, and {IGNORED} "
        f"where there is none; {other}"
    )


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
        self._checked = False  # the labels of a first batch: to look at all of them would make a GPU wait

    def loss(self, output, target) -> Tensor:
        """Return the loss against the labels.

        Raises:
            DataError: the labels of a first batch are no classes of the scores, nor their probabilities.
        """
        if self._loss is not None:
            return self._loss(output, target)
        scores, tensor = logits_of(output), isinstance(target, Tensor)
        soft = tensor and target.is_floating_point() and target.shape == scores.shape and scores.shape[1] > 1
        if not soft and not (self._checked and tensor and not target.is_floating_point()):
            class_labels(scores, target)
            self._checked = True
        return F.cross_entropy(scores, target if soft else target.long(), label_smoothing=self._smoothing)

    def for_others(self, widest_output, target) -> Callable[..., Tensor]:
        """Return the loss of a narrower network as a function of its output."""
        widest_output = tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, widest_output)
        if callable(self._distill):
            return lambda output: self._distill(output, widest_output)
        if not self._distill:
            return lambda output: self.loss(output, target)
        scores = logits_of(widest_output)
        if scores.dim() < 2 or scores.shape[1] < 2:
            raise DataError(
                f"the network returns {list(scores.shape)}, which are no scores of 2 classes or more to learn from; pass distill=False, "
                "or a function (output, widest output) -> scalar"
            )
        soft = scores.softmax(dim=1)
        return lambda output: F.cross_entropy(logits_of(output), soft)

    def accuracy(self, output, target) -> dict[str, Tensor]:
        """Return the part of the labels that the class scores get right.

        Nothing where a loss of one's own knows better, and where labels are probabilities.
        """
        if self._loss is not None or target.is_floating_point():
            return {}
        target = target.long()
        right = (logits_of(output).detach().argmax(dim=1) == target).double().sum()
        return {"accuracy": right / (target != IGNORED).sum().clamp(min=1)}


def joint_step(net, x, target, *, settings: Iterable, objective: Objective) -> list[dict[str, Tensor]]:
    """Accumulate the gradients of one batch over several settings of one network: the plain sum of their losses.

    The first setting sees the labels; what the others see is the objective's choice. The caller makes one optimizer step
    (Slimmable Networks, algorithm 1; US-Nets, section 3).

    Args:
        net: a network with `set(setting)`: a supernet and its configurations, or a switchable network and its switches.
        x: images `[N, C, H, W]`, or a tuple or list of inputs.
        target: labels `[N]`, or whatever the objective's loss takes.

    Returns:
        loss of every setting, and its accuracy where the objective has one, in their order.
    """
    inputs = as_inputs(x)
    follow = None
    done = []
    for setting in settings:
        net.set(setting)
        output = net(*inputs)
        loss = objective.loss(output, target) if follow is None else follow(output)
        loss.backward()
        if follow is None:
            follow = objective.for_others(output, target)
        done.append({"loss": loss.detach(), **objective.accuracy(output, target)})
    return done


def sandwich_step(
    net: Supernet,
    x,
    target,
    *,
    sandwich: Sandwich,
    objective: Objective,
    generator: torch.Generator,
    uniform: Callable[[float], Any] | None = None,
) -> dict[str, Tensor]:
    """Accumulate the gradients of one batch over the widest, the narrowest and random configurations.

    Sandwich rule with inplace distillation (US-Nets, sections 3.2 and 3.3): only the widest sees the labels; the others see
    its softmax, detached.

    Args:
        x, target: see `joint_step`.
        sandwich: which configurations.
        uniform: the configuration of a ratio, from the grid's `min_ratio` to 1; None draws every group on its own.

    Returns:
        mean loss of the networks; loss of the widest and of the narrowest, and the part of the batch that the widest gets
        right, where they are trained.
    """
    settings = [net.full()] if sandwich.max else []
    if sandwich.min:
        settings.append(uniform(net.grid.min_ratio) if uniform else net.narrowest())
    for _ in range(sandwich.random):
        settings.append(uniform(_ratio(net, generator)) if uniform else net.random(generator))
    done = joint_step(net, x, target, settings=settings, objective=objective)
    net.set(net.full())
    measured = {"loss": _mean_loss(done)}
    if sandwich.max:
        measured |= {"widest_loss" if key == "loss" else key: value for key, value in done[0].items()}
    if sandwich.min:
        measured["narrowest_loss"] = done[int(sandwich.max)]["loss"]
    return measured


def _mean_loss(done: list[dict[str, Tensor]]) -> Tensor:
    return torch.stack([each["loss"] for each in done]).mean()


def _ratio(net: Supernet, generator: torch.Generator) -> float:
    low = net.grid.min_ratio
    return low + (1 - low) * torch.rand((), generator=generator).item()


def switch_step(net: SwitchableNet, x, target, *, objective: Objective) -> dict[str, Tensor]:
    """Accumulate the gradients of one batch over all switches (Slimmable Networks, algorithm 1).

    Returns:
        mean loss over the switches, then loss and accuracy on the batch of each.
    """
    done = joint_step(net, x, target, settings=net.switches, objective=objective)
    net.set(next(iter(net.switches)))
    each = {f"{key}_{name}": value for name, row in zip(net.switches, done) for key, value in row.items()}
    return {"loss": _mean_loss(done), **each}


def plain_step(network: nn.Module, x, target, *, objective: Objective) -> dict[str, Tensor]:
    """Accumulate the gradients of one batch for a single network."""
    output = network(*as_inputs(x))
    loss = objective.loss(output, target)
    loss.backward()
    return {"loss": loss.detach(), **objective.accuracy(output, target)}
