"""Score networks, and candidates of a search, on images."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autoslim.allocator import FreedMemory
from autoslim.channels.config import ChannelConfig
from autoslim.channels.trace import as_inputs, to_device
from autoslim.errors import ConfigError, DataError
from autoslim.search.samples import Samples, images_of
from autoslim.slimmable.calibrate import Measure, calibrate
from autoslim.slimmable.modes import eval_mode
from autoslim.slimmable.supernet import Supernet
from autoslim.training.steps import IGNORED, class_labels, logits_of


@dataclass(frozen=True)
class Score:
    """Mistakes of a network on a set of images.

    Attributes:
        error: part of the labels (one an image, or one a pixel) that are not met, 0..1; those that are -100 do not count.
        loss: mean cross-entropy against the same labels, in nats.
        images: how many images were scored.
    """

    error: float
    loss: float
    images: int

    def __post_init__(self):
        # Numbers of numpy and torch would be written to a trace as what cannot be read again.
        for name, kind in (("error", float), ("loss", float), ("images", int)):
            object.__setattr__(self, name, kind(getattr(self, name)))

    def to_json(self) -> dict:
        """Return the score as a JSON object."""
        return asdict(self)

    def estimate(self) -> dict:
        """Return the score as what a configuration says of a supernet's estimate."""
        return {"kind": "supernet estimate", **self.to_json()}

    def rank(self, which: str) -> float:
        """Return the "error" or the "loss" to order by; one that is no number is the worst."""
        value = getattr(self, which)
        return value if value == value else math.inf


def increase(value: float, base: float) -> float:
    """Return by how much a score is above that of a base; the score itself where that of the base is no finite number."""
    return value - base if math.isfinite(base) else value


def ask(evaluator, config: ChannelConfig) -> Score:
    """Return what an evaluator says of a configuration.

    Raises:
        ConfigError: it is no score.
    """
    score = evaluator.score(config)
    if not isinstance(score, Score):
        raise ConfigError(f"the evaluator scores a configuration as {score!r}; return autoslim.Score(error, loss, images)")
    return score


def mistaken(logits: Tensor, target: Tensor) -> Tensor:
    """Tell which labels are not met; those of scores that are no numbers never are."""
    best, found = logits.max(dim=1)
    return (found != target) | ~best.isfinite()


@torch.no_grad()  # not inference mode: what modules keep at their first forward is trained on later
def evaluate(network: nn.Module, batches: Iterable) -> Score:
    """Score a network in eval mode on `(images, labels)` batches; its train/eval flags are left as they are.

    Raises:
        DataError: there is no label, or labels are no classes of the network's scores.
    """
    device = next(network.parameters()).device
    wrong = labels = images = 0
    loss = 0.0
    with eval_mode(network):
        for x, target in batches:
            logits = logits_of(network(*as_inputs(to_device(x, device))))
            target = class_labels(logits, to_device(target, device))
            known = target != IGNORED
            wrong += (mistaken(logits, target) & known).sum().item()
            loss += F.cross_entropy(logits.double(), target, ignore_index=IGNORED, reduction="sum").item()
            labels += known.sum().item()  # every pixel may have one
            images += images_of(x)
    if not labels:
        raise DataError(f"there are 0 labels among {images} images to score; pass batches that hold some")
    return Score(wrong / labels, loss / labels, images)


class SupernetEvaluator:
    """Score configurations of a supernet, each with BN statistics calibrated for exactly that configuration.

    Args:
        net: a trained supernet.
        images: `(images, labels)` batches to score on, held out of training.
        calibration: batches of training images; labels are not used.
        calibration_images: leading batches are taken until they hold this many images; about a thousand are enough
            (US-Nets, section 3.4).

    Attributes:
        batch: how many images are scored at once, at most, where no image's score depends on the others of its batch.

    Raises:
        DataError: there is no batch to score, none of its images has a label, or there is none to calibrate with.
    """

    def __init__(self, net: Supernet, images: Iterable, calibration: Iterable, *, calibration_images: int = 1024):
        device = next(net.parameters()).device
        self.net = net
        # Kept, so that every candidate is judged on the very same images.
        self._images = images if isinstance(images, Samples) else Samples(images, device)
        if not isinstance(calibration, Samples):
            calibration = Samples(calibration, device, least=calibration_images, labels=False)
        for batches, what in ((self._images, "score"), (calibration, "calibrate batch norm with")):
            if not batches.images:
                raise DataError(f"there are 0 images to {what}; pass at least one batch (an exhausted generator gives none)")
        if not self._images.labelled():
            raise DataError(f"all labels of the {self._images.images} images to score are {IGNORED}; pass some that have one")
        self._calibration = to_measure(net, calibration)
        self.batch = max(self._images.sizes)
        self._freed = FreedMemory()

    def score(self, config: ChannelConfig) -> Score:
        """Return the supernet estimate of one configuration; the supernet stays set to it, with its BN statistics."""
        self._freed.give_back()
        self.net.set(config)
        calibrate(self.net, self._calibration)
        return evaluate(self.net, self._images)


def to_measure(net: Supernet, calibration: Samples) -> Samples:
    """Return the batches that calibrate a network: two images of them where there are no statistics to measure."""
    if not scored_alone(net):
        return calibration
    first = calibration.cut(2, most=2)[0]
    with torch.no_grad(), eval_mode(net), Measure() as measure:
        try:
            net(*as_inputs(first[0]))
        except Exception:  # it takes batches of one size
            return calibration
    counts, _ = measure.moments()
    return calibration if counts else Samples([first], next(net.parameters()).device, labels=False)


@torch.no_grad()
def can_be_cut(net: Supernet, images: Samples) -> bool:
    """Tell whether an image gets the same scores, and one label, in a batch of any size."""
    if not scored_alone(net) or not images.per_image():
        return False
    together = images.leading(3)
    (x, _), ones = together[0], together.cut(1)
    with eval_mode(net):
        try:
            scores = logits_of(net(*as_inputs(x)))
            alone = torch.cat([logits_of(net(*as_inputs(ones[i][0]))) for i in range(images_of(x))])
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception:  # it takes batches of one size, or a squeeze() leaves no axis for one image
            return False
    # In TF32 or 16 bits, kernels for one image and for several differ more.
    part = 1e-3 if on_cpu(net) and scores.dtype in (torch.float32, torch.float64) else 0.03
    within = part * scores.abs().nan_to_num().max().item()
    return scores.shape == alone.shape and torch.allclose(scores, alone, rtol=part, atol=within, equal_nan=True)


def on_cpu(net: Supernet) -> bool:
    """Tell whether a supernet lies on the CPU."""
    return next(net.parameters()).device.type == "cpu"


def scored_alone(net: Supernet) -> bool:
    """Tell whether all batch norms have statistics, so that an image's score depends on no other image by them."""
    with eval_mode(net):
        return all(m.track_running_stats for m in net.modules() if isinstance(m, _BatchNorm))


def calibrate_roughly(net: Supernet, calibration: Samples) -> None:
    """Give a supernet at full width the BN statistics of one batch, before it is found out how it can be run.

    Training keeps none, and without them what small weights put out may be lost: all that is compared would be 0.
    """
    with net.using(net.full()):
        calibrate(net, [calibration[0]])
