import functools
import logging
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import tricky
from brute_force import brute_force
from scores import Table
from torch import nn
from tricky import randomized

import autoslim
from autoslim import spaces
from autoslim.commands import AboveBars
from autoslim.commands.search import search as search_command
from autoslim.cost.budgets import Budgets, Target
from autoslim.errors import RunError
from autoslim.search.contest import Judged, Step, WholeContest
from autoslim.search.evaluate import Score, SupernetEvaluator
from autoslim.search.greedy import PICK_RULES, narrowed
from autoslim.search.orders import random_search
from autoslim.search.progress import Progress
from autoslim.search.ranks import Ranks
from autoslim.search.scored import costs_of
from autoslim.search.trace import Candidate


def data(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(n, 3, 8, 8, generator=generator), torch.randint(0, 5, (n,), generator=generator))
        for n in (count, count // 2)
    ]


def supernet(kind=tricky.Residual, **grid):
    torch.manual_seed(0)
    return autoslim.Supernet(randomized(kind()), torch.randn(1, 3, 8, 8), **{"divisor": 4, **grid})


exact_search = functools.partial(autoslim.greedy_search, effort="exact")


def no_evaluation(config):
    raise AssertionError("an evaluation was made")


@pytest.mark.parametrize("pick", PICK_RULES)
@pytest.mark.parametrize("score", ["error", "loss"])
def test_search_equals_brute_force_over_materialized_networks(score, pick):
    net, images, calibration = supernet(), data(12, 1), data(10, 2)

    def judge(widths):
        plain = autoslim.materialize(net, net.make_config(widths.values()))
        return autoslim.evaluate(autoslim.calibrate(plain, calibration), images)

    full = autoslim.CostTable(net).cost(net.full()).macs
    targets = [0.8 * full, 0.5 * full, 0.3 * full]
    expected = brute_force(net, score, pick, targets, judge)
    found = list(exact_search(net, images, calibration, targets={"macs": targets}, score=score, pick=pick))
    assert [(p.target.amounts["macs"], p.config.widths) for p in found] == [(target, widths) for target, widths, _ in expected]
    for point, (_, _, judged) in zip(found, expected, strict=True):
        assert point.score.error == judged.error
        assert point.score.loss == pytest.approx(judged.loss, rel=1e-4)
        assert point.config.cost == point.cost.to_json()
        assert point.config.estimate["kind"] == "supernet estimate"


@pytest.mark.parametrize("pick", PICK_RULES)
@pytest.mark.parametrize("kind", [tricky.Residual, tricky.Concat, tricky.Grouped, tricky.Untraceable])
@pytest.mark.parametrize("seed", range(4))
def test_search_equals_brute_force_with_made_up_scores(kind, pick, seed):
    net = supernet(kind)
    generator = torch.Generator().manual_seed(seed)
    known = {}

    def error(widths):
        # Coarse scores, so that ties are common.
        return known.setdefault(tuple(widths.values()), round(torch.rand(1, generator=generator).item(), 1))

    evaluator = Table(error)
    table = autoslim.CostTable(net)
    targets = [table.cost(net.narrowest()).macs, 0.6 * table.cost(net.full()).macs]
    found = list(exact_search(net, targets={"macs": targets}, pick=pick, evaluator=evaluator))
    expected = brute_force(net, "error", pick, targets, lambda widths: evaluator.score(net.make_config(widths.values())))
    assert [(p.target.amounts["macs"], p.config.widths) for p in found] == [(target, widths) for target, widths, _ in expected]


