"""What is kept from step to step, and where it goes when images come into other batches."""

import pytest
import torch
from torch import Tensor

from autoslim.search.samples import STRAND, most_first
from autoslim.search.values import Values

SHAPES = {1: (4, 3, 3), 2: (5,)}


def values_of(images: Tensor, operations, layout=torch.contiguous_format) -> dict[int, Tensor]:
    """Return a value of every image and operation that no other has."""
    made = {i: torch.stack([torch.full(SHAPES[i], 100.0 * image + i) for image in images.tolist()]) for i in operations}
    return {i: value.contiguous(memory_format=layout) if value.dim() == 4 else value for i, value in made.items()}


def same(known, expected) -> bool:
    return known.keys() == expected.keys() and all(
        torch.equal(value, expected[i]) and value.stride() == expected[i].stride() for i, value in known.items()
    )


def mixed(batches: list[Tensor]) -> list[Tensor]:
    images = torch.cat(batches)
    return list(images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))].split(8))


@pytest.mark.parametrize("own", [range(7), range(0, 7, 2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_go_along_with_their_images(layout, own):
    before = list(torch.arange(50).split([2] + [8] * 6))
    after = [before[0], *mixed(before[1:4]), *mixed(before[4:6]), before[6]]
    keep = {"all": frozenset({1, 2}), "five": frozenset({2}), None: frozenset({1})}
    seen = {"all": range(7), "five": range(5), None: range(7)}
    values = Values()
    values.choose(keep, 1e9)
    for name, batches in seen.items():
        for b in batches:
            values.put((name, "score", b), values_of(before[b], (1, 2), layout))
    values.put(("all", "calibrate", 3), calibrated := values_of(before[3], (1, 2)))
    values.arrange(before, after, own, {1, 2})
    for name, batches in seen.items():
        for b in range(7):
            known = values[name, "score", b]
            stays = b in (0, 6) and b in batches
            if stays or (b in own and b in range(1, 4 if name == "five" else 6)):
                assert same(known, values_of(after[b], keep[name], layout))
            else:
                assert not known
    assert values["all", "calibrate", 3] == calibrated
    counted = sum(value.nbytes for name in keep for b in range(7) for value in values[name, "score", b].values())
    assert values.held == counted > 0


def test_values_that_are_not_of_an_image_each_do_not_go_along():
    before = list(torch.arange(16).split(8))
    values = Values()
    values.choose({None: frozenset({1, 2, 3, 4})}, 1e9)
    for b in range(2):
        others = {1: torch.tensor(8), 3: torch.ones(8, 1), 4: (torch.ones(8),)}
        values.put((None, "score", b), values_of(before[b], (2,)) | others)
    values.arrange(before, after := mixed(before), range(2), {2})
    assert all(same(values[None, "score", b], values_of(after[b], (2,))) for b in range(2))


def test_what_takes_too_much_room_to_copy_is_forgotten():
    before = list(torch.arange(32).split(8))
    values = Values()
    values.choose({"a": frozenset({1, 2})}, 4 * 1312 + 640)
    for b in range(4):
        values.put(("a", "score", b), values_of(before[b], (1, 2)))
    values.arrange(before, after := mixed(before), range(4), {1, 2})  # all of operation 1 are 4608 bytes, of operation 2 640
    assert all(same(values["a", "score", b], values_of(after[b], (2,))) for b in range(4)) and values.held == 640


@pytest.mark.parametrize("room", [480, 479])
def test_values_that_share_their_memory_are_copies_of_their_own_when_they_have_moved(room):
    before = list(torch.arange(16).split(8))
    values = Values()
    values.choose({"a": frozenset({2, 3})}, room if room < 480 else 2 * room)
    for b in range(2):
        (value,) = values_of(before[b], (2,)).values()
        values.put(("a", "score", b), {2: value, 3: value.view(8, 5, 1)})
    assert values.held == 320
    values.arrange(before, after := mixed(before), range(2), {2, 3})
    moved = room == 480
    assert values.held == 640 * moved
    for b in range(2):
        (expected,) = values_of(after[b], (2,)).values()
        assert not moved or same(values["a", "score", b], {2: expected, 3: expected.view(8, 5, 1)})


def test_values_of_the_last_batches_give_way_where_there_is_less_room():
    values, images = Values(), torch.arange(8)
    values.choose({"a": frozenset({2}), None: frozenset({2})}, 1000)
    for key in (("a", "score", 0), (None, "score", 2), ("a", "score", 1), ("a", "calibrate", 3)):
        values.put(key, values_of(images, (2,)))
    values.choose(values.keep, 330)
    assert values.held == 320 and values["a", "score", 0] and values["a", "score", 1] and not values[None, "score", 2]
    assert values["a", "calibrate", 3]


def test_values_to_score_are_kept_as_far_as_there_is_room_and_those_to_calibrate_always():
    values, images = Values(), torch.arange(8)
    values.choose({"a": frozenset({1, 2}), None: frozenset({2})}, 2000)
    for b in range(3):
        values.put(("a", "score", b), values_of(images, (1, 2)))  # 1152 and 160 bytes
        values.put(("a", "calibrate", b), values_of(images, (1, 2)))
    assert [sorted(values["a", "score", b]) for b in range(3)] == [[1, 2], [], []] and values.held == 1312
    assert all(sorted(values["a", "calibrate", b]) == [1, 2] for b in range(3))
    values.put(("a", "score", 0), values_of(images, (2,)))  # what takes less always has room
    values.put(("a", "score", 1), values_of(images, (1, 2)))
    assert values.held == 160 + 1312
    values.put(("a", "score", 0), values_of(images, (1, 2)))
    assert values.held == 160 + 1312 and sorted(values["a", "score", 0]) == [2]
    values.choose({"a": frozenset({2}), None: frozenset({2})}, 2000)
    assert values.held == 320 and sorted(values["a", "calibrate", 0]) == [2]


def test_what_shares_its_memory_takes_it_once():
    values, one = Values(), torch.ones(8, 5)
    values.choose({None: frozenset({1, 2})}, 160)
    values.put((None, "score", 0), {1: one, 2: one.view(8, 5, 1)})
    assert values.held == 160 and sorted(values[None, "score", 0]) == [1, 2]


def test_the_values_of_the_winner_become_those_of_the_base():
    values, images = Values(), torch.arange(8)
    values.choose({name: frozenset({1, 2}) for name in ("a", "b", None)}, 1e9)
    known = {("a", "score", 0): (1,), ("a", "score", 1): (2,), ("b", "score", 0): (1, 2), (None, "score", 0): (2,)}
    for key, operations in known.items():
        values.put(key, values_of(images, operations))
    values.advance("a", lambda known: {i: value for i, value in known.items() if i == 2})
    assert [sorted(values[name, "score", b]) for name in ("a", "b", None) for b in (0, 1)] == [[], [], [2], [], [1, 2], [2]]
    assert values.held == 160 * 2 + 1152 + 160


@pytest.mark.parametrize(("left", "whole", "strands"), [(0, 1, 1), (5, 3, 1), (5, 4, 2), (5, 30, 2), (0, 62, 4), (32, 62, 4)])
def test_images_that_cost_most_come_first_and_stay_with_their_process(left, whole, strands):
    assert STRAND == 15
    count = left + 8 * whole
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(count, generator=generator).split([left] * (left > 0) + [8] * whole)
    costs = torch.rand(count, generator=generator)
    costs[torch.randperm(count, generator=generator)[: count // 2]] = 0.5
    new = most_first(order, costs)
    assert [len(b) for b in new] == [len(b) for b in order]
    first = int(left > 0)
    assert left == 0 or torch.equal(new[0], order[0])
    for start in range(strands):
        one, other = (torch.cat(list(batches[first + start :: strands])) for batches in (order, new))
        assert other.tolist() == sorted(one.tolist(), key=lambda image: (-costs[image].item(), image))
    again = most_first([*new[:first], *(batch.flip(0) for batch in new[first:])], costs)
    assert all(map(torch.equal, again, new))  # the costs alone decide
