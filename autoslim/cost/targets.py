"""Budgets as users write them: 300M, 1.2G, 300e6, 60%."""

import re
from collections.abc import Iterable, Mapping

from autoslim.errors import TargetError

_SUFFIX = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


def parse_amount(text: str | float, full: float, what: str = "target") -> float:
    """Return an amount as a number; `60%` is a part of `full` (0: there are no parts). Errors name it by `what`.

    Raises:
        TargetError: the text is no positive amount.
    """
    return read_amount(text, full, what, units=_SUFFIX, examples="300M, 1.2G, 300e6 or 60%")


def read_amount(text: str | float, full: float, what: str, *, units: Mapping[str, float], examples: str) -> float:
    """Return an amount as a number; `units` are the suffixes it may have, in lower case, and what each is worth.

    Raises:
        TargetError: the text is no positive amount; `examples` are shown.
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z%]*)\s*", str(text).lower())
    try:
        number = float(match[1]) if match else 0.0
    except ValueError:
        number = 0.0
    if match and match[2] == "%":
        number = number / 100 * full
    elif match:
        number *= units.get(match[2], 0.0)
    if not 0 < number < float("inf"):
        raise TargetError(f"{what} {text!r} is not an amount above 0; write it as {examples}")
    return number


def format_amount(value: float) -> str:
    """Return an amount in short: 300M, 1.2G, 87.98M."""
    for suffix, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.4g}{suffix}"
    return f"{value:.4g}"


def check_targets(targets: Iterable[float | str] | float | str, full: int, narrowest: int) -> list[float]:
    """Return targets as multiply-adds, largest first, all of them reachable.

    Args:
        targets: amounts; text such as "60%" is a part of `full`.
        full, narrowest: multiply-adds of the widest and the narrowest configuration.

    Raises:
        TargetError: there is none, or one is above the full network or below the narrowest configuration.
    """
    if isinstance(targets, (str, int, float)):
        targets = [targets]
    wanted = sorted({parse_amount(target, full) for target in targets}, reverse=True)
    reach = f"reachable: {format_amount(narrowest)} to {format_amount(full)} MACs"
    if not wanted:
        raise TargetError(f"there is no target; name at least one ({reach})")
    for target in wanted:
        if target < narrowest:
            raise TargetError(
                f"flops target {format_amount(target)} is below the narrowest configuration ({reach}); "
                "raise the target, or lower min_ratio or the divisor of the grid"
            )
        if target > full:
            raise TargetError(
                f"flops target {format_amount(target)} is above the full network ({reach}); lower it, or take a wider supernet"
            )
    return wanted
