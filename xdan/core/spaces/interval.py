"""The interval: an axis between two walls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .axis import Axis
from .base import Geometry, between, register_geometry
from .coordinates import order_of

_ROUNDING = 1e-9  # relative to the length: a place that is less than this beyond a wall counts as at the wall


@register_geometry
class Interval(Axis):
    """Points between two walls. Each point represents a cell.

    Parameters
    ----------
    points : int or sequence of float
        Number of points, or their positions in ascending order.
    length : float, optional
        Length of the interval, in the coordinate's units, if `points` is a number: the points then lie in the middle of
        cells from 0 to the length. Without a length they lie at 0, 1, 2, ...
    dim : str
        Name of the dim.
    units : str
        Units of the coordinate and of distances.
    long_name : str
        Description of the coordinate.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If positions do not increase, or positions are combined with a length.

    Examples
    --------
    >>> Interval(3).pad(torch.arange(3.0), [1])
    tensor([0., 0., 1., 2., 2.])
    """

    name: ClassVar[str] = "interval"

    def __init__(
        self,
        points: int | Sequence[float] = 40,
        length: float | None = None,
        dim: str = "x",
        units: str = "1",
        long_name: str = "place between the walls",
    ) -> None:
        super().__init__(points, length, dim, units, long_name)
        if self.length is not None and not isinstance(self.points, int):
            raise ValueError("points= holds positions, and length= is given: expected one of them")

    def _labels(self) -> Sequence[float]:
        """Middles of cells that fill the length, or positions."""
        labels = super()._labels()
        if self.length is None or not isinstance(self.points, int):
            return labels
        return [(k + 0.5) * (self.length / self.points) for k in labels]

    def pad(self, x: Tensor, widths: Sequence[int]) -> Tensor:
        """Repeat the values at the walls; see `Geometry.pad` for the shapes."""
        (width,), count = widths, x.shape[-1]
        index = torch.arange(-width, count + width, device=x.device).clamp(0, count - 1)
        return x.index_select(-1, index) if width else x

    def weights(self) -> Tensor:
        """Length of each cell. The walls are half a gap beyond the outer points."""
        edges = self._edges()
        return edges[1:] - edges[:-1]

    @property
    def area(self) -> float:
        """Length from wall to wall."""
        edges = self._edges()
        return float(edges[-1] - edges[0])

    def interpolation(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Linear between points, and constant between the outer points and the walls, as in `pad`.

        Raises
        ------
        ValueError
            If a place lies beyond the walls.
        """
        place, edges = self._axis(), self._edges()
        where = points[:, 0].to(place)
        outside = ~((where >= edges[0] - _ROUNDING * self.area) & (where <= edges[-1] + _ROUNDING * self.area))
        if bool(outside.any()):
            raise ValueError(
                f"the place {self.dim}={float(where[outside][0]):g} lies beyond the walls at {float(edges[0]):g} and "
                f"{float(edges[-1]):g}: expected places between them"
            )
        index, share = between(where, place if len(place) > 1 else edges)
        both = torch.stack([index, index + 1], 1).clamp(max=self.size - 1)
        return both, torch.stack([1 - share, share], 1)

    def meets(self, other: Geometry) -> bool:
        """Whether the other is an interval in the same units."""
        return isinstance(other, Interval) and self.units == other.units

    def order_of(self, dim: str, labels: Sequence[Any]) -> list[int] | None:
        """Find the points by their positions, if a length or positions define them."""
        if self.length is None and isinstance(self.points, int):
            return None
        return order_of(dim, self.coordinates[dim].values, labels)

    def symmetries(self) -> dict[str, Tensor]:
        """The reflection, if the cells have the same lengths from both ends."""
        weights = self.weights()
        if self.size < 2 or not torch.allclose(weights, weights.flip(0), rtol=1e-6):
            return {}
        return {f"reflection of {self.dim}": torch.arange(self.size).flip(0)}

    def _edges(self) -> Tensor:
        """Ends of the cells, halfway between points."""
        place = self._axis()
        if len(place) == 1:
            half = (1.0 if self.length is None else self.length) / 2
            return torch.stack([place[0] - half, place[0] + half])
        middle = (place[1:] + place[:-1]) / 2
        return torch.cat([place[:1] - (middle[:1] - place[:1]), middle, place[-1:] + (place[-1:] - middle[-1:])])
