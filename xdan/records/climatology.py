"""A climatology that the caller brings: states of an array, or of the record's truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from ..core.checks import real_array, shown
from ..core.dynamics import Dynamics
from ..core.formats import data_format
from ..core.twin import check_field_names
from .fields import Part, find_fields, in_order, parts_of, whole_of
from .schema import TIME, TRAJECTORY, TRUTH
from .units import check_units_of_parts

_MOST = 4096  # states of a record that stand for its climate


def with_climatology(
    dynamics: Dynamics, climatology: Any, of_record: Callable[[], xr.DataArray] | None = None
) -> Dynamics:
    """Give a dynamics the climatology that a caller asks for.

    Parameters
    ----------
    dynamics : Dynamics
        The dynamics without it.
    climatology : array_like or DataArray, shape (..., *state), mapping, Dataset, "record" or None
        States, in the units of the state. If the state has several fields: a mapping of the fields' names to arrays
        (..., *shape of the field), or a Dataset with the truth of the fields or with variables of these names. None
        leaves the dynamics as it is.
    of_record : callable, optional
        Reads states of the record's truth, for climatology="record". It is None if the record has no truth.

    Raises
    ------
    TypeError
        If a value is not a real number.
    ValueError
        For a word other than "record", for "record" without a truth, and for states that cannot be a climatology: they
        have another shape or labels in another order, or they are too few, not finite, or all equal.
    """
    if climatology is None:
        return dynamics
    if isinstance(climatology, str):
        if climatology != "record":
            raise ValueError(f"climatology={climatology!r}: expected 'record', or an array of states (sample, *state)")
        if of_record is None:
            raise ValueError(
                "climatology='record' takes the states of the record's truth, and there is none: expected a Dataset "
                "with a variable 'truth', named with truth=, or an array of states (sample, *state)"
            )
        climatology = of_record()
    if dynamics.space.single is None and isinstance(climatology, Mapping):
        climatology = _packed(climatology, dynamics)
    if isinstance(climatology, xr.Dataset):
        raise TypeError(
            f"climatology is a Dataset of {shown(sorted(map(str, climatology.data_vars)))}: expected one of its "
            "variables, such as ds.truth, or 'record'"
        )
    if isinstance(climatology, xr.DataArray):
        whole = whole_of(dynamics)
        if dynamics.space.single is None and not set(whole.dims) <= set(climatology.dims):
            raise ValueError(
                f"climatology= is one variable with the dims {climatology.dims}: expected a mapping of the fields "
                f"{dynamics.space.names} to their states, or a Dataset with their truth"
            )
        check_units_of_parts(climatology, dynamics)
        for dim in whole.dims:
            if climatology.sizes.get(dim) == whole.sizes[dim]:
                climatology = in_order(climatology, dim, whole)
    return dynamics.with_climatology(climatology)


def _packed(fields: Mapping[Any, Any], model: Dynamics) -> np.ndarray[Any, Any]:
    """States of several fields as one array (sample, N), each field in the order of its geometry.

    Raises
    ------
    TypeError, ValueError
        If a field is missing or is no field of the state, or if states fit neither their geometry nor one another.
    """
    names = model.space.names
    if isinstance(fields, xr.Dataset):
        data_format(fields.attrs, "climatology")
        truth = find_fields(fields, TRUTH, model, all_fields=False)
        fields = truth if isinstance(truth, dict) else {name: fields[name] for name in names if name in fields}
    if missing := [name for name in names if name not in fields]:
        raise ValueError(
            f"climatology= has no states of the fields {missing}, there are {list(fields)}: expected a mapping of "
            f"all fields {names} to their states, or a Dataset with their truth"
        )
    check_field_names("climatology", fields, model.space)
    first, samples = None, []
    for part in parts_of(model):
        assert part.field is not None
        variable = _of_field(fields[part.field.name], part, model)
        sample = variable.isel(dict.fromkeys(part.dims, 0), drop=True)
        first = sample if first is None else first
        if dict(sample.sizes) != dict(first.sizes) or not all(
            sample[dim].equals(first[dim]) for dim in sample.dims if dim in sample.coords and dim in first.coords
        ):
            raise ValueError(
                f"climatology= has states of {first.name!r} along {dict(first.sizes)} and of {sample.name!r} along "
                f"{dict(sample.sizes)}, or under other labels: expected those of all fields at one time together, "
                "for example by xr.align(..., join='inner')"
            )
        samples.append(variable.transpose(*first.dims, *part.dims).values.reshape(first.size, -1))
    return np.concatenate(samples, -1)


def _of_field(values: Any, part: Part, model: Dynamics) -> xr.DataArray:
    """Bring the states of a field, dims (..., *dims of the field) in any order, into the order of its geometry."""
    assert part.field is not None
    label = f"climatology[{part.field.name!r}]"
    if not isinstance(values, xr.DataArray):
        numbers = real_array(label, values, finite=False)
        if numbers.ndim <= len(part.dims) or numbers.shape[-len(part.dims) :] != part.shape:
            raise ValueError(f"{label} has shape {numbers.shape}: expected (sample, {', '.join(map(str, part.shape))})")
        lead = [f"sample_{axis}" for axis in range(numbers.ndim - len(part.dims))]
        return xr.DataArray(numbers, dims=(*lead, *part.dims), name=label)
    variable = values.rename(label)
    sizes = {dim: variable.sizes[dim] for dim in part.dims if dim in variable.dims}
    if sizes != part.sizes or variable.ndim == len(sizes):
        raise ValueError(
            f"{label} has the sizes {dict(variable.sizes)}: expected {part.sizes}, of {part.label}, and a dim for the "
            "states, such as 'sample'"
        )
    check_units_of_parts({part.field.name: variable}, model)
    for dim in part.dims:
        variable = in_order(variable, dim, part)
    return variable


def spaced(truth: xr.DataArray) -> xr.DataArray:
    """Take at most 4096 states of a truth (trajectory, time, *state), evenly spaced.

    They are the states at some times of every trajectory, or at one time of some trajectories.
    """
    trajectories, times = truth.sizes[TRAJECTORY], truth.sizes[TIME]
    rows = np.unique(np.linspace(0, trajectories - 1, min(trajectories, _MOST)).round().astype(int))
    columns = np.unique(np.linspace(0, times - 1, min(times, max(1, _MOST // len(rows)))).round().astype(int))
    return truth.isel({TRAJECTORY: rows, TIME: columns})
