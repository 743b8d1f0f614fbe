"""Which candidates of a step are worth an evaluation."""

from collections.abc import Callable, Mapping

from autoslim.search.trace import Candidate

Ask = Callable[[list[str]], Mapping[str, Candidate]]


class Everyone:
    """Evaluate every candidate of every step."""

    def candidates(self, step: int, savings: Mapping[str, float], ask: Ask) -> list[Candidate]:
        """Return the evaluated candidates of a step."""
        return list(ask(list(savings)).values())


class Lazy:
    """Lazy greedy: what a group cost at an earlier step predicts what it costs now.

    Candidates are evaluated in the order of that prediction, a few at once, until none of the others is predicted to beat the
    best that was found. A group without a prediction is always evaluated; every `refresh` steps all are.

    Args:
        score: "error" or "loss".
        refresh: steps between evaluations of all candidates.
        at_once: candidates that are evaluated together.
    """

    def __init__(self, score: str, *, refresh: int = 10, at_once: int = 2):
        self._score = score
        self._refresh = refresh
        self._at_once = at_once
        self._increase: dict[str, float] = {}

    def candidates(self, step: int, savings: Mapping[str, float], ask: Ask) -> list[Candidate]:
        """Return the evaluated candidates of a step.

        Args:
            step: counted from 1.
            savings: what each candidate saves; 1 for all where the score alone decides.
            ask: evaluates candidates by the names of their groups.
        """
        everyone = (step - 1) % self._refresh == 0
        unknown = [name for name in savings if everyone or name not in self._increase]
        order = sorted((n for n in savings if n not in unknown), key=lambda n: self._increase[n] / savings[n])
        found: dict[str, Candidate] = {}
        best = float("inf")
        while unknown or order:
            asked = unknown or [name for name in order[: self._at_once] if self._increase[name] / savings[name] < best]
            if not asked:
                break
            order = [name for name in order if name not in asked]
            unknown = []
            for name, candidate in ask(asked).items():
                found[name] = candidate
                self._increase[name] = candidate.increase(self._score)
                best = min(best, self._increase[name] / savings[name])
        return list(found.values())
