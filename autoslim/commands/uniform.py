"""Uniform networks, which a search is compared with."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from autoslim.errors import ConfigError, ModelError, RunError

if TYPE_CHECKING:
    from autoslim.channels.config import ChannelConfig
    from autoslim.cost.table import CostTable
    from autoslim.slimmable.supernet import Supernet
    from autoslim.spaces import Space

_NEAR = 0.05  # a network of as many multiply-adds has so many more or less at most, as a part of them


def uniform_sweep(net: Supernet) -> list[ChannelConfig]:
    """Return uniform configurations from a quarter of the full width, or the narrowest trained, to all of it, without repeats."""
    ratios = (0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    return _unique(net.uniform(ratio) for ratio in ratios if ratio >= net.grid.min_ratio)


class Uniforms:
    """Uniform networks of all sizes: the family's own, and those with one ratio for all groups.

    Args:
        space, net: the search space and its supernet.
        table: counts multiply-adds.
    """

    def __init__(self, space: Space, net: Supernet, table: CostTable):
        self._net, self._table = net, table
        self._own = _family(space, net)

    def nearest(self, macs: int) -> tuple[ChannelConfig, bool]:
        """Return the network whose multiply-adds are nearest, and whether it is of the family.

        All groups get one ratio where the family has a width multiplier, but no network of about as many.
        """

        def off(config: ChannelConfig) -> float:
            return abs(self._table.cost(config).macs - macs)

        own = min(self._own, key=off, default=None)
        if own and off(own) <= _NEAR * macs:
            return own, True
        ratios = (step / 200 for step in range(10, 201))
        scaled = _unique(self._net.uniform(ratio) for ratio in ratios if ratio >= self._net.grid.min_ratio)
        return min([*scaled, *self._own], key=off), not self._own


def _family(space: Space, net: Supernet) -> list[ChannelConfig]:
    """Return the networks of a family with a width multiplier, from a twentieth of the supernet's width on."""
    found = []
    for step in range(5, 101) if space.width_argument else ():
        # A width at which layers fall together that are apart in the supernet, or that the factory does not build.
        with contextlib.suppress(RunError, ModelError, ConfigError):
            found.append(_own(space, net, space.full_width * step / 100))
    return _unique(config for config in found if not config.faults(net.groups))


def _own(space: Space, net: Supernet, width: float) -> ChannelConfig:
    from autoslim.slimmable import family

    config = family.width_config(space, net, width)
    # No search moves these widths, so no grid binds them: a family may round more finely.
    return replace(config, divisor=1) if config.faults(net.groups) else config


def _unique(configs) -> list[ChannelConfig]:
    return list({tuple(config.widths.values()): config for config in configs}.values())
