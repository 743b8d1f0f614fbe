"""What narrowing one group changes in the graph of a supernet."""

from collections.abc import Collection, Sequence

import torch.nn.functional as F
from torch import Tensor, fx, nn

from autoslim.channels.proxies import read_size
from autoslim.slimmable.layers import ActiveAxis, Slimmable
from autoslim.slimmable.supernet import Supernet

_CONVS = {nn.Conv1d, nn.Conv2d, nn.Conv3d}
_NORMS = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm}
# Layers that treat every channel by itself.
_BY_CHANNEL = _NORMS | {
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh,
    nn.Identity, nn.Dropout, nn.Dropout2d, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
}  # fmt: skip


class Influence:
    """The operations of a network, and which of them follow the width of a group.

    When one group is narrowed, an operation is either untouched; or its value is the leading part of what it was (the layer
    that produces the channels, and all that treats every channel by itself); or it is another. That holds whatever the widths
    of the other groups are.

    Args:
        net: the supernet.
        nodes: the operations of its graph, in order; they are known by their places in it.

    Attributes:
        place: of an operation, by its node.
        sources: operations whose values each operation reads.
        shared: for an operation of a norm with statistics that runs more than once, all operations of that norm.
        changed: operations whose values a group changes, by its name.
        leading: those of them whose values are the leading part of what they were.
        frontiers: operations whose values are read by what has to be run again.
        origins: operations whose values are read by what a group changes, and that it does not change.
    """

    def __init__(self, net: Supernet, nodes: Sequence[fx.Node]):
        self._net = net
        self._nodes = nodes
        self.place = {node: i for i, node in enumerate(nodes)}
        self.sources = [[self.place[n] for n in node.all_input_nodes] for node in nodes]
        self.shared = {i: nodes for nodes in self._shared_norms() for i in nodes}
        self.changed: dict[str, set[int]] = {}
        self.leading: dict[str, set[int]] = {}
        self.frontiers: dict[str, frozenset[int]] = {}
        self.origins: dict[str, frozenset[int]] = {}
        follows = self._follows()
        for index, group in enumerate(net.groups):
            self.changed[group.name] = self._changed_by(follows, index)
            self.origins[group.name] = self._read_by(self.changed[group.name])
            self.run_again(group.name)

    def run_again(self, group: str, operations: Collection[int] = ()) -> None:
        """Take none of some operations, nor what reads their values, for the leading part of what it was."""
        self.leading[group] = self._find_leading(group, operations)
        self.frontiers[group] = self._read_by(self.again(group))

    def leading_of(self, group: str | None) -> Collection[int]:
        """Return the leading operations of a group; none for the base, which narrows nothing."""
        return self.leading[group] if group else ()

    def again(self, group: str) -> set[int]:
        """Return the operations that have to be run again when a group is narrowed."""
        return self.changed[group] - self.leading[group]

    def channels(self, i: int) -> int:
        """Return the channels of a leading value at the widths that are set."""
        while not (axes := [row[0] for row in _axes(self._layer(i)).values() if row and row[0] is not None]):
            i = self.sources[i][0]
        return axes[0].active()

    def _follows(self) -> list[set[int]]:
        """Return for every operation the groups that its own tensors and numbers follow."""
        channels, model = self._net.channels, self._net.model
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
        """Return sets of operations that read or make the same statistics, where those are several operations."""
        users: dict[int, set[int]] = {}
        for i, node in enumerate(self._nodes):
            if node.op == "call_module":
                for module in self._net.model.get_submodule(node.target).modules():
                    if module._buffers.get("running_mean") is not None:
                        users.setdefault(id(module._buffers["running_mean"]), set()).add(i)
            elif node.op == "get_attr":
                path, _, name = node.target.rpartition(".")
                buffer = self._net.model.get_submodule(path)._buffers.get(name)
                norms = [self.place[user] for user in node.users if user.target is F.batch_norm]
                if buffer is not None and norms:
                    users.setdefault(id(buffer), set()).update((i, *norms))
        sets: list[set[int]] = []
        for nodes in users.values():  # a function takes mean and variance
            apart = [other for other in sets if other.isdisjoint(nodes)]
            sets = [*apart, nodes.union(*(other for other in sets if other not in apart))]
        return [nodes for nodes in sets if len(nodes) > 1]

    def _changed_by(self, follows: list[set[int]], group: int) -> set[int]:
        changed: set[int] = set()
        before = -1
        while before < len(changed):
            before = len(changed)
            for i, sources in enumerate(self.sources):
                if group in follows[i] or not changed.isdisjoint(sources):
                    changed.add(i)
            for nodes in self.shared.values():  # what one of them sees is in the statistics of all
                if not changed.isdisjoint(nodes):
                    changed |= nodes
        return changed

    def _find_leading(self, name: str, never: Collection[int]) -> set[int]:
        group = next(i for i, each in enumerate(self._net.groups) if each.name == name)
        touched, leading = self.changed[name], set()
        for i in sorted(touched - set(never)):
            layer = self._layer(i)
            if layer is None or any(j in touched and j not in leading for j in self.sources[i]):
                continue
            if not isinstance(self._nodes[i].meta.get("value"), Tensor) or i in self.shared:
                continue
            if has_own_code(layer):
                continue  # which may mix channels
            kind = getattr(type(layer), "plain", type(layer))
            produces = touched.isdisjoint(self.sources[i])
            axes = {name: axes for name, axes in _axes(layer).items() if any(axes)}
            if not all(len(axis.runs) == 1 for row in axes.values() for axis in row if axis is not None):
                continue  # what stays active is not the leading part
            if kind in _CONVS and axes:
                inputs = axes["weight"][1]
                depthwise = 1 < layer.__dict__["groups"] == layer.__dict__["in_channels"]
                alone = inputs is None or group not in _groups([inputs.runs])
                # For maps of one pixel, the order in which kernels add up depends on the width.
                one_pixel = max(self._nodes[i].meta["value"].shape[2:], default=1) == 1
                if not one_pixel and ((produces and layer.__dict__["groups"] == 1 and alone) or (depthwise and not produces)):
                    leading.add(i)
            elif kind in _BY_CHANNEL and not produces:
                leading.add(i)
        return leading

    def _layer(self, i: int) -> nn.Module | None:
        node = self._nodes[i]
        return self._net.model.get_submodule(node.target) if node.op == "call_module" else None

    def _read_by(self, nodes: set[int]) -> frozenset[int]:
        return frozenset(j for i in nodes for j in self.sources[i] if j not in nodes)


def has_own_code(layer: nn.Module) -> bool:
    """Tell whether hooks, or a forward of its own, were put into a layer."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer))


def _axes(layer: nn.Module) -> dict[str, Sequence[ActiveAxis | None]]:
    return layer._slimming.axes if isinstance(layer, Slimmable) else {}


def _groups(rows) -> set[int]:
    """Return the groups of all runs in rows of axes, however deep they lie."""
    if hasattr(rows, "group"):
        return set() if rows.group is None else {rows.group}
    return set().union(*map(_groups, rows)) if isinstance(rows, (tuple, list)) else set()
