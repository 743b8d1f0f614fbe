"""The record of a search: one row a candidate, from which a search that was cut off goes on."""

from dataclasses import astuple, dataclass, fields
from pathlib import Path

from autoslim.search.evaluate import increase
from autoslim.search.ranks import first_process
from autoslim.search.rows import append_rows, read_rows, write_rows


@dataclass(frozen=True)
class Candidate:
    """One evaluated candidate.

    Attributes:
        step: steps below full width; 0 is the full network.
        group: the group that is narrower than the step before; empty at step 0.
        width: its channels.
        macs: multiply-adds of the candidate.
        error, loss: the supernet's estimate on the search images.
        images: how many images that is.
        base_error, base_loss: the estimate of what the candidate was narrowed from, on the same images.
        certainty: probability that the picked candidate beats this one (the picked one: the one that comes closest to it)
            on images like these; 1 where all images decided, None where nothing was compared.
    """

    step: int
    group: str
    width: int
    macs: int
    error: float
    loss: float
    images: int
    base_error: float
    base_loss: float
    certainty: float | None = 1.0

    def increase(self, score: str) -> float:
        """Return by how much the "error" or the "loss" is above that of what was narrowed."""
        return increase(getattr(self, score), getattr(self, f"base_{score}"))


COLUMNS = [*(field.name for field in fields(Candidate)), "picked"]


class SearchTrace:
    """Every candidate of a descent, in memory and, if a path is given, in a CSV file that grows by whole steps.

    Args:
        path: CSV file; rows that it already holds are taken over, an unfinished last step is dropped.
            It does not know the weights and images that they were scored with: keep one file for each. Of several processes
            (torchrun) the first writes it.

    Raises:
        RunError: the file is not a search trace.
    """

    def __init__(self, path: str | Path | None = None):
        self._path = Path(path) if path else None
        self._writes = first_process()
        self.rows: list[tuple[Candidate, bool]] = []
        self._whole = True  # whether the file ends with a whole row
        if self._path and self._path.exists():
            self.rows, self._whole = read_rows(self._path, COLUMNS, _parse, "a search trace")

    def step(self, number: int) -> list[Candidate]:
        """Return the candidates that a step evaluated before, the picked one last; none if it did not end."""
        rows = [(candidate, picked) for candidate, picked in self.rows if candidate.step == number]
        return [candidate for candidate, _ in rows] if rows and rows[-1][1] else []

    def record(self, candidates: list[Candidate]) -> None:
        """Add the candidates of a step, the picked one last, and write them in one go."""
        step = candidates[0].step
        kept = [row for row in self.rows if row[0].step < step]
        rows = [(candidate, candidate is candidates[-1]) for candidate in candidates]
        if self._path and self._writes:
            if kept and kept == self.rows and self._whole:
                append_rows(self._path, (_row(*row) for row in rows))
            else:
                write_rows(self._path, COLUMNS, (_row(*row) for row in kept + rows))
        self.rows, self._whole = kept + rows, True

    def path_taken(self) -> list[Candidate]:
        """Return the candidates that were picked, from the full network down."""
        return [candidate for candidate, picked in self.rows if picked]


def _parse(cells: list[str]) -> tuple[Candidate, bool]:
    *values, picked = cells
    kinds = [int, str, int, int, float, float, int, float, float, lambda cell: float(cell) if cell else None]
    return Candidate(*(kind(cell) for kind, cell in zip(kinds, values, strict=True))), picked == "1"


def _row(candidate: Candidate, picked: bool) -> tuple:
    return *astuple(candidate), int(picked)
