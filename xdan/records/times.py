"""The times of a record and of a model: dates and numbers as model time, and the steps between analyses."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import xarray as xr

from ..core.checks import shown, warn
from ..core.dynamics import Dynamics, check_time_unit, in_words
from .schema import TIME, Array, holds_dates, is_cftime

TOLERANCE = 0.05  # share of a time step by which a time may differ from a step
_EQUAL = 1e-4  # the largest relative difference of an interval from a whole number of steps that is not mentioned
DATE_ATTRIBUTES = {"axis": "T", "standard_name": "time", "long_name": "time"}
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
    "msec": "millisecond",
    "us": "microsecond",
    "ns": "nanosecond",
    "mon": "month",
    "yr": "year",
    "a": "year",
    **{name: name for name in (*_SECONDS, "millisecond", "microsecond", "nanosecond", "month", "year")},
}
_SECONDS |= {"millisecond": 1e-3, "microsecond": 1e-6, "nanosecond": 1e-9}


def steps_between(variable: xr.DataArray, model: Dynamics) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Model steps from the time before to each time of a variable, 0 for the first.

    Intervals need not be whole numbers of steps to the last digit. If an interval differs from a whole number of steps
    by more than 1e-4 of it and by more than rounding, every time is moved to the nearest step, counted from the first
    time. Every time must lie within `TOLERANCE` time steps of a step.

    Parameters
    ----------
    variable : xarray.DataArray
        A variable with the coordinate `time`: numbers, datetime64, timedelta64, or cftime dates of any calendar.
    model : Dynamics

    Returns
    -------
    array of int64, shape (K,)

    Raises
    ------
    ValueError
        If there are no times, the times do not increase, they cannot be converted to model time, or a time does not
        lie a whole number of steps after the first time.

    Warns
    -----
    XdanWarning
        If times were moved to the nearest step. The warning says how many, and how far.
    """
    elapsed, rounding = model_time_since_first(variable, model)
    intervals = np.diff(elapsed)
    if (intervals <= 0).any():
        k, times = int(np.argmax(intervals <= 0)), variable[TIME].values
        raise ValueError(
            f"time does not increase at index {k + 1}: {times[k]} then {times[k + 1]}; expected times in ascending "
            "order, each once, for example ds.sortby('time')"
        )
    ratio = intervals / model.timestep
    steps = np.maximum(1.0, np.round(ratio))
    allowed = np.maximum(rounding / model.timestep, np.minimum(_EQUAL * np.maximum(ratio, steps), TOLERANCE))
    between = ~(np.abs(ratio - steps) <= allowed)
    if between.any():
        position = elapsed / model.timestep
        nearest = np.round(position)
        steps, apart = np.diff(nearest), np.abs(position - nearest)
        if not ((apart <= TOLERANCE).all() and (steps >= 1).all()):
            raise ValueError(_no_multiple(variable, model, float(intervals[np.argmax(between)])))
        warn(
            f"{int(between.sum())} of {len(intervals)} intervals of time are no whole number of the {model.label} time "
            f"step {model.timestep:g}: times lie up to {apart.max():.2g} of a step beside one, and are moved to the "
            "nearest. Choose a shorter timestep= of the dynamics if that matters",
        )
    if len(steps):
        model.steps_in(float(steps.max()) * model.timestep)  # refuses the number that times in other units give
    return np.concatenate([[0], steps]).astype(np.int64)


def _no_multiple(variable: xr.DataArray, model: Dynamics, interval: float) -> str:
    step, unit = f"{model.label} time step {model.timestep:g}", ""
    if model.time_unit is not None:
        unit = f", one unit of model time being {in_words(check_time_unit(model.time_unit))}"
    return (
        f"an interval of {interval:g} is not a positive multiple of the {step}; expected a multiple{unit}, or all "
        f"times within {TOLERANCE:g} of a step of one, counted from the first; choose another interval, or another "
        "timestep= of the dynamics"
    )


