"""The budgets of a search, as its run folder and the command line state them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click
import torch

from autoslim.channels.config import ChannelConfig
from autoslim.commands.runs import choose_device
from autoslim.cost.amounts import KINDS
from autoslim.cost.budgets import Budgets, Target, check_budgets
from autoslim.cost.latency import Latency, Remeasured, Setup, remeasure, width_message
from autoslim.cost.latency_table import LatencyTable, open_table, read_setup
from autoslim.errors import RunError
from autoslim.factories import load_rules
from autoslim.files import probe_writable
from autoslim.slimmable.materialize import materialize
from autoslim.slimmable.supernet import Supernet
from autoslim.spaces import Space


class RunBudgets(Budgets):
    """Budgets, and what a found network is measured with again.

    Attributes:
        terms: in which terms sizes, memory and latency are counted, as JSON; of the kinds in use only.
    """

    def __init__(self, net: Supernet, kinds, *, precision: str, batch: int, table: LatencyTable | None):
        super().__init__(net, kinds, precision=precision, batch=batch, latency=table and table.milliseconds)
        self._net, self._latency_table = net, table
        self.terms: dict = {"size_precision": precision} if "size" in kinds else {}
        self.terms |= {"batch": batch} if {"memory", "latency"} & set(kinds) else {}
        if table:
            setup = table.setup
            self.terms |= {"device": setup.device_name, "threads": setup.threads, "backend": setup.backend, "table": table.digest}

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


def open_budgets(
    net: Supernet, space: Space, run: Path, targets: Mapping, *, first: bool, wait: Callable[[], None],
    size_precision: str = "fp32", batch: int = 1, latency_device: str = "cpu", threads: int = 1,
    latency_table: Path | None = None,
) -> RunBudgets:  # fmt: skip
    """Return the budgets of a search; a latency table that is not there yet is measured, by the first process of several.

    Args:
        run: folder of the supernet, where a latency table goes.
        targets: amounts by kind.
        first, wait: whether this is the first process, and what waits for all.
        size_precision, batch, latency_device, threads, latency_table: as `autoslim search` takes them.

    Raises:
        RunError: a device is not available, or the table is of another network, device or version, or cannot be written.
        TargetError: an amount cannot be read, paired or reached; a latency far out of reach before layers are measured.
    """
    table = None
    if "latency" in targets:
        if latency_table:
            setup = read_setup(latency_table)
            try:
                choose_device(setup.device)
            except RunError as error:
                raise RunError(
                    f"{latency_table} was measured on {setup.device!r}, which is not available here; pass a table of this machine"
                ) from error
            batch = setup.batch
        else:
            setup = Setup(device=str(choose_device(latency_device)), batch=batch, threads=threads)
        # What cannot be read, paired or reached is said before hours of measuring; which ms can be, only a table tells.
        untimed = Budgets(net, [kind for kind in targets if kind != "latency"], precision=size_precision, batch=batch)
        check_budgets(targets, {**untimed.full, "latency": 1e12}, {**untimed.narrowest, "latency": 0.0})
        path = latency_table or run / f"latency-{setup.label}.json"
        if not path.exists():
            probe_writable(path.parent)
        example, rules = drawn_input(space.input_shape), load_rules(space.groups["rules"])

        def before(full: Latency, narrowest: Latency) -> None:
            if first:
                say_where_width_hardly_helps(full, narrowest)
            least = min(KINDS["latency"].read(amount, full.median_ms) for amount in targets["latency"])
            if least < 0.8 * narrowest.median_ms:  # predictions are not that far off
                ends = {"latency": full.median_ms}, {"latency": narrowest.median_ms}
                check_budgets({"latency": least}, *ends)

        wait()  # nothing else runs while networks are timed
        for turn in (first, not first):
            if turn:
                table = open_table(net, example, path, setup=setup, rules=rules, progress=first, before=before)
            wait()
    return RunBudgets(net, targets, precision=size_precision, batch=batch, table=table)


def drawn_input(shape: Sequence[int]) -> torch.Tensor:
    """Return a random input `[1, C, H, W]`: zeros cost less power."""
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))


def say_where_width_hardly_helps(full: Latency, narrowest: Latency) -> None:
    """Say in one line on stderr if narrower networks are hardly faster."""
    if message := width_message(full, narrowest):
        click.echo(message, err=True)
