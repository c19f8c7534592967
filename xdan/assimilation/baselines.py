"""Classical methods by name, tuned and cycled like a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from ..core.checks import switch
from ..core.methods import method_by_name
from .cycling import cycle

_CYCLE_ARGUMENTS = frozenset(
    ("dynamics", "truth", "observation", "observation_error", "operator", "seed", "store", "mode", "device", "progress")
)


def baseline(
    ds: xr.Dataset,
    name: str,
    *,
    keep_members: bool = False,
    tune_on: str = "innovation",
    candidates: Mapping[str, Sequence[float]] | None = None,
    **parameters: Any,
) -> xr.Dataset:
    """Tune and run a classical method over a record.

    Parameters
    ----------
    ds : xarray.Dataset
        As for `cycle`.
    name : str
        The method; all are in the table of docs/methods.md.

        - static: "climatology", "optimal-interpolation", "3d-var";
        - variational: "4d-var" (`window=`), "eda";
        - Kalman: "kalman" (linear dynamics), "extended-kalman", "state-covariance" (Sakov's A1 and A2);
        - ensemble: "enkf", "etkf", "letkf" (`radius=`), "enkf-n" (finite-size, nothing to tune);
        - iterative ensemble: "ienkf", "ienkf-n", "ienks", "ienks-n" (`lag=`);
        - particle: "particle", "optimal-particle".
    tune_on : {"innovation", "truth"}
        What a parameter given as "tune" is chosen by, on the leading part of the record: the likelihood of the
        innovations, which needs no truth, or the analysis RMSE.
    candidates : mapping of str to sequence of float, optional
        The values to try for parameters that are "tune", such as `{"radius": [2.0, 4.0, 6.0]}`. Every method has its
        own where none are given. A value chosen at an end of them warns.
    keep_members : bool
        Keep the members of an ensemble method.
    **parameters
        The method's parameters (`members=`, `inflation="tune"`, ...), and those of `cycle` (`store=`, `seed=`,
        `dynamics=`, ...).

    Returns
    -------
    xarray.Dataset
        As of `cycle`, with what the method was tuned to (`tuned_inflation`), the values tried
        (`candidate_inflation`) and their scores (`innovation_score` or `truth_rmse`).

    Raises
    ------
    TypeError
        For arguments of another type.
    ValueError
        For an unknown name or parameter, parameters out of range, a window or lag longer than the record,
        localisation without a distance, "kalman" on nonlinear dynamics, a method that differentiates a model or an
        operator whose derivative is missing or wrong, members to keep of a method that has none, and as `cycle`.

    Warns
    -----
    XdanWarning
        If tuning ends at an end of its candidates.

    See Also
    --------
    xdan.core.methods : the methods themselves, with their sources.
    """
    of_cycle = {key: value for key, value in parameters.items() if key in _CYCLE_ARGUMENTS}
    of_method = {key: value for key, value in parameters.items() if key not in _CYCLE_ARGUMENTS}
    keep = switch("keep_members", keep_members)
    method = method_by_name(name, tune_on=tune_on, candidates=candidates, **of_method)
    if keep and not method.ensemble:
        raise ValueError(
            f"keep_members=True: the method {name!r} carries a single state, neither an ensemble nor a memory; "
            "expected an ensemble method such as 'etkf'"
        )
    return cycle(ds, method, members=keep, **of_cycle)
