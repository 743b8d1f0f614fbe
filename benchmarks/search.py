"""What a search costs: straightforward against exact against fast, in one run; ratios and counts.

    python benchmarks/search.py mobilenet_v2 --pixels 96 --steps 4
    python benchmarks/search.py --run runs/supernet --target 75%,50% --straightforward 5
    python benchmarks/search.py resnet50 --pixels 224 --images 2048 --device cuda --target 75%,50%,25%,14% --straightforward 1
    torchrun --nproc-per-node 2 -- benchmarks/search.py --run runs/supernet --straightforward 1

With a space, weights and images are drawn at random: that shows what is executed, and that decisions agree. A trained run
brings its held-out images, and what was found is scored on its test images as fresh ones. `--straightforward N` runs that
search for its first N steps only: its multiply-adds are then counted along the path of the first effort, and its time is that
of the N steps, times what is left to execute. Images a second are those of all candidates, however few of them were run.
Several processes share the candidates of the straightforward search, and the images of the others. With `--out FOLDER` a
benchmark that was cut off goes on from the last step that is in the folder; what was kept for the next one is then made anew.
"""

import argparse
import contextlib
import itertools
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

import autoslim
from autoslim.allocator import keep_freed_memory
from autoslim.commands import runs
from autoslim.commands.search import load_supernet
from autoslim.cost.budgets import Budgets
from autoslim.errors import RunError
from autoslim.files import digest, held, read_json, write_json
from autoslim.search.engine import RACE, PartialEvaluator
from autoslim.search.evaluate import SupernetEvaluator
from autoslim.search.greedy import PICK_RULES, narrowed
from autoslim.search.lazy import AT_ONCE, STALE
from autoslim.search.ranks import Ranks
from autoslim.search.samples import Samples
from autoslim.slimmable import family
from autoslim.spaces import load_space


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("space", nargs="?", help="search space, with random weights and images")
    parser.add_argument("--run", type=Path, help="trained supernet with held-out images")
    parser.add_argument("--pixels", type=int, default=96)
    parser.add_argument("--images", type=int, help="images to score, a quarter as many calibrate  [128 random, all of a run]")
    parser.add_argument("--target", help="multiply-adds to descend to, as 75%%,50%%  [50%% of a trained run]")
    parser.add_argument("--steps", type=int, help="steps to descend, in place of --target  [4 with random weights]")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--score", choices=["error", "loss"], help="[that of a run's space, else loss]")
    parser.add_argument("--pick", default="drop")
    parser.add_argument("--memory-budget", type=float, metavar="BYTES", help="[4e9; half of what is free on a GPU]")
    parser.add_argument("--precision", default="fp32", help="what candidates are compared in  [%(default)s]")
    parser.add_argument("--efforts", default="exact,fast", help="to compare with the straightforward search  [%(default)s]")
    parser.add_argument("--straightforward", type=int, metavar="N", help="steps of the straightforward search  [all]")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="go on from here what was cut off  [nothing is kept]")
    args = parser.parse_args()
    if (args.space is None) == (args.run is None):
        parser.error("name a space or a --run")
    if args.steps is None and args.target is None:
        args.steps, args.target = (None, "50%") if args.run else (4, None)
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as the command does
    ranks = Ranks()
    with held(args.out) if args.out and ranks.rank == 0 else contextlib.nullcontext():
        compare(args, ranks)


