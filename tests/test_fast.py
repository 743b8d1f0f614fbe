"""Searches that do not evaluate every candidate on every image."""

import pytest
import torch
import tricky
from tricky import randomized

import autoslim
from autoslim.search.engine import PartialEvaluator, Race
from autoslim.search.lazy import Everyone, Lazy
from autoslim.search.trace import Candidate


def supernet(kind=tricky.Residual):
    torch.manual_seed(0)
    return autoslim.Supernet(randomized(kind()), torch.randn(1, 3, 8, 8), divisor=1, steps=8)


def data(count, seed, size=16):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 3, 8, 8, generator=generator), torch.randint(0, 5, (size,), generator=generator)) for _ in range(count)
    ]


class Asked:
    """Answers with given increases of the loss, and remembers what it was asked."""

    def __init__(self, increases):
        self.increases, self.asked = increases, []

    def __call__(self, names):
        self.asked.append(list(names))
        return {n: Candidate(1, n, 8, 100, 0.5, 1.0 + self.increases[n], 10, 0.5, 1.0) for n in names}


ONES = dict.fromkeys("abcd", 1.0)


def test_the_first_step_asks_for_all_and_later_ones_in_the_order_of_what_it_cost():
    lazy = Lazy("loss", at_once=1)
    asked = Asked({"a": 0.4, "b": 0.1, "c": 0.2, "d": 0.3})
    assert len(lazy.candidates(1, ONES, asked)) == 4 and asked.asked == [["a", "b", "c", "d"]]
    asked = Asked({"a": 0.4, "b": 0.25, "c": 0.22, "d": 0.3})  # b rose above c's old 0.2, c above nothing
    assert [c.group for c in lazy.candidates(2, ONES, asked)] == ["b", "c"]
    asked = Asked({"a": 0.4, "b": 0.25, "c": 0.22, "d": 0.3})
    assert [c.group for c in lazy.candidates(3, ONES, asked)] == ["c"]  # the new 0.22 is known, and is still the least


def test_what_is_saved_divides_what_it_costs():
    lazy = Lazy("loss", at_once=1)
    savings = {"a": 10.0, "b": 1.0}
    lazy.candidates(1, savings, Asked({"a": 0.4, "b": 0.1}))
    asked = Asked({"a": 0.4, "b": 0.1})
    assert [c.group for c in lazy.candidates(2, savings, asked)] == ["a"]


def test_all_are_asked_again_on_schedule_and_a_new_group_at_once():
    lazy = Lazy("loss", refresh=3, at_once=1)
    asked = Asked({"a": 0.4, "b": 0.1, "c": 0.2, "d": 0.3})
    some = dict.fromkeys("abc", 1.0)
    for step in range(1, 5):
        lazy.candidates(step, some if step < 3 else ONES, asked)
    assert asked.asked == [["a", "b", "c"], ["b"], ["d"], ["b"], ["a", "b", "c", "d"]]


def test_who_is_worse_than_chance_explains_leaves_the_race():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(400, generator=generator).double()
    costs = {"best": noise, "close": noise + 0.01 * torch.randn(400, generator=generator), "worse": noise + 0.5}
    both = {name: {"loss": value, "error": value} for name, value in costs.items()}
    ones = dict.fromkeys(costs, 1.0)
    assert Race("loss", ones).going_on(both) == ["best", "close"]
    assert Race("loss", ones, least=500).going_on(both) == list(costs)
    # What it saves makes up for what it costs.
    costs = {"dear": {"loss": torch.full((300,), 0.5).double()}, "cheap": {"loss": torch.full((300,), 0.1).double()}}
    assert Race("loss", {"dear": 1.0, "cheap": 1.0}).going_on(costs) == ["cheap"]
    assert Race("loss", {"dear": 10.0, "cheap": 1.0}).going_on(costs) == ["dear"]


class Additive:
    """An evaluator whose groups cost what they cost, whatever the others do."""

    def __init__(self, net):
        self.net, self.count = net, 0

    def score(self, config):
        self.count += 1
        loss = sum(weight * (1 - chosen / full) for weight, (chosen, full) in zip((0.3, 0.5, 0.7), config.channels.values()))
        return autoslim.Score(loss / 10, loss, 100)


@pytest.mark.parametrize("pick", ["drop", "drop-per-mac"])
def test_where_nothing_interacts_fast_finds_what_exact_finds_with_fewer_evaluations(pick):
    net = supernet(tricky.Concat)
    targets = {"macs": ["70%", "40%"]}
    exact, fast = Additive(net), Additive(net)
    options = {"targets": targets, "score": "loss", "pick": pick}
    expected = list(autoslim.greedy_search(net, evaluator=exact, effort="exact", **options))
    found = list(autoslim.greedy_search(net, evaluator=fast, effort="fast", **options))
    assert [p.config for p in found] == [p.config for p in expected]
    assert fast.count < 0.8 * exact.count


@pytest.mark.parametrize("kind", [tricky.Residual, tricky.Concat])
def test_a_fast_search_runs_less_and_scores_what_it_found_on_all_images(kind):
    net = supernet(kind)
    images, calibration = data(40, 1), data(4, 2)
    macs, points = {}, {}
    for effort in ("exact", "fast"):
        evaluator = PartialEvaluator(net, images, calibration)
        found = autoslim.greedy_search(net, targets={"macs": ["50%"]}, score="loss", effort=effort, evaluator=evaluator)
        (points[effort],) = found
        macs[effort] = evaluator.macs
    assert macs["fast"] < macs["exact"]
    point = points["fast"]
    assert point.cost.macs <= 0.5 * autoslim.CostTable(net).cost(net.full()).macs and point.score.images == 640
    again = autoslim.SupernetEvaluator(net, images, calibration).score(point.config)
    assert (point.score.error, point.score.loss) == pytest.approx((again.error, again.loss), rel=1e-5)


def test_a_fast_search_that_was_cut_off_ends_with_the_same_trace(tmp_path):
    net = supernet()
    images, calibration = data(30, 1), data(4, 2)

    def search(path):
        evaluator = PartialEvaluator(net, images, calibration)
        trace = autoslim.SearchTrace(path)
        options = {"targets": {"macs": ["60%"]}, "score": "loss", "effort": "fast"}
        return list(autoslim.greedy_search(net, evaluator=evaluator, trace=trace, **options))

    points = search(tmp_path / "whole.csv")
    whole = (tmp_path / "whole.csv").read_text()
    lines = whole.splitlines(keepends=True)
    for kept in range(1, len(lines), 3):
        (tmp_path / "cut.csv").write_text("".join(lines[:kept]) + lines[kept][:7])
        assert [p.config for p in search(tmp_path / "cut.csv")] == [p.config for p in points]
        assert (tmp_path / "cut.csv").read_text() == whole


def test_an_unknown_effort_is_refused():
    with pytest.raises(autoslim.AutoSlimError, match="effort 'some' is unknown; pass one of fast, exact"):
        autoslim.greedy_search(supernet(), data(1, 0), data(1, 0), targets={"macs": ["60%"]}, effort="some")


def test_everyone_is_everyone():
    asked = Asked(dict.fromkeys("abcd", 0.1))
    assert len(Everyone().candidates(5, ONES, asked)) == 4
