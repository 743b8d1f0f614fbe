"""The widths a channel group may take."""

from dataclasses import dataclass

from autoslim.errors import ConfigError


@dataclass(frozen=True)
class Grid:
    """The search grid of AutoSlim: `steps` equal steps down from full width, each a multiple of `divisor`.

    The published channel lists fit `step = max(8, 8 * round(full / 96))`: a twelfth of the full width, to the nearest 8.

    Attributes:
        divisor: every step is a multiple of this many channels.
        steps: number of steps that full width is divided into.
        min_ratio: the narrowest width, as a part of full width.
        anchor: "full": whole steps down from full width; "zero": whole steps up from nothing, and full width itself (the
            published ResNet-50 lists).
    """

    divisor: int = 8
    steps: int = 12
    min_ratio: float = 0.1
    anchor: str = "full"

    def __post_init__(self):
        if not (isinstance(self.divisor, int) and self.divisor >= 1):
            raise ConfigError(f"divisor is {self.divisor!r}; it must be a whole number of channels, 1 or more")
        if not (isinstance(self.steps, int) and self.steps >= 1):
            raise ConfigError(f"steps is {self.steps!r}; it must be a whole number, 1 or more")
        if not 0 <= self.min_ratio <= 1:
            raise ConfigError(f"min_ratio is {self.min_ratio!r}; it must lie between 0 and 1")
        if self.anchor not in ("full", "zero"):
            raise ConfigError(f"anchor is {self.anchor!r}; pass 'full' or 'zero'")

    def multiple(self, unit: int = 1) -> int:
        """Return what a slimmed width is a multiple of: the least multiple of `unit` that reaches the divisor."""
        return -(-self.divisor // unit) * unit

    def step(self, full: int, unit: int = 1) -> int:
        """Return the step of a group of `full` channels whose width must be a multiple of `unit`."""
        multiple = self.multiple(unit)
        return max(multiple, multiple * round(full / (multiple * self.steps)))

    def choices(self, full: int, unit: int = 1) -> tuple[int, ...]:
        """Return the legal widths, ascending: full width, and whole steps down from its last legal multiple, or up from zero."""
        least = max(1, self.min_ratio * full)
        step = self.step(full, unit)
        top = full // self.multiple(unit) * self.multiple(unit)
        slimmed = range(top, 0, -step) if self.anchor == "full" else range(step, full, step)
        return tuple(sorted({full, *(width for width in slimmed if width >= least)}))

    def nearest(self, channels: float, full: int, unit: int = 1) -> int:
        """Round a wanted number of channels to a multiple of the divisor, as the papers' make_divisible does.

        To the nearest multiple, one more when that loses over 10 %; never above full width.
        """
        multiple = self.multiple(unit)
        if channels >= full or full < multiple:
            return full
        width = max(multiple, int(channels + multiple / 2) // multiple * multiple)
        if width < 0.9 * channels:
            width += multiple
        return min(width, full)
