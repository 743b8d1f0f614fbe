import copy
import math
import os
import pickle
import re

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import tricky
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from tqdm import tqdm
from tricky import randomized

import autoslim
from autoslim.sandwich import Sandwich
from autoslim.training.checkpoint import load_checkpoint, load_weights
from autoslim.training.initialize import initialize
from autoslim.training.loop import parameter_groups
from autoslim.training.steps import Objective, sandwich_step


def batches(count=3, size=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 3, 8, 8, generator=generator), torch.randint(0, 5, (size,), generator=generator)) for _ in range(count)
    ]


def supernet(kind=tricky.Residual, **options):
    return autoslim.Supernet(randomized(kind()), torch.randn(1, 3, 8, 8), **{"divisor": 4, **options})


class Stop(Exception):
    pass


class Interrupted(list):
    """Batches that stop with an exception when an epoch that comes too late is asked for."""

    def __init__(self, data, epochs):
        super().__init__(data)
        self.left = epochs

    def __iter__(self):
        if not self.left:
            raise Stop
        self.left -= 1
        return super().__iter__()


class Shuffled(list):
    """Batches in an order of their own every epoch."""

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(self.epoch)).tolist()
        return iter([self[i] for i in order])


class WithDropout(tricky.Tricky):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn, self.drop = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Dropout(0.5)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.pooled(self.drop(F.relu(self.bn(self.conv1(x)))))


def index_of(name, parameter, net, config, model):
    """Where the parameters of a subnet of Residual lie in the full ones."""
    stem, a = config.widths["stem"], config.widths["a"]
    outputs = {"stem": stem, "bn": stem, "a": a, "bn_a": a, "b": stem, "bn_b": stem, "head": 5}
    inputs = {"stem": 3, "a": stem, "b": a, "head": stem}
    layer = name.split(".")[0]
    return (slice(outputs[layer]), slice(inputs[layer])) if parameter.dim() > 1 else (slice(outputs[layer]),)


def test_sandwich_gradients_are_the_sum_over_materialized_networks():
    net = supernet()
    ((x, target),) = batches(1)
    model = net.model.train()
    configs = [net.full(), net.narrowest()]
    generator = torch.Generator().manual_seed(9)
    configs += [net.random(generator) for _ in range(3)]
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    soft, losses = None, []
    for config in configs:
        plain = autoslim.materialize(net, config).train()
        logits = plain(x)
        smoothed = 0.9 * F.one_hot(target, 5) + 0.1 / 5 if soft is None else soft
        loss = -(smoothed * logits.log_softmax(1)).sum(1).mean()
        loss.backward()
        losses.append(loss.item())
        if soft is None:
            soft = logits.detach().exp() / logits.detach().exp().sum(1, keepdim=True)
        for name, parameter in plain.named_parameters():
            expected[name][index_of(name, parameter, net, config, model)] += parameter.grad
    measured = sandwich_step(
        net, x, target, sandwich=Sandwich(True, True, 3), objective=Objective(0.1), generator=torch.Generator().manual_seed(9)
    )
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5)
    assert measured["loss"].item() == pytest.approx(sum(losses) / 5, rel=1e-5)
    assert measured["widest_loss"].item() == pytest.approx(losses[0], rel=1e-5)
    assert measured["narrowest_loss"].item() == pytest.approx(losses[1], rel=1e-5)
    assert net.config == net.full()


def test_random_widths_may_be_none_and_only_the_ends_are_trained():
    net = supernet()
    ((x, target),) = batches(1)
    seen = []
    net.model.register_forward_pre_hook(lambda *_: seen.append(tuple(net.config.widths.values())))
    sandwich_step(net.train(), x, target, sandwich=Sandwich(True, True, 0), objective=Objective(0.0), generator=torch.Generator())
    assert seen == [(16, 12), (4, 4)]


def test_one_step_of_training_is_sgd_on_the_sandwich_gradients():
    net, twin = supernet(), supernet()
    data = batches(1)
    (x, target) = data[0]
    sandwich_step(
        twin.train(),
        x,
        target,
        sandwich=Sandwich(True, True, 2),
        objective=Objective(0.0),
        generator=torch.Generator().manual_seed(0),
    )
    autoslim.train_supernet(net, data, epochs=1, lr=0.1, schedule="constant", weight_decay=0.0, nesterov=False)
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, nn.Parameter(q - 0.1 * q.grad), rtol=1e-4, atol=1e-6)


