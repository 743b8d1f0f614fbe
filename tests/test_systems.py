"""The systems of the papers, from one training step to their studies."""

import csv
import json
from dataclasses import replace

import pandas
import pytest
import torch
import torch.nn.functional as F
import tricky
from torch import nn
from tricky import randomized

import autoslim
from autoslim.channels.config import ChannelConfig
from autoslim.commands import runs, systems
from autoslim.commands.joint import build_switches, load_switches
from autoslim.commands.retrain import load_network, with_classes
from autoslim.commands.trained import open_run
from autoslim.sandwich import Sandwich
from autoslim.search.stages import find_stages, stage_configs
from autoslim.slimmable import family
from autoslim.spaces import find_config, load_space
from cli import refused, run

X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(3))
Y = torch.tensor([0, 1, 2, 3, 4, 0])
# Narrow enough for a test; every family keeps several choices in most groups.
FAMILIES = {"mobilenet_v1": 0.5, "mobilenet_v2": 0.5, "mnasnet": 0.5, "resnet50": 0.25, "shufflenet": 1.0}


def seen_configs(net, count=1, **options):
    """Train for `count` steps and return the widths of every forward pass."""
    seen = []
    net.model.register_forward_pre_hook(lambda *_: seen.append(tuple(net.config.widths.values())))
    autoslim.train_supernet(net, [(X, Y)] * count, epochs=1, lr=0.01, **options)
    return seen


def supernet(kind=tricky.Residual, **options):
    torch.manual_seed(1)
    return autoslim.Supernet(randomized(kind()), X[:1], **{"divisor": 1, "steps": 16, "min_ratio": 0.25, **options})


# Universally slimmable networks -------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, expected",
    [("max,min,random:2", (True, True, 2)), ("min, max", (True, True, 0)), ("random:14", (False, False, 14)), ("max", (1, 0, 0))],
)
def test_a_sandwich_is_read(text, expected):
    assert Sandwich.parse(text) == expected


@pytest.mark.parametrize("text", ["", "max,max", "random", "random:0", "random:1,random:2", "widest", "max;min", "max,,min"])
def test_what_is_no_sandwich_is_refused(text):
    with pytest.raises(autoslim.AutoSlimError, match="max, min and random:N"):
        Sandwich.parse(text)


def test_uniform_widths_are_one_ratio_for_all_groups_within_the_range():
    net = supernet()
    seen = seen_configs(net, 20, widths="uniform")
    assert [seen[0], seen[1]] == [(16, 12), (4, 3)]  # full, and a quarter of it
    ratios = [stem / 16 for stem, _ in seen]
    assert min(ratios) >= 0.25 and len(set(seen)) > 8
    assert all(tuple(net.uniform(r).widths.values()) in seen for r in (1.0, 0.25))
    uniform = {tuple(net.uniform(r / 1000).widths.values()) for r in range(250, 1001)}
    assert set(seen) <= uniform
    assert not set(seen_configs(supernet(), 20, widths="nonuniform")) <= uniform


@pytest.mark.parametrize(
    "text, fixed, drawn", [("max,random:3", [(16, 12)], 3), ("min,random:3", [(4, 3)], 3), ("random:4", [], 4)]
)
def test_the_sandwich_says_which_networks_a_step_sees(text, fixed, drawn):
    seen = seen_configs(supernet(), widths="uniform", sandwich=text, distill=False)
    assert seen[: len(fixed)] == fixed and len(seen) == len(fixed) + drawn


def test_without_distillation_all_networks_see_the_labels():
    net = supernet()
    expected = {name: torch.zeros_like(p) for name, p in net.model.named_parameters()}
    for config in (net.full(), net.narrowest()):
        plain = autoslim.materialize(net, config).train()
        F.cross_entropy(plain(X), Y).backward()
        for name, p in plain.named_parameters():
            expected[name][tuple(slice(n) for n in p.shape)] += p.grad
    before = {name: p.clone() for name, p in net.model.named_parameters()}
    autoslim.train_supernet(
        net, [(X, Y)], epochs=1, lr=0.1, schedule="constant", weight_decay=0.0, sandwich="max,min", distill=False, nesterov=False
    )
    for name, p in net.model.named_parameters():
        torch.testing.assert_close(p, nn.Parameter(before[name] - 0.1 * expected[name]), rtol=1e-4, atol=1e-5)


