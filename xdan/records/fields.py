"""Labelled fields and packed states: the one place where fields become one array, and an array becomes fields.

A state of one field is one variable with the field's dims. This variable stays as it is. A state of several fields is
one variable for each field in a Dataset, such as `truth_u` and `truth_h`. In the verbs it is one packed array, dims
(trajectory, time, state).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from torch import Tensor

from ..core.checks import shown
from ..core.dynamics import Dynamics
from ..core.observing import ObservingSystem
from ..core.spaces import STATE, Coordinate, Field, Geometry
from ..core.twin import check_field_names, names_fields
from .schema import DUAL, MEMBER, OBS, TIME, TRAJECTORY, Role, as_labels, check_order, find, to_power

ROLE_ATTRIBUTE, FIELD_ATTRIBUTE = "xdan_role", "xdan_field"  # attributes: the role of a variable, and its field
_VALUES = ("truth", "observation", "forecast", "analysis", "smoothed", "members", "forecast_members")
_ERRORS = ("observation_error", "spread", "forecast_spread")  # variables with CF's modifier standard_error


@dataclass(frozen=True)
class Part:
    """The part of a state that one variable holds: one field of several, or the whole state.

    Attributes
    ----------
    field : Field or None
        None where the variable holds the whole state.
    geometry : Geometry or None
        None for a packed state.
    dims : tuple of str
    coordinates : dict of str to Coordinate
        One for each dim.
    units : str
    place : slice
        Place of the part in the flat state.
    label : str
        Name of the part in messages.
    """

    field: Field | None
    geometry: Geometry | None
    dims: tuple[str, ...]
    coordinates: Mapping[str, Coordinate]
    units: str
    place: slice
    label: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the dims."""
        return tuple(len(self.coordinates[dim].values) for dim in self.dims)

    @property
    def sizes(self) -> dict[str, int]:
        """Lengths by dim."""
        return dict(zip(self.dims, self.shape, strict=True))

    def name(self, stem: str) -> str:
        """Name of the variable: `truth`, or `truth_u`."""
        return stem if self.field is None else f"{stem}_{self.field.name}"

    def title(self, long_name: str) -> str:
        """A long name that names the field, too."""
        return long_name if self.field is None else f"{long_name}: {self.field.title}"

    def described(self, role: Role, long_name: str) -> dict[str, str]:
        """Attributes of the variable in a role of a record."""
        said = role.attributes(self.title(long_name), self.units)
        return said | self.attributes(role.name, long_name, role.power)

    def attributes(self, stem: str, long_name: str, power: int = 1) -> dict[str, str]:
        """Attributes of the variable. For one field among several: also its role, its field and CF's standard name."""
        said = {"long_name": self.title(long_name), "units": to_power(self.units, power)}
        if self.field is None:
            return said
        said |= {ROLE_ATTRIBUTE: stem, FIELD_ATTRIBUTE: self.field.name}
        if self.field.standard_name and stem in _VALUES:
            said["standard_name"] = self.field.standard_name
        if self.field.standard_name and stem in _ERRORS:
            said["standard_name"] = f"{self.field.standard_name} standard_error"
        return said


def whole_of(model: Dynamics) -> Part:
    """The whole state as one variable: the variable of the only field, or a packed one."""
    single = model.space.single
    stated = single is not None and single.geometry.dims == model.dims
    return Part(
        None,
        single.geometry if single is not None and stated else None,
        model.dims,
        model.coordinates,
        model.units,
        slice(None),
        f"the dynamics {model!r}",
    )


def parts_of(model: Dynamics) -> tuple[Part, ...]:
    """The variables that together hold a state, in the order of the flat vector."""
    space = model.space
    if space.single is not None:
        return (whole_of(model),)
    return tuple(
        Part(
            field,
            field.geometry,
            field.geometry.dims,
            field.geometry.coordinates,
            field.units,
            space.slices[field.name],
            f"the field {field.name!r} of the dynamics {model.label!r}",
        )
        for field in space
    )


def observed_parts(model: Dynamics, observing: ObservingSystem, names: Collection[str]) -> tuple[Part, ...]:
    """The variables that hold observations: of the whole state, of the fields in `names`, or of an operator."""
    if not observing.direct:
        size = observing.size(model.space.size)
        along = {OBS: Coordinate(tuple(range(size)))}
        return (Part(None, None, (OBS,), along, model.units, slice(None), "the observation operator"),)
    return tuple(part for part in parts_of(model) if part.field is None or part.field.name in names)


