import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.legend import Legend

from autoslim.errors import RunError
from autoslim.report import curves, images, norms, series, stages, widths

MACS = {0.25: 100_000, 0.5: 300_000, 1.0: 1_000_000}


def network(label, seed, accuracies, trained=(0.25, 0.5, 1.0), macs=MACS):
    return [
        {"label": label, "seed": seed, "width": w, "macs": macs[w], "accuracy": a, "trained": w in trained}
        for w, a in zip(macs, accuracies)
    ]


def labels(figure):
    return [text.get_text() for axes in figure.axes for legend in axes.findobj(match=Legend) for text in legend.get_texts()]


def foot(figure):
    return figure._supxlabel.get_text()


def data(line):
    return [round(float(x), 6) for x in line.get_xdata()], [round(float(y), 6) for y in line.get_ydata()]


# accuracy at many widths


def test_one_line_a_network_through_the_means_of_its_seeds():
    rows = network("US", 0, (0.5, 0.6, 0.7)) + network("US", 1, (0.52, 0.64, 0.7))[:2] + network("S", 0, (0.1, 0.2, 0.71))
    figure = widths._figure(rows)
    axes = figure.axes[0]
    lines = [line for line in axes.get_lines() if line.get_linestyle() != "None"]
    assert [data(line) for line in lines] == [([100, 300, 1000], [51, 62, 70]), ([100, 300, 1000], [10, 20, 71])]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 2
    assert len({line.get_marker() for line in axes.get_lines()} - {"None", "none"}) == 2
    (band,) = axes.collections
    assert band.get_datalim(axes.transData).bounds == pytest.approx((100, 50, 900, 20))
    assert labels(figure) == ["US", "S", "line: mean of 1 to 2 seeds\nband: lowest to highest"]


def test_hollow_markers_are_widths_that_were_never_trained():
    figure = widths._figure(network("S", 0, (0.5, 0.6, 0.7), trained=(0.25, 1.0)), chance=0.1)
    marks = {line.get_markerfacecolor(): data(line)[0] for line in figure.axes[0].get_lines() if line.get_marker() == "o"}
    assert marks.pop("white") == [300]
    assert list(marks.values()) == [[100, 1000]]
    assert {"trained at this width", "not trained at this width"} <= set(labels(figure))
    assert [text.get_text() for text in figure.axes[0].texts] == ["chance (10 %)"]
    assert figure.axes[0].get_ylim()[0] < 10


def test_the_upper_axis_has_the_multipliers_that_all_networks_agree_on():
    def ticks(rows):
        axes = widths._figure(rows).axes[0]
        return [[text.get_text() for text in child.get_xticklabels()] for child in axes.child_axes]

    same = network("A", 0, (0.5, 0.6, 0.7))
    assert sorted(*ticks(same)) == ["0.25x", "0.5x", "1x"]
    other = network("B", 0, (0.5, 0.6), macs={0.25: 100_000, 0.5: 200_000})
    assert sorted(*ticks(same + other)) == ["0.25x", "1x"]
    assert ticks(other + network("C", 0, (0.4, 0.5), macs={0.25: 1000, 0.5: 2000})) == []


def test_many_multipliers_are_thinned_until_they_fit():
    grid = [round(0.25 + 0.025 * i, 3) for i in range(31)]
    rows = network("US", 0, [0.7] * 31, macs={w: round(1e6 * w * w) for w in grid})
    (top,) = widths._figure(rows).axes[0].child_axes
    shown = {text.get_text() for text in top.get_xticklabels()}
    assert {"0.25x", "0.5x", "0.75x", "1x"} <= shown and len(shown) < 14
    places = np.sort(top.get_xticks())
    left, right = top.get_xlim()
    assert np.diff(places).min() > 0.07 * (right - left)


def test_seven_networks_look_different():
    looks = [tuple(map(str, series.look(i).values())) for i in range(50)]
    assert len(set(looks)) == 50
    for part in zip(*looks[:7]):
        assert len(set(part)) == 7


