"""autoslim inspect: the table, the JSON and the picture."""

import json
import re

import pytest
import torch
import torchvision

import autoslim
from autoslim.commands import main
from autoslim.report.layout import arrange
from autoslim.report.network import _network_figure, draw_network, drawn_inputs, group_labels, short_names

NETWORKS = {
    "resnet50": 64,
    "mobilenet_v2": 64,
    "shufflenet_v2_x1_0": 64,
    "googlenet": 96,
    "densenet121": 64,
    "regnet_y_400mf": 64,
}


@pytest.fixture(scope="module", params=NETWORKS)
def found(request):
    extra = {"init_weights": False} if request.param == "googlenet" else {}
    model = getattr(torchvision.models, request.param)(weights=None, **extra)
    size = NETWORKS[request.param]
    return autoslim.find_groups(model, torch.zeros(1, 3, size, size))


def test_json_holds_every_group_with_choices_or_reasons(capsys, monkeypatch):
    monkeypatch.syspath_prepend("tests")
    main(["inspect", "tricky:UnknownOperation", "--input-shape", "3,8,8", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert [group["name"] for group in document["groups"]] == ["first", "last"]
    assert all(group["choices"][-1] == group["full"] and group["members"] for group in document["groups"])
    before = next(group for group in document["frozen"] if group["name"] == "before")
    assert "cumsum: no rule" in before["reasons"][0] and "tricky.py:" in before["reasons"][0]


def test_table_fits_a_terminal_and_names_everything(capsys, monkeypatch):
    monkeypatch.syspath_prepend("tests")
    main(["inspect", "mobilenet_v2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "mobilenet_v2: 25 channel groups, 1 frozen" and max(map(len, lines)) <= 100
    assert sum(bool(re.match(r" +g\d+ ", line)) for line in lines) == 25
    assert any("+3 more" in line for line in lines) and any("the network's output" in line for line in lines)
    main(["inspect", "mobilenet_v2", "--members"])
    text = capsys.readouterr().out
    assert "more" not in text and "features.16.conv.1.1" in text
    main(["inspect", "tricky:Untraceable", "--input-shape", "3,8,8"])
    text = " ".join(capsys.readouterr().out.split())
    assert "left as it is: branch: cannot be traced" in text and "if y.sum() > 0" in text


def test_picture_draws_every_step_once(found):
    figure = _network_figure(found, title="a network")
    drawn = [patch.get_gid() for patch in figure.axes[0].patches if (patch.get_gid() or "").startswith("step-")]
    assert drawn == [f"step-{i}" for i in range(len(found.steps))]
    texts = [text.get_text() for text in figure.axes[0].texts]
    for group, label in group_labels(found).items():
        assert any(text == label for text in texts), (group, label)


def test_no_two_boxes_overlap_and_all_lie_on_the_page(found):
    sizes = [(1.2, 0.3)] * len(found.steps)
    for columns in (1, 4):
        layout = arrange(drawn_inputs(found.steps), sizes, columns=columns)
        corners = [(x - 0.6, y - 0.15, x + 0.6, y + 0.15) for x, y in layout.boxes]
        for i, (left, top, right, bottom) in enumerate(corners):
            assert left >= -1e-6 and top >= -1e-6 and right <= layout.width + 1e-6 and bottom <= layout.height + 1e-6
            for other in corners[:i]:
                apart = left >= other[2] - 1e-6 or right <= other[0] + 1e-6 or top >= other[3] - 1e-6 or bottom <= other[1] + 1e-6
                assert apart, i


def test_every_edge_joins_its_boxes(found):
    sizes = [(1.2, 0.3)] * len(found.steps)
    inputs = drawn_inputs(found.steps)
    layout = arrange(inputs, sizes, columns=3)
    assert set(layout.edges) == {(source, i) for i, row in enumerate(inputs) for source in row}
    for (source, step), pieces in layout.edges.items():
        (x0, y0), (x1, y1) = pieces[0][1], pieces[-1][1]
        (xs, ys), (xt, yt) = layout.boxes[source], layout.boxes[step]
        assert abs(x0 - xs) <= 0.61 and abs(y0 - ys) <= 0.16 and abs(x1 - xt) <= 0.61 and abs(y1 - yt) <= 0.16


def test_short_names_stay_apart():
    names = [f"features.denseblock{i}.denselayer{j}.conv1" for i in range(3) for j in range(20)]
    short = short_names(names)
    assert len(set(short.values())) == len(names) and max(map(len, short.values())) <= 22


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_picture_is_written(tmp_path, suffix):
    main(["inspect", "digits_cnn", "--picture", str(tmp_path / f"net.{suffix}")])
    assert (tmp_path / f"net.{suffix}").stat().st_size > 1000
    assert [path.name for path in tmp_path.iterdir()] == [f"net.{suffix}"]


def test_a_picture_that_cannot_be_written_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["inspect", "digits_cnn", "--picture", str(tmp_path / "net.bmp")])
    error = capsys.readouterr().err
    assert "net.bmp" in error and ".png" in error and error.count("\n") == 1 and not list(tmp_path.iterdir())
    found = autoslim.find_groups(torch.nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 8, 8))
    assert draw_network(found, tmp_path / "one.svg", title="one layer").exists()
