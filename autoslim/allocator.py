"""The memory of this process: what becomes of it when it is freed, and how much there is."""

import contextlib
import ctypes
import math
import os
import sys
from pathlib import Path

# Parameters of glibc's mallopt, and bytes.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_KEPT, _AT_ONCE = 2**31 - 1, 200_000_000


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for what it needs next; returns False where the C library is not glibc.

    Otherwise glibc hands every tensor of over 32 MB back to the kernel, which clears each page anew for the next one: the
    activations of a batch, layer after layer.
    """
    mallopt = _function("mallopt")
    if mallopt is None:
        return False
    return all(mallopt(*option) for option in ((_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, _AT_ONCE), (_MMAP_THRESHOLD, _KEPT)))


class FreedMemory:
    """Hands freed memory back to the kernel where keeping it lets this process grow.

    What is freed between values that stay leaves holes, which the next values do not all fit into: a search that keeps a
    gigabyte came to take fourteen. What is free now is handed back at once.

    Args:
        room: bytes that the process may take more than it does now, before they are handed back; at most, and by default, its
            share of half of the memory of its machine or container.
    """

    def __init__(self, room: float = math.inf):
        self._trim = _function("malloc_trim") or (lambda pad: None)
        self._room = min(room, machine_memory() / (2 * int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
        self._trim(0)
        self._most = self._enough = _resident() + self._room

    def give_back(self) -> None:
        """Hand back what is free, if the process takes too much; then not before it has grown by a quarter of the room."""
        if _resident() > self._enough:
            self._trim(0)
            self._enough = max(self._most, _resident() + self._room / 4)


def _function(name: str):
    """Return a function of glibc; None where the C library has none of that name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def _resident() -> int:
    """Return the bytes of memory that this process takes; 0 where that is not known."""
    with contextlib.suppress(AttributeError, OSError):  # on other systems
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def machine_memory() -> float:
    """Return the bytes of memory of this machine, or those that its container may take, as far as it tells."""
    known = [math.inf]
    with contextlib.suppress(AttributeError, ValueError, OSError):  # on Windows
        known.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(ValueError, OSError):
        for path in _container_limits(Path("/proc/self/cgroup").read_text()):
            with contextlib.suppress(ValueError, OSError):  # "max" where there is no limit
                known.append(int(path.read_text()))
    return min(known)


def _container_limits(listed: str) -> list[Path]:
    """Return the files that may limit the memory of a process, by its lines in /proc/self/cgroup, versions 1 and 2."""
    root, found = Path("/sys/fs/cgroup"), []
    for line in listed.splitlines():
        _, kinds, place = line.split(":", 2)
        if not kinds:
            mount, name = root, "memory.max"
        elif "memory" in kinds.split(","):
            mount, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        place = mount / place.lstrip("/")  # inside a container it may not be there
        found += [folder / name for folder in (place, *place.parents) if folder.is_relative_to(mount)]
    return found
