"""Runs of any system, as networks that can be asked for any width."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from autoslim.channels.config import ChannelConfig
from autoslim.commands import runs, systems
from autoslim.commands.joint import load_switches
from autoslim.commands.search import load_supernet
from autoslim.cost.table import CostTable
from autoslim.errors import RunError
from autoslim.search.evaluate import SupernetEvaluator
from autoslim.slimmable.calibrate import calibrate
from autoslim.slimmable.supernet import Supernet
from autoslim.slimmable.switchable import SwitchableNet
from autoslim.spaces import Space


@dataclass(frozen=True)
class Slimmable:
    """A trained run.

    Attributes:
        label: what was trained, in a few words.
        net: a supernet, or a switchable network.
        space: its search space; None for configurations that are no family's.
        settings: config.json of the run.
    """

    folder: Path
    label: str
    net: Supernet | SwitchableNet
    space: Space | None
    settings: dict

    @property
    def seed(self) -> int:
        """The seed of the training."""
        return self.settings["seed"]

    def images(self) -> runs.Images:
        """Read the run's images; where it held none out, what is scored are the test images."""
        settings, device = self.settings, next(self.net.parameters()).device
        shape = self.space.input_shape if self.space else next(iter(self.net.switches.values())).input_shape
        return runs.load_images(
            settings["data"], shape, settings.get("held_out"), settings["seed"], device, settings["skip_corrupt"]
        )

    def bounds(self) -> tuple[float, float]:
        """Return the lowest and the highest width multiplier that it was trained for."""
        if isinstance(self.net, SwitchableNet):
            widths = [float(name) for name in self.net.switches]
            return min(widths), max(widths)
        return self.net.grid.min_ratio * self.space.full_width, self.space.full_width

    def trained_at(self, width: float) -> bool:
        """Say whether the uniform network of a width multiplier was itself trained."""
        if isinstance(self.net, SwitchableNet):
            return any(abs(float(name) - width) < 1e-9 for name in self.net.switches)
        low, high = self.bounds()
        return low <= width <= high and self.space.train["widths"] == "uniform"


def open_run(folder: Path, device: str) -> Slimmable:
    """Load the trained network of a run of `autoslim train`, or of a joint retraining.

    Raises:
        RunError: the folder is no such run, or is not finished.
    """
    settings = runs.read_run(folder)
    if settings["kind"] == "supernet":
        net, space, settings = load_supernet(folder, device)
        return Slimmable(folder, systems.describe(settings), net, space, settings)
    if settings["kind"] == "switches":
        net, settings = load_switches(folder, device)
        space = settings["space"] and runs.space_from_json(settings["space"])
        return Slimmable(folder, systems.describe(settings), net, space, settings)
    raise RunError(f"{folder} holds a {settings['kind']}, which has one width; pass runs of `autoslim train`")


def at_widths(run: Slimmable, widths: list[float], images: runs.Images) -> Iterator[dict]:
    """Score a run at width multipliers, BN statistics calibrated at each; those wider than its widest are left out.

    A width between the switches of an S-Net takes the weights, scales and biases of the next wider switch.

    Raises:
        RunError: the run's configurations are not those of a family.
    """
    if run.space is None:
        raise RunError(
            f"{run.folder} trained configurations of no family, which have no other widths; pass runs of `autoslim train`"
        )
    space = run.space
    networks = {space.full_width: run.net}
    if isinstance(run.net, SwitchableNet):
        networks = {float(name): None for name in run.net.switches}
    evaluators: dict[float, SupernetEvaluator] = {}
    for width in sorted(widths, reverse=True):
        holders = [full for full in networks if full >= width - 1e-9]
        if not holders:
            continue
        full = min(holders)
        if full not in evaluators:
            net = networks[full] or _switch_as_supernet(run.net, space, full)
            evaluators[full] = runs.supernet_evaluator(net, images, space.search)
        net = evaluators[full].net
        config = systems.width_config(replace(space, full_width=full), net, width)
        score = evaluators[full].score(config)
        cost = CostTable(net).cost(config)
        yield {
            "label": run.label, "seed": run.seed, "width": width, "macs": cost.macs, "params": cost.params,
            "error": score.error, "loss": score.loss, "images": score.images, "trained": run.trained_at(width),
        }  # fmt: skip


def _switch_as_supernet(net: SwitchableNet, space: Space, width: float) -> Supernet:
    device = next(net.parameters()).device
    example = torch.zeros(1, *space.input_shape, device=device)
    return Supernet(net.materialize(width), example, **space.grid, **runs.group_options(space.grouping()))


def views(run: Slimmable, widths: list[float] | None, images: runs.Images) -> Iterator[tuple[str, nn.Module, ChannelConfig]]:
    """Yield `(name, network, configuration)` with the network set to each of its switches, in eval mode, widest first.

    A supernet has no switches: it is set to width multipliers, by default to four over its range, and calibrated at each.
    """
    if isinstance(run.net, SwitchableNet):
        for name, config in run.net.switches.items():
            run.net.set(name)
            yield name, run.net, config
        return
    low, high = run.bounds()
    rules = run.space.search
    count = rules["calibration_images"]
    calibration = list(images.calibration(count, min(rules["batch_size"], count)))
    for width in widths or [round(high - i * (high - low) / 3, 3) for i in range(4)]:
        config = systems.width_config(run.space, run.net, width)
        run.net.set(config)
        calibrate(run.net, calibration)
        yield f"{width:g}", run.net, config
