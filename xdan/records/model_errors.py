"""Q, the covariance of a model's errors in one interval: its variables in a record, and the caller's `model_error=`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from ..core.checks import shown
from ..core.dynamics import Dynamics
from ..core.twin import check_field_names, names_fields
from .fields import OneOrFields, Part, find_fields, in_order, in_order_twice, parts_of, whole_of
from .schema import DUAL, MODEL_ERROR, MODEL_ERROR_COVARIANCE, Array


def model_error_variables(model: Dynamics) -> dict[str, Any]:
    """Make the variables of Q: standard deviations of each part of the state, or a covariance of the whole."""
    error = model.model_error
    if error is None:
        return {}
    if error.covariance is not None:
        part = whole_of(model)
        label = part.described(MODEL_ERROR_COVARIANCE, "model error covariance of one interval")
        matrix = error.covariance.reshape(*part.shape, *part.shape).numpy()
        return {MODEL_ERROR_COVARIANCE.name: (MODEL_ERROR_COVARIANCE.dims_in(part.dims, ()), matrix, label)}
    return {
        part.name(MODEL_ERROR.name): (
            *_alike(error.std[part.place].reshape(part.shape).numpy(), MODEL_ERROR.dims_in(part.dims, ())),
            part.described(MODEL_ERROR, "standard deviation of the model error in one interval"),
        )
        for part in parts_of(model)
    }


def _alike(values: Array, dims: tuple[str, ...]) -> tuple[tuple[str, ...], Array]:
    """Dims and values; if all values are equal: no dims, and one value."""
    alike = bool((values == values.flat[0]).all())
    return ((), values.reshape(-1)[0]) if alike else (dims, values)


def with_model_error(model: Dynamics, ds: xr.Dataset, word: Any) -> Dynamics:
    """Give a model the Q of the caller; else its Q of `with_model_error`, or the Q of the Dataset.

    Parameters
    ----------
    model : Dynamics
    ds : xarray.Dataset
    word : float, str, array, mapping, or None
        The caller's Q: standard deviations (one number, or one for each component), Q as a matrix, the name of a
        variable, or a mapping of fields' names to standard deviations or names. 0 says that the model is perfect.

    Raises
    ------
    TypeError, ValueError
        If a variable does not exist, a shape does not fit, or the values are no covariance.
    """
    if word is None and model.model_error is not None:
        return model
    if word is None:
        roles = (MODEL_ERROR, MODEL_ERROR_COVARIANCE)
        std, covariance = (find_fields(ds, role, model, all_fields=False) for role in roles)
        if std is None and covariance is None:
            return _as_described(model, ds)
        if std is not None and covariance is not None:
            raise ValueError(
                f"there are the variables {[role.name for role in roles]}: expected one of them; name the "
                "one that counts with model_error="
            )
        word = std if covariance is None else covariance
    elif isinstance(word, str):
        word = _named(ds, word)
    elif names_fields(word):
        word = {name: _named(ds, one) if isinstance(one, str) else one for name, one in word.items()}
    return _with(model, word)


def _as_described(model: Dynamics, ds: xr.Dataset) -> Dynamics:
    """Give a model the Q that the attribute `dynamics` describes; refuse a Dataset that lacks Q's variable."""
    try:
        described = json.loads(ds.attrs["dynamics"]).get("model_error")
    except (KeyError, AttributeError, TypeError, ValueError, RecursionError):
        return model
    if isinstance(described, str):
        raise ValueError(
            f"the attribute 'dynamics' says that the model errs by {shown(described)}, and no variable holds it: "
            f"expected {MODEL_ERROR.name!r} or {MODEL_ERROR_COVARIANCE.name!r}, as the record had it; or pass "
            "model_error=, 0 for a perfect model"
        )
    return model if described is None else model.with_model_error(described)


def says_perfect(model: Dynamics, ds: xr.Dataset, word: Any) -> bool:
    """Whether the caller or a variable says that Q is zero; `model` is one that `with_model_error` returned."""
    if model.model_error is not None:
        return False
    roles = (MODEL_ERROR, MODEL_ERROR_COVARIANCE)
    return word is not None or any(find_fields(ds, role, model, all_fields=False) is not None for role in roles)


def _named(ds: xr.Dataset, name: str) -> xr.DataArray:
    """The variable with a name."""
    if name not in ds.variables:
        raise ValueError(f"no variable {name!r} for model_error=: expected one of {sorted(map(str, ds.data_vars))}")
    return ds[name]


def _with(model: Dynamics, error: OneOrFields | Any) -> Dynamics:
    """Give a model a Q with these values."""
    if isinstance(error, Mapping) and not hasattr(error, "dims"):
        parts = {part.field.name: part for part in parts_of(model) if part.field is not None}
        check_field_names(MODEL_ERROR.keyword, error, model.space)
        return model.with_model_error({name: _ordered(one, parts[name]) for name, one in error.items()})
    if isinstance(error, xr.DataArray) and any(str(dim).endswith(DUAL) for dim in error.dims):
        return model.with_model_error(covariance=_matrix(model, error))
    shape: tuple[int, ...] = np.shape(error)  # type: ignore[arg-type]
    size = math.prod(model.shape)
    is_matrix = shape in ((size, size), (*model.shape, *model.shape)) and shape != model.shape
    if is_matrix and not isinstance(error, xr.DataArray):
        return model.with_model_error(covariance=error)
    return model.with_model_error(_ordered(error, whole_of(model)))


def _ordered(error: Any, part: Part) -> Any:
    """Bring labelled deviations into the order of the geometry's places."""
    if not isinstance(error, xr.DataArray):
        return error
    error = error.rename(error.name or MODEL_ERROR.name)
    for dim in part.dims:
        if dim in error.dims:
            error = in_order(error, dim, part)
    return error.drop_vars(list(error.coords)).compute()


def _matrix(model: Dynamics, covariance: xr.DataArray) -> Any:
    """Q as a matrix (*state, *state). Its second dims have the suffix "_dual"."""
    part, duals = whole_of(model), tuple(dim + DUAL for dim in model.dims)
    if set(covariance.dims) != {*part.dims, *duals}:
        raise ValueError(
            f"{covariance.name!r} has the dims {covariance.dims}: expected {(*part.dims, *duals)}, those of the state "
            "twice"
        )
    for dim in part.dims:
        in_order(covariance, dim, part)  # refuses other labels
    return in_order_twice(covariance, part).transpose(*part.dims, *duals).to_numpy()
