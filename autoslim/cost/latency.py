"""Latency of a network, measured."""

import contextlib
import functools
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils._pytree import tree_map

from autoslim.channels.trace import as_inputs
from autoslim.errors import RunError
from autoslim.slimmable.family import place
from autoslim.slimmable.modes import eval_mode

BACKENDS = ("torch", "onnxruntime")


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

    @classmethod
    def of(cls, times: Sequence[float], device: str) -> "Latency":
        """Return the latency of measured times in milliseconds."""
        deciles = statistics.quantiles(times, n=10) if len(times) > 1 else [times[0]]
        low, high = max(deciles[0], min(times)), min(deciles[-1], max(times))  # those of few lie outside
        return cls(statistics.median(times), low, high, len(times), device)

    @classmethod
    def over(cls, rounds: Sequence["Latency"]) -> "Latency":
        """Return the latency of several rounds: the median of their medians, and of their percentiles."""
        middle = [statistics.median(getattr(each, name) for each in rounds) for name in ("median_ms", "low_ms", "high_ms")]
        return cls(*middle, sum(each.repeats for each in rounds), rounds[0].device)


@dataclass(frozen=True)
class LatencySetup:
    """Where and how latency is measured.

    Attributes:
        device: "cpu", "cuda" or "cuda:N".
        batch: examples in one forward pass.
        threads: threads of the CPU.
        backend: "torch", or "onnxruntime" on the CPU.

    Raises:
        RunError: a value is out of range, or the backend does not measure on the device.
    """

    device: str = "cpu"
    batch: int = 1
    threads: int = 1
    backend: str = "torch"

    def __post_init__(self):
        for name in ("batch", "threads"):
            if getattr(self, name) < 1:
                raise RunError(f"{name} {getattr(self, name)} is below 1; latency needs at least one")
        if self.backend not in BACKENDS:
            raise RunError(f"backend {self.backend!r} is unknown; pass {' or '.join(BACKENDS)}")
        if self.backend == "onnxruntime" and torch.device(self.device).type != "cpu":
            raise RunError(f"onnxruntime is measured on the CPU, not on {self.device!r}; pass cpu, or the torch backend")

    @property
    def label(self) -> str:
        """A part of a file name that tells setups apart, and versions of torch."""
        device = self.device.replace(":", "")
        backend = "" if self.backend == "torch" else f"{self.backend}-"
        return f"{device}-batch{self.batch}-threads{self.threads}-{backend}torch{torch.__version__.partition('+')[0]}"

    @property
    def device_name(self) -> str:
        """The name that the device gives itself."""
        return _cpu_name() if torch.device(self.device).type == "cpu" else torch.cuda.get_device_name(self.device)

    def inputs(self, example) -> tuple:
        """Return the inputs that are measured: the first example `[1, C, H, W]`, as often as the batch has examples."""

        def repeat(value):
            if not isinstance(value, torch.Tensor):
                return value
            whole = value[:1].detach().expand(self.batch, *value.shape[1:])
            # As the batches of `Loader` are laid out.
            on_gpu = torch.device(self.device).type == "cuda"
            layout = torch.channels_last if on_gpu and value.dim() == 4 else torch.contiguous_format
            return whole.to(self.device).clone(memory_format=layout)

        return tree_map(repeat, as_inputs(example))


@functools.cache
def _cpu_name() -> str:
    known: dict[str, str] = {}
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    if known.get("model name"):
        return known["model name"]
    names = [platform.processor() or platform.machine()]
    if "CPU part" in known:  # Linux on ARM, which has no names for CPUs
        names.append(f"implementer {known.get('CPU implementer')} part {known['CPU part']}")
    with contextlib.suppress(OSError):
        names.append(Path("/proc/device-tree/model").read_text(encoding="utf-8").strip("\0\n "))
    if platform.system() == "Darwin":
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            brand = ["sysctl", "-n", "machdep.cpu.brand_string"]
            names.append(subprocess.run(brand, capture_output=True, text=True, check=True).stdout.strip())
    return ", ".join(name for name in names if name)


