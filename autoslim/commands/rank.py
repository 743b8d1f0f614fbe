"""autoslim study rank: does the supernet rank configurations as retraining them does?"""

from pathlib import Path

import click

from autoslim.commands import options
from autoslim.errors import ConfigError, RunError


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--flops-target", "targets", multiple=True, metavar="AMOUNT",
    help="Multiply-adds, as 300M or 60% of the full network, just below which configurations are drawn.",
)  # fmt: skip
@click.option(
    "--configurations", default=8, show_default=True, type=click.IntRange(3),
    help="How many for each target: the largest uniform one, and random ones.",
)  # fmt: skip
@click.option("--draw-seed", default=0, show_default=True, help="Seed of the random configurations.")
@options.tolerance_option
@click.option("--configs", metavar="A.json,B.json,..", help="These configurations of the supernet, in place of drawn ones.")
@click.option(
    "--seeds", default="0", show_default=True, metavar="N,N,..", callback=options.parse_seeds, help="Seeds to retrain with."
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of table, picture and retrainings.")
@options.epochs_option
@options.batch_size_option
@options.lr_option
@options.schedule_option
@options.device_option
@options.json_option
def rank(
    run, targets, configurations, draw_seed, tolerance, configs, seeds, out, epochs, batch_size, lr, schedule, device, as_json
):  # fmt: skip
    """Compare the supernet's ranking of configurations with that of retraining them: Kendall's tau-b.

    Each configuration is retrained from scratch, with the retrain recipe of the supernet's space, on the training images of
    RUN; estimate and retrained accuracy are both taken on the images that RUN held out. What is retrained already in OUT is
    not trained again. Writes rank.csv, rank.png and rank.json.
    """
    from autoslim.files import write_csv, write_json
    from autoslim.report.rank import describe_rank, draw_rank, rank_rows, rank_table

    given = [Path(name.strip()) for name in configs.split(",")] if configs else []
    if given and (drawn := options.given("configurations", "draw_seed", "tolerance")):
        raise click.UsageError(f"{drawn[0]} is for configurations that are drawn, and --configs names them; leave it out")
    recipe = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "schedule": schedule}
    measured = rank_study(
        run, out, targets=targets, configurations=configurations, draw_seed=draw_seed, tolerance=tolerance, given=given, seeds=seeds,
        device=device, **recipe,
    )  # fmt: skip
    rows = rank_rows(measured)
    found = describe_rank(rows)
    write_csv(out / "rank.csv", rows)
    draw_rank(out / "rank.png", rows)
    write_json(out / "rank.json", found)
    if as_json:
        options.print_json({**found, "rows": rows})
        return
    click.echo(f"{rank_table(rows)}\n{found['words']}")
    click.echo(str(out / "rank.png"), err=True)


def rank_study(
    run: Path, out: Path, *, targets=(), configurations: int = 8, draw_seed: int = 0, tolerance: float = 1.0, given=(),
    seeds=(0,), device: str = "auto", **overrides,
) -> list[dict]:  # fmt: skip
    """Score configurations on a supernet, then retrain them; returns what `rank_rows` takes.

    Raises:
        ConfigError: neither or both of targets and configurations are given, or a configuration does not fit the supernet.
        RunError: fewer than 3 configurations, or the supernet held no images out, or its images have changed.
    """
    from autoslim.commands import runs
    from autoslim.commands.search import load_supernet
    from autoslim.files import probe_writable

    if bool(targets) == bool(given):
        raise ConfigError("name what to rank: --flops-target to draw configurations, or --configs A.json,B.json,C.json")
    net, space, settings = load_supernet(run, device)
    configs = _given(given, net, space) if given else _drawn(net, space, targets, configurations, draw_seed, tolerance)
    if len(configs) < 3:
        raise RunError(f"{', '.join(configs)}: {len(configs)} configurations have no ranking; name 3 or more, better 8")
    recipe = runs.override(space.retrain, **overrides)
    images = runs.held_out_images(run, settings, space.input_shape, runs.choose_device(device))
    probe_writable(out)
    evaluator = runs.supernet_evaluator(net, images, space.search)
    measured = [
        {
            "configuration": name, "kind": config.provenance["kind"], "target": config.provenance["target"],
            "macs": config.cost["macs"], "params": config.cost["params"], "estimate": evaluator.score(config).to_json(),
            "retrained": {},
        }
        for name, config in configs.items()
    ]  # fmt: skip
    for row, config in zip(measured, configs.values()):
        for seed in seeds:
            folder = out / f"{row['configuration']}-seed{seed}"
            click.echo(f"retraining {folder} ({measured.index(row) + 1} of {len(measured)} configurations)", err=True)
            row["retrained"][seed] = _retrain(config, images, folder, settings, recipe, seed)["held_out"]["error"]
    return measured


