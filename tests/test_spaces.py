"""Search spaces and their networks: published integers, shipped files, and what bad input gets."""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from autoslim.channels.grid import Grid
from autoslim.errors import ConfigError, ModelError
from autoslim.factories import build_model, load_factory
from autoslim.models import digits_cnn, mobilenet_v1, mobilenet_v2_cifar, resnet_cifar
from autoslim.spaces import list_spaces, load_space

# MACs of conv and linear layers at 224 pixels and 1,000 classes: Slimmable Networks table 3, the README of its
# code, and their exact values; where the papers give the parameters too, those (BN's weights and biases included).
MOBILENET_V1 = {
    0.25: (41_030_272, 470_072),
    0.4: (100_029_704, None),
    0.5: (149_497_088, 1_331_592),
    0.6: (217_021_560, None),
    0.7: (287_160_280, None),
    0.75: (325_400_448, 2_585_560),
    0.8: (366_262_312, None),
    0.9: (466_186_760, None),
    1.0: (568_740_352, 4_231_976),
    1.1: (681_724_280, 4_983_832),
    1.5: (1_257_729_792, 8_702_152),
}
MOBILENET_V2 = {
    0.35: (59_285_808, 1_677_128),
    0.4: (80_695_280, None),
    0.5: (97_131_840, 1_968_680),
    0.6: (150_958_928, None),
    0.7: (173_642_400, None),
    0.75: (209_069_792, 2_636_424),
    0.8: (222_482_464, None),
    0.9: (269_021_488, None),
    1.0: (300_774_272, 3_504_872),
    1.3: (509_374_560, 5_386_792),
    1.5: (672_832_704, 6_858_152),
}
MOBILENET_V2_CIFAR = {
    0.5: (27_969_024, 700_490),
    0.75: (59_310_080, 1_368_234),
    1.0: (87_976_448, 2_236_682),
    1.5: (199_628_544, 4_956_362),
}

V1_FULL = [32, 72, 144, 144, 280, 280, *[560] * 6, 1128, 1128]
V2_FULL_STAGES = [(24, 1), (40, 2), (48, 3), (96, 4), (144, 3), (240, 3), (480, 1)]

SHIPPED = ["digits_cnn", "mnasnet", "mnasnet_cifar", "mobilenet_v1", "mobilenet_v1_cifar", "mobilenet_v2", "mobilenet_v2_cifar"]
SHIPPED += ["resnet20_cifar", "resnet50", "resnet50_cifar", "shufflenet", "shufflenet_cifar"]


