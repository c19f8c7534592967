"""A climatology that the caller brings: states of an array, or of the record's own truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from ..core.checks import shown
from ..core.dynamics import Dynamics
from .schema import TIME, TRAJECTORY, check_order
from .values import refuse_fill_values

_MOST = 4096  # states of a record that stand for its climate


def with_climatology(dynamics: Dynamics, climatology: Any, truth: xr.DataArray | None = None) -> Dynamics:
    """Give a dynamics the climatology that a caller asks for.

    Parameters
    ----------
    dynamics : Dynamics
    climatology : array_like or DataArray, shape (..., *state), "record" or None
        None leaves the dynamics as it is.
    truth : DataArray, dims (trajectory, time, *state), optional
        The record's, for "record": at most 4096 states of it, evenly spaced, are read.

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
        if truth is None:
            raise ValueError(
                "climatology='record' takes the states of the record's truth, and there is none: expected a Dataset "
                "with a variable 'truth', named with truth=, or an array of states (sample, *state)"
            )
        climatology = _spaced(truth)
        refuse_fill_values(climatology.to_numpy(), str(truth.name))
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


def _spaced(truth: xr.DataArray) -> xr.DataArray:
    """States of a truth, evenly spaced: one or more times of every trajectory, or one time of some of them."""
    trajectories, times = truth.sizes[TRAJECTORY], truth.sizes[TIME]
    rows = np.unique(np.linspace(0, trajectories - 1, min(trajectories, _MOST)).round().astype(int))
    columns = np.unique(np.linspace(0, times - 1, min(times, max(1, _MOST // len(rows)))).round().astype(int))
    return truth.isel({TRAJECTORY: rows, TIME: columns})
