"""Uniform networks that a search is compared with: of equal cost, whatever widths a family has."""

import sys
import types
from dataclasses import replace

import pytest
import torch
from torch import nn

import autoslim
from autoslim.commands.uniform import Uniforms, uniform_sweep
from autoslim.slimmable import family


def chain(first, second, third):
    return nn.Sequential(
        *(nn.Conv2d(3, first, 3, padding=1), nn.BatchNorm2d(first), nn.ReLU()),
        *(nn.Conv2d(first, second, 3, padding=1), nn.BatchNorm2d(second), nn.ReLU()),
        *(nn.Conv2d(second, third, 3, padding=1), nn.BatchNorm2d(third), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(third, 5)),
    )


def any_width(width=1.0):
    """Rounds to whole channels, and has none left at small widths."""
    channels = [int(full * width) for full in (16, 32, 64)]
    if min(channels) < 2:
        raise ValueError(f"no network is so narrow: {width}")
    return chain(*channels)


def two_widths(width=1.0):
    """Comes in two sizes, as a family that is listed."""
    return chain(*{1.0: (16, 32, 64), 0.5: (8, 16, 32)}[width])


@pytest.fixture
def space(monkeypatch):
    module = types.ModuleType("families")
    module.any_width, module.two_widths, module.half_constant = any_width, two_widths, half_constant
    monkeypatch.setitem(sys.modules, "families", module)

    def make(factory, argument="width", **grid):
        shipped = autoslim.spaces.load_space("digits_cnn")
        return replace(
            shipped, name=factory, factory=f"families:{factory}", kwargs={}, classes_argument=None, width_argument=argument,
            full_width=1.0, input_shape=(3, 8, 8), grid={**shipped.grid, "divisor": 8, **grid},
        )  # fmt: skip

    return make


def uniforms(space):
    net = family.build_supernet(space)
    table = autoslim.CostTable(net)
    found = Uniforms(space, net)
    return net, table, lambda macs: found.nearest(macs, lambda config: table.cost(config).macs)


@pytest.mark.parametrize("part", [0.15, 0.3, 0.45, 0.6, 0.8, 1.0])
def test_the_networks_of_a_family_that_rounds_more_finely_than_the_grid_are_taken(space, part):
    net, table, nearest = uniforms(space("any_width"))
    wanted = part * table.cost(net.full()).macs
    config, own = nearest(wanted)
    assert own and abs(table.cost(config).macs - wanted) <= 0.05 * wanted
    # It is the family's own: some width gives these channels.
    widths = tuple(config.widths.values())
    assert widths in [tuple(int(full * step / 100) for full in (16, 32, 64)) for step in range(13, 101)]
    config.check(net.groups)
    plain = autoslim.materialize(any_width(), config)
    assert table.cost(config).params == sum(p.numel() for p in plain.parameters())
    net.set(config)
    assert net(torch.randn(2, 3, 8, 8)).shape == (2, 5)


@pytest.mark.parametrize("part", [0.15, 0.3, 0.45, 0.6, 0.8])
def test_a_family_without_a_network_of_that_size_gives_way_to_one_ratio(space, part):
    net, table, nearest = uniforms(space("two_widths"))
    wanted = part * table.cost(net.full()).macs
    config, own = nearest(wanted)
    scaled = [[round(full * step / 200 + 1e-9) for full in (16, 32, 64)] for step in range(20, 201)]
    macs = [table.cost(net.make_config(widths)).macs for widths in scaled]
    assert not own
    assert abs(table.cost(config).macs - wanted) == min(abs(each - wanted) for each in macs) < 0.05 * wanted
    config.check(net.groups)


@pytest.mark.parametrize("name", ["digits_cnn", "resnet20_cifar", "mobilenet_v2_cifar"])
@pytest.mark.parametrize("part", [0.15, 0.3, 0.4, 0.5, 0.75])
def test_of_spaces_that_ship_uniform_networks_cost_about_as_much(name, part):
    net, table, nearest = uniforms(autoslim.spaces.load_space(name))
    wanted = part * table.cost(net.full()).macs
    config, _ = nearest(wanted)
    assert abs(table.cost(config).macs - wanted) <= 0.05 * wanted
    config.check(net.groups)


def test_a_family_with_a_network_of_that_size_is_taken(space):
    net, table, nearest = uniforms(space("two_widths"))
    half = net.make_config((8, 16, 32))
    config, own = nearest(1.04 * table.cost(half).macs)
    assert own and config.widths == half.widths


def test_a_space_without_a_width_argument_gets_one_ratio_as_usual(space):
    net, table, nearest = uniforms(space("two_widths", argument=None))
    config, own = nearest(0.6 * table.cost(net.full()).macs)
    assert own and config.widths in [net.uniform(step / 200).widths for step in range(10, 201)]


def half_constant(width=1.0):
    """The last layer stays as wide as it is, so that a network may cost enough whose first layers are too narrow."""
    return chain(max(1, int(16 * width)), max(1, int(32 * width)), 64)


@pytest.mark.parametrize("above", [1.0, 1.02, 1.1])
def test_networks_of_a_family_are_none_that_were_not_trained(space, above):
    net, table, nearest = uniforms(space("half_constant", divisor=1, steps=4, min_ratio=0.5))
    config, _ = nearest(above * table.cost(net.narrowest()).macs)
    assert all(width + 0.5 >= 0.5 * full for width, full in config.channels.values())


@pytest.mark.parametrize("least", [0.1, 0.5])
def test_uniform_networks_are_none_that_were_not_trained(space, least):
    net, table, nearest = uniforms(space("two_widths", argument=None, divisor=1, min_ratio=least))
    for config in (*uniform_sweep(net), nearest(1)[0]):
        assert all(width + 0.5 >= least * full for width, full in config.channels.values())  # rounded to the nearest
    ratios = (0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    assert len(uniform_sweep(net)) == sum(ratio >= least for ratio in ratios)
