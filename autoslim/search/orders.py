"""Other orders of search than the greedy descent, for comparison on the same supernet: uniform, random, evolution."""

import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from autoslim.channels.config import ChannelConfig
from autoslim.cost.amounts import KINDS
from autoslim.cost.budgets import Budgets
from autoslim.cost.table import CostTable
from autoslim.errors import ConfigError, RunError, TargetError
from autoslim.search.evaluate import Score, SupernetEvaluator, ask
from autoslim.search.greedy import SearchPoint, check_judge
from autoslim.search.ranks import first_process
from autoslim.search.rows import append_rows, read_rows, write_rows
from autoslim.slimmable.supernet import Supernet

log = logging.getLogger("autoslim")

_in_short = KINDS["macs"].format
Widths = tuple[int, ...]  # one a group, in the order of `Supernet.groups`
COLUMNS = ["target", "macs", "error", "loss", "images", "picked", "widths"]
_PATIENCE = 200  # tries in a row that give no new configuration, before there are taken to be no more


def uniform_search(
    net: Supernet, images: Iterable | None = None, calibration: Iterable | None = None, *, targets: Mapping, **options
) -> Iterator[SearchPoint]:
    """Yield the largest uniform configuration of every target, largest target first; one evaluation each.

    Args:
        net, images, calibration: see `greedy_search`.
        targets: `{"macs": [60e6, "40%"]}`.
        options: `score` ("error" or "loss"), `evaluator`, `calibration_images` and `progress` as in `greedy_search`, and
            `trace`, an `OrderTrace`: what it holds is not evaluated again.

    Raises:
        TargetError: a target is out of reach; raised by the call itself, before any evaluation.
        ConfigError: an option is unknown, or neither images nor an evaluator is given.
    """
    search = _Search(net, images, calibration, targets, **options)
    plans = {target: _widths(uniform_config(net, target)) for target in search.targets}
    return search.run(lambda target, judge: judge(plans[target]), 1)


def random_search(
    net: Supernet, images: Iterable | None = None, calibration: Iterable | None = None, *, targets: Mapping,
    evaluations: int = 100, tolerance: float = 0.01, seed: int = 0, **options,
) -> Iterator[SearchPoint]:  # fmt: skip
    """Yield the best of some random configurations just below every target, largest target first.

    Args:
        net, images, calibration, targets, options: see `uniform_search`.
        evaluations: how many different ones are evaluated for a target; fewer where no more are found.
        tolerance: how far below the target they may lie, as a part of it. How they are drawn says `random_configs`.
        seed: of the configurations; each target has its own.

    Raises:
        TargetError, ConfigError: see `uniform_search`; and no configuration is found so close to a target.
    """
    search = _Search(net, images, calibration, targets, **options)
    plans = {target: _Window(net, search.macs, target, tolerance, seed).draws(evaluations) for target in search.targets}

    def order(target: float, judge: Callable) -> None:
        for widths in plans[target]:
            judge(widths)

    return search.run(order, evaluations)


def evolution_search(
    net: Supernet, images: Iterable | None = None, calibration: Iterable | None = None, *, targets: Mapping,
    evaluations: int = 100, population: int = 32, tolerance: float = 0.01, seed: int = 0, **options,
) -> Iterator[SearchPoint]:  # fmt: skip
    """Yield the best configuration that an evolution finds just below every target, largest target first.

    The first population is random. Each generation, the `population` best of all so far have as many children: half by
    crossover (every group from either of two parents), half by mutation (one or two groups one choice up or down), brought
    back to the target by steps of random groups. Parents are drawn by linear rank.

    Args:
        net, images, calibration, targets, options: see `uniform_search`.
        evaluations: how many different configurations are evaluated for a target; fewer where no more are found.
        population: how many are parents.
        tolerance, seed: see `random_search`.

    Raises:
        TargetError, ConfigError: see `random_search`.
    """
    if population < 2:
        raise ConfigError(f"population is {population}; crossover needs 2 or more")
    search = _Search(net, images, calibration, targets, **options)
    windows = {target: _Window(net, search.macs, target, tolerance, seed) for target in search.targets}
    plans = {target: window.draws(min(population, evaluations)) for target, window in windows.items()}

    def order(target: float, judge: Callable) -> None:
        window, children = windows[target], plans[target]
        seen: dict[Widths, tuple] = {}
        while children:
            for widths in children:
                seen[widths] = judge(widths)
            parents = sorted(seen, key=seen.__getitem__)[:population]
            wanted = min(population, evaluations - len(seen))
            children = window.new(wanted, lambda: window.child(parents), seen)

    return search.run(order, evaluations)