def compare(args, ranks):
    """Run the searches, and print what they took and found."""
    place = runs.choose_device(ranks.device(args.device))
    ranks.connect(place)
    args.device = str(place)
    net, images, calibration, fresh, score = trained(args) if args.run else drawn(args)
    options = {"score": score, "pick": args.pick, "steps": args.steps, "targets": args.target and args.target.split(",")}
    seen = sum(len(x) for x, _ in itertools.chain(images, calibration))
    say = print if ranks.rank == 0 else lambda *_, **__: None
    budget = memory_budget(args, ranks, place)
    say(f"{len(net.groups)} groups; {seen} images for a candidate, calibration included; {options['score']}, {options['pick']}")

    rows, paths, along = {}, {}, None
    for name in args.efforts.split(","):
        evaluator = PartialEvaluator(net, images, calibration, memory_budget=budget, precision=args.precision)
        trace = Descent(args.out, name, ranks, evaluator, options["steps"])
        points = descend(net, trace, name, options)
        seconds, macs = trace.spent()
        losses = {i: fresh.score(points[i].config).loss for i in ranks.own(range(len(points))) if fresh}
        paths[name] = [(c.group, c.width) for c in trace.path_taken()]
        macs = sum(ranks.share({ranks.rank: macs}).values())
        rows[name] = (seconds, macs, len(trace.rows), ranks.share(losses).values())
        say(f"{name}: {len(paths[name]) - 1} steps in {seconds:.0f} s", file=sys.stderr)
        evaluator.forget()  # a GPU has no room for what two of them keep
        along = along or trace.path_taken()
    count = args.straightforward
    first = options if count is None else {**options, "steps": count}
    name = "straightforward" if count is None else f"straightforward-{count}"
    images = Samples(images, next(net.parameters()).device).cut(evaluator.batch)  # for large ones a CPU takes twice as long
    trace = Descent(args.out, name, ranks, SupernetEvaluator(net, images, calibration), first["steps"])
    descend(net, trace, "exact", first)
    seconds, _ = trace.spent()
    (part, _), (total, whole) = (executed(net, path, args.pick, seen) for path in (trace.path_taken(), along))
    paths["straightforward"] = [(c.group, c.width) for c in trace.path_taken()]
    rows["straightforward"] = (seconds * total / part, total, whole, [])

    base = rows["straightforward"]
    say("steps:", ", ".join(f"{name} {len(path) - 1}" for name, path in paths.items()))
    if next(net.parameters()).is_cuda:
        say("seconds:", ", ".join(f"{name} {row[0]:.1f}" for name, row in rows.items()))
    say(f"{'':16} {'wall':>8} {'MACs':>8} {'evaluations':>12} {'images/s':>9} {'same path':>14}  loss on fresh images")
    for name, (seconds, macs, count, losses) in sorted(rows.items(), key=lambda row: -row[1][1]):
        known = list(zip(paths[name], paths["straightforward"]))
        same = f"{sum(a == b for a, b in known) - 1} of {len(known) - 1}"
        text = " ".join(f"{loss:.4f}" for loss in losses)
        ratios = f"{base[0] / seconds:7.1f}x {base[1] / macs:7.1f}x"
        say(f"{name:16} {ratios} {count:12} {base[2] * seen / seconds:9.0f} {same:>14}  {text}")
    ranks.close()


def memory_budget(args, ranks, place) -> float:
    """Return the bytes that every process takes for a search; with `--out`, check that it holds this benchmark, and take its own."""
    budget = args.memory_budget or (args.out and runs.noted_memory_budget(args.out)) or ranks.memory_budget(place)
    ranks.wait()  # all have read what the first process writes
    if args.out and ranks.rank == 0:
        told = {name: value for name, value in vars(args).items() if name not in ("run", "out", "efforts", "straightforward")}
        told |= {"race": RACE, "stale": STALE, "at_once": AT_ONCE, "memory_budget": budget}
        told |= {"supernet": digest(args.run / "checkpoint.pt") if args.run else None}
        runs.write_run(args.out, "benchmark", **told, processes=ranks.count)
    return budget


class Enough(Exception):
    """A descent has gone as far as it was to go."""


