"""Which part of a network is cheap to slim: one stage at a time (US-Nets, supplementary)."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from autoslim.channels.config import ChannelConfig
from autoslim.channels.trace import as_inputs
from autoslim.cost.table import CostTable
from autoslim.errors import ConfigError
from autoslim.search.evaluate import SupernetEvaluator
from autoslim.slimmable.modes import eval_mode
from autoslim.slimmable.supernet import Supernet


@torch.no_grad()
def find_stages(net: Supernet, example) -> list[tuple[int, tuple[str, ...]]]:
    """Return the stages of a supernet: `(resolution, group names)`, the highest resolution first.

    A group belongs to the resolution (height in pixels) at which its first layer puts its channels out; a group of no such
    layer to that of the group before it.
    """
    heights: dict[str, int] = {}
    hooks = []

    def watch(name: str):
        def hook(module, inputs, output):
            if isinstance(output, Tensor) and output.dim() == 4:
                heights.setdefault(name, output.shape[2])

        return hook

    for name, module in net.model.named_modules():
        hooks.append(module.register_forward_hook(watch(name)))
    try:
        with eval_mode(net), net.using(net.full()):
            net(*as_inputs(example))
    finally:
        for hook in hooks:
            hook.remove()
    found: dict[int, list[str]] = {}
    height = max(heights.values(), default=1)
    for group in net.groups:
        height = next((heights[layer] for layer in group.members if layer in heights), height)
        found.setdefault(height, []).append(group.name)
    return [(height, tuple(found[height])) for height in sorted(found, reverse=True)]


def score_stages(evaluator: SupernetEvaluator, example, *, ratio: float = 0.6, points: int = 8) -> list[dict]:
    """Score a nonuniform supernet with one stage at a time slimmed by a ratio, over a sweep of the global ratio.

    Args:
        evaluator: what judges configurations of the supernet.
        example: an input of it.
        ratio: what the slimmed stage keeps of the width that the others have.
        points: global ratios that a stage is swept over; the uniform sweep takes two more.

    Returns:
        one row a configuration: stage ("none" for uniform slimming), ratio (the global one), macs, accuracy, loss, images.
    """
    net, table, rows = evaluator.net, CostTable(evaluator.net), []
    stages = find_stages(net, example)
    for index, value, config in stage_configs(net, stages, ratio, points):
        score = evaluator.score(config)
        name = "none" if index is None else f"stage {index + 1} ({stages[index][0]} px)"
        rows.append({
            "stage": name, "ratio": round(value, 4), "macs": table.cost(config).macs, "accuracy": 1 - score.error,
            "loss": score.loss, "images": score.images,
        })  # fmt: skip
    return rows


def stage_configs(
    net: Supernet, stages: Sequence[tuple[int, tuple[str, ...]]], ratio: float, points: int
) -> Iterator[tuple[int | None, float, ChannelConfig]]:
    """Yield `(stage index or None, global ratio, configuration)`: every stage at `ratio` of a global ratio that is swept.

    None stands for the uniform configurations, swept over the whole range; those of a stage keep above the grid's `min_ratio`.

    Raises:
        ConfigError: no global ratio leaves the slimmed stage above `min_ratio`.
    """
    low = net.grid.min_ratio
    if not low < ratio < 1:
        raise ConfigError(f"ratio {ratio:g} is not between {low:g}, the narrowest this supernet was trained for, and 1; pass 0.6")
    for index, names in [(None, ()), *((index, names) for index, (_, names) in enumerate(stages))]:
        ratios = torch.linspace(low, 1, points + 2) if index is None else torch.linspace(low / ratio, 1, points)
        last = None
        for value in ratios.tolist():
            slim = [value * ratio if group.name in names else value for group in net.groups]
            widths = [net.grid.nearest(part * w.full, w.full, w.unit) for part, w in zip(slim, net.widths)]
            if widths != last:  # the grid may round two ratios to one network
                yield index, value, net.make_config(widths)
            last = widths