def test_supernet_training_keeps_no_statistics_and_leaves_the_random_state():
    net = supernet()
    buffers = {name: b.clone() for name, b in net.model.named_buffers()}
    weights = {name: p.clone() for name, p in net.model.named_parameters()}
    state = torch.get_rng_state()
    net.eval()
    rows = autoslim.train_supernet(net, batches(), epochs=2, lr=0.05)
    assert all(torch.equal(b, buffers[name]) for name, b in net.model.named_buffers())
    assert all(not torch.equal(p, weights[name]) for name, p in net.model.named_parameters() if not name.endswith("bias"))
    assert torch.equal(torch.get_rng_state(), state) and not net.training
    assert [row["epoch"] for row in rows] == [1, 2] and net.config == net.full()


@pytest.mark.parametrize("done", [0, 1, 3])
@pytest.mark.parametrize("kind", ["supernet", "network"])
def test_resumed_training_equals_uninterrupted_training_bit_for_bit(tmp_path, kind, done):
    def train(data, folder):
        if kind == "supernet":
            network = supernet(WithDropout)
            rows = autoslim.train_supernet(network, data, folder=folder, epochs=4, lr=0.05, seed=3, clip_norm=1.0)
        else:
            network = randomized(WithDropout())
            rows = autoslim.retrain(network, data, folder=folder, epochs=4, lr=0.05, seed=3, schedule="cosine")
        return network, rows

    once, rows = train(Shuffled(batches()), tmp_path / "once")
    interrupted = type("Both", (Interrupted, Shuffled), {"__iter__": None})

    def stop_or_shuffle(self):
        if not self.left:
            raise Stop
        self.left -= 1
        return Shuffled.__iter__(self)

    interrupted.__iter__ = stop_or_shuffle
    data = interrupted.__new__(interrupted)
    list.__init__(data, batches())
    data.left = done
    with pytest.raises(Stop):
        train(data, tmp_path / "twice")
    torch.manual_seed(99)
    twice, again = train(Shuffled(batches()), tmp_path / "twice")
    assert all(torch.equal(v, twice.state_dict()[k]) for k, v in once.state_dict().items())
    one, two = (pd.read_csv(tmp_path / name / "metrics.csv").drop(columns="seconds") for name in ("once", "twice"))
    pd.testing.assert_frame_equal(one, two, check_exact=True)
    assert len(one) == 4 and [row["loss"] for row in rows] == [row["loss"] for row in again]


class Noisy(torch.utils.data.Dataset):
    """Images with noise drawn as they are read, which may end at any of them."""

    def __init__(self, left=math.inf):
        self.left = left

    def __len__(self):
        return 12

    def __getitem__(self, index):
        if not self.left:
            raise Stop
        self.left -= 1
        return torch.full((3, 8, 8), index / 12) + torch.randn(3, 8, 8), index % 5


@pytest.mark.parametrize("done", [4, 8, 12, 20])
@pytest.mark.parametrize("kind", ["supernet", "switches", "network"])
def test_a_training_that_is_cut_off_within_an_epoch_goes_on_from_there_bit_for_bit(tmp_path, monkeypatch, caplog, kind, done):
    monkeypatch.setattr("autoslim.training.loop.KEPT_EVERY", 0)
    trained_on = []

    def train(data, folder):
        data = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)
        if kind == "network":
            network, start = randomized(WithDropout()), autoslim.retrain
        else:
            network, start = supernet(WithDropout), autoslim.train_supernet
        if kind == "switches":
            network = autoslim.SwitchableNet(network, {width: network.uniform(width) for width in (1.0, 0.5)})
            start = autoslim.train_switches
        network.register_forward_pre_hook(lambda module, args: trained_on.append(len(args[0])))
        rows = start(network, data, folder=folder, epochs=3, lr=0.05, seed=3)
        return network.state_dict(), [{key: value for key, value in row.items() if key != "seconds"} for row in rows]

    once, rows = train(Noisy(), tmp_path / "once")
    steps = len(trained_on)
    with pytest.raises(Stop):
        train(Noisy(left=done), tmp_path / "twice")
    assert len(trained_on) - steps == steps * done // 36
    torch.manual_seed(99)
    with caplog.at_level("INFO", logger="autoslim"):
        twice, again = train(Noisy(), tmp_path / "twice")
    assert len(trained_on) == 2 * steps and rows == again
    assert all(torch.equal(value, twice[name]) for name, value in once.items())
    told = f"going on from epoch {done // 12}" + (f" and {done % 12 // 4} batches of " if done % 12 else " of ")
    assert told in caplog.text


