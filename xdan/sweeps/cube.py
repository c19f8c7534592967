"""The scores of a sweep's cells as a labelled cube."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from dask.delayed import Delayed

from ..assimilation.score_many import CRPS_OF
from ..core.formats import FORMAT, FORMATS
from ..records.schema import Array, as_labels

SCHEME, SEED = "scheme", "seed"
SCORES = {
    "rmse": "analysis RMSE",
    "rmse_standard_error": "standard error of the RMSE over trajectories, or over blocks of one trajectory",
    "forecast_rmse": "forecast RMSE",
    "spread": "standard deviation of the analysis",
    "mean_absolute_error": "mean absolute error of the analysis",
    "crps": "continuous ranked probability score of the analysis",
    "innovation_variance": "variance of observation minus forecast",
    "diverged": "trajectories that diverged",
    "validation_rmse": "RMSE on the trajectories that training kept for validation",
    "training_seconds": "time spent training",
    "seconds": "time spent cycling",
    "failed": "1 where the experiment ended in an error",
}
_UNITS = {"seconds": "s", "training_seconds": "s", "failed": "1", "diverged": "1"}  # others have the state's units
_AXES = {
    "interval": ("interval between analyses", "model time"),
    "error_std": ("standard deviation of observation errors", ""),
    "observe": ("observed sites", ""),
    "forcing": ("forcing F", ""),
    "sites": ("sites of the ring", ""),
    "window": ("window", "cycles"),
    "lag": ("lag", "cycles"),
    "batch": ("batch S_b", "trajectories"),
    "trajectories": ("training trajectories N_r", ""),
    "filters": ("filters N_f", ""),
    "members": ("members N_e", ""),
    "memory": ("latent channels", ""),
    "minutes": ("training time", "min"),
    "steps": ("training steps", ""),
}


def arranged(
    labels: Mapping[str, Sequence[Any]], scores: Sequence[Any], units: str, test: Mapping[str, int]
) -> xr.Dataset:
    """Arrange the scores of cells as a cube.

    Parameters
    ----------
    labels : mapping of str to sequence
        The labels of every dim. From cell to cell, the labels of the last dim change fastest.
    scores : sequence of mapping
        Scores of each cell; they may be Delayed.
    units : str
        Units of the state.
    test : mapping
        Sizes of the test records, for the attributes.

    Returns
    -------
    xarray.Dataset
        The cube, with the dims of the labels. A score that a cell lacks is NaN.
    """
    dims, shape = tuple(labels), tuple(len(values) for values in labels.values())
    variables = {}
    for name, long_name in SCORES.items():
        if any(isinstance(cell, Delayed) for cell in scores):
            values = [da.from_delayed(_pick(cell, name), (), np.float64) for cell in scores]
            array: Any = da.stack(values).reshape(shape)
        else:
            array = np.array([cell.get(name, np.nan) for cell in scores]).reshape(shape)
        unit = _UNITS.get(name, units)
        unit = unit if name != "innovation_variance" or unit == "1" else f"({unit})2"
        variables[name] = (dims, array, {"long_name": long_name, "units": unit})
    errors = sorted({cell["error"] for cell in scores if isinstance(cell, dict) and "error" in cell})
    attributes = {"title": "sweep", "errors": json.dumps(errors), **test, "source": "xdan", FORMAT: FORMATS["data"]}
    coordinates = {dim: as_labels(values) for dim, values in labels.items()}
    cube = xr.Dataset(variables, coordinates, attributes)
    if all(isinstance(cell, dict) for cell in scores):
        crps_of = as_labels(_crps_of(scores, len(labels[SCHEME])))
        cube = cube.assign_coords(crps_of=(SCHEME, crps_of, CRPS_OF))
    for name, (long_name, unit) in _AXES.items():
        if name in labels:
            cube[name].attrs = {"long_name": long_name, **({"units": unit} if unit else {})}
    if "error_std" in labels:
        cube["error_std"].attrs["units"] = units
    return cube


def _crps_of(scores: Sequence[Any], schemes: int) -> list[str]:
    """What the CRPS of each scheme is computed from; nothing for a scheme that has no CRPS."""
    each = np.array([cell.get("crps_of", "") for cell in scores], dtype=object).reshape(schemes, -1)
    return [", ".join(sorted({word for word in row if word})) for row in each]


@dask.delayed(pure=True)  # type: ignore[untyped-decorator]
def _pick(scores: Mapping[str, Any], name: str) -> Array:
    return np.asarray(scores.get(name, np.nan))
