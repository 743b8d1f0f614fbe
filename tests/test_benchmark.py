"""The search benchmark goes on where it was cut off."""

import importlib.util
from pathlib import Path

import pytest
import torch
import tricky
from tricky import randomized

import autoslim
from autoslim.errors import RunError
from autoslim.search.engine import PartialEvaluator
from autoslim.search.ranks import Ranks

SPEC = importlib.util.spec_from_file_location("benchmark", Path(__file__).parents[1] / "benchmarks" / "search.py")
benchmark = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(benchmark)


class Cut(Exception):
    pass


def search(folder, effort, *, steps=None, cut=None):
    torch.manual_seed(0)
    net = autoslim.Supernet(randomized(tricky.Residual()), torch.randn(1, 3, 8, 8), divisor=1, steps=4)
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(40, 3, 8, 8, generator=generator), torch.randint(0, 3, (40,), generator=generator))]
    trace = benchmark.Descent(folder, "search", Ranks(), PartialEvaluator(net, batches, batches), steps)
    if cut is not None:
        record = trace.record

        def record_or_cut(candidates):
            if candidates[0].step == cut:
                raise Cut
            record(candidates)

        trace.record = record_or_cut
    options = {"score": "loss", "pick": "drop", "steps": steps, "targets": ["80%", "40%"]}
    points = benchmark.descend(net, trace, effort, options)
    return [point.config.widths for point in points], [each for each, _ in trace.rows], trace.spent()[1]


@pytest.mark.parametrize("effort", ["exact", "fast"])
def test_a_search_that_was_cut_off_ends_as_one_that_was_not(tmp_path, effort):
    points, rows, macs = search(None, effort)
    for cut in (1, 3):
        with pytest.raises(Cut):
            search(tmp_path, effort, cut=cut)
    again = search(tmp_path, effort)
    assert again[:2] == (points, rows)
    assert macs <= again[2] < 3 * macs  # what was kept for the next step is made anew
    assert search(tmp_path, effort) == again  # nothing is counted twice


def test_a_search_of_some_steps_that_is_over_does_no_more(tmp_path):
    first = search(tmp_path, "exact", steps=2)
    assert search(tmp_path, "exact", steps=2) == first and first[1][-1].step == 2


def test_what_a_search_took_is_not_made_up(tmp_path):
    search(tmp_path, "exact", steps=2)
    (tmp_path / "search-0.json").unlink()
    with pytest.raises(RunError, match="search-0.json"):
        search(tmp_path, "exact", steps=3)
