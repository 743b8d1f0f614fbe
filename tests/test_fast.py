"""Searches that do not evaluate every candidate on every image."""

import itertools
import math
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import tricky
from tricky import randomized

import autoslim
from autoslim.search import greedy
from autoslim.search.contest import RISE, ExactContest, Race, Step
from autoslim.search.engine import PartialEvaluator
from autoslim.search.greedy import PICK_RULES, _candidate, _check_recorded
from autoslim.search.lazy import Lazy
from autoslim.search.trace import Candidate


def supernet(kind=tricky.Residual):
    torch.manual_seed(0)
    return autoslim.Supernet(randomized(kind()), torch.randn(1, 3, 8, 8), divisor=1, steps=8)


def data(count, seed, size=16):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 3, 8, 8, generator=generator), torch.randint(0, 5, (size,), generator=generator)) for _ in range(count)
    ]


class Known:
    """A contest with known increases of the loss, that remembers who entered."""

    def __init__(self, step, increases):
        self.step, self.increases, self.entered, self.best = step, increases, [], None

    def enter(self, names):
        self.entered.append(list(names))
        self.best = names[0]

    @property
    def best_value(self):
        return min((self.step.value(n, self.increases[n]) for names in self.entered for n in names), default=float("inf"))


def run(strategy, number, increases, savings=None):
    """Let a strategy choose who enters, and learn from it; returns who did, in order."""
    savings = savings or dict.fromkeys(increases, 1.0)
    score = autoslim.Score(0.5, 1.0, 10)
    step = Step(None, score, dict.fromkeys(increases), savings, dict.fromkeys(increases, 1), "loss")
    contest = Known(step, increases)
    strategy.run(number, step, contest)
    entered = [name for names in contest.entered for name in names]
    strategy.learn(Candidate(number, n, 8, 100, 0.5, 1.0 + increases[n], 10, 0.5, 1.0) for n in entered)
    return contest.entered


def test_the_first_step_asks_for_all_and_later_ones_in_the_order_of_what_it_cost():
    lazy = Lazy("loss", at_once=1)
    assert run(lazy, 1, {"a": 0.4, "b": 0.1, "c": 0.2, "d": 0.3}) == [["a", "b", "c", "d"]]
    # b rose above c's old 0.2, c above nothing
    assert run(lazy, 2, {"a": 0.4, "b": 0.25, "c": 0.22, "d": 0.3}) == [["b"], ["c"]]
    # the new 0.22 is known, and is still the least
    assert run(lazy, 3, {"a": 0.4, "b": 0.25, "c": 0.22, "d": 0.3}) == [["c"]]


def test_what_is_saved_divides_what_it_costs():
    lazy = Lazy("loss", at_once=1)
    savings = {"a": 10.0, "b": 1.0}
    run(lazy, 1, {"a": 0.4, "b": 0.1}, savings)
    assert run(lazy, 2, {"a": 0.4, "b": 0.1}, savings) == [["a"]]


def test_a_group_is_asked_again_when_it_was_not_for_some_steps_and_a_new_one_at_once():
    lazy = Lazy("loss", stale=3, at_once=1)
    known = {"a": 0.4, "b": 0.1, "c": 0.2}
    assert run(lazy, 1, known) == [["a", "b", "c"]] and run(lazy, 2, known) == [["b"]]
    known["d"] = 0.3
    assert run(lazy, 3, known) == [["d"], ["b"]]
    assert run(lazy, 4, known) == [["a", "c"], ["b"]]  # not d, whose prediction is a step old
    assert run(lazy, 5, known) == [["b"]] and run(lazy, 6, known) == [["d"], ["b"]]


def test_losses_that_are_no_numbers_keep_no_other_candidate_out():
    increases = {"a": 0.2, "b": float("nan"), "c": 0.3, "d": float("nan"), "e": 0.1, "f": float("nan")}
    lazy = Lazy("loss", at_once=1)
    run(lazy, 1, increases)
    assert run(lazy, 2, increases) == [["e"]]


def test_more_candidates_enter_together_where_mistakes_decide():
    increases = {name: 0.1 * (i + 1) for i, name in enumerate("abcdefgh")}
    for score, first in (("loss", 2), ("error", 4)):
        lazy = Lazy(score)
        run(lazy, 1, increases)
        assert len(run(lazy, 2, increases)[0]) == first


def test_a_search_that_asks_everyone_every_step_lets_all_enter_together():
    everyone = Lazy("loss", stale=1)
    known = {"a": 0.4, "b": 0.1, "c": 0.2}
    assert run(everyone, 1, known) == [["a", "b", "c"]] and run(everyone, 2, known) == [["a", "b", "c"]]


