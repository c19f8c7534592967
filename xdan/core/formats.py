"""Format numbers of stores: which this xdan writes and reads."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from importlib.metadata import version
from types import MappingProxyType
from typing import Any

from .checks import shown

FORMAT = "xdan_format"  # attribute of labelled data: the number of its format
FORMATS: Mapping[str, int] = MappingProxyType({"data": 2, "network": 1, "dynamics": 1, "checkpoint": 2})
"""Formats that this xdan writes, by the kind of store. It reads these and all earlier ones, from 1.

"data" are all labelled data: records, runs, forecasts, gains, estimates and sweeps. `docs/records.md` says what each
number means, and when a change of the package needs a new one.
"""


class LaterFormatError(ValueError):
    """A later xdan wrote a store: it is whole, and this xdan cannot read it."""


def read_format(kind: str, stated: Any, what: str) -> int:
    """Number of a store's format; refuses stores of a later xdan.

    Parameters
    ----------
    kind : str
        A key of `FORMATS`.
    stated : object
        What the store says; None where it says nothing, as in format 1.
    what : str
        The store, for messages.

    Returns
    -------
    int
        From 1 to the number in `FORMATS`.

    Raises
    ------
    LaterFormatError
        If the number is a later one.
    ValueError
        If it is no number of a format.
    """
    newest = FORMATS[kind]
    if stated is None:
        return 1
    whole = isinstance(stated, numbers.Integral) and not isinstance(stated, bool)  # netCDF gives a NumPy integer
    if not whole or int(stated) < 1:
        raise ValueError(f"{what} has {kind} format {shown(stated)}: expected a whole number from 1 to {newest}")
    if int(stated) > newest:
        raise LaterFormatError(
            f"{what} has {kind} format {int(stated)}, which a later xdan wrote: expected at most {newest}, "
            f"which xdan {version('xdan')} reads; update xdan"
        )
    return int(stated)


def data_format(attributes: Mapping[Any, Any], what: str) -> int:
    """Number of the format of labelled data, by their attributes.

    Raises
    ------
    LaterFormatError, ValueError
        As `read_format`.
    """
    return read_format("data", attributes.get(FORMAT), what)
