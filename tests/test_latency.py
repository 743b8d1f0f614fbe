import contextlib
import dataclasses
import itertools
import json
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from all_cases import ALL_CASES
from torch import nn

import autoslim
from autoslim import files
from autoslim.channels.trace import as_inputs
from autoslim.cost import latency, latency_records, latency_table
from autoslim.cost.latency import (
    Latency,
    LatencySetup,
    _cpu_name,
    measure,
    measure_rounds,
    remeasure,
    time_calls,
    using_threads,
    width_message,
)
from autoslim.cost.latency_parts import Parts
from autoslim.cost.latency_table import fitted_line, open_latency_table
from autoslim.errors import ConfigError, ModelError, RunError
from autoslim.slimmable import family
from cli import printed, refused, run


class Residual(nn.Module):
    """Groups: stem (with conv2, which is added), conv1. 1x8x8 -> 5."""

    def __init__(self, stem=32, inner=48):
        super().__init__()
        self.stem = nn.Conv2d(1, stem, 3, padding=1)
        self.conv1 = nn.Sequential(nn.Conv2d(stem, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner), nn.ReLU())
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.conv2 = nn.Conv2d(inner, stem, 1)
        self.head = nn.Linear(stem, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        x = x + self.conv2(self.depthwise(self.conv1(x)))
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """Two concatenations, the second of all that came before."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 16, 1)
        self.b = nn.Conv2d(16, 24, 1)
        self.c = nn.Conv2d(40, 32, 1)
        self.d = nn.Conv2d(72, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        a = self.a(x)
        ab = torch.cat([a, self.b(a)], 1)
        abc = torch.cat([ab, self.c(ab)], 1)
        return self.head(self.d(abc).flatten(2).mean(2))


EXAMPLE = torch.zeros(1, 1, 8, 8)


def supernet(model=Residual, **grid):
    torch.manual_seed(0)
    return autoslim.Supernet(model(), EXAMPLE, **grid)


class Fake:
    """A clock of known arithmetic: a layer takes a microsecond for each weight, and some for each call."""

    def __init__(self, *, scale=1.0, constant=0.0, limit=None, each=0.0):
        self.scale, self.constant, self.limit, self.each = scale, constant, limit, each
        self.parts, self.networks = [], []

    def __call__(self, network, inputs, setup, *, whole=True):
        calls = self.networks if whole else self.parts
        if self.limit is not None and len(self.parts) + len(self.networks) >= self.limit:
            raise KeyboardInterrupt
        with torch.no_grad():
            network.eval()(*inputs)  # what is measured runs
        calls.append(str(network))
        ms = self.weights(network) if not whole else self.scale * self.weights(network) + self.constant
        return Latency(ms + (0 if whole else self.each), ms, ms, 7, "fake")

    def weights(self, network):
        return sum(p.numel() for p in network.parameters() if p.dim() > 1) / 1000


def weights(net, config):
    return sum(p.numel() for p in autoslim.materialize(net, config).parameters() if p.dim() > 1) / 1000


# The table -------------------------------------------------------------------------------------------------------------


def test_the_sum_of_the_parts_is_the_network():
    net, fake = supernet(), Fake()
    table = open_latency_table(net, EXAMPLE, measure=fake)
    for stem, inner in itertools.product(net.choices["stem"], net.choices["conv1.0"]):
        config = net.make_config([stem, inner])
        assert table.sum_of_parts(config) == pytest.approx(weights(net, config))
        assert table.milliseconds(config.widths) == pytest.approx(weights(net, config))
    assert table.factor == pytest.approx(1) and table.constant_ms == pytest.approx(0, abs=1e-6)
    assert table.full.median_ms == pytest.approx(weights(net, net.full()))
    assert table.narrowest.median_ms == pytest.approx(weights(net, net.narrowest()))


def test_the_sum_is_fitted_to_whole_networks_and_checked_on_others():
    net, fake = supernet(divisor=4), Fake(scale=0.5, constant=3.0)
    table = open_latency_table(net, EXAMPLE, measure=fake, rounds=1)
    assert table.factor == pytest.approx(0.5) and table.constant_ms == pytest.approx(3.0)
    fitted = set(fake.networks)
    found = table.check(20)
    assert found["configurations"] == 20 and found["median_error"] < 1e-6 and found["worst_error"] < 1e-6
    raw = sorted(abs(row["sum_ms"] / (0.5 * row["sum_ms"] + 3) - 1) for row in found["rows"])
    assert found["raw_worst_error"] == pytest.approx(raw[-1], rel=1e-4)
    assert found["raw_median_error"] == pytest.approx((raw[9] + raw[10]) / 2, rel=1e-4)
    checked = [tuple(row["widths"].values()) for row in found["rows"]]
    assert len(set(checked)) == 20
    assert not fitted & set(fake.networks[-20:])


@pytest.mark.parametrize("least", [0.0, 5.0])
def test_disturbed_networks_do_not_move_what_a_sum_is_fitted_to(least):
    sums = np.linspace(2, 10, 16)
    times = np.maximum(0.8 * sums + 1.5, least)
    disturbed = times.copy()
    disturbed[[0, 3, 8, 12, 14]] *= (1.5, 3.0, 1.2, 2.0, 1.7)
    assert fitted_line(sums, times, least) == pytest.approx((0.8, 1.5))
    assert fitted_line(sums, disturbed, least) == pytest.approx((0.8, 1.5))


def test_a_disturbed_while_does_not_move_the_fit():
    net, calls, slow = supernet(divisor=4), [], range(0)

    def disturbed(network, inputs, setup, *, whole):
        calls.append(network)
        return Latency((3 if len(calls) in slow else 1) * Fake().weights(network), 0.0, 10.0, 7, "fake")

    open_latency_table(net, EXAMPLE, measure=disturbed)
    for start in range(7, len(calls), len(calls) // 6):  # the widest and the narrowest network come first
        calls.clear()
        slow = range(start, start + 40)
        table = open_latency_table(net, EXAMPLE, measure=disturbed)
        assert (table.factor, table.constant_ms) == pytest.approx((1, 0), abs=1e-6)


def test_no_prediction_is_below_what_launching_takes():
    net = supernet(divisor=4)
    table = open_latency_table(net, EXAMPLE, measure=Fake(), rounds=1)
    table.least_ms = (weights(net, net.full()) + weights(net, net.narrowest())) / 2
    assert table.milliseconds(net.narrowest()) == table.least_ms
    assert table.milliseconds(net.full()) == pytest.approx(weights(net, net.full()))


def test_where_no_wider_network_takes_longer_time_goes_with_the_sum():
    assert fitted_line([2.0, 4.0, 8.0], [3.0, 3.0, 3.0], 0.0) == (0.75, 0.0)


def test_equal_parts_are_measured_once_a_round():
    class Repeats(nn.Sequential):
        def __init__(self):
            layers = [nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()) for _ in range(4)]
            super().__init__(nn.Conv2d(1, 16, 3, padding=1), *layers, nn.Flatten(), nn.Linear(1024, 5))

    net, fake = supernet(Repeats), Fake()
    table = open_latency_table(net, EXAMPLE, measure=fake, rounds=2)
    choices = len(net.choices["0"])
    # The pairs of a repeated layer, the stem, the last block (which is flattened), and the head.
    assert table.points == choices**2 + choices + choices**2 + choices
    assert len(fake.parts) == 2 * table.points


def test_parts_follow_layers_and_what_belongs_to_them():
    parts = Parts(supernet(), (EXAMPLE,)).parts
    assert [[node.name for node in part.nodes] for part in parts] == [
        ["stem", "relu"],
        ["conv1_0", "conv1_1", "conv1_2"],
        ["depthwise"],
        ["conv2", "add", "mean"],
        ["head"],
    ]
    assert [len(part.axes) for part in parts] == [1, 2, 1, 2, 1]


def test_two_widths_of_a_layer_are_measured_at_least():
    with pytest.raises(ConfigError, match="points is 1"):
        open_latency_table(supernet(), EXAMPLE, measure=Fake(), points=1)


def test_the_spread_of_few_repeats_lies_within_them():
    found = Latency.of([1.0, 9.0], "cpu")
    assert 1 <= found.low_ms < found.median_ms == 5 < found.high_ms <= 9


def test_between_measured_widths_the_table_is_bilinear():
    net = supernet()
    all_pairs = open_latency_table(net, EXAMPLE, measure=Fake(), rounds=1)
    ends = open_latency_table(net, EXAMPLE, measure=Fake(), rounds=1, points=2)
    assert ends.points < all_pairs.points / 3
    # The weights of a layer are a product of its widths (but for the depthwise one, linear), which is what bilinear means.
    for config in (net.make_config([24, 16]), net.full(), net.narrowest(), net.make_config([16, 40])):
        assert ends.sum_of_parts(config) == pytest.approx(weights(net, config))


def test_many_widths_that_meet_are_measured_by_their_sum():
    net = supernet(Dense)
    table = open_latency_table(net, EXAMPLE, measure=Fake(), rounds=1)
    assert max(len(part.axes) for part in Parts(net, (EXAMPLE,)).parts) == 2
    for ratio in (0.25, 0.5, 1.0):
        config = net.uniform(ratio)
        assert table.sum_of_parts(config) == pytest.approx(weights(net, config), rel=0.02)


def test_a_narrower_network_is_predicted_no_slower_however_noisy_the_measurements():
    class Noisy(Fake):
        generator = torch.Generator().manual_seed(0)

        def weights(self, network):
            return super().weights(network) * (0.5 + torch.rand((), generator=self.generator).item())

        def __call__(self, *args, whole, **kwargs):
            found = super().__call__(*args, whole=whole, **kwargs)
            return dataclasses.replace(found, low_ms=0.0, high_ms=3 * found.median_ms)

    net = supernet()
    table = open_latency_table(net, EXAMPLE, measure=Noisy(), rounds=1)
    for first, second in itertools.pairwise(net.choices["stem"]):
        for inner in net.choices["conv1.0"]:
            assert table.milliseconds({"stem": first, "conv1.0": inner}) <= table.milliseconds({"stem": second, "conv1.0": inner})


def test_what_is_slower_beyond_its_spread_stays():
    times = np.array([1.0, 5.0, 3.0, 4.0])
    wide, tight = np.full(4, 10.0), times + 0.25
    assert latency_table._smooth(times, 0 * times, wide).tolist() == [1.0, 4.0, 4.0, 4.5]
    assert latency_table._smooth(times, times - 0.25, tight).tolist() == [1.0, 4.75, 3.25, 4.25]


def test_the_median_over_rounds_is_what_counts():
    class Spoilt(Fake):
        def __call__(self, network, inputs, setup, *, whole):
            known = (self.networks if whole else self.parts).count(str(network))
            ms = super().__call__(network, inputs, setup, whole=whole).median_ms
            return Latency(1000.0 if known == 1 else ms, ms, ms, 7, "fake")

    class Plain(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 5))

    net = supernet(Plain)
    assert open_latency_table(net, EXAMPLE, measure=Spoilt()).sum_of_parts(net.full()) == pytest.approx(weights(net, net.full()))


# The file --------------------------------------------------------------------------------------------------------------


def test_a_table_goes_on_where_it_was_cut_off(tmp_path):
    net, path, whole = supernet(), tmp_path / "table.json", Fake()
    expected = open_latency_table(net, EXAMPLE, measure=whole)
    needed = len(whole.parts) + len(whole.networks)
    first = Fake(limit=needed // 2)
    with pytest.raises(KeyboardInterrupt):
        open_latency_table(net, EXAMPLE, path, measure=first)
    second = Fake()
    table = open_latency_table(net, EXAMPLE, path, measure=second)
    assert len(first.parts) + len(first.networks) + len(second.parts) + len(second.networks) == needed
    assert sorted(first.parts + second.parts) == sorted(whole.parts)
    for config in (net.full(), net.narrowest(), net.uniform(0.5)):
        assert table.milliseconds(config) == pytest.approx(expected.milliseconds(config))
    third = Fake(limit=0)
    again = open_latency_table(net, EXAMPLE, path, measure=third)
    assert again.milliseconds(net.uniform(0.5)) == table.milliseconds(net.uniform(0.5))
    checked = table.check(5)
    assert open_latency_table(net, EXAMPLE, path, measure=third).check(5) == checked


def test_who_waited_for_another_process_finds_what_that_measured(tmp_path, monkeypatch):
    path, first, second = tmp_path / "table.json", Fake(), Fake(limit=0)

    @contextlib.contextmanager
    def waits(which, _):
        monkeypatch.setattr(latency_records, "in_turn", files.in_turn)
        open_latency_table(supernet(), EXAMPLE, which, measure=first, rounds=1)
        yield

    monkeypatch.setattr(latency_records, "in_turn", waits)
    table = open_latency_table(supernet(), EXAMPLE, path, measure=second, rounds=1)
    assert first.parts and table.points == len(json.loads(path.read_text())["points"])
    path.unlink()
    assert open_latency_table(supernet(), EXAMPLE, path, measure=Fake(), rounds=1).check(3)  # what is known stays known
    assert os.listdir(tmp_path) == ["table.json"]


def test_a_file_says_how_it_was_measured(tmp_path):
    net, path = supernet(), tmp_path / "table.json"
    open_latency_table(net, EXAMPLE, path, setup=LatencySetup(batch=2, threads=1), measure=Fake())
    document = json.loads(path.read_text())
    assert document["setup"] == {
        "device": "cpu", "batch": 2, "threads": 1, "backend": "torch", "device_name": LatencySetup().device_name, "dtype": "float32",
    }  # fmt: skip
    assert document["versions"]["torch"] == torch.__version__
    assert all(len(rows) == 3 and rows[0][3] == 7 for kind in ("points", "networks") for rows in document[kind].values())


def test_a_table_of_another_case_is_refused(tmp_path):
    net, path = supernet(), tmp_path / "table.json"
    open_latency_table(net, EXAMPLE, path, measure=Fake())
    for setup, told in (
        (LatencySetup(batch=4), "batch 1, not 4"),
        (LatencySetup(threads=3), "threads 1, not 3"),
    ):
        with pytest.raises(RunError, match=told):
            open_latency_table(net, EXAMPLE, path, setup=setup, measure=Fake(limit=0))
    for other in (supernet(Dense), supernet(divisor=4)):
        with pytest.raises(RunError, match="network .* not .* pass another file"):
            open_latency_table(other, EXAMPLE, path, measure=Fake(limit=0))
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "setup": {**document["setup"], "device_name": "abacus"}}))
    with pytest.raises(RunError, match="device_name abacus, not"):
        open_latency_table(net, EXAMPLE, path, measure=Fake(limit=0))
    for text, told in (("{", "not whole JSON"), ("[]", "no latency table"), ('{"format": "autoslim.latency/1"}', "damaged")):
        path.write_text(text)
        with pytest.raises(RunError, match=told):
            open_latency_table(net, EXAMPLE, path, measure=Fake(limit=0))


def test_what_cannot_be_measured_in_parts_is_refused():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Residual()

        def forward(self, x):
            return self.inner(x) if x.sum() > 1 else self.inner(x + 1)

    with pytest.raises(ModelError, match="latency table needs a network that can be traced"):
        open_latency_table(supernet(Branches), EXAMPLE, measure=Fake())


# Parts are what the network does ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL_CASES, ids=lambda kind: kind.__name__)
def test_every_part_of_any_network_runs_at_any_width(kind):
    torch.manual_seed(0)
    inputs = kind.inputs(2)
    net = autoslim.Supernet(kind(), inputs, divisor=1, steps=4)
    parts = Parts(net, as_inputs(inputs))
    for config in (net.full(), net.narrowest(), net.random(torch.Generator().manual_seed(1))):
        for part in parts.parts:
            widths = np.array(list(config.widths.values()))
            module, given = parts.build(part, widths)
            with torch.no_grad():
                module.eval()(*given)
            assert parts.key(part, widths)


@pytest.mark.parametrize("model", [Residual, Dense])
def test_the_parts_of_a_configuration_have_its_weights_and_shapes(model):
    net = supernet(model)
    parts = Parts(net, (EXAMPLE.expand(2, -1, -1, -1),))
    config = net.uniform(0.5)
    total, plain = 0, autoslim.materialize(net, config)
    for part in parts.parts:
        module, inputs = parts.build(part, np.array(list(config.widths.values())))
        module.eval()(*inputs)
        total += sum(p.numel() for p in module.parameters())
        assert all(len(x) == 2 for x in inputs)
        assert not any(type(m).__module__.startswith("autoslim") for m in module.modules())
    assert total == sum(p.numel() for p in plain.parameters())


def test_parts_are_laid_out_as_they_are_in_the_network():
    class Mixed(nn.Sequential):  # the second conv reads what lies channel by channel, as behind a channel shuffle
        def forward(self, x):
            return self[2](self[1](self[0](x).contiguous().relu())).mean((2, 3))

    net = autoslim.Supernet(Mixed(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))), torch.zeros(1, 16, 8, 8))
    family.lay_out(net, torch.channels_last)
    parts = Parts(net, (torch.zeros(2, 16, 8, 8).contiguous(memory_format=torch.channels_last),))
    widths = np.array(list(net.narrowest().widths.values()))
    given = [parts.build(part, widths)[1][0] for part in parts.parts]
    assert [x.is_contiguous() for x in given] == [False, True, False]
    keys = [parts.key(part, np.array(list(net.full().widths.values()))) for part in parts.parts]
    assert ["channels last" in key for key in keys] == [True, False, True]


def test_a_network_that_comes_from_a_gpu_is_laid_out_as_one_that_is_built_on_the_cpu():
    there = family.lay_out(supernet(Residual), torch.channels_last)  # what a move from a GPU keeps
    net, example = latency_table._copied_to(there, torch.device("cpu")), (EXAMPLE,)
    full, keys = np.array([width.full for width in net.widths]), []
    for each in (supernet(Residual), net, there):
        parts = Parts(each, example)
        keys.append([parts.key(part, full) for part in parts.parts])
    assert keys[0] == keys[1] != keys[2]
    assert not there.source.get_parameter("conv1.0.weight").is_contiguous()


def test_a_supernet_is_measured_on_the_device_of_the_setup(monkeypatch):
    class Made(Residual):
        def forward(self, x):
            return super().forward(x + torch.ones(1, 1, 8, 8, device=x.device))

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "another device")
    net, fake = supernet(Made), Fake()
    table = open_latency_table(net, EXAMPLE, setup=LatencySetup(device="meta"), measure=fake, rounds=1)
    assert {p.device.type for p in net.parameters()} == {"cpu"} and {p.device.type for p in table.net.parameters()} == {"meta"}
    assert table.milliseconds(net.narrowest()) == pytest.approx(
        open_latency_table(net, EXAMPLE, measure=Fake()).milliseconds(net.narrowest())
    )


# Measuring -------------------------------------------------------------------------------------------------------------


def test_calls_are_timed_until_both_floors_are_met():
    now = itertools.count()
    cpu = torch.device("cpu")
    calls = []
    times = time_calls(lambda: calls.append(1), cpu, repeats=4, warmup=2, seconds=6, clock=lambda: next(now))
    assert times == [1000.0] * 6 and len(calls) == 8
    calls.clear()
    times = time_calls(lambda: calls.append(1), cpu, repeats=4, warmup=0, seconds=0, row=5.0, clock=lambda: next(now))
    assert times == [200.0] * 4 and len(calls) == 1 + 20  # one tells how many make a row
    calls.clear()
    times = time_calls(lambda: calls.append(1), cpu, repeats=4, warmup=0, seconds=0, row=0.5, clock=lambda: next(now))
    assert times == [1000.0] * 4 and len(calls) == 1 + 4


def test_latency_is_median_and_percentiles():
    found = Latency.of([float(i) for i in range(1, 10)], "here")
    assert (found.median_ms, found.low_ms, found.high_ms, found.repeats) == (5.0, 1.0, 9.0, 9)
    rounds = [Latency(m, m - 1, m + 1, 10, "here") for m in (3.0, 9.0, 4.0)]
    assert Latency.over(rounds) == Latency(4.0, 3.0, 5.0, 30, "here")


def test_threads_are_set_and_come_back():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), using_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == before


def test_a_network_is_measured_and_left_as_it_was():
    network = Residual()
    found = measure_rounds(network, EXAMPLE, LatencySetup(), rounds=2)
    assert found.repeats >= 40 and 0 < found.low_ms <= found.median_ms <= found.high_ms
    assert network.training
    before = torch.get_num_threads()
    found = measure(network, (EXAMPLE,), LatencySetup(threads=before + 1))
    assert found.repeats >= 20 and found.device == LatencySetup().device_name
    assert network.training and torch.get_num_threads() == before


def test_a_setup_repeats_one_example():
    (x,) = LatencySetup(batch=3).inputs(torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 8, 8))
    assert x.shape == (3, 1, 8, 8) and not x.any() and x.is_contiguous()
    for wrong in ({"batch": 0}, {"threads": 0}, {"backend": "abacus"}, {"backend": "onnxruntime", "device": "cuda"}):
        with pytest.raises(RunError):
            LatencySetup(**wrong)


def test_a_final_network_is_measured_against_its_target(monkeypatch):
    seen = []

    def fake(network, inputs, setup, *, whole=True):
        seen.append((tuple(inputs[0].shape), setup))
        return Latency(2.0, 1.0, 3.0, 10, "fake")

    monkeypatch.setattr(latency, "measure", fake)
    setup = LatencySetup(batch=4)
    found = remeasure(Residual(), EXAMPLE, target_ms=2.0, setup=setup, rounds=3)
    assert found.holds and found.latency == Latency(2.0, 1.0, 3.0, 30, "fake") and seen == [((4, 1, 8, 8), setup)] * 3
    assert not remeasure(Residual(), EXAMPLE, target_ms=1.9, setup=setup).holds
    assert found.to_json()["latency"]["median_ms"] == 2.0


def test_a_device_that_width_does_not_help_is_told_before_anything_else():
    full = Latency(10.0, 9.0, 11.0, 5, "wide device")
    assert width_message(full, Latency(8.0, 7.0, 9.0, 5, "wide device")) is None
    told = width_message(full, Latency(9.0, 8.0, 9.0, 5, "wide device"))
    assert "wide device" in told and "90%" in told and "\n" not in told
    fake, lines = Fake(scale=0.0, constant=5.0), []
    table = open_latency_table(supernet(), EXAMPLE, measure=fake, before=lambda *ends: lines.append((ends, len(fake.parts))))
    assert lines == [((table.full, table.narrowest), 0)] and "100%" in table.message


def test_one_torch_table_end_to_end(tmp_path):
    net = supernet(steps=2)
    table = open_latency_table(net, EXAMPLE, tmp_path / "table.json", rounds=1, calibration=3)
    assert table.milliseconds(net.full()) > 0
    found = table.check(2)
    assert 0 < found["configurations"] <= 2 and all(row["measured_ms"] > 0 for row in found["rows"])


# ONNX Runtime ----------------------------------------------------------------------------------------------------------


def test_onnxruntime_gives_the_same_output():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from autoslim.cost.onnx_backend import onnx_call

    torch.manual_seed(0)
    network, x = Residual().eval(), torch.randn(2, 1, 8, 8)
    (output,) = onnx_call(network, (x,), threads=1)()
    torch.testing.assert_close(torch.from_numpy(output), network(x).detach(), rtol=1e-4, atol=1e-5)
    found = measure(network, (x,), LatencySetup(batch=2, backend="onnxruntime"))
    assert found.median_ms > 0 and found.repeats >= 20


def test_every_part_runs_in_onnxruntime():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    net = supernet(steps=2)
    table = open_latency_table(net, EXAMPLE, setup=LatencySetup(backend="onnxruntime"), rounds=1, calibration=3)
    assert table.milliseconds(net.full()) > 0


def test_missing_onnxruntime_names_the_extra(monkeypatch):
    for name in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RunError, match=r"pip install 'autoslim\[onnx\]'"):
        measure(Residual(), (EXAMPLE,), LatencySetup(backend="onnxruntime"))


# The verb --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def faked(monkeypatch):
    def use(fake):
        monkeypatch.setitem(open_latency_table.__kwdefaults__, "measure", fake)

    return use


def test_the_verb_measures_checks_and_goes_on(tmp_path, capsys, faked):
    path = tmp_path / "table.json"
    faked(Fake(scale=2.0, constant=1.0))
    found = printed(capsys, "latency-table", "digits_cnn", "--device", "cpu", "--out", path, "--check", 4, "--points", 2)
    assert found["check"]["configurations"] == 4 and found["check"]["median_error"] < 1e-4 and found["factor"] == pytest.approx(2)
    assert found["measured"] == len(json.loads(path.read_text())["points"])
    faked(Fake(limit=0))
    assert run("latency-table", "digits_cnn", "--device", "cpu", "--out", path, "--check", 4, "--points", 2) == 0
    out, _ = capsys.readouterr()
    assert "4 random configurations: median absolute error" in out
    told = refused(capsys, "latency-table", "digits_cnn", "--device", "cpu", "--out", path, "--batch", 2)
    assert "batch 1, not 2" in told
    path.write_text(path.read_text().replace(f'"torch": "{torch.__version__}"', '"torch": "0.1"'))
    told = refused(capsys, "latency-table", "digits_cnn", "--device", "cpu", "--out", path)
    assert f"torch 0.1, not {torch.__version__}" in told


def test_a_network_without_other_configurations_is_not_compared(tmp_path, capsys, monkeypatch, faked):
    assert open_latency_table(supernet(divisor=32), EXAMPLE, measure=Fake()).check(5) is None
    monkeypatch.setattr(latency_table, "_draw", lambda *args: [])
    faked(Fake())
    args = ("latency-table", "digits_cnn", "--device", "cpu", "--out", tmp_path / "t.json", "--points", 2)
    assert run(*args) == 0
    assert "no other configurations to compare predictions with" in capsys.readouterr().out
    assert printed(capsys, *args)["check"] is None


def test_cpus_without_a_name_are_told_apart(monkeypatch):
    files = {
        "/proc/cpuinfo": "processor: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n\nprocessor: 1\nCPU part\t: 0xd05\n",
        "/proc/device-tree/model": "Raspberry Pi 5 Model B\0",
    }
    monkeypatch.setattr("autoslim.cost.latency.Path.read_text", lambda path, **_: files[str(path)])
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    name = _cpu_name.__wrapped__
    assert name() == "aarch64, implementer 0x41 part 0xd0b, Raspberry Pi 5 Model B"
    files["/proc/cpuinfo"] = "processor : 0\nmodel name\t: AMD EPYC\nprocessor : 1\nmodel name\t: other\n"
    assert name() == "AMD EPYC"


def test_the_verb_says_that_width_does_not_help(tmp_path, capsys, faked):
    faked(Fake(scale=0.0, constant=1.0))
    args = ("latency-table", "digits_cnn", "--device", "cpu", "--out", tmp_path / "t.json", "--check", 0, "--points", 2)
    assert run(*args) == 0
    _, err = capsys.readouterr()
    assert "width hardly helps on" in err


def test_a_search_measures_its_own_table_once(tmp_path, capsys, faked, monkeypatch):
    folder = tmp_path / "run"
    assert run("train", "digits_cnn", "--data", "digits", "--epochs", 1, "--out", folder, "--device", "cpu") == 0
    fake = Fake(scale=2.0, constant=1.0)
    faked(fake)
    monkeypatch.setattr(latency, "measure", fake)  # what measures a found network
    command = ("search", folder, "--latency-target", "60%", "--batch", 2, "--out", tmp_path / "out")
    (searched, _) = printed(capsys, *command)
    (path,) = folder.glob("latency-*.json")
    assert searched["provenance"]["latency"]["holds"] and fake.parts and json.loads(path.read_text())["points"]
    before = {each: each.read_bytes() for each in (path, *(tmp_path / "out").iterdir())}
    faked(Fake(limit=0))
    monkeypatch.setattr(latency, "measure", Fake(limit=0))
    assert run(*command) == 0
    assert printed(capsys, "latency-table", folder, "--device", "cpu", "--batch", 2, "--check", 0)["path"] == str(path)
    assert {each: each.read_bytes() for each in before} == before


@pytest.mark.parametrize(("backend", "threads", "clock"), [
    ("torch", 1, time.thread_time), ("torch", 2, time.perf_counter), ("onnxruntime", 1, time.thread_time)
])  # fmt: skip
@pytest.mark.skipif(sys.platform == "win32", reason="there the clock of a thread ticks every 16 ms")
def test_on_one_thread_latency_is_the_time_of_that_thread(monkeypatch, backend, threads, clock):
    if backend == "onnxruntime":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    clocks, real = [], latency.time_calls
    monkeypatch.setattr(latency, "time_calls", lambda *args, **how: clocks.append(how["clock"]) or real(*args, **how))
    measure(Residual(), (EXAMPLE,), LatencySetup(threads=threads, backend=backend))
    assert clocks == [clock]


def test_a_search_meets_a_latency_and_measures_what_it_found(tmp_path, capsys, faked, monkeypatch):
    faked(Fake(scale=2.0, constant=1.0))
    run_folder, path = tmp_path / "run", tmp_path / "table.json"
    assert run("train", "digits_cnn", "--data", "digits", "--epochs", 1, "--out", run_folder, "--device", "cpu") == 0
    table = ("latency-table", run_folder, "--device", "cpu", "--batch", 4, "--out", path, "--check", 0)
    assert "--input-shape is that of the run" in refused(capsys, *table, "--input-shape", "1,9,9", code=2) and not path.exists()
    assert run(*table, "--points", 3) == 0
    faked(Fake(limit=0))  # nothing is missing in the table, for itself or for a search
    assert run(*table) == 0
    measured = []

    def fake(network, inputs, setup, *, whole=True):
        measured.append((len(inputs[0]), 2 * sum(p.numel() for p in network.parameters() if p.dim() > 1) / 1000 + 1))
        return Latency(measured[-1][1], 1.0, 3.0, 10, "fake")

    monkeypatch.setattr(latency, "measure", fake)
    wanted = ("--latency-target", "60%", "--latency-target", "40%", "--flops-target", "90%", "--latency-table", path)
    found = printed(capsys, "search", run_folder, *wanted, "--out", tmp_path / "out")
    searched = [each for each in found if each["provenance"]["kind"] == "searched"]
    assert len(searched) == 2
    for each in searched:
        about = each["provenance"]
        assert about["costs"]["macs"] <= about["target"]["macs"]
        # By the fake clock, what was predicted is what is measured on the materialised network.
        assert about["costs"]["latency"] == pytest.approx(about["latency"]["latency"]["median_ms"], rel=1e-3)
        assert about["latency"]["holds"] and about["latency"]["latency"]["median_ms"] <= about["target"]["latency"]
        assert about["terms"] | {"batch": 4, "threads": 1, "backend": "torch"} == about["terms"]
    assert {count for count, _ in measured} == {4}
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    measured.clear()
    printed(capsys, "search", run_folder, *wanted, "--out", tmp_path / "out")
    assert not measured and {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == files
    path_of_one = Path(searched[0]["path"])
    path_of_one.write_text(path_of_one.read_text().replace(torch.__version__, "0.1"))  # measured under another version
    printed(capsys, "search", run_folder, *wanted, "--out", tmp_path / "out")
    assert measured and path_of_one.read_bytes() == files[path_of_one.name]
    message = refused(capsys, "search", run_folder, "--latency-target", "1us", "--latency-table", path, "--out", tmp_path / "no")
    assert "latency target 1us is below the narrowest" in message and not (tmp_path / "no").exists()
    faked(fake := Fake(scale=2.0, constant=1.0))
    alone = ("search", run_folder, "--latency-table", path, "--out", tmp_path / "alone", "--latency-target", "60%")
    assert run(*alone) == 0 and run(*alone, "--latency-target", "50%") == 0
    document = json.loads(path.read_text())
    for row in next(iter(document["points"].values())):
        row[:3] = [2 * value for value in row[:3]]  # as measured at another time
    path.write_text(json.dumps(document))
    assert "holds another run (search.budgets.table was" in refused(capsys, *alone, "--latency-target", "40%")
    path.write_text(path.read_text().replace('"device": "cpu"', '"device": "cuda:9"'))
    told = refused(capsys, "search", run_folder, *wanted, "--out", tmp_path / "out")
    assert f"{path} was measured on 'cuda:9', which is not available here; pass a table of this machine" in told
    for far in ("1us", "0.1%"):  # no table is measured for it
        told = refused(capsys, "search", run_folder, "--latency-target", far, "--batch", 2, "--out", tmp_path / "no")
        assert "is below the narrowest configuration" in told and fake.networks and not fake.parts
    told = refused(capsys, "search", run_folder, "--latency-target", "9s", "--batch", 2, "--out", tmp_path / "no")
    assert "latency target 9000ms is above the full network (reachable: " in told and not fake.parts
    faked(fake := Fake(limit=0))
    for other in ("--batch", "--threads"):  # said before a table is measured for it
        told = refused(capsys, "search", run_folder, "--out", tmp_path / "alone", "--latency-target", "60%", other, 8)
        assert "holds another run" in told and f"search.budgets.{other[2:]} was " in told and not fake.networks


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (["--latency-target", "12M"], "latency target '12M' is"),
        (["--latency-target", "5ms", "--latency-device", "nonsense"], "device 'nonsense' is not available here"),
        (["--latency-target", "5ms", "--flops-target", "1k"], "flops target 1k is below the narrowest"),
        (["--latency-target", "5ms", "--latency-target", "4ms", *["--flops-target", "60%"] * 3], "cannot be paired"),
        (["--latency-target", "60%", "--latency-target", "120%"], "latency target 120% is above the full network"),
        ([*["--latency-target", "5ms"] * 2, *["--flops-target", "60%"] * 3], "cannot be paired"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_before_anything_is_measured(tmp_path, capsys, monkeypatch, options, rule):
    run_folder = tmp_path / "run"
    assert run("train", "digits_cnn", "--data", "digits", "--epochs", 1, "--out", run_folder, "--device", "cpu") == 0
    monkeypatch.setattr(latency, "measure", None)
    before = sorted(run_folder.iterdir())
    assert rule in refused(capsys, "search", run_folder, "--device", "cpu", *options)
    assert sorted(run_folder.iterdir()) == before


def test_threads_are_not_taken_for_a_gpu(tmp_path, capsys):
    wanted = ("--latency-target", "5ms", "--latency-device", "cuda", "--threads", 2)
    assert "--threads is for a CPU" in refused(capsys, "search", tmp_path, *wanted, code=2)