class Descent(autoslim.SearchTrace):
    """The trace of one search, which ends it after some steps, and what the search took in this process.

    Args:
        folder: where both are kept; None for nowhere.
        name: of the files there.
        ranks: of the processes that search.
        evaluator: whose executed multiply-adds are counted, where it counts them.
        steps: at most; None for no bound.
    """

    def __init__(self, folder: Path | None, name: str, ranks: Ranks, evaluator, steps: int | None):
        super().__init__(folder and folder / f"{name}.csv")
        self.evaluator, self._steps = evaluator, steps
        self._kept = folder and folder / f"{name}-{ranks.rank}.json"
        self._spent: dict[str, tuple[float, int]] = {}  # by the end of every step
        if self.rows:
            done = self.path_taken()[-1].step
            self._spent = {step: spent for step, spent in read_json(self._kept, RunError).items() if int(step) <= done}
            if ranks.rank == 0:
                print(f"{name} goes on after step {done}", file=sys.stderr)
        ranks.wait()  # all have read what the first process writes
        self._begin()

    def _begin(self) -> None:
        self._started, self._macs = time.perf_counter(), getattr(self.evaluator, "macs", 0)

    def spent(self) -> tuple[float, int]:
        """Return seconds and executed multiply-adds so far, those before it was cut off included."""
        if next(self.evaluator.net.parameters()).is_cuda:
            torch.cuda.synchronize()
        seconds, macs = list(self._spent.values())[-1] if self._spent else (0.0, 0)
        return seconds + time.perf_counter() - self._started, macs + getattr(self.evaluator, "macs", 0) - self._macs

    def step(self, number):
        if self._steps is not None and number > self._steps:
            raise Enough
        recorded = super().step(number)
        if recorded:
            self._begin()  # what was scored again on the way here is counted
        return recorded

    def record(self, candidates):
        self._spent[str(candidates[0].step)] = self.spent()
        self._begin()
        if self._kept:
            write_json(self._kept, self._spent)
        super().record(candidates)


def descend(net, trace: Descent, effort: str, options: dict) -> list:
    """Search to the targets, or for a number of steps; returns the points."""
    targets = [autoslim.CostTable(net).cost(net.narrowest()).macs] if options["steps"] is not None else options["targets"]
    keywords = {"score": options["score"], "pick": options["pick"], "effort": effort, "progress": sys.stderr.isatty()}
    keywords |= {"evaluator": trace.evaluator, "trace": trace}
    points = []
    with contextlib.suppress(Enough):
        points += autoslim.greedy_search(net, targets={"macs": targets}, **keywords)
    return points


def executed(net, path: list, pick: str, images: int) -> tuple[int, int]:
    """Return the multiply-adds of scoring every candidate of every step of a path whole, and how many candidates there are."""
    budgets = Budgets(net, ["macs"])
    widths = net.full().widths
    macs = [budgets.costs(widths)["macs"]]
    for taken in path[1:]:
        candidates = narrowed(net, budgets, widths, budgets.costs(widths), ["macs"], PICK_RULES[pick].part)
        macs += [budgets.costs(candidate)["macs"] for candidate in candidates.values()]
        widths = {**widths, taken.group: taken.width}
    return images * sum(macs), len(macs)


def drawn(args):
    """A network with random weights, on random images; returns it, both, no fresh images, and the score."""
    space = load_space(args.space).with_classes(10)
    space = replace(space, input_shape=(space.input_shape[0], args.pixels, args.pixels))
    net = family.build_supernet(space, args.device)
    autoslim.initialize(net, 0)
    count = args.images or 128
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, *space.input_shape, generator=generator)
    batches = list(zip(x.split(256), torch.randint(0, 10, (count,), generator=generator).split(256)))
    calibration = leading(batches, max(1, count // 4))
    return net, batches, calibration, None, args.score or "loss"


def trained(args):
    """A trained run, on its own images; returns it, those to score and to calibrate with, fresh ones, and the score."""
    net, space, settings = load_supernet(args.run, args.device)
    images = runs.held_out_images(args.run, settings, space.input_shape, torch.device(args.device))
    scored, calibration = runs.judged_on(images, space.search)
    fresh = SupernetEvaluator(net, images.scoring(images.test, 256), calibration)
    if args.images:
        images = replace(images, search=images.search.subset(range(min(args.images, len(images.search)))))
        scored, calibration = runs.judged_on(images, {**space.search, "calibration_images": max(1, args.images // 4)})
    return net, scored, calibration, fresh, args.score or space.search["score"]


def leading(batches, count: int) -> list:
    """Return batches that hold the first `count` images."""
    found = []
    for x, target in batches:
        if count > 0:
            found.append((x[:count], target[:count]))
            count -= len(x)
    return found


if __name__ == "__main__":
    main()
