"""Layers that compute with the active slice of their full weights."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoslim.channels.map import Run


class Width:
    """The active channels of one group: one object, shared by every layer of the group."""

    def __init__(self, name: str, full: int, unit: int, choices: tuple[int, ...]):
        self.name = name
        self.full = full
        self.unit = unit
        self.choices = choices
        self.value = full


class ActiveAxis:
    """One channel axis of a layer: which of its elements are active at the current widths."""

    def __init__(self, runs: tuple[Run, ...], widths: list[Width]):
        self._runs = [(run, widths[run.group] if run.group is not None else None) for run in runs]
        self._cache: dict[tuple, Tensor] = {}
        self.full = sum(run.size for run in runs)

    def parts(self) -> list[int]:
        """Return the active elements of each run."""
        return [run.size if w is None else w.value * run.share[0] // run.share[1] for run, w in self._runs]

    def active(self) -> int:
        """Return the number of active elements."""
        return sum(self.parts())

    def first_block(self, blocks: int) -> "ActiveAxis":
        """Return the first of `blocks` equal blocks of this axis (one group of a grouped convolution)."""
        block = object.__new__(ActiveAxis)
        block._runs = self._runs[: len(self._runs) // blocks]
        block._cache = {}
        block.full = self.full // blocks
        return block

    def take(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """Return the active part of `tensor` along `dim`: a view where that is one leading run."""
        parts = self.parts()
        total = sum(parts)
        if total == self.full:
            return tensor
        if len(parts) == 1:
            return tensor.narrow(dim, 0, total)
        return tensor.index_select(dim, self._index(parts, tensor.device))

    def put(self, tensor: Tensor, values: Tensor) -> None:
        """Write `values` into the active elements of a one-dimensional tensor."""
        parts = self.parts()
        if len(parts) == 1 or sum(parts) == self.full:
            tensor[: sum(parts)].copy_(values)
        else:
            tensor[self._index(parts, tensor.device)] = values.to(tensor)

    def _index(self, parts: list[int], device: torch.device) -> Tensor:
        key = (*parts, device)
        if key not in self._cache:
            if len(self._cache) >= 64:
                self._cache.clear()
            starts, start = [], 0
            for run, _ in self._runs:
                starts.append(start)
                start += run.size
            # An index made while evaluating must serve training too.
            with torch.inference_mode(False):
                index = torch.cat([torch.arange(s, s + n) for s, n in zip(starts, parts)])
                self._cache[key] = index.to(device)
        return self._cache[key]


def _take(axis: ActiveAxis | None, tensor: Tensor | None, dim: int = 0) -> Tensor | None:
    return tensor if axis is None or tensor is None else axis.take(tensor, dim)


class Slimmable:
    """What every slimmable layer has: its two axes, its active tensors, and the plain layer it stands for."""

    plain: type[nn.Module]

    @classmethod
    def adopt(cls, layer: nn.Module, inputs: ActiveAxis | None, outputs: ActiveAxis | None, average: bool = False):
        """Turn a plain layer into a slimmable one; the same object, so that every place that holds it sees the change."""
        layer.__class__ = cls
        layer.inputs, layer.outputs, layer.average = inputs, outputs, average
        return layer

    def sizes(self) -> dict[str, int]:
        """Return the size attributes of the plain layer at the current widths."""
        raise NotImplementedError

    def active_tensors(self) -> dict[str, Tensor]:
        """Return the parameters and buffers of the plain layer at the current widths, by name."""
        raise NotImplementedError

    def to_plain(self) -> nn.Module:
        """Turn this layer, whose tensors are sliced already, into the plain one of the current widths."""
        self.__dict__.update(self.sizes())
        del self.inputs, self.outputs, self.average
        self.__class__ = self.plain
        return self


class _SlimConv(Slimmable):
    @property
    def depthwise(self) -> bool:
        return self.groups > 1 and self.groups == self.in_channels

    def active_weight(self) -> Tensor:
        """Return `[out, in / groups, ...]` at the current widths; divided by the inputs where outputs are averaged."""
        weight = _take(self.outputs, self.weight)
        if not self.depthwise and self.inputs is not None:
            columns = self.inputs if self.groups == 1 else self.inputs.first_block(self.groups)
            weight = columns.take(weight, 1)
        if self.average and not self.depthwise:
            weight = weight / weight.shape[1]
        return weight

    def forward(self, x: Tensor) -> Tensor:
        groups = x.shape[1] if self.depthwise else self.groups
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0
        bias = _take(self.outputs, self.bias)
        return self.convolve(x, self.active_weight(), bias, self.stride, padding, self.dilation, groups)

    def sizes(self) -> dict[str, int]:
        inputs = self.in_channels if self.inputs is None else self.inputs.active()
        outputs = self.out_channels if self.outputs is None else self.outputs.active()
        return {"in_channels": inputs, "out_channels": outputs, "groups": inputs if self.depthwise else self.groups}

    def active_tensors(self) -> dict[str, Tensor]:
        return {"weight": self.active_weight(), "bias": _take(self.outputs, self.bias)}


class SlimConv1d(_SlimConv, nn.Conv1d):
    """Conv1d over active channels."""

    plain, convolve = nn.Conv1d, staticmethod(F.conv1d)


class SlimConv2d(_SlimConv, nn.Conv2d):
    """Conv2d over active channels."""

    plain, convolve = nn.Conv2d, staticmethod(F.conv2d)


class SlimConv3d(_SlimConv, nn.Conv3d):
    """Conv3d over active channels."""

    plain, convolve = nn.Conv3d, staticmethod(F.conv3d)


class SlimLinear(Slimmable, nn.Linear):
    """Linear layer over active features."""

    plain = nn.Linear

    def active_weight(self) -> Tensor:
        """Return `[out, in]` at the current widths."""
        weight = _take(self.outputs, self.weight)
        return weight if self.inputs is None else self.inputs.take(weight, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.active_weight(), _take(self.outputs, self.bias))

    def sizes(self) -> dict[str, int]:
        inputs = self.in_features if self.inputs is None else self.inputs.active()
        outputs = self.out_features if self.outputs is None else self.outputs.active()
        return {"in_features": inputs, "out_features": outputs}

    def active_tensors(self) -> dict[str, Tensor]:
        return {"weight": self.active_weight(), "bias": _take(self.outputs, self.bias)}


class _SlimBatchNorm(Slimmable):
    """Batch norm over active channels: batch statistics in training, none are kept; stored ones in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        weight, bias = _take(self.outputs, self.weight), _take(self.outputs, self.bias)
        if self.training or self.running_mean is None:
            return F.batch_norm(x, None, None, weight, bias, True, 0.0, self.eps)
        mean, var = _take(self.outputs, self.running_mean), _take(self.outputs, self.running_var)
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, self.eps)

    def store_statistics(self, mean: Tensor, var: Tensor) -> None:
        """Keep mean and variance `[active channels]` for eval mode at the current width."""
        for buffer, values in ((self.running_mean, mean), (self.running_var, var)):
            if self.outputs is None:
                buffer.copy_(values)
            else:
                self.outputs.put(buffer, values)

    def sizes(self) -> dict[str, int]:
        return {"num_features": self.num_features if self.outputs is None else self.outputs.active()}

    def active_tensors(self) -> dict[str, Tensor]:
        names = ("weight", "bias", "running_mean", "running_var")
        return {name: _take(self.outputs, getattr(self, name)) for name in names}


class SlimBatchNorm1d(_SlimBatchNorm, nn.BatchNorm1d):
    """BatchNorm1d over active channels."""

    plain = nn.BatchNorm1d


class SlimBatchNorm2d(_SlimBatchNorm, nn.BatchNorm2d):
    """BatchNorm2d over active channels."""

    plain = nn.BatchNorm2d


class SlimBatchNorm3d(_SlimBatchNorm, nn.BatchNorm3d):
    """BatchNorm3d over active channels."""

    plain = nn.BatchNorm3d


_SLIM = (SlimConv1d, SlimConv2d, SlimConv3d, SlimLinear, SlimBatchNorm1d, SlimBatchNorm2d, SlimBatchNorm3d)
SLIM_LAYERS: dict[type[nn.Module], type[Slimmable]] = {kind.plain: kind for kind in _SLIM}
