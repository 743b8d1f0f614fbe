"""The graph of a supernet, and what of it has to be run again when one group is narrowed."""

import contextlib
import operator
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from autoslim.channels.proxies import read_size
from autoslim.channels.rules.table import RULES
from autoslim.channels.trace import Untraceable, as_inputs, run_node, trace
from autoslim.slimmable.layers import ActiveAxis, Slimmable
from autoslim.slimmable.modes import eval_mode
from autoslim.slimmable.supernet import Supernet

_CONVS = {nn.Conv1d, nn.Conv2d, nn.Conv3d}
_NORMS = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm}
# Layers that treat every channel by itself.
_BY_CHANNEL = _NORMS | {
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh,
    nn.Identity, nn.Dropout, nn.Dropout2d, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
}  # fmt: skip
_WRITERS = {getattr(operator, name) for name in ("iadd", "isub", "imul", "itruediv")}


class NotPartial(Exception):
    """A network that cannot be run in parts; the message says why."""


class PartialNet:
    """A supernet as a row of operations, each of which knows the groups that it follows.

    When one group is narrowed, an operation is either untouched; or its value is the leading part of what it was (the layer
    that produces the channels, and all that treats every channel by itself); or it is run again.

    Args:
        net: the supernet.
        example: inputs of it; two examples are enough.
        rules: the rules that its groups were found with.

    Attributes:
        bytes: memory of the values that `run` keeps, for one example at full width.

    Raises:
        NotPartial: its forward cannot be followed, writes into values that are read again, or gives another output in parts.
    """

    def __init__(self, net: Supernet, example, rules: Mapping | None = None):
        self.net = net
        try:
            traced = trace(net.source, example, {**RULES, **(rules or {})})
        except Untraceable as error:
            raise NotPartial(str(error)) from error
        self._nodes = list(traced.graphs["eval"].nodes)
        self._place = {node: i for i, node in enumerate(self._nodes)}
        self._check_writes()
        self._output = next(i for i, node in enumerate(self._nodes) if node.op == "output")
        self._sources = [[self._place[n] for n in node.all_input_nodes] for node in self._nodes]
        follows = self._follows()
        self._shared = self._shared_norms()
        self._again: dict[str, list[int]] = {}
        self._leading: dict[str, set[int]] = {}
        for index, group in enumerate(net.groups):
            changed = self._changed(follows, index)
            leading = self._leading_of(follows, index, changed)
            self._again[group.name] = [i for i in changed if i not in leading]
            self._leading[group.name] = leading
        self._kept = self._needed()
        self._dying = self._last_reads()
        self.bytes = self._bytes(traced.batch_size)
        self._macs: dict[tuple, int] = {}
        self._calls: dict[str, list] = {}
        for call in net.channels.calls:
            self._calls.setdefault(call.layer, []).append(call)
        self._check(example)

    def _check_writes(self) -> None:
        for i, node in enumerate(self._nodes):
            if _writes(node):
                written = next(iter(node.all_input_nodes), None)
                if written is None or written.op in ("placeholder", "get_attr") or any(self._place[u] > i for u in written.users):
                    raise NotPartial(f"{node.name} writes into a value that is read again")

    def _follows(self) -> list[set[int]]:
        """Return for every operation the groups that its own tensors and numbers follow."""
        channels, model = self.net.channels, self.net.model
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        of_tensor = {id(tensors[name]): _groups(axes) for name, axes in channels.tensors.items()}
        of_size: dict[str, set[int]] = {}
        for (path, _), row in channels.sizes.items():
            of_size.setdefault(path, set()).update(_groups(row))
        found = []
        for node in self._nodes:
            own: set[int] = set()
            if node.op == "get_attr":
                path, _, name = node.target.rpartition(".")
                owner = model.get_submodule(path)
                own |= of_tensor.get(id(owner._parameters.get(name, owner._buffers.get(name))), set())
            elif node.target is read_size:
                own |= of_size.get(node.args[0], set())
            elif node.op == "call_module":
                for path, module in model.get_submodule(node.target).named_modules(prefix=node.target):
                    own |= of_size.get(path, set())
                    for tensor in (*module._parameters.values(), *module._buffers.values()):
                        own |= of_tensor.get(id(tensor), set())
            found.append(own)
        return found

    def _shared_norms(self) -> list[set[int]]:
        """Return the operations of every norm with statistics that runs more than once."""
        users: dict[int, set[int]] = {}
        for i, node in enumerate(self._nodes):
            if node.op == "call_module":
                for module in self.net.model.get_submodule(node.target).modules():
                    if module._buffers.get("running_mean") is not None:
                        users.setdefault(id(module._buffers["running_mean"]), set()).add(i)
            elif node.op == "get_attr":
                path, _, name = node.target.rpartition(".")
                buffer = self.net.model.get_submodule(path)._buffers.get(name)
                if buffer is not None:
                    users.setdefault(id(buffer), set()).update(self._place[user] for user in node.users)
        return [nodes for nodes in users.values() if len(nodes) > 1]

    def _changed(self, follows: list[set[int]], group: int) -> list[int]:
        changed: set[int] = set()
        before = -1
        while before < len(changed):
            before = len(changed)
            for i, sources in enumerate(self._sources):
                if group in follows[i] or not changed.isdisjoint(sources):
                    changed.add(i)
            for nodes in self._shared:  # what one of them sees is in the statistics of all
                if not changed.isdisjoint(nodes):
                    changed |= nodes
        return sorted(changed)

    def _leading_of(self, follows: list[set[int]], group: int, changed: Sequence[int]) -> set[int]:
        touched, leading = set(changed), set()
        for i in changed:
            layer = self._layer(i)
            if layer is None or any(j in touched and j not in leading for j in self._sources[i]):
                continue
            if not isinstance(self._nodes[i].meta.get("value"), Tensor) or any(i in nodes for nodes in self._shared):
                continue
            kind = getattr(type(layer), "plain", type(layer))
            produces = touched.isdisjoint(self._sources[i])
            axes = {name: axes for name, axes in _axes(layer).items() if any(axes)}
            if not all(len(axis.runs) == 1 for row in axes.values() for axis in row if axis is not None):
                continue  # what stays active is not the leading part
            if kind in _CONVS and axes:
                inputs = axes["weight"][1]
                depthwise = 1 < layer.__dict__["groups"] == layer.__dict__["in_channels"]
                alone = inputs is None or group not in _groups([inputs.runs])
                if (produces and layer.__dict__["groups"] == 1 and alone) or (depthwise and not produces):
                    leading.add(i)
            elif kind in _BY_CHANNEL and not produces:
                leading.add(i)
        return leading

    def _layer(self, i: int) -> nn.Module | None:
        node = self._nodes[i]
        return self.net.model.get_submodule(node.target) if node.op == "call_module" else None

    def _needed(self) -> set[int]:
        """Return the operations whose values a later `again` may read."""
        needed: set[int] = set()
        for again in self._again.values():
            own = set(again)
            needed |= {j for i in again for j in self._sources[i] if j not in own}
        return needed | {self._output}

    def _last_reads(self) -> dict[int, list[int]]:
        """Return for every operation whose values nothing reads after it, nor any later `again`."""
        last = {j: i for i, sources in enumerate(self._sources) for j in sources}
        dying: dict[int, list[int]] = {}
        for j, i in last.items():
            if j not in self._kept:
                dying.setdefault(i, []).append(j)
        return dying

    def _bytes(self, examples: int) -> int:
        """Return the bytes of the kept values of one example at full width; what shares its memory is counted once."""
        sizes = {}
        for i in self._kept:
            for tensor in tree_leaves(self._nodes[i].meta.get("value")):
                if isinstance(tensor, Tensor) and self._nodes[i].op != "get_attr":
                    sizes[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return sum(sizes.values()) // examples

    @torch.inference_mode()
    def _check(self, example) -> None:
        """Run every group in parts once, next to the whole network: code may do what the graph does not show."""
        net, inputs = self.net, as_inputs(tree_map(lambda t: t[:2] if isinstance(t, Tensor) else t, example))
        with eval_mode(net), self.ready(), net.using(net.full()):
            values = self.run(inputs)
            if not _close(self.output(values), net(*inputs)):
                raise NotPartial("its graph gives another output than its forward")
            for width in net.widths:
                if len(width.choices) > 1:
                    width.value = width.choices[-2]
                    same = _close(self.again(width.name, values), net(*inputs))
                    width.value = width.full
                    if not same:
                        raise NotPartial(f"its output with a narrower {width.name} is another when it is run in parts")

    # Running ----------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """Let layers that work in place (`ReLU(inplace=True)`) make new values for the length of a `with` block."""
        changed = [m for m in self.net.model.modules() if m.__dict__.get("inplace") is True]
        for module in changed:
            module.inplace = False
        try:
            yield
        finally:
            for module in changed:
                module.inplace = True

    def run(self, inputs) -> dict[int, object]:
        """Run the network at the widths that are set; returns the values that `again` may read."""
        given = (leaf for leaf in tree_leaves(as_inputs(inputs)) if isinstance(leaf, Tensor))
        values: dict[int, object] = {}
        for i, node in enumerate(self._nodes):
            values[i] = next(given) if node.op == "placeholder" else self._run(i, values.__getitem__)
            for j in self._dying.get(i, ()):
                del values[j]
        return values

    def again(self, group: str, values: Mapping[int, object]):
        """Return the output at the widths that are set, which narrow one group of those that `values` were made at."""
        return self._value(group, values, self._rerun(group, values), self._output)

    def narrow(self, group: str, values: Mapping[int, object]) -> dict[int, object]:
        """Return what `run` returns at the widths that are set, which narrow one group of those that `values` were made at."""
        made = self._rerun(group, values)
        return {i: self._value(group, values, made, i) for i in values}

    def _rerun(self, group: str, values: Mapping[int, object]) -> dict[int, object]:
        made: dict[int, object] = {}
        for i in self._again[group]:
            made[i] = self._run(i, lambda j: self._value(group, values, made, j))
        return made

    def _value(self, group: str, values: Mapping[int, object], made: dict[int, object], i: int):
        if i not in made and i in self._leading[group]:
            # Laid out as a whole run has it, so that kernels add up in the same order, to the same digits.
            made[i] = values[i].narrow(1, 0, self._channels(i)).contiguous()
        return made[i] if i in made else values[i]

    def output(self, values: Mapping[int, object]):
        """Return the network's output among the values of a run."""
        return values[self._output]

    def _run(self, i: int, value):
        node = self._nodes[i]
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: value(self._place[source]))
        if node.op == "output":
            return args[0]
        if _writes(node):
            args = (args[0].clone(), *args[1:])
        return run_node(node, args, kwargs, self.net.model)

    def _channels(self, i: int) -> int:
        """Return the channels of a leading value at the widths that are set."""
        axes = [row[0] for row in _axes(self._layer(i)).values() if row and row[0] is not None]
        return axes[0].active() if axes else self._channels(self._sources[i][0])

    def macs(self, group: str | None = None) -> int:
        """Return the multiply-adds of one example, at the widths that are set: of all operations, or of those run again."""
        key = (group, *(w.value for w in self.net.widths))
        if key not in self._macs:
            if len(self._macs) > 1000:
                self._macs.clear()
            rows = range(len(self._nodes)) if group is None else self._again[group]
            layers = [self._nodes[i].target for i in rows if self._nodes[i].op == "call_module"]
            self._macs[key] = sum(call.macs(key[1:]) for layer in layers for call in self._calls.get(layer, ()))
        return self._macs[key]


def _axes(layer: nn.Module) -> dict[str, Sequence[ActiveAxis | None]]:
    return layer._slimming.axes if isinstance(layer, Slimmable) else {}


def _groups(rows) -> set[int]:
    """Return the groups of all runs in rows of axes, however deep they lie."""
    if hasattr(rows, "group"):
        return set() if rows.group is None else {rows.group}
    return set().union(*map(_groups, rows)) if isinstance(rows, (tuple, list)) else set()


def _writes(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target.endswith("_") and not node.target.endswith("__")
    return node.op == "call_function" and (
        node.target in _WRITERS or bool(node.kwargs.get("inplace")) or node.kwargs.get("out") is not None
    )


def _close(a, b) -> bool:
    left, right = ([t for t in tree_leaves(x) if isinstance(t, Tensor)] for x in (a, b))
    return len(left) == len(right) and all(
        x.shape == y.shape
        and torch.allclose(
            x.double(), y.double(), rtol=1e-3, atol=1e-4 * (1 + y.double().nan_to_num().abs().max().item()), equal_nan=True
        )
        for x, y in zip(left, right)
    )
