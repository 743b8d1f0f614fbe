"""Tables: in the terminal, and as CSV."""

import csv
from pathlib import Path

from autoslim.cost.amounts import KINDS
from autoslim.files import atomic_write

SPECTRUM_COLUMNS = ["series", "macs", "error", "loss", "images"]


def configuration_table(found: list) -> str:
    """Return a table of (path, configuration) pairs, with all costs that have a target; errors are the supernet's estimates."""
    costs = [config.provenance.get("costs", {}) for _, config in found]
    more = [kind for kind in KINDS if kind in costs[0] and kind not in ("macs", "params")]
    names = ["predicted latency" if kind == "latency" else kind for kind in more]
    rows = [("configuration", "MACs", "params", *names, "error*", "loss*")]
    for (path, config), counted in zip(found, costs):
        cost, estimate = config.cost, config.estimate
        shown = [KINDS[kind].format(counted[kind]) for kind in more]
        error, loss = f"{estimate['error']:.2%}", f"{estimate['loss']:.4f}"
        rows.append((str(path), f"{cost['macs']:,}", f"{cost['params']:,}", *shown, error, loss))
    return align(rows) + "\n* supernet estimate on images held out of training, not the accuracy of a retrained network"


def align(rows: list[tuple]) -> str:
    """Line up rows of text in columns: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def write_spectrum(path: str | Path, uniform: list, searched: list) -> None:
    """Write the supernet estimates of uniform subnets and of searched ones, `(macs, Score)` each, as CSV."""
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(SPECTRUM_COLUMNS)
        for series, rows in (("uniform", uniform), ("greedy", searched)):
            for macs, score in rows:
                writer.writerow([series, macs, score.error, score.loss, score.images])
