"""What a search leaves behind, and what other verbs make of it."""

import csv
import json
import shutil
import threading

import numpy as np
import pytest
import torch
from PIL import Image

import autoslim
from autoslim.channels.config import origin
from autoslim.commands import plot as plotting
from autoslim.commands import runs, study
from autoslim.commands.trained import open_run
from autoslim.cost.amounts import KINDS
from autoslim.cost.budgets import Budgets
from autoslim.cost.latency import LatencySetup
from autoslim.errors import ModelError, RunError
from autoslim.search import progress
from autoslim.search.progress import Progress
from autoslim.slimmable import family
from cli import printed, refused, run


@pytest.fixture(scope="module")
def supernet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "supernet"
    assert run("train", "digits_cnn", "--data", "digits", "--epochs", 2, "--out", folder, "--device", "cpu") == 0
    return folder


def search(supernet, out, *options):
    assert run("search", supernet, "--device", "cpu", "--out", out, *options) == 0
    return out


def changed(supernet, folder, **settings):
    """Copy a run with other settings."""
    shutil.copytree(supernet, folder, ignore=lambda *_: {"search"})
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return folder


def write_images(folder):
    """Write a folder of small images, six to train on and two to test on of each of two classes."""
    for part, count in (("train", 6), ("test", 2)):
        for name in ("ant", "bee"):
            for i in range(count):
                path = folder / part / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (8, 8), 20 * i).convert("RGB").save(path)


@pytest.mark.parametrize(
    ("provenance", "words"),
    [
        ({}, "given"),
        ({"kind": "published"}, "published"),
        ({"kind": "searched"}, "searched"),
        ({"kind": "searched", "search": {"order": "greedy"}}, "searched"),
        ({"kind": "uniform", "search": {"order": "greedy"}}, "uniform"),
        ({"kind": "searched", "search": {"order": "uniform"}}, "uniform"),
        ({"kind": "searched", "search": {"order": "evolution"}}, "order evolution"),
    ],
)
def test_what_found_a_configuration(provenance, words):
    assert origin(provenance) == words


def test_retrained_networks_are_drawn_as_what_found_them(supernet, tmp_path, monkeypatch, capsys):
    runs = []
    for order in ("greedy", "uniform", "random"):
        options = ("--evaluations", 3) if order == "random" else ()
        out = search(supernet, tmp_path / order, "--flops-target", "60%", "--order", order, *options)
        runs.append(tmp_path / f"retrained-{order}")
        told = printed(capsys, "retrain", out / "642.2k.json", "--data", "digits", "--epochs", 1, "--out", runs[-1])
        assert told["configuration"] == {"greedy": "searched", "uniform": "uniform", "random": "order random"}[order]
    path = runs[-1] / "result.json"
    path.write_text(path.read_text().replace("order random", "searched"))  # as it was written once
    drawn = []
    monkeypatch.setattr("autoslim.report.spectrum.draw_spectrum", lambda out, **given: drawn.extend(given["retrained"]))
    plotting.plot_runs(runs, tmp_path / "picture.png")
    assert [network["configuration"] for network in drawn] == ["searched", "uniform", "order random"]


def test_labels_in_another_order_are_refused(supernet, tmp_path, capsys):
    classes = json.loads((supernet / "config.json").read_text())["classes"]
    other = changed(supernet, tmp_path / "other", classes=[*classes[1:], classes[0]])
    for verb in (
        ("search", other, "--flops-target", "60%"),
        ("evaluate", other),
        ("study", "widths", other, "--out", tmp_path / "out"),
    ):
        assert "pass data with the same class names" in refused(capsys, *verb)
    assert not (other / "search").exists()


def test_images_that_were_trained_on_are_not_taken_for_held_out_ones(supernet, tmp_path, capsys):
    counts = json.loads((supernet / "config.json").read_text())["images"]
    other = changed(supernet, tmp_path / "other", images={**counts, "train": counts["train"] - 1})
    for verb in (("evaluate", other), ("study", "widths", other, "--out", tmp_path / "out")):
        assert "the held-out images would not be the same" in refused(capsys, *verb)
    assert "the held-out images would not be the same" in refused(capsys, "evaluate", other, "--data", "digits")


