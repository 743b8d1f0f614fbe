"""Budgets of several kinds at once: multiply-adds, parameters, bytes of weights, peak memory, latency."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR
from numbers import Real

import torch
from torch.utils._pytree import tree_map

from autoslim.channels.config import ChannelConfig
from autoslim.channels.trace import as_inputs
from autoslim.cost.amounts import KINDS, labels
from autoslim.cost.memory import PeakMemory
from autoslim.cost.table import CostTable
from autoslim.errors import ConfigError, TargetError
from autoslim.slimmable.materialize import example_input
from autoslim.slimmable.supernet import Supernet

PARAMETER_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}  # bytes of a parameter


class Budgets:
    """What a configuration costs in every kind that has a budget.

    Args:
        net: the supernet; it is read once.
        kinds: names of `KINDS`: "macs" and "params" (always counted), "size" (bytes of the parameters at `precision`),
            "memory" (bytes that are alive at once while `batch` examples go through, see `PeakMemory`), "latency" (ms).
        precision: of the parameters in "size": one of `PARAMETER_BYTES`. Memory is counted at the network's own.
        batch: examples that go through at once in "memory".
        example: inputs to take shapes from, where zeros of the supernet's `input_shape` will not do. Those of a network that
            was not traced from its inputs are taken as they are, whatever `batch` is.
        latency: gives milliseconds for group names to channels.

    Attributes:
        table: multiply-adds, parameters and bytes of any configuration.
        full, narrowest: the costs of the widest and of the narrowest configuration.

    Raises:
        ConfigError: a kind or a precision is unknown, or what a kind needs is missing.
        ModelError: the memory of a network that does not run on the example.
    """

    def __init__(
        self,
        net: Supernet,
        kinds: Iterable[str],
        *,
        precision: str = "fp32",
        batch: int = 1,
        example=None,
        latency: Callable[[Mapping[str, int]], float] | None = None,
    ):
        kinds = set(kinds)
        _check_kinds(kinds)
        if precision not in PARAMETER_BYTES:
            raise ConfigError(f"precision {precision!r} is unknown; pass one of {', '.join(PARAMETER_BYTES)}")
        if not (isinstance(batch, int) and batch >= 1):
            raise ConfigError(f"batch is {batch!r}; it must be a whole number of examples, 1 or more")
        if "latency" in kinds and latency is None:
            raise ConfigError("a latency target needs to know how long a configuration takes; pass latency=")
        self.table = CostTable(net)
        self._size = PARAMETER_BYTES[precision] if "size" in kinds else None
        self._memory = PeakMemory(net, _inputs(net, example, batch)) if "memory" in kinds else None
        self._latency = latency if "latency" in kinds else None
        self.full = self.costs(net.full().widths)
        self.narrowest = self.costs(net.narrowest().widths)

    def costs(self, config: ChannelConfig | Mapping[str, int]) -> dict[str, float]:
        """Return the costs of a configuration (or of group names to channels) by kind; no forward pass."""
        widths = config.widths if isinstance(config, ChannelConfig) else config
        cost = self.table.cost(widths)
        costs: dict[str, float] = {"macs": cost.macs, "params": cost.params}
        if self._size is not None:
            costs["size"] = cost.params * self._size
        if self._memory is not None:
            costs["memory"] = self._memory.bytes(widths)
        if self._latency is not None:
            costs["latency"] = self._latency(widths)
        return costs

    def check(self, targets: Mapping[str, Iterable[float | str] | float | str]) -> "list[Target]":
        """Return targets for this network, see `check_budgets`.

        Raises:
            TargetError: see `check_budgets`.
            ConfigError: there is an amount of a kind that is not counted.
        """
        if lacking := [kind for kind in targets if kind not in self.full]:
            raise ConfigError(f"budgets do not count {', '.join(lacking)}; pass Budgets(net, {list(targets)})")
        return check_budgets(targets, self.full, self.narrowest)


def _check_kinds(kinds: Iterable[str]) -> None:
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ConfigError(f"targets are for {', '.join(map(repr, unknown))}; the kinds are {', '.join(KINDS)}")


def _inputs(net: Supernet, example, batch: int):
    """Return inputs of `batch` examples."""
    if example is None:
        if any(shape is None for shape in net.input_shape):
            raise ConfigError("a memory target needs to know the network's inputs; pass example=")
        dtype = next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.float32)
        example = tree_map(lambda t: t.to(dtype), example_input(net.full()))
    if not net.channels.whole:
        return example  # what its axes mean is not known: lists of images of their own sizes
    return tree_map(lambda t: t[:1].expand(batch, *t.shape[1:]) if isinstance(t, torch.Tensor) else t, as_inputs(example))


@dataclass(frozen=True)
class Target:
    """Amounts of one or several kinds that one configuration must meet together.

    Attributes:
        amounts: the largest cost allowed, by kind.
        label: a short name that no other target of the same list has, fit for a file name: 88M, params-2M, 88M_12ms.
    """

    amounts: Mapping[str, float]
    label: str

    def unmet(self, costs: Mapping[str, float]) -> list[str]:
        """Return the kinds whose cost is above the amount."""
        return [kind for kind, amount in self.amounts.items() if not costs[kind] <= amount]

    def met(self, costs: Mapping[str, float]) -> bool:
        """Tell whether all amounts hold."""
        return not self.unmet(costs)

    def gain(self, before: Mapping[str, float], after: Mapping[str, float]) -> float:
        """Return how much of what is missing to the target a narrower configuration saves: saved / excess, summed over the
        kinds that are not met before.

        With one kind left it is proportional to what is saved. With several, no kind counts for more than what it lacks, so
        one that is all but met does not outweigh the others; one that gets worse counts nothing. 0 means no use.
        """
        unmet = self.unmet(before)
        parts = [max(0.0, before[kind] - after[kind]) / (before[kind] - self.amounts[kind]) for kind in unmet]
        return sum(parts) if len(parts) < 2 else sum(min(1.0, part) for part in parts)

    def gains(self, before: Mapping[str, float], candidates: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """Return the candidates that may be picked, each with its gain, which is above 0.

        Where none saves anything of what is missing (a latency that falls in steps), those that save multiply-adds, by the
        part that they save; where there is none either, all alike.

        Args:
            before: the costs now, with "macs" among them.
            candidates: the costs of each candidate, by its name.
        """
        gains = {name: self.gain(before, costs) for name, costs in candidates.items()}
        if not any(gain > 0 for gain in gains.values()):
            gains = {name: (before["macs"] - costs["macs"]) / before["macs"] for name, costs in candidates.items()}
        useful = {name: gain for name, gain in gains.items() if gain > 0}
        return useful or dict.fromkeys(candidates, 1.0)

    def to_json(self) -> dict[str, float]:
        """Return the amounts as a JSON object."""
        return dict(self.amounts)


def check_budgets(
    targets: Mapping[str, Iterable[float | str] | float | str], full: Mapping[str, float], narrowest: Mapping[str, float]
) -> list[Target]:
    """Return one target for each wanted configuration, largest first, all of them reachable.

    The amounts of every kind are sorted, largest first. A kind with one amount holds for all targets; kinds with several have
    equally many, and are paired by rank. At least one amount of a target must be no more than the full network's cost; the
    others may be above it, and then simply hold.

    Args:
        targets: amounts by kind; text such as "60%" is a part of the full network's cost. A kind without amounts is left out.
        full, narrowest: costs of the widest and of the narrowest configuration, by kind.

    Raises:
        ConfigError: a kind is unknown.
        TargetError: there is no target, one cannot be read or reached, or the kinds cannot be paired.
    """
    _check_kinds(targets)
    rows: dict[str, list[float]] = {}
    for name, kind in KINDS.items():
        given = targets.get(name, ())
        given = [given] if isinstance(given, (str, Real)) else list(given)
        if given:
            rows[name] = sorted((kind.read(amount, full[name]) for amount in given), reverse=True)
    if not rows:
        reach = "; ".join(_reach(name, full, narrowest) for name in KINDS if name in full and name in narrowest)
        raise TargetError(f"there is no target; name at least one ({reach})")
    several = {name: len(row) for name, row in rows.items() if len(row) > 1}
    if len(set(several.values())) > 1:
        counts = " and ".join(f"{count} {KINDS[name].option}s" for name, count in several.items())
        raise TargetError(f"{counts} cannot be paired; give each kind one amount, or all the same number")
    count = max(map(len, rows.values()))
    paired = [{name: row[i if len(row) > 1 else 0] for name, row in rows.items()} for i in range(count)]
    paired = [row for i, row in enumerate(paired) if row not in paired[:i]]
    for row in paired:
        _check_reach(row, full, narrowest)
    return [Target(row, label) for row, label in zip(paired, labels(paired))]


def _reach(name: str, full: Mapping[str, float], narrowest: Mapping[str, float]) -> str:
    kind = KINDS[name]
    for digits in range(4, 18):
        least = kind.format(narrowest[name], digits, ROUND_CEILING)  # so that both can be asked for
        most = kind.format(full[name], digits, ROUND_FLOOR)
        if kind.read(least, 0) <= kind.read(most, 0):
            break
    return f"reachable: {least} to {most}{kind.unit}"


def _apart(name: str, amount: float, bound: float) -> str:
    """Return an amount in short, with as many digits as it takes to stay on its side of a bound."""
    kind = KINDS[name]

    def differs(text: str) -> bool:
        shown = kind.read(text, 0)
        return shown < bound if amount < bound else shown > bound

    return next(filter(differs, (kind.format(amount, digits) for digits in range(4, 18))), f"{amount}")


def _check_reach(row: Mapping[str, float], full: Mapping[str, float], narrowest: Mapping[str, float]) -> None:
    for name, amount in row.items():
        if amount < narrowest[name]:
            raise TargetError(
                f"{KINDS[name].option} {_apart(name, amount, narrowest[name])} is below the narrowest configuration "
                f"({_reach(name, full, narrowest)}); raise the target, or lower min_ratio or the divisor of the grid"
            )
    if all(amount > full[name] for name, amount in row.items()):
        text = " with ".join(f"{KINDS[name].option} {_apart(name, amount, full[name])}" for name, amount in row.items())
        reach = "; ".join(_reach(name, full, narrowest) for name in row)
        what = "is above the full network" if len(row) == 1 else "asks for nothing: the full network meets it"
        raise TargetError(f"{text} {what} ({reach}); lower it, or take a wider supernet")
