"""Budgets of several kinds: how they are written, paired and checked, and what a candidate gains towards them."""

import itertools
import re

import pytest
import torch
import tricky
from tricky import randomized

import autoslim
from autoslim.cost.amounts import KINDS
from autoslim.cost.budgets import Budgets, Target, check_budgets
from autoslim.cost.memory import peak_memory_bytes

FULL = {"macs": 300e6, "params": 4e6, "size": 16e6, "memory": 40e6, "latency": 20.0}
NARROWEST = {"macs": 30e6, "params": 4e5, "size": 16e5, "memory": 8e6, "latency": 2.0}


def check(**targets):
    return check_budgets(targets, FULL, NARROWEST)


def refused(**targets):
    with pytest.raises(autoslim.AutoSlimError) as caught:
        check(**targets)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def supernet(kind=tricky.Residual):
    torch.manual_seed(0)
    return autoslim.Supernet(randomized(kind()), kind.inputs(1), divisor=4)


def test_memory_is_that_of_the_weights_as_they_are():
    net = supernet().half()
    cost = Budgets(net, ["memory"], batch=2).costs(net.narrowest())["memory"]
    assert cost == peak_memory_bytes(autoslim.materialize(net, net.narrowest()), torch.randn(2, 3, 8, 8).half())


# Costs ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("kind", [tricky.Residual, tricky.TwoInputs], ids=lambda kind: kind.__name__)
def test_costs_are_those_of_the_materialized_network(kind, batch):
    net = supernet(kind)
    budgets = Budgets(net, KINDS, precision="bf16", batch=batch, latency=lambda widths: sum(widths.values()) / 10)
    generator = torch.Generator().manual_seed(0)
    for config in (net.full(), net.narrowest(), *(net.random(generator) for _ in range(3))):
        plain = autoslim.materialize(net, config)
        params = sum(p.numel() for p in plain.parameters())
        assert budgets.costs(config) == {
            "macs": autoslim.CostTable(net).cost(config).macs,
            "params": params,
            "size": 2 * params,
            "memory": peak_memory_bytes(plain, kind.inputs(batch)),
            "latency": sum(config.widths.values()) / 10,
        }
        assert budgets.costs(config.widths) == budgets.costs(config)
    assert (budgets.full, budgets.narrowest) == (budgets.costs(net.full()), budgets.costs(net.narrowest()))


@pytest.mark.parametrize(("precision", "size"), [("fp32", 4), ("fp16", 2), ("bf16", 2), ("int8", 1)])
def test_size_is_bytes_of_the_parameters_at_a_precision(precision, size):
    net = supernet(tricky.Plain)
    params = sum(p.numel() for p in net.source.parameters())
    assert Budgets(net, ["size"], precision=precision).full["size"] == size * params


def test_only_what_is_asked_for_is_worked_out():
    net = supernet()
    assert set(Budgets(net, ["macs"]).full) == {"macs", "params"}
    assert set(Budgets(net, ["size"]).full) == {"macs", "params", "size"}

    def never(widths):
        raise AssertionError("latency was asked for")

    assert "latency" not in Budgets(net, ["params"], latency=never).full


def test_example_gives_the_shapes_that_the_supernet_does_not_keep():
    net, example = supernet(tricky.Plain), torch.randn(3, 3, 16, 16)
    found = Budgets(net, ["memory"], batch=2, example=example).full["memory"]
    assert found == peak_memory_bytes(autoslim.materialize(net, net.full()), example[:2])


