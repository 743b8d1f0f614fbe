"""Every integer that the papers print or imply for their networks, and the channel lists behind them."""

import functools
import json

import pytest
import torch
import torchvision
from published_lists import FOLDER, LISTS, config
from tricky import randomized

import autoslim
from autoslim.channels.grid import Grid
from autoslim.channels.layer_lists import ListOrder
from autoslim.commands.import_ import import_config
from autoslim.commands.profile import full_cost, plain_costs
from autoslim.commands.retrain import load_network
from autoslim.cost.layers import layer_params, norm_params, pooling_macs, slimmable_params
from autoslim.errors import AutoSlimError
from autoslim.models import mnasnet, resnet50, shufflenet
from autoslim.slimmable.family import width_config
from autoslim.slimmable.materialize import example_input
from autoslim.spaces import find_config, load_space, published_configs
from cli import printed, refused, run

# MACs of conv and linear layers, the same with average pooling, parameters of conv and linear layers, of batch norms.
UNIFORM = {
    ("mobilenet_v1", 1.0): (568_740_352, 568_790_528, 4_210_088, 21_888),
    ("mobilenet_v1", 0.75): (325_400_448, 325_438_080, 2_569_144, 16_416),
    ("mobilenet_v1", 0.5): (149_497_088, 149_522_176, 1_320_648, 10_944),
    ("mobilenet_v1", 0.25): (41_030_272, 41_042_816, 464_600, 5_472),
    ("mobilenet_v2", 1.0): (300_774_272, 300_836_992, 3_470_760, 34_112),
    ("mobilenet_v2", 0.75): (209_069_792, 209_132_512, 2_609_784, 26_640),
    ("mobilenet_v2", 0.5): (97_131_840, 97_194_560, 1_950_136, 18_544),
    ("mobilenet_v2", 0.35): (59_285_808, 59_348_528, 1_663_048, 14_080),
    ("mobilenet_v2", 1.3): (509_374_560, 509_456_096, 5_342_536, 44_256),
    ("mnasnet", 1.0): (314_415_872, 314_478_592, 4_345_392, 37_920),
    ("mnasnet", 0.75): (215_493_104, 215_555_824, 3_140_400, 29_808),
    ("mnasnet", 1.3): (534_573_888, 534_655_424, 6_777_184, 49_584),
    ("resnet50", 1.0): (4_089_184_256, 4_089_284_608, 25_503_912, 53_120),
    ("resnet50", 0.75): (2_322_677_760, 2_322_753_024, 14_732_152, 39_840),
    ("resnet50", 0.5): (1_052_311_552, 1_052_361_728, 6_891_080, 26_560),
    ("resnet50", 0.25): (278_085_632, 278_110_720, 1_980_696, 13_280),
    ("shufflenet", 2.0): (523_405_824, 524_209_584, 5_401_816, 48_960),
    ("shufflenet", 1.0): (137_300_832, 137_702_712, 1_841_248, 24_480),
    ("shufflenet", 0.5): (37_549_896, 37_750_836, 706_084, 12_240),
}
SUPERNETS = {
    ("mobilenet_v1", 1.1): (681_724_280, 4_959_816, 4_983_832),
    ("mobilenet_v1", 1.5): (1_257_729_792, 8_669_320, 8_702_152),
    ("mobilenet_v2", 1.5): (672_832_704, 6_806_776, 6_858_152),
    ("mnasnet", 1.5): (702_303_264, 8_714_440, 8_771_704),
}
SLIMMABLE = {"mobilenet_v1": 4_264_808, "mobilenet_v2": 3_556_456, "shufflenet": 5_487_496, "resnet50": 25_636_712}
CIFAR = {
    1.0: (87_976_448, 2_236_682),
    0.75: (59_310_080, 1_368_234),
    0.5: (27_969_024, 700_490),
    1.5: (199_628_544, 4_956_362),
}
SPECTRA = {
    "mobilenet_v1": {
        1.0: 568_740_352,
        0.9: 466_186_760,
        0.8: 366_262_312,
        0.75: 325_400_448,
        0.7: 287_160_280,
        0.6: 217_021_560,
        0.5: 149_497_088,
        0.4: 100_029_704,
        0.25: 41_030_272,
    },
    "mobilenet_v2": {
        1.0: 300_774_272,
        0.9: 269_021_488,
        0.8: 222_482_464,
        0.75: 209_069_792,
        0.7: 173_642_400,
        0.6: 150_958_928,
        0.5: 97_131_840,
        0.4: 80_695_280,
        0.35: 59_285_808,
    },
}
SEARCHED = {
    "mobilenet_v1-325M": (324_756_536, 324_811_808, 3_983_064, 18_384),
    "mobilenet_v1-572M": (572_070_904, 572_126_176, 4_633_088, 22_544),
    "mobilenet_v2-207M": (206_767_048, 206_861_128, 4_093_568, 31_536),
    "mobilenet_v2-305M": (305_072_416, 305_166_496, 5_730_008, 37_280),
    "mnasnet-217M": (217_220_648, 217_283_368, 4_001_952, 33_808),
    "mnasnet-532M": (531_773_072, 531_867_152, 8_286_768, 52_192),
    "resnet50-570M": (570_004_736, 570_087_056, 7_386_096, 31_008),
    "resnet50-2.0G": (2_006_045_440, 2_006_144_224, 20_561_504, 46_832),
    "resnet50-3.0G": (3_004_547_840, 3_004_646_624, 23_134_584, 50_480),
}
GROUPS = {"mobilenet_v1": 14, "mobilenet_v2": 25, "mnasnet": 25, "resnet50": 37, "shufflenet": 17}
CIFAR_SPACES = ["mobilenet_v1_cifar", "mobilenet_v2_cifar", "mnasnet_cifar", "resnet50_cifar", "shufflenet_cifar"]


