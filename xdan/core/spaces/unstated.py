"""A grid without known positions: the model names its dims and says nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import Geometry, around, register_geometry
from .coordinates import Coordinate


@register_geometry
class Unstated(Geometry):
    """Dims and coordinates alone. One dim is padded like a ring. There are no distances.

    Parameters
    ----------
    coordinates : mapping of str to Coordinate, or to labels
        Coordinate or labels of each dim.
    """

    name: ClassVar[str] = "unstated"

    def __init__(self, coordinates: Mapping[str, Any]) -> None:
        self.coordinates = {
            dim: labels if isinstance(labels, Coordinate) else Coordinate(tuple(labels))
            for dim, labels in coordinates.items()
        }
        self.dims = tuple(self.coordinates)

    def config(self) -> dict[str, Any]:
        """Plain JSON parameters: the labels of each dim."""
        return {"coordinates": {dim: list(one.values) for dim, one in self.coordinates.items()}}

    def pad(self, x: Tensor, widths: Sequence[int]) -> Tensor:
        """Pad one dim like a ring.

        Raises
        ------
        ValueError
            If there are several dims, because it is unknown whether they end at walls.
        """
        if len(self.dims) > 1:
            raise ValueError(
                f"the model says nothing of its grid {dict(zip(self.dims, self.shape, strict=True))}: expected a "
                "geometry, for example state={'psi': xdan.Plane((32, 32))} of xdan.CustomDynamics"
            )
        return around(x, *widths)

    @property
    def is_ring(self) -> bool:
        """Whether there is only one dim."""
        return len(self.dims) == 1

    @property
    def closed(self) -> tuple[bool, ...]:
        """True for a single dim, which is padded like a ring."""
        return (self.is_ring,) * len(self.dims)

    def symmetries(self) -> dict[str, Tensor]:
        """Shifts by one along each dim, as if it were periodic."""
        grid = torch.arange(self.size).reshape(self.shape)
        return {
            f"shift along {dim}": grid.roll(-1, axis).flatten()
            for axis, dim in enumerate(self.dims)
            if grid.shape[axis] > 1
        }
