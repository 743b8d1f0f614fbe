"""Rank correlation of supernet and retraining: the statistics, the picture and `autoslim study rank`."""

import itertools
import json
import math
import random
from dataclasses import replace

import pandas as pd
import pytest
import torch
from matplotlib.legend import Legend

import autoslim
from autoslim.commands import rank as command
from autoslim.commands import runs
from autoslim.commands.search import load_supernet
from autoslim.errors import RunError
from autoslim.report import rank
from autoslim.training.initialize import initialize
from cli import printed, refused, run

# Statistics ---------------------------------------------------------------------------------------


def tau_by_definition(x, y):
    """Kendall's tau-b, pair by pair."""
    alike = opposite = only_x = only_y = 0
    for (x1, y1), (x2, y2) in itertools.combinations(list(zip(x, y)), 2):
        if x1 != x2 and y1 != y2:
            alike += (x1 < x2) == (y1 < y2)
            opposite += (x1 < x2) != (y1 < y2)
        only_x += x1 != x2 and y1 == y2
        only_y += x1 == x2 and y1 != y2
    known = (alike + opposite + only_x) * (alike + opposite + only_y)
    return (alike - opposite) / math.sqrt(known) if known else math.nan


def rankings(count, levels, seed):
    generator = random.Random(seed)
    return [[generator.randrange(levels) / 7 for _ in range(count)] for _ in range(2)]


@pytest.mark.parametrize("levels", [2, 4, 1000])
@pytest.mark.parametrize("count", [3, 5, 12, 40])
def test_tau_is_that_of_its_definition_and_of_scipy(count, levels):
    for seed in range(10):
        x, y = rankings(count, levels, seed)
        tau = rank.kendall_tau(x, y)
        assert tau == pytest.approx(tau_by_definition(x, y), nan_ok=True)
        assert tau == pytest.approx(rank.kendall_tau(y, x), nan_ok=True)
    stats = pytest.importorskip("scipy.stats")
    x, y = rankings(count, levels, 3)
    assert rank.kendall_tau(x, y) == pytest.approx(stats.kendalltau(x, y).statistic, nan_ok=True)


