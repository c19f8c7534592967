"""One order of dims for every variable of a record or of a run: (trajectory, time, ...)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from ..core.checks import shown
from ..core.dynamics import Dynamics
from .fields import OneOrFields, Part, coordinates_of, in_order, pack, parts_of, whole_of
from .schema import TIME, TRAJECTORY, time_dims

Labelled = TypeVar("Labelled", xr.Dataset, xr.DataArray)

_PACKING = {"scale_factor": 1.0, "add_offset": 0.0}  # attributes of packed values; with these numbers nothing is packed


def arrange_state(
    variables: OneOrFields, model: Dynamics, name: str, extra: Mapping[str, int] | None = None
) -> xr.DataArray:
    """Give states the dims (trajectory, time, *extra, *dims of the dynamics' state).

    Parameters
    ----------
    variables : DataArray, or dict of str to DataArray
        The variable of the whole state, or one variable for each field, by the fields' names. Fields may be missing.
    model : Dynamics
        The dynamics whose state the variables hold.
    name : str
        Name of the packed array.
    extra : mapping of str to int, optional
        Further dims and their sizes.

    Raises
    ------
    TypeError, ValueError
        For what `arrange` refuses, and for fields whose units are not those of the state space.
    """
    beyond = dict(extra or {})
    if isinstance(variables, xr.DataArray):
        whole = whole_of(model)
        return arrange(variables, whole, {**beyond, **whole.sizes})
    parts = {part.field.name: part for part in parts_of(model) if part.field is not None}
    arranged = {}
    for field, variable in variables.items():
        part = parts[field]
        arranged[field] = arrange(variable, part, {**beyond, **part.sizes})
    return pack(arranged, model, name)


def arrange(variable: xr.DataArray, part: Part, expected: Mapping[str, int]) -> xr.DataArray:
    """Give a variable the dims (trajectory, time, *expected), with `expected` in one chunk and in the geometry's order.

    Parameters
    ----------
    variable : xarray.DataArray
        A variable with a dim of time. This dim may have another name if its coordinate holds dates or has the
        attribute `axis="T"`. The dim `trajectory` may be missing.
    part : Part
        The part of the state that the variable holds.
    expected : mapping of str to int
        The other dims and their sizes.

    Raises
    ------
    TypeError
        If a value is not a real number.
    ValueError
        If dims, sizes or labels do not fit, or the values are packed.
    """
    _check_values(variable)
    time = TIME if TIME in variable.dims else next(iter(time_dims(variable)), None)
    if time is None:
        raise ValueError(
            f"{variable.name!r} has dims {variable.dims} and none is time: expected 'time', or a dim whose "
            "coordinate holds dates or has the attribute axis='T'; rename the dim of the analysis times, and keep the "
            "dim if you select a single time: ds.isel(time=[0])"
        )
    if time != TIME:
        variable = variable.drop_vars(TIME, errors="ignore").rename({time: TIME})
    dims = tuple(expected)
    missing = [dim for dim in dims if dim not in variable.dims]
    extra = [str(dim) for dim in variable.dims if dim not in (TRAJECTORY, TIME, *dims)]
    if missing:
        raise ValueError(
            f"{variable.name!r} has dims {variable.dims}, without {missing}: expected the dynamics' state dims "
            f"{part.dims}; rename the record's dims{_renaming(extra, missing)}. If a single place is selected, keep "
            f"its dim: {missing[0]}=[0]"
        )
    if extra:
        raise ValueError(
            f"{variable.name!r} has dims {extra} beyond those expected, (trajectory, time, {', '.join(dims)}); rename "
            f"them, or select one place along each, as in ds.isel({extra[0]}=0)"
        )
    sizes = {dim: variable.sizes[dim] for dim in dims}
    if sizes != expected:
        raise ValueError(
            f"{variable.name!r} has state sizes {sizes}, {part.label} expects {dict(expected)}; "
            "pass the dynamics= of this record"
        )
    for dim in set(dims) & set(part.dims):
        _check_labels(variable, dim)
        variable = in_order(variable, dim, part)
    if TRAJECTORY not in variable.dims:
        variable = label_trajectory(variable)
    elif TRAJECTORY not in variable.coords:
        variable = variable.assign_coords({TRAJECTORY: np.arange(variable.sizes[TRAJECTORY])})
    if not np.issubdtype(variable[TRAJECTORY].dtype, np.integer):
        raise ValueError(
            f"trajectory labels are of {variable[TRAJECTORY].dtype}: expected integers, for example "
            "ds.assign_coords(trajectory=range(ds.sizes['trajectory']))"
        )
    labels, counts = np.unique(variable[TRAJECTORY].values, return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"the trajectory label {labels[counts > 1][0]} occurs {counts.max()} times: random draws are keyed by the "
            "labels, expected distinct labels, for example ds.assign_coords(trajectory=range(ds.sizes['trajectory']))"
        )
    variable = variable.transpose(TRAJECTORY, TIME, *dims)
    if variable.chunks is not None:
        variable = variable.chunk(dict.fromkeys(dims, -1))
    return variable


def reordered(variable: OneOrFields, part: Part) -> list[str]:
    """Say in which dims a variable's order differs from the geometry's; nothing for several fields."""
    if isinstance(variable, dict) or part.geometry is None:
        return []
    labelled = [dim for dim in part.dims if dim in variable.dims and dim in variable.coords]
    return [
        f"results have {dim!r} in the dynamics' order, which is not the record's"
        for dim in labelled
        if not (in_order(variable, dim, part)[dim].values == variable[dim].values).all()
    ]


def labels_of(model: Dynamics, *roles: OneOrFields | None) -> tuple[dict[Hashable, xr.DataArray], list[str]]:
    """Labels of the fields' dims: those of the record's variables, or else those of the geometries.

    The labels are in the order of the geometries.

    Parameters
    ----------
    model : Dynamics
        A dynamics of several fields.
    *roles : DataArray, or dict of str to DataArray, or None
        Variables by the fields' names. A packed variable has no labels of fields.

    Returns
    -------
    labels : dict
        Coordinates by name.
    notes : list of str
        A sentence for each dim whose order is not that of the record.
    """
    labels: dict[Hashable, xr.DataArray] = {}
    notes: list[str] = []
    for part in parts_of(model):
        assert part.field is not None
        places = xr.Dataset(coords=coordinates_of(part)).coords
        labels = {name: places[name] for name in places} | labels
        for variables in roles:
            if not isinstance(variables, dict) or part.field.name not in variables:
                continue
            ordered = variables[part.field.name]
            notes += reordered(ordered, part)
            for dim in part.dims:
                ordered = in_order(ordered, dim, part)
            labels |= {
                name: one for name, one in ordered.coords.items() if one.dims and set(one.dims) <= set(part.dims)
            }
    return labels, list(dict.fromkeys(notes))


def label_trajectory(variable: Labelled) -> Labelled:
    """Give a Dataset or DataArray of one trajectory this dim. Its label is the scalar coordinate, or 0."""
    return variable.expand_dims(TRAJECTORY if TRAJECTORY in variable.coords else {TRAJECTORY: [0]})


def _check_labels(variable: xr.DataArray, dim: str) -> None:
    """Refuse labels of the state that are missing or occur twice, because variables are matched by their labels."""
    if dim not in variable.coords:
        return
    labels = variable[dim]
    if bool(labels.isnull().any()) or len(np.unique(labels.values.astype(object).astype(str))) < labels.size:
        raise ValueError(
            f"{variable.name!r} has labels of {dim!r} that are missing or occur twice, "
            f"{shown(labels.values.tolist())}: expected distinct ones, for example "
            f"ds.assign_coords({dim}=range(ds.sizes[{dim!r}]))"
        )


def _check_values(variable: xr.DataArray) -> None:
    """Refuse values that are not real numbers, and packed values and fill values that were not decoded."""
    if variable.dtype.kind not in "fiu":
        raise TypeError(f"{variable.name!r} is of dtype {variable.dtype}: expected real numbers")
    check_packing(variable)


def check_packing(variable: xr.DataArray) -> None:
    """Refuse values that are packed, and fill values that are not NaN yet, if the attributes tell of them.

    Raises
    ------
    ValueError
        If the attributes say that values are packed, or that a number stands for a gap.
    """
    for label in ("_FillValue", "missing_value"):
        value = variable.attrs.get(label)
        if value is not None and not _is_nan(value):
            raise ValueError(
                f"{variable.name!r} has the attribute {label}={shown(value)}: expected NaN for its gaps. Open "
                "the record with mask_and_scale=True, or use xr.decode_cf(ds)"
            )
    for label, neutral in _PACKING.items():
        value = variable.attrs.get(label)
        if value is not None and not _is(value, neutral):
            raise ValueError(
                f"{variable.name!r} has the attribute {label}={shown(value)}: its values are packed, expected plain "
                "values. Open the record with mask_and_scale=True, or use xr.decode_cf(ds)"
            )


def _is_nan(value: Any) -> bool:
    try:
        return bool(np.isnan(np.asarray(value, dtype=np.float64)).all())
    except (TypeError, ValueError):
        return False


def _is(value: Any, number: float) -> bool:
    try:
        return bool((np.asarray(value, dtype=np.float64) == number).all())
    except (TypeError, ValueError):
        return False


def _renaming(extra: Sequence[str], missing: Sequence[str]) -> str:
    """The line that renames dims of a record to the dims that are missing, as the end of a sentence; or no text."""
    pairs = dict(zip(extra, missing, strict=False))
    if not pairs:
        return ""
    if all(name.isidentifier() for name in pairs):
        return f", as in ds.rename({', '.join(f'{old}={new!r}' for old, new in pairs.items())})"
    return f", as in ds.rename({pairs})"
