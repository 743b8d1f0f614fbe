"""What a search shows while it runs."""

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping

from tqdm import tqdm

from autoslim.cost.budgets import Target


class Progress:
    """A bar on stderr: the way to the last target, what was reached, and the time left to every target.

    Args:
        full: the costs of the full network, by kind.
        targets: largest first.
        shown: draw it.
    """

    def __init__(self, full: Mapping[str, float], targets: Iterable[Target], *, shown: bool):
        self._full = full
        self._targets = list(targets)
        self._bar = tqdm(total=100, desc="searching", disable=not shown, bar_format="{desc}: {n:.0f}%|{bar}| {elapsed}{postfix}")
        self._begin(full)

    def _begin(self, costs: Mapping[str, float]) -> None:
        self._started, self._origin = time.monotonic(), costs

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    def update(self, costs: Mapping[str, float], text: str, *, recorded: bool = False) -> None:
        """Show how far a configuration with these costs is; the time left is reckoned from the last one that was recorded."""
        if recorded:
            self._begin(costs)
        elapsed = time.monotonic() - self._started
        left = []
        for target in self._targets:
            done, before = self._way(target, costs), self._way(target, self._origin)
            if before < done < 1:
                left.append(f"{target.label} in {tqdm.format_interval(elapsed * (1 - done) / (done - before))}")
        self._bar.update(100 * self._way(self._targets[-1], costs) - self._bar.n)
        self._bar.set_postfix_str(", ".join([text, *left]))

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Leave out of the time left what passes in a `with` block."""
        started = time.monotonic()
        yield
        self._started += time.monotonic() - started

    def _way(self, target: Target, costs: Mapping[str, float]) -> float:
        """Return which part of the way from the full network to a target is done, in the kind that is least far."""
        parts = [
            (self._full[kind] - costs[kind]) / (self._full[kind] - amount)
            for kind, amount in target.amounts.items()
            if amount < self._full[kind]
        ]
        return min(max(min(parts, default=1.0), 0.0), 1.0)
