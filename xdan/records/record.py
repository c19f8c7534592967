"""A Dataset understood: what it must hold, found, checked and explained when it does not."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict, TypeVar

import cf_xarray  # noqa: F401
import numpy as np
import torch
import xarray as xr

from ..core.checks import XdanWarning, shown
from ..core.dynamics import Dynamics, dynamics_from_json
from ..core.observing import ObservingSystem, Sites
from ..core.user_functions import finest
from .observing import read_error, read_operator
from .schema import DIGEST, OBS, TIME, TRAJECTORY, changed_descriptions, check_order, find
from .store import check_contents, check_whole
from .times import intervals_of
from .values import check_packing, check_units, fill_text

Labelled = TypeVar("Labelled", xr.Dataset, xr.DataArray)

LEADING_TRAJECTORIES, LEADING_CYCLES = 64, 400  # what of a record is looked at, and tuned on
_FOLLOWED = 8  # trajectories of a truth that are followed over an interval


class RecordWords(TypedDict, total=False):
    """The words by which a Dataset is read, where its attributes and names do not say enough.

    Attributes
    ----------
    dynamics : Dynamics
        Where the attributes name none.
    truth, observation : str
        Names of the variables, where roles do not tell.
    observation_error : str, float or array
        A variable's name, or standard deviations (scalar or one per observation), or R as a matrix.
    operator : str, array or callable
        H where observations lie along `obs`: a variable's name, a matrix, or a torch function of states (..., N).
    """

    dynamics: Dynamics | None
    truth: str | None
    observation: str | None
    observation_error: Any
    operator: Any


@dataclass(frozen=True)
class Setup:
    """What is known of a record beside its data; small, so that it travels with every block.

    Attributes
    ----------
    dynamics : Dynamics
    observing : ObservingSystem
        Float64, on the CPU; with the observation operator.
    steps : numpy.ndarray of int, length K
        Model steps before each analysis; 0 before the first.
    trajectory : numpy.ndarray of int, length R
        Labels that key random draws.
    dtype : numpy.dtype
        Floating type to compute in.
    """

    dynamics: Dynamics
    observing: ObservingSystem
    steps: np.ndarray[Any, np.dtype[np.int64]]
    trajectory: np.ndarray[Any, np.dtype[np.int64]]
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class LabelledRecord:
    """A Dataset that was understood: what the verbs need of it.

    Attributes
    ----------
    setup : Setup
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

    setup: Setup
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
    except (TypeError, ValueError, RecursionError):
        description = None
    if not isinstance(description, dict):
        raise ValueError(
            f"the attribute dynamics={shown(ds.attrs['dynamics'])} is not JSON of a name and its parameters, as "
            "expected; pass dynamics="
        )
    model = dynamics_from_json(description)
    if changed := changed_descriptions(ds.attrs):
        raise ValueError(
            f"the attributes {changed} are not what xdan wrote: they were changed or damaged. Expected them as they "
            f"were; pass dynamics=, or drop the attribute {DIGEST!r} where they were changed on purpose"
        )
    return model


def read(
    ds: xr.Dataset,
    *,
    dynamics: Dynamics | None = None,
    truth: str | None = None,
    observation: str | None = None,
    observation_error: Any = None,
    operator: Any = None,
    needs_truth: str | None = None,
) -> LabelledRecord:
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
    if not isinstance(ds, xr.Dataset):
        raise TypeError(f"ds={shown(ds)}: expected the Dataset of a twin or of a record")
    if ds.attrs.get("xdan_status") == "unfinished":
        raise ValueError(
            "the store is unfinished: the run that writes it was cut short. Run the same call again to resume it"
        )
    check_contents(ds)
    model = read_dynamics(ds, dynamics)
    y = find(ds, "observation", observation)
    if y is None:
        raise ValueError(
            f"no observations: expected a variable 'observation', found {sorted(map(str, ds.data_vars))}; "
            "name it with observation="
        )
    check_whole(ds, y, may_be_empty=True)
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
        check_whole(ds, x)
        if seeing is None:
            check_units(x, y)
        x, _ = _arrange(x, model, state)
        if x.shape[:2] != y.shape[:2]:
            raise ValueError(f"truth has sizes {dict(x.sizes)}, observation {dict(y.sizes)}: expected the same")
    setup = Setup(
        dynamics=model,
        observing=read_error(ds, y, seeing, observation_error),
        steps=_steps(y, model),
        trajectory=np.asarray(y[TRAJECTORY].values, dtype=np.int64),
        dtype=_computing_dtype(y.dtype),
    )
    unlabelled = bare and TRAJECTORY not in ds.coords
    return LabelledRecord(setup, y, x, bare, sites=_read_sites(ds), unlabelled=unlabelled)


