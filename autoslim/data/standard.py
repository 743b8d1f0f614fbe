"""Data sets that scikit-learn and torchvision know how to read."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from autoslim.data.images import ImageSet
from autoslim.data.split import split
from autoslim.errors import DataError

# Name here, class in torchvision.datasets, and the folder inside DIR in which it looks.
TORCHVISION_SETS = {
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
    "cifar100": ("CIFAR100", "cifar-100-python"),
    "fashion-mnist": ("FashionMNIST", "FashionMNIST/raw"),
}


def load_digits() -> tuple[ImageSet, ImageSet, list[str]]:
    """Read scikit-learn's 1,797 handwritten digits, 8x8 grey; a fixed fifth of each class is the test set.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise DataError(
            "data set 'digits' comes with scikit-learn, which is not installed; pip install 'autoslim[demo]'"
        ) from error
    digits = datasets.load_digits()
    grey = torch.from_numpy(digits.images)[:, None]  # 0..16
    images = (grey * (255 / 16)).round().to(torch.uint8)
    everything = ImageSet(images, torch.from_numpy(digits.target).long())
    train, test = split(everything, 0.2, seed=0)
    return train, test, [str(name) for name in digits.target_names]


def load_torchvision(name: str, root: Path) -> tuple[ImageSet, ImageSet, list[str]]:
    """Read a data set that torchvision has downloaded to `root`.

    Raises:
        DataError: its files are not there, or are damaged.
    """
    from torchvision import datasets

    kind, inner = TORCHVISION_SETS[name]
    parts = []
    for train in (True, False):
        try:
            with warnings.catch_warnings():
                # numpy 2.4 deprecates a detail of how the published CIFAR files were pickled.
                warnings.simplefilter("ignore")
                parts.append(getattr(datasets, kind)(str(root), train=train, download=False))
        except Exception as error:  # torchvision raises RuntimeError for missing files, nearly anything for damaged ones
            raise DataError(missing_files(name, root, inner, kind, error)) from error
    return (*(to_image_set(part) for part in parts), list(parts[0].classes))


def to_image_set(dataset: object) -> ImageSet:
    """Convert `data` (uint8 [N, H, W] or [N, H, W, 3]) and `targets` of a torchvision data set."""
    images = torch.as_tensor(dataset.data)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
    return ImageSet(images, torch.as_tensor(dataset.targets).long())


def missing_files(name: str, root: Path, inner: str, kind: str, error: Exception) -> str:
    """Say what was looked for, why it could not be read, and how to get it."""
    if (root / "train").is_dir() and any(child.is_dir() for child in (root / "train").iterdir()):
        return f"{root}: no {inner}/ for {name}, but train/CLASS folders; folder:{root} reads those"
    state = "damaged or incomplete" if (root / inner).exists() else "missing"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"{name} needs {root / inner}, which is {state} ({reason.rstrip('.')}); get it with: "
        f'python -c "from torchvision.datasets import {kind}; {kind}({str(root)!r}, download=True)"'
    )
