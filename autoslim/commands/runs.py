"""Run folders, and the objects that are rebuilt from them."""

import logging
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from autoslim import __version__
from autoslim.commands.differences import differences, from_where_they_differ
from autoslim.data import FileImages, ImageSet, Loader, channel_statistics, load_data, split
from autoslim.errors import DataError, RunError
from autoslim.files import in_turn, probe_writable, read_json, write_json
from autoslim.search.evaluate import SupernetEvaluator
from autoslim.search.judge import step_evaluator
from autoslim.slimmable.supernet import Supernet
from autoslim.spaces import Space, check_table
from autoslim.training.checkpoint import load_weights
from autoslim.training.recipe import Recipe

log = logging.getLogger("autoslim")
FORMAT = "autoslim.run/2"
_SETTINGS = {
    "supernet": ("system", "space", "data", "held_out", "seed", "classes", "skip_corrupt"),
    "switches": ("system", "space", "switches", "norm", "data", "seed", "recipe", "classes", "skip_corrupt"),
    "network": ("channels", "data", "seed", "recipe", "classes", "skip_corrupt"),
    "search": ("data", "seed", "supernet", "search", "images"),
}

_NOTED_LATER = ("images", "data_digest")  # by versions since the first that wrote this format


def choose_device(name: str) -> torch.device:
    """Return a device by name; "auto" is the GPU if there is one.

    Raises:
        RunError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"{device.type} is not supported")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RunError(f"device {name!r} is not available here; pass cpu or auto") from error
    return device


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {"autoslim": __version__, "torch": torch.__version__, "python": platform.python_version()}


@dataclass(frozen=True)
class Images:
    """The image sets of a run: `train` and `search` share nothing; `test` is for the final evaluation only.

    `search` is None where nothing is held out: a network that is retrained learns from all training images. `size` is the
    (H, W) that a network sees, `original_size` what images came in, `digest` tells which images there are to train on, in which
    order. `mean` and `std` of the channels normalise them: those of all training images, held-out ones included, of the data that
    the network learnt from.
    """

    train: ImageSet | FileImages
    search: ImageSet | FileImages | None
    test: ImageSet | FileImages
    classes: tuple[str, ...]
    mean: list[float]
    std: list[float]
    size: tuple[int, int]
    original_size: tuple[int, int]
    digest: str
    device: torch.device

    def counts(self) -> dict[str, int]:
        """Return how many images each part has."""
        return {"train": len(self.train), "search": len(self.search or ()), "test": len(self.test)}

    def noted(self) -> dict:
        """Return what a run notes of its images, and is the same when it goes on."""
        return {"images": self.counts(), "data_digest": self.digest}

    def normalization(self) -> dict:
        """Return what a run notes to normalise other images by."""
        return {"normalization": {"mean": self.mean, "std": self.std}}

    def tell_enlarged(self) -> None:
        """Log it where images are drawn twice as large or more, which takes four times as long and shows nothing new."""
        (high, wide), (height, width) = self.size, self.original_size
        times = max(high / height, wide / width)
        if times >= 2:
            shape = f"{self.train.image_shape[0]},{round(high / times)},{round(wide / times)}"
            log.info("images of %dx%d pixels are enlarged to %dx%d, the network's input shape; --input-shape %s takes "
                     "them as they are", width, height, wide, high, shape)  # fmt: skip

    def training(self, images, recipe: dict, seed: int) -> Loader:
        """Return shuffled, augmented batches."""
        augment = {key: recipe[key] for key in ("crop", "pad", "min_scale", "flip")}
        batch_size = min(recipe["batch_size"], len(images))
        return self._loader(images, batch_size, shuffle=True, seed=seed, drop_last=True, **augment)

    def scoring(self, images, batch_size: int = 500) -> Loader:
        """Return every image once, not augmented, always in the same order."""
        return self._loader(images, batch_size)

    def calibration(self, count: int) -> Loader:
        """Return `count` training images, not augmented, for BN statistics, in batches that a search can keep in memory."""
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))
        return self._loader(self.train.subset(order[:count]), min(256, count))

    def _loader(self, images, batch_size: int, **options) -> Loader:
        return Loader(
            images, batch_size=batch_size, mean=self.mean, std=self.std, image_size=self.size, device=self.device, **options
        )


def load_images(
    spec: str,
    input_shape,
    held_out: float | None,
    seed: int,
    device: torch.device,
    skip_corrupt: bool = False,
    normalization: dict | None = None,
) -> Images:
    """Read a data set for a network with inputs `[C, H, W]` and hold part of its training images out (None: nothing).

    Images are normalised as a run notes it, else by mean and deviation of the training images.

    Raises:
        DataError: the data cannot be read or split, or its images have other channels than the network takes.
    """
    size = tuple(input_shape[1:])
    data = load_data(spec, image_size=size, skip_corrupt=skip_corrupt)
    if data.image_shape[0] != input_shape[0]:
        raise DataError(
            f"the images of {spec!r} have {data.image_shape[0]} channels, the network takes {input_shape[0]}; "
            "take another network or other images"
        )
    train, search = (data.train, None) if held_out is None else split(data.train, held_out, seed)
    mean, std = (normalization["mean"], normalization["std"]) if normalization else channel_statistics(data.train)
    return Images(train, search, data.test, data.classes, mean, std, size, data.original_size, data.digest, device)


def run_images(run: Path, settings: dict, input_shape, device: torch.device, data: str | None = None) -> Images:
    """Read the images of a run, or others with its classes, normalised as those that it learnt from.

    What it held out of training is held out again. Of other images nothing is: some may have been trained on.

    Args:
        run, settings: its folder and config.json.
        input_shape: [C, H, W] of the network.
        data: images in place of the run's own.

    Raises:
        RunError: the run's images have changed since, so that others would be held out.
        DataError: they cannot be read, or have other classes.
    """
    held_out = settings.get("held_out")
    if data in (None, settings["data"]) and held_out is not None:
        return held_out_images(run, settings, input_shape, device)
    data = data or settings["data"]
    options = {"skip_corrupt": settings["skip_corrupt"], "normalization": settings.get("normalization")}
    images = load_images(data, input_shape, None, settings["seed"], device, **options)
    if held_out is not None and images.digest == settings.get("data_digest"):  # by another name
        return held_out_images(run, {**settings, "data": data}, input_shape, device)
    check_same_classes(settings, images, data)
    return images


def held_out_images(run: Path, settings: dict, input_shape, device: torch.device) -> Images:
    """Read the images of a supernet, split as they were when it was trained.

    Raises:
        RunError: nothing was held out, or the images have changed since.
        DataError: they cannot be read, or have other classes.
    """
    if settings["held_out"] is None:
        raise RunError(
            f"{run} learnt from all training images, so none are left to search on; train it with --held-out 0.1, or another part"
        )
    data, held_out = settings["data"], settings["held_out"]
    options = {"skip_corrupt": settings["skip_corrupt"], "normalization": settings.get("normalization")}
    try:
        images = load_images(data, input_shape, held_out, settings["seed"], device, **options)
    except DataError as error:
        raise DataError(f"{error} ({run} learnt from {data!r}, as seen from the folder that it was trained in)") from error
    if settings.get("images", images.counts()) != images.counts():
        raise RunError(
            f"{settings['data']!r} has {images.counts()} images, the supernet was trained when it had {settings['images']}: the "
            "held-out images would not be the same; restore the data, or train again"
        )
    check_same_classes(settings, images, data)
    if settings.get("data_digest", images.digest) != images.digest:
        raise RunError(
            f"{settings['data']!r} has other training images than the supernet was trained on, or in another order: the held-out "
            "images would not be the same; restore the data (a function has to return the same images every time), or train again"
        )
    return images


def check_same_classes(settings: dict, images: Images, data: str) -> None:
    """Raise DataError unless the images have the classes, in their order, that the run was trained on."""
    if list(images.classes) != settings["classes"]:
        before, now = from_where_they_differ(settings["classes"], list(images.classes))
        raise DataError(
            f"{data!r} has {len(images.classes)} classes ({now}), the run was trained on "
            f"{len(settings['classes'])} ({before}); pass data with the same class names"
        )


def write_run(folder: Path, kind: str, noted: dict | None = None, **settings) -> None:
    """Write config.json of a run, or check that it is the same run going on: of two processes that begin at once, the later one.

    Args:
        noted: what is written, too, and may be another when it goes on.

    Raises:
        RunError: the folder holds another run, or cannot be made or written.
    """
    path = folder / "config.json"
    probe_writable(folder)
    with in_turn(path, lambda: None):
        if not path.exists():
            write_json(path, {"format": FORMAT, "kind": kind, **settings, **(noted or {}), "versions": versions()})
            return
        check_run(folder, kind, partly=False, **settings)
    _tell_other_versions(folder)


def _tell_other_versions(folder: Path) -> None:
    before = read_json(folder / "config.json", RunError).get("versions")
    changed = differences(before, versions(), partly=True) if isinstance(before, dict) else []
    if changed:
        log.warning("%s was begun with other versions (%s): what is done from here on may differ in its last digits",
                    folder, "; ".join(changed))  # fmt: skip


def noted_memory_budget(folder: Path) -> float | None:
    """Return the bytes that the search in a folder takes in every process, None where there is none.

    Raises:
        RunError: its config.json cannot be read.
    """
    path = folder / "config.json"
    before = read_json(path, RunError) if path.exists() else {}
    budget = before.get("memory_budget") if isinstance(before, dict) else None
    return budget if isinstance(budget, (int, float)) and budget > 0 else None


def check_run(folder: Path, kind: str, *, partly: bool = True, **settings) -> None:
    """Check that a folder holds no other run.

    Args:
        folder, kind, settings: as `write_run` takes them.
        partly: a table among the settings may leave keys out, which then may be anything in the folder.

    Raises:
        RunError: the folder holds another run, or its config.json is not whole.
    """
    path = folder / "config.json"
    if not path.exists():
        return
    before = read_json(path, RunError)
    before = before if isinstance(before, dict) else {}
    settings = {key: value for key, value in settings.items() if key in before or key not in _NOTED_LATER}
    wanted = {"format": FORMAT, "kind": kind, **settings}
    changed, before_kind = differences(before, wanted, partly), before.get("kind")
    if changed:
        remove = " or remove it" if kind == before_kind else ""
        raise RunError(f"{folder} holds another run ({'; '.join(changed[:5])}); pass another --out{remove}")


def read_result(folder: Path, *places: tuple[str, ...]) -> dict | None:
    """Read result.json of a run folder, in which something has to stand at all `places`; None where there is none yet.

    Raises:
        RunError: it is not whole.
    """
    path = folder / "result.json"
    if not path.exists():
        return None
    result = read_json(path, RunError)
    for place in (("kind",), *places):
        value = result
        for key in place:
            value = value.get(key) if isinstance(value, dict) else None
        if value is None:
            raise RunError(f"{path} is damaged (no {'.'.join(place)}); remove it, and run the same command again")
    return result


def read_run(folder: str | Path, kind: str | None = None) -> dict:
    """Read config.json of a run folder.

    Raises:
        RunError: the folder is no run, or a run of another kind ("supernet", "switches" or "network").
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"run {str(folder)!r} does not exist; pass a folder written by `autoslim train` or `autoslim retrain`")
    if not (folder / "config.json").exists():
        raise RunError(f"{folder} is not a run (no config.json); pass a folder written by `autoslim train` or `autoslim retrain`")
    document = read_json(folder / "config.json", RunError)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise RunError(
            f"{folder}/config.json is not of format {FORMAT!r}; pass a folder written by this version of the toolkit, or train again"
        )
    lacking = [key for key in _SETTINGS.get(document.get("kind"), ("kind",)) if key not in document]
    if lacking:
        raise RunError(f"{folder}/config.json is damaged (no {', '.join(lacking)}); restore it, or train into another folder")
    if kind and document.get("kind") != kind:
        verb = {"supernet": "train", "switches": "train --system s-net", "network": "retrain"}[kind]
        raise RunError(f"{folder} holds a {document.get('kind')}, not a {kind}; pass a folder written by `autoslim {verb}`")
    return document


