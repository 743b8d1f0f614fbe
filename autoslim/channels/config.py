"""A channel configuration: one width a group, with what it was found for; written to and read from JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from autoslim.channels.choices import Choices
from autoslim.channels.grid import Grid
from autoslim.channels.map import ChannelGroup
from autoslim.errors import ConfigError
from autoslim.files import read_json, write_json

FORMAT = "autoslim.channels/1"


@dataclass(frozen=True)
class ChannelConfig:
    """Widths of the channel groups of one network.

    Attributes:
        channels: group name to `(chosen, full)` channels.
        divisor: every chosen width is a multiple of it, or the full width.
        model: `{"factory": "pkg.module:name", "kwargs": {...}}`, which rebuilds the full network; None for a model in memory.
        input_shape: `[C, H, W]` of one example (a list of shapes for several inputs).
        space: name of the search space, if any.
        cost: macs, params and weight_bytes of the materialised network.
        estimate: what the supernet scored at this configuration; never the accuracy of a retrained network.
        provenance: seed, data, targets, supernet digest and versions.
        grouping: what its user decided about the groups (`freeze`, `tie`, ...); they are found again in the same way.
    """

    channels: dict[str, tuple[int, int]]
    divisor: int = 8
    model: dict | None = None
    input_shape: list | None = None
    space: str | None = None
    cost: dict = field(default_factory=dict)
    estimate: dict = field(default_factory=dict)
    provenance: dict = field(default_factory=dict)
    grouping: dict = field(default_factory=dict)

    @property
    def widths(self) -> dict[str, int]:
        """Chosen channels by group name."""
        return {name: chosen for name, (chosen, _) in self.channels.items()}

    def to_json(self) -> dict:
        """Return the JSON document, keys in the documented order."""
        return {
            "format": FORMAT,
            "space": self.space,
            "model": self.model,
            "input_shape": self.input_shape,
            **({"grouping": self.grouping} if self.grouping else {}),
            "divisor": self.divisor,
            "channels": {name: list(pair) for name, pair in self.channels.items()},
            "cost": self.cost,
            "estimate": self.estimate,
            "provenance": self.provenance,
        }

    def save(self, path: str | Path) -> None:
        """Write the configuration as JSON, atomically."""
        write_json(path, self.to_json(), compact="channels")

    @classmethod
    def load(cls, path: str | Path) -> "ChannelConfig":
        """Read a configuration; `check` then compares it with a model.

        Raises:
            ConfigError: the file is missing, truncated or of another format; all faults are listed.
        """
        return cls.from_json(read_json(path, ConfigError), str(path))

    @classmethod
    def from_json(cls, document, where: str) -> "ChannelConfig":
        """Take a configuration from its JSON document; `where` names it in errors."""
        faults = _format_faults(document)
        if faults:
            raise ConfigError(
                f"{where} is not a channel configuration ({FORMAT}): {'; '.join(faults)}; pass a file written by `autoslim search`"
            )
        channels = {name: (pair[0], pair[1]) for name, pair in document["channels"].items()}
        known = ("divisor", "model", "input_shape", "space", "cost", "estimate", "provenance", "grouping")
        return cls(channels, **{key: document[key] for key in known if document.get(key) is not None})

    def faults(self, groups: tuple[ChannelGroup, ...]) -> list[str]:
        """Return what does not fit these groups: names, full widths, range and grid; empty if all fits."""
        found = []
        by_name = {group.name: group for group in groups}
        for name, (chosen, full) in self.channels.items():
            group = by_name.get(name)
            if group is None:
                found.append(f"{name!r} is unknown")
            elif full != group.full:
                found.append(f"{name!r} is {full} channels wide in the file, {group.full} in the model")
            elif not 1 <= chosen <= full:
                found.append(f"{name!r} wants {chosen} of {full} channels")
            elif chosen != full and chosen % (multiple := Grid(self.divisor).multiple(group.unit)):
                found.append(f"{name!r} has {chosen} channels, not a multiple of {multiple}")
        found += [f"{name!r} is missing" for name in by_name if name not in self.channels]
        return found

    def check(self, groups: tuple[ChannelGroup, ...], where: str = "configuration", cost: Mapping | None = None) -> None:
        """Raise ConfigError with every group, range, grid and cost that does not fit the model."""
        faults = self.faults(groups)
        if cost is not None and not faults:
            faults = [
                f"cost {key} is {self.cost[key]} in the file, {value} by the model"
                for key, value in cost.items()
                if key in self.cost and self.cost[key] != value
            ]
        if faults:
            raise ConfigError(
                f"{where}: {_count(faults)} not fit the model: {'; '.join(faults)}; "
                "take a configuration searched for this model, or the model named in the file"
            )


def origin(provenance: Mapping) -> str:
    """Return where channels come from, in a word or two: searched, uniform, order random, published, given.

    A configuration that a greedy search found is "searched".
    """
    kind, search = provenance.get("kind", "given"), provenance.get("search", {})
    order = search.get("order", "greedy") if isinstance(search, dict) else "greedy"
    if kind != "searched" or order == "greedy":
        return kind
    return order if order == "uniform" else f"order {order}"


def _count(faults: list[str]) -> str:
    return "1 entry does" if len(faults) == 1 else f"{len(faults)} entries do"


def _format_faults(document) -> list[str]:
    if not isinstance(document, dict):
        return ["the document is not an object"]
    if document.get("format") != FORMAT:
        return [f"format is {json.dumps(document.get('format'))}"]
    faults = []
    channels = document.get("channels")
    if not isinstance(channels, dict) or not channels:
        faults.append("channels is missing or empty")
    else:
        for name, pair in channels.items():
            whole = isinstance(pair, list) and len(pair) == 2 and all(type(number) is int for number in pair)
            if not whole:
                faults.append(f"channels[{name!r}] is {json.dumps(pair)}, not [chosen, full]")
    divisor = document.get("divisor", 8)
    if type(divisor) is not int or divisor < 1:
        faults.append(f"divisor is {json.dumps(divisor)}, not a whole number of channels")
    for key in ("cost", "estimate", "provenance"):
        if not isinstance(document.get(key, {}), dict):
            faults.append(f"{key} is not an object")
    try:
        grouping = dict(document.get("grouping", {}))
        if not isinstance(grouping.pop("rules", ""), str):
            faults.append("grouping.rules is not a string 'pkg.module:function'")
        Choices.of(grouping)
    except (ConfigError, ValueError, TypeError) as error:
        faults.append(f"grouping is not an object of include, exclude, freeze, release and tie ({error})")
    model = document.get("model")
    if model is not None and not (
        isinstance(model, dict) and isinstance(model.get("factory"), str) and isinstance(model.get("kwargs", {}), dict)
    ):
        faults.append("model is not {factory, kwargs}")
    shape = document.get("input_shape")
    if shape is not None and not _is_shape(shape):
        faults.append(f"input_shape is not a list of sizes of 1 or more: {json.dumps(shape)}")
    return faults


def _is_shape(shape) -> bool:
    """Say whether this is [C, H, W], or a list or object of such shapes (several inputs; null where one is None, [] of one number
    an image)."""
    if isinstance(shape, list) and shape and all(type(size) is int for size in shape):
        return min(shape) >= 1
    parts = list(shape.values()) if isinstance(shape, dict) else shape
    if not isinstance(parts, list) or not any(parts):
        return False
    return all(part is None or part == [] or (isinstance(part, (list, dict)) and _is_shape(part)) for part in parts)
