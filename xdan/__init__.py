"""xdan: data assimilation networks on labelled arrays.

A network learns to correct a single forecast. It is trained through the assimilation cycles of a model, run beside
tuned classical methods, and scored as these are. `import xdan` registers the `.dan` accessor and is fast: torch, dask
and hvplot are imported when they are first used. `__init__.pyi` lists the public names.
"""

from __future__ import annotations

import ast
import warnings
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from . import accessor as _accessor  # noqa: F401 - registers .dan

__version__ = "0.1.0"

# xarray's `to_zarr` copies all labels into the root of a store. Zarr warns at each such copy, of its format 3, that
# other libraries may not know it: they read the arrays' own labels.
warnings.filterwarnings("ignore", "Consolidated metadata is currently not part", UserWarning, "zarr")


def _homes() -> dict[str, str]:
    """Module of each public name, from the list that type checkers read."""
    listed = ast.parse(Path(__file__).with_suffix(".pyi").read_text())
    imports = [node for node in listed.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module or "" for node in imports for alias in node.names}


_HOMES = _homes()

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        lowered = {one.lower(): one for one in __all__}
        near = "".join(
            f", perhaps {lowered[one]!r}" for one in get_close_matches(name.lower(), lowered, n=1, cutoff=0.7)
        )
        raise AttributeError(f"module 'xdan' has no attribute {name!r}{near}; it has {__all__}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