def test_there_is_nothing_to_learn_from_without_the_widest():
    with pytest.raises(autoslim.AutoSlimError, match="'min,random:2' has no max, from which the others learn"):
        autoslim.train_supernet(supernet(), [(X, Y)], epochs=1, sandwich="min,random:2")


@pytest.mark.parametrize("average", [False, True])
def test_networks_without_batch_norm_are_trained_at_all_widths(average):
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 12, 3), nn.Linear(12, 5)

        def forward(self, x):
            return self.head(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))

    torch.manual_seed(0)
    net = autoslim.Supernet(Bare(), X[:1], divisor=1, min_ratio=0.25, average_inputs=average)
    rows = autoslim.train_supernet(net, [(X, Y)] * 4, epochs=12, lr=0.5 if average else 0.1, widths="uniform", momentum=0.5)
    assert rows[-1]["loss"] < rows[0]["loss"]
    for ratio in (1.0, 0.6, 0.25):
        config = net.uniform(ratio)
        plain = autoslim.materialize(net, config)
        with net.using(config):
            assert autoslim.evaluate(net, [(X, Y)]).loss == pytest.approx(autoslim.evaluate(plain, [(X, Y)]).loss, rel=1e-4)
        autoslim.calibrate(plain, [(X, Y)])  # without batch norm there is nothing to do


@pytest.mark.parametrize("schedule, options, expected", [
    ("exponential", {"decay": 0.5}, [0.4, 0.4, 0.2, 0.2, 0.1, 0.1]),
    ("step", {"decay": 0.1, "milestones": [1, 2.5]}, [0.4, 0.4, 0.04, 0.04, 0.04, 0.004]),
])  # fmt: skip
def test_published_schedules(schedule, options, expected):
    recipe = autoslim.Recipe(epochs=3, lr=0.4, schedule=schedule, **options)
    assert [recipe.lr_at(i, 2) for i in range(6)] == pytest.approx(expected)


# Every family -------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=FAMILIES)
def narrow_space(request):
    space = load_space(request.param)
    return replace(space, full_width=FAMILIES[request.param], input_shape=(3, 32, 32)).with_classes(5)


def family_batches():
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(4, 3, 32, 32, generator=generator), torch.tensor([0, 1, 2, 3]))]


def test_a_step_of_the_supernet_of_the_search_and_of_the_retraining(narrow_space):
    net = family.build_supernet(systems.supernet_space(narrow_space, "autoslim", None))
    before = {name: p.clone() for name, p in net.source.named_parameters()}
    rows = autoslim.train_supernet(net, family_batches(), epochs=1, lr=0.01, sandwich="max,min,random:1", from_scratch=True)
    assert rows[0]["loss"] > 0 and rows[0]["narrowest_loss"] > 0
    assert any(not torch.equal(p, before[name]) for name, p in net.source.named_parameters())
    table = autoslim.CostTable(net)
    full = table.cost(net.full()).macs
    data = family_batches()
    (point,) = autoslim.greedy_search(net, data, calibration=data, targets={"macs": [full - 1]}, score="loss", effort="exact")
    assert point.step == 1 and point.cost.macs < full
    slim = autoslim.materialize(net, point.config)
    assert sum(p.numel() for p in slim.parameters()) == point.cost.params
    assert autoslim.retrain(slim, data, epochs=1, lr=0.01)[0]["loss"] > 0


def test_a_step_of_the_us_net_and_of_the_s_net(narrow_space):
    low = narrow_space.full_width / 2
    space = systems.supernet_space(narrow_space, "us-net", (low, narrow_space.full_width), epochs=1, batch_size=4)
    net = family.build_supernet(space)
    at = family.uniform_widths(space, net)
    # Which widths are drawn is the narrow_space's choice, not a rounding of ours.
    narrow = space.build(low)
    assert autoslim.CostTable(net).cost(at(0.5)).params == sum(p.numel() for p in narrow.parameters())
    recipe = autoslim.Recipe.of(space.train)
    assert (recipe.widths, recipe.sandwich, recipe.distill) == ("uniform", "max,min,random:2", True)
    rows = autoslim.train_supernet(net, family_batches(), recipe=recipe, uniform=at)
    assert rows[0]["narrowest_loss"] > 0

    configs = family.switch_configs(narrow_space, [narrow_space.full_width, low])
    s_net = autoslim.SwitchableNet(net, configs)
    assert autoslim.train_switches(s_net, family_batches(), epochs=1, lr=0.01)[0]["loss"] > 0
    assert sum(p.numel() for p in s_net.materialize(low).parameters()) == sum(p.numel() for p in narrow.parameters())