def _drawn(net, space, targets, count: int, seed: int, tolerance: float) -> dict:
    """Return for each target the largest uniform configuration and random ones, by name."""
    from autoslim.cost.budgets import Budgets
    from autoslim.search.orders import random_configs, uniform_config

    budgets, found = Budgets(net, ["macs"]), {}
    for wanted in budgets.check({"macs": targets}):
        target, amount, table = wanted.amounts["macs"], wanted.label, budgets.table
        uniform = uniform_config(net, target)
        # One more than needed, as the uniform one may be among them.
        random = random_configs(net, target, count, tolerance=tolerance / 100, seed=seed)
        drawn = [c for c in random if c.widths != uniform.widths][: count - 1]
        found[f"uniform-{amount}"] = _about(uniform, "uniform", target, table, space)
        found |= {f"random{i}-{amount}": _about(c, "random", target, table, space) for i, c in enumerate(drawn, 1)}
    return found


def _given(paths: list[Path], net, space) -> dict:
    from autoslim.channels.config import ChannelConfig, origin
    from autoslim.cost.table import CostTable

    table, found = CostTable(net), {}
    stems = [path.stem for path in paths]
    for path in paths:
        config = ChannelConfig.load(path)
        table.checked(config, str(path))
        # What several searches found for a target has one name, in folders of their own.
        name = path.stem if stems.count(path.stem) == 1 else f"{path.resolve().parent.name}-{path.stem}"
        if name in found:
            raise ConfigError(f"{path}: two configurations are named {path.stem}; rename one, or leave it out")
        # Of one target, so that they are compared with each other.
        found[name] = _about(config, origin(config.provenance), None, table, space)
    return found


def _about(config, kind: str, target: float | None, table, space):
    from dataclasses import replace

    from autoslim.slimmable import family

    about = {"kind": kind, "target": target}
    return replace(family.with_model(config, space), cost=table.cost(config).to_json(), estimate={}, provenance=about)


def _retrain(config, images, folder: Path, settings: dict, recipe: dict, seed: int) -> dict:
    """Retrain in a run folder without the held-out images, score on those; returns what result.json holds."""
    from autoslim.commands import runs
    from autoslim.commands.retrain import load_network
    from autoslim.files import write_json
    from autoslim.search.evaluate import evaluate
    from autoslim.slimmable import family
    from autoslim.training.loop import retrain
    from autoslim.training.recipe import Recipe

    # A kind of its own: these networks have not seen all training images, and are not for the test images.
    runs.write_run(
        folder, "study network", channels=config.to_json(), data=settings["data"], held_out=settings["held_out"],
        split_seed=settings["seed"], images=images.counts(), seed=seed, recipe=recipe, classes=list(images.classes),
        skip_corrupt=settings["skip_corrupt"],
    )  # fmt: skip
    if known := runs.read_result(folder, ("held_out", "error")):
        return known
    network, cost = load_network(config, str(folder))
    family.place(network, images.device)
    batches = images.training(images.train, recipe, seed)
    retrain(network, batches, folder=folder, seed=seed, progress=True, recipe=Recipe.of(recipe))
    result = {
        "kind": "retrained accuracy, held-out training images",
        "configuration": config.provenance["kind"],
        "held_out": evaluate(network, images.scoring(images.search)).to_json(),
        "cost": cost.to_json(),
        "seed": seed,
        "epochs": recipe["epochs"],
    }
    write_json(folder / "result.json", result)
    return result
