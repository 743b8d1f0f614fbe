"""Which values belong to an image, whatever batch it is in."""

from collections.abc import Callable

import torch
from torch import Tensor

from autoslim.search.partial import PartialNet, Plan
from autoslim.training.steps import logits_of

# With fewer images a batch, kernels of linear layers were seen to add up in another order at the last places.
LEAST = 16


def same_anywhere(partial: PartialNet, run: Callable[[Plan, Tensor], dict], images: int, size: int) -> frozenset[int]:
    """Return the operations whose values are of an image each `[N, ...]`, if those are the same to the last digit in any batch.

    They are compared with all groups at their first choice, at their second one and so on. None is returned if one of them, or
    the output, is another at another place of a batch, or among other images, or if batches are too few or too small to tell.

    Args:
        partial: the network.
        run: returns the values of a plan for some images, by their places among all.
        images: how many there are.
        size: images of a batch.
    """
    if size < LEAST or images < 2 * size:
        return frozenset()
    plan = partial.plan(None, wanted=partial.read.union(*partial.influence.origins.values()))
    generator = torch.Generator().manual_seed(0)
    places, mixed = torch.randperm(images, generator=generator), torch.randperm(size, generator=generator)
    one, other = places[:size], places[size // 2 : size // 2 + size][mixed]
    two, three = run(plan, places[:2]), run(plan, places[:3])
    moving = frozenset(i for i in two if _is_long(two[i], 2) and _is_long(three[i], 3))
    net = partial.net
    for k in range(max(len(width.choices) for width in net.widths)):
        net.set(net.make_config([width.choices[min(k, len(width.choices) - 1)] for width in net.widths]))
        here, there = run(plan, one), run(plan, other)
        pairs = [(here[i], there[i]) for i in moving] + [(logits_of(here[partial.output]), logits_of(there[partial.output]))]
        for value, again in pairs:
            known = value[size // 2 :], again[mixed.argsort()][: size - size // 2]
            if not torch.equal(*(part.nan_to_num() for part in known)):
                return frozenset()
    return moving


def _is_long(value, n: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == n
