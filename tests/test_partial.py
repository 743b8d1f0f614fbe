"""A network run in parts: against the whole network, at every group."""

import contextlib
import itertools
from functools import partial, wraps

import pytest
import torch
import tricky
from all_cases import ALL_CASES
from steps import all_to_the_end, batches, narrower, step, trained_like
from torch import nn
from torch.utils._pytree import tree_leaves
from tricky import randomized

import autoslim
from autoslim.channels.rules.table import RULES
from autoslim.channels.trace import as_inputs
from autoslim.search import engine
from autoslim.search.engine import PartialEvaluator
from autoslim.search.evaluate import SupernetEvaluator
from autoslim.search.influence import Influence
from autoslim.search.judge import step_evaluator
from autoslim.search.partial import NotPartial, PartialNet
from autoslim.search.scored import Scored, costs_of


def supernet(kind):
    torch.manual_seed(0)
    inputs = kind.inputs(3)
    return autoslim.Supernet(randomized(kind()), inputs, divisor=1, steps=4), as_inputs(inputs)


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


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_search_that_goes_on_finds_the_same_where_sums_depend_on_channels(precision):
    # In 16 bits this convolution makes other last digits of 16 channels than of 128, in batches of 64 maps of 2 x 2.
    wide = nn.Sequential(nn.Conv2d(16, 128, 3, padding=1, bias=False), nn.BatchNorm2d(128), nn.ReLU())
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
        wide, nn.Conv2d(128, 64, 3, 1, 1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    net = autoslim.Supernet(model, torch.randn(1, 3, 8, 8), divisor=8, steps=16)
    images = [(torch.randn(64, 3, 8, 8), torch.randint(0, 10, (64,))) for _ in range(4)]
    calibration = [torch.randn(64, 3, 8, 8) for _ in range(2)]

    def search(known=()):
        trace = autoslim.SearchTrace()
        trace.rows = list(known)
        evaluator = PartialEvaluator(net, images, calibration, precision=precision)
        assert any(evaluator._partial.influence.leading.values()) == (precision == "fp32")
        list(autoslim.greedy_search(net, targets={"macs": "40%"}, evaluator=evaluator, trace=trace, score="loss"))
        return trace.rows

    whole = search()
    for last in range(1, whole[-1][0].step, 2):
        assert search([row for row in whole if row[0].step <= last]) == whole


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


class Hidden(nn.Module):
    """A layer that cannot be traced, and keeps the statistics that it normalises by where no buffer shows them."""

    def __init__(self, where, norm):
        super().__init__()
        self.held = (norm,)  # no child
        mean, var = norm.running_mean.clone(), norm.running_var.clone()
        if where == "parameters":
            self.mean, self.var = nn.Parameter(mean, requires_grad=False), nn.Parameter(var, requires_grad=False)
        elif where == "attributes":
            self.mean, self.var = mean, var

    plain = True  # a word of the user's

    def forward(self, x):
        if x.sum() > 1e9:
            return x
        return nn.functional.batch_norm(x, self.mean, self.var) if hasattr(self, "mean") else self.held[0](x)


class ReplacedForward(nn.Module):
    """A layer of PyTorch's that was given another forward."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(8, 6, 3, padding=1)
        self.gate, self.mix, self.out = nn.Identity(), nn.Conv2d(6, 8, 3), nn.Linear(8, 3)
        self.gate.forward = partial(normalised, (self.norm,))

    def forward(self, x):
        return self.out(self.mix(self.gate(self.body(self.stem(x).relu())).relu()).relu().mean((2, 3)))


def normalised(held, x):
    return x if x.sum() > 1e9 else held[0](x)


class HidesNorm(nn.Module):
    def __init__(self, where):
        super().__init__()
        self.stem, self.norm, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(8, 6, 3, padding=1)
        self.hidden, self.mix, self.out = Hidden(where, self.norm), nn.Conv2d(6, 8, 3), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.mix(self.hidden(self.body(self.stem(x).relu())).relu()).relu().mean((2, 3)))


@wraps(nn.functional.batch_norm)
def own_norm(x, mean, var):
    return nn.functional.batch_norm(x, mean, var)


class NormOfOwn(nn.Module):
    """Statistics that a function of the user's is given after another operation."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.mix = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3)
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        x = own_norm(self.stem(x), self.norm.running_mean.float(), self.norm.running_var.float())
        return self.out(self.mix(x.relu()).relu().mean((2, 3)))


@pytest.mark.parametrize("kind", [
    partial(HidesNorm, "parameters"), partial(HidesNorm, "attributes"), partial(HidesNorm, "a layer elsewhere"), NormOfOwn,
    ReplacedForward,
])  # fmt: skip
def test_statistics_are_measured_wherever_they_are_kept(kind):
    torch.manual_seed(0)
    rules = {own_norm: RULES[nn.functional.batch_norm]}
    net = autoslim.Supernet(randomized(kind()), torch.randn(2, 3, 8, 8), divisor=1, steps=4, rules=rules)
    data, calibration = batches((8, 5), 0), batches((6, 4), 1)
    parts, whole, base = (
        step_evaluator(net, data, calibration),
        SupernetEvaluator(net, data, calibration),
        net.full(),
    )
    assert isinstance(parts, PartialEvaluator)
    candidates = {name: narrower(net, base, name) for name in base.widths}
    for name, judged in all_to_the_end(parts, step(net, base, candidates), list(candidates)).close().items():
        assert judged.score.loss == pytest.approx(whole.score(candidates[name]).loss, rel=1e-4)


def test_views_of_weights_are_cut_once_and_never_of_weights_that_were_replaced():
    net = trained_like(tricky.Residual)
    parts = PartialNet(net, torch.randn(2, 3, 8, 8))
    layer = next(module for module in net.model.modules() if isinstance(module, nn.Conv2d))
    net.set(net.narrowest())
    assert layer.weight is not layer.weight
    with parts.ready():
        narrow = layer.weight
        assert layer.weight is narrow
        net.set(net.full())
        assert len(layer.weight) > len(narrow)
        layer._parameters["weight"] = nn.Parameter(torch.full_like(layer._parameters["weight"], 7.0))
        net.set(net.narrowest())
        assert (layer.weight == 7).all() and layer.weight.shape == narrow.shape
    assert layer.weight is not layer.weight


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


LEADING = {
    tricky.Residual: {"stem": ["stem", "bn"], "a": ["a", "bn_a"]},
    tricky.Concat: {"a": ["a"], "b": ["b"], "mix": []},  # no part of a concatenation is the leading one
    SharedNorm: {"stem": ["stem"], "between": ["between"], "head.0": ["head_0", "head_3"]},  # it sees other values, too
    Squeezes: {"stem": ["stem"], "down": [], "body": ["body"]},  # kernels of one pixel add up in other orders
}


@pytest.mark.parametrize("kind", LEADING, ids=lambda kind: kind.__name__)
def test_what_a_group_leaves_as_the_leading_part_is_not_run_again(kind):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    net = autoslim.Supernet(randomized(kind()), x, divisor=1, steps=4)
    nodes = PartialNet(net, as_inputs(x))._nodes
    influence = Influence(net, nodes)  # as the graph says, before any of it is run
    names = {group: [nodes[i].name for i in sorted(found)] for group, found in influence.leading.items()}
    assert names == LEADING[kind]
    for group, found in influence.leading.items():
        assert found <= influence.changed[group] and influence.again(group) == influence.changed[group] - found


class ReadsAgain(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x):
        y = self.a(x)
        z = self.b(y.add_(1.0))
        return self.out((y + z).mean((2, 3)))


class Counts(ReadsAgain):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return self.out(self.b(self.a(x)).relu().mean((2, 3))) * self.calls


class Changes(ReadsAgain):
    calls = itertools.count(1)

    def forward(self, x):
        return self.out(self.b(self.a(x)).relu().mean((2, 3))) * next(self.calls)


class Meets(nn.Module):
    """Two widths that other code of the forward depends on may come to be equal."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1), nn.Linear(16, 3)

    def forward(self, x):
        x = self.a(x).relu()
        return self.out(self.last(x, self.b(x)).mean((2, 3)))

    def last(self, x, y):
        return y + x if y.shape == x.shape else y


class Limited(Meets):
    def last(self, x, y):
        return 2 * y if x.shape[1] > 4 else y


class MakesTensor(Meets):
    def last(self, x, y):
        return y - torch.tensor([0.5])


class CountsImages(Meets):
    def last(self, x, y):
        return y.view(len(y), -1, 8, 8)


class CountsPixels(Meets):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(16)

    def last(self, x, y):
        return self.norm(y.sigmoid() if x.shape[-1] > 10 else y)


class Branches(Meets):
    """Branches that are the same at all widths."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = 8, 16

    def last(self, x, y):
        assert x.dim() == 4 and self.inner == x.shape[1]
        if y.size(1) != self.outer or not self.inner or not x.chunk(2, 1):
            raise ValueError
        return y.sigmoid() if x.shape[-2:] == y.shape[-2:] and x.shape[-1] > 4 else y


def test_branches_that_no_width_changes_are_followed(caplog):
    net = autoslim.Supernet(Branches(), torch.randn(2, 3, 8, 8), divisor=1, steps=4)
    assert len(net.groups) == 2
    assert type(step_evaluator(net, batches([20], 0), batches([8], 1))) is PartialEvaluator


@pytest.mark.parametrize("where", ["images", "calibration"])
def test_images_of_other_sizes_may_take_another_branch(where, caplog):
    net = autoslim.Supernet(CountsPixels(), torch.randn(2, 3, 8, 8), divisor=1, steps=4)
    data = {"images": batches([20], 0), "calibration": batches([8], 1)}
    assert type(step_evaluator(net, **data)) is PartialEvaluator
    data[where] = [*data[where], (torch.randn(4, 3, 12, 12), torch.zeros(4, dtype=torch.int64))]
    with caplog.at_level("INFO"):
        assert type(step_evaluator(net, **data)) is SupernetEvaluator
    assert "every candidate is run whole: its graph gives another output than its forward" in caplog.text


def test_a_sample_is_drawn_where_images_cannot_be_sorted():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.Flatten(), nn.Linear(288, 3))
    net = autoslim.Supernet(model, torch.randn(2, 3, 8, 8), divisor=4)
    given = batches([4] * 30, 0)
    evaluator = PartialEvaluator(net, given, batches([8], 1))

    def order(effort):
        evaluator._arrange(effort, "loss")
        return [next(i for i, (y, _) in enumerate(given) if torch.equal(x, y)) for x, _ in evaluator._images]

    assert order("exact") == [*range(30)]
    assert order("fast") != [*range(30)] and sorted(order("fast")) == [*range(30)] and order("fast") == order("fast")


