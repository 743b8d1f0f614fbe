import itertools
import math
import random
import statistics
import warnings

import pandas as pd
import pytest
import torch
import tricky
from fvcore.nn import FlopCountAnalysis
from scores import Table
from tricky import randomized

import autoslim
from autoslim.search.orders import (
    OrderTrace,
    evolution_search,
    random_configs,
    random_search,
    uniform_config,
    uniform_search,
)

ORDERS = {
    "uniform": uniform_search,
    "random": lambda *args, **options: random_search(*args, **{"evaluations": 12, "tolerance": 0.05, **options}),
    "evolution": lambda *args, **options: evolution_search(
        *args, **{"evaluations": 20, "population": 6, "tolerance": 0.05, **options}
    ),
}
all_orders = pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)


class Deep(tricky.Tricky):
    """Six groups of many choices, so that the window of a target holds many configurations."""

    def __init__(self):
        super().__init__()
        sizes = [3, 16, 24, 32, 24, 16, 40]
        self.convs = torch.nn.Sequential(*(torch.nn.Conv2d(a, b, 1) for a, b in itertools.pairwise(sizes)))
        self.head = torch.nn.Linear(40, 5)

    def forward(self, x):
        return self.pooled(self.convs(x))


def no_evaluation(config):
    raise AssertionError("an evaluation was made")


def data(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(n, 3, 8, 8, generator=generator), torch.randint(0, 5, (n,), generator=generator))
        for n in (count, count // 2)
    ]


def counted(network):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns about what it cannot see
        analysis = FlopCountAnalysis(network.eval(), torch.randn(1, 3, 8, 8))
        rows = analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_operator()
    return rows["conv"] + rows["linear"] + rows["addmm"]


def supernet(kind=tricky.Residual, **grid):
    torch.manual_seed(0)
    return autoslim.Supernet(randomized(kind()), torch.randn(1, 3, 8, 8), **{"divisor": 4, **grid})


def deep(divisor=1):
    return supernet(Deep, divisor=divisor, steps=16)


def by_hand(widths):
    """Multiply-adds of `Deep` on 8x8 images: 1x1 convolutions at 64 positions, and the head."""
    sizes = [3, *widths]
    return 64 * sum(a * b for a, b in itertools.pairwise(sizes)) + sizes[-1] * 5


def everything(net):
    return [dict(zip(net.choices, widths)) for widths in itertools.product(*net.choices.values())]


def lumpy(widths):
    """A score without order, from the widths alone."""
    return random.Random(str(list(widths.values()))).random()


def full_macs(net):
    return autoslim.CostTable(net).cost(net.full()).macs


@pytest.mark.parametrize("part", [0.9, 0.5, 0.2])
def test_random_configurations_lie_just_below_the_target(part):
    net = deep()
    target = part * by_hand([16, 24, 32, 24, 16, 40])
    configs = random_configs(net, target, 100)
    assert len({tuple(c.widths.values()) for c in configs}) == 100
    for config in configs:
        assert 0.99 * target <= by_hand(config.widths.values()) <= target
        assert all(width in net.choices[name] for name, width in config.widths.items())


@pytest.mark.parametrize("kind", [tricky.Residual, tricky.Grouped, tricky.Concat, tricky.Depthwise])
def test_costs_are_those_of_fvcore(kind):
    net = supernet(kind, divisor=1, steps=16)
    target = 0.5 * counted(autoslim.materialize(net, net.full()))
    trace = OrderTrace()
    (point,) = random_search(net, targets={"macs": [target]}, evaluations=5, tolerance=0.1, evaluator=Table(lumpy), trace=trace)
    assert len(trace.rows) == 5
    for row in trace.rows:
        macs = counted(autoslim.materialize(net, net.make_config(row.widths)))
        assert row.macs == macs and 0.9 * target <= macs <= target
    assert point.cost.macs == point.config.cost["macs"] <= target