def test_candidates_of_equal_saving_narrow_by_as_many_choices_as_it_takes():
    convs = [nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*convs, nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 5))  # the last group hardly saves anything
    net = autoslim.Supernet(model, torch.randn(1, 3, 8, 8), divisor=1, steps=64)
    judged = {}

    def error(widths):
        return judged.setdefault(tuple(widths.values()), 1 - sum(widths.values()) / 1000)

    evaluator, table, trace = Table(error), autoslim.CostTable(net), autoslim.SearchTrace()
    full = table.cost(net.full()).macs
    targets = [0.601 * full, 0.3 * full]
    found = list(exact_search(net, targets={"macs": targets}, pick="equal-saving", evaluator=evaluator, trace=trace))
    expected = brute_force(
        net, "error", "equal-saving", targets, lambda widths: evaluator.score(net.make_config(widths.values()))
    )
    assert [p.config.widths for p in found] == [widths for _, widths, _ in expected]
    path = trace.path_taken()
    widths, by = net.full().widths, []
    for before, taken in zip(path, path[1:]):
        by.append(net.choices[taken.group].index(widths[taken.group]) - net.choices[taken.group].index(taken.width))
        widths[taken.group] = taken.width
        assert before.macs - taken.macs >= 0.02 * full
    assert max(by) > 1 and "6" not in {taken.group for taken in path}
    # Other targets decide nothing else.
    more = exact_search(net, targets={"macs": [0.9 * full, *targets]}, pick="equal-saving", evaluator=evaluator, trace=trace)
    assert [p.config.widths for p in more][1:] == [widths for _, widths, _ in expected]


def test_where_nothing_saves_enough_groups_go_on_by_one_choice():
    net = supernet(tricky.Concat)
    budgets = Budgets(net, ["macs"])
    narrowest = [row[0] for row in net.choices.values()]
    last = {name: row[0] if i else row[1] for i, (name, row) in enumerate(net.choices.items())}
    saved = budgets.costs(last)["macs"] - budgets.costs(net.make_config(narrowest).widths)["macs"]
    assert saved < 0.5 / len(last) * budgets.full["macs"]
    found = narrowed(net, budgets, last, budgets.costs(last), ["macs"], 0.9)
    assert list(found) == list(last)[:1] and list(found.values())[0] == dict(zip(last, narrowest))


def test_ties_go_to_the_larger_saving():
    net = supernet()
    table = autoslim.CostTable(net)
    narrower = [table.cost({**net.full().widths, name: net.choices[name][-2]}).macs for name in net.choices]
    assert len(set(narrower)) == 2
    trace = autoslim.SearchTrace()
    full = table.cost(net.full()).macs
    list(exact_search(net, targets={"macs": [full - 1]}, evaluator=Table(lambda w: 0.25), trace=trace))
    assert [c.macs for c in trace.path_taken()] == [full, min(narrower)]


def test_equal_savings_go_to_the_earlier_group():
    net = supernet(tricky.Concat)
    trace = autoslim.SearchTrace()
    full = autoslim.CostTable(net).cost(net.full()).macs
    list(exact_search(net, targets={"macs": [full - 1]}, evaluator=Table(lambda w: 0.0), trace=trace))
    saved = {c.group: full - c.macs for c, _ in trace.rows if c.step == 1}
    assert saved["a"] == saved["b"] > saved["mix"] and trace.path_taken()[-1].group == "a"


def test_targets_come_largest_first_and_one_step_may_meet_several():
    net = supernet()
    full = autoslim.CostTable(net).cost(net.full()).macs
    evaluator = Table(lambda widths: 1.0)
    points = list(exact_search(net, targets={"macs": [full - 2, full, full - 1]}, evaluator=evaluator))
    assert [p.target.amounts["macs"] for p in points] == [full, full - 1, full - 2]
    assert [p.step for p in points] == [0, 1, 1]
    assert points[1].config.channels == points[2].config.channels
    assert points[0].config.widths == net.full().widths


def test_targets_may_be_parts_of_the_full_network():
    net = supernet()
    full = autoslim.CostTable(net).cost(net.full()).macs
    (point,) = exact_search(net, targets={"macs": ["60%"]}, evaluator=Table(lambda w: 0.0))
    assert point.target.amounts["macs"] == pytest.approx(0.6 * full) and point.cost.macs <= 0.6 * full