def _computing_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Floating type to compute in: single or double precision, which torch has."""
    single = np.result_type(dtype, np.float32)
    return np.dtype(np.float32 if single == np.float32 else np.float64)


def _read_sites(ds: xr.Dataset) -> Sites | None:
    """The observing network that the attributes describe, if they do."""
    try:
        return Sites.from_json(json.loads(ds.attrs["observing"]))
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _arrange(variable: xr.DataArray, model: Dynamics, expected: Mapping[str, int]) -> tuple[xr.DataArray, bool]:
    """Give a variable the dims (trajectory, time, *expected), the latter in one chunk; check sizes, labels and type."""
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
    dims = tuple(expected)
    missing = [dim for dim in dims if dim not in variable.dims]
    if missing:
        raise ValueError(
            f"{variable.name!r} has dims {variable.dims}, without {missing}: expected the dynamics' state dims "
            f"{model.dims}; rename the record's dims"
        )
    extra = [dim for dim in variable.dims if dim not in (TRAJECTORY, TIME, *dims)]
    if extra:
        raise ValueError(
            f"{variable.name!r} has dims {extra} beyond those expected, (trajectory, time, {', '.join(dims)})"
        )
    sizes = {dim: variable.sizes[dim] for dim in dims}
    if sizes != expected:
        raise ValueError(
            f"{variable.name!r} has state sizes {sizes}, the dynamics {model!r} expects {dict(expected)}; "
            "pass the dynamics= of this record"
        )
    for dim in set(dims) & set(model.dims):
        _check_labels(variable, dim)
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


def _check_labels(variable: xr.DataArray, dim: str) -> None:
    """Refuse labels of the state that are missing or stand twice: variables are matched by them."""
    if dim not in variable.coords:
        return
    labels = variable[dim]
    if bool(labels.isnull().any()) or len(np.unique(labels.values.astype(object).astype(str))) < labels.size:
        raise ValueError(
            f"{variable.name!r} has labels of {dim!r} that are missing or stand twice, "
            f"{shown(labels.values.tolist())}: expected distinct ones, for example "
            f"ds.assign_coords({dim}=range(ds.sizes[{dim!r}]))"
        )


def _check_values(variable: xr.DataArray) -> None:
    """Refuse values that are no real numbers, and packed values and fill values that were not decoded."""
    if variable.dtype.kind not in "fiu":
        raise TypeError(f"{variable.name!r} is of dtype {variable.dtype}: expected real numbers")
    check_packing(variable)


def _steps(variable: xr.DataArray, model: Dynamics) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Model steps before each time, 0 before the first."""
    intervals, rounding = intervals_of(variable, model)
    steps = np.zeros(len(intervals) + 1, dtype=np.int64)
    whole = model.timestep * np.maximum(1, np.round(intervals / model.timestep))
    intervals = np.where(np.abs(intervals - whole) <= rounding, whole, intervals)
    for interval in np.unique(np.round(intervals, 9)):
        steps[1:][np.isclose(intervals, interval, rtol=1e-6, atol=2e-9)] = model.steps_in(float(interval))
    return steps


def check_observed(observation: xr.DataArray) -> None:
    """Refuse a record without a single observation, with infinite ones, or with fill values among them.

    Raises
    ------
    ValueError
        If every observation is NaN, some are infinite, or a value that stands for nothing is among them.
    """
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
    refuse_fill_values(leading(observation).to_numpy(), str(observation.name))


def refuse_fill_values(values: np.ndarray[Any, Any], name: str) -> None:
    """Refuse values that stand for nothing, such as -999.

    Raises
    ------
    ValueError
    """
    if text := fill_text(values, name):
        raise ValueError(text)


def leading(variable: xr.DataArray) -> xr.DataArray:
    """The first trajectories and cycles of a variable, which stand for all of it."""
    return variable.isel({TRAJECTORY: slice(0, LEADING_TRAJECTORIES), TIME: slice(0, LEADING_CYCLES)})


