import contextlib
import copy

import pytest
import torch
import tricky
from all_cases import ALL_CASES
from torch import nn
from torch.utils._pytree import tree_leaves
from tricky import call, randomized

import autoslim


@pytest.fixture(params=ALL_CASES, ids=lambda kind: kind.__name__)
def model(request):
    return randomized(request.param())


def supernet(model, **grid):
    return autoslim.Supernet(model, model.inputs(1), **{"divisor": 4, **grid})


def some_configs(net, count=3):
    generator = torch.Generator().manual_seed(1)
    return [net.full(), net.narrowest(), *(net.random(generator) for _ in range(count))]


def outputs(network, inputs, training):
    network.train(training)
    torch.manual_seed(5)
    with torch.no_grad():
        return tree_leaves(call(network, inputs))


def test_supernet_equals_materialized_at_every_configuration(model):
    net = supernet(model)
    inputs = model.inputs(4, torch.Generator().manual_seed(2))
    for config in some_configs(net):
        net.set(config)
        built = (autoslim.materialize(net, config), autoslim.materialize(model, config, example=inputs))
        for training in (False, True):  # each takes one forward in train mode, its last, which changes its own statistics
            expected = outputs(net, inputs, training)
            for plain in built:
                torch.testing.assert_close(outputs(plain, inputs, training), expected, rtol=1e-4, atol=1e-5)


def test_full_width_equals_the_given_model(model):
    inputs = model.inputs(4, torch.Generator().manual_seed(2))
    expected = outputs(model, inputs, False)
    net = supernet(model)
    torch.testing.assert_close(outputs(net, inputs, False), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(outputs(autoslim.materialize(net), inputs, False), expected, rtol=1e-5, atol=1e-6)


def test_materialized_network_holds_no_class_and_no_tensor_of_the_toolkit(model):
    net = supernet(model)
    plain = autoslim.materialize(net, net.narrowest())
    assert not [m for m in plain.modules() if type(m).__module__.startswith("autoslim")]
    assert not [v for m in plain.modules() for v in vars(m).values() if type(v).__module__.startswith("autoslim")]
    mine = {t.data_ptr() for t in (*model.parameters(), *model.buffers()) if t.numel()}
    assert not mine & {t.data_ptr() for t in (*plain.parameters(), *plain.buffers()) if t.numel()}
    assert list(plain.state_dict()) == list(model.state_dict())
    assert [p.requires_grad for p in plain.parameters()] == [p.requires_grad for p in model.parameters()]


def test_layer_sizes_of_the_materialized_network_agree_with_its_tensors(model):
    net = supernet(model)
    for module in autoslim.materialize(net, net.narrowest()).modules():
        if type(module) in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
        elif type(module) is nn.Linear:
            assert module.weight.shape == (module.out_features, module.in_features)
        elif type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) and module.weight is not None:
            assert module.weight.shape == (module.num_features,)


def test_cost_of_computing_falls_with_the_width(model):
    # Every plain conv sees only what is active: no masks.
    net = supernet(model)
    net.set(net.narrowest())
    seen = {}
    for name, module in net.model.named_modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
            module.register_forward_hook(lambda m, x, out, name=name: seen.__setitem__(name, out))
    outputs(net, model.inputs(2), True)
    for name, (full, _, members) in model.groups.items():
        for member in members:
            if member in seen:
                axis = -1 if isinstance(model.get_submodule(member), nn.Linear) else 1
                parts = model.segments.get(member, [(name, full, 1)])
                widths = net.config.widths
                assert seen[member].shape[axis] == sum(size if g is None else widths[g] * share for g, size, share in parts)


def test_the_given_model_is_left_as_it_was(model):
    model.train()
    model.get_submodule("head").eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    flags = {name: module.training for name, module in model.named_modules()}
    kinds = {name: type(module) for name, module in model.named_modules()}
    net = supernet(model)
    outputs(net, model.inputs(4), True)
    net.set(net.narrowest())
    outputs(net, model.inputs(4), True)
    autoslim.materialize(model, net.narrowest(), example=model.inputs(4))
    assert flags == {name: module.training for name, module in model.named_modules()}
    assert kinds == {name: type(module) for name, module in model.named_modules()}
    # Batch norm with statistics inside the supernet keeps none in training, so nothing at all may have changed.
    assert list(state) == list(net.state_dict()) == list(model.state_dict())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_supernet_trains_the_parameters_of_the_model_itself(model):
    net = supernet(model)
    assert {id(p) for p in net.parameters()} == {id(p) for p in model.parameters()}


