"""Latency of any configuration on one device, from a table measured once."""

import bisect
import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from autoslim.channels.config import ChannelConfig
from autoslim.cost.latency import Latency, LatencySetup, measure, width_message
from autoslim.cost.latency_parts import Parts
from autoslim.cost.latency_records import Records, stored_points
from autoslim.errors import ConfigError
from autoslim.slimmable.family import lay_out, place
from autoslim.slimmable.materialize import materialize
from autoslim.slimmable.supernet import Supernet

Measure = Callable[..., Latency]


class LatencyTable:
    """Latency of any configuration of a supernet on one device.

    The network is cut into parts (`Parts`), each of which is measured at pairs of the widths of its input and its output.
    A prediction is `factor * sum of the parts + constant`; the two numbers are fitted to whole networks that were measured
    end to end. On a GPU it is no less than the fastest of those takes: with little to compute, time is that of launching it.
    Between measured widths the prediction is bilinear. A width that took longer than a wider one is smoothed as far as the
    spread of its own repeats (10th to 90th percentile) allows: noise goes, steps of a kernel's speed stay.

    Build it with `open_latency_table`.

    Attributes:
        net: the supernet.
        setup: device, batch, threads and backend that it holds for.
        full, narrowest: the widest and the narrowest network, measured end to end.
        message: one line where narrower networks are hardly faster on this device, else None.
        factor, constant_ms: how the sum of the parts becomes the time of the network.
        least_ms: what no prediction is below; next to nothing on a CPU.
        points: how many different (operations, settings, shapes) it holds.
        digest: of what its predictions follow from.
    """

    def __init__(self, net: Supernet, records: Records, parts: Parts, whole: "_Whole"):
        self.net, self.setup = net, records.setup
        self._names = [width.name for width in net.widths]
        self._whole = whole
        self._read(parts, records)
        self.full, self.narrowest = whole.latency(net.full()), whole.latency(net.narrowest())
        self.message = width_message(self.full, self.narrowest)
        self.points = records.count("points")
        sums = [self.sum_of_parts(config) for config in whole.calibration]
        times = [whole.latency(config).median_ms for config in whole.calibration]
        self.least_ms = min(times) if torch.device(self.setup.device).type == "cuda" else 1e-6
        self.factor, self.constant_ms = fitted_line(sums, times, self.least_ms)
        predicts = [self.factor, self.constant_ms, self.least_ms, self._fixed, self._points, self._lines, self._planes]
        self.digest = hashlib.sha256(json.dumps(predicts).encode()).hexdigest()[:16]

    def _read(self, parts: Parts, records: Records) -> None:
        surfaces: dict[tuple, np.ndarray] = {}
        for part in parts.parts:
            times = [records.latency("points", parts.key(part, widths)) for widths in parts.points(part)]
            rows = np.array([[each.median_ms, each.low_ms, each.high_ms] for each in times]).T
            grid = _smooth(*rows.reshape(3, *(len(axis.points) for axis in part.axes)))
            surfaces[part.axes] = surfaces.get(part.axes, 0) + grid
        axes = list(dict.fromkeys(axis for row in surfaces for axis in row))
        self._factors = np.array([axis.factors for axis in axes]).reshape(len(axes), len(self._names))
        self._points = [list(axis.points) for axis in axes]
        number = {axis: i for i, axis in enumerate(axes)}
        self._fixed = float(sum(grid for row, grid in surfaces.items() if not row))
        self._lines = [(number[row[0]], grid.tolist()) for row, grid in surfaces.items() if len(row) == 1]
        self._planes = [(number[row[0]], number[row[1]], grid.tolist()) for row, grid in surfaces.items() if len(row) == 2]

    def milliseconds(self, widths: ChannelConfig | Mapping[str, int]) -> float:
        """Return the predicted time of one forward pass at a configuration (or at group names to channels)."""
        return max(self.factor * self.sum_of_parts(widths) + self.constant_ms, self.least_ms)

    def sum_of_parts(self, widths: ChannelConfig | Mapping[str, int]) -> float:
        """Return the sum of the measured parts in milliseconds, before it is fitted to whole networks."""
        chosen = widths.widths if isinstance(widths, ChannelConfig) else widths
        at = (self._factors @ [chosen[name] for name in self._names]).tolist()
        places = [_place(points, x) for points, x in zip(self._points, at)]
        total = self._fixed
        for axis, row in self._lines:
            total += _between(row, *places[axis])
        for first, second, grid in self._planes:
            i, part = places[first]
            low = _between(grid[i], *places[second])
            total += low + part * (_between(grid[i + 1], *places[second]) - low) if part else low
        return total

    def check(self, count: int = 20, *, progress: bool = False) -> dict | None:
        """Compare predictions with end-to-end measurements of random configurations of all sizes.

        None of them is among those that the table was fitted to. What is measured is kept in the file.

        Returns:
            configurations; median_error and worst_error, absolute and relative, of `milliseconds`; raw_median_error and
            raw_worst_error of `sum_of_parts`; rows with predicted_ms, sum_ms, measured_ms, low_ms, high_ms and widths. None
            where the network has no other configurations.
        """
        configs = _draw(self.net, count, 1, self._whole.calibration)
        if not configs:
            return None
        self._whole.measure(configs, "checking", progress)
        rows = []
        for config in configs:
            latency = self._whole.latency(config)
            rows.append(
                {
                    "predicted_ms": self.milliseconds(config),
                    "sum_ms": self.sum_of_parts(config),
                    "measured_ms": latency.median_ms,
                    "low_ms": latency.low_ms,
                    "high_ms": latency.high_ms,
                    "widths": config.widths,
                }
            )
        found: dict = {"configurations": len(rows)}
        for prefix, key in (("", "predicted_ms"), ("raw_", "sum_ms")):
            errors = [abs(row[key] / row["measured_ms"] - 1) for row in rows]
            found |= {f"{prefix}median_error": float(np.median(errors)), f"{prefix}worst_error": max(errors)}
        return {**found, "rows": rows}


