"""Memory that is freed and needed again."""

import platform
import subprocess
import sys

import pytest

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no other C library is told what to do")
def test_what_was_freed_is_not_fetched_from_the_kernel_again():
    done, counts = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True).stdout.splitlines()
    assert done == "True"
    before, after = map(int, counts.split())
    assert after < before / 10
