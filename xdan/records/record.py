"""How a Dataset is understood: variables are taken by their roles, arranged, and made into a record."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypedDict, TypeVar, Unpack

import numpy as np
import xarray as xr

from ..core.checks import shown
from ..core.dynamics import Dynamics, check_declarations, dynamics_from_json
from ..core.formats import data_format
from ..core.keywords import refuse_unknown
from ..core.observing import FieldSites, ObservingSystem, Operator, Positions, Sites
from ..core.twin import INSTRUMENT, check_field_names, names_fields
from .arranging import arrange, arrange_state, labels_of, reordered
from .blocks import Setup
from .climatology import spaced, with_climatology
from .fields import OneOrFields, Part, each, find_fields, observed_parts, parts_of, whole_of
from .model_errors import with_model_error
from .observing import observing_of_fields, read_observing, read_operator, read_positions
from .schema import (
    DIGEST,
    DUAL,
    ERROR,
    ERROR_COVARIANCE,
    OBS,
    OBSERVATION,
    OPERATOR,
    TIME,
    TRAJECTORY,
    TRUTH,
    TRUTH_DYNAMICS,
    Role,
    changed_descriptions,
    find,
)
from .store import STATUS, check_contents, check_whole
from .times import first_model_time, steps_between
from .units import check_units, check_units_of_parts
from .values import refuse_fill_values
from .wording import shares_words

Labelled = TypeVar("Labelled", xr.Dataset, xr.DataArray)


@shares_words
class RecordWords(TypedDict, total=False):
    """What a caller may say of a Dataset if its roles and attributes do not say it. Each word may be left out, or None.

    {record_words}
    """

    dynamics: Dynamics | None
    truth: str | Mapping[str, str] | None
    observation: str | Mapping[str, str] | None
    observation_error: Any
    operator: Any
    climatology: Any
    positions: Any
    model_error: Any


@dataclass(frozen=True)
class LabelledRecord:
    """A record as the verbs need it: lazy arrays with one order of dims, and a small set-up.

    Attributes
    ----------
    setup : Setup
    observation : xarray.DataArray, dims (trajectory, time, *state), or (trajectory, time, obs)
        The state's dims are those of its only field, or `state` for several fields, which are packed. NaN stands for
        what is not observed.
    truth : xarray.DataArray or None, dims (trajectory, time, *state)
    bare : bool
        Whether the Dataset has no dim `trajectory`.
    forecast : xarray.DataArray or None
        The forecast of a teacher, with the truth's dims. The teacher's analysis then stands in `truth`.
    sites : Sites, FieldSites or None
        The rule by which sites are observed, if the attributes tell it.
    unlabelled : bool
        Whether a bare record has no label of its trajectory, either.
    labels : mapping of str to xarray.DataArray
        Coordinates of trajectory, time and the fields' dims, from the record, in the geometries' order.
    observed : tuple of str
        Names of the variables that hold observations.
    observed_parts : tuple of Part
        The parts of the state that these variables hold.
    lazy : bool
        Whether the Dataset's observations are dask arrays.
    notes : tuple of str
        Sentences that say how results differ from the record.
    """

    setup: Setup
    observation: xr.DataArray
    truth: xr.DataArray | None
    bare: bool
    forecast: xr.DataArray | None = None
    sites: Sites | FieldSites | None = None
    unlabelled: bool = False
    labels: Mapping[Hashable, xr.DataArray] = field(default_factory=dict)
    observed: tuple[str, ...] = ()
    observed_parts: tuple[Part, ...] = ()
    lazy: bool = False
    notes: tuple[str, ...] = ()

    def with_its_dims(self, result: Labelled) -> Labelled:
        """Drop the dim `trajectory` of a result if the record has none. The label of the trajectory is kept."""
        if not self.bare or TRAJECTORY not in result.dims:
            return result
        return result.isel({TRAJECTORY: 0}, drop=self.unlabelled)


def read_dynamics(ds: xr.Dataset, dynamics: Dynamics | None) -> Dynamics:
    """Take the caller's dynamics, or the one that the attributes name.

    Raises
    ------
    ValueError
        If nothing names a dynamics, or its name is not registered.
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
            f"were; pass dynamics=, or, if they were changed on purpose, drop the attribute {DIGEST!r}"
        )
    return model


@dataclass(frozen=True)
class _Variables:
    """The variables of a record by their roles, from the Dataset or the caller.

    Attributes
    ----------
    observation : xarray.DataArray, or dict of DataArrays by field
    truth : xarray.DataArray, dict of DataArrays by field, or None
    error : xarray.DataArray, array_like, or dict of these by field
        R: standard deviations, or a covariance.
    operator : xarray.DataArray, array_like, callable, dict of these by field, or None
    """

    observation: OneOrFields
    truth: OneOrFields | None
    error: Any
    operator: Any