def active_elements(parts, widths):
    mask = []
    for group, size, share in parts:
        width = size if group is None else int(widths[group] * share)
        mask += [1.0] * width + [0.0] * (size - width)
    return torch.tensor(mask)


def layer_masks(model, widths):
    for name, (full, _, members) in model.groups.items():
        for member in members:
            yield member, active_elements(model.segments.get(member, [(name, full, 1)]), widths)


LAST_AXIS = (nn.Linear, nn.LayerNorm, nn.RMSNorm)


def with_dropped_channels_at_zero(model, widths):
    masked = copy.deepcopy(model)
    own = dict(masked.named_parameters())
    for member, mask in layer_masks(model, widths):
        if member in own:  # a parameter that is no layer's: its one axis of this size
            shape = [size if size == len(mask) else 1 for size in own[member].shape]
            own[member].data *= mask.view(shape)
            continue

        def zero(module, inputs, out, mask=mask):
            last = type(module) in LAST_AXIS
            return out * (mask if last else mask.view(-1, *[1] * (out.dim() - 2)))

        masked.get_submodule(member).register_forward_hook(zero)
    return masked


def test_subnet_equals_the_full_network_with_dropped_channels_at_zero(model):
    net = supernet(model)
    inputs = model.inputs(4, torch.Generator().manual_seed(2))
    # Where a network says that a narrower one is not a masked one, some configuration has to show it.
    with contextlib.nullcontext() if model.masked else pytest.raises(AssertionError, match="not close"):
        for config in some_configs(net):
            expected = outputs(with_dropped_channels_at_zero(model, config.widths), inputs, False)
            net.set(config)
            torch.testing.assert_close(outputs(net, inputs, False), expected, rtol=1e-4, atol=1e-5)


def test_gradients_reach_exactly_the_active_outputs(model):
    net = supernet(model)
    generator = torch.Generator().manual_seed(4)
    config = net.random(generator)
    net.set(config)
    net.train()
    sum(out.square().sum() for out in tree_leaves(call(net, model.inputs(4, generator)))).backward()
    trained = 0
    for member, mask in layer_masks(model, config.widths):
        weight = dict(model.named_parameters()).get(f"{member}.weight")
        if weight is None or weight.grad is None or weight.shape[0] != len(mask):
            continue
        reached = weight.grad.flatten(1).abs().sum(1) if weight.dim() > 1 else weight.grad.abs()
        assert not reached[mask == 0].any()
        trained += reached[mask == 1].count_nonzero()
    assert trained


def test_gradients_equal_those_of_the_materialized_network():
    model = randomized(tricky.Concat())
    net = supernet(model)
    config = net.make_config([4, 8, 12])
    x = model.inputs(4)
    plain = autoslim.materialize(net, config).train()
    plain(x).square().sum().backward()
    with net.using(config):
        net.train()
        net(x).square().sum().backward()
    rows = torch.tensor([0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15])
    torch.testing.assert_close(model.mix.weight.grad[:12][:, rows], plain.mix.weight.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.bn.weight.grad[rows], plain.bn.weight.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.b.weight.grad[:8], plain.b.weight.grad, rtol=1e-4, atol=1e-5)
    assert not model.mix.weight.grad[:, 4:8].any() and not model.mix.weight.grad[12:].any()


def test_training_follows_an_evaluation_at_the_same_configuration():
    model = randomized(tricky.Concat())
    net = supernet(model)
    net.set(net.narrowest())
    autoslim.evaluate(net, [(model.inputs(4), torch.zeros(4, dtype=torch.long))])
    net.train()
    net(model.inputs(4)).sum().backward()
    assert model.mix.weight.grad.any()


