"""What all rules build on."""

import torch
from torch.utils._pytree import tree_map

from autoslim.channels.segments import Axis, Layout


class Frozen(Exception):
    """An operation that cannot follow the widths of its inputs; the message says why."""


class Fixed(tuple):
    """A layout in which no axis can change; a class of its own so that it is a leaf among nested outputs."""

    def __new__(cls, dims: int):
        return super().__new__(cls, (None,) * dims)


def no_axes(value):
    """Return the layout of values that have no channel to slim: every axis fixed."""
    return tree_map(lambda v: Fixed(v.dim()) if isinstance(v, torch.Tensor) else None, value)


def moving(layout: Layout) -> list[int]:
    """Return the axes that can change width."""
    return [i for i, axis in enumerate(layout) if axis is not None]


def joined(axes: list[Axis]) -> Axis:
    """Return the axis that tied axes have in common: a fixed one, if any is, as that has frozen the others."""
    return None if not axes or any(axis is None for axis in axes) else axes[0]


def each(places: tuple, *names: str) -> list:
    """Return the functions of these names that these modules have."""
    return [getattr(place, name) for name in names for place in places if hasattr(place, name)]
