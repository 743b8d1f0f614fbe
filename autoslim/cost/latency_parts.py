"""The parts of a network that are timed on their own: a layer with the norm, the activation and the addition behind it."""

import operator
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from autoslim.channels import costs
from autoslim.channels.proxies import read_size
from autoslim.channels.rules.table import RULES
from autoslim.channels.trace import Untraceable, as_inputs, run_node, trace
from autoslim.errors import ModelError
from autoslim.slimmable.layers import Slimmable
from autoslim.slimmable.materialize import plain_copy
from autoslim.slimmable.modes import eval_mode
from autoslim.slimmable.supernet import Supernet

# Functions that, like a conv or linear layer, begin a part of their own.
_HEAVY = {
    "matmul", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention", "interpolate",
    *(function.__name__ for function in costs.FUNCTIONS),
}  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """Groups whose widths move one length of a part.

    Attributes:
        factors: elements a channel of every group `[groups]`; the coordinate of a configuration is their sum.
        points: coordinates at which the part is measured, ascending.
        widths: for every point, the widths of the groups that it follows, by group index.
    """

    factors: tuple[float, ...]
    points: tuple[float, ...]
    widths: tuple[dict[int, int], ...] = field(compare=False)


@dataclass(frozen=True)
class Part:
    """Operations that follow each other and nothing else reads from.

    Attributes:
        nodes: the operations, in order.
        axes: what its time depends on: at most two, else their sum as one.
    """

    nodes: tuple[fx.Node, ...]
    axes: tuple[Axis, ...]


