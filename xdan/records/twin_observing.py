"""Observing systems of twin experiments: H and R are made from the experiment's parameters, and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr

from ..core.dynamics import Dynamics
from ..core.observing import FieldSites, InterpolationOperator, ObservingSystem, Operator, Positions, deviations_of
from ..core.twin import FIELD, INSTRUMENT, TwinExperiment
from .fields import Part, parts_of, whole_of
from .observing import errors, observed_sizes, observing_from, observing_of_fields, operator_from, positions_of
from .schema import DUAL, OBS, TIME, check_order


def observing_system(experiment: TwinExperiment, cycles: int | None = None) -> ObservingSystem:
    """H and R of a twin experiment, float64 on the CPU.

    Parameters
    ----------
    experiment : TwinExperiment
    cycles : int, optional
        Length of the record, along which errors may differ. Without a length, errors must be constant.

    Raises
    ------
    TypeError
        If the operator is neither numbers nor a function.
    ValueError
        If shapes, dims or the order of labels do not fit, R is not positive definite, or a function fails.
    """
    dynamics = experiment.dynamics
    labels = experiment.positions or {}
    positions = positions_of(labels, dynamics, cycles)
    operator: Operator | None = None
    if experiment.operator is not None:
        operator = operator_from(experiment.operator, dynamics, None if positions is None else positions.size)
    elif positions is not None:
        operator = InterpolationOperator.at(positions)
    sizes = observed_sizes(dynamics, operator)
    dims, shape = tuple(sizes), tuple(sizes.values())
    if wrong := [name for name in (FIELD, INSTRUMENT) if name in labels and (len(labels[name]),) != shape]:
        raise ValueError(f"positions[{wrong[0]!r}] has {len(labels[wrong[0]])} words: expected one of {shape}")
    if experiment.error_covariance is not None:
        covariance = _twin_covariance(experiment.error_covariance, dims, shape, dynamics)
        return observing_from(covariance, shape, operator, positions=positions)
    error_std = experiment.error_std
    if isinstance(error_std, Mapping):
        if INSTRUMENT in labels:
            error_std = deviations_of(labels[INSTRUMENT].tolist(), error_std)
        elif operator is not None:
            raise ValueError(
                f"error_std of {list(error_std)}, and the observations lie along {OBS!r}: expected numbers, or "
                "positions={'instrument': [...]}, a word for each observation, and the deviation of each instrument"
            )
        else:
            return _twin_of_fields(error_std, experiment, cycles)
    if isinstance(error_std, xr.DataArray):
        error_std = _ordered_deviations(error_std, dims, shape, cycles, whole_of(dynamics))
    return _from_deviations("error_std", error_std, shape, operator, cycles, positions)


def _from_deviations(
    label: str,
    error_std: Any,
    shape: tuple[int, ...],
    operator: Operator | None,
    cycles: int | None,
    positions: Positions | None = None,
) -> ObservingSystem:
    """H and R from standard deviations, which may differ in time."""
    if isinstance(error_std, xr.DataArray):
        in_time = TIME in error_std.dims
    else:
        in_time = cycles is not None and np.shape(error_std) == (cycles, *shape)
        if np.shape(error_std) == (*shape, *shape) and not in_time:
            raise ValueError(f"{label} has shape {np.shape(error_std)}, a matrix: pass R as error_covariance=")
    return observing_from(errors(label, error_std), shape, operator, cycles if in_time else None, positions)


def _twin_of_fields(error_std: Mapping[str, Any], experiment: TwinExperiment, cycles: int | None) -> ObservingSystem:
    """R of a twin with errors for each field. Errors of fields that are not observed play no role."""
    observe = experiment.observe
    observed = list(observe.sites) if isinstance(observe, FieldSites) else experiment.dynamics.space.names
    if missing := [name for name in observed if name not in error_std]:
        raise ValueError(
            f"error_std= has no entry for {missing}, which are observed: expected a standard deviation for each of "
            f"{observed}"
        )
    systems = {}
    for part in parts_of(experiment.dynamics):
        if part.field is None or part.field.name not in observed:
            continue
        label, value = f"error_std[{part.field.name!r}]", error_std[part.field.name]
        if isinstance(value, xr.DataArray):
            value = _ordered_deviations(value, part.dims, part.shape, cycles, part)
        systems[part.field.name] = _from_deviations(label, value, part.shape, None, cycles)
    return observing_of_fields(systems, experiment.dynamics, cycles)


def _twin_covariance(
    covariance: Any, dims: tuple[str, ...], shape: tuple[int, ...], dynamics: Dynamics
) -> torch.Tensor:
    """R as a covariance, with two sets of the observations' dims; its labels are checked."""
    if isinstance(covariance, xr.DataArray):
        both = (*dims, *(dim + DUAL for dim in dims))
        if set(covariance.dims) == set(both):
            covariance = covariance.transpose(*both)
        for dim in set(covariance.dims) & set(dynamics.dims):
            check_order(covariance, str(dim), dynamics)
            dual, labels = f"{dim}{DUAL}", covariance.coords
            if {dim, dual} <= set(labels) and labels[dim].values.tolist() != labels[dual].values.tolist():
                raise ValueError(
                    f"error_covariance has other labels along {dual!r} than along {dim!r}: expected equal ones"
                )
    values = errors("error_covariance", covariance)
    size = math.prod(shape)
    if tuple(values.shape) not in ((size, size), (*shape, *shape)):
        raise ValueError(f"error_covariance has shape {tuple(values.shape)}: expected {(size, size)}")
    return values.reshape(*shape, *shape)


def _ordered_deviations(
    error_std: xr.DataArray, dims: tuple[str, ...], shape: tuple[int, ...], cycles: int | None, part: Part
) -> xr.DataArray:
    """Standard deviations with the dims (), (time,), `dims` or (time, *dims); their sizes and labels are checked."""
    sizes = ({} if cycles is None else {TIME: cycles}) | dict(zip(dims, shape, strict=True))
    if unknown := set(error_std.dims) - set(sizes):
        raise ValueError(f"error_std has dims {sorted(map(str, unknown))}: expected some of {tuple(sizes)}")
    for dim in set(error_std.dims) & set(part.dims):
        check_order(error_std, str(dim), part)
    wrong = {str(dim): size for dim, size in error_std.sizes.items() if size != sizes[str(dim)]}
    if wrong:
        raise ValueError(f"error_std has sizes {wrong}: expected { ({dim: sizes[dim] for dim in wrong}) }")
    whole = bool(set(dims) & set(error_std.dims))
    order = [dim for dim in sizes if dim in error_std.dims or (dim in dims and whole)]
    return error_std.expand_dims({dim: sizes[dim] for dim in order if dim not in error_std.dims}).transpose(*order)


def position_coordinates(labels: Mapping[str, Any] | None, dynamics: Dynamics) -> dict[str, Any]:
    """Coordinates of observations that tell their positions, as xarray takes coordinates."""
    described: dict[str, Any] = {}
    for name, values in (labels or {}).items():
        if name in (FIELD, INSTRUMENT):
            described[name] = (OBS, values, {"long_name": f"{name} of the observation"})
            continue
        attributes = dict(
            next(f.geometry.coordinates[name] for f in dynamics.space if name in f.geometry.dims).attributes
        )
        attributes.pop("axis", None)
        attributes["long_name"] = f"{attributes.get('long_name', name)}, of the observation"
        dims = (OBS,) if np.ndim(values) == 1 else (TIME, OBS)
        described[f"{OBS}_{name}"] = (dims, np.asarray(values, dtype=np.float64), attributes)
    return described
