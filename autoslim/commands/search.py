"""autoslim search: from a supernet to one channel configuration a target."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from autoslim.commands import options

if TYPE_CHECKING:
    from autoslim.channels.config import ChannelConfig

ORDERS = ("greedy", "uniform", "random", "evolution")


def _target(name: str, help: str):
    return click.option(f"--{name}-target", name, multiple=True, metavar="AMOUNT", help=help)


# What options speak of; without a target of such a kind they would have no effect.
_TERMS = {
    "size_precision": ["size"], "batch": ["memory", "latency"],
    **dict.fromkeys(("latency_device", "threads", "latency_table"), ["latency"]),
}  # fmt: skip


def _check_terms(targets: Mapping, latency_table: Path | None, latency_device: str) -> None:
    """Refuse options that have no effect."""
    for name, kinds in _TERMS.items():
        if not set(kinds) & set(targets) and (given := options.given(name)):
            raise click.UsageError(
                f"{given[0]} is for {' or '.join(f'--{kind}-target' for kind in kinds)}; add one, or leave it out"
            )
    if "latency" in targets and not latency_table:
        from autoslim.commands.runs import choose_device

        options.check_threads(str(choose_device("auto")) if latency_device == "auto" else latency_device)
    if latency_table and (given := options.given("batch", "latency_device", "threads")):
        raise click.UsageError(f"{given[0]} is that of --latency-table {latency_table}; leave one of the two out")


def _check_order(order: str, targets: Mapping) -> None:
    """Refuse options that an order of search does not take."""
    greedy = ["effort", "precision", "pick", "swaps"]
    drawn = ["evaluations", "tolerance", "draw_seed"]
    refused = {"greedy": drawn, "uniform": [*greedy, *drawn]}.get(order, greedy)
    if given := options.given(*refused):
        raise click.UsageError(f"--order {order} does not take {given[0]}")
    if order != "greedy" and set(targets) != {"macs"}:
        raise click.UsageError(f"--order {order} takes --flops-target and no other target")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@_target("flops", "Multiply-adds, as 300M, 1.2G, 300e6 or 60% of the full network.")
@_target("params", "Parameters, as 2M or 60%.")
@_target("size", "Bytes of the parameters at --size-precision, as 4MB, 500kB or 60%.")
@_target("memory", "Bytes of the parameters and of the activations alive at once, for --batch images, as 20MB or 60%.")
@_target("latency", "Time of a forward pass of --batch images on --latency-device, as 12ms or 60%.")
@click.option(
    "--size-precision", type=click.Choice(["fp32", "fp16", "bf16", "int8"]), default="fp32", show_default=True,
    help="What a parameter is stored in, for --size-target.",
)  # fmt: skip
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1), help="Images, for memory and latency.")
@click.option("--latency-device", default="cpu", show_default=True, help="Where latency is measured: cpu, cuda, cuda:N or auto.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Threads, for latency on a CPU.")
@click.option(
    "--latency-table", type=click.Path(path_type=Path), metavar="FILE",
    help="Written by `autoslim latency-table RUN`, whose device, batch, threads and backend then hold.  [default: measured "
    "into RUN, by torch]",
)  # fmt: skip
@click.option(
    "--order", type=click.Choice(ORDERS), default="greedy", show_default=True,
    help="greedy; or, for comparison, to --flops-target: the largest uniform, the best of random ones, evolution, whose first 32 "
    "are random.",
)  # fmt: skip
@click.option(
    "--evaluations", default=100, show_default=True, type=click.IntRange(2),
    help="Configurations that random and evolution score for each target; no fewer in a folder that holds such a search.",
)  # fmt: skip
@options.tolerance_option
@click.option("--draw-seed", type=int, help="Seed of random and evolution.  [default: that of the training]")
@click.option(
    "--swaps", default=0, show_default=True, type=click.IntRange(0),
    help="Rounds of a look back once a target is reached: widen a group again where narrowing another pays for it. A round "
    "evaluates two whole configurations a group. No fewer in a folder that holds such a search.",
)  # fmt: skip
@click.option("--score", type=click.Choice(["error", "loss"]), help="What judges a candidate, in place of the space's.")
@click.option(
    "--pick", type=click.Choice(["drop", "drop-per-saving", "equal-saving"]),
    help="drop: the least increase of the score wins a step. drop-per-saving: that for what it saves. equal-saving: the least "
    "increase, where every candidate is narrowed until it saves a fiftieth of the full network (of more than 25 groups less); what "
    "is found lies up to that much below its target.  [default: the space's]",
)  # fmt: skip
@click.option(
    "--effort", type=click.Choice(["fast", "exact"]), default="fast", show_default=True,
    help="exact: decide every step among all candidates, on all images. fast: among those that earlier steps do not speak "
    "against, on as many images as it takes to tell them apart.",
)  # fmt: skip
@click.option(
    "--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True,
    help="What candidates are compared in; estimates are always in fp32, which on a GPU includes TF32 where torch allows it.",
)  # fmt: skip
@click.option(
    "--memory-budget", metavar="BYTES",
    help="Memory of each process for what candidates share and what is kept from step to step; with less, or where a GPU runs "
    "out of memory, more is computed again. The images come on top, a byte for every channel of every pixel; on a CPU up to 1GB "
    "is taken whatever is given.  [default: half of what is free on its GPU, or of the memory of its machine or container, 4GB at "
    "most; shared by the processes there; where a search goes on, what each process had when it began, unless that is twice as much]",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="Where the configurations go.  [default: RUN/search]")
@options.device_option
@options.json_option
def search(run, flops, params, size, memory, latency, as_json, **how):
    """Slim the supernet in RUN and write one configuration a target, with the equal-cost uniform one beside it.

    Every kind of target may be given several times. All kinds hold together: the largest amounts of all of them make one
    target, the second largest the next; a kind that is given once holds for all. Amounts in % are of the full network.
    Run by `torchrun --nproc-per-node N -m autoslim search ...`, N processes share the work.

    All accuracies are supernet estimates on images held out of training; `autoslim retrain` gives the real ones.
    """
    given = {"macs": flops, "params": params, "size": size, "memory": memory, "latency": latency}
    targets = {kind: amounts for kind, amounts in given.items() if amounts}
    if not targets:
        raise click.UsageError("there is no target; give --flops-target 60%, or another budget")
    _check_order(how["order"], targets)
    _check_terms(targets, how["latency_table"], how["latency_device"])
    found, notes = search_run(run, targets, **how)
    if found is None:
        return  # another process of several tells
    if as_json:
        options.print_json([{"path": str(path), **config.to_json()} for path, config in found])
        for note in notes:
            click.echo(note, err=True)
        return
    from autoslim.report.tables import configuration_table

    click.echo(configuration_table(found))
    for note in notes:
        click.echo(note)
    click.echo(f"next: autoslim retrain {found[0][0]} --data DATA --out RUN", err=True)


def load_supernet(run: Path, device: str):
    """Rebuild the trained supernet of a run folder; returns (net, space, run settings)."""
    from autoslim.commands import runs
    from autoslim.slimmable import family

    settings = runs.read_run(run, "supernet")
    space = runs.space_from_json(settings["space"])
    place = runs.choose_device(device)
    net = family.build_supernet(space, place)
    runs.load_finished(run, "supernet", net, space.train["epochs"])
    return net, space, settings


def search_run(
    run: Path, targets: Mapping, *, out: Path | None = None, order: str = "greedy", device: str = "auto", **how
) -> tuple[list | None, list[str]]:  # fmt: skip
    """Search in a run folder.

    Args:
        run: folder of a trained supernet.
        targets: amounts by kind, see `autoslim.cost.budgets`.
        how: as `autoslim search` takes it.

    Returns:
        (path, configuration) pairs, the found ones, each followed by its uniform equal (of a greedy search), and what else is
        to be said of them; (None, []) in all processes of several but the first.
    """
    from autoslim.files import held
    from autoslim.search.ranks import Ranks

    ranks = Ranks()
    device = ranks.device(device)
    supernet = load_supernet(run, device)
    out = out or run / ("search" if order == "greedy" else f"search-{order}")
    with held(out) if ranks.rank == 0 else contextlib.nullcontext():
        ranks.wait()  # from here on nobody else writes
        found = _search(run, targets, out, order, supernet, ranks, device, **how)
    ranks.close()
    return found


def _search(
    run: Path, targets: Mapping, out: Path, order: str, supernet: tuple, ranks, device: str, *, evaluations=100, tolerance=1.0,
    draw_seed=None, score=None, pick=None, effort="fast", precision="fp32", swaps=0, memory_budget=None, **terms,
) -> tuple[list | None, list[str]]:  # fmt: skip
    from dataclasses import replace

    from autoslim.commands import runs
    from autoslim.commands.budgets import open_budgets, read_terms
    from autoslim.commands.found import check_found, save, walked
    from autoslim.commands.uniform import NOT_OF_FAMILY, Uniforms, uniform_sweep
    from autoslim.cost.amounts import KINDS
    from autoslim.errors import RunError
    from autoslim.files import digest
    from autoslim.report.tables import write_spectrum
    from autoslim.search.engine import RACE
    from autoslim.search.lazy import AT_ONCE, STALE
    from autoslim.search.orders import OrderTrace
    from autoslim.search.swaps import swap
    from autoslim.slimmable import family

    net, space, settings = supernet
    place = runs.choose_device(device)
    supernet_digest = digest(run / "checkpoint.pt")
    known = [digest(out / name) if (out / name).exists() else None for name in ("config.json", "trace.csv")]
    if len(set(map(str, ranks.share({ranks.rank: (supernet_digest, *known)}).values()))) > 1:
        raise RunError(f"processes find other files in {run} or {out}; all machines need the same supernet, and one --out")
    budget = _memory_budget(memory_budget, out, ranks.memory_budget(place))
    images = runs.held_out_images(run, settings, space.input_shape, place)
    about = {
        "data": settings["data"],
        "seed": settings["seed"],
        "supernet": supernet_digest,
        "images": len(images.search),
    }
    rules = {**space.search, **{k: v for k, v in (("score", score), ("pick", pick)) if v}, "order": order}
    stated = read_terms(targets, **terms)
    if order == "greedy":
        asked = {"kinds": [kind for kind in KINDS if kind in targets], **stated.to_json()}
        rules |= {"effort": effort, "precision": precision, "budgets": asked}
        if effort == "fast":
            rules |= {"race": RACE, "stale": STALE, "at_once": AT_ONCE[rules["score"]]}
    runs.check_run(out, "search", **about, search=rules)  # before latencies are measured for an hour
    budgets = open_budgets(net, space, run, stated, first=ranks.rank == 0, wait=ranks.wait)
    wanted = budgets.check(targets)
    draws = {}
    if order not in ("greedy", "uniform"):
        draw_seed = settings["seed"] if draw_seed is None else draw_seed
        draws = {"evaluations": evaluations, "tolerance": tolerance / 100, "draw_seed": draw_seed}
    check_found(out, wanted, {"swaps": swaps, **draws})
    evaluator = runs.search_evaluator(net, images, rules, memory_budget=budget, precision=precision)
    if order == "greedy":
        rules["budgets"] = budgets.decide_by(wanted)
        if effort == "fast":
            # It samples and calibrates in batches, which are smaller where they would not fit into the memory budget.
            rules["images_at_once"] = evaluator.batch
    ranks.connect(place)
    points, trace = _points(net, order, wanted, budgets, evaluator, rules, out, ranks, draws)
    if ranks.rank == 0:
        runs.write_run(out, "search", {"memory_budget": budget}, **about, search=rules)
    provenance = {**about, "search": rules, "versions": runs.versions(), "retrain": space.retrain, **draws}
    if space.width_argument and space.full_width >= 1:
        with contextlib.suppress(*NOT_OF_FAMILY):  # it is there for a picture
            provenance["default_channels"] = family.width_config(space, net, 1.0).widths

    def finish(config: ChannelConfig, estimate: dict, target, **extra) -> ChannelConfig:
        costs = budgets.costs(config)
        extra |= {"swaps": swaps} if swaps else {}
        extra |= {"target": target.to_json(), "costs": costs, "terms": budgets.terms}
        config = replace(family.with_model(config, space), cost=budgets.table.cost(config).to_json(), estimate=estimate)
        return replace(config, provenance={**provenance, **extra})

    found, notes = [], []
    uniforms = Uniforms(space, net) if order == "greedy" else None
    with contextlib.closing(points):  # and its progress bar, before anything else is said
        for point in points:
            if swaps:
                again = {"evaluator": evaluator, "score": rules["score"], "rounds": swaps, "progress": ranks.rank == 0}
                point = swap(net, point, budgets=budgets, trace=OrderTrace(out / f"swaps-{point.target.label}.csv"), **again)
            pair = [("", finish(point.config, point.config.estimate, point.target, kind="searched"))]
            if uniforms:
                own = budgets.costs(point.config)
                equal, usual = uniforms.nearest(
                    1.0, lambda config: max(budgets.costs(config)[kind] / own[kind] for kind in point.target.amounts)
                )
                if not usual:
                    notes.append(
                        f"uniform-{point.target.label}: one ratio for all groups, to whole channels, to cost about as much"
                    )
                pair.append(("uniform-", finish(equal, evaluator.score(equal).estimate(), point.target, kind="uniform")))
            if swaps and "swaps" not in point.config.estimate:
                notes.append(f"{point.target.label}: no swap helped")
            for prefix, each in pair:
                path = out / f"{prefix}{point.target.label}.json"
                ranks.wait()  # nothing else runs while a network is timed
                if ranks.rank == 0:
                    each, note = save(each, path, budgets, point.target, prefix)
                    notes += note
                ranks.wait()
                found.append((path, each))
    uniform = []
    if order == "greedy":
        uniform = [(budgets.table.cost(c).macs, evaluator.score(c)) for c in uniform_sweep(net)]
    if ranks.rank == 0:
        whole = precision == "fp32" and (effort == "exact" or not hasattr(evaluator, "contest"))
        taken = walked(trace, out, whole) if order == "greedy" else []
        write_spectrum(out / "spectrum.csv", uniform, taken)
    return (found, notes) if ranks.rank == 0 else (None, [])


def _memory_budget(given: str | None, out: Path, free: float) -> float:
    """Return the memory budget that is given; without one, that of the search that goes on in a folder.

    That one depends on what was free when it began; where it is more than twice what is `free` to a process now, on a smaller
    machine or among more processes, it is not taken.
    """
    from autoslim.commands.runs import noted_memory_budget
    from autoslim.cost.amounts import parse_bytes

    if given is not None:
        return parse_bytes(given)
    noted = noted_memory_budget(out) or free
    return noted if noted <= 2 * free else free


def _points(net, order: str, wanted, budgets, evaluator, rules: dict, out: Path, ranks, draws: dict) -> tuple:
    """Return what yields the found configurations, and its trace."""
    from autoslim.search import orders
    from autoslim.search.greedy import greedy_search
    from autoslim.search.trace import SearchTrace

    first = ranks.rank == 0
    common = {"score": rules["score"], "evaluator": evaluator, "progress": first}
    common |= {name.removeprefix("draw_"): value for name, value in draws.items()}
    if order == "greedy":
        trace = SearchTrace(out / "trace.csv")
        common |= {"budgets": budgets, "pick": rules["pick"], "effort": rules["effort"]}
        targets = {kind: [target.amounts[kind] for target in wanted] for kind in wanted[0].amounts}
        search = greedy_search
    else:
        trace = orders.OrderTrace(out / "trace.csv")
        targets = {"macs": [target.amounts["macs"] for target in wanted]}
        search = getattr(orders, f"{order}_search")
    ranks.wait()  # all have read what the first may write anew
    return search(net, targets=targets, trace=trace, **common), trace
