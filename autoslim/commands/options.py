"""Options that several verbs share."""

import functools
import json
import math

import click

data_option = click.option(
    "--data",
    required=True,
    metavar="DATA",
    help="digits, cifar10:DIR, cifar100:DIR, fashion-mnist:DIR, folder:DIR (train/CLASS, test/CLASS) or pkg.module:function.",
)
seed_option = click.option("--seed", default=0, show_default=True, help="Seed of weights, order and augmentation.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else.")
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
skip_corrupt_option = click.option("--skip-corrupt", is_flag=True, help="Leave out images that cannot be decoded.")
epochs_option = click.option(
    "--epochs", type=click.IntRange(1), help="Epochs, in place of the space's; its schedule is stretched with them."
)
batch_size_option = click.option("--batch-size", type=click.IntRange(1), help="Images a step, in place of the space's.")
lr_option = click.option("--lr", type=float, help="Peak learning rate, in place of the space's.")
schedule_option = click.option(
    "--schedule",
    type=click.Choice(["linear", "cosine", "constant"]),
    help="How the learning rate falls, in place of the space's way.",
)

tolerance_option = click.option(
    "--tolerance", default=1.0, show_default=True, metavar="PERCENT", type=click.FloatRange(0, 100, max_open=True),
    help="How far below a target drawn configurations may lie.",
)  # fmt: skip


def parse_widths(ctx, param, value: str | None) -> list[float] | None:
    """Read "0.25,0.5,1.0"."""
    if value is None:
        return None
    widths = read_widths(value)
    if not widths or len(set(widths)) != len(widths):
        raise click.BadParameter(f"{value!r} is no list of different width multipliers; write 0.25,0.5,1.0")
    return widths


def read_widths(text: str) -> list[float]:
    """Return the numbers above 0 of "0.25,0.5"; nothing where one is none."""
    try:
        widths = [float(part) for part in text.split(",")]
    except ValueError:
        return []
    return widths if all(0 < width < math.inf for width in widths) else []


def parse_range(ctx, param, value: str | None) -> tuple[float, float] | None:
    """Read "0.25,1.0"."""
    widths = None if value is None else read_widths(value)
    if widths is not None and (len(widths) != 2 or widths[0] >= widths[1]):
        raise click.BadParameter(f"{value!r} is no range; write the lower width multiplier first, as 0.25,1.0")
    return widths and tuple(widths)


def parse_seeds(ctx, param, value: str) -> list[int]:
    """Read "0,1,2"."""
    try:
        seeds = [int(part) for part in value.split(",")]
    except ValueError:
        seeds = []
    if not seeds or len(set(seeds)) < len(seeds):
        raise click.BadParameter(f"{value!r} is no list of different seeds; write 0,1,2")
    return seeds


def _parse_held_out(ctx, param, value: str | None) -> int | float | None:
    if value is None:
        return None
    try:
        return int(value) if value.isdigit() else float(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no number; write 0.1 for a tenth, or 5000 for that many images") from None


held_out_option = click.option(
    "--held-out",
    metavar="N",
    callback=_parse_held_out,
    help="Training images kept back: a part (0.1) or a number (5000).  [default: the space's for autoslim, none for the others]",
)


def _names(ctx, param, values: tuple[str, ...]) -> list:
    rows = [[name.strip() for name in value.split(",")] for value in values]
    if any(not name for row in rows for name in row):
        raise click.BadParameter(f"{', '.join(values)!r} holds an empty name; separate names by single commas")
    return rows if param.name == "tie" else [name for row in rows for name in row]


def group_options(function):
    """Add --freeze, --tie, --release, --include, --exclude and --rules; they come in as `choices`."""

    @functools.wraps(function)
    def with_choices(*args, include, exclude, freeze, release, tie, rules, **kwargs):
        choices = {"include": include, "exclude": exclude, "freeze": freeze, "release": release, "tie": tie, "rules": rules}
        return function(*args, choices=choices, **kwargs)

    for name, text in (
        ("include", "Slim only channels produced inside these modules."),
        ("exclude", "Do not slim channels produced inside these modules."),
        ("freeze", "Keep these groups at full width."),
        ("release", "Slim these groups though they would be kept whole."),
        ("tie", "Give these groups one width: a,b."),
    ):
        with_choices = click.option(f"--{name}", multiple=True, metavar="NAME[,..]", callback=_names, help=text)(with_choices)
    text = "Function that returns rules for operations of your own."
    return click.option("--rules", metavar="PKG.MODULE:FUNCTION", help=text)(with_choices)


def shape_option(function):
    """Add --input-shape, None where it is left out."""
    return click.option(
        "--input-shape",
        metavar="C,H,W",
        callback=_parse_shape,
        help="Shape of one image.  [default: that of the space; 3,224,224 of pkg.module:factory]",
    )(function)


def _parse_shape(ctx, param, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        shape = tuple(int(size) for size in value.split(","))
    except ValueError:
        shape = ()
    if len(shape) != 3 or min(shape) < 1:
        raise click.BadParameter(f"{value!r} is not C,H,W; write it as 3,224,224")
    return shape


def print_json(document) -> None:
    """Print one JSON document on stdout."""
    click.echo(json.dumps(document, indent=1))


def given(*names: str) -> list[str]:
    """Return those of some options of the command that runs that stand on the command line, as they are written there."""
    context = click.get_current_context()
    there = [name for name in names if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE]
    return [f"--{name.replace('_', '-')}" for name in there]


def check_threads(device: str) -> None:
    """Raise click.UsageError for --threads where latency is measured on a GPU: it would have no effect."""
    if device.startswith("cuda") and given("threads"):
        raise click.UsageError(f"--threads is for a CPU, and latency is measured on {device}; leave it out")