def macs(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Count multiply-adds of conv and linear layers from the shapes that each of them sees in one forward pass."""
    total = 0

    def count(layer, inputs, output):
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            kernel = layer.kernel_size[0] * layer.kernel_size[1]
            total += output.shape[1] * output.shape[2] * output.shape[3] * kernel * inputs[0].shape[1] // layer.groups
        else:
            total += inputs[0].shape[1] * output.shape[1]

    layers = [layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    handles = [layer.register_forward_hook(count) for layer in layers]
    device = next(model.parameters()).device
    model.eval()(torch.empty(1, *shape, device=device))
    for handle in handles:
        handle.remove()
    return total


def params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def pairs(cases: dict) -> list:
    return [pytest.param(width, *numbers, id=f"{width}x") for width, numbers in cases.items()]


@pytest.mark.parametrize("width, expected_macs, expected_params", pairs(MOBILENET_V1))
def test_mobilenet_v1_has_the_published_size(width, expected_macs, expected_params):
    with torch.device("meta"):
        model = load_space("mobilenet_v1").build(width)
    assert macs(model, (3, 224, 224)) == expected_macs
    assert expected_params in (None, params(model))


@pytest.mark.parametrize("width, expected_macs, expected_params", pairs(MOBILENET_V2))
def test_mobilenet_v2_has_the_published_size(width, expected_macs, expected_params):
    with torch.device("meta"):
        model = load_space("mobilenet_v2").build(width)
    assert macs(model, (3, 224, 224)) == expected_macs
    assert expected_params in (None, params(model))


@pytest.mark.parametrize("width, expected_macs, expected_params", pairs(MOBILENET_V2_CIFAR))
def test_mobilenet_v2_cifar_has_the_size_of_the_paper_s_budgets(width, expected_macs, expected_params):
    with torch.device("meta"):
        model = load_space("mobilenet_v2_cifar").build(width)
    assert isinstance(model, torchvision.models.MobileNetV2)
    assert macs(model, (3, 32, 32)) == expected_macs
    assert params(model) == expected_params


def conv_widths(space: str) -> list[int]:
    with torch.device("meta"):
        model = load_space(space).build()
    return [layer.out_channels for layer in model.modules() if isinstance(layer, nn.Conv2d) and layer.groups == 1]


def test_full_widths_of_mobilenet_v1_are_those_of_the_released_grid():
    assert conv_widths("mobilenet_v1") == V1_FULL


@pytest.mark.parametrize("space", ["mobilenet_v2", "mobilenet_v2_cifar"])
def test_full_widths_of_mobilenet_v2_are_those_of_the_released_grid(space):
    expected, inputs = [48], 48
    for out, blocks in V2_FULL_STAGES:
        for _ in range(blocks):
            expected += [out] if out == 24 else [6 * inputs, out]
            inputs = out
    assert conv_widths(space) == [*expected, 1920]


def test_mobilenet_v1_at_32_pixels():
    # Maps of 32, 16, 8 and 4 pixels; depthwise 3x3 on the input map's width, pointwise on the output map.
    strides = (1, 1, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
    channels = [32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024]
    expected, size = 9 * 3 * 32 * 32 * 32 + 1024 * 7, 32
    for inputs, outputs, stride in zip(channels, channels[1:], strides, strict=False):
        size //= stride
        expected += (9 + outputs) * inputs * size * size
    with torch.device("meta"):
        model = mobilenet_v1(num_classes=7, stem_stride=1, strides=strides)
    assert size == 4
    assert macs(model, (3, 32, 32)) == expected
    with pytest.raises(ValueError, match="strides has 2 numbers; MobileNet v1 takes 13"):
        mobilenet_v1(strides=(1, 2))


@pytest.mark.parametrize("depth", [8, 20, 56])
def test_resnet_cifar_by_hand(depth):
    n = (depth - 2) // 6
    expected = 9 * 3 * 16 * 1024 + 64 * 10
    expected += 2 * n * 9 * 16 * 16 * 1024
    expected += (9 * 16 * 32 + 16 * 32 + (2 * n - 1) * 9 * 32 * 32) * 256
    expected += (9 * 32 * 64 + 32 * 64 + (2 * n - 1) * 9 * 64 * 64) * 64
    with torch.device("meta"):
        model = resnet_cifar(depth)
    assert macs(model, (3, 32, 32)) == expected
    links = [name for name, layer in model.named_modules() if name.endswith("shortcut.conv")]
    assert links == ["stage2.0.shortcut.conv", "stage3.0.shortcut.conv"]


def test_resnet20_parameters_are_those_of_the_paper_plus_the_two_projections():
    # He et al. 2015, table 6: 0.27M; with BN exactly 269,722.
    assert params(resnet_cifar(20)) == 269_722 + 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64


def test_digits_cnn_by_hand():
    expected = 9 * 16 * 64 + 9 * 16 * 32 * 16 + 2 * 9 * 32 * 32 * 16
    expected += ((9 + 48) * 32 + (9 + 48) * 48) * 16 + ((9 + 64) * 48 + (9 + 64) * 64) * 4 + 64 * 10
    assert macs(digits_cnn(), (1, 8, 8)) == expected


@pytest.mark.parametrize("width", [0.25, 0.5, 0.75, 1.0, 1.25, 1.5])
def test_widths_of_the_small_networks_are_multiples_of_four(width):
    for model in (digits_cnn(width), resnet_cifar(8, width)):
        assert all(layer.out_channels % 4 == 0 for layer in model.modules() if isinstance(layer, nn.Conv2d))


@pytest.mark.parametrize("depth", [2, 9, 21])
def test_resnet_cifar_refuses_other_depths(depth):
    with pytest.raises(ModelError, match=rf"resnet_cifar\(depth={depth}\) failed: ValueError: .* is not 6n \+ 2"):
        build_model({"factory": "autoslim.models:resnet_cifar", "kwargs": {"depth": depth}})


@pytest.mark.parametrize(
    "model, shape",
    [
        (mobilenet_v1(0.25, 7, in_channels=1, stem_stride=1, dropout=0.1), (1, 32, 32)),
        (mobilenet_v2_cifar(0.35, 7), (3, 32, 32)),
        (resnet_cifar(8, 0.5, 7, in_channels=2), (2, 32, 32)),
        (digits_cnn(1.0, 7), (1, 8, 8)),
    ],
    ids=["mobilenet_v1", "mobilenet_v2_cifar", "resnet_cifar", "digits_cnn"],
)
def test_every_parameter_of_a_network_learns(model, shape):
    output = model.train()(torch.randn(4, *shape, generator=torch.Generator().manual_seed(0)))
    assert output.shape == (4, 7)
    output.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_shipped_spaces_are_listed_in_order():
    listed = list_spaces()
    assert [name for name, _ in listed] == SHIPPED
    assert all(description and "\n" not in description for _, description in listed)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_space_builds_at_full_width_and_alone_from_its_reference(name):
    space = load_space(name).with_classes(5)
    reference = json.loads(json.dumps(space.model_reference()))
    with torch.device("meta"):
        full, again, default = space.build(), build_model(reference), space.build(1.0)
    outputs = full.eval()(torch.empty(2, *space.input_shape, device="meta"))
    assert outputs.shape == (2, 5)
    shapes = {key: value.shape for key, value in full.state_dict().items()}
    assert shapes == {key: value.shape for key, value in again.state_dict().items()}
    assert (params(default) < params(full)) == (space.full_width > 1)


def unused(recipe: dict) -> set[str]:
    """Return the keys that the other values of a recipe leave without meaning."""
    keys = {"resized": {"pad"}, "pad": {"min_scale"}}.get(recipe.get("crop"), set())
    if recipe.get("schedule") != "step":
        keys = keys | {"milestones"}
    return keys if recipe.get("schedule") in ("step", "exponential") else keys | {"decay"}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_space_writes_every_key_and_gives_every_layer_a_choice(name):
    space = load_space(name)
    for table in ("grid", "train", "us_net", "s_net", "search", "retrain"):
        text = space.path.read_text().split(f"[{table}]")[1].split("\n[")[0]
        written = set(re.findall(r"(?m)^(\w+) = ", text))
        assert written == set(getattr(space, table)) - unused(getattr(space, table))
    grid = Grid(**space.grid)
    for full in set(conv_widths(name)):
        assert full % space.grid["divisor"] == 0
        assert 3 <= len(grid.choices(full)) <= 16


@pytest.mark.parametrize("name", SHIPPED)
def test_widths_of_the_recipes_can_be_built_inside_the_supernet(name):
    space = load_space(name)
    with torch.device("meta"):
        full = space.build()
        for width in (*space.us_net["range"], *space.s_net["switches"]):
            assert width <= space.full_width
            for layer, wide in zip(space.build(width).modules(), full.modules(), strict=True):
                if isinstance(layer, nn.Conv2d):
                    assert layer.out_channels <= wide.out_channels
                    assert layer.out_channels % space.grid["divisor"] == 0


def test_published_recipes_of_the_searched_networks():
    space = load_space("mobilenet_v2")
    assert (space.full_width, space.input_shape) == (1.5, (3, 224, 224))
    assert space.grid == {"divisor": 8, "steps": 12, "min_ratio": 0.1, "anchor": "full"}
    assert (space.train["epochs"], space.search["held_out"]) == (50, 50_000)
    final = {"epochs": 300, "batch_size": 2048, "lr": 0.5, "schedule": "linear", "label_smoothing": 0.1, "weight_decay": 1e-4}
    for name in ("mobilenet_v1", "mobilenet_v2", "mnasnet"):
        assert final.items() <= load_space(name).retrain.items()
    final = {"epochs": 100, "batch_size": 256, "lr": 0.1, "schedule": "step", "milestones": [30, 60, 90], "decay": 0.1}
    space = load_space("resnet50")
    assert (final | {"label_smoothing": 0.1, "min_scale": 0.25}).items() <= space.retrain.items()
    assert (final | {"label_smoothing": 0.0, "min_scale": 0.08}).items() <= space.s_net.items()
    assert (space.full_width, space.grid["anchor"]) == (1.0, "zero")


def test_published_recipes_of_the_slimmable_networks():
    final = {"epochs": 480, "batch_size": 160, "lr": 0.045, "schedule": "exponential", "decay": 0.98, "weight_decay": 1e-4}
    for name, low in (("mobilenet_v1", 0.25), ("mobilenet_v2", 0.35)):
        space = load_space(name)
        assert final.items() <= space.s_net.items()
        assert space.s_net["switches"] == [low, 0.5, 0.75, 1.0]
        assert space.us_net["range"] == [low, 1.0]
        us_net = {"epochs": 250, "batch_size": 1024, "lr": 0.5, "schedule": "linear", "sandwich": "max,min,random:2"}
        assert us_net.items() <= space.us_net.items()
    space = load_space("shufflenet")
    assert {"epochs": 250, "batch_size": 1024, "lr": 0.5, "schedule": "linear"}.items() <= space.s_net.items()
    assert space.s_net["switches"] == [0.5, 1.0, 2.0]


def test_spaces_need_no_torch():
    code = "import sys; from autoslim import spaces; spaces.list_spaces(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, check=True)


MINIMAL = """
description = "a minimal space"
[model]
factory = "torchvision.models:squeezenet1_1"
input_shape = [3, 64, 64]
"""


@pytest.fixture
def write(tmp_path):
    def write_space(text: str) -> str:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return str(path)

    return write_space


def test_minimal_file_gets_the_defaults(write):
    space = load_space(write(MINIMAL))
    plain = load_space("torchvision.models:squeezenet1_1", input_shape=(3, 64, 64))
    assert (space.name, space.kwargs, space.width_argument, space.classes_argument) == ("mine", {}, None, None)
    for table in ("grid", "train", "us_net", "s_net", "search", "retrain", "lists"):
        assert getattr(space, table) == getattr(plain, table)
    assert space.with_classes(3) is space
    assert isinstance(space.retrain["warmup_epochs"], float)
    assert "sandwich" in space.train and "sandwich" not in space.retrain


def test_the_shape_of_an_image_can_be_another_one(write):
    assert load_space(write(MINIMAL), input_shape=[3, 96, 64]).input_shape == (3, 96, 64)
    assert load_space("mobilenet_v2", input_shape=(3, 96, 96)).input_shape == (3, 96, 96)
    assert "must be three whole numbers" in fails(ConfigError, load_space, "mobilenet_v2", input_shape=(96, 96))


def test_file_values_replace_the_defaults(write):
    space = load_space(write(MINIMAL + "[train]\nlr = 1\nepochs = 3\n[search]\nheld_out = 500\n"))
    assert (space.train["lr"], space.train["epochs"], space.search["held_out"]) == (1.0, 3, 500)
    assert isinstance(space.train["lr"], float) and isinstance(space.search["held_out"], int)


def fails(kind: type[Exception], call, *args, **kwargs) -> str:
    with pytest.raises(kind) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_unknown_space_names_the_closest_and_the_ways_out():
    assert fails(ConfigError, load_space, "mobilnet_v2") == (
        "unknown search space 'mobilnet_v2' (closest: 'mobilenet_v2'); give one of "
        f"{', '.join(SHIPPED)}, the path of a .toml file, or pkg.module:factory"
    )
    assert "closest" not in fails(ConfigError, load_space, "zzz")


def test_missing_unreadable_and_broken_files(tmp_path, write):
    missing = tmp_path / "none.toml"
    assert fails(ConfigError, load_space, missing) == (
        f"{missing}: no such file; `autoslim spaces` lists the search spaces that ship"
    )
    assert "Is a directory" in fails(ConfigError, load_space, f"{tmp_path}/")
    path = write("description = \n")
    assert fails(ConfigError, load_space, path).startswith(f"{path} is not a readable TOML file: ")
    Path(path).write_bytes(b"description = '\xff'")
    assert "is not a readable TOML file: 'utf-8'" in fails(ConfigError, load_space, path)


def test_all_faults_of_a_file_come_in_one_line(write):
    path = write(
        """
        descripton = "typo"
        [model]
        factory = "torchvision.models"
        kwargs = { width = 2 }
        width_argument = "width"
        full_width = -1
        [grid]
        divisor = 8.0
        [train]
        epochs = true
        lr = "fast"
        schedule = "fast"
        nesterov = 1
        epoch = 3
        [search]
        held_out = 1.5
        [retrain]
        sandwich = "max"
        """
    )
    assert fails(ConfigError, load_space, path) == (
        f"{path}: 14 faults in the search space: unknown 'descripton' (closest: 'description'); "
        "description is missing; "
        "[model] factory = 'torchvision.models' must be a string 'pkg.module:function'; "
        "[model] full_width = -1 must be a number above 0; "
        "[model] input_shape is missing; "
        "[model] kwargs sets 'width', which full_width sets; leave it out of kwargs; "
        "[grid] divisor = 8.0 must be a whole number of at least 1; "
        "[train] epochs = True must be a whole number of at least 1; "
        "[train] lr = 'fast' must be a number above 0; "
        "[train] schedule = 'fast' must be 'linear' or 'cosine' or 'exponential' or 'step' or 'constant'; "
        "[train] nesterov = 1 must be true or false; "
        "[train] has unknown 'epoch' (closest: 'epochs'); "
        "[search] held_out = 1.5 must be a fraction between 0 and 1 (0.2) or a number of images (50000); "
        "[retrain] has unknown 'sandwich'"
    )


@pytest.mark.parametrize(
    "old, new, fault",
    [
        ("[3, 64, 64]", "[64, 64]", "[model] input_shape = [64, 64] must be three whole numbers"),
        ("[3, 64, 64]", "[3, 64, 64]\nfull_width = 2", "full_width = 2 needs width_argument"),
        ("[3, 64, 64]", "[3, 64, 64]\nkwargs = { when = 2020-01-01 }", "[model] kwargs = {'when': "),
        ("[3, 64, 64]", "[3, 64, 64]\nclasses_argument = 'a b'", "must be the name of an argument"),
        ("[3, 64, 64]", "[3, 64, 64]\n[lists]\nlayers = [1]", "[lists] layers = [1] must be a list of names of layers"),
        ("[3, 64, 64]", "[3, 64, 64]\n[us_net]\nrange = [1, 0.5]", "[us_net] range = [1, 0.5] must be two width multipliers"),
        ("[3, 64, 64]", "[3, 64, 64]\n[train]\nsandwich = 'mid'", "[train] sandwich = 'mid' must be a list of max, min"),
        ("[3, 64, 64]", "[3, 64, 64]\n[train]\nlr = inf", "[train] lr = inf must be a number above 0"),
        ('"a minimal space"', '"""a\nb"""', "description = 'a\\nb' must be one line of text"),
    ],
)
def test_single_fault(write, old, new, fault):
    message = fails(ConfigError, load_space, write(MINIMAL.replace(old, new)))
    assert "1 fault in the search space: " in message and fault in message


def test_model_that_is_no_table(write):
    assert "model = 3 must be a table, [model]" in fails(ConfigError, load_space, write("description='x'\nmodel=3"))


def test_factory_in_place_of_a_space():
    space = load_space("torchvision.models:resnet18", input_shape=[3, 64, 64])
    assert (space.name, space.path, space.input_shape) == ("torchvision.models:resnet18", None, (3, 64, 64))
    with torch.device("meta"):
        assert space.with_classes(3).build().fc.out_features == 3
        assert space.build(1.0).fc.out_features == 1000
    assert space.model_reference() == {"factory": "torchvision.models:resnet18", "kwargs": {}}
    assert fails(ModelError, space.build, 0.5) == (
        "width 0.5 of 'torchvision.models:resnet18': torchvision.models:resnet18 has no known width argument; "
        "name it as width_argument in a search space, or leave the width out"
    )
    assert load_space("autoslim.models:digits_cnn").classes_argument == "num_classes"
    assert load_space("torch.nn:Identity").classes_argument is None
    message = fails(ConfigError, load_space, "torch.nn:Identity", input_shape=(224, 224))
    assert message.startswith("input shape (224, 224) must be three whole numbers")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("homemade_")]:
        del sys.modules[name]


def test_factory_in_the_current_folder(here):
    (here / "homemade_net.py").write_text(
        "from torch import nn\nSIZE = 3\n"
        "def net(channels=4): return nn.Conv2d(3, channels, 1)\n"
        "def words(): return 'no net'\n"
        "def breaks(): raise RuntimeError('first\\nsecond')\n"
    )
    assert build_model({"factory": "homemade_net:net", "kwargs": {"channels": 8}}).out_channels == 8
    assert build_model({"factory": "homemade_net:net"}).out_channels == 4
    assert fails(ModelError, build_model, {"factory": "homemade_net:words"}) == (
        "homemade_net:words() returned str; a factory returns a torch.nn.Module"
    )
    assert fails(ModelError, build_model, {"factory": "homemade_net:breaks"}) == (
        "homemade_net:breaks() failed: RuntimeError: first second"
    )
    message = fails(ModelError, build_model, {"factory": "homemade_net:net", "kwargs": {"width": 2}})
    assert message.startswith("homemade_net:net(width=2) failed: TypeError: ")
    assert fails(ModelError, load_factory, "homemade_net:nett") == (
        "factory 'homemade_net:nett': homemade_net has no 'nett' (closest: 'net')"
    )
    assert fails(ModelError, load_factory, "homemade_net:SIZE") == (
        "factory 'homemade_net:SIZE' is int; it must be a function or a class"
    )


def test_a_module_of_the_current_folder_may_be_called_as_an_installed_package(here, monkeypatch):
    (here / "cycler.py").write_text("from torch import nn\ndef net(): return nn.Conv2d(3, 4, 1)\n")
    monkeypatch.delitem(sys.modules, "cycler", raising=False)
    assert build_model({"factory": "cycler:net"}).out_channels == 4
    del sys.modules["cycler"]


def test_factory_that_cannot_be_imported(here):
    (here / "homemade_broken.py").write_text("1 / 0\n")
    (here / "homemade_hungry.py").write_text("import homemade_missing\n")
    assert fails(ModelError, load_factory, "homemade_broken:net") == (
        "factory 'homemade_broken:net': importing homemade_broken failed: ZeroDivisionError: division by zero"
    )
    assert fails(ModelError, load_factory, "homemade_hungry:net") == (
        "factory 'homemade_hungry:net': importing homemade_hungry failed: ModuleNotFoundError: No module named 'homemade_missing'"
    )
    assert fails(ModelError, load_factory, "homemade_nowhere.models:net") == (
        f"factory 'homemade_nowhere.models:net': no module 'homemade_nowhere', neither installed nor in {here}; "
        "install it, or run in the folder that holds it"
    )
    for name in ("torchvision.models", "a b:net", "pkg:", ":net", "pkg:a.b"):
        assert fails(ModelError, load_factory, name) == f"factory '{name}' is not of the form pkg.module:function"


NO_NETWORKS = ["os:system", "builtins:eval", "torch:load", "torch.hub:load", "functools:reduce"]
NO_NETWORKS += ["sympy:sympify", "yaml:unsafe_load", "antigravity:fly"]  # run their arguments; acts when it is imported


@pytest.mark.parametrize("name", NO_NETWORKS)
def test_a_file_cannot_call_what_builds_no_network(name):
    message = fails(ModelError, load_factory, name)
    assert re.fullmatch(rf"factory '{name}' belongs to [\w.]+, which builds no networks; name .*", message)


def test_networks_may_be_classes_and_partial_functions(here):
    (here / "homemade_partial.py").write_text(
        "import functools, os\nfrom torch import nn\n"
        "def net(channels): return nn.Conv2d(3, channels, 1)\n"
        "six = functools.partial(net, 6)\nlisting = functools.partial(os.listdir, '.')\n"
    )
    assert build_model({"factory": "homemade_partial:six"}).out_channels == 6
    assert "belongs to posix" in fails(ModelError, load_factory, "homemade_partial:listing")
    assert load_factory("torch.nn:Linear") is nn.Linear
    assert isinstance(load_factory("homemade_partial:six"), functools.partial)


@pytest.mark.parametrize("reference", [None, "torch.nn:Linear", {}, {"factory": 3}, {"factory": "a:b", "kwargs": [1]}])
def test_malformed_model_reference(reference):
    message = fails(ModelError, build_model, reference)
    assert message == f'model {reference!r} is not of the form {{"factory": "pkg.module:function", "kwargs": {{}}}}'


def test_every_width_of_a_family_has_a_uniform_configuration():
    # At small multipliers rounding lets layers fall together that are apart in the supernet.
    from autoslim.slimmable import family

    space = load_space("mobilenet_v2_cifar")
    net = family.build_supernet(space)
    for width in (0.075, 0.15, 0.3, 0.75, 1.0, 1.5):
        config = family.width_config(space, net, width)
        layers = dict(space.build(width).named_modules())
        assert all(chosen == layers[name].out_channels for name, chosen in config.widths.items())