def test_other_images_are_normalized_as_those_that_were_trained_on(tmp_path, capsys):
    write_images(tmp_path / "set")
    options = ("--data", f"folder:{tmp_path / 'set'}", "--input-shape", "3,8,8", "--epochs", 1)
    width = tmp_path / "width.json"
    assert run("import", "resnet20_cifar", "--width", "0.25", "--input-shape", "3,8,8", "--out", width) == 0
    assert run("train", "resnet20_cifar", *options, "--held-out", 4, "--out", tmp_path / "supernet", "--device", "cpu") == 0
    assert run("retrain", width, "--data", options[1], "--epochs", 1, "--out", tmp_path / "plain", "--device", "cpu") == 0
    switches = ("--system", "s-net", "--switches", "0.25,0.5")
    assert run("train", "resnet20_cifar", *options, *switches, "--out", tmp_path / "switches", "--device", "cpu") == 0
    shutil.copytree(tmp_path / "set", tmp_path / "dark")
    for path in (tmp_path / "dark/train").rglob("*.png"):
        Image.new("RGB", (8, 8), (3, 2, 1)).save(path)
    before = {}
    for data in ((), ("--data", f"folder:{tmp_path / 'dark'}")):
        for name in ("plain", "switches"):
            told = printed(capsys, "evaluate", tmp_path / name, *data, "--device", "cpu", "--json")
            assert before.setdefault(name, told) == told
    told = printed(capsys, "evaluate", tmp_path / "supernet", "--data", f"folder:{tmp_path / 'dark'}", "--json")
    assert (told["kind"], told["split"], told["images"]) == ("supernet estimate", "test", 4)  # some of the others may be known
    told = printed(capsys, "evaluate", tmp_path / "supernet", "--data", options[1], "--json")
    assert (told["kind"], told["split"], told["images"]) == ("supernet estimate", "held-out training", 4)
    settings = runs.read_run(tmp_path / "supernet")
    device = torch.device("cpu")
    own, other = (
        runs.run_images(tmp_path / "supernet", settings, (3, 8, 8), device, data)
        for data in (None, f"folder:{tmp_path / 'dark'}")
    )
    assert own.mean == other.mean == settings["normalization"]["mean"] and own.std == other.std
    assert own.mean == pytest.approx([50 / 255] * 3) and own.std == pytest.approx([np.std([0, 20, 40, 60, 80, 100]) / 255] * 3)


def test_a_data_function_that_draws_other_images_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "drawn_data.py").write_text(
        "import torch\nfrom torch.utils.data import random_split\n"
        "class Digits(torch.utils.data.Dataset):\n"
        "    def __len__(self):\n        return 400\n"
        "    def __getitem__(self, i):\n        return torch.full((1, 8, 8), i / 400), i % 4\n"
        "seeded = lambda: random_split(Digits(), [300, 100], torch.Generator().manual_seed(0))\n"
        "unseeded = lambda: random_split(Digits(), [300, 100])\n"
        "def noise():\n    part = torch.randint(0, 256, (400, 1, 8, 8)).byte(), torch.arange(400) % 4\n    return part, part\n"
    )
    monkeypatch.chdir(tmp_path)
    for name in ("seeded", "unseeded", "noise"):
        options = ("--data", f"drawn_data:{name}", "--epochs", 1, "--out", name, "--device", "cpu")
        assert run("train", "digits_cnn", "--held-out", 100, *options) == 0
    assert run("evaluate", "seeded") == 0
    for name in ("unseeded", "noise"):  # other labels, or other images behind the same ones
        assert "has to return the same images every time" in refused(capsys, "search", name, "--flops-target", "60%")


def test_a_file_that_is_called_otherwise_is_told(tmp_path, capsys):
    write_images(tmp_path / "set")
    options = ("--data", f"folder:{tmp_path / 'set'}", "--input-shape", "3,8,8", "--epochs", 1, "--held-out", 4)
    assert run("train", "resnet20_cifar", *options, "--out", tmp_path / "run", "--device", "cpu") == 0
    shutil.move(tmp_path / "set", tmp_path / "moved")
    moved = changed(tmp_path / "run", tmp_path / "again", data=f"folder:{tmp_path / 'moved'}")
    assert run("evaluate", moved) == 0
    (tmp_path / "moved/train/ant/0.png").rename(tmp_path / "moved/train/ant/9.png")
    assert "has other training images" in refused(capsys, "evaluate", moved)