def uniform_config(net: Supernet, target: float) -> ChannelConfig:
    """Return the largest uniform configuration of at most `target` multiply-adds that the supernet was trained for.

    Raises:
        TargetError: even the narrowest one costs more.
    """
    macs = _macs_of(net)
    ratios = range(max(1, math.ceil(1000 * net.grid.min_ratio)), 1001)
    configs = [net.uniform(ratio / 1000) for ratio in ratios]
    costs = [macs(_widths(config)) for config in configs]
    if costs[0] > target:
        raise TargetError(
            f"flops target {_in_short(target)} is below the narrowest uniform configuration "
            f"({_in_short(costs[0])} MACs); raise the target"
        )
    return configs[max(i for i, cost in enumerate(costs) if cost <= target)]


def random_configs(net: Supernet, target: float, count: int, *, tolerance: float = 0.01, seed: int = 0) -> list[ChannelConfig]:
    """Draw different configurations of `(1 - tolerance) * target` to `target` multiply-adds.

    Each group draws a number u, uniformly from 0 to 1, and takes the choice at u ** gamma of its range; gamma, one for all
    groups, is what the target asks for. Then random groups move one choice at a time until the cost fits. So widths are
    nonuniform whatever the target: where independent uniform draws cost as much as the target they are about such draws,
    for larger targets they lean to the wide end, for smaller ones to the narrow end. All configurations can be drawn, but
    not all as often. Groups that inference does not use keep their full width.

    Args:
        target: multiply-adds.
        count: how many; fewer where no more are found, which the log says.

    Raises:
        TargetError: none is found.
        ConfigError: `count` is below 1, or `tolerance` not from 0 to 1.
    """
    return [net.make_config(widths) for widths in _Window(net, _macs_of(net), target, tolerance, seed).draws(count)]


def _macs_of(net: Supernet) -> Callable[[Widths], int]:
    table, names = CostTable(net), [width.name for width in net.widths]
    return lambda widths: table.cost(dict(zip(names, widths))).macs


def _widths(config: ChannelConfig) -> Widths:
    return tuple(config.widths.values())


