"""What the rules see of a network: values, layouts, weights and numbers, and what they record."""

import operator

import torch
from torch import fx, nn

from autoslim.channels.proxies import read_size
from autoslim.channels.rules.basics import Frozen
from autoslim.channels.segments import FIXED, Axis, Layout, Mismatch, Refine, Refinements, Source, Ties, axis_size
from autoslim.channels.trace import Trace

_NUMPY = {"axis": "dim", "keepdims": "keepdim"}  # names that torch takes, too
# An axis of a tensor of the model that no operation has used yet.
UNBOUND = "unbound"


class Weight:
    """A tensor that a layer multiplies or adds: one of the model's own, or one that code computed from them."""

    def __init__(self, flow: "Facts", node: fx.Node, layer: str, shape: torch.Size, axes: list):
        self.layer = layer
        self.shape = shape
        self._flow = flow
        self._node = node
        self._axes = axes

    def axis(self, dim: int) -> Axis:
        """Return an axis of the tensor."""
        return self._axes[dim]

    def bind(self, dim: int, axis: Axis) -> None:
        """Give an axis of the tensor the width of another axis."""
        why = self._flow.describe(self._node, "its weights are used at two places or have a fixed width")
        try:
            self._flow.ties.tie(self._axes[dim], axis, why)
        except Refine as wanted:
            if not self._flow.want(wanted):
                raise


class OwnWeight(Weight):
    """A parameter or buffer of the layer itself: an axis nobody has used yet takes what it is bound to."""

    def __init__(self, flow: "Facts", node: fx.Node, layer: str, shape: torch.Size, axes: list, name: str):
        super().__init__(flow, node, layer, shape, axes)
        self._name = name

    def axis(self, dim: int) -> Axis:
        """Return an axis of the tensor, which becomes one of its own if nobody has used it yet."""
        if self._axes[dim] is UNBOUND:
            self._axes[dim] = self._flow.ties.variable((self._name, dim), self.shape[dim])
        return self._axes[dim]

    def bind(self, dim: int, axis: Axis) -> None:
        """Give an axis of the tensor the width of another axis."""
        if self._axes[dim] is UNBOUND:
            self._axes[dim] = axis
        else:
            super().bind(dim, axis)


class Item:
    """An entry of a row of numbers that is a node of the graph."""

    def __init__(self, node: fx.Node, index: int):
        self.node = node
        self.index = index


