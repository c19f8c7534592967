"""An axis: points along one dim. Rings and intervals are axes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..checks import real
from .base import Geometry
from .coordinates import Coordinate, positions_along, word


class Axis(Geometry):
    """Points along one dim: evenly spaced over a length, at whole numbers, or at positions.

    Attributes
    ----------
    points : int or list of float
        Number of points, or their positions.
    length : float or None
        Length of the axis; None if the points are at whole numbers.
    dim, units, long_name : str
        Name, units and description of the coordinate.
    """

    def __init__(
        self, points: int | Sequence[float], length: float | None, dim: str, units: str, long_name: str
    ) -> None:
        self.points, _ = positions_along("points", points)
        self.length = None if length is None else real("length", length, above=0.0)
        self.dim, self.units, self.long_name = word("dim", dim), word("units", units), word("long_name", long_name)
        self.dims = (self.dim,)
        attributes = {"axis": "X", "long_name": self.long_name, "units": self.units}
        self.coordinates = {self.dim: Coordinate(tuple(self._labels()), attributes)}

    def _labels(self) -> Sequence[float]:
        """Positions of the points. A derived class places a number of points over a length."""
        return range(self.points) if isinstance(self.points, int) else self.points

    def ratios(self, other: Geometry) -> tuple[int, ...] | None:
        """Number of points of another such axis at each point of this one, if it is whole; see `Geometry.ratios`."""
        if not isinstance(other, type(self)) or other.size % self.size:
            return None
        return (other.size // self.size,)

    def positions(self) -> Tensor:
        """The coordinate."""
        return self._axis()[:, None]

    def distances(self, points: Tensor) -> Tensor:
        """Distances along the axis."""
        place = self._axis().to(points.device)
        return (points.to(place) - place[None]).abs()