# Stages -------------------------------------------------------------------------------------------


def test_stages_are_resolutions_and_one_of_them_is_slimmed():
    net = family.build_supernet(replace(load_space("mobilenet_v1"), full_width=1.0))
    found = find_stages(net, torch.zeros(1, 3, 64, 64))
    assert [height for height, _ in found] == [32, 16, 8, 4, 2]
    assert [len(names) for _, names in found] == [2, 2, 2, 6, 2]  # stem and 13 blocks, at the resolution each puts out
    rows = list(stage_configs(net, found, 0.6, 3))
    assert len(rows) == 5 + 5 * 3
    index, value, config = rows[-1]
    full = net.full().widths
    assert (index, value) == (4, 1.0)
    assert {n for n in full if config.widths[n] < full[n]} == set(found[4][1])
    assert all(config.widths[n] == net.grid.nearest(0.6 * full[n], full[n]) for n in found[4][1])
    with pytest.raises(autoslim.AutoSlimError, match="ratio 0.05 is not between 0.1"):
        next(stage_configs(net, found, 0.05, 3))


# The command line ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("systems")
    short = ("--data", "digits", "--epochs", 2, "--device", "cpu")
    assert run("train", "digits_cnn", "--system", "s-net", "--switches", "0.5,1.0", "--out", folder / "s", *short) == 0
    assert run("train", "digits_cnn", "--system", "s-net", "--switches", "1.0", "--out", folder / "one", *short) == 0
    assert run("train", "digits_cnn", "--system", "us-net", "--range", "0.25,1.0", "--out", folder / "us", *short) == 0
    ablation = ("--no-distill", "--sandwich", "max, random:1", "--out", folder / "us2", "--seed", 1)
    assert run("train", "digits_cnn", "--system", "us-net", "--range", "0.25,1.0", *ablation, *short) == 0
    assert run("train", "digits_cnn", "--system", "nonuniform-us-net", "--out", folder / "n", *short) == 0
    return folder


def test_a_run_says_what_it_trained(trained):
    labels = {
        "s": "S-Net, 2 switches",
        "one": "ordinary network (1)",
        "us": "US-Net",
        "us2": "US-Net, sandwich max,random:1, no distillation",
        "n": "nonuniform US-Net",
    }
    for name, label in labels.items():
        assert systems.describe(runs.read_run(trained / name)) == label
    space = runs.read_run(trained / "us")["space"]
    assert (space["full_width"], space["grid"]["min_ratio"]) == (1.0, 0.25)
    assert runs.read_run(trained / "us")["images"]["search"] == 0
    assert list(pandas.read_csv(trained / "s" / "metrics.csv").columns)[2:7] == [
        "loss", "loss_1", "accuracy_1", "loss_0.5", "accuracy_0.5",
    ]  # fmt: skip


