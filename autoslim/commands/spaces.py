"""autoslim spaces: what ships."""

import click

from autoslim.commands import options
from autoslim.spaces import list_spaces, published_configs


@click.command()
@options.json_option
def spaces(as_json):
    """List the search spaces that ship, and the published channel configurations of their networks.

    A path to a TOML file of the same form works wherever the name of a space does.
    """
    found, published = list_spaces(), list(published_configs())
    if as_json:
        of = {name: [each for each in published if each.rpartition("-")[0] == name] for name, _ in found}
        options.print_json([{"name": name, "description": about, "published": of[name]} for name, about in found])
        return
    width = max(len(name) for name, _ in found)
    for name, description in found:
        click.echo(f"{name:<{width}}  {description}")
    if published:
        click.echo(f"\npublished configurations, for profile and retrain: {', '.join(published)}")
