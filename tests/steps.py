"""Steps of a search on small networks."""

import torch
from tricky import randomized

import autoslim
from autoslim.search.contest import Step


def narrower(net, base, name):
    widths = dict(base.widths)
    choices = net.choices[name]
    position = choices.index(widths[name])
    return net.make_config([choices[position - 1] if n == name else w for n, w in widths.items()]) if position else None


def step(net, base, candidates, score="loss", savings=None):
    ones = dict.fromkeys(candidates, 1.0)
    macs = {name: autoslim.CostTable(net).cost(config).macs for name, config in candidates.items()}
    return Step(base, autoslim.Score(0.0, 0.0, 0), candidates, savings or ones, macs, score)


def all_to_the_end(parts, now, names):
    contest = parts.contest(now, "exact")
    contest.enter(names)
    contest._go_on(lambda name: True)
    return contest


def trained_like(kind, steps=4):
    torch.manual_seed(0)
    inputs = kind.inputs(3) if hasattr(kind, "inputs") else torch.randn(2, 3, 8, 8)
    return autoslim.Supernet(randomized(kind()), inputs, divisor=1, steps=steps)


def batches(sizes, seed, pixels=8):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(n, 3, pixels, pixels, generator=generator), torch.randint(0, 3, (n,), generator=generator)) for n in sizes
    ]