def test_the_last_target_is_the_narrowest_configuration_itself():
    net = supernet(min_ratio=0.4)
    least = autoslim.CostTable(net).cost(net.narrowest()).macs
    (point,) = exact_search(net, targets={"macs": [least]}, evaluator=Table(lambda w: -sum(w.values())))
    assert point.config.widths == net.narrowest().widths


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"targets": {"macs": [1.0]}}, "below the narrowest"),
        ({"targets": {"macs": ["101%"]}}, "above the full"),
        ({"targets": {"macs": []}}, "no target"),
        ({"targets": {"macs": ["50%", "soon"]}}, "'soon'"),
        ({"targets": {"steps": [1e3]}}, "'steps'"),
        ({"targets": {}}, "no target"),
        ({"targets": {"params": [100]}}, "params target 100 is below"),
        ({"targets": {"macs": ["50%"]}, "score": "luck"}, "'luck'"),
        ({"targets": {"macs": ["50%"]}, "pick": "any"}, "'any'"),
    ],
)
def test_impossible_searches_are_refused_by_the_call_itself(arguments, words):
    with pytest.raises(autoslim.AutoSlimError, match=words):
        exact_search(supernet(), evaluator=Table(no_evaluation), **arguments)


def test_a_search_without_images_is_refused():
    with pytest.raises(autoslim.AutoSlimError, match="images"):
        exact_search(supernet(), targets={"macs": ["50%"]})


@pytest.mark.parametrize("pick", PICK_RULES)
def test_groups_that_inference_does_not_use_are_no_candidates(pick):
    # Narrowing the head that only training runs saves nothing.
    net = supernet(tricky.AuxHead)
    evaluator = Table(lambda widths: sum(widths.values()) / 100)
    trace = autoslim.SearchTrace()
    (point,) = exact_search(net, targets={"macs": ["50%"]}, pick=pick, evaluator=evaluator, trace=trace)
    macs = [c.macs for c in trace.path_taken()]
    assert all(a > b for a, b in zip(macs, macs[1:], strict=False))
    table, full = autoslim.CostTable(net), net.full().widths
    unused = {name for name in full if table.cost({**full, name: net.choices[name][0]}).macs == table.cost(full).macs}
    assert unused == {"aux"} and not unused & {c.group for c, _ in trace.rows}


def test_a_candidate_without_a_score_is_never_picked():
    net = supernet()
    first, second = net.choices

    def error(widths):
        return float("nan") if widths[first] < net.choices[first][-1] else 0.5

    trace = autoslim.SearchTrace()
    full = autoslim.CostTable(net).cost(net.full()).macs
    list(exact_search(net, targets={"macs": [full - 1]}, evaluator=Table(error), trace=trace))
    assert [c.group for c in trace.path_taken()] == ["", second]


# The trace ----------------------------------------------------------------------------


def distinct(widths):
    return sum((i + 1) * w * w % 17 for i, w in enumerate(widths.values())) / 100 + 1 / 3


def run(path, net, error=distinct, target="30%", **options):
    evaluator = Table(error)
    trace = autoslim.SearchTrace(path)
    points = list(exact_search(net, targets={"macs": [target]}, evaluator=evaluator, trace=trace, **options))
    return points, evaluator.asked


def test_every_candidate_has_a_row_that_pandas_reads(tmp_path):
    net, path = supernet(tricky.Concat), tmp_path / "run" / "trace.csv"
    (point,), asked = run(path, net)
    rows = pd.read_csv(path, keep_default_na=False)
    columns = ["step", "group", "width", "macs", "error", "loss", "images", "base_error", "base_loss", "certainty", "picked"]
    assert list(rows) == columns and rows["certainty"].eq(1).all()
    assert len(rows) == len(asked) == len(set(asked))
    assert rows.groupby("step")["picked"].sum().eq(1).all()
    table, widths = autoslim.CostTable(net), net.full().widths
    for step, tried in rows.groupby("step"):
        expected = [name for name, width in widths.items() if width > net.choices[name][0]] if step else [""]
        assert sorted(tried["group"]) == sorted(expected) and tried["picked"].iloc[-1] == 1
        for row in tried.itertuples():
            candidate = {**widths, row.group: row.width} if row.group else widths
            assert row.macs == table.cost(candidate).macs and row.images == 10
            assert row.error == pytest.approx(distinct(candidate), rel=1e-12)
            assert row.loss == pytest.approx(2 * distinct(candidate), rel=1e-12)
        taken = tried[tried["picked"] == 1].iloc[0]
        widths = {**widths, taken["group"]: taken["width"]} if step else widths
    assert widths == point.config.widths