def test_tau_by_hand():
    assert rank.kendall_tau([1, 2, 3], [10, 20, 30]) == 1
    assert rank.kendall_tau([1, 2, 3], [3, 2, 1]) == -1
    # Pairs: 2 alike, 0 opposite, one equal in x alone: 2 / sqrt(2 * 3).
    assert rank.kendall_tau([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / math.sqrt(6))
    assert math.isnan(rank.kendall_tau([1, 1, 1], [1, 2, 3])) and math.isnan(rank.kendall_p([1, 1, 1], [1, 2, 3]))


@pytest.mark.parametrize("levels", [5, 1000])
def test_p_counts_permutations(levels):
    for seed in range(5):
        x, y = rankings(5, levels, seed)
        found = [abs(tau_by_definition(x, order)) for order in itertools.permutations(y)]
        expected = sum(tau >= abs(tau_by_definition(x, y)) - 1e-12 for tau in found) / len(found)
        assert rank.kendall_p(x, y) == pytest.approx(expected)
    assert rank.kendall_p([1, 2, 3, 4], [1, 2, 3, 4]) == pytest.approx(2 / 24)


def test_p_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    for count, seed in ((7, 0), (8, 1), (12, 2), (12, 3), (20, 4)):
        x, y = rankings(count, 10**6, seed)
        expected = stats.kendalltau(x, y, method="exact").pvalue
        assert rank.kendall_p(x, y) == pytest.approx(expected, abs=0.012 if count > 8 else 1e-12)
    x = list(range(15))
    assert 0 < rank.kendall_p(x, x) < 1e-3 and rank.kendall_p(x, x) == rank.kendall_p(x, x)


def test_equal_values_share_the_mean_of_their_ranks():
    assert rank.ranks([0.5, 0.9, 0.5, 0.1]) == [2.5, 1, 2.5, 4]
    stats = pytest.importorskip("scipy.stats")
    values, _ = rankings(20, 6, 0)
    assert rank.ranks(values) == list(stats.rankdata([-v for v in values]))


# Rows, words and picture --------------------------------------------------------------------------


def measured(estimates, *retrained, targets=None, losses=None):
    """Rows of configurations from accuracies: those of the supernet, then those of every seed."""
    names = ["uniform", *(f"random{i}" for i in range(1, len(estimates)))]
    return [
        {
            "configuration": name, "kind": "uniform" if name == "uniform" else "random",
            "target": targets[i] if targets else 3e6, "macs": 2_900_000 + i, "params": 10 * i,
            "estimate": {"error": 1 - estimates[i], "loss": losses[i] if losses else 1 - estimates[i], "images": 50},
            "retrained": {seed: 1 - accuracies[i] for seed, accuracies in enumerate(retrained)},
        }
        for i, name in enumerate(names)
    ]  # fmt: skip


FOUR = measured((0.4, 0.5, 0.6, 0.3), (0.7, 0.75, 0.9, 0.8), (0.72, 0.77, 0.86, 0.7), losses=(4, 3, 2, 1))


def test_rows_hold_means_spread_and_ranks():
    rows = rank.rank_rows(FOUR)
    assert [row["retrained"] for row in rows] == pytest.approx([0.71, 0.76, 0.88, 0.75])
    assert [(row["lowest"], row["highest"]) for row in rows] == [(0.7, 0.72), (0.75, 0.77), (0.86, 0.9), (0.7, 0.8)]
    assert [row["estimate_rank"] for row in rows] == [3, 2, 1, 4]
    assert [row["retrained_rank"] for row in rows] == [4, 2, 1, 3]
    assert [row["retrained_seed1"] for row in rows] == [0.72, 0.77, 0.86, 0.7]


def test_as_many_mistakes_are_a_tie_however_they_are_added_up():
    rows = rank.rank_rows(measured((0.1, 0.2, 0.3), (0.1, 0.15, 0.9), (0.3, 0.25, 0.8), (0.2, 0.2, 0.7)))
    assert [row["retrained_rank"] for row in rows] == [2.5, 2.5, 1]


def test_rankings_are_compared_in_numbers_and_words():
    found = rank.describe_rank(rank.rank_rows(FOUR))
    # The estimate has one pair of six in the other order: 0 (71 %, estimated 40 %) and 3 (75 %, 30 %).
    assert found["tau"] == pytest.approx((5 - 1) / 6)
    assert found["p"] == pytest.approx(rank.kendall_p([4, 5, 6, 3], [71, 76, 88, 75]))
    assert found["loss_tau"] == pytest.approx(tau_by_definition([-4, -3, -2, -1], [71, 76, 88, 75]))
    assert found["between_seeds"] == pytest.approx(tau_by_definition((70, 75, 90, 80), (72, 77, 86, 70)))
    assert (found["configurations"], found["seeds"]) == (4, 2) and "targets" not in found
    assert "Over 4 configurations, Kendall tau-b of supernet estimate and retrained accuracy is 0.67 (p 0.33)" in found["words"]


def test_undefined_correlations_are_said_and_stay_json():
    found = rank.describe_rank(rank.rank_rows(measured((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))))
    assert (found["tau"], found["p"], found["between_seeds"]) == (None, None, None)
    assert "undefined (all are equal)" in found["words"] and "is not known" in found["words"]
    json.dumps(found, allow_nan=False)


def test_several_targets_are_compared_each_and_together():
    rows = rank.rank_rows(measured((0.3, 0.2, 0.1, 0.8, 0.7, 0.6), (0.4, 0.5, 0.6, 0.7, 0.8, 0.9), targets=[1e6] * 3 + [2e6] * 3))
    found = rank.describe_rank(rows)
    assert found["tau"] == pytest.approx(tau_by_definition((3, 2, 1, 8, 7, 6), (4, 5, 6, 7, 8, 9))) and found["tau"] > 0
    assert {name: part["tau"] for name, part in found["targets"].items()} == {"1M": -1, "2M": -1}
    assert "At 1M MACs alone, over 3 configurations" in found["words"]


def test_two_configurations_have_no_ranking():
    with pytest.raises(RunError, match="2 configurations have no ranking"):
        rank.describe_rank(rank.rank_rows(measured((0.1, 0.2), (0.1, 0.2))))


def test_the_table_has_the_best_first_and_says_which_images():
    lines = rank.rank_table(rank.rank_rows(FOUR)).splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["random2", "random1", "random3", "uniform"]
    assert "88.00% (86.00% to 90.00%)" in lines[1]
    assert "same 50 held-out training images, not the test images" in lines[-1] and "mean of 2 seeds" in lines[-1]


def test_the_picture_shows_every_configuration_with_its_bar(tmp_path):
    rows = rank.rank_rows(FOUR)
    figure = rank._figure(rows)
    axes = figure.axes[0]
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.get_lines()]
    assert points == [pytest.approx((100 * row["estimate"], 100 * row["retrained"])) for row in rows]
    bars = [bar.get_segments()[0] for bar in axes.collections]
    assert [(low[1], high[1]) for low, high in bars] == [pytest.approx(pair) for pair in ((70, 72), (75, 77), (86, 90), (70, 80))]
    assert [text.get_text() for text in axes.texts] == ["1", "2", "3", "4"]
    labels = [text.get_text() for legend in axes.findobj(match=Legend) for text in legend.get_texts()]
    assert labels[:2] == ["1  uniform, 2.9M MACs", "2  random1, 2.9M MACs"] and len(labels) == 4
    assert "supernet estimate" in axes.get_xlabel() and "retrained" in axes.get_ylabel()
    assert figure._suptitle.get_text() == "Kendall tau-b 0.67 (p 0.33) over 4 configurations"
    assert "mean of 2 seeds" in figure._supxlabel.get_text()
    paths = [rank.draw_rank(tmp_path / name, rows) for name in ("a.svg", "b.svg")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert not rank._figure(rank.rank_rows(measured((0.1, 0.2, 0.3), (0.2, 0.3, 0.4)))).axes[0].collections


@pytest.mark.parametrize("change", [{"retrained": math.nan}, {"macs": -1}, {"estimate": None}])
def test_values_that_do_not_fit_are_refused(change):
    with pytest.raises(RunError, match="row 1"):
        rank._figure([{**rank.rank_rows(FOUR)[0], **change}])


# The command --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def supernet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rank") / "supernet"
    assert run("train", "digits_cnn", "--data", "digits", "--out", folder, "--epochs", 1, "--seed", 3, "--device", "cpu") == 0
    return folder


STUDY = ("--flops-target", "30%", "--configurations", 3, "--epochs", 1, "--device", "cpu")


@pytest.fixture(scope="module")
def studied(supernet, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rank") / "study"
    assert run("study", "rank", supernet, *STUDY, "--seeds", "0,5", "--out", folder) == 0
    return folder


def test_estimates_and_accuracies_are_of_the_same_held_out_images(supernet, studied):
    net, space, settings = load_supernet(supernet, "cpu")
    images = runs.load_images("digits", space.input_shape, settings["held_out"], 3, torch.device("cpu"))
    evaluator = runs.supernet_evaluator(net, images, space.search)
    recipe = runs.override(space.retrain, epochs=1)
    rows = pd.read_csv(studied / "rank.csv")
    assert list(rows["configuration"]) == ["uniform-321.1k", "random1-321.1k", "random2-321.1k"]
    assert list(rows["kind"]) == ["uniform", "random", "random"] and set(rows["images"]) == {len(images.search)}
    table = autoslim.CostTable(net)
    for row in rows.to_dict("records"):
        folder = studied / f"{row['configuration']}-seed5"
        config = autoslim.ChannelConfig.from_json(json.loads((folder / "config.json").read_text())["channels"], "config")
        assert table.cost(config).macs == row["macs"] <= row["target"] == pytest.approx(0.3 * table.cost(net.full()).macs)
        score = evaluator.score(config)
        assert row["estimate"] == pytest.approx(1 - score.error) and row["estimate_loss"] == pytest.approx(score.loss)
    # One of them again, by hand.
    network = initialize(autoslim.materialize(net, config), 5)
    autoslim.retrain(
        network, images.training(images.train, recipe, 5), seed=5, from_scratch=False, recipe=autoslim.Recipe.of(recipe)
    )
    assert row["retrained_seed5"] == pytest.approx(1 - autoslim.evaluate(network, images.scoring(images.search)).error)
    assert row["retrained"] == pytest.approx((row["retrained_seed0"] + row["retrained_seed5"]) / 2)


def test_the_study_prints_what_it_writes(supernet, studied, capsys):
    found = printed(capsys, "study", "rank", supernet, *STUDY, "--seeds", "0,5", "--out", studied)
    rows = pd.read_csv(studied / "rank.csv").to_dict("records")
    assert found.pop("rows") == rows
    assert found == json.loads((studied / "rank.json").read_text()) == rank.describe_rank(rows)
    assert found["seeds"] == 2 and (studied / "rank.png").stat().st_size > 10_000
    assert run("study", "rank", supernet, *STUDY, "--seeds", "0,5", "--out", studied) == 0
    out = capsys.readouterr().out
    assert found["words"] in out and "uniform-321.1k" in out and "not the test images" in out


def test_what_is_retrained_is_not_trained_again_and_a_seed_can_be_added(supernet, studied, tmp_path):
    def study(seeds):
        assert run("study", "rank", supernet, *STUDY, "--seeds", seeds, "--out", tmp_path) == 0
        return {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/checkpoint.pt")}

    first = study("0")
    assert len(first) == 3
    second = study("0,5")
    assert len(second) == 6 and first.items() <= second.items()
    assert (tmp_path / "rank.csv").read_text() == (studied / "rank.csv").read_text()


def test_a_killed_study_goes_on(supernet, studied, tmp_path, monkeypatch, capsys):
    from autoslim.training.epoch import Epochs

    epochs = Epochs.run
    calls = []

    def killed(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return epochs(*args)

    monkeypatch.setattr(Epochs, "run", killed)
    study = ("study", "rank", supernet, *STUDY, "--seeds", "0,5", "--out", tmp_path)
    assert "interrupted" in refused(capsys, *study)
    assert not (tmp_path / "rank.csv").exists()
    assert run(*study) == 0 and len(calls) == 6 + 1
    assert (tmp_path / "rank.csv").read_text() == (studied / "rank.csv").read_text()


def test_the_test_images_are_not_looked_at(supernet, tmp_path, monkeypatch):
    load = runs.load_images

    def without_test(*args, **how):
        return replace(load(*args, **how), test=None)

    monkeypatch.setattr(runs, "load_images", without_test)
    monkeypatch.setattr(runs.Images, "counts", lambda self: json.loads((supernet / "config.json").read_text())["images"])
    assert run("study", "rank", supernet, *STUDY, "--out", tmp_path) == 0


def test_given_configurations_are_ranked(supernet, tmp_path, capsys):
    net, space, _ = load_supernet(supernet, "cpu")
    for ratio in (0.2, 0.4, 0.6):
        config = autoslim.width_config(space, net, space.full_width * ratio)
        config.save(tmp_path / f"w{ratio}.json")
    files = [str(tmp_path / f"w{ratio}.json") for ratio in (0.2, 0.4, 0.6)]
    options = ("--configs", ",".join(files), "--epochs", 1, "--out", tmp_path / "study")
    found = printed(capsys, "study", "rank", supernet, *options)
    assert [row["configuration"] for row in found["rows"]] == ["w0.2", "w0.4", "w0.6"]
    assert [row["macs"] for row in found["rows"]] == [
        autoslim.CostTable(net).cost(autoslim.ChannelConfig.load(f)).macs for f in files
    ]
    assert "targets" not in found
    again = refused(capsys, "study", "rank", supernet, *options[:2], "--epochs", 2, *options[4:])
    assert "holds another run" in again
    two = ",".join(files[:2])
    assert "2 configurations have no ranking" in refused(capsys, "study", "rank", supernet, "--configs", two, "--out", tmp_path)
    drawn = refused(capsys, "study", "rank", supernet, *options, "--configurations", 12, code=2)
    assert "--configurations is for configurations that are drawn" in drawn
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "w0.2.json").write_bytes((tmp_path / "w0.6.json").read_bytes())
    alike = ",".join([*files[:2], str(tmp_path / "other" / "w0.2.json")])
    found = printed(capsys, "study", "rank", supernet, "--configs", alike, "--epochs", 1, "--out", tmp_path / "alike")
    assert {row["configuration"] for row in found["rows"]} == {f"{tmp_path.name}-w0.2", "w0.4", "other-w0.2"}
    twice = ",".join([*files, files[0]])
    assert "are named w0.2" in refused(capsys, "study", "rank", supernet, "--configs", twice, "--out", tmp_path)
    document = json.loads((tmp_path / "w0.2.json").read_text())
    name = next(iter(document["channels"]))
    document["channels"][name][0] = 1000
    (tmp_path / "wrong.json").write_text(json.dumps(document))
    wrong = refused(capsys, "study", "rank", supernet, "--configs", f"{two},{tmp_path / 'wrong.json'}", "--out", tmp_path)
    assert f"{name!r} wants 1000" in wrong


def test_studies_that_cannot_be_are_refused_before_training(supernet, tmp_path, capsys):
    def words(*args, code=1):
        return refused(capsys, "study", "rank", supernet, *args, "--out", tmp_path / "out", code=code)

    assert "name what to rank" in words()
    assert "name what to rank" in words("--flops-target", "50%", "--configs", "a.json")
    assert "below the narrowest" in words("--flops-target", "10")
    assert "0,1,2" in words("--flops-target", "50%", "--seeds", "1,1", code=2)
    assert "0,1,2" in words("--flops-target", "50%", "--seeds", "one", code=2)
    assert not (tmp_path / "out").exists()
    path = tmp_path / "other" / "config.json"
    path.parent.mkdir()
    (path.parent / "checkpoint.pt").write_bytes((supernet / "checkpoint.pt").read_bytes())
    settings = json.loads((supernet / "config.json").read_text())
    for change, reason in (
        ({"held_out": None}, "learnt from all training images"),
        ({"images": {"train": 1}}, "restore the data"),
    ):
        path.write_text(json.dumps({**settings, **change}))
        assert reason in refused(capsys, "study", "rank", path.parent, "--flops-target", "50%", "--out", tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


def test_retrainings_of_the_study_are_not_taken_for_finished_networks(studied, tmp_path, capsys):
    folder = next(studied.glob("uniform-*-seed0"))
    assert "holds a study network" in refused(capsys, "evaluate", folder)
    assert "neither a finished search nor a retrained network" in refused(capsys, "plot", folder, "--out", tmp_path / "p.png")
    assert command.rank.name == "rank"