def test_targets_of_a_network():
    budgets = Budgets(supernet(), ["macs", "params"])
    (target,) = budgets.check({"macs": "60%", "params": ("80%",)})
    assert target.amounts == {"macs": 0.6 * budgets.full["macs"], "params": pytest.approx(0.8 * budgets.full["params"])}
    assert not target.met(budgets.full) and target.met(budgets.narrowest)
    assert [t.amounts["macs"] for t in budgets.check({"macs": "100%"})] == [budgets.full["macs"]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kinds": ["flops"]}, "targets are for 'flops'; the kinds are macs, params, size, memory, latency"),
        ({"kinds": ["size"], "precision": "fp8"}, "precision 'fp8' is unknown; pass one of fp32, fp16, bf16, int8"),
        ({"kinds": ["memory"], "batch": 0}, "batch is 0; it must be a whole number of examples, 1 or more"),
        ({"kinds": ["latency"]}, "a latency target needs to know how long a configuration takes; pass latency="),
    ],
)
def test_wrong_arguments_are_refused(arguments, words):
    with pytest.raises(autoslim.AutoSlimError) as caught:
        Budgets(supernet(), **arguments)
    assert str(caught.value) == words


def test_memory_without_shapes_is_refused():
    net = supernet()
    net.input_shape = [None]
    with pytest.raises(autoslim.AutoSlimError, match="pass example="):
        Budgets(net, ["memory"])


# Amounts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("macs", "120M", 120e6),
        ("macs", 9e7, 9e7),
        ("params", "60%", 2.4e6),
        ("params", "2.5m", 2.5e6),
        ("size", "4MB", 4e6),
        ("size", "4 MiB", 4 * 2**20),
        ("size", "3000kB", 3e6),
        ("size", "2048KiB", 2**21),
        ("size", "0.01GB", 1e7),
        ("size", "0.01gib", 0.01 * 2**30),
        ("size", "4e6", 4e6),
        ("size", "4e6B", 4e6),
        ("memory", "20M", 20e6),
        ("memory", "50%", 20e6),
        ("latency", "12ms", 12),
        ("latency", 12, 12),
        ("latency", "12", 12),
        ("latency", "0.012s", 12),
        ("latency", "7500us", 7.5),
        ("latency", "25%", 5),
    ],
)
def test_amounts_as_users_write_them(kind, text, value):
    (target,) = check(**{kind: text})
    assert target.to_json() == {kind: pytest.approx(value)}


def test_all_of_a_network_is_no_more_than_it():
    assert all(KINDS["latency"].read("100%", full / 997) == full / 997 for full in range(1, 2000))


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("size", "4ms", "size target '4ms' is not an amount above 0; write it as 4MB, 4MiB, 500kB or 60%"),
        ("macs", "4MB", "flops target '4MB' is not an amount above 0; write it as 300M, 1.2G, 300e6 or 60%"),
        ("params", "many", "params target 'many' is not an amount above 0; write it as 2M, 500k, 2e6 or 60%"),
        ("latency", "12M", "latency target '12M' is not an amount above 0; write it as 12ms, 800us, 0.1s or 60%"),
        ("memory", "-1MB", "memory target '-1MB' is not an amount above 0; write it as 20MB, 20MiB, 500kB or 60%"),
        ("latency", 0, "latency target 0 is not an amount above 0; write it as 12ms, 800us, 0.1s or 60%"),
    ],
)
def test_wrong_amounts_are_refused_with_their_text(kind, text, words):
    assert refused(**{kind: text}) == words


# Pairing ----------------------------------------------------------------------------------------------------------------


def amounts(targets):
    return [tuple(target.amounts.values()) for target in targets]


def test_multiply_adds_alone_are_as_they_were():
    wanted = ["40%", 90e6, "100%", "90M", 87_976_448]
    found = check(macs=wanted)
    assert amounts(found) == [(300e6,), (120e6,), (90e6,), (87_976_448,)]
    assert [t.label for t in found] == ["300M", "120M", "90M", "87.98M"]


def test_kinds_with_several_amounts_are_paired_by_rank_and_one_amount_holds_for_all():
    found = check(latency=["5ms", "12ms"], macs=["90M", "200M"], params="2M")
    assert amounts(found) == [(200e6, 2e6, 12), (90e6, 2e6, 5)]
    assert [t.label for t in found] == ["200M_params-2M_12ms", "90M_params-2M_5ms"]
    assert amounts(check(macs=["90M", "90M"], latency=["5ms", "12ms"])) == [(90e6, 12), (90e6, 5)]
    assert amounts(check(macs=["90M", "90M"], size="4MB")) == [(90e6, 4e6)]


