"""A Dataset understood: what it must hold, found, checked and explained when it does not."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import cf_xarray  # noqa: F401
import numpy as np
import torch
import xarray as xr

from .core.dynamics import Dynamics, dynamics_from_json
from .core.observing import ErrorCovariance, Sites
from .observing import read_error, read_operator
from .schema import OBS, TIME, TRAJECTORY, XdanWarning, check_order, find

Labelled = TypeVar("Labelled", xr.Dataset, xr.DataArray)


@dataclass(frozen=True)
class Frame:
    """What is known of a record beside its data; small, so that it travels with every block.

    Attributes
    ----------
    dynamics : Dynamics
    error : ErrorCovariance
        Float64, on the CPU; with the observation operator.
    steps : numpy.ndarray of int, length K
        Model steps before each analysis; 0 before the first.
    trajectory : numpy.ndarray of int, length R
        Labels that key random draws.
    dtype : numpy.dtype
        Floating type to compute in.
    """

    dynamics: Dynamics
    error: ErrorCovariance
    steps: np.ndarray[Any, np.dtype[np.int64]]
    trajectory: np.ndarray[Any, np.dtype[np.int64]]
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class Experiment:
    """A Dataset that was understood: what the verbs need of it.

    Attributes
    ----------
    frame : Frame
    observation : xarray.DataArray, dims (trajectory, time, *state), or (trajectory, time, obs)
    truth : xarray.DataArray or None, dims (trajectory, time, *state)
    bare : bool
        Whether the Dataset came without a trajectory dim.
    forecast : xarray.DataArray or None
        A teacher's, of the truth's dims; the truth is then its analysis.
    sites : Sites or None
        The rule by which observations are made, where the attributes say.
    unlabelled : bool
        Whether a bare record has no trajectory label either.
    """

    frame: Frame
    observation: xr.DataArray
    truth: xr.DataArray | None
    bare: bool
    forecast: xr.DataArray | None = None
    sites: Sites | None = None
    unlabelled: bool = False

    def as_given(self, result: Labelled) -> Labelled:
        """A Dataset or DataArray without the dim `trajectory` where the record has none, its label kept."""
        if not self.bare or TRAJECTORY not in result.dims:
            return result
        return result.isel({TRAJECTORY: 0}, drop=self.unlabelled)


def read_dynamics(ds: xr.Dataset, dynamics: Dynamics | None) -> Dynamics:
    """Take the caller's dynamics, or the one that the attributes name.

    Raises
    ------
    ValueError
        If there is none or its name is not registered.
    TypeError
        If the caller's is not a Dynamics.
    """
    if dynamics is not None:
        if not isinstance(dynamics, Dynamics):
            raise TypeError(
                f"dynamics={dynamics!r}: expected an xdan Dynamics such as xdan.Lorenz96(); "
                "wrap a torch function as xdan.CustomDynamics(tendency, state=..., timestep=...)"
            )
        return dynamics
    if "dynamics" not in ds.attrs:
        raise ValueError("the Dataset's attributes name no dynamics; pass dynamics=, for example xdan.Lorenz96()")
    try:
        description = json.loads(ds.attrs["dynamics"])
    except (TypeError, ValueError):
        raise ValueError(f"the attribute dynamics={ds.attrs['dynamics']!r} is not JSON; pass dynamics=") from None
    return dynamics_from_json(description)


def read(
    ds: xr.Dataset,
    *,
    dynamics: Dynamics | None = None,
    truth: str | None = None,
    observation: str | None = None,
    observation_error: Any = None,
    operator: Any = None,
    needs_truth: str | None = None,
) -> Experiment:
    """Understand a Dataset, reading its coordinates and attributes but none of its data.

    Parameters
    ----------
    ds : xarray.Dataset
    dynamics : Dynamics, optional
        Where the attributes name none.
    truth, observation : str, optional
        Names of the variables, where roles do not tell.
    observation_error : str, float or array, optional
        A variable's name, or standard deviations (scalar or one per observation), or R as a matrix.
    operator : str, array or callable, optional
        H where observations lie along `obs`: a variable's name, a matrix, or a torch function of states (..., N).
    needs_truth : str, optional
        What the truth is needed for, if it is.

    Raises
    ------
    ValueError
        For whatever is missing, misnamed or of the wrong size; the message says what was found and the remedy.
    """
    if ds.attrs.get("xdan_status") == "unfinished":
        raise ValueError(
            "the store is unfinished: the run that writes it was cut short. Run the same call again to resume it"
        )
    model = read_dynamics(ds, dynamics)
    y = find(ds, "observation", observation)
    if y is None:
        raise ValueError(
            f"no observations: expected a variable 'observation', found {sorted(map(str, ds.data_vars))}; "
            "name it with observation="
        )
    seeing = read_operator(ds, model, y, operator)
    state = dict(zip(model.dims, model.shape, strict=True))
    y, bare = _arrange(y, model, state if seeing is None else {OBS: seeing.size})
    x = find(ds, "truth", truth)
    if x is None and needs_truth:
        raise ValueError(
            f"{needs_truth} needs the truth: expected a variable 'truth', found "
            f"{sorted(map(str, ds.data_vars))}; name it with truth="
        )
    if x is not None:
        x, _ = _arrange(x, model, state)
        if x.shape[:2] != y.shape[:2]:
            raise ValueError(f"truth has sizes {dict(x.sizes)}, observation {dict(y.sizes)}: expected the same")
    frame = Frame(
        dynamics=model,
        error=read_error(ds, y, seeing, observation_error),
        steps=_steps(y, model),
        trajectory=np.asarray(y[TRAJECTORY].values, dtype=np.int64),
        dtype=np.result_type(y.dtype, np.float32).newbyteorder("="),
    )
    unlabelled = bare and TRAJECTORY not in ds.coords
    return Experiment(frame, y, x, bare, sites=_read_sites(ds), unlabelled=unlabelled)


def _read_sites(ds: xr.Dataset) -> Sites | None:
    """The observing network that the attributes describe, if they do."""
    try:
        return Sites.from_json(json.loads(ds.attrs["observing"]))
    except (KeyError, TypeError, ValueError):
        return None


def _arrange(variable: xr.DataArray, model: Dynamics, own: Mapping[str, int]) -> tuple[xr.DataArray, bool]:
    """Give a variable the dims (trajectory, time, *own), its own dims whole, and check sizes, labels and type."""
    _check_values(variable)
    times = variable.cf.axes.get("T", [])
    time = TIME if TIME in variable.dims else next((t for t in times if t in variable.dims), None)
    if time is None:
        raise ValueError(
            f"{variable.name!r} has dims {variable.dims} and none is time: expected 'time', or a dim whose "
            "coordinate has the attribute axis='T'"
        )
    if time != TIME:
        variable = variable.drop_vars(TIME, errors="ignore").rename({time: TIME})
    dims = tuple(own)
    missing = [dim for dim in dims if dim not in variable.dims]
    if missing:
        raise ValueError(
            f"{variable.name!r} has dims {variable.dims}, without {missing}: expected the dynamics' state dims "
            f"{model.dims}; rename the record's dims"
        )
    extra = [dim for dim in variable.dims if dim not in (TRAJECTORY, TIME, *dims)]
    if extra:
        raise ValueError(f"{variable.name!r} has dims {extra} beyond (trajectory, time, {', '.join(dims)})")
    sizes = {dim: variable.sizes[dim] for dim in dims}
    if sizes != own:
        raise ValueError(
            f"{variable.name!r} has state sizes {sizes}, the dynamics {model!r} expects {dict(own)}; "
            "pass the dynamics= of this record"
        )
    for dim in set(dims) & set(model.dims):
        check_order(variable, dim, model)
    bare = TRAJECTORY not in variable.dims
    if bare:
        variable = label_trajectory(variable)
    elif TRAJECTORY not in variable.coords:
        variable = variable.assign_coords({TRAJECTORY: np.arange(variable.sizes[TRAJECTORY])})
    if not np.issubdtype(variable[TRAJECTORY].dtype, np.integer):
        raise ValueError(f"trajectory labels are of {variable[TRAJECTORY].dtype}: expected integers")
    labels, counts = np.unique(variable[TRAJECTORY].values, return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"trajectory label {labels[counts > 1][0]} stands {counts.max()} times: random draws are keyed by the "
            "labels, expected distinct ones, for example ds.assign_coords(trajectory=range(ds.sizes['trajectory']))"
        )
    variable = variable.transpose(TRAJECTORY, TIME, *dims)
    if variable.chunks is not None:
        variable = variable.chunk(dict.fromkeys(dims, -1))
    return variable, bare


def label_trajectory(variable: Labelled) -> Labelled:
    """Give a Dataset or DataArray of one trajectory the dim, labelled as its scalar coordinate is, or 0."""
    return variable.expand_dims(TRAJECTORY if TRAJECTORY in variable.coords else {TRAJECTORY: [0]})


def _check_values(variable: xr.DataArray) -> None:
    """Refuse values that are no real numbers, and fill values that were not turned into NaN."""
    if variable.dtype.kind not in "fiu":
        raise TypeError(f"{variable.name!r} is of dtype {variable.dtype}: expected real numbers")
    for label in ("_FillValue", "missing_value"):
        value = variable.attrs.get(label)
        if value is not None and not np.isnan(value).all():
            raise ValueError(
                f"{variable.name!r} has the attribute {label}={value}: its gaps are not NaN. Open the record with "
                f"mask_and_scale=True, or use xr.decode_cf(ds)"
            )


def _steps(variable: xr.DataArray, model: Dynamics) -> np.ndarray[Any, np.dtype[np.int64]]:
    if TIME not in variable.coords:
        raise ValueError("dim 'time' has no coordinate: expected analysis times in model time units")
    times = variable[TIME].values
    if not np.issubdtype(times.dtype, np.number) or np.issubdtype(times.dtype, np.timedelta64):
        raise ValueError(
            f"time is of {times.dtype}: expected numbers in model time units. Convert, for example "
            "ds.assign_coords(time=(ds.time - ds.time[0]) / np.timedelta64(5, 'D')), one unit being 5 days"
        )
    if not np.isfinite(times).all():
        raise ValueError("time holds values that are not finite: expected analysis times in model time units")
    if not len(times):
        raise ValueError(f"{variable.name!r} holds no times; was the selection empty?")
    rounding = 2 * float(np.spacing(np.abs(times).max())) if times.dtype.kind == "f" else 0.0
    intervals = np.diff(times.astype(np.float64))
    if (intervals <= 0).any():
        k = int(np.argmax(intervals <= 0))
        raise ValueError(f"time does not increase at index {k + 1}: {times[k]} then {times[k + 1]}")
    steps = np.zeros(len(times), dtype=np.int64)
    whole = model.timestep * np.maximum(1, np.round(intervals / model.timestep))
    intervals = np.where(np.abs(intervals - whole) <= rounding, whole, intervals)
    for interval in np.unique(np.round(intervals, 9)):
        steps[1:][np.isclose(intervals, interval, rtol=1e-6, atol=2e-9)] = model.steps_in(float(interval))
    return steps


def check_observed(observation: xr.DataArray) -> None:
    """Refuse a record without a single observation, or with infinite ones.

    Raises
    ------
    ValueError
        If every observation is NaN, or some are infinite.
    """
    infinite = int(np.isinf(observation).sum())
    if infinite:
        raise ValueError(
            f"{infinite} values of {observation.name!r} are infinite: expected numbers, or NaN where nothing is "
            "observed; for example ds.where(np.isfinite(ds.observation))"
        )
    if not bool(observation.notnull().any()):
        raise ValueError(
            f"every value of {observation.name!r} is NaN, which means that nothing is observed; "
            "was the store cut short, or does observation= name the wrong variable?"
        )


def check_follows(experiment: Experiment) -> None:
    """Warn where the truth does not follow the named dynamics, from one interval of one trajectory."""
    if experiment.truth is None or experiment.truth.sizes[TIME] < 2:
        return
    pair = experiment.truth.isel({TRAJECTORY: 0, TIME: slice(0, 2)}).to_numpy().astype(np.float64)
    if not np.isfinite(pair).all():
        return
    with torch.no_grad():
        next_state = experiment.frame.dynamics.advance(torch.from_numpy(pair[:1]), int(experiment.frame.steps[1]))[
            0
        ].numpy()
    error, size = np.sqrt(np.mean((next_state - pair[1]) ** 2)), np.sqrt(np.mean((pair[1] - pair[0]) ** 2))
    if error > 1e-2 * size:
        warnings.warn(
            f"the truth does not follow {experiment.frame.dynamics!r}: over one interval it is off by {error:.3g} "
            f"where it moves by {size:.3g}. Check dynamics= and the time units; go on if the model is wrong on purpose",
            XdanWarning,
            stacklevel=3,
        )


def imitate(experiment: Experiment, teacher: Any) -> Experiment:
    """Put a run in the truth's place: its analyses are what is aimed at, its forecasts what they start from.

    Raises
    ------
    ValueError
        If the run lacks one of them, is unfinished, or is of another record.
    """
    found = read_run(experiment, teacher, ("forecast", "analysis"), "teacher")
    return replace(experiment, truth=found["analysis"], forecast=found["forecast"])


def read_run(
    experiment: Experiment,
    run: xr.Dataset,
    names: Sequence[str],
    what: str = "run",
    extra: Mapping[str, int] | None = None,
) -> dict[str, xr.DataArray]:
    """Variables of a run on this record, with the dims (trajectory, time, *extra, *state).

    Raises
    ------
    TypeError
        If it is no Dataset.
    ValueError
        If the run lacks one of them, is unfinished, or is of another record.
    """
    if not isinstance(run, xr.Dataset):
        raise TypeError(f"{what} is a {type(run).__name__}: expected the Dataset that cycle() or baseline() returned")
    if run.attrs.get("xdan_status") == "unfinished":
        raise ValueError(f"the {what}'s store is unfinished; run the same call again to resume it")
    if missing := [name for name in names if name not in run]:
        raise ValueError(f"the {what} lacks {missing}; found {sorted(map(str, run.data_vars))}")
    model = experiment.frame.dynamics
    own = {**(extra or {}), **dict(zip(model.dims, model.shape, strict=True))}
    found = {name: _arrange(run[name], model, own)[0] for name in names}
    times = experiment.observation[TIME].values
    near = {TRAJECTORY: 0.0, TIME: 1e-3 * float(np.diff(times).min()) if len(times) > 1 else 1e-6}
    for name, dim in itertools.product(names, near):
        ours, theirs = experiment.observation[dim].values, found[name][dim].values
        if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=0, atol=near[dim]):
            raise ValueError(
                f"{what} and record differ in {dim}: {len(theirs)} labels there, {len(ours)} here; "
                "make the run on this record"
            )
    return found