@pytest.mark.parametrize(("part", "within", "across"), [(0.7, 0.1, 0.4), (0.4, 0.2, 0.7), (0.2, 0.2, 0.7)])
def test_random_configurations_are_spread_and_not_nearly_uniform(part, within, across):
    net = deep()
    configs = random_configs(net, part * full_macs(net), 200)
    ratios = [[chosen / full for chosen, full in config.channels.values()] for config in configs]
    assert statistics.median(map(statistics.pstdev, ratios)) > within
    for group, name in enumerate(net.choices):
        of_group = [row[group] for row in ratios]
        assert max(of_group) - min(of_group) > across, name
        assert len(set(of_group)) > len(net.choices[name]) / 3, name


def test_a_small_window_is_found_whole():
    net = deep(divisor=8)
    target = 0.3 * full_macs(net)
    inside = {tuple(w.values()) for w in everything(net) if 0.97 * target <= by_hand(w.values()) <= target}
    found = {tuple(c.widths.values()) for c in random_configs(net, target, 100, tolerance=0.03)}
    assert 3 < len(inside) < 100 and found == inside


def test_a_window_with_fewer_than_wanted_says_how_many(caplog):
    net = supernet(min_ratio=0.4)
    least = autoslim.CostTable(net).cost(net.narrowest()).macs
    evaluator = Table(lumpy)
    with caplog.at_level("INFO", logger="autoslim"):
        (point,) = random_search(net, targets={"macs": [least]}, evaluator=evaluator)
    assert "only 1 of 100 new configurations were found" in caplog.text
    assert len(evaluator.asked) == 1 and point.config.widths == net.narrowest().widths


@pytest.mark.parametrize("order", [random_search, evolution_search])
def test_an_empty_window_is_refused_before_any_evaluation(order):
    net = supernet(min_ratio=0.4)
    costs = sorted({autoslim.CostTable(net).cost(w).macs for w in everything(net)})
    # The widest gap between costs; the full network itself can be met.
    target = max(zip(costs, costs[1:]), key=lambda pair: pair[1] / pair[0])[1] - 1
    assert not any(0.99 * target <= cost <= target for cost in costs)
    with pytest.raises(autoslim.AutoSlimError, match="no configuration was found within 1 % below flops target"):
        order(net, targets={"macs": ["100%", target]}, evaluator=Table(no_evaluation))


def test_groups_that_inference_does_not_use_keep_their_full_width():
    net = supernet(tricky.AuxHead, divisor=1, steps=16)
    table, full = autoslim.CostTable(net), net.full().widths
    unused = [n for n in full if table.cost({**full, n: net.choices[n][0]}).macs == full_macs(net)]
    configs = random_configs(net, 0.5 * full_macs(net), 10, tolerance=0.05)
    assert unused and all(config.widths[name] == full[name] for name in unused for config in configs)


@pytest.mark.parametrize("part", [1.0, 0.63, 0.2])
def test_uniform_is_the_largest_uniform_configuration(part):
    net = deep(divisor=2)
    target = part * full_macs(net)
    costs = {by_hand(net.uniform(ratio / 5000).widths.values()) for ratio in range(500, 5001)}
    config = uniform_config(net, target)
    assert by_hand(config.widths.values()) == max(cost for cost in costs if cost <= target)
    (point,) = uniform_search(net, targets={"macs": [target]}, evaluator=Table(lumpy))
    assert point.config.widths == config.widths and point.score.error == lumpy(config.widths)


def test_uniform_keeps_above_what_was_trained():
    net = supernet(Deep, divisor=1, min_ratio=0.5)
    with pytest.raises(autoslim.AutoSlimError, match="below the narrowest uniform"):
        uniform_config(net, full_macs(net) / 8)