def test_evaluation_of_switches_repeats_the_result(trained, capsys):
    capsys.readouterr()
    assert run("evaluate", trained / "s", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    result = json.loads((trained / "s" / "result.json").read_text())
    assert {row["switch"]: row["error"] for row in rows} == {k: v["test"]["error"] for k, v in result["switches"].items()}
    assert run("evaluate", trained / "s", "--width", 0.5, "--json") == 0
    assert json.loads(capsys.readouterr().out) == rows[1]
    assert "switch '0.3' is unknown; pass one of 1, 0.5" in refused(capsys, "evaluate", trained / "s", "--switch", "0.3")
    assert "--switch 1 is for networks with switches" in refused(capsys, "evaluate", trained / "us", "--switch", "1", code=2)


def test_a_us_net_without_held_out_images_is_scored_on_the_test_images_and_not_searched(trained, capsys):
    capsys.readouterr()
    assert run("evaluate", trained / "us", "--width", 0.45, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["kind"], document["split"], document["images"]) == ("shared-weight accuracy", "test", 359)
    assert "train it with --held-out 0.1" in refused(capsys, "search", trained / "us", "--flops-target", "60%")


def test_widths_are_studied_side_by_side(trained, tmp_path, capsys):
    capsys.readouterr()
    folders = [trained / name for name in ("s", "one", "us")]
    assert run("study", "widths", *folders, "--widths", "1.0,0.7,0.5,0.25", "--out", tmp_path) == 0
    text = capsys.readouterr().out
    with open(tmp_path / "widths.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and (tmp_path / "widths.png").stat().st_size > 10_000
    filled = {(row["label"], float(row["width"])) for row in rows if row["trained"] == "True"}
    assert {width for label, width in filled if label == "S-Net, 2 switches"} == {1.0, 0.5}
    assert {width for label, width in filled if label == "US-Net"} == {1.0, 0.7, 0.5, 0.25}
    assert {width for label, width in filled if label.startswith("ordinary")} == {1.0}
    assert all(row["images"] == "359" for row in rows)
    assert text.splitlines()[0].split()[:2] == ["width", "MACs"] and len(text.splitlines()) == 6
    # A supernet at 0.7 is what `evaluate` says it is.
    assert run("evaluate", trained / "us", "--width", 0.7, "--json") == 0
    error = json.loads(capsys.readouterr().out)["error"]
    assert error in {float(row["error"]) for row in rows if row["label"] == "US-Net" and row["width"] == "0.7"}


def test_stages_and_calibration_are_studied(trained, tmp_path, capsys):
    capsys.readouterr()
    assert run("study", "stages", trained / "n", "--points", 2, "--out", tmp_path) == 0
    text = capsys.readouterr().out
    report = json.loads((tmp_path / "stages.json").read_text())
    assert text.strip() == report["words"] and "to 0.6 of the width of the others" in text
    assert len(report["stages"]) == 3
    assert run("study", "calibration", trained / "n", "--configurations", 3, "--out", tmp_path, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 3
    assert sum(row["error_after"] for row in rows) < sum(row["error_before"] for row in rows)
    assert "not trained at nonuniform widths" in refused(capsys, "study", "stages", trained / "us", "--out", tmp_path)
    short = ("--data", "digits", "--epochs", 1, "--seed", 1, "--device", "cpu")
    assert run("train", "digits_cnn", "--system", "nonuniform-us-net", "--out", tmp_path / "other", *short) == 0
    line = refused(capsys, "study", "stages", trained / "n", tmp_path / "other", "--out", tmp_path / "y")
    assert "differ in more than their seed" in line and not (tmp_path / "y").exists()
    assert "switches with statistics" in refused(capsys, "study", "calibration", trained / "s", "--out", tmp_path)


def test_the_natural_study_trains_what_it_needs_once(tmp_path, capsys):
    capsys.readouterr()
    args = ("study", "natural", "digits_cnn", "--data", "digits", "--epochs", 1, "--widths", "1.0,0.6", "--out", tmp_path)
    assert run(*args, "--seeds", "0") == 0
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.csv")}
    assert len(stamps) == 3
    first = (tmp_path / "widths.csv").read_text()
    assert first.count("\n") == 1 + 3 * 2
    assert run(*args, "--seeds", "0") == 0
    assert (tmp_path / "widths.csv").read_text() == first


@pytest.mark.parametrize(
    "args, message",
    [
        (("--system", "s-net", "--sandwich", "max"), "--sandwich has no meaning for --system s-net"),
        (("--system", "us-net", "--switches", "1"), "--switches has no meaning for --system us-net"),
        (("--system", "us-net", "--range", "1.0,0.5"), "write the lower width multiplier first"),
        (("--system", "us-net", "--sandwich", "min,random:1"), "has no max"),
        (("--system", "s-net", "--switches", "0.5,0.5"), "no list of different width multipliers"),
        (("--sandwich", "biggest"), "max, min and random:N"),
    ],
)
def test_options_that_do_not_fit_are_refused(args, message, tmp_path, capsys):
    code = 1 if args[-1] == "min,random:1" else 2
    line = refused(capsys, "train", "digits_cnn", "--data", "digits", "--out", tmp_path / "x", *args, code=code)
    assert message in line
    assert not (tmp_path / "x").exists()


def test_a_width_between_switches_takes_the_next_wider_one(trained, tmp_path):
    assert run("study", "widths", trained / "s", "--widths", "0.7", "--out", tmp_path) == 0
    (row,) = pandas.read_csv(tmp_path / "widths.csv").to_dict("records")
    net, settings = load_switches(trained / "s", "cpu")
    space = runs.space_from_json(settings["space"])
    images = runs.load_images("digits", space.input_shape, None, 0, torch.device("cpu"))
    # By hand: the 1.0x network, sliced to the family's widths at 0.7x, calibrated, scored.
    wide = autoslim.Supernet(net.materialize(1.0), torch.zeros(1, 1, 8, 8), divisor=1)
    narrow = space.build(0.7)
    widths = {g.name: narrow.get_submodule(g.name).out_channels for g in wide.groups}
    slim = autoslim.materialize(wide, wide.make_config(widths.values()))
    rules = space.search
    autoslim.calibrate(slim, images.calibration(rules["calibration_images"]))
    score = autoslim.evaluate(slim, images.scoring(images.test))
    assert (row["error"], row["images"]) == (score.error, 359) and row["loss"] == pytest.approx(score.loss, rel=1e-5)
    assert row["params"] == sum(p.numel() for p in slim.parameters())
    assert row["kind"] == "shared-weight accuracy, test images"


def test_ordinary_networks_are_one_line_and_trainings_that_differ_are_not(trained, tmp_path, capsys):
    half = tmp_path / "half"
    short = ("--data", "digits", "--epochs", 1, "--device", "cpu")
    alike = ("--data", "digits", "--epochs", 2, "--device", "cpu")
    assert run("train", "digits_cnn", "--system", "s-net", "--switches", "0.5", "--out", half, *alike) == 0
    assert run("study", "widths", trained / "one", half, "--widths", "1.0,0.5", "--out", tmp_path / "a") == 0
    table = pandas.read_csv(tmp_path / "a" / "widths.csv")
    assert list(table.label.unique()) == ["ordinary networks, one a width"] and list(table.width) == [1.0, 0.5]
    other = ("--system", "us-net", "--range", "0.5,1.0")
    assert run("train", "digits_cnn", *other, "--out", tmp_path / "short", *short) == 0
    assert run("study", "widths", trained / "us", tmp_path / "short", "--widths", "1.0", "--out", tmp_path / "b") == 0
    assert set(pandas.read_csv(tmp_path / "b" / "widths.csv").label) == {"US-Net (us)", "US-Net (short)"}
    line = refused(capsys, "study", "widths", trained / "us", trained / "us", "--out", tmp_path / "c")
    assert "are the same training with the same seed" in line
    assert run("train", "digits_cnn", *other, "--held-out", 0.2, "--out", tmp_path / "held", *short) == 0
    line = refused(capsys, "study", "widths", trained / "us", tmp_path / "held", "--out", tmp_path / "c")
    assert "test images" in line and "supernet estimate" in line and not (tmp_path / "c").exists()


def test_calibration_starts_from_what_training_left(trained, tmp_path):
    for count in (1, 3):
        assert run("study", "calibration", trained / "n", "--configurations", count, "--out", tmp_path / str(count)) == 0
    one, three = (pandas.read_csv(tmp_path / str(n) / "calibration.csv") for n in (1, 3))
    assert list(one.error_before) == list(three.error_before)[:1]
    net = open_run(trained / "n", "cpu").net
    images = runs.load_images("digits", (1, 8, 8), None, 0, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    for error in three.error_before:
        net.set(net.random(generator))
        assert autoslim.evaluate(net, images.scoring(images.test)).error == error


# Joint training -----------------------------------------------------------------------------------


def test_found_configurations_are_trained_jointly(trained, tmp_path, capsys):
    for width in (1.0, 0.5):
        assert run("import", "digits_cnn", "--width", width, "--out", tmp_path / f"{width}.json") == 0
    paths = [tmp_path / "1.0.json", tmp_path / "0.5.json"]
    args = ("--joint", "--data", "digits", "--epochs", 1, "--out", tmp_path / "joint")
    assert run("retrain", *paths, *args) == 0
    result = json.loads((tmp_path / "joint" / "result.json").read_text())
    assert list(result["switches"]) == ["1.0", "0.5"] and result["system"] == "joint"
    capsys.readouterr()
    assert run("evaluate", tmp_path / "joint", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["error"] for row in rows] == [entry["test"]["error"] for entry in result["switches"].values()]
    assert "2 configurations need --joint" in refused(capsys, "retrain", *paths, *args[1:3], "--out", tmp_path / "y", code=2)
    assert "is given twice" in refused(capsys, "retrain", paths[0], paths[0], *args[:3], "--out", tmp_path / "y")
    assert run("plot", trained / "s", tmp_path / "joint", "--out", tmp_path / "spectrum.png") == 0


def test_published_networks_take_the_classes_of_the_images_alone_and_jointly():
    names = ("mobilenet_v2-207M", "mobilenet_v2-305M")
    given = {name: ChannelConfig.load(find_config(name)) for name in names}
    configs = {name: with_classes(config, 10) for name, config in given.items()}
    network, cost = load_network(configs[names[0]], names[0])
    assert network.classifier[1].out_features == 10
    assert cost.macs == 206_767_048 - 990 * 1920 and cost.params == 4_125_104 - 990 * 1921
    net = build_switches(configs, "private", "joint")
    assert [net.net.full().widths[g] for g in ("features.18.0", "features.17.conv.2")] == [1920, 480]
    for name, config in configs.items():
        plain = net.materialize(name)
        assert sum(p.numel() for p in plain.parameters()) == load_network(config, name)[1].params
    assert with_classes(given[names[0]], 1000) is given[names[0]]


@pytest.mark.parametrize("what", ["curves", "norms", "images"])
@pytest.mark.parametrize("name", ["s", "us"])
def test_the_inside_of_a_run_is_drawn(what, name, trained, tmp_path):
    assert run("plot", trained / name, "--what", what, "--out", tmp_path / "x.png") == 0
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_the_images_of_a_picture_are_those_that_excite_the_channel_most(trained, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("autoslim.report.images.draw_top_images", lambda out, rows, title: drawn.extend(rows))
    layer, channel = "blocks.1.depthwise_norm", 3
    args = ("--what", "images", "--layer", layer, "--channel", channel, "--out", tmp_path / "x.png")
    assert run("plot", trained / "s", *args) == 0
    net, _ = load_switches(trained / "s", "cpu")
    images = runs.load_images("digits", (1, 8, 8), None, 0, torch.device("cpu"))
    assert [row["label"] for row in drawn] == ["1x", "0.5x"]
    for name, row in zip(net.switches, drawn):
        plain = net.materialize(name).eval()
        seen = []
        plain.get_submodule(layer).register_forward_hook(lambda m, x, out: seen.append(out[:, channel].amax((1, 2)).detach()))
        for x, _ in images.scoring(images.train):
            plain(x)
        best = torch.cat(seen).numpy().argsort()[::-1][:8]
        assert row["activations"] == pytest.approx(torch.cat(seen).numpy()[best], rel=1e-4)
        stored = images.train.fetch(torch.from_numpy(best.copy())).permute(0, 2, 3, 1).numpy()
        assert abs(stored.astype(int) - row["images"].astype(int)).max() <= 1


def test_the_norms_of_a_picture_are_those_of_the_switch(trained, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("autoslim.report.norms.draw_norms", lambda out, rows, title: drawn.extend(rows))
    assert run("plot", trained / "s", "--what", "norms", "--out", tmp_path / "x.png") == 0
    net, _ = load_switches(trained / "s", "cpu")
    state = net.state_dict()
    keys = {"scale": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}
    assert len(drawn) == 2 * sum(key.endswith("running_mean") for key in net.source.state_dict())
    for row in drawn:
        for part, key in keys.items():
            assert (row[part] == state[f"switches.{row['switch'].removesuffix('x')}.{row['layer']}.{key}"].numpy()).all()


def test_pictures_say_what_they_cannot_show(trained, tmp_path, capsys):
    plot = ("plot", trained / "s", "--out", tmp_path / "x.png", "--what")
    assert "channel 99 of 'blocks.0.depthwise' is not there at switch 1" in refused(
        capsys, *plot, "images", "--layer", "blocks.0.depthwise", "--channel", 99
    )
    assert "layer 'nothing' is unknown" in refused(capsys, *plot, "images", "--layer", "nothing")
    assert "--layer has no meaning for --what norms" in refused(capsys, *plot, "norms", "--layer", "stem", code=2)
    assert not (tmp_path / "x.png").exists()