def test_what_is_made_in_16_bits_is_run_again():
    class Plain(Meets):
        def last(self, x, y):
            return y

    def leading(kind):
        torch.manual_seed(0)
        net = autoslim.Supernet(Plain().to(kind), torch.randn(2, 3, 8, 8, dtype=kind), divisor=1, steps=4)
        data = [[(x.to(kind), y) for x, y in batches([20], seed)] for seed in (0, 1)]
        return any(step_evaluator(net, *data)._partial.influence.leading.values())

    assert leading(torch.float32) and not leading(torch.bfloat16)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Meets, "a branch depends on channels ("),
        (Limited, "a branch depends on channels ("),
        (MakesTensor, "its forward makes a tensor of its own"),
        (CountsImages, "its graph does not run as its forward does (RuntimeError: "),
        (ReadsAgain, "add_ writes into a value that is read again"),
        (Changes, "its graph gives another output than its forward"),
        (Counts, "its graph gives another output than its forward"),
    ],
)
def test_a_network_that_would_run_wrong_in_parts_is_run_whole(kind, words, caplog):
    torch.manual_seed(0)
    net = autoslim.Supernet(kind(), torch.randn(2, 3, 8, 8), divisor=1, steps=4)
    with caplog.at_level("INFO"):
        assert type(step_evaluator(net, batches([20], 0), batches([8], 1))) is SupernetEvaluator
    assert f"every candidate is run whole: {words}" in caplog.text


