"""Score the candidates of a step together: what they share is run once."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_leaves, tree_map

from autoslim.channels.config import ChannelConfig
from autoslim.channels.trace import as_inputs
from autoslim.search.evaluate import Score, SupernetEvaluator
from autoslim.search.partial import NotPartial, PartialNet
from autoslim.slimmable.calibrate import Measure
from autoslim.slimmable.modes import eval_mode
from autoslim.slimmable.supernet import Supernet
from autoslim.training.steps import logits_of

log = logging.getLogger("autoslim")


@dataclass(frozen=True)
class StepScore:
    """A candidate's score, and that of what it was narrowed from, on the same images."""

    score: Score
    base: Score


class Race:
    """Who goes on being scored: a candidate drops out when it is worse than the best by more than chance explains.

    Differences to the best are taken image by image, as what a candidate costs more than the base divided by what it saves; a
    candidate that is worse by more than `z` standard errors is out.

    Args:
        score: "error" or "loss".
        savings: what every candidate saves; 1 for all where the score alone decides.
        z: standard errors.
        least: images before the first decision.
        batch: images between decisions.
    """

    def __init__(self, score: str, savings: Mapping[str, float], *, z: float = 3.0, least: int = 256, batch: int = 256):
        self._score, self._savings, self._z, self._least = score, savings, z, least
        self.batch = batch

    def going_on(self, costs: Mapping[str, dict[str, Tensor]]) -> list[str]:
        """Return the candidates to score on more images."""
        values = {name: cost[self._score] / self._savings[name] for name, cost in costs.items()}
        count = len(next(iter(values.values())))
        if count < self._least:
            return list(values)
        best = min(values, key=lambda name: values[name].mean().item())
        going = []
        for name, value in values.items():
            worse = value - values[best]
            error = worse.std().item() / count**0.5
            if worse.mean().item() <= self._z * error:
                going.append(name)
        return going


class PartialEvaluator(SupernetEvaluator):
    """A `SupernetEvaluator` that runs of every candidate only what its group can change.

    The scores are those of `SupernetEvaluator`: calibration and scoring see the same batches in the same order.

    Args:
        net, images, calibration, calibration_images: see `SupernetEvaluator`.
        rules: the rules that the supernet's groups were found with.
        memory_budget: bytes that the kept values of a batch may take. Images to score come in smaller batches where they have
            to; a calibration batch cannot be cut, and is run whole for every candidate.

    Raises:
        NotPartial: the network cannot be run in parts.

    Attributes:
        macs: multiply-adds of conv and linear layers that were executed so far, over all images.
    """

    def __init__(self, net, images, calibration, *, calibration_images: int = 1024, rules: Mapping | None = None,
                 memory_budget: float = 4e9):  # fmt: skip
        super().__init__(net, images, calibration, calibration_images=calibration_images)
        self._partial = PartialNet(net, _part(self._images[0][0], 0, 2), rules)
        self._most = max(1, int(memory_budget / max(1, self._partial.bytes)))
        # A norm that keeps no statistics makes an image's score depend on the others of its batch.
        self._alone = all(m.track_running_stats for m in net.modules() if isinstance(m, _NormBase))
        self.macs = 0
        self.images = sum(len(target) for _, target in self._images)

    def score(self, config: ChannelConfig) -> Score:
        """Return the supernet estimate of one configuration; the supernet stays set to it, with its BN statistics."""
        self.net.set(config)
        self.macs += self._partial.macs() * (self.images + sum(_count(x) for x, _ in self._calibration))
        return super().score(config)

    @torch.inference_mode()
    def score_step(
        self, base: ChannelConfig, candidates: Mapping[str, ChannelConfig], race: Race | None = None
    ) -> dict[str, StepScore]:
        """Return the scores of candidates by the name of the one group that each narrows; the supernet ends at `base`.

        Args:
            base: the configuration that all candidates start from.
            candidates: group to configuration.
            race: after which batch which candidates go on; None scores all on all images.
        """
        net = self.net
        measures = {name: Measure() for name in candidates}
        of_base, seen = Measure(), {name: _Seen() for name in ("", *candidates)}
        running = list(candidates)
        with eval_mode(net), self._partial.ready():
            for x, _ in self._calibration:
                net.set(base)
                with of_base:
                    values = self._run(x)
                for name in running:
                    net.set(candidates[name])
                    with measures[name]:
                        self._again(name, values, x)
            for x, target in self._small_batches(self._most if race is None else min(self._most, race.batch)):
                net.set(base)
                of_base.store()
                values = self._run(x)
                seen[""].add(self._output(values, x), target)
                for name in running:
                    net.set(candidates[name])
                    measures[name].store()
                    seen[name].add(logits_of(self._again(name, values, x)), target)
                if race is not None:
                    running = race.going_on({name: seen[name].against(seen[""]) for name in running})
                    if len(running) < 2:
                        break
        net.set(base)
        found = {name: seen[name].score() for name in candidates}
        return {name: StepScore(found[name], seen[""].score(found[name].images)) for name in candidates}

    def _small_batches(self, most: int):
        for x, target in self._images:
            size = most if self._alone else len(target)
            for start in range(0, len(target), size):
                yield _part(x, start, start + size), target[start : start + size]

    def _run(self, x):
        """Run the network as it is set; returns what its candidates start from, None where that is too much to keep."""
        self.macs += _count(x) * self._partial.macs()
        if _count(x) <= self._most:
            return self._partial.run(x)
        self.net(*as_inputs(x))
        return None

    def _output(self, values, x) -> Tensor:
        return logits_of(self._partial.output(values) if values else self.net(*as_inputs(x)))

    def _again(self, name: str, values, x):
        self.macs += _count(x) * self._partial.macs(name if values else None)
        return self._partial.again(name, values) if values else self.net(*as_inputs(x))


