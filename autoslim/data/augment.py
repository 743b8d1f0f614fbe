"""Crops, mirror images and normalisation of whole batches.

Batches are [B, H, W, C] here, dense in memory: a row of pixels is then one run of bytes that can be moved at once.
Random numbers are drawn on the CPU, so that a seed means the same on every device.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


def mirror(pixels: Tensor) -> Tensor:
    """Flip every image of [B, H, W, C] left to right."""
    # Seen as channels-last [B, C, H, W], uint8 takes torch's vectorised kernel: five times the speed of flip(2).
    return pixels.permute(0, 3, 1, 2).flip(3).permute(0, 2, 3, 1).contiguous()


def draw_flips(batch: int, generator: Generator) -> Tensor:
    """Draw whether to mirror, bool [B], true half of the time."""
    return torch.rand(batch, generator=generator) < 0.5


def cut_windows(
    pixels: Tensor, top: Tensor, left: Tensor, flips: Tensor | None, size: tuple[int, int], pad: int, fill: Tensor
) -> Tensor:
    """Cut one window out of every image, after mirroring it and padding it on all sides.

    Args:
        pixels: uint8 [B, H, W, C].
        top, left: int64 [B], on the CPU; the window's corner in the padded image, [H + 2 pad, W + 2 pad].
        flips: bool [B], on the CPU; images that are mirrored first, or None for none of them.
        size: (height, width) of the windows.
        pad: pixels added on each side.
        fill: uint8 [C], their colour.

    Returns:
        uint8 [B, height, width, C].
    """
    batch, high, wide, channels = pixels.shape
    padded_high, padded_wide = high + 2 * pad, wide + 2 * pad
    versions = [pixels] if flips is None else [pixels, mirror(pixels)]
    canvas = pixels.new_empty(len(versions), batch, padded_high, padded_wide, channels)
    if pad:
        canvas.view(-1, padded_wide * channels)[:] = fill.repeat(padded_wide)
    for target, version in zip(canvas, versions, strict=True):
        target[:, pad : pad + high, pad : pad + wide] = version

    # Every row of a window is a run of bytes in the canvas: gather B * height of them, whatever their offsets.
    image = torch.arange(batch) if flips is None else torch.arange(batch) + batch * flips
    corner = (image * padded_high + top) * (padded_wide * channels) + left * channels
    rows = corner[:, None] + torch.arange(size[0]) * (padded_wide * channels)
    run = size[1] * channels
    runs = canvas.view(-1).as_strided((canvas.numel() - run + 1, run), (1, 1))
    return runs.index_select(0, rows.view(-1).to(pixels.device)).view(batch, *size, channels)


def draw_boxes(batch: int, high: int, wide: int, min_scale: float, generator: Generator) -> Tensor:
    """Draw crops of `min_scale` to 1 of the area, 3:4 to 4:3 in shape (Szegedy et al. 2015, section 6).

    A side that would be longer than the image is cut to it, where the paper draws again.

    Returns:
        float [B, 4]: top, left, height, width, in pixels, not rounded.
    """
    scale, shape, down, right = torch.rand(4, batch, generator=generator, dtype=torch.float64)
    area = high * wide * (min_scale + (1 - min_scale) * scale)
    ratio = torch.exp(math.log(4 / 3) * (2 * shape - 1))
    height = (area / ratio).sqrt().clamp(max=high)
    width = (area * ratio).sqrt().clamp(max=wide)
    return torch.stack([down * (high - height), right * (wide - width), height, width], dim=1)


def resize_boxes(images: Tensor, boxes: Tensor, flips: Tensor | None, size: tuple[int, int]) -> Tensor:
    """Scale one box of every image to a common size, bilinear, mirrored where `flips` says so.

    Args:
        images: float [B, H, W, C].
        boxes: float [B, 4] as from `draw_boxes`, on the CPU.
        flips: bool [B] on the CPU, or None.
        size: (height, width) of the results.

    Returns:
        float [B, height, width, C].
    """
    batch, high, wide, channels = images.shape
    top, left, height, width = boxes.unbind(1)
    affine = torch.zeros(batch, 2, 3, dtype=boxes.dtype)
    affine[:, 0, 0] = width / wide if flips is None else torch.where(flips, -width, width) / wide
    affine[:, 0, 2] = (2 * left + width) / wide - 1
    affine[:, 1, 1] = height / high
    affine[:, 1, 2] = (2 * top + height) / high - 1
    affine = affine.to(device=images.device, dtype=images.dtype)
    grid = F.affine_grid(affine, [batch, channels, *size], align_corners=False)
    cropped = F.grid_sample(images.permute(0, 3, 1, 2), grid, padding_mode="border", align_corners=False)
    return cropped.permute(0, 2, 3, 1).contiguous()


def centre_crop(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut the middle out of [B, H, W, C]."""
    top, left = (pixels.shape[1] - size[0]) // 2, (pixels.shape[2] - size[1]) // 2
    return pixels[:, top : top + size[0], left : left + size[1]].contiguous()


def normalise(pixels: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Compute pixels * scale + shift for uint8 [B, H, W, C]; scale and shift are float [C]."""
    batch, high, wide, channels = pixels.shape
    # Constants for a whole row of pixels, since an inner loop over three channels takes eight times as long.
    rows = pixels.view(batch * high, wide * channels).float()
    return rows.mul_(scale.repeat(wide)).add_(shift.repeat(wide)).view(batch, high, wide, channels)
