"""One pass over the graphs of a network: every tensor gets its channel axes, and what must be alike is tied."""

import operator

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from autoslim.channels.proxies import read_size
from autoslim.channels.rules.basics import Fixed, Frozen, no_axes
from autoslim.channels.rules.layers import LAYERS
from autoslim.channels.segments import Axis, Layout, Mismatch, Refine, Refinements, Segment, Ties, axis_size
from autoslim.channels.trace import Trace

OUTPUT = "the network's output"
_UNBOUND = "unbound"


class Weight:
    """A tensor that a layer multiplies or adds: one of the model's own, or one that code computed from them."""

    def __init__(self, flow: "Flow", node: fx.Node, layer: str, shape: torch.Size, axes: list):
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
        self._flow.ties.tie(self._axes[dim], axis, why)


class OwnWeight(Weight):
    """A parameter or buffer of the layer itself: an axis nobody has used yet takes what it is bound to."""

    def __init__(self, flow: "Flow", node: fx.Node, layer: str, shape: torch.Size, axes: list, name: str):
        super().__init__(flow, node, layer, shape, axes)
        self._name = name

    def axis(self, dim: int) -> Axis:
        """Return an axis of the tensor, which becomes one of its own if nobody has used it yet."""
        if self._axes[dim] is _UNBOUND:
            self._axes[dim] = self._flow.ties.variable((self._name, dim), self.shape[dim])
        return self._axes[dim]

    def bind(self, dim: int, axis: Axis) -> None:
        """Give an axis of the tensor the width of another axis."""
        if self._axes[dim] is _UNBOUND:
            self._axes[dim] = axis
        else:
            super().bind(dim, axis)


class Item:
    """An entry of a row of numbers that is a node of the graph."""

    def __init__(self, node: fx.Node, index: int):
        self.node = node
        self.index = index


