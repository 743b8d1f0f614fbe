"""The systems of the papers: which table of a search space trains them, and at which widths."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from autoslim.channels.config import ChannelConfig
from autoslim.commands import runs
from autoslim.errors import ConfigError
from autoslim.slimmable.supernet import Supernet
from autoslim.spaces import Space

# Name to the table of its recipe, and how random widths are drawn.
SYSTEMS = {
    "autoslim": ("train", "nonuniform"),
    "us-net": ("us_net", "uniform"),
    "nonuniform-us-net": ("us_net", "nonuniform"),
    "s-net": ("s_net", None),
}


def supernet_space(space: Space, system: str, bounds: tuple[float, float] | None, **overrides) -> Space:
    """Return a space whose full width, grid and [train] table are those of a system.

    Args:
        system: "autoslim", "us-net" or "nonuniform-us-net".
        bounds: lowest and highest width multiplier, in place of the system's.
        overrides: values of the recipe; None leaves the system's.

    Raises:
        ConfigError: the bounds or a value of the recipe do not fit.
    """
    table, widths = SYSTEMS[system]
    recipe = dict(getattr(space, table))
    bounds = bounds or recipe.pop("range", None)
    recipe.pop("range", None)
    if bounds:
        space = _within(space, *bounds)
    return replace(space, train=runs.override(recipe | {"widths": widths}, **overrides))


def _within(space: Space, low: float, high: float) -> Space:
    if space.width_argument is None and high != 1.0:
        raise ConfigError(
            f"range {low:g},{high:g}: {space.name} has no width argument, so that its network is the widest; "
            f"end the range at 1.0, or name the argument in a search space"
        )
    return replace(space, full_width=float(high), grid={**space.grid, "min_ratio": low / high})


def width_config(space: Space, net: Supernet, width: float) -> ChannelConfig:
    """Return the channels at a width multiplier: of the family, or one ratio for all groups where there is no family.

    Raises:
        RunError: the width exceeds the supernet's.
    """
    if space.width_argument is not None or width == 1.0:
        return runs.uniform_config(space, net, width)
    return runs.with_model(net.uniform(width), space)


def uniform_widths(space: Space, net: Supernet) -> Callable[[float], Any]:
    """Return the configuration of a ratio of the full width, as a function; drawn ratios are told apart to a thousandth."""

    @functools.cache
    def at(thousandths: int) -> ChannelConfig:
        return width_config(space, net, min(1.0, thousandths / 1000) * space.full_width)

    return lambda ratio: at(round(ratio * 1000))


def switch_configs(space: Space, switches: list[float]) -> dict[str, ChannelConfig]:
    """Return the channels of every switch of an S-Net, named by its width multiplier.

    Raises:
        ConfigError: a space without a width argument has no network wider than 1.0.
    """
    space = _within(space, min(switches), max(switches))
    net = runs.build_supernet(space)
    # No search moves these widths, so no grid binds them.
    return {f"{width:g}": replace(width_config(space, net, width), divisor=1) for width in switches}


def describe(settings: dict) -> str:
    """Say in a few words what a run trained, and with what it left out."""
    system, recipe = settings["system"], settings["space"]["train"] if settings["kind"] == "supernet" else settings["recipe"]
    if settings["kind"] == "switches":
        count = len(settings["switches"])
        name = "S-Net" if system == "s-net" else "jointly trained"
        if count == 1:
            return f"ordinary network ({next(iter(settings['switches']))})"
        norm = {"private": "", "statistics": ", shared scale and bias", "shared": ", shared BN"}[settings["norm"]]
        return f"{name}, {count} switches{norm}"
    name = {"autoslim": "AutoSlim supernet", "us-net": "US-Net", "nonuniform-us-net": "nonuniform US-Net"}[system]
    rule = recipe["sandwich"]
    parts = [f"sandwich {rule}"] if rule != "max,min,random:2" else []
    parts += [] if recipe["distill"] else ["no distillation"]
    parts += ["averaged inputs"] if recipe["average_inputs"] else []
    return ", ".join([name, *parts])
