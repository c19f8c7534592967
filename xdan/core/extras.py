"""Packages that only some parts of xdan need: the extras of the installation."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def optional(module: str, extra: str, what: str) -> Any:
    """Import a module that an extra installs.

    Parameters
    ----------
    module : str
    extra : str
        Extra of the installation, as in `pip install "xdan[plots]"`.
    what : str
        What needs the module, such as "pictures".

    Returns
    -------
    module

    Raises
    ------
    ImportError
        If the package of the module is not installed.
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
