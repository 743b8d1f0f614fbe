"""The file of a latency table: what was measured, for which network, where and how."""

import contextlib
import hashlib
import json
import logging
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from autoslim import __version__
from autoslim.cost.latency import Latency, LatencySetup
from autoslim.cost.latency_parts import Parts
from autoslim.errors import RunError
from autoslim.files import in_turn, read_json, write_json
from autoslim.slimmable.supernet import Supernet

log = logging.getLogger("autoslim")
_FORMAT = "autoslim.latency/1"


class Records:
    """Measured latencies by what was measured, in a file that is rewritten every few seconds while a `with` block runs.

    Other processes that would measure into the same file wait for the end of the block, and find what was measured there.
    """

    def __init__(self, path, net: Supernet, setup: LatencySetup, parts: Parts, points: int, *, told: bool):
        self.setup, self._told = setup, told
        self._path = None if path is None else Path(path)
        dtype = next(p.dtype for p in net.parameters())
        about = {
            "format": _FORMAT,
            "versions": _versions(setup),
            "network": {"name": type(net.source).__name__, "digest": _digest(net, parts)},
            "setup": {**asdict(setup), "device_name": setup.device_name, "dtype": str(dtype).removeprefix("torch.")},
        }
        self._about, self._widths = about, points
        self._document = {**about, "networks": {}, "points": {}}
        self._blocks, self._turn, self._saved = 0, contextlib.ExitStack(), time.monotonic()
        self._read()

    def _read(self) -> None:
        """Take over what the file holds."""
        mine = self._document
        if self._path is not None and self._path.exists():
            self._document = _check(read_json(self._path, RunError), self._about, self._path)
        self._changed = self._document.get("widths") != self._widths
        self._document["widths"] = self._widths
        for kind in ("networks", "points"):
            rows = self._document[kind]
            more = {key: row for key, row in mine[kind].items() if len(row) > len(rows.get(key, ()))}
            self._changed |= bool(more)
            rows |= more

    def rounds(self, kind: str, key: str) -> int:
        return len(self._document[kind].get(key, ()))

    def count(self, kind: str) -> int:
        return len(self._document[kind])

    def add(self, kind: str, key: str, latency: Latency) -> None:
        row = [round(latency.median_ms, 6), round(latency.low_ms, 6), round(latency.high_ms, 6), latency.repeats]
        self._document[kind].setdefault(key, []).append(row)
        self._changed = True
        if time.monotonic() - self._saved > 5:
            self.save()

    def latency(self, kind: str, key: str) -> Latency:
        return Latency.over([Latency(*row, self.setup.device_name) for row in self._document[kind][key]])

    def save(self) -> None:
        if self._path is not None and self._changed:
            write_json(self._path, self._document, compact="points")
        self._changed, self._saved = False, time.monotonic()

    def __enter__(self) -> "Records":
        if self._path is not None and not self._blocks:
            with contextlib.ExitStack() as stack:
                stack.enter_context(in_turn(self._path, self._tell))
                self._read()
                self._turn = stack.pop_all()
        self._blocks += 1
        return self

    def __exit__(self, *error) -> None:
        self._blocks -= 1
        if not self._blocks:
            with self._turn:
                self.save()

    def _tell(self) -> None:
        if self._told:
            log.info("another process measures into %s; this one goes on when that is done", self._path)


def read_setup(path: str | Path) -> LatencySetup:
    """Return the setup that a latency table was measured under.

    Raises:
        RunError: the file is no latency table.
    """
    document = read_json(Path(path), RunError)
    try:
        return LatencySetup(**{name: document["setup"][name] for name in ("device", "batch", "threads", "backend")})
    except (KeyError, TypeError) as error:
        raise RunError(f"{path} is no latency table ({_FORMAT}); write one with `autoslim latency-table`") from error


def stored_points(path) -> int | None:
    """Return how many widths of a group the table in a file was measured at; None where there is none that tells."""
    document = read_json(Path(path), RunError) if path is not None and Path(path).exists() else None
    points = document.get("widths") if isinstance(document, dict) else None
    return points if isinstance(points, int) and points >= 2 else None


def _check(document, about: dict, path: Path) -> dict:
    """Return the document of a table if it was made for the same network and setup."""
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise RunError(f"{path} is no latency table ({_FORMAT}); pass another file to write one")
    try:
        # Other versions compute with other kernels.
        theirs, ours = ({**d["setup"], "network": d["network"], **d["versions"]} for d in (document, about))
        ours.pop("autoslim")
        different = [name for name in ours if theirs.get(name) != ours[name]]
        whole = all(len(row) == 4 for kind in ("points", "networks") for rows in document[kind].values() for row in rows)
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise RunError(f"{path} is a damaged latency table; remove it, or pass another file")
    if different:
        told = "; ".join(f"{name} {_short(theirs.get(name))}, not {_short(ours[name])}" for name in different)
        raise RunError(f"{path} was measured for another case ({told}); pass another file, or remove it")
    return document


def _short(value) -> str:
    return f"{value['name']} ({value['digest']})" if isinstance(value, dict) else str(value)


def _digest(net: Supernet, parts: Parts) -> str:
    """Return what tells networks apart: groups, choices, and every operation at full width."""
    full = np.array([width.full for width in net.widths])
    about = [{name: list(row) for name, row in net.choices.items()}, [parts.key(part, full) for part in parts.parts]]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]


def _versions(setup: LatencySetup) -> dict[str, str]:
    found = {"autoslim": __version__, "torch": torch.__version__}
    if setup.backend == "onnxruntime":
        from autoslim.cost.onnx_backend import onnx_versions

        found |= onnx_versions()
    return found