def test_another_run_is_told_from_where_it_differs(tmp_path):
    amounts = [{"macs": 88000000.0, "params": 2000000.0}, {"macs": 59000000.0, "params": 1000000.0}]
    runs.write_run(tmp_path, "search", amounts=amounts[:1], classes=["a", "b"])
    with pytest.raises(RunError) as caught:
        runs.write_run(tmp_path, "search", amounts=amounts, classes=["a", "c"])
    assert "classes was ['a', 'b'], now ['a', 'c']" in str(caught.value)
    before, _, now = str(caught.value).partition("amounts was ")[2].partition(";")[0].partition(", now ")
    assert before.endswith("}]") and "59000000.0" in now


def test_of_two_runs_that_begin_at_once_in_a_folder_one_is_refused(tmp_path, monkeypatch):
    refusals = []

    def other():
        with pytest.raises(RunError) as caught:
            runs.write_run(tmp_path, "supernet", seed=1)
        refusals.append(str(caught.value))

    def slowly(*written):
        monkeypatch.undo()
        thread.start()
        thread.join(0.5)  # it waits
        write_json(*written)

    thread, write_json = threading.Thread(target=other), runs.write_json
    monkeypatch.setattr(runs, "write_json", slowly)
    runs.write_run(tmp_path, "supernet", seed=0)
    thread.join()
    assert "seed was 0, now 1" in refusals[0] and json.loads((tmp_path / "config.json").read_text())["seed"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_run_that_goes_on_with_other_versions_tells_it(tmp_path, caplog):
    runs.write_run(tmp_path, "search", seed=0)
    runs.write_run(tmp_path, "search", seed=0)
    assert not caplog.text
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "versions": {**runs.versions(), "torch": "1.0"}}))
    runs.write_run(tmp_path, "search", seed=0)
    assert f"was begun with other versions (torch was '1.0', now '{torch.__version__}')" in caplog.text


def test_a_space_that_is_no_table_is_damaged():
    with pytest.raises(RunError, match="the search space in the run's config.json is damaged"):
        runs.space_from_json(3)


def test_a_configuration_outside_the_run_is_scored_by_its_supernet(supernet, tmp_path, capsys):
    out = search(supernet, tmp_path / "out", "--flops-target", "60%", "--effort", "exact")
    path = out / "642.2k.json"
    assert "name the run that it was found in with --supernet RUN" in refused(capsys, "evaluate", path)
    found = printed(capsys, "evaluate", path, "--supernet", supernet)
    config = autoslim.ChannelConfig.load(path)
    assert found["kind"] == "supernet estimate" and found["macs"] == config.cost["macs"]
    assert (found["error"], found["loss"]) == pytest.approx((config.estimate["error"], config.estimate["loss"]), rel=1e-6)
    assert "does not exist" in refused(capsys, "evaluate", out / "no.json", "--supernet", supernet)
    assert "--supernet" in refused(capsys, "evaluate", supernet, "--supernet", supernet, code=2)
    assert "is not a run" in refused(capsys, "evaluate", path, "--supernet", out.parent)
    assert "holds a search, not a supernet" in refused(capsys, "evaluate", path, "--supernet", out)


def test_the_spectrum_keeps_what_was_found_before(supernet, tmp_path):
    def path_of(*targets):
        out = search(supernet, tmp_path / "out", *(word for target in targets for word in ("--flops-target", target)))
        rows = csv.DictReader((out / "spectrum.csv").read_text().splitlines())
        return [float(row["macs"]) for row in rows if row["series"] == "greedy"]

    first = path_of("60%")
    both = path_of("40%")
    assert len(first) == 2 and both[:2] == first and len(both) == 3
    assert path_of("60%", "40%") == both
    (tmp_path / "out" / "other.json").write_text("{")
    (tmp_path / "out" / "note.json").write_text("{}")
    assert path_of("60%") == both


def test_configurations_are_drawn_by_the_seed_that_is_given(supernet, tmp_path, capsys):
    base = ("--flops-target", "60%", "--order", "random", "--evaluations", 3)
    traces = [
        (search(supernet, tmp_path / str(seed), *base, *options) / "trace.csv").read_text()
        for seed, options in enumerate([(), ("--draw-seed", 0), ("--draw-seed", 7)])
    ]
    assert traces[0] == traces[1] != traces[2]
    provenance = autoslim.ChannelConfig.load(tmp_path / "2" / "642.2k.json").provenance
    assert (provenance["draw_seed"], provenance["seed"]) == (7, 0)
    told = refused(capsys, "search", supernet, "--out", tmp_path / "2", "--device", "cpu", *base, "--draw-seed", 8)
    assert "was written by another search" in told
    told = refused(capsys, "search", supernet, "--flops-target", "60%", "--draw-seed", 8, code=2)
    assert "--order greedy does not take --draw-seed" in told


