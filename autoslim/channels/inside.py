"""Groups inside chosen modules of a network whose own forward cannot be traced (a detector around its backbone)."""

import fnmatch
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from autoslim.channels.choices import Choices
from autoslim.channels.copies import share_copy
from autoslim.channels.costs import layer_macs
from autoslim.channels.flow import OUTPUT
from autoslim.channels.isolation import same_randomness
from autoslim.channels.map import ChannelGroup, ChannelMap, Run, Step
from autoslim.channels.trace import are_written, as_inputs, copied
from autoslim.channels.where import location, told
from autoslim.errors import ConfigError, ModelError


def groups_inside(model: nn.Module, example, choices: Choices, find: Callable, why: str) -> ChannelMap:
    """Find the groups inside the modules that `choices.include` names; what they give to the rest stays whole.

    Without names, the outermost modules that can be traced on their own are taken. A copy of the network is run once on
    the example, to see what the modules are given.

    Args:
        find: `(module, inputs, choices) -> ChannelMap` for one module on its own.
        why: why the network itself cannot be traced.

    Raises:
        ModelError: the network does not run on the example, or a module that is named is not called or cannot be traced.
        ConfigError: a name is no module.
    """
    modules = dict(model.named_modules())
    first_name = {module: name for name, module in modules.items()}
    included = _included(choices.include, modules, type(model).__name__)
    seen = _run(model, example)
    for name in included:
        if name not in seen.inputs:
            raise ModelError(f"{type(model).__name__} does not call {name!r} with tensors by position; include another module")
    found: dict[str, ChannelMap] = {}
    opaque = {"": why}

    def check_own(name: str, paths: Iterable[str]) -> None:
        """Raise ModelError for what is registered twice, and slimmed by its first name."""
        for path in paths:
            first, here = first_name[modules[name].get_submodule(path)], f"{name}.{path}".rstrip(".")
            if first != here:
                raise ModelError(f"{here} is {first}, too")

    def descend(name: str) -> None:
        """Take a module, or what can be taken inside it."""
        if name in seen.inputs and any(True for _ in modules[name].parameters()):
            try:
                check_own(name, (path for path, module in modules[name].named_modules() if module._parameters or module._buffers))
                whole = find(modules[name], seen.inputs[name], Choices())
                check_own(name, (path for path, _ in whole.sizes))
                chosen = _own(choices, name, whole, modules)
                found[name] = find(modules[name], seen.inputs[name], chosen) if chosen.to_json() else whole
                return
            except ModelError as error:
                if included:
                    raise
                opaque[name] = str(error)
        for child, _ in modules[name].named_children():
            if f"{name}.{child}" in modules and not _fits(f"{name}.{child}", choices.exclude):
                descend(f"{name}.{child}")

    for name in included or [child for child, _ in model.named_children() if not _fits(child, choices.exclude)]:
        descend(name)
    _check_fits(choices, found, modules)
    if not any(part.groups for part in found.values()):
        raise ModelError(why)
    parts: list[ChannelMap] = []
    for name, part in found.items():
        placed = _placed(part, name, sum(len(p.groups) for p in parts))
        parts.append(seen.of_all_calls(placed, name))
    outside = sum(layer.macs for layer in seen.layers if found.keys().isdisjoint(layer.calls))
    return ChannelMap(
        groups=tuple(group for part in parts for group in part.groups),
        frozen=tuple(group for part in parts for group in part.frozen),
        tensors={name: axes for part in parts for name, axes in part.tensors.items()},
        sizes={place: row for part in parts for place, row in part.sizes.items()},
        calls=tuple(call for part in parts for call in part.calls),
        fixed_macs=outside // seen.batch + sum(part.fixed_macs for part in parts),
        opaque=opaque | {name: why for part in parts for name, why in part.opaque.items()},
        steps=parts[0].steps if len(parts) == 1 else (),
        branches=tuple(line for part in parts for line in part.branches),
        writes_inputs=seen.writes_inputs,
        whole=False,
    )


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _included(patterns: tuple[str, ...], modules: dict[str, nn.Module], model: str) -> list[str]:
    """Return the outermost modules that `include` names."""
    for pattern in patterns:
        if not any(_fits(name, [pattern]) for name in modules if name):
            raise ConfigError(f"include {pattern!r} is no module of {model}; name one of its named_modules()")
    names = [name for name in modules if name and _fits(name, patterns)]
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


def _groups(pattern: str, module: str, found: ChannelMap) -> list[str]:
    """Return the groups of a module that a pattern names, by their names in the module."""
    groups = (*found.groups, *found.frozen)
    named = [
        g.name for g in groups if _fits(f"{module}.{g.name}", [pattern]) or _fits(f"{module}.{g.name.split('#')[0]}", [pattern])
    ]
    return named or [g.name for g in groups if any(_fits(f"{module}.{member}", [pattern]) for member in g.members)]


def _own(choices: Choices, module: str, found: ChannelMap, modules: dict[str, nn.Module]) -> Choices:
    """Return the decisions for the groups of one module, whose names lack the module's."""
    inside = [name for name in modules if name.startswith(f"{module}.")]
    rows = {key: tuple(g for p in getattr(choices, key) for g in _groups(p, module, found)) for key in ("freeze", "release")}
    exclude = tuple(name.removeprefix(f"{module}.") for name in inside if _fits(name, choices.exclude))
    tie = (tuple(g for p in row for g in _groups(p, module, found)) for row in choices.tie)
    return Choices(exclude=exclude, tie=tuple(row for row in tie if len(row) > 1), **rows)


