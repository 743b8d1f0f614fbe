"""BN post-statistics: exact mean and variance of every batch norm input, for the configuration that is set."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from autoslim.channels.trace import as_inputs, to_device
from autoslim.errors import DataError
from autoslim.slimmable.modes import eval_mode

_ARGUMENTS = "input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"
# Of every batch norm, how many values a channel had each time that it ran; their means and variances `[2, channels of all]`.
Moments = tuple[list[list[int]], Tensor]


class Measure(TorchFunctionMode):
    """Normalises by batch statistics wherever kept ones would be used, and collects them; layers and functions alike.

    The kept ones stay what they are until `store`.
    """

    def __init__(self):
        super().__init__()
        self._norms: dict[int, _Norm] = {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.batch_norm:
            given = dict(zip(_ARGUMENTS, args)) | kwargs
            if given.get("running_mean") is not None and not given.get("training"):
                return function(**(given | self._measure(given["input"], given["running_mean"], given["running_var"])))
        return function(*args, **kwargs)

    def _measure(self, x: Tensor, mean_buffer: Tensor, var_buffer: Tensor) -> dict[str, Tensor]:
        mean, var = _batch_moments(x)
        home = getattr(mean_buffer, "home", None)
        norm = self._norms.setdefault((mean_buffer if home is None else home[0]).data_ptr(), _Norm(mean_buffer, var_buffer))
        norm.seen.append((x.numel() // x.shape[1], mean, var))
        return {"running_mean": mean.to(mean_buffer.dtype), "running_var": var.to(var_buffer.dtype)}

    def moments(self) -> Moments:
        """Return what every batch norm was given, in the order in which they ran first."""
        counts = [[count for count, *_ in norm.seen] for norm in self._norms.values()]
        seen = [each for norm in self._norms.values() for each in norm.seen]
        if not seen:
            return counts, torch.empty(2, 0)
        device = seen[0][1].device  # a network may lie on several
        return counts, torch.stack([torch.cat([each[k].to(device) for each in seen]) for k in (1, 2)])

    def combine(self, batches: Iterable[Moments]) -> "Measure":
        """Find the statistics over several batches, measured apart on the same configuration, from their `moments()`.

        Means and sums of squared deviations are combined in float64 (Chan et al. 1979), of all batch norms at once. Of each batch,
        the same batch norms ran in the same order as here; how often each ran may differ.
        """
        norms = list(self._norms.values())
        if not norms:
            return self
        rows: list[list[tuple[int, Tensor]]] = [[] for _ in norms]
        device, channels = norms[0].mean.device, [len(norm.mean) for norm in norms]
        for counts, values in batches:
            sizes = [size for size, each in zip(channels, counts, strict=True) for _ in each]
            parts = iter(values.to(device).split(sizes, dim=1))
            for row, each in zip(rows, counts):
                row += [(count, next(parts)) for count in each]
        done = mean = squares = torch.zeros((), dtype=torch.double, device=device)
        for k in range(max(map(len, rows))):  # batch norms may run a different number of times
            of_all = [row[k] if k < len(row) else (0, torch.zeros_like(row[0][1])) for row in rows]
            count = torch.tensor([float(count) for count, _ in of_all], dtype=torch.double)
            count = count.repeat_interleave(torch.tensor(channels)).to(device)
            more, var = torch.cat([value for _, value in of_all], dim=1).double()
            total, delta = done + count, more - mean
            squares = squares + var * count + delta.square() * (done * count / total)
            mean, done = mean + delta * (count / total), total
        kinds = {buffer.dtype for norm in norms for buffer in (norm.mean, norm.var)}
        found = torch.stack([mean, squares / done]).to(kinds.pop() if len(kinds) == 1 else torch.double)
        for norm, values in zip(norms, found.split(channels, dim=1)):
            norm.found, norm.seen = values, []
        return self

    def complete(self, other: "Measure") -> None:
        """Take over what another found of batch norms that did not run here."""
        self._norms = {**other._norms, **self._norms}

    def store(self) -> None:
        """Keep the statistics that were found for eval mode."""
        buffers, values = [], []
        for norm in self._norms.values():
            for buffer, value in zip((norm.mean, norm.var), norm.found):
                if (home := getattr(buffer, "home", None)) is None:
                    buffers.append(buffer)
                    values.append(value)
                else:
                    full, index = home
                    full[index] = value.to(full)
        if buffers:
            torch._foreach_copy_(buffers, values)  # a few kernels in place of two a batch norm


@dataclass
class _Norm:
    """What is known of a batch norm.

    Attributes:
        mean, var: its buffers as a layer reads them: all of one, a view of its active part, or a copy that knows its `home`.
        seen: count, mean and (biased) variance of what it was given.
        found: mean and variance `[2, C]` over all of that.
    """

    mean: Tensor
    var: Tensor
    seen: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    found: Tensor | None = None


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
    if seen == 0:
        raise DataError("BN calibration got 0 batches; pass at least one batch of training images")
    measure.combine([measure.moments()]).store()
    return network


def _batch_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance `[C]` of `[N, C, ...]`."""
    if x.dtype in (torch.float16, torch.bfloat16) and x.device.type != "cuda":  # whose kernel reads them, and adds up in float32
        x = x.float()
    if x.device.type in ("cpu", "cuda"):
        # The statistics kernel of batch norm itself: a third of the time of torch.var_mean on a CPU, as exact.
        return torch.batch_norm_update_stats(x, None, None, 0.0)
    var, mean = torch.var_mean(x, [d for d in range(x.dim()) if d != 1], correction=0)
    return mean, var