def test_long_and_odd_labels_are_drawn_as_they_are():
    assert series.name("a $x$ _b") == r"a \$x\$ _b"
    assert series.name("_a") == " _a"
    lines = series.name("normally trained network, recalibrated " + "x" * 60).split("\n")
    assert len(lines) == 3 and max(map(len, lines)) <= 26


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accuracy": math.nan}, "row 1: accuracy nan is not a finite number"),
        ({"accuracy": 74.2}, "row 1: accuracy 74.2 is not from 0 to 1; pass a fraction"),
        ({"macs": None}, "row 1: macs None is not a finite number"),
        ({"macs": -1}, "macs -1 is negative"),
        ({"width": 0.5}, "two rows have label 'A', seed 0, width 0.5"),
        ({"seed": 1, "width": 0.5}, "network 'A' has 100000 and 300000 MACs at width 0.5"),
    ],
)
def test_rows_that_do_not_fit_are_refused(change, message):
    first, *others = network("A", 0, (0.5, 0.6, 0.7))
    with pytest.raises(RunError, match=message):
        widths._figure([{**first, **change}, *others])


# stages


def stage(name, seed, points, ratios=(0.5, 1.0)):
    return [{"stage": name, "ratio": r, "macs": macs, "accuracy": a, "seed": seed} for r, (macs, a) in zip(ratios, points)]


FULL = (1000, 0.70)
# At 800 MACs the uniform curve is at 0.60 + 0.10 * 300 / 500 = 0.66, at 900 at 0.68.
ROWS = stage("none", 0, [(500, 0.60), FULL]) + stage("stage1", 0, [(800, 0.68), FULL]) + stage("stage2", 0, [(900, 0.63), FULL])


def test_stages_are_compared_at_equal_multiply_adds():
    report = stages.describe_stages(ROWS, ratio=0.6)
    assert report["stages"]["stage1"] == {
        "mean": pytest.approx(0.02), "lowest": pytest.approx(0.02), "highest": pytest.approx(0.02), "seeds": 1, "points": 1,
    }  # fmt: skip
    assert report["stages"]["stage2"]["mean"] == pytest.approx(-0.05)
    assert (report["cheapest"], report["dearest"], report["settled"]) == ("stage1", "stage2", None)
    assert report["words"] == (
        "Slimmed alone to 0.6 of the width of the others, stage1 is the cheapest (on average 2.0 points above the uniform network at equal "
        "multiply-adds) and stage2 the dearest (5.0 points below it); a single seed does not tell how much of this is chance."
    )


def test_seeds_settle_the_order_or_say_that_they_do_not():
    again = [
        {**row, "seed": 1, "accuracy": row["accuracy"] + 0.01 * (row["ratio"] < 1 and row["stage"] == "stage2")} for row in ROWS
    ]
    report = stages.describe_stages(ROWS + again, ratio=0.6)
    assert report["settled"] is True
    assert report["stages"]["stage2"]["mean"] == pytest.approx(-0.045)
    assert (report["stages"]["stage2"]["lowest"], report["stages"]["stage2"]["highest"]) == pytest.approx((-0.05, -0.04))
    assert report["words"].endswith("stage2 the dearest (4.5 points below it).")

    third = stage("3", 0, [(900, 0.64), FULL]) + stage("3", 1, [(900, 0.67), FULL])  # 4 and 1 points below
    report = stages.describe_stages(ROWS + again + third, ratio=0.6)
    assert (report["cheapest"], report["dearest"], report["settled"]) == ("stage1", "stage2", False)
    assert report["words"].endswith("This order is not settled: the range of the seeds does not tell stage2 from stage 3.")
    pair = stage("a", 0, [(900, 0.64), FULL]) + stage("a", 1, [(900, 0.67), FULL])
    report = stages.describe_stages([*ROWS[:2], *again[:2], *pair, *({**row, "stage": "b"} for row in pair)], ratio=0.6)
    assert report["words"].endswith("This order is not settled: the range of the seeds does not tell a from b.")


def test_a_stage_without_a_common_range_is_named():
    report = stages.describe_stages(ROWS + stage("late", 0, [(400, 0.5), FULL]), ratio=0.6)
    assert report["stages"]["late"] is None and report["cheapest"] == "stage1"
    assert report["words"].endswith("Late shares no range of multiply-adds with the uniform network.")
    alone = stages.describe_stages(ROWS[:2] + stage("late", 0, [(400, 0.5), FULL]), ratio=0.6)
    assert alone["cheapest"] is None and alone["words"].startswith("No stage shares a range")
    assert "stage1 reaches on average 2.0 points above" in stages.describe_stages(ROWS[:4], ratio=0.6)["words"]
    with pytest.raises(RunError, match="no uniform network to compare with; add rows of stage 'none'"):
        stages.describe_stages(ROWS[2:], ratio=0.6)


def test_only_seeds_with_both_curves_count():
    report = stages.describe_stages(ROWS + stage("stage1", 7, [(800, 0.1), FULL]), ratio=0.6)
    assert report["stages"]["stage1"]["mean"] == pytest.approx(0.02)


