"""The protocol of a geometry: where a field lives, and how its points are related."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ..checks import shown
from ..registry import Registry, constructor_values
from .coordinates import Coordinate

_AT_ONCE = 1 << 22  # number of distances in one batch of the search for neighbours


class Geometry(ABC):
    """Where a field lives: its dims and coordinates, its padding, areas, distances and symmetries.

    A new geometry is one class in one file, with the decorator `xdan.register_geometry`. It sets `dims` and
    `coordinates`, keeps the plain values of its constructor as attributes of the same names, and gives `pad`. The other
    methods have defaults: every point has the area 1, and there are no distances and no symmetries.

    Attributes
    ----------
    name : str
        Class attribute: the registered name. Stores refer to it.
    dims : tuple of str
        Names of the field's dims.
    coordinates : dict of str to Coordinate
        A coordinate for each dim, with CF attributes. Their lengths are the geometry's `shape`.
    drawn_as : {"image", "lines"}
        Class attribute: how pictures show a field. "image" shows its dims as axes. "lines" shows a line for each point,
        which is right for points without neighbours.

    Examples
    --------
    >>> import torch, xdan
    >>> class Stations(xdan.Geometry):
    ...     "Points without neighbours."
    ...     name = "stations"
    ...     def __init__(self, count=3):
    ...         self.count, self.dims = count, ("station",)
    ...         self.coordinates = {"station": xdan.Coordinate(tuple(float(k) for k in range(count)))}
    ...     def pad(self, x, widths):
    ...         return torch.nn.functional.pad(x, (widths[0], widths[0]))
    >>> Stations(4).shape
    (4,)
    """

    name: ClassVar[str]
    drawn_as: ClassVar[str] = "image"
    dims: tuple[str, ...]
    coordinates: dict[str, Coordinate]

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of points along each dim."""
        return tuple(len(self.coordinates[dim].values) for dim in self.dims)

    @property
    def size(self) -> int:
        """Number of points."""
        return math.prod(self.shape)

    @property
    def sites(self) -> tuple[int, ...]:
        """Number of sites of a convolution along each dim; by default the number of points."""
        return self.shape

    def ratios(self, other: Geometry) -> tuple[int, ...] | None:
        """How many points of another geometry lie at each site of this one, along each dim.

        A field on the other geometry can then be joined to a field on this one: a network reads its points at a site as
        channels.

        Returns
        -------
        tuple of int, or None if they cannot be joined. By default a geometry is joined to an equal geometry only.
        """
        return (1,) * len(self.dims) if self == other else None

    def config(self) -> dict[str, Any]:
        """Plain JSON values from which `type(self)(**parameters)` makes the same geometry."""
        return constructor_values(self)

    @property
    def closed(self) -> tuple[bool, ...]:
        """For each dim, whether it is closed, so that the last point is beside the first; by default none is."""
        return (False,) * len(self.dims)

    @property
    def is_ring(self) -> bool:
        """Whether `pad` only goes around the one dim, so that faster convolutions are possible; by default False."""
        return False

    @abstractmethod
    def pad(self, x: Tensor, widths: Sequence[int]) -> Tensor:
        """Continue fields beyond the ends of each dim, for convolutions.

        Parameters
        ----------
        x : Tensor, shape (..., *shape)
        widths : sequence of int
            For each dim, the number of points to add at both ends.

        Returns
        -------
        Tensor, shape (..., n + 2 width for each dim)

        Raises
        ------
        ValueError
            If the points have no neighbours.
        """

    def weights(self) -> Tensor:
        """Area of each point, in the coordinates' units, shape (size,), float64; by default 1."""
        return torch.ones(self.size, dtype=torch.float64)

    @property
    def area(self) -> float:
        """Total area, the sum of the weights."""
        return float(self.size)

    def positions(self) -> Tensor | None:
        """Positions of the points, shape (size, dims), float64; None, the default, if points have no places."""
        return None

    def distances(self, points: Tensor) -> Tensor | None:
        """Distances from some places to every point, in the coordinates' units.

        Parameters
        ----------
        points : Tensor, shape (n, dims)
            Places, in the coordinates of `positions`. They may lie between points of the geometry.

        Returns
        -------
        Tensor of float64, shape (n, size), or None, the default, if there is no distance
        """
        return None

    def interpolation(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """How a field's values at some places follow from its values at the points.

        Parameters
        ----------
        points : Tensor, shape (n, dims)
            Places, in the coordinates of `positions`.

        Returns
        -------
        indices : Tensor of int64, shape (n, k)
        weights : Tensor of float64, shape (n, k)
            The value at a place is the sum over k of weight times value at a point. The weights add up to 1.

        Raises
        ------
        ValueError
            If the geometry has no interpolation, which is the default, or a place lies outside it.
        """
        raise ValueError(
            f"the geometry {self.name!r} has no interpolation between its points: expected a ring, an interval, a "
            "plane or a sphere, or a geometry with interpolation() of its own; or pass H as operator="
        )

    def meets(self, other: Geometry) -> bool:
        """Whether places of another geometry have distances to this one's points, because both lie in one space."""
        return self == other

    def neighbours(self, reach: float) -> Tensor:
        """Points within a distance of each point, nearest first.

        Parameters
        ----------
        reach : float
            The distance, in the coordinates' units. Points at exactly this distance are included.

        Returns
        -------
        Tensor of int64, shape (size, L)
            L is the largest number of neighbours of a point, including itself. Shorter rows are filled with -1.

        Raises
        ------
        ValueError
            If the geometry knows no distance.
        """
        places = self.positions()
        rows, most = [], 0
        for some in [] if places is None else places.split(max(1, _AT_ONCE // self.size)):
            apart = self.distances(some)
            if apart is None:
                break
            order = apart.argsort(dim=1, stable=True)
            within = apart.gather(1, order) <= reach
            most = max(most, int(within.sum(1).max()))
            rows.append(torch.where(within, order, -1))
        if not rows:
            raise ValueError(f"the geometry {self.name!r} knows no distance: expected one whose points have places")
        return torch.cat(rows)[:, :most]

    def order_of(self, dim: str, labels: Sequence[Any]) -> list[int] | None:
        """Find the points of a dim among the labels of a record.

        Parameters
        ----------
        dim : str
        labels : sequence of float or str
            As many labels as the dim has points.

        Returns
        -------
        list of int, or None
            Position of each point among the labels. These may be in another order, such as latitudes from the north.
            None, the default, if coordinates only count the points; the record then decides what its labels mean.

        Raises
        ------
        ValueError
            If the labels are those of other places.
        """
        return None

    def symmetries(self) -> dict[str, Tensor]:
        """Permutations of the points that do not change the geometry, by name; by default none.

        They generate the group of symmetries that is tested on a dynamics. A permutation g is a tensor of int64 of
        shape (size,), and acts by (g x)_i = x_{g(i)}.
        """
        return {}

    def _axis(self, k: int = 0) -> Tensor:
        """Coordinate of dim k, if it consists of numbers: float64, shape (n,)."""
        return torch.tensor(self.coordinates[self.dims[k]].values, dtype=torch.float64)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.config() == other.config()

    def __hash__(self) -> int:
        return hash((type(self), json.dumps(self.config(), sort_keys=True)))

    def __repr__(self) -> str:
        inside = ", ".join(f"{key}={shown(value)}" for key, value in self.config().items())
        return f"{type(self).__name__}({inside})"


G = TypeVar("G", bound=type[Geometry])

_GEOMETRIES: Registry[Geometry] = Registry(
    "geometry",
    Geometry,  # type: ignore[type-abstract]
    "xdan.Geometry",
    "Import the module that registers a geometry of your own",
)


def register_geometry(cls: G) -> G:
    """Register a geometry's class under its `name`, as a decorator of the class. Stores refer to this name.

    Parameters
    ----------
    cls : class derived from Geometry
        It has an attribute `name`, which it must not inherit.

    Returns
    -------
    class
        The same class.

    Raises
    ------
    TypeError
        If `cls` is not a class of geometries, or sets no name.
    ValueError
        If another class has this name.

    Examples
    --------
    >>> import xdan
    >>> xdan.register_geometry(xdan.Ring) is xdan.Ring  # the decorator makes this call
    True
    """
    return _GEOMETRIES.register(cls, "register_geometry")


def geometry_to_json(geometry: Geometry) -> dict[str, Any]:
    """The name and the plain parameters of a geometry."""
    return {"name": geometry.name, "parameters": geometry.config()}


def geometry_from_json(description: Any) -> Geometry:
    """Make the geometry that a store names. Nothing is imported.

    Raises
    ------
    ValueError
        If the description has no name and parameters, the name is not registered, or the parameters do not fit.
    """
    name = description.get("name") if isinstance(description, Mapping) else None
    parameters = description.get("parameters") if isinstance(description, Mapping) else None
    if not isinstance(name, str) or not isinstance(parameters, Mapping):
        raise ValueError(f"a geometry is described by {shown(description)}: expected a name and its parameters")
    try:
        return _GEOMETRIES[name](**parameters)
    except TypeError as reason:
        raise ValueError(f"the geometry {name!r} cannot be made as it is described: {reason}") from None


def around(x: Tensor, width: int) -> Tensor:
    """Continue around the last axis by `width` points at both ends; several times around if the width is large."""
    count = x.shape[-1]
    if not width:
        return x
    if width <= count:
        return torch.cat([x[..., count - width :], x, x[..., :width]], -1)
    return x.index_select(-1, (torch.arange(-width, count + width) % count).to(x.device))


def between(places: Tensor, axis: Tensor) -> tuple[Tensor, Tensor]:
    """Find places (n,) on an axis of ascending points (m,). m is at least 2.

    Returns
    -------
    index : Tensor of int64, shape (n,)
        Index of the point before each place; at most m - 2.
    share : Tensor, shape (n,)
        How far the place is on the way from this point to the next, from 0 to 1.
    """
    index = (torch.searchsorted(axis, places.contiguous(), right=True) - 1).clamp(0, len(axis) - 2)
    gap = (axis[index + 1] - axis[index]).clamp_min(torch.finfo(axis.dtype).tiny)
    return index, ((places - axis[index]) / gap).clamp(0.0, 1.0)
