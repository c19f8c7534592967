"""Observing systems of a record: H and R are made from labelled or plain arrays, and checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

from ..core.checks import integer, real_array
from ..core.dynamics import Dynamics
from ..core.observing import (
    FunctionOperator,
    InterpolationOperator,
    LinearOperator,
    ObservingSystem,
    Operator,
    Positions,
    deviations_of,
)
from ..core.spaces import StateSpace
from ..core.twin import FIELD, INSTRUMENT, check_field_names, checked_labels, names_fields
from ..core.user_functions import call, check_function, shown_reason
from .blocks import array_to_tensor, tensor_to_array
from .fields import Part, in_order, in_order_twice, parts_of, whole_of
from .schema import OBS, OPERATOR, TIME, TRAJECTORY, time_dims

OF_FUNCTION = "xdan_of_function"  # attribute: H is a function, so no store holds it, and H does not interpolate


def operator_from(matrix_or_function: Any, dynamics: Dynamics, size: int | None = None) -> Operator:
    """Make an operator from the caller's H. If H is no matrix, the function is tried on two states.

    Parameters
    ----------
    matrix_or_function : matrix of shape (P, *state), xarray.DataArray with dims (obs, *state), Operator, or callable
        H. A callable is a torch function of flat states (..., N), or, for several fields, of a mapping of the fields'
        names to tensors (..., *shape). A mapping of fields' names to matrices observes these fields alone.
    dynamics : Dynamics
        The dynamics whose states H takes.
    size : int, optional
        P, the number of observations. By default a call of the function tells it.

    Raises
    ------
    TypeError
        If H is neither numbers nor a function.
    ValueError
        If shapes do not fit, or a function fails, is random, or mixes the states of a batch.
    """
    sites = math.prod(dynamics.shape)
    if isinstance(matrix_or_function, Operator):
        operator = matrix_or_function
        integer("operator.size", getattr(operator, "size", None), least=1)
    elif callable(matrix_or_function):
        several = dynamics.space.single is None
        function = _OfFields(matrix_or_function, dynamics.space) if several else matrix_or_function
        number = _observations_of(function, sites) if size is None else size
        operator = FunctionOperator(function, number)
    else:
        operator = LinearOperator(_matrix(matrix_or_function, dynamics))
    if size is not None and operator.size != size:
        raise ValueError(
            f"the observation operator gives {operator.size} observations, the record has {size}: expected the same"
        )
    if operator.as_matrix() is None:
        _try_out(operator, dynamics)
    return operator


@dataclass(frozen=True)
class _OfFields:
    """A function of flat states (..., N), made from a function of a mapping of fields (..., *shape)."""

    function: Callable[[dict[str, torch.Tensor]], torch.Tensor]
    space: StateSpace

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.space.unpack(x))


def _observations_of(function: Callable[[torch.Tensor], Any], sites: int) -> int:
    """The number of observations that a function makes from a state."""
    like = torch.zeros(2, sites, dtype=torch.float64)
    answer = _call(function, like)
    if not isinstance(answer, torch.Tensor) or answer.ndim != 2 or len(answer) != 2:
        kind = tuple(answer.shape) if isinstance(answer, torch.Tensor) else type(answer).__name__
        raise ValueError(
            f"operator= gave {kind} for states of shape (2, {sites}): expected a tensor (2, P); it must act "
            "on the last axis"
        )
    return answer.shape[-1]


def _matrix(values: Any, dynamics: Dynamics) -> torch.Tensor:
    """H as a matrix (P, N) of float64."""
    if not names_fields(values):
        return _matrix_of(values, whole_of(dynamics), "the observation operator")
    check_field_names("operator", values, dynamics.space)
    parts = [part for part in parts_of(dynamics) if part.field is not None]
    blocks = {
        part.field.name: _matrix_of(values[part.field.name], part, f"the observation operator of {part.field.name!r}")
        for part in parts
        if part.field is not None and part.field.name in values
    }
    rows = {name: len(block) for name, block in blocks.items()}
    if len(set(rows.values())) > 1:
        raise ValueError(f"the observation operators of the fields have {rows} rows: expected as many of each")
    count = next(iter(rows.values()))
    blank = torch.zeros(count, 1, dtype=torch.float64)
    return torch.cat(
        [blocks.get(part.field.name, blank.expand(count, math.prod(part.shape))) for part in parts if part.field], 1
    )


def _matrix_of(values: Any, part: Part, what: str) -> torch.Tensor:
    """H for a part of the state, (P, components of the part), float64."""
    sites = math.prod(part.shape)
    if isinstance(values, xr.DataArray):
        dims = OPERATOR.dims_in(part.dims, (OBS,))
        if set(values.dims) != set(dims):
            raise ValueError(f"{what} has dims {values.dims}: expected {dims}")
        for dim in part.dims:
            values = in_order(values, dim, part)
        values = values.transpose(*dims)
    matrix = array_to_tensor(real_array("operator", values, finite=False)).double()
    if matrix.shape[1:] not in ((sites,), part.shape) or not len(matrix):
        raise ValueError(f"{what} has shape {tuple(matrix.shape)}: expected (P, {sites}), a row for each observation")
    return matrix.reshape(len(matrix), sites)


def _try_out(operator: Operator, dynamics: Dynamics) -> None:
    """Refuse an operator that fails, is random, or mixes the states of a batch."""
    check_function(operator, dynamics.start_states().flatten(1), "operator=")


def _call(function: Callable[[torch.Tensor], Any], states: torch.Tensor) -> Any:
    try:
        with torch.no_grad():
            return call(function, states, "operator=")
    except ValueError:
        raise
    except Exception as reason:
        raise ValueError(
            f"operator= failed for states of shape {tuple(states.shape)} ({type(reason).__name__}: "
            f"{shown_reason(reason)}): expected a matrix (P, sites), or a torch function of states (..., sites)"
        ) from reason


def observed_sizes(dynamics: Dynamics, operator: Operator | None) -> dict[str, int]:
    """Dims and sizes of the observations of one time: the dims of the state, or `obs` for an operator."""
    if operator is None:
        return dict(zip(dynamics.dims, dynamics.shape, strict=True))
    return {OBS: operator.size}


def read_positions(labels: Any, dynamics: Dynamics, observation: xr.DataArray) -> Positions | None:
    """Positions of the observations of a record; None if nothing tells them.

    Parameters
    ----------
    labels : mapping of str to array, or None
        The caller's positions, in the form that `TwinExperiment` takes. For a dim that is not among them, coordinates
        of the observations are read: `obs_x` or `x` along `obs`, or a coordinate with the dim's standard name. The
        coordinate `field` names the field of each observation.
    dynamics : Dynamics
    observation : xarray.DataArray

    Raises
    ------
    TypeError
        If `labels` are no positions.
    ValueError
        If positions do not fit the record, vary along `trajectory`, or lie outside of the geometry.
    """
    known = {} if labels is None else checked_labels(labels)
    if OBS not in observation.dims:
        if known:
            raise ValueError(
                f"{observation.name!r} has dims {observation.dims}, without {OBS!r}: positions are those of "
                f"observations along {OBS!r}; expected that dim, or no positions="
            )
        return None
    for field in dynamics.space:
        for dim, coordinate in field.geometry.coordinates.items():
            standard = coordinate.attributes.get("standard_name")
            for name, one in observation.coords.items():
                fits = name in (f"{OBS}_{dim}", dim) or (standard and one.attrs.get("standard_name") == standard)
                if OBS in one.dims and fits:
                    known.setdefault(dim, one)
    if FIELD in observation.coords and observation.coords[FIELD].dims == (OBS,):
        known.setdefault(FIELD, observation.coords[FIELD].values.astype(object))
    named = [TIME, *time_dims(observation)]
    times = next((observation.sizes[dim] for dim in named if dim in observation.dims), None)
    positions = positions_of(known, dynamics, times)
    if positions is not None and positions.size != observation.sizes[OBS]:
        raise ValueError(
            f"there are positions of {positions.size} observations, the record has {observation.sizes[OBS]}: expected "
            "the same"
        )
    return positions


def positions_of(labels: Mapping[str, Any], dynamics: Dynamics, times: int | None) -> Positions | None:
    """Make positions from labels of observations; None if no dim of the state is among the labels.

    Parameters
    ----------
    labels : mapping
    dynamics : Dynamics
    times : int, optional
        Length of the record, along which positions may move. Without a length, positions must be constant.

    Raises
    ------
    ValueError
    """
    coordinates = {}
    for dim, values in labels.items():
        if dim in (FIELD, INSTRUMENT):
            continue
        if isinstance(values, xr.DataArray):
            if TRAJECTORY in values.dims:
                raise ValueError(
                    f"the positions {values.name!r} vary along 'trajectory': expected dims ('obs',) or ('time', "
                    "'obs'), the same positions for all trajectories"
                )
            values = values.transpose(..., OBS) if OBS in values.dims else values
        coordinates[dim] = array_to_tensor(real_array(f"positions[{dim!r}]", values, finite=False)).double()
    if not coordinates:
        return None
    positions = Positions(dynamics.space, coordinates, labels.get(FIELD))
    if positions.times is not None and positions.times != times:
        length = "a record of some length: an endless twin takes fixed ones" if times is None else f"{times}"
        raise ValueError(f"positions of {positions.times} times: expected {length}")
    return positions


def read_operator(
    matrix_or_function: Any, dynamics: Dynamics, observation: xr.DataArray, positions: Positions | None = None
) -> Operator | None:
    """H of a record; None if the observations lie at the state's sites.

    Parameters
    ----------
    matrix_or_function : matrix, DataArray, Operator, callable or None
        H as the Dataset or the caller has it, in one of the forms that `operator_from` takes.
    dynamics : Dynamics
    observation : xarray.DataArray
        The observations. They have the dim `obs` if an operator makes them.
    positions : Positions, optional
        Positions to which the state is interpolated, if there is no other H.

    Raises
    ------
    ValueError
        If observations and operator do not fit each other, or one of the two is missing.
    """
    if OBS not in observation.dims:
        if matrix_or_function is not None:
            raise ValueError(
                f"{observation.name!r} has dims {observation.dims}, without {OBS!r}: an observation operator gives "
                f"observations along {OBS!r}; expected that dim, or no operator where sites are observed"
            )
        return None
    if matrix_or_function is None and positions is not None and not observation.attrs.get(OF_FUNCTION):
        return InterpolationOperator.at(positions)
    if matrix_or_function is None:
        raise ValueError(
            f"{observation.name!r} has the dim {OBS!r} and the Dataset no 'observation_operator': pass operator=, a "
            f"matrix of shape ({observation.sizes[OBS]}, sites) or a torch function of states (..., sites)"
        )
    return operator_from(matrix_or_function, dynamics, observation.sizes[OBS])


def read_observing(
    error: Any,
    operator: Operator | None,
    observation: xr.DataArray,
    part: Part | None = None,
    positions: Positions | None = None,
) -> ObservingSystem:
    """H and R of a record, or of one of its fields, float64 on the CPU.

    Parameters
    ----------
    error : xarray.DataArray or array_like
        R as the Dataset or the caller has it: standard deviations, which may differ in time, or a covariance. A
        mapping holds the standard deviation of each instrument; the observations' coordinate `instrument` names the
        instruments.
    operator : Operator or None
        H.
    observation : xarray.DataArray, dims (trajectory, time, ...)
        The arranged observations.
    part : Part, optional
        The part of the state that is observed directly. Errors are brought into the order of its geometry.
    positions : Positions, optional
        Positions of the observations.

    Raises
    ------
    ValueError
        If R has the wrong size or other labels, is not positive, or is not positive definite.
    """
    dims, shape, times = observation.dims[2:], observation.shape[2:], observation.sizes[TIME]
    if isinstance(error, Mapping) and error:
        error = _of_instruments(error, observation)
    if not isinstance(error, xr.DataArray):
        return observing_from(errors("observation_error", error), shape, operator, positions=positions)
    variable = error
    if TIME not in variable.dims:
        variable = variable.rename(dict.fromkeys(time_dims(variable)[:1], TIME))
    in_time = TIME in variable.dims
    if TRAJECTORY in variable.dims:
        raise ValueError(
            f"observation error {variable.name!r} varies along 'trajectory': expected dims () or {dims}, with 'time' "
            f"before them where it changes in time, or {dims} twice for a covariance"
        )
    if in_time and variable.sizes[TIME] != times:
        raise ValueError(f"observation error {variable.name!r} has {variable.sizes[TIME]} times: expected {times}")
    lead = [TIME] if in_time else []
    if part is not None:
        variable = in_order_twice(variable, part)
    for dim in (*lead, *dims):
        labelled = dim in variable.coords and dim in observation.coords
        if labelled and not np.array_equal(variable[dim].values, observation[dim].values):
            raise ValueError(
                f"observation error {variable.name!r} has other labels along {dim!r} than the observations, or in "
                "another order: bring them into the order of the observations with .sel()"
            )
    if set(dims) <= set(variable.dims):
        variable = variable.transpose(*lead, *dims, ...)
    else:
        variable = variable.transpose(*lead, ...)
    values = errors(f"observation error {variable.name!r}", variable)
    return observing_from(values, shape, operator, times if in_time else None, positions)


def _of_instruments(errors: Mapping[str, float], observation: xr.DataArray) -> xr.DataArray:
    """Standard deviations of observations, from the coordinate `instrument` that names the instrument of each."""
    if INSTRUMENT not in observation.coords:
        raise ValueError(
            f"observation errors of the instruments {list(errors)}, and {observation.name!r} has the coordinates "
            f"{sorted(map(str, observation.coords))}: expected a coordinate {INSTRUMENT!r} of words"
        )
    names = observation.coords[INSTRUMENT]
    values = np.array(deviations_of(names.values.ravel().tolist(), errors)).reshape(names.shape)
    return xr.DataArray(values, dims=names.dims, name=INSTRUMENT)


def errors(label: str, value: Any) -> torch.Tensor:
    """Standard deviations or covariances in float64.

    Raises
    ------
    TypeError
        If a value is not a real number.
    ValueError
        If rows differ in length.
    """
    return array_to_tensor(real_array(label, value, finite=False))  # the class of R refuses wrong values


def observing_from(
    values: torch.Tensor,
    shape: tuple[int, ...],
    operator: Operator | None = None,
    times: int | None = None,
    positions: Positions | None = None,
) -> ObservingSystem:
    """H and R, from standard deviations (one number, or one for each observation), or from a covariance matrix.

    Parameters
    ----------
    values : Tensor
    shape : tuple of int
        Shape of the observations of one time.
    operator : Operator, optional
        H; by default the state itself is observed.
    times : int, optional
        Number of times, if standard deviations differ in time: the length of the first axis of `values`.
    positions : Positions, optional
        Positions of the observations of an operator.

    Raises
    ------
    ValueError
        If `values` have another shape.
    """
    size = math.prod(shape)
    if times is not None:
        if tuple(values.shape) not in ((times,), (times, *shape)):
            raise ValueError(
                f"observation error in time has shape {tuple(values.shape)}: expected ({times},) or "
                f"{(times, *shape)}, standard deviations; a covariance that changes in time is not supported"
            )
        return ObservingSystem(std=values.reshape(times, -1), operator=operator, positions=positions, in_time=True)
    if values.ndim == 0:
        return ObservingSystem(std=values, operator=operator, positions=positions)
    if tuple(values.shape) == shape:
        return ObservingSystem(std=values.reshape(size), operator=operator, positions=positions)
    if tuple(values.shape) == (*shape, *shape):
        return ObservingSystem(covariance=values.reshape(size, size), operator=operator, positions=positions)
    raise ValueError(
        f"observation error has shape {tuple(values.shape)}: expected () or {shape} for standard deviations, "
        f"or {(*shape, *shape)} for a covariance matrix"
    )


def identity(observing: ObservingSystem, dynamics: Dynamics) -> list[np.ndarray[Any, Any]]:
    """Arrays by which experiments differ: a step of the dynamics and its time, R, and H of a few states."""
    tensors = [dynamics.fingerprint(), observing.std, observing.covariance]
    arrays = [tensor_to_array(tensor) for tensor in tensors if tensor is not None]
    if not dynamics.autonomous:
        arrays.append(np.array(dynamics.model_time))
    if observing.operator is not None:
        sites = math.prod(dynamics.shape)
        states = torch.linspace(-3.0, 3.0, 3 * sites, dtype=torch.float64).reshape(3, sites)
        observed = [tensor_to_array(part).round(9) for part in observing.operator.identity(states)]
        if not all(np.isfinite(part).all() for part in observed):  # H may need other values, as a logarithm does
            states = dynamics.start_states().double().flatten(1)
            observed = [tensor_to_array(part.float()) for part in observing.operator.identity(states)]
        arrays += observed
    if observing.positions is not None:
        arrays += [tensor_to_array(part) for part in observing.positions.identity()]
    return arrays


def observing_of_fields(
    errors_of: Mapping[str, ObservingSystem], dynamics: Dynamics, times: int | None = None
) -> ObservingSystem:
    """R of a packed state, from the R of each observed field.

    Parameters
    ----------
    errors_of : mapping of str to ObservingSystem
        R of each observed field, by the fields' names. Fields that are not observed get the root of the mean variance
        of the others, so that a mean over R does not change.
    dynamics : Dynamics
    times : int, optional
        Number of times, if standard deviations differ in time.

    Raises
    ------
    ValueError
        If one field has a covariance and another has errors that differ in time.
    """
    sizes = {field.name: field.geometry.size for field in dynamics.space}
    in_time = any(one.in_time for one in errors_of.values())
    full = any(one.covariance is not None for one in errors_of.values())
    if full and in_time:
        raise ValueError(
            "one field has a covariance of its errors and another errors that differ in time: expected standard "
            "deviations of all, or covariances that are constant"
        )
    typical = math.sqrt(float(np.mean([float(one.error_variance().mean()) for one in errors_of.values()])))
    lead = (times,) if in_time and times is not None else ()
    deviations = []
    for name, size in sizes.items():
        one = errors_of.get(name)
        variance = torch.full((), typical**2, dtype=torch.float64) if one is None else one.error_variance()
        deviation = one.std if one is not None and one.std is not None else variance.sqrt()
        deviations.append(deviation.double().expand(*lead, size))
    if not full:
        return ObservingSystem(std=torch.cat(deviations, -1), in_time=in_time)
    blocks = []
    for (name, _), deviation in zip(sizes.items(), deviations, strict=True):
        one = errors_of.get(name)
        covariance = None if one is None else one.covariance
        blocks.append((deviation**2).diag() if covariance is None else covariance)
    return ObservingSystem(covariance=torch.block_diag(*blocks))