def fitted_line(sums: Sequence[float], times: Sequence[float], least: float) -> tuple[float, float]:
    """Return factor and constant of `max(factor * sum + constant, least)` with the least absolute relative error.

    A few disturbed measurements do not move it.

    Args:
        sums, times: of the parts and end to end, of a few networks, above 0; milliseconds.
        least: what no prediction is below; milliseconds.

    Returns:
        the factor, and the constant in milliseconds.
    """
    x, y = np.array(sums), np.array(times)
    first, second = np.triu_indices(len(x), 1)
    run, rise = x[second] - x[first], y[second] - y[first]
    apart = (np.abs(run) > 0.01 * x.max()) & (rise * run > 0)
    # The best line goes through two of them; where nothing rises, through the origin.
    factors = np.append(rise[apart] / run[apart], np.median(y / x))
    constants = np.append(y[first[apart]] - factors[:-1] * x[first[apart]], 0.0)
    errors = np.abs(np.maximum(np.outer(factors, x) + constants[:, None], least) / y - 1).sum(1)
    best = int(errors.argmin())
    return float(factors[best]), float(constants[best])


def open_latency_table(
    net: Supernet,
    example,
    path: str | Path | None = None,
    *,
    setup: LatencySetup | None = None,
    points: int | None = None,
    rounds: int = 3,
    calibration: int = 16,
    progress: bool = False,
    before: Callable[[Latency, Latency], None] = lambda full, narrowest: None,
    measure: Measure = measure,
) -> LatencyTable:
    """Read the latency table of a supernet, or measure it, or go on measuring where that was cut off.

    Args:
        net: the supernet; its weights do not matter. It is copied to the device of the setup if it is on another one.
        example: one input `[N, C, H, W]` or a tuple of inputs; the first example is repeated to the batch of the setup.
        path: the file, which is rewritten every few seconds; None keeps the table in memory.
        setup: device, batch, threads and backend.
        points: widths of a group that are measured, at most; by default as many as in the file, 16 in a new one.
        rounds: how often everything is measured, in turn, so that a noisy moment spoils no layer and no network.
        calibration: whole networks that the sum of the parts is fitted to, the widest and the narrowest included.
        before: takes the latencies of the widest and the narrowest network before the parts are measured, and may raise.
        measure: what takes a plain module, inputs, the setup and `whole=` to its latency.

    Raises:
        ModelError: the network cannot be traced.
        ConfigError: `points` is below 2.
        RunError: the file holds another network, or another device, batch, number of threads, backend or version of it.
    """
    setup = setup or LatencySetup()
    net = _on(net, setup.device)
    points = stored_points(path) or 16 if points is None else points
    if points < 2:
        raise ConfigError(f"points is {points}; between 2 or more widths of a layer a table interpolates")
    parts = Parts(net, setup.inputs(example), points=points)
    with Records(path, net, setup, parts, points, told=progress) as records:
        whole = _Whole(net, setup.inputs(example), records, rounds, measure)
        whole.measure([net.full(), net.narrowest()], "measuring the widest and the narrowest network", progress)
        before(whole.latency(net.full()), whole.latency(net.narrowest()))
        whole.calibration = [net.full(), net.narrowest()]
        whole.calibration += _draw(net, calibration - 2, 0, whole.calibration)
        for i in range(1, rounds + 1):
            of = f", round {i} of {rounds}"
            _measure_parts(parts, records, i, measure, "measuring layers" + of, progress)
            whole.measure(whole.calibration, "measuring whole networks" + of, progress, rounds=i)
    return LatencyTable(net, records, parts, whole)