@functools.cache
def costs(space: str, width: float) -> dict[str, int]:
    loaded = load_space(space)
    with torch.device("meta"):
        model, example = loaded.build(width), torch.zeros(1, *loaded.input_shape)
    return plain_costs(model, example, full_cost(model, example))


@functools.cache
def supernet(space: str) -> autoslim.Supernet:
    loaded = load_space(space)
    with torch.device("meta"):
        return autoslim.Supernet(loaded.build(), torch.zeros(1, *loaded.input_shape), **loaded.grid)


def assert_counts(found: dict[str, int], macs: int, pooled: int, layers: int, norms: int) -> None:
    keys = ("macs", "macs_with_pooling", "layer_params", "norm_params", "params", "weight_bytes")
    assert [found[key] for key in keys] == [macs, pooled, layers, norms, layers + norms, 4 * (layers + norms)]


@pytest.mark.parametrize("space, width", UNIFORM)
def test_uniform_networks(space, width):
    assert_counts(costs(space, width), *UNIFORM[space, width])


@pytest.mark.parametrize("space, width", SUPERNETS)
def test_supernets(space, width):
    found = costs(space, width)
    assert (found["macs"], found["layer_params"], found["params"]) == SUPERNETS[space, width]


@pytest.mark.parametrize("space", SPECTRA)
def test_universally_slimmable_spectrum(space):
    net, loaded = supernet(space), load_space(space)
    table = autoslim.CostTable(net)
    assert {width: table.cost(width_config(loaded, net, width)).macs for width in SPECTRA[space]} == SPECTRA[space]


@pytest.mark.parametrize("width", CIFAR)
def test_cifar_budgets(width):
    found = costs("mobilenet_v2_cifar", width)
    assert (found["macs"], found["params"]) == CIFAR[width]


@pytest.mark.parametrize("space", SLIMMABLE)
def test_parameters_of_slimmable_networks(space):
    loaded = load_space(space)
    with torch.device("meta"):
        total = slimmable_params([loaded.build(width) for width in loaded.s_net["switches"]])
    assert total["params"] == SLIMMABLE[space] == total["layer_params"] + total["norm_params"]


