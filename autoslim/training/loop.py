"""The one training loop, and the trainings that use it: of supernets, of switchable networks, from scratch."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from tqdm import tqdm

from autoslim.channels.config import ChannelConfig
from autoslim.errors import RunError
from autoslim.files import held, write_csv
from autoslim.sandwich import Sandwich
from autoslim.slimmable.supernet import Supernet
from autoslim.slimmable.switchable import SwitchableNet
from autoslim.training.checkpoint import load_checkpoint, save_checkpoint
from autoslim.training.epoch import Begun, Epochs
from autoslim.training.initialize import initialize
from autoslim.training.recipe import Recipe
from autoslim.training.steps import Objective, plain_step, sandwich_step, switch_step

log = logging.getLogger("autoslim")
KEPT_EVERY = 600  # seconds, in the middle of an epoch
_BAR = "{desc}: {percentage:.0f}%|{bar}| {n:.2f}/{total} epochs [{elapsed}<{remaining}{postfix}]"


def train_supernet(
    net: Supernet,
    batches: Iterable,
    *,
    folder: str | Path | None = None,
    seed: int = 0,
    progress: bool = False,
    recipe: Recipe | None = None,
    from_scratch: bool = False,
    loss: Callable | None = None,
    distill: Callable | bool | None = None,
    uniform: Callable[[float], ChannelConfig] | None = None,
    **hyper,
) -> list[dict]:
    """Train a supernet with the sandwich rule and inplace distillation (US-Nets, section 3).

    Args:
        net: the supernet; it is trained in place, on its own device.
        batches: `(images [N, C, H, W], labels [N])` batches, iterated once an epoch; `set_epoch(e)` is called if there.
        folder: where metrics.csv goes after every epoch, and checkpoint.pt every ten minutes, too; a training that was cut
            off goes on from there.
        seed: of the drawn widths and of dropout; it makes a resumed training equal to an uninterrupted one.
        progress: draw a progress bar on stderr.
        from_scratch: draw new weights by `seed` first, instead of starting from the model's.
        loss: `(output, target) -> scalar`, for outputs with auxiliary heads or other tasks; cross-entropy of the class
            scores (the output, or the first entry of a tuple or dict) by default.
        distill: what the other widths learn from the widest, as `(output, widest output) -> scalar`. True: its class scores,
            softened, as the recipe says by default. False: nothing, they see the labels; so, too, by default with a `loss`.
        uniform: the configuration of a ratio of full width, where the recipe draws uniform widths; `net.uniform` by default.
        recipe, hyper: a `Recipe`, or its fields as keywords (`epochs=50, lr=0.1, ...`).

    Returns:
        one row an epoch: epoch, lr, loss (mean over the networks of a step), widest_loss, accuracy (of the widest, on the
        training batches), narrowest_loss, seconds.
    """
    if distill is None and loss is not None:
        distill = False  # what its outputs mean is known to that loss alone
    if distill is not None:
        hyper["distill"] = bool(distill)
    recipe = _recipe(recipe, hyper)
    if from_scratch:
        initialize(net, seed)
    objective = Objective(recipe.label_smoothing, loss, distill if callable(distill) else recipe.distill)
    draw = (uniform or net.uniform) if recipe.widths == "uniform" else None
    step = partial(sandwich_step, net, sandwich=Sandwich.parse(recipe.sandwich), objective=objective, uniform=draw)
    return _fit(net, step, batches, recipe, folder, seed, progress, "supernet")


def train_switches(
    net: SwitchableNet,
    batches: Iterable,
    *,
    folder: str | Path | None = None,
    seed: int = 0,
    progress: bool = False,
    recipe: Recipe | None = None,
    from_scratch: bool = True,
    loss: Callable | None = None,
    **hyper,
) -> list[dict]:
    """Train all switches of a switchable network jointly; every switch sees the labels (Slimmable Networks, algorithm 1).

    Arguments are those of `train_supernet`, but that new weights are drawn unless `from_scratch` is false; the recipe's
    distillation and sandwich have no meaning here.

    Returns:
        one row an epoch: epoch, lr, loss (mean over the switches), `loss_NAME` and `accuracy_NAME` (on the training batches)
        of every switch, seconds.
    """
    recipe = _recipe(recipe, hyper)
    if from_scratch:
        initialize(net, seed)
    objective = Objective(recipe.label_smoothing, loss, distill=False)

    def step(x, target, generator):
        return switch_step(net, x, target, objective=objective)

    return _fit(net, step, batches, recipe, folder, seed, progress, "switches")


def retrain(
    network: nn.Module,
    batches: Iterable,
    *,
    folder: str | Path | None = None,
    seed: int = 0,
    progress: bool = False,
    recipe: Recipe | None = None,
    from_scratch: bool = True,
    loss: Callable | None = None,
    **hyper,
) -> list[dict]:
    """Train a plain network, by default from an initialisation of its own rather than from the weights it came with.

    Arguments and result are those of `train_supernet`, without the narrowest loss. With `from_scratch=False` the training
    starts from the network's present weights (fine-tuning).
    """
    recipe = _recipe(recipe, hyper)
    if from_scratch:
        initialize(network, seed)

    objective = Objective(recipe.label_smoothing, loss)

    def step(x, target, generator):
        return plain_step(network, x, target, objective=objective)

    return _fit(network, step, batches, recipe, folder, seed, progress, "network")


def _recipe(recipe: Recipe | None, hyper: dict) -> Recipe:
    return replace(recipe, **hyper) if recipe else Recipe(**hyper)


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict]:
    """Split parameters into conv and linear weights, which decay, and depthwise weights, BN and biases, which do not."""
    decays = set()
    plain = network.source if isinstance(network, (Supernet, SwitchableNet)) else network  # whatever width is set
    for module in plain.modules():
        if isinstance(module, nn.Linear) or (isinstance(module, nn.modules.conv._ConvNd) and not _is_depthwise(module)):
            computed = module.parametrizations.weight.parameters() if is_parametrized(module, "weight") else ()
            decays |= {id(module._parameters.get("weight")), *(id(each) for each in computed if each.dim() > 1)}
    decayed = [p for p in network.parameters() if id(p) in decays]
    rest = [p for p in network.parameters() if id(p) not in decays]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def _is_depthwise(conv: nn.Module) -> bool:
    return conv.groups > 1 and conv.groups == conv.in_channels


def _fit(network: nn.Module, step: Callable, batches: Iterable, recipe: Recipe, folder: str | Path | None, *how) -> list[dict]:
    with held(folder) if folder else contextlib.nullcontext():
        return _run_epochs(network, step, batches, recipe, folder, *how)


def _run_epochs(
    network: nn.Module,
    step: Callable,
    batches: Iterable,
    recipe: Recipe,
    folder: str | Path | None,
    seed: int,
    progress: bool,
    kind: str,
) -> list[dict]:
    optimizer = torch.optim.SGD(
        parameter_groups(network, recipe.weight_decay), lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov
    )
    path = Path(folder) / "checkpoint.pt" if folder else None
    rows: list[dict] = []
    begun = None

    def keep(begun: dict | None = None) -> None:
        if path:
            save_checkpoint(path, kind, network, optimizer, rows, {"recipe": recipe.to_json(), "seed": seed}, begun)

    if path and path.exists():
        rows, begun = _resume(path, network, optimizer, recipe, seed, kind)
        if rows:
            write_csv(path.parent / "metrics.csv", rows)  # its last row may have been cut off
    else:
        keep()
    device = next(network.parameters()).device
    was_training = network.training
    # miniters: what is learnt of fast steps would hide slower ones. A log is to stay short.
    told = {"desc": f"training {kind}", "bar_format": _BAR, "miniters": 0, "mininterval": 1 if sys.stderr.isatty() else 60}
    bar = tqdm(total=recipe.epochs, initial=len(rows), disable=not progress, **told)
    devices = [device] if device.type == "cuda" else []
    epochs = Epochs(network, step, optimizer, recipe, seed=seed, bar=bar, kept=keep, kept_every=KEPT_EVERY)
    with bar, torch.random.fork_rng(devices=devices):
        for epoch in range(len(rows), recipe.epochs):
            network.train()
            rows.append(epochs.run(batches, epoch, begun))
            begun = None
            keep()
            if path:
                write_csv(path.parent / "metrics.csv", rows)
            rates = [f"{value:.1%}" for key, value in rows[-1].items() if key.startswith("accuracy")]
            right = f", train accuracy {' '.join(rates)}" if rates else ""
            bar.update(epoch + 1 - bar.n)  # there may have been fewer batches than there were said to be
            bar.set_postfix_str(f"loss {rows[-1]['loss']:.3f}{right}")
    network.train(was_training)
    return rows


def _resume(path: Path, network, optimizer, recipe: Recipe, seed: int, kind: str) -> tuple[list[dict], Begun | None]:
    state = load_checkpoint(path, kind)
    before = {**state["settings"]["recipe"], "seed": state["settings"]["seed"]}
    now = {**recipe.to_json(), "seed": seed}
    changed = [f"{key} was {before.get(key)}, now {value}" for key, value in now.items() if before.get(key) != value]
    if changed:
        raise RunError(f"{path} belongs to another training ({'; '.join(changed)}); use those settings or another folder")
    try:
        network.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        begun = Begun(**state["begun"]) if state.get("begun") else None
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} does not fit the network ({str(error).splitlines()[0]}); use another folder") from error
    if begun:
        log.info("going on from epoch %d and %d batches of %s", len(state["rows"]), begun.batches, path)
    elif state["rows"]:
        log.info("going on from epoch %d of %s", len(state["rows"]), path)
    return state["rows"], begun