def in_order(variable: xr.DataArray, dim: str, part: Part) -> xr.DataArray:
    """Bring a variable into the order of the geometry along a dim.

    Raises
    ------
    ValueError
        If the places are not those of the geometry; or, for a geometry that names no places, if its labels stand in
        another order.
    """
    if _order_of_places(variable, dim, part) is None:
        check_order(variable, dim, part)
    return in_order_of_places(variable, dim, part)


def in_order_of_places(variable: xr.DataArray, dim: str, part: Part) -> xr.DataArray:
    """Bring a variable into the order of the places that the geometry names, if the geometry names places.

    Raises
    ------
    ValueError
        If the places are not those of the geometry.
    """
    order = _order_of_places(variable, dim, part)
    return variable if order in (None, list(range(variable.sizes[dim]))) else variable.isel({dim: order})


def in_order_twice(variable: xr.DataArray, part: Part) -> xr.DataArray:
    """Bring errors into the order of the geometry; a covariance along its second dims, too.

    Raises
    ------
    ValueError
        If the places are not those of the geometry, or the labels along the second dims differ from the first.
    """
    for dim in part.dims:
        if dim not in variable.dims or dim not in variable.coords:
            continue
        ordered, dual = in_order_of_places(variable, dim, part), f"{dim}{DUAL}"
        if dual in variable.dims and ordered is not variable:
            labels = variable[dim].values.tolist()
            if dual in variable.coords and variable[dual].values.tolist() != labels:
                raise ValueError(
                    f"{variable.name!r} has other labels along {dual!r} than along {dim!r}: expected equal ones"
                )
            ordered = ordered.isel({dual: [labels.index(label) for label in ordered[dim].values.tolist()]})
        variable = ordered
    return variable


def _order_of_places(variable: xr.DataArray, dim: str, part: Part) -> list[int] | None:
    """Positions of the geometry's places along a dim. None if the geometry or the variable does not name places."""
    if part.geometry is None or dim not in variable.dims or dim not in variable.coords:
        return None
    try:
        return part.geometry.order_of(dim, variable[dim].values.tolist())
    except ValueError as reason:
        raise ValueError(f"{variable.name!r} lies on other places than {part.label}: {reason}") from None


OneOrFields = xr.DataArray | dict[str, xr.DataArray]
"""The variable of a role, or one variable for each field, by the fields' names."""


def each(variables: OneOrFields | None) -> tuple[xr.DataArray, ...]:
    """The variables, one after another."""
    if variables is None:
        return ()
    return (variables,) if isinstance(variables, xr.DataArray) else tuple(variables.values())


def find_fields(
    ds: xr.Dataset, role: Role, model: Dynamics, word: Any = None, *, all_fields: bool = True
) -> OneOrFields | None:
    """Find the variable, or the variable of each field, that plays a role.

    The caller names the variable of a field; or the variable has the attributes `xdan_role` and `xdan_field`; or its
    name is made of the role and the field, such as `truth_u`.

    Parameters
    ----------
    ds : xarray.Dataset
    role : Role
    model : Dynamics
    word : str, mapping of str to str, or None
        The caller's names. Fields that a mapping leaves out are not looked for, unless `all_fields`.
    all_fields : bool
        Whether every field must have a variable.

    Raises
    ------
    TypeError, ValueError
        If a name or a field does not exist, a field has no variable or several variables claim it, or a mapping comes
        for a state of one field.
    """
    space = model.space
    if names_fields(word):
        check_field_names(role.keyword, word, space)
    elif space.single is not None or word is not None:
        variable = find(ds, role, word) if space.single is not None or isinstance(word, str) else None
        if space.single is not None or (variable is not None and not _is_of_one_field(variable, role, model)):
            return variable
        raise ValueError(
            f"{role.keyword}={shown(word)}: expected a mapping of the fields {space.names} to names, such as "
            f"{role.keyword}={{{space.names[0]!r}: ...}}"
        )
    names: dict[str, str] = dict(word) if word is not None else {}
    variables = {}
    for field in space.names:
        if field in names:
            named = find(ds, role, names[field])
            assert named is not None
            variables[field] = named
        elif word is None or all_fields:
            name = _claimant(ds, role, field)
            if name is not None:
                variables[field] = ds[name]
    packed = None if word is not None else _packed(ds, role, space.names)
    if packed is not None and variables:
        raise ValueError(
            f"{packed!r} and {_names(variables)} both claim the role {role.name!r}: expected one variable for each "
            f"field, or one packed variable; drop one of the two, or name the one that counts with {role.keyword}="
        )
    if packed is not None:
        return ds[packed]
    missing = [field for field in space.names if field not in variables]
    if variables and missing and all_fields:
        raise ValueError(
            f"the fields {missing} have no variable for the role {role.name!r}, others have {_names(variables)}: "
            f"expected {[f'{role.name}_{field}' for field in missing]} too; name them with "
            f"{role.keyword}={{{missing[0]!r}: ...}}"
        )
    used = _names(variables)
    if twice := sorted({name for name in used if used.count(name) > 1}):
        raise ValueError(
            f"the variables {twice} stand for several fields in {role.keyword}=: expected one for each field"
        )
    return variables or None


