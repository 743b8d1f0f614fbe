"""Ratios of the hot paths, measured side by side in one run: `python benchmarks/hot_paths.py [--threads N]`.

Every ratio is the median of interleaved repeats, so that a slow moment of the machine hits both sides.
"""

import argparse
import statistics
import time

import torch

import autoslim
from autoslim.allocator import keep_freed_memory
from autoslim.data import ImageSet, Loader
from autoslim.models import mobilenet_v2_cifar, resnet_cifar
from autoslim.sandwich import Sandwich
from autoslim.training.steps import Objective, plain_step, sandwich_step


def compare(repeats: int, **sides) -> dict[str, float]:
    """Return the median seconds of each side, run in turn."""
    times = {name: [] for name in sides}
    for _ in range(repeats + 1):
        for name, run in sides.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(measured[1:]) for name, measured in times.items()}


def report(what: str, seconds: dict[str, float], base: str) -> None:
    """Print every side as a ratio to `base`."""
    for name, value in seconds.items():
        if name != base:
            print(f"{what:<28} {name} / {base}: {value / seconds[base]:.2f}x")


def main() -> None:
    """Measure the sandwich step, candidate evaluation, BN calibration and augmentation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} threads, {args.repeats} repeats, batches of 64 images of 32 pixels")
    x, target = torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,))
    for label, model in (("resnet14", resnet_cifar(14, stem_stride=2)), ("mobilenet_v2", mobilenet_v2_cifar(0.5))):
        net = autoslim.Supernet(model, x[:1])
        table = autoslim.CostTable(net)
        half, narrow = net.uniform(0.5), net.narrowest()
        for name, config in (("half", half), ("narrowest", narrow)):
            share = table.cost(config).macs / table.cost(net.full()).macs
            print(f"{label:<28} MACs {name} / full: {share:.2f}x")
        generator = torch.Generator().manual_seed(0)

        def at(config, net=net):
            net.set(config)
            net.train()
            plain_step(net, x, target, objective=Objective())

        plain_half = autoslim.materialize(net, half).train()
        report(
            f"{label} training step",
            compare(
                args.repeats,
                plain=lambda model=model: plain_step(model.train(), x, target, objective=Objective()),
                full=lambda net=net: at(net.full()),
                half=lambda: at(half),
                narrowest=lambda: at(narrow),
                sandwich=lambda net=net: sandwich_step(
                    net, x, target, sandwich=Sandwich(True, True, 2), objective=Objective(0.0), generator=generator
                ),
            ),
            "plain",
        )
        report(
            f"{label} half width",
            compare(
                args.repeats,
                materialised=lambda plain=plain_half: plain_step(plain, x, target, objective=Objective()),
                supernet=lambda: at(half),
            ),
            "materialised",
        )
        with torch.inference_mode():
            net.set(half)
            net.eval()
            report(
                f"{label} one batch",
                compare(
                    args.repeats,
                    forward=lambda net=net: net(x),
                    calibrate=lambda net=net: autoslim.calibrate(net, [(x, None)]),
                ),
                "forward",
            )
    images = ImageSet(torch.randint(0, 256, (2048, 3, 32, 32), dtype=torch.uint8), torch.zeros(2048, dtype=torch.int64))
    statistics_ = {"mean": [0.5] * 3, "std": [0.25] * 3, "batch_size": 128}
    plain = Loader(images, **statistics_)
    augmented = Loader(images, **statistics_, crop="pad", flip=True, shuffle=True)
    report(
        "augmentation of 2,048 images",
        compare(args.repeats, plain=lambda: list(plain), pad_crop_flip=lambda: list(augmented)),
        "plain",
    )
    # The last one: it cannot be taken back.
    net, many = autoslim.Supernet(mobilenet_v2_cifar(0.5), x[:1]).eval(), torch.randn(256, 3, 32, 32)
    with torch.inference_mode():
        seconds = compare(args.repeats, freed=lambda: net(many))
        if keep_freed_memory():
            report("mobilenet_v2 on 256 images", seconds | compare(args.repeats, kept=lambda: net(many)), "freed")


if __name__ == "__main__":
    main()
