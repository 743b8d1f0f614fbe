"""Peak memory of inference, from the tensors that a forward pass makes and lets go of."""

import contextlib
import functools
import random
import weakref
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from autoslim.channels.config import ChannelConfig
from autoslim.channels.copies import kept_tensors, share_copy
from autoslim.channels.isolation import same_globals, same_randomness
from autoslim.channels.trace import Untraceable, as_inputs
from autoslim.channels.where import location, told
from autoslim.slimmable.materialize import materialize
from autoslim.slimmable.supernet import Supernet


def peak_memory_bytes(network: nn.Module, example) -> int:
    """Return the largest sum of bytes that are alive at once while a network runs on `example` in eval mode, without gradients.

    These are the weights and buffers, the inputs, and every tensor from the operation that makes it until nothing holds it:
    residual branches and what variables of forward still name are counted, what views share is counted once, in-place
    operations make nothing. A layer's input lives until the layer returns, as in PyTorch without a compiler. What an operation
    needs inside (workspaces of convolutions) is not counted. The network's code runs on tensors that hold no data; where it
    asks for their values (`item()`), on the example.

    Args:
        network: the plain network; it is left as it is.
        example: one input `[N, C, H, W]` or a tuple of inputs; the bytes are for all N.

    Raises:
        ModelError: the network does not run on the example.
    """
    return _Passes(network, example).first.peak()


class PeakMemory:
    """Peak memory of any configuration of a supernet: `peak_memory_bytes` of the materialised network, without a run of it.

    The same tensors live at the same time at all widths, and every axis of a tensor is as long, as a part of its full length,
    as some channel axis of the weights. Which one is told from a few runs, on tensors without data, at widths at which no two
    of these agree. A network that does otherwise (a shuffle of single channels copies nothing) is run for every configuration.

    Args:
        net: the supernet; it is left as it is.
        example: one input or a tuple of inputs; its batch size is that of the bytes.

    Attributes:
        runs: whether a configuration takes a run of the network, tens of milliseconds in place of tens of microseconds.

    Raises:
        ModelError: the network does not run on the example.
    """

    def __init__(self, net: Supernet, example):
        self._names = [group.name for group in net.groups]
        self._passes = _Passes(net, example)
        self._known: dict[tuple[int, ...], int] = {}
        self.runs = not self._read(net)

    def _read(self, net: Supernet) -> bool:
        """Find which channel axis every axis of a tensor follows; False where there is none for some."""
        first = self._passes.first
        places = np.array(first.events)
        self._signs, self._places = np.where(places < 0, -1.0, 1.0), np.where(places < 0, ~places, places)
        self._base = first.axes()
        parts = _parts(net)
        widths = _telling_widths(net, parts)
        seen = [self._axes_at(row) for row in widths]
        if any(axes is None for axes in seen):
            return False
        lengths, kinds = np.unique(np.stack([self._base, *seen], -1).reshape(self._base.size, -1), axis=0, return_inverse=True)
        ratios = lengths[:, 1:] / lengths[:, :1]  # [axes, widths]
        same = np.isclose(ratios[:, None], _at(parts, widths), rtol=0, atol=1e-9).all(-1)
        self._parts = parts[same.argmax(1)]
        self._follows = kinds.reshape(self._base.shape)
        other = ~same.any(1)
        if other.any():
            # A concatenation that no layer sees as a whole: narrow one group after the other.
            example = np.array([np.argmax(self._follows.ravel() == kind) for kind in np.flatnonzero(other)])
            self._parts[other] = 0
            for index, group in enumerate(net.groups):
                less = next((w for w in reversed(net.choices[group.name]) if w < group.full), group.full - group.unit)
                axes = self._axes_at([less if g is group else g.full for g in net.groups]) if less > 0 else self._base
                if axes is None:
                    return False
                ratio = (axes / self._base).ravel()[example]
                self._parts[other, 1 + index] = (1 - ratio) / max(1, group.full - less)
            full = np.array([group.full for group in net.groups], dtype=float)
            self._parts[other, 0] = 1 - self._parts[other, 1:] @ full
        return bool(np.isclose(ratios, _at(self._parts, widths), rtol=0, atol=1e-9).all())

    def _axes_at(self, row) -> np.ndarray | None:
        """Return the axes of all tensors at widths; None where there are other tensors."""
        found = self._passes.run(dict(zip(self._names, map(int, row))))
        return found.axes() if found.like(self._passes.first) else None

    def bytes(self, config: ChannelConfig | Mapping[str, int]) -> int:
        """Return the bytes at a configuration (or at group names to channels)."""
        chosen = config.widths if isinstance(config, ChannelConfig) else config
        widths = [chosen[name] for name in self._names]
        if not self.runs:
            axes = np.rint(self._base * _at(self._parts, np.array([widths], dtype=float))[self._follows, 0])
            return int(np.cumsum(axes.prod(1)[self._places] * self._signs).max())
        key = tuple(widths)
        if key not in self._known:
            self._known[key] = self._passes.run(dict(zip(self._names, widths))).peak()
        return self._known[key]


def _parts(net: Supernet) -> np.ndarray:
    """Return for every channel axis of the weights, and every group, which part of it is active: a constant, and one factor for
    the width of each group `[axes, 1 + groups]`; the first is an axis that never changes."""
    count = len(net.groups)
    rows = [np.eye(1 + count)[0], *(np.eye(1 + count)[1 + i] / group.full for i, group in enumerate(net.groups))]
    for runs in {axis for axes in net.channels.tensors.values() for axis in axes if axis is not None}:
        row = np.zeros(1 + count)
        for run in runs:
            row[0 if run.group is None else 1 + run.group] += run.size if run.group is None else run.share[0] / run.share[1]
        rows.append(row / sum(run.size for run in runs))
    rows = np.unique(np.array(rows).round(12), axis=0)
    always = (rows == np.eye(1 + count)[0]).all(1)
    return np.concatenate([rows[always], rows[~always]])