def _is_of_one_field(variable: xr.DataArray, role: Role, model: Dynamics) -> bool:
    """Whether states or observations have the dims of a field. Others are packed, or lie along an operator's dim."""
    dims = {dim for part in parts_of(model) for dim in part.dims}
    return role.power == 1 and not {STATE, OBS} & set(variable.dims) and bool(dims & set(variable.dims))


def states_of(run: xr.Dataset, role: Role, model: Dynamics) -> OneOrFields | None:
    """Variables of a run, which their names or their attributes tell; None if there are none."""
    if model.space.single is not None:
        return run.get(role.name)
    return find_fields(run, role, model)


def _names(variables: Mapping[str, xr.DataArray]) -> list[str]:
    return [str(one.name) for one in variables.values()]


def _claimant(ds: xr.Dataset, role: Role, field: str) -> str | None:
    """Name of the variable that plays a role for a field."""
    canonical, both = f"{role.name}_{field}", (role.name, field)
    names = []
    for name, variable in ds.variables.items():
        said = variable.attrs.get(ROLE_ATTRIBUTE), variable.attrs.get(FIELD_ATTRIBUTE)
        if said == both or (name == canonical and said in ((None, None), (role.name, None))):
            names.append(str(name))
    if canonical in names:
        return canonical
    if len(names) > 1:
        raise ValueError(
            f"variables {sorted(names)} all claim the role {role.name!r} of the field {field!r}: expected one; choose "
            f"with {role.keyword}={{{field!r}: ...}}"
        )
    return names[0] if names else None


def _packed(ds: xr.Dataset, role: Role, fields: list[str]) -> str | None:
    """Name of the variable that plays a role for the whole state, or for observations that belong to no field."""
    if role.name in ds.variables:
        return role.name
    of_fields = {f"{role.name}_{field}" for field in fields}
    names = [
        str(name)
        for name, variable in ds.variables.items()
        if variable.attrs.get(ROLE_ATTRIBUTE) == role.name
        and FIELD_ATTRIBUTE not in variable.attrs
        and name not in of_fields
    ]
    if len(names) > 1:
        raise ValueError(
            f"variables {sorted(names)} all claim the role {role.name!r}; choose one with {role.keyword}=: expected "
            "one of them, or a mapping of fields to names"
        )
    return names[0] if names else None


