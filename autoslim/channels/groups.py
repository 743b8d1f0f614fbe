"""Find the channel groups of a network: follow every tensor's channels through the traced graphs."""

import math
import random

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from autoslim.channels.map import ChannelGroup, ChannelMap, LayerCall, LayerChannels, Run
from autoslim.channels.rules import LAYERS, RULES, Fixed, Frozen, no_axes
from autoslim.channels.segments import FIXED, Axis, Layout, Mismatch, NeedCut, Segment, Ties
from autoslim.channels.trace import Trace, run_node, trace


def find_groups(model: nn.Module, example) -> ChannelMap:
    """Find which channels of `model` must share a width, and which cannot be slimmed and why.

    Args:
        model: a network; it is neither run, moved nor changed.
        example: one input `[N, C, ...]` or a tuple of the positional inputs.

    Raises:
        ModelError: the network's forward cannot be traced.
    """
    traced = trace(model, example)
    cuts: dict[str, set[int]] = {}
    size_bound: dict[tuple[str, int], str] = {}
    while True:
        flow = Flow(traced, cuts)
        flow.run(size_bound)
        if flow.cuts:
            for need in flow.cuts:
                cuts.setdefault(need.producer, set()).update(need.offsets)
            continue
        wrong = flow.check_sizes()
        if not wrong:
            return flow.result()
        size_bound.update(wrong)