def test_a_network_may_be_deep():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), *(nn.ReLU() for _ in range(1100)), nn.Flatten(), nn.Linear(288, 3))
    net = autoslim.Supernet(model, torch.randn(2, 3, 8, 8), divisor=4)
    assert type(step_evaluator(net, batches([8], 0), batches([8], 1))) is PartialEvaluator


def test_a_network_without_batch_norm_is_not_run_to_calibrate_it():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    net = autoslim.Supernet(nn.Sequential(body, nn.Flatten(), nn.Linear(512, 5)), torch.randn(2, 3, 8, 8), divisor=4)
    found = []
    for calibration in (batches([96, 96], 1), batches([2], 2)):
        evaluator = PartialEvaluator(net, batches([40], 0), calibration)
        (point,) = autoslim.greedy_search(net, targets={"macs": "60%"}, score="loss", evaluator=evaluator)
        found.append((point.config.channels, point.score, evaluator.macs))
    assert found[0] == found[1]


def test_a_norm_without_statistics_is_still_given_a_batch():
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 16)]
    layers += [nn.BatchNorm1d(16, track_running_stats=False), nn.ReLU(), nn.Linear(16, 5)]
    torch.manual_seed(0)
    net = autoslim.Supernet(nn.Sequential(*layers), torch.randn(2, 3, 8, 8), divisor=4)
    data, calibration = batches([40], 0), batches([16, 1], 1)[:1]
    found = [
        next(
            autoslim.greedy_search(
                net, targets={"macs": "60%"}, score="loss", effort="exact", evaluator=kind(net, data, calibration)
            )
        )
        for kind in (PartialEvaluator, SupernetEvaluator)
    ]
    assert found[0].config.channels == found[1].config.channels


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


