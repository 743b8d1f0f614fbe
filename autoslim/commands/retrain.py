"""autoslim retrain: a configuration, from scratch."""

import json
from dataclasses import replace
from pathlib import Path

import click

from autoslim.commands import options
from autoslim.errors import ConfigError


@click.command()
@click.argument("config", nargs=-1, required=True)
@options.data_option
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Run folder; an unfinished run in it goes on.")
@click.option("--joint", is_flag=True, help="Train all CONFIG.json in one network over shared weights.")
@click.option(
    "--norm", type=click.Choice(["private", "statistics", "shared"]),
    help="With --joint: what of batch norm each network has of its own.  [default: private, all of it]",
)  # fmt: skip
@options.epochs_option
@options.batch_size_option
@options.lr_option
@options.schedule_option
@options.seed_option
@options.device_option
@options.skip_corrupt_option
@options.json_option
def retrain(config, data, out, joint, norm, epochs, batch_size, lr, schedule, seed, device, skip_corrupt, as_json):
    """Train the network of CONFIG from scratch on all training images, then score it once on the test images.

    CONFIG is a file, or the name of a published configuration (`autoslim spaces` lists them). With --joint, several
    configurations of one family become one slimmable network: its weights are shared, batch norms are each one's own.
    """
    common = {"seed": seed, "device": device, "skip_corrupt": skip_corrupt}
    recipe = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "schedule": schedule}
    if joint:
        result = retrain_jointly(config, data, out, norm=norm or "private", **common, **recipe)
        rows = result["switches"]
    else:
        if len(config) > 1 or norm:
            raise click.UsageError(
                f"{len(config)} configurations{' and --norm' if norm else ''} need --joint; or pass one CONFIG alone"
            )
        result = retrain_run(config[0], data, out, **common, **recipe)
        rows = {str(out): result}
    if as_json:
        options.print_json(result)
        return
    for name, row in rows.items():
        click.echo(
            f"{name}: {result['kind']} {1 - row['test']['error']:.2%} on {row['test']['images']} test images, "
            f"{row['cost']['macs'] / 1e6:.4g}M MACs, {row['cost']['params'] / 1e6:.4g}M params, seed {seed}"
        )


def retrain_jointly(config_paths, data: str, out: Path, *, norm: str, seed: int, device="auto", skip_corrupt=False, **overrides):
    """Train several configurations of one family as one network, in a run folder; returns what result.json holds."""
    from autoslim.channels.config import ChannelConfig
    from autoslim.commands import runs
    from autoslim.commands.joint import joint_run
    from autoslim.spaces import check_table, find_config

    paths = [find_config(path) for path in config_paths]
    names = [path.stem for path in paths]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f"{', '.join(repeated)} is given twice, and names a switch; rename the file, or leave it out")
    configs = {path.stem: ChannelConfig.load(path) for path in paths}
    first = configs[names[0]]
    recipe = runs.override(check_table("retrain", first.provenance.get("retrain", {}), str(paths[0])), **overrides)
    if any(config.provenance.get("retrain", {}) != first.provenance.get("retrain", {}) for config in configs.values()):
        click.echo(f"the recipes of {', '.join(names)} differ; that of {names[0]} is taken for all", err=True)
    for path in paths:
        _check_takes_images(configs[path.stem], str(path))
    images = runs.load_images(data, first.input_shape, None, seed, runs.choose_device(device), skip_corrupt)
    configs = {name: with_classes(config, len(images.classes)) for name, config in configs.items()}
    settings = {"data": data, "seed": seed, "skip_corrupt": skip_corrupt}
    return joint_run(configs, images, out, system="joint", norm=norm, recipe=recipe, space=None, **settings)


def _check_model(config, where: str) -> None:
    if config.model is None:
        raise ConfigError(f'{where} names no model to rebuild; add "model": {{"factory": "pkg.module:name", "kwargs": {{}}}}')


def _check_takes_images(config, where: str) -> None:
    _check_model(config, where)
    shape = config.input_shape or []
    if len(shape) != 3 or not all(isinstance(size, int) for size in shape):
        raise ConfigError(
            f"{where} has the input shape {json.dumps(config.input_shape)}; to train on images, it has to be [C, H, W]"
        )


