"""The processes that share the work of a search (torchrun)."""

import contextlib
import logging
import os
import platform
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.utils._pytree import tree_map

from autoslim.allocator import machine_memory
from autoslim.errors import ConfigError, RunError

log = logging.getLogger("autoslim")
WAIT = timedelta(days=7)  # the first process may measure latencies for hours before the others go on
MEET = timedelta(minutes=10)  # over nccl they share only once all are there


def first_process() -> bool:
    """Tell whether this is the first of several processes, or the only one."""
    return _processes()[0] == 0


def _processes() -> tuple[int, int]:
    """Return which process of how many this is; a rank without a number of processes says nothing."""
    count = int(os.environ.get("WORLD_SIZE", 1))
    return int(os.environ.get("RANK", 0)) if count > 1 else 0, count


class Ranks:
    """One process of several that all hold the same supernet and images; every process ends with the same results.

    Attributes:
        rank, count: which process of how many; 0 of 1 where no launcher says so.
    """

    _gpus = None  # the group that shares over nccl, of all instances

    def __init__(self):
        self.rank, self.count = _processes()
        if self.count > 1 and not dist.is_initialized():
            try:
                dist.init_process_group("gloo", timeout=WAIT)
            except ValueError as error:  # MASTER_ADDR and the like are missing
                raise RunError(
                    f"WORLD_SIZE is {self.count}, and the processes cannot find each other ({error}); start them with torchrun, or "
                    "unset WORLD_SIZE"
                ) from error

    def device(self, name: str) -> str:
        """Return the device of this process: of several GPUs its own, which becomes the current one, unless one is named."""
        # Where no launcher counts the processes of a machine, they are taken to fill one machine after another.
        if name in ("auto", "cuda") and self.count > 1 and torch.cuda.is_available():
            name = f"cuda:{int(os.environ.get('LOCAL_RANK', self.rank)) % torch.cuda.device_count()}"
            torch.cuda.set_device(name)  # what names no GPU would take memory of the first one
        return name

    def connect(self, device: torch.device) -> None:
        """Share results over nccl from here on where each process has a GPU of its own, else over gloo; all call it together.

        Args:
            device: of this process.
        """
        Ranks._gpus = None  # of a search that failed
        if self.count == 1:
            return
        card = _card(device) if device.type == "cuda" and dist.is_nccl_available() else None
        cards = set(self.share({self.rank: card}).values())
        if len(cards) < self.count or None in cards:
            return
        torch.cuda.set_device(device)
        group, told = dist.new_group(backend="nccl", timeout=MEET), ""
        try:
            dist.all_gather_object([None] * self.count, None, group=group)  # connects
        except dist.DistError as error:
            told = str(error).strip().rpartition("\n")[2] or type(error).__name__
        failed = [each for each in self.share({self.rank: told}).values() if each]
        if failed:  # slices of one GPU, no shared memory, other versions
            log.warning("results are shared over gloo, as nccl cannot connect: %s", failed[0])
        else:
            Ranks._gpus = group

    def close(self) -> None:
        """Leave what `connect` set up; all processes do together, once they have shared their last results."""
        if Ranks._gpus is not None:
            dist.destroy_process_group(Ranks._gpus)
            Ranks._gpus = None

    def memory_budget(self, device: torch.device, given: float | None = None) -> float:
        """Return the bytes that a search takes in every process: by default half of its share of what is free on its GPU; on a CPU
        half of its share of the memory of its machine or container, 4 GB at most.

        All processes ask together and get the smallest of these, as the sizes of batches follow from it.

        Args:
            device: of this process.
            given: bytes in place of the default.

        Raises:
            ConfigError: they are no number above 0.
        """
        if given is not None:
            if not given > 0:
                raise ConfigError(f"memory_budget {given} is no number of bytes above 0; pass 4e9 for 4 GB")
            return min(given, 2.0**60)
        card, memory = platform.node(), machine_memory()
        if device.type == "cuda":
            kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for what comes
            card, memory = _card(device), torch.cuda.mem_get_info(device)[0] + kept
        of_all = self.share({self.rank: (card, memory)}).values()
        sharing = Counter(card for card, _ in of_all)
        least = min(memory / (2 * sharing[card]) for card, memory in of_all)
        return least if device.type == "cuda" else min(4e9, least)

    def wait(self) -> None:
        """Wait until all processes are here: over gloo, so that no GPU is kept busy, and that one which ended is noticed."""
        if self.count > 1:
            with _while_all_run():
                dist.barrier()

    def own(self, items: Iterable[int]) -> list[int]:
        """Return the items that are this process's to work on."""
        return [item for item in items if item % self.count == self.rank]

    def share(self, results: dict) -> dict:
        """Return the results of all processes, by their keys, on the CPU."""
        results = tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, torch.Tensor) else leaf, results)
        if self.count == 1:
            return results
        if Ranks._gpus is not None:
            self.wait()
        gathered: list = [None] * self.count
        with _while_all_run():
            dist.all_gather_object(gathered, results, group=Ranks._gpus)
        merged = {key: value for part in gathered for key, value in part.items()}
        return dict(sorted(merged.items()))


@contextlib.contextmanager
def _while_all_run() -> Iterator[None]:
    """Say in one line that another process ended."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        told = str(error).strip().rpartition("\n")[2]
        raise RunError(f"another process of this command ended or cannot be reached, see what it says ({told})") from error


def _card(device: torch.device) -> tuple[str, str]:
    """Return the machine and the GPU that a device is."""
    return platform.node(), str(getattr(torch.cuda.get_device_properties(device), "uuid", device))