class Flow:
    """One pass over the graphs of a network; what the rules see."""

    def __init__(self, traced: Trace, cuts: dict[str, set[int]]):
        self.ties = Ties(cuts)
        self.cuts: list[NeedCut] = []
        self.layouts: dict[fx.Node, object] = {}
        self._traced = traced
        self._uses: dict[str, tuple[nn.Module, Axis, Axis]] = {}
        self._owners: dict[int, str] = {}
        self._names = {id(module): name for name, module in traced.modules.items()}

    # What the rules ask -----------------------------------------------------------------------------------------------

    def value(self, node):
        """Return the meta tensor (or plain value) that a node had when the network was traced."""
        return node.meta["value"] if isinstance(node, fx.Node) else node

    def plain(self, value) -> int:
        """Return an argument as a plain integer."""
        return int(self.value(value))

    def is_tensor(self, node) -> bool:
        """Tell whether an argument is a tensor of the graph."""
        return isinstance(node, fx.Node) and isinstance(node.meta.get("value"), torch.Tensor)

    def first(self, node: fx.Node):
        """Return the first argument of a node."""
        return node.args[0] if node.args else next(iter(node.kwargs.values()))

    def layout(self, node: fx.Node) -> Layout:
        """Return the layout of a tensor node."""
        return self.layouts[node]

    def tensors(self, nodes) -> tuple[list[Layout], list]:
        """Return the layouts and values of a list of tensors, given as a list of nodes or as a node that is a list."""
        if isinstance(nodes, fx.Node):
            return list(self.layouts[nodes]), list(self.value(nodes))
        return [self.layout(node) for node in nodes], [self.value(node) for node in nodes]

    def produce(self, target: str, channels: int) -> tuple[Segment, ...]:
        """Return the output axis of a layer that produces channels of its own."""
        return self.ties.produce(self._layer_name(target), channels)

    def use(self, node: fx.Node, module: nn.Module, inputs: Axis, outputs: Axis) -> None:
        """Record the channel axes of a layer; a layer that is used again must see the same widths."""
        name = self._layer_name(node.target)
        # Two layers that share one weight are one layer here.
        owner = self._owners.setdefault(id(module.weight), name) if module.weight is not None else name
        for earlier in {name, owner} & self._uses.keys():
            _, earlier_in, earlier_out = self._uses[earlier]
            why = self.describe(node, "its weights are used at two places")
            self.ties.tie(earlier_in, inputs, why)
            self.ties.tie(earlier_out, outputs, why)
            inputs, outputs = earlier_in or inputs, earlier_out or outputs
        self._uses[name] = (module, inputs, outputs)

    def describe(self, node: fx.Node, why: str) -> str:
        """Name an operation, why it freezes its channels, and its source line."""
        return f"{_operation(node, self._traced.modules)}: {why} at {node.meta.get('where', '?')}"

    def _layer_name(self, target: str) -> str:
        return self._names[id(self._traced.modules[target])] if target in self._traced.modules else target

    # The pass ---------------------------------------------------------------------------------------------------------

    def run(self, size_bound: dict[tuple[str, int], str]) -> None:
        """Give every node its layout; freeze what has no rule, the outputs, and the sources in `size_bound`."""
        for graph in self._traced.graphs.values():
            for node in graph.nodes:
                if node.op == "output":
                    self._freeze_inputs(node, "the network's output")
                else:
                    self.layouts[node] = self._layout_of(node)
        self._freeze_read_weights()
        for source, why in size_bound.items() if not self.cuts else ():
            self.ties.freeze((Segment(source, 1),), why)

    def _freeze_read_weights(self) -> None:
        """Freeze the layers whose tensors are read by other code too, which expects them whole."""
        for node in (n for graph in self._traced.graphs.values() for n in graph.nodes if n.op == "get_attr"):
            why = self.describe(node, "a weight of a layer is read outside of the layer")
            for module, inputs, outputs in self._uses.values():
                if any(node.meta["value"] is t for t in (*module._parameters.values(), *module._buffers.values())):
                    self.ties.freeze(inputs, why)
                    self.ties.freeze(outputs, why)

    def _layout_of(self, node: fx.Node):
        value = node.meta["value"]
        if node.op in ("placeholder", "get_attr") or not self._moving_inputs(node) and not self._is_layer(node):
            return no_axes(value)
        if isinstance(node.target, type) and issubclass(node.target, tuple):
            return [self.layouts.get(arg) for arg in node.args]
        module = self._traced.modules.get(node.target) if node.op == "call_module" else None
        rule = RULES.get(type(module) if module is not None else node.target)
        if not any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(value)):
            return None
        try:
            if node.target in self._traced.opaque:
                raise Frozen(self._traced.opaque[node.target])
            if rule is None or (module is not None and type(module) in LAYERS and not self._is_layer(node)):
                raise Frozen("no rule for this operation")
            return rule(self, node, module)
        except NeedCut as need:
            # The pass goes on only to collect more cuts; its other findings are dropped.
            self.cuts.append(need)
        except Frozen as stop:
            self._freeze_inputs(node, self.describe(node, str(stop)))
        except Mismatch:
            self._freeze_inputs(node, self.describe(node, "its inputs cannot be lined up channel by channel"))
        return no_axes(value)

    def _is_layer(self, node: fx.Node) -> bool:
        if node.op != "call_module" or node.target in self._traced.opaque:
            return False
        module = self._traced.modules[node.target]
        # A weight that is not a parameter of the layer is computed by somebody else (weight_norm, pruning).
        return type(module) in LAYERS and "weight" in module._parameters

    def _moving_inputs(self, node: fx.Node) -> list[Axis]:
        layouts = [self.layouts.get(source) for source in node.all_input_nodes]
        return [axis for layout in layouts for axis in _axes(layout)]

    def _freeze_inputs(self, node: fx.Node, why: str) -> None:
        for axis in self._moving_inputs(node):
            self.ties.freeze(axis, why)

    # The check --------------------------------------------------------------------------------------------------------

    def check_sizes(self) -> dict[tuple[str, int], str]:
        """Run the graphs at other widths on the meta device; return the sources that meet code with fixed sizes.

        Layers are trusted to give their predicted width; every other operation must produce the sizes that its rule
        predicted, at the narrowest widths and at drawn ones.
        """
        classes = self.ties.classes()
        free = {root: self._part_size(root) for root in classes if not self.ties.reasons(root)}
        rng = random.Random(0)
        draws = [dict.fromkeys(free, 1)]
        draws += [{root: rng.randint(1, size) for root, size in free.items()} for _ in range(2)]
        root_module = self._traced.modules[""]
        wrong: dict[tuple[str, int], str] = {}
        for mode, graph in self._traced.graphs.items():
            root_module.train(mode == "train")
            for widths in draws:
                with torch.no_grad():
                    wrong.update(self._check_graph(graph, widths, root_module))
                if wrong:
                    return wrong
        return wrong

    def _check_graph(self, graph: fx.Graph, widths: dict, root_module: nn.Module) -> dict[tuple[str, int], str]:
        values: dict[fx.Node, object] = {}
        for node in graph.nodes:
            if node.op == "output":
                continue
            expected = self._expected(self.layouts[node], node.meta["value"], widths)
            if node.op in ("placeholder", "get_attr") or self._is_layer(node) or node.target in self._traced.opaque:
                values[node] = expected
                continue
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            try:
                values[node] = run_node(node, args, kwargs, root_module)
                fits = expected is None or _sizes(values[node]) == _sizes(expected)
            except Exception:
                fits = False
            if not fits:
                why = self.describe(node, "sizes are written out in the code")
                axes = self._moving_inputs(node) or [a for layout in self._ancestors(node) for a in _axes(layout)]
                bound = {
                    s.source: why for axis in axes for s in axis if s.source is not FIXED and self.ties.root(s.source) in widths
                }
                if bound:
                    return bound
                values[node] = expected
        return {}

    def _ancestors(self, node: fx.Node):
        """Return the layouts that the plain numbers given to a node were read from."""
        seen, todo, found = set(), list(node.all_input_nodes), []
        while todo:
            source = todo.pop()
            if source in seen:
                continue
            seen.add(source)
            if isinstance(source.meta.get("value"), torch.Tensor):
                found.append(self.layouts[source])
            else:
                todo += source.all_input_nodes
        return found

    def _expected(self, layout, value, widths: dict):
        if isinstance(value, torch.Tensor):
            sizes = [size if axis is None else self._active(axis, widths) for axis, size in zip(layout, value.shape)]
            return torch.empty(sizes, dtype=value.dtype, device="meta")
        if isinstance(value, (list, tuple)) and isinstance(layout, (list, tuple)) and len(layout) == len(value):
            return (
                type(value)(self._expected(a, v, widths) for a, v in zip(layout, value)) if type(value) in (list, tuple) else None
            )
        return None

    def _active(self, axis: tuple[Segment, ...], widths: dict) -> int:
        return sum(s.size if s.source is FIXED else widths.get(self.ties.root(s.source), s.full) * s.inner for s in axis)

    def _part_size(self, root: tuple[str, int]) -> int:
        return next(s.full for s in self.ties.produce(root[0], self._channels(root[0])) if s.source == root)

    def _channels(self, producer: str) -> int:
        module = self._traced.modules[producer]
        return module.out_features if isinstance(module, nn.Linear) else module.out_channels

    # The result -------------------------------------------------------------------------------------------------------

    def result(self) -> ChannelMap:
        """Number the groups and describe every layer's axes by them."""
        free, frozen, index = [], [], {}
        for root, sources in self.ties.classes().items():
            producer = sources[0][0]
            parts = [s for s in sources if s[0] == producer]
            whole = len(parts) == len(self.ties.produce(producer, self._channels(producer)))
            size = self._part_size(root)
            reasons = tuple(self.ties.reasons(root))
            name = producer if whole else f"{producer}#{parts[0][1]}"
            group = ChannelGroup(name, size * len(parts), len(parts), self._members(root), reasons)
            if reasons:
                frozen.append(group)
            else:
                index[root] = len(free)
                free.append(group)
        layers = {}
        for name, (_, inputs, outputs) in self._uses.items():
            channels = LayerChannels(name, self._runs(inputs, index, free), self._runs(outputs, index, free))
            if channels.inputs or channels.outputs:
                layers[name] = channels
        calls, fixed_macs = self._calls()
        return ChannelMap(tuple(free), tuple(frozen), layers, calls, fixed_macs, dict(self._traced.opaque))

    def _members(self, root: tuple[str, int]) -> tuple[str, ...]:
        def touches(axis: Axis) -> bool:
            return any(s.source is not FIXED and self.ties.root(s.source) == root for s in axis or ())

        return tuple(name for name, (_, _, outputs) in self._uses.items() if touches(outputs))

    def _runs(self, axis: Axis, index: dict, groups: list[ChannelGroup]) -> tuple[Run, ...] | None:
        runs = []
        for segment in axis or ():
            group = index.get(self.ties.root(segment.source)) if segment.source is not FIXED else None
            if group is None:
                runs.append(Run(None, segment.size))
            else:
                divide = math.gcd(segment.inner, groups[group].unit)
                runs.append(Run(group, segment.size, (segment.inner // divide, groups[group].unit // divide)))
        return tuple(runs) if any(run.group is not None for run in runs) else None

    def _calls(self) -> tuple[tuple[LayerCall, ...], int]:
        calls, fixed = [], 0
        for node in self._traced.graphs["eval"].nodes:
            if node.op == "call_module" and node.target in self._traced.opaque:
                for module, args, out in node.meta["layers"]:
                    if _counts(module):
                        fixed += _positions(module, args[0], out) // out.shape[0] * full_macs(module)
            elif node.op == "call_module":
                module = self._traced.modules[node.target]
                if _counts(module):
                    positions = _positions(module, self.value(self.first(node)), node.meta["value"])
                    calls.append(LayerCall(self._layer_name(node.target), positions // self._traced.batch_size))
            elif node.target in _FUNCTIONS:
                # No rule follows these, so their widths never change.
                weight = self.value(node.args[1] if len(node.args) > 1 else node.kwargs["weight"])
                positions = node.meta["value"].numel() // weight.shape[0] // self._traced.batch_size
                fixed += positions * weight.numel()
        return tuple(calls), fixed


def _axes(layout) -> list[tuple[Segment, ...]]:
    """Return the axes that can move in a layout or in nested layouts."""
    if layout is None or isinstance(layout, Fixed):
        return []
    if isinstance(layout, Segment):
        raise AssertionError("a layout holds axes, not segments")
    if isinstance(layout, dict):
        return [axis for item in layout.values() for axis in _axes(item)]
    if all(item is None or (isinstance(item, tuple) and item and isinstance(item[0], Segment)) for item in layout):
        return [axis for axis in layout if axis is not None]
    return [axis for item in layout for axis in _axes(item)]


def _sizes(value):
    return tree_map(
        lambda v: tuple(v.shape) if isinstance(v, torch.Tensor) else v, list(value) if isinstance(value, tuple) else value
    )


def _operation(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    if node.op == "call_module":
        return f"{type(modules[node.target]).__name__} {node.target}"
    return str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _counts(module: nn.Module) -> bool:
    return isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))


def _out_channels(module: nn.Module) -> int:
    return module.out_features if isinstance(module, nn.Linear) else module.out_channels


_FUNCTIONS = (F.conv1d, F.conv2d, F.conv3d, F.linear)


def _positions(module: nn.Module, x: torch.Tensor, out: torch.Tensor) -> int:
    """Count where the kernel of a layer is applied: output positions, or input positions of a transposed convolution."""
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return x.numel() // module.in_channels
    return out.numel() // _out_channels(module)


def full_macs(module: nn.Module) -> int:
    """Multiply-adds of a conv or linear layer for each output position: every output channel from every input it sees."""
    if isinstance(module, nn.Linear):
        return module.in_features * module.out_features
    return module.weight[0, 0].numel() * module.in_channels * module.out_channels // module.groups
