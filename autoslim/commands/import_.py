"""autoslim import: a published or hand-written channel list as a configuration."""

from pathlib import Path

import click

from autoslim.commands import options
from autoslim.spaces import load_space


@click.command("import")
@click.argument("space")
@click.option("--channels", metavar="LIST", help="Channels of every layer, '16,32,48,...', or @FILE that holds them.")
@click.option("--width", type=float, help="Width multiplier: take the family's own network.")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="CONFIG.json", help="The file to write.")
@options.shape_option
@options.json_option
def import_(space, channels, width, out, input_shape, as_json):
    """Write the configuration of a channel list in layer order, or of the family at a width multiplier.

    A list names the output channels of every conv and linear layer but depthwise ones, in the order they run or in that of
    the space's [lists]; the number of classes may follow. Commas, blanks, | and line ends separate.

    Shortcuts are those of the space's network. The released code adds one, too, where stride-1 neighbours of a list happen to
    be equally wide (stem and first block of the MobileNet v2 lists); multiply-adds and parameters are the same.
    """
    if (channels is None) == (width is None):
        raise click.UsageError("pass a list as --channels, or a width multiplier as --width, and not both")
    config = import_config(load_space(space, input_shape=input_shape), channels=channels, width=width)
    config.save(out)
    if as_json:
        options.print_json(config.to_json())
        return
    cost = config.cost
    click.echo(f"{out}: {config.space}, {cost['macs']:,} MACs, {cost['params']:,} params, {len(config.channels)} groups")


def import_config(space, *, channels: str | None = None, width: float | None = None, **provenance):
    """Return the configuration of a channel list (or of @FILE), or of the family at a width multiplier.

    Args:
        space: a loaded search space.
        provenance: what is known of the list, in place of `kind="imported"`.

    Raises:
        ConfigError: the list does not fit the network (all faults are named), or the width none of its grid.
        RunError: the width exceeds the supernet's.
    """
    from dataclasses import replace

    import torch

    from autoslim.channels.layer_lists import ListOrder
    from autoslim.cost.table import CostTable
    from autoslim.errors import ConfigError
    from autoslim.slimmable import family
    from autoslim.slimmable.supernet import Supernet

    text = None if channels is None else _read(channels)
    if width is not None and not width > 0:
        raise ConfigError(f"--width {width:g} is not above 0; 1.0 is the default network")
    net = Supernet(space.build(), torch.zeros(1, *space.input_shape), **space.grid, **family.group_options(space.grouping()))
    if text is None:
        config = family.width_config(space, net, width)
        config.check(net.groups, f"width {width:g} of {space.name}")
    else:
        widths = ListOrder.of(net.channels, net.source, space.lists["layers"]).widths(text, space.grid["divisor"])
        config = family.with_model(net.make_config([widths[group.name] for group in net.groups]), space)
    about = {"kind": "imported", **({} if width is None else {"width": width}), **provenance, "retrain": space.retrain}
    if space.width_argument and space.full_width >= 1:
        about["default_channels"] = family.width_config(space, net, 1.0).widths
    return replace(config, cost=CostTable(net).cost(config).to_json(), provenance=about)


def _read(channels: str) -> str:
    from autoslim.errors import ConfigError

    if not channels.startswith("@"):
        return channels
    try:
        return Path(channels[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{channels[1:]} cannot be read ({reason}); pass --channels @FILE with a text file") from error
