"""Packages that some parts of xdan need and the rest does without: the extras of the installation."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def optional(module: str, extra: str, what: str) -> Any:
    """Import a module that an extra brings.

    Parameters
    ----------
    module : str
    extra : str
        Of the installation, as in `pip install "xdan[plots]"`.
    what : str
        What needs it, such as "pictures".

    Returns
    -------
    module

    Raises
    ------
    ImportError
        If its package is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as reason:
        package = module.partition(".")[0]
        if (reason.name or "").partition(".")[0] != package:
            raise
        raise ImportError(
            f"{what} need the package {package!r}, which is not installed: expected pip install 'xdan[{extra}]'"
        ) from None
