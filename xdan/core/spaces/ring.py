"""The ring: an axis that closes on itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .axis import Axis
from .base import Geometry, around, between, register_geometry
from .coordinates import order_of


@register_geometry
class Ring(Axis):
    """Points on a periodic axis.

    Parameters
    ----------
    points : int or sequence of float
        Number of points, or their positions in ascending order. Positions must span less than the length.
    length : float, optional
        Length of the ring, in the coordinate's units; with positions it is required. A number of points lie evenly from
        0 on; without a length they are 1 apart.
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
        If positions do not increase, or do not fit into the length.

    Examples
    --------
    >>> Ring(4).pad(torch.arange(4.0), [1])
    tensor([3., 0., 1., 2., 3., 0.])
    """

    name: ClassVar[str] = "ring"

    def __init__(
        self,
        points: int | Sequence[float] = 40,
        length: float | None = None,
        dim: str = "x",
        units: str = "1",
        long_name: str = "site on the ring",
    ) -> None:
        super().__init__(points, length, dim, units, long_name)
        self.period = float(self.size) if self.length is None else self.length

    def _labels(self) -> Sequence[float]:
        """Evenly spaced from 0 on around the length, or positions that fit into it."""
        labels = super()._labels()
        if isinstance(self.points, int):
            return labels if self.length is None else [k * (self.length / self.points) for k in labels]
        if self.length is None:
            raise ValueError(
                "points= holds positions and there is no length=: expected the length of the ring, after which the "
                "first point comes again"
            )
        if labels[-1] - labels[0] >= self.length:
            raise ValueError(
                f"points= reach from {labels[0]:g} to {labels[-1]:g} on a ring of length={self.length:g}: expected "
                "less than the length; is the first point repeated at the end?"
            )
        return labels

    def pad(self, x: Tensor, widths: Sequence[int]) -> Tensor:
        """Continue around the ring, several times if the width is large; see `Geometry.pad` for the shapes."""
        return around(x, *widths)

    @property
    def is_ring(self) -> bool:
        """True: `pad` goes around the ring."""
        return True

    @property
    def closed(self) -> tuple[bool, ...]:
        """True: a ring is closed."""
        return (True,)

    def weights(self) -> Tensor:
        """Half the distance to the neighbour on each side."""
        gaps = self._gaps()
        return (gaps + gaps.roll(1)) / 2

    @property
    def area(self) -> float:
        """Length of the ring."""
        return self.period

    def distances(self, points: Tensor) -> Tensor:
        """The shorter way around the ring."""
        apart = super().distances(points) % self.period
        return torch.minimum(apart, self.period - apart)

    def interpolation(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Linear between the two nearest points; see `Geometry.interpolation` for the shapes."""
        place = self._axis()
        way = (points[:, 0].to(place) - place[0]) % self.period
        index, share = between(way, torch.cat([place - place[0], place.new_tensor([self.period])]))
        return torch.stack([index, (index + 1) % self.size], 1), torch.stack([1 - share, share], 1)

    def meets(self, other: Geometry) -> bool:
        """Whether the other is a ring with the same length and units."""
        return isinstance(other, Ring) and (self.period, self.units) == (other.period, other.units)

    def order_of(self, dim: str, labels: Sequence[Any]) -> list[int] | None:
        """Find the points around the ring, if its length defines their positions."""
        if self.length is None:
            return None
        return order_of(dim, self.coordinates[dim].values, labels, self.length)

    def symmetries(self) -> dict[str, Tensor]:
        """The shift by one point, and the reflection, if the points are evenly spaced."""
        count, gaps = self.size, self._gaps()
        if count < 2 or not torch.allclose(gaps, gaps[:1].expand(count), rtol=1e-6):
            return {}
        order = torch.arange(count)
        return {f"shift along {self.dim}": order.roll(-1), f"reflection of {self.dim}": order.flip(0).roll(1)}

    def _gaps(self) -> Tensor:
        """Distance from each point to the next."""
        place = self._axis()
        return torch.cat([place[1:], place[:1] + self.period]) - place