def load_finished(folder: Path, kind: str, network, epochs: int) -> None:
    """Load the weights of a run into its network.

    Raises:
        RunError: they are damaged, foreign, or were not trained for all `epochs`.
    """
    done = load_weights(folder / "checkpoint.pt", kind, network)
    if done < epochs:
        raise RunError(
            f"{folder} was trained for {done} of {epochs} epochs; run the command that trained it again, which finishes it"
        )


def space_to_json(space: Space) -> dict:
    """Return a search space as JSON, whole, so that a run does not depend on the file it came from."""
    document = asdict(space)
    document.pop("path")
    return document | {"input_shape": list(space.input_shape)}


def space_from_json(document: dict) -> Space:
    """Rebuild the search space of a run."""
    try:
        if not isinstance(document, dict):
            raise TypeError(f"{document!r} is no table")
        known = {"groups": check_table("groups", document.get("groups", {}), "groups"), "path": None}
        return Space(**{**document, **known, "input_shape": tuple(document["input_shape"])})
    except (TypeError, KeyError) as error:
        raise RunError(f"the search space in the run's config.json is damaged ({error}); restore it, or train again") from error


def supernet_evaluator(net: Supernet, images: Images, rules: dict) -> SupernetEvaluator:
    """Return what judges configurations, by the [search] table of a space.

    It scores on the held-out images; where none are, this is the final evaluation, on the test images.
    """
    return SupernetEvaluator(net, *judged_on(images, rules), calibration_images=rules["calibration_images"])


def search_evaluator(net: Supernet, images: Images, rules: dict, **options) -> SupernetEvaluator:
    """Return what judges the candidates of a search, in parts where the network can be run so."""
    return step_evaluator(net, *judged_on(images, rules), calibration_images=rules["calibration_images"], **options)


def judged_on(images: Images, rules: dict) -> tuple[Loader, Loader]:
    """Return what is scored, and what calibrates."""
    count = rules["calibration_images"]
    scored = images.test if images.search is None else images.search
    return images.scoring(scored, rules["batch_size"]), images.calibration(count)


def override(recipe: dict, **values) -> dict:
    """Return a recipe with the values that were given on the command line; the result is checked.

    Other epochs stretch the schedule: warm-up and milestones move along, and an exponential decay ends where it did.
    """
    merged = {**recipe, **{key: value for key, value in values.items() if value is not None}}
    stretch = merged["epochs"] / recipe["epochs"]
    if stretch != 1:
        merged["warmup_epochs"] = round(merged["warmup_epochs"] * stretch, 2)
        merged["milestones"] = [round(epoch * stretch, 2) for epoch in merged["milestones"]]
        merged["decay"] **= 1 / stretch if merged["schedule"] == "exponential" else 1
    Recipe.of(merged)
    return merged
