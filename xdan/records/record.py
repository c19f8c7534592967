"""A Dataset understood: its variables are taken by their roles, arranged, and made into a record."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import Any, TypedDict, TypeVar, Unpack

import numpy as np
import xarray as xr

from ..core.checks import shown
from ..core.dynamics import Dynamics, check_declarations, dynamics_from_json
from ..core.observing import Sites
from .arranging import arrange
from .blocks import Setup
from .climatology import spaced, with_climatology
from .observing import observed_sizes, read_observing, read_operator, read_positions
from .schema import (
    DIGEST,
    ERROR,
    ERROR_COVARIANCE,
    OBSERVATION,
    OPERATOR,
    TRAJECTORY,
    TRUTH,
    changed_descriptions,
    find,
)
from .store import STATUS, check_contents, check_whole
from .times import first_model_time, steps_between
from .values import check_units, refuse_fill_values

Labelled = TypeVar("Labelled", xr.Dataset, xr.DataArray)


class RecordWords(TypedDict, total=False):
    """What a caller may say of a Dataset where its roles and attributes do not; each may be left out, or None.

    Attributes
    ----------
    dynamics : Dynamics
        Where the attributes name none that is registered.
    truth, observation : str
        Names of the variables.
    observation_error : str, float, array or mapping
        A variable's name, standard deviations (scalar or one per observation), or R as a matrix; or the deviation of
        each instrument that the observations' coordinate `instrument` names.
    positions : mapping of str to array
        Where observations along `obs` lie, as of a `TwinExperiment`, where no coordinates say it.
    operator : str, array or callable
        H where observations lie along `obs`: a variable's name, a matrix, or a torch function of states (..., N).
    climatology : array_like, DataArray or "record"
        States (sample, *state) that stand for the dynamics' own climatology; "record" takes them from the truth.
    """

    dynamics: Dynamics | None
    truth: str | None
    observation: str | None
    observation_error: Any
    operator: Any
    climatology: Any
    positions: Any


@dataclass(frozen=True)
class LabelledRecord:
    """A record as the verbs need it: lazy arrays of one order of dims, and a small set-up.

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

    def with_its_dims(self, result: Labelled) -> Labelled:
        """A result without the dim `trajectory` where the record has none; a label of the trajectory is kept."""
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
        check_declarations(dynamics)
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


@dataclass(frozen=True)
class _Variables:
    """The variables of a record by their roles, as the Dataset or the caller has them.

    Attributes
    ----------
    observation : xarray.DataArray
    truth : xarray.DataArray or None
    error : xarray.DataArray or array_like
        R: standard deviations, or a covariance.
    operator : xarray.DataArray, array_like, callable or None
    """

    observation: xr.DataArray
    truth: xr.DataArray | None
    error: Any
    operator: Any


def _find_variables(ds: xr.Dataset, words: RecordWords, needs_truth: str | None) -> _Variables:
    """Find every role, by the caller's words or by what the Dataset says."""
    listed = sorted(map(str, ds.data_vars))
    observation = find(ds, OBSERVATION, words.get("observation"))
    if observation is None:
        raise ValueError(
            f"no observations: expected a variable 'observation', found {listed}; name it with observation="
        )
    truth = find(ds, TRUTH, words.get("truth"))
    if truth is None and needs_truth:
        raise ValueError(
            f"{needs_truth} needs the truth: expected a variable 'truth', found {listed}; name it with truth="
        )
    operator, error = words.get("operator"), words.get("observation_error")
    if operator is None or isinstance(operator, str):
        operator = find(ds, OPERATOR, operator)
    if error is None or isinstance(error, str):
        error = find(ds, ERROR, error)
    if error is None:
        error = find(ds, ERROR_COVARIANCE)
    if error is None:
        raise ValueError(
            "no observation error: expected a variable 'observation_error' (standard deviation) or "
            "'observation_error_covariance'; or pass observation_error="
        )
    return _Variables(observation, truth, error, operator)


def read(ds: xr.Dataset, *, needs_truth: str | None = None, **words: Unpack[RecordWords]) -> LabelledRecord:
    """Understand a Dataset, reading its coordinates and attributes but none of its data.

    With climatology="record" some states of its truth are read.

    Parameters
    ----------
    ds : xarray.Dataset
    needs_truth : str, optional
        What the truth is needed for, if it is.
    **words
        As in `RecordWords`.

    Raises
    ------
    TypeError
        For what is no Dataset, or another word.
    ValueError
        For whatever is missing, misnamed or of the wrong size; the message says what was found and the remedy.
    """
    if not isinstance(ds, xr.Dataset):
        raise TypeError(f"ds={shown(ds)}: expected the Dataset of a twin or of a record")
    check_words(words)
    if ds.attrs.get(STATUS) == "unfinished":
        raise ValueError(
            "the store is unfinished: the run that writes it was cut short. Run the same call again to resume it"
        )
    check_contents(ds)
    model = read_dynamics(ds, words.get("dynamics"))
    variables = _find_variables(ds, words, needs_truth)
    check_whole(ds, variables.observation, may_be_empty=True)
    check_whole(ds, variables.truth)

    state_sizes = dict(zip(model.dims, model.shape, strict=True))
    truth = None if variables.truth is None else arrange(variables.truth, model, state_sizes)
    of_record = None if truth is None else partial(_own_states, truth)
    model = with_climatology(model, words.get("climatology"), of_record)
    positions = read_positions(words.get("positions"), model, variables.observation)
    operator = read_operator(variables.operator, model, variables.observation, positions)
    observation = arrange(variables.observation, model, observed_sizes(model, operator))
    if positions is not None and not bool((there := positions.there()).all()):
        observation = observation.where(xr.DataArray(there.numpy(), dims=observation.dims[-there.ndim :]))
    if truth is not None:
        if operator is None:
            check_units(truth, observation)
        if truth.shape[:2] != observation.shape[:2]:
            raise ValueError(
                f"truth has sizes {dict(truth.sizes)}, observation {dict(observation.sizes)}: expected the same"
            )

    setup = Setup(
        dynamics=model if model.autonomous else model.starting_at(first_model_time(observation, model)),
        observing=read_observing(variables.error, operator, observation, positions),
        steps=steps_between(observation, model),
        trajectory=np.asarray(observation[TRAJECTORY].values, dtype=np.int64),
        dtype=_computing_dtype(observation.dtype),
    )
    bare = TRAJECTORY not in variables.observation.dims
    unlabelled = bare and TRAJECTORY not in ds.coords
    return LabelledRecord(setup, observation, truth, bare, sites=_read_sites(ds), unlabelled=unlabelled)


def _own_states(truth: xr.DataArray) -> xr.DataArray:
    """States of a truth that stand for its climate, read."""
    states = spaced(truth).compute()
    refuse_fill_values(states.to_numpy(), str(truth.name))
    return states


def check_words(words: Any) -> None:
    """Refuse arguments beyond those that say what plays which role in a record.

    Raises
    ------
    TypeError
    """
    known = list(RecordWords.__annotations__)
    if unknown := [name for name in words if name not in known]:
        raise TypeError(f"{unknown[0]}={shown(words[unknown[0]])}: expected no argument beyond {known}")


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