class _Window:
    """The configurations just below a target."""

    def __init__(self, net: Supernet, macs: Callable[[Widths], int], target: float, tolerance: float, seed: int):
        if not 0 <= tolerance < 1:
            raise ConfigError(f"tolerance is {tolerance}; it is a part of the target, from 0 to below 1")
        self._macs, self._least, self._most, self._tolerance = macs, (1 - tolerance) * target, target, tolerance
        self._random = random.Random(f"{seed} {float(target)!r}")
        full = _widths(net.full())
        used = [macs((*full[:i], w.choices[0], *full[i + 1 :])) < macs(full) for i, w in enumerate(net.widths)]
        self._choices = [w.choices if is_used else (w.full,) for w, is_used in zip(net.widths, used)]

    def draws(self, count: int) -> list[Widths]:
        """Return different random configurations, as `random_configs` says."""
        if count < 1:
            raise ConfigError(f"{count} configurations cannot be drawn; ask for 1 or more")
        found = self.new(count, self._draw)
        if not found:
            raise TargetError(
                f"no configuration was found within {100 * self._tolerance:.3g} % below flops target {_in_short(self._most)}, "
                f"in {_PATIENCE} tries; name another target, raise the tolerance, or lower the divisor of the grid"
            )
        return found

    def new(self, count: int, draw: Callable[[], Widths | None], known: Iterable[Widths] = ()) -> list[Widths]:
        """Return up to `count` different configurations that are not known."""
        known, found, misses = set(known), {}, 0
        while len(found) < count and misses < _PATIENCE:
            widths = draw()
            fresh = widths is not None and widths not in known and widths not in found
            misses = 0 if fresh else misses + 1
            found.update({widths: None} if fresh else {})
        if len(found) < count:
            log.info("only %d of %d new configurations were found just below %s", len(found), count, _in_short(self._most))
        return list(found)

    def child(self, parents: list[Widths]) -> Widths | None:
        """Return a child of parents, the best first; None where it cannot be brought into the window."""
        draw = self._random
        mother, father = draw.choices(parents, weights=range(len(parents), 0, -1), k=2)
        if draw.random() < 0.5:
            return self._fit([draw.choice(pair) for pair in zip(mother, father)])
        child, free = list(mother), [i for i, choices in enumerate(self._choices) if len(choices) > 1]
        for i in draw.sample(free, min(len(free), draw.choice((1, 2)))):
            child[i] = self._moved(i, child[i], draw.choice((-1, 1))) or child[i]
        return self._fit(child)

    def _draw(self) -> Widths | None:
        parts = [self._random.random() for _ in self._choices]

        def at(gamma: float) -> list[int]:
            return [values[min(int(u**gamma * len(values)), len(values) - 1)] for u, values in zip(parts, self._choices)]

        low, high = -10.0, 10.0  # of the logarithm of gamma: from all groups at their widest to all at their narrowest
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if self._macs(tuple(at(2**middle))) > self._most else (low, middle)
        return self._fit(at(2**high))

    def _fit(self, widths: list[int]) -> Widths | None:
        """Move random groups one choice at a time until the cost fits; a move that makes it fit goes first."""
        for _ in range(4 * len(widths) + 1):
            cost = self._macs(tuple(widths))
            if self._least <= cost <= self._most:
                return tuple(widths)
            first = None
            for i in self._random.sample(range(len(widths)), len(widths)):
                width = self._moved(i, widths[i], 1 if cost < self._least else -1)
                if width is None:
                    continue
                moved = [*widths[:i], width, *widths[i + 1 :]]
                if self._least <= self._macs(tuple(moved)) <= self._most:
                    return tuple(moved)
                first = first or moved
            if first is None:
                return None
            widths = first
        return None

    def _moved(self, group: int, width: int, by: int) -> int | None:
        choices = self._choices[group]
        place = choices.index(width) + by
        return choices[place] if 0 <= place < len(choices) else None


class _Search:
    """What the orders share: the check of what is asked, and the evaluation of what they propose."""

    def __init__(
        self, net: Supernet, images, calibration, targets, *, score: str = "error", evaluator=None, trace=None,
        calibration_images: int = 1024, progress: bool = False,
    ):  # fmt: skip
        check_judge(score, images, calibration, evaluator)
        if set(targets) != {"macs"}:
            raise ConfigError(f"targets are for {', '.join(map(repr, targets)) or 'nothing'}; pass {{'macs': [...]}}")
        self._net, self._score, self._progress = net, score, progress
        self._trace = OrderTrace() if trace is None else trace
        self.macs = _macs_of(net)
        self.targets = {target.amounts["macs"]: target for target in Budgets(net, ["macs"]).check(targets)}
        if evaluator is None:
            evaluator = SupernetEvaluator(net, images, calibration, calibration_images=calibration_images)
        self._evaluator = evaluator

    def run(self, order: Callable[[float, Callable], None], evaluations: int) -> Iterator[SearchPoint]:
        """Yield the best that `order(target, judge)` has judged; a configuration is judged once a target."""
        net, started = self._net, time.monotonic()
        for index, target in enumerate(self.targets):
            found: dict[Widths, tuple[tuple, Score]] = {}
            bar = tqdm(total=evaluations, desc=f"searching {self.targets[target].label}", unit="net", disable=not self._progress)

            def judge(widths: Widths, target=target, found=found, bar=bar, index=index) -> tuple:
                """Return what configurations are ordered by: the score, then the cost, then who came first."""
                macs = self.macs(widths)
                evaluate = lambda: ask(self._evaluator, net.make_config(widths))  # noqa: E731
                score = self._trace.score(target, len(found), widths, macs, evaluate)
                key = (score.rank(self._score), macs, len(found))
                found[widths] = key, score
                best, cost, _ = min(key for key, _ in found.values())
                done = index * evaluations + len(found)  # all targets take as many
                later = [
                    f"{other.label} in {tqdm.format_interval((time.monotonic() - started) * (number * evaluations / done - 1))}"
                    for number, other in enumerate(self.targets.values(), 1)
                    if number > index + 1
                ]
                bar.set_postfix_str(", ".join([f"best {self._score} {best:.4f}, {cost / 1e6:.3g}M MACs", *later]))
                bar.update()
                return key

            with bar:
                order(target, judge)
            best = min(found, key=lambda widths: found[widths][0])
            self._trace.pick(target, list(found).index(best))
            yield self._point(target, best, found[best][1])

    def _point(self, target: float, widths: Widths, score: Score) -> SearchPoint:
        cost = CostTable(self._net).cost(config := self._net.make_config(widths))
        config = replace(config, cost=cost.to_json(), estimate=score.estimate())
        step = sum(choice > width for row, width in zip(self._net.widths, widths) for choice in row.choices)
        return SearchPoint(target=self.targets[target], config=config, cost=cost, score=score, step=step)


