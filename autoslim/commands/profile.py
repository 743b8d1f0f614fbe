"""autoslim profile: what a network costs."""

from pathlib import Path

import click

from autoslim.commands import options
from autoslim.factories import load_rules
from autoslim.spaces import load_space


@click.command()
@click.argument("network")
@click.option("--width", type=float, help="Width multiplier of the family; 1.0 is the default network.  [default: 1.0]")
@click.option("--latency", is_flag=True, help="Measure the forward pass of one image, too.")
@options.device_option
@options.shape_option
@options.json_option
def profile(network, width, latency, device, input_shape, as_json):
    """Show what a SPACE (at --width) or a CONFIG.json costs: multiply-adds, parameters, bytes of weights, peak memory.

    Multiply-adds (MACs) are those of conv and linear layers, what the papers call FLOPs; 1 MAC = 2 floating-point operations.
    """
    import torch

    from autoslim.channels.config import ChannelConfig
    from autoslim.commands.retrain import load_network
    from autoslim.errors import ConfigError
    from autoslim.slimmable.materialize import example_input

    if network.endswith(".json"):
        if width is not None:
            raise ConfigError(f"--width {width:g} has no meaning for {network}, which states its channels; leave it out")
        config = ChannelConfig.load(network)
        model, cost = load_network(config, network)
        example, label = example_input(config), {"config": str(Path(network))}
    else:
        space = load_space(network, input_shape=input_shape)
        width = 1.0 if width is None else width
        if not width > 0:
            raise ConfigError(f"--width {width:g} is not above 0; 1.0 is the default network")
        model = space.build(width)
        example = torch.zeros(1, *space.input_shape)
        cost = full_cost(model, example, load_rules(space.groups["rules"]))
        label = {"space": space.name, "width": width}
    document = {**label, **cost.to_json(), "peak_memory_bytes": _peak_memory(model, example)}
    if latency:
        document["latency"] = _latency(model, example, device)
    if as_json:
        options.print_json(document)
        return
    click.echo("  ".join(f"{key} {value}" for key, value in label.items()))
    click.echo(f"macs               {document['macs']:>15,}   multiply-adds of conv and linear layers, one image")
    click.echo(f"params             {document['params']:>15,}")
    click.echo(f"weight_bytes       {document['weight_bytes']:>15,}")
    peak = document["peak_memory_bytes"]
    known = (
        f"{peak:>15,}   weights and live activations, one image" if peak else f"{'unknown':>15}   the network cannot be traced"
    )
    click.echo(f"peak_memory_bytes  {known}")
    if latency:
        time = document["latency"]
        click.echo(
            f"latency_ms         {time['median_ms']:>15.3f}   median of {time['repeats']} on {time['device']}, "
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


def _latency(model, example, device: str) -> dict:
    from autoslim.channels.trace import as_inputs
    from autoslim.commands import runs
    from autoslim.cost.latency import measure_latency

    place = runs.choose_device(device)
    inputs = tuple(x.to(place) for x in as_inputs(example))
    return measure_latency(model.to(place), inputs).to_json()
