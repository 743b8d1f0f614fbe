"""A network run in parts: against the whole network, at every group."""

import functools
import itertools

import pytest
import torch
import tricky
from all_cases import ALL_CASES
from torch import nn
from torch.utils._pytree import tree_leaves
from tricky import randomized

import autoslim
from autoslim.channels.trace import as_inputs
from autoslim.search import engine
from autoslim.search.contest import Step, batches_with
from autoslim.search.engine import PartialEvaluator, step_evaluator
from autoslim.search.evaluate import SupernetEvaluator
from autoslim.search.partial import PartialNet
from autoslim.search.places import same_anywhere
from autoslim.search.samples import most_first
from autoslim.search.scored import costs_of


def supernet(kind):
    torch.manual_seed(0)
    inputs = kind.inputs(3)
    return autoslim.Supernet(randomized(kind()), inputs, divisor=1, steps=4), as_inputs(inputs)


def narrower(net, base, name):
    widths = dict(base.widths)
    choices = net.choices[name]
    position = choices.index(widths[name])
    return net.make_config([choices[position - 1] if n == name else w for n, w in widths.items()]) if position else None


@pytest.mark.parametrize("kind", ALL_CASES, ids=lambda kind: kind.__name__)
def test_a_rerun_is_the_whole_network_at_the_narrower_width(kind):
    net, inputs = supernet(kind)
    partial = PartialNet(net, inputs)
    net.eval()
    for base in (net.full(), net.random(torch.Generator().manual_seed(1))):
        with torch.no_grad(), partial.ready():
            net.set(base)
            values = partial.run(partial.plan(None, wanted=partial.read), inputs=inputs)
            whole = net(*inputs)
            for name in base.widths:
                config = narrower(net, base, name)
                if config is None:
                    continue
                net.set(config)
                expected, found = net(*inputs), partial.run(partial.plan(name), base=values)[partial.output]
                for a, b in zip(tree_leaves(expected), tree_leaves(found), strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
            net.set(base)
            for a, b in zip(tree_leaves(whole), tree_leaves(values[partial.output]), strict=True):
                torch.testing.assert_close(a, b)


def step(net, base, candidates, score="loss", savings=None):
    ones = dict.fromkeys(candidates, 1.0)
    macs = {name: autoslim.CostTable(net).cost(config).macs for name, config in candidates.items()}
    return Step(base, autoslim.Score(0.0, 0.0, 0), candidates, savings or ones, macs, score)


SPATIAL = {"UNet", "Pyramid", "SharedHead"}
CLASSIFIERS = [kind for kind in ALL_CASES if kind.shapes == ((3, 8, 8),) and kind.__name__ not in SPATIAL]


@pytest.mark.parametrize("budget", [4e9, 1.0], ids=["in parts", "no memory"])
@pytest.mark.parametrize("kind", CLASSIFIERS, ids=lambda kind: kind.__name__)
def test_the_scores_of_a_step_are_those_of_its_candidates(kind, budget):
    net, _ = supernet(kind)
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(n, 3, 8, 8, generator=generator), torch.randint(0, 3, (n,), generator=generator)) for n in (8, 5)]
    calibration = [(torch.randn(n, 3, 8, 8, generator=generator), None) for n in (6, 4)]
    parts = PartialEvaluator(net, data, calibration, memory_budget=budget)
    whole = SupernetEvaluator(net, data, calibration)
    for base in (net.full(), net.random(torch.Generator().manual_seed(1))):
        candidates = {name: narrower(net, base, name) for name in base.widths}
        candidates = {name: config for name, config in candidates.items() if config}
        if not candidates:
            continue
        expected = {name: whole.score(config) for name, config in candidates.items()}
        found = (contest := all_to_the_end(parts, step(net, base, candidates), list(candidates))).close()
        assert list(found) == list(candidates) and contest.best in candidates
        for name, score in expected.items():
            assert found[name].score.images == 13
            assert (found[name].score.error, found[name].score.loss) == pytest.approx((score.error, score.loss), rel=1e-4)
        before = whole.score(base)
        assert (found[name].base.error, found[name].base.loss) == pytest.approx((before.error, before.loss), rel=1e-4)


