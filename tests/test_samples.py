"""What a search keeps of its images: bytes, cut and put into another order without a change to any of them."""

import numpy as np
import pytest
import torch
from tricky import Residual

import autoslim
from autoslim.data import ImageSet, Loader
from autoslim.search.engine import PartialEvaluator
from autoslim.search.samples import Samples, examples

CPU = torch.device("cpu")


def loader(count=50, size=12, batch_size=16, **options):
    pixels = torch.randint(0, 256, (count, 3, 12, 12), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    options = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "image_size": size, **options}
    return Loader(ImageSet(pixels, torch.arange(count) % 4), batch_size=batch_size, **options)


def all_of(batches):
    inputs, labels = zip(*batches)
    return torch.cat(inputs), torch.cat(labels)


def same(a, b):
    return all(map(torch.equal, a, b))


@pytest.mark.parametrize("size", [12, 9])
def test_images_of_a_loader_are_kept_as_bytes_and_read_as_it_gives_them(size):
    samples = Samples(loader(size=size), CPU)
    assert same(all_of(samples), all_of(loader(size=size))) and samples.sizes == [16, 16, 16, 2]
    assert all(x.is_contiguous() for x, _ in samples)
    assert sum(x.nbytes for x, _ in samples._stored) == 50 * 3 * size * size


def test_images_of_a_loader_lie_in_one_piece_so_that_joining_them_copies_none():
    samples = Samples(loader(), CPU, least=20)
    joined = samples.joined()
    assert joined.sizes == [32] and same(all_of(joined), all_of(samples))
    assert {x.untyped_storage().data_ptr() for x, _ in joined._stored} == {
        x.untyped_storage().data_ptr() for x, _ in samples._stored
    }
    assert samples._stored[0][0].untyped_storage().nbytes() == 32 * 3 * 12 * 12


def test_augmented_images_are_kept_as_they_came():
    samples = Samples(loader(crop="pad", flip=True, shuffle=True), CPU)
    assert same(all_of(samples), all_of(loader(crop="pad", flip=True, shuffle=True)))
    assert same(all_of(samples), all_of(samples))


def test_leading_batches_are_taken_until_there_are_enough():
    assert Samples(loader(), CPU, least=17).sizes == [16, 16]
    (x,) = Samples([torch.ones(3, 1)], CPU)
    assert x[0].shape == (3, 1) and x[1] is None
    (x,) = Samples([(torch.ones(3, 1), torch.tensor(8))], CPU, labels=False)
    assert x[0].shape == (3, 1) and x[1] is None


def test_batches_that_are_not_cut_stay_as_they_were_given():
    x, target = torch.ones(4, 5, 3), torch.ones(20)  # as many labels as there are frames
    ((a, b),) = Samples([(x, target)], CPU)
    assert a is x and b is target


