"""One step of a search: which of the candidates that enter is best, and how sure that is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor

from autoslim.channels.config import ChannelConfig
from autoslim.search.evaluate import Score
from autoslim.search.ranks import Ranks


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
        landmark: a configuration on the way to the base, the same for some steps: an exact search sorts its images by it.
    """

    base: ChannelConfig
    base_score: Score
    candidates: Mapping[str, ChannelConfig]
    savings: Mapping[str, float]
    macs: Mapping[str, int]
    score: str
    landmark: ChannelConfig

    def value(self, name: str, increase: float) -> float:
        """Return what decides: the increase of the score a unit saved; a score that is no number is the worst."""
        return increase / self.savings[name] if increase == increase else math.inf

    def best(self, values: Mapping[str, float]) -> str:
        """Return the candidate of the least value."""
        return min(values, key=lambda name: self.key(name, values[name]))

    def key(self, name: str, value: float) -> tuple:
        """Return what the best candidate has the least of."""
        return value, self.macs[name], list(self.candidates).index(name)


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
        found = self._ranks.share({i: self._evaluator.score(step.candidates[names[i]]) for i in own})
        self.judged |= {names[i]: Judged(score, step.base_score) for i, score in found.items()}
        self.best = step.best({n: step.value(n, _increase(j.score, j.base, step.score)) for n, j in self.judged.items()})

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
        running, done = self._starters(names), 0
        while done < self._last and not self._over(running, done):
            together = range(done, min(max(self._next(done), done + self._evaluator.ranks.count), self._last))
            self._evaluator.look({name: self._entered[name] for name in running}, together)
            for done in range(together.start + 1, together.stop + 1):
                self._batches |= {name: max(done, self._batches.get(name, 0)) for name in running}
                running = self._going_on(running, done)
                if self._over(running, done):
                    break
        self._conclude(running, done)

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
    no less than 0: one that is above the end result of another cannot win, and is not run further. It shows soonest where the
    images that cost most come first.
    """

    @property
    def _last(self) -> int:
        return len(self._evaluator.sizes)

    def _next(self, done) -> int:
        return done + 1

    def _starters(self, names):
        return list(names)

    def _over(self, running, done) -> bool:
        return not running

    def _going_on(self, running, done):
        if self.best is None:
            return running
        best = self._step.key(self.best, self._bound(self.best, self._last))
        # Sums of losses differ in their last digits with their order.
        slack = 1 - 1e-12 if self._step.score == "loss" else 1.0
        return [name for name in running if self._step.key(name, self._bound(name, done, slack)) <= best]

    def _bound(self, name: str, batches: int, slack: float = 1.0) -> float:
        """Return the least that the value can be in the end, from the leading batches."""
        base = self._evaluator.base.values(self._last)[self._row].mean().item()
        least = self._entered[name].values(batches)[self._row].sum().item() / self._evaluator.images
        return self._step.value(name, slack * least - base)

    def _conclude(self, running, done) -> None:
        whole = [name for name in (self.best, *running) if name is not None]
        self.best = self._step.best({name: self._value(name) for name in whole})

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

    def _next(self, done) -> int:
        return next(batches for batches in self._decisions if batches > done)

    def _starters(self, names):
        return [*([self.best] if self.best else []), *names]

    def _over(self, running, done) -> bool:
        return len(running) < 2 and done >= self._decisions[0]

    def _going_on(self, running, done):
        if done not in self._decisions:
            return running
        best = self._leader(running, done)
        return [name for name in running if not self._behind(name, best, done) > self._z]

    def _leader(self, running, done) -> str:
        return self._step.best({name: self._value(name, done) for name in running})

    def _behind(self, name: str, best: str, batches: int) -> float:
        """Return by how many standard errors a candidate is worse than the best."""
        savings = self._step.savings
        worse = self._costs(name, batches) / savings[name] - self._costs(best, batches) / savings[best]
        mean, error = worse.mean().item(), worse.std().item() / len(worse) ** 0.5
        behind = mean / error if error else math.copysign(math.inf, mean) if mean else 0.0
        return 0.0 if behind != behind else behind

    def _conclude(self, running, done) -> None:
        self.best = self._leader(running, done)

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
    return getattr(score, which) - getattr(base, which)
