"""A search that is killed, and one that several processes share, end with the very same files."""

import contextlib
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from brute_force import brute_force
from fvcore.nn import FlopCountAnalysis

import autoslim
from autoslim.commands import runs
from autoslim.commands import search as search_verb
from autoslim.commands.search import load_supernet
from autoslim.cost.memory import peak_memory_bytes
from autoslim.errors import RunError
from autoslim.files import held
from autoslim.search.greedy import PICK_RULES
from autoslim.search.ranks import Ranks, first_process
from cli import refused, run

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def supernet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "supernet"
    assert run("train", "digits_cnn", "--data", "digits", "--epochs", 8, "--out", folder, "--device", "cpu") == 0
    return folder


def command(supernet, out, *options, targets=("60%", "25%"), device="cpu"):
    wanted = [word for target in targets for word in ("--flops-target", target)]
    # The default budget is smaller where more processes share a small machine, and is written into config.json.
    wanted += ["--memory-budget", "1GB"]
    return ["search", str(supernet), "--device", device, *wanted, "--out", str(out), *map(str, options)]


SHORT = {"targets": ("80%", "65%")}  # for searches that are slow


def start(arguments, *, processes=1, program=("-m", "autoslim"), stderr=None):
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    # One thread everywhere: sums of other lengths differ in their last digits.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([*launch, *program, *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=stderr)


