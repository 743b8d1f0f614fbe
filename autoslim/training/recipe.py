"""How a network is trained: numbers only, checked when they are read."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from autoslim.errors import ConfigError
from autoslim.sandwich import Sandwich

SCHEDULES = ("linear", "cosine", "exponential", "step", "constant")
WIDTHS = ("nonuniform", "uniform")


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of one training, supernet or single network.

    Attributes:
        epochs: passes over the training images.
        lr: peak learning rate of SGD.
        schedule: after the warm-up: "linear" or "cosine" to zero, every iteration; "exponential", times `decay` every epoch;
            "step", times `decay` at every milestone; or "constant".
        decay: the factor of "exponential" and "step".
        milestones: epochs after which "step" decays.
        warmup_epochs: the learning rate rises linearly over this many epochs (a fraction is fine).
        momentum, nesterov: of SGD.
        weight_decay: on conv and linear weights; never on depthwise weights, BN and biases.
        label_smoothing: mass spread over all classes.
        clip_norm: largest gradient norm; 0 is off.
        sandwich: the configurations of a step: "max,min,random:2" is the widest, the narrowest and two random ones (supernets).
        distill: all but the widest learn from its soft labels, in the same step (supernets); else from the labels.
        widths: what a random configuration is: each group drawn on its own ("nonuniform"), or one ratio for all ("uniform").
    """

    epochs: int = 50
    lr: float = 0.1
    schedule: str = "linear"
    decay: float = 0.1
    milestones: tuple[float, ...] = ()
    warmup_epochs: float = 0.0
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    clip_norm: float = 0.0
    sandwich: str = "max,min,random:2"
    distill: bool = True
    widths: str = "nonuniform"

    def __post_init__(self):
        faults = []
        object.__setattr__(self, "milestones", tuple(self.milestones))
        if not (isinstance(self.epochs, int) and self.epochs >= 1):
            faults.append(f"epochs is {self.epochs!r}, not a whole number of 1 or more")
        if self.schedule not in SCHEDULES:
            faults.append(f"schedule is {self.schedule!r}, not one of {', '.join(SCHEDULES)}")
        if self.widths not in WIDTHS:
            faults.append(f"widths is {self.widths!r}, not one of {', '.join(WIDTHS)}")
        if self.schedule == "step" and not any(epoch < self.epochs for epoch in self.milestones):
            faults.append(f"schedule 'step' has no milestone before epoch {self.epochs}; name some, or take another schedule")
        if not 0 < self.decay <= 1:
            faults.append(f"decay is {self.decay!r}, not in (0, 1]")
        if not all(epoch > 0 for epoch in self.milestones):
            faults.append(f"milestones are {list(self.milestones)}, not epochs above 0")
        try:
            sandwich = Sandwich.parse(self.sandwich)
            if self.distill and not sandwich.max:
                faults.append(f"sandwich {self.sandwich!r} has no max, from which the others learn; add it, or turn distill off")
        except ConfigError as error:
            faults.append(str(error))
        for name in ("lr", "warmup_epochs", "momentum", "weight_decay", "clip_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                faults.append(f"{name} is {getattr(self, name)!r}, not a number of 0 or more")
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
        return asdict(self) | {"milestones": list(self.milestones)}

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
        if self.schedule == "exponential":
            return self.lr * self.decay ** (iteration // per_epoch)
        if self.schedule == "step":
            return self.lr * self.decay ** sum(iteration >= epoch * per_epoch for epoch in self.milestones)
        return self.lr
