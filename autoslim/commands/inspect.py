"""autoslim inspect: channel groups."""

from pathlib import Path

import click

from autoslim.commands import options
from autoslim.spaces import load_space


@click.command()
@click.argument("space")
@options.shape_option
@options.group_options
@click.option("--members", is_flag=True, help="Name every member of every group.")
@click.option("--picture", type=click.Path(path_type=Path), help="Draw the network, groups in colour (PNG, SVG or PDF).")
@options.json_option
def inspect(space, input_shape, choices, members, picture, as_json):
    """Show every channel group of SPACE (a name, a TOML file or pkg.module:factory), and what is frozen and why."""
    import torch

    from autoslim.channels.grid import Grid
    from autoslim.channels.groups import find_groups
    from autoslim.report.groups import group_table
    from autoslim.slimmable.family import group_options

    loaded = load_space(space, input_shape=input_shape).with_groups(**choices)
    # On the CPU, as `train` builds it: on the meta device, factories and parts that read values of tensors fail.
    found = find_groups(loaded.build(), torch.zeros(1, *loaded.input_shape), **group_options(loaded.grouping()))
    grid = Grid(**loaded.grid)
    if picture:
        from autoslim.report.network import draw_network

        draw_network(found, picture, title=loaded.name)

    def describe(group) -> dict:
        entry = {"name": group.name, "full": group.full, "members": list(group.members)}
        if group.frozen:
            return entry | {"reasons": list(group.frozen)}
        return entry | {"unit": group.unit, "choices": list(grid.choices(group.full, group.unit))}

    if as_json:
        options.print_json(
            {
                "space": loaded.name,
                "input_shape": list(loaded.input_shape),
                "grouping": loaded.grouping(),
                "groups": [describe(group) for group in found.groups],
                "frozen": [describe(group) for group in found.frozen],
                "untraceable": found.opaque,
            }
        )
        return
    click.echo(group_table(found, grid, title=loaded.name, all_members=members))