def kill(process):
    """Kill a process and all that it started."""
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        for child in children.read_text().split():
            kill(int(child))
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def ended(process, seconds=900):
    """Wait for a process, which is killed with all that it started when it takes too long; returns its exit status."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        kill(process.pid)
        raise


def contents(folder):
    # What is hidden was being written when a process was killed.
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith(".")}


@pytest.fixture(scope="module")
def whole(supernet, tmp_path_factory):
    """What searches that nothing disturbs write."""
    found = {}
    for effort in ("fast", "exact"):
        out = tmp_path_factory.mktemp("whole") / effort
        assert ended(start(command(supernet, out, "--effort", effort))) == 0
        found[effort] = contents(out)
    return found


@pytest.mark.parametrize("effort", ["fast", "exact"])
def test_a_search_that_is_killed_ends_as_one_that_is_not(supernet, whole, effort, tmp_path):
    trace = tmp_path / "out" / "trace.csv"
    lines = whole[effort]["trace.csv"].decode().splitlines()
    killed = 0
    for count in sorted(random.Random(effort).sample(range(1, len(lines)), 2)):
        process = start(command(supernet, tmp_path / "out", "--effort", effort))
        while process.poll() is None and (not trace.exists() or len(trace.read_bytes().splitlines()) < count):
            time.sleep(0.002)
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        ended(process)
        assert trace.exists()
    assert killed
    assert ended(start(command(supernet, tmp_path / "out", "--effort", effort))) == 0
    assert contents(tmp_path / "out") == whole[effort]


def test_ctrl_c_in_a_search_says_how_to_go_on(supernet, whole, tmp_path):
    out, trace = tmp_path / "out", tmp_path / "out" / "trace.csv"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts with & ignores it, and its children
    try:
        process = start(command(supernet, out, "--effort", "exact"), stderr=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, before)
    while process.poll() is None and (not trace.exists() or len(trace.read_bytes().splitlines()) < 2):
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 1
    assert said.decode().splitlines()[-1].endswith("run the same command again to go on from there")
    assert b"Traceback" not in said and not (out / "spectrum.csv").exists()
    assert ended(start(command(supernet, out, "--effort", "exact"))) == 0
    assert contents(out) == whole["exact"]


@pytest.mark.parametrize(
    ("options", "processes"),
    [
        (("--effort", "fast", "--swaps", 3), 1),
        (("--effort", "exact", "--precision", "bf16"), 2),
        (("--order", "evolution", "--evaluations", 40), 1),
    ],
)
def test_a_search_of_any_kind_that_is_killed_at_any_time_ends_as_one_that_is_not(supernet, options, processes, tmp_path):
    assert ended(start(command(supernet, tmp_path / "whole", *options, **SHORT), processes=processes)) == 0
    whole, out = contents(tmp_path / "whole"), tmp_path / "out"

    def written():
        names = os.listdir(out) if out.exists() else ()
        sizes = [(out / name).stat().st_size for name in names if not name.startswith(".")]
        return sum(sizes)

    # From the first row on to the last of the configurations.
    chances, killed = random.Random(str(options)), 0
    for wait_for in sorted(chances.randrange(1, sum(map(len, whole.values()))) for _ in range(2)):
        process = start(command(supernet, out, *options, **SHORT), processes=processes)
        while process.poll() is None and written() < wait_for:
            time.sleep(0.001)
        killed += process.poll() is None
        if process.poll() is None:
            kill(process.pid)
        ended(process)
    assert killed
    assert ended(start(command(supernet, out, *options, **SHORT), processes=processes)) == 0
    assert contents(out) == whole


@pytest.mark.parametrize("pick", PICK_RULES)
@pytest.mark.parametrize("score", ["error", "loss"])
def test_an_exact_search_of_a_trained_network_is_brute_force_over_plain_networks(supernet, score, pick):
    net, space, settings = load_supernet(supernet, "cpu")
    split = runs.load_images("digits", space.input_shape, settings["held_out"], 0, torch.device("cpu"))
    images, calibration = map(list, runs.judged_on(split, space.search))

    def judge(widths):
        plain = autoslim.materialize(net, net.make_config(widths.values()))
        return autoslim.evaluate(autoslim.calibrate(plain, calibration), images)

    assert judge(net.full().widths).error < 0.2  # it was trained
    full = autoslim.CostTable(net).cost(net.full()).macs
    targets = [0.7 * full, 0.4 * full, 0.1 * full]
    expected = brute_force(net, score, pick, targets, judge)
    options = {"targets": {"macs": targets}, "score": score, "pick": pick, "effort": "exact"}
    found = list(autoslim.greedy_search(net, images, calibration, **options))
    assert [p.config.widths for p in found] == [widths for _, widths, _ in expected]
    for point, (_, _, judged) in zip(found, expected, strict=True):
        assert point.score.error == pytest.approx(judged.error, abs=1e-9)
        assert point.score.loss == pytest.approx(judged.loss, rel=1e-4)


@pytest.mark.parametrize("effort", ["fast", "exact"])
def test_two_processes_write_what_one_writes(supernet, whole, effort, tmp_path):
    assert ended(start(command(supernet, tmp_path / "out", "--effort", effort), processes=2)) == 0
    assert contents(tmp_path / "out") == whole[effort]


def test_processes_that_each_sort_images_of_their_own_write_what_one_writes(supernet, tmp_path):
    program = tmp_path / "two_strands.py"
    program.write_text(
        "import runpy\n"
        "from autoslim.search import engine, samples\n"
        "engine.CPU_BATCH, samples.STRAND = 16, 4\n"
        "runpy.run_module('autoslim', run_name='__main__')\n"
    )
    for processes in (1, 2, 3):
        options = command(supernet, tmp_path / str(processes), "--effort", "exact", **SHORT)
        assert ended(start(options, processes=processes, program=[str(program)])) == 0
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "3")


POSING = """
import os, platform, sys
from pathlib import Path
import torch.distributed
from autoslim.commands import main
from autoslim.search.ranks import Ranks, first_process

os.environ["NCCL_HOSTID"] = os.environ["RANK"]  # two machines, for nccl, that have one GPU each
platform.node = lambda: os.environ["RANK"]

def close(ranks, close=Ranks.close):
    Path(sys.argv[0] + str(ranks.rank)).write_text(torch.distributed.get_backend(Ranks._gpus))
    close(ranks)