def model_time_since_first(
    variable: xr.DataArray, model: Dynamics
) -> tuple[np.ndarray[Any, np.dtype[np.float64]], float]:
    """Model time since a variable's first time, shape (K,), and by how much rounding may have changed an interval.

    The dynamics' `time_unit` converts dates, time differences, and numbers whose `units` are a CF unit of time with a
    fixed length. Other numbers are model time.

    Raises
    ------
    ValueError
        If there are no times, or they cannot be converted to model time.
    """
    if TIME not in variable.coords:
        raise ValueError("dim 'time' has no coordinate: expected analysis times in model time units, or dates")
    coordinate = variable[TIME]
    times = coordinate.values
    if not len(times):
        raise ValueError(f"{variable.name!r} holds no times: expected at least one; was the selection empty?")
    if holds_dates(variable, TIME):
        if coordinate.isnull().any():
            raise ValueError("time holds values that are missing (NaT): expected a date for each analysis")
        return _as_numbers(times - times[0]) / _unit_seconds(coordinate, model), 0.0
    if times.dtype.kind not in "fiu":
        raise ValueError(
            f"time is of {times.dtype}, the first is {shown(times[:1].tolist()[0])}: expected numbers in model time "
            "units, or dates as datetime64, timedelta64 or cftime. Convert, for example "
            "ds.assign_coords(time=ds.time.astype('datetime64[ns]'))"
        )
    if not np.isfinite(times).all():
        raise ValueError("time holds values that are not finite: expected analysis times in model time units")
    scale = units_in_model_time(coordinate.attrs, model)
    rounding = 2 * float(np.spacing(np.abs(times).max())) if times.dtype.kind == "f" else 0.0
    numbers = times.astype(np.float64)
    return (numbers - numbers[0]) * scale, rounding * scale


def first_model_time(variable: xr.DataArray, model: Dynamics) -> float:
    """Model time of a variable's first time, for a model that depends on time.

    Raises
    ------
    ValueError
        If there are no times; if they cannot be converted to model time; or if they are dates and the model does not
        say at which date its time is 0.
    """
    model_time_since_first(variable, model)  # refuses values that are no times
    coordinate = variable[TIME]
    first = coordinate.values[0]
    if coordinate.dtype.kind == "m":
        return float(first / np.timedelta64(1, "s")) / _unit_seconds(coordinate, model)
    if holds_dates(variable, TIME):
        return since_origin(first, model)
    return float(first) * units_in_model_time(coordinate.attrs, model)


def since_origin(date: Any, model: Dynamics) -> float:
    """Model time of a date, for a model that depends on time.

    Raises
    ------
    ValueError
        If the model does not say how long a unit of its time lasts, or at which date its time is 0; or if this date
        is of another calendar.
    """
    if model.time_origin is None or model.time_unit is None:
        raise ValueError(
            f"the record has dates and the dynamics {model.label!r} depends on time: expected its time_unit and its "
            "time_origin, the date at which its time is 0. Set both, for example "
            "self.time_origin = np.datetime64('2000-01-01')"
        )
    try:
        passed = _as_numbers(np.array([date]) - np.array([model.time_origin]))
    except TypeError:
        raise ValueError(
            f"the record begins at {date} and the time_origin of {model.label!r} is {model.time_origin}: expected two "
            "dates of one calendar"
        ) from None
    return float(passed[0]) / _seconds(model.time_unit)


def units_in_model_time(attributes: Any, model: Dynamics) -> float:
    """Model time in one unit of a coordinate of numbers.

    The result is 1, for model time, if `units` is missing or is no unit of time, such as "1" or "model time units".

    Parameters
    ----------
    attributes : mapping
        Attributes of the coordinate: `units`, such as "hours" or "hours since 2000-01-01"; and `time_unit`, which
        `twin` writes: how long one unit of model time lasts.
    model : Dynamics

    Raises
    ------
    ValueError
        If `units` is a unit of time and the dynamics has no `time_unit`; if the unit has no fixed length, as a month;
        or if the coordinate's unit of model time is not that of the dynamics.
    """
    units, time_unit = attributes.get("units"), model.time_unit
    name = _unit(units)
    if name is None:
        _check_model_unit(attributes.get("time_unit"), model)
        return 1.0
    if time_unit is None:
        raise ValueError(
            f"time is in {units!r}, but the dynamics {model.label!r} counts in dimensionless model time: expected "
            f"times in model time. {_remedy(model)}; or convert, for example ds.assign_coords(time=('time', "
            "ds.time.values / 5.0, {'axis': 'T', 'units': '1'})) if one model time unit is 5 of these units"
        )
    if name not in _SECONDS:
        raise ValueError(
            f"time is in {units!r}, which has no fixed length: expected dates, or a unit from nanoseconds to weeks. "
            "Decode the record's dates, for example by xr.decode_cf(ds)"
        )
    return _SECONDS[name] / _seconds(time_unit)


