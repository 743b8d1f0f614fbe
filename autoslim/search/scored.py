"""A configuration as it is judged, image by image."""

import torch
import torch.nn.functional as F
from torch import Tensor

from autoslim.channels.config import ChannelConfig
from autoslim.search.evaluate import Score, mistaken
from autoslim.slimmable.calibrate import Measure
from autoslim.training.steps import IGNORED

SCORES_AT_ONCE = 2**22  # 32 MB in double precision


class Scored:
    """One configuration as it is judged: its BN statistics, and what its images cost, batch after batch.

    Args:
        labels: how many labels an image has on average that are not `IGNORED`.
    """

    def __init__(self, config: ChannelConfig, labels: float = 1.0):
        self.config, self._labels = config, labels
        self.measure: Measure | None = None
        self.seen: dict[int, Tensor] = {}  # batch: [3, N], see `costs_of`

    def measure_next(self) -> Measure:
        """Return what measures the BN statistics of one batch."""
        self.measure = Measure()
        return self.measure

    def values(self, batches: int) -> Tensor:
        """Return mistakes, losses and risks `[3, N]` of the images of the leading batches."""
        return torch.cat([self.seen[i] for i in range(batches)], dim=1)

    def score(self, batches: int) -> Score:
        """Return the mean over the leading batches; over all of them it is that over all labels."""
        values = self.values(batches)
        error, loss, _ = (self.mean(total, values.shape[1]) for total in values.sum(dim=1).tolist())
        return Score(error, loss, values.shape[1])

    def mean(self, total: float, images: int) -> float:
        """Return the mean over labels of what some images cost in all."""
        return total / images / self._labels


def costs_of(logits: Tensor, target: Tensor) -> Tensor:
    """Return mistakes, losses and risks `[3, N]` of every image, on the device.

    Of an image with a map of labels they are sums over the map, where what is `IGNORED` costs nothing, so that as many mistakes
    are a tie wherever they are made; a risk is the mean.

    A risk, from 0 to 1, is how far another class is above the label's: where mistakes of other widths will be, mistakes alone do
    not tell. Near 1/2 they are made and mended soonest.
    """
    # Some images at a time, as this takes several times the memory of scores that are maps.
    rows = max(1, SCORES_AT_ONCE * len(logits) // max(1, logits.numel()))
    return torch.cat([_costs_of(*part) for part in zip(logits.split(rows), target.split(rows))], dim=1)


def _costs_of(logits: Tensor, target: Tensor) -> Tensor:
    logits, target = logits.to(torch.double, copy=True), target.long()
    known = target != IGNORED
    wrong = (mistaken(logits, target) & known).double()
    loss = F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="none")
    label = target.clamp(min=0).unsqueeze(1)
    of_label = logits.gather(1, label).squeeze(1)
    risk = (logits.scatter_(1, label, -torch.inf).amax(dim=1) - of_label).sigmoid() * known
    if target.dim() == 1:
        return torch.stack([wrong, loss, risk])
    return torch.stack([wrong.flatten(1).sum(1), loss.flatten(1).sum(1), risk.flatten(1).mean(1)])
