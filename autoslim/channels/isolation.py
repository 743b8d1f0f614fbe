"""Run a user's code without leaving traces in the process."""

import contextlib
import functools
import random
import sys
from collections import OrderedDict, defaultdict

import torch
from torch import nn

_COMPILED = ("__resume_at", "__compiled")  # what torch.compile keeps beside the functions of a file


@contextlib.contextmanager
def same_randomness():
    """Leave the random states of torch (CPU), Python and numpy as they were: code of forward may draw from any of them."""
    numpy = sys.modules.get("numpy")
    python, other = random.getstate(), numpy and numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        if numpy:
            numpy.random.set_state(other)


@contextlib.contextmanager
def same_globals(model: nn.Module):
    """Leave what the files of the model's classes keep: a table cached while tracing holds no data, or what stands for a tensor."""
    files = {base.__module__ for module in model.modules() for base in type(module).__mro__}
    spaces = [vars(sys.modules[f]) for f in files if f in sys.modules and f.partition(".")[0] not in ("torch", "builtins")]
    before = [(space, dict(space)) for space in spaces]
    # What was cached before holds data, and may stay; a cache that grew while tracing is emptied.
    caches = [
        (v, v.cache_info().currsize) for _, old in before for v in old.values() if isinstance(v, functools._lru_cache_wrapper)
    ]
    for _, old in list(before):
        before += [(value, value.copy()) for key, value in old.items() if type(value) is dict and not key.startswith("__")]
    lists = [(v, v.copy()) for _, old in before for v in old.values() if type(v) is list]
    try:
        yield
    finally:
        for space, old in before:
            for key in [key for key in space if key not in old]:
                if not key.startswith(_COMPILED):
                    del space[key]
            for key, value in old.items():
                if space.get(key, before) is not value:
                    space[key] = value
        for value, old in lists:
            if list(map(id, value)) != list(map(id, old)):
                value[:] = old
        for cache, size in caches:
            if cache.cache_info().currsize != size:
                cache.cache_clear()


@contextlib.contextmanager
def same_state(model: nn.Module):
    """Leave the modules of a network, what they keep, their parameters and their buffers as they were."""
    plain = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    modules = [(vars(module), dict(vars(module))) for module in plain]
    data = [tensor for tensor in (*model.parameters(), *model.buffers()) if not (tensor.is_meta or tensor.is_inference())]
    tensors = [(tensor, tensor.detach().clone()) for tensor in data]
    kinds = (dict, OrderedDict, defaultdict)  # of parameters, buffers, modules and hooks, and of a module's own
    registered = [(kept, dict(kept)) for now, _ in modules for kept in now.values() if type(kept) in kinds]
    lists = [(kept, list(kept)) for now, _ in modules for kept in now.values() if type(kept) is list]
    try:
        yield
    finally:
        for now, before in [*modules, *registered]:
            now.clear()
            now.update(before)
        for now, before in lists:
            now[:] = before
        with torch.no_grad():
            for tensor, before in tensors:
                if not torch.equal(tensor, before):  # what goes by `.data` is not counted as written
                    tensor.copy_(before)
