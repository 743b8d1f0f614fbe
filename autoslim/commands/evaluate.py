"""autoslim evaluate: a supernet's estimate, or a retrained network's accuracy."""

from pathlib import Path

import click

from autoslim.commands import options
from autoslim.errors import RunError


@click.command()
@click.argument("run", metavar="RUN|CONFIG.json", type=click.Path(path_type=Path))
@click.option("--data", metavar="DATA", help="Images, in place of the run's own.")
@click.option(
    "--supernet", type=click.Path(path_type=Path), metavar="RUN", help="The run of a CONFIG.json that lies elsewhere."
)  # fmt: skip
@click.option("--width", type=float, help="Width multiplier of the family, for a supernet.  [default: its full width]")
@click.option("--switch", metavar="NAME", help="One switch of a network with several.  [default: all]")
@options.device_option
@options.json_option
def evaluate(run, data, supernet, width, switch, device, as_json):
    """Score a run folder, or a CONFIG.json of the supernet that it lies in, or of --supernet.

    A supernet, at --width or at CONFIG.json, gives a supernet estimate on its held-out training images (on the test images of
    other --data; a US-Net that held none out: its accuracy on the test images), with BN statistics calibrated for that
    configuration. A retrained network gives its accuracy on the test images, one with switches that of each. All images are
    normalised as those that were trained on.
    """
    folder, config_path = find_run(run, supernet)
    from autoslim.commands import runs

    kind = runs.read_run(folder, "supernet" if supernet else None)["kind"]
    if switch is not None and kind != "switches":
        raise click.UsageError(f"--switch {switch} is for networks with switches; {folder} holds a {kind}, leave it out")
    if switch is not None and width is not None:
        raise click.UsageError(f"--switch {switch} and --width {width:g} both name a switch; pass one of them")
    if kind == "switches":
        _evaluate_switches(folder, data, f"{width:g}" if switch is None and width is not None else switch, device, as_json)
        return
    if kind == "network":
        if width is not None:
            raise click.UsageError(f"--width {width:g} is for supernets; {folder} holds one retrained network, leave it out")
        document = evaluate_network(folder, data, device)
    else:
        document = evaluate_supernet(folder, config_path, data, width, device)
    if as_json:
        options.print_json(document)
        return
    _print(document)


def _print(document: dict) -> None:
    click.echo(
        f"{document['kind']}: {1 - document['error']:.2%} top-1 accuracy on {document['images']} {document['split']} images, "
        f"loss {document['loss']:.4f}, {document['macs'] / 1e6:.4g}M MACs, {document['params'] / 1e6:.4g}M params"
    )


def _evaluate_switches(folder: Path, data: str | None, switch: str | None, device: str, as_json: bool) -> None:
    from autoslim.commands import runs
    from autoslim.commands.joint import accuracy_kind, load_switches, score_switches

    net, settings = load_switches(folder, device)
    if switch is not None:
        net.set(switch)  # before the images are read: it may be unknown
    lead = next(iter(net.switches.values()))
    images = runs.run_images(folder, settings, lead.input_shape, runs.choose_device(device), data)
    found = score_switches(net, images.scoring(images.test), switch and [switch])
    rows = [
        {"switch": name, "kind": accuracy_kind(net.switches), "split": "test", **each["test"], **each["cost"]}
        for name, each in found.items()
    ]
    if as_json:
        options.print_json(rows if switch is None else rows[0])
        return
    for row in rows:
        click.echo(f"switch {row['switch']}  ", nl=False)
        _print(row)


def find_run(path: Path, supernet: Path | None = None) -> tuple[Path, Path | None]:
    """Return the run folder that a path belongs to, and the configuration if the path is one.

    Args:
        supernet: the run of a configuration, wherever that lies.

    Raises:
        RunError: there is no run with weights at the path or above it.
        click.UsageError: `supernet` is given, and the path is none of a configuration.
    """
    if path.is_dir() or path.suffix != ".json":
        if supernet is not None:
            raise click.UsageError(f"--supernet {supernet} is for a CONFIG.json, which {path} is not; leave it out")
        return path, None
    if not path.exists():
        raise RunError(f"{path} does not exist; pass a run folder, or a configuration")
    if supernet is not None:
        return supernet, path
    for folder in path.resolve().parents:
        if (folder / "checkpoint.pt").exists():
            return folder, path
    raise RunError(f"{path} does not lie in a run folder with weights; name the run that it was found in with --supernet RUN")


def evaluate_network(folder: Path, data: str | None, device: str) -> dict:
    """Score a retrained network on the test images."""
    from autoslim.channels.config import ChannelConfig
    from autoslim.commands import runs
    from autoslim.commands.retrain import load_network
    from autoslim.search.evaluate import evaluate as score
    from autoslim.slimmable import family

    settings = runs.read_run(folder, "network")
    config = ChannelConfig.load(folder / "channels.json")
    network, cost = load_network(config, str(folder / "channels.json"))
    runs.load_finished(folder, "network", network, settings["recipe"]["epochs"])
    place = runs.choose_device(device)
    images = runs.run_images(folder, settings, config.input_shape, place, data)
    result = score(family.place(network, place), images.scoring(images.test))
    return {"kind": "retrained accuracy", "split": "test", **result.to_json(), **cost.to_json()}


def evaluate_supernet(folder: Path, config_path: Path | None, data: str | None, width: float | None, device: str) -> dict:
    """Score a supernet at one configuration on the images held out of its training, or on the test images of other data."""
    from autoslim.channels.config import ChannelConfig
    from autoslim.commands import runs
    from autoslim.commands.search import load_supernet
    from autoslim.cost.table import CostTable
    from autoslim.slimmable import family

    net, space, settings = load_supernet(folder, device)
    table = CostTable(net)
    if config_path is not None:
        if width is not None:
            raise click.UsageError(f"--width {width:g} has no meaning for {config_path}, which states its channels; leave it out")
        config = ChannelConfig.load(config_path)
        cost = table.checked(config, str(config_path))
    else:
        config = family.width_config(space, net, space.full_width if width is None else width)
        cost = table.cost(config)
    low = net.grid.min_ratio * space.full_width
    if width is not None and width < low - 1e-9:
        click.echo(f"width {width:g} lies below what the supernet was trained for, {low:g} to {space.full_width:g}", err=True)
    images = runs.run_images(folder, settings, space.input_shape, runs.choose_device(device), data)
    result = runs.supernet_evaluator(net, images, space.search).score(config)
    kind = "shared-weight accuracy" if settings["held_out"] is None else "supernet estimate"
    part = "test" if images.search is None else "held-out training"
    return {"kind": kind, "split": part, **result.to_json(), **cost.to_json()}