@dataclass(frozen=True)
class Evaluated:
    """One evaluated configuration: the wanted multiply-adds, its own, the supernet's estimate, and whether it is the best."""

    target: float
    macs: int
    score: Score
    picked: bool
    widths: Widths


class OrderTrace:
    """Every evaluated configuration, in memory and, if a path is given, in a CSV file that grows row by row.

    Args:
        path: CSV file; rows that it already holds are taken over, an unfinished last row is dropped. It does not know the
            weights and images that they were scored with: keep one file for each. Of several processes (torchrun) the first
            writes it.

    Raises:
        RunError: the file is no such record.
    """

    def __init__(self, path: str | Path | None = None):
        self._path = Path(path) if path else None
        self._writes = first_process()
        self.rows: list[Evaluated] = []
        self._whole = False  # whether the file ends with a whole row
        if self._path and self._path.exists():
            self.rows, self._whole = read_rows(self._path, COLUMNS, _parse, "a record of evaluated configurations")

    def score(self, target: float, place: int, widths: Widths, macs: int, evaluate: Callable[[], Score]) -> Score:
        """Return the score of the configuration that is judged as number `place` of a target; what is new is written.

        Raises:
            RunError: the record holds another configuration there, so it was made by another search.
        """
        before = [row for row in self.rows if row.target == target][place : place + 1]
        if before:
            if (before[0].widths, before[0].macs) != (widths, macs):
                raise RunError(
                    f"{self._path} was written by another search (configuration {place + 1} of {_in_short(target)} differs); "
                    "search with the same settings, or into another file"
                )
            return before[0].score
        score = next((row.score for row in self.rows if row.widths == widths), None) or evaluate()
        self.rows.append(Evaluated(target, macs, score, False, widths))
        if self._path and self._whole and self._writes:
            append_rows(self._path, [_row(self.rows[-1])])
        else:
            self._rewrite()
        return score

    def pick(self, target: float, place: int) -> None:
        """Mark the best configuration of a target."""
        places = [i for i, row in enumerate(self.rows) if row.target == target]
        if [self.rows[i].picked for i in places] != [i == places[place] for i in places] or not self._whole:
            for i in places:
                self.rows[i] = replace(self.rows[i], picked=i == places[place])
            self._rewrite()

    def _rewrite(self) -> None:
        if self._path and self._writes:
            write_rows(self._path, COLUMNS, map(_row, self.rows))
            self._whole = True


def _row(row: Evaluated) -> tuple:
    score = row.score
    return row.target, row.macs, score.error, score.loss, score.images, int(row.picked), " ".join(map(str, row.widths))


def _parse(cells: list[str]) -> Evaluated:
    target, macs, error, loss, images, picked, widths = cells
    score = Score(float(error), float(loss), int(images))
    return Evaluated(float(target), int(macs), score, picked == "1", tuple(map(int, widths.split())))
