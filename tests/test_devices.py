"""A search where the weights are: on the CPU, and on a GPU of a machine that has one."""

import math
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import tricky
from tricky import randomized

import autoslim
from autoslim import allocator
from autoslim.cost.latency import LatencySetup, remeasure
from autoslim.cost.latency_table import open_latency_table
from autoslim.search import engine, ranks
from autoslim.search.engine import PartialEvaluator
from autoslim.search.evaluate import SupernetEvaluator
from autoslim.search.ranks import Ranks
from autoslim.slimmable.family import lay_out, place
from cli import printed, run

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NO_GPU)])
kinds = pytest.mark.parametrize("kind", [tricky.Residual, tricky.Concat])


def supernet(kind, device):
    torch.manual_seed(0)
    return place(autoslim.Supernet(randomized(kind()), torch.randn(1, 3, 8, 8), divisor=1, steps=4), device)


def data(device, seed, *sizes):
    generator = torch.Generator().manual_seed(seed)
    batches = [(torch.randn(n, 3, 8, 8, generator=generator), torch.randint(0, 3, (n,), generator=generator)) for n in sizes]
    return [(x.to(device), target.to(device)) for x, target in batches]


def search(evaluator, **options):
    trace = autoslim.SearchTrace()
    points = list(
        autoslim.greedy_search(
            evaluator.net, targets={"macs": ["60%"]}, score="loss", evaluator=evaluator, trace=trace, **options
        )
    )
    return trace, points


@devices
@kinds
def test_a_descent_in_parts_decides_as_one_that_runs_every_candidate_whole(kind, device):
    net = supernet(kind, device)
    images, calibration = data(device, 1, 60, 30), data(device, 2, 16, 8)
    (parts, points), (whole, expected) = (
        search(evaluator(net, images, calibration), effort="exact") for evaluator in (PartialEvaluator, SupernetEvaluator)
    )
    assert [(c.group, c.width) for c in parts.path_taken()] == [(c.group, c.width) for c in whole.path_taken()]
    assert [p.config.channels for p in points] == [p.config.channels for p in expected]
    assert [c.loss for c in parts.path_taken()] == pytest.approx([c.loss for c in whole.path_taken()], rel=1e-3)


def test_an_exact_search_on_a_gpu_takes_an_eighth_of_many_images_at_once(monkeypatch):
    monkeypatch.setattr(engine, "on_cpu", lambda net: False)
    monkeypatch.setattr(engine, "GPU_BATCH", 4)
    net = supernet(tricky.Residual, "cpu")
    images, calibration = data("cpu", 1, 50, 35), data("cpu", 2, 16, 8)
    evaluator = PartialEvaluator(net, images, calibration)
    found, _ = search(evaluator, effort="exact")
    assert sorted(evaluator.sizes) == [5, *[10] * 8]
    search(evaluator, effort="fast")
    assert sorted(evaluator.sizes) == [1, *[4] * 21]
    expected, _ = search(SupernetEvaluator(net, images, calibration), effort="exact")
    assert [(c.group, c.width) for c in found.path_taken()] == [(c.group, c.width) for c in expected.path_taken()]
    monkeypatch.setattr(Ranks, "__init__", lambda ranks: vars(ranks).update(rank=0, count=2))
    monkeypatch.setattr(Ranks, "share", lambda ranks, results: results)
    assert PartialEvaluator(net, images, calibration, memory_budget=4e9)._exact_batch == 10  # as one process has it


@devices
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_candidates_compared_in_reduced_precision_are_scored_in_full(precision, device):
    net = supernet(tricky.Residual, device)
    images, calibration = data(device, 1, 60, 30), data(device, 2, 16, 8)
    first = {}
    for each in ("fp32", precision):
        trace, (point,) = search(PartialEvaluator(net, images, calibration, precision=each), effort="fast")
        first[each] = {candidate.group: candidate.loss for candidate in trace.step(1)}
    assert first[precision] != first["fp32"] and first[precision] == pytest.approx(first["fp32"], rel=0.05)
    again = SupernetEvaluator(net, images, calibration).score(point.config)
    assert (point.score.error, point.score.loss) == pytest.approx((again.error, again.loss), rel=1e-3)


@devices
def test_a_found_network_is_the_supernet_at_its_widths(device):
    net = supernet(tricky.Residual, device)
    images, calibration = data(device, 1, 60), data(device, 2, 16)
    evaluator = PartialEvaluator(net, images, calibration)
    _, (point,) = search(evaluator, effort="fast")
    evaluator.score(point.config)
    alone = autoslim.materialize(net, point.config).eval()
    net.eval()
    x = images[0][0]
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):  # of which slices and copies may get other last digits
        torch.testing.assert_close(alone(x), net(x), rtol=1e-3, atol=1e-4)


