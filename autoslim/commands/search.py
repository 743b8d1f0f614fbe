"""autoslim search: from a supernet to one channel configuration a target."""

import contextlib
from pathlib import Path

import click

from autoslim.commands import options


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--flops-target", "targets", multiple=True, required=True, metavar="AMOUNT",
    help="Multiply-adds, as 300M, 1.2G, 300e6 or 60% of the full network; give one for each wanted network.",
)  # fmt: skip
@click.option("--score", type=click.Choice(["error", "loss"]), help="What judges a candidate, in place of the space's.")
@click.option("--pick", type=click.Choice(["drop", "drop-per-mac"]), help="Which candidate wins, in place of the space's.")
@click.option(
    "--effort", type=click.Choice(["exact", "fast"]), default="exact", show_default=True,
    help="exact: score every candidate of every step. fast: those that earlier steps do not speak against, on as many images "
    "as it takes to tell them apart.",
)  # fmt: skip
@click.option(
    "--memory-budget", metavar="BYTES", default="4G", show_default=True,
    help="Memory for what the candidates of a step share; with less, more is computed again.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="Where the configurations go.  [default: RUN/search]")
@options.device_option
@options.json_option
def search(run, targets, score, pick, effort, memory_budget, out, device, as_json):
    """Slim the supernet in RUN greedily and write one configuration a target, with the equal-cost uniform one beside it.

    All accuracies are supernet estimates on images held out of training; `autoslim retrain` gives the real ones.
    """
    found = search_run(run, targets, out=out, score=score, pick=pick, effort=effort, memory_budget=memory_budget, device=device)
    if as_json:
        options.print_json([{"path": str(path), **config.to_json()} for path, config in found])
        return
    from autoslim.report.tables import configuration_table

    click.echo(configuration_table(found))
    paths = " ".join(str(path) for path, _ in found[:1])
    click.echo(f"next: autoslim retrain {paths} --data DATA --out RUN", err=True)


def load_supernet(run: Path, device: str):
    """Rebuild the trained supernet of a run folder; returns (net, space, run settings)."""
    from autoslim.commands import runs
    from autoslim.slimmable import family
    from autoslim.training.checkpoint import load_weights

    settings = runs.read_run(run, "supernet")
    space = runs.space_from_json(settings["space"])
    place = runs.choose_device(device)
    net = family.build_supernet(space, place)
    epochs = load_weights(run / "checkpoint.pt", "supernet", net)
    if epochs < space.train["epochs"]:
        from autoslim.errors import RunError

        raise RunError(
            f"{run} was trained for {epochs} of {space.train['epochs']} epochs; run the same `autoslim train` again to finish it"
        )
    return net, space, settings


def search_run(
    run: Path, targets, *, out: Path | None = None, score=None, pick=None, effort="exact", memory_budget="4G", device="auto"
):
    """Search in a run folder; returns (path, configuration) pairs: the found ones, each followed by its uniform equal."""
    from dataclasses import replace

    from autoslim.channels.config import ChannelConfig
    from autoslim.commands import runs
    from autoslim.cost.table import CostTable
    from autoslim.cost.targets import check_targets, format_amount, parse_amount
    from autoslim.errors import RunError
    from autoslim.files import digest, probe_writable
    from autoslim.report.tables import write_spectrum
    from autoslim.search.greedy import greedy_search
    from autoslim.search.trace import SearchTrace
    from autoslim.slimmable import family

    net, space, settings = load_supernet(run, device)
    table = CostTable(net)
    wanted = check_targets(targets, table.cost(net.full()).macs, table.cost(net.narrowest()).macs)
    rules = {**space.search, **{k: v for k, v in (("score", score), ("pick", pick)) if v}, "effort": effort}
    budget = parse_amount(memory_budget, 0, "--memory-budget")
    if settings["held_out"] is None:
        raise RunError(
            f"{run} learnt from all training images, so none are left to search on; train it with --held-out 0.1, or another part"
        )
    images = runs.load_images(
        settings["data"],
        space.input_shape,
        settings["held_out"],
        settings["seed"],
        runs.choose_device(device),
        settings["skip_corrupt"],
    )
    if settings.get("images", images.counts()) != images.counts():
        raise RunError(
            f"{settings['data']!r} has {images.counts()} images, the supernet was trained when it had {settings['images']}: the "
            "held-out images would not be the same; restore the data, or train again"
        )
    out = out or run / "search"
    probe_writable(out)
    provenance = {
        "data": settings["data"],
        "seed": settings["seed"],
        "supernet": digest(run / "checkpoint.pt"),
        "search": rules,
        "images": len(images.search),
    }
    runs.write_run(out, "search", **provenance)
    evaluator = runs.search_evaluator(space, net, images, rules, budget)
    trace = SearchTrace(out / "trace.csv")
    provenance |= {"versions": runs.versions(), "retrain": space.retrain}
    if space.width_argument and space.full_width >= 1:
        provenance["default_channels"] = family.width_config(space, net, 1.0).widths

    def finish(config: ChannelConfig, estimate: dict, **extra) -> ChannelConfig:
        config = family.with_model(config, space)
        cost = table.cost(config).to_json()
        return replace(config, cost=cost, estimate=estimate, provenance={**provenance, **extra})

    found, uniforms = [], uniform_family(space, net)
    for point in greedy_search(
        net,
        targets={"macs": wanted},
        score=rules["score"],
        pick=rules["pick"],
        effort=effort,
        evaluator=evaluator,
        trace=trace,
        progress=True,
    ):
        name = format_amount(point.target)
        target = {"macs": point.target}
        config = finish(point.config, point.config.estimate, kind="searched", target=target)
        equal = equal_cost_uniform(uniforms, table, point.cost.macs)
        estimate = {"kind": "supernet estimate", **evaluator.score(equal).to_json()}
        equal = finish(equal, estimate, kind="uniform", target=target)
        for prefix, each in (("", config), ("uniform-", equal)):
            path = out / f"{prefix}{name}.json"
            each.save(path)
            found.append((path, each))
    uniform = [(table.cost(c).macs, evaluator.score(c)) for c in uniform_sweep(net)]
    write_spectrum(out / "spectrum.csv", uniform, trace.path_taken())
    return found


def uniform_sweep(net) -> list:
    """Return uniform configurations from a quarter of the full width to all of it, without repeats."""
    configs = {}
    for ratio in (0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        config = net.uniform(ratio)
        configs[tuple(config.widths.values())] = config
    return list(configs.values())


def equal_cost_uniform(configs: list, table, macs: int):
    """Return the uniform configuration whose multiply-adds are nearest to `macs`."""
    return min(configs, key=lambda config: abs(table.cost(config).macs - macs))


def uniform_family(space, net) -> list:
    """Return uniform configurations of all sizes, without repeats.

    A family with a width multiplier is asked for its own networks; others are scaled by one ratio for all groups.
    """
    from autoslim.errors import RunError
    from autoslim.slimmable import family

    found = []
    for step in range(5, 101) if space.width_argument else ():
        with contextlib.suppress(RunError):  # a width at which layers fall together that are apart in the supernet
            config = family.width_config(space, net, space.full_width * step / 100)
            # A family may round its widths more finely than the grid of the search allows.
            if not config.faults(net.groups):
                found.append(config)
    unique = {tuple(c.widths.values()): c for c in found or [net.uniform(step / 200) for step in range(10, 201)]}
    return list(unique.values())
