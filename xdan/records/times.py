"""A record's times and a model's: what the units of a time coordinate say, and the intervals between analyses."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from ..core.dynamics import Dynamics
from .schema import TIME

_SECONDS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0, "week": 604800.0}
_SPELLINGS = {
    "s": "second",
    "sec": "second",
    "min": "minute",
    "h": "hour",
    "hr": "hour",
    "d": "day",
    "w": "week",
    "ms": "millisecond",
    "us": "microsecond",
    "ns": "nanosecond",
    "mon": "month",
    "yr": "year",
    "a": "year",
    **{name: name for name in (*_SECONDS, "millisecond", "microsecond", "nanosecond", "month", "year")},
}
_SECONDS |= {"millisecond": 1e-3, "microsecond": 1e-6, "nanosecond": 1e-9}


def intervals_of(variable: xr.DataArray, model: Dynamics) -> tuple[np.ndarray[Any, np.dtype[np.float64]], float]:
    """Intervals between a variable's times in model time units, and how far rounding may have moved them.

    Raises
    ------
    ValueError
        If there are no times, they are no numbers, do not increase, or are in other units than the model's.
    """
    if TIME not in variable.coords:
        raise ValueError("dim 'time' has no coordinate: expected analysis times in model time units")
    times = variable[TIME].values
    if times.dtype.kind not in "fiu":
        raise ValueError(
            f"time is of {times.dtype}: expected numbers in model time units. Convert, for example "
            "ds.assign_coords(time=(ds.time - ds.time[0]) / np.timedelta64(5, 'D')), one unit being 5 days"
        )
    if not np.isfinite(times).all():
        raise ValueError("time holds values that are not finite: expected analysis times in model time units")
    if not len(times):
        raise ValueError(f"{variable.name!r} holds no times: expected at least one; was the selection empty?")
    check_time_units(variable[TIME].attrs.get("units"), model)
    rounding = 2 * float(np.spacing(np.abs(times).max())) if times.dtype.kind == "f" else 0.0
    intervals = np.diff(times.astype(np.float64))
    if (intervals <= 0).any():
        k = int(np.argmax(intervals <= 0))
        raise ValueError(
            f"time does not increase at index {k + 1}: {times[k]} then {times[k + 1]}; expected times in ascending "
            "order, each once, for example ds.sortby('time')"
        )
    return intervals, rounding


def check_time_units(units: Any, model: Dynamics) -> None:
    """Refuse the units of a time coordinate that contradict the model's.

    Words that are no unit of time, such as "1" or "model time units", contradict nothing.

    Parameters
    ----------
    units : object
        The attribute, or None.
    model : Dynamics
        Its `time_unit` says how long a model time unit lasts; None for dimensionless models.

    Raises
    ------
    ValueError
    """
    name = _unit(units)
    if name is None:
        return
    unit = getattr(model, "time_unit", None)
    lasts = None if unit is None else float(unit / np.timedelta64(1, "ns")) * 1e-9
    if lasts is not None and name in _SECONDS and np.isclose(lasts, _SECONDS[name], rtol=1e-9):
        return
    counts = "dimensionless model time" if lasts is None else f"model time units of {lasts:g} s"
    raise ValueError(
        f"time is in {units!r}, but {model!r} counts in {counts}: expected times in those. Convert, for example "
        "ds.assign_coords(time=('time', ds.time.values / 5.0, {'axis': 'T', 'units': '1'})) where one model time unit "
        "is 5 of them"
    )


def _unit(units: Any) -> str | None:
    """Name of the unit of time that an attribute speaks of, or None."""
    if not isinstance(units, str):
        return None
    word = units.split(" since ")[0].strip().lower()
    known = _SPELLINGS.get(word) or (_SPELLINGS.get(word[:-1]) if word.endswith("s") else None)
    if known is None and " since " in units:
        return word  # of a calendar, whatever it is
    return known