def _check_fits(choices: Choices, found: dict[str, ChannelMap], modules: dict[str, nn.Module]) -> None:
    """Raise ConfigError for a decision that no module takes up."""
    for pattern in choices.exclude:
        if not any(_fits(name, [pattern]) for name in modules if name):
            raise ConfigError(f"exclude {pattern!r} fits no module; see the network's named_modules()")
    for key, patterns in (("freeze", choices.freeze), ("release", choices.release), ("tie", sum(choices.tie, ()))):
        for pattern in patterns:
            if not any(_groups(pattern, name, part) for name, part in found.items()):
                raise ConfigError(
                    f"{key} {pattern!r} fits no channel group inside {', '.join(found)}; `autoslim inspect` lists them"
                )
    for row in choices.tie:
        homes = [name for name, part in found.items() if any(_groups(p, name, part) for p in row)]
        if len(homes) > 1:
            raise ConfigError(
                f"tie {','.join(row)!r} names groups of {' and '.join(homes)}, which are traced apart; tie inside one"
            )


@dataclass(frozen=True)
class _Layer:
    """One call of a layer.

    Attributes:
        name: of the layer.
        macs: its multiply-adds.
        calls: of every module that holds it, which call of that module this was in, from 1.
    """

    name: str
    macs: int
    calls: dict[str, int]


@dataclass
class _Seen:
    """What one run of a network shows: what its modules are given at their first call, and the calls of its layers."""

    inputs: dict[str, tuple] = field(default_factory=dict)
    layers: list[_Layer] = field(default_factory=list)
    batch: int = 1
    writes_inputs: bool = False

    def of_all_calls(self, found: ChannelMap, name: str) -> ChannelMap:
        """Return the map of a module with the multiply-adds of all its calls, for one image of the network.

        It was traced as it is called first, for one entry of what it is given then.
        """
        inside = [layer for layer in self.layers if name in layer.calls]
        entries = self.inputs[name][0].shape[0]

        def times(layers: list[_Layer]) -> float:
            first = sum(layer.macs for layer in layers if layer.calls[name] == 1)
            return sum(layer.macs for layer in layers) / first * entries / self.batch if first else 1.0

        usual = times(inside)
        own = {layer.name: times([each for each in inside if each.name == layer.name]) for layer in inside}
        return replace(
            found,
            calls=tuple(replace(call, factor=round(call.factor * own.get(call.layer, usual))) for call in found.calls),
            fixed_macs=round(found.fixed_macs * usual),
        )


def _run(model: nn.Module, example) -> _Seen:
    seen, calls = _Seen(), Counter()
    model_copy, inputs = share_copy(model).eval(), copied(as_inputs(example))

    def watch(name: str, module: nn.Module) -> None:
        parents = [name[: i if i >= 0 else None] for i in (-1, *(i for i, letter in enumerate(name) if letter == "."))]

        def before(module, args, kwargs):
            calls[name] += 1
            if name and not kwargs and args and isinstance(args[0], torch.Tensor) and args[0].dim() > 1:
                seen.inputs.setdefault(name, args)

        def after(module, args, kwargs, out):
            if macs := layer_macs(module, (*args, *kwargs.values()), out):
                seen.layers.append(_Layer(name, macs, {parent: calls[parent] for parent in parents}))

        module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_hook(after, with_kwargs=True)

    for name, module in model_copy.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            watch(name, module)
    try:
        with torch.no_grad(), same_randomness():
            model_copy(*inputs)
    except Exception as error:
        where = f"{told(error)} at {location(error)}"
        raise ModelError(f"{type(model).__name__} does not run on the example ({where}); pass an input that it takes") from error
    first = next(iter(seen.inputs.values()), None)
    seen.batch = first[0].shape[0] if first else 1
    seen.writes_inputs = are_written(inputs)
    return seen


def _placed(found: ChannelMap, name: str, offset: int) -> ChannelMap:
    """Return the map of a module as part of the network that holds it: names get its name before them."""

    def runs(axis):
        return axis and tuple(run if run.group is None else replace(run, group=run.group + offset) for run in axis)

    def row(sizes):
        if isinstance(sizes[0], Run):
            return runs(sizes)
        return tuple(runs(entry) if isinstance(entry, tuple) else entry for entry in sizes)

    def group(one: ChannelGroup) -> ChannelGroup:
        frozen = tuple(f"the output of {name}, which the rest of the network reads" if w == OUTPUT else w for w in one.frozen)
        return replace(one, name=f"{name}.{one.name}", members=tuple(f"{name}.{m}" for m in one.members), frozen=frozen)

    def step(one: Step) -> Step:
        return replace(one, channels=tuple((own and f"{name}.{own}", size) for own, size in one.channels))

    return replace(
        found,
        groups=tuple(map(group, found.groups)),
        frozen=tuple(map(group, found.frozen)),
        tensors={f"{name}.{key}": tuple(map(runs, axes)) for key, axes in found.tensors.items()},
        sizes={(f"{name}.{key}".rstrip("."), own): row(sizes) for (key, own), sizes in found.sizes.items()},
        calls=tuple(replace(c, layer=f"{name}.{c.layer}", axes=tuple(map(runs, c.axes))) for c in found.calls),
        opaque={f"{name}.{key}": why for key, why in found.opaque.items()},
        steps=tuple(map(step, found.steps)),
    )
