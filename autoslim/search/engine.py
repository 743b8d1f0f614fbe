"""Judge the candidates of a step together: what they share is run once, and who cannot win is not run to the end."""

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import ROUND_CEILING
from functools import partial

import torch
from torch import Tensor

from autoslim.allocator import FreedMemory
from autoslim.channels.config import ChannelConfig
from autoslim.channels.trace import as_inputs, times_written
from autoslim.cost.amounts import KINDS
from autoslim.errors import ConfigError
from autoslim.search.contest import ExactContest, Race, Step, batches_with
from autoslim.search.evaluate import Score, SupernetEvaluator, calibrate_roughly, can_be_cut, on_cpu, scored_alone
from autoslim.search.keep import Keeping, kept_of
from autoslim.search.partial import NotPartial, PartialNet, Plan
from autoslim.search.places import alike, equal, same_anywhere
from autoslim.search.ranks import Ranks
from autoslim.search.samples import examples, first_of, images_of, most_first
from autoslim.search.scored import Scored, costs_of
from autoslim.search.values import Values
from autoslim.slimmable.calibrate import Measure
from autoslim.slimmable.modes import eval_mode
from autoslim.slimmable.supernet import Supernet
from autoslim.training.steps import class_labels, logits_of

log = logging.getLogger("autoslim")
CASTS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# How a fast search samples: standard errors, images of the first and the last decision, from one to the next, and to calibrate.
RACE = {"z": 2.0, "least": 512, "most": 1024, "every": 256, "calibration": 256}
# Images of a batch that is scored on a CPU, where small ones share the work among processes and let an exact search stop sooner;
# and on GPUs, which would be idle with them. There an exact search takes more, for about `GPU_BATCHES` batches in all: as many
# whatever processes there are, as losses differ in their last digits with the batch.
CPU_BATCH, GPU_BATCH, GPU_BATCHES = 64, 256, 8
# Images of a batch that calibrates a candidate of a fast search, at least. With 4 the loss of MobileNet v2 is higher by 0.03.
CALIBRATION_BATCH = 16


