"""The plane: a grid with two axes. Each axis is periodic or has walls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import shown, switch
from .base import Geometry, register_geometry
from .interval import Interval
from .ring import Ring

Axis = int | Sequence[float]


@register_geometry
class Plane(Geometry):
    """Points of a grid with two axes.

    Parameters
    ----------
    points : two of int or sequence of float
        For each axis, the number of points or their positions; rows come first.
    periodic : two of bool
        Whether each axis is closed. Otherwise it ends at walls.
    lengths : two of float or None
        Length of each axis, in `units`. A periodic axis has this length once around; with positions it is required.
        Between walls, a number of points lie in the middle of cells from 0 to the length; with positions there is no
        length. With None, points are 1 apart.
    dims : two of str
        Names of the two axes; rows come first.
    units : str
        Units of both coordinates and of distances.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If an argument does not have two entries, or an axis is impossible.

    Examples
    --------
    >>> Plane((2, 3)).pad(torch.arange(6.0).reshape(2, 3), [1, 0])[0]
    tensor([3., 4., 5.])
    """

    name: ClassVar[str] = "plane"

    def __init__(
        self,
        points: Sequence[Axis] = (32, 32),
        periodic: Sequence[bool] = (True, True),
        lengths: Sequence[float | None] = (None, None),
        dims: Sequence[str] = ("y", "x"),
        units: str = "1",
    ) -> None:
        for label, values in (("points", points), ("periodic", periodic), ("lengths", lengths), ("dims", dims)):
            if isinstance(values, str) or not hasattr(values, "__len__") or len(values) != 2:
                raise ValueError(f"{label}={shown(values)}: expected two, for the rows and the columns of the plane")
        axes = []
        for count, closed, length, dim in zip(points, periodic, lengths, dims, strict=True):
            kind: type[Ring] | type[Interval] = Ring if switch("periodic", closed) else Interval
            axes.append(kind(count, length, dim, units, f"place along {dim}"))
        if axes[0].dim == axes[1].dim:
            raise ValueError(f"dims={shown(dims)}: expected two names")
        self.axes = tuple(axes)
        self.points = [axis.points for axis in axes]
        self.periodic, self.lengths = [bool(closed) for closed in periodic], [axis.length for axis in axes]
        self.dims, self.units = tuple(axis.dim for axis in axes), axes[0].units
        self.coordinates = {axis.dim: axis.coordinates[axis.dim] for axis in axes}
        for dim, letter in zip(self.dims, "YX", strict=True):
            self.coordinates[dim].attributes["axis"] = letter

    def config(self) -> dict[str, Any]:
        """Plain JSON parameters."""
        return {
            "points": self.points,
            "periodic": self.periodic,
            "lengths": self.lengths,
            "dims": list(self.dims),
            "units": self.units,
        }

    def pad(self, x: Tensor, widths: Sequence[int]) -> Tensor:
        """Each axis is padded separately; see `Geometry.pad` for the shapes."""
        rows, columns = self.axes
        x = columns.pad(x, widths[1:])
        return rows.pad(x.mT, widths[:1]).mT if widths[0] else x

    def ratios(self, other: Geometry) -> tuple[int, ...] | None:
        """Number of points of another plane at each point, if both axes allow it; see `Geometry.ratios`."""
        if not isinstance(other, Plane):
            return None
        ratios = [one.ratios(two) for one, two in zip(self.axes, other.axes, strict=True)]
        return None if None in ratios else tuple(ratio for axis in ratios if axis for ratio in axis)

    @property
    def closed(self) -> tuple[bool, ...]:
        """Which axes are periodic."""
        return tuple(self.periodic)

    def weights(self) -> Tensor:
        """Area of each cell."""
        rows, columns = (axis.weights() for axis in self.axes)
        return torch.outer(rows, columns).flatten()

    @property
    def area(self) -> float:
        """Area of the plane."""
        return self.axes[0].area * self.axes[1].area

    def positions(self) -> Tensor:
        """Both coordinates of each point, rows first."""
        rows, columns = (axis.positions()[:, 0] for axis in self.axes)
        return torch.cartesian_prod(rows, columns)

    def distances(self, points: Tensor) -> Tensor:
        """Length of the straight line. Along periodic axes, the shorter way counts."""
        rows, columns = (axis.distances(points[:, [k]]) for k, axis in enumerate(self.axes))
        return torch.hypot(rows[:, :, None], columns[:, None]).flatten(1)

    def interpolation(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Bilinear interpolation: each axis interpolates separately; see `Geometry.interpolation` for the shapes."""
        rows, columns = (axis.interpolation(points[:, [k]]) for k, axis in enumerate(self.axes))
        return corners(rows[0] * self.shape[1], rows[1], columns[0][:, None], columns[1])

    def meets(self, other: Geometry) -> bool:
        """Whether the axes of another plane are in the same space."""
        return isinstance(other, Plane) and all(a.meets(b) for a, b in zip(self.axes, other.axes, strict=True))

    def order_of(self, dim: str, labels: Sequence[Any]) -> list[int] | None:
        """Find the points along each axis separately."""
        return self.axes[self.dims.index(dim)].order_of(dim, labels)

    def symmetries(self) -> dict[str, Tensor]:
        """Shifts along periodic axes, reflections of both axes, and their exchange if they are equal."""
        grid = torch.arange(self.size).reshape(self.shape)
        permutations = {
            name: grid.index_select(k, index).flatten()
            for k, axis in enumerate(self.axes)
            for name, index in axis.symmetries().items()
        }
        rows, columns = self.axes
        alike = type(rows) is type(columns) and rows.size == columns.size > 1
        if alike and _equally_apart(rows, columns):
            permutations[f"exchange of {rows.dim} and {columns.dim}"] = grid.T.flatten()
        return permutations


def corners(rows: Tensor, row_weights: Tensor, columns: Tensor, column_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Indices and weights (n, 4) of a bilinear interpolation.

    Parameters
    ----------
    rows : Tensor of int64, shape (n, 2)
        Index of the first point of each row.
    row_weights, column_weights : Tensor, shape (n, 2)
    columns : Tensor of int64, shape (n, 1, 2) or (n, 2, 2)
        Indices of the columns, for each row.
    """
    return (rows[:, :, None] + columns).flatten(1), (row_weights[:, :, None] * column_weights[:, None]).flatten(1)


def _equally_apart(rows: Ring | Interval, columns: Ring | Interval) -> bool:
    """Whether two axes with one number of points have the same distances between their points."""
    return torch.allclose(rows.distances(rows.positions()), columns.distances(columns.positions()), rtol=1e-6)
