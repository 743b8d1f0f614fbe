"""autoslim retrain: a configuration, from scratch."""

from pathlib import Path

import click

from autoslim.commands import options


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@options.data_option
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Run folder; an unfinished run in it goes on.")
@options.epochs_option
@options.batch_size_option
@options.lr_option
@options.seed_option
@options.device_option
@options.skip_corrupt_option
@options.json_option
def retrain(config, data, out, epochs, batch_size, lr, seed, device, skip_corrupt, as_json):
    """Train the network of CONFIG.json from scratch on all training images, then score it once on the test images."""
    result = retrain_run(
        config, data, out, seed=seed, device=device, skip_corrupt=skip_corrupt, epochs=epochs, batch_size=batch_size, lr=lr
    )
    if as_json:
        options.print_json(result)
    else:
        click.echo(
            f"{out}: retrained accuracy {1 - result['test']['error']:.2%} on {result['test']['images']} test images, "
            f"{result['cost']['macs'] / 1e6:.4g}M MACs, {result['cost']['params'] / 1e6:.4g}M params, seed {seed}"
        )


def load_network(config, where: str):
    """Build the plain network of a configuration; returns (network, cost). The weights are the factory's own."""
    import torch

    from autoslim.commands.runs import group_options
    from autoslim.cost.table import CostTable
    from autoslim.errors import ConfigError
    from autoslim.factories import build_model
    from autoslim.slimmable.materialize import example_input, materialize
    from autoslim.slimmable.supernet import Supernet

    if config.model is None:
        raise ConfigError(f'{where} names no model to rebuild; add "model": {{"factory": "pkg.module:name", "kwargs": {{}}}}')
    with torch.random.fork_rng(devices=[]):
        model = build_model(config.model)
    net = Supernet(model, example_input(config), divisor=config.divisor, **group_options(config.grouping))
    config.check(net.groups, where)
    cost = CostTable(net).cost(config)
    config.check(net.groups, where, cost.to_json())
    return materialize(net, config), cost


def retrain_run(
    config_path, data: str, out: Path, *, seed: int, device="auto", skip_corrupt=False, quiet=False, **overrides
) -> dict:
    """Retrain in a run folder; returns what result.json holds."""
    from autoslim.channels.config import ChannelConfig
    from autoslim.commands import runs
    from autoslim.errors import DataError
    from autoslim.files import probe_writable, read_json, write_json
    from autoslim.search.evaluate import evaluate
    from autoslim.spaces import check_table
    from autoslim.training.loop import retrain as train_network
    from autoslim.training.recipe import Recipe

    config = ChannelConfig.load(config_path)
    network, cost = load_network(config, str(config_path))
    place = runs.choose_device(device)
    recipe = runs.override(check_table("retrain", config.provenance.get("retrain", {}), str(config_path)), **overrides)
    images = runs.load_images(data, config.input_shape, None, seed, place, skip_corrupt)
    check_classes(network, config, images, data)
    probe_writable(out)
    runs.write_run(
        out, "network", channels=config.to_json(), data=data, seed=seed, recipe=recipe, classes=list(images.classes),
        skip_corrupt=skip_corrupt,
    )  # fmt: skip
    if (out / "result.json").exists():
        return read_json(out / "result.json", DataError)
    config.save(out / "channels.json")
    runs.to_device(network, place)
    batches = images.training(images.train, recipe, seed)
    train_network(network, batches, folder=out, seed=seed, progress=not quiet, recipe=Recipe.of(recipe))
    result = {
        "kind": "retrained accuracy",
        "configuration": config.provenance.get("kind", "given"),
        "test": evaluate(network, images.scoring(images.test)).to_json(),
        "cost": cost.to_json(),
        "seed": seed,
        "epochs": recipe["epochs"],
    }
    write_json(out / "result.json", result)
    return result


def check_classes(network, config, images, data: str) -> None:
    """Raise DataError unless the network has one output a class."""
    import torch

    from autoslim.errors import DataError
    from autoslim.training.steps import logits_of

    with torch.no_grad():
        network.eval()
        outputs = logits_of(network(torch.zeros(1, *config.input_shape))).shape[1]
    if outputs != len(images.classes):
        raise DataError(f"{data!r} has {len(images.classes)} classes, the network {outputs}; pass the data it was searched for")
