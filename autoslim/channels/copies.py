"""Copies of a network's modules, which share its tensors or have others in their place."""

import contextlib
import copy
import functools
import operator
import types
from collections.abc import Mapping

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from autoslim.errors import ModelError


def share_copy(model: nn.Module, memo: dict | None = None) -> nn.Module:
    """Copy the module objects of `model`; parameters and buffers are shared, or replaced as `memo` (id to tensor) says."""
    check_hooks(model)
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    # What hooks compute into an attribute (weight_norm) cannot be copied with its history, and is computed anew.
    computed = [v for m in model.modules() for v in kept_tensors(m) if v.grad_fn]
    shared |= {id(t): t.detach().clone() for t in computed}
    shared.update(memo or {})
    try:
        copied = copy.deepcopy(model, shared)
    except Exception as error:
        raise ModelError(f"{type(model).__name__} cannot be copied ({error}); make its attributes copyable") from error
    rebind(copied, shared)
    return copied


def kept_tensors(module: nn.Module) -> list[torch.Tensor]:
    """Return the tensors that a module keeps, in rows and dicts, too."""
    return [leaf for leaf in tree_leaves(list(vars(module).values())) if isinstance(leaf, torch.Tensor)]


def meta_copy(model: nn.Module) -> nn.Module:
    """Copy `model` onto the meta device: same structure and shapes, no data; `model` is left as it is."""
    # Tensors that are plain attributes (a mean to subtract) too: they meet meta tensors in forward.
    plain = [t for m in model.modules() for t in kept_tensors(m)]
    memo = {id(t): torch.empty_like(t, device="meta", requires_grad=False) for t in plain}
    for tensor in (*model.parameters(), *model.buffers()):
        like = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(like, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else like
    return share_copy(model, memo)


def check_hooks(model: nn.Module) -> None:
    """Raise ModelError for a hook that holds a module by its closure, which no copy of the network would change."""
    modules = set(model.modules())
    for name, module in model.named_modules():
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            function = getattr(hook, "func", hook)  # of a partial
            held = list(getattr(function, "__defaults__", None) or ())
            for cell in getattr(function, "__closure__", None) or ():
                with contextlib.suppress(ValueError):  # it is empty
                    held.append(cell.cell_contents)
            if any(isinstance(value, nn.Module) and value in modules for value in held):
                raise ModelError(
                    f"a hook of {name or type(model).__name__} holds the network that it was made for, and would not see a copy of "
                    "it; make it a method of the network"
                )


def rebind(model: nn.Module, copies: Mapping[int, object]) -> None:
    """Let functions that a copy of a network keeps (a forward of its own, a lambda) use its modules, not the original's.

    Args:
        model: the copy.
        copies: copies by the ids of what they were made of.
    """
    made: dict[int, object] = {}
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, (types.FunctionType, functools.partial)):
                vars(module)[name] = _rebound(value, copies, made)


def _rebound(value, copies: Mapping[int, object], made: dict[int, object]):
    """Return a value with copies in place of the modules that it holds; what holds none as it is. `made` are functions by ids."""
    again = functools.partial(_rebound, copies=copies, made=made)
    if isinstance(value, nn.Module):
        return copies.get(id(value), value)
    if isinstance(value, types.MethodType):
        of = again(value.__self__)
        return value if of is value.__self__ else types.MethodType(value.__func__, of)
    if type(value) in (list, tuple):
        parts = [again(part) for part in value]
        return value if all(map(operator.is_, parts, value)) else type(value)(parts)
    if type(value) is dict:
        parts = {key: again(part) for key, part in value.items()}
        return value if all(part is value[key] for key, part in parts.items()) else parts
    if isinstance(value, functools.partial):
        parts = [value.func, value.args, value.keywords]
        held = again(parts)
        return value if held is parts else functools.partial(held[0], *held[1], **held[2])
    if not isinstance(value, types.FunctionType):
        return value
    if id(value) not in made:
        made[id(value)] = value  # for those that call themselves, until it is known whether they hold a module
        old = [[_contents(cell) for cell in value.__closure__ or ()], value.__defaults__, value.__kwdefaults__, vars(value)]
        if again(old) is not old:
            _remake(value, copies, made)
    return made[id(value)]


def _remake(function: types.FunctionType, copies: Mapping[int, object], made: dict[int, object]) -> None:
    """Put into `made` a function that holds copies; before these are looked at, as they may hold it in turn."""
    again = functools.partial(_rebound, copies=copies, made=made)
    cells = tuple(types.CellType() for _ in function.__closure__ or ())
    copied = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, cells or None)
    made[id(function)] = copied
    for cell, old in zip(cells, function.__closure__ or ()):
        if (value := _contents(old)) is not None:
            cell.cell_contents = again(value)
    copied.__defaults__, copied.__kwdefaults__ = again(function.__defaults__), again(function.__kwdefaults__)
    copied.__dict__.update(again(vars(function)))  # __wrapped__ too
    for name in ("__qualname__", "__doc__", "__module__"):
        setattr(copied, name, getattr(function, name))


def _contents(cell):
    """Return what a cell holds; None where it is empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return None
