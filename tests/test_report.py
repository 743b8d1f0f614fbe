import pytest

from autoslim.errors import RunError
from autoslim.report import channels, spectrum
from autoslim.report.tables import align, write_spectrum
from autoslim.search.evaluate import Score

UNIFORM = [(1e6, 0.12), (2e6, 0.60), (4e6, 0.70)]
GREEDY = [(4e6, 0.70), (3e6, 0.69), (2e6, 0.66)]
RETRAINED = [
    {"macs": 2e6, "accuracy": accuracy, "configuration": kind, "seed": seed, "kind": "retrained accuracy"}
    for kind, base in (("searched", 0.74), ("uniform", 0.72))
    for seed, accuracy in enumerate((base, base + 0.01, base + 0.005))
]
GROUPS = {"stem": 16, "block.conv": 32, "_head": 64}


def labels(figure):
    found = [
        text.get_text() for axes in figure.axes for legend in axes.findobj(match=spectrum.Legend) for text in legend.get_texts()
    ]
    return " | ".join(found)


def test_estimates_and_retrained_networks_are_distinguishable_series():
    figure = spectrum._figure(uniform=[UNIFORM], paths=[GREEDY], found=GREEDY[1:], retrained=RETRAINED)
    text = labels(figure)
    for name in (
        "uniform subnets",
        "searched subnets",
        "found for a target",
        "searched configurations",
        "uniform configurations",
    ):
        assert name in text
    looks = {
        (line.get_marker(), line.get_linestyle(), line.get_color(), line.get_markersize())
        for line in figure.axes[0].get_lines()
        if not line.get_label().startswith("_")
    }
    assert len(looks) == 5
    assert "mean of 3 seeds" in text


def test_accuracies_of_joint_training_are_headed_as_such():
    joint = [{**row, "configuration": "S-Net", "kind": "jointly trained accuracy"} for row in RETRAINED[:1]]
    for retrained, heading in [(RETRAINED, "from scratch"), (joint, "Jointly"), ([*RETRAINED, *joint], "and jointly")]:
        figure = spectrum._figure(uniform=[], paths=[], found=[], retrained=retrained)
        (legend,) = figure.axes[0].findobj(match=spectrum.Legend)
        assert heading in legend.get_title().get_text()


def test_means_and_ranges_are_those_of_the_seeds():
    figure = spectrum._figure(uniform=[], paths=[], found=[], retrained=RETRAINED)
    (searched,) = [line for line in figure.axes[0].get_lines() if "searched" in str(line.get_label())]
    assert searched.get_ydata()[0] == pytest.approx(74.5)
    assert searched.get_xdata()[0] == pytest.approx(2.0)


def test_a_subnet_near_chance_does_not_flatten_the_picture():
    figure = spectrum._figure(uniform=[UNIFORM], paths=[GREEDY], found=GREEDY[1:], retrained=RETRAINED)
    low, high = figure.axes[0].get_ylim()
    assert low > 50 and high > 75
    assert any("12%" in text.get_text() for text in figure.axes[0].texts)


def test_uniform_subnets_as_large_as_what_was_found_are_inside_the_axes():
    uniform = [(1e6, 0.05), (2e6, 0.1), (3e6, 0.11), (4e6, 0.17)]
    figure = spectrum._figure(uniform=[uniform], paths=[[(4e6, 0.17)]], found=[(3.5e6, 0.17), (2.1e6, 0.16)], retrained=[])
    assert 5 < figure.axes[0].get_ylim()[0] < 10
    (note,) = figure.axes[0].texts
    assert "1 estimate lies" in note.get_text()


def test_what_other_orders_found_stands_beside_under_their_names():
    compared = {"random": [(2e6, 0.71)], "evolution": [(2e6, 0.72), (1e6, 0.6)]}
    figure = spectrum._figure(uniform=[UNIFORM], paths=[GREEDY], found=GREEDY[1:], retrained=[], compared=compared)
    lines = {str(line.get_label()): line for line in figure.axes[0].get_lines()}
    assert lines["found, order random"].get_ydata().tolist() == pytest.approx([71])
    assert lines["found, order evolution"].get_xdata().tolist() == pytest.approx([1, 2])
    assert len({lines[name].get_marker() for name in lines if name.startswith("found")}) == 3


