"""A supernet that is run in parts: of a configuration, what is not known already."""

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import BuiltinFunctionType, MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from autoslim.channels.proxies import read_size
from autoslim.channels.rules.table import RULES
from autoslim.channels.trace import Untraceable, as_inputs, run_node, trace
from autoslim.search.followed import NotPartial, check_branches, check_constants, check_outputs, check_writes, in_parts, writes
from autoslim.search.influence import Influence, has_own_code
from autoslim.search.samples import first_of
from autoslim.slimmable.calibrate import Measure
from autoslim.slimmable.layers import Slimmable
from autoslim.slimmable.modes import eval_mode
from autoslim.slimmable.supernet import Supernet


@dataclass(frozen=True)
class Plan:
    """What has to be done for some values of a configuration.

    Attributes:
        group: what the configuration narrows of the base; None for the base itself.
        wanted: operations whose values are asked for.
        run: operations to run, in order.
        reads: operations whose values at the base are read.
        dying: operations that are read for the last time, by the operation of `run` that reads them.
    """

    group: str | None
    wanted: frozenset[int]
    run: tuple[int, ...]
    reads: frozenset[int]
    dying: Mapping[int, tuple[int, ...]]


class PartialNet:
    """A supernet that is run operation by operation, as far as the values of some are asked for and not known yet.

    A candidate narrows one group of a base, and takes from the base what that group does not change. What a candidate was run
    for stays of use when another group is narrowed for good, as far as that one does not change it.

    Args:
        net: the supernet.
        example: inputs of it; two examples are enough.
        checked: inputs of every size that it will be run on, other than two of each, with which it is compared with the whole
            network; by default the example.
        leading: whether what a narrower layer makes may be taken from the wider one, where two examples come out the same; if
            not, it is run again.

    Attributes:
        influence: what a group changes.
        inputs: the operations whose values are the network's inputs.
        output: the operation whose value is the network's output.
        read: operations whose values candidates may read.
        bytes: memory of the values of `read`, for one example at full width.

    Raises:
        NotPartial: its forward cannot be followed, writes into values that are read again, or gives another output in parts.
    """

    def __init__(
        self, net: Supernet, example, *, leading: bool = True, checked: Iterable = ()
    ):  # fmt: skip
        self.net = net
        if net.channels.writes_inputs and net.channels.opaque:
            raise NotPartial(
                f"its forward may write into its inputs where it cannot be followed ({', '.join(net.channels.opaque)})"
            )
        try:
            traced = trace(net.source, example, {**RULES, **net.rules})
        except Untraceable as error:
            raise NotPartial(str(error)) from error
        self._nodes = list(traced.graphs["eval"].nodes)
        self.inputs = [i for i, node in enumerate(self._nodes) if node.op == "placeholder"]
        self.output = next(i for i, node in enumerate(self._nodes) if node.op == "output")
        self._layers = {i: net.model.get_submodule(n.target) for i, n in enumerate(self._nodes) if n.op == "call_module"}
        self._slimmings = [module._slimming for module in net.model.modules() if isinstance(module, Slimmable)]
        self.influence = Influence(net, self._nodes)
        # Run under the mode that measures batch norms, which costs as much as another operation.
        self._norms = {i for i, node in enumerate(self._nodes) if self._may_normalise(node)}
        # Operations that are given the values of others and nothing else: most of them.
        self._given_values = {
            i: tuple(self.influence.place[source] for source in node.args)
            for i, node in enumerate(self._nodes)
            if not node.kwargs and all(isinstance(arg, fx.Node) for arg in node.args)
        }
        check_writes(self._nodes, self.influence.place)
        check_constants(net, self._nodes)
        self._plans: dict[tuple, Plan] = {}
        inputs = as_inputs(first_of(example, 2))
        with in_parts():
            check_branches(self, self._nodes, inputs)
        if leading:
            with in_parts():
                self._run_again_what_differs(inputs)
        else:
            for group, changed in self.influence.changed.items():
                self.influence.run_again(group, changed)
        self.read = frozenset().union(*self.influence.frontiers.values(), {self.output})
        self._sizes = self._sizes_of_values(traced.batch_size)
        self.bytes = self.bytes_of(self.read)
        self._calls = self._calls_of_nodes()
        for n, each in enumerate([*map(as_inputs, checked)] or [inputs]):
            with in_parts():
                check_outputs(self, each, groups=n == 0)

    def _sizes_of_values(self, examples: int) -> dict[int, dict[int, int]]:
        """Return for every operation the bytes of its value for one example at full width, by the memory that holds them."""
        sizes = {}
        apart = set().union(*self.influence.leading.values())
        for i, node in enumerate(self._nodes):
            leaves = () if node.op in ("get_attr", "placeholder") else tree_leaves(node.meta.get("value"))
            stored = [leaf.untyped_storage() for leaf in leaves if isinstance(leaf, Tensor)]
            # When run in parts, what works in place makes new values, and a leading part is a copy.
            new = i in apart or writes(node) or (node.op == "call_module" and self._works_in_place(node.target))
            sizes[i] = {(i, k) if new else s._cdata: s.nbytes() // examples for k, s in enumerate(stored)}
        return sizes

    def _works_in_place(self, layer: str) -> bool:
        return any(m.__dict__.get("inplace") is True for m in self.net.model.get_submodule(layer).modules())

    def bytes_of(self, nodes: Iterable[int]) -> int:
        """Return the bytes of values of one example at full width; what shares its memory is counted once."""
        sizes: dict[int, int] = {}
        for i in nodes:
            sizes |= self._sizes[i]
        return sum(sizes.values())

    def _calls_of_nodes(self) -> list[list]:
        """Return for every operation the uses of conv and linear layers that it stands for."""
        calls: dict[str, list] = {}
        for call in self.net.channels.calls:
            calls.setdefault(call.layer, []).append(call)
        users: dict[str, list[int]] = {}
        for i, node in enumerate(self._nodes):
            if node.op == "call_module":
                users.setdefault(node.target, []).append(i)
        found: list[list] = [[] for _ in self._nodes]
        for layer, nodes in users.items():
            for k, call in enumerate(calls.get(layer, ())):
                found[nodes[min(k, len(nodes) - 1)]].append(call)
        return found

    def _may_normalise(self, node: fx.Node) -> bool:
        """Tell whether an operation may reach a batch norm's kept statistics: all that is not known to leave them alone."""
        if node.op == "call_module":
            return not all(map(_is_plain, self.net.model.get_submodule(node.target).modules()))
        target, name = node.target, getattr(node.target, "__name__", "")
        known = isinstance(target, BuiltinFunctionType) or target is read_size
        known = known or any(getattr(module, name, None) is target for module in (F, torch.functional))
        return node.op == "call_function" and (not known or target is F.batch_norm)

    @torch.no_grad()
    def _run_again_what_differs(self, inputs) -> None:
        """Take only those values for leading parts that are so to the last digit, which depends on kernels and widths."""
        net, influence = self.net, self.influence
        leading = {i for nodes in influence.leading.values() for i in nodes}
        wanted = leading | {j for i in leading for j in influence.sources[i]}
        with eval_mode(net), self.ready(), net.using(net.full()):
            values = self.run(self.plan(None, wanted=wanted), inputs=inputs)
            for width in net.widths:
                differ: set[int] = set()
                for choice in width.choices[:-1]:
                    width.value, now = choice, dict(values)
                    for i in sorted(influence.leading[width.name]):
                        part = self._leading_part(i, values[i])
                        # In 16 bits the order in which kernels add up depends on how many examples there are, too.
                        if part.element_size() < 4 or not torch.equal(part, self._run(i, now.__getitem__)):
                            differ.add(i)
                        now[i] = part
                width.value = width.full
                if differ:
                    influence.run_again(width.name, differ)
        self._plans.clear()

    # Running ----------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """Let layers that work in place (`ReLU(inplace=True)`) make new values, and cut every view of a weight once, for the length
        of a `with` block."""
        changed = [m for m in self.net.model.modules() if m.__dict__.get("inplace") is True]
        for module in changed:
            module.inplace = False
        try:
            for slimming in self._slimmings:
                slimming.views = {}
            yield
        finally:
            for slimming in self._slimmings:
                slimming.views = None
            for module in changed:
                module.inplace = True

    def plan(self, group: str | None, *, known: Collection[int] = (), wanted: Iterable[int] | None = None,
             keep: Collection[int] = ()) -> Plan:  # fmt: skip
        """Return what has to be run.

        Args:
            group: what the configuration narrows of the base; None for the base itself.
            known: operations whose values at the configuration are known.
            wanted: operations whose values are asked for; the output by default.
            keep: operations whose values are not to be dropped where they are run.
        """
        wanted = frozenset({self.output} if wanted is None else wanted)
        key = group, frozenset(known), wanted, frozenset(keep)
        if key not in self._plans:
            if len(self._plans) > 1000:
                self._plans.clear()
            self._plans[key] = self._make_plan(*key)
        return self._plans[key]

    def _make_plan(self, group: str | None, known: frozenset, wanted: frozenset, keep: frozenset) -> Plan:
        leading = self.influence.leading_of(group)
        needed, reads, measured, stack = set(), set(), set(), list(wanted)
        while stack:
            i = stack.pop()
            if group and i not in self.influence.changed[group]:
                reads.add(i)
            elif i not in needed and (i not in known or i in measured):
                needed.add(i)
                if i in leading:
                    reads.add(i)
                else:
                    others = self.influence.shared.get(i, set())  # of a norm: the statistics of one are those of all
                    measured |= others
                    stack += [*self.influence.sources[i], *others]
        run = tuple(sorted(needed))
        last = {j: i for i in run if i not in leading for j in self.influence.sources[i] if j in needed}
        dying: dict[int, tuple[int, ...]] = {}
        for j, i in last.items():
            if j not in wanted and j not in keep:
                dying[i] = (*dying.get(i, ()), j)
        return Plan(group, wanted, run, frozenset(reads), dying)

    def run(self, plan: Plan, *, known: Mapping[int, object] = MappingProxyType({}), base: Mapping[int, object] | None = None,
            inputs=None, measure: Measure | None = None) -> dict:  # fmt: skip
        """Return the values of the operations of a plan that are asked for or kept, at the widths that are set.

        Args:
            known: values at this configuration, by operation; tensors are `[N, C, ...]`.
            base: values at the base, of `plan.reads`.
            inputs: of the network; for the base.
            measure: measures the batch norms that are run.
        """
        measuring = contextlib.nullcontext() if measure is None else measure
        leaves = () if inputs is None else tree_leaves(as_inputs(inputs))
        given = dict(zip(self.inputs, (leaf for leaf in leaves if isinstance(leaf, Tensor))))
        leading = self.influence.leading_of(plan.group)
        made: dict[int, object] = {}

        def value(j: int):
            return made[j] if j in made else known[j] if j in known else base[j]

        for i in plan.run:
            if i in leading:
                made[i] = self._leading_part(i, base[i])
            elif i in given:
                made[i] = given[i]
            elif i in self._norms:
                with measuring:
                    made[i] = self._run(i, value)
            else:
                made[i] = self._run(i, value)
            for j in plan.dying.get(i, ()):
                del made[j]
        return made | {i: value(i) for i in plan.wanted if i not in made}

    def narrow(self, group: str, values: Mapping[int, object]) -> dict[int, object]:
        """Return those values that are still known when a group is narrowed for good, to the widths that are set."""
        changed, leading = self.influence.changed[group], self.influence.leading[group]
        return {
            i: self._leading_part(i, value) if i in leading else value
            for i, value in values.items()
            if i in leading or i not in changed
        }

    def _leading_part(self, i: int, value: Tensor) -> Tensor:
        # Laid out as a whole run has it, so that kernels add up in the same order, to the same digits.
        last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(value.dim())
        # Maps of one pixel are contiguous in either way.
        is_last = last and value.stride(-1) != 1 and value.is_contiguous(memory_format=last)
        layout = last if is_last else torch.contiguous_format
        return value.narrow(1, 0, self.influence.channels(i)).contiguous(memory_format=layout)

    def _run(self, i: int, value):
        node = self._nodes[i]
        if i in self._given_values:
            args, kwargs = tuple(map(value, self._given_values[i])), {}
        else:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: value(self.influence.place[source]))
        if i in self._layers:
            return self._layers[i](*args, **kwargs)
        if node.op == "output":
            return args[0]
        if writes(node):
            args = (args[0].clone(), *args[1:])
        return run_node(node, args, kwargs, self.net.model)

    def macs(self, plan: Plan) -> int:
        """Return the multiply-adds of a plan for one example, at the widths that are set."""
        leading = self.influence.leading_of(plan.group)
        return self.macs_of((i for i in plan.run if i not in leading), tuple(w.value for w in self.net.widths))

    def macs_of(self, nodes: Iterable[int], widths: tuple[int, ...]) -> int:
        """Return the multiply-adds of operations for one example, at a width a group."""
        return sum(call.macs(widths) for i in nodes for call in self._calls[i])


def _is_plain(layer: nn.Module) -> bool:
    """Tell whether a layer is one of PyTorch's, without buffers, and without hooks or a forward of its own."""
    kind = layer.plain if isinstance(layer, Slimmable) else type(layer)
    torchs = kind.__module__.startswith("torch.nn.modules.") and not has_own_code(layer)
    return torchs and all(buffer is None for buffer in layer._buffers.values())
