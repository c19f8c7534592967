"""Time of a model: the length of its unit, and numbers of steps in an interval and a spin-up."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..checks import real, shown, warn

MOST_STEPS = 10**6  # of an interval or a spin-up; more steps show that the time is in other units than the model's
_SIZES = {  # nanoseconds in the units in which durations are written, largest first
    "days": 86_400 * 10**9,
    "hours": 3600 * 10**9,
    "minutes": 60 * 10**9,
    "seconds": 10**9,
    "nanoseconds": 1,
}


Duration = np.timedelta64 | datetime.timedelta | str
"""Length of a unit of time. Words are those of `in_words`."""


class TimeUnit:
    """The attribute `time_unit` of a dynamics. It is checked when it is set, and None before."""

    def __get__(self, dynamics: Any, owner: type | None = None) -> np.timedelta64 | None:
        return None if dynamics is None else vars(dynamics).get("time_unit")

    def __set__(self, dynamics: Any, value: Any) -> None:
        vars(dynamics)["time_unit"] = None if value is None else check_time_unit(value)


def with_time_unit(parameters: Mapping[str, Any], time_unit: np.timedelta64 | None) -> dict[str, Any]:
    """Parameters of a model as plain JSON, with its time unit in words if it has one."""
    return dict(parameters) if time_unit is None else {**parameters, "time_unit": in_words(time_unit)}


def steps_in(interval: float, timestep: float, name: str) -> int:
    """Number of steps in an interval of model time; see `Dynamics.steps_in`."""
    interval = real("interval", interval, finite=False)
    if math.isinf(interval):
        raise ValueError(f"an interval of {interval}: expected a positive multiple of the time step {timestep:g}")
    ratio = interval / timestep
    steps = round(ratio)
    if steps < 1 or not math.isclose(ratio, steps, rel_tol=1e-4):
        raise ValueError(
            f"an interval of {interval:g} is not a positive multiple of the {name} time step {timestep:g}; expected "
            "a multiple; choose another interval, or another timestep= of the dynamics"
        )
    if steps > MOST_STEPS:
        raise ValueError(
            f"an interval of {interval:g} takes {steps} steps of {timestep:g}: expected at most {MOST_STEPS}; "
            "is the time in other units than the model's?"
        )
    return steps


def spin_up_steps(spin_up_time: float, timestep: float) -> int:
    """Number of steps in a spin-up; see `Dynamics.spin_up_steps`."""
    ratio = real("spin_up_time", spin_up_time, least=0.0) / timestep
    if ratio > MOST_STEPS:
        raise ValueError(
            f"spin_up_time={spin_up_time:g} takes {ratio:.3g} steps of timestep={timestep:g}: expected at most "
            f"{MOST_STEPS}; is it in other units than the model's time?"
        )
    return round(ratio)


def warn_of_short_spin_up(spin_up_time: float, timestep: float, steps: int) -> None:
    """Warn of a spin-up that is shorter than one step, and not zero."""
    if 0 < spin_up_time < timestep:
        warn(
            f"spin_up_time={spin_up_time:g} is less than one timestep={timestep:g}, so the spin-up has {steps} steps. "
            "Is it in other units than the model's time? Leave it out for at least 400 steps, or give 0 for none",
        )


def check_time_unit(value: Any) -> np.timedelta64:
    """Check the length of one unit of model time, and give it in nanoseconds.

    Parameters
    ----------
    value : numpy.timedelta64, datetime.timedelta or str
        Words are those of `in_words`, which stores hold.

    Raises
    ------
    TypeError
        If the value has another type, or is not such words.
    ValueError
        If it is not positive, or has no fixed length, like a month.
    """
    if isinstance(value, str) and (parts := re.fullmatch(rf"(\d{{1,18}}) ({'|'.join(_SIZES)})", value)):
        nanoseconds = int(parts[1]) * _SIZES[parts[2]]
        if nanoseconds > np.iinfo(np.int64).max:
            raise ValueError(f"time_unit={shown(value)}: expected at most 292 years")
        value = np.timedelta64(nanoseconds, "ns")
    if not isinstance(value, (np.timedelta64, datetime.timedelta)):
        raise TypeError(
            f"time_unit={shown(value)}: expected how long one unit of model time lasts, for example "
            "np.timedelta64(1, 'D')"
        )
    fixed = isinstance(value, datetime.timedelta) or np.datetime_data(value.dtype)[0] not in ("Y", "M", "generic")
    duration = np.timedelta64(value, "ns") if fixed else np.timedelta64("NaT", "ns")
    if not duration > np.timedelta64(0, "ns"):
        raise ValueError(f"time_unit={shown(value)}: expected a positive time of fixed length, of a nanosecond or more")
    return duration


def in_words(duration: np.timedelta64) -> str:
    """A duration as a whole number of the largest possible unit, such as "5 days"."""
    nanoseconds = int(duration / np.timedelta64(1, "ns"))
    name, size = next((name, size) for name, size in _SIZES.items() if nanoseconds % size == 0)
    return f"{nanoseconds // size} {name}"