def test_every_target_is_met_by_what_meets_a_later_one():
    found = check(macs=["200M", "90M", "150M"], memory=["10MB", "30MB", "20MB"], params="2M")
    for earlier, later in itertools.pairwise(found):
        assert earlier.met(later.amounts)


def test_kinds_without_amounts_are_left_out():
    assert amounts(check(macs=("90M",), params=(), latency=[])) == [(90e6,)]


def test_numbers_of_amounts_that_cannot_be_paired_are_refused():
    assert refused(macs=["90M", "80M"], latency=["9ms", "8ms", "7ms"], params="2M") == (
        "2 flops targets and 3 latency targets cannot be paired; give each kind one amount, or all the same number"
    )


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (
            {"macs": "20M"},
            "flops target 20M is below the narrowest configuration (reachable: 30M to 300M MACs); raise the target, or lower "
            "min_ratio or the divisor of the grid",
        ),
        (
            {"macs": "90M", "memory": "7MB"},
            "memory target 7MB is below the narrowest configuration (reachable: 8MB to 40MB); raise the target, or lower "
            "min_ratio or the divisor of the grid",
        ),
        (
            {"params": "5M"},
            "params target 5M is above the full network (reachable: 400k to 4M parameters); lower it, or take a wider supernet",
        ),
        (
            {"latency": "900us"},
            "latency target 900us is below the narrowest configuration (reachable: 2ms to 20ms); raise the target, or lower "
            "min_ratio or the divisor of the grid",
        ),
        (
            {"size": "17MB", "latency": "0.03s"},
            "size target 17MB with latency target 30ms asks for nothing: the full network meets it (reachable: 1.6MB to 16MB; "
            "reachable: 2ms to 20ms); lower it, or take a wider supernet",
        ),
    ],
)
def test_targets_out_of_reach_are_refused_with_the_range(targets, words):
    assert refused(**targets) == words


@pytest.mark.parametrize(
    ("least", "most"),
    [(30_001_234.0, 299_998_765.0), (64_100, 64_100_000), (5_243_123, 99_999_600.0), (12_344_900, 12_345_678), (9, 9)],
)
def test_the_range_that_is_told_can_be_asked_for(least, most):
    with pytest.raises(autoslim.AutoSlimError) as error:
        check_budgets({"macs": 1}, {"macs": most}, {"macs": least})
    low, high = re.search(r"reachable: (\S+) to (\S+) MACs", str(error.value)).groups()
    for amount in (low, high):
        (target,) = check_budgets({"macs": amount}, {"macs": most}, {"macs": least})
        assert least <= target.amounts["macs"] <= most
    assert KINDS["macs"].read(low, 0) < 1.001 * least and KINDS["macs"].read(high, 0) > 0.999 * most


@pytest.mark.parametrize(
    ("amount", "told"), [(64_099, "64.099k is below"), (64_099.9, "64.0999k is below"), (1_000_001, "1.000001M is above")]
)
def test_an_amount_that_is_refused_is_none_of_the_range_that_is_told(amount, told):
    with pytest.raises(autoslim.AutoSlimError, match=re.escape(f"flops target {told}")):
        check_budgets({"macs": amount}, {"macs": 1e6}, {"macs": 64_100})


@pytest.mark.parametrize(("text", "amount"), [("64.1k", 64_100), ("5.243M", 5_243_000), ("1.001G", 1_001_000_000)])
def test_amounts_are_what_they_say_to_the_last_digit(text, amount):
    assert KINDS["macs"].read(text, 0) == amount


def test_a_kind_that_is_not_counted_is_refused():
    with pytest.raises(autoslim.AutoSlimError, match="budgets do not count memory; pass Budgets"):
        Budgets(supernet(), ["macs"]).check({"macs": "60%", "memory": "50%"})


def test_an_amount_that_the_full_network_meets_simply_holds():
    assert amounts(check(macs=["400M", "90M"], size="10MB")) == [(400e6, 10e6), (90e6, 10e6)]
    assert "flops target 400M is above" in refused(macs=["400M", "90M"])


