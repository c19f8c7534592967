"""A grid of a model that names its dims and says no more of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import Geometry, around, register_geometry
from .coordinates import Coordinate


@register_geometry
class Unstated(Geometry):
    """Dims and coordinates alone. One dim is padded as a ring is; there are no distances.

    Parameters
    ----------
    coordinates : mapping of str to Coordinate, or to labels
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
        """One dim as a ring.

        Raises
        ------
        ValueError
            For several dims, as nobody said whether they end at walls.
        """
        if len(self.dims) > 1:
            raise ValueError(
                f"the model says nothing of its grid {dict(zip(self.dims, self.shape, strict=True))}: expected a "
                "geometry, for example state={'psi': xdan.Plane((32, 32))} of xdan.CustomDynamics"
            )
        return around(x, *widths)

    @property
    def is_ring(self) -> bool:
        """Whether there is one dim."""
        return len(self.dims) == 1

    @property
    def closed(self) -> tuple[bool, ...]:
        """One dim, as it is padded as a ring is."""
        return (self.is_ring,) * len(self.dims)

    def symmetries(self) -> dict[str, Tensor]:
        """Shifts along each dim by one, as if it were periodic."""
        grid = torch.arange(self.size).reshape(self.shape)
        return {
            f"shift along {dim}": grid.roll(-1, axis).flatten()
            for axis, dim in enumerate(self.dims)
            if grid.shape[axis] > 1
        }