Ranks.close = close
main(sys.argv[1:])
"""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
def test_two_processes_that_share_over_nccl_find_what_one_does(supernet, tmp_path):
    program, out = tmp_path / "posing.py", {1: tmp_path / "one", 2: tmp_path / "two"}
    program.write_text(POSING)
    for processes, how in ((1, {}), (2, {"program": [str(program)]})):
        options = command(supernet, out[processes], "--effort", "exact", device="cuda")
        assert ended(start(options, processes=processes, **how)) == 0
    assert [Path(f"{program}{rank}").read_text() for rank in range(2)] == ["nccl"] * 2
    one, two = (
        {path.name: json.loads(path.read_text()) for path in folder.glob("*.json") if path.name != "config.json"}
        for folder in out.values()
    )
    assert len(one) == 4 and set(one) == set(two)
    for name in one:
        assert one[name]["channels"] == two[name]["channels"]
        assert one[name]["estimate"]["loss"] == pytest.approx(two[name]["estimate"]["loss"], rel=1e-3)


@pytest.mark.parametrize("options", [("--swaps", "3"), ("--order", "evolution", "--evaluations", "40")])
def test_two_processes_write_what_one_writes_in_other_ways_to_search(supernet, options, tmp_path):
    for processes in (1, 2):
        out = tmp_path / str(processes)
        assert ended(start(command(supernet, out, *options, **SHORT), processes=processes)) == 0
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


@pytest.mark.parametrize("effort", ["fast", "exact"])
def test_a_search_goes_on_with_the_memory_budget_that_it_was_begun_with(supernet, effort, tmp_path, monkeypatch):
    base = ("search", supernet, "--device", "cpu", "--effort", effort, "--out", tmp_path, "--flops-target")
    assert run(*base, "80%", "--memory-budget", "3MB") == 0
    given, make = [], runs.search_evaluator
    keep = lambda *args, **options: given.append(options["memory_budget"]) or make(*args, **options)  # noqa: E731
    monkeypatch.setattr(runs, "search_evaluator", keep)
    assert run(*base, "70%") == 0
    assert given == [3e6]


@pytest.mark.parametrize(("noted", "free", "taken"), [(4e9, 2e9, 4e9), (4e9, 1.9e9, 1.9e9), (1e9, 4e9, 1e9)])
def test_a_search_goes_on_with_what_is_free_where_that_is_much_less(tmp_path, noted, free, taken):
    (tmp_path / "config.json").write_text(json.dumps({"memory_budget": noted}))
    assert search_verb._memory_budget(None, tmp_path, free) == taken
    assert search_verb._memory_budget("3GB", tmp_path, free) == 3e9


def test_a_trace_is_not_gone_on_with_for_budgets_that_decide_otherwise(supernet, tmp_path, capsys):
    base = ("search", supernet, "--device", "cpu", "--pick", "drop-per-saving", "--out", tmp_path)
    assert run(*base, "--flops-target", "70%") == 0
    before = contents(tmp_path)
    for other in (["--memory-target", "75%", "--batch", 64], ["--flops-target", "60%", "--params-target", "80%"]):
        assert "holds another run (search.budgets" in refused(capsys, *base, *other)
        assert contents(tmp_path) == before
    assert run(*base, "--flops-target", "50%") == 0
    trace = (tmp_path / "trace.csv").read_bytes()
    assert trace.startswith(before["trace.csv"]) and len(trace) > len(before["trace.csv"])


def test_a_latency_target_into_the_folder_of_another_search_is_refused_before_anything_is_measured(
    supernet, tmp_path, monkeypatch, capsys
):
    measured = []
    monkeypatch.setattr("autoslim.commands.budgets.open_latency_table", lambda *args, **_: measured.append(args))
    for order in ("greedy", "uniform"):
        base = ("search", supernet, "--device", "cpu", "--out", tmp_path / order, "--flops-target", "70%")
        assert run(*base, "--order", order) == 0
        before = contents(tmp_path / order)
        told = refused(capsys, *base, "--latency-target", "70%")
        assert "holds another run (search." in told and "pass another --out" in told
        assert contents(tmp_path / order) == before and not measured


def test_two_searches_do_not_write_into_one_folder(supernet, tmp_path, capsys):
    base = ("search", supernet, "--device", "cpu", "--flops-target", "70%", "--out", tmp_path)
    with held(tmp_path):
        assert f"{tmp_path} is written by another process" in refused(capsys, *base)
        assert "is written by another process" in refused(capsys, *base, "--order", "uniform")
    assert run(*base) == 0
    trace = tmp_path / "trace.csv"
    lines = trace.read_text().splitlines(keepends=True)
    trace.write_text("".join([*lines[:2], *lines[2:4], *lines[2:]]))  # as two that write in turn
    assert "was written by another search" in refused(capsys, *base, "--flops-target", "60%")


def test_a_training_does_not_write_into_the_folder_of_one_that_runs(tmp_path, capsys):
    with held(tmp_path):
        told = refused(capsys, "train", "digits_cnn", "--data", "digits", "--epochs", 1, "--out", tmp_path, "--device", "cpu")
    assert f"{tmp_path} is written by another process" in told and not (tmp_path / "checkpoint.pt").exists()


def test_a_fast_search_goes_on_with_another_memory_budget_that_decides_nothing(supernet, tmp_path, capsys):
    base = ("search", supernet, "--device", "cpu", "--flops-target", "60%", "--out")
    assert run(*base, tmp_path / "a", "--memory-budget", "2GB") == 0
    assert run(*base, tmp_path / "b", "--memory-budget", "1GB") == 0
    first, other = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert first.pop("config.json") != other.pop("config.json") and first == other
    assert run(*base, tmp_path / "a", "--memory-budget", "1GB", "--flops-target", "50%") == 0
    told = refused(capsys, *base, tmp_path / "a", "--memory-budget", "300kB")  # batches are smaller
    assert "holds another run (search.images_at_once was 64, now" in told


def test_a_fast_search_that_asked_at_other_steps_is_not_gone_on_with(supernet, tmp_path, capsys):
    base = ("search", supernet, "--device", "cpu", "--out", tmp_path, "--flops-target")
    assert run(*base, "70%") == 0
    config = json.loads((tmp_path / "config.json").read_text())
    del config["search"]["stale"]
    config["search"]["refresh"] = 10  # as earlier versions did
    (tmp_path / "config.json").write_text(json.dumps(config))
    before = contents(tmp_path)
    assert "holds another run (search.stale was None, now 15)" in refused(capsys, *base, "60%")
    assert contents(tmp_path) == before


def test_another_order_goes_on_with_more_evaluations_and_is_drawn(supernet, tmp_path, capsys):
    base = ("search", supernet, "--device", "cpu", "--order", "random", "--flops-target", "60%", "--out")
    assert run(*base, tmp_path / "both", "--evaluations", 4) == 0
    few = (tmp_path / "both" / "trace.csv").read_text().splitlines()
    assert run(*base, tmp_path / "both", "--evaluations", 8) == 0
    assert run(*base, tmp_path / "once", "--evaluations", 8, "--memory-budget", "1GB") == 0
    both, once = contents(tmp_path / "both"), contents(tmp_path / "once")
    assert both.pop("config.json") != once.pop("config.json") and both == once
    assert len(few) == 5 and len(both["trace.csv"].splitlines()) == 9
    for what in ("spectrum", "channels"):
        assert run("plot", tmp_path / "both", "--out", tmp_path / f"{what}.png", "--what", what) == 0
    told = refused(capsys, "plot", tmp_path / "both", "--out", tmp_path / "path.png", "--what", "path")
    assert "was searched by --order random, which walks no path" in told


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_measured(supernet, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("autoslim.commands.budgets.open_latency_table", lambda *args, **_: pytest.fail("measured"))
    (tmp_path / "file").write_text("")
    told = refused(capsys, "search", supernet, "--latency-target", "70%", "--out", tmp_path / "file" / "out")
    assert f"folder {tmp_path / 'file' / 'out'} cannot be written" in told


def test_every_budget_is_met_by_the_materialized_network(supernet, tmp_path):
    budgets = (
        "--params-target",
        "60%",
        "--size-target",
        "110kB",
        "--size-precision",
        "fp16",
        "--memory-target",
        "60%",
        "--batch",
        2,
    )
    assert run("search", supernet, "--device", "cpu", "--flops-target", "70%", *budgets, "--out", tmp_path) == 0
    (path,) = (path for path in tmp_path.glob("*.json") if not path.name.startswith(("uniform", "config")))
    config = autoslim.ChannelConfig.load(path)
    target, costs = config.provenance["target"], config.provenance["costs"]
    factory = autoslim.load_space("digits_cnn").with_classes(10)
    full = factory.build(factory.full_width)
    plain = autoslim.materialize(full, config)
    params = sum(p.numel() for p in plain.parameters())
    memory = peak_memory_bytes(plain, torch.zeros(2, *config.input_shape))
    layers = FlopCountAnalysis(plain.eval(), torch.zeros(1, *config.input_shape)).by_operator()
    assert costs == {"macs": layers["conv"] + layers["linear"], "params": params, "size": 2 * params, "memory": memory}
    assert set(target) == set(costs) and all(costs[kind] <= amount for kind, amount in target.items())
    assert config.provenance["terms"] == {"size_precision": "fp16", "batch": 2}


@pytest.mark.parametrize("order", ["uniform", "random", "evolution"])
def test_other_orders_write_a_configuration_a_target(supernet, tmp_path, capsys, order):
    options = () if order == "uniform" else ("--evaluations", 6)
    assert run("search", supernet, "--flops-target", "60%", "--order", order, *options, "--out", tmp_path, "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["cost"]["macs"] <= found["provenance"]["target"]["macs"]
    assert found["provenance"]["search"]["order"] == order and Path(found["path"]).exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "no target"),
        (("--params-target", "1k"), "params target 1k is below"),
        (("--flops-target", "60%", "--memory-target", "10"), "memory target 10B is below"),
        (("--flops-target", "60%", "--latency-target", "1ms", "--batch", 0), "--batch"),
        (("--flops-target", "60%", "--memory-budget", "some"), "--memory-budget 'some'"),
        (("--flops-target", "60%", "--memory-budget", "60%"), "write it as 4GB"),
        (("--params-target", "60%", "--order", "random"), "takes --flops-target"),
        (("--flops-target", "60%", "--order", "random", "--effort", "exact"), "does not take --effort"),
        (("--flops-target", "60%", "--order", "uniform", "--swaps", 1), "does not take --swaps"),
        (("--flops-target", "60%", "--evaluations", 5), "does not take --evaluations"),
        (("--flops-target", "60%", "--tolerance", 5), "does not take --tolerance"),
        (("--flops-target", "60%", "--order", "random", "--tolerance", 100), "--tolerance"),
        (("--flops-target", "60%", "--order", "random", "--tolerance", 0), "within 0 % below flops target"),
        (("--flops-target", "60%", "--batch", 8), "--batch is for --memory-target or --latency-target"),
        (("--flops-target", "60%", "--size-precision", "int8"), "--size-precision is for --size-target"),
        (("--memory-target", "60%", "--threads", 2), "--threads is for --latency-target"),
        (("--memory-target", "60%", "--latency-device", "cpu"), "--latency-device is for --latency-target"),
        (("--flops-target", "60%", "--latency-table", "t.json"), "--latency-table is for --latency-target"),
        (("--latency-target", "60%", "--latency-table", "t.json", "--batch", 1), "--batch is that of --latency-table t.json"),
        ((*("--flops-target", "60%") * 2, *("--params-target", "60%") * 3), "3"),
    ],
)  # fmt: skip
def test_impossible_budgets_are_refused_before_anything_is_written(supernet, tmp_path, capsys, options, words):
    assert run("search", supernet, *options, "--out", tmp_path / "out") != 0
    message = capsys.readouterr().err
    assert words in message and not (tmp_path / "out").exists()


def test_swaps_go_on_from_a_search_without_and_keep_every_target(supernet, tmp_path, capsys):
    targets = ("--flops-target", "90%", "--params-target", "60%", "--params-target", "40%", "--memory-budget", "1GB")
    assert run("search", supernet, *targets, "--device", "cpu", "--out", tmp_path) == 0
    before = contents(tmp_path)["trace.csv"]
    capsys.readouterr()
    assert run("search", supernet, *targets, "--device", "cpu", "--out", tmp_path, "--swaps", 2, "--json") == 0
    found = [each for each in json.loads(capsys.readouterr().out) if each["provenance"]["kind"] == "searched"]
    assert contents(tmp_path)["trace.csv"] == before and len(list(tmp_path.glob("swaps-*.csv"))) == len(found) == 2
    for each in found:
        about = each["provenance"]
        assert all(about["costs"][kind] <= amount for kind, amount in about["target"].items()) and about["swaps"] == 2
        rows = list(csv.DictReader((tmp_path / f"swaps-{Path(each['path']).stem}.csv").read_text().splitlines()))
        (taken,) = (row for row in rows if row["picked"] == "1")
        assert taken["widths"].split() == [str(row[0]) for row in each["channels"].values()]


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (
            ("--flops-target", "60%", "--swaps", 2),
            ("--flops-target", "60%"),
            "642.2k.json was found with --swaps 2; pass as many",
        ),
        (
            ("--flops-target", "60%", "--order", "random", "--evaluations", 6),
            ("--flops-target", "60%", "--order", "random", "--evaluations", 4),
            "642.2k.json was found with --evaluations 6; pass as many or more, or another --out",
        ),
        (
            ("--flops-target", "642210"),
            ("--flops-target", "642190", "--flops-target", "80%"),
            "642.2k.json is there for another target (macs 642210.0, not 642190.0); pass another --out",
        ),
    ],
)
def test_what_was_found_does_not_give_way_to_less(supernet, tmp_path, capsys, first, second, words):
    common = ("--device", "cpu", "--out", tmp_path)
    assert run("search", supernet, *first, *common) == 0
    before = contents(tmp_path)
    assert words in refused(capsys, "search", supernet, *second, *common)
    assert contents(tmp_path) == before
    assert run("search", supernet, *first, *common) == 0
    assert contents(tmp_path) == before


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_estimates_are_in_full_precision(supernet, tmp_path, capsys, precision):
    options = ("--flops-target", "60%", "--device", "cpu", "--effort", "exact", "--precision", precision)
    assert run("search", supernet, *options, "--out", tmp_path, "--json") == 0
    found = json.loads(capsys.readouterr().out)[0]
    net, space, settings = load_supernet(supernet, "cpu")
    images = runs.load_images("digits", space.input_shape, settings["held_out"], 0, torch.device("cpu"))
    score = runs.supernet_evaluator(net, images, space.search).score(autoslim.ChannelConfig.load(found["path"]))
    assert (found["estimate"]["error"], found["estimate"]["loss"]) == pytest.approx((score.error, score.loss), rel=1e-6)


def test_processes_that_see_other_folders_are_refused(supernet, tmp_path):
    program = tmp_path / "elsewhere.py"
    program.write_text(
        "import os, sys\nfrom autoslim.commands import main\nos.chdir(sys.argv[1] + os.environ.get('RANK', '0'))\nmain(sys.argv[2:])\n"
    )
    for rank in "01":
        (tmp_path / rank).mkdir()
    search = [f"{tmp_path}/", *command(supernet, "out", targets=["80%"])]
    assert ended(start(search, program=[str(program)])) == 0
    before = contents(tmp_path / "0" / "out")
    process = start(search, processes=2, program=[str(program)], stderr=subprocess.PIPE)
    _, said = process.communicate()
    assert process.returncode != 0 and b"all machines need the same supernet, and one --out" in said
    assert contents(tmp_path / "0" / "out") == before


def test_a_process_that_ends_is_told_by_the_others_in_one_line(monkeypatch):
    def closed(*args, **kwargs):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534]\nConnection closed by peer")

    ranks = Ranks()
    ranks.count = 2
    for name, call in (("barrier", ranks.wait), ("all_gather_object", lambda: ranks.share({0: 1}))):
        monkeypatch.setattr(f"torch.distributed.{name}", closed)
        with pytest.raises(RunError, match=r"another process of this command ended .*\(Connection closed by peer\)"):
            call()


def test_memory_that_runs_out_while_results_are_shared_is_told_as_that(monkeypatch):
    def full(*args, **kwargs):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    ranks = Ranks()
    ranks.count = 2
    monkeypatch.setattr("torch.distributed.all_gather_object", full)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        ranks.share({0: 1})


@pytest.mark.parametrize("count", [None, "1"])
def test_a_rank_without_others_is_the_first(monkeypatch, count):
    monkeypatch.setenv("RANK", "1")
    if count:
        monkeypatch.setenv("WORLD_SIZE", count)
    ranks = Ranks()
    assert ranks.own(range(3)) == [0, 1, 2] and first_process()


def test_processes_that_share_a_search_measure_one_table(supernet, tmp_path):
    shutil.copytree(supernet, tmp_path / "run")
    words = ["search", str(tmp_path / "run"), "--device", "cpu", "--latency-target", "100%", "--memory-budget", "1GB"]
    assert ended(start([*words, "--out", str(tmp_path / "out")], processes=2)) == 0
    (table,) = (tmp_path / "run").glob("latency-*.json")
    before = table.read_bytes()
    found = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json") if path.name != "config.json"]
    assert sorted(each["provenance"]["kind"] for each in found) == ["searched", "uniform"]
    assert all(each["provenance"]["costs"]["latency"] > 0 for each in found)
    assert run(*words, "--out", tmp_path / "alone") == 0  # with what two processes measured
    assert table.read_bytes() == before