@contextlib.contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Let torch compute with a number of CPU threads for the length of a `with` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def time_calls(
    call: Callable[[], object],
    device: torch.device,
    *,
    repeats: int,
    warmup: int,
    seconds: float,
    row: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Return the milliseconds of a call, measured until there are `repeats` times and they add up to `seconds`.

    Args:
        row: seconds that calls in a row take, which are timed as one; a GPU works through them without waiting in between.
        clock: seconds now.
    """

    def spend(calls: int) -> float:
        _wait(device)
        started = clock()
        for _ in range(calls):
            call()
        _wait(device)
        return clock() - started

    for _ in range(warmup):
        call()
    calls = max(1, math.ceil(row / max(spend(1), 1e-6))) if row else 1
    times: list[float] = []
    total = 0.0
    while len(times) < repeats or total < seconds:
        spent = spend(calls)
        total += spent
        times.append(1000 * spent / calls)
    return times


def measure(network: nn.Module, inputs: tuple, setup: LatencySetup, *, whole: bool = True) -> Latency:
    """Time one round of forward passes of a plain network, or of a part of one, under a setup.

    On one CPU thread this is the time that the thread computes: that of a clock on the wall where nothing else runs, and
    no longer where other programs take the core for a while. Elsewhere it is that of a clock on the wall.

    Args:
        network: its modules are moved to the device.
        inputs: what `setup.inputs` returns.
        whole: wait for every pass, as a user of the network does. A part is one of many that a GPU is given in a row.

    Raises:
        RunError: the backend is not installed, or does not run the network.
    """
    device = torch.device(setup.device)
    floors = {"repeats": 20, "warmup": 3, "seconds": 0.1} if whole else {"repeats": 10, "warmup": 3, "seconds": 0.003}
    row = 0.002 if device.type == "cuda" and not whole else 0.0
    place(network, device)
    with using_threads(setup.threads), torch.inference_mode(), eval_mode(network):
        if setup.backend == "onnxruntime":
            from autoslim.cost.onnx_backend import onnx_call

            call = onnx_call(network, inputs, threads=setup.threads)
        else:
            call = functools.partial(network, *inputs)
        one = device.type == "cpu" and setup.threads == 1
        clock = time.thread_time if one and sys.platform != "win32" else time.perf_counter  # there it ticks every 16 ms
        times = time_calls(call, device, row=row, clock=clock, **floors)
    return Latency.of(times, setup.device_name)


def measure_rounds(network: nn.Module, example, setup: LatencySetup, *, rounds: int = 5) -> Latency:
    """Time a plain network end to end, in several rounds, as other programs may disturb one of them.

    Args:
        network: it is moved to the device.
        example: one input `[N, C, H, W]` or a tuple of inputs; the first example is repeated to the batch of the setup.

    Raises:
        RunError: the backend is not installed, or does not run the network.
    """
    inputs = setup.inputs(example)
    return Latency.over([measure(network, inputs, setup) for _ in range(rounds)])


@dataclass(frozen=True)
class Remeasured:
    """A finished network against its target.

    Attributes:
        latency: measured end to end.
        target_ms: what it was to stay within.
        holds: whether the median does.
    """

    latency: Latency
    target_ms: float
    holds: bool

    def to_json(self) -> dict:
        """Return the measurement as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict) -> "Remeasured":
        """Return what `to_json` wrote."""
        return cls(Latency(**document["latency"]), document["target_ms"], document["holds"])


def remeasure(network: nn.Module, example, *, target_ms: float, setup: LatencySetup, rounds: int = 5) -> Remeasured:
    """Measure a plain network end to end and compare it with its target.

    Args:
        network: what `materialize` returns for a configuration; it is moved to the device.
        example: one input `[N, C, H, W]` or a tuple of inputs; the first example is repeated to the batch of the setup.
        setup: that of the latency table (`LatencyTable.setup`).
    """
    latency = measure_rounds(network, example, setup, rounds=rounds)
    return Remeasured(latency, target_ms, latency.median_ms <= target_ms)


def width_message(full: Latency, narrowest: Latency) -> str | None:
    """Return one line where narrower networks are hardly faster on a device: the narrowest takes over 80 % of the full one's time.

    Args:
        full, narrowest: the widest and the narrowest network, measured end to end.
    """
    part = narrowest.median_ms / full.median_ms
    if part <= 0.8:
        return None
    return (
        f"width hardly helps on {full.device}: the narrowest network takes {part:.0%} of the full one's time "
        f"({narrowest.median_ms:.3g} of {full.median_ms:.3g} ms); take a larger batch, another device, or a target in multiply-adds"
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
