"""Modules that compute with the active slice of their full tensors."""

import functools

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from autoslim.channels.map import Run
from autoslim.channels.proxies import Unregistered


class Width:
    """The active channels of one group: one object, shared by every layer of the group."""

    def __init__(self, name: str, full: int, unit: int, choices: tuple[int, ...]):
        self.name = name
        self.full = full
        self.unit = unit
        self.choices = choices
        self.value = full


class ActiveAxis:
    """One channel axis of a tensor: which of its elements are active at the current widths."""

    def __init__(self, runs: tuple[Run, ...], widths: list[Width]):
        self.runs = runs
        self._widths = [widths[run.group] if run.group is not None else None for run in runs]
        self._cache: dict[tuple, Tensor] = {}
        self.full = sum(run.size for run in runs)
        self.widths = [width for width in self._widths if width is not None]
        # One run, as nearly all axes are: asked for by every layer whenever it runs, in a few operations.
        self._single = (self._widths[0], *runs[0].share) if len(runs) == 1 and self._widths[0] is not None else None

    def parts(self) -> list[int]:
        """Return the active elements of each run."""
        return [run.size if w is None else w.value * run.share[0] // run.share[1] for run, w in zip(self.runs, self._widths)]

    def active(self) -> int:
        """Return the number of active elements."""
        return sum(self.parts())

    def take(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """Return the active part of `tensor` along `dim`: a view where that is one leading run."""
        if self._single is not None:
            width, part, of = self._single
            total = width.value * part // of
            return tensor if total == self.full else tensor.narrow(dim, 0, total)
        if sum(self.parts()) == self.full:
            return tensor
        return tensor.index_select(dim, self.index(tensor.device))

    def index(self, device: torch.device) -> Tensor:
        """Return the positions of the active elements."""
        parts = self.parts()
        key = (*parts, device)
        if key not in self._cache:
            if len(self._cache) >= 64:
                self._cache.clear()
            starts, start = [], 0
            for run in self.runs:
                starts.append(start)
                start += run.size
            # An index made while evaluating must serve training too.
            with torch.inference_mode(False):
                index = torch.cat([torch.arange(s, s + n) for s, n in zip(starts, parts)])
                self._cache[key] = index.to(device)
        return self._cache[key]


class Slimming:
    """What of one module follows the widths: axes of its tensors, and numbers that are sizes.

    Attributes:
        axes: tensor name to the axis of each of its dimensions, None where that never changes.
        sizes: attribute name to an axis, or to a row of axes and numbers.
        average: divide the weight by this many inputs that each output sees, `weight.shape[dim] / groups` (US-Nets,
            supplementary); None: do not.
        own: tensors that stand in for the module's, at the widths that are set (the private batch norms of a switch).
        tracks: a batch norm keeps moving statistics while it trains.
        views: tensors and those of their views that were cut, by name and widths; None to cut a tensor whenever it is read.
    """

    def __init__(
        self, axes: dict[str, list[ActiveAxis | None]], sizes: dict[str, ActiveAxis | tuple], average: tuple[int, int] | None
    ):
        self.axes = axes
        self.sizes = sizes
        self.average = average
        self.own: dict[str, Tensor | None] = {}
        self.tracks = False
        self.views: dict[tuple, tuple[Tensor, Tensor]] | None = None
        self._copies: dict[str, Tensor] = {}
        self._widths = {name: [width for axis in row if axis for width in axis.widths] for name, row in axes.items()}

    def tensor(self, name: str, full: Tensor) -> Tensor:
        """Return the active part of a tensor."""
        if self.views is None or name in self.own:
            return self._cut(name, full)
        key = (name, *[width.value for width in self._widths.get(name, ())])
        known, value = self.views.get(key, (None, None))
        if known is not full:
            value = self._cut(name, full)
            if value is full or value._is_view():
                self.views[key] = full, value
        return value

    def _cut(self, name: str, full: Tensor) -> Tensor:
        if name in self.own:
            return self.own[name]
        if name in self._copies:
            self.write_back()  # a layer that runs twice
        value = full
        for dim, axis in enumerate(self.axes.get(name, ())):
            if axis is not None:
                value = axis.take(value, dim)
        if full.dim() == 1 and value is not full and not value._is_view() and not isinstance(full, nn.Parameter):
            value.home = (full, axis.index(full.device))  # BN calibration writes there
            if self.tracks:
                self._copies[name] = value
        if self.average and name == "weight":
            dim, groups = self.average
            value = value / (value.shape[dim] // groups)
        return value

    def forget_copies(self) -> None:
        """Drop what was read since the last `write_back`."""
        self._copies.clear()

    def write_back(self) -> None:
        """Store what a forward pass wrote into copies of active parts: moving statistics."""
        for value in self._copies.values():
            full, index = value.home
            full[index] = value
        self._copies.clear()

    def number(self, name: str, full):
        """Return an attribute at the current widths, of the type it has at full width."""
        size = self.sizes[name]
        if isinstance(size, ActiveAxis):
            return size.active()
        return type(full)(entry.active() if isinstance(entry, ActiveAxis) else entry for entry in size)


class Slimmable(Unregistered):
    """A module whose tensors, when they are read, are the active slices; its own forward is what runs."""

    plain: type[nn.Module]

    def __getattr__(self, name: str):
        value = super().__getattr__(name)
        slimming = self.__dict__.get("_slimming")
        if slimming is not None and isinstance(value, Tensor):
            return slimming.tensor(name, value)
        return value

    def __reduce_ex__(self, protocol):
        _, _, *state = super().__reduce_ex__(protocol)
        return (_blank, (self.plain, frozenset(self._slimming.sizes)), *state)

    def _replicate_for_data_parallel(self):
        # DataParallel gives a replica its tensors as attributes, which would be read past the widths; as buffers they are not.
        replica = super()._replicate_for_data_parallel()
        replica._buffers.update(dict.fromkeys(self._parameters))
        return replica

    def active_tensors(self) -> dict[str, Tensor]:
        """Return the parameters and buffers at the current widths, by name."""
        own = {**self._parameters, **self._buffers}
        return {name: self._slimming.tensor(name, tensor) for name, tensor in own.items() if tensor is not None}

    def to_plain(self) -> nn.Module:
        """Turn this module, whose tensors are sliced already, into the plain one of the current widths."""
        numbers = {name: self._slimming.number(name, self.__dict__[name]) for name in self._slimming.sizes}
        del self.__dict__["_slimming"]
        self.__dict__.update(numbers)
        self.__class__ = self.plain
        return self


class _BatchStatistics:
    """A batch norm that trains with the statistics of its batch and keeps none: no width may leave its own to another.

    Where the widths are switches with statistics of their own, it keeps them (`Slimming.tracks`).
    """

    @property
    def track_running_stats(self) -> bool:
        return self.__dict__["track_running_stats"] and (not self.training or self.__dict__["_slimming"].tracks)

    @track_running_stats.setter
    def track_running_stats(self, value: bool) -> None:
        self.__dict__["track_running_stats"] = value


def adopt(module: nn.Module, axes: dict, sizes: dict, average: bool = False) -> nn.Module:
    """Make a module slimmable; the same object, so that every place that holds it sees the change."""
    module.__dict__["_slimming"] = Slimming(axes, sizes, _inputs_seen(module) if average and averages(module) else None)
    module.__class__ = _slimmable(type(module), frozenset(sizes))
    return module


def averages(module: nn.Module) -> bool:
    """Tell whether a module is a conv that mixes channels, whose outputs may be averaged over its inputs."""
    return isinstance(module, _ConvNd) and not (module.groups > 1 and module.groups == module.in_channels)


def _inputs_seen(conv: _ConvNd) -> tuple[int, int]:
    """Return which axis of the weight holds inputs, and into how many parts it falls."""
    return (0, conv.groups) if conv.transposed else (1, 1)


@functools.cache
def _slimmable(kind: type[nn.Module], sizes: frozenset[str]) -> type[nn.Module]:
    bases = (Slimmable, _BatchStatistics, kind) if issubclass(kind, _BatchNorm) else (Slimmable, kind)
    names = {name: _number(name) for name in sizes}
    return type(f"Slim{kind.__name__}", bases, {**names, "plain": kind, "__module__": __name__})


def _blank(kind: type[nn.Module], sizes: frozenset[str]) -> nn.Module:
    made = _slimmable(kind, sizes)
    return made.__new__(made)


def _number(name: str) -> property:
    def get(module):
        return module.__dict__["_slimming"].number(name, module.__dict__[name])

    def put(module, value):
        module.__dict__[name] = value

    return property(get, put)