def _find_variables(
    ds: xr.Dataset, model: Dynamics, words: RecordWords, needs_truth: str | None, instead: str
) -> _Variables:
    """Find the variable of every role, by the caller's words or in the Dataset."""
    listed = sorted(map(str, ds.data_vars))
    fields = "" if model.space.single else f", or one for each field, such as 'observation_{model.space.names[0]}'"
    observation = find_fields(ds, OBSERVATION, model, words.get("observation"), all_fields=False)
    if observation is None:
        remedy = "name it with observation="
        if {"forecast", "analysis"} <= set(listed):
            remedy += ". This looks like a run: pass the record that it was made on"
        raise ValueError(f"no observations: expected a variable 'observation'{fields}, found {listed}; {remedy}")
    truth = find_fields(ds, TRUTH, model, words.get("truth"))
    if truth is None and needs_truth:
        fields = fields.replace("observation", "truth")
        raise ValueError(
            f"{needs_truth} needs the truth: expected a variable 'truth'{fields}, found {listed}; name it with truth="
            + (instead and f". Without a truth, {instead}")
        )
    operator = _find_values(ds, OPERATOR, model, words.get("operator"))
    error = words.get("observation_error")
    if isinstance(error, Mapping) and any(OBS in one.dims or INSTRUMENT in one.coords for one in each(observation)):
        error = dict(error)  # by instruments
    else:
        error = _find_values(ds, ERROR, model, error)
    covariance = find_fields(ds, ERROR_COVARIANCE, model, all_fields=False)
    if error is None:
        error = covariance
    elif isinstance(error, dict) and isinstance(covariance, dict):
        error = covariance | error
    if error is None:
        raise ValueError(
            f"no observation error: expected a variable 'observation_error' (standard deviation) or "
            f"'observation_error_covariance'{fields.replace('observation', 'observation_error')}; or pass "
            "observation_error="
        )
    return _Variables(observation, truth, error, operator)


def _find_values(ds: xr.Dataset, role: Role, model: Dynamics, word: Any) -> Any:
    """Find the variables of a role if the caller passes no values. A mapping may hold names and values."""
    if word is None or isinstance(word, str):
        return find_fields(ds, role, model, word, all_fields=False)
    if not names_fields(word):
        return word
    check_field_names(role.keyword, word, model.space)
    return {name: find(ds, role, one) if isinstance(one, str) else one for name, one in word.items()}


def read(
    ds: xr.Dataset, *, needs_truth: str | None = None, instead: str = "", **words: Unpack[RecordWords]
) -> LabelledRecord:
    """Understand a Dataset. Its coordinates and attributes are read, but none of its data.

    With climatology="record", some states of the truth are read, too.

    Parameters
    ----------
    ds : xarray.Dataset
    needs_truth : str, optional
        What needs the truth, in words for the message. By default the truth may be missing.
    instead : str
        What works without a truth, as an imperative for the message; "" if nothing does.
    **words
        The words of `RecordWords`.

    Raises
    ------
    TypeError
        If `ds` is no Dataset, or a word is unknown.
    ValueError
        If a variable is missing, has a wrong name or a wrong size. The message says what came and what to do.
    """
    if not isinstance(ds, xr.Dataset):
        raise TypeError(
            f"ds={shown(ds)}: expected the Dataset of a twin or of a record; xarray.open_zarr opens a store, and "
            "arrays go into an xarray.Dataset with names and dims"
        )
    check_words(words)
    data_format(ds.attrs, "the record")
    if ds.attrs.get(STATUS) == "unfinished":
        raise ValueError(
            "the store is unfinished: the run that writes it was cut short. Run the same call again to resume it"
        )
    check_contents(ds)
    model = with_model_error(read_dynamics(ds, words.get("dynamics")), ds, words.get("model_error"))
    variables = _find_variables(ds, model, words, needs_truth, instead)
    for one in each(variables.observation):
        check_whole(ds, one, may_be_empty=True)
    for one in each(variables.truth):
        check_whole(ds, one)
    first = next(iter(each(variables.observation)))

    truth = None if variables.truth is None else arrange_state(variables.truth, model, TRUTH.name)
    of_record = None if truth is None else partial(_own_states, truth, model)
    model = with_climatology(model, words.get("climatology"), of_record)
    positions = read_positions(words.get("positions"), model, first)
    operator = _read_operator(variables, model, positions)
    if operator is None:
        observation = arrange_state(variables.observation, model, OBSERVATION.name)
    else:
        observation = arrange(first, whole_of(model), {OBS: operator.size})
    if positions is not None and not bool((there := positions.there()).all()):
        observation = observation.where(xr.DataArray(there.numpy(), dims=observation.dims[-there.ndim :]))
    _check_units(variables, model, operator is None)
    if truth is not None:
        for dim in (TRAJECTORY, TIME):
            if truth.sizes[dim] != observation.sizes[dim]:
                raise ValueError(
                    f"truth has sizes {dict(truth.sizes)}, observation {dict(observation.sizes)}: expected the same"
                )

    setup = Setup(
        dynamics=model if model.autonomous else model.starting_at(first_model_time(observation, model)),
        observing=_read_observing(variables, model, operator, observation, positions),
        steps=steps_between(observation, model),
        trajectory=np.asarray(observation[TRAJECTORY].values, dtype=np.int64),
        dtype=_computing_dtype(observation.dtype),
        other_truth=TRUTH_DYNAMICS in ds.attrs,
    )
    bare = TRAJECTORY not in first.dims
    labels, notes = dict(observation.coords), reordered(variables.observation, whole_of(model))
    if model.space.single is None:
        of_fields, notes = labels_of(model, variables.observation, variables.truth)
        labels = {name: one for name, one in labels.items() if set(one.dims) <= {TRAJECTORY, TIME}} | of_fields
    return LabelledRecord(
        setup,
        observation,
        truth,
        bare,
        sites=_read_sites(ds, model),
        unlabelled=bare and TRAJECTORY not in ds.coords,
        labels=labels,
        observed=tuple(str(one.name) for one in each(variables.observation)),
        observed_parts=observed_parts(model, setup.observing, _observed_names(variables, model)),
        lazy=any(one.chunks is not None for one in each(variables.observation)),
        notes=tuple(notes),
    )


