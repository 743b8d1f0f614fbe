"""The budgets of a search, as its run folder and the command line state them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import torch

from autoslim.channels.config import ChannelConfig
from autoslim.commands.runs import choose_device
from autoslim.cost.amounts import KINDS
from autoslim.cost.budgets import Budgets, Target, check_budgets
from autoslim.cost.latency import Latency, LatencySetup, Remeasured, remeasure, width_message
from autoslim.cost.latency_records import read_setup
from autoslim.cost.latency_table import LatencyTable, open_latency_table
from autoslim.errors import RunError, TargetError
from autoslim.files import probe_writable
from autoslim.slimmable.materialize import materialize
from autoslim.slimmable.supernet import Supernet
from autoslim.spaces import Space


class RunBudgets(Budgets):
    """Budgets, and what a found network is measured with again.

    Attributes:
        terms: in which terms sizes, memory and latency are counted, as JSON; of the kinds in use only.
    """

    def __init__(self, net: Supernet, stated: "Terms", example: torch.Tensor, table: LatencyTable | None):
        latency = table and table.milliseconds
        super().__init__(net, stated.targets, precision=stated.precision, batch=stated.batch, example=example, latency=latency)
        self._net, self._latency_table = net, table
        self.terms = {**stated.to_json(), **({"table": table.digest} if table else {})}

    def decide_by(self, targets: list[Target]) -> dict:
        """Return what the decisions of a descent depend on: the kinds and their terms, and of several kinds the amounts."""
        kinds = list(targets[0].amounts)
        return {"kinds": kinds, **self.terms, **({"amounts": [target.to_json() for target in targets]} if len(kinds) > 1 else {})}

    def remeasure(self, config: ChannelConfig, target: Target) -> Remeasured | None:
        """Measure a found network end to end, where its latency has a target."""
        if self._latency_table is None:
            return None
        network = materialize(self._net, config)
        setup = self._latency_table.setup
        return remeasure(network, drawn_input(config.input_shape), target_ms=target.amounts["latency"], setup=setup)


@dataclass(frozen=True)
class Terms:
    """What a search is asked for, and in which terms its costs are counted.

    Attributes:
        targets: amounts by kind.
        precision: of the parameters in "size".
        batch: images, of memory and latency.
        setup: what latency is measured under; None where it has no target.
        table: the file of the latency table; None for one of the run's own.
    """

    targets: Mapping
    precision: str
    batch: int
    setup: LatencySetup | None
    table: Path | None

    def to_json(self) -> dict:
        """Return the terms of the kinds in use as a JSON object."""
        kinds, setup = set(self.targets), self.setup
        found: dict = {"size_precision": self.precision} if "size" in kinds else {}
        found |= {"batch": self.batch} if {"memory", "latency"} & kinds else {}
        if setup:
            found |= {"device": setup.device_name, "threads": setup.threads, "backend": setup.backend}
        return found


def read_terms(
    targets: Mapping, *, size_precision: str = "fp32", batch: int = 1, latency_device: str = "cpu", threads: int = 1,
    latency_table: Path | None = None,
) -> Terms:  # fmt: skip
    """Return the terms that are given as `autoslim search` takes them; nothing is measured.

    Raises:
        RunError: a device is not available, or the table cannot be read.
    """
    setup = None
    if "latency" in targets and latency_table:
        setup = read_setup(latency_table)
        try:
            choose_device(setup.device)
        except RunError as error:
            raise RunError(
                f"{latency_table} was measured on {setup.device!r}, which is not available here; pass a table of this machine"
            ) from error
        batch = setup.batch
    elif "latency" in targets:
        setup = LatencySetup(device=str(choose_device(latency_device)), batch=batch, threads=threads)
    return Terms(targets, size_precision, batch, setup, latency_table)


def run_table(run: Path, setup: LatencySetup) -> Path:
    """Return where the latency table of a supernet's run lies, unless it is named."""
    return run / f"latency-{setup.label}.json"


def open_budgets(net: Supernet, space: Space, run: Path, terms: Terms, *, first: bool, wait: Callable[[], None]) -> RunBudgets:
    """Return the budgets of a search; a latency table that is not there yet is measured, by the first process of several.

    Args:
        run: folder of the supernet, where a latency table goes.
        first, wait: whether this is the first process, and what waits for all.

    Raises:
        RunError: the table is of another network, device or version, or cannot be written.
        TargetError: an amount cannot be read, paired or reached; a latency far out of reach before layers are measured.
    """
    example = drawn_input(space.input_shape).to(next(net.parameters()).dtype)
    table, example = None, example.expand(terms.batch, *space.input_shape)
    if terms.setup:
        kinds = [kind for kind in terms.targets if kind != "latency"]
        untimed = Budgets(net, kinds, precision=terms.precision, batch=terms.batch, example=example)
        _check_untimed(terms.targets, untimed)
        path = terms.table or run_table(run, terms.setup)
        if not path.exists():
            probe_writable(path.parent)

        def before(full: Latency, narrowest: Latency) -> None:
            if first:
                say_where_width_hardly_helps(full, narrowest)
            _check_timed(terms.targets, full.median_ms, narrowest.median_ms)

        wait()  # nothing else runs while networks are timed
        for turn in (first, not first):
            if turn:
                table = open_latency_table(net, example, path, setup=terms.setup, progress=first, before=before)
            wait()
    return RunBudgets(net, terms, example, table)


def _check_untimed(targets: Mapping, budgets: Budgets) -> None:
    """Check before hours of measuring what can be: which milliseconds are in reach, only a table tells."""
    most = 1e12  # ms, far above all
    amounts = [(amount, KINDS["latency"].read(amount, most)) for amount in targets["latency"]]
    above = [amount for amount, value in amounts if value > most]  # 120%
    if above and set(targets) == {"latency"}:
        raise TargetError(f"latency target {above[0]} is above the full network; lower it, or take a wider supernet")
    capped = {**targets, "latency": [min(value, most) for _, value in amounts]}
    check_budgets(capped, {**budgets.full, "latency": most}, {**budgets.narrowest, "latency": 0.0})


def _check_timed(targets: Mapping, full: float, narrowest: float) -> None:
    """Check latencies by what the widest and the narrowest network took, milliseconds; predictions are less than a fifth off."""
    amounts = [KINDS["latency"].read(amount, full) for amount in targets["latency"]]
    off = [amount for amount in amounts if amount < 0.8 * narrowest]
    off += [amount for amount in amounts if amount > 1.25 * full and set(targets) == {"latency"}]
    if off:
        check_budgets({"latency": off[0]}, {"latency": full}, {"latency": narrowest})


def drawn_input(shape: Sequence[int]) -> torch.Tensor:
    """Return a random input `[1, C, H, W]`: zeros cost less power."""
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))


def say_where_width_hardly_helps(full: Latency, narrowest: Latency) -> None:
    """Say in one line on stderr if narrower networks are hardly faster."""
    if message := width_message(full, narrowest):
        click.echo(message, err=True)
