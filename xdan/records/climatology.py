"""A climatology that the caller brings: states of an array, or of the record's own truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from ..core.checks import shown
from ..core.dynamics import Dynamics
from .schema import TIME, TRAJECTORY, check_order

_MOST = 4096  # states of a record that stand for its climate


def with_climatology(
    dynamics: Dynamics, climatology: Any, of_record: Callable[[], xr.DataArray] | None = None
) -> Dynamics:
    """Give a dynamics the climatology that a caller asks for.

    Parameters
    ----------
    dynamics : Dynamics
    climatology : array_like or DataArray, shape (..., *state), "record" or None
        None leaves the dynamics as it is.
    of_record : callable, optional
        Reads the states of the record's truth that stand for "record"; None where there is no truth.

    Raises
    ------
    TypeError
        For what holds no real numbers.
    ValueError
        For another word, "record" without a truth, and states that are no climatology: of another shape, labels in
        another order, too few, not finite, or all the same.
    """
    if climatology is None:
        return dynamics
    if isinstance(climatology, str):
        if climatology != "record":
            raise ValueError(f"climatology={climatology!r}: expected 'record', or an array of states (sample, *state)")
        if of_record is None:
            raise ValueError(
                "climatology='record' takes the states of the record's truth, and there is none: expected a Dataset "
                "with a variable 'truth', named with truth=, or an array of states (sample, *state)"
            )
        climatology = of_record()
    if isinstance(climatology, xr.Dataset):
        raise TypeError(
            f"climatology is a Dataset of {shown(sorted(map(str, climatology.data_vars)))}: expected one of its "
            "variables, such as ds.truth, or 'record'"
        )
    if isinstance(climatology, xr.DataArray):
        for dim in set(dynamics.dims) & set(climatology.dims):
            if climatology.sizes[dim] == len(dynamics.coordinates[dim].values):
                check_order(climatology, dim, dynamics)
    return dynamics.with_climatology(climatology)


def spaced(truth: xr.DataArray) -> xr.DataArray:
    """At most 4096 states of a truth (trajectory, time, *state), evenly spaced.

    They are of some times of every trajectory, or of one time of some trajectories.
    """
    trajectories, times = truth.sizes[TRAJECTORY], truth.sizes[TIME]
    rows = np.unique(np.linspace(0, trajectories - 1, min(trajectories, _MOST)).round().astype(int))
    columns = np.unique(np.linspace(0, times - 1, min(times, max(1, _MOST // len(rows)))).round().astype(int))
    return truth.isel({TRAJECTORY: rows, TIME: columns})
