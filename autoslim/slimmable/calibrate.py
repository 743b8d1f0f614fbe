"""BN post-statistics: exact mean and variance of every batch norm input, for the configuration that is set."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from autoslim.channels.trace import as_inputs, to_device
from autoslim.errors import DataError
from autoslim.slimmable.modes import eval_mode


class _Moments:
    """Mean of all values seen and the sum of their squared deviations, combined in float64 (Chan et al. 1979)."""

    def __init__(self):
        self.count = 0
        self.mean: Tensor | None = None
        self.squares: Tensor | None = None

    def add(self, count: int, mean: Tensor, squares: Tensor) -> None:
        if self.count == 0:
            self.count, self.mean, self.squares = count, mean, squares
            return
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.squares = self.squares + squares + delta.square() * (self.count * count / total)
        self.count = total


class Measure(TorchFunctionMode):
    """Normalises by batch statistics wherever kept ones would be used, and collects them; layers and functions alike."""

    def __init__(self):
        super().__init__()
        self._moments: dict[int, tuple[_Moments, Tensor, Tensor]] = {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.batch_norm:
            given = dict(zip(("input", "running_mean", "running_var", "weight", "bias", "training"), args)) | kwargs
            if given.get("running_mean") is not None and not given.get("training"):
                self._measure(given["input"], given["running_mean"], given["running_var"])
        return function(*args, **kwargs)

    def _measure(self, x: Tensor, mean_buffer: Tensor, var_buffer: Tensor) -> None:
        mean, var = _batch_moments(x)
        home = getattr(mean_buffer, "home", None)
        place = (mean_buffer if home is None else home[0]).data_ptr()
        moments = self._moments.setdefault(place, (_Moments(), mean_buffer, var_buffer))[0]
        count = x.numel() // x.shape[1]
        moments.add(count, mean.double(), var.double() * count)
        _store(mean_buffer, mean)
        _store(var_buffer, var)

    def moments(self) -> list[tuple[int, Tensor, Tensor]]:
        """Return count, mean and summed squared deviations of every batch norm, in the order in which they ran."""
        return [(moments.count, moments.mean, moments.squares) for moments, *_ in self._moments.values()]

    def combine(self, batches: Iterable[list[tuple[int, Tensor, Tensor]]]) -> "Measure":
        """Take the `moments()` of several batches, measured apart on the same configuration, in place of its own."""
        for (place, (_, *buffers)), rows in zip(list(self._moments.items()), zip(*batches, strict=True), strict=True):
            moments = _Moments()
            for count, mean, squares in rows:
                moments.add(count, mean.to(buffers[0].device), squares.to(buffers[0].device))
            self._moments[place] = (moments, *buffers)
        return self

    def complete(self, other: "Measure") -> None:
        """Take over what another measured of batch norms that did not run here."""
        self._moments = {**other._moments, **self._moments}

    def store(self) -> None:
        """Keep the statistics over all batches for eval mode."""
        for moments, mean_buffer, var_buffer in self._moments.values():
            _store(mean_buffer, moments.mean)
            _store(var_buffer, moments.squares / moments.count)


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
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    seen = 0
    with eval_mode(network), Measure() as measure:
        for batch in batches:
            x = batch[0] if isinstance(batch, (tuple, list)) else batch
            network(*as_inputs(to_device(x, device)))
            seen += 1
    measure.store()
    if seen == 0:
        raise DataError("BN calibration got 0 batches; pass at least one batch of training images")
    return network


def _batch_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance `[C]` of `[N, C, ...]`."""
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    if x.device.type in ("cpu", "cuda"):
        # The statistics kernel of batch norm itself: a third of the time of torch.var_mean on a CPU, as exact.
        return torch.batch_norm_update_stats(x, None, None, 0.0)
    var, mean = torch.var_mean(x, [d for d in range(x.dim()) if d != 1], correction=0)
    return mean, var


def _store(buffer: Tensor, values: Tensor) -> None:
    """Write into a buffer as a layer reads it: all of it, a view of its active part, or a copy that knows where it is from."""
    buffer.copy_(values)  # what is about to normalise this batch
    home = getattr(buffer, "home", None)
    if home is not None:
        full, index = home
        full[index] = values.to(full)
