"""In which batches the images of a search are: whoever is judged by others stays among them."""

import functools
import itertools

import pytest
import torch
import tricky
from steps import all_to_the_end, batches, narrower, step, trained_like
from torch import nn
from tricky import randomized

import autoslim
from autoslim.search import engine
from autoslim.search.engine import PartialEvaluator
from autoslim.search.evaluate import SupernetEvaluator
from autoslim.search.partial import PartialNet
from autoslim.search.places import same_anywhere
from autoslim.search.samples import most_first
from autoslim.search.scored import costs_of


@pytest.mark.parametrize("score", ["error", "loss"])
@pytest.mark.parametrize("kind", [tricky.Residual, tricky.Concat], ids=lambda kind: kind.__name__)
def test_a_search_that_sorts_its_images_anew_decides_the_same_wherever_it_goes_on(kind, score, monkeypatch):
    net = trained_like(kind, steps=8)
    data, calibration = batches((150, 50), 0), batches((16, 8), 1)
    options = {"targets": {"macs": ["30%"]}, "score": score, "effort": "exact"}

    def search(evaluator, known=0, of=None):
        trace = autoslim.SearchTrace()
        for number in range(known):
            trace.record(of.step(number))
        (point,) = autoslim.greedy_search(net, evaluator=evaluator, trace=trace, **options)
        return trace, point

    brute, expected = search(SupernetEvaluator(net, data, calibration))
    sorted_by = []
    monkeypatch.setattr(engine, "most_first", lambda order, costs: sorted_by.append(costs) or most_first(order, costs))
    whole, found = search(parts := PartialEvaluator(net, data, calibration))
    assert found.config.widths == expected.config.widths
    for one, other in zip(whole.path_taken(), brute.path_taken(), strict=True):
        assert (one.group, one.width, one.images, one.error) == (other.group, other.width, 200, pytest.approx(other.error))
    steps = found.step
    # Where last digits follow from an image's place in its batch (AVX2), images stay as they were sorted at first.
    assert steps > 4 and len(sorted_by) == (steps if parts._moving else 1)
    assert not any(torch.equal(one, other) for one, other in itertools.pairwise(sorted_by))
    for known in range(1, steps + 1):
        resumed, _ = search(PartialEvaluator(net, data, calibration), known, whole)
        assert resumed.rows == whole.rows


@pytest.mark.parametrize("score", ["error", "loss"])
def test_images_that_cost_the_base_most_come_first_after_those_that_fill_no_batch(score):
    net = trained_like(tricky.Residual)
    data, calibration = batches((100, 50), 0), batches((16,), 1)
    images, labels = (torch.cat(parts) for parts in zip(*data))
    parts, full = PartialEvaluator(net, data, calibration), net.full()
    first, *_, last = full.widths

    def costs(config):
        SupernetEvaluator(net, data, calibration).score(config)
        with torch.inference_mode():
            logits = net.eval()(images)
        others = logits.masked_fill(torch.nn.functional.one_hot(labels, logits.shape[1]).bool(), -torch.inf)
        risks = others.amax(1) - logits[torch.arange(len(labels)), labels]
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none") if score == "loss" else risks

    for base in (full, narrower(net, full, first), full):
        for other in {"error", "loss"} - {score}, {score}:
            parts.contest(step(net, base, {last: narrower(net, base, last)}, *other), "exact")
        expected = images[costs(base)[:128].argsort(descending=True)]
        torch.testing.assert_close(torch.cat([x for x, _ in parts._images]), torch.cat([images[128:], expected]))


class ByPlace(nn.Module):
    """Adds what depends on the place of an image in its batch."""

    step, least = 1 / 8, 0.0

    def __init__(self):
        super().__init__()
        self.body, self.out = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)), nn.Linear(16, 3)

    def forward(self, x):
        x = self.body(x).relu()
        return self.out((x + self.step * torch.arange(x.shape[0]).view(-1, 1, 1, 1)).mean((2, 3)))


class ByPlaceALittle(ByPlace):
    """The same, of last digits."""

    step = 3e-8


class ByLargest(ByPlace):
    """Divides by what is largest in a batch."""

    def forward(self, x):
        x = self.body(x).relu()
        return self.out((x / x.amax().clamp(min=self.least)).mean((2, 3)))


class ByOne(ByLargest):
    """Divides by what is far above all others."""

    least = 60.0


