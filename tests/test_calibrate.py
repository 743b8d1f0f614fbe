import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tricky
from all_cases import ALL_CASES
from torch import nn
from tricky import randomized

import autoslim

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.drop = tricky.Concat(), nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.inner(x))


def batches(sizes=(5, 2, 7), shape=(3, 8, 8), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(3 * torch.randn(n, *shape, generator=generator) + n, torch.randint(0, 5, (n,), generator=generator)) for n in sizes]


def recorded_inputs(network, data):
    """Collect what every batch norm is given while each batch is normalised by its own statistics."""
    seen = {}

    def record(name):
        return lambda module, inputs: seen.setdefault(name, []).append(inputs[0].numpy().astype(np.float64))

    norms = {name: m for name, m in network.named_modules() if type(m) in NORMS}
    hooks = [m.register_forward_pre_hook(record(name)) for name, m in norms.items()]
    network.train()
    with torch.no_grad():
        for x, _ in data:
            network(x)
    for hook in hooks:
        hook.remove()
    return {name: np.concatenate([np.moveaxis(x, 1, -1).reshape(-1, x.shape[1]) for x in xs]) for name, xs in seen.items()}


@pytest.mark.parametrize("kind", [tricky.Plain, tricky.Residual, tricky.Concat, tricky.Depthwise, tricky.Grouped])
@pytest.mark.parametrize("widest", [True, False])
def test_statistics_are_those_numpy_finds_in_the_recorded_inputs(kind, widest):
    net = autoslim.Supernet(randomized(kind()), torch.randn(1, 3, 8, 8), divisor=4)
    config = net.full() if widest else net.narrowest()
    data = batches()
    plain = autoslim.materialize(net, config)
    values = recorded_inputs(autoslim.materialize(net, config), data)
    autoslim.calibrate(plain, data)
    net.set(config)
    autoslim.calibrate(net, data)
    for network in (plain, autoslim.materialize(net)):
        for name, x in values.items():
            norm = network.get_submodule(name)
            np.testing.assert_allclose(norm.running_mean.numpy(), x.mean(0), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(norm.running_var.numpy(), x.var(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [kind for kind in ALL_CASES if kind.shapes == ((3, 8, 8),)], ids=lambda kind: kind.__name__)
def test_calibrated_subnet_equals_the_calibrated_materialized_network(kind):
    net = autoslim.Supernet(randomized(kind()), torch.randn(1, 3, 8, 8), divisor=4)
    data = batches()
    for config in (net.narrowest(), net.random(torch.Generator().manual_seed(3))):
        plain = autoslim.calibrate(autoslim.materialize(net, config), data)
        net.set(config)
        autoslim.calibrate(net, data)
        taken = autoslim.materialize(net).state_dict()
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(value, taken[name], rtol=1e-5, atol=1e-5)


class NormsInARow(tricky.Tricky):
    """What the second norm sees depends on what normalised the first, whose active channels are no leading ones."""

    shapes = ((3, 8, 8),)

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 12, 3)
        self.bn, self.bn2, self.mix, self.bn3 = nn.BatchNorm2d(20), nn.BatchNorm2d(20), nn.Conv2d(20, 16, 1), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.bn(torch.cat([self.a(x), self.b(x)], 1)))
        return self.pooled(self.bn3(self.mix(F.relu(self.bn2(x)))))


def test_batches_are_normalised_by_their_own_statistics_where_the_active_channels_are_not_leading_ones():
    test_calibrated_subnet_equals_the_calibrated_materialized_network(NormsInARow)


def test_first_batch_norm_does_not_depend_on_how_images_are_batched():
    data = batches((1, 9, 2, 2))
    together = [(torch.cat([x for x, _ in data]), None)]
    model = randomized(tricky.Plain())
    autoslim.calibrate(model, data)
    split = model.bn1.running_mean.clone(), model.bn1.running_var.clone()
    autoslim.calibrate(model, together)
    torch.testing.assert_close(split[0], model.bn1.running_mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(split[1], model.bn1.running_var, rtol=1e-5, atol=1e-5)


def test_large_means_lose_no_variance():
    x = 1000 + 0.01 * torch.randn(64, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    norm = nn.Sequential(nn.BatchNorm2d(3))
    autoslim.calibrate(norm, [(part, None) for part in x.split([30, 30, 4])])
    exact = x.numpy().astype(np.float64).var((0, 2, 3))
    np.testing.assert_allclose(norm[0].running_var.numpy(), exact, rtol=2e-2)


class Twice(nn.Module):
    """One norm runs twice, the other once."""

    def __init__(self):
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.norm, self.out = nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.norm(self.conv(x))
        x = self.other(self.norm(3 * x[..., 1:] + 2).relu())
        return self.out(x.mean((2, 3)))


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.double, 1e-12)])
def test_statistics_are_exact_in_the_precision_of_the_network(dtype, close):
    model = randomized(Twice()).to(dtype)
    data = [(x.to(dtype), target) for x, target in batches()]
    values = recorded_inputs(copy.deepcopy(model), data)
    autoslim.calibrate(model, data)
    for name, x in values.items():
        norm = model.get_submodule(name)
        np.testing.assert_allclose(norm.running_mean.numpy(), x.mean(0), rtol=close, atol=close)
        np.testing.assert_allclose(norm.running_var.numpy(), x.var(0), rtol=close, atol=close)


