"""Groups inside chosen modules of a network whose own forward cannot be traced (a detector around its backbone)."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from autoslim.channels.choices import Choices
from autoslim.channels.costs import layer_macs
from autoslim.channels.flow import OUTPUT
from autoslim.channels.map import ChannelGroup, ChannelMap, Run, Step
from autoslim.channels.trace import as_inputs, share_copy
from autoslim.errors import ConfigError, ModelError


def groups_inside(model: nn.Module, example, choices: Choices, find: Callable) -> ChannelMap:
    """Find the groups inside the modules that `choices.include` names; what they give to the rest stays whole.

    A copy of the network is run once on the example, to see what the modules are given.

    Args:
        find: `(module, inputs, choices) -> ChannelMap` for one module on its own.

    Raises:
        ModelError: the network does not run on the example, or does not call one of the modules.
        ConfigError: a name is no module.
    """
    modules = dict(model.named_modules())
    for name in choices.include:
        if name not in modules:
            raise ConfigError(f"include {name!r} is no module of {type(model).__name__}; name one of its named_modules()")
    inputs, macs = _run(model, example, choices.include)
    parts: list[ChannelMap] = []
    for name in choices.include:
        rest = Choices.of({key: row for key, row in choices.to_json().items() if key != "include"}).inside(name)
        parts.append(_placed(find(modules[name], inputs[name], rest), name, sum(len(part.groups) for part in parts)))
    return ChannelMap(
        groups=tuple(group for part in parts for group in part.groups),
        frozen=tuple(group for part in parts for group in part.frozen),
        tensors={name: axes for part in parts for name, axes in part.tensors.items()},
        sizes={place: row for part in parts for place, row in part.sizes.items()},
        calls=tuple(call for part in parts for call in part.calls),
        fixed_macs=macs + sum(part.fixed_macs for part in parts),
        opaque={name: why for part in parts for name, why in part.opaque.items()},
        steps=parts[0].steps if len(parts) == 1 else (),
        whole=False,
    )


def _run(model: nn.Module, example, names: tuple[str, ...]) -> tuple[dict[str, tuple], int]:
    """Return what the named modules are given, and the multiply-adds of everything else."""
    inputs: dict[str, tuple] = {}
    macs = 0
    copied = share_copy(model).eval()
    modules = dict(copied.named_modules())

    def keep(name):
        return lambda module, args: inputs.setdefault(name, args)

    def count(module, args, out):
        nonlocal macs
        macs += layer_macs(module, args[0], out) if args and isinstance(args[0], torch.Tensor) else 0

    for name, module in modules.items():
        if name in names:
            module.register_forward_pre_hook(keep(name))
        elif not any(name.startswith(f"{outer}.") for outer in names):
            module.register_forward_hook(count)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            copied(*as_inputs(example))
    except Exception as error:
        raise ModelError(f"{type(model).__name__} does not run on the example ({type(error).__name__}: {error})") from error
    for name in names:
        if not inputs.get(name):
            raise ModelError(f"{type(model).__name__} does not call {name!r} with tensors by position; include another module")
    batch = next(t for t in tree_leaves(inputs[names[0]]) if isinstance(t, torch.Tensor)).shape[0]
    return inputs, macs // batch


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