class ByMean(ByPlace):
    """Takes the mean of a batch away."""

    def forward(self, x):
        x = self.body(x)
        return self.out((x - x.mean(0)).relu().mean((2, 3)))


class ByNorm(ByPlace):
    """Norms with the statistics of a batch, in a function."""

    def forward(self, x):
        x = self.body(x)
        return self.out(torch.nn.functional.batch_norm(x * x, None, None, training=True).relu().mean((2, 3)))


def test_images_whose_last_digits_depend_on_their_batch_are_sorted_once():
    net = trained_like(ByPlaceALittle)
    data, calibration = batches((100, 50), 0), batches((16,), 1)
    parts, base, orders = PartialEvaluator(net, data, calibration), net.full(), []
    with torch.no_grad():
        net.model.body[1].running_mean.fill_(torch.nan)  # nothing can be told with these
    for _ in range(3):
        candidates = {name: narrower(net, base, name) for name in base.widths}
        contest = all_to_the_end(parts, step(net, base, candidates), list(candidates))
        orders.append(torch.cat(list(parts._order)))
        net.set(base)
        parts.base.measure.store()
        with torch.inference_mode():
            costs = torch.cat([costs_of(net.eval()(x), labels) for x, labels in parts._images], dim=1)
        torch.testing.assert_close(parts.base.values(len(parts.sizes)), costs)
        contest.best = next(iter(candidates))
        contest.close()
        base = candidates[contest.best]
    assert parts._moving == frozenset() and all(torch.equal(order, orders[0]) for order in orders)
    assert not torch.equal(orders[0], orders[0].sort().values.roll(22))


@pytest.mark.parametrize("size", [64, 33])
@pytest.mark.parametrize("largest", [0, 48, 150, 202])
@pytest.mark.parametrize("kind", [ByPlace, ByLargest, ByOne, ByMean, ByNorm])
def test_images_that_are_judged_by_others_stay_in_their_batches(kind, largest, size, monkeypatch):
    monkeypatch.setattr(engine, "CPU_BATCH", size)
    torch.manual_seed(0)
    net = autoslim.Supernet(randomized(kind()), torch.randn(2, 3, 8, 8), divisor=1, steps=4)
    ((x, labels),), calibration = batches((256,), 0), batches((16, 12), 1)
    # One image is far above all others: at one of those places that the batches to compare are drawn from first, or last.
    x[torch.randperm(256, generator=torch.Generator().manual_seed(0))[largest]] *= 1000
    data = [(x[:100], labels[:100]), (x[100:], labels[100:])]
    # Where any three images show it, batches are not cut to the size that a CPU takes best.
    given = data if kind is not ByOne else list(zip(x.split(size), labels.split(size)))
    found = []
    for evaluator in (parts := PartialEvaluator(net, data, calibration), SupernetEvaluator(net, given, calibration)):
        trace = autoslim.SearchTrace()
        options = {"targets": {"macs": ["40%"]}, "score": "loss", "effort": "exact", "trace": trace}
        list(autoslim.greedy_search(net, evaluator=evaluator, **options))
        found.append([(c.group, c.width, pytest.approx(c.loss, rel=1e-5)) for c in trace.path_taken()])
    assert found[0] == found[1] and parts._moving is None
    assert all(torch.equal(x, y) for (x, _), (y, _) in zip(parts._images, given, strict=True))


def test_images_that_fill_no_two_batches_are_not_sorted():
    net = trained_like(tricky.Residual)
    for count, sorts in ((127, False), (128, True)):
        parts = PartialEvaluator(net, batches((count,), 0), batches((16,), 1))
        parts.contest(step(net, net.full(), {}), "exact")
        assert bool(parts._moving) == (parts._moving is not None) == sorts


class Scaled(nn.Module):
    """A scale of as many channels, now and then, as a batch has images."""

    def __init__(self):
        super().__init__()
        self.body, self.scale = nn.Conv2d(3, 24, 3), nn.Parameter(torch.linspace(-1, 1, 24)[:, None, None])
        self.mix, self.norm, self.out = nn.Conv2d(24, 24, 3), nn.BatchNorm2d(24), nn.Linear(24, 3)

    def forward(self, x):
        return self.out(self.norm(self.mix((self.body(x) * self.scale).relu())).relu().mean((2, 3)))


