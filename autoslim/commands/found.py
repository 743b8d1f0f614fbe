"""What a search found, in its folder."""

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from autoslim.channels.config import FORMAT, ChannelConfig
from autoslim.commands.budgets import RunBudgets
from autoslim.cost.budgets import Target
from autoslim.cost.latency import Remeasured
from autoslim.errors import ConfigError, RunError
from autoslim.files import read_json
from autoslim.search.evaluate import Score


def found_configs(search: Path, *, damaged: bool = True) -> list[ChannelConfig]:
    """Return what was found in a search folder, the most expensive first; uniform ones and other JSON files are passed over.

    Args:
        damaged: whether files that are damaged are told of; they are passed over, too, if not.

    Raises:
        RunError: a file cannot be read.
        ConfigError: a configuration is damaged.
    """
    found = []
    for path in sorted(search.glob("*.json")):
        with contextlib.suppress(*(() if damaged else (RunError, ConfigError))):
            document = read_json(path, RunError)
            if isinstance(document, dict) and document.get("format") == FORMAT:
                found.append(ChannelConfig.load(path))
    searched = [config for config in found if config.provenance.get("kind") == "searched" and "macs" in config.cost]
    return sorted(searched, key=lambda config: -config.cost["macs"])


def check_found(out: Path, targets: list[Target], effort: Mapping) -> None:
    """Raise RunError where a network of an earlier search would give way to one of another target, or of less searching."""
    for target in targets:
        path = out / f"{target.label}.json"
        try:
            known = ChannelConfig.load(path).provenance if path.exists() else {}
        except ConfigError:
            continue
        before = known.get("target", target.amounts)
        if not all(math.isclose(before.get(kind, 0), amount, rel_tol=1e-9) for kind, amount in target.amounts.items()):
            amounts = ", ".join(f"{kind} {before.get(kind)}, not {amount}" for kind, amount in target.amounts.items())
            raise RunError(f"{path} is there for another target ({amounts}); pass another --out")
        for option in ("swaps", "evaluations"):
            if known.get(option, 0) > effort.get(option, 0):
                raise RunError(f"{path} was found with --{option} {known[option]}; pass as many or more, or another --out")


def save(config: ChannelConfig, path: Path, budgets: RunBudgets, target: Target, prefix: str) -> tuple[ChannelConfig, list[str]]:
    """Write a configuration, measured again where its latency has a target; returns it, and what is to be said of it."""
    notes = []
    before = _measured_before(path, config)
    if remeasured := before or budgets.remeasure(config, target):
        config = replace(config, provenance={**config.provenance, "latency": remeasured.to_json()})
        notes.append(_told(path, prefix, remeasured) + (", as measured before" if before else ""))
    config.save(path)
    return config, notes


def _measured_before(path: Path, config: ChannelConfig) -> Remeasured | None:
    """Return what a found network took when the same search measured it, so that it writes the same file again."""
    try:
        stored = ChannelConfig.load(path).to_json() if path.exists() else {}
        measured = stored["provenance"].pop("latency")
        return Remeasured.from_json(measured) if stored == json.loads(json.dumps(config.to_json())) else None
    except (ConfigError, KeyError, TypeError):
        return None


def _told(path: Path, prefix: str, found: Remeasured) -> str:
    latency = found.latency
    digits = next((d for d in range(3, 7) if f"{latency.median_ms:.{d}g}" != f"{found.target_ms:.{d}g}"), 3)
    low, median, high, target = (
        f"{float(f'{ms:.{digits}g}'):g}" for ms in (latency.low_ms, latency.median_ms, latency.high_ms, found.target_ms)
    )
    text = f"{path}: {median} ms ({low} to {high}) on {latency.device}"
    # The uniform one is there for comparison.
    return text if prefix else f"{text}; {target} ms {'holds' if found.holds else 'is missed'}"


def walked(trace, out: Path, whole: bool) -> list[tuple[int, Score]]:
    """Return multiply-adds and scores along the way down; of what was found only, unless all were scored as those are."""
    taken = [(c.macs, Score(c.error, c.loss, c.images)) for c in trace.path_taken()]
    if whole:
        return taken
    parts = ("error", "loss", "images")
    known = [config for config in found_configs(out, damaged=False) if config.estimate.keys() >= set(parts)]
    found = [(config.cost["macs"], Score(*(config.estimate[part] for part in parts))) for config in known]
    return [taken[0], *(row for row in found if row[0] != taken[0][0])]