@pytest.mark.parametrize("kind", [tricky.Residual, tricky.Untraceable])
def test_no_more_calibration_batches_are_read_than_are_used(kind):
    net, _ = supernet(kind)

    def endless():
        while True:
            yield torch.randn(8, 3, 8, 8), None

    images = [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))]
    assert isinstance(step_evaluator(net, images, endless(), calibration_images=20), SupernetEvaluator)


def test_a_network_that_cannot_be_followed_is_run_whole(caplog):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 1))
            self.head = nn.Linear(8, 5)

        def forward(self, x):
            x = self.body(x)
            return self.head(x.mean((2, 3)) if x.sum() > -1e9 else x.amax((2, 3)))

    net = autoslim.Supernet(Branches(), torch.randn(2, 3, 8, 8), divisor=1)
    images = [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))]
    with caplog.at_level("INFO"):
        assert type(step_evaluator(net, images, images)) is SupernetEvaluator
    assert "every candidate is run whole" in caplog.text
    assert [len(x) for x, _ in step_evaluator(net, batches([150], 0), images)._images] == [64, 64, 22]
    with pytest.raises(autoslim.AutoSlimError, match="precision bf16 is for networks that run in parts"):
        step_evaluator(net, images, images, precision="bf16")
    (point,) = autoslim.greedy_search(net, images, images, targets={"macs": ["80%"]}, effort="fast", score="loss")
    assert point.score.images == 4


def descents(kind, score, budget, kept=True):
    net, _ = supernet(kind)
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(n, 3, 8, 8, generator=generator), torch.randint(0, 3, (n,), generator=generator)) for n in (60, 30)]
    calibration = [(torch.randn(n, 3, 8, 8, generator=generator), None) for n in (16, 8)]
    options = {"targets": {"macs": ["75%"]}, "score": score, "pick": "drop-per-saving", "effort": "exact"}
    parts = PartialEvaluator(net, data, calibration, memory_budget=budget)
    parts._room *= kept
    for evaluator in (parts, SupernetEvaluator(net, data, calibration)):
        trace = autoslim.SearchTrace()
        points = list(autoslim.greedy_search(net, evaluator=evaluator, trace=trace, **options))
        yield trace.path_taken(), [p.config.channels for p in points]


def check_descents(kind, score, budget, kept=True):
    (taken, configs), (whole, expected) = descents(kind, score, budget, kept)
    assert configs == expected
    for one, other in zip(taken, whole, strict=True):
        assert (one.group, one.width, one.images) == (other.group, other.width, 90)
        assert (one.error, one.loss) == pytest.approx((other.error, other.loss), rel=1e-4)


@pytest.mark.parametrize("kind", CLASSIFIERS, ids=lambda kind: kind.__name__)
def test_a_descent_in_parts_decides_as_one_that_runs_every_candidate_whole(kind):
    check_descents(kind, "loss", 4e9)


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
    whole, found = search(PartialEvaluator(net, data, calibration))
    assert found.config.widths == expected.config.widths
    for one, other in zip(whole.path_taken(), brute.path_taken(), strict=True):
        assert (one.group, one.width, one.images, one.error) == (other.group, other.width, 200, pytest.approx(other.error))
    steps = found.step
    assert steps > 4 and len(sorted_by) == steps
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

    def __init__(self):
        super().__init__()
        self.body, self.out = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)), nn.Linear(16, 3)

    def forward(self, x):
        x = self.body(x).relu()
        return self.out((x + torch.arange(x.shape[0]).view(-1, 1, 1, 1) / 8).mean((2, 3)))


class ByCompany(ByPlace):
    """Divides by what is largest in a batch."""

    def forward(self, x):
        x = self.body(x).relu()
        return self.out((x / x.amax()).mean((2, 3)))


@pytest.mark.parametrize("kind", [ByPlace, ByCompany])
def test_images_that_are_judged_by_their_batch_are_sorted_once(kind):
    net = trained_like(kind)
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
    assert not parts._moving and all(torch.equal(order, orders[0]) for order in orders)
    assert not torch.equal(orders[0], orders[0].sort().values.roll(22))


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
    assert not same_anywhere(partial, functools.partial(run, off=1e-3), 70, 32)
    assert not same_anywhere(partial, run, 63, 32) and not same_anywhere(partial, run, 70, 15)