def test_a_search_cut_off_after_any_line_resumes_to_the_identical_file(tmp_path):
    net, path = supernet(tricky.Concat), tmp_path / "trace.csv"
    (point,), asked = run(path, net)
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    for kept in range(len(lines) + 1):
        path.write_text("".join(lines[:kept]))
        (again,), more = run(path, net)
        assert path.read_text() == whole, f"after {kept} lines"
        assert again.config == point.config
        steps = [line.split(",")[0] for line in lines[1:kept] if line.endswith(",1\n")]  # whole ones
        known = sum(line.split(",")[0] in steps for line in lines[1:])
        assert len(more) == len(asked) - known, f"after {kept} lines"


def test_a_search_cut_off_within_a_line_resumes_to_the_identical_file(tmp_path):
    net, path = supernet(tricky.Concat), tmp_path / "trace.csv"
    run(path, net)
    whole = path.read_text()
    for end in (*range(1, 60, 7), *range(60, len(whole), 97), len(whole) - 1):
        path.write_text(whole[:end])
        run(path, net)
        assert path.read_text() == whole, f"after {end} characters"


def test_a_lower_target_goes_on_from_the_trace(tmp_path):
    net, path = supernet(tricky.Concat), tmp_path / "trace.csv"
    table = autoslim.CostTable(net)
    evaluator = Table(distinct)
    list(exact_search(net, targets={"macs": ["70%"]}, evaluator=evaluator, trace=autoslim.SearchTrace(path)))
    done = len(evaluator.asked)
    points, asked = run(path, net)
    fresh, all_asked = run(tmp_path / "fresh.csv", net)
    assert path.read_text() == (tmp_path / "fresh.csv").read_text()
    assert points[0].config == fresh[0].config and len(asked) == len(all_asked) - done
    assert points[0].cost == table.cost(points[0].config)


@pytest.mark.parametrize("change", [{"pick": "drop-per-saving"}, {"score": "error"}])
def test_a_fast_search_does_not_go_on_with_the_trace_of_another_rule(change):
    net, trace = supernet(tricky.Concat), autoslim.SearchTrace()
    # By its loss "mix" costs least, "a" for what it saves; by its mistakes "b" does.
    costs = {"error": {"a": 0.02, "b": 0.01, "mix": 0.02}, "loss": {"a": 0.011, "b": 0.02, "mix": 0.01}}

    def made_up(config):
        return Score(*(1 - sum(row[name] * width for name, width in config.widths.items()) for row in costs.values()), 10)

    evaluator = SimpleNamespace(score=made_up)
    options = {"targets": {"macs": "60%"}, "score": "loss", "trace": trace, "evaluator": evaluator}
    (found,) = autoslim.greedy_search(net, **options)
    (again,) = autoslim.greedy_search(net, **options)
    assert again.config.channels == found.config.channels
    with pytest.raises(autoslim.AutoSlimError, match="written by another search"):
        list(autoslim.greedy_search(net, **{**options, **change}))


