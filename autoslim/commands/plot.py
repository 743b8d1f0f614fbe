"""autoslim plot: pictures of runs."""

import json
from pathlib import Path

import click

from autoslim.commands import options
from autoslim.errors import RunError

OF_SWITCHES = ("curves", "norms", "images")


@click.command()
@click.argument("run", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Picture, .png or .svg.")
@click.option(
    "--what", type=click.Choice(["spectrum", "channels", "path", *OF_SWITCHES]), default="spectrum", show_default=True,
    help="FLOPs-accuracy spectrum, channels per layer of the found configurations, or widths along the search. Of one run: "
    "training curves, batch norms over depth, or the images that excite one channel most, at each switch.",
)  # fmt: skip
@click.option("--layer", metavar="NAME", help="images: the layer whose output is looked at.  [default: the last batch norm]")
@click.option("--channel", type=click.IntRange(0), help="images: the channel of the layer.  [default: 0]")
@click.option("--widths", metavar="R,R,..", callback=options.parse_widths, help="norms, images: width multipliers of a supernet.")
@options.device_option
def plot(run, out, what, layer, channel, widths, device):
    """Draw supernet runs (with a finished search), retrained networks and S-Nets into one picture."""
    given = {"layer": layer, "channel": channel, "widths": widths}
    for name, value in given.items():
        if value is not None and (what not in ("norms", "images") or (name != "widths" and what != "images")):
            raise click.UsageError(f"--{name} has no meaning for --what {what}; leave it out")
    if what not in ("norms", "images") and options.given("device"):
        raise click.UsageError(f"--device has no meaning for --what {what}; leave it out")
    if what in OF_SWITCHES:
        from autoslim.commands import pictures

        if len(run) > 1:
            raise click.UsageError(f"--what {what} draws one run, {len(run)} are given; draw them one by one")
        if what == "curves":
            pictures.curves(run[0], out)
        elif what == "norms":
            pictures.norms(run[0], out, widths, device)
        else:
            pictures.top_images(run[0], out, layer, channel or 0, widths, device)
    else:
        plot_runs(list(run), out, what)
    click.echo(str(out))


def plot_runs(folders: list[Path], out: Path, what: str = "spectrum") -> None:
    """Draw one picture of run folders; a supernet's search may also be named by its own folder."""
    from autoslim.commands import runs

    twice = [str(folder) for folder in folders if [other.resolve() for other in folders].count(folder.resolve()) > 1]
    if twice:
        raise RunError(f"{' and '.join(twice)} are one folder; leave one out")
    kinds = [(folder, runs.read_run(folder)) for folder in folders]
    searches = [folder / "search" if document["kind"] == "supernet" else folder for folder, document in kinds
                if document["kind"] in ("supernet", "search")]  # fmt: skip
    unfinished = [folder for folder in searches if not (folder / "spectrum.csv").exists()]
    searches = [folder for folder in searches if folder not in unfinished]
    if what != "spectrum" and len(searches) > 1:
        raise RunError(f"--what {what} draws one search, {len(searches)} are given; draw them one by one")
    trained = [(folder, document) for folder, document in kinds if document["kind"] in ("network", "switches")]
    retrained = _by_family([point for folder, document in trained for point in _retrained(folder, document)])
    if what == "spectrum":
        if not searches and not retrained:
            raise RunError(f"{', '.join(map(str, folders))} hold neither a finished search nor a retrained network; search first")
        for folder in unfinished:
            click.echo(
                f"{folder} holds no finished search, none of it is drawn; name the folder of one that is elsewhere", err=True
            )
        for folder, document in kinds:
            if document["kind"] == "study network":
                click.echo(f"{folder} is part of a study, and not drawn", err=True)
        _check_seeds(trained)
        _spectrum(searches, retrained, out)
        return
    if not searches:
        named = ", ".join(map(str, folders))
        raise RunError(
            f"no finished search in {named}; run `autoslim search RUN` first, or name the folder that it wrote (--out)"
        )
    (_channels if what == "channels" else _path)(searches[0], out)


def _check_seeds(trained: list[tuple[Path, dict]]) -> None:
    """Raise RunError for networks that would be drawn as seeds of one, and are other trainings, or the same one twice."""
    seen: dict[tuple, tuple[Path, list]] = {}
    for folder, settings in trained:
        networks = settings["switches"] if settings["kind"] == "switches" else {"": settings["channels"]}
        same = [{name: [config.get("model"), config["channels"]] for name, config in networks.items()}]
        same += [settings[key] for key in ("data", "recipe", "skip_corrupt")]
        for config in networks.values():
            cost = config.get("cost") or {}
            drawn_as = _configuration(settings), cost.get("macs", json.dumps(config["channels"]))
            first, before = seen.setdefault(drawn_as, (folder, same))
            if before != same:
                raise RunError(
                    f"{first} and {folder} hold {drawn_as[0]} networks of as many multiply-adds, and differ in more than their "
                    "seed; draw them in pictures of their own"
                )
            first, _ = seen.setdefault((*drawn_as, settings["seed"]), (folder, same))
            if first != folder:
                raise RunError(f"{first} and {folder} are the same training with the same seed; leave one out")


def _by_family(points: list[dict]) -> list[dict]:
    """Name networks of one origin apart where they are of several families or trainings: a line joins one family."""
    families: dict[str, dict[str, dict]] = {}
    for point in points:
        families.setdefault(point["configuration"], {}).setdefault(point["family"], point)
    found = []
    for point in points:
        alike = families[point["configuration"]]
        if len(alike) > 1:
            spaces = [first["space"] for first in alike.values()]
            first = alike[point["family"]]
            name = first["space"] if first["space"] and spaces.count(first["space"]) == 1 else first["folder"]
            point = {**point, "configuration": f"{point['configuration']} ({name})"}
        found.append(point)
    return found


def _retrained(folder: Path, settings: dict) -> list[dict]:
    """Return the networks that a run trained: one, or one a switch."""
    from autoslim.commands import runs

    result = runs.read_result(folder)
    if result is None:
        raise RunError(f"{folder} has no result yet; finish it with the same command, or leave it out")
    lead = settings["channels"] if settings["kind"] == "network" else next(iter(settings["switches"].values()))
    family = [lead.get("model"), lead.get("input_shape"), *(settings[key] for key in ("data", "recipe", "skip_corrupt"))]
    about = {
        "configuration": _configuration(settings),
        "family": json.dumps(family, sort_keys=True),
        "space": lead.get("space"),
        "folder": str(folder),
    }
    try:
        about |= {"kind": result["kind"], "seed": result["seed"]}
        networks = [result] if settings["kind"] == "network" else list(result["switches"].values())
        return [{"macs": network["cost"]["macs"], "accuracy": 1 - network["test"]["error"], **about} for network in networks]
    except (KeyError, TypeError) as error:
        raise RunError(f"{folder / 'result.json'} is damaged ({error!r}); remove it and train again") from error


def _configuration(settings: dict) -> str:
    """Say what the networks of a run are, in a word or two."""
    from autoslim.channels.config import origin
    from autoslim.commands.systems import describe

    if settings["kind"] == "network":
        return origin(settings["channels"]["provenance"])
    return "trained alone" if len(settings["switches"]) == 1 else describe(settings)


def _some_found(search: Path) -> list:
    """Return the searched configurations of a search folder; raises RunError where there are none."""
    from autoslim.commands.found import found_configs

    if not (found := found_configs(search)):
        raise RunError(f"{search} holds no found configuration; run `autoslim search` again")
    return found


def _order(config) -> str:
    return config.provenance.get("search", {}).get("order", "greedy")


def _label(config) -> str:
    from autoslim.cost.amounts import KINDS

    return f"{KINDS['macs'].format(config.cost['macs'])} MACs"


def _spectrum(searches: list[Path], retrained: list[dict], out: Path) -> None:
    from autoslim.commands.found import found_configs
    from autoslim.report.spectrum import draw_spectrum, read_spectrum

    uniform, paths, found, compared = [], [], [], {}
    for search in searches:
        more_uniform, path = read_spectrum(search / "spectrum.csv")
        uniform.append(more_uniform)
        paths.append(path)
        for config in found_configs(search):
            order = _order(config)
            emitted = found if order == "greedy" else compared.setdefault(order, [])
            emitted.append((config.cost["macs"], 1 - config.estimate["error"]))
    draw_spectrum(out, uniform=uniform, paths=paths, found=found, retrained=retrained, compared=compared)


def _channels(search: Path, out: Path) -> None:
    from autoslim.report.channels import draw_channels

    found = _some_found(search)
    draw_channels(
        out, [(_label(config), config.channels) for config in found], default=found[0].provenance.get("default_channels")
    )


def _path(search: Path, out: Path) -> None:
    from autoslim.report.channels import draw_path
    from autoslim.search.trace import SearchTrace

    found = _some_found(search)
    groups = {name: full for name, (_, full) in found[0].channels.items()}
    if (order := _order(found[0])) != "greedy":
        raise RunError(f"{search} was searched by --order {order}, which walks no path; draw that of a greedy search")
    taken = SearchTrace(search / "trace.csv").path_taken()
    widths, steps = dict(groups), []
    for candidate in taken:
        if candidate.group:
            widths = {**widths, candidate.group: candidate.width}
        steps.append(widths)
    macs = [candidate.macs for candidate in taken]
    marks = [(macs.index(config.cost["macs"]), _label(config)) for config in found if config.cost["macs"] in macs]
    draw_path(out, steps, groups, macs=macs, marks=marks)