def pack(variables: Mapping[str, xr.DataArray], model: Dynamics, name: str) -> xr.DataArray:
    """Make one packed array from arranged fields, lazily.

    Parameters
    ----------
    variables : mapping of str to DataArray, dims (trajectory, time, [member,] *dims of the field)
        The variables by the fields' names. A field without a variable becomes NaN.
    model : Dynamics
        A dynamics of several fields.
    name : str
        Name of the result.

    Returns
    -------
    DataArray, dims (trajectory, time, [member,] state)
        Its labels are those of trajectory and time alone.

    Raises
    ------
    ValueError
        If the labels of trajectory or time differ between variables.
    """
    parts = parts_of(model)
    by_name = {part.field.name: part for part in parts if part.field is not None}
    first_field, first = next(iter(variables.items()))
    lead = first.dims[: first.ndim - len(by_name[first_field].dims)]
    for other in variables.values():
        _check_alike(first, other)
    shape = tuple(first.sizes[dim] for dim in lead)
    dtype = np.result_type(np.float32, *(one.dtype for one in variables.values()))
    lazy = any(is_lazy(one) for one in variables.values())
    chunks = next((one.chunks for one in variables.values() if one.chunks is not None), None)
    leading = shape if chunks is None else chunks[: len(lead)]
    arrays = []
    for field, part in by_name.items():
        size = part.place.stop - part.place.start
        if field not in variables:
            whole = (*shape, size)
            if lazy:
                arrays.append(da.full(whole, np.nan, dtype=dtype, chunks=(*leading, size)))
            else:
                arrays.append(np.full(whole, np.nan, dtype))
            continue
        variable = variables[field].transpose(*lead, *part.dims)
        sizes: dict[Any, Any] = dict(zip(lead, leading, strict=True)) | dict.fromkeys(part.dims, -1)
        data = variable.chunk(sizes).data if lazy else variable.values
        arrays.append(data.reshape((*shape, size)).astype(dtype, copy=False))
    packed = da.concatenate(arrays, -1).rechunk({-1: -1}) if lazy else np.concatenate(arrays, -1)
    labels = {key: one for key, one in first.coords.items() if set(one.dims) <= {TRAJECTORY, TIME}}
    return xr.DataArray(packed, labels, (*lead, STATE), name, {"units": model.units})


def is_lazy(variable: xr.DataArray) -> bool:
    """Whether the values are not in memory: they are dask's, or in a file that is not read yet."""
    return variable.chunks is not None or not variable.variable._in_memory


def _check_alike(one: xr.DataArray, other: xr.DataArray) -> None:
    """Refuse two fields with different trajectories or times."""
    for dim in (TRAJECTORY, TIME):
        ours, theirs = (variable[dim].values for variable in (one, other))
        if ours.shape != theirs.shape or not (ours == theirs).all():
            raise ValueError(
                f"{one.name!r} and {other.name!r} differ along {dim!r}: {len(ours)} labels {shown(ours[:3].tolist())} "
                f"and {len(theirs)} labels {shown(theirs[:3].tolist())}; expected the same labels for every field, for "
                "example by xr.align(..., join='inner')"
            )


def split(packed: xr.DataArray, model: Dynamics, stem: str) -> dict[str, xr.DataArray]:
    """Make the variables of the fields from a packed state, lazily. For a state of one field: the array itself.

    Parameters
    ----------
    packed : DataArray, dims (..., *dims of the state)
    model : Dynamics
    stem : str
        Name of the variables: `stem`, or `stem_u` for a field u.

    Returns
    -------
    dict of str to DataArray, dims (..., *dims of the field)
        They have the geometries' coordinates, and the coordinates of the array's other dims.
    """
    if model.space.single is not None:
        return {stem: packed}
    packed = packed.transpose(..., STATE)
    lead = [dim for dim in packed.dims if dim != STATE]
    labels = {key: one for key, one in packed.coords.items() if STATE not in one.dims}
    if packed.chunks is not None:
        packed = packed.chunk({STATE: -1})
    variables = {}
    for part in parts_of(model):
        data = packed.data[..., part.place].reshape((*packed.shape[:-1], *part.shape))
        name = part.name(stem)
        attributes = part.attributes(stem, str(packed.attrs.get("long_name", stem)))
        variables[name] = xr.DataArray(data, {**labels, **coordinates_of(part)}, (*lead, *part.dims), name, attributes)
    return variables


def split_tensor(value: Tensor, parts: Sequence[Part], stem: str) -> dict[str, Tensor]:
    """Cut flat states or observations (..., N) into parts (..., *shape), by the name of each part's variable."""
    return {part.name(stem): value[..., part.place].unflatten(-1, part.shape).contiguous() for part in parts}


def split_values(values: Any, model: Dynamics, stem: str) -> dict[str, Any]:
    """Cut an array of states (..., *dims of the state) into the values of each variable; several fields come flat."""
    if model.space.single is not None:
        return {stem: values}
    return {part.name(stem): values[..., part.place] for part in parts_of(model)}


