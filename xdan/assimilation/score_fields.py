"""Means over the state that scores take: by area within a field, for each of several fields, and over all of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from ..core.dynamics import Dynamics
from ..core.spaces import Field
from ..records.blocks import tensor_to_array
from ..records.schema import Array

FIELD = "field"  # dim of the scores of several fields
TOTAL = "_total"  # suffix of a score over all fields
OVER_ALL = "mean over the fields, each in units of its error"
_EQUAL = 1e-9  # relative difference of areas that are one area


@dataclass(frozen=True)
class FieldPart:
    """A field of a state, as scores take it.

    Attributes
    ----------
    field : Field
    place : slice
        In the packed state.
    weights : array of float64, shape of the field's dims in the record's state, or None
        Share of the area of each point; None where all have one area.
    """

    field: Field
    place: slice
    weights: Array | None

    @property
    def size(self) -> int:
        """Points of the field."""
        return self.field.geometry.size

    def mean(self, values: xr.DataArray, dims: Sequence[Hashable]) -> xr.DataArray:
        """Mean over the field's dims by area; NaN where one value is."""
        if self.weights is None:
            average: xr.DataArray = values.mean(dims, skipna=False)
            return average
        share = xr.DataArray(self.weights.astype(values.dtype, copy=False), dims=dims)
        total: xr.DataArray = (values * share).sum(dims, skipna=False)
        return total


class FieldMeans:
    """The fields of a state, each with its dims in a record, its area weights and its units.

    Parameters
    ----------
    dynamics : Dynamics
    """

    def __init__(self, dynamics: Dynamics) -> None:
        space = dynamics.space
        self.dims: list[Hashable] = list(dynamics.dims)
        self.several = len(space) > 1
        units = {one.units for one in space} if self.several else {dynamics.units}
        self.units = units.pop() if len(units) == 1 else None  # None where the fields' units differ
        self.parts = [FieldPart(one, space.slices[one.name], self._weights(one)) for one in space]
        self.weighted = any(part.weights is not None for part in self.parts)

    def _weights(self, field: Field) -> Array | None:
        areas = tensor_to_array(field.geometry.weights())
        if np.allclose(areas, areas[0], rtol=_EQUAL, atol=0):
            return None
        share: Array = areas / areas.sum()
        return share if self.several else share.reshape(field.geometry.shape)

    def of(self, values: xr.DataArray, part: FieldPart) -> xr.DataArray:
        """The values of one field."""
        if not self.several or self.dims[0] not in values.dims:
            return values
        cut: xr.DataArray = values.isel({self.dims[0]: part.place})
        return cut

    def each(self, function: Callable[..., xr.DataArray], *values: xr.DataArray) -> xr.DataArray:
        """Apply a function of one field's values and its `FieldPart`; along `field` where there are several.

        Parameters
        ----------
        function : callable
            Of a FieldPart and as many arrays as `values`; its result has none of the state's dims.
        *values : xarray.DataArray, dims (..., *state)
        """
        results = [function(part, *(self.of(one, part) for one in values)) for part in self.parts]
        if not self.several:
            return results[0]
        together: xr.DataArray = xr.concat(results, FIELD, coords="minimal", compat="override")
        return together.transpose(..., FIELD)

    def mean(self, values: xr.DataArray) -> xr.DataArray:
        """Mean over the state by area; for each field where there are several."""
        return self.each(lambda part, of_field: part.mean(of_field, self.dims), values)

    @property
    def labels(self) -> dict[str, Any]:
        """Coordinates of the dim `field`."""
        # Strings as objects: Zarr has a specification for strings of any length only.
        names = np.array([part.field.name for part in self.parts], dtype=object)
        units = np.array([part.field.units for part in self.parts], dtype=object)
        return {
            FIELD: (FIELD, names, {"long_name": "field of the state"}),
            "field_units": (FIELD, units, {"long_name": "units of the field"}),
        }

    def over_all(self, values: xr.DataArray, scales: xr.DataArray, *, root: bool = False) -> xr.DataArray:
        """Mean of a score over the fields, each in units of its error; of squares, and its root, or not."""
        relative = values / scales
        mean = (relative**2 if root else relative).mean(FIELD, skipna=False)
        together: xr.DataArray = xr.ufuncs.sqrt(mean) if root else mean
        return together.astype(values.dtype, copy=False)

    def convention(self, of: str = "") -> str:
        """How a root mean of something is taken, in words."""
        if not (self.several or self.weighted):
            return f"root of the mean{of} over the state's variables at each time, then mean over the dims averaged"
        over = "each field" if self.several else "the field"
        return f"root of the mean{of} over {over} by area at each time, then mean over the dims averaged"


def error_scales(
    means: FieldMeans, observation: xr.DataArray | None, variance: xr.DataArray, states: xr.DataArray
) -> xr.DataArray:
    """The error of each field, in whose units scores over all fields are.

    It is the root of the mean variance of a field's observation errors. A field of which nothing is observed has the
    deviation of its states instead.

    Parameters
    ----------
    means : FieldMeans
    observation : xarray.DataArray, dims (trajectory, time, *state), or None
        None where observations are no sites of the state: then no field has an error of its own.
    variance : xarray.DataArray
        Of observation errors.
    states : xarray.DataArray, dims (trajectory, time, *state)
        Of the truth, or of the analysis where there is none.

    Returns
    -------
    xarray.DataArray, dims (field,)
    """
    by_state: xr.DataArray = xr.ufuncs.sqrt(means.each(lambda part, x: x.var(), states.astype(np.float64, copy=False)))
    if observation is None:
        return by_state
    mean_variance = means.each(lambda part, v: v.mean(), variance.broadcast_like(observation[0, 0]))
    observed = means.each(lambda part, y: y.notnull().any(), observation)
    scales: xr.DataArray = xr.where(observed, xr.ufuncs.sqrt(mean_variance), by_state)
    return scales