@all_orders
@pytest.mark.parametrize("score", ["error", "loss"])
def test_the_best_of_what_was_judged_is_picked(order, score, tmp_path):
    class Odd(Table):
        def score(self, config):
            found = super().score(config)
            return autoslim.Score(found.error, round(math.sin(50 * found.error), 1), 10)  # ties, and another order

    net, path = deep(divisor=2), tmp_path / "run" / "random.csv"
    evaluator = Odd(lumpy)
    options = {"targets": {"macs": ["70%", "30%"]}, "score": score, "evaluator": evaluator, "trace": OrderTrace(path)}
    points = list(order(net, **options))
    rows = pd.read_csv(path)
    assert list(rows) == ["target", "macs", "error", "loss", "images", "picked", "widths"]
    assert [tuple(dict(widths).values()) for widths in evaluator.asked] == [
        tuple(map(int, cell.split())) for cell in rows["widths"]
    ]
    assert not rows.duplicated(["target", "widths"]).any() and len(set(evaluator.asked)) == len(rows)
    assert [p.target.amounts["macs"] for p in points] == sorted(set(rows["target"]), reverse=True)
    for point in points:
        tried = rows[rows["target"] == point.target.amounts["macs"]]
        best = tried.sort_values([score, "macs"], kind="stable").iloc[0]
        assert list(tried["picked"]) == [int(i == best.name) for i in tried.index]
        assert " ".join(map(str, point.config.widths.values())) == best["widths"]
        assert (point.score.error, point.score.loss, point.cost.macs) == (best["error"], best["loss"], best["macs"])
        assert point.config.estimate == {"kind": "supernet estimate", **point.score.to_json()}
        assert point.step == sum(c > w for name, w in point.config.widths.items() for c in net.choices[name])


@all_orders
def test_scores_are_those_of_the_supernet(order):
    net, images, calibration = supernet(divisor=1, steps=16), data(12, 1), data(10, 2)
    (point,) = order(net, images, calibration, targets={"macs": ["50%"]}, score="loss")
    plain = autoslim.calibrate(autoslim.materialize(net, point.config), calibration)
    expected = autoslim.evaluate(plain, images)
    assert point.score.error == expected.error and point.score.loss == pytest.approx(expected.loss, rel=1e-4)


@all_orders
def test_the_same_seed_gives_the_same_result(order):
    def asked(**options):
        evaluator = Table(lumpy)
        points = list(order(deep(), targets={"macs": ["60%", "30%"]}, evaluator=evaluator, **options))
        return evaluator.asked, points

    assert asked() == asked()
    if order is not uniform_search:
        assert asked(seed=1) == asked(seed=1) != asked(seed=2)


@pytest.mark.parametrize("order", ["random", "evolution"])
def test_a_target_does_not_depend_on_the_others(order):
    net = deep()
    together = list(ORDERS[order](net, targets={"macs": ["60%", "30%"]}, evaluator=Table(lumpy)))
    alone = [p for t in ("60%", "30%") for p in ORDERS[order](net, targets={"macs": [t]}, evaluator=Table(lumpy))]
    assert together == alone


def test_what_was_scored_for_one_target_is_not_scored_again_for_another():
    evaluator, trace = Table(lumpy), OrderTrace()
    options = {"evaluations": 40, "tolerance": 0.3, "evaluator": evaluator, "trace": trace}
    list(random_search(supernet(divisor=1, steps=4), targets={"macs": ["60%", "59%"]}, **options))
    assert len(evaluator.asked) == len({row.widths for row in trace.rows}) < len(trace.rows)


def test_a_configuration_without_a_score_is_never_picked():
    net = deep()
    trace = OrderTrace()
    first = tuple(random_configs(net, 0.5 * full_macs(net), 1)[0].widths.values())
    evaluator = Table(lambda widths: float("nan") if tuple(widths.values()) == first else 0.5)
    (point,) = random_search(net, targets={"macs": ["50%"]}, evaluations=5, evaluator=evaluator, trace=trace)
    assert trace.rows[0].widths == first and point.score.error == 0.5


# Evolution ----------------------------------------------------------------------------------------