def load_network(config, where: str):
    """Build the plain network of a configuration; returns (network, cost). The weights are the factory's own."""
    from autoslim.cost.table import CostTable
    from autoslim.slimmable.materialize import materialize

    net = supernet_of(config, where)
    cost = CostTable(net).checked(config, where)
    return materialize(net, config), cost


def supernet_of(config, where: str):
    """Build the supernet that a configuration is one of; the weights are the factory's own.

    Raises:
        ConfigError: it names no model.
    """
    import torch

    from autoslim.factories import build_model
    from autoslim.slimmable.family import group_options
    from autoslim.slimmable.materialize import example_input
    from autoslim.slimmable.supernet import Supernet

    _check_model(config, where)
    with torch.random.fork_rng(devices=[]):
        model = build_model(config.model)
    return Supernet(model, example_input(config), divisor=config.divisor, **group_options(config.grouping))


def retrain_run(config_path, data: str, out: Path, *, seed: int, device="auto", skip_corrupt=False, **overrides) -> dict:
    """Retrain in a run folder; returns what result.json holds."""
    from autoslim.channels.config import ChannelConfig, origin
    from autoslim.commands import runs
    from autoslim.files import write_json
    from autoslim.search.evaluate import evaluate
    from autoslim.slimmable import family
    from autoslim.spaces import check_table, find_config
    from autoslim.training.loop import retrain as train_network
    from autoslim.training.recipe import Recipe

    config_path = find_config(config_path)
    config = ChannelConfig.load(config_path)
    place = runs.choose_device(device)
    recipe = runs.override(check_table("retrain", config.provenance.get("retrain", {}), str(config_path)), **overrides)
    _check_takes_images(config, str(config_path))
    images = runs.load_images(data, config.input_shape, None, seed, place, skip_corrupt)
    config = with_classes(config, len(images.classes))
    network, cost = load_network(config, str(config_path))
    config = replace(config, cost=cost.to_json())
    check_classes(network, config, images, data)
    runs.write_run(
        out, "network", images.normalization(), channels=config.to_json(), data=data, seed=seed, recipe=recipe,
        classes=list(images.classes), skip_corrupt=skip_corrupt, **images.noted(),
    )  # fmt: skip
    if known := runs.read_result(out, ("test", "error"), ("cost", "params")):
        return known
    config.save(out / "channels.json")
    family.place(network, place)
    batches = images.training(images.train, recipe, seed)
    train_network(network, batches, folder=out, seed=seed, progress=True, recipe=Recipe.of(recipe))
    result = {
        "kind": "retrained accuracy",
        "configuration": origin(config.provenance),
        "test": evaluate(network, images.scoring(images.test)).to_json(),
        "cost": cost.to_json(),
        "seed": seed,
        "epochs": recipe["epochs"],
    }
    write_json(out / "result.json", result)
    return result


def with_classes(config, classes: int):
    """Return a published or hand-written configuration for another number of classes, its cost left out.

    Other configurations stay as they are: they were searched on the classes that they have.
    """
    from autoslim.spaces import load_space

    if config.provenance.get("kind") not in ("published", "imported") or not config.space or not config.model:
        return config
    try:
        space = load_space(config.space)
    except ConfigError:  # a space of the user's own
        return config
    kwargs, argument = config.model.get("kwargs", {}), space.classes_argument
    if space.factory != config.model["factory"] or argument is None or kwargs.get(argument) == classes:
        return config
    return replace(config, model={**config.model, "kwargs": {**kwargs, argument: classes}}, cost={})


def check_classes(network, config, images, data: str) -> None:
    """Raise DataError unless the network has one output a class."""
    import torch

    from autoslim.errors import DataError
    from autoslim.training.steps import logits_of

    with torch.no_grad():
        network.eval()
        device = next(network.parameters()).device
        outputs = logits_of(network(torch.zeros(2, *config.input_shape, device=device))).shape[1]
    if outputs != len(images.classes):
        raise DataError(f"{data!r} has {len(images.classes)} classes, the network {outputs}; pass data with as many")
