"""Code that users write in forward: branches, modules made on the way, objects returned, parts that run several times."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
import torchvision
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils._pytree import tree_map

import autoslim
from autoslim.errors import ModelError

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def names(net):
    return [group.name for group in net.groups]


def check(model, *, x=X, seed=1):
    """Check that slimmed networks give what their supernet gives; returns the supernet."""
    torch.manual_seed(0)
    net = autoslim.Supernet(model, x)
    for config in (net.full(), net.narrowest(), net.random(torch.Generator().manual_seed(seed))):
        net.set(config)
        plain = autoslim.materialize(net).eval()
        with torch.no_grad():
            torch.testing.assert_close(net.eval()(x), plain(x), rtol=1e-4, atol=1e-5)
    return net


class Projected(nn.Module):
    def __init__(self, stride):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, stride, 1)
        self.skip, self.fc = nn.Conv2d(16, 32, 1, stride), nn.Linear(32, 10)

    def forward(self, x):
        x = self.stem(x).relu()
        out = self.conv(x)
        if x.shape[1] != out.shape[1]:
            x = self.skip(x)
        return self.fc((out + x).relu().mean((2, 3)))


def test_a_branch_that_narrow_networks_do_not_bear_is_told():
    with pytest.raises(ModelError) as caught:
        autoslim.Supernet(Projected(2), X)
    message = str(caught.value)
    assert "does not run at its narrowest widths" in message and "if x.shape[1] != out.shape[1]:" in message
    net = autoslim.Supernet(Projected(2), X, freeze=["stem"])  # what the message says
    assert names(net) == ["conv"]
    net.set(net.narrowest())
    assert net(X).shape == (2, 10)
    check(Projected(1))


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    features: torch.Tensor


class Returns(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3), nn.Linear(32, 10)

    def forward(self, x):
        x = self.second(self.first(x).relu()).relu()
        return Output(self.fc(x.mean((2, 3))), x)


def test_what_a_network_returns_in_an_object_stays_whole():
    net = autoslim.Supernet(Returns(), X)
    assert names(net) == ["first"]
    net.set(net.narrowest())
    assert net(X).logits.shape == (2, 10) and net(X).features.shape[1] == 32


class Counts(nn.Module):
    def forward(self, x):
        return float((x > 0).sum()) / x.numel()


class Reads(Returns):
    def __init__(self):
        super().__init__()
        self.counts, self.scale = Counts(), nn.Parameter(torch.ones(1))

    def forward(self, x):
        x = self.second(self.first(x).relu())
        return self.fc(x.mean((2, 3))) * self.scale * self.counts(x)


def test_what_an_untraceable_module_turns_into_a_number_stays_whole():
    assert names(autoslim.Supernet(Reads(), X)) == ["first"]


class Makes(nn.Module):
    def __init__(self):
        super().__init__()
        layers = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU()
        self.layers, self.fc = nn.Sequential(*layers), nn.Linear(32, 10)

    def forward(self, x):
        x = nn.Hardswish()(self.layers[:3](x))
        return nn.LogSoftmax(1)(self.fc(nn.Flatten()(nn.AdaptiveAvgPool2d(1)(self.layers[3:](x)))))


def test_modules_that_are_made_in_forward_are_followed():
    assert names(check(Makes())) == ["layers.0", "layers.3"]


class Keeps(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3), nn.Linear(8, 4)
        self.name = name

    def forward(self, x):
        x = self.first(x)
        mean, var = {
            "keepdims": lambda: (x.mean((2, 3), keepdims=True), x.var((2, 3), keepdims=True)),
            "axis": lambda: (x.mean(axis=(2, 3), keepdim=True), torch.var(x, axis=(2, 3), keepdims=True)),
            "positions": lambda: (x.mean((2, 3), True), x.var((2, 3), False, True)),
            "largest": lambda: (x.amax(1, keepdims=True), x.max(dim=1, keepdim=True)[0]),
        }[self.name]()
        return self.fc(self.second((x - mean) * var.sigmoid()).mean((2, 3)))


@pytest.mark.parametrize("name", ["keepdims", "axis", "positions", "largest"])
def test_axes_that_are_kept_however_it_is_written(name):
    assert names(check(Keeps(name))) == ["first", "second"]


class Splits(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 32, 3), nn.Conv2d(16, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        a, b = torch.chunk(self.first(x), 2, axis=1)
        return self.fc(self.second(a * b).mean((2, 3)))


def test_an_axis_by_its_other_name():
    assert names(check(Splits())) == ["first", "second"]


class Unpools(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 5, 1)
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
        self.function = function

    def forward(self, x):
        x, indices = self.pool(self.first(x).relu())
        x = self.middle(x)
        return self.last(F.max_unpool2d(x, indices, 2) if self.function else self.unpool(x, indices))


@pytest.mark.parametrize("function", [False, True])
def test_what_is_unpooled_is_as_wide_as_what_was_pooled(function):
    (group,) = check(Unpools(function)).groups
    assert group.members == ("first", "middle")


def macs(model, x):
    return autoslim.CostTable(net := autoslim.Supernet(model, x)).cost(net.full()).macs


class Attends(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 32, 3, 2), nn.Conv2d(32, 64, 3, 2), nn.Linear(64, 10)
        self.kind = kind
        if kind == "encoder":
            self.attend = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True)
        else:
            self.attend, self.query = nn.MultiheadAttention(64, 4, batch_first=True), nn.Parameter(torch.randn(1, 1, 64))

    def forward(self, x):
        x = self.second(self.first(x).relu()).flatten(2).transpose(1, 2)
        if self.kind == "encoder":
            return self.fc(self.attend(x).mean(1))
        return self.fc(self.attend(self.query.expand(len(x), -1, -1), x, x)[0][:, 0])


@pytest.mark.parametrize("kind, own", [("encoder", 9 * (4 * 64 * 64 + 2 * 64 * 256)), ("pooling", (2 * 9 + 2) * 64 * 64)])
def test_layers_inside_modules_of_torch_are_counted(kind, own):
    convs = 49 * 27 * 32 + 9 * 9 * 32 * 64
    assert macs(Attends(kind), X) == convs + own + 640


class FromBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 16, 3), nn.Linear(16, 4)
        self.table = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 16))
        self.register_buffer("places", torch.randn(225, 2))

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)) + self.table(self.places).mean(0))


def test_what_does_not_depend_on_images_is_counted_once():
    for count in (1, 8):
        assert macs(FromBuffer(), torch.randn(count, 3, 16, 16)) == FlopCountAnalysis(FromBuffer(), X[:1]).total()


class Pyramid(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        self.head = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 4, 1))

    def forward(self, images):
        x = self.body(torch.stack(images))
        found = [self.head(level) for level in (x, F.max_pool2d(x, 2), F.max_pool2d(x, 4))]
        rows = torch.cat([level.flatten(2) for level in found], 2)
        return [row[:, row[0] > 0] for row in rows]


def test_a_head_that_runs_on_several_levels_is_counted_on_all():
    images = [torch.randn(3, 16, 16) for _ in range(2)]
    net = autoslim.Supernet(Pyramid(), (images,))
    assert not net.channels.whole and names(net) == ["body.0", "head.0"]
    table, places = autoslim.CostTable(net), 256 + 64 + 16
    assert table.cost(net.full()).macs == 256 * 9 * (3 * 16 + 16 * 16) + places * (9 * 16 * 32 + 32 * 4)
    a, b = (width.choices[0] for width in net.widths)
    assert table.cost(net.narrowest()).macs == 256 * 9 * (3 * a + a * 16) + places * (9 * 16 * b + b * 4)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = torchvision.models.resnet18()
        self.features, self.fc = nn.Sequential(*list(self.model.children())[:-2]), nn.Linear(512, 4)

    def forward(self, x):
        x = self.features(x)
        if x.max() > 1e9:
            x = x * 0
        return self.fc(x.mean((2, 3)))


def test_a_module_that_is_registered_twice_in_an_untraceable_network():
    x = torch.randn(2, 3, 32, 32)
    net = autoslim.Supernet(Twice(), (x,))
    assert all(group.name.startswith("model.layer") for group in net.groups) and len(net.groups) >= 8
    net.set(net.narrowest())
    plain = autoslim.materialize(net).eval()
    torch.testing.assert_close(net.eval()(x), plain(x), rtol=1e-4, atol=1e-5)


class InPlace(nn.Module):
    """Reads a value again that a module has changed in place."""

    def __init__(self):
        super().__init__()
        self.stem, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True)
        self.a, self.b, self.out = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        y = self.b(self.relu(self.a(self.relu(x))))
        return self.out((x + y).mean((2, 3)))


class Normalises(nn.Module):
    """Writes into its input, by a method or by a module."""

    def __init__(self, module):
        super().__init__()
        self.first = nn.ELU(inplace=True) if module else None
        self.a, self.b, self.out = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x) if self.first is not None else x.sub_(0.5).mul_(2)
        return self.out(self.b(self.a(x).relu()).relu().mean((2, 3)))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 3)

    def forward(self, x, k):
        return self.out(self.b(self.a(x * k).relu()).relu().mean((2, 3)))


class OfBatch(nn.Module):
    """Normalises by the statistics of the batch at all times."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.b(F.batch_norm(self.a(x), None, None, training=True).relu()).mean((2, 3)))