class _Seen:
    """Mistakes and losses, image by image, kept on the device."""

    def __init__(self):
        self._wrong: list[Tensor] = []
        self._loss: list[Tensor] = []

    def add(self, logits: Tensor, target: Tensor) -> None:
        each = tuple(range(1, target.dim()))
        wrong = (logits.argmax(dim=1) != target).double()
        loss = F.cross_entropy(logits.double(), target, reduction="none")
        self._wrong.append(wrong.mean(each) if each else wrong)
        self._loss.append(loss.mean(each) if each else loss)

    def score(self, images: int | None = None) -> Score:
        wrong, loss = torch.cat(self._wrong)[:images], torch.cat(self._loss)[:images]
        return Score(wrong.mean().item(), loss.mean().item(), len(wrong))

    def against(self, base: "_Seen") -> dict[str, Tensor]:
        """Return what every image costs more than with the base."""
        wrong, loss = torch.cat(self._wrong), torch.cat(self._loss)
        return {"error": wrong - torch.cat(base._wrong)[: len(wrong)], "loss": loss - torch.cat(base._loss)[: len(loss)]}


def step_evaluator(net: Supernet, images, calibration, **options) -> SupernetEvaluator:
    """Return a `PartialEvaluator`, or a `SupernetEvaluator` for a network that cannot be run in parts; the log says why.

    Args:
        net, images, calibration: see `SupernetEvaluator`.
        options: `calibration_images`, `rules` and `memory_budget`.
    """
    whole = SupernetEvaluator(net, images, calibration, calibration_images=options.get("calibration_images", 1024))
    try:
        return PartialEvaluator(net, whole._images, whole._calibration, **options)
    except NotPartial as error:
        log.info("every candidate is run whole: %s", error)
        return whole


def _part(x, start: int, end: int):
    return tree_map(lambda t: t[start:end] if isinstance(t, Tensor) else t, x)


def _count(x) -> int:
    return next(len(t) for t in tree_leaves(x) if isinstance(t, Tensor))
