"""Scores of a run: against the truth of a twin, and against the observations alone."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
import xskillscore as xs

from .blocks import see
from .core.dynamics import Dynamics
from .experiment import Experiment, label_trajectory, read, read_run
from .schema import MEMBER, TIME, TRAJECTORY, averaged_dims

_RMSE = "root of the mean over the state's variables at each time, then mean over the dims averaged"
_SPREAD = "root of the mean variance over the state's variables at each time, then mean over the dims averaged"


def score(
    ds: xr.Dataset,
    run: xr.Dataset,
    *,
    dim: str | Sequence[str] = (TRAJECTORY, TIME),
    burn_in: int = 0,
    dynamics: Dynamics | None = None,
    truth: str | None = None,
    observation: str | None = None,
    observation_error: Any = None,
    operator: Any = None,
) -> xr.Dataset:
    """Score a run.

    Parameters
    ----------
    ds : xarray.Dataset
        The twin or the record that was cycled.
    run : xarray.Dataset
        Of `cycle` or `baseline`; or any `forecast` and `analysis` on the record's coordinates.
    dim : str or sequence of str
        Dims to average over, of `trajectory` and `time`. The state's dims always go into the root.
    burn_in : int
        Leading cycles to leave out.
    dynamics, truth, observation, observation_error, operator
        As for `cycle`.

    Returns
    -------
    xarray.Dataset
        With a truth: `rmse` of the analysis, its standard error where trajectories are averaged,
        `forecast_rmse` and `crps`: of the members where the run keeps them, else of a Gaussian of its spread, else of
        the analysis alone, the mean absolute error; its attribute `long_name` says which. With a spread: `spread`,
        `forecast_spread`. From observations alone:
        `innovation_mean` and `innovation_variance` of y - H x_f and, with a spread,
        `innovation_variance_expected` (where sites are observed); `residual_mean` and `residual_variance` of
        y - H x_a; and
        `error_variance_diagnosed`, the mean of (y - H x_a)(y - H x_f), which for a consistent method is
        `error_variance`. `diverged` counts lost trajectories: their scores, and means over them, are NaN.

    Raises
    ------
    ValueError
        If the run does not fit the record, or burn-in leaves nothing.

    References
    ----------
    CRPS: Gneiting and Raftery (2007), doi:10.1198/016214506000001437, by members, or by the spread as a Gaussian,
    or for a single state its absolute error. Diagnosed error: Desroziers et al. (2005), doi:10.1256/qj.05.108.
    """
    experiment, run = _match(ds, run, burn_in, dynamics, truth, observation, observation_error, operator)
    dims = _dims(dim)
    state: list[Hashable] = list(experiment.frame.dynamics.dims)
    units = experiment.frame.dynamics.units
    square = units if units == "1" else f"({units})2"
    scores: dict[str, xr.DataArray] = {}
    names: dict[str, tuple[str, str]] = {}

    def add(name: str, value: xr.DataArray, long_name: str, in_units: str = units) -> None:
        scores[name], names[name] = value, (long_name, in_units)

    x = experiment.truth
    if x is not None:
        by_time: xr.DataArray = xs.rmse(x, run["analysis"], dim=state)
        add("rmse", by_time.mean(dims, skipna=False), f"analysis RMSE: {_RMSE}")
        if TRAJECTORY in dims and by_time.sizes[TRAJECTORY] > 1:
            by_run = by_time.mean([d for d in dims if d != TRAJECTORY], skipna=False)
            error = by_run.std(TRAJECTORY, ddof=1, skipna=False) / np.sqrt(by_run.sizes[TRAJECTORY])
            add("rmse_standard_error", error, "standard error of the mean over trajectories")
        add("forecast_rmse", xs.rmse(x, run["forecast"], dim=state).mean(dims, skipna=False), f"forecast RMSE: {_RMSE}")
        probability, what = _crps(x, run, state)
        add("crps", probability.mean(dims, skipna=False), f"continuous ranked probability score of the {what}")
    for name in ("forecast_spread", "spread"):
        if name in run:
            deviation: xr.DataArray = (run[name] ** 2).mean(state, skipna=False) ** 0.5
            add(name, deviation.mean(dims, skipna=False), f"{run[name].attrs.get('long_name', name)}: {_SPREAD}")
    y, frame = experiment.observation, experiment.frame
    everything = [*dims, *y.dims[2:]]
    observed = y.notnull()
    innovation, residual = y - see(run["forecast"], frame), y - see(run["analysis"], frame)
    variance = _error_variance(experiment)

    def average(value: xr.DataArray) -> xr.DataArray:
        # Where nothing is observed drops out; where a run is lost, NaN stays.
        return value.where(observed, 0.0).sum(everything, skipna=False) / observed.sum(everything)

    for name, value, label in (("innovation", innovation, "forecast"), ("residual", residual, "analysis")):
        mean = average(value)
        add(f"{name}_mean", mean, f"mean of observation minus {label}")
        add(f"{name}_variance", average(value**2) - mean**2, f"variance of observation minus {label}", square)
    if "forecast_spread" in run and frame.error.operator is None:
        expected = average(run["forecast_spread"] ** 2 + variance)
        add(
            "innovation_variance_expected",
            expected,
            "forecast variance plus observation error variance",
            square,
        )
    add("error_variance", average(variance * xr.ones_like(y)), "observation error variance in use", square)
    diagnosed = average(innovation * residual)
    add("error_variance_diagnosed", diagnosed, "mean of innovation times residual", square)
    lost = run["diverged"].any(TIME) if "diverged" in run else run["analysis"].isnull().any([TIME, *state])
    add("diverged", lost.sum(TRAJECTORY) if TRAJECTORY in dims else lost, "trajectories that diverged", "1")
    result = xr.Dataset({name: value.drop_attrs() for name, value in scores.items()})
    for name, (long_name, in_units) in names.items():
        result[name].attrs = {"long_name": long_name, "units": in_units}
    cycles = run.sizes[TIME] * run.sizes[TRAJECTORY]
    return result.assign_attrs(
        title=f"scores of {run.attrs.get('method', 'a run')}",
        burn_in=burn_in,
        cycles=cycles,
        rmse_convention=_RMSE,
    )


def rank_histogram(
    ds: xr.Dataset,
    run: xr.Dataset,
    *,
    dim: str | Sequence[str] = (TRAJECTORY, TIME),
    burn_in: int = 0,
    of: str = "members",
    **roles: Any,
) -> xr.DataArray:
    """Count the truth's rank among the members; flat for a reliable ensemble.

    Parameters
    ----------
    ds, run, dim, burn_in
        As for `score`; the run with its members, from `baseline(..., keep_members=True)`.
    of : {"members", "forecast_members"}
        Rank in the analysis or in the forecast.
    **roles
        `dynamics`, `truth`, `observation`, `observation_error`, `operator` as for `score`.

    Returns
    -------
    xarray.DataArray
        Counts along `rank`, 1 to members + 1.

    Raises
    ------
    ValueError
        If the run holds no members or the record no truth.
    """
    if of not in run:
        raise ValueError(f"the run holds no {of!r}: run baseline(..., keep_members=True)")
    experiment, run = _match(ds, run, burn_in, **{**dict.fromkeys(_ROLES), **roles})
    if experiment.truth is None:
        raise ValueError("a rank histogram needs the truth, which the record lacks")
    state = list(experiment.frame.dynamics.dims)
    counts: xr.DataArray = xs.rank_histogram(experiment.truth, run[of], dim=[*_dims(dim), *state], member_dim=MEMBER)
    counts.attrs = {"long_name": f"rank of the truth among {of.replace('_', ' ')}", "units": "1"}
    return counts


def _error_variance(experiment: Experiment) -> xr.DataArray:
    """Diagonal of R, on the dims of the observations of one time, or of all times where it differs."""
    y, error = experiment.observation, experiment.frame.error
    dims, shape = (y.dims[1:], y.shape[1:]) if error.in_time else (y.dims[2:], y.shape[2:])
    values = error.variance().numpy()
    if values.ndim:
        values = np.broadcast_to(values, (*values.shape[:-1], int(np.prod(y.shape[2:])))).reshape(shape)
    return xr.DataArray(np.broadcast_to(values, shape), dims=dims)


_ROLES = ("dynamics", "truth", "observation", "observation_error", "operator")


def _dims(dim: str | Sequence[str]) -> list[Hashable]:
    return list(averaged_dims(dim))


def _match(
    ds: xr.Dataset,
    run: xr.Dataset,
    burn_in: int,
    dynamics: Dynamics | None,
    truth: str | None,
    observation: str | None,
    observation_error: Any,
    operator: Any,
) -> tuple[Experiment, xr.Dataset]:
    """Record and run on the same labels, burn-in left out."""
    experiment = read(
        ds,
        dynamics=dynamics,
        truth=truth,
        observation=observation,
        observation_error=observation_error,
        operator=operator,
    )
    found = read_run(experiment, run, ("forecast", "analysis"))
    times = [dim for dim in run.cf.axes.get("T", []) if dim in run.dims]
    if TIME not in run.dims and times:
        run = run.drop_vars(TIME, errors="ignore").rename({times[0]: TIME})
    if experiment.bare and TRAJECTORY not in run.dims:
        run = label_trajectory(run)
    run = run.assign({name: value.drop_vars(set(value.coords) - set(run.coords)) for name, value in found.items()})
    if any(value.chunks is not None for value in run.data_vars.values()):
        run = run.chunk({dim: -1 for dim in experiment.frame.dynamics.dims if dim in run.dims})
    cycles = run.sizes[TIME]
    if not 0 <= burn_in < cycles:
        raise ValueError(f"burn_in={burn_in}: expected 0 to {cycles - 1}, the record has {cycles} cycles")
    later = {TIME: slice(burn_in, None)}
    x = experiment.truth
    # The record's labels are the run's: identical coordinates keep arithmetic from intersecting them.
    own = {name: experiment.observation[name].isel({name: later.get(name, slice(None))}) for name in (TRAJECTORY, TIME)}
    run = run.isel(later).assign_coords(own)
    observation_later = experiment.observation.isel(later)
    truth_later = None if x is None else x.isel(later)
    frame = replace(experiment.frame, error=experiment.frame.error.during(later[TIME]))
    return Experiment(frame, observation_later, truth_later, experiment.bare), run


def _crps(x: xr.DataArray, run: xr.Dataset, state: list[Hashable]) -> tuple[xr.DataArray, str]:
    """Score at each time, and what it is of."""
    # Only dims in one chunk go to xskillscore; the others are averaged after.
    if "members" in run:
        return xs.crps_ensemble(x, run["members"], member_dim=MEMBER, dim=state), "members"
    if "spread" in run:
        return xs.crps_gaussian(x, run["analysis"], run["spread"], dim=state), "Gaussian of analysis and spread"
    return xs.mae(x, run["analysis"], dim=state), "analysis"
