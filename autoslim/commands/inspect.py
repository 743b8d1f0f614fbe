"""autoslim inspect: channel groups."""

import click

from autoslim.commands import options
from autoslim.spaces import load_space


@click.command()
@click.argument("space")
@options.shape_option
@options.json_option
def inspect(space, input_shape, as_json):
    """Show every channel group of SPACE (a name, a TOML file or pkg.module:factory), and what is frozen and why."""
    import torch

    from autoslim.channels.grid import Grid
    from autoslim.channels.groups import find_groups

    loaded = load_space(space, input_shape=input_shape)
    # On the CPU, as `train` builds it: on the meta device, factories and parts that read values of tensors fail.
    found = find_groups(loaded.build(), torch.zeros(1, *loaded.input_shape))
    grid = Grid(**loaded.grid)

    def describe(group) -> dict:
        entry = {"name": group.name, "full": group.full, "members": list(group.members)}
        if group.frozen:
            return entry | {"reasons": list(group.frozen)}
        return entry | {"choices": list(grid.choices(group.full, group.unit))}

    document = {
        "space": loaded.name,
        "input_shape": list(loaded.input_shape),
        "groups": [describe(group) for group in found.groups],
        "frozen": [describe(group) for group in found.frozen],
        "untraceable": found.opaque,
    }
    if as_json:
        options.print_json(document)
        return
    click.echo(f"{loaded.name}: {len(found.groups)} channel groups, {len(found.frozen)} frozen")
    for entry in document["groups"]:
        click.echo(f"\n{entry['name']}  full {entry['full']}")
        click.echo(f"  choices  {' '.join(map(str, entry['choices']))}")
        click.echo(f"  members  {', '.join(entry['members'])}")
    for entry in document["frozen"]:
        click.echo(f"\nfrozen: {entry['name']}  {entry['full']} channels")
        for reason in entry["reasons"]:
            click.echo(f"  because of  {reason}")
        click.echo(f"  members  {', '.join(entry['members'])}")
    for name, reason in found.opaque.items():
        click.echo(f"\nleft as it is: {name} {reason}")
