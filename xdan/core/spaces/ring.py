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
        How many there are, or where they lie, in ascending order, less than a length apart from first to last.
    length : float, optional
        Of the ring, in the coordinate's units; needed with positions. With a number of points they lie evenly from 0
        on, 1 apart where no length is given.
    dim : str
    units : str
        Of the coordinate and of distances.
    long_name : str
        Of the coordinate.

    Raises
    ------
    TypeError
        For arguments of another type.
    ValueError
        For positions that do not increase, or do not fit into the length.

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
        """Evenly from 0 on around the length, or at positions that fit into it."""
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
        """Go on around the ring, several times where the width wants it; `Geometry.pad` has the shapes."""
        return around(x, *widths)

    @property
    def is_ring(self) -> bool:
        """True."""
        return True

    @property
    def closed(self) -> tuple[bool, ...]:
        """It closes."""
        return (True,)

    def weights(self) -> Tensor:
        """Half the way to the neighbour on each side."""
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
        """Linear between the two points on either side; `Geometry.interpolation` has the shapes."""
        place = self._axis()
        way = (points[:, 0].to(place) - place[0]) % self.period
        index, share = between(way, torch.cat([place - place[0], place.new_tensor([self.period])]))
        return torch.stack([index, (index + 1) % self.size], 1), torch.stack([1 - share, share], 1)

    def meets(self, other: Geometry) -> bool:
        """Whether the other is a ring of the same length and units."""
        return isinstance(other, Ring) and (self.period, self.units) == (other.period, other.units)

    def order_of(self, dim: str, labels: Sequence[Any]) -> list[int] | None:
        """Around the ring, where its length says which places the points are."""
        if self.length is None:
            return None
        return order_of(dim, self.coordinates[dim].values, labels, self.length)

    def symmetries(self) -> dict[str, Tensor]:
        """The turn by one point, and the reflection, where the points lie evenly."""
        count, gaps = self.size, self._gaps()
        if count < 2 or not torch.allclose(gaps, gaps[:1].expand(count), rtol=1e-6):
            return {}
        order = torch.arange(count)
        return {f"shift along {self.dim}": order.roll(-1), f"reflection of {self.dim}": order.flip(0).roll(1)}

    def _gaps(self) -> Tensor:
        """Way from each point to the next."""
        place = self._axis()
        return torch.cat([place[1:], place[:1] + self.period]) - place
