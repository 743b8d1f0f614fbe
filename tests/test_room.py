"""The memory of a search: what it is reckoned for, and what it takes."""

import itertools
import weakref

import pytest
import torch
import tricky
from steps import batches, narrower, step, trained_like
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import autoslim
from autoslim.search import engine
from autoslim.search.contest import batches_with
from autoslim.search.engine import PartialEvaluator


class LiveBytes(TorchDispatchMode):
    """Counts the memory of all tensors that are made while it is on, as long as they live."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self._known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu":
                storage = leaf.untyped_storage()
                if storage._cdata not in self._known:
                    self._add(storage._cdata, storage.nbytes())
                    weakref.finalize(storage, self._add, storage._cdata, -storage.nbytes())
        return made

    def _add(self, key, size):
        (self._known.add if size > 0 else self._known.discard)(key)
        self.now += size
        self.most = max(self.most, self.now)


class Plain(nn.Sequential):
    inputs = staticmethod(lambda n: torch.randn(n, 3, 16, 16))

    def __init__(self):
        layers = [(nn.Conv2d(16 if i else 3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()) for i in range(6)]
        super().__init__(*itertools.chain(*layers), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))


class Shortcuts(nn.Module):
    inputs = Plain.inputs

    def __init__(self):
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 3)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 16, 3, padding=1))
            for _ in range(3)
        )

    def forward(self, x):
        x = self.stem(x).relu()
        for block in self.blocks:
            x = x + block(x)
        return self.out(x.mean((2, 3)))


@pytest.mark.parametrize("effort", ["exact", "fast"])
@pytest.mark.parametrize("images", [256, 400, 1000])
@pytest.mark.parametrize("kind", [Plain, Shortcuts])
def test_a_search_takes_no_more_memory_than_it_may(kind, images, effort):
    net = trained_like(kind, steps=6)
    data, calibration = batches((384,), 0, 16), batches((16,) * 4, 1, 16)
    budget = images * PartialEvaluator(net, data, calibration)._partial.bytes
    with LiveBytes() as live:
        evaluator = PartialEvaluator(net, data, calibration, memory_budget=budget)
        options = {"targets": {"macs": ["65%"]}, "score": "loss", "effort": effort}
        list(autoslim.greedy_search(net, evaluator=evaluator, **options))
    assert 0.3 * budget < live.most <= budget


class SmallGpu(LiveBytes):
    """Runs out of memory where tensors would take more."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        before = self.now
        made = super().__torch_dispatch__(function, types, args, kwargs)
        if self.now > max(before, self.size):
            raise torch.cuda.OutOfMemoryError
        return made


def searched(net, data, calibration, effort, prepare=lambda evaluator: None):
    evaluator, trace = PartialEvaluator(net, data, calibration, memory_budget=1e9), autoslim.SearchTrace()
    prepare(evaluator)
    options = {"targets": {"macs": ["65%"]}, "score": "loss", "effort": effort, "trace": trace}
    points = list(autoslim.greedy_search(net, evaluator=evaluator, **options))
    return (trace.rows, [(point.config, point.score) for point in points]), evaluator


@pytest.mark.parametrize("effort", ["exact", "fast"])
@pytest.mark.parametrize("kind", [Plain, Shortcuts])
def test_a_search_keeps_less_where_a_gpu_has_less_memory_than_its_budget(kind, effort, caplog):
    net = trained_like(kind, steps=6)
    data, calibration = batches((384,), 0, 16), batches((16,) * 4, 1, 16)
    with SmallGpu(1e12) as large:
        expected, evaluator = searched(net, data, calibration, effort)
        macs = evaluator.macs
    del evaluator
    assert not caplog.messages
    with SmallGpu(0.5 * large.most) as small:
        found, evaluator = searched(net, data, calibration, effort)
    assert found == expected and macs < evaluator.macs and small.most < 0.51 * large.most
    assert 1 <= len(caplog.messages) < 4 and "GPU ran out of memory" in caplog.text


