"""Estimates of Q and R with labels: variables that records, `cycle` and every method accept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from ..core.dynamics import Dynamics
from ..core.estimation.structures import Structure
from ..records.fields import Part, parts_of, whole_of
from ..records.record import LabelledRecord
from ..records.schema import (
    DUAL,
    ERROR,
    ERROR_COVARIANCE,
    ITERATION,
    MODEL_ERROR,
    MODEL_ERROR_COVARIANCE,
    Array,
    Role,
)

_WORDS = {
    "model": ("model error in one interval", MODEL_ERROR, MODEL_ERROR_COVARIANCE),
    "observation": ("observation error", ERROR, ERROR_COVARIANCE),
    "forecast": ("forecast error, as observed", Role("forecast_error", "", ()), ERROR_COVARIANCE),
}


@dataclass(frozen=True)
class Place:
    """Place of a part among the components of Q or R.

    Attributes
    ----------
    part : Part
    place : numpy.ndarray of int
        Components of the part.
    """

    part: Part
    place: Array


def places_of(name: str, labelled: LabelledRecord, whole: bool) -> list[Place]:
    """The variables that together hold Q ("model") or R ("observation")."""
    model = labelled.setup.dynamics
    if name != "model":
        parts: Sequence[Part] = labelled.observed_parts
    else:
        parts = (whole_of(model),) if whole else parts_of(model)
    size = model.space.size if name == "model" else labelled.setup.observing.size(model.space.size)
    return [Place(part, np.arange(size)[part.place]) for part in parts]


def sizes_of_parts(name: str, labelled: LabelledRecord) -> list[int]:
    """Numbers of components that share a variance if an estimate has one number for each part; a part is a field."""
    observing, model = labelled.setup.observing, labelled.setup.dynamics
    if name == "observation" and not observing.direct:
        return [observing.size(model.space.size)]
    return [part.place.stop - part.place.start for part in _fields_of(model)] or [model.space.size]


def _fields_of(model: Dynamics) -> tuple[Part, ...]:
    return parts_of(model) if model.space.single is None else ()


def labelled_estimates(
    name: str,
    labelled: LabelledRecord,
    structure: Structure,
    history: Array,
    errors: Array | None,
    along: str = ITERATION,
    spread: Array | None = None,
    *,
    diverged: bool = False,
) -> dict[str, xr.DataArray]:
    """The variables of Q ("model") or R ("observation"): history, estimate and its standard error.

    Parameters
    ----------
    name : {"model", "observation", "forecast"}
        "forecast" stands for the errors of the forecast in the space of observations; they have no history.
    labelled : LabelledRecord
    structure : Structure
    history : array, shape (K, n) or (K, n, n)
        Variances or covariances. The last one is the estimate.
    errors : array, shape (n,) or (n, n), or None
        Standard errors of the estimated variances or covariances.
    along : str
        Dim of the history.
    spread : array, shape of `history`, optional
        Standard errors of every entry of the history.
    diverged : bool
        Whether the estimate has diverged, and is NaN.
    """
    words, role, role_of_matrix = _WORDS[name]
    matrix, stem_role = history.ndim == 3, role
    errors = np.full(history.shape[1:], np.nan) if errors is None else errors
    long_name, power = f"standard deviation of the {words}", 1
    if matrix:
        stem_role, long_name, power = role_of_matrix, f"{words} covariance", 2
    stem, variables = stem_role.name, {}
    for one in places_of(name, labelled, matrix):
        part, dims, shape = one.part, one.part.dims, one.part.shape
        if matrix:
            place = np.ix_(one.place, one.place)
            values, scatter = history[:, place[0], place[1]], errors[place]
            dims, shape = (*dims, *(dim + DUAL for dim in dims)), (*shape, *shape)
        else:
            values, scatter = _deviations(history[:, one.place], errors[one.place])
        estimate = np.full_like(values[-1:], np.nan) if diverged else values[-1:]
        series: dict[str, tuple[Array, bool, str]] = {"": (estimate, False, long_name)}
        if name != "forecast":
            series["_standard_error"] = scatter[None], False, f"standard error of the {long_name}"
            series["_history"] = values, True, f"{long_name}, along {along}"
            if spread is not None and not matrix:
                place_spread = _deviations(history[:, one.place], spread[:, one.place])[1]
                series["_history_standard_error"] = place_spread, True, f"standard error of the {long_name}"
        alike = not matrix and (structure.kind == "scalar" or _alike(values))
        labels = {key: c for key, c in labelled.labels.items() if c.dims and set(c.dims) <= set(part.dims)}
        for suffix, (numbers, along_history, title) in series.items():
            attrs = part.attributes(stem + suffix, title, power)
            if not suffix and name != "forecast":
                attrs = part.described(stem_role, title)
            variable = _variable(numbers, (along,) if along_history else (), () if alike else dims, shape, attrs)
            variables[f"{part.name(stem)}{suffix}"] = variable if alike else variable.assign_coords(labels)
    return variables


def _deviations(variances: Array, errors: Array) -> tuple[Array, Array]:
    """Standard deviations and their standard errors, from those of variances; NaN for a negative variance."""
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.sqrt(variances)
        return values, errors / (2 * (values if errors.ndim == values.ndim else values[-1]))


def _alike(values: Array) -> bool:
    """Whether every entry of a history has one number for all components."""
    return bool((values == values[:, :1]).all())


def _variable(
    values: Array, lead: tuple[str, ...], dims: tuple[str, ...], shape: tuple[int, ...], attrs: Mapping[str, Any]
) -> xr.DataArray:
    """A variable with or without the dim of the history; if all components are equal, one number."""
    flat = values.reshape(len(values), -1)
    whole = flat.reshape(len(values), *shape) if dims else flat[:, 0]
    return xr.DataArray(whole if lead else whole[0], dims=(*lead, *dims), attrs=dict(attrs))