class Squeezes(Scaled):
    def forward(self, x):
        return self.out(self.b(self.a(x).relu()).mean((2, 3), keepdim=True).squeeze())


def batches(*sizes, numbers=()):
    generator = torch.Generator().manual_seed(3)
    found = [(torch.randn(n, 3, 8, 8, generator=generator), torch.randint(0, 3, (n,), generator=generator)) for n in sizes]
    return [((x, k), y) for (x, y), k in zip(found, numbers)] if numbers else found


@pytest.mark.parametrize(
    "model, given",
    [
        (InPlace, batches(40)),
        (lambda: Normalises(False), batches(40)),
        (lambda: Normalises(True), batches(40)),
        (Scaled, batches(20, 20, numbers=(1.0, 5.0))),
        (OfBatch, batches(100)),
        (Squeezes, batches(100, 29)),
    ],
    ids=["in-place", "writes-input", "writes-input-by-module", "numbers", "of-batch", "squeezes"],
)
def test_searches_score_what_the_network_does(model, given):
    torch.manual_seed(0)
    example = given[0][0]
    net = autoslim.Supernet(model(), tree_map(lambda t: t[:2] if isinstance(t, torch.Tensor) else t, example), divisor=1, steps=4)
    before = copy.deepcopy(given)
    taken = {}
    for effort in ("exact", "whole"):
        options = {"score": "loss", "targets": {"macs": ["60%"]}, "effort": "exact", "trace": (trace := autoslim.SearchTrace())}
        if effort == "whole":
            options["evaluator"] = autoslim.SupernetEvaluator(net, given, given)
        (point,) = autoslim.greedy_search(net, given, calibration=given, **options)
        taken[effort] = [(c.group, c.width, c.loss) for c in trace.path_taken()]
    assert [step[:2] for step in taken["exact"]] == [step[:2] for step in taken["whole"]]
    assert [step[2] for step in taken["exact"]] == pytest.approx([step[2] for step in taken["whole"]], rel=1e-5)
    for (x, _), (kept, _) in zip(given, before):
        torch.testing.assert_close(x, kept, rtol=0, atol=0)


