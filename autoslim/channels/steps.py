"""The inference graph as a reader would draw it: layers, and the joins of branches."""

import torch
from torch import fx, nn

from autoslim.channels.flow import Flow
from autoslim.channels.map import Step
from autoslim.channels.rules import axes, elementwise
from autoslim.channels.segments import FIXED, Source


def steps_of(flow: Flow, names: dict[Source, str]) -> tuple[Step, ...]:
    """Return the steps of the inference graph; `names` maps representatives of shared widths to group names."""
    steps: list[Step] = []
    # Which steps the value of a node comes from, through everything that is not drawn.
    origins: dict[fx.Node, tuple[int, ...]] = {}
    for node in flow.traced.graphs["eval"].nodes:
        before = tuple(dict.fromkeys(i for source in node.all_input_nodes for i in origins[source]))
        kind = _kind(flow, node, len(before))
        if kind is None:
            origins[node] = before
            continue
        name = flow.calls[node][0] if node in flow.calls else node.target if node.op == "call_module" else node.name
        steps.append(Step(str(name), kind, before, () if node.op == "output" else _channels(flow, node, names)))
        origins[node] = (len(steps) - 1,)
    return tuple(steps)


def _kind(flow: Flow, node: fx.Node, branches: int) -> str | None:
    if node.op in ("output", "placeholder"):
        return "input" if node.op == "placeholder" else "output"
    if node.op == "call_module" and node.target in flow.traced.opaque:
        return f"{type(flow.traced.modules[node.target]).__name__} (untraced)"
    if node in flow.calls:
        return _layer_kind(flow, node)
    if branches < 2 or not isinstance(node.meta.get("value"), torch.Tensor):
        return None
    rule = flow.rule_of(node)
    if rule is axes.cat:
        return "cat"
    if rule is elementwise.broadcast:
        text = getattr(node.target, "__name__", str(node.target))
        return "mul" if "mul" in text else "add" if "add" in text else text.strip("_")
    return getattr(node.target, "__name__", str(node.target))


def _layer_kind(flow: Flow, node: fx.Node) -> str:
    if node.op != "call_module":
        return node.target.__name__
    module = flow.traced.modules[node.target]
    kind = type(module).__name__
    if isinstance(module, nn.modules.conv._ConvNd):
        kind += " " + "x".join(map(str, module.kernel_size))
        kind += f" /{module.stride[0]}" if max(module.stride) > 1 else ""
        kind += " depthwise" if 1 < module.groups == module.in_channels else f" g={module.groups}" if module.groups > 1 else ""
    return kind


def _channels(flow: Flow, node: fx.Node, names: dict[Source, str]) -> tuple[tuple[str | None, int], ...]:
    value, layout = node.meta["value"], flow.layouts[node]
    if not isinstance(value, torch.Tensor) or value.dim() < 2:
        return ()
    moving = next((axis for axis in layout if axis is not None), None)
    if moving is None:
        return ((None, value.shape[1]),)
    return tuple((None if s.source is FIXED else names.get(flow.ties.root(s.source)), s.size) for s in moving)
