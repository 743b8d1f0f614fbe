"""Copies of a network's modules, which share its tensors or have others in their place."""

import contextlib
import copy
import functools
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
    computed = [v for m in model.modules() for v in _kept_tensors(m) if v.grad_fn]
    shared |= {id(t): t.detach().clone() for t in computed}
    shared.update(memo or {})
    try:
        copied = copy.deepcopy(model, shared)
    except Exception as error:
        raise ModelError(f"{type(model).__name__} cannot be copied ({error}); make its attributes copyable") from error
    rebind(copied, shared)
    return copied


def _kept_tensors(module: nn.Module) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(list(vars(module).values())) if isinstance(leaf, torch.Tensor)]


def meta_copy(model: nn.Module) -> nn.Module:
    """Copy `model` onto the meta device: same structure and shapes, no data; `model` is left as it is."""
    # Tensors that are plain attributes (a mean to subtract) too: they meet meta tensors in forward.
    plain = [t for m in model.modules() for t in _kept_tensors(m)]
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
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, (types.FunctionType, functools.partial)):
                vars(module)[name] = _rebound(value, copies)


def _rebound(value, copies: Mapping[int, object], above: tuple = ()):
    """Return a value with copies in place of what it holds; `above` are the functions that hold it."""
    if isinstance(value, nn.Module):
        return copies.get(id(value), value)
    if isinstance(value, types.MethodType):
        return types.MethodType(value.__func__, _rebound(value.__self__, copies, above))
    if not isinstance(value, (types.FunctionType, functools.partial)) or any(value is each for each in above):
        return value
    again = functools.partial(_rebound, copies=copies, above=(*above, value))
    if isinstance(value, functools.partial):
        words = {name: again(each) for name, each in value.keywords.items()}
        return functools.partial(again(value.func), *map(again, value.args), **words)
    cells = tuple(types.CellType(again(_contents(cell))) for cell in value.__closure__ or ())
    held = (*map(_contents, value.__closure__ or ()), *(value.__defaults__ or ()), *vars(value).values())
    if all(again(each) is each for each in held):
        return value
    defaults = value.__defaults__ and tuple(map(again, value.__defaults__))
    made = types.FunctionType(value.__code__, value.__globals__, value.__name__, defaults, cells or None)
    made.__kwdefaults__ = value.__kwdefaults__
    made.__dict__.update({name: again(each) for name, each in vars(value).items()})  # __wrapped__ too
    return made


def _contents(cell):
    """Return what a cell holds; None where it is empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return None
