"""Find the channel numbers of a convolutional network: one supernet, one greedy search, every budget."""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "AutoSlimError": "errors",
    "Budgets": "cost.budgets",
    "ChannelConfig": "channels.config",
    "Cost": "cost.table",
    "CostTable": "cost.table",
    "Grid": "channels.grid",
    "LatencySetup": "cost.latency",
    "Recipe": "training.recipe",
    "Score": "search.evaluate",
    "SearchTrace": "search.trace",
    "Supernet": "slimmable.supernet",
    "SwitchableNet": "slimmable.switchable",
    "SupernetEvaluator": "search.evaluate",
    "build_supernet": "slimmable.family",
    "calibrate": "slimmable.calibrate",
    "evaluate": "search.evaluate",
    "evolution_search": "search.orders",
    "find_groups": "channels.groups",
    "greedy_search": "search.greedy",
    "initialize": "training.initialize",
    "join_configs": "slimmable.switchable",
    "keep_freed_memory": "allocator",
    "load_data": "data",
    "load_space": "spaces",
    "materialize": "slimmable.materialize",
    "open_latency_table": "cost.latency_table",
    "peak_memory_bytes": "cost.memory",
    "random_search": "search.orders",
    "retrain": "training.loop",
    "score_stages": "search.stages",
    "switch_configs": "slimmable.family",
    "train_supernet": "training.loop",
    "train_switches": "training.loop",
    "uniform_search": "search.orders",
    "uniform_widths": "slimmable.family",
    "width_config": "slimmable.family",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    # Imported on first use, so that `autoslim --help` does not wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"module 'autoslim' has no attribute {name!r}")
    return getattr(importlib.import_module(f"autoslim.{_HOMES[name]}"), name)


def __dir__():
    return [*globals(), *__all__]
