"""What users bring: several inputs, other precisions, odd attributes and loaders."""

import copy
import pickle
import random

import numpy as np
import pytest
import torch
from torch import nn

import autoslim
from autoslim.data import load_data

X, Y = torch.randn(8, 3, 8, 8), torch.arange(8) % 4


def plain():
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = plain()

    def forward(self, a, b):
        return self.body(a + b)


class DictInput(TwoInputs):
    def forward(self, batch):
        return {"logits": self.body(batch["a"] + batch["b"])}


@pytest.mark.parametrize("model, inputs", [(TwoInputs(), (X, X)), (TwoInputs(), [X, X]), (DictInput(), {"a": X, "b": X})])
def test_several_inputs_through_the_whole_job(model, inputs):
    net, batches = autoslim.Supernet(model, inputs), [(inputs, Y)]
    autoslim.train_supernet(net, batches, epochs=1)
    (point,) = autoslim.greedy_search(net, batches, calibration=batches, targets={"macs": "60%"})
    slim = autoslim.materialize(model, point.config)
    autoslim.retrain(slim, batches, epochs=1)
    assert autoslim.evaluate(slim, batches).images == 8


def test_moving_a_supernet_moves_the_model_it_shares_weights_with():
    model = plain()
    net = autoslim.Supernet(model, X).double()
    assert {t.dtype for t in (*model.parameters(), model[1].running_mean)} == {torch.float64}
    slim = autoslim.materialize(model, net.uniform(0.5))
    assert slim(X.double()).dtype == torch.float64
    assert all(a is b for a, b in zip(net.model.buffers(), model.buffers()))


def test_a_plain_tensor_attribute_is_traced():
    class Normalised(TwoInputs):
        def __init__(self):
            super().__init__()
            self.mean = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)

        def forward(self, x):
            return self.body(x - self.mean)

    assert [group.name for group in autoslim.find_groups(Normalised(), X).groups] == ["body.0", "body.3"]


@pytest.mark.parametrize("how", ["as", "sizes"])
def test_squeeze_and_excitation_with_expand(how):
    class Excited(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.squeeze, self.excite = nn.Conv2d(3, 16, 3), nn.Linear(16, 8), nn.Linear(8, 16)
            self.head = nn.Linear(16, 4)

        def forward(self, x):
            x = self.conv(x)
            n, c, h, w = x.shape
            gate = self.excite(self.squeeze(x.mean((2, 3)))).sigmoid().view(n, c, 1, 1)
            return self.head((x * (gate.expand_as(x) if how == "as" else gate.expand(n, c, h, w))).mean((2, 3)))

    net = autoslim.Supernet(Excited(), X)
    assert [group.members for group in net.groups] == [("conv", "excite"), ("squeeze",)]
    with net.using(net.narrowest()):
        assert torch.allclose(net(X), autoslim.materialize(net)(X), atol=1e-6)


def test_a_loader_over_an_iterable_dataset():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from zip(X, Y)

    loader = torch.utils.data.DataLoader(Stream(), batch_size=4)
    assert len(autoslim.train_supernet(autoslim.Supernet(plain(), X), loader, epochs=2)) == 2


def test_from_scratch_means_every_layer():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.MultiheadAttention(8, 2))
    before = model[0].weight.detach().clone(), model[1].in_proj_weight.detach().clone()
    autoslim.initialize(model, 1)
    assert not torch.equal(model[0].weight, before[0]) and not torch.equal(model[1].in_proj_weight, before[1])


def test_a_run_that_was_sent_cannot_name_a_function_of_others():
    with pytest.raises(autoslim.AutoSlimError, match="belongs to os"):
        load_data("os:abort")


# Code that a tracer must not be fooled by ----------------------------------------------------

TABLE = None
CACHED = {}


