"""One pass over the graphs of a network: every tensor gets its channel axes, and what must be alike is tied."""

import dataclasses
import operator

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from autoslim.channels.facts import UNBOUND, Facts
from autoslim.channels.proxies import read_size
from autoslim.channels.rules.basics import Fixed, Frozen, no_axes
from autoslim.channels.rules.layers import CONV_FUNCTIONS, LAYERS
from autoslim.channels.rules.table import RULES
from autoslim.channels.segments import Axis, Layout, Mismatch, Refine, Refinements, Segment
from autoslim.channels.trace import Trace
from autoslim.channels.where import told

OUTPUT = "the network's output"


class Flow(Facts):
    """One pass over the graphs of a network."""

    def __init__(self, traced: Trace, refinements: Refinements, rules: dict):
        super().__init__(traced, refinements, rules)
        self._kernels = {name for graph in traced.graphs.values() for name in _kernels(graph)}

    def run(self, size_bound: dict) -> None:
        """Give every node its layout; freeze what has no rule, the outputs, and the sources in `size_bound`."""
        for graph in self.traced.graphs.values():
            for node in graph.nodes:
                if node.op == "output":
                    self.freeze_inputs(node, OUTPUT)
                else:
                    self.layouts[node] = self._layout_of(node)
        self.ties.settle()
        for source, why in size_bound.items() if not self.wanted else ():
            self.ties.freeze((Segment(source, 1),), why)

    def _layout_of(self, node: fx.Node):
        value = node.meta["value"]
        if node.op == "placeholder" or node.target is read_size:
            return no_axes(value)
        if node.op == "get_attr":
            return self._layout_of_tensor(node)
        if dataclasses.is_dataclass(node.target):
            self._stop(node, "it goes into an object, whose fields are not followed")
        if not any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(value)):
            if node.op == "call_module":
                self._stop(node, self.traced.opaque.get(node.target, "it gives no tensor"))
            try:
                self._read_equality(node)
            except Refine as wanted:
                self.want(wanted)  # where it is not new, the number stays what it is
            return None
        if isinstance(node.target, type) and issubclass(node.target, tuple):
            return [self.layouts.get(arg) for arg in node.args]
        try:
            return self._by_rule(node, value)
        except Refine as wanted:
            if self.want(wanted):
                return self._meanwhile(node, value)
            self._stop(node, "its inputs cannot be lined up channel by channel")
        except Frozen as stop:
            self._stop(node, str(stop))
        except Mismatch:
            self._stop(node, "its inputs cannot be lined up channel by channel")
        except (TypeError, KeyError, ValueError, IndexError, AttributeError) as error:  # an argument as no rule expects it
            self._stop(node, f"its rule does not take this call ({told(error)})")
        return no_axes(value)

    def _read_equality(self, node: fx.Node) -> None:
        """Take a number that a module keeps, and that a branch of its forward finds to be an axis' size, for that size."""
        holds = {operator.eq: True, operator.ne: False}.get(node.target)
        if holds is None or not node.meta.get("decided") or node.meta["value"] is not holds:
            return
        for number, size in (node.args, node.args[::-1]):
            if isinstance(number, fx.Node) and self._attribute(number) and (axis := self.shape_axis(size)):
                self.size(node, None, None, number, axis)

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
        self._keep_written(node)
        self._fix_unbound(node)
        return layout

    def _keep_written(self, node: fx.Node) -> None:
        """Keep a tensor of the model whole that a method writes to: what one width leaves there, another would read."""
        in_place = node.op == "call_method" and node.target.endswith("_") and not node.target.endswith("__")
        if in_place and self.first(node).op == "get_attr":
            why = self.describe(node, "a tensor that is kept is written to, which no width can share")
            self._fix(self.first(node).target, why)
            self.freeze_inputs(node, why)

    def _layout_of_tensor(self, node: fx.Node) -> Layout:
        tensor = node.meta["value"]
        name = self.tensor_names.get(id(tensor))
        if name is None or not tensor.is_floating_point():
            return no_axes(tensor)
        axes = self.axes_of(name)
        if not node.meta.get("read"):
            # Code that reaches a tensor by other ways than its attribute would get all of it.
            self._fix(name, self.describe(node, "a weight is read past its attribute"))
        for dim, size in enumerate(tensor.shape):
            if name in self._kernels and dim >= 2:
                axes[dim] = None
            elif axes[dim] is UNBOUND and size > 1:
                axes[dim] = self.ties.variable((name, dim), size)
        return tuple(None if axis is UNBOUND else axis for axis in axes)

    def _fix(self, name: str, why: str) -> None:
        axes = self.axes_of(name)
        for dim, axis in enumerate(axes):
            if axis is UNBOUND:
                axes[dim] = None
            else:
                self.ties.freeze(axis, why)

    def _fix_unbound(self, node: fx.Node) -> None:
        """Keep whole what a layer's rule has left unbound."""
        for name in self._names_in(node):
            axes = self.axes_of(name)
            axes[:] = [None if axis is UNBOUND else axis for axis in axes]

    def _names_in(self, node: fx.Node) -> list[str]:
        """Name the tensors of the module that a node calls."""
        if node.op != "call_module":
            return []
        if "tensors" not in node.meta:
            module = self.traced.modules[node.target]
            node.meta["tensors"] = [self.tensor_names[id(t)] for t in (*module.parameters(), *module.buffers())]
        return node.meta["tensors"]

    def is_layer(self, node: fx.Node) -> bool:
        """Tell whether a node is a layer, of torch or with a rule of its user: its output has the width that the rule says."""
        if node.op != "call_module" or node.target in self.traced.opaque:
            return False
        module = self.traced.modules[node.target]
        kind = type(module)
        return kind in LAYERS or (kind in self.rules and kind not in RULES)

    def rule_of(self, node: fx.Node):
        """Return the rule of an operation, None where it has none."""
        return self.rules.get(type(self.traced.modules[node.target]) if node.op == "call_module" else node.target)

    def moving_inputs(self, node: fx.Node) -> list[Axis]:
        """Return the axes that can move among the inputs of a node."""
        return [axis for source in node.all_input_nodes for axis in axes_in(self.layouts.get(source))]

    def freeze_inputs(self, node: fx.Node, why: str) -> None:
        """Freeze whatever can move among the inputs of a node."""
        for axis in self.moving_inputs(node):
            self.ties.freeze(axis, why)


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


def _kernels(graph: fx.Graph) -> set[str]:
    """Name the tensors that become weights of functional convolutions: only their first two axes hold channels."""
    found, seen = set(), set()
    todo = [(n.args[1], n.args[1].meta["value"].shape) for n in graph.nodes if n.target in CONV_FUNCTIONS and len(n.args) > 1]
    while todo:
        node, shape = todo.pop()
        if node not in seen:
            seen.add(node)
            if node.op == "get_attr" and node.meta["value"].shape == shape:
                found.add(node.target)
            todo += [(source, shape) for source in node.all_input_nodes]
    return found
