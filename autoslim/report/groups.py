"""Channel groups as text."""

import textwrap

from autoslim.channels.grid import Grid
from autoslim.channels.map import ChannelMap

_WIDTH = 100


def group_table(found: ChannelMap, grid: Grid, *, title: str, all_members: bool = False) -> str:
    """Return a table of the groups, then of what is frozen and why, then of what could not be traced.

    Labels (g1, f1) are those of `draw_network`. `all_members` names every member instead of the first few.
    """
    lines = [f"{title}: {len(found.groups)} channel groups, {len(found.frozen)} frozen"]
    groups = (*found.groups, *found.frozen)
    names = max((len(group.name) for group in groups), default=5)
    names = min(max(names, len("group")), 44)
    if found.groups:
        lines += ["", f"{'':>5}  {'group':<{names}}  {'full':>5}  {'widths':<21}  members"]
    for i, group in enumerate(found.groups, 1):
        choices = grid.choices(group.full, group.unit)
        head = f"{f'g{i}':>5}  {_fit(group.name, names):<{names}}  {group.full:>5}  {_widths(choices):<21}  "
        lines += _row(head, group.members, all_members)
    if found.frozen:
        lines += ["", f"{'':>5}  {'frozen':<{names}}  {'full':>5}  because of"]
    for i, group in enumerate(found.frozen, 1):
        head = f"{f'f{i}':>5}  {_fit(group.name, names):<{names}}  {group.full:>5}  "
        for reason in group.frozen:
            lines += _wrapped(head, reason)
            head = " " * len(head)
    for name, reason in found.opaque.items():
        lines += ["", *textwrap.wrap(f"left as it is: {name or 'the network itself'}: {reason}", _WIDTH, subsequent_indent="  ")]
    return "\n".join(lines)


def _widths(choices: tuple[int, ...]) -> str:
    """Say a row of widths in short: `8, 16 .. 64 (8)`."""
    if len(choices) <= 3:
        return ", ".join(map(str, choices))
    return f"{choices[0]}, {choices[1]} .. {choices[-1]} ({len(choices)})"


def _row(head: str, members: tuple[str, ...], all_members: bool) -> list[str]:
    if all_members:
        return _wrapped(head, ", ".join(members))
    room, shown = max(_WIDTH - len(head), 20), []
    for i, member in enumerate(members):
        more = f", +{len(members) - i - 1} more" if i + 1 < len(members) else ""
        if shown and len(", ".join([*shown, member]) + more) > room:
            return [f"{head}{', '.join(shown)}, +{len(members) - i} more"]
        shown.append(_fit(member, room - len(more)) if not shown else member)
    return [head + ", ".join(shown)]


def _wrapped(head: str, text: str) -> list[str]:
    first, *rest = textwrap.wrap(text, max(_WIDTH - len(head), 30), break_long_words=False, break_on_hyphens=False) or [""]
    return [head + first, *(" " * len(head) + line for line in rest)]


def _fit(name: str, room: int) -> str:
    """Shorten a name in its middle."""
    if len(name) <= room:
        return name
    return f"{name[: room // 2 - 1]}..{name[len(name) - (room - room // 2 - 1) :]}"