def _at(parts: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Return the active part of every axis at rows of widths `[axes, rows]`."""
    return parts[:, :1] + parts[:, 1:] @ widths.T


def _telling_widths(net: Supernet, parts: np.ndarray) -> np.ndarray:
    """Return the narrowest widths, and drawn ones until no two axes agree at all of them, and four more `[rows, groups]`."""
    rng = random.Random(0)
    rows = [list(net.narrowest().widths.values())]
    spare = 4
    for _ in range(200):
        drawn = []
        for group in net.groups:
            choices, multiple = net.choices[group.name], net.grid.multiple(group.unit)
            least = choices[0]
            if len(choices) == 1:  # a configuration may narrow it all the same
                least = multiple = group.unit
            drawn.append(min(group.full, multiple * rng.randint(-(-least // multiple), -(-group.full // multiple))))
        told = [len(np.unique(_at(parts, np.array(r, dtype=float)).round(9), axis=0)) for r in (rows, [*rows, drawn])]
        spare -= told[0] == len(parts)
        if told[1] > told[0] or told[0] == len(parts):
            rows.append(drawn)
        if not spare:
            break
    return np.array(rows, dtype=float)


class _Recorder(TorchDispatchMode):
    """Notes when memory is taken and given back while operations run.

    Attributes:
        shapes: of every piece of memory, the shape of the tensor it was taken for, and bytes of an element.
        events: in order, the place in `shapes` of what was taken, or ~place of what was given back.
    """

    def __init__(self):
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []
        self.events: list[int] = []
        self._known: dict[int, weakref.ref] = {}

    def add(self, tensor: torch.Tensor, *, count: bool = True) -> None:
        """Follow the memory of a tensor from now on; without `count`, only to know it."""
        storage = tensor.untyped_storage()
        key, place = storage._cdata, len(self.shapes)
        count = count and storage.nbytes() > 0
        if key in self._known:
            return
        if count:
            dense = storage.nbytes() == tensor.numel() * tensor.element_size()
            self.shapes.append((*tensor.shape, tensor.element_size()) if dense else (storage.nbytes(),))
            self.events.append(place)

        def gone(_):
            del self._known[key]
            if count:
                self.events.append(~place)

        self._known[key] = weakref.ref(storage, gone)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf, count=False)  # a constant that the code keeps
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return out

    def axes(self) -> np.ndarray:
        """Return the shapes, filled up with ones `[pieces, dimensions]`."""
        filled = np.ones((len(self.shapes), max(map(len, self.shapes))))
        for row, shape in zip(filled, self.shapes):
            row[: len(shape)] = shape
        return filled

    def like(self, other: "_Recorder") -> bool:
        """Tell whether the same pieces, but for their sizes, were taken and given back in the same order."""
        return self.events == other.events and list(map(len, self.shapes)) == list(map(len, other.shapes))

    def peak(self) -> int:
        """Return the largest sum of bytes that are taken at once."""
        sizes, alive, peak = self.axes().prod(1), 0.0, 0.0
        for place in self.events:
            alive += sizes[place] if place >= 0 else -sizes[~place]
            peak = max(peak, alive)
        return int(peak)


class _Passes:
    """Forward passes of a network, or of a supernet at any widths: on tensors without data, else on the example.

    Attributes:
        first: the pass of the network as it is, or of the supernet at full width.
    """

    def __init__(self, network: nn.Module, example):
        widths = network.full().widths if isinstance(network, Supernet) else None
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        try:
            self._network = _empty_copy(network, self._mode)
            self._inputs = tree_map(functools.partial(_empty, self._mode), as_inputs(example))
            self.first = self.run(widths)
        except Exception:
            self._mode = contextlib.nullcontext()
            self._network = network
            there = next((p.device for p in network.parameters()), None)
            self._inputs = tree_map(lambda t: t.to(there, copy=True) if isinstance(t, torch.Tensor) else t, as_inputs(example))
            try:
                self.first = self.run(widths)
            except Exception as error:
                raise Untraceable(
                    f"{type(network).__name__} does not run on the example ({told(error)} at {location(error)}); "
                    "pass an input that it takes"
                ) from error

    def run(self, widths: Mapping[str, int] | None = None) -> _Recorder:
        """Run the network in eval mode and return what was seen."""
        network = self._network
        with torch.no_grad(), same_randomness(), same_globals(network):
            if widths is None:
                plain = share_copy(network, {id(buffer): buffer.clone() for buffer in network.buffers()})
            else:
                plain = materialize(network, widths)
            recorder = _Recorder()
            for leaf in tree_leaves((list(plain.parameters()), list(plain.buffers()), self._inputs)):
                if isinstance(leaf, torch.Tensor):
                    recorder.add(leaf)
            plain.eval()
            with self._mode, recorder:
                plain(*self._inputs)
        recorder.events = list(recorder.events)  # what is given back from here on is no matter
        return recorder


def _empty(mode: FakeTensorMode, value):
    """Return a tensor of the same shape without data; anything else as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    with mode:
        return torch.empty_like(value, device="cpu")


def _empty_copy(network: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """Copy a network for tensors without data: same structure and shapes."""
    plain = [t for module in network.modules() for t in kept_tensors(module)]
    memo = {id(tensor): _empty(mode, tensor) for tensor in (*plain, *network.buffers())}
    for parameter in network.parameters():
        # Autocast keeps its copies of those that are trained.
        memo[id(parameter)] = nn.Parameter(_empty(mode, parameter), requires_grad=parameter.requires_grad)
    return share_copy(network, memo)
