"""The networks of a search space: its supernet, and the family's own network at any width multiplier."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn

from autoslim.channels.config import ChannelConfig
from autoslim.channels.groups import find_groups
from autoslim.errors import ConfigError, ModelError, RunError
from autoslim.factories import load_rules
from autoslim.slimmable.supernet import Supernet
from autoslim.spaces import Space


def build_supernet(space: Space, device: torch.device | str = "cpu") -> Supernet:
    """Build the supernet of a search space at its full width, untrained."""
    model = place(space.build(), device)
    example = torch.zeros(1, *space.input_shape, device=device)
    average = space.train.get("average_inputs", False)
    return Supernet(model, example, **space.grid, average_inputs=average, **group_options(space.grouping()))


def place(model: nn.Module, device: torch.device | str) -> nn.Module:
    """Move a model; on a GPU its 4-D weights are laid out channels last, as the batches of `Loader` are."""
    model.to(device)
    return lay_out(model, torch.channels_last) if torch.device(device).type == "cuda" else model


def lay_out(model: nn.Module, layout: torch.memory_format) -> nn.Module:
    """Lay 4-D parameters and buffers out in a memory format, as `torch.channels_last`."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim() == 4:  # `Module.to` would take 5-D ones, too, and fail
            tensor.data = tensor.data.contiguous(memory_format=layout)
    return model


def group_options(grouping: dict) -> dict:
    """Return the decisions about groups, as a space or a configuration holds them, as arguments of `Supernet`."""
    return {**grouping, "rules": load_rules(grouping.get("rules"))}


def with_model(config: ChannelConfig, space: Space) -> ChannelConfig:
    """Add to a configuration what rebuilds its network."""
    about = {"space": space.name, "model": space.model_reference(), "input_shape": list(space.input_shape)}
    return replace(config, **about, grouping=space.grouping())


def within(space: Space, low: float, high: float) -> Space:
    """Return a space whose supernet runs from one width multiplier to another.

    Raises:
        ConfigError: a space without a width argument has no network of another width than 1.0 to start from.
    """
    if space.width_argument is None and high != 1.0:
        raise ConfigError(
            f"range {low:g},{high:g}: {space.name} has no width argument, so that its network is the widest; "
            f"end the range at 1.0, or name the argument in a search space"
        )
    return replace(space, full_width=float(high), grid={**space.grid, "min_ratio": low / high})


def width_config(space: Space, net: Supernet, width: float) -> ChannelConfig:
    """Return the channels of the family at a width multiplier (1.0 is its default network).

    A space without a width multiplier gives one ratio to all groups.

    Raises:
        RunError: the width is no number above 0, exceeds the supernet's, or the network of that width has other groups.
    """
    if not 0 < width < math.inf:
        raise RunError(f"width {width:g} is not a number above 0; 1.0 is the default network")
    if width > space.full_width:
        raise RunError(f"width {width:g} exceeds the supernet's {space.full_width:g}; pass a smaller --width")
    if space.width_argument is None:
        return with_model(net.uniform(width / space.full_width), replace(space, full_width=1.0))
    if width == space.full_width:
        return with_model(net.full(), space)
    widths = _family_widths(space, net, width)
    return with_model(net.make_config([widths[group.name] for group in net.groups]), space)


def uniform_widths(space: Space, net: Supernet) -> Callable[[float], ChannelConfig]:
    """Return the configuration of a ratio of the full width, as a function; ratios are told apart to a thousandth."""

    @functools.cache
    def at(thousandths: int) -> ChannelConfig:
        return width_config(space, net, min(1.0, thousandths / 1000) * space.full_width)

    return lambda ratio: at(round(ratio * 1000))


def switch_configs(space: Space, switches: Sequence[float]) -> dict[str, ChannelConfig]:
    """Return the channels of every switch of an S-Net, named by its width multiplier.

    Raises:
        ConfigError: two switches have one name, or a space without a width argument is asked for a network wider than 1.0.
    """
    if len({f"{width:g}" for width in switches}) < len(switches):
        raise ConfigError(f"switches {', '.join(map(str, switches))} are not all different; leave out the repeated ones")
    if space.width_argument is not None or max(switches) > 1:
        space = within(space, min(switches), max(switches))
    net = build_supernet(space)
    # No search moves these widths, so no grid binds them.
    return {f"{width:g}": replace(width_config(space, net, width), divisor=1) for width in switches}


def _family_widths(space: Space, net: Supernet, width: float) -> dict[str, int]:
    """Return the channels that every group's first layer has in the family at a width multiplier."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                model = space.build(width)
        except ModelError:  # a factory that reads values of tensors
            model = space.build(width)
    layers, full = dict(model.named_modules()), dict(net.source.named_modules())
    if all(_channels(full.get(g.name)) == g.full and _channels(layers.get(g.name)) for g in net.groups):
        return {group.name: _channels(layers[group.name]) for group in net.groups}
    # Widths that no layer states: parts of an output, weights that code computes.
    with torch.random.fork_rng(devices=[]):
        model = space.build(width)
    narrow = find_groups(model, torch.zeros(1, *space.input_shape), **group_options(space.grouping()))
    widths = {group.name: group.full for group in narrow.groups}
    unknown = [group.name for group in net.groups if group.name not in widths]
    if unknown:
        raise RunError(f"width {width:g} of {space.name} has no group {unknown[0]!r}; pass another --width")
    return widths


def _channels(layer: nn.Module | None) -> int | None:
    return getattr(layer, "out_channels", None) or getattr(layer, "out_features", None)
