"""The systems of the papers: which table of a search space trains them, and at which widths."""

from dataclasses import replace

from autoslim.commands import runs
from autoslim.commands.train import SYSTEMS
from autoslim.slimmable import family
from autoslim.spaces import Space


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
        space = family.within(space, *bounds)
    return replace(space, train=runs.override(recipe | {"widths": widths}, **overrides))


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