class Parts:
    """A supernet as a row of parts.

    A part begins at a layer with weights, at an operation of several inputs or at one whose input others read, too. What
    follows joins it while it alone reads the part's output and its sizes follow no other group: BN, activation, residual
    addition, pooling before a classifier. ONNX Runtime works out such a row in one operation, too.

    Args:
        net: the supernet, on any device; it is left as it is.
        inputs: inputs of the batch that is measured, on the supernet's device.
        points: widths of a group at which a part is measured, at most; evenly spaced choices where there are more.

    Raises:
        ModelError: the network cannot be traced, or a size in it does not follow the widths linearly.
    """

    def __init__(self, net: Supernet, inputs: tuple, *, points: int = 16):
        self.net = net
        try:
            graph = trace(net.source, inputs, {**RULES, **net.rules}).graphs["eval"]
        except Untraceable as error:
            raise ModelError(
                f"{error}; a latency table needs a network that can be traced: take a target in multiply-adds"
            ) from None
        self._nodes = list(graph.nodes)
        self._sizes(inputs)
        self.parts = [Part(tuple(nodes), self._axes(nodes, points)) for nodes in self._split()]

    # Sizes ------------------------------------------------------------------------------------------------------------

    def _sizes(self, inputs: tuple) -> None:
        """Find how every size in the network follows the widths: a base and one factor a group."""
        net = self.net
        full = np.array([width.full for width in net.widths])
        rows = [full]
        for i, width in enumerate(net.widths):
            rows.append(full.copy())
            rows[-1][i] = width.choices[0]
        rng = random.Random(0)
        rows += [np.array([rng.choice(width.choices) for width in net.widths]) for _ in range(2)]
        seen = [self._run(row, inputs) for row in rows]
        self._values = seen[0][0]
        self._base, self._factors = {}, {}
        for node in self._nodes:
            numbers = np.array([numbers[node] for _, numbers in seen], dtype=float)  # [rows, numbers]
            narrowed = np.maximum(full - np.array([width.choices[0] for width in net.widths]), 1)
            factors = (numbers[0] - numbers[1 : len(full) + 1]) / narrowed[:, None]  # [groups, numbers]
            base = numbers[0] - full @ factors
            if not np.allclose(np.stack(rows) @ factors + base, numbers, rtol=0, atol=0.01):
                raise ModelError(
                    f"sizes of {node.name} ({node.meta.get('where', node.op)}) do not follow the widths linearly, which a latency "
                    "table needs; measure configurations one by one, or take a target in multiply-adds"
                )
            self._base[node], self._factors[node] = base, factors.round(9)

    @torch.no_grad()  # not inference mode: what modules keep at their first forward is trained on later
    def _run(self, widths: np.ndarray, inputs: tuple) -> tuple[dict, dict]:
        """Run the graph; returns every node's value, with meta tensors for tensors, and its sizes."""
        last = {source: node for node in self._nodes for source in node.all_input_nodes}
        alive, values, numbers = {}, {}, {}
        given = (leaf.clone() for leaf in tree_leaves(as_inputs(inputs)) if isinstance(leaf, Tensor))
        with eval_mode(self.net), self.net.using(self._named(widths)):
            for node in self._nodes:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), alive.__getitem__)
                if node.op == "placeholder":
                    alive[node] = next(given)
                elif node.op == "output":
                    alive[node] = None
                else:
                    alive[node] = run_node(node, args, kwargs, self.net.model)
                values[node] = tree_map(_without_data, alive[node])
                numbers[node] = [*_numbers(values[node]), *self._own_sizes(node)]
                for source in node.all_input_nodes:
                    if last[source] is node:
                        del alive[source]
        return values, numbers

    def _own_sizes(self, node: fx.Node) -> list[int]:
        """Return the sizes of a module's own tensors at the widths that are set."""
        if node.op != "call_module":
            return []
        modules = self.net.model.get_submodule(node.target).modules()
        own = (getattr(m, name) for m in modules for name in (*m._parameters, *m._buffers))
        return [size for tensor in own if tensor is not None for size in tensor.shape]

    def _named(self, widths: Sequence[int]) -> dict[str, int]:
        return {width.name: int(value) for width, value in zip(self.net.widths, widths, strict=True)}

    def _value(self, node: fx.Node, widths: np.ndarray):
        """Return a node's value at some widths, with meta tensors for tensors."""
        numbers = iter(np.rint(self._base[node] + widths @ self._factors[node]).astype(int).tolist())
        leaves, tree = tree_flatten(self._values[node])
        return tree_unflatten([_resized(leaf, numbers) for leaf in leaves], tree)

    # Parts ------------------------------------------------------------------------------------------------------------

    def _split(self) -> list[list[fx.Node]]:
        """Return the operations of every part, in the order of the graph."""
        parts: list[list[fx.Node]] = []
        part_of: dict[fx.Node, list[fx.Node]] = {}
        for node in filter(self._costs, self._nodes):
            part = None if self._begins(node) else self._before(node, part_of)
            if part is None:
                parts.append(part := [])
            part.append(node)
            part_of[node] = part
        return parts

    def _costs(self, node: fx.Node) -> bool:
        """Tell whether an operation takes time: one that makes no tensor, or picks one of several, does not."""
        if node.op in ("placeholder", "output", "get_attr") or node.target is read_size:
            return False
        if node.target in (operator.getitem, getattr) and not _is_tensor(self._values.get(node.args[0])):
            return False
        return any(map(_is_tensor, tree_leaves(self._values[node])))

    def _begins(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            module = self.net.model.get_submodule(node.target)
            heavy = any(p.dim() > 1 for m in module.modules() for p in m._parameters.values() if p is not None)
            return heavy or not _plain_type(module).__module__.startswith("torch.nn.modules")
        return (node.target if node.op == "call_method" else getattr(node.target, "__name__", "")) in _HEAVY

    def _before(self, node: fx.Node, part_of: Mapping) -> list[fx.Node] | None:
        """Return the part whose output only this node reads, where joining it follows no other group."""
        for source in node.all_input_nodes:
            part = part_of.get(source)
            if part is not None and part[-1] is source and len(source.users) == 1 and _is_tensor(self._values[source]):
                known = self._directions(part)
                if all(any(np.allclose(new, old) for old in known) for new in self._directions([*part, node])):
                    return part
        return None

    def _directions(self, nodes: Sequence[fx.Node]) -> list[np.ndarray]:
        """Return how the sizes of a part follow the groups, up to a factor: one row `[groups]` for each way."""
        inside = set(nodes)
        outside = [source for node in nodes for source in node.all_input_nodes if source not in inside]
        found: list[np.ndarray] = []
        for column in np.concatenate([self._factors[node] for node in (*outside, *nodes)], axis=1).T:
            if column.any():
                column = column / np.abs(column).max()
                if not any(np.allclose(column, old) for old in found):
                    found.append(column)
        return found

    def _axes(self, nodes: Sequence[fx.Node], points: int) -> tuple[Axis, ...]:
        ways = self._directions(nodes)
        if len(ways) > 2 or (len(ways) == 2 and (ways[0] * ways[1]).any()):
            ways = [sum(ways)]
        return tuple(self._axis(way, points) for way in ways)

    def _axis(self, way: np.ndarray, points: int) -> Axis:
        choices = {i: self.net.widths[i].choices for i in np.flatnonzero(way).tolist()}
        count = min(points, max(map(len, choices.values())))
        places = np.linspace(0, 1, count) if count > 1 else [1.0]
        found = {}
        for place in places:
            widths = {i: row[round(place * (len(row) - 1))] for i, row in choices.items()}
            found[float(sum(way[i] * value for i, value in widths.items()))] = widths
        coordinates = tuple(sorted(found))
        return Axis(tuple(way.tolist()), coordinates, tuple(found[x] for x in coordinates))

    # Points -----------------------------------------------------------------------------------------------------------

    def points(self, part: Part) -> Iterator[np.ndarray]:
        """Yield the widths of all groups at every point of a part's grid, the last axis fastest; others are at full width."""
        full = np.array([width.full for width in self.net.widths])
        rows = [full]
        for axis in part.axes:
            rows = [_with(row, widths) for row in rows for widths in axis.widths]
        yield from rows

    def key(self, part: Part, widths: np.ndarray) -> str:
        """Return what is measured at some widths: operations, settings and shapes. Equal keys take equal time."""
        names: dict[fx.Node, str] = {}
        operations = []
        with self.net.using(self._named(widths)):
            for node in part.nodes:
                operations.append(self._words(node, names, widths))
                names[node] = f"%{len(operations)}"
        return "; ".join(operations)

    def _words(self, node: fx.Node, names: Mapping, widths: np.ndarray) -> str:
        def words(source: fx.Node):
            return _Word(names.get(source) or _shapes(self._value(source, widths)))

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), words)
        given = ", ".join([*map(str, args), *(f"{k}={v}" for k, v in kwargs.items())])
        if node.op != "call_module":
            return f"{node.target if node.op == 'call_method' else node.target.__name__}({given})"
        module = self.net.model.get_submodule(node.target)
        kind = _plain_type(module)
        if kind.__module__.startswith("torch.nn.modules") and not any(True for _ in module.children()):
            return f"{kind.__name__}[{_settings(module)}]({given})"
        return f"{node.target}: {kind.__name__}{self._own_sizes(node)}({given})"

    def build(self, part: Part, widths: np.ndarray) -> tuple[nn.Module, tuple]:
        """Return a part as a plain module of some widths, and inputs for it, on the supernet's device."""
        device = next(self.net.parameters()).device
        root, graph, inputs = nn.Module(), fx.Graph(), []
        known: dict[fx.Node, object] = {}
        with torch.no_grad(), self.net.using(self._named(widths)):
            for i, node in enumerate(part.nodes):
                for source in node.all_input_nodes:
                    if source in known:
                        continue
                    if source.op == "get_attr":
                        tensor = operator.attrgetter(source.target)(self.net.model)
                        root.register_buffer(f"tensor_{len(known)}", tensor.detach().clone())
                        known[source] = graph.get_attr(f"tensor_{len(known)}")
                        continue
                    leaves, tree = tree_flatten(self._value(source, widths))
                    for k, leaf in enumerate(leaves):
                        if isinstance(leaf, Tensor):
                            inputs.append(_filled(leaf, device))
                            leaves[k] = graph.placeholder(f"input_{len(inputs)}")
                    known[source] = tree_unflatten(leaves, tree)
                target = node.target
                if node.op == "call_module":
                    target = f"operation_{i}"
                    root.add_module(target, plain_copy(self.net.model.get_submodule(node.target)))
                args, kwargs = _replace((node.args, node.kwargs), known)
                known[node] = graph.create_node(node.op, target, args, kwargs)
            graph.output(known[part.nodes[-1]])
        # A placeholder stands before what reads it.
        for node in reversed([n for n in graph.nodes if n.op == "placeholder"]):
            graph._root.append(node)
        return fx.GraphModule(root, graph), tuple(inputs)