def pack_by_attributes(run: xr.Dataset, stem: str) -> xr.DataArray | None:
    """Make one array (..., state) from the fields of an output, which their attributes tell; None if there are none.

    It is made for verbs that know no dynamics: the fields are in the order of the variables.
    """
    flat = []
    for name, variable in run.data_vars.items():
        if variable.attrs.get(ROLE_ATTRIBUTE) == stem and FIELD_ATTRIBUTE in variable.attrs:
            inside = [dim for dim in variable.dims if dim not in (TRAJECTORY, TIME, MEMBER)]
            kept = variable.drop_vars([key for key, one in variable.coords.items() if set(one.dims) & set(inside)])
            stacked = kept.stack({STATE: inside}, create_index=False)
            label = as_labels([variable.attrs[FIELD_ATTRIBUTE]] * stacked.sizes[STATE])
            flat.append(stacked.assign_coords({f"{STATE}_field": (STATE, label)}).rename(str(name)))
    return xr.concat(flat, STATE, combine_attrs="drop_conflicts") if flat else None


def packed_labels(model: Dynamics, dim: str) -> dict[str, Any]:
    """Coordinates of a dim of packed states: the number of each component, and its field."""
    number = {"long_name": "component of the packed state", "units": "1"}
    labels: dict[str, Any] = {dim: (dim, np.arange(model.space.size), number)}
    if model.space.single is None:
        names = [field.name for field in model.space for _ in range(field.geometry.size)]
        labels[f"{dim}_field"] = dim, as_labels(names), {"long_name": "field of the component"}
    return labels


def factor_labels(model: Dynamics, factor: str, field: str | None = None) -> dict[str, Any]:
    """Coordinates of a factor i, j or l of a derivative, over the whole state or one field.

    A field of one dim has this dim's labels. A field of several dims has the numbers of its sites, and beside them a
    label from each dim, such as `i_lat` and `i_lon`. A packed state has the number of each component, and its field.
    The attribute `periodic` is 1 for a dim that closes on itself.
    """
    if field is None and model.space.single is None:
        return packed_labels(model, factor)
    part = next(one for one in parts_of(model) if one.field is None or one.field.name == field)
    closed = (True,) * len(part.dims) if part.geometry is None else part.geometry.closed
    number = np.arange(math.prod(part.shape)).reshape(part.shape)
    labels: dict[str, Any] = {factor: (factor, number.ravel(), {"long_name": "site of the flattened field"})}
    for axis, dim in enumerate(part.dims):
        index = (number // math.prod(part.shape[axis + 1 :])) % part.shape[axis]
        coordinate = part.coordinates[dim]
        said: dict[str, Any] = {key: value for key, value in coordinate.attributes.items() if key != "axis"}
        said["periodic"] = int(closed[axis])
        name = factor if len(part.dims) == 1 else f"{factor}_{dim}"
        labels[name] = factor, as_labels([coordinate.values[k] for k in index.ravel()]), said
    return labels


def component_text(model: Dynamics, component: int) -> str:
    """The field and the coordinates of a component of the flat state, such as "slow, x = 0"."""
    inside = [one for one in parts_of(model) if component >= (one.place.start or 0)]
    part = inside[-1]  # parts have the order of the flat vector
    index = np.unravel_index(component - (part.place.start or 0), part.shape)
    labels = [part.coordinates[dim].values[int(k)] for dim, k in zip(part.dims, index, strict=True)]
    words = [] if part.field is None else [part.field.name]
    for dim, label in zip(part.dims, labels, strict=True):
        words.append(f"{dim} = {label if isinstance(label, str) else format(label, 'g')}")
    return ", ".join(words)


def coordinates_of(part: Part) -> dict[str, tuple[str, Any, dict[str, str]]]:
    """Coordinates of a part's dims, as xarray takes them."""
    return {
        dim: (dim, as_labels(part.coordinates[dim].values), dict(part.coordinates[dim].attributes)) for dim in part.dims
    }


def state_coordinates(model: Dynamics) -> dict[str, tuple[str, Any, dict[str, str]]]:
    """Coordinates of the dims of all fields, as xarray takes them."""
    return {dim: labels for part in parts_of(model) for dim, labels in coordinates_of(part).items()}
