"""The command line, in process: what each verb writes, prints and refuses."""

import csv
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas
import pytest

import autoslim
from autoslim.commands import VERBS
from autoslim.commands.search import load_supernet
from autoslim.search.ranks import Ranks
from cli import printed, refused, run

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def supernet(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "supernet"
    assert run("train", "digits_cnn", "--data", "digits", "--out", folder, "--epochs", 2, "--device", "cpu") == 0
    return folder


@pytest.fixture(scope="module")
def search(supernet) -> Path:
    assert run("search", supernet, "--flops-target", "60%", "--flops-target", "300k") == 0
    return supernet / "search"


@pytest.fixture(scope="module")
def network(search, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "network"
    assert run("retrain", search / "300k.json", "--data", "digits", "--out", folder, "--epochs", 1) == 0
    return folder


def test_training_writes_metrics_that_pandas_reads(supernet):
    metrics = pandas.read_csv(supernet / "metrics.csv")
    assert list(metrics.epoch) == [1, 2]
    assert metrics.loss[1] < metrics.loss[0]
    assert json.loads((supernet / "config.json").read_text())["kind"] == "supernet"


def test_search_writes_one_configuration_a_target_and_its_uniform_equal(search):
    names = {path.name for path in search.glob("*.json")}
    assert names == {"config.json", "642.2k.json", "uniform-642.2k.json", "300k.json", "uniform-300k.json"}
    for name, limit in (("642.2k.json", 0.6 * 1_070_304), ("300k.json", 300e3)):
        config = autoslim.ChannelConfig.load(search / name)
        assert config.cost["macs"] <= limit
        assert config.estimate["kind"] == "supernet estimate"
        plain = autoslim.materialize(autoslim.spaces.build_model(config.model), config)
        assert sum(p.numel() for p in plain.parameters()) == config.cost["params"]


def test_every_candidate_of_the_search_is_in_the_trace(search):
    rows = list(csv.DictReader((search / "trace.csv").read_text().splitlines()))
    assert {"step", "group", "width", "macs", "error", "loss"} <= set(rows[0])
    picks = [row for row in rows if row["picked"] == "1"]
    assert [int(row["step"]) for row in picks] == list(range(len(picks)))
    assert sum(row["step"] == "1" for row in rows) == 7


def test_a_repeated_search_writes_the_same_files(search, supernet):
    before = {path: path.read_bytes() for path in search.iterdir()}
    assert run("search", supernet, "--flops-target", "60%", "--flops-target", "300k") == 0
    assert {path: path.read_bytes() for path in search.iterdir()} == before


def test_a_search_by_another_rule_does_not_mix_with_the_first(search, supernet, capsys):
    assert "search" in refused(capsys, "search", supernet, "--flops-target", "60%", "--pick", "drop")


def test_retrain_scores_the_test_images_once(network, capsys):
    result = json.loads((network / "result.json").read_text())
    assert result["kind"] == "retrained accuracy"
    assert result["test"]["images"] == 359
    assert run("evaluate", network, "--json") == 0
    assert json.loads(capsys.readouterr().out)["error"] == result["test"]["error"]


def test_evaluate_of_a_supernet_says_that_it_is_an_estimate(supernet, search, capsys):
    assert run("evaluate", search / "300k.json", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    config = autoslim.ChannelConfig.load(search / "300k.json")
    assert document["kind"] == "supernet estimate"
    assert document["error"] == config.estimate["error"]
    assert document["macs"] == config.cost["macs"]
    assert run("evaluate", supernet, "--width", "1.0", "--json") == 0
    assert json.loads(capsys.readouterr().out)["macs"] == 484_160


@pytest.mark.parametrize("what", ["spectrum", "channels", "path"])
def test_plot_draws(what, supernet, search, network, tmp_path):
    for suffix in ("png", "svg"):
        assert run("plot", supernet, network, "--out", tmp_path / f"{what}.{suffix}", "--what", what) == 0
        assert (tmp_path / f"{what}.{suffix}").stat().st_size > 5000


def test_data_that_is_not_here_is_named_with_where_it_was(supernet, tmp_path, capsys):
    shutil.copytree(supernet, tmp_path / "run")
    about = tmp_path / "run" / "config.json"
    about.write_text(about.read_text().replace('"data": "digits"', '"data": "folder:pictures"'))
    told = refused(capsys, "search", tmp_path / "run", "--flops-target", "60%", "--out", tmp_path / "out")
    assert "pictures: no such folder" in told and "as seen from the folder that it was trained in" in told
    assert not (tmp_path / "out").exists()


def test_processes_connect_once_nothing_refuses_the_search_and_part_at_its_end(supernet, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(Ranks, "connect", lambda ranks, device: told.append("connect"))
    monkeypatch.setattr(Ranks, "close", lambda ranks: told.append("part"))
    base = ("search", supernet, "--order", "uniform", "--out", tmp_path / "out", "--flops-target")
    assert run(*base, "1%") == 1 and told == []
    assert run(*base, "60%") == 0 and told == ["connect", "part"]


def test_plot_passes_over_other_json_files(supernet, tmp_path):
    shutil.copytree(supernet, tmp_path / "run")
    (tmp_path / "run" / "search" / "mine.json").write_text('{"note": 1}')
    assert run("plot", tmp_path / "run", "--out", tmp_path / "plot.png", "--what", "channels") == 0


def test_plot_says_which_search_it_does_not_draw(search, network, tmp_path, capsys):
    (tmp_path / "supernet").mkdir()
    shutil.copy(search.parent / "config.json", tmp_path / "supernet")
    capsys.readouterr()
    assert run("plot", tmp_path / "supernet", search, network, "--out", tmp_path / "plot.png") == 0
    assert f"{tmp_path / 'supernet' / 'search'} holds no finished search" in capsys.readouterr().err


@pytest.mark.parametrize(
    "width, macs, params", [("1.0", 300_774_272, 3_504_872), ("0.35", 59_285_808, 1_677_128), ("1.3", 509_374_560, 5_386_792)]
)
def test_profile_gives_the_published_integers(width, macs, params, capsys):
    assert run("profile", "mobilenet_v2", "--width", width, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["macs"], document["params"], document["weight_bytes"]) == (macs, params, 4 * params)


def test_profile_of_a_configuration_is_its_cost(search, capsys):
    assert run("profile", search / "300k.json", "--json", "--latency") == 0
    document = json.loads(capsys.readouterr().out)
    config = autoslim.ChannelConfig.load(search / "300k.json")
    assert {key: document[key] for key in config.cost} == config.cost
    assert 0 < document["latency"]["low_ms"] <= document["latency"]["median_ms"] <= document["latency"]["high_ms"]


def test_spaces_lists_what_ships(capsys):
    assert run("spaces", "--json") == 0
    names = {space["name"] for space in json.loads(capsys.readouterr().out)}
    assert {"mobilenet_v1", "mobilenet_v2", "mobilenet_v2_cifar", "resnet20_cifar", "digits_cnn"} <= names


@pytest.mark.parametrize("target, said", [("1k", "below the narrowest"), ("9G", "above the full network"), ("abc", "300M")])
def test_targets_out_of_reach_are_refused_before_anything_is_written(target, said, supernet, tmp_path, capsys):
    line = refused(capsys, "search", supernet, "--flops-target", target, "--out", tmp_path / "new")
    assert said in line
    assert not (tmp_path / "new").exists()


def test_unknown_words_are_refused(tmp_path, capsys):
    assert "'train'" in refused(capsys, "trian", code=2)
    assert "--flops-target" in refused(capsys, "search", tmp_path, code=2)
    assert "digits_cnn" in refused(capsys, "train", "nothing", "--data", "digits", "--out", tmp_path / "x")
    assert "folder:DIR" in refused(capsys, "train", "digits_cnn", "--data", "nothing", "--out", tmp_path / "x")
    assert "does not exist" in refused(capsys, "search", tmp_path / "x", "--flops-target", "50%")
    assert not (tmp_path / "x").exists()


def test_a_run_of_another_kind_is_refused(supernet, network, capsys):
    assert "not a supernet" in refused(capsys, "search", network, "--flops-target", "50%")
    assert "--width" in refused(capsys, "evaluate", network, "--width", "1.0", code=2)


def test_another_training_does_not_overwrite_a_run(supernet, capsys):
    before = (supernet / "checkpoint.pt").read_bytes()
    refused(capsys, "train", "digits_cnn", "--data", "digits", "--out", supernet, "--epochs", 3)
    assert (supernet / "checkpoint.pt").read_bytes() == before


def test_damaged_files_are_named(supernet, search, tmp_path, capsys):
    (tmp_path / "cut.json").write_text((search / "300k.json").read_text()[:200])
    assert "not whole JSON" in refused(capsys, "profile", tmp_path / "cut.json")
    document = json.loads((search / "300k.json").read_text())
    document["channels"]["stem.conv"] = [99, 24]
    document["channels"]["nothing"] = [4, 8]
    (tmp_path / "wrong.json").write_text(json.dumps(document))
    line = refused(capsys, "retrain", tmp_path / "wrong.json", "--data", "digits", "--out", tmp_path / "x")
    assert "'stem.conv' wants 99 of 24" in line and "'nothing' is unknown" in line
    copy = tmp_path / "copy"
    shutil.copytree(supernet, copy)
    whole = (copy / "checkpoint.pt").read_bytes()
    (copy / "checkpoint.pt").write_bytes(whole[: len(whole) // 2])
    assert "truncated" in refused(capsys, "evaluate", copy)


def test_an_unfinished_supernet_is_not_searched(supernet, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(supernet, copy, ignore=shutil.ignore_patterns("search"))
    settings = json.loads((copy / "config.json").read_text())
    settings["space"]["train"]["epochs"] = 5
    (copy / "config.json").write_text(json.dumps(settings))
    assert "2 of 5 epochs" in refused(capsys, "search", copy, "--flops-target", "50%")


def test_a_network_that_cannot_be_traced_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "nets.py").write_text(
        "import torch\nclass Net(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.conv = torch.nn.Conv2d(3, 16, 3)\n"
        "    def forward(self, x):\n        return self.conv(x) if x.sum() > 0 else x\n"
    )
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, "inspect", "nets:Net", "--input-shape", "3,8,8")
    assert "nets.py:7" in line and "submodule" in line


def test_a_training_tells_that_small_images_are_drawn_larger(tmp_path, monkeypatch, caplog):
    (tmp_path / "small_nets.py").write_text(
        "from torch import nn\ndef net(num_classes):\n    return nn.Sequential(nn.Conv2d(1, 16, 3, stride=4), nn.BatchNorm2d(16), "
        "nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO", "autoslim")
    for side, told in ((8, 0), (15, 0), (16, 1)):
        shape = f"1,{side},{side}"
        options = ("--data", "digits", "--input-shape", shape, "--epochs", 1, "--out", tmp_path / shape)
        assert run("train", "small_nets:net", *options) == 0
        lines = [line for line in caplog.messages if "enlarged" in line]
        assert len(lines) == told and all("8x8 pixels" in line and "--input-shape 1,8,8" in line for line in lines)


def test_images_and_costs_are_of_one_shape_that_need_not_be_square(tmp_path, monkeypatch, capsys):
    (tmp_path / "oblong_nets.py").write_text(
        "from torch import nn\nsizes = set()\ndef net(num_classes):\n    first = nn.Conv2d(1, 16, 3, padding=1)\n"
        "    first.register_forward_pre_hook(lambda module, x: sizes.add(tuple(x[0].shape[1:])))\n"
        "    return nn.Sequential(first, nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 8 * 12, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    options = ("--data", "digits", "--input-shape", "1,8,12", "--epochs", 1)
    assert run("train", "oblong_nets:net", *options, "--out", "run") == 0
    found, _ = printed(capsys, "search", "run", "--flops-target", "60%")
    ((channels, _),) = found["channels"].values()
    assert found["input_shape"] == [1, 8, 12] and found["cost"]["macs"] == 8 * 12 * channels * (9 + 10)
    (path,) = Path("run/search").glob("[0-9]*.json")
    assert run("retrain", path, "--data", "digits", "--epochs", 1, "--out", "plain") == 0
    assert importlib.import_module("oblong_nets").sizes == {(1, 8, 12)}


def test_the_shape_of_images_replaces_that_of_a_space(capsys):
    at = {shape: printed(capsys, "profile", "mobilenet_v2", *shape) for shape in ((), ("--input-shape", "3,112,112"))}
    small, usual = sorted(found["macs"] for found in at.values())
    assert 0.25 < small / usual < 0.28
    assert "states its own" in refused(capsys, "profile", "mobilenet_v2-305M", "--input-shape", "3,112,112", code=2)


def test_without_a_verb_there_is_the_whole_help(capsys):
    for verbs in ((), ("study",)):
        run(*verbs)
        out, err = capsys.readouterr()
        assert len((out + err).splitlines()) > 8 and "Usage: " in out + err


def test_a_configuration_that_cannot_be_trained_is_refused_before_images_are_read(search, tmp_path, capsys):
    document = json.loads((search / "300k.json").read_text())
    for changes, words in (
        ({"input_shape": None}, "has the input shape null"),
        ({"input_shape": [[1, 8, 8], [1, 8, 8]]}, "has the input shape [[1, 8, 8], [1, 8, 8]]"),
        ({"model": None}, "names no model to rebuild"),
    ):
        for joint in ((), ("--joint",)):
            paths = [tmp_path / f"{name}.json" for name in ("a", "b")[: 1 + bool(joint)]]
            for path in paths:
                path.write_text(json.dumps(document | changes))
            line = refused(capsys, "retrain", *paths, *joint, "--data", "folder:nowhere", "--out", tmp_path / "out")
            assert f"{paths[0]} {words}" in line


def test_studies_look_at_their_folder_first(supernet, tmp_path, capsys):
    (tmp_path / "file").touch()
    for study in ("widths", "stages", "calibration"):
        assert "cannot be written" in refused(capsys, "study", study, supernet, "--out", tmp_path / "file")


def test_a_fast_search_with_little_memory(supernet, tmp_path, capsys):
    target = ("--flops-target", "50%", "--out", tmp_path / "fast")
    assert run("search", supernet, *target, "--effort", "fast", "--memory-budget", "1M", "--json") == 0
    documents = json.loads(capsys.readouterr().out)
    full = autoslim.CostTable(load_supernet(supernet, "cpu")[0]).cost(load_supernet(supernet, "cpu")[0].full()).macs
    assert documents[0]["cost"]["macs"] <= full / 2
    assert documents[0]["provenance"]["search"]["effort"] == "fast"
    rows = pandas.read_csv(tmp_path / "fast" / "trace.csv", keep_default_na=False)
    assert rows.groupby("step").size().iloc[2] < rows.groupby("step").size().iloc[1]
    for amount in ("", "much", "0", "60%"):
        line = refused(capsys, "search", supernet, *target[:2], "--memory-budget", amount)
        assert f"--memory-budget {amount!r} is not an amount above 0" in line


def test_the_number_of_held_out_images_can_be_chosen(tmp_path, capsys):
    command = ("train", "digits_cnn", "--data", "digits", "--epochs", 1)
    assert "--held-out 0.1" in refused(capsys, *command, "--out", tmp_path / "x", "--held-out", 5000)
    assert "'many' is no number" in refused(capsys, *command, "--out", tmp_path / "x", "--held-out", "many", code=2)
    assert not (tmp_path / "x").exists()
    assert run(*command, "--out", tmp_path / "run", "--held-out", 100) == 0
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    assert settings["images"]["search"] == settings["held_out"] == 100


def test_the_wrong_images_are_refused(tmp_path, capsys):
    line = refused(capsys, "train", "resnet20_cifar", "--data", "digits", "--out", tmp_path / "x")
    assert "1 channels, the network takes 3" in line
    assert not (tmp_path / "x").exists()


def test_ctrl_c_keeps_what_was_finished_and_says_so(tmp_path, monkeypatch, capsys):
    from autoslim.training.epoch import Epochs

    real, calls = Epochs.run, []

    def interrupted(*args, **kwargs):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return real(*args, **kwargs)

    command = ("train", "digits_cnn", "--data", "digits", "--out", tmp_path / "run", "--epochs", 2)
    monkeypatch.setattr(Epochs, "run", interrupted)
    assert "run the same command again" in refused(capsys, *command)
    assert len(pandas.read_csv(tmp_path / "run" / "metrics.csv")) == 1
    monkeypatch.setattr(Epochs, "run", real)
    assert run(*command) == 0
    assert len(pandas.read_csv(tmp_path / "run" / "metrics.csv")) == 2


def test_the_three_ways_to_start_are_one_program():
    outputs = [
        subprocess.run([sys.executable, *words, "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for words in (["cli.py"], ["-m", "autoslim"])
    ]
    assert outputs[0] == outputs[1]
    assert all(verb in outputs[0] for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, capsys):
    assert run(verb, "--help") == 0
    assert "Usage: autoslim" in capsys.readouterr().out
