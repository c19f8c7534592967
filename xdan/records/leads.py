"""Lead times of forecasts: as arguments, as model steps, and as coordinates beside the record's times."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ..core.checks import real, shown
from ..core.dynamics import Dynamics, check_time_unit
from .schema import TIME, Array, holds_dates
from .times import positions_among, units_in_model_time

LEAD, VALID_TIME = "lead", "valid_time"
_NEAR = 1e-3  # share of a time step: a lead time this near to a whole number of steps counts as this number
_UNITS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}  # nanoseconds
_DAY = np.timedelta64(1, "D")


def model_time(label: str, value: Any, model: Dynamics) -> float:
    """A length of time that the caller passes, in model time.

    Parameters
    ----------
    label : str
        The argument's name.
    value : float, numpy.timedelta64, datetime.timedelta or str
        A number is in model time. Words have a unit, such as "5D" or "12 hours", as pandas.Timedelta takes them.
    model : Dynamics

    Raises
    ------
    TypeError
        If the value is of another type.
    ValueError
        If the value is not positive; if words are no time difference with a unit; or if it is a time difference and
        the model does not say how long a unit of its time lasts.
    """
    if not isinstance(value, (str, np.timedelta64, datetime.timedelta)):
        try:
            return real(label, value, above=0.0)
        except TypeError as reason:
            raise TypeError(
                f"{reason}: a length of time is a number in model time, or a time difference such as "
                "np.timedelta64(5, 'D') or '5D'"
            ) from None
    duration = _difference(label, value) if isinstance(value, str) else value
    if model.time_unit is None:
        raise ValueError(
            f"{label}={shown(value)}, and one unit of the time of {model.label!r} has no length: expected model "
            f"time, a number such as {label}={10 * model.timestep:g}; or pass a dynamics with a time_unit"
        )
    try:
        return float(check_time_unit(duration) / check_time_unit(model.time_unit))
    except ValueError:
        raise ValueError(
            f"{label}={shown(value)}: expected a positive time of fixed length, such as '5D' or np.timedelta64(5, 'D')"
        ) from None


def steps_of(label: str, value: Any, model: Dynamics) -> int:
    """Model steps in a length of time that the caller passes, as `model_time` takes it.

    Raises
    ------
    TypeError, ValueError
        As `model_time`; also if the value is no whole number of the model's steps.
    """
    amount = model_time(label, value, model)
    try:
        return model.steps_in(amount)
    except ValueError as reason:
        raise ValueError(f"{label}={shown(value)}: {reason}") from None


def _difference(label: str, words: str) -> np.timedelta64:
    """The time difference in words such as "5D"."""
    expected = f"{label}={words!r}: expected a time difference with its unit, such as '5D', '12h' or '30min'"
    if not any(letter.isalpha() for letter in words):  # pandas would read a number as nanoseconds
        raise ValueError(f"{expected}; or a number in model time")
    try:
        return np.timedelta64(pd.Timedelta(words).asm8)
    except ValueError as reason:
        raise ValueError(f"{expected} ({reason})") from None


def lead_coordinates(time: xr.DataArray, steps: Array, model: Dynamics) -> dict[str, Any]:
    """Coordinates of forecasts: the start, the lead time and the valid time.

    Parameters
    ----------
    time : xarray.DataArray, dims (time,)
        The record's times at which forecasts start.
    steps : array of int, shape (L,)
        Model steps in each lead time.
    model : Dynamics

    Returns
    -------
    dict
        `time`, `lead` and `valid_time` (time, lead), as xarray takes them. Lead times are time differences if the
        times are dates. Otherwise they are numbers in the units of the times.
    """
    values, said = time.values, dict(time.attrs)
    lead_said = {"standard_name": "forecast_period", "long_name": "lead time"}
    valid_said = {**said, "standard_name": "time", "long_name": "time that the forecast is of"}
    valid_said.pop("axis", None)
    if holds_dates(time, TIME):
        leads = _differences(steps, model)
        valid = _later_dates(values, leads)
    else:
        units = str(said.get("units", "1"))
        leads = steps * model.timestep / units_in_model_time(said, model)
        lead_said["units"] = units.split(" since ")[0]
        valid = values[:, None] + leads[None, :]
    start_said = {**said, "axis": "T", "standard_name": "forecast_reference_time", "long_name": "start of the forecast"}
    return {
        TIME: (TIME, values, start_said),
        LEAD: (LEAD, leads, lead_said),
        VALID_TIME: ((TIME, LEAD), valid, valid_said),
    }


def lead_steps(lead: xr.DataArray, model: Dynamics) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Model steps in the lead times of a coordinate.

    Raises
    ------
    ValueError
        If lead times do not ascend, are negative, or are no whole numbers of steps, or if the model does not
        understand their units.
    """
    values = lead.values
    if values.dtype.kind == "m":
        unit = check_time_unit(model.time_unit) if model.time_unit is not None else None
        if unit is None:
            raise ValueError(
                f"lead times are of {values.dtype}, but the dynamics {model.label!r} has no time_unit: expected how "
                "long one unit of model time lasts; pass dynamics= with a time_unit"
            )
        amount = values / unit
    elif values.dtype.kind in "fiu":
        amount = values.astype(np.float64) * units_in_model_time(lead.attrs, model)
    else:
        raise ValueError(f"lead times are of {values.dtype}: expected numbers in model time, or time differences")
    ratio = amount / model.timestep
    steps = np.round(ratio)
    if not (np.isfinite(ratio).all() and (np.abs(ratio - steps) <= _NEAR * np.maximum(1.0, steps / 10)).all()):
        raise ValueError(
            f"lead times {shown(values[:3].tolist())} are no whole numbers of the {model.label} time step "
            f"{model.timestep:g}: expected the forecasts of forecast() on this record; check their units and dynamics="
        )
    if (steps < 0).any() or (np.diff(steps) <= 0).any():
        raise ValueError(f"lead times {shown(values[:3].tolist())}: expected them in ascending order, from 0 on")
    return steps.astype(np.int64)


