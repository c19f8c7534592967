"""The fields of a state as channels on one grid, and back: what convolutions work on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..spaces import FixedInput, Geometry, StateSpace


@dataclass(frozen=True)
class _Place:
    """Where a field stands: the sites along each dim of the grid, and its points at each of them."""

    size: int
    sites: tuple[int, ...]
    ratios: tuple[int, ...]

    @property
    def channels(self) -> int:
        return math.prod(self.ratios)

    def to_channels(self, x: Tensor) -> Tensor:
        """From (K, B, n) to (K, channels, *sites, B)."""
        dims = len(self.sites)
        split = x.unflatten(-1, [n for pair in zip(self.sites, self.ratios, strict=True) for n in pair])
        within, along = range(3, 3 + 2 * dims, 2), range(2, 2 + 2 * dims, 2)
        channels: Tensor = split.permute(0, *within, *along, 1).flatten(1, dims)
        return channels

    def from_channels(self, features: Tensor) -> Tensor:
        """From (K, channels, *sites, B) to (K, B, n)."""
        dims = len(self.sites)
        split = features.unflatten(1, self.ratios)
        pairs = [axis for k in range(dims) for axis in (1 + dims + k, 1 + k)]
        states: Tensor = split.permute(0, 1 + 2 * dims, *pairs).flatten(2)
        return states


class Arrangement:
    """Fields joined on the coarsest of their grids.

    Fields on one geometry are channels of its sites. A field on a finer ring, interval or plane, whose points are a
    multiple of the coarsest's, is folded: its points at a site are channels there. Components are channels of one site.

    Parameters
    ----------
    space : StateSpace, or None
        None is one field on a ring of any length.

    Attributes
    ----------
    grid : Geometry, or None
        The coarsest; None for a ring of any length.
    channels : int
        C, of all fields.
    sites : tuple of int, or None
        Along each dim of the grid.

    Raises
    ------
    ValueError
        For geometries that cannot be joined.
    """

    def __init__(self, space: StateSpace | None) -> None:
        self.grid: Geometry | None = None
        self.sites: tuple[int, ...] | None = None
        self.channels, self._places = 1, []
        if space is None:
            return
        grid = self.grid = min((field.geometry for field in space), key=lambda one: math.prod(one.sites))
        self.sites = grid.sites
        self._places = [_Place(g.size, grid.sites, self._ratios(g)) for g in (field.geometry for field in space)]
        self.channels = sum(place.channels for place in self._places)

    def _ratios(self, geometry: Geometry) -> tuple[int, ...]:
        """Points of a geometry at a site of the grid."""
        assert self.grid is not None
        ratios = self.grid.ratios(geometry)
        if ratios is None:
            raise ValueError(
                f"fields on {self.grid!r} and on {geometry!r} cannot be joined: expected one geometry, or a finer "
                "ring, interval or plane whose points are a multiple of the coarser's. Write a network of your own, "
                "which takes the fields from self.space.unpack(x): docs/extending.md"
            )
        return ratios

    @property
    def is_ring(self) -> bool:
        """Whether convolutions go around one row, or there is one site."""
        return self.grid is None or self.grid.is_ring or self.sites == (1,)

    def kernels(self, kernel: int) -> tuple[int, ...]:
        """Width of a convolution along each dim of the grid: one along a dim of one site."""
        return (kernel,) if self.sites is None else tuple(kernel if sites > 1 else 1 for sites in self.sites)

    def to_channels(self, x: Tensor) -> Tensor:
        """Make channels of K flat states each.

        Parameters
        ----------
        x : Tensor, shape (K, B, N)

        Returns
        -------
        Tensor, shape (K C, *sites, B)
        """
        if not self._places:
            return x.mT
        sizes = [place.size for place in self._places]
        parts = [place.to_channels(part) for place, part in zip(self._places, x.split(sizes, -1), strict=True)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, 1)).flatten(0, 1)

    def from_channels(self, features: Tensor) -> Tensor:
        """Undo `to_channels`: from (K C, *sites, B) to (K, B, N)."""
        if not self._places:
            return features.mT
        split = features.unflatten(0, (-1, self.channels)).split([place.channels for place in self._places], 1)
        parts = [place.from_channels(part) for place, part in zip(self._places, split, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def fixed(self, inputs: Sequence[FixedInput]) -> Tensor:
        """Values of fixed inputs as channels, shape (channels, *sites)."""
        values = []
        for one in inputs:
            assert self.grid is not None
            place = _Place(one.geometry.size, self.grid.sites, self._ratios(one.geometry))
            values.append(place.to_channels(one.values.reshape(1, 1, -1))[0, ..., 0])
        return torch.cat(values)

    def per_channel(self, scale: Tensor) -> Tensor:
        """Repeat one number a field, (fields,), for every channel, (C, 1, ..., 1); one number of all stays one."""
        if scale.ndim == 0:
            return scale
        assert self.sites is not None
        channels = [one.expand(place.channels) for one, place in zip(scale, self._places, strict=True)]
        return torch.cat(channels).reshape(-1, *(1 for _ in self.sites), 1)
