"""What a user decides about the groups, and rules of one's own."""

import json

import pytest
import torch
import tricky
from torch import nn
from tricky import randomized

import autoslim
from autoslim.channels.rules.elementwise import same
from autoslim.commands import main

X = torch.randn(2, 3, 8, 8)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.body = nn.Sequential(*[nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)) for _ in range(3)])
        self.neck, self.wide, self.head = nn.Conv2d(16, 12, 1), nn.Conv2d(12, 32, 1, groups=4), nn.Linear(32, 5)

    def forward(self, x):
        return self.head(self.wide(self.neck(self.body(self.stem(x)))).mean((2, 3)))


def names(found):
    return [group.name for group in found.groups]


def frozen(found):
    return {group.name: group.frozen for group in found.frozen}


def check_identity(net, x=X):
    for config in (net.full(), net.narrowest(), net.random(torch.Generator().manual_seed(1))):
        net.set(config)
        plain = autoslim.materialize(net)
        torch.testing.assert_close(net.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-5)
        again = autoslim.materialize(net.source, config)
        torch.testing.assert_close(again.eval()(x), plain(x), rtol=1e-4, atol=1e-5)


def test_freeze_keeps_groups_by_name_pattern_or_member():
    assert names(autoslim.find_groups(Net(), X)) == ["stem", "body.0.0", "body.1.0", "body.2.0", "neck", "wide"]
    found = autoslim.find_groups(Net(), X, freeze=["body.*.0", "stem"])
    assert names(found) == ["neck", "wide"]
    assert frozen(found)["body.1.0"] == ("frozen by 'body.*.0'",) and frozen(found)["stem"] == ("frozen by 'stem'",)
    by_member = autoslim.find_groups(Net(), X, freeze="body.2.1")
    assert names(by_member) == ["stem", "body.0.0", "body.1.0", "neck", "wide"]
    check_identity(autoslim.Supernet(randomized(Net()), X, divisor=4, freeze=["body.0.0"]))


def test_include_and_exclude_name_modules_with_all_that_is_inside():
    assert names(autoslim.find_groups(Net(), X, include=["body"])) == ["body.0.0", "body.1.0", "body.2.0"]
    assert names(autoslim.find_groups(Net(), X, include=["body"], exclude=["body.1"])) == ["body.0.0", "body.2.0"]
    found = autoslim.find_groups(Net(), X, exclude=["body", "wide"])
    assert names(found) == ["stem", "neck"] and frozen(found)["body.0.0"] == ("excluded by 'body'",)


def test_release_takes_a_freeze_back_and_lets_the_output_go():
    assert names(autoslim.find_groups(Net(), X, freeze=["body.*"], release=["body.1.0"])) == ["stem", "body.1.0", "neck", "wide"]
    net = autoslim.Supernet(randomized(Net()), X, divisor=1, release=["head"])
    assert names(net.channels)[-1] == "head"
    with net.using(net.narrowest()):
        assert net(X).shape == (2, 1)
    check_identity(net)


def test_what_code_freezes_cannot_be_released():
    with pytest.raises(autoslim.AutoSlimError, match="'before' cannot be released: cumsum: no rule"):
        autoslim.find_groups(tricky.UnknownOperation(), X, release=["before"])


def test_tied_groups_share_one_width():
    net = autoslim.Supernet(randomized(Net()), X, divisor=4, tie=[["body.*.0", "stem"]])
    assert names(net.channels) == ["stem", "neck", "wide"]
    assert net.groups[0].members == ("stem", "body.0.0", "body.0.1", "body.1.0", "body.1.1", "body.2.0", "body.2.1")
    check_identity(net)
    # One name and one pattern, as on the command line.
    assert names(autoslim.find_groups(Net(), X, tie="stem,body.0.0")) == ["stem", "body.1.0", "body.2.0", "neck", "wide"]


def test_groups_made_of_parts_are_tied_part_by_part():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1)
            self.grouped, self.head = nn.Conv2d(16, 8, 1, groups=4), nn.Linear(8, 5)

        def forward(self, x):
            return self.head(self.grouped(self.b(self.a(x))).mean((2, 3)))

    assert [(g.name, g.unit) for g in autoslim.find_groups(Two(), X).groups] == [("a", 1), ("b", 4), ("grouped", 4)]
    net = autoslim.Supernet(randomized(Two()), X, divisor=1, tie=[("a", "b")])
    assert [(g.name, g.unit) for g in net.groups] == [("a", 4), ("grouped", 4)]
    check_identity(net)


def test_a_group_tied_to_a_frozen_one_is_frozen():
    found = autoslim.find_groups(Net(), X, freeze=["stem"], tie=[("stem", "body.0.0")])
    assert names(found) == ["body.1.0", "body.2.0", "neck", "wide"]


@pytest.mark.parametrize(
    "choice, message",
    [
        ({"freeze": ["stm"]}, r"freeze 'stm' fits no channel group \(closest: 'stem'\)"),
        ({"include": ["bodies"]}, r"include 'bodies' fits no module \(closest: 'body'\)"),
        ({"tie": [["stem", "neck"]]}, r"'stem' \(16 channels\) and 'neck' \(12 channels\) cannot be tied"),
        ({"tie": [["stem"]]}, "names one group"),
        ({"freeze": [3]}, "freeze holds 3"),
        ({"frieze": ["stem"]}, "unknown choice 'frieze'"),
    ],
)
def test_wrong_choices_are_refused(choice, message):
    with pytest.raises(autoslim.AutoSlimError, match=message):
        autoslim.find_groups(Net(), X, **choice)