@devices
@pytest.mark.parametrize("kind", [tricky.ThreeDimensions, tricky.Residual])
def test_a_network_goes_to_a_device_whatever_its_weights(kind, device):
    torch.manual_seed(0)
    net, inputs = randomized(kind()).eval(), tuple(torch.randn(2, *shape) for shape in kind.shapes)
    with torch.no_grad():
        expected = net(*inputs)
        found = place(net, device)(*(x.to(device) for x in inputs)).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", [tricky.ThreeDimensions, tricky.Residual])
def test_only_weights_of_images_are_laid_out_channels_last(kind):
    net = lay_out(kind(), torch.channels_last)
    weights = [p for p in net.parameters() if p.dim() > 1]
    assert weights and all(p.is_contiguous(memory_format=torch.channels_last) for p in weights if p.dim() == 4)
    assert all(p.is_contiguous() for p in weights if p.dim() != 4)


@devices
def test_latencies_are_measured_where_they_are_asked_for(device):
    net = autoslim.Supernet(tricky.Residual(), torch.randn(1, 3, 8, 8), divisor=4, steps=4)
    table = open_latency_table(net, torch.zeros(1, 3, 8, 8), setup=LatencySetup(device=device), rounds=1)
    assert 0 < table.full.median_ms < 1000 and table.milliseconds(net.narrowest().widths) > 0
    assert (table.least_ms > 1e-6) == (device == "cuda")  # what is launched takes its time, however narrow it is
    assert remeasure(autoslim.materialize(net), torch.zeros(1, 3, 8, 8), target_ms=1000, setup=table.setup, rounds=1).holds


@devices
def test_the_verbs_measure_where_they_are_asked_to(device, tmp_path, capsys):
    folder, path = tmp_path / "run", tmp_path / "table.json"
    assert run("train", "digits_cnn", "--data", "digits", "--epochs", 1, "--out", folder, "--device", "cpu") == 0
    options = ("--device", device, "--batch", 4, "--points", 2, "--check", 4, "--out", path)
    found = printed(capsys, "latency-table", folder, *options)
    assert found["check"]["configurations"] == 4 and found["device"] == LatencySetup(device=device).device_name
    wanted = ("--latency-target", "100%", "--latency-table", path)
    for where in {"cpu", device}:  # the search may run elsewhere
        out = tmp_path / f"found-{where}"
        (searched, _) = printed(capsys, "search", folder, *wanted, "--device", where, "--out", out)
        assert searched["provenance"]["latency"]["latency"]["device"] == found["device"]
    options = ("--device", "cpu", "--points", 2, "--check", 0, "--out", tmp_path / "cpu.json")
    found = printed(capsys, "latency-table", folder, *options)
    wanted = ("--latency-target", "100%", "--latency-table", tmp_path / "cpu.json", "--device", device)
    (searched, _) = printed(capsys, "search", folder, *wanted, "--out", tmp_path / "found-by-cpu")
    assert searched["provenance"]["latency"]["latency"]["device"] == found["device"]


@pytest.mark.parametrize(
    ("cards", "nccl"),
    [
        (["a 0", "a 1"], True),
        (["a 0", "b 0", "b 1"], True),
        (["a 0", "a 0"], False),
        (["a 0", "a 0", "a 1"], False),
        (["a 0", None], False),
        ([None, "a 0"], False),
        ([None, None], False),
        (["a 0"], False),
    ],
)
@pytest.mark.parametrize("failing", [[], [0], [1]])
def test_processes_share_over_nccl_where_each_has_a_gpu_of_its_own(monkeypatch, caplog, cards, nccl, failing):
    group, shared, left = object(), [], []
    monkeypatch.setattr(Ranks, "_gpus", "of another search")
    monkeypatch.setattr(Ranks, "__init__", lambda ranks: vars(ranks).update(rank=0, count=len(cards)))
    monkeypatch.setattr(Ranks, "wait", lambda ranks: shared.append("waits"))
    monkeypatch.setattr(ranks, "_card", lambda device: cards[0])
    monkeypatch.setattr(torch.cuda, "set_device", left.append)

    answers = iter([cards, ["no way" if i in failing else "" for i in range(len(cards))] if nccl else cards, cards])

    def gather(found, own, group=None):
        shared.append(group)
        if own is None:  # it connects
            if 0 in failing:
                raise torch.distributed.DistBackendError("far too long\nno way")
            return
        found[:] = [own, *({i: other} for i, other in enumerate(next(answers)) if i)]

    def new_group(backend, timeout):
        assert backend == "nccl" and timeout < ranks.WAIT
        return group

    functions = {"new_group": new_group, "all_gather_object": gather, "is_nccl_available": lambda: True}
    for name, function in {**functions, "destroy_process_group": left.append}.items():
        monkeypatch.setattr(torch.distributed, name, function)
    device = torch.device("cpu" if cards[0] is None else "cuda:0")
    Ranks().connect(device)
    connected, shared[:] = list(shared), []
    assert Ranks().share({0: ""})[0] == ""
    uses = nccl and not failing
    assert connected == ([None, group, None] if nccl else [None] * (len(cards) > 1))
    assert shared == (["waits", group] if uses else [None] * (len(cards) > 1))
    assert ("over gloo, as nccl cannot connect: no way" in caplog.text) == (nccl and bool(failing))
    Ranks().close()
    Ranks().close()
    assert left == [device] * nccl + [group] * uses and Ranks._gpus is None


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        ([("a", 1, 80)], 40),
        ([("a", 1, 80)] * 3, 80 / 6),  # three processes on one GPU
        ([("a", 1, 80), ("a", 2, 80)], 40),
        ([("a", 1, 80), ("b", 1, 24)], 12),  # all cut the images alike
        ([("a", 1, 80), ("a", 1, 80), ("a", 2, 80)], 20),
    ],
)
def test_processes_share_half_of_the_free_memory_of_a_gpu(monkeypatch, cards, expected):
    node, uuid, memory = cards[0]
    properties = SimpleNamespace(uuid=uuid, total_memory=100 * 10**9)
    monkeypatch.setattr("platform.node", lambda: node)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (memory * 10**9, properties.total_memory))
    for name in ("memory_reserved", "memory_allocated"):  # where tests ran on a GPU before
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)

    def share(ranks, own):
        return own | {i: ((node, str(uuid)), memory * 10**9) for i, (node, uuid, memory) in enumerate(cards) if i}

    monkeypatch.setattr(Ranks, "share", share)
    assert Ranks().memory_budget(torch.device("cuda")) == pytest.approx(expected * 1e9)