class PartialEvaluator(SupernetEvaluator):
    """A `SupernetEvaluator` that runs of every candidate of a step only what its group can change.

    Args:
        net, images, calibration, calibration_images: see `SupernetEvaluator`.
        memory_budget: bytes that values may take in this process, kept and of a batch at work; by default `Ranks.memory_budget`.
            What does not fit is computed again; images to score come in smaller batches. Calibration batches are not cut, but for a
            fast search, down to 16 images: if one does not fit, all are run whole for every candidate.
        precision: what candidates are compared in: "fp32", "bf16" or "fp16". `score` is always in fp32, which on a GPU
            includes TF32 where torch allows it (in convolutions, if nothing is set).
        race: entries of `RACE` to replace, for a fast search.

    Raises:
        NotPartial: the network cannot be run in parts.

    Attributes:
        macs: multiply-adds of conv and linear layers that this process executed so far, over all images.
        images: images to score.
    """

    def __init__(self, net, images, calibration, *, calibration_images: int = 1024,
                 memory_budget: float | None = None, precision: str = "fp32", race: Mapping | None = None):  # fmt: skip
        super().__init__(net, images, calibration, calibration_images=calibration_images)
        if precision not in CASTS:
            raise ConfigError(f"precision {precision!r} is unknown; pass one of {', '.join(CASTS)}")
        if unknown := set(race or ()) - set(RACE):
            raise ConfigError(f"race has {', '.join(map(repr, sorted(unknown)))}; it takes {', '.join(RACE)}")
        if len({shapes[-1] for shapes in self._images.shapes()}) > 1 or not self._images.per_image():
            raise NotPartial("labels are not one an image, or one map of the same size an image")
        self.ranks = Ranks()
        budget = self.ranks.memory_budget(next(net.parameters()).device, memory_budget)
        # In 16 bits, and on GPUs, the order in which kernels add up depends on the channels that they make, and on the batch.
        leading = precision == "fp32" and on_cpu(net)
        # Three, as two are traced: it shows where code counts its images.
        calibrate_roughly(net, self._calibration)
        checked = examples(3, self._calibration, self._images)  # memory is counted for the first
        self._partial = PartialNet(net, first_of(checked[0], 2), leading=leading, checked=checked)
        self._keeping = Keeping(self._partial)
        # Of a batch at work, a quarter at most for the base's values and a quarter for a candidate's; the rest for what is kept.
        self._most = max(1, int(budget / 4 / max(1, self._partial.bytes)))
        alone = can_be_cut(net, self._images)
        self.batch = min(batch_of(net), self._most)
        self._labels = self._images.labels_of_one()
        self._sorts = alone and len(self._images.shapes()) == 1
        self._images = self._images.joined() if self._sorts else self._images
        # Whole configurations are scored on the images in the order in which they are given, joined and cut into the same batches
        # at any time: the last digits of an image's loss depend on how many others are in its batch.
        self._given = self._images = self._images.cut(self.batch) if alone else self._images
        self._order: Sequence[Tensor] = ()  # the places of the images of every batch among those given, where they are sorted
        larger = self._sorts and not on_cpu(net) and self._given.images // GPU_BATCHES
        self._exact_batch = min(self._most, max(self.batch, larger))
        largest = max(*self._given.sizes, *self._calibration.sizes, self._exact_batch)
        self._room = budget - min(budget / 2, 2 * largest * self._partial.bytes)
        self.precision, self._cast = precision, CASTS[precision]
        self._race = {**RACE, **(race or {})}
        self._arranged_for: tuple[str, str] | None = None  # effort and score
        self._sorted_by: dict | None = None  # widths
        # Operations whose values go along with an image into another batch; None where images stay as they were given.
        self._moving: frozenset[int] | None = None
        self.base: Scored | None = None
        self._weights: list[tuple[int, int]] = []  # where the parameters were, and how often they had been written to
        self._values = Values()
        self._last: dict[str, Scored] = {}  # of every candidate
        self._candidates = self._seen = 0  # since it was chosen what to keep, and the images that they saw
        self.macs, self.images = 0, self._images.images
        self._freed = FreedMemory(max(budget, 1e9))  # with less, most of the time would go into fetching it again

    @property
    def sizes(self) -> list[int]:
        """Images of every batch to score, in the order in which candidates see them."""
        return self._images.sizes

    # Whole configurations ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def score(self, config: ChannelConfig) -> Score:
        """Return the supernet estimate of one configuration; the supernet is left set to it, with its BN statistics."""
        scored, found = Scored(config, self._labels), {}
        self.net.set(config)
        with eval_mode(self.net):
            for i in self._own_calibration(self._calibration):
                self._values.with_room(lambda i=i: self._run_whole(self._calibration[i][0], scored.measure_next()))
                found[i] = scored.measure.moments()
            scored.measure.combine(self.ranks.share(found).values()).store()
            own = self.ranks.own(range(len(self._given)))
            scored.seen = self.ranks.share({i: self._values.with_room(partial(self._cost_whole, i)) for i in own})
        return scored.score(len(self._given))

    def _cost_whole(self, i: int) -> Tensor:
        x, target = self._given[i]
        logits = self._run_whole(x)
        return costs_of(logits, class_labels(logits, target))

    def _own_calibration(self, batches: Sequence) -> list[int]:
        """Return the batches that this process runs; one at least, so that it learns where the statistics belong."""
        return self.ranks.own(range(len(batches))) or [0]

    def _run_whole(self, x, measure: Measure | None = None) -> Tensor:
        self._begin(self._partial.plan(None), x)
        with measure or contextlib.nullcontext():
            return logits_of(self.net(*as_inputs(x)))

    # Steps ------------------------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Forget what was computed with the weights so far."""
        self.base = self._arranged_for = None
        self._drop_values()

    def _drop_values(self) -> None:
        self._values.clear()
        self._last.clear()
        self._candidates = self._seen = 0

    def contest(self, step: Step, effort: str) -> "ExactContest | Race":
        """Return a contest of the candidates of a step."""
        weights = [(p.data_ptr(), times_written(p)) for p in self.net.parameters()]
        if weights != self._weights:  # trained on since the last step
            self.forget()
            self._weights = weights
        with self._or_forget():
            if self._arranged_for != (effort, step.score):
                self._arrange(effort, step.score)
            if self._moving:
                self._sort_images(step.base, step.score)
            if effort == "exact":
                self._choose_what_to_keep(self.images)
            self._go_to(step.base)
        if effort == "exact":
            return ExactContest(self, step)
        return Race(self, step, **{key: self._race[key] for key in ("z", "least", "most", "every")})

    def _arrange(self, effort: str, score: str) -> None:
        """Choose the images of searches of an effort, and what of them is kept from step to step."""
        self.base = self._sorted_by = self._moving = None
        self._drop_values()
        batch = self._exact_batch if effort == "exact" else self.batch
        self._images = unsorted = self._given.cut(batch) if self._sorts else self._given
        if effort != "exact":  # samples are drawn, of images or else of batches
            order = torch.randperm(self.images if self._sorts else len(self._given), generator=torch.Generator().manual_seed(0))
            drawn = self._given.arranged(order.split(batch)) if self._sorts else self._given.reordered(order.tolist())
            self._images = drawn
        size = max(CALIBRATION_BATCH, min(batch_of(self.net), self._most))
        most = self._race["calibration"]
        if not scored_alone(self.net):  # a batch is normalised by its own statistics
            size, most = max(self._calibration.sizes), sum(self._calibration.sizes[: batches_with(most, self._calibration.sizes)])
        fast = self._calibration.cut(size, most=most, alike=True)
        self._used = self._calibration if effort == "exact" else fast
        # A configuration whose statistics are to serve a batch that is run whole needs those of all batch norms.
        largest = max(*self._used.sizes, *self._images.sizes)
        self._fits = largest <= self._most
        if not self._fits and self.ranks.rank == 0:
            enough = KINDS["memory"].format(4 * self._partial.bytes * largest, 3, ROUND_CEILING)
            log.info("batches of %d images do not fit into the memory budget: every candidate is calibrated whole; from %s on "
                     "they would fit", largest, enough)  # fmt: skip
        self._choose_what_to_keep(self.images if effort == "exact" else self._race["most"])
        if self._sorts and effort == "exact" and self.images >= 2 * batch:
            self._moving = self._find_moving(batch)
        if self._moving is not None:
            left = self.images % batch  # comes first: it stays as it is when whole batches are sorted
            sizes = [left] * (left > 0) + [batch] * (self.images // batch)
            self._order = torch.arange(self.images).roll(left).split(sizes)
            self._images = self._given.arranged(self._order)
            self._sort_images(self.net.full(), score)
            if not self._costs_stay():
                self.base, self._moving, self._images = None, None, unsorted
        self._arranged_for = effort, score

    @torch.no_grad()
    def _find_moving(self, batch: int) -> frozenset[int] | None:
        """Return what `same_anywhere` finds: operations that all processes find, None if one of them finds that."""
        self._go_to(self.net.full())
        self._values.clear()  # two batches of all values take the room

        def run(plan: Plan, places: Tensor) -> dict:
            return self._run(plan, self._given.arranged([places])[0][0])

        with self._at_work():
            self.base.measure.store()
            moving = same_anywhere(self._partial, run, self.images, batch)
        found = self.ranks.share({self.ranks.rank: moving}).values()
        return None if None in found else frozenset.intersection(*found)

    @torch.no_grad()
    def _sort_images(self, by: ChannelConfig, score: str) -> None:
        """Sort the images by what each costs a base; what is known of them goes along."""
        if self._sorted_by == by.widths:
            return
        self._go_to(by)
        self.look({}, range(len(self._order)))
        costs = self.base.values(len(self._order))[:, torch.cat(self._order).argsort()]  # as they were given
        order = most_first(self._order, costs[1 if score == "loss" else 2])
        self._values.arrange(self._order, order, self.ranks.own(range(len(order))), self._moving)
        self._order, self._images, self._sorted_by = order, self._given.arranged(order), by.widths
        self.base.seen = {i: costs[:, places] for i, places in enumerate(order)}

    def _costs_stay(self) -> bool:
        """Look at all images in the batches that they were sorted into, and tell whether each costs what it did."""
        known, self.base.seen = self.base.seen, {}
        self._values.clear()
        self.look({}, known)
        if not all(equal(self.base.seen[i], costs) for i, costs in known.items()):
            self._moving = frozenset()  # values go along with no image
        return all(alike(self.base.seen[i], costs) for i, costs in known.items())

    def _choose_what_to_keep(self, images: int) -> None:
        """Choose which values are kept, of candidates and of the base, where `images` are scored at most."""

        def of_busiest(batches: Sequence[int]) -> int:
            return max(sum(batches[rank :: self.ranks.count]) for rank in range(self.ranks.count))

        calibration, scored = self._used.sizes, of_busiest(self.sizes[: batches_with(images, self.sizes)])
        calibrated = max(of_busiest(calibration), calibration[0])
        part = self._seen / (self._candidates * images) if self._candidates else 1.0
        self._candidates = self._seen = 0
        keep, of_base = self._keeping.choose(calibrated + part * scored, calibrated + scored, self._room)
        narrowed = (width.name for width in self.net.widths if len(width.choices) > 1)
        chosen = {None: of_base} | {name: kept_of(self._partial.influence, name, keep) for name in narrowed}
        self._values.choose(chosen, self._room - calibrated * sum(map(self._partial.bytes_of, chosen.values())))

    @torch.no_grad()
    def _go_to(self, config: ChannelConfig) -> None:
        """Make a configuration the base that candidates are narrowed from, if it is not."""
        if self.base is not None and self.base.config.widths == config.widths:
            return
        self.base, found = Scored(config, self._labels), {}
        self._drop_values()
        with self._at_work():
            self.net.set(config)
            for i in self._own_calibration(self._used):
                run = partial(self._run_base, "calibrate", i, output=True)
                self._values.with_room(lambda i=i, run=run: run(self._used[i][0], measure=self.base.measure_next()))
                found[i] = self.base.measure.moments()
        self.base.measure.combine(self.ranks.share(found).values())

    @torch.no_grad()
    def calibrated(self, configs: Mapping[str, ChannelConfig]) -> dict[str, Scored]:
        """Measure the BN statistics of candidates, by the name of the one group that each narrows."""
        judged = {name: Scored(config, self._labels) for name, config in configs.items()}
        for name, config in configs.items():
            if name in self._last and self._last[name].config.widths[name] != config.widths[name]:
                self._values.forget(name)
                del self._last[name]
        self._candidates += len(judged)
        found: dict[int, dict] = {}
        with self._at_work():
            for i in self._own_calibration(self._used):
                self._values.with_room(partial(self._calibrate, judged, i))
                found[i] = {name: each.measure.moments() for name, each in judged.items()}
        shared = self.ranks.share(found)
        for name, each in judged.items():
            each.measure.combine([row[name] for row in shared.values()])
            if name in self._last:  # what lies before the values that it went on from
                each.measure.complete(self._last[name].measure)
            self._last[name] = each
        return judged

    def _calibrate(self, judged: Mapping[str, Scored], i: int) -> None:
        x = self._used[i][0]
        self.net.set(self.base.config)
        base = self._run_base("calibrate", i, x, judged, measure=Measure())
        for name, each in judged.items():
            self.net.set(each.config)
            self._run_candidate(name, "calibrate", i, x, base, each.measure_next())

    @torch.no_grad()
    def look(self, judged: Mapping[str, Scored], batches: Iterable[int]) -> None:
        """Score candidates, and the base, on batches that they have not seen."""
        self._seen += sum(self.sizes[i] for i in batches for each in judged.values() if i not in each.seen)
        found: dict[int, dict[str, Tensor]] = {}
        with self._at_work():
            for i in self.ranks.own(batches):
                new = {name: each for name, each in judged.items() if i not in each.seen}
                found[i] = self._values.with_room(partial(self._look, new, i)) if new or i not in self.base.seen else {}
        for i, row in self.ranks.share(found).items():
            for name, values in row.items():
                (judged[name] if name else self.base).seen[i] = values

    def _look(self, judged: Mapping[str, Scored], i: int) -> dict[str, Tensor]:
        """Return what the images of a batch cost with candidates, and with the base ("") where that is not known."""
        x, target = self._images[i]
        costs = partial(costs_of, target=target)
        self.net.set(self.base.config)
        self.base.measure.store()
        base = self._run_base("score", i, x, judged, output=i not in self.base.seen)
        found = {} if i in self.base.seen else {"": costs(logits_of(base[self._partial.output]))}
        for name, each in judged.items():
            self.net.set(each.config)
            each.measure.store()
            found[name] = costs(logits_of(self._run_candidate(name, "score", i, x, base)))
        return found

    @torch.no_grad()
    def advance(self, group: str, winner: Scored) -> None:
        """Make a candidate the base of the next step; what is known of the others stays known as far as it still holds."""
        with self._or_forget():
            winner.measure.complete(self.base.measure)
            self.base = winner
            self.net.set(winner.config)
            self._last.pop(group)
            self._values.advance(group, partial(self._partial.narrow, group))

    @contextlib.contextmanager
    def _or_forget(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.forget()  # some batches may know more than others
            raise

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        device = next(self.net.parameters()).device.type
        cast = torch.autocast(device, self._cast) if self._cast else contextlib.nullcontext()
        with self._or_forget(), eval_mode(self.net), self._partial.ready(), cast:
            yield
            if self.base is not None:
                self.net.set(self.base.config)

    def _is_too_large(self, what: str, x) -> bool:
        return images_of(x) > self._most or (what == "calibrate" and not self._fits)

    def _run_base(self, what: str, i: int, x, candidates: Iterable[str] = (), *, output=False, measure=None) -> dict:
        """Return what candidates read of the base on a batch, and its output; of a batch that is too large, the output alone."""
        if self._is_too_large(what, x):
            return {self._partial.output: self._run_whole(x, measure)} if output else {}
        wanted = {self._partial.output} if output else set()
        for name in candidates:
            wanted |= self._plan(name, what, i).reads
        return self._run_part(self._plan(None, what, i, wanted), what, i, x, measure=measure)

    def _run_candidate(self, name: str, what: str, i: int, x, base: dict, measure: Measure | None = None) -> Tensor:
        if self._is_too_large(what, x):
            return self._run_whole(x, measure)
        return self._run_part(self._plan(name, what, i), what, i, x, base, measure)[self._partial.output]

    def _plan(self, name: str | None, what: str, i: int, wanted: Iterable[int] | None = None) -> Plan:
        return self._partial.plan(name, known=self._values[name, what, i], wanted=wanted, keep=self._values.keep[name])

    def _run_part(self, plan: Plan, what: str, i: int, x, base: Mapping | None = None, measure=None) -> dict:
        known = self._values[plan.group, what, i]
        made = self._run(plan, x, known=known, base=base, measure=measure)
        self._values.put((plan.group, what, i), known | made)
        return made

    def _run(self, plan: Plan, x, **how) -> dict:
        self._begin(plan, x)
        return self._partial.run(plan, inputs=x, **how)

    def _begin(self, plan: Plan, x) -> None:
        """Count the multiply-adds of a run, and hand back what those before it have left behind."""
        self.macs += images_of(x) * self._partial.macs(plan)
        self._freed.give_back()


def batch_of(net: Supernet) -> int:
    """Return how many images are scored at once."""
    return CPU_BATCH if on_cpu(net) else GPU_BATCH
