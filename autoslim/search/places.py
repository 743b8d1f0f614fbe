"""Which values belong to an image, whatever batch it is in."""

from collections.abc import Callable

import torch
from torch import Tensor

from autoslim.search.partial import PartialNet, Plan
from autoslim.training.steps import logits_of

# With fewer images a batch, kernels of linear layers were seen to add up in another order at the last places.
LEAST = 16


def same_anywhere(partial: PartialNet, run: Callable[[Plan, Tensor], dict], images: int, size: int) -> frozenset[int] | None:
    """Return the operations whose values are of an image each `[N, ...]`, if those are the same to the last digit in any batch.

    They, and the output, are compared with all groups at their first choice, at their second one and so on, in three batches.
    Any two of those have half of their images in common, at other places and among other ones, so that whichever of them may
    decide on others, some have it in one batch only.

    Args:
        partial: the network.
        run: returns the values of a plan for some images, by their places among all.
        images: how many there are, two batches at least.
        size: images of a batch.

    Returns:
        no operation where last digits differ, or where batches are too small to tell; None where more than those differ: what
        the network says of an image depends on the others in its batch.
    """
    if size < 2:
        return frozenset()
    plan = partial.plan(None, wanted=partial.read.union(*partial.influence.origins.values()))
    generator, half = torch.Generator().manual_seed(0), size // 2
    places = torch.randperm(images, generator=generator)
    *thirds, others = places.split([half, half, half, images - 3 * half])
    two, three = run(plan, places[:2]), run(plan, places[:3])
    moving = frozenset(i for i in two if _is_own(two[i], 2) and _is_own(three[i], 3))
    same, net = size >= LEAST, partial.net
    for k in range(max(len(width.choices) for width in net.widths)):
        net.set(net.make_config([width.choices[min(k, len(width.choices) - 1)] for width in net.widths]))
        seen: dict[int, dict[int, Tensor]] = {}  # values of a third, by operation
        for n, pair in enumerate(((0, 1), (0, 2), (1, 2))):
            mixed = torch.randperm(size, generator=generator)
            values = run(plan, torch.cat([*(thirds[part] for part in pair), others[n : n + size % 2]])[mixed])
            values = {i: values[i] for i in moving} | {partial.output: logits_of(values[partial.output])}
            for part, rows in zip(pair, mixed.argsort().split([half, half, size % 2])):
                known = seen.pop(part, None)
                if known is None:
                    seen[part] = {i: value[rows] for i, value in values.items()}
                elif not all(equal(known[i], value[rows]) for i, value in values.items()):
                    same = False
                    if not all(alike(known[i], value[rows]) for i, value in values.items()):
                        return None
            del values
    return moving if same else frozenset()


def _is_own(value, n: int) -> bool:
    """Tell whether a value is of `n` images, and fills its memory without gaps: a copy of its rows is then laid out alike."""
    return (
        isinstance(value, Tensor)
        and value.dim() > 0
        and len(value) == n
        and value.untyped_storage().nbytes() == value.nbytes
        and torch.empty_like(value).stride() == value.stride()
    )


def equal(a: Tensor, b: Tensor) -> bool:
    """Tell whether values are the same to the last digit; those that are no number are."""
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


def alike(a: Tensor, b: Tensor) -> bool:
    """Tell whether values differ in last digits only: by 1e-5 of themselves, or of the largest one."""
    a, b = a.double(), b.double()
    largest = b.nan_to_num(0, 0, 0).abs().max().item() if b.numel() else 0
    return torch.allclose(a, b, rtol=1e-5, atol=1e-5 * largest, equal_nan=True)
