"""Runs of any system, as networks that can be asked for any width."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from autoslim.commands import runs, systems
from autoslim.commands.joint import load_switches
from autoslim.commands.search import load_supernet
from autoslim.cost.table import CostTable
from autoslim.errors import RunError
from autoslim.slimmable import family
from autoslim.slimmable.calibrate import calibrate
from autoslim.slimmable.supernet import Supernet
from autoslim.slimmable.switchable import SwitchableNet
from autoslim.spaces import Space


@dataclass(frozen=True)
class TrainedRun:
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
        return runs.run_images(self.folder, self.settings, self.input_shape, next(self.net.parameters()).device)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape `(C, H, W)` of an image that it was trained on."""
        return tuple(self.space.input_shape if self.space else next(iter(self.net.switches.values())).input_shape)

    @property
    def accuracy_kind(self) -> str:
        """What a score of this run at some width is, and on which images."""
        if self.settings.get("held_out") is None:
            return "shared-weight accuracy, test images"
        return "supernet estimate, held-out training images"

    def same_but_seed(self, *others: str) -> str:
        """Return the settings but the seed, what follows from it, and `others`, to tell seeds of one training from other trainings."""
        apart = ("seed", "versions", "normalization", *others)
        return json.dumps({key: value for key, value in self.settings.items() if key not in apart}, sort_keys=True)

    def bounds(self) -> tuple[float, float]:
        """Return the lowest and the highest width multiplier that it was trained for.

        Raises:
            RunError: its configurations are those of no family.
        """
        if self.space is None:
            raise RunError(
                f"{self.folder} trained configurations of no family, which have no other widths; pass runs of `autoslim train`"
            )
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


def open_run(folder: Path, device: str) -> TrainedRun:
    """Load the trained network of a run of `autoslim train`, or of a joint retraining.

    Raises:
        RunError: the folder is no such run, or is not finished.
    """
    settings = runs.read_run(folder)
    if settings["kind"] == "supernet":
        net, space, settings = load_supernet(folder, device)
        return TrainedRun(folder, systems.describe(settings), net, space, settings)
    if settings["kind"] == "switches":
        net, settings = load_switches(folder, device)
        space = settings["space"] and runs.space_from_json(settings["space"])
        return TrainedRun(folder, systems.describe(settings), net, space, settings)
    raise RunError(f"{folder} holds a {settings['kind']}, which has one width; pass runs of `autoslim train`")


def at_widths(run: TrainedRun, widths: list[float], images: runs.Images) -> Iterator[dict]:
    """Score a run at width multipliers, BN statistics calibrated at each; those wider than its widest are left out.

    A width between the switches of an S-Net takes the weights, scales and biases of the next wider switch.

    Raises:
        RunError: the run's configurations are not those of a family.
    """
    low, high = run.bounds()
    space = run.space
    holders = sorted(map(float, run.net.switches)) if isinstance(run.net, SwitchableNet) else [high]
    held, evaluator = None, None
    for width in sorted((width for width in widths if width <= high + 1e-9), reverse=True):
        full = min(holder for holder in holders if holder >= width - 1e-9)
        if full != held:
            net = _switch_as_supernet(run.net, space, full) if isinstance(run.net, SwitchableNet) else run.net
            held, evaluator = full, runs.supernet_evaluator(net, images, space.search)
        config = family.width_config(replace(space, full_width=full), evaluator.net, width)
        score = evaluator.score(config)
        cost = CostTable(evaluator.net).cost(config)
        yield {
            "label": run.label, "seed": run.seed, "width": width, "macs": cost.macs, "params": cost.params,
            "error": score.error, "loss": score.loss, "images": score.images, "trained": run.trained_at(width),
            "kind": run.accuracy_kind,
        }  # fmt: skip


def spread(low: float, high: float, count: int) -> list[float]:
    """Return width multipliers from the lowest to the highest, rounded to four digits but for these two."""
    return [low, *(round(low + i * (high - low) / (count - 1), 4) for i in range(1, count - 1)), high]


def _switch_as_supernet(net: SwitchableNet, space: Space, width: float) -> Supernet:
    device = next(net.parameters()).device
    example = torch.zeros(1, *space.input_shape, device=device)
    return Supernet(net.materialize(width), example, **space.grid, **family.group_options(space.grouping()))


def views(run: TrainedRun, widths: list[float] | None, images: runs.Images) -> Iterator[tuple[str, nn.Module]]:
    """Yield `(name, network)` for each switch, widest first; it is one network, set anew before each.

    A supernet has no switches: it is set to width multipliers, by default to four over its range, and calibrated at each.
    """
    if isinstance(run.net, SwitchableNet):
        for name in run.net.switches:
            run.net.set(name)
            yield f"{name}x" if run.space else name, run.net
        return
    low, high = run.bounds()
    rules = run.space.search
    count = rules["calibration_images"]
    calibration = list(images.calibration(count))
    for width in widths or spread(low, high, 4)[::-1]:
        config = family.width_config(run.space, run.net, width)
        run.net.set(config)
        calibrate(run.net, calibration)
        yield f"{width:g}x", run.net
