"""autoslim plot: pictures of runs."""

from pathlib import Path

import click

from autoslim.errors import RunError


@click.command()
@click.argument("run", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Picture, .png or .svg.")
@click.option(
    "--what", type=click.Choice(["spectrum", "channels", "path"]), default="spectrum", show_default=True,
    help="FLOPs-accuracy spectrum, channels per layer of the found configurations, or widths along the search.",
)  # fmt: skip
def plot(run, out, what):
    """Draw supernet runs (with a finished search) and retrained networks into one picture."""
    plot_runs(list(run), out, what)
    click.echo(str(out))


def plot_runs(folders: list[Path], out: Path, what: str = "spectrum") -> None:
    """Draw one picture of run folders; a supernet's search may also be named by its own folder."""
    from autoslim.commands import runs

    kinds = [(folder, runs.read_run(folder)) for folder in folders]
    searches = [folder / "search" if document["kind"] == "supernet" else folder for folder, document in kinds
                if document["kind"] in ("supernet", "search")]  # fmt: skip
    searches = [folder for folder in searches if (folder / "spectrum.csv").exists()]
    retrained = [_retrained(folder) for folder, document in kinds if document["kind"] == "network"]
    if what == "spectrum":
        if not searches and not retrained:
            raise RunError(f"{', '.join(map(str, folders))} hold neither a finished search nor a retrained network; search first")
        _spectrum(searches, retrained, out)
        return
    if not searches:
        raise RunError(f"{', '.join(map(str, folders))} hold no finished search; run `autoslim search RUN` first")
    (_channels if what == "channels" else _path)(searches[0], out)


def _retrained(folder: Path) -> dict:
    from autoslim.files import read_json

    if not (folder / "result.json").exists():
        raise RunError(f"{folder} has no result yet; finish it with the same `autoslim retrain` command, or leave it out")
    result = read_json(folder / "result.json", RunError)
    try:
        return {
            "macs": result["cost"]["macs"],
            "accuracy": 1 - result["test"]["error"],
            "configuration": result["configuration"],
            "seed": result["seed"],
        }
    except (KeyError, TypeError) as error:
        raise RunError(f"{folder / 'result.json'} is damaged ({error!r}); remove it and run `autoslim retrain` again") from error


def _found(search: Path) -> list:
    """Return the searched configurations of a search folder, the most expensive first."""
    from autoslim.channels.config import ChannelConfig

    skip = ("config.json",)
    configs = [ChannelConfig.load(path) for path in sorted(search.glob("*.json")) if path.name not in skip]
    searched = [config for config in configs if config.provenance.get("kind") == "searched"]
    return sorted(searched, key=lambda config: -config.cost["macs"])


def _label(config) -> str:
    from autoslim.cost.targets import format_amount

    return f"{format_amount(config.cost['macs'])} MACs"


def _spectrum(searches: list[Path], retrained: list[dict], out: Path) -> None:
    from autoslim.report.spectrum import draw_spectrum, read_spectrum

    uniform, greedy, found = [], [], []
    for search in searches:
        more_uniform, more_greedy = read_spectrum(search / "spectrum.csv")
        uniform += more_uniform
        greedy += more_greedy
        found += [(config.cost["macs"], 1 - config.estimate["error"]) for config in _found(search)]
    draw_spectrum(out, uniform=uniform, greedy=greedy, found=found, retrained=retrained)


def _channels(search: Path, out: Path) -> None:
    from autoslim.report.channels import draw_channels

    found = _found(search)
    if not found:
        raise RunError(f"{search} holds no found configuration; run `autoslim search` again")
    draw_channels(
        out, [(_label(config), config.channels) for config in found], default=found[0].provenance.get("default_channels")
    )


def _path(search: Path, out: Path) -> None:
    from autoslim.report.channels import draw_path
    from autoslim.search.trace import SearchTrace

    found = _found(search)
    if not found:
        raise RunError(f"{search} holds no found configuration; run `autoslim search` again")
    groups = {name: full for name, (_, full) in found[0].channels.items()}
    taken = SearchTrace(search / "trace.csv").path_taken()
    widths, steps = dict(groups), []
    for candidate in taken:
        if candidate.group:
            widths = {**widths, candidate.group: candidate.width}
        steps.append(widths)
    macs = [candidate.macs for candidate in taken]
    marks = [(macs.index(config.cost["macs"]), _label(config)) for config in found if config.cost["macs"] in macs]
    draw_path(out, steps, groups, macs=macs, marks=marks)
