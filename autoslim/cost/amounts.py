"""Amounts as users write them: 300M, 1.2G, 60%; 4MB; 12ms."""

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_EVEN, Context, Decimal

from autoslim.errors import TargetError


@dataclass(frozen=True)
class Kind:
    """How amounts of one kind are written.

    Attributes:
        option: what messages call a target of it.
        mark: what stands before an amount in a file name.
        unit: what stands behind an amount in messages.
        scales: suffix and worth, largest first, of an amount in short.
        more: other suffixes that users may write, in lower case.
        examples: amounts as users write them.
    """

    option: str
    mark: str
    unit: str
    scales: tuple[tuple[str, float], ...]
    more: Mapping[str, float]
    examples: str

    def read(self, text: str | float, full: float) -> float:
        """Return an amount as a number; `60%` is a part of `full`.

        Raises:
            TargetError: the text is no positive amount.
        """
        units = {"": 1.0, **self.more, **{suffix.lower(): worth for suffix, worth in self.scales}}
        match = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z%]*)\s*", str(text).lower())
        number = 0.0
        with contextlib.suppress(ArithmeticError):  # 1.2.3
            if match and match[2] == "%":
                number = float(Decimal(match[1])) / 100 * full  # 100% is all of it
            elif match:
                # In decimals: 64.1k is 64,100, which 64.1 * 1e3 is not.
                number = float(Decimal(match[1]) * Decimal(str(units.get(match[2], 0))))
        if not 0 < number < float("inf"):
            raise TargetError(f"{self.option} {text!r} is not an amount above 0; write it as {self.examples}")
        return number

    def format(self, amount: float, digits: int = 4, rounding: str | None = None) -> str:
        """Return an amount in short, rounded to the nearest or as a mode of `decimal` says: 300M, 4MB, 12ms."""
        rounded = float(Context(prec=digits, rounding=rounding or ROUND_HALF_EVEN).create_decimal(float(amount)))
        suffix, worth = next((row for row in self.scales if rounded >= row[1]), self.scales[-1])
        return f"{rounded / worth:.{digits}g}{suffix}"


_COUNTS = (("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0))
_BYTES = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0))
_MORE_BYTES = {"k": 1e3, "m": 1e6, "g": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
# In the order in which targets and their file names list them.
KINDS = {
    "macs": Kind("flops target", "", " MACs", _COUNTS, {"t": 1e12}, "300M, 1.2G, 300e6 or 60%"),
    "params": Kind("params target", "params-", " parameters", _COUNTS, {"t": 1e12}, "2M, 500k, 2e6 or 60%"),
    "size": Kind("size target", "size-", "", _BYTES, _MORE_BYTES, "4MB, 4MiB, 500kB or 60%"),
    "memory": Kind("memory target", "memory-", "", _BYTES, _MORE_BYTES, "20MB, 20MiB, 500kB or 60%"),
    "latency": Kind("latency target", "", "", (("ms", 1.0), ("us", 1e-3)), {"s": 1e3}, "12ms, 800us, 0.1s or 60%"),
}


def parse_bytes(text: str | float) -> float:
    """Return a memory budget in bytes: 4G, 4GB, 500MiB.

    Raises:
        TargetError: the text is no positive amount.
    """
    return replace(KINDS["memory"], option="--memory-budget", examples="4GB, 500MB or 500MiB").read(text, 0)


def labels(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Return a file name for each row of amounts by kind, with as many digits as it takes to tell them apart."""
    for digits in range(4, 18):
        found = ["_".join(KINDS[name].mark + KINDS[name].format(a, digits) for name, a in row.items()) for row in rows]
        if len(set(found)) == len(rows):
            break
    return [label.replace("+", "") for label in found]
