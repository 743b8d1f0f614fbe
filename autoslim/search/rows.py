"""CSV files that grow while a search runs, and of which the end may be missing when it goes on."""

import csv
import io
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from autoslim.errors import RunError
from autoslim.files import atomic_write

Row = TypeVar("Row")


def read_rows(path: Path, columns: Sequence[str], parse: Callable[[list[str]], Row], what: str) -> tuple[list[Row], bool]:
    """Return the whole rows of a file, and whether it ends with one; a last line that was cut off is left out.

    Args:
        parse: makes a row of cells; raises ValueError where it cannot.
        what: what the file ought to be, for the message.

    Raises:
        RunError: the file cannot be read, has other columns, or a damaged row.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); pass the name of a file that can") from error
    whole, newline, unfinished = text.rpartition("\n")
    if not newline and ",".join(columns).startswith(text):
        return [], False  # cut off within its first line
    reader = csv.reader(whole.splitlines())
    try:
        if next(reader, None) != list(columns):
            raise RunError(f"{path} is not {what} (columns {','.join(columns)}); move it away or search into another folder")
        return [parse(cells) for cells in reader], not unfinished
    except (ValueError, IndexError, csv.Error) as error:
        raise RunError(f"{path} line {reader.line_num} is damaged ({error}); cut the file before that line") from error


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Write a file anew, at once; every value can be read back as it is."""
    with atomic_write(path) as file:
        file.write(_lines([columns, *rows]))


def append_rows(path: Path, rows: Iterable[Sequence]) -> None:
    """Add rows to a file that ends with a whole one; they are on the disk when this returns."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(_lines(rows))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror}); free the disk, then run the same command again") from error


def _lines(rows: Iterable[Sequence]) -> str:
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)
    return lines.getvalue()


def _cell(value) -> str:
    return value if isinstance(value, str) else "" if value is None else repr(value)