def test_an_epoch_that_was_begun_goes_on_with_as_many_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("autoslim.training.loop.KEPT_EVERY", 0)
    data = torch.utils.data.DataLoader(Noisy(left=8), batch_size=4)
    with pytest.raises(Stop):
        autoslim.retrain(WithDropout(), data, folder=tmp_path, epochs=1, lr=0.05)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(autoslim.AutoSlimError, match="epoch 1 was begun with 3 batches, there are 2 now; pass the same batches"):
        autoslim.retrain(WithDropout(), torch.utils.data.DataLoader(Noisy(), batch_size=6), folder=tmp_path, epochs=1, lr=0.05)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    with pytest.raises(autoslim.AutoSlimError, match="loss became nan"):
        autoslim.retrain(
            WithDropout(), [(torch.full((4, 3, 8, 8), torch.nan), torch.arange(4))] * 3, folder=tmp_path, epochs=1, lr=0.05
        )
    assert (tmp_path / "checkpoint.pt").read_bytes() == before  # of weights that were still good


def test_a_finished_training_is_not_repeated_and_gets_its_metrics_back(tmp_path):
    net = supernet()
    autoslim.train_supernet(net, batches(), folder=tmp_path, epochs=2, lr=0.05)
    text = (tmp_path / "metrics.csv").read_text()
    # As after a cut between the last checkpoint and its row.
    (tmp_path / "metrics.csv").unlink()
    autoslim.train_supernet(supernet(), Interrupted(batches(), 0), folder=tmp_path, epochs=2, lr=0.05)
    assert (tmp_path / "metrics.csv").read_text() == text


def test_weight_decay_falls_on_conv_and_linear_weights_only():
    model = tricky.Depthwise()
    decayed, rest = parameter_groups(model, 0.5)
    names = {id(p): name for name, p in model.named_parameters()}
    assert [names[id(p)] for p in decayed["params"]] == ["expand.weight", "project.weight", "head.weight"]
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.5, 0.0)
    assert len(decayed["params"]) + len(rest["params"]) == len(names)
    assert "depthwise.weight" in {names[id(p)] for p in rest["params"]}


def test_a_supernet_decays_the_same_weights_as_its_model():
    net = supernet(tricky.Depthwise)
    shapes = [[tuple(p.shape) for p in g["params"]] for g in parameter_groups(net, 0.5)]
    assert shapes == [[tuple(p.shape) for p in g["params"]] for g in parameter_groups(tricky.Depthwise(), 0.5)]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0, 2, 0.5])
def test_learning_rate_of_every_iteration(schedule, warmup):
    recipe = autoslim.Recipe(epochs=10, lr=0.4, schedule=schedule, warmup_epochs=warmup)
    rates = [recipe.lr_at(i, 4) for i in range(40)]
    rising = int(4 * warmup)
    assert rates[:rising] == pytest.approx([0.4 * (i + 1) / rising for i in range(rising)])
    parts = [(i - rising) / (40 - rising) for i in range(rising, 40)]
    after = {"linear": lambda p: 1 - p, "cosine": lambda p: math.cos(math.pi * p / 2) ** 2, "constant": lambda p: 1}[schedule]
    assert rates[rising:] == pytest.approx([0.4 * after(p) for p in parts])


def test_the_rate_of_the_last_iteration_is_in_the_metrics(tmp_path):
    autoslim.retrain(tricky.Plain(), batches(4), folder=tmp_path, epochs=5, lr=0.2, schedule="linear")
    rates = pd.read_csv(tmp_path / "metrics.csv")["lr"]
    assert list(rates) == pytest.approx([0.2 * (1 - (4 * epoch + 3) / 20) for epoch in range(5)])


