"""Memory that is freed and needed again."""

import platform
import subprocess
import sys

import pytest

from autoslim import allocator
from autoslim.allocator import FreedMemory, keep_freed_memory

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


HOLES = """
import sys, torch
from autoslim.allocator import FreedMemory, _resident, keep_freed_memory

keep_freed_memory()
freed = FreedMemory(float(sys.argv[1]))
before, most, kept = _resident(), 0, []
for number in range(60):
    freed.give_back()
    value = torch.ones(5_000_000 + 10_000 * number)  # does not fit into the hole of the last one
    kept.append(torch.ones(100))
    most = max(most, _resident() - before)
    del value
print(most, sum(map(float, map(torch.sum, kept))))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no other C library is told what to do")
def test_a_process_that_keeps_little_takes_little():
    def takes(room):
        told = subprocess.run([sys.executable, "-c", HOLES, str(room)], capture_output=True, text=True, check=True).stdout.split()
        assert float(told[1]) == 6000  # what is kept stays as it is
        return int(told[0])

    assert takes(1e12) > 1e9 and takes(2e8) < 3e8


def test_without_glibc_nothing_is_handed_back(monkeypatch):
    monkeypatch.setattr(allocator, "_function", lambda name: None)
    monkeypatch.setattr(allocator, "_resident", lambda: 10)
    FreedMemory(0).give_back()
    assert keep_freed_memory() is False


def test_memory_is_not_handed_back_again_and_again(monkeypatch):
    taken, trims = [100], []
    monkeypatch.setattr(allocator, "_resident", lambda: taken[-1])
    monkeypatch.setattr(allocator, "_function", lambda name: lambda pad: trims.append(taken[-1]))
    freed = FreedMemory(1000)
    for now in (1100, 1101, 1300, 1351, 1352, 1400):
        taken.append(now)
        freed.give_back()
    assert trims == [1101, 1352]  # all that is taken is needed, and a quarter of the room more is waited for


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no other C library is told what to do")
def test_what_was_freed_is_not_fetched_from_the_kernel_again():
    done, counts = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True).stdout.splitlines()
    assert done == "True"
    before, after = map(int, counts.split())
    assert after < before / 10