def test_statistics_of_a_bf16_network_are_near_those_of_the_same_in_fp32():
    model = randomized(tricky.Residual())
    half = copy.deepcopy(model).bfloat16()
    autoslim.calibrate(model, batches())
    autoslim.calibrate(half, [(x.bfloat16(), target) for x, target in batches()])
    for norm, other in zip(model.modules(), half.modules()):
        if isinstance(norm, NORMS):
            assert other.running_var.dtype == torch.bfloat16
            torch.testing.assert_close(other.running_mean.float(), norm.running_mean, rtol=0.05, atol=0.05)
            torch.testing.assert_close(other.running_var.float(), norm.running_var, rtol=0.05, atol=0.05)


def test_eval_after_one_batch_equals_train_mode_on_that_batch():
    net = autoslim.Supernet(randomized(tricky.Residual()), torch.randn(1, 3, 8, 8), divisor=4)
    net.set(net.narrowest())
    ((x, target),) = data = batches((6,))
    with torch.no_grad():
        expected = net.train()(x)
        autoslim.calibrate(net, data)
        torch.testing.assert_close(net.eval()(x), expected, rtol=1e-4, atol=1e-5)
    wrong = (expected.argmax(1) != target).double().mean().item()
    assert autoslim.evaluate(net, data).error == pytest.approx(wrong)


def test_labels_are_not_used_and_inputs_may_come_alone():
    data = batches()
    model = randomized(tricky.Plain())
    autoslim.calibrate(model, data)
    expected = {key: value.clone() for key, value in model.state_dict().items()}
    for form in ([(x, "no label") for x, _ in data], [[x, None] for x, _ in data], [x for x, _ in data], iter(data)):
        randomized(model)
        autoslim.calibrate(model, form)
        assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def test_several_inputs():
    model = randomized(tricky.TwoInputs())
    autoslim.calibrate(model, [(model.inputs(3), torch.zeros(3))])


def test_weights_flags_and_random_state_are_untouched():
    model = Noisy()
    randomized(model)
    model.train()
    model.inner.bn.eval()
    net = autoslim.Supernet(model, torch.randn(1, 3, 8, 8), divisor=4)
    net.set(net.narrowest())
    weights = {name: p.clone() for name, p in model.named_parameters()}
    flags = {name: m.training for name, m in net.named_modules()}
    counts = model.inner.bn.num_batches_tracked.clone()
    state = torch.get_rng_state()
    autoslim.calibrate(net, batches())
    assert torch.equal(torch.get_rng_state(), state)
    assert flags == {name: m.training for name, m in net.named_modules()}
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    assert torch.equal(model.inner.bn.num_batches_tracked, counts)
    assert all(p.grad is None for p in model.parameters())
    assert not [m for m in net.modules() if m._forward_pre_hooks]


def test_only_the_active_statistics_are_written():
    model = randomized(tricky.Concat())
    before = model.bn.running_mean.clone()
    net = autoslim.Supernet(model, torch.randn(1, 3, 8, 8), divisor=4)
    net.set({"a": 4, "b": 8, "mix": 16})
    autoslim.calibrate(net, batches())
    written = (model.bn.running_mean != before).nonzero().flatten().tolist()
    assert written == [0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15]


def test_no_batches_is_an_error_and_keeps_the_statistics():
    model = randomized(tricky.Plain())
    before = model.bn1.running_mean.clone()
    with pytest.raises(autoslim.AutoSlimError, match="0 batches"):
        autoslim.calibrate(model, [])
    assert torch.equal(model.bn1.running_mean, before)


def test_an_interrupted_calibration_leaves_statistics_flags_and_no_hooks():
    def broken():
        yield batches()[0]
        raise KeyError("loader")

    model = randomized(tricky.Plain()).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(KeyError, match="loader"):
        autoslim.calibrate(model, broken())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training and not model.bn1._forward_pre_hooks


def test_evaluate_counts_images_and_mistakes_by_hand():
    model = randomized(tricky.Plain()).train()
    data = batches((5, 2))
    with torch.no_grad():
        model.eval()
        logits = torch.cat([model(x) for x, _ in data]).double().numpy()
        model.train()
    target = torch.cat([t for _, t in data]).numpy()
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(7), target]
    score = autoslim.evaluate(model, data)
    assert (score.error, score.images) == (np.mean(logits.argmax(1) != target), 7)
    assert score.loss == pytest.approx(losses.mean(), rel=1e-5)
    assert model.training
    with pytest.raises(autoslim.AutoSlimError, match="0 images"):
        autoslim.evaluate(model, [])