def run_out(evaluator, wanted, monkeypatch):
    """Let memory run out after those runs of candidates for which `wanted(what, held)` holds; returns what they were for."""
    run, failed = evaluator._run_part, []

    def runs_out(plan, what, i, *args, **options):
        made = run(plan, what, i, *args, **options)
        if plan.group and wanted(what, evaluator._values.held):
            failed.append((what, i))
            raise torch.cuda.OutOfMemoryError
        return made

    monkeypatch.setattr(evaluator, "_run_part", runs_out)
    return failed


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("what", ["calibrate", "score"])
@pytest.mark.parametrize("effort", ["exact", "fast"])
@pytest.mark.parametrize("kind", [tricky.Residual, Plain])
def test_memory_may_run_out_on_any_batch(kind, effort, what, times, monkeypatch):
    net = trained_like(kind)
    data, calibration = batches((300,), 0, 16), batches((16,) * 4, 1, 16)
    expected, _ = searched(net, data, calibration, effort)
    calls, failed = itertools.count(), []

    def wanted(kind, held):
        return held and kind == what and next(calls) % 40 in [7, 9, 10][:times]

    found, _ = searched(net, data, calibration, effort, lambda each: failed.append(run_out(each, wanted, monkeypatch)))
    assert found == expected
    assert len(failed[0]) >= times and (times == 1 or any(a == b for a, b in itertools.pairwise(failed[0])))


def test_a_gpu_that_has_no_room_though_nothing_is_kept_ends_a_search(monkeypatch):
    net = trained_like(Plain, steps=6)
    data, calibration = batches((384,), 0, 16), batches((16,) * 4, 1, 16)
    expected, _ = searched(net, data, calibration, "exact")
    evaluator = PartialEvaluator(net, data, calibration, memory_budget=1e9)
    options = {"evaluator": evaluator, "targets": {"macs": ["65%"]}, "score": "loss", "effort": "exact"}
    with monkeypatch.context() as patched, pytest.raises(torch.cuda.OutOfMemoryError):
        failed = run_out(evaluator, lambda what, held: held or failed, patched)
        list(autoslim.greedy_search(net, **options))
    assert len(failed) > 2 and not evaluator._values.held
    assert [(point.config, point.score) for point in autoslim.greedy_search(net, **options)] == expected[1]