class Facts:
    """What is known in one pass over the graphs of a network; rules ask it, and tell it what they find."""

    def __init__(self, traced: Trace, refinements: Refinements, rules: dict):
        self.ties = Ties(refinements)
        self.wanted: list[Refine] = []
        self.layouts: dict[fx.Node, object] = {}
        self.members: dict[str, list[Axis]] = {}
        self.sizes: dict[tuple[str, str, int | None], Axis] = {}
        self.branches: dict[str, None] = {}  # lines of forward whose branches are others at some widths
        self.calls: dict[fx.Node, tuple[str, list[tuple[int, Axis]]]] = {}
        self.own_tensors: dict[str, list] = {}
        self.repeats: dict[Source, int] = {}
        self.traced = traced
        self._refinements = refinements
        self.rules = rules
        self.module_names = {}
        for name, module in traced.modules.items():
            self.module_names.setdefault(id(module), name)
        root = traced.modules[""]
        self.named_tensors = {**dict(root.named_parameters()), **dict(root.named_buffers())}
        self.tensor_names = {id(tensor): name for name, tensor in self.named_tensors.items()}

    # What the rules ask -----------------------------------------------------------------------------------------------

    def value(self, node):
        """Return the meta tensor (or plain value) that an argument had when the network was traced."""
        if isinstance(node, Item):
            return node.node.meta["value"][node.index]
        return node.meta["value"] if isinstance(node, fx.Node) else node

    def plain(self, value) -> int:
        """Return an argument as a plain integer."""
        return int(self.value(value))

    def is_tensor(self, node) -> bool:
        """Tell whether an argument is a tensor of the graph."""
        return isinstance(node, fx.Node) and isinstance(node.meta.get("value"), torch.Tensor)

    def is_row(self, given) -> bool:
        """Tell whether an argument is a row of numbers."""
        return isinstance(self.value(given), (tuple, list))

    def item(self, row, index: int):
        """Return an entry of a row of numbers, which is a row in the graph or a node that is one."""
        return Item(row, index) if isinstance(row, fx.Node) else row[index]

    def first(self, node: fx.Node):
        """Return the first argument of a node."""
        return node.args[0] if node.args else next(iter(node.kwargs.values()))

    def arguments(self, node: fx.Node, *names: str) -> dict:
        """Return the arguments that a node is given, by name."""
        given = dict(zip(names, node.args)) | {_NUMPY.get(name, name): value for name, value in node.kwargs.items()}
        given.setdefault(names[0], given.get("self"))
        return given

    def layout(self, node: fx.Node) -> Layout:
        """Return the layout of a tensor node."""
        layout = self.layouts[node]
        if not isinstance(layout, tuple):
            raise Frozen("its input is no tensor")
        return layout

    def tensors(self, nodes) -> tuple[list[Layout], list]:
        """Return the layouts and values of a list of tensors, given as a list of nodes or as a node that is a list."""
        if isinstance(nodes, fx.Node):
            return list(self.layouts[nodes]), list(self.value(nodes))
        return [self.layout(node) for node in nodes], [self.value(node) for node in nodes]

    def weight(self, node: fx.Node, module: nn.Module | None, name: str, given=None) -> Weight | None:
        """Return a tensor of the layer `module`, or the one given to a function; None where there is none."""
        if module is not None:
            tensor = getattr(module, name, None)
            if not isinstance(tensor, torch.Tensor):
                return None
            own = self.tensor_names[id(tensor)]
            return OwnWeight(self, node, self.name_of(node), tensor.shape, self.axes_of(own), own)
        if not self.is_tensor(given):
            return None
        return Weight(self, node, _origin(given), self.value(given).shape, list(self.layout(given)))

    def size(self, node: fx.Node, module: nn.Module | None, name: str | None, given, axis) -> None:
        """Note that a number is the size of an axis (or a row of numbers those of several axes).

        The number is attribute `name` of `module`, or the argument `given`, which may come from an attribute of a module
        or from the shape of another tensor.
        """
        if isinstance(axis, list):
            for index, one in enumerate(axis):
                if module is not None:
                    self._bind_size(node, (self.module_names[id(module)], name, index), one)
                elif self.is_row(given):
                    self.size(node, None, None, self.item(given, index), one)
            return
        if module is not None:
            if name in vars(module):
                self._bind_size(node, (self.module_names[id(module)], name, None), axis)
            return
        if axis is None:
            return
        place = self._attribute(given)
        if place is not None:
            self._bind_size(node, place, axis)
            return
        node_of, index = (given.node, given.index) if isinstance(given, Item) else (given, None)
        if isinstance(node_of, fx.Node) and index is None and node_of.target in (operator.floordiv, operator.mul):
            whole, count = node_of.args[0], self.value(node_of.args[1])
            if isinstance(whole, fx.Node) and isinstance(count, int) and count > 0:
                part = axis * count if node_of.target is operator.floordiv else self.blocks(axis, count)[0]
                exact = self.value(whole) == sum(s.size for s in part or ())
                return self.size(node, None, None, whole, part) if exact else None
        if isinstance(node_of, fx.Node) and index is None and node_of.target is operator.sub:
            whole, less = node_of.args
            known = self.sizes.get(self._attribute(less) or ())
            exact = known is not None and axis_size(known) == self.value(less)
            return self.size(node, None, None, whole, known + axis) if exact else None
        other = self.shape_axis(given)
        if other is not None:
            self.ties.tie_sizes(other, axis)

    def blocks(self, axis: Axis, count: int) -> list[Axis]:
        """Split an axis into equal blocks that keep one width; `[None]` where finer parts must be known first."""
        try:
            return [None] if axis is None else self.ties.blocks(axis, count)
        except Refine as wanted:
            if not self.want(wanted):
                raise Mismatch from None
            return [None]

    def freedom(self, given) -> int:
        """Rank how free a size in the code is: 3 for -1, 2 where it follows from a tensor's shape, 1 for a module's number or
        what is computed from such, 0 if written out."""
        if isinstance(given, Item):
            given = given.node
        if not isinstance(given, fx.Node):
            return 3 if given == -1 else 0
        todo = [given]
        while todo:
            node = todo.pop()
            if self.is_tensor(node):
                return 2
            todo += node.all_input_nodes
        return 1

    def layer(self, node: fx.Node, weight: Weight, out: Axis, positions: list[tuple[int, Axis]]) -> Axis:
        """Record a conv or linear layer: the channels it produces, and the axes over which its weight is applied.

        Returns the channels as an axis that can move: None where there is but one.
        """
        self.ties.produce(out, weight.layer)
        for segment in out or ():
            if segment.source is not FIXED:
                # A grouped transposed convolution repeats its weight's channels in every group.
                self.repeats.setdefault(segment.source, sum(s.source == segment.source for s in out))
        if out is not None:
            self.members.setdefault(weight.layer, []).append(out)
        self.calls[node] = (weight.layer, [*positions, *((n, weight.axis(dim)) for dim, n in enumerate(weight.shape))])
        if out is not None and axis_size(out) == 1:
            self.ties.freeze(out, "it has one channel")
            return None
        return out

    def member(self, node: fx.Node, axis: Axis) -> None:
        """Record that a norm's input, or a tensor of the model, has these channels."""
        named = [node.target] if node.op == "get_attr" else [n.target for n in node.all_input_nodes if n.op == "get_attr"]
        name = self.name_of(node) if node.op == "call_module" else layer_name(named[0]) if named else None
        if axis is not None and name is not None:
            self.members.setdefault(name, []).append(axis)

    def own_tensor(self, node: fx.Node) -> fx.Node | None:
        """Return the one tensor of the model that a value was computed from alone; None where there is more to it."""
        found, todo = set(), [node]
        while todo:
            source = todo.pop()
            if source.op == "placeholder" or source.op == "call_module":
                return None
            if source.op == "get_attr":
                found.add(source)
            todo += source.all_input_nodes
        return found.pop() if len(found) == 1 else None

    def name_of(self, node: fx.Node) -> str:
        """Return the first name of the module that a node calls."""
        return self.module_names[id(self.traced.modules[node.target])]

    def describe(self, node: fx.Node, why: str) -> str:
        """Name an operation, why it freezes its channels, and its source line."""
        return f"{operation(node, self.traced.modules)}: {why} at {node.meta.get('where', '?')}"

    # Names and numbers ------------------------------------------------------------------------------------------------

    def axes_of(self, name: str) -> list:
        """Return the axes of a tensor of the model, to be read and bound."""
        return self.own_tensors.setdefault(name, [UNBOUND] * self.named_tensors[name].dim())

    def _attribute(self, given) -> tuple[str, str, int | None] | None:
        """Return the module, attribute and position that a number was read from."""
        node, index = (given.node, given.index) if isinstance(given, Item) else (given, None)
        if not isinstance(node, fx.Node):
            return None
        if node.target is operator.getitem and index is None and isinstance(node.args[1], int):
            node, index = node.args
        if isinstance(node, fx.Node) and node.target is read_size:
            length = len(self.value(node)) if self.is_row(node) else None
            return (*node.args, index if index is None or length is None else index % length)
        return None

    def shape_axis(self, given) -> Axis:
        """Return the axis that a number is the size of: an entry of a shape, or an even part of one."""
        node, index = (given.node, given.index) if isinstance(given, Item) else (given, None)
        if not isinstance(node, fx.Node):
            return None
        if node.target is operator.getitem and index is None:
            node, index = node.args
        if not isinstance(node, fx.Node):
            return None
        if node.op == "call_method" and node.target == "size" and index is None and len(node.args) > 1:
            node, index = node.args[0], node.args[1]
        elif (node.op == "call_method" and node.target == "size") or (node.target is getattr and node.args[1] == "shape"):
            node = node.args[0]
        else:
            return None
        return self.layout(node)[index] if isinstance(index, int) and self.is_tensor(node) else None

    def _bind_size(self, node: fx.Node, place: tuple[str, str, int | None], axis: Axis) -> None:
        if place in self.sizes:
            self.ties.tie(self.sizes[place], axis, self.describe(node, f"{place[1]} of the module is used as two sizes"))
        self.sizes[place] = self.sizes.get(place) or axis

    def want(self, wanted: Refine) -> bool:
        """Take up a request for finer parts; the pass goes on only to collect more, its other findings are dropped."""
        new = self._refinements.add(wanted)
        if new:
            self.wanted.append(wanted)
        return new


def layer_name(tensor: str) -> str:
    """Return the layer that a tensor belongs to: `a.b` for `a.b.weight`, the tensor's own name for one of its own kind."""
    owner, _, own = tensor.rpartition(".")
    if ".parametrizations." in f".{tensor}":
        return tensor.partition(".parametrizations.")[0]
    if owner and own in ("weight", "bias", "weight_g", "weight_v", "running_mean", "running_var"):
        return owner
    return tensor


def _origin(node: fx.Node) -> str:
    """Name the layer whose tensor a weight was computed from."""
    todo, seen = [node], set()
    while todo:
        source = todo.pop()
        if source.op == "get_attr":
            return layer_name(source.target)
        if source not in seen:
            seen.add(source)
            todo += reversed(source.all_input_nodes)
    return node.name


def operation(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    """Name an operation as a reader of the code would."""
    if node.op == "call_module":
        return f"{type(modules[node.target]).__name__} {node.target}"
    return str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
