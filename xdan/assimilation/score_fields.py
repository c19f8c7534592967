"""Means over the state in scores: weighted by area within a field, for each of several fields, and over all fields."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from ..core.dynamics import Dynamics
from ..core.spaces import Field
from ..records.blocks import tensor_to_array
from ..records.schema import Array, as_labels

FIELD = "field"  # dim of scores for several fields
TOTAL = "_total"  # suffix of a score over all fields
OVER_ALL = "mean over the fields, each in units of its error"
_EQUAL = 1e-9  # relative difference of areas that count as equal


@dataclass(frozen=True)
class FieldPart:
    """A field of a state, as scores take it.

    Attributes
    ----------
    field : Field
    place : slice
        Place of the field in the packed state.
    weights : array of float64, shape of the field's dims in the record's state, or None
        Share of each point in the area; None if all points have equal areas.
    """

    field: Field
    place: slice
    weights: Array | None

    @property
    def size(self) -> int:
        """Number of points of the field."""
        return self.field.geometry.size

    def mean(self, values: xr.DataArray, dims: Sequence[Hashable]) -> xr.DataArray:
        """Mean over the field's dims, weighted by area; NaN if one value is NaN."""
        if self.weights is None:
            average: xr.DataArray = values.mean(dims, skipna=False)
            return average
        share = xr.DataArray(self.weights.astype(values.dtype, copy=False), dims=dims)
        total: xr.DataArray = (values * share).sum(dims, skipna=False)
        return total


class FieldMeans:
    """The fields of a state, each with its dims in a record, its weights by area and its units.

    Parameters
    ----------
    dynamics : Dynamics
    """

    def __init__(self, dynamics: Dynamics) -> None:
        space = dynamics.space
        self.dims: list[Hashable] = list(dynamics.dims)
        self.several = len(space) > 1
        units = {one.units for one in space} if self.several else {dynamics.units}
        self.units = units.pop() if len(units) == 1 else None  # None if the fields' units differ
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
        """Apply a function to each field; with several fields, the results lie along `field`.

        Parameters
        ----------
        function : callable
            A function of a FieldPart and of the field's part of each of `values`. Its result has no dims of the state.
        *values : xarray.DataArray, dims (..., *state)
        """
        results = [function(part, *(self.of(one, part) for one in values)) for part in self.parts]
        if not self.several:
            return results[0]
        together: xr.DataArray = xr.concat(results, FIELD, coords="minimal", compat="override")
        return together.transpose(..., FIELD)

    def mean(self, values: xr.DataArray) -> xr.DataArray:
        """Mean over the state, weighted by area; one for each field if there are several."""
        return self.each(lambda part, of_field: part.mean(of_field, self.dims), values)

    @property
    def labels(self) -> dict[str, Any]:
        """Coordinates of the dim `field`."""
        names = as_labels([part.field.name for part in self.parts])
        units = as_labels([part.field.units for part in self.parts])
        return {
            FIELD: (FIELD, names, {"long_name": "field of the state"}),
            "field_units": (FIELD, units, {"long_name": "units of the field"}),
        }

    def over_all(self, values: xr.DataArray, scales: xr.DataArray, *, root: bool = False) -> xr.DataArray:
        """Mean of a score over the fields, each in units of its error. With `root`: the root of the mean of squares."""
        relative = values / scales
        mean = (relative**2 if root else relative).mean(FIELD, skipna=False)
        together: xr.DataArray = xr.ufuncs.sqrt(mean) if root else mean
        return together.astype(values.dtype, copy=False)

    def convention(self, of: str = "") -> str:
        """How a root of a mean is taken, in words."""
        if not (self.several or self.weighted):
            return f"root of the mean{of} over the state's variables at each time, then mean over the dims averaged"
        over = "each field" if self.several else "the field"
        return f"root of the mean{of} over {over} by area at each time, then mean over the dims averaged"


def error_scales(
    means: FieldMeans, observation: xr.DataArray | None, variance: xr.DataArray, states: xr.DataArray
) -> xr.DataArray:
    """The error of each field: the unit of this field in scores over all fields.

    It is the root of the mean variance of a field's observation errors. For a field without observations it is the
    standard deviation of the field's states.

    Parameters
    ----------
    means : FieldMeans
    observation : xarray.DataArray, dims (trajectory, time, *state), or None
        None if the observations do not lie at the state's sites: then no observation error belongs to a field.
    variance : xarray.DataArray
        Variance of observation errors.
    states : xarray.DataArray, dims (trajectory, time, *state)
        States of the truth, or of the analysis if there is no truth.

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