@pytest.mark.parametrize(("effort", "ranks"), [("exact", 1), ("exact", 3), ("exact", 8), ("fast", 1), ("fast", 2)])
@pytest.mark.parametrize("size", [32, 300])
def test_room_is_reckoned_for_the_images_of_the_busiest_process(effort, ranks, size, monkeypatch):
    net = trained_like(tricky.Residual)
    parts = PartialEvaluator(net, batches((size,) * (1200 // size), 0), batches((40, 24), 1), race={"most": 520})
    counted = []
    choose = lambda images, base, room: counted.extend((images, base)) or (frozenset(),) * 2  # noqa: E731
    monkeypatch.setattr(parts._keeping, "choose", choose)
    monkeypatch.setattr(parts, "_find_moving", lambda batch: None)
    parts.ranks.count = ranks
    parts._arrange(effort, "error")
    last = len(parts.sizes) if effort == "exact" else batches_with(520, parts.sizes)
    sizes, calibration = parts.sizes[:last], parts._used.sizes
    assert counted[0] >= max(sum(sizes[r::ranks]) for r in range(ranks)) + max(sum(calibration[r::ranks]) for r in range(ranks))
    assert counted[0] <= max(sum(sizes[r::ranks]) for r in range(ranks)) + sum(calibration)
    assert counted[1] == counted[0]


def test_room_is_left_for_a_batch_at_work_that_cannot_be_cut():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU(), nn.Conv2d(8, 8, 3),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))  # fmt: skip
    net = autoslim.Supernet(model, torch.randn(2, 3, 8, 8), divisor=1, steps=4)
    parts = PartialEvaluator(net, batches((200,), 0), batches((40,), 1), memory_budget=4e9)
    assert parts._room == 4e9 - 2 * 200 * parts._partial.bytes
    assert PartialEvaluator(net, batches((200,), 0), batches((40,), 1), memory_budget=4e4)._room == 2e4


def test_room_is_reckoned_for_the_largest_images():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    net = autoslim.Supernet(model, torch.randn(2, 3, 8, 8), divisor=1, steps=4)
    large = [(torch.randn(4, 3, 20, 20), torch.arange(4))]
    alone = PartialEvaluator(net, large, large)._partial.bytes
    for images, calibration in ((batches((4,), 0) + large, batches((4,), 1)), (batches((4,), 0), batches((4,), 1) + large)):
        assert PartialEvaluator(net, images, calibration)._partial.bytes == alone


def test_a_memory_budget_is_a_number_of_bytes():
    net = autoslim.Supernet(Plain(), torch.randn(2, 3, 8, 8), divisor=1, steps=4)
    given = batches((40,), 0), batches((16,), 1)
    for wrong in (0, -1e9, float("nan")):
        with pytest.raises(autoslim.AutoSlimError, match="is no number of bytes above 0; pass 4e9"):
            PartialEvaluator(net, *given, memory_budget=wrong)
    assert PartialEvaluator(net, *given, memory_budget=float("inf")).batch == PartialEvaluator(net, *given).batch


def test_room_is_reckoned_for_the_images_that_candidates_saw_of_late(monkeypatch):
    net = trained_like(tricky.Residual)
    parts, base = PartialEvaluator(net, batches((1280,), 0), batches((40, 24), 1), memory_budget=4e9), net.full()
    counted, seen, choose = [], [], parts._keeping.choose
    monkeypatch.setattr(parts._keeping, "choose", lambda *args: counted.append(args) or choose(*args))
    for _ in range(2):
        candidates = {name: narrower(net, base, name) for name in base.widths}
        contest = parts.contest(step(net, base, candidates), "exact")
        contest.enter(list(candidates))
        seen.append(sum(64 * batches for batches in contest._batches.values()) / len(candidates))
        bytes_of_an_image = sum(map(parts._partial.bytes_of, parts._values.keep.values()))
        assert parts._values._room == parts._room - 64 * bytes_of_an_image > 0
        contest.close()
        base = candidates[contest.best]
    parts.forget()
    parts.contest(step(net, base, candidates), "exact")
    assert counted.pop() == counted.pop() == counted[0] == (64 + 1280, 64 + 1280, 4e9 - 2 * 64 * parts._partial.bytes)
    assert [images for _, images, _ in counted] == [64 + 1280] * 3
    assert [images for images, *_ in counted] == [64 + 1280, 64 + 1280, pytest.approx(64 + seen[0])] and seen[0] < 1280


def test_late_values_of_candidates_are_kept_first_and_save_multiply_adds():
    model = nn.Sequential(*(nn.Sequential(nn.Conv2d(8 if i else 3, 8, 3, padding=1), nn.ReLU()) for i in range(6)),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))  # fmt: skip
    net = autoslim.Supernet(model, torch.randn(2, 3, 8, 8), divisor=1, steps=8)
    data, calibration = batches((16,), 0), batches((16,), 1)
    done = {}
    for room in (0, 3 * 32 * 4 * 8 * 8 * 8, 1e9):
        parts = PartialEvaluator(net, data, calibration)
        parts._room = room
        base = net.full()
        for _ in range(5):
            candidates = {name: narrower(net, base, name) for name in base.widths}
            contest = parts.contest(step(net, base, candidates), "exact")
            contest.enter(list(candidates))
            contest.best = list(candidates)[-1]
            contest.close()
            base = candidates[contest.best]
        done[room] = parts.macs
    first, some, most = done.values()
    assert first > 3 * some and some > most


@pytest.mark.parametrize("kind", [Plain, Shortcuts])
def test_what_keeping_saves_is_what_running_from_kept_values_takes(kind):
    net = autoslim.Supernet(kind(), kind.inputs(2), divisor=4)
    images = [(kind.inputs(4), torch.zeros(4, dtype=torch.long))]
    parts = PartialEvaluator(net, images, images)
    partial, keeping, influence = parts._partial, parts._keeping, parts._partial.influence
    names = [width.name for width in net.widths if len(width.choices) > 1]
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        keep = frozenset().union(*(o for o in keeping._options if torch.rand(1, generator=generator) < 0.4))
        macs = kept = 0
        for name in names:
            own = keep & influence.again(name)
            kept += sum(partial.bytes_of([i]) for i in own)
            # A candidate runs what it has no value of that still holds when another group is narrowed.
            for narrowed in names:
                known = {i for i in keep if i not in influence.changed[narrowed] or i in influence.leading[narrowed]}
                needed = set(partial.plan(None, known=known).run)
                macs += partial.macs_of(needed & influence.again(name), tuple(width.full for width in net.widths))
        assert keeping._worth_of(keep) == (macs, kept)


@pytest.mark.parametrize(("batch", "expected"), [(64, [64, 64, 64, 64]), (256, [256]), (8, [16] * 16)])
def test_a_fast_search_calibrates_in_batches_as_large_as_those_it_scores(batch, expected, monkeypatch):
    monkeypatch.setattr(engine, "CPU_BATCH", batch)
    parts = PartialEvaluator(trained_like(tricky.Residual), batches((300,), 0), batches((400,), 1))
    parts._arrange("fast", "error")
    assert parts._used.sizes == expected