def test_all_faults_of_a_recipe_are_listed_at_once():
    with pytest.raises(autoslim.AutoSlimError) as caught:
        autoslim.Recipe(epochs=0, lr=-1, schedule="steps", label_smoothing=1.0, sandwich="max,random", clip_norm=float("nan"))
    with pytest.raises(autoslim.AutoSlimError, match="lr is inf, not a number of 0 or more"):
        autoslim.Recipe(lr=float("inf"))
    for name in ("epochs is 0", "lr is -1", "schedule is 'steps'", "label_smoothing", "sandwich 'max,random'", "clip_norm"):
        assert name in str(caught.value)


# Retraining ----------------------------------------------------------------------------


def test_retraining_starts_from_weights_of_its_own():
    given = [randomized(tricky.Depthwise(), seed) for seed in (1, 2)]
    for model in given:
        autoslim.retrain(model, batches(), epochs=1, lr=0.05, seed=4)
    assert all(torch.equal(v, given[1].state_dict()[k]) for k, v in given[0].state_dict().items())
    other = randomized(tricky.Depthwise(), 1)
    autoslim.retrain(other, batches(), epochs=1, lr=0.05, seed=5)
    assert not torch.equal(other.expand.weight, given[0].expand.weight)


def test_fine_tuning_starts_from_the_weights_that_are_there():
    model = randomized(tricky.Plain())
    before = copy.deepcopy(model.state_dict())
    autoslim.retrain(model, batches(1), epochs=1, lr=1e-6, from_scratch=False)
    torch.testing.assert_close(model.conv2.weight, nn.Parameter(before["conv2.weight"]), rtol=1e-3, atol=1e-4)


def test_initial_weights_have_the_variance_of_their_own_widths():
    model = nn.Sequential(
        nn.Conv2d(64, 128, 3), nn.Conv2d(128, 128, 5, groups=128), nn.Conv2d(128, 256, 1, groups=4), nn.BatchNorm2d(256)
    )
    model.append(nn.Linear(256, 300))
    randomized(model)
    state = torch.get_rng_state()
    autoslim.initialize(model, 0)
    assert torch.equal(torch.get_rng_state(), state)
    stds = [model[i].weight.std().item() for i in (0, 1, 2, 4)]
    assert stds == pytest.approx([(2 / (9 * 128)) ** 0.5, (2 / 25) ** 0.5, (2 / 64) ** 0.5, 0.01], rel=0.05)
    assert all(not model[i].bias.any() for i in range(5)) and (model[3].weight == 1).all()
    assert not model[3].running_mean.any() and (model[3].running_var == 1).all()


def test_retraining_moves_the_running_statistics():
    model = tricky.Plain()
    autoslim.retrain(model, batches(), epochs=1, lr=0.01)
    assert model.bn1.num_batches_tracked == 3 and model.bn1.running_mean.any()


# What goes wrong ----------------------------------------------------------------------------


def test_no_batches_and_a_loss_that_explodes_are_errors(tmp_path):
    with pytest.raises(autoslim.AutoSlimError, match="0 batches"):
        autoslim.retrain(tricky.Plain(), [], epochs=1)
    with pytest.raises(autoslim.AutoSlimError, match="epoch 1"):
        autoslim.retrain(tricky.Plain(), [(torch.full((2, 3, 8, 8), float("nan")), torch.tensor([0, 1]))], epochs=1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_labels_may_be_of_any_integers(dtype):
    nets = [supernet(), supernet()]
    rows = [
        autoslim.train_supernet(net, [(x, y.to(kind)) for x, y in batches()], epochs=1)
        for net, kind in zip(nets, (torch.int64, dtype))
    ]
    assert [row.pop("seconds") >= 0 for (row,) in rows] and rows[0] == rows[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda y: y + 3, "from . to ."),
        (lambda y: y - 3, "from -. to ."),
        (lambda y: y[:, None], "int64 \\[4, 1\\]"),
        (lambda y: F.one_hot(y, 5), "int64 \\[4, 5\\]"),
        (lambda y: y.numpy(), "ndarray"),
        (lambda y: y.float(), "float32 \\[4\\]"),
        (lambda y: y.float()[:, None], "float32 \\[4, 1\\]"),
    ],
)
def test_labels_that_are_no_classes_are_refused_in_one_line(change, words):
    (batch,) = batches(1)
    for train, net in ((autoslim.train_supernet, supernet()), (autoslim.retrain, tricky.Plain())):
        with pytest.raises(autoslim.AutoSlimError, match=f"labels are {words}.*integers .4. from 0 to 4.*loss=") as refused:
            train(net, [(batch[0], change(batch[1]))], epochs=1)
        assert "\n" not in str(refused.value)


