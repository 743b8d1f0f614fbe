"""Networks, and rules for operations, by the name of a function: 'pkg.module:function'; nothing here imports torch early."""

import difflib
import functools
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoslim.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

# A factory that a file names is called when the file is used, and anyone may have sent it. So the functions of the
# standard library (os.system), of torch itself (torch.load) and of installed packages that do not build on torch
# (sympy.sympify and yaml.unsafe_load run the text they are given) are no factories.
_OURS = {"autoslim", "torch", "torchvision"}
_FOREIGN = "factory '{}' belongs to {}, which builds no networks; name a function of your own"
_NETWORKS = ("autoslim.models.", "torchvision.models.")


def build_model(reference: Mapping[str, Any]) -> "nn.Module":
    """Build the network of {"factory": "pkg.module:function", "kwargs": {...}}.

    Raises ModelError if the reference is malformed, the factory is not found, fails, or returns no torch.nn.Module.
    """
    fits = isinstance(reference, Mapping) and isinstance(reference.get("factory"), str)
    if not fits or not isinstance(reference.get("kwargs", {}), Mapping):
        raise ModelError(f'model {reference!r} is not of the form {{"factory": "pkg.module:function", "kwargs": {{}}}}')
    name, kwargs = reference["factory"], reference.get("kwargs", {})
    factory = load_factory(name)
    from torch import nn

    call = f"{name}({', '.join(f'{key}={value!r}' for key, value in kwargs.items())})"
    try:
        model = factory(**kwargs)
    except Exception as error:  # whatever a user's function raises
        raise ModelError(f"{call} failed: {_told(error)}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{call} returned {type(model).__name__}; a factory returns a torch.nn.Module")
    return model


def load_factory(name: str) -> Callable[..., Any]:
    """Import the callable of 'pkg.module:name'; the current folder comes first on the import path, and stays there.

    Raises ModelError if the form is wrong, the module cannot be imported, or the name is missing or no factory.
    """
    parts = split_name(name)
    if parts is None:
        raise ModelError(f"factory '{name}' is not of the form pkg.module:function")
    module_name, attribute = parts
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does; a console script has its own folder there
    if module_name.partition(".")[0] not in _OURS and is_foreign(module_name):  # not even imported
        raise ModelError(_FOREIGN.format(name, module_name))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ModelError(f"factory '{name}': importing {module_name} failed: {_told(error)}") from error
        raise ModelError(
            f"factory '{name}': no module '{error.name}', neither installed nor in {os.getcwd()}; "
            "install it, or run in the folder that holds it"
        ) from error
    except Exception as error:  # whatever a user's module raises
        raise ModelError(f"factory '{name}': importing {module_name} failed: {_told(error)}") from error
    factory = getattr(module, attribute, None)
    if factory is None:
        raise ModelError(f"factory '{name}': {module_name} has no '{attribute}'{closest(attribute, dir(module))}")
    if not callable(factory):
        raise ModelError(f"factory '{name}' is {type(factory).__name__}; it must be a function or a class")
    _refuse_foreign(name, factory)
    return factory


def _refuse_foreign(name: str, factory: Any) -> None:
    while isinstance(factory, functools.partial):
        factory = factory.func
    module = str(getattr(factory, "__module__", None) or "builtins")
    if module.startswith(_NETWORKS) or not is_foreign(module):
        return
    if isinstance(factory, type):
        from torch import nn

        if issubclass(factory, nn.Module):
            return
    raise ModelError(_FOREIGN.format(name, module))


def is_foreign(module: str) -> bool:
    """Say whether a module is nothing that a file may call: not the user's own, nor of a package that builds on torch."""
    home = module.partition(".")[0]
    if home in sys.stdlib_module_names or home in _OURS:
        return True
    try:
        origin = getattr(importlib.util.find_spec(home), "origin", None) or ""
    except ValueError:  # __main__
        return False
    if not {"site-packages", "dist-packages"} & set(Path(origin).parts):
        return False
    needs = [n for d in importlib.metadata.packages_distributions().get(home, ()) for n in importlib.metadata.requires(d) or ()]
    return not any(need.startswith("torch") and "extra ==" not in need for need in needs)


def split_name(name: str) -> tuple[str, str] | None:
    """Return module and attribute of 'pkg.module:name', None if it is not of that form."""
    module, colon, attribute = name.partition(":")
    fits = colon and attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))
    return (module, attribute) if fits else None


def load_rules(name: str | None) -> dict:
    """Return what a function 'pkg.module:function' says are the rules of operations of one's own; none for no name.

    Raises ModelError if it is not found, fails, or returns no dict.
    """
    if not name:
        return {}
    try:
        rules = load_factory(name)()
    except ModelError:
        raise
    except Exception as error:  # the user's own code may raise anything
        raise ModelError(f"rules {name!r} failed: {_told(error)}; name a function without arguments") from error
    if not isinstance(rules, dict) or not all(callable(rule) for rule in rules.values()):
        raise ModelError(f"rules {name!r} returned {type(rules).__name__}; return a dict of operation or module type to rule")
    return rules


def closest(word: str, known: Any) -> str:
    """Return " (closest: 'name')" for the known name nearest to a word, "" where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (closest: '{near[0]}')" if near else ""


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
