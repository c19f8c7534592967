"""The space of a state: its fields in their order, and their places in the flat vector."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import shown, switch
from ..keywords import constructor_checks_keywords
from .base import Geometry, geometry_from_json, geometry_to_json
from .coordinates import MOST_COMPONENTS, Coordinate, word
from .joint import joint_symmetries

STATE = "state"  # dim of a packed state of several fields


@constructor_checks_keywords
@dataclass(frozen=True)
class Field:
    """One physical variable of a state.

    Parameters
    ----------
    name : str
        Name of the field. In variables of records it follows the role: `truth_u`.
    geometry : Geometry
        Where the field lives.
    units : str
        Units of the field.
    long_name : str, optional
        Description of the field's variables; by default the name.
    standard_name : str, optional
        Standard name of the CF conventions; by default none.
    conserved : bool
        Whether the model conserves the field's area-weighted mean. Networks then conserve it too.

    Raises
    ------
    TypeError
        If the name is not a word, or the geometry is not a Geometry.

    Examples
    --------
    >>> import xdan
    >>> wind = xdan.Field("u", xdan.Ring(40), units="m s-1", standard_name="eastward_wind")
    >>> xdan.StateSpace([wind]).size
    40
    """

    name: str
    geometry: Geometry
    units: str = "1"
    long_name: str | None = None
    standard_name: str | None = None
    conserved: bool = False

    def __post_init__(self) -> None:
        if not word("name", self.name).isidentifier():
            raise ValueError(f"name={self.name!r} of a field: expected letters, digits and underscores")
        word("units", self.units)
        if not isinstance(self.geometry, Geometry):
            raise TypeError(
                f"geometry={shown(self.geometry)} of the field {self.name!r}: expected a geometry such as xdan.Ring(40)"
            )
        for label in ("long_name", "standard_name"):
            if getattr(self, label) is not None:
                word(label, getattr(self, label))
        switch("conserved", self.conserved)

    @property
    def title(self) -> str:
        """Name of the field in titles and messages."""
        return self.long_name or self.name

    def to_json(self) -> dict[str, Any]:
        """Plain JSON description."""
        described = {"name": self.name, "geometry": geometry_to_json(self.geometry), "units": self.units}
        more = {"long_name": self.long_name, "standard_name": self.standard_name, "conserved": self.conserved or None}
        return described | {label: value for label, value in more.items() if value is not None}


class FixedInput:
    """A constant field that networks read, such as the Coriolis parameter, the orography, or a mask of land.

    Parameters
    ----------
    name : str
        Name of the input.
    geometry : Geometry
        The geometry of a field of the state.
    values : Tensor, shape (*shape of the geometry)
        They should be of order one, because they are not normalised.

    Raises
    ------
    TypeError
        If the values are not a tensor of real numbers.
    ValueError
        If the shape is wrong, or values are not finite.

    Examples
    --------
    >>> import torch, xdan
    >>> ring = xdan.Ring(8)
    >>> land = xdan.FixedInput("land", ring, torch.tensor([1.0] * 3 + [0.0] * 5))
    >>> xdan.StateSpace([xdan.Field("u", ring)], inputs=[land]).size  # the state's size, without the mask
    8
    """

    def __init__(self, name: str, geometry: Geometry, values: Tensor) -> None:
        self.name, self.geometry = word("name", name), geometry
        if not isinstance(values, Tensor) or not values.is_floating_point():
            raise TypeError(f"values={shown(values)} of the fixed input {name!r}: expected a tensor of real numbers")
        if tuple(values.shape) != geometry.shape or not bool(values.isfinite().all()):
            raise ValueError(
                f"the fixed input {name!r} has shape {tuple(values.shape)}: expected finite numbers of shape "
                f"{geometry.shape}"
            )
        self.values = values.detach().clone()


@constructor_checks_keywords
class StateSpace:
    """The fields of a state in their order. Together they make a flat vector.

    Parameters
    ----------
    fields : Field, or iterable of Field
        At least one, with distinct names.
    inputs : iterable of FixedInput
        What networks read besides the state.

    Attributes
    ----------
    fields : tuple of Field
    inputs : tuple of FixedInput
    size : int
        Number N of components of the flat vector.
    slices : dict of str to slice
        Slice of each field in the flat vector.
    dims : tuple of str
        Dims of a state outside methods: those of the one field, or `state` for several fields.
    shape : tuple of int
        Lengths of `dims`.
    units : str
        Common units of all fields; "1" if they differ.

    Raises
    ------
    TypeError
        If `fields` are not Fields.
    ValueError
        If there are no fields, two fields have one name, two geometries have a dim with one name and different
        coordinates, or a fixed input has a geometry that no field has.

    Examples
    --------
    >>> from xdan.core.spaces import Ring
    >>> space = StateSpace([Field("h", Ring(3)), Field("u", Ring(3))])
    >>> space.pack({"u": torch.zeros(3), "h": torch.ones(3)})
    tensor([1., 1., 1., 0., 0., 0.])
    """

    def __init__(self, fields: Field | Iterable[Field], inputs: Iterable[FixedInput] = ()) -> None:
        self.fields = (fields,) if isinstance(fields, Field) else _checked_fields(fields)
        names = [field.name for field in self.fields]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"fields {names}: expected at least one field, and distinct names")
        _check_dims(self.fields)
        self.inputs = tuple(inputs)
        for one in self.inputs:
            if not isinstance(one, FixedInput) or all(one.geometry != field.geometry for field in self.fields):
                raise ValueError(f"inputs= holds {shown(one)}: expected FixedInputs on the geometry of a field")
        self.slices: dict[str, slice] = {}
        start = 0
        for field in self.fields:
            self.slices[field.name] = slice(start, start + field.geometry.size)
            start += field.geometry.size
        if start > MOST_COMPONENTS:
            raise ValueError(f"the fields {names} have {start} components: expected at most {MOST_COMPONENTS}")
        self.size = start
        alone, units = self.single, {field.units for field in self.fields}
        self.dims: tuple[str, ...] = (STATE,) if alone is None else alone.geometry.dims
        self.shape: tuple[int, ...] = (start,) if alone is None else alone.geometry.shape
        self.units = units.pop() if len(units) == 1 else "1"

    def __iter__(self) -> Iterator[Field]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    def __getitem__(self, name: str) -> Field:
        """The field with this name.

        Raises
        ------
        ValueError
            If there is no such field.
        """
        for field in self.fields:
            if field.name == name:
                return field
        raise ValueError(f"no field {shown(name)}: expected one of {self.names}")

    @property
    def names(self) -> list[str]:
        """Names of the fields, in their order."""
        return [field.name for field in self.fields]

    @property
    def single(self) -> Field | None:
        """The field, if there is only one: the state then has its dims. Otherwise None."""
        return self.fields[0] if len(self.fields) == 1 else None

    @property
    def is_plain_ring(self) -> bool:
        """Whether a network without a space can be used: for one field on a ring of any length.

        A field with a conserved mean, and fixed inputs, need a network with a space.
        """
        alone = self.single
        return alone is not None and alone.geometry.is_ring and not alone.conserved and not self.inputs

    @property
    def coordinates(self) -> dict[str, Coordinate]:
        """Coordinates of `dims`."""
        if self.single:
            return self.fields[0].geometry.coordinates
        return {STATE: Coordinate(tuple(range(self.size)), {"long_name": "component of the state", "units": "1"})}

    def pack(self, fields: Mapping[str, Tensor]) -> Tensor:
        """Join all fields to the flat vector.

        Parameters
        ----------
        fields : mapping of str to Tensor, shape (..., *shape of the field)
            In any order.

        Returns
        -------
        Tensor, shape (..., N)

        Raises
        ------
        ValueError
            If a field is missing or not in the space, or has another shape.
        """
        if set(fields) != set(self.names):
            raise ValueError(f"the fields {sorted(map(str, fields))}: expected {self.names}")
        flat = []
        for field in self.fields:
            value, shape = fields[field.name], field.geometry.shape
            if tuple(value.shape[value.ndim - len(shape) :]) != shape:
                raise ValueError(f"the field {field.name!r} has shape {tuple(value.shape)}: expected (..., {shape})")
            flat.append(value.flatten(value.ndim - len(shape)))
        return flat[0] if len(flat) == 1 else torch.cat(flat, -1)

    def unpack(self, x: Tensor) -> dict[str, Tensor]:
        """Split the flat vector into its fields.

        Parameters
        ----------
        x : Tensor, shape (..., N)

        Returns
        -------
        dict of str to Tensor, shape (..., *shape of the field)
            Views, if torch can give views.

        Raises
        ------
        ValueError
            If x has another length.
        """
        if x.shape[-1] != self.size:
            raise ValueError(f"a state of {x.shape[-1]} components: expected {self.size}, of the fields {self.names}")
        parts = x.split([field.geometry.size for field in self.fields], -1)
        return {f.name: part.unflatten(-1, f.geometry.shape) for f, part in zip(self.fields, parts, strict=True)}

    def weights(self) -> Tensor:
        """Area of each component, shape (N,), float64."""
        return torch.cat([field.geometry.weights() for field in self.fields])

    def distances(self, sites: Tensor) -> Tensor | None:
        """Distances between components, in their coordinates' units.

        Parameters
        ----------
        sites : Tensor of int64, shape (n,)
            Components of the flat vector.

        Returns
        -------
        Tensor of float64, shape (n, N), or None if two fields have no common space, or one has no distances
        """
        rows = torch.empty(len(sites), self.size, dtype=torch.float64, device=sites.device)
        for one in self.fields:
            part = self.slices[one.name]
            within = (sites >= part.start) & (sites < part.stop)
            if not bool(within.any()):
                continue
            places = one.geometry.positions()
            apart = None
            if places is not None:
                apart = self.distances_from(places.to(sites.device)[sites[within] - part.start], one.name)
            if apart is None:
                return None
            rows[within] = apart
        return rows

    def distances_from(self, points: Tensor, name: str) -> Tensor | None:
        """Distances from places to all components, in their coordinates' units.

        Parameters
        ----------
        points : Tensor, shape (n, dims of the field)
        name : str
            Name of the field in whose coordinates the places are.

        Returns
        -------
        Tensor of float64, shape (n, N), or None if a field has no common space with this one, or has no distances
        """
        geometry = self[name].geometry
        rows = torch.empty(len(points), self.size, dtype=torch.float64, device=points.device)
        for other in self.fields:
            apart = other.geometry.distances(points) if other.geometry.meets(geometry) else None
            if apart is None:
                return None
            rows[:, self.slices[other.name]] = apart
        return rows

    def interpolation(self, points: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """How values of a field at some places follow from the flat vector.

        Parameters
        ----------
        points : Tensor, shape (n, dims of the field)
        name : str
            Name of the field.

        Returns
        -------
        indices, weights : Tensor, shape (n, k)
            See `Geometry.interpolation`. The indices refer to the flat vector.
        """
        indices, weights = self[name].geometry.interpolation(points)
        return indices + self.slices[name].start, weights

    def symmetries(self) -> dict[str, Tensor]:
        """Permutations of the flat vector that may be symmetries of a model, by name.

        Fields whose geometries lie in one space move together. Fields on one grid move by one permutation. Fields on
        different grids move by the smallest common displacement. Other fields move alone. Two fields on one grid may be
        exchanged.

        Returns
        -------
        dict of str to Tensor of int64, shape (N,)
            A permutation g acts by (g x)_i = x_{g(i)}.
        """
        candidates: dict[str, Tensor] = {}
        for fields in self._meeting():
            for name, moves in joint_symmetries([one.geometry for one in fields]).items():
                order = torch.arange(self.size)
                for one, move in zip(fields, moves, strict=True):
                    place = self.slices[one.name]
                    order[place] = place.start + move
                candidates[name if name not in candidates else f"{name} of {fields[0].name}"] = order
        for one, other in itertools.combinations(self.fields, 2):
            if one.geometry == other.geometry:
                order = torch.arange(self.size)
                here, there = self.slices[one.name], self.slices[other.name]
                order[here], order[there] = order[there].clone(), order[here].clone()
                candidates[f"exchange of {one.name} and {other.name}"] = order
        return candidates

    def _meeting(self) -> list[list[Field]]:
        """Groups of fields whose geometries lie in one space."""
        groups: list[list[Field]] = []
        for one in self.fields:
            for group in groups:
                if one.geometry == group[0].geometry or one.geometry.meets(group[0].geometry):
                    group.append(one)
                    break
            else:
                groups.append([one])
        return groups

    def to_json(self) -> dict[str, Any]:
        """Plain JSON description. Fixed inputs have names and dims only, as a network's weights hold the values."""
        described: dict[str, Any] = {"fields": [field.to_json() for field in self.fields]}
        if self.inputs:
            described["inputs"] = [{"name": one.name, "dims": list(one.geometry.dims)} for one in self.inputs]
        return described

    @classmethod
    def from_json(cls, description: Any) -> StateSpace:
        """Make the space that a store describes. Its fixed inputs are zero until values are loaded.

        Raises
        ------
        ValueError
            If the description is not one of a space, or a geometry is not registered. Nothing is imported.
        """
        try:
            fields = [
                Field(**{**one, "geometry": geometry_from_json(one["geometry"])}) for one in description["fields"]
            ]
            by_dims = {field.geometry.dims: field.geometry for field in fields}
            inputs = [(one["name"], by_dims[tuple(one["dims"])]) for one in description.get("inputs", [])]
            return cls(fields, [FixedInput(name, on, torch.zeros(on.shape, device="cpu")) for name, on in inputs])
        except (AttributeError, KeyError, TypeError, RecursionError) as reason:
            raise ValueError(
                f"a space is described by {shown(description)}: expected its fields, with names and geometries "
                f"({type(reason).__name__}: {reason})"
            ) from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StateSpace) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_json(), sort_keys=True))

    def __repr__(self) -> str:
        return f"StateSpace({', '.join(f'{field.name}: {field.geometry!r}' for field in self.fields)})"


def _checked_fields(fields: Any) -> tuple[Field, ...]:
    if not isinstance(fields, Iterable):
        raise TypeError(f"fields={shown(fields)}: expected Fields, such as xdan.Field('u', xdan.Ring(40))")
    listed = tuple(fields)
    for one in listed:
        if not isinstance(one, Field):
            raise TypeError(f"fields= holds {shown(one)}: expected Fields, such as xdan.Field('u', xdan.Ring(40))")
    return listed


def _check_dims(fields: tuple[Field, ...]) -> None:
    """Refuse two fields whose dims have one name and different coordinates, because a Dataset cannot hold both."""
    known: dict[str, Coordinate] = {}
    for field in fields:
        for dim, coordinate in field.geometry.coordinates.items():
            if known.setdefault(dim, coordinate) != coordinate:
                raise ValueError(
                    f"the field {field.name!r} has a dim {dim!r} with other coordinates than the field before: "
                    "expected one grid for a dim's name; give the geometry another dim="
                )
