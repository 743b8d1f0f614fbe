"""What judges the candidates of a search."""

import logging

from autoslim.errors import ConfigError
from autoslim.search.engine import PartialEvaluator, batch_of
from autoslim.search.evaluate import SupernetEvaluator, can_be_cut
from autoslim.search.partial import NotPartial
from autoslim.search.ranks import Ranks
from autoslim.search.samples import Samples
from autoslim.slimmable.supernet import Supernet

log = logging.getLogger("autoslim")


def step_evaluator(net: Supernet, images, calibration, **options) -> SupernetEvaluator:
    """Return a `PartialEvaluator`, or a `SupernetEvaluator` for a network that cannot be run in parts; the log says why.

    Args:
        net, images, calibration: see `SupernetEvaluator`.
        options: those of `PartialEvaluator`.

    Raises:
        ConfigError: a precision is asked for of a network that cannot be run in parts.
    """
    device, count = next(net.parameters()).device, options.get("calibration_images", 1024)
    images, calibration = Samples(images, device), Samples(calibration, device, least=count, labels=False)
    ranks, why = Ranks(), None
    try:
        evaluator = PartialEvaluator(net, images, calibration, **options)
    except NotPartial as error:
        why = str(error)
    reasons = [why for why in ranks.share({ranks.rank: why}).values() if why]  # one process may lack memory for it
    if not reasons:
        return evaluator
    if (precision := options.get("precision", "fp32")) != "fp32":
        raise ConfigError(f"precision {precision} is for networks that run in parts; take fp32 ({reasons[0]})")
    cut = images.cut(batch_of(net)) if can_be_cut(net, images) else images
    log.warning("every candidate is run whole: %s; %d images at once, whatever the memory budget", reasons[0], max(cut.sizes))
    return SupernetEvaluator(net, cut, calibration)
