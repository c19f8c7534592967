"""The libraries that draw. They are imported when the first picture is made."""

from __future__ import annotations

from typing import Any

from ..core.extras import optional


def holoviews() -> Any:
    """HoloViews, with the `.hvplot` accessors of xarray and pandas.

    Raises
    ------
    ImportError
        If they are not installed.
    """
    for module in ("hvplot.xarray", "hvplot.pandas"):
        optional(module, "plots", "pictures")
    return optional("holoviews", "plots", "pictures")


def panel() -> Any:
    """Panel.

    Raises
    ------
    ImportError
        If it is not installed.
    """
    return optional("panel", "plots", "pictures and widgets")
