"""The `.dan` accessor: each verb of a record is a method, with the signature and docstring of the function.

`accessor.pyi` lists the verbs; type checkers read it, too. A new verb is added there and nowhere else.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from difflib import get_close_matches
from functools import wraps
from importlib import import_module
from pathlib import Path
from types import MethodType
from typing import Any

import xarray as xr


class Verb:
    """A function whose first argument is a Dataset, as a method. Its module is imported when the method is first used.

    Parameters
    ----------
    module : str
        Name of the module, relative to the package.
    name : str
    """

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __get__(self, accessor: DanAccessor | None, owner: type | None = None) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(import_module(f".{self.module}", __package__), self.name)

        @wraps(function)
        def method(accessor: DanAccessor, *args: Any, **kwargs: Any) -> Any:
            return function(accessor._ds, *args, **kwargs)

        method.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
        return method if accessor is None else MethodType(method, accessor)


class DanAccessor:
    """Data assimilation on a Dataset of observations and, for twins, their truth.

    Each method is the function with its name. The first argument of the function is the Dataset: `ds.dan.score(run)` is
    `xdan.score(ds, run)`.
    """

    def __init__(self, ds: xr.Dataset) -> None:
        self._ds = ds

    def __getattr__(self, name: str) -> Any:
        verbs = [verb for verb in vars(DanAccessor) if not verb.startswith("_")]
        near = "".join(f", perhaps {verb!r}" for verb in get_close_matches(name.lower(), verbs, n=1, cutoff=0.7))
        raise AttributeError(f".dan has no {name!r}{near}; it has {verbs}")


def _verbs() -> dict[str, str]:
    """Module of each verb, from the list that type checkers read."""
    listed = ast.parse(Path(__file__).with_suffix(".pyi").read_text())
    imports = [node for node in listed.body if isinstance(node, ast.ImportFrom) and node.level]
    return {alias.name: node.module or "" for node in imports for alias in node.names}


for _name, _module in _verbs().items():
    setattr(DanAccessor, _name, Verb(_module, _name))

xr.register_dataset_accessor("dan")(DanAccessor)
