"""Uniform networks, which a search is compared with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from autoslim.channels.grid import Grid
from autoslim.errors import ConfigError, ModelError, RunError

if TYPE_CHECKING:
    from autoslim.channels.config import ChannelConfig
    from autoslim.slimmable.supernet import Supernet
    from autoslim.spaces import Space

# A width at which layers fall together that are apart in the supernet, or that the factory does not build.
NOT_OF_FAMILY = (RunError, ModelError, ConfigError)
_NEAR = 0.05  # a network of about a cost has so much more or less at most, as a part of it


def uniform_sweep(net: Supernet) -> list[ChannelConfig]:
    """Return uniform configurations from a quarter of the full width to all of it that were trained, without repeats."""
    ratios = (0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    return _unique(net.uniform(ratio) for ratio in ratios if ratio >= net.grid.min_ratio)


class Uniforms:
    """Uniform networks of all sizes: a family's own, or those with one ratio for all groups where there is no width multiplier.

    Args:
        space, net: the search space and its supernet.
    """

    def __init__(self, space: Space, net: Supernet):
        self._net = net
        self._usual = _family(space, net) or self._scaled(net.grid)

    def nearest(self, wanted: float, cost: Callable[[ChannelConfig], float]) -> tuple[ChannelConfig, bool]:
        """Return the network whose cost is nearest, and whether it is one of those.

        Where they have none of about that cost, all groups get one ratio, rounded to whole channels.

        Args:
            cost: what a configuration costs, in the unit of `wanted`.
        """

        def off(config: ChannelConfig) -> float:
            return abs(cost(config) - wanted)

        usual = min(self._usual, key=off)
        if off(usual) <= _NEAR * wanted:
            return usual, True
        found = min([usual, *self._scaled(Grid(divisor=1))], key=off)
        return found, found is usual

    def _scaled(self, grid: Grid) -> list[ChannelConfig]:
        ratios, least = (step / 200 for step in range(10, 201)), self._net.grid.min_ratio
        rows = [[grid.nearest(r * w.full, w.full, w.unit) for w in self._net.widths] for r in ratios if r >= least]
        return _unique(replace(self._net.make_config(row), divisor=grid.divisor) for row in rows)


def _family(space: Space, net: Supernet) -> list[ChannelConfig]:
    """Return the networks of a family with a width multiplier, from a twentieth of the supernet's width on."""
    found = []
    for step in range(5, 101) if space.width_argument else ():
        with contextlib.suppress(*NOT_OF_FAMILY):
            found.append(_own(space, net, space.full_width * step / 100))
    return _unique(config for config in found if not config.faults(net.groups) and _trained(net.grid, config))


def _trained(grid: Grid, config: ChannelConfig) -> bool:
    """Tell whether no group is narrower than the least ratio, rounded to the nearest multiple of the divisor."""
    return all(width + grid.divisor / 2 >= grid.min_ratio * full for width, full in config.channels.values())


def _own(space: Space, net: Supernet, width: float) -> ChannelConfig:
    from autoslim.slimmable import family

    config = family.width_config(space, net, width)
    # No search moves these widths, so no grid binds them: a family may round more finely.
    return replace(config, divisor=1) if config.faults(net.groups) else config


def _unique(configs) -> list[ChannelConfig]:
    return list({tuple(config.widths.values()): config for config in configs}.values())