def lead_numbers(lead: xr.DataArray) -> tuple[Array, str]:
    """Lead times as numbers, with their units; time differences in days."""
    if lead.values.dtype.kind == "m":
        return lead.values / _DAY, "days"
    return lead.values.astype(np.float64), str(lead.attrs.get("units", "1"))


def valid_positions(
    record_times: xr.DataArray, clock: Array, start_times: xr.DataArray, steps: Array
) -> tuple[Array, Array]:
    """Positions in the record of the starts of forecasts, and of their valid times.

    Parameters
    ----------
    record_times : xarray.DataArray, dims (time,), length K
    clock : array of int, shape (K,)
        Model steps from the record's first analysis to each time.
    start_times : xarray.DataArray, dims (time,), length T
    steps : array of int, shape (L,)
        Model steps in each lead time.

    Returns
    -------
    starts : array of int, shape (T,)
    valid : array of int, shape (T, L)
        -1 if the record does not have the time.

    Raises
    ------
    ValueError
        If a start is no time of the record.
    """
    starts = positions_among(record_times, start_times)
    if (starts < 0).any():
        k = int(np.argmax(starts < 0))
        raise ValueError(
            f"the forecast from {start_times.values[k]} starts at no time of the record, whose times are "
            f"{record_times.values[0]} to {record_times.values[-1]}: expected forecasts from analyses of this record"
        )
    wanted = clock[starts][:, None] + steps[None, :]
    place = np.searchsorted(clock, wanted).clip(max=len(clock) - 1)
    return starts, np.where(clock[place] == wanted, place, -1)


def _differences(steps: Array, model: Dynamics) -> Array:
    """Lead times as time differences, in the coarsest unit that holds a step."""
    step = model.timestep * int(check_time_unit(model.time_unit).astype(np.int64))
    whole = round(step)
    exact = whole > 0 and abs(step - whole) <= 1e-9 * step
    name, size = next(one for one in _UNITS.items() if one[1] == 1 or (exact and whole % one[1] == 0))
    count = steps * (whole // size) if exact else np.round(steps * step).astype(np.int64)
    return np.asarray(count).astype(f"timedelta64[{name}]")


def _later_dates(dates: Array, leads: Array) -> Array:
    """Add dates (T,) and time differences (L,): (T, L)."""
    if dates.dtype.kind != "O":
        later: Array = dates[:, None] + leads[None, :]
        return later
    passed = [datetime.timedelta(microseconds=int(one / np.timedelta64(1, "us"))) for one in leads]
    rows = [[date + lead for lead in passed] for date in dates]
    made = np.empty((len(dates), len(leads)), dtype=object)
    made[:] = rows
    return made
