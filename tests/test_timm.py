"""A spread of timm's CNN families."""

import warnings

import pytest
import torch
from test_torchvision import check_cost, filled, outputs, some_configs, without_initialisation

import autoslim

timm = pytest.importorskip("timm")

FAMILIES = """
    mobilenetv3_small_050 efficientnet_lite0 tf_efficientnetv2_b0 mixnet_s ghostnet_050 regnetz_005 resnext26ts seresnext26t_32x4d
    eca_resnext26ts resnet26t resnetblur18 resnetv2_18 resnest14d skresnet18 res2net50_26w_4s dla46_c dla60_res2net hrnet_w18_small
    dpn48b ese_vovnet19b_dw cspresnet50 cspdarknet53 darknet17 repvgg_a0 repghostnet_050 nf_resnet26 eca_nfnet_l0
    nf_regnet_b0 convnext_atto convnextv2_atto xception41 inception_v4 inception_next_atto efficientvit_m0 fastvit_t8 mobileone_s0
    tresnet_m selecsls42 edgenext_xx_small rexnetr_200 hgnetv2_b0 starnet_s050 repvit_m0_9 gcresnet33ts cs3darknet_s mobilenetv4_conv_small
"""
# It splits channels into uneven pieces, and these groups stay whole, named.
PARTLY = {"edgenext_xx_small"}


def build(name):
    with warnings.catch_warnings(), without_initialisation():
        warnings.simplefilter("ignore")
        return filled(timm.create_model(name, num_classes=10))


@pytest.mark.parametrize("name", FAMILIES.split())
def test_family(name):
    model = build(name)
    size = 224 if name == "efficientvit_m0" else 96 if "inception_v4" in name else 64
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))
    net = autoslim.Supernet(model, x)
    for config in some_configs(net)[1:4]:
        net.set(config)
        plain = autoslim.materialize(net)
        for training in (False, True):
            for out, expected in zip(outputs(net, x, training), outputs(plain, x, training), strict=True):
                assert expected.isfinite().all()
                torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
        if config == net.narrowest():
            check_cost(net, config, plain, x[:1])
    reasons = {why for group in net.frozen for why in group.frozen}
    if name not in PARTLY:
        assert reasons <= {"the network's output", "it has one channel"}
    net.set(net.random(torch.Generator().manual_seed(3)))
    net.train()
    net(x).square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
