"""Every CNN of torchvision: classifiers, segmentation, video, and detectors through their backbones."""

import contextlib
import warnings

import pytest
import torch
import torchvision
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils._pytree import tree_leaves
from torchvision.models import segmentation

import autoslim

NO_CNN = ("vit_", "swin", "maxvit")
CLASSIFIERS = [n for n in torchvision.models.list_models(module=torchvision.models) if not n.startswith(NO_CNN)]
SEGMENTERS = torchvision.models.list_models(module=segmentation)
VIDEO = ["r3d_18", "mc3_18", "r2plus1d_18"]
DETECTORS = ["fasterrcnn_mobilenet_v3_large_fpn", "ssdlite320_mobilenet_v3_large", "retinanet_resnet50_fpn", "fcos_resnet50_fpn"]
# The smallest inputs that the poolings of these leave something of.
SIZES = {"inception_v3": 299, "googlenet": 96, "alexnet": 64}

# Groups counted by hand: stages (or stem, stages and head) plus the inner widths of the blocks.
COUNTED = {
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
    "convnext_tiny": 4 + 18,
    "deeplabv3_resnet50": 1 + 4 + 16 * 2 + 5 + 1 + 1 + 1,
}


@contextlib.contextmanager
def without_initialisation():
    """Leave out the networks' own initialisations, which take longer than all the rest."""
    keep = {key: getattr(nn.init, key) for key in ("normal_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_", "uniform_")}
    try:
        for key in keep:
            setattr(nn.init, key, lambda tensor, *args, **kwargs: tensor)
        yield
    finally:
        for key, function in keep.items():
            setattr(nn.init, key, function)


@torch.no_grad()
def filled(model):
    """Give every parameter and statistic a value of its own, at a scale that neither dies nor explodes."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.uniform_(-1, 1, generator=generator).mul_((4.5 / parameter[0].numel()) ** 0.5)
        else:
            parameter.uniform_(0.2, 0.8, generator=generator)
    for key, buffer in model.named_buffers():
        if key.endswith("running_mean"):
            buffer.uniform_(-0.1, 0.1, generator=generator)
        elif key.endswith("running_var"):
            buffer.uniform_(0.5, 1.5, generator=generator)
    return model


def build(name):
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name in SEGMENTERS or name in DETECTORS:
        extra = {"weights_backbone": None}
    if name in DETECTORS and not name.startswith("ssd"):
        extra |= {"min_size": 64, "max_size": 96}
    if name in SEGMENTERS and not name.startswith("lraspp"):
        extra["aux_loss"] = True
    with without_initialisation():
        return filled(torchvision.models.get_model(name, weights=None, **extra))


def example(name, count=2):
    generator = torch.Generator().manual_seed(2)
    if name in VIDEO:
        return torch.randn(count, 3, 4, 32, 32, generator=generator)
    size = SIZES.get(name, 32 if "resn" in name or "regnet" in name else 64)
    return torch.randn(count, 3, size, size, generator=generator)


def outputs(network, x, training):
    network.train(training)
    torch.manual_seed(5)  # dropout and stochastic depth draw one number a value, so both networks draw the same
    with torch.no_grad():
        return tree_leaves(network(x))


def some_configs(net):
    generator = torch.Generator().manual_seed(1)
    return [net.full(), net.narrowest(), *(net.random(generator) for _ in range(3))]


def check_cost(net, config, plain, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns about what it cannot see; that is fvcore's business
        analysis = FlopCountAnalysis(plain.eval(), x).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        rows = analysis.by_operator()
    cost = autoslim.CostTable(net).cost(config)
    assert cost.macs == rows["conv"] + rows["linear"]
    assert cost.params == sum(p.numel() for p in plain.parameters())


@pytest.mark.parametrize("name", [*CLASSIFIERS, *SEGMENTERS, *VIDEO])
def test_every_network_runs_at_any_width_as_its_plain_self(name):
    model, x = build(name), example(name)
    net = autoslim.Supernet(model, x)
    for config in some_configs(net):
        net.set(config)
        plain = autoslim.materialize(net)
        assert not [m for m in plain.modules() if type(m).__module__.startswith("autoslim")]
        # Train mode last: it moves the statistics of the plain network.
        for training in (False, True):
            for out, expected in zip(outputs(net, x, training), outputs(plain, x, training), strict=True):
                assert expected.isfinite().all()
                torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
        if config == net.narrowest():
            check_cost(net, config, plain, x[:1])
            for group in net.groups:
                for member in group.members if len(net.choices[group.name]) > 1 else ():
                    full, slim = (dict(n.named_parameters()) for n in (model, plain))
                    key = f"{member}.weight" if f"{member}.weight" in full else member
                    assert slim[key].numel() < full[key].numel(), member
    assert len(net.groups) == COUNTED.get(name, len(net.groups))
    # All that stays whole is what the network returns.
    assert {why for group in net.frozen for why in group.frozen} == {"the network's output"}
    table = autoslim.CostTable(net)
    assert table.cost(net.narrowest()).macs < 0.15 * table.cost(net.full()).macs


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_are_slimmed_through_their_backbone(name):
    model, images = build(name), ([torch.rand(3, 48, 64), torch.rand(3, 64, 48)],)
    net = autoslim.Supernet(model, images, include=["backbone"])
    assert len(net.groups) > 25 and all(group.name.startswith("backbone.") for group in net.groups)
    net.set(net.random(torch.Generator().manual_seed(1)))
    plain = autoslim.materialize(net).eval()
    with torch.no_grad():
        for ours, expected in zip(net.eval()(*images), plain(*images), strict=True):
            torch.testing.assert_close(ours, expected)
    assert autoslim.CostTable(net).cost(net.config).params == sum(p.numel() for p in plain.parameters())
