"""Run a network in eval mode for a while."""

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode for the length of a `with` block; every module's own flag comes back after it."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