class Flow:
    """One pass over the graphs of a network; what the rules see."""

    def __init__(self, traced: Trace, refinements: Refinements, rules: dict):
        self.ties = Ties(refinements)
        self.wanted: list[Refine] = []
        self.layouts: dict[fx.Node, object] = {}
        self.members: dict[str, list[Axis]] = {}
        self.sizes: dict[tuple[str, str, int | None], Axis] = {}
        self.calls: dict[fx.Node, tuple[str, list[int], list[Axis]]] = {}
        self.own_tensors: dict[str, list] = {}
        self.traced = traced
        self._refinements = refinements
        self._rules = rules
        self._module_names = {}
        for name, module in traced.modules.items():
            self._module_names.setdefault(id(module), name)
        root = traced.modules[""]
        self.named_tensors = {**dict(root.named_parameters()), **dict(root.named_buffers())}
        self._tensor_names = {id(tensor): name for name, tensor in self.named_tensors.items()}

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
        given = dict(zip(names, node.args)) | node.kwargs
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
            own = self._tensor_names[id(tensor)]
            return OwnWeight(self, node, self.name_of(node), tensor.shape, self._axes_of(own), own)
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
                    self._bind_size(node, (self._module_names[id(module)], name, index), one)
                elif self.is_row(given):
                    self.size(node, None, None, self.item(given, index), one)
            return
        if module is not None:
            if name in vars(module):
                self._bind_size(node, (self._module_names[id(module)], name, None), axis)
            return
        if axis is None:
            return
        place = self._attribute(given)
        if place is not None:
            self._bind_size(node, place, axis)
        else:
            other = self._shape_axis(given)
            if other is not None:
                self.ties.tie_sizes(other, axis)

    def blocks(self, axis: Axis, count: int) -> list[Axis]:
        """Split an axis into equal blocks that keep one width; `[None]` where finer parts must be known first."""
        try:
            return [None] if axis is None else self.ties.blocks(axis, count)
        except Refine as wanted:
            if not self._want(wanted):
                raise Mismatch from None
            return [None]

    def freedom(self, given) -> int:
        """Rank how free a size in the code is: 3 for -1, 2 where it is computed, 1 for a module's number, 0 if written out."""
        if isinstance(given, (fx.Node, Item)):
            return 1 if self._attribute(given) else 2
        return 3 if given == -1 else 0

    def layer(self, node: fx.Node, weight: Weight, out: Axis, positions: list[tuple[int, Axis]]) -> None:
        """Record a conv or linear layer: the channels it produces, and the axes over which its weight is applied."""
        self.ties.produce(out, weight.layer)
        if out is not None:
            self.members.setdefault(weight.layer, []).append(out)
        self.calls[node] = (weight.layer, [*positions, *((n, weight.axis(dim)) for dim, n in enumerate(weight.shape))])

    def member(self, node: fx.Node, axis: Axis) -> None:
        """Record that a norm's input, or a tensor of the model, has these channels."""
        named = [node.target] if node.op == "get_attr" else [n.target for n in node.all_input_nodes if n.op == "get_attr"]
        name = self.name_of(node) if node.op == "call_module" else layer_name(named[0]) if named else None
        if axis is not None and name is not None:
            self.members.setdefault(name, []).append(axis)

    def name_of(self, node: fx.Node) -> str:
        """Return the first name of the module that a node calls."""
        return self._module_names[id(self.traced.modules[node.target])]

    def describe(self, node: fx.Node, why: str) -> str:
        """Name an operation, why it freezes its channels, and its source line."""
        return f"{operation(node, self.traced.modules)}: {why} at {node.meta.get('where', '?')}"

    # Names and numbers ------------------------------------------------------------------------------------------------

    def _axes_of(self, name: str) -> list:
        return self.own_tensors.setdefault(name, [_UNBOUND] * self.named_tensors[name].dim())

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

    def _shape_axis(self, given) -> Axis:
        """Return the axis that a number is the size of: an entry of a shape, or an even part of one."""
        node, index = (given.node, given.index) if isinstance(given, Item) else (given, None)
        if not isinstance(node, fx.Node):
            return None
        if node.target is operator.floordiv and index is None:
            whole, count = self._shape_axis(node.args[0]), self.value(node.args[1])
            known = whole is not None and isinstance(count, int) and axis_size(whole) % count == 0
            return self.ties.blocks(whole, count)[0] if known else None
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

    # The pass ---------------------------------------------------------------------------------------------------------

    def run(self, size_bound: dict) -> None:
        """Give every node its layout; freeze what has no rule, the outputs, and the sources in `size_bound`."""
        for graph in self.traced.graphs.values():
            for node in graph.nodes:
                if node.op == "output":
                    self.freeze_inputs(node, OUTPUT)
                else:
                    self.layouts[node] = self._layout_of(node)
        for source, why in size_bound.items() if not self.wanted else ():
            self.ties.freeze((Segment(source, 1),), why)

    def _layout_of(self, node: fx.Node):
        value = node.meta["value"]
        if node.op == "placeholder" or node.target is read_size:
            return no_axes(value)
        if node.op == "get_attr":
            return self._layout_of_tensor(node)
        if not any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(value)):
            return None
        if isinstance(node.target, type) and issubclass(node.target, tuple):
            return [self.layouts.get(arg) for arg in node.args]
        try:
            return self._by_rule(node, value)
        except Refine as wanted:
            if self._want(wanted):
                return self._meanwhile(node, value)
            self._stop(node, "its inputs cannot be lined up channel by channel")
        except Frozen as stop:
            self._stop(node, str(stop))
        except Mismatch:
            self._stop(node, "its inputs cannot be lined up channel by channel")
        return no_axes(value)

    def _want(self, wanted: Refine) -> bool:
        """Take up a request for finer parts; the pass goes on only to collect more, its other findings are dropped."""
        new = self._refinements.add(wanted)
        if new:
            self.wanted.append(wanted)
        return new

    def _meanwhile(self, node: fx.Node, value):
        """Return a layout for the rest of a pass that is dropped."""
        for source in node.all_input_nodes if isinstance(value, torch.Tensor) else ():
            same = self.is_tensor(source) and self.value(source).shape == value.shape
            if same and isinstance(self.layouts[source], tuple) and any(self.layouts[source]):
                return self.layouts[source]
        return no_axes(value)

    def _stop(self, node: fx.Node, why: str) -> None:
        """Freeze what an operation reads."""
        why = self.describe(node, why)
        self.freeze_inputs(node, why)
        for name in self._names_in(node):
            self._fix(name, why)

    def _by_rule(self, node: fx.Node, value):
        module = self.traced.modules[node.target] if node.op == "call_module" else None
        rule = self.rule_of(node)
        if node.op == "call_module" and node.target in self.traced.opaque:
            raise Frozen(self.traced.opaque[node.target])
        if not self.moving_inputs(node) and not self.is_layer(node):
            if module is not None:
                self._stop(node, "no rule for this layer")
            return no_axes(value)
        if rule is None:
            raise Frozen("no rule for this operation")
        layout = rule(self, node, module)
        self._fix_unbound(node)
        return layout

    def _layout_of_tensor(self, node: fx.Node) -> Layout:
        tensor = node.meta["value"]
        name = self._tensor_names.get(id(tensor))
        if name is None or not tensor.is_floating_point():
            return no_axes(tensor)
        axes = self._axes_of(name)
        if not node.meta.get("read"):
            # Code that reaches a tensor by other ways than its attribute would get all of it.
            self._fix(name, self.describe(node, "a weight is read past its attribute"))
        for dim, size in enumerate(tensor.shape):
            if axes[dim] is _UNBOUND and size > 1:
                axes[dim] = self.ties.variable((name, dim), size)
        return tuple(None if axis is _UNBOUND else axis for axis in axes)

    def _fix(self, name: str, why: str) -> None:
        axes = self._axes_of(name)
        for dim, axis in enumerate(axes):
            if axis is _UNBOUND:
                axes[dim] = None
            else:
                self.ties.freeze(axis, why)

    def _fix_unbound(self, node: fx.Node) -> None:
        """Keep whole what a layer's rule has left unbound."""
        for name in self._names_in(node):
            axes = self._axes_of(name)
            axes[:] = [None if axis is _UNBOUND else axis for axis in axes]

    def _names_in(self, node: fx.Node) -> list[str]:
        """Name the tensors of the module that a node calls."""
        if node.op != "call_module":
            return []
        if "tensors" not in node.meta:
            module = self.traced.modules[node.target]
            node.meta["tensors"] = [self._tensor_names[id(t)] for t in (*module.parameters(), *module.buffers())]
        return node.meta["tensors"]

    def is_layer(self, node: fx.Node) -> bool:
        """Tell whether a node is a module whose own tensors a rule follows: its output has the width that the rule says."""
        if node.op != "call_module" or node.target in self.traced.opaque:
            return False
        module = self.traced.modules[node.target]
        kind = type(module)
        return kind in LAYERS or (kind in self._rules and bool(self._names_in(node)))

    def rule_of(self, node: fx.Node):
        """Return the rule of an operation, None where it has none."""
        return self._rules.get(type(self.traced.modules[node.target]) if node.op == "call_module" else node.target)

    def moving_inputs(self, node: fx.Node) -> list[Axis]:
        """Return the axes that can move among the inputs of a node."""
        return [axis for source in node.all_input_nodes for axis in axes_in(self.layouts.get(source))]

    def freeze_inputs(self, node: fx.Node, why: str) -> None:
        """Freeze whatever can move among the inputs of a node."""
        for axis in self.moving_inputs(node):
            self.ties.freeze(axis, why)


def layer_name(tensor: str) -> str:
    """Return the layer that a tensor belongs to: `a.b` for `a.b.weight`, the tensor's own name for one of its own kind."""
    owner, _, own = tensor.rpartition(".")
    if ".parametrizations." in f".{tensor}":
        return tensor.partition(".parametrizations.")[0]
    if owner and own in ("weight", "bias", "weight_g", "weight_v", "running_mean", "running_var"):
        return owner
    return tensor


def axes_in(layout) -> list[tuple[Segment, ...]]:
    """Return the axes that can move in a layout or in nested layouts."""
    if layout is None or isinstance(layout, Fixed):
        return []
    if isinstance(layout, Segment):
        raise AssertionError("a layout holds axes, not segments")
    if isinstance(layout, dict):
        return [axis for item in layout.values() for axis in axes_in(item)]
    if all(item is None or (isinstance(item, tuple) and item and isinstance(item[0], Segment)) for item in layout):
        return [axis for axis in layout if axis is not None]
    return [axis for item in layout for axis in axes_in(item)]


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
