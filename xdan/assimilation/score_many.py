"""Scores of several runs, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from ..core.checks import shown
from ..records.schema import as_labels

METHOD = "method"  # dim of scores of several runs
CRPS_OF = {"long_name": "what the CRPS is of"}
CRPS_NAME = "continuous ranked probability score"


def several(label: str, run: Any) -> dict[str, xr.Dataset]:
    """Runs by their names. A single run has the name "".

    Raises
    ------
    TypeError, ValueError
        If the mapping is empty, or a name is no string.
    """
    if not isinstance(run, Mapping) or isinstance(run, xr.Dataset):
        return {"": run}  # if it is no Dataset, its reader says what was expected
    if not run:
        raise ValueError(f"{label}={{}}: expected a mapping of names to runs, with one at least")
    for name in run:
        if not isinstance(name, str) or not name:
            raise TypeError(f"{label} has the name {shown(name)}: expected words, such as 'EnKF-N'")
    return dict(run)


def joined(scored: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Join the scores of several runs along the dim `method`."""
    every = {name: None for one in scored.values() for name in one.data_vars}
    has_crps = any("crps_of" in one.coords for one in scored.values())
    rows = []
    for one in scored.values():
        row = one.drop_vars("crps_of", errors="ignore")
        shape = {str(name): other[name] for other in scored.values() for name in other.data_vars}
        missing = {name: xr.full_like(shape[str(name)], np.nan, dtype=np.float64) for name in every if name not in one}
        rows.append(row.assign({name: values.drop_attrs() for name, values in missing.items()})[list(every)])
    result = xr.concat(
        rows, METHOD, coords="minimal", compat="override", join="override", combine_attrs="drop_conflicts"
    )
    names = (METHOD, as_labels(scored), {"long_name": "method"})
    result = result.assign_coords({METHOD: names})
    if has_crps:
        of = [str(one["crps_of"].item()) if "crps_of" in one.coords else "" for one in scored.values()]
        result = result.assign_coords(crps_of=(METHOD, as_labels(of), CRPS_OF))
    for name in every:
        labels = [one[name].attrs for one in scored.values() if name in one]
        result[name].attrs = {
            key: value for key, value in labels[0].items() if all(other.get(key) == value for other in labels)
        }
        if "long_name" not in result[name].attrs:
            # Long names differ: a CRPS is that of members or of a Gaussian, and methods name their spreads differently.
            result[name].attrs["long_name"] = CRPS_NAME if name == "crps" else str(name).replace("_", " ")
    return result
