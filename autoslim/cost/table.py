"""What a configuration costs, from a table derived once: no forward pass."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from torch import nn

from autoslim.channels.config import ChannelConfig
from autoslim.channels.map import Run
from autoslim.slimmable.supernet import Supernet


@dataclass(frozen=True)
class Cost:
    """Cost of the materialised network.

    Attributes:
        macs: multiply-adds of conv and linear layers for one example (what the papers call FLOPs); 1 MAC = 2 floating-point
            operations. Equal to fvcore's conv + linear count.
        params: number of parameters.
        weight_bytes: bytes of the parameters at their own precision.
    """

    macs: int
    params: int
    weight_bytes: int

    def to_json(self) -> dict[str, int]:
        """Return the cost as a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class _Layer:
    """A layer's share of the table: `factor * outputs * inputs` weights (or outputs alone), plus one bias an output."""

    inputs: tuple[Run, ...] | None
    outputs: tuple[Run, ...] | None
    full_inputs: int
    full_outputs: int
    kernel: int
    groups: int
    per_output: int
    itemsize: int
    positions: int = 0
    owns_weight: bool = True

    def active(self, widths: list[int]) -> tuple[int, int]:
        """Return the input channels that each output sees, times the kernel, and the output channels."""
        inputs = self.full_inputs if self.inputs is None else sum(run.active(widths) for run in self.inputs)
        outputs = self.full_outputs if self.outputs is None else sum(run.active(widths) for run in self.outputs)
        return inputs // self.groups * self.kernel, outputs


class CostTable:
    """Cost of any configuration of a supernet.

    Args:
        net: the supernet; its graph and its layer shapes are read once.
    """

    def __init__(self, net: Supernet):
        self._names = [group.name for group in net.groups]
        positions: dict[str, int] = {}
        for call in net.channels.calls:
            positions[call.layer] = positions.get(call.layer, 0) + call.positions
        self._layers: list[_Layer] = []
        self._fixed_macs = net.channels.fixed_macs
        self._fixed_params = self._fixed_bytes = 0
        counted: set[int] = set()
        for name, module in net.model.named_modules():
            layer = net.channels.layers.get(name)
            uses = positions.get(name, 0)
            if layer is not None or uses:
                own = [p for p in module.parameters(recurse=False) if id(p) not in counted]
                self._layers.append(_describe(module, layer, uses, own))
            else:
                own = [p for p in module._parameters.values() if p is not None and id(p) not in counted]
                self._fixed_params += sum(p.numel() for p in own)
                self._fixed_bytes += sum(p.numel() * p.element_size() for p in own)
            counted.update(id(p) for p in own)

    def cost(self, config: ChannelConfig | Mapping[str, int]) -> Cost:
        """Return the cost of a configuration (or of group names to channels)."""
        chosen = config.widths if isinstance(config, ChannelConfig) else config
        widths = [chosen[name] for name in self._names]
        macs, params, size = self._fixed_macs, self._fixed_params, self._fixed_bytes
        for layer in self._layers:
            weights_per_output, outputs = layer.active(widths)
            macs += layer.positions * weights_per_output * outputs
            weights = weights_per_output * (layer.kernel > 0 and layer.owns_weight)
            own = outputs * (weights + layer.per_output)
            params += own
            size += own * layer.itemsize
        return Cost(macs, params, size)


def _describe(module: nn.Module, layer, positions: int, own: list[nn.Parameter]) -> _Layer:
    runs = (layer.inputs, layer.outputs) if layer is not None else (None, None)
    itemsize = own[0].element_size() if own else 0
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return _Layer(*runs, 0, module.num_features, 0, 1, len(own), itemsize)
    bias = sum(p is module.bias for p in own)
    # A weight may be counted elsewhere: with the layer it is shared with, or with its parametrization.
    owns = any(p is module._parameters.get("weight") for p in own)
    if isinstance(module, nn.Linear):
        return _Layer(*runs, module.in_features, module.out_features, 1, 1, bias, itemsize, positions, owns)
    depthwise = module.groups > 1 and module.groups == module.in_channels
    kernel = module.weight[0, 0].numel()
    if depthwise:
        return _Layer(None, runs[1], 1, module.out_channels, kernel, 1, bias, itemsize, positions, owns)
    return _Layer(*runs, module.in_channels, module.out_channels, kernel, module.groups, bias, itemsize, positions, owns)