def _on(net: Supernet, device: str) -> Supernet:
    """Return a supernet, or a copy of it, on a device: what its forward makes is made, and laid out, as it is there."""
    there = torch.empty(0, device=device).device
    return net if next(net.parameters()).device == there else _copied_to(net, there)


def _copied_to(net: Supernet, device: torch.device) -> Supernet:
    # A move keeps the layout, which on a GPU is channels last; a network that is built on a CPU has the other one.
    return place(lay_out(copy.deepcopy(net), torch.contiguous_format), device)


def _measure_parts(parts: Parts, records: Records, rounds: int, measure: Measure, about: str, progress: bool) -> None:
    wanted = {parts.key(part, widths): (part, widths) for part in parts.parts for widths in parts.points(part)}
    missing = [(i, key) for i in range(rounds) for key in wanted if records.rounds("points", key) <= i]
    bar = tqdm(missing, desc=about, unit="time", disable=not (progress and missing))
    for _, key in bar:
        module, inputs = parts.build(*wanted[key])
        records.add("points", key, measure(module, inputs, records.setup, whole=False))


class _Whole:
    """Whole networks, measured end to end.

    Attributes:
        calibration: the configurations that a table is fitted to.
    """

    def __init__(self, net: Supernet, inputs: tuple, records: Records, rounds: int, measure: Measure):
        self._net, self._inputs, self._records, self._rounds, self._measure = net, inputs, records, rounds, measure
        self.calibration: list[ChannelConfig] = []

    def measure(self, configs: Sequence[ChannelConfig], about: str, progress: bool, *, rounds: int | None = None) -> None:
        """Measure what is not yet known, in rounds over all of them; all rounds by default."""
        records = self._records
        missing = [(i, c) for i in range(rounds or self._rounds) for c in configs if records.rounds("networks", _key(c)) <= i]
        with records:
            for _, config in tqdm(missing, desc=about, unit="net", disable=not (progress and missing)):
                network = materialize(self._net, config)
                records.add("networks", _key(config), self._measure(network, self._inputs, records.setup, whole=True))

    def latency(self, config: ChannelConfig) -> Latency:
        return self._records.latency("networks", _key(config))


def _key(config: ChannelConfig) -> str:
    return " ".join(map(str, config.widths.values()))


def _draw(net: Supernet, count: int, seed: int, avoid: Sequence[ChannelConfig]) -> list[ChannelConfig]:
    """Draw different configurations of all sizes: a level for each, and every group's place up to half of its choices away."""
    generator = torch.Generator().manual_seed(seed)
    known, found = {_key(config) for config in avoid}, []
    for _ in range(20 * max(count, 0)):
        level, *places = torch.rand(1 + len(net.widths), generator=generator, dtype=torch.float64).tolist()
        places = [min(1.0, max(0.0, level + place - 0.5)) for place in places]
        config = net.make_config([w.choices[round(p * (len(w.choices) - 1))] for w, p in zip(net.widths, places)])
        if _key(config) not in known and len(found) < count:
            known.add(_key(config))
            found.append(config)
    return found


def _smooth(times: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return times that do not fall as a width grows (the mean of the least ones above and the greatest ones below), each
    within its spread."""
    above, below = times, times
    for axis in range(times.ndim):
        above = np.maximum.accumulate(above, axis)
        below = np.flip(np.minimum.accumulate(np.flip(below, axis), axis), axis)
    return np.clip((above + below) / 2, low, high)


def _place(points: list[float], x: float) -> tuple[int, float]:
    """Return the measured point at or below a coordinate, and which part of the way to the next one it is."""
    i = min(max(bisect.bisect_right(points, x) - 1, 0), max(len(points) - 2, 0))
    if len(points) == 1:
        return 0, 0.0
    return i, min(max((x - points[i]) / (points[i + 1] - points[i]), 0.0), 1.0)


def _between(row: list[float], i: int, part: float) -> float:
    return row[i] + part * (row[i + 1] - row[i]) if part else row[i]
