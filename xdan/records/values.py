"""Checks of a record's values: infinite values, fill values, and records without an observation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..core.dynamics import Dynamics
from .fields import split_values
from .schema import TIME, TRAJECTORY

if TYPE_CHECKING:
    from .record import LabelledRecord

LEADING_TRAJECTORIES, LEADING_CYCLES = 64, 400  # the part of a record that is checked and tuned on
# Numbers that stand for a missing value: in CF, as netCDF's defaults, and in many text files.
_FILLS = (
    *(-99.0, -999.0, -9999.0, -99999.0, -999999.0, -999.9, -9999.9, -99.9, 999.0, 9999.0, 99999.0, 999999.0, 999.9),
    *(-32767.0, -32768.0, 32767.0, -2147483647.0, -2147483648.0, 9.969209968386869e36, 1e15, 1e20, 1e30, 1e35, 1e36),
    *(-1e15, -1e20, -1e30, -1e34, -1e36, 3.4028234663852886e38, -3.4028234663852886e38),
)
_FAR_FOR_A_FILL, _FAR_FOR_ANY = 10.0, 20.0  # least distances from other values, in deviations
_REPEATED = 10  # how often an uncommon fill value must occur


def fill_text(values: np.ndarray[Any, Any], name: str) -> str:
    """Say that a variable holds fill values, such as -999; "" if it holds none."""
    filled = fill_value(values)
    if filled is None:
        return ""
    value, count = filled
    return (
        f"{count} of {values.size} values of {name!r} are {value:g}, far from all others, as fill values are: expected "
        f"NaN for a missing value; for example ds.where(ds.{name} != {value:g})"
    )


def fill_value(values: np.ndarray[Any, Any]) -> tuple[float, int] | None:
    """Find a fill value: the smallest or the largest value, if it is far from all others.

    A common fill value must be 10 deviations away. Any other value must be 20 deviations away and occur 10 times. One
    deviation is half the distance between the quantiles at 16 and 84 %.

    Returns
    -------
    value, count
        The fill value and how often it occurs, or None if there is no fill value.
    """
    numbers = values[np.isfinite(values)].astype(np.float64)
    if numbers.size < 2:
        return None
    for extreme in (numbers.min(), numbers.max()):
        others = numbers[numbers != extreme]
        count = numbers.size - others.size
        known = bool(np.isclose(extreme, _FILLS, rtol=1e-6, atol=0).any())
        if not others.size or not (known or count >= _REPEATED):
            continue
        low, middle, high = np.quantile(others, [0.16, 0.5, 0.84])
        far = (_FAR_FOR_A_FILL if known else _FAR_FOR_ANY) * (high - low) / 2
        if high > low and abs(extreme - middle) > far:
            return float(extreme), int(count)
    return None


def check_observed(labelled: LabelledRecord) -> None:
    """Refuse a record without a single observation, with infinite observations, or with fill values.

    Raises
    ------
    ValueError
        If every observation is NaN, an observation is infinite, or a fill value is among the observations.
    """
    observation = labelled.observation
    infinite = int(np.isinf(observation).sum())
    if infinite:
        raise ValueError(
            f"{infinite} values of {observation.name!r} are infinite: expected numbers, or NaN where nothing is "
            "observed; for example ds.where(np.isfinite(ds.observation))"
        )
    if not bool(observation.notnull().any()):
        raise ValueError(
            f"every value of {observation.name!r} is NaN, which means that nothing is observed; expected some numbers: "
            "was the store cut short, or does observation= name the wrong variable?"
        )
    setup = labelled.setup
    refuse_fill_values(leading(observation).to_numpy(), str(observation.name), setup.observing.direct, setup.dynamics)


def refuse_fill_values(values: np.ndarray[Any, Any], name: str, of_states: bool, model: Dynamics) -> None:
    """Refuse fill values, such as -999. Each field is checked by itself.

    Parameters
    ----------
    values : array, shape (..., *state), or (..., P)
    name : str
        Name of the variable.
    of_states : bool
        Whether the values lie at the state's sites.
    model : Dynamics

    Raises
    ------
    ValueError
        If a fill value is among the values.
    """
    for part, numbers in (split_values(values, model, name) if of_states else {name: values}).items():
        if text := fill_text(numbers, part):
            raise ValueError(text)


def leading(variable: xr.DataArray) -> xr.DataArray:
    """The first trajectories and cycles of a variable, which stand for the whole variable."""
    return variable.isel({TRAJECTORY: slice(0, LEADING_TRAJECTORIES), TIME: slice(0, LEADING_CYCLES)})