def test_accuracy_is_that_of_labels_that_count():
    scores = torch.eye(5).repeat(2, 1)
    labels = torch.tensor([0, 1, 0, -100, -100, 0, 0, 0, 3, -100])
    assert Objective().accuracy(scores, labels) == {"accuracy": torch.tensor(4 / 7, dtype=torch.double)}
    assert Objective().accuracy(scores, torch.full((10,), -100)) == {"accuracy": 0}
    assert Objective().accuracy(scores, scores) == {}


def trained(tmp_path):
    autoslim.retrain(tricky.Plain(), batches(1), folder=tmp_path, epochs=1)
    return tmp_path / "checkpoint.pt"


def test_a_truncated_checkpoint_is_refused(tmp_path):
    path = trained(tmp_path)
    whole = path.read_bytes()
    for end in (0, 10, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:end])
        with pytest.raises(autoslim.AutoSlimError, match=r"checkpoint\.pt (is not a (whole )?checkpoint|cannot be read)"):
            load_checkpoint(path, "network")


@pytest.mark.parametrize(
    "state",
    [
        {"weights": torch.zeros(2)},
        [1, 2],
        torch.zeros(3),
        {"format": "autoslim.checkpoint/1", "kind": "network"},
        {"format": "autoslim.checkpoint/1", "kind": "network", "model": 3, "optimizer": {}, "rows": [], "settings": {}},
    ],
)
def test_a_foreign_checkpoint_is_refused(tmp_path, state):
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(autoslim.AutoSlimError, match=r"checkpoint\.pt"):
        load_weights(tmp_path / "checkpoint.pt", "network", tricky.Plain())
    with pytest.raises(autoslim.AutoSlimError, match=r"checkpoint\.pt"):
        autoslim.retrain(tricky.Plain(), batches(1), folder=tmp_path, epochs=1)


def test_a_checkpoint_of_the_other_kind_or_missing_is_refused(tmp_path):
    with pytest.raises(autoslim.AutoSlimError, match="holds a network"):
        load_checkpoint(trained(tmp_path), "supernet")
    with pytest.raises(autoslim.AutoSlimError, match="does not exist"):
        load_checkpoint(tmp_path / "none.pt", "network")


def test_other_settings_and_other_networks_are_refused_with_every_difference(tmp_path):
    trained(tmp_path)
    with pytest.raises(autoslim.AutoSlimError) as caught:
        autoslim.retrain(tricky.Plain(), batches(1), folder=tmp_path, epochs=2, seed=8)
    assert "epochs was 1, now 2" in str(caught.value) and "seed was 0, now 8" in str(caught.value)
    with pytest.raises(autoslim.AutoSlimError, match="does not fit the network"):
        autoslim.retrain(tricky.Residual(), batches(1), folder=tmp_path, epochs=1)


def test_weights_of_another_network_change_nothing(tmp_path):
    path = trained(tmp_path)
    other = nn.ModuleDict({"conv1": nn.Conv2d(3, 16, 3, bias=False), "conv2": nn.Conv2d(16, 8, 3)})
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(autoslim.AutoSlimError, match="does not fit"):
        load_weights(path, "network", other)
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_nothing_in_a_checkpoint_can_be_executed(tmp_path, form):
    proof = tmp_path / "ran"
    state = {"format": "autoslim.checkpoint/1", "kind": "network", "model": Payload(proof)}
    path = tmp_path / "checkpoint.pt"
    torch.save(state, path) if form == "torch" else path.write_bytes(pickle.dumps(state))
    with pytest.raises(autoslim.AutoSlimError, match=r"not a (whole )?checkpoint"):
        load_checkpoint(path, "network")
    assert not proof.exists()


