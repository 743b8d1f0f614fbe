"""Build the plain torch.nn network of a configuration."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.utils._pytree import tree_map

from autoslim.channels.config import ChannelConfig
from autoslim.channels.copies import share_copy
from autoslim.errors import ConfigError
from autoslim.slimmable.layers import Slimmable
from autoslim.slimmable.supernet import Supernet


@torch.no_grad()
def materialize(
    model: nn.Module, config: ChannelConfig | None = None, *, example=None, rules: Mapping | None = None
) -> nn.Module:
    """Return a plain network with the widths of `config` and the leading channels of the model's weights, copied.

    Nothing of this toolkit is left in it, and nothing is shared with `model`. A supernet that was calibrated at `config`
    passes its BN statistics on.

    Args:
        model: a Supernet, or the plain full network that `config` belongs to.
        config: the widths; None takes what the supernet is set to.
        example: an input to trace a plain model with, where zeros of the configuration's `input_shape` will not do.
        rules: the rules that the configuration was found with, if any were given.

    Raises:
        ConfigError: the configuration does not fit the model, or names no input shape for a plain model.
    """
    if isinstance(model, Supernet):
        net = model
    elif config is None:
        raise ConfigError(f"a plain {type(model).__name__} needs a configuration; pass ChannelConfig.load(path)")
    else:
        example = _example_for(model, config) if example is None else example
        choices = {key: row for key, row in config.grouping.items() if key != "rules"}
        if "rules" in config.grouping and rules is None:
            raise ConfigError(f"the configuration needs the rules of {config.grouping['rules']}; pass them as rules=")
        net = Supernet(model, example, divisor=config.divisor, rules=rules, **choices)
        config.check(net.groups)
    if config is None:
        return plain_copy(net.model)
    with net.using(config):
        return plain_copy(net.model)


def example_input(config: ChannelConfig):
    """Return a zero input (a tuple for several inputs) of the shape that a configuration was made for."""
    if not config.input_shape:
        raise ConfigError("the configuration names no input_shape; set it, or pass a Supernet instead of a plain model")
    return _zeros(config.input_shape)


def _zeros(shape):
    if shape is None:
        return None
    if isinstance(shape, dict):
        return {name: _zeros(part) for name, part in shape.items()}
    if all(isinstance(size, int) for size in shape):
        return torch.zeros(1, *shape)
    return tuple(_zeros(part) for part in shape)


def _example_for(model: nn.Module, config: ChannelConfig):
    """Return the example input at the precision of the model's weights."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return tree_map(lambda t: t if t is None else t.to(dtype), example_input(config))


def plain_copy(model: nn.Module) -> nn.Module:
    """Return a plain copy of a supernet's module with the active part of its tensors."""
    tensors: dict[int, torch.Tensor] = {}
    for module in model.modules():
        active = module.active_tensors() if isinstance(module, Slimmable) else {}
        own = {**module._parameters, **module._buffers}
        for name, tensor in own.items():
            if tensor is None or (id(tensor) in tensors and name not in active):
                continue
            value = active.get(name, tensor).detach().clone(memory_format=torch.contiguous_format)
            tensors[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
    plain = share_copy(model, tensors)
    for module in plain.modules():
        if isinstance(module, Slimmable):
            module.to_plain()
    return plain