def test_choices_travel_with_the_configuration(tmp_path):
    model = randomized(Net())
    net = autoslim.Supernet(model, X, divisor=4, freeze=["stem"], tie=[["body.0.0", "body.1.0"]])
    net.narrowest().save(tmp_path / "c.json")
    config = autoslim.ChannelConfig.load(tmp_path / "c.json")
    assert config.grouping == {"freeze": ["stem"], "tie": [["body.0.0", "body.1.0"]]}
    net.set(config)
    torch.testing.assert_close(autoslim.materialize(model, config).eval()(X), net.eval()(X), rtol=1e-4, atol=1e-5)
    document = json.loads((tmp_path / "c.json").read_text())
    (tmp_path / "bad.json").write_text(json.dumps(document | {"grouping": {"freeze": [1]}}))
    with pytest.raises(autoslim.AutoSlimError, match="grouping is not an object"):
        autoslim.ChannelConfig.load(tmp_path / "bad.json")


# Rules of one's own --------------------------------------------------------------------------


class Scale(nn.Module):
    """A module that no tracer follows: it asks for the values of its input."""

    def __init__(self, channels):
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(channels))

    def forward(self, x):
        return x * self.gamma.view(1, -1, 1, 1) if x.abs().sum() >= 0 else x


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.scale, self.b, self.head = nn.Conv2d(3, 16, 3), Scale(16), nn.Conv2d(16, 12, 3), nn.Linear(12, 5)

    def forward(self, x):
        return self.head(self.b(self.scale(self.a(x))).cumsum(1).mean((2, 3)))


def scale_rule(flow, node, module):
    layout = flow.layout(node.args[0])
    flow.weight(node, module, "gamma").bind(0, layout[1])
    flow.member(node, layout[1])
    return layout


def own_rules():
    return {Scale: scale_rule, "cumsum": same}


def test_rules_of_ones_own_for_a_module_and_a_method(monkeypatch, capsys):
    assert names(autoslim.find_groups(Own(), X)) == []
    net = autoslim.Supernet(randomized(Own()), X, divisor=4, rules=own_rules())
    assert [(g.name, g.members) for g in net.groups] == [("a", ("a", "scale")), ("b", ("b",))]
    for config in (net.full(), net.narrowest()):
        net.set(config)
        torch.testing.assert_close(net.eval()(X), autoslim.materialize(net).eval()(X), rtol=1e-4, atol=1e-5)
    monkeypatch.syspath_prepend("tests")
    command = ["inspect", "test_choices:Own", "--input-shape", "3,8,8", "--rules", "test_choices:own_rules", "--json"]
    main(command)
    assert [group["name"] for group in json.loads(capsys.readouterr().out)["groups"]] == ["a", "b"]


def test_choices_on_the_command_line(capsys, monkeypatch):
    monkeypatch.syspath_prepend("tests")
    command = ["inspect", "test_choices:Net", "--input-shape", "3,8,8", "--json"]
    main([*command, "--freeze", "body.*,neck", "--tie", "stem,body.1.0", "--release", "body.1.0"])
    document = json.loads(capsys.readouterr().out)
    assert [group["name"] for group in document["groups"]] == ["stem", "wide"]
    with pytest.raises(SystemExit):
        main([*command, "--freeze", "nothing"])
    assert "freeze 'nothing' fits no channel group" in capsys.readouterr().err


# Networks whose own forward cannot be traced ---------------------------------------------------


class Detector(nn.Module):
    """Picks what it has found by values, as detectors do; its parts can be traced."""

    def __init__(self):
        super().__init__()
        self.backbone, self.neck = Net(), nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 1))
        self.unused = nn.Conv2d(3, 4, 1)

    def forward(self, images):
        x = torch.stack(images)
        score = self.backbone(x).softmax(1)
        return [self.neck(image[None])[0] for image, s in zip(images, score) if s.max() > 0]


IMAGES = [torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(2)]


def test_parts_of_an_untraceable_network_are_slimmed():
    net = autoslim.Supernet(randomized(Detector()), (IMAGES,), divisor=4)
    assert names(net.channels)[:2] == ["backbone.stem", "backbone.body.0.0"] and names(net.channels)[-1] == "neck.0"
    assert "cannot be traced" in net.channels.opaque[""]
    assert frozen(net.channels)["neck.2"] == ("the output of neck, which the rest of the network reads",)
    for config in (net.full(), net.narrowest(), net.random(torch.Generator().manual_seed(1))):
        net.set(config)
        plain = autoslim.materialize(net)
        torch.testing.assert_close(net.eval()(IMAGES), plain.eval()(IMAGES), rtol=1e-4, atol=1e-5)
        assert autoslim.CostTable(net).cost(config).params == sum(p.numel() for p in plain.parameters())
    again = autoslim.materialize(net.source, config, example=(IMAGES,))
    torch.testing.assert_close(again.eval()(IMAGES), plain(IMAGES), rtol=1e-4, atol=1e-5)


def test_choices_reach_the_parts_of_an_untraceable_network():
    def found(**choices):
        return names(autoslim.find_groups(Detector(), (IMAGES,), **choices))

    assert found(include=["neck"]) == ["neck.0"]
    assert found(include=["ne*"]) == ["neck.0"] and "neck.0" not in found(exclude=["neck"])
    assert found(freeze=["backbone.body.*", "neck.0"]) == ["backbone.stem", "backbone.neck", "backbone.wide"]
    assert found(include=["backbone"], tie=["backbone.stem,backbone.body.1.0"]) == found(include=["backbone"], tie=[])[:1] + [
        "backbone.body.0.0",
        "backbone.body.2.0",
        "backbone.neck",
        "backbone.wide",
    ]
    for choice, message in (
        ({"freeze": ["nothing"]}, "freeze 'nothing' fits no"),
        ({"include": ["unused"]}, "does not call 'unused'"),
    ):
        with pytest.raises(autoslim.AutoSlimError, match=message):
            found(**choice)