def test_the_uniform_network_is_the_firm_line_and_may_leave_the_axes():
    uniform = stage("none", 0, [(100, 0.2), (500, 0.6), FULL], ratios=(0.2, 0.5, 1.0))
    figure = stages._figure(uniform + ROWS[2:])
    lines = figure.axes[0].get_lines()
    assert labels(figure) == ["uniform (all stages)", "stage1", "stage2"]
    assert lines[0].get_linewidth() > lines[1].get_linewidth()
    assert data(lines[1]) == ([0.8, 1.0], [68, 70])
    assert figure.axes[0].get_xlim()[0] == pytest.approx(0.78)
    assert figure.axes[0].get_ylim()[0] > 60
    assert "goes on to 20.0 % at 0.1k" in foot(figure)


# training curves


def table(**columns):
    return pd.DataFrame({"epoch": [1, 2, 3], "lr": 0.1, **columns})


def test_switches_are_found_in_the_columns_and_ordered_by_width():
    found = table(**{f"{m}_{w}": [w, w / 2, w / 4] for w in (0.25, 1.0, 0.5) for m in ("loss", "accuracy")}, loss=[9, 9, 9])
    figure = curves._figure(found)
    left, right = figure.axes
    assert labels(figure) == ["1x", "0.5x", "0.25x"]
    assert data(left.get_lines()[0]) == ([1, 2, 3], [1, 0.5, 0.25])
    assert data(right.get_lines()[2]) == ([1, 2, 3], [25, 12.5, 6.25])
    assert len({line.get_color() for line in left.get_lines()}) == len({line.get_linestyle() for line in left.get_lines()}) == 3


def test_a_supernet_has_a_widest_and_a_narrowest_line():
    figure = curves._figure(
        table(loss=[3, 2, 1], widest_loss=[2, 1, 0.5], narrowest_loss=[2.1, 1.2, 0.9], accuracy=[0.2, math.nan, 0.6])
    )
    assert labels(figure) == ["widest", "narrowest"]
    assert [len(axes.get_lines()) for axes in figure.axes] == [2, 1]
    assert data(figure.axes[1].get_lines()[0]) == ([1, 3], [20, 60])
    assert labels(curves._figure(table(loss=[2, 1, 0.5]))) == ["network"]


def test_losses_of_many_magnitudes_get_a_logarithmic_axis():
    assert curves._figure(table(loss=[2, 1, 0.05])).axes[0].get_yscale() == "log"
    assert curves._figure(table(loss=[2, 1, 0.5])).axes[0].get_yscale() == "linear"
    assert curves._figure(table(loss=[2, 1, -0.5])).axes[0].get_yscale() == "linear"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (table(loss=[1, math.nan, 1]), "loss is nan in epoch 2, not a finite number"),
        (table(accuracy_1=[1, math.inf, 1]), "accuracy_1 is inf in epoch 2"),
        (table(accuracy=[20, 30, 40]), "accuracy is 20 in epoch 1, not from 0 to 1"),
        (table(error=[math.nan] * 3), "'error' has no value"),
        (table(loss=["a", "b", "c"]), "'loss' is not made of numbers"),
        (table(), "no column loss, accuracy or error"),
        (table(loss=[1, 2, 3]).drop(columns="epoch"), "no column 'epoch'"),
        (table(loss=[1, 2, 3]).iloc[:0], "no row"),
        (pd.concat([table(loss=[1, 2, 3])] * 2), "epoch 1 has 2 rows; pass the rows of one training"),
    ],
)
def test_tables_that_cannot_be_drawn_are_refused(given, message):
    with pytest.raises(RunError, match=message):
        curves._figure(given)


# batch norm


def norm(switch, index, **changes):
    values = np.array([1.0, 2.0, 3.0, 4.0, 100.0])
    return {"switch": switch, "layer": f"bn{index}", "index": index, **dict.fromkeys(norms._PARTS, values), **changes}


def test_norms_show_medians_and_quartiles_of_every_switch():
    rows = [norm(switch, index) for switch in ("1x", "0.5x") for index in (1, 0)]
    figure = norms._figure(rows)
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(norms._PARTS.values())
    assert [len(axes.get_lines()) for axes in figure.axes] == [2] * 4
    assert data(figure.axes[0].get_lines()[0]) == ([0, 1], [3, 3])
    assert figure.axes[0].collections[0].get_datalim(figure.axes[0].transData).bounds == pytest.approx((0, 2, 1, 2))
    assert [axes.get_yscale() for axes in figure.axes] == ["linear"] * 3 + ["log"]
    assert labels(figure) == ["1x", "0.5x"]