def test_a_trace_written_by_another_rule_is_never_mixed_in(tmp_path):
    net, path = supernet(tricky.Concat), tmp_path / "trace.csv"
    table, full = autoslim.CostTable(net), net.full().widths
    saving = {name: table.cost(full).macs - table.cost({**full, name: width - 4}).macs for name, width in full.items()}

    def error(widths):
        # What saves most hurts most, but hurts least for each multiply-add.
        return sum((full[name] - width) * saving[name] ** 0.5 for name, width in widths.items()) / 1e5

    (other,), _ = run(path, net, error, "60%")
    before = path.read_text()
    (fresh,), _ = run(None, net, error, "60%", pick="drop-per-saving")
    assert fresh.config != other.config
    try:
        (point,), _ = run(path, net, error, "60%", pick="drop-per-saving")
    except autoslim.AutoSlimError:
        assert path.read_text() == before
    else:
        assert point == fresh
        taken = [(c.step, c.group) for c in autoslim.SearchTrace(path).path_taken()]
        fresh_trace = autoslim.SearchTrace()
        options = {"targets": {"macs": ["60%"]}, "pick": "drop-per-saving", "trace": fresh_trace}
        list(exact_search(net, evaluator=Table(error), **options))
        assert taken == [(c.step, c.group) for c in fresh_trace.path_taken()]


@pytest.mark.parametrize("change", [lambda rows: rows[1:], lambda rows: [rows[0], *rows]], ids=["one less", "one twice"])
def test_a_step_of_an_exact_search_has_every_candidate_once(change):
    net, table, trace = supernet(tricky.Concat), Table(lambda widths: 1 / sum(widths.values())), autoslim.SearchTrace()
    options = {"targets": {"macs": "60%"}, "trace": trace, "evaluator": table}
    list(exact_search(net, **options))
    last = max(candidate.step for candidate, _ in trace.rows)
    whole = list(trace.rows)
    trace.rows = [row for row in whole if row[0].step < last] + change([row for row in whole if row[0].step == last])
    with pytest.raises(autoslim.AutoSlimError, match="written by another search"):
        list(exact_search(net, **options))


def test_a_trace_that_begins_at_another_network_is_not_gone_on_with():
    net, trace = supernet(tricky.Concat), autoslim.SearchTrace()
    list(exact_search(net, targets={"macs": "90%"}, trace=trace, evaluator=Table(lambda widths: 1 / sum(widths.values()))))
    trace.rows = [row for row in trace.rows if row[0].step == 0]
    with pytest.raises(autoslim.AutoSlimError, match="written by another search .begins at another full network"):
        list(exact_search(supernet(), targets={"macs": "90%"}, trace=trace, evaluator=Table(no_evaluation)))


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "{}\n", "step,group\n"])
def test_a_foreign_file_is_refused_and_kept(tmp_path, text):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(autoslim.AutoSlimError, match="not a search trace"):
        autoslim.SearchTrace(path)
    assert path.read_text() == text


def test_a_damaged_line_is_named(tmp_path):
    net, path = supernet(tricky.Concat), tmp_path / "trace.csv"
    run(path, net)
    lines = path.read_text().splitlines()
    lines[3] = lines[3].replace(",", ";", 2)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(autoslim.AutoSlimError, match="line 4"):
        autoslim.SearchTrace(path)
    path.write_text("\n".join([*lines[:2], "1" * 200_000]) + "\n")
    with pytest.raises(autoslim.AutoSlimError, match="is damaged"):
        autoslim.SearchTrace(path)


def test_a_message_beside_the_bar_has_a_line_of_its_own(capsys):
    handler = AboveBars()
    logging.getLogger().addHandler(handler)
    try:
        with Progress({"macs": 100.0}, [Target({"macs": 50.0}, "50")], shown=True) as shown:
            shown.update({"macs": 80.0}, "step 1")
            logging.getLogger("autoslim").warning("said meanwhile")
    finally:
        logging.getLogger().removeHandler(handler)
    assert "said meanwhile" in capsys.readouterr().err.replace("\r", "\n").splitlines()


