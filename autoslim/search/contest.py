"""One step of a search: which of the candidates that enter is best, and how sure that is."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

from torch import Tensor

from autoslim.channels.config import ChannelConfig
from autoslim.search.evaluate import Score, ask, increase
from autoslim.search.ranks import Ranks

# Candidates of an exact search whose lower bound is within this much of the least one, in mistakes or nats an image before it is
# divided by what they save, see their next batches in the same round. With less they see fewer images; with more they share more
# of what is run of the base.
RISE = 0.0005


@dataclass(frozen=True)
class Step:
    """What there is to choose from.

    Attributes:
        base: what the candidates are narrowed from.
        base_score: its score, as far as it is known.
        candidates: by the one group that each narrows; the earlier one wins a tie in value and cost.
        savings: what the increase of the score is divided by.
        macs: multiply-adds; the cheaper one wins a tie in value.
        score: "error" or "loss".
    """

    base: ChannelConfig
    base_score: Score
    candidates: Mapping[str, ChannelConfig]
    savings: Mapping[str, float]
    macs: Mapping[str, int]
    score: str

    def value(self, name: str, increase: float) -> float:
        """Return what decides: the increase of the score a unit saved; a score that is no number is the worst."""
        return increase / self.savings[name] if increase == increase else math.inf

    def best(self, values: Mapping[str, float]) -> str:
        """Return the candidate of the least value; of those that tie, the cheaper one, then the earlier one."""
        places = list(self.candidates)
        return min(values, key=lambda name: (values[name], self.macs[name], places.index(name)))


@dataclass(frozen=True)
class Judged:
    """What is known of a candidate.

    Attributes:
        score: its score.
        base: that of what it was narrowed from, on the same images.
        certainty: probability that the best candidate beats this one (for the best: the one that comes closest to it) on
            images like those scored, by a paired test; 1 where the decision is that of all images, None where nothing was compared.
    """

    score: Score
    base: Score
    certainty: float | None = 1.0


class WholeContest:
    """Scores every candidate that enters with the network as a whole, by `evaluator.score(config)`."""

    def __init__(self, evaluator, step: Step):
        self._evaluator = evaluator
        self._step = step
        self._ranks = Ranks()
        self.judged: dict[str, Judged] = {}
        self.best: str | None = None

    def enter(self, names: list[str]) -> None:
        """Score candidates."""
        step = self._step
        own = self._ranks.own(range(len(names)))
        found = self._ranks.share({i: ask(self._evaluator, step.candidates[names[i]]) for i in own})
        self.judged |= {names[i]: Judged(score, step.base_score) for i, score in found.items()}
        self.best = step.best({name: self.value(name) for name in self.judged})

    @property
    def best_value(self) -> float:
        """The value of the best candidate so far; infinite before the first."""
        return self.value(self.best) if self.best else math.inf

    def value(self, name: str) -> float:
        """Return the value of a candidate that entered."""
        judged = self.judged[name]
        return self._step.value(name, _increase(judged.score, judged.base, self._step.score))

    def close(self) -> dict[str, Judged]:
        """End the step; returns what is known of every candidate that entered."""
        return self.judged


class _PartsContest:
    """Scores candidates batch by batch, with an evaluator that keeps what they share."""

    def __init__(self, evaluator, step: Step):
        self._evaluator = evaluator
        self._step = step
        self._row = ("error", "loss").index(step.score)
        self._entered: dict = {}
        self._batches: dict[str, int] = {}  # that a candidate was decided on; more may be known of it
        self.best: str | None = None

    @property
    def best_value(self) -> float:
        """The value of the best candidate so far; infinite before the first."""
        return self._value(self.best) if self.best else math.inf

    def enter(self, names: list[str]) -> None:
        """Score candidates as far as it takes."""
        self._entered |= self._evaluator.calibrated({name: self._step.candidates[name] for name in names})
        self._compare(names)

    def close(self) -> dict[str, Judged]:
        """End the step; returns what is known of every candidate that entered."""
        base = self._evaluator.base
        found = {}
        for name, entry in self._entered.items():
            batches = self._batches[name]
            found[name] = Judged(entry.score(batches), base.score(batches), self._certainty(name))
        self._evaluator.advance(self.best, self._entered[self.best])
        return found

    def _value(self, name: str, batches: int | None = None) -> float:
        batches = self._batches[name] if batches is None else batches
        score, base = self._entered[name].score(batches), self._evaluator.base.score(batches)
        return self._step.value(name, _increase(score, base, self._step.score))

    def _costs(self, name: str, batches: int) -> Tensor:
        """Return what every image of the leading batches costs more than with the base."""
        return self._entered[name].values(batches)[self._row] - self._evaluator.base.values(batches)[self._row]


class ExactContest(_PartsContest):
    """Finds the candidate that is best on all images.

    What a candidate costs on the images seen so far is the least that it costs in the end, mistakes and cross-entropies being
    no less than 0. Those that cost least so far go on, until one of them has seen all images and none of the others can be
    better (best-first search): nobody sees many more than it takes to tell. It takes the fewest where the images that cost
    most come first.
    """

    def __init__(self, evaluator, step: Step):
        super().__init__(evaluator, step)
        self._last = len(evaluator.sizes)
        self._base = math.nan  # what candidates are compared with, a mean over all images, see `increase`
        self._sums: dict[str, float] = {}  # of what the images cost that were seen so far
        self._rounded: set[str] = set()  # whose sums are of fractions

    def _compare(self, names):
        self._evaluator.look({}, range(self._last))
        base = getattr(self._evaluator.base.score(self._last), self._step.score)
        self._base = base if math.isfinite(base) else 0.0
        self._sums |= dict.fromkeys(names, 0.0)
        self._batches |= dict.fromkeys(names, 0)
        self._go_on(lambda name: not self._batches[name])
        while self._batches[first := self._first()] < self._last:
            self._go_on(partial(self._is_near, self._bound(first)))
        self.best = first

    def _first(self) -> str:
        """Return the candidate that costs least so far."""
        return self._step.best({name: self._bound(name) for name in self._entered})

    def _is_near(self, value: float, name: str) -> bool:
        """Tell whether a candidate costs little more than a value so far.

        Far below 0, where all of them start, half of the way to it is little: many small rounds would save nothing.
        """
        return self._bound(name) <= value / 2 or self._step.value(name, self._least(name) - RISE) <= value

    def _go_on(self, wants: Callable[[str], bool]) -> None:
        """Let candidates see the batches that are next for them, as long as they want to."""
        together = self._evaluator.ranks.count
        for start in range(0, self._last, together):
            batches = range(start, min(start + together, self._last))
            running = [name for name in self._entered if self._batches[name] in batches and wants(name)]
            if running:
                self._evaluator.look({name: self._entered[name] for name in running}, batches)
            for name in running:
                while self._batches[name] in batches and wants(name):
                    costs = self._entered[name].seen[self._batches[name]][self._row]
                    self._sums[name] += costs.sum().item()
                    self._batches[name] += 1
                    if (costs % 1).any():
                        self._rounded.add(name)

    def _least(self, name: str) -> float:
        """Return the least that a candidate costs more than the base in the end, a mean over all images."""
        slack = 1 - 1e-12 if name in self._rounded else 1.0  # the last digits of such sums differ with their order
        return slack * self._entered[name].mean(self._sums[name], self._evaluator.images) - self._base

    def _bound(self, name: str) -> float:
        """Return the least that the value of a candidate is in the end; its value where it has seen all images."""
        return self._value(name) if self._batches[name] == self._last else self._step.value(name, self._least(name))

    def _certainty(self, name: str) -> float:
        return 1.0


class Race(_PartsContest):
    """Finds a candidate that is best as far as chance can be told: who is worse than the best by `z` standard errors is out.

    Differences are taken image by image, as what a candidate costs more than the base divided by what it saves.

    Args:
        least, most: images that the first and the last decision are taken on.
        every: images from one decision to the next.
    """

    def __init__(self, evaluator, step: Step, *, z: float, least: int, most: int, every: int):
        super().__init__(evaluator, step)
        self._z = z
        self._last = batches_with(most, evaluator.sizes)
        self._decisions: list[int] = []  # after how many batches
        wanted = least
        for batches, images in enumerate(accumulate(evaluator.sizes[: self._last]), 1):
            if images >= wanted or batches == self._last:
                self._decisions.append(batches)
                wanted = images + every

    def _compare(self, names):
        running = [*([self.best] if self.best else []), *names]
        done = looked = 0
        for decision in self._decisions:
            if done and len(running) < 2:
                break
            if decision > looked:  # processes share batches, at least one for each
                ahead = range(looked, min(max(decision, looked + self._evaluator.ranks.count), self._last))
                self._evaluator.look({name: self._entered[name] for name in running}, ahead)
                looked = ahead.stop
            self._batches |= {name: max(decision, self._batches.get(name, 0)) for name in running}
            best = self._leader(running, decision)
            running = [name for name in running if not self._behind(name, best, decision) > self._z]
            done = decision
        self.best = self._leader(running, done)

    def _leader(self, running, done) -> str:
        return self._step.best({name: self._value(name, done) for name in running})

    def _behind(self, name: str, best: str, batches: int) -> float:
        """Return by how many standard errors a candidate is worse than the best."""
        savings = self._step.savings
        worse = self._costs(name, batches) / savings[name] - self._costs(best, batches) / savings[best]
        if len(worse) < 2:
            return 0.0
        mean, error = worse.mean().item(), worse.std().item() / len(worse) ** 0.5
        behind = mean / error if error else math.copysign(math.inf, mean) if mean else 0.0
        return 0.0 if behind != behind else behind

    def _certainty(self, name: str) -> float | None:
        others = [other for other in self._entered if other != self.best] if name == self.best else [name]
        values = []
        for other in others:
            behind = self._behind(other, self.best, min(self._batches[other], self._batches[self.best]))
            values.append(0.5 * (1 + math.erf(behind / 2**0.5)))
        return round(min(values), 4) if values else None


def batches_with(images: int, sizes: Sequence[int]) -> int:
    """Return how many leading batches hold a number of images; all of them where they hold fewer."""
    return min(len(sizes), sum(held < images for held in accumulate(sizes)) + 1)


def _increase(score: Score, base: Score, which: str) -> float:
    return increase(getattr(score, which), getattr(base, which))
