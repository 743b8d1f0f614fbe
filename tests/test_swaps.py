import itertools

import pytest
import torch
import tricky
from torch import nn
from tricky import randomized

import autoslim
from autoslim.cost.budgets import Budgets
from autoslim.search.orders import OrderTrace
from autoslim.search.swaps import swap


class Separable:
    """An evaluator whose groups cost what they cost, whatever the others do."""

    def __init__(self, net, seed):
        generator = torch.Generator().manual_seed(seed)
        self.net, self.asked = net, []
        self.costs = {
            name: dict(zip(choices, torch.rand(len(choices), generator=generator).double().cumsum(0).flip(0).tolist()))
            for name, choices in net.choices.items()
        }

    def score(self, config):
        self.asked.append(config.widths)
        loss = sum(self.costs[name][width] for name, width in config.widths.items())
        return autoslim.Score(0.5, loss, 10)


def found(seed, targets=None):
    torch.manual_seed(0)
    net = autoslim.Supernet(randomized(tricky.Concat()), torch.randn(1, 3, 8, 8), divisor=1, steps=8)
    evaluator = Separable(net, seed)
    targets = targets or {"macs": ["50%"]}
    (point,) = autoslim.greedy_search(net, targets=targets, score="loss", effort="exact", evaluator=evaluator)
    evaluator.asked.clear()
    return net, evaluator, Budgets(net, targets), point


@pytest.mark.parametrize("targets", [{"macs": ["50%"]}, {"params": ["60%"], "memory": ["90%"]}])
@pytest.mark.parametrize("seed", range(6))
def test_no_swap_helps_any_more(seed, targets):
    net, evaluator, budgets, point = found(seed, targets)
    better = swap(net, point, budgets=budgets, evaluator=evaluator, score="loss", rounds=100)
    assert better.score.loss <= point.score.loss and better.target.met(budgets.costs(better.config))
    assert better.score == evaluator.score(better.config) and better.config.cost == better.cost.to_json()
    widths = better.config.widths
    for up, down in itertools.product(widths, [None, *widths]):
        moved = dict(widths)
        for name, by in ((up, 1), (down, -1)):
            if name is not None and name != (up if by < 0 else None):
                place = net.choices[name].index(moved[name]) + by
                moved[name] = net.choices[name][min(max(place, 0), len(net.choices[name]) - 1)]
        if better.target.met(budgets.costs(moved)):
            assert evaluator.score(net.make_config(moved.values())).loss >= better.score.loss - 1e-12


def test_some_swaps_help():
    gains = []
    for seed in range(6):
        net, evaluator, budgets, point = found(seed)
        gains.append(point.score.loss - swap(net, point, budgets=budgets, evaluator=evaluator, score="loss").score.loss)
    assert max(gains) > 0.1


def test_what_was_evaluated_is_not_evaluated_again(tmp_path):
    net, evaluator, budgets, point = found(1)
    options = {"budgets": budgets, "evaluator": evaluator, "score": "loss"}
    whole = swap(net, point, trace=OrderTrace(tmp_path / "swaps.csv"), **options)
    text = (tmp_path / "swaps.csv").read_text()
    count = len(evaluator.asked)
    assert len({tuple(w.values()) for w in evaluator.asked}) == count > 0
    lines = text.splitlines(keepends=True)
    (tmp_path / "swaps.csv").write_text("".join(lines[: len(lines) // 2]) + lines[-1][:5])
    assert swap(net, point, trace=OrderTrace(tmp_path / "swaps.csv"), **options) == whole
    assert (tmp_path / "swaps.csv").read_text() == text and len(evaluator.asked) < 2 * count


def test_as_many_swaps_are_told_as_were_made_and_the_last_is_marked():
    net, evaluator, budgets, point = found(1)
    options = {"budgets": budgets, "evaluator": evaluator, "score": "loss"}
    last, count = point, 0
    while True:
        trace = OrderTrace()
        better = swap(net, point, rounds=count + 1, trace=trace, **options)
        picked = [row.widths for row in trace.rows if row.picked]
        assert picked == [tuple(better.config.widths.values())]
        if better.config.widths == last.config.widths:
            break
        count += 1
        assert better.config.estimate == {"kind": "supernet estimate", **better.score.to_json(), "swaps": count}
        last = better
    assert count > 1


def test_a_swap_to_a_configuration_without_a_score_is_never_made():
    net, evaluator, budgets, point = found(1)
    options = {"budgets": budgets, "score": "loss", "rounds": 1}
    first = swap(net, point, evaluator=evaluator, **options).config.widths
    assert first != point.config.widths

    class Lacking(Separable):
        def score(self, config):
            found = super().score(config)
            return autoslim.Score(0.5, float("nan"), 10) if config.widths == first else found

    other = swap(net, point, evaluator=Lacking(net, 1), **options)
    assert other.config.widths != first and other.score.loss <= point.score.loss


def test_no_rounds_change_nothing():
    net, evaluator, budgets, point = found(0)
    assert swap(net, point, budgets=budgets, evaluator=evaluator, score="loss", rounds=0) is point and not evaluator.asked


def test_uniform_networks_lie_between_choices_and_can_be_improved():
    torch.manual_seed(0)
    net = autoslim.Supernet(
        nn.Sequential(nn.Conv2d(3, 144, 1), nn.ReLU(), nn.Conv2d(144, 96, 1)), torch.randn(1, 3, 4, 4), steps=4
    )
    evaluator = Separable(net, 0)
    evaluator.costs = {name: {width: 1 / width for width in range(1, 145)} for name in net.choices}
    (point,) = autoslim.uniform_search(net, targets={"macs": "70%"}, score="loss", evaluator=evaluator)
    widths = point.config.widths
    assert any(width not in net.choices[name] for name, width in widths.items())
    better = swap(net, point, budgets=Budgets(net, ["macs"]), evaluator=evaluator, score="loss")
    assert better.score.loss <= point.score.loss and better.cost.macs <= 0.7 * Budgets(net, ["macs"]).full["macs"]
    assert max(asked[name] for asked in evaluator.asked for name in asked if asked != widths) > max(widths.values())
