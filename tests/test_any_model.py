"""What users bring: several inputs, other precisions, odd attributes and loaders."""

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
