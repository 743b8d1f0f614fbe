"""Code that users write in forward: branches, modules made on the way, objects returned, parts that run several times."""

import copy
import dataclasses
import functools
import types

import pytest
import torch
import torch.nn.functional as F
import torchvision
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

import autoslim
from autoslim.cost.budgets import Budgets
from autoslim.errors import ModelError

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def names(net):
    return [group.name for group in net.groups]


def check(model, *, x=X, seed=1, **choices):
    """Check that slimmed networks give what their supernet gives; returns the supernet."""
    torch.manual_seed(0)
    net = autoslim.Supernet(model, x, **choices)
    for config in (net.full(), net.narrowest(), net.random(torch.Generator().manual_seed(seed))):
        net.set(config)
        plain = autoslim.materialize(net).eval()
        with torch.no_grad():
            torch.testing.assert_close(net.eval()(x), plain(x), rtol=1e-4, atol=1e-5)
    return net


class Projected(nn.Module):
    def __init__(self, stride, narrow=16, wide=32):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, narrow, 3, padding=1), nn.Conv2d(narrow, wide, 3, stride, 1)
        self.skip, self.fc = nn.Conv2d(narrow, wide, 1, stride), nn.Linear(wide, 10)

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


def test_a_branch_is_looked_at_where_widths_meet_between_the_narrowest_and_the_widest():
    with pytest.raises(ModelError, match="does not run at widths of about 16") as caught:
        autoslim.Supernet(Projected(2, 64, 128), X)  # 8 and 16 channels at the narrowest
    assert "if x.shape[1] != out.shape[1]:" in str(caught.value)
    check(Projected(1, 64, 128))


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
    def __init__(self, places=lambda own, x: own):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 16, 3), nn.Linear(16, 4)
        self.table = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 16))
        self.register_buffer("own", torch.randn(225, 2))
        self.places = places

    def forward(self, x):
        rows = self.table(self.places(self.own, x))
        return self.fc(self.conv(x).mean((2, 3)) + rows.reshape(-1, 225, 16).mean(1))