def _check_model_unit(written: Any, model: Dynamics) -> None:
    """Refuse model time in a unit other than that of the dynamics, if both units are known."""
    if model.time_unit is None or not isinstance(written, str):
        return
    try:
        theirs, ours = check_time_unit(written), check_time_unit(model.time_unit)
    except (TypeError, ValueError):
        return  # the words are no length of time
    if theirs != ours:
        raise ValueError(
            f"time counts in units of {written}, but one unit of model time of {model!r} is {in_words(ours)}: expected "
            "the same. Pass dynamics= with the time_unit= of the record"
        )


def same_times(ours: xr.DataArray, theirs: xr.DataArray) -> bool:
    """Whether two coordinates hold equal times, to a thousandth of the shortest interval of the first."""
    a, b = ours.values, theirs.values
    kinds = ["n" if values.dtype.kind in "fiu" else values.dtype.kind for values in (a, b)]
    if a.shape != b.shape or kinds[0] != kinds[1] or kinds[0] not in "nMmO":
        return False
    try:
        apart, intervals = _as_numbers(b - a), _as_numbers(np.diff(a))
    except TypeError:  # dates of two calendars, or no dates
        return False
    near = 1e-3 * float(intervals.min()) if len(intervals) else 0.0
    return bool(np.allclose(apart, 0.0, rtol=0.0, atol=near))


def positions_among(ours: xr.DataArray, theirs: xr.DataArray) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Positions of times in an ascending coordinate of times, -1 for times that this coordinate lacks.

    Two times count as equal if they differ by less than a thousandth of the shortest interval.

    Raises
    ------
    ValueError
        If the times are of two kinds, such as numbers and dates.
    """
    a, b = ours.values, theirs.values
    kinds = ["n" if values.dtype.kind in "fiu" else values.dtype.kind for values in (a, b)]
    try:
        if kinds[0] != kinds[1] or kinds[0] not in "nMmO":
            raise TypeError
        known, wanted = _as_numbers(a - a[0]), _as_numbers(b - a[0])
    except TypeError:  # also for dates of two calendars
        raise ValueError(
            f"times are of {a.dtype}, the first is {a[0]}, and of {b.dtype}, the first is {b[0]}: expected the same "
            "kind of times, of one calendar"
        ) from None
    near = 1e-3 * float(np.diff(known).min()) if len(known) > 1 else 0.0
    after = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    before = (after - 1).clip(min=0)
    nearest = np.where(np.abs(known[before] - wanted) < np.abs(known[after] - wanted), before, after)
    return np.where(np.abs(known[nearest] - wanted) <= near, nearest, -1)


def drawn_times(coordinate: xr.DataArray) -> tuple[Array, str]:
    """Times as values on the axis of a picture, and the label of this axis.

    Numbers and datetime64 stay as they are. Pictures know one calendar only: cftime dates become days since the first
    date. Time differences become days.
    """
    times = coordinate.values
    if times.dtype.kind == "M":
        return times, "time"
    if times.dtype.kind == "m":
        return _as_numbers(times) / _SECONDS["day"], "days"
    if times.dtype.kind == "O" and len(times):
        return _as_numbers(times - times[0]) / _SECONDS["day"], f"days since {times[0]} ({times[0].calendar})"
    return times, "model time"


def dates_from(start: Any, steps: np.ndarray[Any, np.dtype[np.int64]], model: Dynamics) -> Array:
    """Dates of analyses, from the date of the first.

    Parameters
    ----------
    start : numpy.datetime64, datetime.datetime or cftime.datetime
        Date of the first analysis. All dates are of its calendar.
    steps : array of int64, shape (K,)
        Model steps from the analysis before to each analysis, 0 for the first.
    model : Dynamics
        A dynamics with a `time_unit`.

    Returns
    -------
    array, shape (K,)
        datetime64 in the coarsest unit that can express a step, or cftime dates.

    Raises
    ------
    TypeError
        If `start` is no date.
    ValueError
        If the dynamics has no `time_unit`, or the calendar or the type cannot hold the dates.
    """
    _check_start(start)
    if model.time_unit is None:
        raise ValueError(
            f"start={shown(start)} with {model!r}, which has no time_unit: expected how long one unit of model time "
            f"lasts. {_remedy(model, 'give')}; or leave out start="
        )
    step = model.timestep * int(check_time_unit(model.time_unit).astype(np.int64))  # nanoseconds
    whole = round(step)
    exact = whole > 0 and abs(step - whole) <= 1e-9 * step
    passed = np.cumsum(steps)
    if is_cftime(start):
        micro = [round(count * (whole if exact else step) / 1000) for count in passed.tolist()]
        try:
            dates = np.array([start + datetime.timedelta(microseconds=count) for count in micro], dtype=object)
        except (ValueError, OverflowError) as reason:
            raise ValueError(f"start={shown(start)}: expected dates that the calendar has ({reason})") from None
    else:
        sizes = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
        name, size = next(one for one in sizes.items() if one[1] == 1 or (exact and whole % one[1] == 0))
        count = passed * (whole // size) if exact else np.round(passed * step).astype(np.int64)
        first = np.datetime64(start)
        if np.datetime_data(first.dtype)[0] in ("Y", "M", "W", "D", "h", "m"):
            first = first.astype("datetime64[s]")
        dates = first + count.astype(f"timedelta64[{name}]")
    if not (dates[1:] > dates[:-1]).all():  # differences would hide that a date has wrapped around
        raise ValueError(
            f"start={shown(start)}: the dates of {len(dates)} cycles cannot be told apart, or its type ends before "
            "them; expected fewer cycles, a longer step, or a start in seconds: np.datetime64('2000-01-01', 's')"
        )
    return dates


def _check_start(start: Any) -> None:
    """Refuse a start that is no date, or a date from which no other dates can be counted."""
    date = isinstance(start, (np.datetime64, datetime.datetime)) or is_cftime(start)
    if not date or np.ndim(start):
        raise TypeError(
            f"start={shown(start)}: expected a date, such as np.datetime64('2000-01-01') or "
            "cftime.DatetimeNoLeap(2000, 1, 1)"
        )
    zone = isinstance(start, datetime.datetime) and start.tzinfo is not None
    if zone or (isinstance(start, np.datetime64) and np.isnat(start)) or (is_cftime(start) and not start.calendar):
        raise ValueError(f"start={shown(start)}: expected a date without a time zone, of a known calendar")


def _as_numbers(differences: Array) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Differences of times as numbers; differences of dates are in seconds."""
    if differences.dtype.kind == "m":
        seconds: Array = differences / np.timedelta64(1, "s")
        return seconds
    if differences.dtype.kind == "O":
        if not all(isinstance(one, datetime.timedelta) for one in differences):
            raise TypeError("no dates")
        return np.array([one.total_seconds() for one in differences], dtype=np.float64)
    return differences.astype(np.float64)