def test_a_family_without_a_default_network_is_searched_all_the_same(supernet, tmp_path, monkeypatch):
    width_config = family.width_config

    def without(space, net, width):
        if width == 1.0:
            raise ModelError("the factory builds no such width")
        return width_config(space, net, width)

    monkeypatch.setattr(family, "width_config", without)
    out = search(supernet, tmp_path / "out", "--flops-target", "60%")
    assert "default_channels" not in autoslim.ChannelConfig.load(out / "642.2k.json").provenance
    assert run("plot", out, "--what", "channels", "--out", tmp_path / "channels.png") == 0


@pytest.mark.parametrize("where", ["autoslim.search.swaps.swap", "autoslim.commands.found.save"])
def test_what_is_said_at_an_interruption_has_a_line_of_its_own(supernet, tmp_path, monkeypatch, capsys, where):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupted)
    told = refused(capsys, "search", supernet, "--flops-target", "60%", "--swaps", 1, "--out", tmp_path / "out")
    assert told == "autoslim: interrupted; what was finished is kept: run the same command again to go on from there"


def test_other_orders_show_the_time_left_to_every_target(supernet, tmp_path, capsys):
    targets = ("--flops-target", "60%", "--flops-target", "40%")
    search(supernet, tmp_path / "out", *targets, "--order", "random", "--evaluations", 3)
    shown = capsys.readouterr().err
    assert "searching 642.2k" in shown and "searching 428.1k" in shown
    assert "MACs, 428.1k in " in shown and "best loss " in shown


def test_swaps_are_shown(supernet, tmp_path, capsys):
    search(supernet, tmp_path / "out", "--flops-target", "60%", "--swaps", 2)
    shown = capsys.readouterr().err
    assert "swaps 642.2k" in shown and "round 1 of 2, loss" in shown


