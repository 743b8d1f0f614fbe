"""Greedy slimming (AutoSlim, section 3): narrow the group that hurts least, one step at a time, down to every target."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from tqdm import tqdm

from autoslim.channels.config import ChannelConfig
from autoslim.cost.table import Cost, CostTable
from autoslim.cost.targets import check_targets
from autoslim.errors import ConfigError
from autoslim.search.engine import Race, step_evaluator
from autoslim.search.evaluate import Score
from autoslim.search.lazy import Everyone, Lazy
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


# What a step divides the increase of the score by: the paper's rule looks at the score alone.
PICK_RULES: dict[str, Callable[[int], float]] = {"drop": lambda saved: 1.0, "drop-per-mac": lambda saved: float(saved)}
EFFORTS = ("fast", "exact")


def greedy_search(
    net: Supernet,
    images: Iterable | None = None,
    calibration: Iterable | None = None,
    *,
    targets: Mapping[str, Iterable[float]],
    score: str = "error",
    pick: str = "drop",
    effort: str = "exact",
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
        effort: "exact" evaluates every candidate of every step on all images; "fast" those that an earlier step does not
            speak against, on as many images as it takes to tell them apart.
        evaluator: anything with `score(config) -> Score`, in place of `images` and `calibration`; with
            `score_step(base, {group: config}) -> {group: Score}`, too, it is given all candidates of a step together.
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
    if effort not in EFFORTS:
        raise ConfigError(f"effort {effort!r} is unknown; pass one of {', '.join(EFFORTS)}")
    if set(targets) != {"macs"}:
        raise ConfigError(f"targets are for {', '.join(map(repr, targets)) or 'nothing'}; pass {{'macs': [...]}}")
    table = CostTable(net)
    wanted = check_targets(targets["macs"], table.cost(net.full()).macs, table.cost(net.narrowest()).macs)
    if evaluator is None:
        if images is None or calibration is None:
            raise ConfigError("the search needs images and calibration batches, or an evaluator; pass them")
        evaluator = step_evaluator(net, images, calibration, calibration_images=calibration_images)
    return _descend(net, table, evaluator, wanted, score, pick, effort, trace or SearchTrace(), progress)


def _descend(net, table, evaluator, targets, score, pick, effort, trace, progress) -> Iterator[SearchPoint]:
    remaining = sorted(targets, reverse=True)
    widths = net.full().widths
    choices = net.choices
    start = table.cost(widths).macs
    strategy = Lazy(score) if effort == "fast" else Everyone()
    bar = tqdm(total=start - remaining[-1], desc="searching", unit="MAC", unit_scale=True, disable=not progress)
    with bar:
        current = trace.find(0, "", 0) or _candidate(0, "", 0, start, scored := evaluator.score(_config(net, widths)), scored)
        trace.record([current], current)
        step = 0
        while True:
            while remaining and current.macs <= remaining[0]:
                yield _point(net, table, evaluator, remaining.pop(0), widths, current)
            if not remaining:
                return
            step += 1
            narrower = {}
            for name, width in widths.items():
                position = choices[name].index(width)
                narrowed = {**widths, name: choices[name][position - 1]}
                # A head that only training runs saves nothing.
                if position and table.cost(narrowed).macs < current.macs:
                    narrower[name] = narrowed
            savings = {n: PICK_RULES[pick](current.macs - table.cost(w).macs) for n, w in narrower.items()}
            judge = _Judge(net, table, evaluator, trace, step, widths, current, narrower, savings, score, effort)
            candidates = strategy.candidates(step, savings, judge)
            previous = current
            values = {c: c.increase(score) / savings[c.group] for c in candidates}
            order = list(narrower)
            # A candidate without a score (its loss is no number) is the worst.
            current = min(
                candidates, key=lambda c: (values[c] if values[c] == values[c] else math.inf, c.macs, order.index(c.group))
            )
            trace.record(candidates, current)
            widths = {**widths, current.group: current.width}
            bar.set_postfix_str(f"step {step}, {current.macs / 1e6:.3g}M MACs, {score} {getattr(current, score):.4f}")
            bar.update(min(previous.macs, start) - max(current.macs, remaining[-1]))


@dataclass(frozen=True)
class _Judge:
    """Evaluates candidates of one step, those apart that the trace knows."""

    net: Supernet
    table: CostTable
    evaluator: object
    trace: SearchTrace
    step: int
    widths: dict[str, int]
    current: Candidate
    narrower: dict[str, dict[str, int]]
    savings: dict[str, float]
    score: str
    effort: str

    def __call__(self, names: list[str]) -> dict[str, Candidate]:
        """Return candidates by the names of their groups."""
        found = {name: self.trace.find(self.step, name, self.narrower[name][name]) for name in names}
        if self.effort == "fast" and None in found.values():
            found = dict.fromkeys(names)  # on how many images one was scored depends on those it raced with
        unknown = {name: _config(self.net, self.narrower[name]) for name, known in found.items() if known is None}
        for name, (scored, base) in self._scores(unknown).items():
            widths = self.narrower[name]
            found[name] = _candidate(self.step, name, widths[name], self.table.cost(widths).macs, scored, base)
        return found

    def _scores(self, unknown: dict[str, ChannelConfig]) -> dict[str, tuple]:
        if not unknown:
            return {}
        if not hasattr(self.evaluator, "score_step"):
            base = Score(self.current.error, self.current.loss, self.current.images)
            return {name: (self.evaluator.score(config), base) for name, config in unknown.items()}
        race = Race(self.score, self.savings) if self.effort == "fast" else None
        stepped = self.evaluator.score_step(_config(self.net, self.widths), unknown, race)
        return {name: (each.score, each.base) for name, each in stepped.items()}


def _candidate(step: int, group: str, width: int, macs: int, scored: Score, base: Score) -> Candidate:
    return Candidate(step, group, width, macs, scored.error, scored.loss, scored.images, base.error, base.loss)


def _config(net: Supernet, widths: dict[str, int]) -> ChannelConfig:
    return net.make_config([widths[width.name] for width in net.widths])


def _point(net, table, evaluator, target: float, widths: dict[str, int], at: Candidate) -> SearchPoint:
    cost = table.cost(widths)
    config = _config(net, widths)
    whole = getattr(evaluator, "images", at.images)
    score = Score(at.error, at.loss, at.images) if at.images == whole else evaluator.score(config)
    config = replace(config, cost=cost.to_json(), estimate={"kind": "supernet estimate", **score.to_json()})
    return SearchPoint(target, config, cost, score, at.step)