def test_no_target_and_unknown_kinds_are_refused():
    assert refused(macs=()).startswith("there is no target; name at least one (reachable: 30M to 300M MACs; ")
    assert refused(flops="1M") == "targets are for 'flops'; the kinds are macs, params, size, memory, latency"


def test_labels_are_file_names_that_differ():
    assert [t.label for t in check(size=["4MB", "1.7MB"], memory="20MB")] == [
        "size-4MB_memory-20MB",
        "size-1.7MB_memory-20MB",
    ]
    assert [t.label for t in check(latency=[7.5, 2.25])] == ["7.5ms", "2.25ms"]
    close = [t.label for t in check(macs=[87_976_448, 87_976_449, "90M"])]
    assert close == ["90M", "87.976449M", "87.976448M"]
    huge = {"macs": 5e15, "latency": 1e9}
    for target in check_budgets({"macs": 3.21e15, "latency": 1e6}, huge, dict.fromkeys(huge, 1)):
        assert set(target.label) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


# Gains ------------------------------------------------------------------------------------------------------------------


def test_gain_with_one_kind_left_is_proportional_to_what_is_saved():
    target = Target({"macs": 60.0, "latency": 5.0}, "")
    before = {"macs": 100.0, "latency": 5.0}
    gains = [target.gain(before, {"macs": 100.0 - saved, "latency": 4.0}) for saved in (1, 7, 40, 80)]
    assert gains == pytest.approx([saved / 40 for saved in (1, 7, 40, 80)])


def test_gain_sums_the_missing_parts_and_none_counts_for_more_than_it_lacks():
    target = Target({"macs": 60.0, "latency": 4.0, "params": 9.0}, "")
    before = {"macs": 100.0, "latency": 5.0, "params": 9.0}
    assert target.unmet(before) == ["macs", "latency"] and not target.met(before)
    assert target.gain(before, {"macs": 90.0, "latency": 4.5, "params": 1.0}) == pytest.approx(10 / 40 + 0.5 / 1)
    assert target.gain(before, {"macs": 90.0, "latency": 1.0, "params": 9.0}) == pytest.approx(10 / 40 + 1)
    assert target.gain(before, {"macs": 90.0, "latency": 6.0, "params": 9.0}) == pytest.approx(10 / 40)
    assert target.gain({"macs": 60.0, "latency": 4.0, "params": 9.0}, {"macs": 1.0, "latency": 1.0, "params": 1.0}) == 0


def test_candidates_that_save_nothing_of_what_is_missing_are_out_unless_none_does():
    target = Target({"macs": 60.0, "latency": 4.0}, "")
    before = {"macs": 50.0, "latency": 5.0}
    some = {"a": {"macs": 40.0, "latency": 5.0}, "b": {"macs": 49.0, "latency": 4.9}, "c": {"macs": 50.0, "latency": 5.0}}
    assert target.gains(before, some) == {"b": pytest.approx(0.1)}
    del some["b"]
    assert target.gains(before, some) == {"a": pytest.approx(0.2)}
    del some["a"]
    assert target.gains(before, some) == {"c": 1.0}


def test_a_greedy_walk_along_the_gains_reaches_every_target():
    net = supernet(tricky.SqueezeExcite)
    budgets = Budgets(net, ["macs", "memory", "latency"], latency=lambda widths: sum(w // 8 for w in widths.values()) + 1)
    targets = budgets.check({"macs": ["90%", "60%"], "memory": ["95%", "80%"], "latency": "90%"})
    widths = net.full().widths
    for target in targets:
        while not target.met(costs := budgets.costs(widths)):
            narrower = {
                name: {**widths, name: net.choices[name][net.choices[name].index(width) - 1]}
                for name, width in widths.items()
                if width > net.choices[name][0]
            }
            gains = target.gains(costs, {name: budgets.costs(each) for name, each in narrower.items()})
            assert all(gain > 0 for gain in gains.values())
            widths = narrower[max(gains, key=gains.get)]
    assert all(target.met(budgets.costs(widths)) for target in targets)
