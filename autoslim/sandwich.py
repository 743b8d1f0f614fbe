"""Which networks one training step sees, as text: "max,min,random:2"."""

import re
from typing import NamedTuple

from autoslim.errors import ConfigError

RULE = "max, min and random:N, each at most once and one at least, as 'max,min,random:2'"


class Sandwich(NamedTuple):
    """The widest network, the narrowest, and a number of random ones (US-Nets, section 3.2)."""

    max: bool
    min: bool
    random: int

    @classmethod
    def parse(cls, text: str) -> "Sandwich":
        """Read a rule; raise ConfigError if it is none."""
        parts = [part.strip() for part in text.split(",")]
        names = [part.split(":")[0] for part in parts]
        counts = [re.fullmatch(r"max|min|random:([1-9]\d*)", part) for part in parts]
        if not all(counts) or len(set(names)) != len(names):
            raise ConfigError(f"sandwich {text!r} is not a list of {RULE}")
        return cls("max" in names, "min" in names, sum(int(found[1] or 0) for found in counts))


def is_sandwich(value) -> bool:
    """Say whether a value is the text of a rule."""
    try:
        return isinstance(value, str) and bool(Sandwich.parse(value))
    except ConfigError:
        return False