def test_a_network_that_is_trained_between_points_is_scored_as_it_is():
    torch.manual_seed(0)
    given, trace = batches(60), autoslim.SearchTrace()
    net = autoslim.Supernet(Squeezes(), given[0][0][:2], divisor=1, steps=4)
    options = {"targets": {"macs": ["80%", "60%"]}, "effort": "exact", "score": "loss", "trace": trace}
    points = autoslim.greedy_search(net, given, calibration=given, **options)
    next(points)
    done = len(trace.path_taken())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.3)
    list(points)
    widths, whole = dict(net.full().widths), autoslim.SupernetEvaluator(net, given, given)
    for i, taken in enumerate(trace.path_taken()):
        widths |= {taken.group: taken.width} if taken.group else {}
        if i >= done:
            assert whole.score(net.make_config(list(widths.values()))).loss == pytest.approx(taken.loss, rel=1e-5)
    assert len(trace.path_taken()) > done


class Remembers(Scaled):
    """Makes a tensor at its first forward, and keeps it."""

    mask = None

    def forward(self, x):
        x = self.a(x).relu()
        if self.mask is None:
            self.mask = torch.linspace(0, 1, x.shape[-1])
        return self.out(self.b(x * self.mask).relu().mean((2, 3)))


def test_what_a_module_keeps_at_its_first_forward_can_be_trained_on():
    given = batches(40)
    net = autoslim.Supernet(Remembers(), given[0][0][:2], divisor=1, steps=4)
    list(autoslim.greedy_search(net, given, calibration=given, targets={"macs": "60%"}))
    net.train()(given[0][0]).sum().backward()