PLACES = {
    "as-it-is": lambda own, x: own,
    "to-device": lambda own, x: own.to(x.device),
    "to-dtype": lambda own, x: own.to(x.dtype),
    "pixels": lambda own, x: own.repeat(1, x.shape[2] // 16),
    "rows-of-shape": lambda own, x: own.expand(x.shape[-1] // 16, -1, -1),
}


@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
def test_what_does_not_depend_on_images_is_counted_once(places):
    for count in (1, 8):
        assert macs(FromBuffer(places), torch.randn(count, 3, 16, 16)) == FlopCountAnalysis(FromBuffer(), X[:1]).total()


FOR_IMAGES = {
    "length": lambda own, x: own.expand(len(x), -1, -1),
    "shape": lambda own, x: own.expand(x.shape[0], -1, -1),
    "size": lambda own, x: own.repeat(x.size(0), 1),
    "unpacked": lambda own, x: own.expand([*x.shape][0] * 1, -1, -1),
    "added": lambda own, x: own + 0 * x.mean((1, 2, 3)).view(-1, 1, 1),
}


@pytest.mark.parametrize("places", FOR_IMAGES.values(), ids=FOR_IMAGES)
def test_what_is_computed_for_every_image_is_divided_by_their_number(places):
    for count in (1, 8):
        assert macs(FromBuffer(places), torch.randn(count, 3, 16, 16)) == FlopCountAnalysis(FromBuffer(), X[:1]).total()


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


class SharesItsActivation(nn.Module):
    """Cannot be traced; an activation is registered in both of the parts that can be."""

    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()
        self.body = nn.Sequential(nn.Conv2d(3, 32, 3), self.act, nn.Conv2d(32, 16, 3))
        self.head = nn.Sequential(nn.Conv2d(16, 32, 3), self.act, nn.Conv2d(32, 5, 1))

    def forward(self, x):
        x = self.body(x)
        if x.max() > 1e9:
            x = x * 0
        return self.head(x).mean((2, 3))


def test_an_activation_may_be_shared_by_parts_of_an_untraceable_network():
    assert names(autoslim.Supernet(SharesItsActivation(), (X,))) == ["body.0", "head.0"]


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


class Checked(nn.Module):
    """Writes into its input where it cannot be traced."""

    def forward(self, x):
        assert not torch.isnan(x).any()
        return x.sub_(0.5).mul_(2)


class NormalisesInside(Normalises):
    def __init__(self):
        super().__init__(False)
        self.first = Checked()


class OfFixedSize(nn.Module):
    """Takes batches of 20 only."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 3)

    def forward(self, x):
        x = self.b(self.a(x).relu()).mean((2, 3))
        return self.out(x + torch.zeros(20, 1))


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
        (OfBatch, batches(*[1] * 10)),
        (Squeezes, batches(100, 29)),
        (NormalisesInside, batches(40)),
        (OfFixedSize, batches(20, 20)),
    ],
    ids=["in-place", "writes-input", "writes-input-by-module", "numbers", "of-batch", "of-one", "squeezes",
         "writes-input-inside", "fixed-size"],
)  # fmt: skip
def test_searches_score_what_the_network_does(model, given):
    torch.manual_seed(0)
    example = given[0][0]
    net = autoslim.Supernet(
        model(), tree_map(lambda t: t[:20] if isinstance(t, torch.Tensor) else t, example), divisor=1, steps=4
    )
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


class RemembersMask(nn.Module):
    mask = None

    def forward(self, x):
        if self.mask is None or len(self.mask) != len(x):
            self.mask = torch.ones(len(x), 1, 1, 1)
        assert self.mask.sum() > 0  # cannot be traced
        return x * self.mask


class RemembersInside(Scaled):
    def __init__(self):
        super().__init__()
        self.inside = RemembersMask()

    def forward(self, x):
        return self.out(self.b(self.inside(self.a(x).relu())).relu().mean((2, 3)))


@pytest.mark.parametrize("model", [Remembers, RemembersInside])
def test_what_a_module_keeps_at_its_first_forward_can_be_trained_on(model):
    given = batches(40)
    net = autoslim.Supernet(model(), given[0][0][:2], divisor=1, steps=4)
    list(autoslim.greedy_search(net, given, calibration=given, targets={"macs": "60%"}))
    net.train()(given[0][0]).sum().backward()


class ReadsLayers(nn.Module):
    """Takes numbers from its layers."""

    def __init__(self):
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 32, 3), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 24, 1)
        self.last, self.fc = nn.Conv2d(40, 24, 1), nn.Linear(24, 5)

    def forward(self, x):
        x, c = self.conv(x).relu(), self.conv.out_channels // 2
        x = self.last(torch.cat([self.a(x[:, :c]), self.b(x[:, c:])], 1))
        return self.fc(x.mean((2, 3)).view(-1, self.fc.in_features))


def test_numbers_that_forward_reads_of_its_layers_are_told_where_they_do_not_fit():
    with pytest.raises(ModelError, match="does not run at its narrowest widths .*keep what is read there whole") as caught:
        autoslim.Supernet(ReadsLayers(), X)
    assert "x = self.last(torch.cat([self.a(x[:, :c])" in str(caught.value)
    assert names(check(ReadsLayers(), freeze=["conv#1"])) == ["a", "b"]


class ReadsByHook(nn.Module):
    def __init__(self, method):
        super().__init__()
        self.first, self.second = (nn.Sequential(nn.Conv2d(*io, 3), nn.ReLU()) for io in ((3, 16), (16, 8)))
        self.fc, self.kept = nn.Linear(24, 5), {}
        for name in ("first", "second"):
            hook = self.keep if method else lambda module, inputs, out, name=name: self.kept.__setitem__(name, out)
            getattr(self, name).register_forward_hook(hook)

    def keep(self, module, inputs, out):
        self.kept["first" if module is self.first else "second"] = out

    def forward(self, x):
        self.second(self.first(x))
        return self.fc(torch.cat([self.kept[name].mean((2, 3)) for name in ("first", "second")], 1))


def test_a_hook_that_would_not_see_a_copy_is_refused():
    with pytest.raises(ModelError, match="a hook of first holds the network .* make it a method"):
        autoslim.Supernet(ReadsByHook(False), X)
    assert names(check(ReadsByHook(True))) == ["first.0", "second.0"]


class Odd(nn.Module):
    """Calls operations as their rules do not expect it."""

    def __init__(self, way):
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3), nn.Linear(8, 5)
        self.way = way

    def forward(self, x):
        return self.fc(self.second(self.way(self.first(x))).mean((2, 3)))


ODD = {
    "movedim": lambda x: x.movedim((2, 3), (3, 2)),
    "bmm": lambda x: torch.bmm(x.flatten(2), mat2=x.flatten(2).transpose(1, 2) @ x.flatten(2)).view(x.shape),
    "split": lambda x: torch.cat(torch.split(tensor=x, split_size_or_sections=8, dim=1), 1),
}


@pytest.mark.parametrize("way", ODD.values(), ids=ODD)
def test_a_call_that_no_rule_expects_stays_whole(way):
    assert names(check(Odd(way))) in (["second"], ["first", "second"])


def test_layers_without_a_shape_are_refused_in_one_line():
    model = nn.Sequential(nn.LazyConv2d(16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3))
    with pytest.raises(ModelError, match="0.weight has no shape before the network has run once"):
        autoslim.Supernet(model, X)
    model(X)
    assert names(autoslim.Supernet(model, X)) == ["0"]


def test_sizes_of_a_class_or_by_a_property():
    class Sized(nn.Module):
        width = 16

        def __init__(self):
            super().__init__()
            self.first, self.fc = nn.Conv2d(3, 16, 3), nn.Linear(16, 5)

        @property
        def channels(self):
            return self.first.out_channels

        def forward(self, x):
            x = self.first(x)
            return self.fc(x.view(len(x), self.width, -1).mean(2) + x.view(len(x), self.channels, -1).mean(2))

    with pytest.raises(ModelError, match="has no channel group"):
        autoslim.Supernet(Sized(), X)


def test_places_of_two_axes_are_no_images():
    class Meshes(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.mlp, self.fc = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(2, 16), nn.Linear(16, 5)

        def forward(self, x):
            h, w = x.shape[-2:]
            places = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")).float()
            return self.fc((self.conv(x) + self.mlp(places.permute(1, 2, 0)).permute(2, 0, 1)).mean((2, 3)))

    for count in (1, 2, 8):
        assert macs(Meshes(), torch.randn(count, 3, 16, 16)) == 256 * (27 * 16 + 2 * 16) + 16 * 5


def test_two_directions_are_no_images():
    class Twice(FromBuffer):
        def forward(self, x):
            return self.fc(self.conv(x).mean((2, 3)) + self.table(self.own.expand(2, -1, -1)).mean((0, 1)))

    for count in (1, 2, 8):
        once = FlopCountAnalysis(FromBuffer(), X[:1]).total()
        assert macs(Twice(), torch.randn(count, 3, 16, 16)) == once + 225 * (2 * 64 + 64 * 16)


class Reshapes(nn.Module):
    """Takes axes from attributes."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3), nn.Linear(8, 5)
        self.axis, self.dims, self.count = 2, (2, 3), 2

    def forward(self, x):
        x = self.second(self.first(x)[:, :, : x.shape[self.axis] - 4])
        size = [x.shape[d] for d in self.dims]
        assert size == list(x.shape[-self.count :]) and x.size(dim=self.axis) == size[0]
        return self.fc(F.adaptive_avg_pool2d(x, [s // s for s in size]).flatten(1))


def test_axes_that_are_attributes():
    assert names(check(Reshapes())) == ["first", "second"]


class LooksAtTypes(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()])
        self.fc, self.heads = nn.Linear(16, 5), nn.ModuleDict({"16": nn.Identity()})

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x) if type(layer) is nn.ReLU else layer(x)
        return self.fc(self.heads["16"](x).mean((2, 3)))


def test_forward_may_ask_for_the_type_of_a_layer():
    assert names(check(LooksAtTypes())) == ["layers.0", "layers.2"]


def test_one_example_is_enough_for_a_batch_norm_without_statistics():
    layers = nn.Conv2d(3, 16, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(16, track_running_stats=False), nn.Conv2d(16, 8, 1)
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 5))
    for example in (X[:1], torch.empty(1, 3, 16, 16, device="meta")):
        assert names(autoslim.Supernet(model, example)) == ["0", "3"]


class SetsItselfUp(nn.Module):
    """Looks at its first batch, also in eval mode."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.ones(16))
        self.register_buffer("calls", torch.zeros(()))
        self.mask = None

    def forward(self, x):
        if self.calls == 0:
            self.shift.data.copy_(-x.mean((0, 2, 3)))
        self.calls += 1
        if self.mask is None:
            self.mask = torch.ones(len(x), 1, 1, 1)
        return x * self.mask + self.shift.view(-1, 1, 1)


def test_a_network_that_sets_itself_up_is_left_as_it_was():
    setup = SetsItselfUp()
    model = nn.Sequential(nn.Conv2d(3, 16, 3), setup, nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(2304, 5))
    net = autoslim.Supernet(model, X)
    assert names(net) == ["3"]
    assert setup.calls == 0 and setup.mask is None and torch.equal(setup.shift, torch.ones(16))
    assert net(torch.randn(5, 3, 16, 16)).shape == (5, 5) and net.model[1].calls == 1


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3), nn.Linear(32, 10)

    def features(self, x):
        return self.b(self.a(x).relu()).relu()

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


def wrapped(forward):
    @functools.wraps(forward)
    def doubled(*args):
        return 2 * forward(*args)

    return doubled


def put_into_the_object(model, way):
    if way == "a method of another name":
        model.forward = types.MethodType(lambda self, x: self.fc(self.features(x).amax((2, 3))), model)
    elif way == "around its own":
        model.forward = wrapped(wrapped(model.forward))
    elif way == "by its defaults":
        model.forward = lambda x, of=model.forward: 3 * of(x)
    elif way == "by a keyword":
        model.forward = lambda x, *, of=model.forward: 3 * of(x)
    elif way == "in a row":
        row = [model.a, model.b]
        model.forward = lambda x: model.fc(row[1](row[0](x).relu()).relu().mean((2, 3)))
    elif way == "again and again":

        def forward(x, times=1):
            return forward(x, times - 1) if times else 2 * type(model).forward(model, x)

        model.forward = forward
    elif way == "in part":
        model.forward = functools.partial(type(model).forward, model)
    else:
        model.b.act = lambda x, conv=model.b: x * conv.bias.mean()  # of a layer, for a forward of the network to call
        model.forward = lambda x: model.fc(model.b.act(model.features(x)).mean((2, 3)))
    return model


@pytest.mark.parametrize(
    "way",
    [
        "a method of another name",
        "around its own",
        "by its defaults",
        "by a keyword",
        "in a row",
        "again and again",
        "in part",
        "of functions that hold layers",
    ],  # fmt: skip
)
def test_a_forward_that_was_put_into_the_object_is_what_is_slimmed(way):
    torch.manual_seed(0)
    model = put_into_the_object(Small(), way)
    forward, expected = model.forward, model(X)
    net = check(model)
    assert model.forward is forward and torch.equal(model(X), expected) and set(names(net)) >= {"a"}
    net.set(net.full())
    torch.testing.assert_close(net(X), expected)
    slim = autoslim.materialize(net, net.narrowest())
    assert slim.a.weight.shape[0] < 16
    slim(X).sum().backward()
    assert slim.a.weight.grad is not None and model.a.weight.grad is None
    before = slim(X)
    with torch.no_grad():
        model.a.weight.zero_()
    assert torch.equal(slim(X), before)  # nothing of it runs on the other's weights
    with torch.no_grad():
        slim.a.weight.zero_()
    assert not torch.equal(slim(X), before)


KINDS = {}


class Registered(nn.Module):
    def __init_subclass__(cls, *, tag, **kwargs):
        super().__init_subclass__(**kwargs)
        assert tag not in KINDS
        KINDS[tag] = cls


class OfAKind(Registered, tag="of a kind"):
    def __init__(self):
        super().__init__()
        self.conv, self.scale = nn.Conv2d(16, 16, 3), nn.Parameter(torch.ones(16, 1, 1))

    def forward(self, x):
        return self.conv(x) * self.scale


def test_classes_that_are_listed_when_they_are_made_are_listed_once():
    check(nn.Sequential(nn.Conv2d(3, 16, 3), OfAKind(), nn.Flatten(2), Mean(), nn.Linear(16, 10)))
    assert {"of a kind": OfAKind} == KINDS and type(KINDS["of a kind"]()) is OfAKind


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(2)


def test_a_scripted_activation_stays_as_it_is():
    act = torch.jit.script(nn.Hardswish())
    net = check(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), act, nn.Flatten(2), Mean(), nn.Linear(8, 10)))
    assert names(net) == ["0"]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_of_activations_are_followed(reentrant):
    class Saving(Small):
        def forward(self, x):
            x = checkpoint(self.a, x, use_reentrant=reentrant)
            return self.fc(checkpoint(lambda y: self.b(y.relu()).relu(), x, use_reentrant=reentrant).mean((2, 3)))

    assert names(check(Saving())) == ["a", "b"]


@pytest.mark.parametrize("kept", [dict, list])
def test_activations_that_a_network_keeps_are_no_part_of_it(kept):
    class Keeping(Small):
        def __init__(self):
            super().__init__()
            self.kept = kept()

        def forward(self, x):
            x = self.features(x)
            if kept is dict:
                self.kept["features"] = x
            else:
                self.kept.append(x)
            return self.fc(x.mean((2, 3)))

    model = Keeping()
    net = autoslim.Supernet(model, X)
    assert not model.kept and not net.model.kept  # of what was run to find out about it
    autoslim.train_supernet(net, [(X, torch.tensor([0, 1]))], epochs=1)
    assert names(net) == ["a", "b"] and autoslim.materialize(net, net.narrowest())(X).shape == (2, 10)


def test_a_number_for_every_image_is_an_input(tmp_path):
    class Timed(Small):
        def forward(self, x, t):
            return self.fc((self.features(x) * t[:, None, None, None]).mean((2, 3)))

    model, inputs = Timed(), (X, torch.rand(2))
    net = autoslim.Supernet(model, inputs)
    config = net.narrowest()
    config.save(tmp_path / "config.json")
    again = autoslim.ChannelConfig.load(tmp_path / "config.json")
    assert again == config and again.input_shape == [[3, 16, 16], []]
    assert autoslim.materialize(model, again)(*inputs).shape == (2, 10)
    assert Budgets(net, ["memory"]).costs(config)["memory"] > 0


def test_one_input_may_be_a_row_of_tensors(tmp_path):
    class OfARow(Small):
        def forward(self, row):
            return super().forward(row[0] + row[1])

    model = OfARow()
    net = autoslim.Supernet(model, ((X, X),))
    net.narrowest().save(tmp_path / "config.json")
    again = autoslim.ChannelConfig.load(tmp_path / "config.json")
    assert autoslim.materialize(model, again)((X, X)).shape == (2, 10)
    assert Budgets(net, ["memory"]).costs(again)["memory"] > 0