def test_each_search_has_a_path_of_its_own_and_all_have_one_name():
    other = [(4e6, 0.6), (2.5e6, 0.65)]
    figure = spectrum._figure(uniform=[], paths=[GREEDY, [], other], found=GREEDY[1:], retrained=[])
    drawn = [line for line in figure.axes[0].get_lines() if line.get_label() == "searched subnets"]
    assert [line.get_xdata().tolist() for line in drawn] == [sorted(macs / 1e6 for macs, _ in path) for path in (GREEDY, other)]
    assert labels(figure).count("searched subnets") == 1


ALONE = [{"uniform": [UNIFORM]}, {"paths": [GREEDY]}, {"retrained": RETRAINED[:1]}, {"compared": {"random": GREEDY}}]


@pytest.mark.parametrize("given", ALONE)
def test_any_one_series_is_enough(given, tmp_path):
    empty = {"uniform": [], "paths": [], "found": [], "retrained": []}
    assert spectrum.draw_spectrum(tmp_path / "s.svg", **{**empty, **given}).stat().st_size > 5000


def test_nothing_to_draw_and_wrong_suffixes_are_refused(tmp_path):
    with pytest.raises(RunError, match="retrained network"):
        spectrum.draw_spectrum(tmp_path / "s.png", uniform=[], paths=[], found=[], retrained=[])
    with pytest.raises(RunError, match="'.*s.pdf' does not end in .png or .svg"):
        spectrum.draw_spectrum(tmp_path / "s.pdf", uniform=[UNIFORM], paths=[], found=[], retrained=[])
    with pytest.raises(RunError, match="no configuration"):
        channels.draw_channels(tmp_path / "c.png", [])
    with pytest.raises(RunError, match="no step"):
        channels.draw_path(tmp_path / "p.png", [], GROUPS)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        spectrum.draw_spectrum(tmp_path / "file" / "s.png", uniform=[UNIFORM], paths=[], found=[], retrained=[])


def test_channels_show_found_default_and_full_widths():
    config = {"stem": (8, 16), "block.conv": (32, 32), "_head": (24, 64)}
    figure = channels._channels_figure([("2M MACs", config), ("1M MACs", config)], default=GROUPS)
    (axes,) = figure.axes
    assert [bar.get_height() for bar in axes.patches] == [16, 32, 64]
    assert list(axes.get_lines()[0].get_ydata()) == [8, 32, 24]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[0] != names[-1] and {"default network", "found, 2M MACs", "full width (supernet)"} <= set(names)


def test_the_path_shows_ratios_and_marks():
    steps = [GROUPS, {**GROUPS, "stem": 8}, {**GROUPS, "stem": 8, "_head": 16}]
    figure = channels._path_figure(steps, GROUPS, macs=[4_000_000, 3_000_000, 2_000_000], marks=[(2, "2M MACs")])
    data = figure.axes[0].images[0].get_array()
    assert data.tolist() == [[1, 0.5, 0.5], [1, 1, 1], [1, 1, 0.25]]
    assert "2M MACs" in figure.axes[0].texts[0].get_text()


def test_a_spectrum_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "spectrum.csv"
    write_spectrum(path, [(10, Score(0.5, 1.0, 100))], [(20, Score(0.25, 0.7, 100))])
    assert spectrum.read_spectrum(path) == ([(10, 0.5)], [(20, 0.75)])
    path.write_text(path.read_text()[:-9] + "x,1,1\n")
    with pytest.raises(RunError, match="line 3 is damaged"):
        spectrum.read_spectrum(path)


def test_tables_line_up():
    assert align([("a", "bb"), ("ccc", "d")]) == "a    bb\nccc   d"
