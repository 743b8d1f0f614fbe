"""Which candidates of a step are worth an evaluation, and in which order."""

import math
from collections.abc import Iterable

from autoslim.search.contest import Step
from autoslim.search.trace import Candidate

STALE = 15  # steps after which what a group cost says nothing any more
# Candidates that enter a step together. Mistakes tell them apart less surely than losses do: more of them get another look.
AT_ONCE = {"error": 4, "loss": 2}


class Lazy:
    """Lazy greedy (Minoux, 1978): what a group cost at an earlier step predicts what it costs now.

    Candidates whose prediction is missing or stale enter first; then the others in the order of theirs, a few at once, until
    none is predicted to beat the best.

    Args:
        score: "error" or "loss".
        stale: steps after which a prediction is stale; at 1 all candidates enter every step.
        at_once: candidates that enter together, in place of `AT_ONCE`.
    """

    def __init__(self, score: str, *, stale: int = STALE, at_once: int | None = None):
        self._score = score
        self._stale = stale
        self._at_once = at_once or AT_ONCE[score]
        self._known: dict[str, tuple[int, float]] = {}  # at which step a group cost how much

    def run(self, number: int, step: Step, contest) -> None:
        """Let candidates of a step, counted from 1, enter its contest."""
        fresh = {name: cost for name, (learned, cost) in self._known.items() if number - learned < self._stale}
        unknown = [name for name in step.candidates if name not in fresh]
        predicted = {name: step.value(name, fresh[name]) for name in step.candidates if name in fresh}
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
                self._known[each.group] = each.step, each.increase(self._score)
            else:
                self._known.pop(each.group, None)
