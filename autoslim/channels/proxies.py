"""What stands for a tensor, or for a number a module keeps, while a network's forward is traced."""

import builtins
import contextlib
import functools
import math
import operator
import types

import torch
from torch import fx, nn
from torch.utils import checkpoint
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
    """What plain Python may ask of a traced value besides its tensor operations: its length, integer and attributes."""

    def __len__(self):
        self.node.meta["counted"] = True
        return len(self.node.meta["value"])

    def __int__(self):
        return self._counted(int)

    def __floor__(self):
        return self._counted(math.floor)

    def __ceil__(self):
        return self._counted(math.ceil)

    def __trunc__(self):
        return self._counted(math.trunc)

    def __round__(self, digits=None):
        return self._counted(lambda value: round(value, digits))

    def __index__(self):
        # Torch asks this of every number that it is given, so nothing follows from it.
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

    def _counted(self, convert):
        # From here on the graph holds the number of now: `check_sizes` sees to it that it is the same at other widths.
        self.node.meta["plain"] = True
        return self._plain(convert)


class TracedValue(_Concrete, fx.Proxy):
    """A tensor or number of the graph."""


class TracedAttribute(_Concrete, fx.proxy.Attribute):
    """An attribute, or a method, of a traced value."""


_TRACED = (TracedValue, TracedAttribute)


def read_size(module: str, name: str):
    """Stand in the graph for a number, or a row of numbers, that a module keeps as an attribute."""
    raise AssertionError("run by `run_node`, which has the module")


def is_size(value) -> bool:
    """Tell whether an attribute may be a size of a tensor: a number of 2 or more, or a row of numbers."""
    if type(value) is int:
        return value >= 2
    return type(value) in (tuple, list, torch.Size) and bool(value) and all(type(v) is int for v in value) and max(value) >= 2


class Unregistered:
    """Base of classes that are made of a user's: these are not told of them, as they may keep a list."""

    def __init_subclass__(cls, **kwargs):
        pass


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
            watch = own.get("_autoslim_watch") if name in own else None
            tracer = watch and watch.tracer
            if tracer is not None:
                return tracer.size_of(self, name, value)
        return value

    names = {"__getattribute__": __getattribute__, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (Unregistered, kind), names)


def called_as_it_is(root: nn.Module) -> str:
    """Return the method by which fx, which asks the class, traces the forward that was put into an object, if one was."""
    if "forward" not in vars(root):
        return "forward"
    name = "_autoslim_forward"
    forward = {name: lambda self, *args, **kwargs: vars(self)["forward"](*args, **kwargs)}
    root.__class__ = type(type(root).__name__, (type(root),), forward)
    return name


@contextlib.contextmanager
def tracing(tracer: fx.Tracer):
    """Let a forward treat traced values as the tensors and numbers they stand for, for the length of a `with` block.

    `isinstance(x, torch.Tensor)` asks the value; `torch.zeros(n, c)` and its kind, autograd functions of one's own and
    scripted functions become operations of the graph.
    """
    # Torch remembers its factories at their first use under a device: it must not find ours.
    with torch.device("meta"):
        torch.empty(0)
    function_apply, scripted_call = vars(torch.autograd.Function)["apply"], torch.jit.ScriptFunction.__call__
    really_isinstance = builtins.isinstance
    variable = type(torch.autograd.Variable)
    before = [(torch, name, getattr(torch, name)) for name in _FACTORIES]

    def as_operation(call, args, kwargs):
        if any(type(leaf) in _TRACED for leaf in tree_leaves((args, kwargs))):
            return tracer.create_proxy("call_function", call, args, kwargs)
        return call(*args, **kwargs)

    def factory(function):
        return functools.wraps(function)(lambda *args, **kwargs: as_operation(function, args, kwargs))

    def apply(kind, *args, **kwargs):
        if kind is checkpoint.CheckpointFunction:
            return args[0](*args[2:])  # it is called to save memory only
        known = list(tracer.graph.nodes)
        try:
            return _forward_of(kind)(*args, **kwargs)
        except Exception:
            for node in reversed(list(tracer.graph.nodes)[len(known) :]):
                tracer.graph.erase_node(node)
        return as_operation(_named(function_apply.__get__(None, kind), kind.__name__), args, kwargs)

    def scripted(function, *args, **kwargs):
        return as_operation(_named(functools.partial(scripted_call, function), function.name), args, kwargs)

    def isinstance_of_value(value, kinds):
        if really_isinstance(value, kinds):
            return True
        return type(value) in _TRACED and really_isinstance(value.node.meta["value"], kinds)

    def wrap(kind, *args, **kwargs):
        # `Variable(x)` of old code is x.
        return args[0] if args and type(args[0]) in _TRACED else type.__call__(kind, *args, **kwargs)

    from_numpy = torch.from_numpy
    names = [f"_checkpoint_without_reentrant_generator{end}" for end in ("", "_impl")]  # of one version or another
    beside_checkpoint = {name: getattr(checkpoint, name) for name in names if hasattr(checkpoint, name)}

    def from_array(array):
        return from_numpy(array).to(torch.empty(0).device)  # the default device: meta, but within what cannot be traced

    try:
        for owner, name, function in before:
            setattr(owner, name, factory(function))
        torch.from_numpy = from_array
        for name in beside_checkpoint:
            setattr(checkpoint, name, _nothing_beside)
        variable.__call__ = wrap
        torch.autograd.Function.apply = classmethod(apply)
        torch.jit.ScriptFunction.__call__ = scripted
        builtins.isinstance = isinstance_of_value
        yield
    finally:
        builtins.isinstance = really_isinstance
        torch.jit.ScriptFunction.__call__ = scripted_call
        del variable.__call__
        torch.from_numpy = from_numpy
        for name, function in beside_checkpoint.items():
            setattr(checkpoint, name, function)
        torch.autograd.Function.apply = function_apply
        for owner, name, function in before:
            setattr(owner, name, function)


def _nothing_beside(*_, **__):
    """Save no memory around a function: what `checkpoint` does before and after it."""
    yield


def _forward_of(kind):
    """Return what an autograd function computes, as a function of its inputs alone."""
    if kind.setup_context is not torch.autograd.Function.setup_context:
        return kind.forward
    return functools.partial(kind.forward, torch.autograd.function.FunctionCtx())


def _named(function, name: str):
    named = functools.partial(function)
    named.__name__ = name
    return named


def plain_functions(rules) -> tuple:
    """Return the functions among the keys of a rule table that are plain Python: they are traced as one operation."""
    return tuple(key for key in rules if isinstance(key, types.FunctionType))
