"""How a network is trained: numbers only, checked when they are read."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from autoslim.errors import ConfigError

SCHEDULES = ("linear", "cosine", "constant")


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of one training, supernet or single network.

    Attributes:
        epochs: passes over the training images.
        lr: peak learning rate of SGD.
        schedule: per iteration after the warm-up: "linear" or "cosine" to zero, or "constant".
        warmup_epochs: the learning rate rises linearly over this many epochs (a fraction is fine).
        momentum, nesterov: of SGD.
        weight_decay: on conv and linear weights; never on depthwise weights, BN and biases.
        label_smoothing: mass spread over all classes.
        clip_norm: largest gradient norm; 0 is off.
        random_widths: random configurations a step, besides the widest and the narrowest (supernets only).
    """

    epochs: int = 50
    lr: float = 0.1
    schedule: str = "linear"
    warmup_epochs: float = 0.0
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    clip_norm: float = 0.0
    random_widths: int = 2

    def __post_init__(self):
        faults = []
        if not (isinstance(self.epochs, int) and self.epochs >= 1):
            faults.append(f"epochs is {self.epochs!r}, not a whole number of 1 or more")
        if self.schedule not in SCHEDULES:
            faults.append(f"schedule is {self.schedule!r}, not one of {', '.join(SCHEDULES)}")
        if not (isinstance(self.random_widths, int) and self.random_widths >= 0):
            faults.append(f"random_widths is {self.random_widths!r}, not a whole number of 0 or more")
        for name in ("lr", "warmup_epochs", "momentum", "weight_decay", "clip_norm"):
            if not getattr(self, name) >= 0:
                faults.append(f"{name} is {getattr(self, name)!r}, not 0 or more")
        if not 0 <= self.label_smoothing < 1:
            faults.append(f"label_smoothing is {self.label_smoothing!r}, not in [0, 1)")
        if self.nesterov and not self.momentum:
            faults.append("nesterov needs a momentum above 0")
        if faults:
            raise ConfigError(f"training recipe: {'; '.join(faults)}")

    @classmethod
    def of(cls, table: Mapping) -> "Recipe":
        """Take the keys of a recipe out of a larger table."""
        return cls(**{field.name: table[field.name] for field in fields(cls) if field.name in table})

    def to_json(self) -> dict:
        """Return the recipe as a JSON object."""
        return asdict(self)

    def lr_at(self, iteration: int, per_epoch: int) -> float:
        """Return the learning rate of an iteration, counted from 0 over the whole training."""
        warmup, total = self.warmup_epochs * per_epoch, self.epochs * per_epoch
        if iteration < warmup:
            return self.lr * (iteration + 1) / (math.ceil(warmup) or 1)
        progress = (iteration - warmup) / max(1, total - warmup)
        if self.schedule == "linear":
            return self.lr * (1 - progress)
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * progress))
        return self.lr
