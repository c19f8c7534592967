"""How the fields of a state become channels on one grid, for convolutions, and fields again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..spaces import FixedInput, Geometry, StateSpace


@dataclass(frozen=True)
class _Place:
    """Place of a field on the grid: sites along each dim of the grid, and number of the field's points at each site."""

    size: int
    sites: tuple[int, ...]
    ratios: tuple[int, ...]

    @property
    def channels(self) -> int:
        return math.prod(self.ratios)

    def to_channels(self, x: Tensor) -> Tensor:
        """Reshape (K, B, n) to (K, channels, *sites, B)."""
        dims = len(self.sites)
        split = x.unflatten(-1, [n for pair in zip(self.sites, self.ratios, strict=True) for n in pair])
        within, along = range(3, 3 + 2 * dims, 2), range(2, 2 + 2 * dims, 2)
        channels: Tensor = split.permute(0, *within, *along, 1).flatten(1, dims)
        return channels

    def from_channels(self, features: Tensor) -> Tensor:
        """Reshape (K, channels, *sites, B) to (K, B, n)."""
        dims = len(self.sites)
        split = features.unflatten(1, self.ratios)
        pairs = [axis for k in range(dims) for axis in (1 + dims + k, 1 + k)]
        states: Tensor = split.permute(0, 1 + 2 * dims, *pairs).flatten(2)
        return states


class Arrangement:
    """Fields together on the coarsest of their grids.

    Fields on one geometry are channels of its sites. A field on a finer ring, interval or plane is folded: its number
    of points must be a multiple of the coarsest grid's, and its points at a site are channels of the site. Components
    without places are channels of one site.

    Parameters
    ----------
    space : StateSpace, or None
        The fields of a state. None stands for one field on a ring of any length.

    Attributes
    ----------
    grid : Geometry, or None
        The coarsest geometry; None for a ring of any length.
    channels : int
        Number C of channels of all fields.
    sites : tuple of int, or None
        Number of sites along each dim of the grid.

    Raises
    ------
    ValueError
        If the geometries cannot be joined.
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
        """Number of a geometry's points at one site of the grid, along each dim."""
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
        """Whether the grid is one ring or one site, so that convolutions go around one row."""
        return self.grid is None or self.grid.is_ring or self.sites == (1,)

    def kernels(self, kernel: int) -> tuple[int, ...]:
        """Width of a convolution along each dim of the grid; 1 along a dim with one site."""
        return (kernel,) if self.sites is None else tuple(kernel if sites > 1 else 1 for sites in self.sites)

    def to_channels(self, x: Tensor) -> Tensor:
        """Reshape K flat states to channels.

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
        """Inverse of `to_channels`: reshape (K C, *sites, B) to (K, B, N)."""
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
        """Repeat a number for each field, (fields,), for each channel, (C, 1, ..., 1). A single number stays one."""
        if scale.ndim == 0:
            return scale
        assert self.sites is not None
        channels = [one.expand(place.channels) for one, place in zip(scale, self._places, strict=True)]
        return torch.cat(channels).reshape(-1, *(1 for _ in self.sites), 1)
