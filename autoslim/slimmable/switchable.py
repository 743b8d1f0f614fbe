"""A network of a few fixed widths over shared weights, each with batch norms of its own (Slimmable Networks)."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from autoslim.channels.config import ChannelConfig
from autoslim.channels.copies import share_copy
from autoslim.errors import ConfigError
from autoslim.slimmable.materialize import materialize, plain_copy
from autoslim.slimmable.supernet import Supernet

NORMS = ("private", "statistics", "shared")


class SwitchableNet(nn.Module):
    """A supernet that runs at a fixed list of configurations, its switches; one of them is set, at first the first.

    Conv and linear weights are shared: a switch uses their leading channels, and setting one copies nothing. Batch norm layers
    keep moving statistics while they train, as in a plain network.

    Args:
        net: the supernet; weights and buffers are shared with it, widths are not.
        switches: name to configuration. A width multiplier may be given as a number: 0.25 stands for "0.25".
        norm: what each switch has of its own: "private": statistics, scale and bias of every batch norm (S-BN);
            "statistics": the statistics alone, scale and bias are shared; "shared": nothing (the naive way, which the paper
            shows to fail).
        share_equal: with "private", a batch norm that is equally wide at every switch has one scale and bias for all (the last
            one of the published S-MobileNet v2); statistics are each switch's own all the same.

    Raises:
        ConfigError: `norm` is unknown, there is no switch, or a configuration does not fit the supernet.
    """

    def __init__(
        self, net: Supernet, switches: Mapping[str | float, ChannelConfig], *, norm: str = "private", share_equal: bool = False
    ):
        super().__init__()
        if norm not in NORMS:
            raise ConfigError(f"norm {norm!r} is unknown; pass one of {', '.join(NORMS)}")
        self.switches = {switch_name(name): config for name, config in switches.items()}
        if not switches or len(self.switches) < len(switches):
            raise ConfigError(
                f"the switches {list(switches)} need at least one name, and names that differ (numbers by six digits); "
                "pass {name: configuration}"
            )
        self.net = share_copy(net)
        self.norm = norm
        self._layers = [(name, m) for name, m in self.net.model.named_modules() if isinstance(m, _BatchNorm)]
        made = [self._make(config) for config in self.switches.values()]
        self._shares = [norm == "statistics" or share_equal and len({m.num_features for m in row}) == 1 for row in zip(*made)]
        for norms in made:
            for layer in [layer for layer, shares in zip(norms, self._shares) if shares]:
                layer.weight = layer.bias = None
                layer.affine = False
        self.norms = nn.ModuleList(map(nn.ModuleList, made))
        for _, layer in self._layers:
            layer._slimming.tracks = True
        self.set(next(iter(self.switches)))

    def _make(self, config: ChannelConfig) -> list[nn.Module]:
        if self.norm == "shared":
            return []
        with self.net.using(config):
            return [plain_copy(layer) for _, layer in self._layers]

    def _stood_in_for(self) -> set[int]:
        """Return the ids of the supernet's tensors that each switch has its own of."""
        if self.norm == "shared":
            return set()
        return {
            id(tensor)
            for (_, layer), shares in zip(self._layers, self._shares)
            for key, tensor in self._tensors(layer)
            if not (shares and key in ("weight", "bias"))
        }

    @staticmethod
    def _tensors(layer: nn.Module) -> list[tuple[str, torch.Tensor]]:
        own = {**layer._parameters, **layer._buffers}
        return [(key, tensor) for key, tensor in own.items() if tensor is not None]

    @property
    def switch(self) -> str:
        """The name of the switch that is set."""
        return self._switch

    @property
    def width_mult(self) -> float:
        """The width multiplier that is set, where switches are named by theirs; assigning one sets it."""
        return float(self._switch)

    @width_mult.setter
    def width_mult(self, value: float) -> None:
        self.set(value)

    def set(self, switch: str | float) -> None:
        """Set a switch by its name; nothing is copied.

        Raises:
            ConfigError: there is no such switch; nothing is changed.
        """
        name = switch_name(switch)
        if name not in self.switches:
            raise ConfigError(f"switch {name!r} is unknown; pass one of {', '.join(self.switches)}")
        self.net.set(self.switches[name])
        self._switch = name
        for (_, layer), norm in zip(self._layers, self.norms[list(self.switches).index(name)]):
            layer._slimming.own = dict(self._tensors(norm))

    def forward(self, *inputs, **kwargs):
        """Run the switch that is set."""
        for _, layer in self._layers:
            layer._slimming.forget_copies()  # of reads outside a training step
        output = self.net(*inputs, **kwargs)
        for _, layer in self._layers:
            if self.training and self.norm == "shared":
                layer._slimming.write_back()
            layer._slimming.forget_copies()  # whose statistics may be calibrated next
        return output

    def materialize(self, switch: str | float) -> nn.Module:
        """Return a switch as a plain network with copies of its weights and batch norms."""
        before = self._switch
        self.set(switch)
        try:
            return plain_copy(self.net.model)
        finally:
            self.set(before)

    @property
    def source(self) -> nn.Module:
        """The plain network that the supernet was made of."""
        return self.net.source

    def named_parameters(self, *args, **kwargs) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield shared and private parameters, without the batch norms that the private ones stand in for."""
        unused = self._stood_in_for()
        for name, parameter in super().named_parameters(*args, **kwargs):
            if id(parameter) not in unused:
                yield name, parameter

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        self.set(self._switch)  # buffers may be new ones
        return self

    def _prefixes(self) -> Iterator[tuple[str, nn.Module]]:
        for name, norms in zip(self.switches, self.norms):
            for (layer, _), norm in zip(self._layers, norms):
                yield f"switches.{name}.{layer}.", norm

    def state_dict(self, *, destination=None, prefix: str = "", keep_vars: bool = False) -> dict[str, torch.Tensor]:
        """Return shared tensors under the keys of the plain network, and private ones as `switches.NAME.LAYER.TENSOR`."""
        destination = OrderedDict() if destination is None else destination
        for key, tensor in self._state().items():
            destination[prefix + key] = tensor if keep_vars else tensor.detach()
        return destination

    def _state(self) -> dict[str, torch.Tensor]:
        unused = self._stood_in_for()
        state = {key: t for key, t in self.net.state_dict(keep_vars=True).items() if id(t) not in unused}
        for prefix, norm in self._prefixes():
            state |= norm.state_dict(prefix=prefix, keep_vars=True)
        return state

    def load_state_dict(self, state_dict: Mapping[str, torch.Tensor], strict: bool = True, assign: bool = False) -> None:
        """Load what `state_dict` returned, into the tensors that are there.

        Raises:
            RuntimeError: a tensor is missing, unknown or of another shape; nothing is changed.
        """
        if not strict or assign:
            raise RuntimeError("a switchable network loads a whole state into its own tensors; leave strict and assign out")
        own = self._state()
        wrong = [k for k in {**own, **state_dict} if k not in own or k not in state_dict or own[k].shape != state_dict[k].shape]
        if wrong:
            raise RuntimeError(f"these tensors do not fit the switchable network: {', '.join(wrong[:5])}")
        with torch.no_grad():
            for key, tensor in own.items():
                tensor.copy_(state_dict[key])


def switch_name(switch: str | float) -> str:
    """Return the name of a switch; 0.25 is "0.25"."""
    return switch if isinstance(switch, str) else f"{switch:g}"


def join_configs(
    net: Supernet, configs: Mapping[str, ChannelConfig], example, *, norm: str = "private", share_equal: bool = False, **options
) -> SwitchableNet:
    """Return several configurations of one family as one switchable network, widest first, no wider than it has to be.

    Its weights are the leading channels of the supernet's, for every group as many as the widest of the configurations has.

    Args:
        net: the supernet of the family.
        configs: name to configuration.
        example: an input of the network.
        norm, share_equal: see `SwitchableNet`.
        options: `rules` and choices of the supernet, see `Supernet`.

    Raises:
        ConfigError: the network of those widths has other groups than the family.
    """
    widest = {group.name: max(config.widths[group.name] for config in configs.values()) for group in net.groups}
    if widest != net.full().widths:
        net = Supernet(materialize(net, net.make_config(widest.values())), example, divisor=net.grid.divisor, **options)
        if {group.name: group.full for group in net.groups} != widest:
            raise ConfigError(
                f"{', '.join(configs)} cannot be trained jointly: at the widest of their channels the network has other groups; "
                "train them one by one"
            )
    order = sorted(configs, key=lambda name: -sum(configs[name].widths.values()))
    switches = {name: net.make_config([configs[name].widths[group.name] for group in net.groups]) for name in order}
    return SwitchableNet(net, switches, norm=norm, share_equal=share_equal)
