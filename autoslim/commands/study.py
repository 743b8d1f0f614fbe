"""autoslim study: the comparisons of the papers, one command each."""

from pathlib import Path

import click

from autoslim.commands import options
from autoslim.commands.rank import rank
from autoslim.errors import ConfigError, RunError
from autoslim.files import probe_writable, write_csv, write_json

out_option = click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of table and picture.")
runs_argument = click.argument("run", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
widths_option = click.option(
    "--widths",
    metavar="R,R,..",
    callback=options.parse_widths,
    help="Width multipliers.  [default: 16 over the range trained for]",
)


@click.group()
def study():
    """Compare slimmable networks as the papers do. Runs that differ in their seed alone are averaged, with their spread.

    A run that held images out (train --held-out) is scored on those; any other is finished, and scored on the test images.
    """


study.add_command(rank)


@study.command()
@runs_argument
@widths_option
@out_option
@options.device_option
@options.json_option
def widths(run, widths, out, device, as_json):
    """Score runs of any system at many widths, each with BN statistics calibrated for it, into one plot.

    At a width between its switches, an S-Net takes weights, scales and biases of the next wider switch. Writes widths.csv and
    widths.png.
    """
    rows = widths_study(list(run), widths, out, device)
    _tell(as_json, rows, _width_table, out / "widths.png")


@study.command()
@click.argument("space")
@options.data_option
@out_option
@click.option(
    "--seeds", default="0", show_default=True, metavar="N,N,..", callback=options.parse_seeds, help="Seeds to train with."
)
@widths_option
@options.epochs_option
@options.batch_size_option
@options.lr_option
@options.schedule_option
@options.device_option
@options.skip_corrupt_option
@options.shape_option
@options.json_option
def natural(space, data, out, seeds, widths, epochs, batch_size, lr, schedule, device, skip_corrupt, input_shape, as_json):
    """Is an ordinary network slimmable? Train one, an S-Net and a US-Net of SPACE, and score them at many widths.

    US-Nets, supplementary, figure 2. What is trained already in OUT is not trained again. Writes widths.csv and widths.png.
    """
    from autoslim.commands.train import train_run, train_s_net
    from autoslim.spaces import load_space

    loaded = load_space(space, input_shape=input_shape)
    top = max(loaded.s_net["switches"])
    if top != loaded.us_net["range"][1]:
        raise ConfigError(
            f"{space}: the widest switch of [s_net] is {top:g}, the range of [us_net] ends at {loaded.us_net['range'][1]:g}; "
            "make them equal, or compare runs of your own with `autoslim study widths`"
        )
    common = {"device": device, "skip_corrupt": skip_corrupt, "epochs": epochs, "batch_size": batch_size, "lr": lr}
    common["schedule"] = schedule
    trained = []
    for seed in seeds:
        for name, switches in (("ordinary", [top]), ("s-net", None)):
            trained.append(out / f"{name}-seed{seed}")
            train_s_net(loaded, data, trained[-1], seed=seed, switches=switches, **common)
        trained.append(out / f"us-net-seed{seed}")
        train_run(loaded, data, trained[-1], system="us-net", seed=seed, **common)
    rows = widths_study(trained, widths, out, device)
    _tell(as_json, rows, _width_table, out / "widths.png")


@study.command()
@runs_argument
@click.option("--ratio", default=0.6, show_default=True, help="How much of its width the slimmed stage keeps.")
@click.option("--points", default=8, show_default=True, type=click.IntRange(2), help="Global ratios of each sweep.")
@out_option
@options.device_option
@options.json_option
def stages(run, ratio, points, out, device, as_json):
    """Slim one stage at a time and say which is cheapest and which dearest; for nonuniform supernets.

    US-Nets, supplementary. A stage is the channel groups of one resolution. Every other group keeps a global ratio, which is
    swept. Writes stages.csv, stages.png and stages.json.
    """
    from autoslim.report.stages import describe_stages, draw_stages

    rows = stages_study(list(run), ratio, points, out, device)
    found = describe_stages(rows, ratio=ratio)
    write_csv(out / "stages.csv", rows)
    draw_stages(out / "stages.png", rows, measure=f"top-1 {rows[0]['kind']}")
    write_json(out / "stages.json", found)
    if as_json:
        options.print_json(found)
        return
    click.echo(found["words"])
    click.echo(str(out / "stages.png"), err=True)


@study.command()
@runs_argument
@click.option("--configurations", default=10, show_default=True, type=click.IntRange(1), help="Random configurations.")
@out_option
@options.device_option
@options.json_option
def calibration(run, configurations, out, device, as_json):
    """Score random configurations of supernets before and after their BN statistics are calibrated (US-Nets, section 3.4).

    Writes calibration.csv.
    """
    rows = calibration_study(list(run), configurations, out, device)
    write_csv(out / "calibration.csv", rows)
    _tell(as_json, rows, _calibration_table, out / "calibration.csv")


def widths_study(folders: list[Path], widths: list[float] | None, out: Path, device: str) -> list[dict]:
    """Score runs at widths; writes the table and the picture, and returns the rows."""
    from autoslim.commands.trained import at_widths, open_run, spread
    from autoslim.report.widths import draw_widths

    opened = _labelled([open_run(folder, device) for folder in folders])
    probe_writable(out)
    bounds = [run.bounds() for run in opened]
    if widths is None:
        widths = spread(min(low for low, _ in bounds), max(high for _, high in bounds), 16)
    read, rows = {}, []
    for run in opened:
        rows += at_widths(run, widths, _images(run, read))
    if not rows:
        raise RunError(f"no run reaches a width of {', '.join(f'{w:g}' for w in widths)}; pass narrower --widths")
    rows = _as_one(rows, opened)
    write_csv(out / "widths.csv", rows)
    chance = 1 / max(len(run.settings["classes"]) for run in opened)
    points = [row | {"accuracy": 1 - row["error"]} for row in rows]
    if min(point["accuracy"] for point in points) > 3 * chance:
        chance = None  # far below the picture
    draw_widths(out / "widths.png", points, chance=chance, measure=f"top-1 {rows[0]['kind']}")
    return rows


def _labelled(opened: list) -> list:
    """Give runs that differ in more than their seed labels that differ.

    Raises:
        RunError: two runs are the same training, or are scored on different kinds of images.
    """
    from dataclasses import replace

    first = opened[0]
    for run in opened[1:]:
        if run.accuracy_kind != first.accuracy_kind:
            raise RunError(
                f"{first.folder} gives {first.accuracy_kind}, {run.folder} {run.accuracy_kind}; study them apart, or train both "
                "with the same --held-out"
            )
    seen: dict[tuple, Path] = {}
    trainings: dict[str, list[str]] = {}
    for run in opened:
        key = (run.same_but_seed(), run.seed)
        if key in seen:
            raise RunError(f"{seen[key]} and {run.folder} are the same training with the same seed; leave one out")
        seen[key] = run.folder
        names = trainings.setdefault(run.label, [])
        names += [] if run.same_but_seed() in names else [run.same_but_seed()]
    found, names = [], {}
    for run in opened:
        label = run.label
        if len(trainings[label]) > 1:
            name = run.folder.name if run.folder.name not in names.values() else str(run.folder)
            label = f"{label} ({names.setdefault(run.same_but_seed(), name)})"
        found.append(replace(run, label=label))
    return found


def _as_one(rows: list[dict], opened: list) -> list[dict]:
    """Where several ordinary networks differ in their widths alone, keep of each the one it was trained at, as points of one line."""
    networks = [run for run in opened if run.label.startswith("ordinary network")]
    ordinary = {run.label for run in networks}
    if len(ordinary) < 2 or len({run.same_but_seed("switches") for run in networks}) > 1:
        return rows
    kept = [row for row in rows if row["label"] not in ordinary or row["trained"]]
    return [row | {"label": "ordinary networks, one a width"} if row["label"] in ordinary else row for row in kept]


def stages_study(folders: list[Path], ratio: float, points: int, out: Path, device: str) -> list[dict]:
    """Score every stage slimmed alone, over a sweep of the global ratio; returns one row a configuration."""
    import torch

    from autoslim.commands import runs
    from autoslim.commands.trained import open_run
    from autoslim.search.stages import score_stages
    from autoslim.slimmable.supernet import Supernet

    read, rows = {}, []
    opened = _labelled([open_run(folder, device) for folder in folders])
    for run in opened:
        if not isinstance(run.net, Supernet) or run.space.train["widths"] != "nonuniform":
            raise RunError(
                f"{run.folder} was not trained at nonuniform widths; train it with --system nonuniform-us-net or autoslim"
            )
        if run.same_but_seed() != opened[0].same_but_seed():
            raise RunError(f"{opened[0].folder} and {run.folder} differ in more than their seed; study them apart")
    probe_writable(out)
    for run in opened:
        images = _images(run, read)
        evaluator = runs.supernet_evaluator(run.net, images, run.space.search)
        example = torch.zeros(2, *run.space.input_shape, device=images.device)
        about = {"seed": run.seed, "kind": run.accuracy_kind}
        rows += [row | about for row in score_stages(evaluator, example, ratio=ratio, points=points)]
    return rows


def calibration_study(folders: list[Path], configurations: int, out: Path, device: str) -> list[dict]:
    """Score random configurations with the statistics of an untrained batch norm (0 and 1: training keeps none), and calibrated."""
    import torch

    from autoslim.commands import runs
    from autoslim.commands.trained import open_run
    from autoslim.cost.table import CostTable
    from autoslim.search.evaluate import evaluate
    from autoslim.slimmable.supernet import Supernet

    read, rows = {}, []
    opened = _labelled([open_run(folder, device) for folder in folders])
    for run in opened:
        if not isinstance(run.net, Supernet):
            raise RunError(f"{run.folder} has switches with statistics of their own; pass a supernet or a US-Net")
    probe_writable(out)
    for run in opened:
        images = _images(run, read)
        scored = images.scoring(images.test if images.search is None else images.search, run.space.search["batch_size"])
        generator = torch.Generator().manual_seed(run.seed)
        left = {name: value.clone() for name, value in run.net.model.named_buffers()}
        table = CostTable(run.net)
        evaluator = runs.supernet_evaluator(run.net, images, run.space.search)
        for index in range(configurations):
            config = run.net.random(generator)
            with torch.no_grad():
                for name, value in run.net.model.named_buffers():
                    value.copy_(left[name])
            run.net.set(config)
            before, after = evaluate(run.net, scored), evaluator.score(config)
            rows.append({
                "label": run.label, "seed": run.seed, "configuration": index, "macs": table.cost(config).macs,
                "error_before": before.error, "error_after": after.error, "images": after.images,
                "kind": run.accuracy_kind,
            })  # fmt: skip
    return rows


def _images(run, read: dict):
    """Read the images of a run, once for all runs that have the same."""
    settings, held_out = run.settings, run.settings.get("held_out")
    drawn = run.seed if held_out else None
    key = (settings["data"], run.input_shape, held_out, drawn, settings["skip_corrupt"], settings.get("data_digest"))
    if key not in read:
        read[key] = run.images()
    return read[key]


def _tell(as_json: bool, rows: list[dict], table, picture: Path) -> None:
    if as_json:
        options.print_json(rows)
        return
    click.echo(table(rows))
    click.echo(str(picture), err=True)


def _width_table(rows: list[dict]) -> str:
    from autoslim.report.tables import align

    labels = list(dict.fromkeys(row["label"] for row in rows))
    cells: dict[tuple, list[dict]] = {}
    for row in rows:
        cells.setdefault((row["width"], row["label"]), []).append(row)
    widths = sorted({row["width"] for row in rows}, reverse=True)
    costs = {key: f"{some[0]['macs']:,}" for key, some in cells.items()}
    of_width = [{costs[key] for key in cells if key[0] == width} for width in widths]
    if all(len(known) == 1 for known in of_width):
        lines = [("width", "MACs", *labels)]
        for width, (macs,) in zip(widths, of_width):
            lines.append((f"{width:g}", macs, *(_cell(cells.get((width, label), [])) for label in labels)))
    else:  # networks of several families
        lines = [("width", *(text for label in labels for text in ("MACs", label)))]
        for width in widths:
            pairs = [(costs.get((width, label), "-"), _cell(cells.get((width, label), []))) for label in labels]
            lines.append((f"{width:g}", *(text for pair in pairs for text in pair)))
    return f"{align(lines)}\n* a width that the network was trained at; {rows[0]['kind']} ({rows[0]['images']})"


def _cell(rows: list[dict]) -> str:
    if not rows:
        return "-"
    values = [100 * (1 - row["error"]) for row in rows]
    spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.1f} %{spread}{'*' if rows[0]['trained'] else ''}"


def _calibration_table(rows: list[dict]) -> str:
    from autoslim.report.tables import align

    lines = [("seed", "configuration", "MACs", "before", "after calibration")]
    lines += [
        (
            str(row["seed"]),
            str(row["configuration"]),
            f"{row['macs']:,}",
            f"{1 - row['error_before']:.1%}",
            f"{1 - row['error_after']:.1%}",
        )
        for row in rows
    ]
    return f"{align(lines)}\n{rows[0]['kind']} ({rows[0]['images']})"
