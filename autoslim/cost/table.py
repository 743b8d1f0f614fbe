"""What a configuration costs, from a table derived once: no forward pass."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod

from torch import nn

from autoslim.channels.config import ChannelConfig
from autoslim.channels.map import ChannelMap, Run
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
class _Product:
    """Elements of a parameter: `factor` times the active ones of some axes."""

    factor: int
    axes: tuple[tuple[Run, ...], ...]

    def at(self, widths: list[int]) -> int:
        """Return how many there are when group i has `widths[i]` channels."""
        return self.factor * prod(sum(run.active(widths) for run in axis) for axis in self.axes)


class CostTable:
    """Cost of any configuration of a supernet.

    Args:
        net: the supernet; its graph and its tensor shapes are read once.
    """

    def __init__(self, net: Supernet):
        self._read(net.channels, net.model)

    @classmethod
    def of(cls, channels: ChannelMap, model: nn.Module) -> "CostTable":
        """Return the table of a plain network, which need have no group that can be slimmed."""
        table = cls.__new__(cls)
        table._read(channels, model)
        return table

    def _read(self, channels: ChannelMap, model: nn.Module) -> None:
        self._groups = channels.groups
        self._calls = channels.calls
        self._fixed_macs = channels.fixed_macs
        self._fixed_params = self._fixed_bytes = 0
        self._params: list[tuple[_Product, int]] = []
        for name, parameter in model.named_parameters():
            axes = channels.tensors.get(name)
            if axes is None:
                self._fixed_params += parameter.numel()
                self._fixed_bytes += parameter.numel() * parameter.element_size()
            else:
                fixed = prod(size for size, axis in zip(parameter.shape, axes) if axis is None)
                product = _Product(fixed, tuple(axis for axis in axes if axis is not None))
                self._params.append((product, parameter.element_size()))

    def cost(self, config: ChannelConfig | Mapping[str, int]) -> Cost:
        """Return the cost of a configuration (or of group names to channels)."""
        chosen = config.widths if isinstance(config, ChannelConfig) else config
        widths = [chosen[group.name] for group in self._groups]
        macs = self._fixed_macs + sum(call.macs(widths) for call in self._calls)
        params, size = self._fixed_params, self._fixed_bytes
        for product, itemsize in self._params:
            count = product.at(widths)
            params += count
            size += count * itemsize
        return Cost(macs, params, size)

    def checked(self, config: ChannelConfig, where: str) -> Cost:
        """Return the cost of a configuration, which is checked against the network and, if it states a cost, against that.

        Raises:
            ConfigError: names `where` and all that does not fit.
        """
        config.check(self._groups, where)
        cost = self.cost(config)
        config.check(self._groups, where, cost.to_json())
        return cost
