"""Record what a network does to its tensors: torch.fx graphs whose nodes know the values they had on the meta device."""

import contextlib
import copy
import operator
from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from dataclasses import dataclass, field

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from autoslim.channels.copies import meta_copy
from autoslim.channels.isolation import same_globals, same_randomness
from autoslim.channels.proxies import TracedAttribute, TracedValue, Watch, called_as_it_is, plain_functions, read_size, tracing
from autoslim.channels.rules.table import RULES
from autoslim.channels.where import caller, location, told
from autoslim.errors import ModelError


@dataclass
class Trace:
    """The graphs of one network, each node with `meta["value"]` (meta tensors or plain values) and `meta["where"]`.

    Attributes:
        graphs: "eval" and "train" graph; a network may run auxiliary heads in one of them only.
        modules: every module of a copy of the network on the meta device, by its first name.
        batch_size: size of the first axis of the inputs that were traced.
        opaque: modules that could not be traced into, with the reason.
        writes_inputs: whether forward writes into the tensors that it is given.
    """

    graphs: dict[str, fx.Graph]
    modules: dict[str, nn.Module]
    batch_size: int
    opaque: dict[str, str] = field(default_factory=dict)
    writes_inputs: bool = False


def as_inputs(example) -> tuple:
    """Return the positional inputs of a network as a tuple: `example` is one input, or a tuple or list of inputs."""
    return tuple(example) if isinstance(example, (tuple, list)) else (example,)


def to_device(example, device: torch.device):
    """Move every tensor of one or several inputs (nested in dicts, lists or tuples) to a device."""
    return tree_map(lambda t: t.to(device, non_blocking=True) if isinstance(t, torch.Tensor) else t, example)


def two_of(value):
    """Return two examples of an input where there is one, which a batch norm without statistics and a `squeeze()` do not take."""
    return torch.cat([value, value]) if isinstance(value, torch.Tensor) and value.dim() and len(value) == 1 else value


def copied(values):
    """Return tensors, or what holds them, that can be written to without a trace."""
    return tree_map(lambda t: t.clone() if isinstance(t, torch.Tensor) else t, values)


@torch.inference_mode(False)  # where tensors do not count how often they are written to
def trace(model: nn.Module, example, rules: Mapping | None = None) -> Trace:
    """Trace `model` in eval and in train mode, without running, moving or changing it.

    Args:
        model: any network whose forward takes tensors with the batch as first axis.
        example: one input `[N, C, H, W]`, or a tuple of the positional inputs; only shapes and dtypes are used.
        rules: what is one operation of the graph: the functions, methods and module types that have a rule.

    Raises:
        ModelError: the network's own forward cannot be followed; the line that stopped it is named.
    """
    inputs = as_inputs(example)
    tensors = [t for t in tree_leaves(inputs) if isinstance(t, torch.Tensor)]
    if not tensors or any(t.dim() == 0 for t in tensors):
        raise ModelError("the example input must be a tensor [N, ...] or a tuple of such tensors; pass torch.randn(1, 3, H, W)")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and next(module.parameters(), None) is not None:
            raise ModelError(
                f"{name or type(model).__name__} is a scripted module, whose layers cannot be read; "
                "pass the plain module, and script what materialize returns"
            )
    if lazy := [name for name, parameter in model.named_parameters() if nn.parameter.is_lazy(parameter)]:
        raise ModelError(f"{lazy[0]} has no shape before the network has run once; run it on an example first")
    skeleton = meta_copy(model)
    for module in skeleton.modules():
        # A momentum of None reads how many batches there were, which no meta tensor knows; no shape depends on it.
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.momentum is None:
            module.momentum = 0.1
    # Batch norm refuses to train on one value a channel, so a batch of one is traced as two.
    batch_size = max(2, tensors[0].shape[0])
    inputs = tree_map(lambda t: _meta_input(t, batch_size) if isinstance(t, torch.Tensor) else t, inputs)
    job = _Job(model, skeleton, inputs, RULES if rules is None else rules)
    for name, module in skeleton.named_modules():
        own = not isinstance(module, torch.jit.ScriptModule) and not type(module).__module__.startswith("torch.nn.modules")
        if own and not job.is_leaf(module, name):
            job.watch.over(module)
    job.forward = called_as_it_is(skeleton)
    graphs = {}
    with torch.no_grad(), same_randomness(), torch.device("meta"):
        for mode in ("eval", "train"):
            skeleton.train(mode == "train")
            graphs[mode] = _trace_mode(job)
    return Trace(graphs, dict(skeleton.named_modules()), batch_size, job.opaque, are_written(inputs))


def are_written(inputs) -> bool:
    """Tell whether fresh tensors have been written to."""
    return any(times_written(t) for t in tree_leaves(inputs) if isinstance(t, torch.Tensor))


def times_written(tensor: torch.Tensor) -> int:
    """Return how often a tensor was written to; 0 for one that was made in inference mode, which does not count."""
    return 0 if tensor.is_inference() else tensor._version


