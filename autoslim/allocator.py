"""What the C library does with memory that is freed."""

import ctypes
import sys

# Parameters of glibc's mallopt, and bytes.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_KEPT, _AT_ONCE = 2**31 - 1, 200_000_000


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for what it needs next; returns False where the C library is not glibc.

    Otherwise glibc hands every tensor of over 32 MB back to the kernel, which clears each page anew for the next one: the
    activations of a batch, layer after layer.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return all(mallopt(*option) for option in ((_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, _AT_ONCE), (_MMAP_THRESHOLD, _KEPT)))