def test_averaged_supernet_trains_and_is_folded_into_the_plain_network():
    net = supernet(tricky.Residual, average_inputs=True)
    autoslim.train_supernet(net, batches(), epochs=1, lr=0.05)
    net.set(net.narrowest())
    autoslim.calibrate(net, batches())
    x = batches(1)[0][0]
    plain = autoslim.materialize(net).eval()
    torch.testing.assert_close(plain(x), net.eval()(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain.a.weight, nn.Parameter(net.source.a.weight[:4, :4] / 4))


def test_the_bar_moves_within_an_epoch_and_goes_on_where_a_training_stopped(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("autoslim.training.loop.tqdm", lambda **options: tqdm(**options | {"mininterval": 0}))
    options = {"epochs": 3, "folder": tmp_path, "progress": True}
    with pytest.raises(Stop):
        autoslim.retrain(tricky.Residual(), Interrupted(batches(4), 1), **options)
    shown = capsys.readouterr().err
    assert all(f"{n:.2f}/3 epochs" in shown for n in (0, 0.25, 0.5, 0.75, 1)) and "1.25/3" not in shown
    autoslim.retrain(tricky.Residual(), batches(4), **options)
    shown = capsys.readouterr().err
    assert "0.25/3" not in shown
    assert all(f"{n:.2f}/3 epochs" in shown for n in (1, 1.25, 2, 2.75, 3)) and "100%" in shown and "train accuracy" in shown
    assert re.search(r"1\.25/3 epochs \[\d\d:\d\d<\d\d:\d\d", shown)  # the time left


def test_the_bar_ends_full_where_there_are_fewer_batches_than_were_said(capsys):
    class Fewer(list):
        def __len__(self):
            return 5

    autoslim.retrain(tricky.Residual(), Fewer(batches(3)), epochs=2, progress=True)
    assert "100%" in capsys.readouterr().err


def test_layers_that_are_not_trained_keep_their_weights():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.Conv2d(4, 2, 1), nn.LayerNorm(2)
    )
    for fixed in (model[1], model[2]):
        fixed.requires_grad_(False)
        for value in fixed.state_dict().values():
            value.fill_(2)
    model[3].bias.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    initialize(model, 3)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (name[0] in "124" or name == "3.bias"), name


def test_weights_that_are_computed_decay_and_are_drawn_for_the_shape_that_they_have():
    torch.manual_seed(0)
    model = nn.Sequential(weight_norm(nn.Conv2d(3, 64, 3)), nn.ReLU(), weight_norm(nn.Conv2d(64, 64, 3)))
    decayed, rest = parameter_groups(model, 0.1)
    assert {p.dim() for p in decayed["params"]} == {4} and len(decayed["params"]) == 4 and len(rest["params"]) == 2
    net = autoslim.Supernet(model, torch.randn(2, 3, 8, 8))
    net.set(net.narrowest())
    plain = initialize(autoslim.materialize(net), 1)
    assert plain[2].weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.1)
    assert plain[0].weight.std().item() == pytest.approx((2 / (9 * plain[0].weight.shape[0])) ** 0.5, rel=0.2)


def test_narrow_networks_learn_by_a_loss_of_ones_own_unless_scores_are_asked_for():
    torch.manual_seed(0)
    net = autoslim.Supernet(nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 1, 1)), torch.randn(2, 3, 4, 4))
    data = [(torch.randn(4, 3, 4, 4), torch.rand(4, 1, 4, 4).round())]
    options = {"epochs": 1, "loss": F.binary_cross_entropy_with_logits, "lr": 0.0, "warmup_epochs": 0, "sandwich": "max,min"}
    (row,) = autoslim.train_supernet(net, data, **options)
    x, target = data[0]
    net.set(net.narrowest())
    assert row["narrowest_loss"] == pytest.approx(F.binary_cross_entropy_with_logits(net(x), target).item(), rel=1e-5)
    with pytest.raises(autoslim.AutoSlimError, match="no scores of 2 classes or more .* pass distill=False"):
        autoslim.train_supernet(net, data, distill=True, **options)


def test_a_training_needs_no_labels_where_its_loss_asks_for_none():
    net = autoslim.Supernet(nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 3, 1)), torch.randn(2, 3, 4, 4))
    data = [(torch.randn(4, 3, 4, 4), None)]
    (row,) = autoslim.train_supernet(net, data, epochs=1, lr=0.01, loss=lambda output, _: output.square().mean())
    assert row["loss"] > 0


def test_any_seed_will_do():
    net = autoslim.Supernet(nn.Sequential(nn.Conv2d(3, 16, 1), nn.Flatten(), nn.Linear(256, 4)), torch.randn(2, 3, 4, 4))
    data = [(torch.randn(4, 3, 4, 4), torch.arange(4))]
    assert autoslim.train_supernet(net, data, epochs=1, lr=0.01, seed=20251231235959)
