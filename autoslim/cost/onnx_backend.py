"""Run a network through ONNX Runtime, to measure it."""

import io
import logging
import warnings
from collections.abc import Callable

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from autoslim.channels.where import told
from autoslim.errors import RunError


def onnx_call(network: nn.Module, inputs: tuple, *, threads: int) -> Callable[[], object]:
    """Return a call that runs a network in eval mode on `inputs` in an ONNX Runtime session of its own, on the CPU.

    Raises:
        RunError: ONNX Runtime is not installed, or the network cannot be exported or run.
    """
    ort = _runtime()
    try:
        given = {f"input_{i}": leaf for i, leaf in enumerate(tree_leaves(inputs)) if isinstance(leaf, torch.Tensor)}
        session = _session(ort, _export(network, inputs, list(given)), threads)
        feed = {entry.name: given[entry.name].numpy() for entry in session.get_inputs()}
        session.run(None, feed)
    except Exception as error:
        raise RunError(
            f"{type(network).__name__} does not run in ONNX Runtime ({told(error)}); measure it with the torch backend"
        ) from error
    return lambda: session.run(None, feed)


def onnx_versions() -> dict[str, str]:
    """Return the version of ONNX Runtime."""
    return {"onnxruntime": _runtime().__version__}


def _runtime():
    try:
        import onnx  # noqa: F401  (the exporter needs it)
        import onnxruntime
    except ImportError as error:
        raise RunError(f"{error.name} is not installed; run pip install 'autoslim[onnx]', or take the torch backend") from error
    return onnxruntime


def _export(network: nn.Module, inputs: tuple, names: list[str]) -> bytes:
    # The exporter that scripts: it takes 10 ms for a layer, where the one that compiles takes two seconds.
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(network, inputs, file, input_names=names, dynamo=False)
    return file.getvalue()


def _session(ort, model: bytes, threads: int):
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
