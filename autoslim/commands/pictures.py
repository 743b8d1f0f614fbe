"""What a trained run looks like inside, at each of its switches."""

import re
from pathlib import Path

import click
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autoslim.commands import runs
from autoslim.commands.trained import open_run, views
from autoslim.errors import RunError
from autoslim.slimmable.modes import eval_mode

IMAGES, SHOWN = 2000, 8


def curves(folder: Path, out: Path) -> None:
    """Draw the training curves of every switch of a run."""
    import pandas

    from autoslim.report.curves import draw_curves

    settings = runs.read_run(folder)
    path = folder / "metrics.csv"
    if not path.exists():
        raise RunError(f"{path} does not exist: the run has no finished epoch; train it on")
    try:
        table = pandas.read_csv(path)
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); run the same training again to write it") from error
    if settings["kind"] == "switches" and settings["system"] == "joint":
        # A configuration's file may be named by a number, which is no width multiplier.
        table = table.rename(columns=lambda name: re.sub(r"^(loss|accuracy)_(.+)$", r"\1_network \2", name))
    draw_curves(out, table)


def norms(folder: Path, out: Path, widths: list[float] | None, device: str) -> None:
    """Draw scale, bias, mean and variance of every batch norm at each switch (Slimmable Networks, figure 4)."""
    from autoslim.report.norms import draw_norms

    run = _open(folder, widths, device)
    images = None if run.settings["kind"] == "switches" else run.images()
    rows = []
    for name, network in views(run, widths, images):
        layers = [(key, m) for key, m in _model(network).named_modules() if isinstance(m, _BatchNorm)]
        for index, (key, layer) in enumerate(layers):
            held = {"scale": layer.weight, "bias": layer.bias, "mean": layer.running_mean, "variance": layer.running_var}
            arrays = {part: None if value is None else value.detach().cpu().numpy().copy() for part, value in held.items()}
            rows.append({"switch": name, "layer": key, "index": index, **arrays})
    if not rows:
        raise RunError(f"{folder} holds a network without batch norm; there is nothing to draw")
    draw_norms(out, rows, title=run.label)


@torch.inference_mode()
def top_images(folder: Path, out: Path, layer: str | None, channel: int, widths: list[float] | None, device: str) -> None:
    """Draw the training images that excite one channel most at each switch (Slimmable Networks, figure 3).

    The activation of an image is the largest value of the channel over all positions.
    """
    from autoslim.report.images import draw_top_images

    run = _open(folder, widths, device)
    images = run.images()
    shown = images.train if images.search is None else images.search
    order = torch.randperm(len(shown), generator=torch.Generator().manual_seed(0))[:IMAGES]
    batches = [x for x, _ in images.scoring(shown.subset(order))]
    pixels = torch.cat(batches)
    mean, std = (torch.tensor(v, device=pixels.device).view(1, -1, 1, 1) for v in (images.mean, images.std))
    rows = []
    for name, network in views(run, widths, images):
        layer = layer or _last_norm(network)
        values = _activations(network, layer, channel, batches, name)
        best = values.argsort(descending=True, stable=True)[:SHOWN]
        seen = ((pixels[best.to(pixels.device)] * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        rows.append({
            "label": name,
            "images": seen.permute(0, 2, 3, 1).cpu().numpy(), "activations": values[best].numpy(),
        })  # fmt: skip
    draw_top_images(
        out, rows, title=f"{run.label}: channel {channel} of {layer}, the {SHOWN} images of {len(order)} that excite it most"
    )


def _open(folder: Path, widths: list[float] | None, device: str):
    run = open_run(folder, device)
    if widths is not None and run.settings["kind"] == "switches":
        raise click.UsageError(f"--widths is for supernets; {folder} has switches ({', '.join(run.net.switches)}), leave it out")
    return run


def _activations(network: nn.Module, layer: str, channel: int, batches: list[Tensor], switch: str) -> Tensor:
    """Return the largest value of a channel over all positions, for every image, `[N]`."""
    modules = dict(_model(network).named_modules())
    if layer not in modules:
        raise RunError(f"layer {layer!r} is unknown; `autoslim inspect SPACE --members` names the layers")
    found = []

    def hook(module, inputs, output):
        if not isinstance(output, Tensor) or output.dim() not in (2, 4):
            raise RunError(f"layer {layer!r} does not put out [N, C, H, W] or [N, C]; name a conv, batch norm or activation")
        if channel >= output.shape[1]:
            raise RunError(
                f"channel {channel} of {layer!r} is not there at switch {switch}, which has {output.shape[1]}; pass a lower one"
            )
        found.append(
            output[:, channel].flatten(1).amax(1).float().cpu() if output.dim() == 4 else output[:, channel].float().cpu()
        )

    handle = modules[layer].register_forward_hook(hook)
    try:
        with eval_mode(network):
            for x in batches:
                network(x)
    finally:
        handle.remove()
    if not found:
        raise RunError(f"layer {layer!r} is not run by the network; name another")
    return torch.cat(found)


def _model(network: nn.Module) -> nn.Module:
    """Return the user's network inside a supernet or a switchable network."""
    return getattr(network, "net", network).model


def _last_norm(network: nn.Module) -> str:
    names = [name for name, module in _model(network).named_modules() if isinstance(module, _BatchNorm)]
    if not names:
        raise RunError("the network has no batch norm; name a layer with --layer")
    return names[-1]