def test_the_time_left_is_reckoned_from_where_a_search_went_on(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("autoslim.search.progress.time.monotonic", lambda: now[0])
    with Progress({"macs": 100.0}, [Target({"macs": 50.0}, "50")], shown=False) as shown:
        told = []
        monkeypatch.setattr(shown._bar, "set_postfix_str", told.append)
        shown.update({"macs": 75.0}, "recorded", recorded=True)
        now[0] = 6.0
        shown.update({"macs": 70.0}, "one step")
    assert told == ["recorded", "one step, 50 in 00:24"]


def test_the_bar_shows_the_way_in_the_kind_that_is_least_far(monkeypatch):
    targets = [Target({"macs": 80.0, "params": 9.0}, "first"), Target({"macs": 50.0, "params": 5.0}, "last")]
    now = [0.0]
    monkeypatch.setattr("autoslim.search.progress.time.monotonic", lambda: now[0])
    with Progress({"macs": 100.0, "params": 10.0}, targets, shown=True) as shown:
        told = []
        monkeypatch.setattr(shown._bar, "set_postfix_str", told.append)
        now[0] = 10.0
        shown.update({"macs": 75.0, "params": 9.5}, "on the way")
        assert shown._bar.n == pytest.approx(10)
        shown.update({"macs": 75.0, "params": 8.0}, "first is met")
        assert shown._bar.n == pytest.approx(40)
    assert told == ["on the way, first in 00:10, last in 01:30", "first is met, last in 00:15"]


def test_pick_rules_have_the_same_names_everywhere():
    (option,) = [each for each in search_command.params if each.name == "pick"]
    assert list(option.type.choices) == list(PICK_RULES)
    assert all(spaces._TABLES["search"]["pick"].fits(name) for name in PICK_RULES)


@pytest.mark.parametrize("effort", ["fast", "exact"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_labels_may_be_of_any_integers(effort, dtype):
    net = supernet()
    torch.manual_seed(0)
    x, labels = torch.randn(8, 3, 8, 8), torch.randint(0, 3, (8,))
    found = [
        [(p.config.widths, p.score) for p in autoslim.greedy_search(net, [(x, y)], [x], targets={"macs": "60%"}, effort=effort)]
        for y in (labels, labels.to(dtype))
    ]
    assert found[0] == found[1]
    assert autoslim.evaluate(net, [(x, labels)]) == autoslim.evaluate(net, [(x, labels.to(dtype))])


@pytest.mark.parametrize(
    ("classes", "labels", "words"),
    [
        (3, torch.rand(8), "labels are float32 [8]; for class scores [8, 3] they are integers [8] from 0 to 2"),
        (1, torch.rand(8), "the network returns [8, 1]; class scores are [N, K] of 2 classes or more"),
        (1, torch.zeros(8, dtype=torch.long), "2 classes or more"),
        (3, torch.zeros(8, 3, dtype=torch.long), "labels are int64 [8, 3]"),
        (3, torch.tensor([0, 1, 2, 255] * 2), "labels are from 0 to 255"),
        (3, torch.tensor([0, 1, -1, 2] * 2), "labels are from -1 to 2"),
        (3, {"labels": torch.zeros(8)}, "labels are dict"),
        (3, torch.tensor(2), "labels are int64 []"),
    ],
)
@pytest.mark.parametrize("whole", [False, True])
def test_labels_that_are_no_classes_of_the_scores_are_refused_with_the_way_out(classes, labels, words, whole):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, classes))
    net = autoslim.Supernet(randomized(model), torch.randn(1, 3, 8, 8), divisor=4)
    x = torch.randn(8, 3, 8, 8)
    evaluator = SupernetEvaluator(net, [(x, labels)], [x]) if whole else None
    with pytest.raises(autoslim.AutoSlimError) as refused:
        list(autoslim.greedy_search(net, [(x, labels)], [x], targets={"macs": "60%"}, evaluator=evaluator))
    assert words in str(refused.value) and "evaluator=" in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(autoslim.AutoSlimError, match="evaluator="):
        autoslim.evaluate(net, [(x, labels)])


@pytest.mark.parametrize("base", [float("nan"), float("inf"), float("-inf")])
def test_a_base_without_a_score_lets_no_candidate_without_one_win(base):
    step = Step(None, Score(0.5, base, 8), dict.fromkeys("abc"), dict.fromkeys("abc", 1.0), {"a": 1, "b": 2, "c": 3}, "loss")
    losses = {"a": float("nan"), "b": 9.0, "c": 0.1}
    evaluator = Table(lambda config: None)
    contest = WholeContest(evaluator, step)
    contest.judged = {name: Judged(Score(0.5, loss, 8), step.base_score) for name, loss in losses.items()}
    assert step.best({name: contest.value(name) for name in losses}) == "c"
    candidates = [Candidate(1, name, 4, 1, 0.5, loss, 8, 0.5, base) for name, loss in losses.items()]
    assert step.best({c.group: step.value(c.group, c.increase("loss")) for c in candidates}) == "c"


def test_several_labels_an_image_are_scored_as_they_are_given():
    class Cells(nn.Module):
        """Class scores of the 4 cells of every image, one below the other."""

        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(3, 16, 3, stride=4, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 5, 1)
            )

        def forward(self, x):
            return self.body(x).permute(0, 2, 3, 1).reshape(-1, 5)

    torch.manual_seed(0)
    net = autoslim.Supernet(randomized(Cells()), torch.randn(2, 3, 8, 8), divisor=4)
    batches = [(torch.randn(n, 3, 8, 8), torch.randint(0, 5, (4 * n,))) for n in (70, 9)]
    (found,) = autoslim.greedy_search(net, batches, batches, targets={"macs": "60%"}, score="loss")
    expected = SupernetEvaluator(net, batches, batches).score(found.config)
    assert (found.score.error, found.score.loss) == pytest.approx((expected.error, expected.loss), rel=1e-6)
    assert found.score.images == 79