def separable(seed):
    """Every choice of every group has a score of its own, which drops with the width and not by the same amounts."""
    generator = random.Random(seed)
    steepness = [generator.uniform(0.2, 3) for _ in range(6)]

    def error(widths):
        return sum(s / width + 0.02 * math.sin(s * width) for s, width in zip(steepness, widths.values()))

    return error


def test_evolution_finds_the_optimum_and_is_no_worse_than_random():
    net = deep(divisor=4)
    target = 0.4 * full_macs(net)
    inside = [w for w in everything(net) if 0.95 * target <= by_hand(w.values()) <= target]
    assert len(inside) > 2000
    evolved_hits = drawn_hits = 0
    for seed in range(6):
        error = separable(seed)
        best = min(map(error, inside))
        options = {"targets": {"macs": [target]}, "evaluator": Table(error), "seed": seed, "tolerance": 0.05}
        (evolved,) = evolution_search(net, evaluations=200, **options)
        (drawn,) = random_search(net, evaluations=200, **options)
        assert best <= evolved.score.error <= drawn.score.error
        evolved_hits += evolved.score.error == best
        drawn_hits += drawn.score.error == best
    assert evolved_hits >= 5 and drawn_hits <= 3


@pytest.mark.parametrize("evaluations", [1, 5, 32, 33, 100])
def test_evolution_evaluates_as_many_as_asked(evaluations):
    evaluator, trace = Table(lumpy), OrderTrace()
    net = deep()
    list(evolution_search(net, targets={"macs": ["50%"]}, evaluations=evaluations, evaluator=evaluator, trace=trace))
    assert len(evaluator.asked) == len(set(evaluator.asked)) == evaluations
    assert all(0.99 * row.target <= by_hand(row.widths) <= row.target for row in trace.rows)
    first = random_configs(net, 0.5 * full_macs(net), min(32, evaluations))
    assert [row.widths for row in trace.rows[:32]] == [tuple(config.widths.values()) for config in first]


def test_evolution_ends_where_there_is_nothing_new():
    net = deep(divisor=8)
    target = 0.3 * full_macs(net)
    inside = [w for w in everything(net) if 0.97 * target <= by_hand(w.values()) <= target]
    evaluator = Table(lumpy)
    options = {"targets": {"macs": [target]}, "evaluator": evaluator, "tolerance": 0.03, "population": 4}
    (point,) = evolution_search(net, evaluations=1000, **options)
    assert len(evaluator.asked) <= len(inside)
    assert point.score.error == min(error for error in map(lumpy, map(dict, evaluator.asked)))


# Refusals and the record ----------------------------------------------------------------------------


@all_orders
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"targets": {"macs": [1.0]}}, "below the narrowest"),
        ({"targets": {"macs": ["101%"]}}, "above the full"),
        ({"targets": {"macs": []}}, "no target"),
        ({"targets": {}}, "nothing"),
        ({"targets": {"macs": ["50%"]}, "score": "luck"}, "'luck'"),
        ({"targets": {"macs": ["50%"]}, "evaluator": None}, "images"),
    ],
)
def test_impossible_searches_are_refused_by_the_call_itself(order, arguments, words):
    with pytest.raises(autoslim.AutoSlimError, match=words):
        order(supernet(), **{"evaluator": Table(no_evaluation), **arguments})


@all_orders
def test_targets_close_to_each_other_have_names_of_their_own(order):
    points = list(order(deep(), targets={"macs": ["60%", "60.001%"]}, evaluator=Table(lumpy)))
    assert len({point.target.label for point in points}) == 2


@pytest.mark.parametrize(
    ("order", "options", "words"),
    [
        (random_search, {"evaluations": 0}, "0 configurations"),
        (random_search, {"tolerance": 1.0}, "tolerance is 1.0"),
        (evolution_search, {"evaluations": 0}, "0 configurations"),
        (evolution_search, {"population": 1}, "population is 1"),
    ],
)
def test_senseless_numbers_are_refused(order, options, words):
    with pytest.raises(autoslim.AutoSlimError, match=words):
        order(deep(), targets={"macs": ["50%"]}, evaluator=Table(no_evaluation), **options)