@pytest.mark.parametrize("share", [1.0, 0.5], ids=["all kept", "some kept"])
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
        leaves = tree_leaves(parts._values._known)
        assert leaves or share < 1
        assert frozenset().union(*parts._values.keep.values()).isdisjoint(parts._partial.inputs)
        stored = [leaf.untyped_storage() for leaf in leaves if isinstance(leaf, torch.Tensor)]
        held = {storage._cdata: storage.nbytes() for storage in stored}
        assert sum(held.values()) <= parts._room


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


@pytest.mark.parametrize("doing", ["moving", "narrowing"])
def test_memory_may_run_out_between_steps(doing, monkeypatch):
    net = trained_like(tricky.Residual)
    data, calibration = batches((200,), 0), batches((6, 4), 1)
    parts, base = PartialEvaluator(net, data, calibration), net.full()
    first = step(net, base, {name: narrower(net, base, name) for name in base.widths})
    contest = all_to_the_end(parts, first, list(first.candidates))
    base = first.candidates[contest.best]
    second = step(net, base, {name: config for name in base.widths if (config := narrower(net, base, name))})
    owner, name, run = parts._partial, "narrow", contest.close
    if doing == "moving":
        contest.close()
        owner, name, run = torch, "index_select", lambda: parts.contest(second, "exact")
    calls, works = itertools.count(), getattr(owner, name)

    def runs_out(*args, **options):
        if next(calls) == 5:
            raise torch.OutOfMemoryError
        return works(*args, **options)

    ends = pytest.raises(torch.OutOfMemoryError) if doing == "narrowing" else contextlib.nullcontext()
    with monkeypatch.context() as patched, ends:  # what was to move along is forgotten; a step that ended can be done again
        patched.setattr(owner, name, runs_out)
        run()
    assert next(calls) > 5
    found, fresh = (all_to_the_end(e, second, list(second.candidates)) for e in (parts, PartialEvaluator(net, data, calibration)))
    assert found.close() == fresh.close()


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
@pytest.mark.parametrize("dtype", [torch.int64, torch.int16])
def test_pixels_that_are_left_out_count_for_nothing(score, dtype):
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(a, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()) for a in (3, 16)]
    net = autoslim.Supernet(randomized(nn.Sequential(*blocks, nn.Conv2d(16, 4, 1))), torch.randn(2, 3, 8, 8), divisor=1, steps=4)
    x, labels = torch.randn(40, 3, 8, 8), torch.randint(0, 4, (40, 8, 8))
    labels[torch.rand(40, 8, 8) < torch.rand(40, 1, 1)] = -100  # more of some images than of others
    labels[7] = -100
    labels = labels.to(dtype)
    options = {"targets": {"macs": ["50%"]}, "score": score, "effort": "exact"}
    evaluators = [kind(net, [(x, labels)], [(x, labels)]) for kind in (PartialEvaluator, SupernetEvaluator)]
    (found,), (expected,) = (autoslim.greedy_search(net, evaluator=evaluator, **options) for evaluator in evaluators)
    assert found.config.channels == expected.config.channels
    assert (found.score.error, found.score.loss) == pytest.approx((expected.score.error, expected.score.loss), rel=1e-4)
    plain = autoslim.materialize(net, found.config)
    autoslim.calibrate(plain, [x])
    known = (labels != -100).numpy()
    with torch.no_grad():
        scores = plain.eval()(x).double().log_softmax(1).permute(0, 2, 3, 1).numpy()[known]
    classes = labels.numpy()[known]
    by_hand = (scores.argmax(1) != classes).mean(), -scores[range(len(classes)), classes].mean()
    assert (found.score.error, found.score.loss) == pytest.approx(by_hand, rel=1e-4)