def test_samples_are_cut_and_put_into_another_order():
    samples = Samples(loader(), CPU)
    inputs, labels = all_of(samples)
    cut = samples.cut(5, most=33)
    assert cut.sizes == [5, 5, 5, 1] * 2 + [1] and same(all_of(cut), (inputs[:33], labels[:33]))
    first, second = (torch.randperm(50, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    samples = samples.joined()
    assert samples.sizes == [50] and same(all_of(samples), (inputs, labels))
    for order in (first, second):  # an order is always of the places as they were given
        samples = samples.arranged(order.split(20))
        assert samples.sizes == [20, 20, 10] and same(all_of(samples), (inputs[order], labels[order]))
        assert same(all_of(samples.cut(7)), (inputs, labels))


def test_several_inputs_and_maps_of_labels_are_arranged_together():
    pairs = [((torch.rand(n, 2), {"more": torch.rand(n, 1, 3)}), torch.randint(0, 3, (n, 4))) for n in (3, 2)]
    samples, order = Samples(pairs, CPU), torch.tensor([4, 0, 3, 1, 2])
    ((a, b), target), *_ = samples.joined().arranged([order])
    assert torch.equal(a, torch.cat([x[0] for x, _ in pairs])[order])
    assert torch.equal(b["more"], torch.cat([x[1]["more"] for x, _ in pairs])[order])
    assert torch.equal(target, torch.cat([t for _, t in pairs])[order])


@pytest.mark.parametrize("effort", ["exact", "fast"])
def test_a_search_of_bytes_is_that_of_floats(effort):
    torch.manual_seed(0)
    net = autoslim.Supernet(Residual(), torch.zeros(2, 3, 12, 12), divisor=4)
    autoslim.initialize(net, 0)
    traces = []
    for kind in (lambda batches: batches, list):
        evaluator = PartialEvaluator(net, kind(loader(300)), kind(loader(40)))
        trace = autoslim.SearchTrace()
        options = {"targets": {"macs": "60%"}, "score": "loss", "effort": effort}
        (point,) = autoslim.greedy_search(net, evaluator=evaluator, trace=trace, **options)
        traces.append((trace.rows, point.score))
    assert traces[0] == traces[1]
    again = autoslim.SupernetEvaluator(net, loader(300), loader(40)).score(point.config)
    assert point.score.loss == pytest.approx(again.loss, rel=1e-5)


@pytest.mark.parametrize("effort", ["exact", "fast"])
@pytest.mark.parametrize("images", [64 * 5 + 1, 64 * 4 + 30])
def test_what_was_found_scores_alike_to_the_last_digit_before_and_after_a_search(effort, images):
    torch.manual_seed(0)
    net = autoslim.Supernet(Residual(), torch.zeros(2, 3, 12, 12), divisor=4)
    autoslim.initialize(net, 0)
    trace = autoslim.SearchTrace()
    scores = []
    for _ in range(2):  # the second time all steps are known, so that no image is put into another order
        evaluator = PartialEvaluator(net, loader(images, batch_size=50), loader(40))
        options = {"targets": {"macs": "60%"}, "score": "loss", "effort": effort}
        (point,) = autoslim.greedy_search(net, evaluator=evaluator, trace=trace, **options)
        scores.append((point.score, evaluator.score(net.narrowest())))
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("sizes", "most", "expected"), [([65], 1e9, [32, 33]), ([72, 10], 1e9, [36, 36, 10]), ([72, 10], 70, [35, 35])]
)
def test_batches_are_cut_into_parts_of_about_one_size(sizes, most, expected):
    samples = Samples([torch.arange(n) for n in sizes], CPU)
    cut = samples.cut(64, most=most, alike=True)
    assert cut.sizes == expected
    whole = torch.cat([x for x, _ in samples])
    assert torch.equal(torch.cat([x for x, _ in cut]), whole[: sum(expected)])


def test_the_first_images_may_be_of_several_batches():
    given = [(torch.full((2, 3), float(i)), torch.tensor([i, i])) for i in range(4)]
    ((x, labels),) = Samples(given, CPU).leading(5)
    assert x[:, 0].tolist() == [0, 0, 1, 1, 2] and labels.tolist() == [0, 0, 1, 1, 2]
    assert [len(x) for x in Samples(given, CPU).of_every_size(3).values()] == [3]
    other = [(torch.zeros(1, 4), torch.tensor([0]))]
    assert [len(x) for x in Samples(given + other, CPU).of_every_size(3).values()] == [2, 1]
    first, second = examples(3, Samples(other, CPU), Samples(given, CPU), Samples(given[:1], CPU))
    assert (first.shape, second.shape) == ((1, 4), (3, 3))


def test_a_loader_may_give_every_batch_in_the_same_memory():
    def reused():
        x, labels = torch.empty(4, 3), torch.empty(4, dtype=torch.int64)
        for i in range(3):
            x.fill_(i)
            labels.fill_(i)
            yield x, labels

    samples = Samples(reused(), CPU)
    assert [(x.unique().tolist(), labels.unique().tolist()) for x, labels in samples] == [([i], [i]) for i in range(3)]


def test_what_is_no_tensor_is_refused():
    with pytest.raises(autoslim.AutoSlimError, match=r"images are ndarray, not a tensor \[N, C, H, W\]"):
        Samples([(np.zeros((2, 3, 8, 8)), torch.tensor([0, 1]))], CPU)
