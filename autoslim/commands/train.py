"""autoslim train: a supernet, a US-Net or an S-Net."""

from pathlib import Path

import click

from autoslim.commands import options
from autoslim.errors import ConfigError
from autoslim.sandwich import Sandwich
from autoslim.spaces import load_space

# Name to the table of a space that holds its recipe, and how random widths are drawn.
SYSTEMS = {
    "autoslim": ("train", "nonuniform"),
    "us-net": ("us_net", "uniform"),
    "nonuniform-us-net": ("us_net", "nonuniform"),
    "s-net": ("s_net", None),
}


def _parse_sandwich(ctx, param, value: str | None) -> str | None:
    if value is None:
        return None
    try:
        Sandwich.parse(value)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None
    return value.replace(" ", "")


@click.command()
@click.argument("space")
@options.data_option
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Run folder; an unfinished run in it goes on.")
@click.option(
    "--system", type=click.Choice(list(SYSTEMS)), default="autoslim", show_default=True,
    help="What to train; each has a table with its recipe in SPACE.",
)  # fmt: skip
@click.option(
    "--range", "bounds", metavar="LOW,HIGH", callback=options.parse_range,
    help="Lowest and highest width multiplier, in place of the system's.",
)  # fmt: skip
@click.option("--sandwich", metavar="RULE", callback=_parse_sandwich, help="Networks of a step, as max,min,random:2.")
@click.option("--distill/--no-distill", default=None, help="Whether narrower networks learn from the widest's soft labels.")
@click.option("--average-inputs/--no-average-inputs", default=None, help="Divide conv outputs by their active inputs.")
@click.option(
    "--switches", metavar="R,R,..", callback=options.parse_widths, help="s-net: width multipliers, in place of the space's."
)
@click.option(
    "--norm", type=click.Choice(["private", "statistics", "shared"]),
    help="s-net: what of batch norm each switch has of its own: all of it, the statistics, or nothing.",
)  # fmt: skip
@options.epochs_option
@options.batch_size_option
@options.lr_option
@options.schedule_option
@options.held_out_option
@options.seed_option
@options.device_option
@options.skip_corrupt_option
@options.shape_option
@options.group_options
def train(space, data, out, system, bounds, sandwich, distill, average_inputs, switches, norm, epochs, batch_size, lr, schedule,
          held_out, seed, device, skip_corrupt, input_shape, choices):  # fmt: skip
    """Train a slimmable network of SPACE (a name, a TOML file or pkg.module:factory).

    autoslim: the supernet of a search, every channel group at a width of its own. us-net: one width for all, any width of a
    range. nonuniform-us-net: both. s-net: a fixed list of widths, each with its own batch norms; one switch alone
    (--switches 0.5) is an ordinary network. S-Nets learn from all training images, and so do US-Nets unless --held-out is given.
    """
    loaded = load_space(space, input_shape=input_shape).with_groups(**choices)
    common = {"seed": seed, "device": device, "skip_corrupt": skip_corrupt}
    recipe = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "schedule": schedule}
    if system == "s-net":
        _refuse("s-net", range=bounds, sandwich=sandwich, distill=distill, average_inputs=average_inputs, held_out=held_out)
        result = train_s_net(loaded, data, out, switches=switches, norm=norm, **common, **recipe)
        for name, found in result["switches"].items():
            click.echo(
                f"{name}x: {result['kind']} {1 - found['test']['error']:.2%}, {found['cost']['macs'] / 1e6:.4g}M MACs", err=True
            )
        click.echo(f"network: {out}\nnext: autoslim plot {out} --what curves --out curves.png", err=True)
        return
    _refuse(system, switches=switches, norm=norm)
    recipe |= {"sandwich": sandwich, "distill": distill, "average_inputs": average_inputs}
    train_run(loaded, data, out, system=system, bounds=bounds, held_out=held_out, **common, **recipe)
    after = f"search {out} --flops-target 60%" if system == "autoslim" else f"study widths {out} --out study"
    click.echo(f"supernet: {out}\nnext: autoslim {after}", err=True)


def _refuse(system: str, **given) -> None:
    for name, value in given.items():
        if value is not None:
            raise click.UsageError(f"--{name.replace('_', '-')} has no meaning for --system {system}; leave it out")


def train_run(
    space, data: str, out: Path, *, seed: int, system: str = "autoslim", bounds=None, device: str = "auto",
    skip_corrupt: bool = False, held_out=None, **overrides,
) -> None:  # fmt: skip
    """Train a supernet in a run folder.

    `held_out` None stands for the space's number of images for "autoslim", and for none for the other systems.
    """
    from autoslim.commands import runs, systems
    from autoslim.slimmable import family
    from autoslim.training.loop import train_supernet
    from autoslim.training.recipe import Recipe

    place = runs.choose_device(device)
    space = systems.supernet_space(space, system, bounds, **overrides)
    if held_out is None and system == "autoslim":
        held_out = space.search["held_out"]
    images = runs.load_images(data, space.input_shape, held_out, seed, place, skip_corrupt)
    images.tell_enlarged()
    space = space.with_classes(len(images.classes))
    net = family.build_supernet(space, place)
    batches = images.training(images.train, space.train, seed)
    runs.write_run(
        out, "supernet", images.normalization(), system=system, space=runs.space_to_json(space), data=data, held_out=held_out,
        seed=seed, classes=list(images.classes), skip_corrupt=skip_corrupt, **images.noted(),
    )  # fmt: skip
    train_supernet(
        net, batches, folder=out, seed=seed, progress=True, recipe=Recipe.of(space.train), from_scratch=True,
        uniform=family.uniform_widths(space, net),
    )  # fmt: skip


def train_s_net(
    space, data: str, out: Path, *, seed: int, switches=None, norm=None, device="auto", skip_corrupt=False, **overrides
):
    """Train an S-Net in a run folder, and score every switch on the test images; returns what result.json holds."""
    from autoslim.commands import joint, runs
    from autoslim.slimmable import family

    table = dict(space.s_net)
    switches, norm = switches or table["switches"], norm or table["norm"]
    del table["switches"], table["norm"]
    recipe = runs.override(table, **overrides)
    images = runs.load_images(data, space.input_shape, None, seed, runs.choose_device(device), skip_corrupt)
    images.tell_enlarged()
    space = space.with_classes(len(images.classes))
    settings = {"data": data, "seed": seed, "skip_corrupt": skip_corrupt, "space": runs.space_to_json(space)}
    configs = family.switch_configs(space, switches)
    return joint.joint_run(configs, images, out, system="s-net", norm=norm, recipe=recipe, **settings)