class Wild(TwoInputs):
    """A network with one odd line between two convolutions."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 12, 3), nn.Linear(12, 4)

    def forward(self, x):
        return self.head(self.b(self.odd(torch.relu(self.a(x)))).mean((2, 3)))


class CountsInPython(Wild):
    def odd(self, x):
        half = int(x.size(1) * 0.5)
        return torch.cat([x[:, half:], x[:, :half]], 1)


class Compares(Wild):
    def __init__(self):
        super().__init__()
        self.width = 16

    def odd(self, x):
        if x.size(1) != self.width:
            raise ValueError
        assert self.width == x.shape[1] and x.shape[0] < 1000
        return x


class ComparesTwice(Wild):
    """One number is compared with axes that are made of other parts."""

    def __init__(self):
        super().__init__()
        self.c, self.d, self.width = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(24, 24, 1), 24
        self.b = nn.Conv2d(24, 12, 3)

    def forward(self, x):
        y = torch.cat([torch.relu(self.a(x)), self.c(x)], 1)
        assert y.shape[1] == self.width
        z = self.d(y)
        assert z.shape[1] == self.width
        return self.head(self.b(z).mean((2, 3)))


class KeepsTables(Wild):
    def odd(self, x):
        global TABLE
        if TABLE is None:
            TABLE = torch.linspace(0, 1, 8, device=x.device)
        CACHED.setdefault("grid", torch.ones(8, device=x.device))
        random.random(), np.random.rand()
        return x * TABLE * CACHED["grid"]


class OldVariable(Wild):
    def odd(self, x):
        return torch.autograd.Variable(x) + torch.from_numpy(np.ones((1, 1, 8), np.float32))


class Compiled(Wild):
    def __init__(self):
        super().__init__()
        self.inner = torch.compile(nn.Sequential(nn.Conv2d(16, 16, 1), nn.ReLU()), backend="eager")

    def odd(self, x):
        return self.inner(x)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 1)

    def forward(self, x):
        y = self.conv(x)
        return (y, y.mean()) if y.mean() < 1e9 else (y, None)


class ReturnsPair(Wild):
    def __init__(self):
        super().__init__()
        self.pair = Pair()

    def odd(self, x):
        return self.pair(x)[0]


def check_identity(net, x):
    for config in (net.full(), net.narrowest(), net.random(torch.Generator().manual_seed(1))):
        net.set(config)
        torch.testing.assert_close(net.eval()(x), autoslim.materialize(net).eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch.compile looks at every tensor it meets
@pytest.mark.parametrize(
    "kind, groups",
    [
        (CountsInPython, ["b"]),
        (Compares, ["a", "b"]),
        (ComparesTwice, ["a", "c", "b"]),
        (KeepsTables, ["a", "b"]),
        (OldVariable, ["a", "b"]),
        (Compiled, ["a", "inner.0", "b"]),
        (ReturnsPair, ["b"]),
    ],
)
def test_odd_code_is_followed_or_frozen(kind, groups):
    model = kind()
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    net = autoslim.Supernet(model, X, divisor=4)
    assert [group.name.removesuffix("._orig_mod.0") for group in net.groups] == [g.removesuffix(".0") for g in groups]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[:2] and torch.equal(torch.get_rng_state(), before[2])
    assert TABLE is None and not CACHED
    check_identity(net, X)
    globals().update(TABLE=None)
    CACHED.clear()


def test_a_count_in_plain_python_is_named():
    reasons = " ".join(why for group in autoslim.find_groups(CountsInPython(), X).frozen for why in group.frozen)
    assert "its channels are counted in plain Python" in reasons and "half = int(x.size(1)" in reasons


def test_tracing_leaves_torch_as_it_was():
    names = ("zeros", "tensor", "from_numpy", "arange")
    before = [isinstance, *(getattr(torch, name) for name in names), torch.autograd.Function.__dict__["apply"]]

    class Fails(Wild):
        def odd(self, x):
            raise RuntimeError("always")

    for model in (KeepsTables(), CountsInPython()):
        autoslim.find_groups(model, X)
    with pytest.raises(autoslim.AutoSlimError, match="does not run on the example .RuntimeError: always"):
        autoslim.find_groups(Fails(), X)
    assert [isinstance, *(getattr(torch, name) for name in names), torch.autograd.Function.__dict__["apply"]] == before
    with torch.device("meta"):
        assert torch.zeros(2).is_meta and torch.tensor(1.0).is_meta


def test_an_input_may_be_left_out():
    class Optional(TwoInputs):
        def forward(self, a, mask=None):
            return self.body(a if mask is None else a * mask)

    model = Optional()
    net = autoslim.Supernet(model, (X, None))
    slim = autoslim.materialize(model, net.narrowest())
    assert slim(X, None).shape == (8, 4)


def test_a_scripted_module_is_refused_with_the_way_out():
    class Scripted(TwoInputs):
        def __init__(self):
            super().__init__()
            self.body = torch.jit.script(self.body)

        def forward(self, x):
            return self.body(x)

    with pytest.raises(autoslim.AutoSlimError, match="body is a scripted module.*pass the plain module"):
        autoslim.Supernet(Scripted(), X)


def test_a_loss_of_ones_own_trains_auxiliary_heads():
    class Aux(TwoInputs):
        def __init__(self):
            super().__init__()
            self.aux = nn.Linear(3, 4)

        def forward(self, x):
            return {"logits": self.body(x), "aux": self.aux(x.mean((2, 3)))}

    def loss(output, target):
        return nn.functional.cross_entropy(output["logits"], target) + 0.3 * nn.functional.cross_entropy(output["aux"], target)

    for distill in (True, False, lambda out, widest: (out["logits"] - widest["logits"]).square().mean()):
        net = autoslim.Supernet(Aux(), X)
        before = net.source.aux.weight.detach().clone()
        (row,) = autoslim.train_supernet(net, [(X, Y)], epochs=1, loss=loss, distill=distill, lr=0.1, warmup_epochs=0)
        assert row["loss"] > 0 and "accuracy" not in row and not torch.equal(net.source.aux.weight, before)


# A supernet as a module ------------------------------------------------------------------------


def test_a_supernet_can_be_copied_and_pickled():
    net = autoslim.Supernet(plain(), X)
    net.set(net.narrowest())
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(other.eval()(X), net.eval()(X))
        other.set(other.full())
        assert other.config == net.full() and net.config == net.narrowest()


def test_weights_that_are_assigned_reach_the_model():
    net, other = autoslim.Supernet(plain(), X), plain()
    net.load_state_dict(other.state_dict(), assign=True)
    assert all(a is b for a, b in zip(net.parameters(), net.source.parameters()))
    torch.testing.assert_close(net.source.eval()(X), other.eval()(X))


def test_outputs_of_transposed_convolutions_are_averaged_over_their_inputs():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ConvTranspose2d(16, 8, 2, groups=2), nn.Flatten(), nn.Linear(8 * 49, 4))
    net = autoslim.Supernet(model, X, divisor=1, average_inputs=True)
    before = model[1].weight.detach().clone()
    torch.testing.assert_close(autoslim.materialize(net)[1].weight.detach(), before / 8)
    net.set(net.make_config([4, *[group.full for group in net.groups[1:]]]))
    torch.testing.assert_close(autoslim.materialize(net)[1].weight.detach(), before[[0, 1, 8, 9]] / 2)


def test_a_tensor_that_forward_writes_to_stays_whole():
    class Remembers(Wild):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.ones(1, 16, 1, 1))

        def odd(self, x):
            if self.training:
                self.seen.mul_(0.9)
            return x * self.seen

    found = autoslim.find_groups(Remembers(), X)
    assert [group.name for group in found.groups] == ["b"]
    assert "written to" in next(group.frozen[0] for group in found.frozen if group.name == "a")