def test_channels_are_not_taken_for_images_where_they_are_as_many(monkeypatch):
    monkeypatch.setattr(engine, "CPU_BATCH", 16)
    torch.manual_seed(0)
    net = autoslim.Supernet(randomized(Scaled()), torch.randn(2, 3, 8, 8), divisor=4)
    data, calibration = batches((70,), 0), batches((16, 8), 1)
    found = []
    for evaluator in (PartialEvaluator(net, data, calibration), SupernetEvaluator(net, data, calibration)):
        trace = autoslim.SearchTrace()
        options = {"targets": {"macs": ["20%"]}, "score": "loss", "effort": "exact", "trace": trace}
        list(autoslim.greedy_search(net, evaluator=evaluator, **options))
        found.append([(c.group, c.width, pytest.approx(c.loss, rel=1e-5)) for c in trace.path_taken()])
        if not found[1:]:
            assert evaluator._moving
    assert found[0] == found[1] and 16 in {width for _, width, _ in found[0]}


def test_whether_images_may_change_their_batch_is_no_matter_of_earlier_statistics():
    net = trained_like(tricky.Residual)
    data, calibration = batches((100, 50), 0), batches((16,), 1)
    moving = []
    for variance in (1.0, 0.0, torch.nan):
        parts = PartialEvaluator(net, data, calibration)
        for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_var.fill_(variance)
        parts.contest(step(net, net.full(), {}), "exact")
        moving.append(parts._moving)
        net = trained_like(tricky.Residual)
    assert moving[0] and moving[0] == moving[1] == moving[2]


@pytest.mark.parametrize("level", [0, 1, 3])
def test_values_are_compared_at_all_levels_of_widths(level):
    net = trained_like(tricky.Residual)
    partial, images = PartialNet(net, torch.randn(2, 3, 8, 8)), torch.randn(70, 3, 8, 8)
    width = max(net.widths, key=lambda width: len(width.choices))
    assert len(width.choices) > 3
    net.eval()
    net.set(net.full())

    def run(plan, places, off=0.0):
        with torch.inference_mode(), partial.ready():
            values = partial.run(plan, inputs=images[places])
        if width.value == width.choices[level] and len(places) > 3:
            values[partial.output] = values[partial.output] + off * torch.arange(len(places))[:, None]
        return values

    assert partial.output in same_anywhere(partial, run, 70, 32)
    assert same_anywhere(partial, functools.partial(run, off=1e-3), 70, 32) is None
    assert same_anywhere(partial, functools.partial(run, off=1e-8), 70, 32) == frozenset()
    assert same_anywhere(partial, run, 70, 15) == frozenset()
    assert same_anywhere(partial, functools.partial(run, off=1e-3), 70, 15) is None


class Views(nn.Module):
    """Reads parts of a value, whose memory has gaps: what is computed from a copy of them may have other last digits."""

    inputs = staticmethod(lambda n: torch.randn(n, 3, 9, 9))

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        self.left = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU())
        self.right = nn.Sequential(nn.Conv2d(32, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU())
        self.out = nn.Linear(12, 3)

    def forward(self, x):
        x = self.body(x)[:, :, 1:, 1:]
        right = self.right(torch.cat([x.sigmoid(), x.tanh(), x.sigmoid(), x.tanh()], 1))
        return self.out(torch.cat([self.left(x).mean((2, 3)), right.mean((2, 3))], 1))


def test_parts_of_a_value_do_not_change_their_batch_so_that_memory_and_a_resumed_search_change_no_digit():
    net = trained_like(Views)
    data, calibration = batches((300,), 0, 9), batches((32, 16), 1, 9)
    one = PartialEvaluator(net, data, calibration)._partial.bytes
    rows = []
    for images, steps in ((1e6, 0), (435, 0), (435, 2), (435, 3)):
        evaluator = PartialEvaluator(net, data, calibration, memory_budget=images * one)
        trace = autoslim.SearchTrace()
        for number in range(steps):
            trace.record([candidate for candidate, _ in rows[0] if candidate.step == number])
        options = {"targets": {"macs": ["30%"]}, "score": "loss", "effort": "exact", "trace": trace}
        list(autoslim.greedy_search(net, evaluator=evaluator, **options))
        rows.append(trace.rows)
    assert evaluator._moving and rows[0] == rows[1] == rows[2] == rows[3]