def _meta_input(tensor: torch.Tensor, batch_size: int) -> torch.Tensor:
    return torch.empty((batch_size, *tensor.shape[1:]), dtype=tensor.dtype, device="meta")


class Untraceable(ModelError):
    """The network's own forward cannot be followed."""


class _DoesNotRun(Exception):
    """The network's own code fails on the example; the message says where."""


@dataclass
class _Job:
    """One network being traced: what has been learnt so far of how."""

    model: nn.Module
    skeleton: nn.Module
    inputs: tuple
    rules: Mapping
    watch: Watch = field(default_factory=Watch)
    opaque: dict[str, str] = field(default_factory=dict)
    # Modules whose forward does not bear that the numbers it reads are traced; they are constants there.
    unwatched: set[str] = field(default_factory=set)
    forward: str = "forward"  # the method that is traced

    def is_leaf(self, module: nn.Module, name: str) -> bool:
        """Tell whether a module is one operation: a layer of torch with its own weights, or what cannot be traced."""
        if name in self.opaque:
            return True
        kind = type(module)
        if kind in self.rules:
            # A weight that is no parameter of the layer is computed by a hook (the older weight_norm).
            return not isinstance(vars(module).get("weight"), (torch.Tensor, TracedValue)) or not kind.__module__.startswith(
                "torch.nn"
            )
        return kind.__module__.startswith("torch.nn.modules") and not isinstance(
            module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)
        )


def _trace_mode(job: _Job) -> fx.Graph:
    while True:
        tracer = _Tracer(job)
        job.watch.tracer = tracer
        state = {name: _state_of(module) for name, module in job.skeleton.named_modules()}
        try:
            with same_globals(job.model), tracing(tracer):
                return tracer.trace(job.skeleton)
        except Exception as error:
            path = tracer.failed
            while path in job.opaque:
                path = path.rpartition(".")[0]
            if path not in job.unwatched:
                job.unwatched.add(path)
                continue
            where = location(error)
            reason = told(error)
            if not path and isinstance(error, _DoesNotRun):
                raise Untraceable(
                    f"{type(job.model).__name__} does not run on zeros of the example's shape ({error}); "
                    "pass an example input that it takes"
                ) from error
            if not path:
                raise Untraceable(
                    f"{type(job.model).__name__} cannot be traced at {where} ({reason}); move that code into a submodule of its "
                    "own, which is then left as it is"
                ) from error
            job.opaque[path] = f"cannot be traced at {where} ({reason})"
        finally:
            job.watch.tracer = None
            _restore(job.skeleton, state)


def _state_of(module: nn.Module) -> list[tuple[dict, dict]]:
    own = vars(module)
    registered = () if isinstance(module, torch.jit.ScriptModule) else (own["_parameters"], own["_buffers"])
    return [(kept, dict(kept)) for kept in (own, *registered)]


def _restore(skeleton: nn.Module, state: dict[str, list[tuple[dict, dict]]]) -> None:
    """Undo what a forward wrote into attributes of its modules."""
    for name, _ in skeleton.named_modules():
        for now, before in state[name]:
            now.clear()
            now.update(before)


