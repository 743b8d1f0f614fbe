import contextlib
import errno
import json
import os
import resource
import signal

import pytest
import torch
import tricky

import autoslim


def example(**changes):
    net = autoslim.Supernet(tricky.Plain(), torch.randn(1, 3, 8, 8), divisor=4)
    config = net.narrowest()
    fields = {
        "space": "plain",
        "model": {"factory": "tricky:Plain", "kwargs": {"deep": [1, 2]}},
        "cost": {"macs": 123, "params": 45},
        "estimate": {"error": 0.1 + 0.2},
        "provenance": {"seed": 3},
    }
    return autoslim.ChannelConfig(config.channels, 4, input_shape=[3, 8, 8], **{**fields, **changes}), net


def test_round_trip_and_key_order(tmp_path):
    config, _ = example()
    path = tmp_path / "new" / "config.json"
    config.save(path)
    assert autoslim.ChannelConfig.load(path) == config
    document = json.loads(path.read_text())
    keys = ["format", "space", "model", "input_shape", "divisor", "channels", "cost", "estimate", "provenance"]
    assert list(document) == keys and document["format"] == "autoslim.channels/1"
    assert document["channels"] == {"conv1": [4, 16], "conv2": [4, 24]} and list(document["channels"]) == [
        "conv1",
        "conv2",
    ]
    first = path.read_text()
    autoslim.ChannelConfig.load(path).save(path)
    assert path.read_text() == first


def test_every_group_takes_one_line(tmp_path):
    example()[0].save(tmp_path / "c.json")
    assert ' "conv1": [4, 16],' in [line[1:] for line in (tmp_path / "c.json").read_text().splitlines()]


def test_only_the_channels_are_needed(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"format": "autoslim.channels/1", "channels": {"conv1": [8, 16]}}))
    config = autoslim.ChannelConfig.load(path)
    assert (config.widths, config.divisor, config.cost, config.model) == ({"conv1": 8}, 8, {}, None)


def test_all_faults_against_a_model_are_listed_at_once():
    _, net = example()
    config = autoslim.ChannelConfig({"conv1": (6, 16), "tail": (4, 8)}, 4)
    with pytest.raises(autoslim.AutoSlimError) as caught:
        config.check(net.groups, "my.json")
    text = str(caught.value)
    for words in (
        "my.json: 3 entries",
        "'conv1' has 6 channels, not a multiple of 4",
        "'tail' is unknown",
        "'conv2' is missing",
    ):
        assert words in text
    config = autoslim.ChannelConfig({"conv1": (20, 16), "conv2": (4, 32)}, 4)
    with pytest.raises(autoslim.AutoSlimError) as caught:
        config.check(net.groups)
    assert "'conv1' wants 20 of 16" in str(caught.value) and "32 channels wide in the file, 24" in str(caught.value)
    with pytest.raises(autoslim.AutoSlimError, match="wants 0 of 16"):
        autoslim.ChannelConfig({"conv1": (0, 16), "conv2": (4, 24)}, 4).check(net.groups)


def test_full_width_is_legal_off_the_grid():
    _, net = example()
    autoslim.ChannelConfig({"conv1": (16, 16), "conv2": (24, 24)}, 7).check(net.groups)


def test_a_unit_makes_the_grid_coarser():
    net = autoslim.Supernet(tricky.Grouped(), torch.randn(1, 3, 8, 8), divisor=2)
    channels = {"stem": (6, 16), "grouped": (8, 24), "last": (2, 8)}
    with pytest.raises(autoslim.AutoSlimError, match="'stem' has 6 channels, not a multiple of 4"):
        autoslim.ChannelConfig(channels, 2).check(net.groups)


def test_cost_is_compared_with_the_model():
    config, net = example()
    cost = autoslim.CostTable(net).cost(config).to_json()
    with pytest.raises(autoslim.AutoSlimError) as caught:
        config.check(net.groups, cost=cost)
    assert f"cost macs is 123 in the file, {cost['macs']} by the model" in str(caught.value)
    assert f"cost params is 45 in the file, {cost['params']} by the model" in str(caught.value)
    example(cost=cost)[0].check(net.groups, cost=cost)