def test_switches_of_a_space_and_of_the_user(capsys):
    assert run("profile", "mobilenet_v1", "--switches") == 0
    table = capsys.readouterr().out
    assert "4,264,808" in table and "568,790,528" in table and "464,600" in table
    document = printed(capsys, "profile", "mobilenet_v1", "--switches", "1.0,0.5")
    for row, width in zip(document["switches"], (1.0, 0.5), strict=True):
        assert row["width"] == width
        assert_counts(row, *UNIFORM["mobilenet_v1", width])
    norms = 21_888 + 10_944
    assert document["slimmable"] == {"layer_params": 4_210_088, "norm_params": norms, "params": 4_210_088 + norms}


@pytest.mark.parametrize("text", ["0.5,0.5", "", "0.5,x", "0,1", "nan"])
def test_switches_that_are_none(text, capsys):
    assert f"{text!r} is no list of different width multipliers" in refused(
        capsys, "profile", "mobilenet_v1", "--switches", text, code=2
    )


def test_pooling_counts_inputs_of_modules_and_functions():
    class Pools(torch.nn.Module):
        def forward(self, x):
            y = torch.nn.functional.avg_pool2d(input=x, kernel_size=2)
            y = torch.nn.functional.adaptive_avg_pool2d(y, 2)
            return torch.nn.AvgPool2d(2)(torch.nn.MaxPool2d(1)(y))

    assert pooling_macs(Pools(), torch.zeros(3, 5, 8, 8)) == 5 * (64 + 16 + 4)


def test_layers_and_norms_count_shared_parameters_once():
    conv, norm = torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)
    model = torch.nn.Sequential(conv, norm, torch.nn.GroupNorm(2, 4), torch.nn.Sequential(norm))
    assert (layer_params(model), norm_params(model)) == (16, 8)
    assert slimmable_params([model, model])["params"] == 16 + 8 + 8


@pytest.mark.parametrize("space", GROUPS)
def test_groups(space):
    net = supernet(space)
    assert len(net.groups) == GROUPS[space]
    assert [len(group.frozen) for group in net.frozen] == [1]  # the classes
    cifar = supernet(f"{space}_cifar")
    assert [(g.name, g.full, g.members) for g in cifar.groups] == [(g.name, g.full, g.members) for g in net.groups]


@pytest.mark.parametrize("name", LISTS)
def test_published_list(name, capsys):
    shipped = autoslim.ChannelConfig.load(find_config(name))
    assert shipped.to_json() == config(name).to_json()
    network, cost = load_network(shipped, name)
    assert_counts(plain_costs(network, example_input(shipped), cost), *SEARCHED[name])
    assert shipped.cost == cost.to_json()
    assert shipped.provenance["kind"] == "published"
    assert f"{cost.macs / 1e9:.1f}G" == LISTS[name].flops or f"{cost.macs / 1e6:.0f}M" == LISTS[name].flops
    grid = Grid(**load_space(LISTS[name].space).grid)
    assert all(chosen in grid.choices(full) for chosen, full in shipped.channels.values())


def test_lists_of_a_family_are_nested():
    # One greedy pass finds them all.
    names = list(LISTS)
    for small, large in zip(names, names[1:]):
        if LISTS[small].space == LISTS[large].space:
            wide = autoslim.ChannelConfig.load(find_config(large)).widths
            assert all(width <= wide[g] for g, width in autoslim.ChannelConfig.load(find_config(small)).widths.items())


def test_published_configurations_go_by_path_and_by_name(capsys):
    assert list(published_configs()) == sorted(LISTS)
    assert find_config("mobilenet_v2-305M") == FOLDER / "mobilenet_v2-305M.json"
    for name in ("mobilenet_v2-305M", FOLDER / "mobilenet_v2-305M.json"):
        assert_counts(printed(capsys, "profile", name), *SEARCHED["mobilenet_v2-305M"])
    assert run("profile", "mobilenet_v2-305M", "--width", "1.0") == 2
    assert "states its channels" in capsys.readouterr().err
    with pytest.raises(AutoSlimError, match=r"does not exist \(closest: 'mobilenet_v2-305M'\); .* mnasnet-217M, mnasnet-532M"):
        find_config("mobilenet_v2-305")
    of = {space["name"]: space["published"] for space in printed(capsys, "spaces")}
    assert of["mobilenet_v2"] == ["mobilenet_v2-207M", "mobilenet_v2-305M"]
    assert of["shufflenet"] == []
    assert run("spaces") == 0
    assert "resnet50-2.0G" in capsys.readouterr().out


