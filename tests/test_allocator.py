"""Memory that is freed and needed again."""

import math
import os
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

import autoslim
from autoslim import allocator
from autoslim.allocator import FreedMemory, keep_freed_memory
from autoslim.search import evaluate
from autoslim.training import epoch

COUNT = """
import resource, torch
from autoslim.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(20_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
print(keep_freed_memory())
for _ in range(3):
    faults()
print(before, faults())
"""


FREED = """
import sys, torch
from autoslim.allocator import FreedMemory, _resident, keep_freed_memory

keep_freed_memory()
freed, before = FreedMemory(float(sys.argv[1])), _resident()
values = [(torch.ones(5_000_000), torch.ones(100)) for _ in range(40)]
kept = [small for _, small in values]
del values
freed.give_back()
print(_resident() - before, sum(map(float, map(torch.sum, kept))))
"""


@pytest.mark.parametrize("seed", ["0", "1", "2"])  # where small values lie among large ones differs with it
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no other C library is told what to do")
def test_a_process_that_keeps_little_takes_little(seed):
    def takes(room):
        command, environment = [sys.executable, "-c", FREED, str(room)], os.environ | {"PYTHONHASHSEED": seed}
        grown, kept = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()
        assert float(kept) == 4000  # what is kept stays as it is
        return int(grown)

    assert takes(1e12) > 7e8 and takes(2e8) < 1e8


def test_without_glibc_nothing_is_handed_back(monkeypatch):
    monkeypatch.setattr(allocator, "_function", lambda name: None)
    taken = iter([10, 1000, 1000])
    monkeypatch.setattr(allocator, "_resident", lambda: next(taken))
    FreedMemory(0).give_back()
    assert next(taken, None) is None and keep_freed_memory() is False


@pytest.mark.parametrize(("room", "processes", "expected"), [(math.inf, None, 4e9), (1e9, None, 1e9), (8e9, 4, 1e9)])
def test_no_process_waits_for_more_than_its_share_of_half_of_the_memory(monkeypatch, room, processes, expected):
    taken, trims = [100.0], []
    monkeypatch.setattr(allocator, "machine_memory", lambda: 8e9)
    monkeypatch.setattr(allocator, "_resident", lambda: taken[-1])
    monkeypatch.setattr(allocator, "_function", lambda name: lambda pad: trims.append(taken[-1]))
    if processes:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    freed = FreedMemory(room)
    for now in (100 + expected, 101 + expected):
        taken.append(now)
        freed.give_back()
    assert trims == [100.0, 101 + expected]


def test_training_and_scoring_hand_back_what_they_free(monkeypatch):
    asked = []

    class Freed:
        def give_back(self):
            asked.append(None)

    for module in (epoch, evaluate):
        monkeypatch.setattr(module, "FreedMemory", Freed)
    net = autoslim.Supernet(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(32, 5)), torch.randn(1, 3, 2, 2), divisor=4)
    data = [(torch.randn(4, 3, 2, 2), torch.randint(0, 5, (4,)))] * 3
    autoslim.train_supernet(net, data, epochs=2)
    assert len(asked) == 6
    autoslim.SupernetEvaluator(net, data, data).score(net.full())
    assert len(asked) == 7


def test_memory_is_not_handed_back_again_and_again(monkeypatch):
    taken, trims = [100], []
    monkeypatch.setattr(allocator, "_resident", lambda: taken[-1])
    monkeypatch.setattr(allocator, "_function", lambda name: lambda pad: trims.append(taken[-1]))
    freed = FreedMemory(1000)
    for now in (1100, 1101, 1300, 1351, 1352, 1400):
        taken.append(now)
        freed.give_back()
    assert trims == [100, 1101, 1352]  # all that is taken is needed, and a quarter of the room more is waited for


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no other C library is told what to do")
def test_what_was_freed_is_not_fetched_from_the_kernel_again():
    done, counts = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True).stdout.splitlines()
    assert done == "True"
    before, after = map(int, counts.split())
    assert after < before / 10
