"""What stands for a tensor, or for a number a module keeps, while a network's forward is traced."""

import contextlib
import functools
import operator
import types

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

_FACTORIES = [
    "zeros",
    "ones",
    "empty",
    "full",
    "rand",
    "randn",
    "randint",
    "arange",
    "linspace",
    "eye",
    "tensor",
    "as_tensor",
    "meshgrid",
]
# Numbers that say how a kernel is applied are no channel sizes.
_NO_SIZES = {"stride", "padding", "dilation", "kernel_size", "output_padding", "_reversed_padding_repeated_twice"}


class _Concrete:
    """What plain Python may ask of a traced value besides its tensor operations: its type, length and integer."""

    @property
    def __class__(self):
        # `isinstance(x, torch.Tensor)` in a forward means the value, not what stands for it.
        return type(self.node.meta["value"])

    def __len__(self):
        return len(self.node.meta["value"])

    def __int__(self):
        return self._plain(int)

    def __index__(self):
        return self._plain(operator.index)

    def __float__(self):
        return self._plain(float)

    def __getattr__(self, name):
        if not hasattr(self.node.meta["value"], name):
            raise AttributeError(f"{type(self.node.meta['value']).__name__} has no attribute {name!r}")
        return TracedAttribute(self, name)

    def _plain(self, convert):
        value = self.node.meta["value"]
        if isinstance(value, torch.Tensor):
            raise fx.proxy.TraceError("plain Python reads the value of a tensor")
        return convert(value)


class TracedValue(_Concrete, fx.Proxy):
    """A tensor or number of the graph."""


class TracedAttribute(_Concrete, fx.proxy.Attribute):
    """An attribute, or a method, of a traced value."""


def read_size(module: str, name: str):
    """Stand in the graph for a number, or a row of numbers, that a module keeps as an attribute."""
    raise AssertionError("run by `run_node`, which has the module")


def is_size(value) -> bool:
    """Tell whether an attribute may be a size of a tensor: a number of 2 or more, or a row of numbers."""
    if type(value) is int:
        return value >= 2
    return type(value) in (tuple, list, torch.Size) and bool(value) and all(type(v) is int for v in value) and max(value) >= 2


class Watch:
    """Tells a tracer when a forward reads a number from a module."""

    def __init__(self):
        self.tracer = None

    def over(self, module: nn.Module) -> None:
        """Report the numbers that are read from this module from now on."""
        vars(module)["_autoslim_watch"] = self
        module.__class__ = _watched(type(module))


@functools.cache
def _watched(kind: type[nn.Module]) -> type[nn.Module]:
    def __getattribute__(self, name):
        value = kind.__getattribute__(self, name)
        if is_size(value) and name not in _NO_SIZES:
            own = kind.__getattribute__(self, "__dict__")
            tracer = own["_autoslim_watch"].tracer if name in own else None
            if tracer is not None:
                return tracer.size_of(self, name, value)
        return value

    names = {"__getattribute__": __getattribute__, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (kind,), names)


@contextlib.contextmanager
def factories(tracer: fx.Tracer):
    """Let `torch.zeros(n, c)` and its kind take traced numbers for the length of a `with` block."""
    before = {name: getattr(torch, name) for name in _FACTORIES}

    def traced(function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            if any(type(leaf) in (TracedValue, TracedAttribute) for leaf in tree_leaves((args, kwargs))):
                return tracer.create_proxy("call_function", function, args, kwargs)
            return function(*args, **kwargs)

        return call

    try:
        for name, function in before.items():
            setattr(torch, name, traced(function))
        yield
    finally:
        for name, function in before.items():
            setattr(torch, name, function)


def plain_functions(rules) -> tuple:
    """Return the functions among the keys of a rule table that are plain Python: they are traced as one operation."""
    return tuple(key for key in rules if isinstance(key, types.FunctionType))