@pytest.mark.parametrize("part", ["score", "calibrate"])
def test_a_batch_without_images_is_refused(part):
    some, none = data(8, 0), [(torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.long))]
    given = {"score": (none, some), "calibrate": (some, none)}[part]
    with pytest.raises(autoslim.AutoSlimError, match=f"0 images to {part}"):
        list(autoslim.greedy_search(supernet(), *given, targets={"macs": "60%"}))


def test_a_trace_that_is_a_folder_is_refused(tmp_path):
    with pytest.raises(autoslim.AutoSlimError, match="cannot be read"):
        autoslim.SearchTrace(tmp_path)


def test_an_evaluator_of_ones_own_may_judge_candidates_together():
    net = supernet()
    table = Table(lambda widths: sum(widths.values()) / 1000)
    table.contest = lambda step, effort: WholeContest(table, step)
    (found,) = autoslim.greedy_search(net, targets={"macs": "60%"}, evaluator=table, effort="exact")
    (expected,) = autoslim.greedy_search(net, targets={"macs": "60%"}, evaluator=Table(table.error), effort="exact")
    assert found.config.channels == expected.config.channels


@pytest.mark.parametrize("number", [np.float64, np.float32, torch.tensor, float])
def test_an_evaluator_may_give_numbers_of_numpy_and_torch(number, tmp_path):
    class Judge:
        asked = 0

        def score(self, config):
            self.asked += 1
            value = sum(config.widths.values()) / 1000
            return autoslim.Score(number(value), number(2 * value), np.int64(10))

    def search(judge):
        trace = autoslim.SearchTrace(tmp_path / "trace.csv")
        (point,) = autoslim.greedy_search(supernet(), targets={"macs": "60%"}, evaluator=judge, trace=trace)
        point.config.save(tmp_path / "found.json")
        return [(path.name, path.read_bytes()) for path in sorted(tmp_path.iterdir())]

    found = search(Judge())
    assert search(again := Judge()) == found and again.asked == 0