# Contests in parts ---------------------------------------------------------------------


class Scripted:
    """Stands in for the evaluator of a contest: mistakes and losses `[2, N]` of all images are given, and seen when asked for."""

    class Entry:
        def __init__(self, rows, sizes):
            self.rows, self.parts, self.seen = rows, rows.split(sizes, dim=1), {}

        def values(self, batches):
            return torch.cat([self.seen[i] for i in range(batches)], dim=1)

        def score(self, batches):
            values = self.values(batches)
            error, loss = values.mean(dim=1).tolist()
            return autoslim.Score(error, loss, values.shape[1])

        def mean(self, total, images):
            return total / images

    def __init__(self, rows, sizes, ranks=1):
        self.entries = {name: self.Entry(row, sizes) for name, row in rows.items()}
        self.base = self.entries.pop("")
        self.images, self.sizes = sum(sizes), sizes
        self.ranks = SimpleNamespace(count=ranks)
        self.looked = dict.fromkeys(self.entries, 0)
        self.new = []  # batches that each look was the first to see, of those that candidates are in

    def calibrated(self, configs):
        return {name: self.entries[name] for name in configs}

    def look(self, judged, batches):
        self.new.append(len({i for name in judged for i in batches if i not in self.entries[name].seen}))
        for i in batches:
            for entry in (self.base, *judged.values()):
                entry.seen[i] = entry.parts[i]
        for name in judged:
            self.looked[name] = max(self.looked[name], max(batches) + 1)

    def advance(self, group, winner):
        self.advanced = group


