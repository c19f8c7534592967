"""Labels of estimated parameters: their dims, names and attributes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from ..core.dynamics import Dynamics
from ..core.estimation.priors import Priors
from ..core.formats import data_format
from ..records.fields import state_coordinates
from ..records.schema import ITERATION, TIME, TRAJECTORY

DIVERGED, CONVERGED = "diverged", "converged"
SPREAD, ESTIMATE, STANDARD_ERROR = "_spread", "_estimate", "_standard_error"  # suffixes of a parameter's variables
_NUMBERS = {"lost", "innovation_ratio", "negative_log_likelihood", "model_error_std"}
_TAKEN = {TRAJECTORY, TIME, ITERATION, DIVERGED, CONVERGED} | _NUMBERS


def check_parameter_names(priors: Priors) -> None:
    """Refuse parameters with the names of other variables of a result.

    Raises
    ------
    ValueError
    """
    if taken := sorted(set(priors.names) & _TAKEN):
        raise ValueError(f"the parameters {taken} are called as variables of the result: expected other names")


def dims_of(model: Dynamics, priors: Priors) -> dict[str, tuple[str, ...]]:
    """Dims of each parameter: those of the state if it has the state's shape, else `forcing_component` and so on."""
    dims = {}
    for name, shape in zip(priors.names, priors.shapes, strict=True):
        if shape and shape == model.shape:
            dims[name] = model.dims
        else:
            dims[name] = (f"{name}_component",) if len(shape) == 1 else tuple(f"{name}_{k}" for k in range(len(shape)))
    return dims


def coordinates_of_parameters(model: Dynamics, priors: Priors) -> dict[str, Any]:
    """Coordinates of the dims of all parameters, as xarray takes them."""
    coordinates: dict[str, Any] = {}
    for name, dims in dims_of(model, priors).items():
        shape = priors.shapes[priors.names.index(name)]
        if dims == model.dims:
            coordinates |= {dim: one for dim, one in state_coordinates(model).items() if dim in dims}
        else:
            said = {"long_name": f"component of {name}", "units": "1"}
            coordinates |= {dim: (dim, np.arange(size), said) for dim, size in zip(dims, shape, strict=True)}
    return coordinates


def attributes_of(name: str, suffix: str, how: str = "") -> dict[str, str]:
    """Attributes of a variable of a parameter."""
    words = {
        "": "parameter {}",
        SPREAD: "spread of {}",
        ESTIMATE: "estimate of {}",
        STANDARD_ERROR: "standard error of {}",
    }
    long_name = words[suffix].format(name)
    return {"long_name": f"{long_name}, {how}" if how else long_name, "units": "1"}


def estimate_of(result: xr.Dataset) -> dict[str, Any]:
    """Take the final values from a result of `estimate_parameters`, for `Dynamics.with_parameters`.

    Parameters
    ----------
    result : xarray.Dataset
        Result of `estimate_parameters`.

    Returns
    -------
    dict of str to float or list
        Final value of each parameter, by its name.

    Raises
    ------
    TypeError, ValueError
        If `result` is no result of `estimate_parameters`.

    Examples
    --------
    >>> import xdan
    >>> result = xr.Dataset({"forcing": ("iteration", [7.0, 8.0]), "forcing_estimate": 8.0})
    >>> xdan.Lorenz96(sites=4).with_parameters(**estimate_of(result))
    Lorenz96(sites=4, forcing=8.0, timestep=0.05)
    """
    if not isinstance(result, xr.Dataset):
        raise TypeError(f"result={type(result).__name__}: expected the Dataset that estimate_parameters gives")
    data_format(result.attrs, "the estimate")
    values: Mapping[str, Any] = {
        str(name).removesuffix(ESTIMATE): result[name].values.tolist()
        for name in result.data_vars
        if str(name).endswith(ESTIMATE) and str(name).removesuffix(ESTIMATE) in result
    }
    if not values:
        raise ValueError(
            f"no estimates among the variables {sorted(map(str, result.data_vars))}: expected the Dataset that "
            "estimate_parameters gives, with variables such as 'forcing_estimate'"
        )
    return dict(values)
