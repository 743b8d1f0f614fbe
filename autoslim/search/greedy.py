"""Greedy slimming (AutoSlim, section 3): narrow the group that hurts least, one step at a time, down to every target."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from tqdm import tqdm

from autoslim.channels.config import ChannelConfig
from autoslim.cost.table import Cost, CostTable
from autoslim.cost.targets import check_targets
from autoslim.errors import ConfigError
from autoslim.search.evaluate import Score, SupernetEvaluator
from autoslim.search.trace import Candidate, SearchTrace
from autoslim.slimmable.supernet import Supernet

SCORES = ("error", "loss")


@dataclass(frozen=True)
class SearchPoint:
    """The first configuration of a descent that meets a target.

    Attributes:
        target: the wanted multiply-adds.
        config: the configuration, with cost and estimate filled in.
        cost: its cost.
        score: the supernet's estimate on the search images; not the accuracy of a retrained network.
        step: how many steps below full width it lies.
    """

    target: float
    config: ChannelConfig
    cost: Cost
    score: Score
    step: int


def _drop(candidate: Candidate, current: Candidate, key: str) -> float:
    return getattr(candidate, key)


def _drop_per_mac(candidate: Candidate, current: Candidate, key: str) -> float:
    return (getattr(candidate, key) - getattr(current, key)) / (current.macs - candidate.macs)


# What a step minimises: the paper's rule looks at the score alone.
PICK_RULES: dict[str, Callable[[Candidate, Candidate, str], float]] = {"drop": _drop, "drop-per-mac": _drop_per_mac}


def greedy_search(
    net: Supernet,
    images: Iterable | None = None,
    calibration: Iterable | None = None,
    *,
    targets: Mapping[str, Iterable[float]],
    score: str = "error",
    pick: str = "drop",
    evaluator=None,
    calibration_images: int = 1024,
    trace: SearchTrace | None = None,
    progress: bool = False,
) -> Iterator[SearchPoint]:
    """Slim a trained supernet greedily and yield one configuration a target, largest target first.

    From full width, each step tries every group one choice narrower, calibrates BN for that candidate, scores it and keeps
    the best; ties go to the candidate that saves more, then to the earlier group.

    Args:
        net: the supernet.
        images: `(images, labels)` batches held out of training.
        calibration: batches of training images for the BN statistics.
        targets: `{"macs": [60e6, 40e6]}`, or one amount; "60%" is a part of the full network.
        score: "error" (the paper) or "loss".
        pick: "drop" (the paper: the best score) or "drop-per-mac" (the least increase per multiply-add saved).
        evaluator: anything with `score(config) -> Score`, in place of `images` and `calibration`.
        calibration_images: leading batches of `calibration` are taken until they hold this many images.
        trace: where every candidate is recorded; candidates that it already holds are not evaluated again.
        progress: draw a progress bar on stderr.

    Raises:
        TargetError: a target is out of reach; raised by the call itself, before any evaluation.
        ConfigError: `score` or `pick` is unknown, or neither images nor an evaluator is given.
    """
    if score not in SCORES:
        raise ConfigError(f"score {score!r} is unknown; pass one of {', '.join(SCORES)}")
    if pick not in PICK_RULES:
        raise ConfigError(f"pick {pick!r} is unknown; pass one of {', '.join(PICK_RULES)}")
    if set(targets) != {"macs"}:
        raise ConfigError(f"targets are for {', '.join(map(repr, targets)) or 'nothing'}; pass {{'macs': [...]}}")
    table = CostTable(net)
    wanted = check_targets(targets["macs"], table.cost(net.full()).macs, table.cost(net.narrowest()).macs)
    if evaluator is None:
        if images is None or calibration is None:
            raise ConfigError("the search needs images and calibration batches, or an evaluator; pass them")
        evaluator = SupernetEvaluator(net, images, calibration, calibration_images=calibration_images)
    return _descend(net, table, evaluator, wanted, score, pick, trace or SearchTrace(), progress)


def _descend(net, table, evaluator, targets, score, pick, trace, progress) -> Iterator[SearchPoint]:
    remaining = sorted(targets, reverse=True)
    widths = net.full().widths
    choices = net.choices
    start = table.cost(widths).macs
    bar = tqdm(total=start - remaining[-1], desc="searching", unit="MAC", unit_scale=True, disable=not progress)
    with bar:
        current = _judge(net, table, evaluator, trace, 0, "", widths)
        trace.record([current], current)
        step = 0
        while True:
            while remaining and current.macs <= remaining[0]:
                yield _point(net, table, remaining.pop(0), widths, current)
            if not remaining:
                return
            step += 1
            candidates = []
            for name, width in widths.items():
                position = choices[name].index(width)
                if position == 0:
                    continue
                narrowed = {**widths, name: choices[name][position - 1]}
                if table.cost(narrowed).macs >= current.macs:
                    continue  # a head that only training runs
                candidates.append(_judge(net, table, evaluator, trace, step, name, narrowed))
            previous, measure = current, PICK_RULES[pick]
            values = {c: measure(c, previous, score) for c in candidates}
            # A candidate without a score (its loss is no number) is the worst.
            current = min(candidates, key=lambda c: (values[c] if values[c] == values[c] else math.inf, c.macs))
            trace.record(candidates, current)
            widths = {**widths, current.group: current.width}
            bar.set_postfix_str(f"step {step}, {current.macs / 1e6:.3g}M MACs, {score} {getattr(current, score):.4f}")
            bar.update(min(previous.macs, start) - max(current.macs, remaining[-1]))


def _judge(net, table, evaluator, trace: SearchTrace, step: int, group: str, widths: dict[str, int]) -> Candidate:
    width = widths.get(group, 0)
    known = trace.find(step, group, width)
    if known is not None:
        return known
    order = [w.name for w in net.widths]
    scored = evaluator.score(net.make_config([widths[name] for name in order]))
    return Candidate(step, group, width, table.cost(widths).macs, scored.error, scored.loss, scored.images)


def _point(net, table, target: float, widths: dict[str, int], at: Candidate) -> SearchPoint:
    cost = table.cost(widths)
    score = Score(at.error, at.loss, at.images)
    config = net.make_config([widths[w.name] for w in net.widths])
    config = replace(config, cost=cost.to_json(), estimate={"kind": "supernet estimate", **score.to_json()})
    return SearchPoint(target, config, cost, score, at.step)
