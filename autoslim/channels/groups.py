"""Find the channel groups of a network."""

import math
from collections.abc import Mapping

from torch import nn

from autoslim.channels.check import check_sizes
from autoslim.channels.choices import Choices
from autoslim.channels.choose import Chooser
from autoslim.channels.costs import FUNCTIONS, computed_for_images, function_macs, layer_macs
from autoslim.channels.flow import Flow
from autoslim.channels.inside import groups_inside
from autoslim.channels.map import ChannelGroup, ChannelMap, LayerCall, Run, Runs
from autoslim.channels.rules.table import RULES
from autoslim.channels.segments import FIXED, Axis, Refine, Refinements, Source
from autoslim.channels.steps import steps_of
from autoslim.channels.trace import Trace, Untraceable, trace


def find_groups(model: nn.Module, example, *, rules: Mapping | None = None, **choices) -> ChannelMap:
    """Find which channels of `model` must share a width, and which cannot be slimmed and why.

    Args:
        model: a network; it is neither run, moved nor changed.
        example: one input `[N, C, ...]` or a tuple of the positional inputs.
        rules: rules for operations of your own, by function, method name or module type (see `autoslim.channels.rules`).
        choices: `include`, `exclude` (modules), `freeze`, `release`, `tie` (groups): see `Choices`.

    Raises:
        ModelError: neither the network's forward can be traced, nor that of modules inside it (those of `include`, if given).
        ConfigError: a choice names nothing, or asks for what cannot be.
    """
    rules, chosen = {**RULES, **(rules or {})}, Choices.of(choices)
    try:
        traced = trace(model, example, rules)
    except Untraceable as error:

        def find(part, inputs, rest):
            return _find(trace(part, inputs, rules), rules, rest)

        return groups_inside(model, example, chosen, find, str(error))
    return _find(traced, rules, chosen)


def _find(traced: Trace, rules: Mapping, choices: Choices) -> ChannelMap:
    refinements = Refinements()
    size_bound: dict[Source, str] = {}
    while True:
        flow = Flow(traced, refinements, rules)
        flow.run(size_bound)
        if not flow.wanted:
            result = _Result(flow)
            try:
                Chooser(flow, result.names(), result.members()).apply(choices)
            except Refine as wanted:
                if not refinements.add(wanted):
                    raise
                flow.wanted.append(wanted)
        if flow.wanted:
            flow.ties.spread_cuts(flow.wanted)
            continue
        wrong = check_sizes(flow)
        if not wrong:
            return _Result(flow).channel_map()
        size_bound.update(wrong)


class _Result:
    """Numbers the groups and describes every tensor's axes by them."""

    def __init__(self, flow: Flow):
        self._flow = flow
        self._classes = flow.ties.classes()
        self._reasons = flow.ties.reasons()
        self._multiples = flow.ties.multiples()
        self._free = [root for root in self._classes if root not in self._reasons]
        self._index = {root: i for i, root in enumerate(self._free)}
        # Channels of the group's width for each channel of a part: parts of the first layer times elements of a channel.
        self._scale: dict[Source, int] = {}

    def channel_map(self) -> ChannelMap:
        """Return what the rest of the toolkit needs."""
        members = self.members()
        groups = {root: self._group(root, sources, members.get(root, ())) for root, sources in self._classes.items()}
        free = tuple(groups[root] for root in self._free)
        frozen = tuple(group for root, group in groups.items() if root not in self._index)
        own = {name: tuple(self._runs(axis) for axis in axes) for name, axes in self._flow.own_tensors.items()}
        tensors = {name: axes for name, axes in own.items() if any(axes)}
        calls, fixed_macs = self._calls()
        steps = steps_of(self._flow, {root: group.name for root, group in groups.items()})
        traced, branches = self._flow.traced, tuple(self._flow.branches)
        return ChannelMap(
            free, frozen, tensors, self._sizes(), calls, fixed_macs, dict(traced.opaque), steps, branches, traced.writes_inputs
        )  # fmt: skip

    def _group(self, root: Source, sources: list[Source], members: tuple[str, ...]) -> ChannelGroup:
        ties = self._flow.ties
        axis = sources[0][0]
        parts = [s for s in sources if s[0] == axis]
        layer = ties.producers[sources[0]]
        name = layer if len(parts) == ties.parts_of(axis) else f"{layer}#{parts[0][1]}"
        self._scale[root] = len(parts) * ties.inner_of(axis) * self._flow.repeats.get(sources[0], 1)
        full = ties.full_of(root) * self._scale[root]
        unit = self._scale[root] * self._multiples.get(root, 1)
        return ChannelGroup(name, full, unit, members, tuple(self._reasons.get(root, ())))

    def names(self) -> dict[Source, str]:
        """Return the name of each group, by the representative of its shared width."""
        return {root: self._group(root, sources, ()).name for root, sources in self._classes.items()}

    def members(self) -> dict[Source, tuple[str, ...]]:
        """Return the layers of each shared width, by its representative."""
        found: dict[Source, dict[str, None]] = {}
        for name, axes in self._flow.members.items():
            for segment in (s for axis in axes for s in axis):
                if segment.source is not FIXED:
                    found.setdefault(self._flow.ties.root(segment.source), {})[name] = None
        return {root: tuple(names) for root, names in found.items()}

    def _runs(self, axis: Axis) -> Runs:
        runs = []
        for segment in axis if isinstance(axis, tuple) else ():
            root = None if segment.source is FIXED else self._flow.ties.root(segment.source)
            group = self._index.get(root)
            if group is None:
                runs.append(Run(None, segment.size))
            else:
                divide = math.gcd(segment.inner, self._scale[root])
                runs.append(Run(group, segment.size, (segment.inner // divide, self._scale[root] // divide)))
        return tuple(runs) if any(run.group is not None for run in runs) else None

    def _sizes(self) -> dict[tuple[str, str], tuple]:
        found: dict[tuple[str, str], object] = {}
        modules = self._flow.traced.modules
        for (module, name, index), axis in self._flow.sizes.items():
            runs = self._runs(axis)
            if runs is None:
                continue
            if index is None:
                found[module, name] = runs
            else:
                row = found.setdefault((module, name), list(vars(modules[module])[name]))
                row[index] = runs
        return {place: tuple(row) for place, row in found.items()}

    def _calls(self) -> tuple[tuple[LayerCall, ...], int]:
        flow, calls, fixed = self._flow, [], 0
        graph, of_batch = flow.traced.graphs["eval"], flow.traced.batch_size
        for_images = computed_for_images(graph, of_batch)
        for node in graph.nodes:
            batch = of_batch if node in for_images else 1
            if node in flow.calls:
                layer, factors = flow.calls[node]
                axes = tuple(runs for _, axis in factors if (runs := self._runs(axis)) is not None)
                known = math.prod(sum(run.size for run in runs) for runs in axes)
                calls.append(LayerCall(layer, math.prod(size for size, _ in factors) // batch // known, axes))
            elif "layers" in node.meta:
                fixed += sum(layer_macs(*layer) for layer in node.meta["layers"]) // batch
            elif node.op == "call_module":
                module = flow.traced.modules[node.target]
                fixed += layer_macs(module, (flow.value(flow.first(node)),), node.meta["value"]) // batch
            elif node.target in FUNCTIONS:
                fixed += function_macs(flow, node) // batch
        return tuple(calls), fixed
