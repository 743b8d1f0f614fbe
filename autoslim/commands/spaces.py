"""autoslim spaces: what ships."""

import click

from autoslim.commands import options
from autoslim.spaces import list_spaces


@click.command()
@options.json_option
def spaces(as_json):
    """List the search spaces that ship; a path to a TOML file of the same form works wherever a name does."""
    found = list_spaces()
    if as_json:
        options.print_json([{"name": name, "description": description} for name, description in found])
        return
    width = max(len(name) for name, _ in found)
    for name, description in found:
        click.echo(f"{name:<{width}}  {description}")