def _observed_names(variables: _Variables, model: Dynamics) -> list[str]:
    """Names of the fields that are observed; all of them if the observations are packed."""
    return list(variables.observation) if isinstance(variables.observation, dict) else model.space.names


def _read_operator(variables: _Variables, model: Dynamics, positions: Positions | None) -> Operator | None:
    """H; None if the observations lie at the state's sites."""
    if isinstance(variables.observation, dict):
        if variables.operator is not None:
            names = [str(one.name) for one in each(variables.observation)]
            raise ValueError(
                f"there is an observation operator, and the observations {names} are of the state's fields: expected "
                f"one variable with the dim {OBS!r} that it gives, named with observation=; or no operator"
            )
        return None
    return read_operator(variables.operator, model, variables.observation, positions)


def _read_observing(
    variables: _Variables,
    model: Dynamics,
    operator: Operator | None,
    observation: xr.DataArray,
    positions: Positions | None,
) -> ObservingSystem:
    """H and R."""
    error = variables.error
    whole = whole_of(model) if operator is None else None
    of_instruments = not isinstance(variables.observation, dict) and INSTRUMENT in observation.coords
    if not isinstance(error, dict) or not error or operator is not None or of_instruments:
        return read_observing(error, operator, observation, whole, positions)
    if not isinstance(variables.observation, dict):
        raise ValueError(
            f"there are observation errors of the fields {list(error)}, and the observations {observation.name!r} are "
            "of no field: expected one observation_error for all of them"
        )
    if all(INSTRUMENT in one.coords for one in each(variables.observation)) and set(error).isdisjoint(
        model.space.names
    ):
        error = dict.fromkeys(variables.observation, error)
    if missing := [name for name in variables.observation if name not in error]:
        raise ValueError(
            f"the observed fields {missing} have no error: expected a variable 'observation_error_{missing[0]}', or "
            f"observation_error={{{missing[0]!r}: ...}}"
        )
    systems = {}
    for part in parts_of(model):
        if part.field is not None and (variable := variables.observation.get(part.field.name)) is not None:
            of_field = arrange(variable, part, part.sizes)
            systems[part.field.name] = read_observing(error[part.field.name], None, of_field, part)
    return observing_of_fields(systems, model, observation.sizes[TIME])


def _check_units(variables: _Variables, model: Dynamics, direct: bool) -> None:
    """Refuse units that differ from the dynamics', or between truth and observations."""
    truth, observation = variables.truth, variables.observation
    if truth is not None:
        check_units_of_parts(truth, model)
    if direct:
        check_units_of_parts(observation, model)
        check_units_of_parts(_deviations(variables.error), model, difference=True)
        if isinstance(truth, xr.DataArray) and isinstance(observation, xr.DataArray):
            check_units(truth, observation)
        if isinstance(truth, dict) and isinstance(observation, dict):
            for name, variable in observation.items():
                check_units(truth[name], variable)


def _deviations(error: Any) -> OneOrFields:
    """The standard deviations that are labelled."""
    if isinstance(error, dict):
        return {name: one for name, one in error.items() if isinstance(_deviations(one), xr.DataArray)}
    labelled = isinstance(error, xr.DataArray) and not any(str(dim).endswith(DUAL) for dim in error.dims)
    return error if labelled else {}


def _own_states(truth: xr.DataArray, model: Dynamics) -> xr.DataArray:
    """Read states of a truth that stand for its climate."""
    states = spaced(truth).compute()
    refuse_fill_values(states.to_numpy(), str(truth.name), True, model)
    return states


def check_words(words: Any) -> None:
    """Refuse arguments that are not words of a record.

    Raises
    ------
    TypeError
        If an argument is not one of `RecordWords`.
    """
    refuse_unknown(words, RecordWords.__annotations__)


def _computing_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Floating type of the computation: single or double precision, as torch has both."""
    single = np.result_type(dtype, np.float32)
    return np.dtype(np.float32 if single == np.float32 else np.float64)


def _read_sites(ds: xr.Dataset, model: Dynamics) -> Sites | FieldSites | None:
    """The observing network that the attributes describe; None if they describe none."""
    try:
        description = json.loads(ds.attrs["observing"])
        if isinstance(description, dict) and description.get("name") == "fields":
            return FieldSites.from_json(description, model.space)
        return Sites.from_json(description)
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
