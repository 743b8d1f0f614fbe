"""Greedy slimming (AutoSlim, section 3): narrow the group that hurts least, one step at a time, down to every target."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from autoslim.channels.config import ChannelConfig
from autoslim.cost.budgets import Budgets, Target
from autoslim.cost.table import Cost
from autoslim.errors import ConfigError, RunError
from autoslim.search.contest import Judged, Step, WholeContest
from autoslim.search.evaluate import Score, ask
from autoslim.search.judge import step_evaluator
from autoslim.search.lazy import STALE, Lazy
from autoslim.search.progress import Progress
from autoslim.search.trace import Candidate, SearchTrace
from autoslim.slimmable.supernet import Supernet

SCORES = ("error", "loss")
EFFORTS = ("fast", "exact")
_OTHER = "the trace was written by another search ({}); search with the same settings, or into another folder"


@dataclass(frozen=True)
class PickRule:
    """What the candidates of a step are, and how they are compared.

    Attributes:
        weigh: what the increase of the score is divided by, from what a candidate saves of what is missing to the target.
        part: how much of the full network's cost, of a kind that is not met, a candidate saves at least, but no more than half of
            a group's even share; its group is narrowed by as many choices as that takes. By one choice where it is 0.
    """

    weigh: Callable[[float], float] = lambda saved: 1.0
    part: float = 0.0


PICK_RULES = {
    "drop": PickRule(),  # AutoSlim, section 3.2: cheap layers are narrowed first
    "drop-per-saving": PickRule(weigh=lambda saved: saved),
    "equal-saving": PickRule(part=0.02),  # NetAdapt, section 3
}


@dataclass(frozen=True)
class SearchPoint:
    """The first configuration of a descent that meets a target.

    Attributes:
        target: the amounts that it had to meet.
        config: the configuration, with cost and estimate filled in.
        cost: its cost.
        score: the supernet's estimate on the search images; not the accuracy of a retrained network.
        step: how many steps below full width it lies.
    """

    target: Target
    config: ChannelConfig
    cost: Cost
    score: Score
    step: int


def greedy_search(
    net: Supernet,
    images: Iterable | None = None,
    calibration: Iterable | None = None,
    *,
    targets: Mapping[str, Iterable[float | str] | float | str],
    budgets: Budgets | None = None,
    score: str = "error",
    pick: str = "drop",
    effort: str = "fast",
    evaluator=None,
    calibration_images: int = 1024,
    trace: SearchTrace | None = None,
    progress: bool = False,
) -> Iterator[SearchPoint]:
    """Slim a trained supernet greedily and yield one configuration a target, largest target first.

    From full width, each step tries groups one choice narrower (or as the pick rule says), calibrates BN for each candidate,
    scores it and keeps the best; ties go to the candidate that costs fewer multiply-adds, then to the earlier group. The supernet
    is left at other widths than it had, with other BN statistics. Under torchrun all processes have to call it.

    Args:
        net: the supernet.
        images: `(images, labels)` batches held out of training.
        calibration: batches of training images for the BN statistics.
        targets: `{"macs": [60e6, 40e6], "params": "60%"}`: amounts by kind, see `autoslim.cost.budgets`; "60%" is a part of the
            full network. One configuration meets the largest amounts of all kinds, the next one the second largest.
        budgets: counts the costs; needed for a latency target, and for memory or size in other than the usual terms.
        score: "error" (the paper) or "loss".
        pick: "drop" (the paper: the best score), "drop-per-saving" (the least increase for what it saves) or "equal-saving" (the
            best score among candidates that are narrowed until each saves a fiftieth of the full network's cost; what is found lies
            up to that much below its target).
        effort: "exact" decides every step among all candidates, on all images; "fast" among those that an earlier step does
            not speak against, on as many images as it takes to tell them apart, see `autoslim.search.contest.Race`.
        evaluator: anything with `score(config) -> Score`, in place of `images` and `calibration`; one that also has
            `contest(step, effort)`, as `PartialEvaluator`, is given the candidates of a step together.
        calibration_images: leading batches of `calibration` are taken until they hold this many images.
        trace: where every candidate is recorded; candidates that it already holds are not evaluated again.
        progress: draw a progress bar on stderr.

    Raises:
        TargetError: a target is out of reach; raised by the call itself, before any evaluation.
        ConfigError: `score`, `pick` or a kind of targets is unknown, or neither images nor an evaluator is given.
    """
    if pick not in PICK_RULES:
        raise ConfigError(f"pick {pick!r} is unknown; pass one of {', '.join(PICK_RULES)}")
    if effort not in EFFORTS:
        raise ConfigError(f"effort {effort!r} is unknown; pass one of {', '.join(EFFORTS)}")
    budgets = budgets or Budgets(net, targets)
    wanted = budgets.check(targets)
    check_judge(score, images, calibration, evaluator)
    if evaluator is None:
        evaluator = step_evaluator(net, images, calibration, calibration_images=calibration_images)
    return _descend(net, budgets, evaluator, wanted, score, pick, effort, trace or SearchTrace(), progress)


def check_judge(score: str, images, calibration, evaluator) -> None:
    """Raise ConfigError unless it is known what judges the configurations of a search."""
    if score not in SCORES:
        raise ConfigError(f"score {score!r} is unknown; pass one of {', '.join(SCORES)}")
    if evaluator is None and (images is None or calibration is None):
        raise ConfigError("the search needs images and calibration batches, or an evaluator; pass them")


def _descend(net, budgets, evaluator, targets, score, pick, effort, trace, progress) -> Iterator[SearchPoint]:
    remaining = list(targets)
    full = net.full()
    widths = full.widths
    strategy = Lazy(score, stale=STALE if effort == "fast" else 1)
    if hasattr(evaluator, "forget"):
        evaluator.forget()
    with Progress(budgets.full, targets, shown=progress) as shown:
        known = trace.step(0)
        recorded = bool(known)
        if not known:
            scored = ask(evaluator, full)
            known = [_candidate(0, "", 0, budgets.full["macs"], Judged(scored, scored))]
            trace.record(known)
        elif [(each.group, each.macs) for each in known] != [("", budgets.full["macs"])]:
            raise RunError(_OTHER.format("begins at another full network"))
        current = known[-1]
        while True:
            costs = budgets.costs(widths)
            shown.update(
                costs,
                f"step {current.step}, {current.macs / 1e6:.3g}M MACs, {score} {getattr(current, score):.4f}",
                recorded=recorded,
            )
            while remaining and remaining[0].met(costs):
                with shown.away():  # what is done with a point is no part of the descent
                    yield _point(net, budgets, evaluator, remaining.pop(0), widths, current, effort)
            if not remaining:
                return
            number = current.step + 1
            step = _step(net, budgets, widths, costs, current, remaining[0], score, pick)
            candidates = trace.step(number)
            recorded = bool(candidates)
            if recorded:
                _check_recorded(candidates, step, effort)
            else:
                contest = evaluator.contest(step, effort) if hasattr(evaluator, "contest") else WholeContest(evaluator, step)
                strategy.run(number, step, contest)
                judged = contest.close()
                order = [*(name for name in step.candidates if name in judged and name != contest.best), contest.best]
                candidates = [
                    _candidate(number, name, step.candidates[name].widths[name], step.macs[name], judged[name]) for name in order
                ]
                trace.record(candidates)
            strategy.learn(candidates)
            current = candidates[-1]
            widths = {**widths, current.group: current.width}


def _step(net, budgets, widths, costs, current: Candidate, target: Target, score: str, pick: str) -> Step:
    """Return the choices of a step: every group narrower, where that brings the target nearer."""
    rule = PICK_RULES[pick]
    narrower = narrowed(net, budgets, widths, costs, target.unmet(costs), rule.part)
    candidate_costs = {name: budgets.costs(candidate) for name, candidate in narrower.items()}
    gains = target.gains(costs, candidate_costs)
    return Step(
        base=_config(net, widths),
        base_score=Score(current.error, current.loss, current.images),
        candidates={name: _config(net, narrower[name]) for name in gains},
        savings={name: rule.weigh(gain) for name, gain in gains.items()},
        macs={name: candidate_costs[name]["macs"] for name in gains},
        score=score,
    )


def narrowed(net: Supernet, budgets: Budgets, widths, costs, kinds: Iterable[str], part: float) -> dict[str, dict[str, int]]:
    """Return the widths with every group narrower by one choice, or by as few as save a part of the full network's cost.

    Groups that cannot save so much are left out, unless none can.

    Args:
        widths, costs: of the configuration that is narrowed.
        kinds: of cost, one of which is to be saved.
        part: see `PickRule`.
    """
    least = {kind: min(part, 0.5 / len(widths)) * budgets.full[kind] for kind in kinds}

    def saves_enough(candidate: dict[str, int]) -> bool:
        after = budgets.costs(candidate)
        return any(costs[kind] - after[kind] >= amount for kind, amount in least.items())

    by_one, enough = {}, {}
    for name, width in widths.items():
        choices = net.choices[name]
        candidates = [{**widths, name: choice} for choice in reversed(choices[: choices.index(width)])]
        if candidates:
            by_one[name] = candidates[0]
            if part and (candidate := next(filter(saves_enough, candidates), None)):
                enough[name] = candidate
    return enough or by_one


def _check_recorded(candidates: list[Candidate], step: Step, effort: str) -> None:
    """Raise RunError unless the recorded candidates of a step are its own, and the picked one, the last, is the best.

    Who left a race early was judged on other images; who raced in another wave on the same ones may be better there, and is then
    recorded with a certainty of 1/2 at most.
    """
    *_, picked = candidates
    legal = {name: (config.widths[name], step.macs[name]) for name, config in step.candidates.items()}
    known = all(legal.get(each.group) == (each.width, each.macs) for each in candidates)
    known &= len({each.group for each in candidates}) == len(candidates)
    known &= effort != "exact" or len(candidates) == len(legal)  # all of them are judged
    lost = [c for c in candidates if c is picked or (c.images == picked.images and (c.certainty or 0.0) > 0.5)]
    values = {c.group: step.value(c.group, c.increase(step.score)) for c in lost if known}
    if not known or step.best(values) != picked.group:
        raise RunError(_OTHER.format(f"step {picked.step} narrowed {picked.group!r} to {picked.width} channels"))


def _candidate(step: int, group: str, width: int, macs: int, judged: Judged) -> Candidate:
    score, base = judged.score, judged.base
    return Candidate(step, group, width, macs, score.error, score.loss, score.images, base.error, base.loss, judged.certainty)


def _config(net: Supernet, widths: dict[str, int]) -> ChannelConfig:
    return net.make_config([widths[width.name] for width in net.widths])


def _point(net, budgets, evaluator, target: Target, widths: dict[str, int], at: Candidate, effort: str) -> SearchPoint:
    cost = budgets.table.cost(widths)
    config = _config(net, widths)
    # A fast search judged it on a sample.
    roughly = hasattr(evaluator, "contest") and (effort == "fast" or getattr(evaluator, "precision", "fp32") != "fp32")
    score = ask(evaluator, config) if roughly else Score(at.error, at.loss, at.images)
    config = replace(config, cost=cost.to_json(), estimate=score.estimate())
    return SearchPoint(target, config, cost, score, at.step)