def _unit_seconds(coordinate: xr.DataArray, model: Dynamics) -> float:
    """How long one unit of model time lasts, in seconds, for a coordinate of dates."""
    if model.time_unit is None:
        values = coordinate.values
        kind = type(values[0]).__name__ if values.dtype.kind == "O" else str(values.dtype)
        raise ValueError(
            f"time is of {kind}, the first is {values[0]}, but the dynamics {model.label!r} has no time_unit: expected "
            f"how long one unit of model time lasts. {_remedy(model)}"
        )
    return _seconds(model.time_unit)


def _seconds(time_unit: Any) -> float:
    return float(check_time_unit(time_unit) / np.timedelta64(1, "s"))


def _remedy(model: Dynamics, verb: str = "Pass") -> str:
    """What to do if a dynamics has no unit of time, in words."""
    cls = type(model)
    name = f"xdan.{cls.__name__}" if cls.__module__.startswith("xdan.") else cls.__name__
    inside = "" if cls.__name__.startswith("Lorenz") else "..., "
    return f"{verb} dynamics={name}({inside}time_unit=np.timedelta64(5, 'D')) if one unit of model time is 5 days"


def _unit(units: Any) -> str | None:
    """Name of the unit of time in an attribute, or None."""
    if not isinstance(units, str):
        return None
    word = units.split(" since ")[0].strip().lower()
    known = _SPELLINGS.get(word) or (_SPELLINGS.get(word[:-1]) if word.endswith("s") else None)
    if known is None and " since " in units:
        return word  # a unit of some calendar
    return known