def test_an_evaluator_that_gives_no_score_is_told_to():
    for search in (autoslim.greedy_search, random_search):
        judge = SimpleNamespace(score=lambda config: 0.25)
        with pytest.raises(autoslim.AutoSlimError, match=r"as 0\.25; return autoslim\.Score\(error, loss, images\)"):
            list(search(supernet(divisor=1), targets={"macs": "60%"}, evaluator=judge))
    trace = autoslim.SearchTrace()
    macs = autoslim.CostTable(net := supernet()).cost(net.full()).macs
    trace.record([Candidate(0, "", 0, macs, 0.5, 1.0, 4, 0.5, 1.0)])  # gone on with
    with pytest.raises(autoslim.AutoSlimError, match=r"as 0\.25; return autoslim"):
        list(autoslim.greedy_search(supernet(), targets={"macs": "60%"}, evaluator=judge, trace=trace))


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_meet_no_label(broken):
    logits = torch.eye(4)
    logits[1:3] = broken  # the first class would be taken
    logits[3, :2] = float("-inf")
    target = torch.tensor([0, 0, 1, 3])
    assert autoslim.evaluate(Shows(logits), [(torch.zeros(4, 4), target)]).error == 0.5
    wrong, _, _ = costs_of(logits, target)
    assert wrong.tolist() == [0.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("shape", [(10,), (4, 6, 5)])
def test_what_images_cost_is_found_for_some_of_them_at_a_time(shape, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(7, *shape, generator=generator), torch.randint(0, 4, (7, *shape[1:]), generator=generator)
    whole = costs_of(logits, target)
    for count in (1, 250, 10**9):
        monkeypatch.setattr("autoslim.search.scored.SCORES_AT_ONCE", count)
        assert torch.equal(costs_of(logits, target), whole)


class Shows(nn.Module):
    """A network that gives the same scores whatever it sees."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits, requires_grad=False)

    def forward(self, x):
        return self.logits


def test_of_several_processes_the_first_writes_the_trace(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        trace = autoslim.SearchTrace(tmp_path / "trace.csv")
        trace.record([Candidate(0, "", 0, 10, 0.5, 1.0, 4, 0.5, 1.0)])
        assert len(trace.rows) == 1 and (tmp_path / "trace.csv").exists() == (rank == 0)


def test_processes_that_cannot_find_each_other_are_told(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RunError, match="WORLD_SIZE is 2, .* start them with torchrun, or unset WORLD_SIZE"):
        Ranks()


def test_images_without_any_label_are_refused():
    net, x, none = supernet(), torch.randn(8, 3, 8, 8), torch.full((8,), -100)
    with pytest.raises(autoslim.AutoSlimError, match="all labels of the 8 images to score are -100"):
        list(autoslim.greedy_search(net, [(x, none)], [x], targets={"macs": "60%"}))
    with pytest.raises(autoslim.AutoSlimError, match="0 labels among 8 images"):
        autoslim.evaluate(net, [(x, none)])


def test_one_image_tells_nobody_apart_by_more_than_chance():
    x, y, trace = torch.randn(1, 3, 8, 8), torch.tensor([0]), autoslim.SearchTrace()
    (point,) = autoslim.greedy_search(supernet(), [(x, y)], [torch.randn(4, 3, 8, 8)], targets={"macs": "60%"}, trace=trace)
    assert point.score.images == 1
    assert {candidate.certainty for candidate, _ in trace.rows} <= {0.5, 1.0, None}


@pytest.mark.parametrize("norm", [nn.GroupNorm, nn.BatchNorm2d])
def test_networks_without_batch_norm_are_not_run_to_calibrate_it(norm):
    norms = (norm(4, 16) if norm is nn.GroupNorm else norm(16),)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), *norms, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    net = autoslim.Supernet(model, torch.randn(2, 3, 8, 8))
    evaluator, seen = SupernetEvaluator(net, data(12, 1), data(40, 2)), []
    net.model[0].register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    evaluator.score(net.full())
    assert sum(seen) == 18 + (2 if norm is nn.GroupNorm else 60)
