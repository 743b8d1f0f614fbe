"""BN post-statistics: exact mean and variance of every batch norm input, for the configuration that is set."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autoslim.channels.trace import as_inputs, to_device
from autoslim.errors import DataError
from autoslim.slimmable.modes import eval_mode


class _Moments:
    """Mean and biased variance of all values seen, combined over batches of any size in float64 (Chan et al. 1979)."""

    def __init__(self):
        self.count = 0
        self.mean: Tensor | None = None
        self.squares: Tensor | None = None

    def add(self, count: int, mean: Tensor, var: Tensor) -> None:
        mean, squares = mean.double(), var.double() * count
        if self.count == 0:
            self.count, self.mean, self.squares = count, mean, squares
            return
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.squares = self.squares + squares + delta.square() * (self.count * count / total)
        self.count = total


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """Return the batch norm layers that keep statistics for eval mode."""
    return [m for m in network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


@torch.no_grad()
def calibrate(network: nn.Module, batches: Iterable) -> nn.Module:
    """Re-estimate the BN statistics of a network, or of a supernet at the configuration that is set (US-Nets, section 3.4).

    One pass: each batch is normalised by its own statistics, as in training; the mean and the (biased) variance over all
    values are kept for eval mode, batches weighted by their size. Everything but batch norm runs in eval mode. Weights,
    random state and train/eval flags are left as they are.

    Args:
        network: a Supernet, or any network with batch norm.
        batches: `(input, target)` pairs or inputs `[N, C, H, W]`; targets are not used.

    Raises:
        DataError: there is no batch.
    """
    moments: dict[_BatchNorm, _Moments] = {}

    def measure(layer: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        mean, var = _batch_moments(x)
        moments.setdefault(layer, _Moments()).add(x.numel() // x.shape[1], mean, var)
        _store(layer, mean, var)

    hooks = [layer.register_forward_pre_hook(measure) for layer in batch_norms(network)]
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    seen = 0
    try:
        with eval_mode(network):
            for batch in batches:
                x = batch[0] if isinstance(batch, (tuple, list)) else batch
                network(*as_inputs(to_device(x, device)))
                seen += 1
        for layer, moment in moments.items():
            _store(layer, moment.mean, moment.squares / moment.count)
    finally:
        for hook in hooks:
            hook.remove()
    if seen == 0:
        raise DataError("BN calibration got 0 batches; pass at least one batch of training images")
    return network


def _batch_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance `[C]` of `[N, C, ...]`."""
    if x.device.type in ("cpu", "cuda"):
        # The statistics kernel of batch norm itself: a third of the time of torch.var_mean on a CPU, as exact.
        return torch.batch_norm_update_stats(x, None, None, 0.0)
    var, mean = torch.var_mean(x, [d for d in range(x.dim()) if d != 1], correction=0)
    return mean, var


def _store(layer: _BatchNorm, mean: Tensor, var: Tensor) -> None:
    if hasattr(layer, "store_statistics"):
        layer.store_statistics(mean, var)
    else:
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(var)