def test_as_many_mistakes_are_a_tie_whichever_images_they_are_made_on():
    draw, errors = torch.Generator().manual_seed(0), set()
    for _ in range(50):
        scored = Scored(None, 0.9)
        scored.seen = {i: torch.zeros(3, 50, dtype=torch.double) for i in range(4)}
        for place in torch.randperm(200, generator=draw)[:37].tolist():
            scored.seen[place // 50][0, place % 50] = 1
        errors.add(scored.score(4).error)
    assert errors == {37 / 200 / 0.9}


@pytest.mark.parametrize(("budget", "room"), [(8e9, 8e9), (1e4, 1e9)])
def test_what_runs_leave_behind_is_handed_back(monkeypatch, budget, room):
    asked = []

    class Freed:
        def __init__(self, room=None):
            self.room = room

        def give_back(self):
            asked.append(self.room)

    monkeypatch.setattr(engine, "FreedMemory", Freed)
    net, _ = supernet(tricky.Residual)
    parts = PartialEvaluator(net, batches([20], 0), batches([8], 1), memory_budget=budget)
    parts.score(net.full())
    assert len(asked) >= 2  # of a batch that calibrates and one that scores
    list(autoslim.greedy_search(net, targets={"macs": "80%"}, evaluator=parts))
    assert set(asked) == {room} and len(asked) > 10


class Silent(nn.Module):
    """Puts out nothing but zeros behind its ReLU, until its batch norm has statistics."""

    def __init__(self, way):
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)
        self.relu, self.fc, self.way = nn.ReLU(), nn.Linear(8, 5), way
        if way == "hook":
            self.relu.register_forward_hook(lambda module, args, out: out - out.mean(1, keepdim=True))
        self.norm.bias.data.fill_(-1.0)
        self.a.weight.data.mul_(0.01)

    def forward(self, x):
        x = self.relu(self.norm(self.a(x)))
        if self.way == "view":
            x[:, :, :, :4].mul_(4.0)
        return self.fc(self.b(x).mean((2, 3)))


