"""Channel lists as papers print them: one number a layer, in a fixed order."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from autoslim.channels.grid import Grid
from autoslim.channels.map import ChannelGroup, ChannelMap, Run
from autoslim.errors import ConfigError


@dataclass(frozen=True)
class Position:
    """One number of a list: the output channels of a layer.

    Attributes:
        layer: name of the layer.
        group: the channel group that its output belongs to.
        index: where that group is in the channel map.
        runs: the layer's output axis.
    """

    layer: str
    group: ChannelGroup
    index: int
    runs: tuple[Run, ...]

    @property
    def full(self) -> int:
        """The layer's channels at full width."""
        return sum(run.size for run in self.runs)

    def channels(self, width: int) -> int:
        """Return the layer's channels when its group has `width`."""
        return sum(run.active({self.index: width}) for run in self.runs)

    def width(self, channels: int) -> int | None:
        """Return the width of the group at which the layer has that many channels, None if there is none."""
        fixed = sum(run.size for run in self.runs if run.group is None)
        free = self.full - fixed
        width = (channels - fixed) * self.group.full // free
        return width if width >= 1 and self.channels(width) == channels else None


@dataclass(frozen=True)
class ListOrder:
    """What the numbers of a list stand for: positions, then, if the list goes on, the number of classes.

    Attributes:
        positions: one entry a number.
        classes: outputs of the last layer that keeps its width; None where there is no such layer.
    """

    positions: tuple[Position, ...]
    classes: int | None

    @classmethod
    def of(cls, channels: ChannelMap, model: nn.Module, layers: Iterable[str] = ()) -> "ListOrder":
        """Return the order of a network: the given layers, or all dense conv and linear layers as they run.

        Depthwise convolutions follow their input and have no number; nor have layers whose width never changes.

        Raises:
            ConfigError: a given layer has no number, or a group none of whose layers is among them.
        """
        modules = dict(model.named_modules())
        runs = [name for name in dict.fromkeys(call.layer for call in channels.calls) if _is_dense(modules[name])]
        # Layers that run in training only, as those of auxiliary heads, come last.
        dense = dict.fromkeys([*runs, *(name for name, module in modules.items() if _is_dense(module))])
        known = {name: found for name in dense if (found := _position(name, modules[name], channels)) is not None}
        layers = list(layers)
        chosen = [known[name] for name in layers or known if name in known]
        named = {position.group.name for position in chosen}
        unnamed = [group.name for group in channels.groups if group.name not in named]
        faults = [f"{name!r} is no conv or linear layer with a width of its own" for name in layers if name not in known]
        faults += [f"no layer stands for group {name!r}" for name in unnamed]
        if faults:
            way = "correct [lists] layers" if layers else "name every group in a configuration file, see `autoslim inspect`"
            raise ConfigError(f"channel lists cannot describe {type(model).__name__}: {'; '.join(faults)}; {way}")
        fixed = [name for name in runs if name not in known]
        return cls(tuple(chosen), _outputs(modules[fixed[-1]]) if fixed else None)

    def widths(self, text: str, divisor: int) -> dict[str, int]:
        """Return the width of every group from a list: numbers between commas, blanks, `|`, brackets or line ends.

        Raises:
            ConfigError: the list does not fit; all faults are named.
        """
        tokens = [token for token in re.split(r"[\s,|;()\[\]]+", text) if token]
        values = [int(token) if re.fullmatch(r"-?\d{1,9}", token) else token for token in tokens]
        count, grid = len(self.positions), Grid(divisor)
        widths: dict[str, int] = {}
        if len(values) == count or (len(values) == count + 1 and self.classes is not None):
            widths, faults = self._read(values[:count], grid)
            if len(values) > count and values[-1] != self.classes:
                faults.append(f"position {count + 1} (classes) is {values[-1]}, the network has {self.classes}")
        else:
            faults = [self._count_fault(len(values)), *self._judge_alone(values, grid)]
        if faults:
            total = f"{len(faults)} fault{'s' * (len(faults) != 1)}"
            raise ConfigError(f"channel list: {total}: {'; '.join(faults)}; correct the list, one number a layer in this order")
        return widths

    def _count_fault(self, given: int) -> str:
        count = len(self.positions)
        wanted = f"{count}, or {count + 1} with the {self.classes} classes" if self.classes is not None else f"{count}"
        order = ", ".join(position.layer for position in self.positions)
        return f"it has {given} number{'s' * (given != 1)}, the network takes {wanted} ({order})"

    def _read(self, values: list[int | str], grid: Grid) -> tuple[dict[str, int], list[str]]:
        widths: dict[str, int] = {}
        first: dict[str, int] = {}
        faults = []
        for place, (value, position) in enumerate(zip(values, self.positions), 1):
            about, group = f"position {place} ({position.layer}) is {value}", position.group.name
            rule = _rule(value, position, grid)
            if rule:
                faults.append(f"{about}, {rule}")
            elif group not in widths:
                widths[group], first[group] = position.width(value), place
            elif position.channels(widths[group]) != value:
                other = self.positions[first[group] - 1]
                there, here = other.channels(widths[group]), position.channels(widths[group])
                asks = "" if there == here else f", which asks for {here}"
                faults.append(f"{about}, tied to position {first[group]} ({other.layer}), which is {there}{asks}")
        return widths, faults

    def _judge_alone(self, values: list[int | str], grid: Grid) -> list[str]:
        """Return what is wrong with numbers wherever they stand: which layers they belong to is not known."""
        widest = max(self.positions, key=lambda position: position.full)
        faults = []
        for place, value in enumerate(values, 1):
            if value == self.classes or not all(_rule(value, position, grid) for position in self.positions):
                continue
            rule = _rule(value, widest, grid)
            faults.append(f"position {place} is {value}, {rule.replace('its full width', 'the widest layer')}")
        return faults


def _rule(value: int | str, position: Position, grid: Grid) -> str:
    """Return the rule that an entry breaks at its position, "" if it breaks none."""
    if isinstance(value, str):
        return "not a whole number"
    if value < 1:
        return "below 1"
    if value > position.full:
        return f"above its full width {position.full}"
    multiple = grid.multiple(position.group.unit)
    width = position.width(value)
    if value != position.full and (width is None or width % multiple):
        return f"not a multiple of {position.channels(multiple)}"
    return ""


def _position(name: str, layer: nn.Module, channels: ChannelMap) -> Position | None:
    axes = channels.tensors.get(f"{name}.weight")
    runs = axes and axes[1 if isinstance(layer, _ConvTransposeNd) else 0]
    indices = {run.group for run in runs or ()} - {None}
    if len(indices) != 1:
        return None
    (index,) = indices
    return Position(name, channels.groups[index], index, runs)


def _is_dense(layer: nn.Module) -> bool:
    if isinstance(layer, _ConvNd):
        return layer.groups == 1 or layer.groups < layer.in_channels
    return isinstance(layer, nn.Linear)


def _outputs(layer: nn.Module) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