def test_what_is_done_with_a_found_network_is_no_part_of_the_time_left(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    net = autoslim.build_supernet(autoslim.load_space("digits_cnn"))
    budgets = Budgets(net, ["macs"])
    full = budgets.full["macs"]
    with Progress(budgets.full, budgets.check({"macs": ["50%"]}), shown=True) as shown:
        now[0] = 10.0
        with shown.away():
            now[0] = 1000.0
        now[0] = 1010.0
        shown.update({"macs": 0.75 * full}, "half way")
    assert "half way, 535.2k in 00:20" in capsys.readouterr().err


def test_a_search_into_its_own_run_is_not_told_to_remove_it(supernet, capsys):
    told = refused(capsys, "search", supernet, "--flops-target", "60%", "--out", supernet)
    assert "pass another --out" in told and "remove" not in told


def test_pictures_of_one_search_are_not_drawn_of_several(supernet, tmp_path, capsys):
    for name in ("a", "b"):
        search(supernet, tmp_path / name, "--flops-target", "60%")
    for what in ("channels", "path"):
        told = refused(capsys, "plot", tmp_path / "a", tmp_path / "b", "--what", what, "--out", tmp_path / "picture.png")
        assert f"--what {what} draws one search, 2 are given" in told
    empty = changed(supernet, tmp_path / "empty")  # whose search went elsewhere
    assert run("plot", empty, tmp_path / "a", "--what", "path", "--out", tmp_path / "path.png") == 0
    told = refused(capsys, "plot", tmp_path / "a", "--device", "cpu", "--out", tmp_path / "picture.png", code=2)
    assert "--device has no meaning for --what spectrum" in told
    drawn = plotting.plot_runs([tmp_path / "a", tmp_path / "b"], tmp_path / "picture.png")
    assert drawn is None and (tmp_path / "picture.png").exists()


def test_networks_are_seeds_of_one_only_if_they_differ_in_nothing_else(supernet, tmp_path, capsys):
    found = search(supernet, tmp_path / "search", "--flops-target", "60%") / "642.2k.json"
    runs = {}
    for name, options in {"a": (), "b": ("--seed", 1), "c": ("--epochs", 2), "d": ()}.items():
        runs[name] = tmp_path / name
        assert run("retrain", found, "--data", "digits", "--epochs", 1, *options, "--out", runs[name]) == 0
    picture = tmp_path / "picture.png"
    assert run("plot", runs["a"], runs["b"], "--out", picture) == 0
    picture.unlink()
    told = refused(capsys, "plot", runs["a"], runs["c"], "--out", picture)
    assert f"{runs['a']} and {runs['c']} hold searched networks of as many multiply-adds, and differ in more" in told
    assert "are one folder; leave one out" in refused(capsys, "plot", runs["a"], tmp_path / "b/../a", "--out", picture)
    told = refused(capsys, "plot", runs["a"], runs["b"], runs["d"], "--out", picture)
    assert f"{runs['a']} and {runs['d']} are the same training with the same seed" in told and not picture.exists()


def test_a_retraining_is_of_the_images_that_it_began_with(tmp_path, capsys):
    write_images(tmp_path / "set")
    config = tmp_path / "half.json"
    assert run("import", "resnet20_cifar", "--width", "0.5", "--input-shape", "3,8,8", "--out", config) == 0
    command = ("retrain", config, "--data", f"folder:{tmp_path / 'set'}", "--epochs", 1, "--out", tmp_path / "plain")
    assert run(*command) == 0 and run(*command) == 0
    shutil.copy(tmp_path / "set/train/ant/0.png", tmp_path / "set/train/ant/7.png")
    assert "holds another run (images.train was 12, now 13; data_digest was" in refused(capsys, *command)
    settings = json.loads((tmp_path / "plain/config.json").read_text())
    del settings["images"], settings["data_digest"]  # as earlier versions wrote it
    (tmp_path / "plain/config.json").write_text(json.dumps(settings))
    assert run(*command) == 0
    (tmp_path / "plain/result.json").write_text("{}")
    told = refused(capsys, *command)
    assert "plain/result.json is damaged (no kind); remove it, and run the same command again" in told


def test_a_run_is_studied_on_images_of_its_own_shape(tmp_path):
    for name, size in (("small", 8), ("large", 12)):
        options = ("--data", "digits", "--input-shape", f"1,{size},{size}", "--epochs", 1, "--out", tmp_path / name)
        assert run("train", "digits_cnn", "--system", "us-net", *options) == 0
    read = {}
    assert [study._images(open_run(tmp_path / name, "cpu"), read).size for name in ("small", "large")] == [(8, 8), (12, 12)]


def test_trainings_in_folders_of_one_name_are_told_apart(tmp_path):
    for place, epochs in (("a", 1), ("b", 2)):
        options = ("--data", "digits", "--epochs", epochs, "--out", tmp_path / place / "run")
        assert run("train", "digits_cnn", "--system", "us-net", *options) == 0
    opened = study._labelled([open_run(tmp_path / place / "run", "cpu") for place in ("a", "b")])
    assert len({each.label for each in opened}) == 2


def test_the_table_has_the_costs_that_were_asked_for(supernet, tmp_path, capsys):
    search(supernet, tmp_path, "--params-target", "60%", "--memory-target", "70%")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["configuration", "MACs", "params", "memory", "error*", "loss*"]
    (path,) = (path for path in tmp_path.glob("params*.json"))
    assert KINDS["memory"].format(autoslim.ChannelConfig.load(path).provenance["costs"]["memory"]) in lines[1].split()


@pytest.mark.parametrize("kind", ["params", "memory", "macs"])
def test_the_uniform_network_costs_about_as_much_in_what_has_a_target(supernet, tmp_path, kind):
    option = {"macs": "flops"}.get(kind, kind)
    out = search(supernet, tmp_path, f"--{option}-target", "60%")
    (path,) = out.glob("uniform*.json")
    uniform, searched = (autoslim.ChannelConfig.load(out / name) for name in (path.name, path.name.removeprefix("uniform-")))
    costs = [each.provenance["costs"][kind] for each in (uniform, searched)]
    assert abs(costs[0] / costs[1] - 1) <= 0.06


def test_profile_refuses_what_only_latency_has(capsys):
    for option in (("--device", "cpu"), ("--threads", 1), ("--batch", 2)):
        assert f"{option[0]} is for --latency" in refused(capsys, "profile", "digits_cnn", *option, code=2)
    found = printed(capsys, "profile", "digits_cnn", "--latency", "--threads", 1, "--batch", 2, "--device", "cpu")
    assert found["latency"]["repeats"] >= 100 and found["latency"]["device"] == LatencySetup().device_name
