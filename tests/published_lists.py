"""The channel lists that AutoSlim (1903.11728) published, and what it reports for them; run this file to write them anew."""

import re
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent.parent / "search_spaces" / "published"


class Published(NamedTuple):
    """A list in the published order, with the multiply-adds as printed and the ImageNet top-1 error in percent."""

    flops: str
    top1_error: float
    channels: str

    @property
    def space(self) -> str:
        return next(name.rpartition("-")[0] for name, entry in LISTS.items() if entry is self)


def _resnet50(text: str) -> str:
    """Write out "stem; out: (conv1 conv2)(conv1 conv2); out: ..." with every block's output."""
    stem, *stages = text.split(";")
    numbers = [stem]
    for stage in stages:
        out, blocks = stage.split(":")
        numbers += [out, *(f"{block} {out}" for block in re.findall(r"\((.*?)\)", blocks))]
    return " ".join(numbers) + " 1000"


LISTS = {
    "mobilenet_v1-325M": Published("325M", 28.5, "16 32 48 64 112 184 320 368 320 416 464 560 1128 1128 1000"),
    "mobilenet_v1-572M": Published("572M", 27.0, "24 64 128 144 232 232 560 464 512 464 560 560 1128 1128 1000"),
    "mobilenet_v2-207M": Published(
        "207M",
        27.0,
        "8 8 | 96 16 96 16 | 96 24 144 24 144 24 | 144 48 288 48 288 48 288 48 | 288 64 432 64 432 64 |"
        "648 176 720 176 720 176 | 1440 280 | 1920 | 1000",
    ),
    "mobilenet_v2-305M": Published(
        "305M",
        25.8,
        "8 8 | 96 16 96 16 | 96 24 144 24 144 24 | 144 56 288 56 288 56 288 56 | 288 96 432 96 432 96 |"
        "864 240 1440 240 960 240 | 1440 480 | 1920 | 1000",
    ),
    "mnasnet-217M": Published(
        "217M",
        26.8,
        "16 8 | 24 16 48 16 24 16 | 48 32 48 32 48 32 | 192 56 400 56 400 56 | 400 80 432 80 |"
        "648 192 864 192 864 192 864 192 | 1728 280 | 1280 | 1000",
    ),
    "mnasnet-532M": Published(
        "532M",
        24.6,
        "16 8 | 64 32 56 32 72 32 | 104 64 128 64 96 64 | 384 104 528 104 464 104 | 720 128 576 128 |"
        "864 288 1584 288 1728 288 1728 288 | 1728 480 | 1920 | 1000",
    ),
    "resnet50-570M": Published(
        "570M",
        27.8,
        _resnet50(
            "24; 72: (8 16)(16 16)(8 8); 240: (16 24)(16 24)(16 16)(16 24);"
            "704: (72 72)(48 72)(48 72)(72 72)(48 48)(48 48); 1680: (280 240)(120 200)(280 280)"
        ),
    ),
    "resnet50-2.0G": Published(
        "2.0G",
        24.4,
        _resnet50(
            "40; 120: (16 16)(24 24)(16 24); 440: (48 72)(32 48)(40 56)(64 72);"
            "1024: (168 168)(96 144)(120 168)(120 144)(120 144)(256 256); 2016: (512 512)(480 480)(512 512)"
        ),
    ),
    "resnet50-3.0G": Published(
        "3.0G",
        24.0,
        _resnet50(
            "48; 192: (16 16)(56 56)(24 40); 512: (88 112)(64 104)(104 112)(80 128);"
            "1024: (240 216)(144 216)(192 192)(144 240)(240 256)(256 256); 2016: (512 512)(480 512)(512 512)"
        ),
    ),
}


def config(name: str):
    """Import a published list afresh."""
    from autoslim.commands.import_ import import_config
    from autoslim.spaces import load_space

    entry = LISTS[name]
    return import_config(
        load_space(entry.space),
        channels=entry.channels,
        kind="published",
        flops=entry.flops,
        # That of one network for all widths of the family, trained for the full number of epochs.
        published_top1_error=round(entry.top1_error / 100, 3),
        source="AutoSlim, arXiv 1903.11728",
    )


if __name__ == "__main__":
    for name in LISTS:
        config(name).save(FOLDER / f"{name}.json")
