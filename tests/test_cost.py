import warnings
from decimal import ROUND_CEILING

import pytest
import torch
import tricky
from all_cases import ALL_CASES
from fvcore.nn import FlopCountAnalysis
from tricky import randomized

import autoslim
from autoslim.cost.amounts import KINDS
from autoslim.cost.budgets import check_budgets


def counted(network, inputs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns about what it cannot see; that is fvcore's business
        analysis = FlopCountAnalysis(network.eval(), inputs).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        rows = analysis.by_operator()
    return rows["conv"] + rows["linear"] + rows["addmm"]


@pytest.mark.parametrize("kind", ALL_CASES, ids=lambda kind: kind.__name__)
def test_table_equals_fvcore_on_the_materialized_network(kind):
    model = randomized(kind())
    net = autoslim.Supernet(model, model.inputs(1), divisor=4)
    table = autoslim.CostTable(net)
    generator = torch.Generator().manual_seed(0)
    for config in (net.full(), net.narrowest(), *(net.random(generator) for _ in range(3))):
        plain = autoslim.materialize(net, config)
        cost = table.cost(config)
        # fvcore has no rule for the convolution that padding="same" calls.
        assert kind is tricky.Padding or cost.macs == counted(plain, model.inputs(1))
        assert cost.params == sum(p.numel() for p in plain.parameters())
        assert cost.weight_bytes == sum(p.numel() * p.element_size() for p in plain.parameters())
        assert table.cost(config.widths) == cost


def test_batch_size_of_the_example_does_not_matter():
    one, five = (autoslim.Supernet(tricky.Plain(), torch.randn(n, 3, 8, 8), divisor=4) for n in (1, 5))
    assert autoslim.CostTable(one).cost(one.narrowest()) == autoslim.CostTable(five).cost(five.narrowest())


def test_plain_network_by_hand():
    net = autoslim.Supernet(tricky.Plain(), torch.randn(1, 3, 8, 8), divisor=4)
    cost = autoslim.CostTable(net).cost({"conv1": 8, "conv2": 12})
    # conv1 keeps 8x8 positions, conv2 (3x3, stride 2, no padding) leaves 3x3.
    assert cost.macs == 64 * 9 * 3 * 8 + 9 * 9 * 8 * 12 + 12 * 5
    # conv1 without bias, both norms with scale and shift, conv2 and the head with bias.
    assert cost.params == 9 * 3 * 8 + 2 * 8 + 9 * 8 * 12 + 12 + 2 * 12 + 12 * 5 + 5
    assert cost.weight_bytes == 4 * cost.params


def test_depthwise_and_grouped_by_hand():
    net = autoslim.Supernet(tricky.Depthwise(), torch.randn(1, 3, 8, 8), divisor=4)
    cost = autoslim.CostTable(net).cost({"expand": 8, "project": 4})
    assert cost.macs == 64 * 3 * 8 + 36 * 9 * 8 + 36 * 8 * 4 + 4 * 5
    net = autoslim.Supernet(tricky.Grouped(), torch.randn(1, 3, 8, 8), divisor=4)
    cost = autoslim.CostTable(net).cost({"stem": 8, "grouped": 12, "last": 4})
    assert cost.macs == 36 * 9 * 3 * 8 + 16 * 9 * (8 // 4) * 12 + 16 * 12 * 4 + 4 * 5
    assert cost.params == (27 * 8 + 8) + 2 * 8 + (9 * 2 * 12 + 12) + (12 * 4 + 4) + (4 * 5 + 5)


def test_padded_and_transposed_by_hand():
    net = autoslim.Supernet(tricky.Padding(), torch.randn(1, 3, 8, 8), divisor=4)
    cost = autoslim.CostTable(net).cost({"stem": 8, "dilated": 4, "same": 4})
    assert cost.macs == 64 * 27 * 8 + 8 * 6 * 9 * 8 * 4 + 8 * 6 * 9 * 4 * 4 + 4 * 5
    net = autoslim.Supernet(tricky.Transposed(), torch.randn(1, 3, 8, 8), divisor=4)
    cost = autoslim.CostTable(net).cost({"first": 8, "before": 8, "up": 4, "last": 4})
    # Every input position of a transposed convolution meets the whole kernel.
    assert cost.macs == 36 * 27 * 8 + 36 * 8 * 8 + 36 * 8 * 4 * 4 + 100 * 9 * 4 * 4 + 4 * 5


def test_bytes_follow_the_precision_of_the_weights():
    net = autoslim.Supernet(tricky.Plain().half(), torch.randn(1, 3, 8, 8).half(), divisor=4)
    cost = autoslim.CostTable(net).cost(net.narrowest())
    assert cost.weight_bytes == 2 * cost.params


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("300M", 3e8),
        ("1.2G", 1.2e9),
        ("300e6", 3e8),
        ("60%", 600.0),
        (5, 5.0),
        (" 40 k ", 4e4),
        ("1.5e+3", 1500.0),
        ("2m", 2e6),
    ],
)
def test_amounts_as_users_write_them(text, value):
    assert KINDS["macs"].read(text, 1000) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "fast", "-3M", "0", "0%", "1.2.3M", "3MM", "nan", "inf", "1e999", ".", "60 %%", None])
def test_wrong_amounts_are_refused_with_their_text(text):
    with pytest.raises(autoslim.AutoSlimError) as caught:
        KINDS["macs"].read(text, 1000)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("value", "text"), [(3e8, "300M"), (1.2e9, "1.2G"), (87_976_448, "87.98M"), (999, "999"), (1500, "1.5k")]
)
def test_amounts_in_short(value, text):
    assert KINDS["macs"].format(value) == text


def test_an_amount_that_is_rounded_up_takes_the_next_unit():
    assert KINDS["memory"].format(999_700_000, 3) == KINDS["memory"].format(999_000_001, 3, ROUND_CEILING) == "1GB"
    assert KINDS["latency"].format(0.99999) == "1ms"


def test_targets_come_largest_first_and_within_reach():
    def check(wanted):
        return [target.amounts["macs"] for target in check_budgets({"macs": wanted}, {"macs": 1000}, {"macs": 300})]

    assert check(["40%", 900, "100%"]) == [1000, 900, 400]
    assert check([300]) == [300]
    for wrong, words in ((["20%"], "below the narrowest"), ([1001], "above the full"), ([], "no target")):
        with pytest.raises(autoslim.AutoSlimError, match=words) as caught:
            check(wrong)
        assert "300 to 1k MACs" in str(caught.value)
