"""Search spaces: a network, the grid its widths move on, and the recipes to train and search it; one TOML file each.

Nothing here imports torch before a network is built, so that listing the spaces stays fast.
"""

import inspect
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from autoslim.errors import ConfigError, ModelError
from autoslim.factories import build_model, closest, load_factory, split_name
from autoslim.sandwich import RULE as SANDWICH
from autoslim.sandwich import is_sandwich

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from torch import nn


class _Key(NamedTuple):
    default: Any
    fits: Callable[[Any], bool]
    rule: str


def _whole(default: int, low: int) -> _Key:
    return _Key(default, lambda v: type(v) is int and v >= low, f"a whole number of at least {low}")


def _real(default: float, rule: str, within: Callable[[float], bool]) -> _Key:
    return _Key(default, lambda v: type(v) in (int, float) and math.isfinite(v) and within(v), rule)


def _flag(default: bool) -> _Key:
    return _Key(default, lambda v: type(v) is bool, "true or false")


def _one_of(*names: str) -> _Key:
    return _Key(names[0], lambda v: v in names, " or ".join(map(repr, names)))


def _held_out(value: Any) -> bool:
    return (type(value) is int and value >= 1) or (type(value) is float and 0 < value < 1)


def _are_numbers(within: Callable[[float], bool]) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        return isinstance(value, list) and all(type(v) in (int, float) and math.isfinite(v) and within(v) for v in value)

    return fits


def _is_range(value: Any) -> bool:
    return _are_numbers(lambda v: v > 0)(value) and len(value) == 2 and value[0] < value[1]


def _are_switches(value: Any) -> bool:
    return _are_numbers(lambda v: v > 0)(value) and 0 < len(value) == len(set(value))


_RECIPE = {
    "batch_size": _whole(128, 1),
    "lr": _real(0.1, "a number above 0", lambda v: v > 0),
    "schedule": _one_of("linear", "cosine", "exponential", "step", "constant"),
    "decay": _real(0.1, "a number above 0, at most 1", lambda v: 0 < v <= 1),
    "milestones": _Key([], _are_numbers(lambda v: v > 0), "a list of epochs above 0: [30, 60, 90]"),
    "warmup_epochs": _real(0.0, "a number of at least 0", lambda v: v >= 0),
    "momentum": _real(0.9, "a number from 0 to below 1", lambda v: 0 <= v < 1),
    "nesterov": _flag(True),
    "weight_decay": _real(1e-4, "a number of at least 0", lambda v: v >= 0),
    "label_smoothing": _real(0.0, "a number from 0 to below 1", lambda v: 0 <= v < 1),
    "clip_norm": _real(0.0, "a number of at least 0 (0: no clipping)", lambda v: v >= 0),
    "crop": _one_of("none", "pad", "resized"),
    "pad": _whole(4, 0),
    "min_scale": _real(0.25, "a number above 0, at most 1", lambda v: 0 < v <= 1),
    "flip": _flag(False),
}


_SHARED_WEIGHTS = {
    "epochs": _whole(50, 1),
    **_RECIPE,
    "sandwich": _Key("max,min,random:2", is_sandwich, f"a list of {SANDWICH}"),
    "distill": _flag(True),
    "average_inputs": _flag(False),
}


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name.strip() for name in value)


# Every table and key that a space may have beside [model], with the value it takes where the file is silent.
_TABLES: dict[str, dict[str, _Key]] = {
    "grid": {
        "divisor": _whole(8, 1),
        "steps": _whole(12, 1),
        "min_ratio": _real(0.1, "a number above 0, at most 1", lambda v: 0 < v <= 1),
        "anchor": _one_of("full", "zero"),
    },
    "groups": {
        **{key: _Key([], _are_names, "a list of names or patterns") for key in ("include", "exclude", "freeze", "release")},
        "tie": _Key([], lambda v: isinstance(v, list) and all(map(_are_names, v)), 'a list of lists of names: [["a", "b"]]'),
        "rules": _Key("", lambda v: v == "" or type(v) is str and split_name(v) is not None, "a string 'pkg.module:function'"),
    },
    "train": _SHARED_WEIGHTS,
    "us_net": {"range": _Key([0.25, 1.0], _is_range, "two width multipliers, the lower first: [0.25, 1.0]"), **_SHARED_WEIGHTS},
    "s_net": {
        "switches": _Key([0.25, 0.5, 0.75, 1.0], _are_switches, "a list of different width multipliers: [0.25, 0.5, 1.0]"),
        "norm": _one_of("private", "statistics", "shared"),
        "epochs": _whole(100, 1),
        **_RECIPE,
    },
    "search": {
        "held_out": _Key(0.2, _held_out, "a fraction between 0 and 1 (0.2) or a number of images (50000)"),
        "batch_size": _whole(1000, 1),
        "calibration_images": _whole(1024, 1),
        "score": _one_of("error", "loss"),
        "pick": _one_of("drop", "drop-per-saving", "equal-saving"),
    },
    "retrain": {"epochs": _whole(300, 1), **_RECIPE},
    "lists": {"layers": _Key([], _are_names, "a list of names of layers")},
}


