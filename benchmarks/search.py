"""What a search costs: straightforward against in parts against lazy, in one run; ratios and counts.

    python benchmarks/search.py mobilenet_v2 --pixels 96 --steps 4
    python benchmarks/search.py --run runs/supernet --target 50%

The first form draws weights and images at random: it shows what is executed, and that decisions agree. The second takes the
held-out images of a trained run, and scores what was found on its test images as fresh ones.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch

import autoslim
from autoslim.commands import runs
from autoslim.commands.search import load_supernet
from autoslim.search.engine import PartialEvaluator
from autoslim.search.evaluate import SupernetEvaluator
from autoslim.slimmable import family
from autoslim.spaces import load_space


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("space", nargs="?", help="search space, with random weights and images")
    parser.add_argument("--run", type=Path, help="trained supernet with held-out images")
    parser.add_argument("--pixels", type=int, default=96)
    parser.add_argument("--images", type=int, default=128, help="random images to score; a quarter as many calibrate")
    parser.add_argument("--steps", type=int, default=4, help="steps of the descent with random weights")
    parser.add_argument("--target", default="50%", help="multiply-adds to descend to, of a trained run: 75%%,50%%")
    parser.add_argument("--score", choices=["error", "loss"], default="loss")
    parser.add_argument("--pick", choices=["drop", "drop-per-saving"], default="drop")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if (args.space is None) == (args.run is None):
        parser.error("name a space or a --run")
    torch.set_num_threads(args.threads)
    net, images, calibration, fresh, options = trained(args) if args.run else drawn(args)
    rows, paths = {}, {}
    for name, kind, effort in (
        ("straightforward", SupernetEvaluator, "exact"),
        ("exact", PartialEvaluator, "exact"),
        ("fast", PartialEvaluator, "fast"),
    ):
        evaluator = kind(net, list(images), list(calibration))
        trace = autoslim.SearchTrace()
        started = time.perf_counter()
        points = descend(net, evaluator, trace, effort, options)
        seconds = time.perf_counter() - started
        seen = sum(len(t) for _, t in evaluator._images) + sum(len(x) for x, _ in evaluator._calibration)
        macs = getattr(evaluator, "macs", seen * sum(c.macs for c, _ in trace.rows))
        paths[name] = [(c.group, c.width) for c in trace.path_taken()]
        losses = [fresh.score(p.config).loss for p in points] if fresh else []
        rows[name] = (seconds, macs, len(trace.rows), losses)
    base = rows["straightforward"]
    print(f"{'':16} {'wall':>8} {'MACs':>8} {'evaluations':>12} {'same path':>10}  loss on fresh images")
    for name, (seconds, macs, evaluations, losses) in rows.items():
        same = sum(a == b for a, b in zip(paths[name], paths["straightforward"])) / len(paths["straightforward"])
        text = " ".join(f"{loss:.4f}" for loss in losses)
        print(f"{name:16} {base[0] / seconds:7.1f}x {base[1] / macs:7.1f}x {evaluations:12} {same:10.0%}  {text}")


def descend(net, evaluator, trace, effort, options) -> list:
    """Search to the target, or for a number of steps."""
    full = autoslim.CostTable(net).cost(net.full()).macs
    steps = options.get("steps")
    targets = options["targets"] if steps is None else [full * (1 - i / 1000) for i in range(1, 900)]
    points = []
    keywords = {key: options[key] for key in ("score", "pick")}
    for point in autoslim.greedy_search(
        net, targets={"macs": targets}, effort=effort, evaluator=evaluator, trace=trace, **keywords
    ):
        if steps is not None and point.step >= steps:
            break
        points.append(point)
    return points


def drawn(args):
    """A network with random weights, on random images."""
    space = replace(load_space(args.space), input_shape=(3, args.pixels, args.pixels)).with_classes(10)
    net = family.build_supernet(space)
    autoslim.initialize(net, 0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(args.images, 3, args.pixels, args.pixels, generator=generator)
    batches = list(zip(x.split(32), torch.randint(0, 10, (args.images,), generator=generator).split(32)))
    calibration = batches[: max(1, len(batches) // 4)]
    return net, batches, calibration, None, {"steps": args.steps, "score": args.score, "pick": args.pick}


def trained(args):
    """A trained run, on its own images."""
    net, space, settings = load_supernet(args.run, "cpu")
    images = runs.load_images(settings["data"], space.input_shape, settings["held_out"], settings["seed"], torch.device("cpu"))
    rules = space.search
    scored, calibration = map(list, runs.judged_on(images, rules))
    fresh = SupernetEvaluator(net, images.scoring(images.test, rules["batch_size"]), calibration)
    return net, scored, calibration, fresh, {"targets": args.target.split(","), "score": args.score, "pick": args.pick}


if __name__ == "__main__":
    main()