@all_orders
def test_a_search_cut_off_anywhere_resumes_to_the_identical_file(order, tmp_path):
    net, path = deep(), tmp_path / "record.csv"

    def search():
        evaluator = Table(lambda widths: lumpy(widths) / 3)
        options = {"targets": {"macs": ["70%", "30%"]}, "evaluator": evaluator, "trace": OrderTrace(path)}
        return list(order(net, **options)), len(evaluator.asked)

    points, evaluations = search()
    whole = path.read_text()
    assert len(whole.splitlines()) == evaluations + 1
    assert search() == (points, 0) and path.read_text() == whole
    generator = random.Random(0)
    for end in [0, 1, len(whole) - 1, *(generator.randrange(len(whole)) for _ in range(12))]:
        # As a killed search leaves it: what is best is marked when a target is finished.
        path.write_text(whole[:end])
        kept = max(0, whole[:end].count("\n") - 1)
        assert search() == (points, evaluations - kept)
        assert path.read_text() == whole, f"after {end} characters"


def test_a_killed_search_has_its_evaluations_on_disk(tmp_path):
    net, path = deep(), tmp_path / "record.csv"

    class Killed(Table):
        def score(self, config):
            if len(self.asked) == 17:
                raise KeyboardInterrupt
            return super().score(config)

    options = {"targets": {"macs": ["70%", "30%"]}, "evaluations": 12}
    with pytest.raises(KeyboardInterrupt):
        list(random_search(net, evaluator=Killed(lumpy), trace=OrderTrace(path), **options))
    assert len(pd.read_csv(path)) == 17
    rest = Table(lumpy)
    points = list(random_search(net, evaluator=rest, trace=OrderTrace(path), **options))
    assert len(rest.asked) == 24 - 17 and points == list(random_search(net, evaluator=Table(lumpy), **options))


def test_more_configurations_and_targets_go_on_from_the_record(tmp_path):
    net, path = deep(), tmp_path / "record.csv"
    asked = []
    for count, targets in ((5, ["50%"]), (9, ["50%", "80%"]), (9, ["50%", "80%", "20%"]), (5, ["50%"])):
        evaluator = Table(lumpy)
        options = {"targets": {"macs": targets}, "evaluations": count, "evaluator": evaluator}
        points = list(random_search(net, trace=OrderTrace(path), **options))
        assert points == list(random_search(net, **{**options, "evaluator": Table(lumpy)}))
        asked.append(len(evaluator.asked))
    assert asked == [5, 13, 9, 0]


@pytest.mark.parametrize("order", [evolution_search, lambda *args, **options: random_search(*args, seed=1, **options)])
def test_a_record_of_another_search_is_refused_and_kept(order, tmp_path):
    net, path = deep(), tmp_path / "record.csv"
    options = {"targets": {"macs": ["50%"]}, "evaluator": Table(lumpy)}
    list(random_search(net, trace=OrderTrace(path), evaluations=40, **options))
    before = path.read_text()
    with pytest.raises(autoslim.AutoSlimError, match="was written by another search"):
        list(order(net, trace=OrderTrace(path), **options))
    assert path.read_text() == before


def test_foreign_and_damaged_files_are_refused_and_kept(tmp_path):
    net, path = deep(), tmp_path / "record.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(autoslim.AutoSlimError, match="not a record of evaluated configurations"):
        OrderTrace(path)
    assert path.read_text() == "a,b\n1,2\n"
    path.unlink()
    list(random_search(net, targets={"macs": ["50%"]}, evaluations=4, evaluator=Table(lumpy), trace=OrderTrace(path)))
    lines = path.read_text().splitlines()
    for broken in (lines[2].replace(",", ";", 2), lines[2].replace(" ", " x", 1)):
        path.write_text("\n".join([*lines[:2], broken, *lines[3:]]) + "\n")
        with pytest.raises(autoslim.AutoSlimError, match="line 3 is damaged"):
            OrderTrace(path)
