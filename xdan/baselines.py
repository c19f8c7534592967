"""Classical methods by name, tuned and cycled like a network."""

from __future__ import annotations

from typing import Any

import xarray as xr

from .core.methods import method_by_name
from .cycling import cycle

_CYCLE_ARGUMENTS = frozenset(
    ("dynamics", "truth", "observation", "observation_error", "seed", "store", "mode", "device", "progress")
)


def baseline(ds: xr.Dataset, name: str, *, keep_members: bool = False, **parameters: Any) -> xr.Dataset:
    """Tune and run a classical method over a record.

    Parameters
    ----------
    ds : xarray.Dataset
        As for `cycle`.
    name : {"enkf-n", "3d-var"}
        "enkf-n": finite-size ensemble Kalman filter; `members=40`, `capped=True`.
        "3d-var": static background error covariance; `background="climatology"` or "trained" or a matrix,
        `scale="tune"` or a number.
    keep_members : bool
        Keep the members of an ensemble method.
    **parameters
        The method's parameters, and those of `cycle` (`store=`, `seed=`, `dynamics=`, ...).

    Returns
    -------
    xarray.Dataset
        As of `cycle`, with what the method was tuned to.

    Raises
    ------
    ValueError
        For an unknown name or parameter, and as `cycle`.

    See Also
    --------
    xdan.core.methods : the methods themselves, with their sources.
    """
    passed = {key: value for key, value in parameters.items() if key in _CYCLE_ARGUMENTS}
    own = {key: value for key, value in parameters.items() if key not in _CYCLE_ARGUMENTS}
    return cycle(ds, method_by_name(name, **own), members=keep_members, **passed)
