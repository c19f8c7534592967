"""Axes of pictures: sizes, colours, ticks and labels; and the arguments that all pictures have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from ..core.checks import integer, shown
from ..core.formats import data_format
from ..records.schema import TIME
from ..records.times import drawn_times

WIDTH, HEIGHT, LEGEND_WIDTH = 760, 260, 210
_TICKS = 12  # most names on an axis that can be read
_DEGREES = {"degrees_north": 30, "degrees_east": 60}  # degrees between ticks of latitudes and longitudes
_WIDE, _MOST_DECADES = 2e3, 8  # ratio above which only powers of ten are ticks, and most of these
PADDING = 0.04  # share by which axes are longer than the range of points
# Okabe and Ito's colours, which people with every kind of colour vision can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def dataset(label: str, value: Any) -> xr.Dataset:
    """Check that a value is a Dataset.

    Raises
    ------
    TypeError
        For anything else.
    ValueError
        If a later xdan wrote it.
    """
    if not isinstance(value, xr.Dataset):
        raise TypeError(f"{label}={shown(value)}: expected an xarray.Dataset")
    data_format(value.attrs, label)
    return value


def mapping(label: str, values: Any, kind: type | tuple[type, ...], what: str) -> dict[str, Any]:
    """Check that `values` is a mapping of names to values of a type, and is not empty.

    Raises
    ------
    TypeError, ValueError
        For anything else.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"{label} is a {type(values).__name__}: expected a mapping of name to {what}")
    if not values:
        raise ValueError(f"{label} is empty: expected at least one")
    for name, value in values.items():
        if not isinstance(value, kind):
            raise TypeError(f"{label}[{name!r}]={shown(value)}: expected {what}")
    return {str(name): value for name, value in values.items()}


def position(label: str, value: Any, size: int) -> int:
    """Check a position along a dim; a negative position counts from the end.

    Raises
    ------
    TypeError, ValueError
        For anything else.
    """
    return integer(label, value, least=-size, most=size - 1)


def text(label: str, value: Any) -> str:
    """Check that a value is text.

    Raises
    ------
    TypeError
        For anything else.
    """
    if not isinstance(value, str):
        raise TypeError(f"{label}={shown(value)}: expected text")
    return value


def cycles_of(value: Any, default: slice) -> slice:
    """Check a slice of positions along time."""
    if value is None:
        return default
    if not isinstance(value, slice):
        raise TypeError(f"cycles={shown(value)}: expected a slice of positions along time, such as slice(0, 200)")
    for end in (value.start, value.stop, value.step):
        if end is not None:
            integer("cycles", end)
    return value


def placed(labels: xr.DataArray, axis: str) -> tuple[Any, dict[str, Any]]:
    """Positions of labels along an axis, "x" or "y", and the ticks of the axis.

    Numbers and dates in order are drawn at their values. Lengths of time are converted to days, and dates of cftime to
    days since the first. Other labels are drawn at the positions 0, 1, ..., with their names.
    """
    values = drawn_times(labels)[0] if labels.name == TIME else labels.values
    one_date = values.dtype.kind == "M" and len(values) == 1  # a single date has no width
    if values.dtype.kind in "iufM" and not np.isnan(values).any() and not one_date:
        steps = np.diff(values).astype(np.float64)
        if (steps > 0).all() or (steps < 0).all():
            every = _DEGREES.get(str(labels.attrs.get("units")))
            ticks = list(range(-360, 361, every)) if every and np.ptp(values) > 2 * every else None
            return values, {} if ticks is None else {f"{axis}ticks": ticks}
    every = math.ceil(len(values) / _TICKS)
    names = labels.values
    return np.arange(len(names)), {f"{axis}ticks": [(k, str(names[k])) for k in range(0, len(names), every)]}


def axis_label(values: xr.DataArray) -> str:
    """The label of an axis: its quantity, with units."""
    name, units = str(values.attrs.get("long_name", values.name)), str(values.attrs.get("units", "1"))
    if values.name == TIME and values.dtype.kind in "mO":
        return drawn_times(values)[1]
    return in_units(name, units)


def in_units(name: str, units: str) -> str:
    """A name, with its units if there are any."""
    return name if units in ("1", "") else f"{name} ({units})"


def cycle_colours(count: int) -> list[str]:
    """Colours for `count` curves."""
    return [COLOURS[k % len(COLOURS)] for k in range(count)]


def log_ticks(values: Any) -> list[float]:
    """Round numbers over the range of values: closer ones for a narrow range, powers of ten for a wide one."""
    values = np.asarray(values, dtype=np.float64)
    positive = values[np.isfinite(values) & (values > 0)]
    if not len(positive):
        return [1.0]
    low, high = float(positive.min()), float(positive.max())
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps: tuple[float, ...] = (1.0, 2.0, 5.0)
    if high > _WIDE * low:
        every = max(1, round((last - first) / _MOST_DECADES))
        return [10.0**power for power in range(first, last + 1, every)]
    if high < 2 * low:
        steps = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2, 2.4, 2.6, 2.8, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 9.0)
    elif high < 12 * low:
        steps = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
    return [step * 10.0**power for power in range(first, last + 1) for step in steps]