class _Tracer(fx.Tracer):
    """Symbolic tracer that also runs every node on the meta device, so that code may branch on sizes and modes."""

    def __init__(self, job: _Job):
        super().__init__(autowrap_functions=plain_functions(job.rules))
        self._job = job
        self.traced_func_name = job.forward
        self._evaluating = False
        tensors = (*job.skeleton.named_parameters(), *job.skeleton.named_buffers())
        self._tensor_names = {id(tensor): name for name, tensor in tensors}
        self._module_names: dict[int, str] = {}
        for name, module in job.skeleton.named_modules():
            self._module_names.setdefault(id(module), name)
        self._read: dict[tuple, TracedValue] = {}
        self.failed = ""

    def create_args_for_root(self, root_fn, is_module, concrete_args=None):
        position = iter(range(10**6))

        def placeholder(leaf):
            if not isinstance(leaf, torch.Tensor):
                return leaf
            return self.proxy(self.create_node("placeholder", f"input_{next(position)}", (leaf,), {}))

        return root_fn, [self.root, *tree_map(placeholder, self._job.inputs)]

    def is_leaf_module(self, module, name):
        return self._job.is_leaf(module, name)

    def call_module(self, module, forward, args, kwargs):
        if self._evaluating:
            return forward(*args, **kwargs)
        if type(module).__module__ == "torch._dynamo.eval_frame":
            return module._orig_mod(*args, **kwargs)  # torch.compile(module)
        try:
            self.path_of_module(module)
        except NameError:  # made in forward: an nn.ReLU(), a slice of an nn.Sequential
            return forward(*args, **kwargs)
        try:
            return super().call_module(module, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or self.path_of_module(module)
            raise

    def getattr(self, attr, attr_val, parameter_proxy_cache):
        name = None if self._evaluating else self._tensor_names.get(id(attr_val))
        if name is None:
            return attr_val
        return self._once("get_attr", name, ())

    def size_of(self, module: nn.Module, name: str, value):
        """Return what stands for a number, or a row of numbers, that a module keeps."""
        path = self._module_names.get(id(module))
        if self._evaluating or path is None or path in self._job.unwatched:
            return value
        return self._once("call_function", read_size, (path, name))

    def _once(self, kind: str, target, args: tuple) -> TracedValue:
        """Return the node that reads a tensor or a number; it is read once, however often code asks for it."""
        if (target, args) not in self._read:
            self._read[target, args] = self.create_proxy(kind, target, args, {})
            self._read[target, args].node.meta["read"] = True
        return self._read[target, args]

    def create_arg(self, a):
        if type(a) in (TracedValue, TracedAttribute):
            return a.node
        if isinstance(a, Mapping) and not isinstance(a, dict):
            a = dict(a)
        return super().create_arg(a)

    def create_node(self, kind, target, args, kwargs, name=None, type_expr=None):
        if kind == "placeholder":
            (value,) = args
            node = super().create_node(kind, target, (), kwargs, name, type_expr)
            node.meta["value"] = value
            return node
        node = super().create_node(kind, target, args, kwargs, name, type_expr)
        if kind != "output":
            node.meta["where"] = caller()
            node.meta["value"] = self._evaluate(node)
        return node

    def proxy(self, node):
        return TracedValue(node, self)

    def to_bool(self, obj):
        value = obj.node.meta["value"]
        if isinstance(value, torch.Tensor):
            raise fx.proxy.TraceError("a branch depends on the values of a tensor")
        obj.node.meta["decided"] = True  # the graph has the branch that was taken
        return bool(value)

    def iter(self, obj):
        value = obj.node.meta["value"]
        return iter([obj[i] for i in range(len(value))])

    def keys(self, obj):
        return iter(list(obj.node.meta["value"]))

    def _evaluate(self, node):
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["value"])
        self._evaluating = True
        try:
            if node.op == "call_module" and node.target in self._job.opaque:
                return self._run_opaque(node, args, kwargs)
            try:
                # Torch's own modules of several layers (nn.TransformerEncoderLayer) are one operation.
                several = node.op == "call_module" and next(self.root.get_submodule(node.target).children(), None) is not None
                layers = _recorded_layers(self.root.get_submodule(node.target), node) if several else contextlib.nullcontext()
                with layers:
                    value = run_node(node, args, kwargs, self.root)
            except Exception:
                if node.op != "call_module" or type(self.root.get_submodule(node.target)) in RULES:
                    raise
                value = self._run_opaque(node, args, kwargs)  # a module with a rule of its user
            return list(value) if isinstance(value, (KeysView, ValuesView, ItemsView)) else value
        finally:
            self._evaluating = False

    def _run_opaque(self, node, args, kwargs):
        """Find the output sizes of an untraceable module by running a copy of it on zeros."""
        with torch.device("cpu"):
            real = copy.deepcopy(self._job.model.get_submodule(node.target)).eval()
            device = next((t.device for t in (*real.parameters(), *real.buffers())), torch.device("cpu"))

            given: list[tuple[torch.Tensor, torch.Tensor]] = []

            def zeros(t):
                if not isinstance(t, torch.Tensor):
                    return t
                given.append((t, torch.zeros(t.shape, dtype=t.dtype, device=device)))
                return given[-1][1]

            try:
                with _recorded_layers(real, node):
                    out = real(*_own_lists(tree_map(zeros, args)), **_own_lists(tree_map(zeros, kwargs)))
            except Exception as error:
                self.failed = node.target
                raise _DoesNotRun(f"{told(error)} at {location(error)}") from error
        for traced, real_input in given:
            if are_written(real_input):
                torch.autograd.graph.increment_version(traced)
        return tree_map(lambda t: t.to("meta") if isinstance(t, torch.Tensor) else t, out)


@contextlib.contextmanager
def _recorded_layers(module: nn.Module, node: fx.Node) -> Iterator[None]:
    """Keep what the layers inside a module are given, and give, as `meta["layers"]` of the node."""
    layers = node.meta["layers"] = []

    def keep(layer, args, kwargs, out):
        layers.append((layer, (*args, *kwargs.values()), out))

    plain = [each for each in module.modules() if not isinstance(each, torch.jit.ScriptModule)]
    hooks = [each.register_forward_hook(keep, with_kwargs=True) for each in plain]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _own_lists(value):
    """Return a copy whose lists and dicts can be written to: those of a graph refuse it."""
    if isinstance(value, list):
        return [_own_lists(v) for v in value]
    if isinstance(value, dict):
        return {k: _own_lists(v) for k, v in value.items()}
    return tuple(map(_own_lists, value)) if type(value) is tuple else value


def run_node(node: fx.Node, args: tuple, kwargs: dict, root: nn.Module):
    """Run one graph node on the given argument values."""
    if node.op == "get_attr":
        return operator.attrgetter(node.target)(root)
    if node.op == "call_module":
        return root.get_submodule(node.target)(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], node.target)(*args[1:], **kwargs)
    if node.target is read_size:
        return getattr(root.get_submodule(args[0]), args[1])
    return node.target(*args, **kwargs)
