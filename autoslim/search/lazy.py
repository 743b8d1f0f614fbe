"""Which candidates of a step are worth an evaluation, and in which order."""

import math
from collections.abc import Iterable

from autoslim.search.contest import Step
from autoslim.search.trace import Candidate

REFRESH = 10  # steps between evaluations of all candidates
# Candidates that enter a step together. Mistakes tell them apart less surely than losses do: more of them get another look.
AT_ONCE = {"error": 4, "loss": 2}


class Lazy:
    """Lazy greedy: what a group cost at an earlier step predicts what it costs now.

    Candidates enter in the order of that prediction, a few at once, until none of the others is predicted to beat the best. A
    group without a prediction always enters; every `refresh` steps all do.

    Args:
        score: "error" or "loss".
        refresh: steps between evaluations of all candidates.
        at_once: candidates that enter together, in place of `AT_ONCE`.
    """

    def __init__(self, score: str, *, refresh: int = REFRESH, at_once: int | None = None):
        self._score = score
        self._refresh = refresh
        self._at_once = at_once or AT_ONCE[score]
        self._costs: dict[str, float] = {}

    def run(self, number: int, step: Step, contest) -> None:
        """Let candidates of a step, counted from 1, enter its contest."""
        everyone = (number - 1) % self._refresh == 0
        unknown = [name for name in step.candidates if everyone or name not in self._costs]
        predicted = {name: step.value(name, self._costs[name]) for name in step.candidates if name not in unknown}
        order = sorted(predicted, key=predicted.get)
        while unknown or order:
            names = unknown or [
                name for name in order[: self._at_once] if contest.best is None or predicted[name] < contest.best_value
            ]
            if not names:
                return
            contest.enter(names)
            unknown, order = [], [name for name in order if name not in names]

    def learn(self, candidates: Iterable[Candidate]) -> None:
        """Take in what a step showed; where the base had no score that is a finite number, nothing is known."""
        for each in candidates:
            if math.isfinite(getattr(each, f"base_{self._score}")):
                self._costs[each.group] = each.increase(self._score)
            else:
                self._costs.pop(each.group, None)
