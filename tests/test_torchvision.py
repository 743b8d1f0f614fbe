import warnings

import pytest
import torch
import torchvision
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils._pytree import tree_leaves

import autoslim

# Groups counted by hand: stages (or stem, stages and head) plus the inner widths of the blocks.
MODELS = {
    "mobilenet_v2": 1 + 1 + 16 + 6 + 1,
    "mnasnet1_0": 1 + 1 + 16 + 6 + 1,
    "resnet18": 4 + 8,
    "resnet50": 1 + 4 + 16 * 2,
    "densenet121": 1 + 58 * 2 + 3,
    "shufflenet_v2_x1_0": 1 + 3 + 16 + 1,
    "efficientnet_b0": 1 + 7 + 15 + 16 + 1,
    "squeezenet1_1": 1 + 8 * 3,
    "vgg11_bn": 8 + 2,
    "googlenet": 3 + 9 * 6 + 2 * 2,
    "regnet_y_400mf": 1 + 4 + 16 * 3,
    "convnext_tiny": 18,
}


@pytest.fixture(scope="module", params=MODELS)
def built(request):
    torch.manual_seed(0)
    name = request.param
    model = getattr(torchvision.models, name)(weights=None, **({"init_weights": False} if name == "googlenet" else {}))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.1)
    size = 96 if name == "googlenet" else 64
    return name, autoslim.Supernet(model, torch.randn(1, 3, size, size)), torch.randn(3, 3, size, size)


def outputs(network, x, training):
    network.train(training)
    torch.manual_seed(5)  # dropout and stochastic depth
    with torch.no_grad():
        return tree_leaves(network(x))


def some_configs(net):
    return [net.narrowest(), net.random(torch.Generator().manual_seed(1))]


def test_supernet_equals_materialized(built):
    _, net, x = built
    for config in some_configs(net):
        plain = autoslim.materialize(net, config)
        assert not [m for m in plain.modules() if type(m).__module__.startswith("autoslim")]
        net.set(config)
        # Train mode last: it moves the statistics of the plain network.
        for training in (False, True):
            # Dropout draws one number a value, so both networks draw the same.
            for out, expected in zip(outputs(net, x, training), outputs(plain, x, training), strict=True):
                torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_cost_equals_fvcore(built):
    _, net, x = built
    table = autoslim.CostTable(net)
    for config in some_configs(net):
        plain = autoslim.materialize(net, config).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing warns about what it cannot see; that is fvcore's business
            analysis = FlopCountAnalysis(plain, x[:1]).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            rows = analysis.by_operator()
        cost = table.cost(config)
        assert cost.macs == rows["conv"] + rows["linear"]
        assert cost.params == sum(p.numel() for p in plain.parameters())


def test_groups_are_as_many_as_counted_and_the_frozen_have_reasons(built):
    name, net, _ = built
    assert len(net.groups) == MODELS[name]
    assert all(group.frozen and all(group.frozen) for group in net.frozen)
    outputs_of = {"googlenet": {"fc", "aux1.fc2", "aux2.fc2"}}.get(name)
    if name == "convnext_tiny":
        # Every stage passes a LayerNorm, whose channels lie on the last axis.
        assert len(net.frozen) == 6 and any("layer_norm" in "".join(g.frozen) for g in net.frozen)
    elif outputs_of:
        assert {g.name for g in net.frozen} == outputs_of
    else:
        (head,) = net.frozen
        assert head.frozen == ("the network's output",)


def test_every_layer_of_a_group_gets_narrower(built):
    _, net, _ = built
    plain = autoslim.materialize(net, net.narrowest())
    for group in net.groups:
        for member in group.members if len(net.choices[group.name]) > 1 else ():
            assert plain.get_submodule(member).weight.shape[0] < net.model.get_submodule(member).weight.shape[0], member
