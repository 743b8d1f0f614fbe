"""The record of a search: one row a candidate, from which a search that was cut off goes on."""

import csv
import io
import os
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from autoslim.errors import RunError
from autoslim.files import atomic_write


@dataclass(frozen=True)
class Candidate:
    """One evaluated candidate.

    Attributes:
        step: steps below full width; 0 is the full network.
        group: the group that is one choice narrower than the step before; empty at step 0.
        width: its channels.
        macs: multiply-adds of the candidate.
        error, loss: the supernet's estimate on the search images.
        images: how many images that is.
        base_error, base_loss: the estimate of what the candidate was narrowed from, on the same images.
        certainty: probability that the picked candidate beats this one (the picked one: all others that were evaluated) on
            images like these; 1 where all images decided, None where nothing was compared.
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
        return getattr(self, score) - getattr(self, f"base_{score}")


COLUMNS = [*(field.name for field in fields(Candidate)), "picked"]


class SearchTrace:
    """Every candidate of a descent, in memory and, if a path is given, in a CSV file that grows by whole steps.

    Args:
        path: CSV file; rows that it already holds are taken over, an unfinished last step is dropped.
        writes: whether this process is the one of several that writes the file.

    Raises:
        RunError: the file is not a search trace.
    """

    def __init__(self, path: str | Path | None = None, *, writes: bool = True):
        self._path = Path(path) if path else None
        self._writes = writes
        self.rows: list[tuple[Candidate, bool]] = []
        self._ragged = False
        if self._path and self._path.exists():
            self.rows, self._ragged = _read(self._path)

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
            _append(self._path, rows) if kept and kept == self.rows and not self._ragged else _rewrite(self._path, kept + rows)
        self.rows, self._ragged = kept + rows, False

    def path_taken(self) -> list[Candidate]:
        """Return the candidates that were picked, from the full network down."""
        return [candidate for candidate, picked in self.rows if picked]


def _rewrite(path: Path, rows: list[tuple[Candidate, bool]]) -> None:
    with atomic_write(path) as file:
        file.write("\n".join([",".join(COLUMNS), *map(_line, rows)]) + "\n")


def _append(path: Path, rows: list[tuple[Candidate, bool]]) -> None:
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write("\n".join(map(_line, rows)) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror}); free the disk, then run the same command again") from error


def repr_cell(value) -> str:
    """Return a CSV cell from which the very same value can be read."""
    return value if isinstance(value, str) else "" if value is None else repr(value)


def _read(path: Path) -> tuple[list[tuple[Candidate, bool]], bool]:
    """Return the rows of a trace, and whether it ends within a line."""
    text = path.read_text(encoding="utf-8", errors="replace")
    whole, newline, unfinished = text.rpartition("\n")
    if not newline and ",".join(COLUMNS).startswith(text):
        return [], True  # cut off within its first line
    reader = csv.reader(whole.splitlines())
    if next(reader, None) != COLUMNS:
        raise RunError(f"{path} is not a search trace (columns {','.join(COLUMNS)}); move it away or search into another folder")
    rows = []
    kinds = [int, str, int, int, float, float, int, float, float, lambda cell: float(cell) if cell else None]
    try:
        for cells in reader:
            values = [kind(cell) for kind, cell in zip(kinds, cells[:-1], strict=True)]
            rows.append((Candidate(*values), cells[-1] == "1"))
    except (ValueError, IndexError) as error:
        raise RunError(f"{path} line {reader.line_num} is damaged ({error}); cut the file before that line") from error
    return rows, bool(unfinished)


def _line(row: tuple[Candidate, bool]) -> str:
    candidate, picked = row
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(map(repr_cell, (*astuple(candidate), int(picked))))
    return line.getvalue()
