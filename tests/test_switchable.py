"""Networks of a few fixed widths with batch norms of their own: against the plain networks of those widths."""

import copy

import pytest
import torch
import torch.nn.functional as F
import tricky
from torch import nn
from tricky import randomized

import autoslim
from autoslim.models import mobilenet_v1
from autoslim.slimmable.family import switch_configs
from autoslim.slimmable.switchable import join_configs
from autoslim.spaces import load_space
from autoslim.training.checkpoint import load_weights

X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(3))
Y = torch.tensor([0, 1, 2, 3, 4, 0])


def switchable(kind=tricky.Residual, norm="private", ratios=(1.0, 0.5, 0.25)):
    torch.manual_seed(1)
    net = autoslim.Supernet(randomized(kind()), X[:1], divisor=4)
    return autoslim.SwitchableNet(net, {ratio: net.uniform(ratio) for ratio in ratios}, norm=norm)


def batches(count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(6, 3, 8, 8, generator=generator), Y) for _ in range(count)]


@pytest.mark.parametrize("kind", [tricky.Plain, tricky.Residual, tricky.Concat, tricky.Shuffle, tricky.ConcatTwice])
@pytest.mark.parametrize("norm", ["private", "statistics"])
def test_every_switch_is_the_plain_network_of_its_width_with_statistics_of_its_own(kind, norm):
    net = switchable(kind, norm)
    plain = {name: net.materialize(name).train() for name in net.switches}
    net.train()
    for x, _ in batches():
        for name in net.switches:
            net.set(name)
            torch.testing.assert_close(net(x), plain[name](x), rtol=1e-4, atol=1e-5)
    net.eval()
    for name in net.switches:
        net.set(name)
        torch.testing.assert_close(net(X), plain[name].eval()(X), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(net.materialize(name)(X), plain[name](X), rtol=1e-4, atol=1e-5)
        assert not any("autoslim" in type(module).__module__ for module in net.materialize(name).modules())


@pytest.mark.parametrize("kind", [tricky.Plain, tricky.Concat])
def test_shared_norms_mix_the_statistics_of_all_switches(kind):
    net = switchable(kind, "shared", (1.0, 0.5)).train()
    layer = next(m for m in net.net.model.modules() if isinstance(m, nn.BatchNorm2d))
    mean = layer._buffers["running_mean"].clone()
    seen = []
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    for name in net.switches:
        net.set(name)
        net(X)
    wide, narrow = (x.mean((0, 2, 3)) for x in seen)
    net.set(0.5)
    (axis,) = layer._slimming.axes["running_mean"]
    active = axis.index(torch.device("cpu"))
    expected = 0.9 * mean + 0.1 * wide  # the moving average of BatchNorm2d
    expected[active] = 0.9 * expected[active] + 0.1 * narrow
    torch.testing.assert_close(layer._buffers["running_mean"], expected, rtol=1e-4, atol=1e-5)
    net.net.set(net.net.full())


def test_reads_between_training_steps_lose_no_statistics():
    nets = [switchable(tricky.Concat, "shared", (1.0, 0.5)).train() for _ in range(2)]
    for _ in range(2):
        for net in nets:
            for name in net.switches:
                net.set(name)
                net(X).sum().backward()
        nets[1].materialize(0.5)
        nets[1].set(0.5)
        nets[1].eval()(X)
        nets[1].train()
    for key, value in nets[0].state_dict().items():
        assert torch.equal(value, nets[1].state_dict()[key]), key


def test_joint_gradients_are_the_sum_over_the_plain_networks():
    net = switchable()
    expected = {name: torch.zeros_like(p) for name, p in net.net.model.named_parameters()}
    private = {}
    for name in net.switches:
        plain = net.materialize(name).train()
        F.cross_entropy(plain(X), Y).backward()
        for key, p in plain.named_parameters():
            if "bn" in key:
                private[f"switches.{name}.{key}"] = p.grad
            else:
                expected[key][tuple(slice(n) for n in p.shape)] += p.grad
    before = {key: value.clone() for key, value in net.state_dict().items()}
    rows = autoslim.train_switches(
        net, [(X, Y)], from_scratch=False, epochs=1, lr=0.1, schedule="constant", weight_decay=0.0, momentum=0.0, nesterov=False
    )
    after = net.state_dict()
    for key, gradient in {**private, **{k: g for k, g in expected.items() if "bn" not in k}}.items():
        torch.testing.assert_close(after[key], before[key] - 0.1 * gradient, rtol=1e-4, atol=1e-5)
    assert set(rows[0]) >= {"loss_1", "accuracy_1", "loss_0.5", "accuracy_0.5", "loss_0.25", "accuracy_0.25"}
    assert rows[0]["loss"] == pytest.approx((rows[0]["loss_1"] + rows[0]["loss_0.5"] + rows[0]["loss_0.25"]) / 3)


def test_shared_scale_and_bias_learn_from_every_switch():
    net = switchable(norm="statistics")
    expected = 0.0
    for name in net.switches:
        plain = net.materialize(name).train()
        F.cross_entropy(plain(X), Y).backward()
        expected = expected + F.pad(plain.bn_a.weight.grad, (0, 12 - plain.bn_a.num_features))
    before = net.net.model.bn_a._parameters["weight"].clone()
    autoslim.train_switches(
        net, [(X, Y)], from_scratch=False, epochs=1, lr=0.1, schedule="constant", weight_decay=0.0, momentum=0.0, nesterov=False
    )
    torch.testing.assert_close(net.net.model.bn_a._parameters["weight"], before - 0.1 * expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm, expected", [("private", 4_264_808), ("statistics", 4_231_976), ("shared", 4_231_976)], ids=str)
def test_parameters_are_the_shared_weights_and_the_norms_of_every_switch(norm, expected):
    # Slimmable Networks, table 3: 4.3M for the four switches of MobileNet v1.
    with torch.device("meta"):
        net = autoslim.Supernet(mobilenet_v1(), torch.zeros(1, 3, 224, 224))
        switches = {f"{w:g}": net.uniform(w) for w in (1.0, 0.75, 0.5, 0.25)}
        found = autoslim.SwitchableNet(net, switches, norm=norm)
    assert sum(p.numel() for p in found.parameters()) == expected
    assert sum(t.numel() for k, t in found.state_dict().items() if "running" not in k and "num_batches" not in k) == expected


def test_a_norm_that_is_equally_wide_everywhere_may_share_scale_and_bias_but_no_statistics():
    # 3,556,456: the published S-MobileNet v2, whose last batch norm (1280) has one scale and bias for all four switches.
    space = load_space("mobilenet_v2")
    configs = switch_configs(space, space.s_net["switches"])
    with torch.device("meta"):
        net = autoslim.Supernet(space.build(1.0), torch.zeros(1, 3, 224, 224))
        found = autoslim.SwitchableNet(net, configs, share_equal=True)
        assert sum(p.numel() for p in found.parameters()) == 3_556_456
        own = autoslim.SwitchableNet(net, configs)
        assert sum(p.numel() for p in own.parameters()) == 3_556_456 + 3 * 2 * 1280
    torch.manual_seed(1)
    base = autoslim.Supernet(randomized(tricky.Residual()), X[:1], divisor=4)
    net = autoslim.SwitchableNet(
        base, {"a": base.make_config([16, 12]), "b": base.make_config([16, 4])}, share_equal=True
    ).train()
    net(X)
    net.set("b")
    net(X)
    state = net.state_dict()
    assert "bn.weight" in state and "switches.a.bn.weight" not in state and "switches.a.bn_a.weight" in state
    assert not torch.equal(state["switches.a.bn_b.running_mean"], state["switches.b.bn_b.running_mean"])


def test_switching_copies_nothing_and_width_mult_names_the_switch():
    net = switchable()
    pointers = {}
    for width in (1.0, 0.25, 0.5, 0.25):
        net.width_mult = width
        conv, norm = net.net.model.a, net.net.model.bn_a
        assert conv.weight.data_ptr() == net.source.a.weight.data_ptr()
        assert pointers.setdefault(width, norm.running_mean.data_ptr()) == norm.running_mean.data_ptr()
        assert (net.width_mult, net.switch) == (width, f"{width:g}")
        assert norm.weight.shape == conv.weight.shape[:1]
    with pytest.raises(autoslim.AutoSlimError, match="switch '0.3' is unknown; pass one of 1, 0.5, 0.25"):
        net.set(0.3)
    assert net.switch == "0.25"


@pytest.mark.parametrize("norm", ["private", "statistics", "shared"])
def test_state_comes_back(norm, tmp_path):
    net, other = switchable(norm=norm), switchable(norm=norm)
    autoslim.train_switches(net, batches(), folder=tmp_path, epochs=2, lr=0.1)
    load_weights(tmp_path / "checkpoint.pt", "switches", other)
    for name in net.switches:
        net.set(name)
        other.set(name)
        assert torch.equal(net.eval()(X), other.eval()(X))
    with pytest.raises(RuntimeError, match="do not fit"):
        other.load_state_dict({**net.state_dict(), "more": X})
    with pytest.raises(autoslim.AutoSlimError, match="holds a switches, not a network"):
        load_weights(tmp_path / "checkpoint.pt", "network", tricky.Residual())


def test_a_resumed_joint_training_equals_an_uninterrupted_one(tmp_path):
    whole, first, second = switchable(), switchable(), switchable()
    autoslim.train_switches(whole, batches(), folder=tmp_path / "a", epochs=3, lr=0.1)

    class Stops(list):
        def set_epoch(self, epoch):
            if epoch == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        autoslim.train_switches(first, Stops(batches()), folder=tmp_path / "b", epochs=3, lr=0.1)
    autoslim.train_switches(second, batches(), folder=tmp_path / "b", epochs=3, lr=0.1)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


def test_fresh_weights_reach_private_norms():
    net = switchable()
    for norm in net.norms[1]:
        nn.init.constant_(norm.weight, 7.0)
    autoslim.initialize(net, seed=0)
    assert all(torch.equal(norm.weight, torch.ones_like(norm.weight)) for norms in net.norms for norm in norms)


def test_a_copy_is_a_network_of_its_own():
    net = switchable()
    twin = copy.deepcopy(net)
    for name in net.switches:
        net.set(name)
        twin.set(name)
        assert torch.equal(net.eval()(X), twin.eval()(X))
    with torch.no_grad():
        twin.norms[2][0].bias += 1
    assert not torch.equal(net(X), twin(X))


def test_the_supernet_keeps_its_own_widths_and_statistics():
    torch.manual_seed(1)
    base = autoslim.Supernet(randomized(tricky.Residual()), X[:1], divisor=4)
    half = base.uniform(0.5)
    before = autoslim.materialize(base, half).eval()(X)
    net = autoslim.SwitchableNet(base, {1.0: base.full(), 0.5: half}).train()
    for name in (0.5, 1.0):
        net.set(name)
        net(X)
    assert base.config == base.full()
    with base.using(half):
        assert torch.equal(base.eval()(X), before) and torch.equal(autoslim.materialize(base, half).eval()(X), before)
    assert net.net.source.stem.weight is base.source.stem.weight


def test_inside_another_module_state_and_parameters_are_found():
    whole = nn.Sequential(switchable(), nn.Linear(5, 2))
    assert set(whole.state_dict()) == {f"0.{key}" for key in whole[0].state_dict()} | {"1.weight", "1.bias"}


def test_calibration_of_a_switch_touches_only_its_own_statistics():
    net = switchable()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net.set(0.5)
    autoslim.calibrate(net, batches())
    changed = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and all(key.startswith("switches.0.5.") and "running" in key for key in changed)
    plain = autoslim.calibrate(net.materialize(0.5), batches())
    torch.testing.assert_close(net.eval()(X), plain.eval()(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", [tricky.Residual, tricky.Concat])
def test_a_switch_with_shared_norms_is_calibrated_as_the_plain_network_is(kind, count):
    net = switchable(kind, norm="shared")
    expected = autoslim.calibrate(net.materialize(0.5), batches(count)).eval()(X)
    net.set(0.5)
    autoslim.calibrate(net, batches(count))
    torch.testing.assert_close(net.materialize(0.5).eval()(X), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net.eval()(X), expected, rtol=1e-4, atol=1e-5)


def test_joined_configurations_are_as_wide_as_the_widest_of_each_group():
    torch.manual_seed(1)
    net = autoslim.Supernet(randomized(tricky.Residual()), X[:1], divisor=4)
    names = [group.name for group in net.groups]
    wide = net.make_config([12, 4])
    other = net.make_config([4, 8])
    joint = join_configs(net, {"other": other, "wide": wide}, X[:1])
    assert list(joint.switches) == ["wide", "other"]
    assert {name: joint.net.full().widths[name] for name in names} == dict(zip(names, (12, 8)))
    for name, config in (("wide", wide), ("other", other)):
        joint.set(name)
        torch.testing.assert_close(joint.eval()(X), autoslim.materialize(net, config).eval()(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"norm": "mine"}, "norm 'mine' is unknown; pass one of private, statistics, shared"),
        ({"ratios": ()}, "need at least one name"),
        ({"ratios": (0.5, 0.50000001)}, "names that differ"),
    ],
)
def test_what_cannot_be_switched_is_refused(options, message):
    with pytest.raises(autoslim.AutoSlimError, match=message):
        switchable(**options)