def test_parts_that_no_norm_has_are_left_out_with_a_note():
    figure = norms._figure([norm("1x", 0, scale=None, bias=None), norm("1x", 1, scale=None, bias=None)])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["running mean", "running variance"]
    assert "left out, as no layer has it: scale (γ), bias (β)" in foot(figure)
    assert "lower quartiles that are 0 (1 of them)" in foot(
        norms._figure([norm("1x", 0, variance=np.array([0.0, 0.0, 1.0, 2.0]))])
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict.fromkeys(norms._PARTS), "neither scale, bias, mean nor variance"),
        ({"mean": np.array([1.0, math.nan])}, "mean of 'bn0' at 1x has values that are not finite"),
        ({"variance": np.array([-0.5])}, "variance of 'bn0' at 1x has the negative value -0.5"),
        ({"scale": np.ones((2, 2))}, r"shape \[2, 2\]; pass one value for each"),
        ({"bias": np.ones(0)}, r"shape \[0\]"),
    ],
)
def test_norms_that_do_not_fit_are_refused(change, message):
    with pytest.raises(RunError, match=message):
        norms._figure([norm("1x", 0, **change)])


# images


def pictures(count, side=8, channels=1):
    return np.arange(count * side * side * channels, dtype=np.uint8).reshape(count, side, side, channels)


def test_every_image_is_enlarged_by_a_whole_number():
    rows = [
        {"label": "1x", "images": pictures(3), "activations": [3, 2, 1.5]},
        {"label": "0.5x", "images": pictures(2, channels=3), "activations": [-1, -2]},
    ]
    figure = images._figure(rows, title="a channel")
    assert len(figure.axes) == 5
    width, height = figure.get_size_inches() * figure.dpi
    for axes in figure.axes:
        place = axes.get_position()
        assert (place.width * width / 8, place.height * height / 8) == pytest.approx((14, 14))
        assert axes.images[0].get_interpolation() == "nearest"
    assert figure.axes[0].images[0].get_array().tolist() == pictures(3)[0, ..., 0].tolist()
    assert [text.get_text() for text in figure.texts] == ["a channel", "1x", "3", "2", "1.5", "0.5x", "-1", "-2"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"images": pictures(2).astype(np.float32)}, "are float32, not uint8"),
        ({"images": pictures(2)[..., 0]}, r"have shape \[2, 8, 8\]; pass \[K, H, W, 3\]"),
        ({"images": pictures(0)}, "K of 1 or more"),
        ({"activations": [1]}, "has 2 images but activations of shape"),
        ({"activations": [1, math.inf]}, "activations of '1x' are not finite"),
    ],
)
def test_images_that_do_not_fit_are_refused(row, message):
    with pytest.raises(RunError, match=message):
        images._figure([{"label": "1x", "images": pictures(2), "activations": [2, 1], **row}])


# all of them

DRAW = {
    "widths": (widths.draw_widths, network("A", 0, (0.5, 0.6, 0.7))),
    "one width": (widths.draw_widths, network("$A_", 0, (0.5, 0.6, 0.7))[:1]),
    "stages": (stages.draw_stages, ROWS),
    "one stage": (stages.draw_stages, ROWS[2:3]),
    "no stage": (stages.draw_stages, ROWS[:2]),
    "curves": (curves.draw_curves, table(loss=[2, 1, 0.5]).iloc[:1]),
    "norms": (norms.draw_norms, [norm("1x", 0)]),
    "images": (images.draw_top_images, [{"label": "$A_", "images": pictures(1, 224), "activations": [1]}]),
}


@pytest.mark.parametrize("kind", DRAW)
def test_the_same_data_give_the_same_picture(kind, tmp_path):
    draw, given = DRAW[kind]
    titled = {"title": "$t_ _t"} if kind in ("norms", "images") else {}
    first, second = (draw(tmp_path / f"{name}.svg", given, **titled) for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert draw(tmp_path / "c.png", given).read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(RunError, match="does not end in .png or .svg"):
        draw(tmp_path / "d.pdf", given)


@pytest.mark.parametrize("draw", [widths.draw_widths, stages.draw_stages, norms.draw_norms, images.draw_top_images])
def test_nothing_to_draw_is_refused(draw, tmp_path):
    with pytest.raises(RunError, match="there is no .* to draw; pass at least one row"):
        draw(tmp_path / "a.png", [])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RunError, match="has no '"):
        draw(tmp_path / "a.png", [{}])
