"""autoslim latency-table: the latency of any configuration on this machine."""

from pathlib import Path

import click

from autoslim.commands import options
from autoslim.spaces import load_space


@click.command("latency-table")
@click.argument("space")
@options.device_option
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1), help="Images in one forward pass.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Threads of the CPU.")
@click.option(
    "--backend", default="torch", show_default=True, type=click.Choice(["torch", "onnxruntime"]),
    help="What runs the network; onnxruntime on the CPU.",
)  # fmt: skip
@click.option(
    "--points", type=click.IntRange(2),
    help="Widths of a layer that are measured, at most; between them the table interpolates.  [default: those of the table that "
    "is there, else 16]",
)  # fmt: skip
@click.option("--check", default=20, show_default=True, type=click.IntRange(0), help="Random configurations to compare with.")
@click.option(
    "--out", type=click.Path(path_type=Path),
    help="The table.  [default: latency-SPACE-SETUP.json; of a RUN where its search looks for it, RUN/latency-SETUP.json]",
)  # fmt: skip
@options.shape_option
@options.json_option
def latency_table(space, device, batch, threads, backend, points, check, out, input_shape, as_json):
    """Measure the layers of SPACE (a name, a TOML file, pkg.module:factory, or the RUN of a supernet) at all widths, here.

    From the table `autoslim search --latency-target` predicts the latency of any configuration; here predictions are compared
    with random configurations measured end to end. Run again, it goes on where it was cut off. Keep the machine quiet meanwhile.
    """
    from autoslim.commands.budgets import run_table

    of_run = _space_of_run(Path(space))
    if of_run and options.given("input_shape"):
        raise click.UsageError(f"--input-shape is that of the run {space}; leave it out")
    loaded = of_run or load_space(space, input_shape=input_shape)
    setup = latency_setup(device, batch=batch, threads=threads, backend=backend)
    options.check_threads(setup.device)
    out = out or (
        run_table(Path(space), setup) if of_run else Path(f"latency-{loaded.name.replace(':', '.')}-{setup.label}.json")
    )
    table = space_table(loaded, out, setup, points=points)
    found = {
        "path": str(out), "device": table.full.device, "batch": batch, "threads": threads, "backend": backend,
        "measured": table.points, "full": table.full.to_json(), "narrowest": table.narrowest.to_json(),
        "factor": table.factor, "constant_ms": table.constant_ms, "least_ms": table.least_ms,
        "message": table.message,
    }  # fmt: skip
    if check:
        found["check"] = table.check(check, progress=True)
    options.print_json(found) if as_json else _show(found, setup)


def _space_of_run(folder: Path):
    """Return the search space of a trained supernet, with the classes of its data; None if this is no run."""
    from autoslim.commands import runs

    if not (folder / "config.json").exists():
        return None
    return runs.space_from_json(runs.read_run(folder, "supernet")["space"])


def latency_setup(device: str, *, batch=1, threads=1, backend="torch"):
    """Return what latency is measured under; the device may be "auto"."""
    from autoslim.commands import runs
    from autoslim.cost.latency import LatencySetup

    place = "cpu" if device == "auto" and backend == "onnxruntime" else str(runs.choose_device(device))
    return LatencySetup(device=place, batch=batch, threads=threads, backend=backend)


def space_table(space, path: Path, setup, *, points: int | None = None):
    """Open the latency table of a search space (`open_latency_table`), with progress on stderr."""
    from autoslim.commands.budgets import drawn_input, say_where_width_hardly_helps
    from autoslim.cost.latency_table import open_latency_table
    from autoslim.files import probe_writable
    from autoslim.slimmable.family import build_supernet

    probe_writable(path.parent)
    return open_latency_table(
        build_supernet(space), drawn_input(space.input_shape), path, setup=setup, points=points,
        progress=True, before=say_where_width_hardly_helps,
    )  # fmt: skip


def _show(found: dict, setup) -> None:
    from autoslim.report.tables import align

    click.echo(f"{found['path']}: {found['measured']} layers and widths on {found['device']}, {_case(setup)}")
    full, narrowest = found["full"]["median_ms"], found["narrowest"]["median_ms"]
    click.echo(f"widest {full:.3f} ms, narrowest {narrowest:.3f} ms, measured end to end")
    least = "" if setup.device == "cpu" else f", at least {found['least_ms']:.3f} ms"
    click.echo(f"prediction = {found['factor']:.3f} x sum of the layers {found['constant_ms']:+.3f} ms{least}")
    if "check" not in found:
        return
    check = found["check"]
    if check is None:
        click.echo("the network has no other configurations to compare predictions with")
        return
    rows = [("predicted_ms", "measured_ms", "10 % to 90 %", "error", "sum of the layers")]
    for row in sorted(check["rows"], key=lambda row: row["measured_ms"]):
        error = row["predicted_ms"] / row["measured_ms"] - 1
        spread = f"{row['low_ms']:.3f} to {row['high_ms']:.3f}"
        rows.append((f"{row['predicted_ms']:.3f}", f"{row['measured_ms']:.3f}", spread, f"{error:+.1%}", f"{row['sum_ms']:.3f}"))
    click.echo(align(rows))
    click.echo(
        f"{check['configurations']} random configurations: median absolute error {check['median_error']:.1%}, "
        f"worst {check['worst_error']:.1%} (the sum alone: {check['raw_median_error']:.1%}, worst {check['raw_worst_error']:.1%})"
    )


def _case(setup) -> str:
    threads = f", {setup.threads} thread{'s' * (setup.threads > 1)}" if setup.device.startswith("cpu") else ""
    return f"{setup.backend}, batch {setup.batch}{threads}"
