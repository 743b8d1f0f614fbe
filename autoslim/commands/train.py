"""autoslim train: a supernet."""

from pathlib import Path

import click

from autoslim.commands import options
from autoslim.spaces import load_space


@click.command()
@click.argument("space")
@options.data_option
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Run folder; an unfinished run in it goes on.")
@options.epochs_option
@options.batch_size_option
@options.lr_option
@options.held_out_option
@options.seed_option
@options.device_option
@options.skip_corrupt_option
@options.shape_option
@options.group_options
def train(space, data, out, epochs, batch_size, lr, held_out, seed, device, skip_corrupt, input_shape, choices):
    """Train the supernet of SPACE (a name, a TOML file or pkg.module:factory) with the sandwich rule."""
    train_run(
        load_space(space, input_shape=input_shape).with_groups(**choices),
        data,
        out,
        seed=seed,
        device=device,
        skip_corrupt=skip_corrupt,
        held_out=held_out,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
    )
    click.echo(f"supernet: {out}\nnext: autoslim search {out} --flops-target 60%", err=True)


def train_run(
    space, data: str, out: Path, *, seed: int, device: str = "auto", skip_corrupt: bool = False, held_out=None, **overrides
):
    """Train a supernet in a run folder; returns the supernet and the images."""
    from dataclasses import replace

    from autoslim.commands import runs
    from autoslim.files import probe_writable
    from autoslim.training.loop import train_supernet
    from autoslim.training.recipe import Recipe

    place = runs.choose_device(device)
    recipe = runs.override(space.train, **overrides)
    search = {**space.search, "held_out": space.search["held_out"] if held_out is None else held_out}
    images = runs.load_images(data, space.input_shape, search["held_out"], seed, place, skip_corrupt)
    space = replace(space.with_classes(len(images.classes)), train=recipe, search=search)
    net = runs.build_supernet(space, place)
    batches = images.training(images.train, recipe, seed)
    probe_writable(out)
    runs.write_run(
        out,
        "supernet",
        space=runs.space_to_json(space),
        data=data,
        seed=seed,
        classes=list(images.classes),
        skip_corrupt=skip_corrupt,
        images=images.counts(),
    )
    train_supernet(net, batches, folder=out, seed=seed, progress=True, recipe=Recipe.of(recipe), from_scratch=True)
    return net, images
