"""One pass over the training batches, which can be left in the middle and gone on with."""

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from autoslim.allocator import FreedMemory
from autoslim.channels.trace import to_device
from autoslim.errors import DataError, RunError
from autoslim.training.recipe import Recipe


@dataclass
class Begun:
    """How far an epoch has come: what a training needs beside weights and optimizer to go on from there.

    Args:
        batches: that were trained on.
        of: batches that the epoch has in all.
        images: that were trained on.
        sums: of what was measured, over these images.
        seconds: spent on training.
        random: states of the random numbers: torch's own, those of drawn widths, and those of the GPU if there is one.
    """

    batches: int = 0
    of: int = 0
    images: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    random: list[Tensor] = field(default_factory=list)


class Epochs:
    """Trains a network one epoch at a time.

    Args:
        network: on the device that it is trained on.
        step: `(x, target, generator=) -> measured`, which accumulates the gradients of a batch.
        optimizer: of the network's parameters; its learning rate is set before every step.
        seed: of everything that is drawn in an epoch.
        bar: shows the epochs that are done.
        kept: is called with `asdict(Begun)` now and then, to be stored with weights and optimizer.
        kept_every: seconds between these calls.
    """

    def __init__(
        self, network: nn.Module, step: Callable, optimizer, recipe: Recipe, *,
        seed: int, bar: tqdm, kept: Callable, kept_every: float,
    ):  # fmt: skip
        self._network = network
        self._step = step
        self._optimizer = optimizer
        self._recipe = recipe
        self._seed = seed
        self._bar = bar
        self._kept = kept
        self._kept_every = kept_every
        self._freed = FreedMemory()
        self._device = next(network.parameters()).device

    def run(self, batches: Iterable, epoch: int, begun: Begun | None) -> dict:
        """Train for an epoch, from where it was left.

        Args:
            batches: `(images [N, C, H, W], labels [N])` batches.
            epoch: its number, counted from 0.
            begun: how far it has come; None where it was not begun.

        Returns:
            its row of metrics.csv.

        Raises:
            DataError: there is no batch.
            RunError: there are more or fewer batches than when it was begun, or the loss is no finite number.
        """
        # Everything random in an epoch follows from (seed, epoch), so that a resumed training repeats it.
        drawn_from = (self._seed * 1_000_003 + epoch) % 2**63
        torch.manual_seed(drawn_from)
        generator = torch.Generator().manual_seed(drawn_from)
        if hasattr(batches, "set_epoch"):
            batches.set_epoch(epoch)
        try:
            per_epoch = len(batches)
        except TypeError:  # a generator, or a DataLoader over an IterableDataset
            batches = list(batches)
            per_epoch = len(batches)
        done = begun or Begun(of=per_epoch)
        if done.of != per_epoch:
            raise RunError(
                f"epoch {epoch + 1} was begun with {done.of} batches, there are {per_epoch} now; pass the same batches, or another folder"
            )
        done.sums = {name: total.to(self._device) for name, total in done.sums.items()}
        at_first = done.batches
        started = kept = None if at_first else time.perf_counter()  # what is passed over is no training
        before = done.seconds
        for index, (x, target) in enumerate(batches):
            if index < at_first:
                if index == at_first - 1:  # not sooner: what gives the batches may have drawn, too
                    self._set_random(done.random, generator)
                    self._bar.initial = self._bar.n = epoch + at_first / per_epoch
                continue
            if started is None:
                started = kept = time.perf_counter()
            self._freed.give_back()
            self._train(x, target, generator, epoch * per_epoch + index, per_epoch, done)
            done.batches = index + 1
            done.seconds = before + time.perf_counter() - started
            self._bar.update(epoch + done.batches / per_epoch - self._bar.n)
            if time.perf_counter() - kept >= self._kept_every and all(total.isfinite() for total in done.sums.values()):
                done.random = self._random(generator)
                self._kept(asdict(done))
                kept = time.perf_counter()
        return self._row(epoch, done)

    def _train(self, x, target, generator: torch.Generator, iteration: int, per_epoch: int, done: Begun) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self._recipe.lr_at(iteration, per_epoch)
        x, target = to_device(x, self._device), to_device(target, self._device)
        self._optimizer.zero_grad(set_to_none=True)
        measured = self._step(x, target, generator=generator)
        if self._recipe.clip_norm:
            nn.utils.clip_grad_norm_(self._network.parameters(), self._recipe.clip_norm)
        self._optimizer.step()
        images = next(len(t) for t in tree_leaves(x) if isinstance(t, Tensor))
        done.images += images
        for name, value in measured.items():
            done.sums[name] = done.sums.get(name, 0.0) + value.double() * images  # on the device: no waiting for it

    def _row(self, epoch: int, done: Begun) -> dict:
        if not done.images:
            raise DataError("training got 0 batches; pass at least one batch an epoch (an exhausted generator gives none)")
        lr = self._optimizer.param_groups[0]["lr"]
        row = {"epoch": epoch + 1, "lr": lr, **{name: total.item() / done.images for name, total in done.sums.items()}}
        if not row["loss"] < float("inf"):
            wrong = f"the training loss became {row['loss']} in epoch {epoch + 1}"
            raise RunError(f"{wrong}; lower lr={self._recipe.lr} or set clip_norm")
        return row | {"seconds": round(done.seconds, 2)}

    def _random(self, generator: torch.Generator) -> list[Tensor]:
        of_gpu = [torch.cuda.get_rng_state(self._device)] if self._device.type == "cuda" else []
        return [torch.get_rng_state(), generator.get_state(), *of_gpu]

    def _set_random(self, states: list[Tensor], generator: torch.Generator) -> None:
        torch.set_rng_state(states[0])
        generator.set_state(states[1])
        if self._device.type == "cuda" and len(states) > 2:  # none if the epoch was begun on a CPU
            torch.cuda.set_rng_state(states[2], self._device)