def test_a_file_cut_anywhere_is_refused_with_its_name(tmp_path):
    path = tmp_path / "cut.json"
    example()[0].save(path)
    text = path.read_text().rstrip()
    for end in (0, 1, len(text) // 3, len(text) // 2, len(text) - 1):
        path.write_text(text[:end])
        with pytest.raises(autoslim.AutoSlimError, match=r"cut\.json is not whole JSON"):
            autoslim.ChannelConfig.load(path)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([], "not an object"),
        ({"format": "another/1", "channels": {}}, "another/1"),
        ({}, "format is null"),
        ({"format": "autoslim.channels/1"}, "channels is missing"),
        ({"format": "autoslim.channels/1", "channels": {}}, "channels is missing or empty"),
    ],
)
def test_foreign_documents_are_refused(tmp_path, document, words):
    (tmp_path / "c.json").write_text(json.dumps(document))
    with pytest.raises(autoslim.AutoSlimError, match=words):
        autoslim.ChannelConfig.load(tmp_path / "c.json")


def test_all_faults_of_a_document_are_listed_at_once(tmp_path):
    document = {
        "format": "autoslim.channels/1",
        "channels": {"a": [8], "b": "wide", "c": [8.5, 16], "d": [True, 16], "e": [8, 16]},
        "divisor": 0,
        "model": {"factory": 3},
        "input_shape": "3x8x8",
        "cost": [1],
    }
    (tmp_path / "c.json").write_text(json.dumps(document))
    with pytest.raises(autoslim.AutoSlimError) as caught:
        autoslim.ChannelConfig.load(tmp_path / "c.json")
    for words in (
        "c.json",
        "'a'",
        "'b'",
        "'c'",
        "'d'",
        "divisor is 0",
        "model is not",
        "input_shape is not",
        "cost is not",
    ):
        assert words in str(caught.value)
    assert "'e'" not in str(caught.value)


def test_bytes_that_are_no_text_and_missing_files_are_refused(tmp_path):
    (tmp_path / "c.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(autoslim.AutoSlimError, match="not whole JSON"):
        autoslim.ChannelConfig.load(tmp_path / "c.json")
    with pytest.raises(autoslim.AutoSlimError, match="does not exist"):
        autoslim.ChannelConfig.load(tmp_path / "none.json")
    with pytest.raises(autoslim.AutoSlimError, match="cannot be read"):
        autoslim.ChannelConfig.load(tmp_path)


@contextlib.contextmanager
def full_disk(limit=64):
    """Let no file grow beyond `limit` bytes: what a write then gets is what it gets from a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    config, net = example()
    path = tmp_path / "c.json"
    path.write_text("old")
    with full_disk(), pytest.raises(autoslim.AutoSlimError, match="cannot be written"):
        config.save(path)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["c.json"]


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    model = tricky.Plain()
    batches = [(torch.randn(2, 3, 8, 8), torch.tensor([0, 1]))]
    autoslim.retrain(model, batches, epochs=1, folder=tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with full_disk(4096), pytest.raises(autoslim.AutoSlimError, match="cannot be written"):
        from autoslim.training.checkpoint import save_checkpoint

        save_checkpoint(tmp_path / "checkpoint.pt", "network", model, torch.optim.SGD(model.parameters()), [], {})
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["checkpoint.pt", "metrics.csv"]


def test_a_full_disk_during_a_search_leaves_a_trace_that_goes_on(tmp_path):
    net = autoslim.Supernet(tricky.Plain(), torch.randn(1, 3, 8, 8), divisor=4)

    class Even:
        def score(self, config):
            return autoslim.Score(0.5, 0.5, 1)

    def search():
        trace = autoslim.SearchTrace(tmp_path / "trace.csv")
        return list(autoslim.greedy_search(net, targets={"macs": ["50%"]}, evaluator=Even(), trace=trace, effort="exact"))

    for limit in (0, 30, 100):
        with full_disk(limit), pytest.raises(autoslim.AutoSlimError, match="cannot be written"):
            search()
    (point,) = search()
    assert point.cost.macs <= 0.5 * autoslim.CostTable(net).cost(net.full()).macs


def test_a_read_only_folder_leaves_the_old_file(tmp_path, monkeypatch):
    config, _ = example()
    path = tmp_path / "c.json"
    path.write_text("old")

    def refuse(*args):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "replace", refuse)  # root may write into any folder, so the refusal is made here
    with pytest.raises(autoslim.AutoSlimError, match="Read-only"):
        config.save(path)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["c.json"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(autoslim.AutoSlimError, match="cannot be written"):
        example()[0].save(tmp_path / "file" / "c.json")


def test_materialize_reads_the_shapes_of_several_inputs(tmp_path):
    model = tricky.TwoInputs()
    net = autoslim.Supernet(model, model.inputs(1), divisor=4)
    net.narrowest().save(tmp_path / "c.json")
    plain = autoslim.materialize(model, autoslim.ChannelConfig.load(tmp_path / "c.json"))
    assert plain.a.out_channels == 4 and plain(*model.inputs(2)).shape == (2, 5)