def _is_shape(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 3 and all(type(n) is int and n >= 1 for n in value)


def _is_kwargs(value: Any) -> bool:
    try:
        return isinstance(value, dict) and bool(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return False


_NAME = _Key(None, lambda v: type(v) is str and v != "", "a non-empty string")
_ARGUMENT = _Key(None, lambda v: type(v) is str and v.isidentifier(), "the name of an argument")
_SHAPE = _Key(None, _is_shape, "three whole numbers, channels, height and width: [3, 224, 224]")

_MODEL = {
    "factory": _Key(None, lambda v: type(v) is str and split_name(v) is not None, "a string 'pkg.module:function'"),
    "kwargs": _Key({}, _is_kwargs, "a table of strings, numbers, booleans and lists"),
    "classes_argument": _ARGUMENT,
    "width_argument": _ARGUMENT,
    "full_width": _real(1.0, "a number above 0", lambda v: v > 0),
    "input_shape": _SHAPE,
}


@dataclass(frozen=True)
class Space:
    """A network that can be slimmed, and how to do it.

    `full_width` is the width multiplier of the supernet; 1.0 is the family's default network. `width_argument` and
    `classes_argument` are None where the factory has no such argument. `grid` and the recipes (`train`: the nonuniform
    supernet of AutoSlim, `us_net`, `s_net`, `search`, `retrain`) hold every key, with the defaults filled in. `lists` holds
    under `layers` the order of the channel lists of `autoslim import`; empty for the order in which layers run.
    """

    name: str
    path: Path | None
    description: str
    factory: str
    kwargs: dict[str, Any]
    classes_argument: str | None
    width_argument: str | None
    full_width: float
    input_shape: tuple[int, int, int]
    grid: dict[str, Any]
    groups: dict[str, Any]
    train: dict[str, Any]
    us_net: dict[str, Any]
    s_net: dict[str, Any]
    search: dict[str, Any]
    retrain: dict[str, Any]
    lists: dict[str, Any] = field(default_factory=lambda: {"layers": []})

    def with_classes(self, classes: int) -> "Space":
        """Return the space for a number of classes; the same space if its factory takes no such argument."""
        if self.classes_argument is None:
            return self
        return replace(self, kwargs={**self.kwargs, self.classes_argument: classes})

    def build(self, width: float | None = None) -> "nn.Module":
        """Build the plain network at a width multiplier of its family; None stands for the supernet's full width.

        Raises ModelError if the factory fails, or has no width argument and width is not 1.0.
        """
        return build_model(self._reference(self.full_width if width is None else width))

    def with_groups(self, **given) -> "Space":
        """Return the space with more decisions about its groups; `rules` replaces the space's."""
        added = {key: [*self.groups[key], *row] for key, row in given.items() if key != "rules" and row}
        rules = {"rules": given["rules"]} if given.get("rules") else {}
        return replace(self, groups=check_table("groups", {**self.groups, **added, **rules}, f"the groups of {self.name}"))

    def grouping(self) -> dict[str, Any]:
        """Return the decisions about its groups that are not empty."""
        return {key: value for key, value in self.groups.items() if value}

    def model_reference(self) -> dict[str, Any]:
        """Return {"factory", "kwargs"} of the supernet's network: what `build_model` needs, ready for JSON."""
        return self._reference(self.full_width)

    def _reference(self, width: float) -> dict[str, Any]:
        if self.width_argument is not None:
            return {"factory": self.factory, "kwargs": {**self.kwargs, self.width_argument: width}}
        if width != 1.0:
            raise ModelError(
                f"width {width:g} of '{self.name}': {self.factory} has no known width argument; "
                "name it as width_argument in a search space, or leave the width out"
            )
        return {"factory": self.factory, "kwargs": dict(self.kwargs)}


def list_spaces() -> list[tuple[str, str]]:
    """Return (name, description) of every search space that ships, by name."""
    return [(path.stem, _read(path).description) for path in _shipped()]


def load_space(space: str | os.PathLike[str], *, input_shape: tuple[int, int, int] | None = None) -> Space:
    """Load a shipped space by name, a TOML file by path, or a network by 'pkg.module:factory'.

    A string that has a slash or ends in .toml is a path. A factory gets the default grid and recipes. `input_shape` [C, H, W] is
    that of one image: by default what a space states, 3, 224, 224 for a factory.

    Raises ConfigError for an unknown name or a bad file (all its faults at once), ModelError for a bad factory.
    """
    if input_shape is not None and not _is_shape(input_shape):
        raise ConfigError(f"input shape {input_shape!r} must be {_SHAPE.rule}")
    text = os.fspath(space)
    is_path = text.endswith(".toml") or "/" in text or os.sep in text
    if ":" in text and not is_path:
        return _from_factory(text, tuple(input_shape or (3, 224, 224)))
    shipped = {path.stem: path for path in _shipped()}
    if not is_path and text not in shipped:
        raise ConfigError(
            f"unknown search space '{text}'{closest(text, shipped)}; give one of {', '.join(shipped)}, "
            "the path of a .toml file, or pkg.module:factory"
        )
    found = _read(Path(text) if is_path else shipped[text])
    return found if input_shape is None else replace(found, input_shape=tuple(input_shape))


def published_configs() -> dict[str, Path]:
    """Return the path of every published channel configuration that ships, by its name ("mobilenet_v2-305M")."""
    return {path.stem: path for path in sorted((_shipped()[0].parent / "published").glob("*.json"))}


def find_config(config: str | os.PathLike[str]) -> Path:
    """Return the path of a channel configuration: an existing file, or the name of a published one that ships.

    Raises ConfigError for what is neither.
    """
    text = os.fspath(config)
    if os.path.exists(text):
        return Path(text)
    published = published_configs()
    if text in published:
        return published[text]
    raise ConfigError(
        f"configuration '{text}' does not exist{closest(text, published)}; pass the path of an existing JSON file, "
        f"or one of {', '.join(published)}"
    )


def check_table(table: str, given: Any, where: str) -> dict[str, Any]:
    """Return a table with its defaults filled in; raise ConfigError with all its faults."""
    faults: list[str] = []
    values = _table({table: given}, table, _TABLES[table], faults)
    if faults:
        raise ConfigError(f"{where}: {'; '.join(faults)}")
    return values


def _from_factory(name: str, input_shape: tuple[int, int, int]) -> Space:
    factory = load_factory(name)
    try:
        takes_classes = "num_classes" in inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a callable without a signature
        takes_classes = False
    # torchvision's classifiers take num_classes among **kwargs.
    takes_classes = takes_classes or name.startswith(("torchvision.models:", "torchvision.models."))
    return Space(
        name=name,
        path=None,
        description=f"{name} with the default grid and recipes",
        factory=name,
        kwargs={},
        classes_argument="num_classes" if takes_classes else None,
        width_argument=None,
        full_width=1.0,
        input_shape=input_shape,
        **{table: check_table(table, {}, "defaults") for table in _TABLES},
    )


def _shipped() -> list[Path]:
    package = Path(__file__).resolve().parent
    for folder in (package / "search_spaces", package.parent / "search_spaces"):  # installed; in the repository
        paths = sorted(folder.glob("*.toml"))
        if paths:
            return paths
    raise ConfigError(f"no search spaces beside {package}; the installation is incomplete, install autoslim again")


def _read(path: Path) -> Space:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; `autoslim spaces` lists the search spaces that ship") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path} is not a readable TOML file: {reason}") from error
    faults: list[str] = []
    known = {"description", "model", *_TABLES}
    faults += [f"unknown '{key}'{closest(key, known)}" for key in tables if key not in known]
    if "description" not in tables:
        faults.append("description is missing")
    elif not _NAME.fits(tables["description"]) or "\n" in tables["description"]:
        faults.append(f"description = {tables['description']!r} must be one line of text")
    model = _table(tables, "model", _MODEL, faults)
    _check_model(tables.get("model", {}), model, faults)
    recipes = {table: _table(tables, table, keys, faults) for table, keys in _TABLES.items()}
    if faults:
        count = f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
        raise ConfigError(f"{path}: {count} in the search space: {'; '.join(faults)}")
    model |= {"input_shape": tuple(model["input_shape"]), "kwargs": dict(model["kwargs"])}
    return Space(name=path.stem, path=path, description=tables["description"], **model, **recipes)


def _table(tables: dict[str, Any], name: str, keys: dict[str, _Key], faults: list[str]) -> dict[str, Any]:
    """Return the table with its defaults filled in, and add what is wrong with it to faults."""
    given = tables.get(name, {})
    if not isinstance(given, dict):
        faults.append(f"{name} = {given!r} must be a table, [{name}]")
        return {}
    values = {key: rule.default for key, rule in keys.items()}
    for key, value in given.items():
        if key not in keys:
            faults.append(f"[{name}] has unknown '{key}'{closest(key, keys)}")
        elif not keys[key].fits(value):
            faults.append(f"[{name}] {key} = {value!r} must be {keys[key].rule}")
        else:
            values[key] = float(value) if type(keys[key].default) is float and key != "held_out" else value
    return values


def _check_model(given: Any, model: dict[str, Any], faults: list[str]) -> None:
    """Add what no key of [model] shows alone."""
    if not isinstance(given, dict):
        return
    faults += [f"[model] {key} is missing" for key in ("factory", "input_shape") if key not in given]
    width = model["width_argument"]
    if width is not None and width in model["kwargs"]:
        faults.append(f"[model] kwargs sets '{width}', which full_width sets; leave it out of kwargs")
    if "width_argument" not in given and model["full_width"] != 1.0:
        faults.append(f"[model] full_width = {model['full_width']:g} needs width_argument; leave it out, or name that")