def check_follows(labelled: LabelledRecord) -> None:
    """Warn where the truth, which is read, does not follow the named dynamics."""
    if labelled.truth is not None and (text := astray(labelled.setup, beginning(labelled.truth).to_numpy())):
        warnings.warn(text, XdanWarning, stacklevel=3)


def beginning(truth: xr.DataArray) -> xr.DataArray:
    """The first interval of some trajectories, which `astray` looks at."""
    step = max(1, min(truth.sizes[TRAJECTORY], LEADING_TRAJECTORIES) // _FOLLOWED)
    return truth.isel({TRAJECTORY: slice(0, LEADING_TRAJECTORIES, step), TIME: slice(0, 2)})


def astray(setup: Setup, truth: np.ndarray[Any, Any]) -> str:
    """Say how far a truth is from the named dynamics over the first interval, or nothing where it follows.

    Parameters
    ----------
    setup : Setup
    truth : array, shape (R, K, *state)
    """
    if truth.shape[1] < 2:
        return ""
    some = truth[:, :2].astype(np.float64)
    some = some[np.isfinite(some).reshape(len(some), -1).all(1)]
    if not len(some):
        return ""
    start = finest(setup.dynamics.step, torch.from_numpy(some[:, 0].copy()))
    with torch.no_grad():
        after = setup.dynamics.advance(start, int(setup.steps[1])).double().numpy()
    axes = tuple(range(1, after.ndim))
    error = np.sqrt(np.mean((after - some[:, 1]) ** 2, axis=axes))
    size = np.sqrt(np.mean((some[:, 1] - some[:, 0]) ** 2, axis=axes))
    worst = int(np.argmax(np.where(np.isfinite(error), error - 1e-2 * size, np.inf)))
    if error[worst] <= 1e-2 * size[worst]:
        return ""
    return (
        f"the truth does not follow {setup.dynamics!r}: over one interval it is off by {error[worst]:.3g} where it "
        f"moves by {size[worst]:.3g}. Check dynamics= and the time units; go on if the model is wrong on purpose"
    )


def imitate(labelled: LabelledRecord, teacher: Any) -> LabelledRecord:
    """Put a run in the truth's place: a network is to make its analyses from its forecasts.

    Raises
    ------
    ValueError
        If the run lacks one of them, is unfinished, or is of another record.
    """
    states = read_run(labelled, teacher, ("forecast", "analysis"), "teacher")
    return replace(labelled, truth=states["analysis"], forecast=states["forecast"])


def read_run(
    labelled: LabelledRecord,
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
    check_contents(run)
    model = labelled.setup.dynamics
    sizes = {**(extra or {}), **dict(zip(model.dims, model.shape, strict=True))}
    variables = {}
    for name in names:
        check_whole(run, run[name])
        variables[name] = _arrange(run[name], model, sizes)[0]
        if labelled.truth is not None:
            check_units(run[name], labelled.truth, warns=False)
        for dim in (TRAJECTORY, TIME, *model.dims):
            _check_same_labels(labelled, variables[name], dim, what)
    return variables


def _check_same_labels(labelled: LabelledRecord, variable: xr.DataArray, dim: str, what: str) -> None:
    """Refuse a run's variable whose labels are not the record's."""
    reference = labelled.observation if dim in labelled.observation.dims else labelled.truth
    if reference is None or dim not in reference.coords or dim not in variable.coords:
        return
    ours, theirs = reference[dim].values, variable[dim].values
    numbers = all(np.issubdtype(labels.dtype, np.number) for labels in (ours, theirs))
    if dim == TIME and not numbers:
        raise ValueError(f"time of the {what} is of {theirs.dtype}: expected numbers, as in the record")
    near = 1e-3 * float(np.diff(ours).min()) if dim == TIME and len(ours) > 1 and numbers else 0.0
    relative = 0.0 if dim in (TRAJECTORY, TIME) else 1e-6  # labels of the state may be in single precision
    same = ours.shape == theirs.shape and (
        np.allclose(ours, theirs, rtol=relative, atol=near) if numbers else bool((ours == theirs).all())
    )
    if not same:
        raise ValueError(
            f"{what} and record differ in {dim}: expected {len(ours)} labels {shown(ours[:3].tolist())}, as in the "
            f"record; {variable.name!r} has {len(theirs)}, {shown(theirs[:3].tolist())}. Make the run on this record"
        )