def test_order_of_resnet50_is_the_published_one():
    net = supernet("resnet50")
    order = load_space("resnet50").lists["layers"]
    told, run_order = ListOrder.of(net.channels, net.source, order), ListOrder.of(net.channels, net.source)
    assert len(order) == 53 and told.classes == run_order.classes == 1000
    assert [position.layer for position in told.positions] == order
    assert {position.layer for position in run_order.positions} == set(order)
    assert [position.layer for position in run_order.positions][:5] == [
        "conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.0.conv3", "layer1.0.downsample.0",
    ]  # fmt: skip
    with pytest.raises(AutoSlimError, match="'conv9' is no conv .*; no layer stands for group 'conv1'; correct"):
        ListOrder.of(net.channels, net.source, ["conv9", *order[1:]])


def import_fails(space: str, text: str) -> str:
    with pytest.raises(AutoSlimError) as caught:
        import_config(load_space(space), channels=text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_all_faults_of_a_list_come_in_one_line():
    assert import_fails("mobilenet_v1", "16 33 48 64 112 x 320 0 320 416 464 -8 1128 1136 999") == (
        "channel list: 6 faults: position 2 (blocks.0.pointwise) is 33, not a multiple of 8; "
        "position 6 (blocks.4.pointwise) is x, not a whole number; position 8 (blocks.6.pointwise) is 0, below 1; "
        "position 12 (blocks.10.pointwise) is -8, below 1; "
        "position 14 (blocks.12.pointwise) is 1136, above its full width 1128; "
        "position 15 (classes) is 999, the network has 1000; correct the list, one number a layer in this order"
    )
    tied = LISTS["mobilenet_v2-305M"].channels.replace("96 16 96 16", "96 16 96 24", 1)
    assert "1 fault: position 6 (features.3.conv.2) is 24, tied to position 4 (features.2.conv.2), which is 16; " in import_fails(
        "mobilenet_v2", tied
    )


@pytest.mark.parametrize("count", [0, 1, 12, 16])
def test_a_list_of_another_length_names_the_order(count):
    message = import_fails("mobilenet_v1", " ".join(["32"] * (count - 1) + ["33"] * (count > 0)))
    given = f"{count} number{'s' * (count != 1)}"
    assert f"it has {given}, the network takes 14, or 15 with the 1000 classes (stem.conv, blocks.0.pointwise, " in message
    assert (f"position {count} is 33, not a multiple of 8" in message) == (count > 0)


def test_import_of_a_file_a_list_and_a_width(tmp_path, capsys):
    text, out = LISTS["mobilenet_v1-325M"].channels, tmp_path / "new" / "c.json"
    (tmp_path / "list.txt").write_text(text.replace(" ", "\n"))
    assert run("import", "mobilenet_v1", "--channels", f"@{tmp_path}/list.txt", "--out", out) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "324,756,536 MACs, 4,001,448 params" in line
    assert_counts(printed(capsys, "profile", out), *SEARCHED["mobilenet_v1-325M"])
    document = printed(capsys, "import", "mobilenet_v1", "--channels", f"[{text.replace(' ', ', ')}]", "--out", out)
    assert document == json.loads(out.read_text())
    assert document["provenance"]["kind"] == "imported"
    assert document["provenance"]["retrain"] == load_space("mobilenet_v1").retrain
    document = printed(capsys, "import", "shufflenet", "--width", "0.5", "--out", out)
    assert document["cost"]["macs"] == 37_549_896
    assert document["channels"]["stem.conv"] == [12, 48]


def test_refused_imports_write_nothing(tmp_path, capsys):
    out = tmp_path / "c.json"
    for args, code, words in (
        (("--channels", "1 2 3"), 1, "it has 3 numbers"),
        (("--channels", "@nowhere.txt"), 1, "nowhere.txt cannot be read (No such file or directory)"),
        (("--width", "0"), 1, "--width 0 is not above 0"),
        (("--width", "1.2"), 1, "width 1.2 exceeds the supernet's 1.1"),
        ((), 2, "pass a list as --channels, or a width multiplier as --width"),
        (("--width", "1", "--channels", "1"), 2, "and not both"),
    ):
        assert run("import", "mobilenet_v1", *args, "--out", out) == code
        assert words in capsys.readouterr().err
    assert not out.exists()


def test_a_list_for_layers_that_share_parts_of_a_width():
    # The trunk of ShuffleNet is one group: its stages are 10, 20 and 40 times as wide as the stem.
    net = supernet("shufflenet")
    order = ListOrder.of(net.channels, net.source)
    half = width_config(load_space("shufflenet"), net, 0.5)
    numbers = [position.channels(half.widths[position.group.name]) for position in order.positions]
    assert numbers[:4] == [12, 30, 108, 30] and len(numbers) == 33
    assert order.widths(" ".join(map(str, numbers)), 3) == half.widths
    numbers[2] = 135
    with pytest.raises(AutoSlimError, match="is 135, tied to position 1 .stem.conv., which is 12, which asks for 108"):
        order.widths(" ".join(map(str, numbers)), 3)


@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_switches_of_shufflenet_fit_its_groups(width):
    net = supernet("shufflenet")
    found = width_config(load_space("shufflenet"), net, width)
    assert not found.faults(net.groups)
    assert autoslim.CostTable(net).cost(found).macs == UNIFORM["shufflenet", width][0]


@pytest.mark.parametrize("space", CIFAR_SPACES)
def test_supernet_equals_the_materialized_network(space):
    loaded = load_space(space)
    model = randomized(loaded.build(0.5))
    net = autoslim.Supernet(model, torch.zeros(1, 3, 32, 32), **loaded.grid)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    for choice in (net.narrowest(), net.random(generator), net.random(generator)):
        plain = autoslim.materialize(net, choice)
        assert sum(p.numel() for p in plain.parameters()) == autoslim.CostTable(net).cost(choice).params
        with torch.no_grad(), net.using(choice):
            for training in (False, True):
                torch.testing.assert_close(plain.train(training)(images), net.train(training)(images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("factory", [mnasnet, resnet50, shufflenet])
def test_the_narrowest_of_a_family_learns(factory):
    width = 1 / 16
    model = factory(width, 7, in_channels=1).train()
    output = model(torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert output.shape == (2, 7)
    output.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_resnet50_takes_the_weights_of_torchvision():
    theirs = torchvision.models.resnet50(num_classes=5).eval()
    ours = resnet50(num_classes=5).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))


@pytest.mark.parametrize("width", [0.25, 0.5, 0.75, 1.0])
def test_rounding_of_resnet50_leaves_the_published_widths(width):
    with torch.device("meta"):
        plain, rounded = resnet50(width), resnet50(width, round_nearest=8)
    assert [p.shape for p in plain.parameters()] == [p.shape for p in rounded.parameters()]


def test_shufflenet_shuffles_as_torch_does():
    from autoslim.models.shufflenet import shuffle

    x = torch.arange(2 * 12 * 4.0).reshape(2, 12, 2, 2)
    torch.testing.assert_close(shuffle(x), torch.nn.functional.channel_shuffle(x, 3))


def test_families_refuse_what_they_cannot_build():
    with pytest.raises(ValueError, match="strides has 2 numbers; MNasNet takes 7"):
        mnasnet(strides=(1, 2))
    with pytest.raises(ValueError, match="width_mult=0.01 leaves no channel of 64"):
        resnet50(0.01)
