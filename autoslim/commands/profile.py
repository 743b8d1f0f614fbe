"""autoslim profile: what a network costs."""

from pathlib import Path

import click

from autoslim.commands import options
from autoslim.commands.latency_table import latency_setup
from autoslim.factories import load_rules
from autoslim.spaces import find_config, load_space, published_configs

_OWN = "the space's"


def _parse_switches(ctx, param, value: str | None):
    return value if value == _OWN else options.parse_widths(ctx, param, value)


@click.command()
@click.argument("network")
@click.option("--width", type=float, help="Width multiplier of the family; 1.0 is the default network.  [default: 1.0]")
@click.option(
    "--switches", is_flag=False, flag_value=_OWN, metavar="R,R,...", callback=_parse_switches,
    help="Every width of a slimmable network (S-Net), and its parameters in all; alone: the widths of the space.",
)  # fmt: skip
@click.option("--latency", is_flag=True, help="Measure a forward pass, too, as `autoslim search` measures what it found.")
@options.device_option
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1), help="Images, for --latency.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Threads of the CPU, for --latency.")
@options.shape_option
@options.json_option
def profile(network, width, switches, latency, device, batch, threads, input_shape, as_json):
    """Show what a SPACE (at --width) or a CONFIG.json costs: multiply-adds, parameters, bytes of weights, peak memory.

    A published configuration goes by its name. Multiply-adds (MACs) are those of conv and linear layers, what the papers
    call FLOPs; 1 MAC = 2 floating-point operations. macs_with_pooling has one more for each input of an average pooling.
    """
    is_config = network.endswith(".json") or network in published_configs()
    if not latency and (given := options.given("device", "batch", "threads")):
        raise click.UsageError(f"{given[0]} is for --latency; add it, or leave {given[0]} out")
    if switches is not None:
        if is_config or width is not None or latency:
            raise click.UsageError("--switches takes a SPACE, and neither --width nor --latency")
        space = load_space(network, input_shape=input_shape)
        document = switch_costs(space, space.s_net["switches"] if switches == _OWN else switches)
        options.print_json(document) if as_json else click.echo(_switch_table(document))
        return
    if is_config:
        if input_shape:
            raise click.UsageError(f"--input-shape has no meaning for {network}, which states its own; leave it out")
        model, example, cost, label = _of_config(find_config(network), width)
    else:
        model, example, cost, label = _of_space(load_space(network, input_shape=input_shape), width)
    document = {**label, **plain_costs(model, example, cost), "peak_memory_bytes": _peak_memory(model, example)}
    if latency:
        setup = latency_setup(device, batch=batch, threads=threads)
        options.check_threads(setup.device)
        document["latency"] = _latency(model, example, setup)
    options.print_json(document) if as_json else _show(document, label)


def _of_config(path: Path, width: float | None):
    from autoslim.channels.config import ChannelConfig
    from autoslim.commands.retrain import load_network
    from autoslim.slimmable.materialize import example_input

    if width is not None:
        raise click.UsageError(f"--width {width:g} has no meaning for {path}, which states its channels; leave it out")
    config = ChannelConfig.load(path)
    model, cost = load_network(config, str(path))
    return model, example_input(config), cost, {"config": str(path)}


def _of_space(space, width: float | None):
    import torch

    width = 1.0 if width is None else width
    if not width > 0:
        raise click.UsageError(f"--width {width:g} is not above 0; 1.0 is the default network")
    model = space.build(width)
    example = torch.zeros(1, *space.input_shape)
    return model, example, full_cost(model, example, load_rules(space.groups["rules"])), {"space": space.name, "width": width}


def plain_costs(model, example, cost) -> dict[str, int]:
    """Return every count of a plain network but its memory: `cost`, pooling, and the parameters of layers and of norms."""
    from autoslim.cost.layers import layer_params, norm_params, pooling_macs

    counts = cost.to_json()
    return {
        "macs": counts.pop("macs"),
        "macs_with_pooling": cost.macs + pooling_macs(model, example),
        "params": counts.pop("params"),
        "layer_params": layer_params(model),
        "norm_params": norm_params(model),
        **counts,
    }


def switch_costs(space, widths: list[float]) -> dict:
    """Return the counts of the family's network at every width, and the parameters of one slimmable network of them all."""
    import torch

    from autoslim.cost.layers import slimmable_params

    example, rules = torch.zeros(1, *space.input_shape), load_rules(space.groups["rules"])
    models = [space.build(width) for width in widths]
    rows = [
        {"width": width, **plain_costs(model, example, full_cost(model, example, rules))} for width, model in zip(widths, models)
    ]
    return {"space": space.name, "switches": rows, "slimmable": slimmable_params(models)}


def _switch_table(document: dict) -> str:
    from autoslim.report.tables import align

    columns = ("macs", "macs_with_pooling", "params", "layer_params", "norm_params")
    rows = [("width", *columns)]
    rows += [(f"{row['width']:g}x", *(f"{row[column]:,}" for column in columns)) for row in document["switches"]]
    total = document["slimmable"]
    rows.append(("slimmable", "", "", *(f"{total[column]:,}" for column in columns[2:])))
    return (
        f"space {document['space']}\n{align(rows)}\n"
        "slimmable: the weights of the widest for all, a batch norm for each width (one for all where no width changes it)"
    )


_ABOUT = {
    "macs": "multiply-adds of conv and linear layers, one image",
    "macs_with_pooling": "and one for each input of an average pooling",
    "layer_params": "of conv and linear layers",
    "norm_params": "scales and biases of batch norms",
    "peak_memory_bytes": "weights and live activations, one image",
}


def _show(document: dict, label: dict) -> None:
    click.echo("  ".join(f"{key} {value}" for key, value in label.items()))
    for key in ("macs", "macs_with_pooling", "params", "layer_params", "norm_params", "weight_bytes", "peak_memory_bytes"):
        known = document[key] is not None
        about = _ABOUT.get(key, "") if known else "the network does not run"
        click.echo(f"{key:<18} {f'{document[key]:,}' if known else 'unknown':>15}   {about}".rstrip())
    if "latency" in document:
        time = document["latency"]
        click.echo(
            f"{'latency_ms':<18} {time['median_ms']:>15.3f}   median of {time['repeats']} on {time['device']}, "
            f"10 % to 90 %: {time['low_ms']:.3f} to {time['high_ms']:.3f}"
        )


def _peak_memory(model, example) -> int | None:
    from autoslim.channels.trace import Untraceable
    from autoslim.cost.memory import peak_memory_bytes

    try:
        return peak_memory_bytes(model, example)
    except Untraceable:
        return None


def full_cost(model, example, rules=None):
    """Return the cost of a plain network as it is."""
    from autoslim.channels.groups import find_groups
    from autoslim.cost.table import CostTable

    channels = find_groups(model, example, rules=rules)
    return CostTable.of(channels, model).cost({group.name: group.full for group in channels.groups})


def _latency(model, example, setup) -> dict:
    from torch.utils._pytree import tree_map

    from autoslim.commands.budgets import drawn_input
    from autoslim.cost.latency import measure_rounds

    example = tree_map(lambda zeros: zeros if zeros is None else drawn_input(zeros.shape[1:]), example)
    return measure_rounds(model, example, setup).to_json()
