"""Peak memory: against the allocator of PyTorch, against arithmetic, and the model of all widths against runs at each."""

import pytest
import torch
import tricky
import tricky_layers
import tricky_more
from all_cases import ALL_CASES
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.profiler import ProfilerActivity, profile
from torchvision.models import mobilenet_v2
from tricky import randomized

import autoslim
from autoslim.channels.trace import as_inputs
from autoslim.cost.budgets import Budgets
from autoslim.cost.memory import PeakMemory, peak_memory_bytes


def fixed_bytes(network, inputs):
    tensors = (*network.parameters(), *network.buffers(), *as_inputs(inputs))
    return sum(t.numel() * t.element_size() for t in tensors)


def allocated(network, inputs):
    """Return what the allocator had given out at most at the end of an operation, with weights and inputs."""
    network.eval()
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        network(*as_inputs(inputs))
    rows = recorded.profiler.kineto_results.events()
    changes = sorted((row.start_ns(), row.nbytes()) for row in rows if row.name() == "[memory]")
    ends, last = [], 0
    for start, end in sorted((r.start_ns(), r.start_ns() + r.duration_ns()) for r in rows if r.name().startswith("aten::")):
        if start >= last:  # an operation that no other one called
            ends.append(end)
            last = end
    live = [sum(size for moment, size in changes if moment <= end) for end in ends]
    return max(live) + fixed_bytes(network, inputs)


def small_mobilenet():
    torch.manual_seed(0)
    return mobilenet_v2(width_mult=0.35, num_classes=5)


KINDS = [
    tricky.Plain, tricky.Residual, tricky.Downsample, tricky.Depthwise, tricky.Concat, tricky.SqueezeExcite, tricky.Shuffle,
    tricky.TwoInputs, tricky_more.UNet, tricky_layers.HeadsOfShape,
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_peak_is_what_the_allocator_gives_out(kind):
    inputs = kind.inputs(3)
    net = autoslim.Supernet(randomized(kind()), inputs, divisor=4)
    for config in (net.full(), net.random(torch.Generator().manual_seed(1)), net.narrowest()):
        plain = autoslim.materialize(net, config)
        assert peak_memory_bytes(plain, inputs) == allocated(plain, inputs)


def test_model_of_a_mobilenet_is_what_the_allocator_gives_out():
    inputs = torch.randn(2, 3, 32, 32)
    net = autoslim.Supernet(small_mobilenet(), inputs, divisor=4)
    memory = PeakMemory(net, inputs)
    assert not memory.runs
    for config in (net.full(), net.random(torch.Generator().manual_seed(1)), net.narrowest()):
        assert memory.bytes(config) == allocated(autoslim.materialize(net, config), inputs)


@pytest.mark.parametrize("kind", ALL_CASES, ids=lambda kind: kind.__name__)
def test_model_equals_a_run_at_the_widths(kind):
    model = randomized(kind())
    net = autoslim.Supernet(model, model.inputs(1), divisor=4)
    generator = torch.Generator().manual_seed(0)
    for batch, draws in ((1, 1), (4, 2)):
        inputs = model.inputs(batch)
        memory = PeakMemory(net, inputs)
        for config in (net.full(), net.narrowest(), *(net.random(generator) for _ in range(draws))):
            found = memory.bytes(config)
            assert found == peak_memory_bytes(autoslim.materialize(net, config), inputs)
            assert memory.bytes(config.widths) == found


def test_chain_by_hand():
    layers = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(16, 8, 1), nn.Flatten(), nn.Linear(512, 4)
    )
    net = autoslim.Supernet(layers, torch.zeros(1, 3, 8, 8), divisor=4)
    memory = PeakMemory(net, torch.zeros(5, 3, 8, 8))
    for first, second in ((16, 8), (4, 8), (4, 4)):
        weights = (27 * first + first) + (first * second + second) + (64 * second * 4 + 4)
        # The second convolution reads what the first one made; the images stay with the caller.
        alive = 64 * (3 + first + second)
        assert memory.bytes({"0": first, "2": second}) == 4 * (weights + 5 * alive)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.narrow, self.last = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1), nn.Conv2d(4, 4, 1)

    def body(self, x):
        x = self.narrow(x)
        return self.last(x)

    def forward(self, x):
        kept = self.wide(x)
        y = self.body(kept)
        return y.mean((2, 3))