@pytest.mark.parametrize("way", ["hook", "view"])
def test_code_that_shows_once_batch_norms_have_statistics_is_not_missed(way):
    torch.manual_seed(0)
    net = autoslim.Supernet(Silent(way), torch.randn(2, 3, 8, 8), divisor=1, steps=4)
    given = batches((16, 16), 0), batches((16,), 1)
    exact = list(autoslim.greedy_search(net, given[0], calibration=given[1], targets={"macs": "50%"}, effort="exact"))
    whole = SupernetEvaluator(net, *given)
    straight = list(autoslim.greedy_search(net, targets={"macs": "50%"}, evaluator=whole, effort="exact"))
    assert [point.config.widths for point in exact] == [point.config.widths for point in straight]
    if way == "view":
        with pytest.raises(NotPartial, match="writes into a value that is read again"):
            PartialNet(net, torch.randn(2, 3, 8, 8))
    else:
        influence = PartialNet(net, torch.randn(2, 3, 8, 8)).influence
        (hooked,) = (i for i, node in enumerate(influence._nodes) if node.target == "relu")
        assert all(hooked not in nodes for nodes in influence.leading.values())


def test_halves_of_a_value_may_be_written_apart():
    class Halves(Silent):
        def forward(self, x):
            left, right = self.norm(self.a(x)).chunk(2, 1)
            return self.fc(self.b(torch.cat([left.relu_(), right], 1)).mean((2, 3)))

    torch.manual_seed(0)
    net = autoslim.Supernet(Halves("halves"), torch.randn(2, 3, 8, 8), divisor=1, steps=4)
    assert isinstance(step_evaluator(net, batches((16,), 0), batches((16,), 1)), PartialEvaluator)


def test_held_out_images_may_come_two_at_a_time_in_a_network_that_counts_them():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

        def forward(self, x):
            return self.fc(torch.stack([each.mean((1, 2)) for each in self.b(self.a(x).relu())]))

    net = autoslim.Supernet(randomized(Counts()), torch.randn(2, 3, 8, 8), divisor=1, steps=4)
    images = batches((2,) * 20, 0)
    assert step_evaluator(net, images, batches((16,), 1)).score(net.full()).images == 40


def test_as_many_mistakes_are_a_tie_wherever_they_are_made():
    torch.manual_seed(0)
    logits, target = torch.zeros(3, 2, 7, 7), torch.ones(3, 7, 7, dtype=torch.int64)
    logits[:, 1] = 1.0
    totals = set()
    for places in ((5, 3, 6), (7, 7, 0), (14, 0, 0), (1, 6, 7)):
        here = logits.clone()
        for image, count in enumerate(places):
            here[image, 0].view(-1)[:count] = 2.0
        scored = Scored(None, 49.0)
        scored.seen[0] = costs_of(here, target)
        totals.add(scored.score(1).error)
    assert totals == {14 / 3 / 49}


def test_calibration_of_a_fast_search_leaves_no_small_batch_over():
    net = autoslim.Supernet(randomized(tricky.Residual()), torch.randn(2, 3, 8, 8), divisor=4)
    parts = PartialEvaluator(net, batches((64,), 0), batches((51,) * 6, 1))
    parts._arrange("fast", "loss")
    assert parts._used.sizes == [51] * 5
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.Flatten(2), nn.Conv1d(8, 8, 1),
                          nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 5))  # fmt: skip
    net = autoslim.Supernet(model, torch.randn(2, 3, 8, 8), divisor=1, steps=4)
    parts = PartialEvaluator(net, batches((64,), 0), batches((100,) * 5, 1))
    parts._arrange("fast", "loss")
    assert parts._used.sizes == [100, 100, 100]  # a batch is normalised by its own statistics