class _Word(str):
    """Text that prints as it is inside lists and tuples, too."""

    def __repr__(self):
        return str(self)


def _settings(module: nn.Module) -> str:
    """Return what a module prints about itself at the widths that are set."""
    if not isinstance(module, Slimmable):
        return module.extra_repr()
    plain = module.plain.__new__(module.plain)
    slimming = module.__dict__["_slimming"]
    vars(plain).update(vars(module))
    vars(plain).update({name: slimming.number(name, module.__dict__[name]) for name in slimming.sizes})
    return plain.extra_repr()


def _replace(args, known: Mapping):
    return fx.node.map_aggregate(args, lambda value: known[value] if isinstance(value, fx.Node) else value)


def _is_tensor(value) -> bool:
    return isinstance(value, Tensor)


def _without_data(value):
    return torch.empty_like(value, device="meta") if isinstance(value, Tensor) else value


def _numbers(value) -> list[int]:
    """Return the sizes in a value: those of its tensors, and its whole numbers."""
    found: list[int] = []
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            found += leaf.shape
        elif type(leaf) is int:
            found.append(leaf)
    return found


def _resized(leaf, numbers: Iterator[int]):
    if isinstance(leaf, Tensor):
        made = torch.empty([next(numbers) for _ in leaf.shape], dtype=leaf.dtype, device="meta")
        return made.contiguous(memory_format=_layout(leaf))
    return next(numbers) if type(leaf) is int else leaf


