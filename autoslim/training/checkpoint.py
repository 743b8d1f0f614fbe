"""Checkpoints: written whole or not at all, read without running anything that is in them."""

import io
import warnings
from pathlib import Path

import torch
from torch import nn

from autoslim.errors import RunError
from autoslim.files import atomic_write

FORMAT = "autoslim.checkpoint/1"


def save_checkpoint(
    path: str | Path, kind: str, network: nn.Module, optimizer, rows: list[dict], settings: dict, begun: dict | None = None
) -> None:
    """Write the state of a training ("supernet", "switches" or "network") atomically.

    Args:
        rows: of the epochs that are done.
        begun: how far the next one has come (`training.epoch.Begun`); None if it was not begun.
    """
    state = {
        "format": FORMAT,
        "kind": kind,
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rows": rows,
        "begun": begun,
        "settings": settings,
    }
    # Through memory: on a full disk torch.save would hide the reason behind an error of its own.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with atomic_write(path, "wb") as file:
        file.write(buffer.getbuffer())


def load_checkpoint(path: str | Path, kind: str) -> dict:
    """Read a checkpoint onto the CPU.

    Raises:
        RunError: the file is missing, truncated, of another format or of another kind of training.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RunError(f"{path} does not exist; train first, or pass the folder of a training") from None
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); pass a readable checkpoint") from error
    except Exception as error:
        raise RunError(
            f"{path} is not a checkpoint: it is truncated, or a file of another kind ({type(error).__name__}); "
            "restore it, or remove it and train again"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise RunError(f"{path} is not a checkpoint of this toolkit (no format {FORMAT!r}); pass the folder of `autoslim train`")
    parts = {"model": dict, "optimizer": dict, "rows": list, "settings": dict}
    wrong = [key for key, form in parts.items() if not isinstance(state.get(key), form)]
    if wrong:
        raise RunError(f"{path} is not a whole checkpoint (no {', '.join(wrong)}); restore it, or remove it and train again")
    if state.get("kind") != kind:
        wanted = {"supernet": "`autoslim train`", "switches": "`autoslim train --system s-net`", "network": "`autoslim retrain`"}[
            kind
        ]
        raise RunError(f"{path} holds a {state.get('kind')}, not a {kind}; pass a folder written by {wanted}")
    return state


def load_weights(path: str | Path, kind: str, network: nn.Module) -> int:
    """Load the weights of a checkpoint into a network; returns the epochs that they were trained for.

    Raises:
        RunError: the checkpoint is damaged, foreign, or of another network.
    """
    state = load_checkpoint(path, kind)
    # Checked first: load_state_dict copies what fits before it finds what does not.
    own, stored = network.state_dict(), state["model"]
    wrong = [key for key in {**own, **stored} if key not in own or key not in stored or own[key].shape != stored[key].shape]
    if wrong:
        raise RunError(f"{path} does not fit the network ({', '.join(wrong[:5])}); pass the run it belongs to")
    network.load_state_dict(stored)
    return len(state["rows"])