class SharedNorm(nn.Module):
    """One batch norm, and one head with a batch norm, that see two activations each."""

    def __init__(self):
        super().__init__()
        self.stem, self.side = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.between = nn.Conv2d(8, 6, 3, padding=1)
        self.back = nn.Conv2d(6, 8, 1)
        self.out = nn.Linear(16, 5)

    def forward(self, x):
        a = self.norm(self.stem(x)).relu()
        b = self.norm(self.side(a)).relu()
        c = self.back(self.between(b).relu())
        return self.out(torch.cat([self.head(a).mean((2, 3)), self.head(c).mean((2, 3))], dim=1))


class NormAsFunction(nn.Module):
    """Statistics of a concatenation, kept by a layer that is not called."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(14)
        self.mix, self.out = nn.Conv2d(14, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x):
        left = self.left(self.stem(x).relu()).relu()
        x, norm = torch.cat([left, self.right(left).relu()], 1), self.norm
        x = torch.nn.functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.1, 1e-5)
        return self.out(self.mix(x.relu()).relu().mean((2, 3)))


class InPlace(nn.Module):
    """Residual blocks that write into what they add to."""

    def __init__(self):
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 3)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Dropout(), nn.Conv2d(6, 8, 1)) for _ in range(8)
        )

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x.add_(block(x))
        return self.out(x.mean((2, 3)))


class Squeezes(nn.Module):
    """Gates whose maps have one pixel."""

    def __init__(self):
        super().__init__()
        self.stem, self.body, self.out = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 3)
        self.down, self.up = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)

    def forward(self, x):
        x = self.stem(x).relu()
        x = x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.out(self.body(x).relu().mean((2, 3)))


KEPT = [*CLASSIFIERS, SharedNorm, NormAsFunction, InPlace, Squeezes]


def walk(net, data, calibration, share=1.0):
    """Yield an evaluator, a contest, its step and its winner, of some steps; every other one looks at half of the candidates."""
    parts = PartialEvaluator(net, data, calibration)
    images = sum(len(x) for x, _ in (*data, *calibration))
    parts._room = share * images * parts._partial.bytes * (1 + len(net.groups))
    generator, base = torch.Generator().manual_seed(0), net.full()
    for number in range(4):
        candidates = {name: config for name in base.widths if (config := narrower(net, base, name))}
        names = list(candidates)[:: 1 + number % 2]
        if not names:
            return
        contest = all_to_the_end(parts, now := step(net, base, candidates), names)
        contest.best = names[torch.randint(len(names), (), generator=generator)]
        yield parts, contest, now, contest.best
        base = candidates[contest.best]


def all_to_the_end(parts, now, names):
    contest = parts.contest(now, "exact")
    contest.enter(names)
    contest._go_on(lambda name: True)
    return contest


def trained_like(kind, steps=4):
    torch.manual_seed(0)
    inputs = kind.inputs(3) if hasattr(kind, "inputs") else torch.randn(2, 3, 8, 8)
    return autoslim.Supernet(randomized(kind()), inputs, divisor=1, steps=steps)


@pytest.mark.parametrize("share", [1.0, 0.3], ids=["all kept", "some kept"])
@pytest.mark.parametrize("sizes", [(8, 5), (130, 70)], ids=["one batch", "sorted batches"])
@pytest.mark.parametrize("kind", KEPT, ids=lambda kind: kind.__name__)
def test_what_is_kept_of_candidates_holds_when_other_groups_are_narrowed(kind, sizes, share):
    net = trained_like(kind)
    data, calibration = batches(sizes, 0), batches((6, 4), 1)
    whole = SupernetEvaluator(net, data, calibration)
    for parts, contest, now, _ in walk(net, data, calibration, share):
        for name, judged in contest.close().items():
            expected = whole.score(now.candidates[name])
            assert (judged.score.error, judged.score.loss) == pytest.approx((expected.error, expected.loss), rel=1e-4)
        tensors = [leaf for leaf in tree_leaves(parts._values._known) if isinstance(leaf, torch.Tensor)]
        assert tensors
        held = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
        assert sum(held.values()) <= parts._room + sum(x.nbytes for x, _ in (*data, *calibration, *parts._images))


@pytest.mark.parametrize("sizes", [(8, 5), (130, 70)], ids=["one batch", "sorted batches"])
@pytest.mark.parametrize("kind", [tricky.Residual, tricky.Concat, SharedNorm, InPlace, Squeezes])
def test_what_is_kept_is_to_the_last_digit_what_a_new_start_computes(kind, sizes):
    net = trained_like(kind)
    data, calibration = batches(sizes, 0), batches((6, 4), 1)
    for _, contest, now, best in walk(net, data, calibration):
        found = contest.close()
        again = all_to_the_end(PartialEvaluator(net, data, calibration), now, list(found))
        again.best = best
        assert again.close() == found


def test_a_candidate_of_another_width_is_judged_anew():
    net = trained_like(tricky.Residual)
    data, calibration = batches((8,), 0), batches((6,), 1)
    parts, base = PartialEvaluator(net, data, calibration), net.full()
    name = next(iter(base.widths))
    once = narrower(net, base, name)
    for config in (once, narrower(net, once, name)):
        contest = parts.contest(step(net, base, {name: config}), "exact")
        contest.enter([name])
        expected = SupernetEvaluator(net, data, calibration).score(config)
        assert contest._entered[name].score(1).loss == pytest.approx(expected.loss, rel=1e-5)


def test_a_step_that_was_interrupted_can_be_done_again(monkeypatch):
    net = trained_like(tricky.Residual)
    data, calibration = batches((8,), 0), batches((6, 4), 1)
    parts, base = PartialEvaluator(net, data, calibration), net.full()
    now = step(net, base, {name: narrower(net, base, name) for name in base.widths})
    contest = parts.contest(now, "exact")
    run, calls = parts._run_candidate, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == len(base.widths) + 1:
            raise KeyboardInterrupt
        return run(*arguments)

    monkeypatch.setattr(parts, "_run_candidate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        contest.enter(list(now.candidates))
    monkeypatch.undo()
    contest = parts.contest(now, "exact")
    contest.enter(list(now.candidates))
    fresh = all_to_the_end(PartialEvaluator(net, data, calibration), now, list(now.candidates))
    fresh.best = contest.best
    assert contest.close()[contest.best] == fresh.close()[contest.best]


@pytest.mark.parametrize(("effort", "ranks"), [("exact", 1), ("exact", 3), ("exact", 8), ("fast", 1), ("fast", 2)])
@pytest.mark.parametrize("size", [32, 300])
def test_room_is_reckoned_for_the_images_of_the_busiest_process(effort, ranks, size, monkeypatch):
    net = trained_like(tricky.Residual)
    parts = PartialEvaluator(net, batches((size,) * (1200 // size), 0), batches((40, 24), 1), race={"most": 520})
    counted = []
    monkeypatch.setattr(
        engine, "worth_keeping", lambda _, images, base, room: counted.extend((images, base)) or (frozenset(),) * 2
    )
    parts.ranks.count = ranks
    parts._arrange(effort)
    last = len(parts.sizes) if effort == "exact" else batches_with(520, parts.sizes)
    sizes, calibration = parts.sizes[:last], parts._used.sizes
    assert counted[0] >= max(sum(sizes[r::ranks]) for r in range(ranks)) + max(sum(calibration[r::ranks]) for r in range(ranks))
    assert counted[0] <= max(sum(sizes[r::ranks]) for r in range(ranks)) + sum(calibration)
    assert counted[1] == counted[0]


def test_room_is_left_for_a_batch_at_work_that_cannot_be_cut():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU(), nn.Conv2d(8, 8, 3),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))  # fmt: skip
    net = autoslim.Supernet(model, torch.randn(2, 3, 8, 8), divisor=1, steps=4)
    parts = PartialEvaluator(net, batches((200,), 0), batches((40,), 1))
    assert parts._room == 4e9 - 2 * 200 * parts._partial.bytes
    assert PartialEvaluator(net, batches((200,), 0), batches((40,), 1), memory_budget=4e4)._room == 3e4


def test_room_is_reckoned_for_the_images_that_candidates_saw_of_late(monkeypatch):
    net = trained_like(tricky.Residual)
    parts, base = PartialEvaluator(net, batches((1280,), 0), batches((40, 24), 1)), net.full()
    counted, seen, choose = [], [], engine.worth_keeping
    monkeypatch.setattr(engine, "worth_keeping", lambda *args: counted.append(args[1:]) or choose(*args))
    for _ in range(2):
        candidates = {name: narrower(net, base, name) for name in base.widths}
        contest = parts.contest(step(net, base, candidates), "exact")
        contest.enter(list(candidates))
        seen.append(sum(64 * batches for batches in contest._batches.values()) / len(candidates))
        bytes_of_an_image = sum(map(parts._partial.bytes_of, parts._values.keep.values()))
        assert parts._values._room == parts._room - 64 * bytes_of_an_image > 0
        contest.close()
        base = candidates[contest.best]
    parts.forget()
    parts.contest(step(net, base, candidates), "exact")
    assert counted.pop() == counted.pop() == counted[0] == (64 + 1280, 64 + 1280, 4e9 - 2 * 64 * parts._partial.bytes)
    assert [images for _, images, _ in counted] == [64 + 1280] * 3
    assert [images for images, *_ in counted] == [64 + 1280, 64 + 1280, pytest.approx(64 + seen[0])] and seen[0] < 1280


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_leading_values_are_laid_out_as_in_a_whole_run(layout):
    net, inputs = supernet(tricky.Residual)
    net.to(memory_format=layout)
    partial = PartialNet(net, inputs)
    with torch.inference_mode(), partial.ready():
        net.eval()
        inputs = [x.contiguous(memory_format=layout) for x in inputs]
        values = partial.run(partial.plan(None, wanted=partial.read), inputs=inputs)
        for name in net.full().widths:
            config = narrower(net, net.full(), name)
            net.set(config)
            leading = partial.narrow(name, values)
            whole = partial.run(partial.plan(None, wanted=leading), inputs=inputs)
            for i, value in leading.items():
                for a, b in zip(tree_leaves(value), tree_leaves(whole[i])):
                    assert not isinstance(a, torch.Tensor) or (a.stride() == b.stride() and torch.allclose(a, b, atol=1e-5))


def test_late_values_of_candidates_are_kept_first_and_save_multiply_adds():
    model = nn.Sequential(*(nn.Sequential(nn.Conv2d(8 if i else 3, 8, 3, padding=1), nn.ReLU()) for i in range(6)),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))  # fmt: skip
    net = autoslim.Supernet(model, torch.randn(2, 3, 8, 8), divisor=1, steps=8)
    data, calibration = batches((16,), 0), batches((16,), 1)
    done = {}
    for room in (0, 3 * 32 * 4 * 8 * 8 * 8, 1e9):
        parts = PartialEvaluator(net, data, calibration)
        parts._room = room
        base = net.full()
        for _ in range(5):
            candidates = {name: narrower(net, base, name) for name in base.widths}
            contest = parts.contest(step(net, base, candidates), "exact")
            contest.enter(list(candidates))
            contest.best = list(candidates)[-1]
            contest.close()
            base = candidates[contest.best]
        done[room] = parts.macs
    first, some, most = done.values()
    assert first > 3 * some and some > most


@pytest.mark.parametrize("kind", CLASSIFIERS[::3], ids=lambda kind: kind.__name__)
def test_values_that_are_not_kept_are_computed_with_the_statistics_of_their_configuration(kind):
    check_descents(kind, "loss", 4e9, kept=False)


@pytest.mark.parametrize("score", ["error", "loss"])
@pytest.mark.parametrize("budget", [3e4, 1.0], ids=["some kept", "nothing kept"])
@pytest.mark.parametrize("kind", [tricky.Residual, tricky.Concat])
def test_memory_changes_no_decision(kind, score, budget):
    check_descents(kind, score, budget)


def contested(net, data, calibration, **options):
    """Yield the scores of all candidates of two steps, in parts and whole."""
    parts, whole = PartialEvaluator(net, data, calibration, **options), SupernetEvaluator(net, data, calibration)
    for base in (net.full(), net.random(torch.Generator().manual_seed(3))):
        candidates = {name: config for name in base.widths if (config := narrower(net, base, name))}
        contest = all_to_the_end(parts, step(net, base, candidates), list(candidates))
        for name, judged in contest.close().items():
            yield (judged.score.error, judged.score.loss), whole.score(candidates[name])


def batches(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, 3, 8, 8, generator=generator), torch.randint(0, 3, (n,), generator=generator)) for n in sizes]


def test_a_norm_that_runs_twice_has_the_statistics_of_both():
    torch.manual_seed(0)
    net = autoslim.Supernet(randomized(SharedNorm()), torch.randn(2, 3, 8, 8), divisor=1, steps=4)
    for found, expected in contested(net, batches([40], 0), batches([16, 8], 1)):
        assert found == pytest.approx((expected.error, expected.loss), rel=1e-4)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, lambda n: nn.BatchNorm2d(n, track_running_stats=False), nn.InstanceNorm2d])
@pytest.mark.parametrize("sizes", [((40, 20), (16, 4)), ((20, 10), (4, 16)), ((60,), (4,))])
def test_batches_that_do_not_fit_among_others_that_do(norm, sizes):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), norm(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    net = autoslim.Supernet(randomized(model), torch.randn(2, 3, 8, 8), divisor=1, steps=4)
    data, calibration = batches(sizes[0], 0), batches(sizes[1], 1)
    one = PartialEvaluator(net, data, calibration)._partial.bytes
    for found, expected in contested(net, data, calibration, memory_budget=4 * 10 * one):  # ten images are at work at once
        assert found == pytest.approx((expected.error, expected.loss), rel=1e-4)


def test_a_fast_search_calibrates_on_no_smaller_batches_for_want_of_memory(caplog):
    net, _ = supernet(tricky.Residual)
    data, ((x, _),) = batches([40], 0), batches([64], 1)
    one = PartialEvaluator(net, data, [x])._partial.bytes
    traces = []
    for calibration, budget in (([x], 4 * one), (x.split(16), 4e9)):  # one image is at work at once, or all
        evaluator = PartialEvaluator(net, data, calibration, memory_budget=budget)
        traces.append(autoslim.SearchTrace())
        options = {"targets": {"macs": ["80%"]}, "score": "loss", "trace": traces[-1]}
        with caplog.at_level("INFO"):
            list(autoslim.greedy_search(net, evaluator=evaluator, **options))
        assert ("batches of 16 images do not fit" in caplog.text) == (budget < 4e9)
        caplog.clear()
    few, plenty = ([(c.step, c.group, c.loss) for c, _ in trace.rows if c.step] for trace in traces)
    assert [row[:2] for row in few] == [row[:2] for row in plenty]
    assert [loss for *_, loss in few] == pytest.approx([loss for *_, loss in plenty], rel=1e-5)


def test_what_cannot_be_judged_is_refused_in_words():
    net, _ = supernet(tricky.Residual)
    images = batches([4], 0)
    for images_, calibration, options, words in (
        ([], images, {}, "0 images to score"),
        (images, [], {}, "0 images to calibrate"),
        (images, images, {"precision": "fp8"}, "precision 'fp8' is unknown"),
        (images, images, {"race": {"leats": 3}}, "'leats'"),
    ):
        with pytest.raises(autoslim.AutoSlimError, match=words):
            PartialEvaluator(net, images_, calibration, **options)


def test_other_weights_are_judged_anew():
    net, _ = supernet(tricky.Residual)
    evaluator = PartialEvaluator(net, batches([40], 0), batches([16], 1))
    options = {"targets": {"macs": ["80%"]}, "score": "loss", "effort": "exact"}
    list(autoslim.greedy_search(net, evaluator=evaluator, **options))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
    (again,) = autoslim.greedy_search(net, evaluator=evaluator, **options)
    fresh = PartialEvaluator(net, batches([40], 0), batches([16], 1))
    (point,) = autoslim.greedy_search(net, evaluator=fresh, **options)
    assert again.config.channels == point.config.channels
    assert again.score.loss == pytest.approx(point.score.loss, rel=1e-9)


@pytest.mark.parametrize("score", ["error", "loss"])
def test_maps_of_labels_may_leave_pixels_out(score):
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(a, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()) for a in (3, 16)]
    net = autoslim.Supernet(randomized(nn.Sequential(*blocks, nn.Conv2d(16, 4, 1))), torch.randn(2, 3, 8, 8), divisor=1, steps=4)
    x, labels = torch.randn(40, 3, 8, 8), torch.randint(0, 4, (40, 8, 8))
    labels[:, :2] = -100
    options = {"targets": {"macs": ["50%"]}, "score": score, "effort": "exact"}
    evaluators = [kind(net, [(x, labels)], [(x, labels)]) for kind in (PartialEvaluator, SupernetEvaluator)]
    (found,), (expected,) = (autoslim.greedy_search(net, evaluator=evaluator, **options) for evaluator in evaluators)
    assert found.config.channels == expected.config.channels
    assert (found.score.error, found.score.loss) == pytest.approx((expected.score.error, expected.score.loss), rel=1e-4)