def _shapes(value) -> str:
    """Write a value as its shapes: 1x16x32x32; the precision only where it is not that of the network."""

    def words(tensor: Tensor) -> str:
        shape = "x".join(map(str, tensor.shape))
        layout = " channels last" if _layout(tensor) is torch.channels_last else ""
        return shape + ("" if tensor.dtype.is_floating_point else f" {str(tensor.dtype)[6:]}") + layout

    leaves = [words(leaf) if isinstance(leaf, Tensor) else str(leaf) for leaf in tree_leaves(value)]
    return leaves[0] if len(leaves) == 1 else f"[{', '.join(leaves)}]"


def _layout(tensor: Tensor) -> torch.memory_format:
    last = tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _filled(like: Tensor, device: torch.device) -> Tensor:
    """Return a tensor like another one; whole numbers are 0, others differ from each other, as zeros cost less power."""
    if not like.dtype.is_floating_point:
        return torch.zeros(like.shape, dtype=like.dtype, device=device)
    numbers = torch.arange(like.numel(), device=device, dtype=torch.float32).sin()
    return numbers.view(like.shape).to(like.dtype).contiguous(memory_format=_layout(like))


def _with(row: np.ndarray, widths: Mapping[int, int]) -> np.ndarray:
    row = row.copy()
    for i, value in widths.items():
        row[i] = value
    return row


def _plain_type(module: nn.Module) -> type[nn.Module]:
    return module.plain if isinstance(module, Slimmable) else type(module)