def test_state_dict_goes_both_ways():
    model, other = randomized(tricky.Residual(), 1), randomized(tricky.Residual(), 2)
    net = supernet(model)
    net.load_state_dict(other.state_dict())
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())
    other.load_state_dict(net.state_dict())


def test_average_divides_by_the_active_inputs_and_is_folded_when_materialized():
    model = randomized(tricky.Depthwise())
    net = supernet(model, average_inputs=True)
    x = model.inputs(4)
    for config in some_configs(net):
        net.set(config)
        plain = autoslim.materialize(net)
        torch.testing.assert_close(outputs(plain, x, False), outputs(net, x, False), rtol=1e-5, atol=1e-6)
        widths = config.widths
        torch.testing.assert_close(
            plain.project.weight,
            nn.Parameter(model.project.weight[: widths["project"], : widths["expand"]] / widths["expand"]),
        )
        torch.testing.assert_close(plain.depthwise.weight, nn.Parameter(model.depthwise.weight[: widths["expand"]]))
        torch.testing.assert_close(plain.expand.weight, nn.Parameter(model.expand.weight[: widths["expand"]] / 3))
        torch.testing.assert_close(plain.project.bias, nn.Parameter(model.project.bias[: widths["project"]]))
        torch.testing.assert_close(plain.head.weight, nn.Parameter(model.head.weight[:, : widths["project"]]))


# Configurations ----------------------------------------------------------------------------


def test_set_refuses_every_wrong_width_at_once_and_changes_nothing():
    net = supernet(tricky.Chunk())
    net.set({"stem": 8, "left": 4})
    with pytest.raises(autoslim.AutoSlimError) as caught:
        net.set({"stem": 7, "left": 13, "tail": 4})
    assert all(word in str(caught.value) for word in ("'tail' is unknown", "7 channels", "13 of 12"))
    with pytest.raises(autoslim.AutoSlimError, match="'left' is missing"):
        net.set({"stem": 8})
    assert net.config.widths == {"stem": 8, "left": 4}


def test_using_restores_the_widths_after_an_exception():
    net = supernet(tricky.Plain())
    with pytest.raises(KeyError), net.using(net.narrowest()):
        raise KeyError
    assert net.config == net.full()


def test_uniform_rounds_as_the_papers_do():
    # make_divisible(v, 8): nearest multiple, one more when that loses over a tenth.
    def divisible(value):
        rounded = max(8, int(value + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * value else rounded

    for full in range(8, 200, 8):
        for percent in range(5, 100, 5):
            value = full * percent / 100
            assert autoslim.Grid().nearest(value, full) == min(full, divisible(value))


@pytest.mark.parametrize("ratio", [0, -1, 1.01, float("nan")])
def test_uniform_refuses_a_ratio_out_of_range(ratio):
    with pytest.raises(autoslim.AutoSlimError, match="ratio"):
        supernet(tricky.Plain()).uniform(ratio)


def test_random_draws_every_group_on_its_own_from_all_its_choices():
    net = supernet(tricky.Plain())
    generator = torch.Generator().manual_seed(0)
    drawn = {tuple(net.random(generator).widths.values()) for _ in range(400)}
    assert drawn == {(a, b) for a in net.choices["conv1"] for b in net.choices["conv2"]}
    first = net.random(torch.Generator().manual_seed(7))
    assert first == net.random(torch.Generator().manual_seed(7))


def test_materialize_refuses_a_configuration_of_another_model():
    config = supernet(tricky.Plain()).narrowest()
    with pytest.raises(autoslim.AutoSlimError, match="'conv1' is unknown"):
        autoslim.materialize(tricky.Residual(), config)
    with pytest.raises(autoslim.AutoSlimError, match="needs a configuration"):
        autoslim.materialize(tricky.Plain())


def test_a_norm_without_momentum_is_traced():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16, momentum=None), nn.Flatten(), nn.Linear(16 * 36, 5))
    net = autoslim.Supernet(model, torch.randn(1, 3, 8, 8))
    assert [group.name for group in net.groups] == ["0"] and model[1].momentum is None and net.model[1].momentum is None