@pytest.mark.parametrize(
    ("memory", "others", "expected"),
    [
        (100e9, [], 4e9),
        (6e9, [], 3e9),
        (16e9, [("a", 16e9)] * 7, 1e9),  # eight processes on one machine
        (16e9, [("b", 4e9)], 2e9),  # all cut the images alike
        (math.inf, [], 4e9),  # it cannot be told
    ],
)
def test_processes_share_half_of_the_memory_of_a_machine_up_to_4_gb(monkeypatch, memory, others, expected):
    monkeypatch.setattr("platform.node", lambda: "a")
    monkeypatch.setattr(ranks, "machine_memory", lambda: memory)
    monkeypatch.setattr(Ranks, "share", lambda ranks, own: own | dict(enumerate(others, 1)))
    assert Ranks().memory_budget(torch.device("cpu")) == expected


@pytest.mark.skipif(not os.path.exists("/proc/meminfo"), reason="this system does not tell in this way")
def test_the_memory_of_the_machine_is_what_the_system_says(monkeypatch):
    lines = Path("/proc/meminfo").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("MemTotal:")]
    monkeypatch.setattr(allocator, "_container_limits", lambda listed: [])
    assert allocator.machine_memory() == pytest.approx(1024 * int(line.split()[1]), rel=0.01)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (["2000000000\n"], 2e9),
        (["2000000000\n", "3000000000\n"], 2e9),
        (["3000000000\n", "2000000000\n"], 2e9),
        (["max\n", "", "9223372036854771712\n"], 8e9),
        ([None], 8e9),
    ],
)
def test_a_container_has_the_memory_that_it_may_take(monkeypatch, tmp_path, limits, expected):
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 2 * 10**6, "SC_PAGE_SIZE": 4000}.get, raising=False)
    paths = [tmp_path / str(number) for number in range(len(limits))]
    for path, limit in zip(paths, limits):
        if limit is not None:
            path.write_text(limit)
    monkeypatch.setattr(allocator, "_container_limits", lambda listed: paths)
    assert allocator.machine_memory() == expected


def test_the_limits_of_a_container_are_those_of_all_groups_that_it_is_in():
    root = Path("/sys/fs/cgroup")
    v2 = [root / "slurm/job_7/memory.max", root / "slurm/memory.max", root / "memory.max"]
    assert allocator._container_limits("0::/slurm/job_7\n") == v2
    v1 = [root / "memory/docker/memory.limit_in_bytes", root / "memory/memory.limit_in_bytes"]
    assert allocator._container_limits("5:cpu,cpuacct:/docker\n4:memory:/docker\n0::/\n") == [*v1, root / "memory.max"]


@pytest.mark.parametrize(
    ("name", "gpus", "expected"),
    [
        ("auto", 4, "cuda:3"),
        ("cuda", 4, "cuda:3"),
        ("cuda", 2, "cuda:1"),
        ("cuda:0", 4, "cuda:0"),
        ("cpu", 4, "cpu"),
        ("auto", 0, "auto"),
    ],
)
@pytest.mark.parametrize("local", ["3", None], ids=["torchrun", "by-hand"])
def test_each_of_several_processes_has_a_gpu_of_its_own(monkeypatch, local, name, gpus, expected):
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "6" if local else "3")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local:
        monkeypatch.setenv("LOCAL_RANK", local)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert Ranks().device(name) == expected
    assert current == ([expected] if gpus and name in ("auto", "cuda") else [])
