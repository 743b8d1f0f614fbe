"""Latency of a network, measured."""

import statistics
import time
from dataclasses import asdict, dataclass

import torch
from torch import nn

from autoslim.slimmable.modes import eval_mode


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass in milliseconds.

    Attributes:
        median_ms, low_ms, high_ms: median, and the 10th and 90th percentile.
        repeats: measured passes.
        device: where, with the number of threads on a CPU.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    repeats: int
    device: str

    def to_json(self) -> dict:
        """Return the latency as a JSON object."""
        return asdict(self)


@torch.inference_mode()
def measure_latency(network: nn.Module, inputs: tuple, *, repeats: int = 50, warmup: int = 10) -> Latency:
    """Time forward passes of a network in eval mode.

    Args:
        inputs: positional inputs `[N, C, H, W]` on the network's device.
        repeats, warmup: measured passes, and passes before them.
    """
    device = next(network.parameters()).device
    times = []
    with eval_mode(network):
        for index in range(warmup + repeats):
            _wait(device)
            started = time.perf_counter()
            network(*inputs)
            _wait(device)
            if index >= warmup:
                times.append(1000 * (time.perf_counter() - started))
    deciles = statistics.quantiles(times, n=10)
    where = f"{device} ({torch.get_num_threads()} threads)" if device.type == "cpu" else torch.cuda.get_device_name(device)
    return Latency(statistics.median(times), deciles[0], deciles[-1], repeats, where)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