def contest_of(kind, losses, score="loss", savings=None, ranks=1, **options):
    """Return a contest by losses, of which those above 1 are mistakes, and its evaluator."""
    rows = {name: torch.stack([(loss > 1).double(), loss]) for name, loss in losses.items()}
    size = 10
    evaluator = Scripted(rows, [size] * (len(losses[""]) // size), ranks)
    names = list(evaluator.entries)
    savings = savings or dict.fromkeys(names, 1.0)
    step = Step(None, None, dict.fromkeys(names), savings, dict.fromkeys(names, 1), score)
    return kind(evaluator, step, **options), evaluator


def drawn(kind, generator):
    """Return what candidates a, b, ... and the base cost by image, the sizes of batches, savings and multiply-adds."""
    draw = random.Random(int(torch.randint(1 << 30, (), generator=generator)))
    sizes = [draw.randint(1, 6) for _ in range(draw.randint(1, 12))]
    names = "abcdef"[: draw.randint(1, 6)]

    def costs():
        x = torch.rand(sum(sizes), generator=generator).double()
        if kind == "mistakes":
            return (x < 0.3).double()
        if kind == "parts of maps":
            return (x * 4).floor() / 3
        if kind == "no numbers" and draw.random() < 0.4:
            x[draw.randrange(len(x))] = draw.choice([float("nan"), float("inf")])
        return x**4

    rows = {name: costs() for name in ("", *names)}
    for name in names:  # the same in the end, in another order
        if draw.random() < 0.6:
            order = torch.randperm(sum(sizes), generator=generator)
            rows[name] = rows[names[0]][order] if draw.random() < 0.5 else rows[names[0]].sort(descending=True).values
    if draw.random() < 0.1:
        rows[""] = torch.zeros(sum(sizes)).double()
    savings = {name: draw.choice([1.0, 1.0, 0.001, 3.3, 50.0]) for name in names}
    return rows, sizes, savings if draw.random() < 0.5 else dict.fromkeys(names, 1.0), {n: draw.randint(1, 3) for n in names}


@pytest.mark.parametrize("kind", ["mistakes", "parts of maps", "losses", "no numbers"])
def test_the_best_is_that_of_all_images_whoever_enters_first_and_however_many_processes(kind):
    generator = torch.Generator().manual_seed(0)
    for case in range(250):
        rows, sizes, savings, macs = drawn(kind, generator)
        score = "loss" if kind == "losses" or case % 2 else "error"
        step = Step(None, None, dict.fromkeys(savings), savings, macs, score)
        names, results = list(savings), []
        for ranks in (1, 3):
            evaluator = Scripted({name: torch.stack([row, row]) for name, row in rows.items()}, sizes, ranks)
            contest = ExactContest(evaluator, step)
            for part in (names[: case % len(names)], names[case % len(names) :]):
                if part:
                    contest.enter(part)
            judged = contest.close()
            results.append((contest.best, repr(judged)))
            assert judged[contest.best].score.images == sum(sizes) and all(each.score.images for each in judged.values())
        assert results[0] == results[1]
        whole = Scripted({name: torch.stack([row, row]) for name, row in rows.items()}, sizes)
        whole.look(whole.entries, range(len(sizes)))
        costs = {name: getattr(entry.score(len(sizes)), score) for name, entry in {"": whole.base, **whole.entries}.items()}
        below = costs[""] if math.isfinite(costs[""]) else 0.0  # such a base compares with nothing
        assert contest.best == step.best({name: step.value(name, costs[name] - below) for name in names})


@pytest.mark.parametrize("score", ["error", "loss"])
@pytest.mark.parametrize("seed", range(8))
def test_bounds_find_the_best_of_all_images_without_running_all(seed, score):
    generator = torch.Generator().manual_seed(seed)
    # Few images cost nearly all, and come first; some candidates tie.
    base = torch.rand(400, generator=generator).double().sort(descending=True).values ** 4 * 5
    losses = {"": base}
    for index, name in enumerate("abcdefgh"):
        losses[name] = (base + 0.1 * torch.rand(400, generator=generator).double() * base + 0.01 * (index // 2)).clamp(min=0)
    savings = {name: 1.0 + i % 3 for i, name in enumerate("abcdefgh")}
    row = ("error", "loss").index(score)
    contest, evaluator = contest_of(ExactContest, losses, score, savings)
    worth = {}
    for name, entry in evaluator.entries.items():
        worth[name] = ((entry.rows[row].mean() - evaluator.base.rows[row].mean()) / savings[name]).item()
    for first in ("a", "h"):
        contest, evaluator = contest_of(ExactContest, losses, score, savings)
        contest.enter([first])
        contest.enter([name for name in "abcdefgh" if name != first])
        judged = contest.close()
        assert worth[contest.best] == pytest.approx(min(worth.values())) and evaluator.advanced == contest.best
        assert judged[contest.best].score.images == 400 and all(each.certainty == 1 for each in judged.values())
        assert min(evaluator.looked.values()) < 40 and evaluator.looked[first] == 40


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("score", ["error", "loss"])
def test_nobody_sees_more_images_than_it_takes_to_be_beaten(score, ranks):
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(400, generator=generator).double().sort(descending=True).values ** 4 * 5
    noise = {name: 1 + 0.02 * i + 0.2 * torch.rand(400, generator=generator).double() for i, name in enumerate("hgfedcba")}
    losses = {"": base, **{name: base * more for name, more in noise.items()}}
    savings = {name: 1.0 + i % 3 for i, name in enumerate("abcdefgh")}
    contest, evaluator = contest_of(ExactContest, losses, score, savings, ranks)
    contest.enter(list(evaluator.entries))
    row = ("error", "loss").index(score)
    mean = evaluator.base.rows[row].mean()
    best = (evaluator.entries[contest.best].rows[row].mean() - mean) / savings[contest.best]
    judged = contest.close()
    for name, entry in evaluator.entries.items():
        least = entry.rows[row].reshape(40, 10).sum(1).cumsum(0) / 400 - mean
        going = (least - RISE) / savings[name] <= best
        if name != contest.best:
            assert judged[name].score.images <= 10 * min(40, 1 + int(going.sum())) and not going.all()
            assert least[judged[name].score.images // 10 - 1] / savings[name] >= best
            assert evaluator.looked[name] <= judged[name].score.images // 10 + ranks - 1


def test_a_tie_that_loses_is_not_run_to_the_end():
    base = torch.cat([torch.full((100,), 2.0), torch.zeros(300)]).double()
    contest, evaluator = contest_of(ExactContest, {"": base, "a": base, "b": base}, "error")
    contest.enter(["a"])
    contest.enter(["b"])
    assert contest.best == "a" and evaluator.looked == {"a": 40, "b": 10}


def test_who_is_worse_than_chance_explains_leaves_the_race():
    generator = torch.Generator().manual_seed(0)
    base = torch.ones(400).double()
    noise = base + 0.1 * torch.randn(400, generator=generator).double()
    losses = {"": base, "best": noise, "close": noise + 0.01 * torch.randn(400, generator=generator).double()}
    losses["worse"] = noise + 0.5 + 0.1 * torch.randn(400, generator=generator).double()
    contest, evaluator = contest_of(Race, losses, z=3.0, least=100, most=400, every=10)
    contest.enter(list(evaluator.entries))
    judged = contest.close()
    assert contest.best in ("best", "close") and evaluator.looked["worse"] == 10 < evaluator.looked["close"]
    assert judged["worse"].score.images == 100 and judged["worse"].certainty == 1
    other = "close" if contest.best == "best" else "best"
    assert 0.5 <= judged[other].certainty < 0.9999 and judged[contest.best].certainty == judged[other].certainty
    # Later ones are held against the best so far, on the images that both saw.
    contest, evaluator = contest_of(Race, losses, z=3.0, least=100, most=400, every=10)
    contest.enter(["best"])
    assert evaluator.looked["best"] == 10 and contest.close()["best"].certainty is None
    contest.enter(["worse"])
    assert contest.best == "best" and evaluator.looked == {"best": 10, "close": 0, "worse": 10}


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_race_is_decided_every_so_many_images(ranks):
    base = torch.ones(400).double()
    # Up and down by chance for 200 images, then always worse: sure at z 2 from 240 images on.
    worse = torch.where(torch.arange(400) < 200, torch.arange(400).remainder(2) * 2.0 - 1, 1.0)
    for every, batches in ((1, 24), (10, 24), (80, 26), (150, 25), (300, 40), (500, 40)):
        contest, evaluator = contest_of(Race, {"": base, "a": base, "b": base + worse}, ranks=ranks, z=2.0, least=100, most=400,
                                        every=every)  # fmt: skip
        contest.enter(["a", "b"])
        assert contest.best == "a" and contest.close()["b"].score.images == 10 * batches
        assert ranks > 1 or evaluator.looked["b"] == batches
        assert min(evaluator.new[:-1], default=ranks) >= ranks  # none waits for the others


def test_what_it_saves_makes_up_for_what_it_costs():
    base = torch.zeros(300).double()
    losses = {"": base, "dear": base + 0.5, "cheap": base + 0.1}
    for savings, best in (({"dear": 1.0, "cheap": 1.0}, "cheap"), ({"dear": 10.0, "cheap": 1.0}, "dear")):
        contest, _ = contest_of(Race, losses, savings=savings, z=3.0, least=100, most=300, every=10)
        contest.enter(["dear", "cheap"])
        assert contest.best == best


def test_who_leaves_a_race_is_who_is_worse_for_what_it_saves():
    places = torch.arange(400)
    by_chance = 0.2 * (places.remainder(2).double() * 2 - 1)
    # Dear at any time, but for what it saves hardly worse at the first decision, and better in the end.
    dear = 10 * (torch.where(places < 100, 0.11, 0.05).double() + by_chance)
    losses = {"": torch.zeros(400).double(), "dear": dear, "cheap": torch.full((400,), 0.1).double()}
    contest, evaluator = contest_of(Race, losses, savings={"dear": 10.0, "cheap": 1.0}, z=2.0, least=100, most=400, every=10)
    contest.enter(["dear", "cheap"])
    assert contest.best == "dear" and evaluator.looked["dear"] > 10


def test_a_race_in_which_an_earlier_best_is_better_in_the_end_goes_on_from_its_record():
    first, alternating = torch.arange(1000) < 500, torch.tensor([0.3, -0.3]).double().repeat(500)
    base = torch.ones(1000).double()
    losses = {"": base, "a": base + torch.where(first, 0.02, -0.02), "b": base + 0.001 + alternating}
    losses |= {"c": base + 0.01, "d": base + 0.011 + alternating}  # they enter when "a" leads
    contest, _ = contest_of(Race, losses, z=2.0, least=500, most=1000, every=250)
    contest.enter(["a", "b"])
    contest.enter(["c", "d"])
    judged = contest.close()
    assert contest.best == "c" and {judged[name].score.images for name in "abcd"} == {1000}
    configs = {name: SimpleNamespace(widths={name: 4}) for name in losses if name}
    step = Step(None, None, configs, dict.fromkeys(configs, 1.0), dict.fromkeys(configs, 1), "loss")
    candidates = [_candidate(2, name, 4, 1, judged[name]) for name in "abdc"]
    assert min(candidates, key=lambda each: each.increase("loss")).group != "c"
    _check_recorded(candidates, step, "fast")
    with pytest.raises(autoslim.AutoSlimError, match="another search"):
        _check_recorded(candidates, replace(step, savings={**step.savings, "d": 10.0}), "fast")


def test_nothing_is_predicted_from_a_step_whose_base_had_no_finite_score():
    lazy = Lazy("loss", at_once=1)
    run(lazy, 1, {"a": 0.4, "b": 0.1, "c": 0.2})
    lazy.learn([Candidate(1, "c", 8, 100, 0.5, 3.0, 10, 0.5, float("inf"))])
    assert run(lazy, 2, {"a": 0.4, "b": 0.2, "c": 0.1}) == [["c"]]


def test_the_best_is_judged_on_all_images_that_decided_for_it():
    base = torch.ones(400).double()
    close = base + 0.2 * torch.randn(400, generator=torch.Generator().manual_seed(0)).double().sub_(0.01)
    losses = {"": base, "best": base - 0.01, "close": close, "worse": base + 1.0}
    contest, _ = contest_of(Race, losses, z=9.0, least=100, most=400, every=100)
    contest.enter(["best", "close"])
    contest.enter(["worse"])
    judged = contest.close()
    assert contest.best == "best"
    assert {name: each.score.images for name, each in judged.items()} == {"best": 400, "close": 400, "worse": 100}


@pytest.mark.parametrize("kind", [ExactContest, Race])
@pytest.mark.parametrize("seed", range(4))
def test_batches_that_are_run_together_decide_as_one_after_another(kind, seed):
    generator = torch.Generator().manual_seed(seed)
    base = torch.rand(400, generator=generator).double().sort(descending=True).values * 2
    losses = {"": base} | {n: base + 0.02 * i + 0.1 * torch.rand(400, generator=generator) for i, n in enumerate("abcdef")}
    options = {} if kind is ExactContest else {"z": 2.0, "least": 50, "most": 300, "every": 30}
    results = []
    for ranks in (1, 3, 7):
        contest, _ = contest_of(kind, losses, ranks=ranks, **options)
        contest.enter(["c"])
        contest.enter(["a", "b", "d", "e", "f"])
        results.append((contest.close(), contest.best))
    assert results[0] == results[1] == results[2]


class Additive:
    """An evaluator whose groups cost what they cost, whatever the others do."""

    def __init__(self, net):
        self.net, self.count = net, 0

    def score(self, config):
        self.count += 1
        loss = sum(weight * (1 - chosen / full) for weight, (chosen, full) in zip((0.3, 0.5, 0.7), config.channels.values()))
        return autoslim.Score(loss / 10, loss, 100)


@pytest.mark.parametrize("pick", PICK_RULES)
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


def test_a_search_that_was_cut_off_knows_when_a_group_was_asked_last(tmp_path, monkeypatch):
    net = supernet(tricky.Concat)
    targets = {"macs": ["40%"]}

    def asked(path):
        """Search on; returns which groups each step asked."""
        trace = autoslim.SearchTrace(path)
        list(autoslim.greedy_search(net, evaluator=Additive(net), trace=trace, targets=targets, score="loss", effort="fast"))
        steps = itertools.groupby((candidate for candidate, _ in trace.rows[1:]), lambda candidate: candidate.step)
        return [{candidate.group for candidate in candidates} for _, candidates in steps]

    monkeypatch.setattr(greedy, "STALE", 100)
    once = asked(tmp_path / "once.csv")
    monkeypatch.setattr(greedy, "STALE", 3)
    often = asked(tmp_path / "often.csv")
    groups = once[0]
    assert any(len(step) < len(groups) for step in often[1:])
    for name in groups:
        # None goes without being asked for three steps, as some do that are not asked again.
        steps = [number for number, step in enumerate(often) if name in step]
        assert all(later - earlier <= 3 for earlier, later in itertools.pairwise(steps))
    assert any(not any(name in step for step in once[1:4]) for name in groups)
    whole = (tmp_path / "often.csv").read_text()
    lines = whole.splitlines(keepends=True)
    for kept in range(1, len(lines)):
        (tmp_path / "cut.csv").write_text("".join(lines[:kept]))
        asked(tmp_path / "cut.csv")
        assert (tmp_path / "cut.csv").read_text() == whole


def test_an_unknown_effort_is_refused():
    with pytest.raises(autoslim.AutoSlimError, match="effort 'some' is unknown; pass one of fast, exact"):
        autoslim.greedy_search(supernet(), data(1, 0), data(1, 0), targets={"macs": ["60%"]}, effort="some")


def test_a_fast_search_survives_losses_that_are_no_numbers():
    class Lost:
        def score(self, config):
            return autoslim.Score(1.0, float("nan"), 10)

    (point,) = autoslim.greedy_search(supernet(), targets={"macs": ["60%"]}, score="loss", effort="fast", evaluator=Lost())
    assert point.cost.macs > 0