def test_what_a_variable_holds_is_alive():
    block = Block()
    weights = sum(p.numel() for p in block.parameters())
    # When `last` has run, `kept` is still there, though nothing reads it.
    assert peak_memory_bytes(block, torch.zeros(1, 3, 8, 8)) == 4 * (weights + 64 * (3 + 16 + 4 + 4))


def test_bytes_follow_the_precision_and_the_batch():
    x = torch.zeros(1, 3, 8, 8)
    single, half = peak_memory_bytes(tricky.Plain(), x), peak_memory_bytes(tricky.Plain().half(), x.half())
    counters = 2 * 8  # of batches, in whole numbers of 8 bytes
    assert single - counters == 2 * (half - counters)
    weights = fixed_bytes(tricky.Plain(), ())
    assert peak_memory_bytes(tricky.Plain(), x.expand(6, 3, 8, 8)) - weights == 6 * (single - weights)


def test_a_network_whose_tensors_do_not_follow_its_widths_is_run():
    inputs = torch.randn(2, 3, 8, 8)
    net = autoslim.Supernet(tricky_more.Shuffles(), inputs, divisor=4)
    memory = PeakMemory(net, inputs)
    assert memory.runs  # a shuffle of 4 groups of one channel has nothing to move
    narrow = net.narrowest()
    assert memory.bytes(narrow) == memory.bytes(narrow) == allocated(autoslim.materialize(net, narrow), inputs)


def test_code_that_asks_for_values_runs_on_the_example():
    inputs = tricky.Untraceable.inputs(2)
    net = autoslim.Supernet(randomized(tricky.Untraceable()), inputs, divisor=4)
    memory, config = PeakMemory(net, inputs), net.narrowest()
    scalar = 8  # what `item` reads
    assert 0 <= allocated(autoslim.materialize(net, config), inputs) - memory.bytes(config) <= scalar


class AsksForData(tricky.Plain):
    def forward(self, x):
        if isinstance(x, FakeTensor):
            raise RuntimeError("there is no data")
        return super().forward(x)


def test_what_needs_data_runs_where_the_network_lies():
    net = autoslim.Supernet(AsksForData(), torch.zeros(1, 3, 8, 8), divisor=4)
    here = Budgets(net, ["memory"]).full["memory"]
    net.to("meta")  # in place of a GPU; its kernels take a little more
    assert Budgets(net, ["memory"]).full["memory"] == pytest.approx(here, rel=0.01)


def test_network_is_left_as_it_is():
    net = autoslim.Supernet(randomized(tricky.Residual()).train(), torch.randn(2, 3, 8, 8), divisor=4)
    net.set(net.narrowest())
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.get_rng_state()
    PeakMemory(net, torch.randn(2, 3, 8, 8, generator=torch.Generator()))
    peak_memory_bytes(net.source, torch.zeros(2, 3, 8, 8))
    assert net.config == net.narrowest() and all(module.training for module in net.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_an_input_that_the_network_does_not_take_is_refused():
    with pytest.raises(autoslim.AutoSlimError, match="Plain does not run on the example .*pass an input that it takes"):
        peak_memory_bytes(tricky.Plain(), torch.zeros(1, 4, 8, 8))
    net = autoslim.Supernet(tricky.Plain(), torch.zeros(1, 3, 8, 8), divisor=4)
    with pytest.raises(autoslim.AutoSlimError, match="does not run on the example"):
        PeakMemory(net, torch.zeros(1, 3, 2, 2))


def test_a_group_with_one_choice_may_be_narrower_in_a_configuration():
    net = autoslim.Supernet(randomized(tricky.SqueezeExcite()), tricky.SqueezeExcite.inputs(2), divisor=16)
    alone = [name for name, choices in net.choices.items() if len(choices) == 1]
    memory = PeakMemory(net, tricky.SqueezeExcite.inputs(2))
    assert alone and not memory.runs
    for part in (2, 4, 8):
        widths = {name: max(1, full // part) if name in alone else full for name, full in net.full().widths.items()}
        plain = autoslim.materialize(net, net.make_config(widths.values()))
        assert memory.bytes(widths) == peak_memory_bytes(plain, tricky.SqueezeExcite.inputs(2))


def test_what_autocast_keeps_is_alive():
    class Cast(nn.Sequential):
        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x)

    network, x = Cast(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 8, 3)), torch.randn(2, 3, 12, 12)
    assert peak_memory_bytes(network, x) == allocated(network, x)
