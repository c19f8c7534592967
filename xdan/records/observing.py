"""Observing systems of a record: H and R built from labelled or plain arrays, and checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cf_xarray  # noqa: F401
import numpy as np
import torch
import xarray as xr

from ..core.checks import integer, real_array
from ..core.dynamics import Dynamics
from ..core.observing import FunctionOperator, LinearOperator, ObservingSystem, Operator
from ..core.twin import TwinExperiment
from ..core.user_functions import call, check_function, shown_reason
from .blocks import array_to_tensor, tensor_to_array
from .schema import DUAL, OBS, OPERATOR, TIME, TRAJECTORY, check_order


def operator_from(matrix_or_function: Any, dynamics: Dynamics, size: int | None = None) -> Operator:
    """Make an operator of the caller's H, and try it on two states where it is no matrix.

    Parameters
    ----------
    matrix_or_function : matrix of shape (P, *state), xarray.DataArray with dims (obs, *state), Operator, or callable
        A callable is a torch function of flattened states (..., N).
    dynamics : Dynamics
    size : int, optional
        P, where it is known; a function is called otherwise.

    Raises
    ------
    TypeError
        For what is neither numbers nor a function.
    ValueError
        If shapes do not fit, or a function fails, is random, or mixes the states of a batch.
    """
    sites = math.prod(dynamics.shape)
    if isinstance(matrix_or_function, Operator):
        operator = matrix_or_function
        integer("operator.size", getattr(operator, "size", None), least=1)
    elif callable(matrix_or_function):
        number = _observations_of(matrix_or_function, sites) if size is None else size
        operator = FunctionOperator(matrix_or_function, number)
    else:
        operator = LinearOperator(_matrix(matrix_or_function, dynamics))
    if size is not None and operator.size != size:
        raise ValueError(
            f"the observation operator gives {operator.size} observations, the record has {size}: expected the same"
        )
    if operator.as_matrix() is None:
        _try_out(operator, dynamics)
    return operator


def _observations_of(function: Callable[[torch.Tensor], Any], sites: int) -> int:
    """How many observations a function gives for a state."""
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
    sites = math.prod(dynamics.shape)
    if isinstance(values, xr.DataArray):
        dims = OPERATOR.dims_in(dynamics.dims, (OBS,))
        if set(values.dims) != set(dims):
            raise ValueError(f"the observation operator has dims {values.dims}: expected {dims}")
        for dim in dynamics.dims:
            check_order(values, dim, dynamics)
        values = values.transpose(*dims)
    matrix = array_to_tensor(real_array("operator", values, finite=False))
    if matrix.shape[1:] not in ((sites,), dynamics.shape) or not len(matrix):
        raise ValueError(
            f"the observation operator has shape {tuple(matrix.shape)}: expected (P, {sites}), a row for each "
            "observation"
        )
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
    """Dims of the observations of one time, and their sizes: those of the state, or `obs` of an operator."""
    if operator is None:
        return dict(zip(dynamics.dims, dynamics.shape, strict=True))
    return {OBS: operator.size}


def read_operator(matrix_or_function: Any, dynamics: Dynamics, observation: xr.DataArray) -> Operator | None:
    """H of a record; None where observations lie at the state's sites.

    Parameters
    ----------
    matrix_or_function : as for `operator_from`, or None
        What the Dataset or the caller has for H.
    dynamics : Dynamics
    observation : xarray.DataArray
        With the dim `obs` where it is H of states.

    Raises
    ------
    ValueError
        If observations and operator do not fit each other, or one is missing.
    """
    if OBS not in observation.dims:
        if matrix_or_function is not None:
            raise ValueError(
                f"{observation.name!r} has dims {observation.dims}, without {OBS!r}: an observation operator gives "
                f"observations along {OBS!r}; expected that dim, or no operator where sites are observed"
            )
        return None
    if matrix_or_function is None:
        raise ValueError(
            f"{observation.name!r} has the dim {OBS!r} and the Dataset no 'observation_operator': pass operator=, a "
            f"matrix of shape ({observation.sizes[OBS]}, sites) or a torch function of states (..., sites)"
        )
    return operator_from(matrix_or_function, dynamics, observation.sizes[OBS])


def read_observing(error: Any, operator: Operator | None, observation: xr.DataArray) -> ObservingSystem:
    """H and R of a record, float64 on the CPU.

    Parameters
    ----------
    error : xarray.DataArray or array_like
        R as the Dataset or the caller has it: standard deviations, which may differ in time, or a covariance.
    operator : Operator or None
        H.
    observation : xarray.DataArray, dims (trajectory, time, ...)

    Raises
    ------
    ValueError
        If R is of the wrong size or under other labels, not positive, or not positive definite.
    """
    dims, shape, times = observation.dims[2:], observation.shape[2:], observation.sizes[TIME]
    if not isinstance(error, xr.DataArray):
        return observing_from(errors("observation_error", error), shape, operator)
    variable = error
    if TIME not in variable.dims:
        variable = variable.rename({d: TIME for d in variable.cf.axes.get("T", []) if d in variable.dims})
    in_time = TIME in variable.dims
    if TRAJECTORY in variable.dims:
        raise ValueError(
            f"observation error {variable.name!r} varies along 'trajectory': expected dims () or {dims}, with 'time' "
            f"before them where it changes in time, or {dims} twice for a covariance"
        )
    if in_time and variable.sizes[TIME] != times:
        raise ValueError(f"observation error {variable.name!r} has {variable.sizes[TIME]} times: expected {times}")
    lead = [TIME] if in_time else []
    for dim in (*lead, *dims):
        labelled = dim in variable.coords and dim in observation.coords
        if labelled and not np.array_equal(variable[dim].values, observation[dim].values):
            raise ValueError(
                f"observation error {variable.name!r} has other labels along {dim!r} than the observations, or in "
                "another order: bring them into that of the observations with .sel()"
            )
    if set(dims) <= set(variable.dims):
        variable = variable.transpose(*lead, *dims, ...)
    else:
        variable = variable.transpose(*lead, ...)
    values = errors(f"observation error {variable.name!r}", variable)
    return observing_from(values, shape, operator, times if in_time else None)


def errors(label: str, value: Any) -> torch.Tensor:
    """Standard deviations or covariances as float64.

    Raises
    ------
    TypeError
        For anything but real numbers.
    ValueError
        For rows of uneven length.
    """
    return array_to_tensor(real_array(label, value, finite=False))  # R itself says which values may not be


def observing_from(
    values: torch.Tensor, shape: tuple[int, ...], operator: Operator | None = None, times: int | None = None
) -> ObservingSystem:
    """H and R, from standard deviations, scalar or of an observation's shape, or from a matrix of that many rows.

    Parameters
    ----------
    values : Tensor
    shape : tuple of int
        Of the observations of one time.
    operator : Operator, optional
    times : int, optional
        Where standard deviations differ in time, how many times; the first axis of `values`.

    Raises
    ------
    ValueError
        For any other shape.
    """
    size = math.prod(shape)
    if times is not None:
        if tuple(values.shape) not in ((times,), (times, *shape)):
            raise ValueError(
                f"observation error in time has shape {tuple(values.shape)}: expected ({times},) or "
                f"{(times, *shape)}, standard deviations; a covariance that changes in time is not supported"
            )
        return ObservingSystem(std=values.reshape(times, -1), operator=operator, in_time=True)
    if values.ndim == 0:
        return ObservingSystem(std=values, operator=operator)
    if tuple(values.shape) == shape:
        return ObservingSystem(std=values.reshape(size), operator=operator)
    if tuple(values.shape) == (*shape, *shape):
        return ObservingSystem(covariance=values.reshape(size, size), operator=operator)
    raise ValueError(
        f"observation error has shape {tuple(values.shape)}: expected () or {shape} for standard deviations, "
        f"or {(*shape, *shape)} for a covariance matrix"
    )


def identity(observing: ObservingSystem, dynamics: Dynamics) -> list[np.ndarray[Any, Any]]:
    """Arrays that differ between experiments: a step of the dynamics and its time, R, and H of a few states."""
    tensors = [dynamics.fingerprint(), observing.std, observing.covariance]
    arrays = [tensor_to_array(tensor) for tensor in tensors if tensor is not None]
    if not dynamics.autonomous:
        arrays.append(np.array(dynamics.model_time))
    if not observing.direct:
        sites = math.prod(dynamics.shape)
        states = torch.linspace(-3.0, 3.0, 3 * sites, dtype=torch.float64).reshape(3, sites)
        observed = tensor_to_array(observing.observe(states)).round(9)
        if not np.isfinite(observed).all():  # H may be of levels or concentrations, such as a logarithm
            observed = tensor_to_array(observing.observe(dynamics.start_states().double().flatten(1)).float())
        arrays.append(observed)
    return arrays


def observing_system(experiment: TwinExperiment, cycles: int | None = None) -> ObservingSystem:
    """H and R of a twin experiment, float64 on the CPU.

    Parameters
    ----------
    experiment : TwinExperiment
    cycles : int, optional
        Length of the record, along which errors may differ; without one they may not.

    Raises
    ------
    TypeError
        If the operator is neither numbers nor a function.
    ValueError
        If shapes, dims or the order of labels do not fit, R is not positive definite, or a function fails.
    """
    dynamics = experiment.dynamics
    operator = None if experiment.operator is None else operator_from(experiment.operator, dynamics)
    sizes = observed_sizes(dynamics, operator)
    dims, shape = tuple(sizes), tuple(sizes.values())
    if experiment.error_covariance is not None:
        return observing_from(_twin_covariance(experiment.error_covariance, dims, shape, dynamics), shape, operator)
    error_std = experiment.error_std
    if isinstance(error_std, xr.DataArray):
        error_std = _ordered_deviations(error_std, dims, shape, cycles, dynamics)
        in_time = TIME in error_std.dims
    else:
        in_time = cycles is not None and np.shape(error_std) == (cycles, *shape)
        if np.shape(error_std) == (*shape, *shape) and not in_time:
            raise ValueError(f"error_std has shape {np.shape(error_std)}, a matrix: pass R as error_covariance=")
    return observing_from(errors("error_std", error_std), shape, operator, cycles if in_time else None)


def _twin_covariance(
    covariance: Any, dims: tuple[str, ...], shape: tuple[int, ...], dynamics: Dynamics
) -> torch.Tensor:
    """R of the shape of two states of observations, its labels checked."""
    if isinstance(covariance, xr.DataArray):
        both = (*dims, *(dim + DUAL for dim in dims))
        if set(covariance.dims) == set(both):
            covariance = covariance.transpose(*both)
        for dim in set(covariance.dims) & set(dynamics.dims):
            check_order(covariance, str(dim), dynamics)
            dual, labels = f"{dim}{DUAL}", covariance.coords
            if {dim, dual} <= set(labels) and labels[dim].values.tolist() != labels[dual].values.tolist():
                raise ValueError(
                    f"error_covariance has other labels along {dual!r} than along {dim!r}: expected the same"
                )
    values = errors("error_covariance", covariance)
    size = math.prod(shape)
    if tuple(values.shape) not in ((size, size), (*shape, *shape)):
        raise ValueError(f"error_covariance has shape {tuple(values.shape)}: expected {(size, size)}")
    return values.reshape(*shape, *shape)


def _ordered_deviations(
    error_std: xr.DataArray, dims: tuple[str, ...], shape: tuple[int, ...], cycles: int | None, dynamics: Dynamics
) -> xr.DataArray:
    """Standard deviations with the dims (), (time,), `dims` or (time, *dims), their sizes and labels checked."""
    sizes = ({} if cycles is None else {TIME: cycles}) | dict(zip(dims, shape, strict=True))
    if unknown := set(error_std.dims) - set(sizes):
        raise ValueError(f"error_std has dims {sorted(map(str, unknown))}: expected some of {tuple(sizes)}")
    for dim in set(error_std.dims) & set(dynamics.dims):
        check_order(error_std, str(dim), dynamics)
    wrong = {str(dim): size for dim, size in error_std.sizes.items() if size != sizes[str(dim)]}
    if wrong:
        raise ValueError(f"error_std has sizes {wrong}: expected { ({dim: sizes[dim] for dim in wrong}) }")
    whole = bool(set(dims) & set(error_std.dims))
    order = [dim for dim in sizes if dim in error_std.dims or (dim in dims and whole)]
    return error_std.expand_dims({dim: sizes[dim] for dim in order if dim not in error_std.dims}).transpose(*order)
