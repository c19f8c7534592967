"""The sphere: a grid of latitudes and longitudes that continues over the poles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..checks import choice, integer, shown
from .base import Geometry, around, between, register_geometry
from .coordinates import Coordinate, order_of, positions_along, word
from .plane import corners
from .ring import Ring

_NEAR = 1e-3  # relative to a grid length: largest distance of rows and columns from their places
_Numbers = np.ndarray[Any, np.dtype[np.float64]]


@register_geometry
class Sphere(Geometry):
    """Points of a grid of latitudes and longitudes, which is Gaussian or regular.

    A regular grid has rows at both poles, or half a row from them. Beyond a pole, convolutions continue on its other
    side.

    Parameters
    ----------
    latitudes : int or sequence of float
        Number of rows, or their positions in degrees from south to north.
    longitudes : int or sequence of float
        Number of columns, which must be even, or their positions in degrees, evenly spaced around the axis.
    grid : {"regular", "gaussian"}
        Kind of grid if `latitudes` is a number. "regular": the first row is half a row from the pole. "gaussian": at
        the roots of Legendre's polynomial. The kind of positions is recognised.
    dims : two of str
        Names of the dims of latitudes and of longitudes.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If the rows do not reach both poles, or are neither regular nor Gaussian; if the columns are not evenly spaced
        around the axis, or their number is odd.

    Examples
    --------
    >>> Sphere(2, 4).pad(torch.arange(8.0).reshape(2, 4), [1, 0])[0]  # the first row, turned half around the axis
    tensor([2., 3., 0., 1.])
    """

    name: ClassVar[str] = "sphere"

    def __init__(
        self,
        latitudes: int | Sequence[float] = 32,
        longitudes: int | Sequence[float] = 64,
        grid: str = "regular",
        dims: Sequence[str] = ("lat", "lon"),
    ) -> None:
        if isinstance(dims, str) or len(set(dims)) != 2 or len(dims) != 2:
            raise ValueError(f"dims={shown(dims)}: expected two names, of the latitudes and of the longitudes")
        self.dims = (word("dims", dims[0]), word("dims", dims[1]))
        self.grid = choice("grid", grid, ("regular", "gaussian"))
        self.latitudes, rows = positions_along("latitudes", latitudes, least=2)
        self.longitudes, columns = positions_along("longitudes", longitudes, least=2)
        if rows is not None:
            self.grid = _kind_of(rows)
        else:
            rows = _rows(self.grid, integer("latitudes", self.latitudes))
        if columns is None:
            count = integer("longitudes", self.longitudes)
            columns = np.arange(count, dtype=np.float64) * (360.0 / count)
        _check_columns(columns)
        self._at_poles = bool(abs(rows[-1] - 90.0) <= _NEAR * 180.0 / len(rows))
        self.coordinates = {
            self.dims[0]: Coordinate(
                tuple(rows.tolist()),
                {"axis": "Y", "standard_name": "latitude", "long_name": "latitude", "units": "degrees_north"},
            ),
            self.dims[1]: Coordinate(
                tuple(columns.tolist()),
                {"axis": "X", "standard_name": "longitude", "long_name": "longitude", "units": "degrees_east"},
            ),
        }

    def config(self) -> dict[str, Any]:
        """Plain JSON parameters."""
        return {
            "latitudes": self.latitudes,
            "longitudes": self.longitudes,
            "grid": self.grid,
            "dims": list(self.dims),
        }

    def pad(self, x: Tensor, widths: Sequence[int]) -> Tensor:
        """Continue around the axis, and over the poles on their other side; see `Geometry.pad` for the shapes."""
        rows, columns = x.shape[-2:]
        beyond, width = widths
        if beyond:
            first = 1 if self._at_poles else 0  # a row at the pole is its own continuation
            if beyond + first > rows:
                raise ValueError(
                    f"a padding of {beyond} rows on a sphere of {rows}: expected fewer; take a smaller kernel"
                )
            turned = x.roll(columns // 2, -1)
            south = turned[..., first : first + beyond, :].flip(-2)
            north = turned[..., rows - first - beyond : rows - first, :].flip(-2)
            x = torch.cat([south, x, north], -2)
        return around(x, width)

    @property
    def closed(self) -> tuple[bool, ...]:
        """Longitudes are closed."""
        return (False, True)

    def weights(self) -> Tensor:
        """Area of each cell of the unit sphere, in steradian."""
        rows, columns = self.shape
        latitude = np.deg2rad(self._axis(0).numpy())
        if self.grid == "gaussian":
            band = np.polynomial.legendre.leggauss(rows)[1]
        else:
            edges = np.concatenate([[-np.pi / 2], (latitude[1:] + latitude[:-1]) / 2, [np.pi / 2]])
            band = np.diff(np.sin(edges))
        return torch.from_numpy(np.repeat(band * (2 * np.pi / columns), columns))

    @property
    def area(self) -> float:
        """Area of the unit sphere."""
        return 4 * math.pi

    def positions(self) -> Tensor:
        """Latitude and longitude of each point, in degrees."""
        return torch.cartesian_prod(self._axis(0), self._axis(1))

    def distances(self, points: Tensor) -> Tensor:
        """Length of the great circle, in degrees."""
        one, other = _unit_vectors(points.to(torch.float64)), _unit_vectors(self.positions().to(points.device))
        chord = torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist")  # accurate for close points
        return 2 * torch.rad2deg((chord / 2).clamp(max=1.0).asin())

    def interpolation(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Bilinear in latitude and longitude. Beyond the last row, the next row is on the other side of the pole.

        Raises
        ------
        ValueError
            If a latitude lies beyond a pole.
        """
        latitude, count = self._axis(0), self.shape[1]
        where = points.to(latitude)
        beyond = ~(where[:, 0].abs() <= 90.0 + _NEAR)
        if bool(beyond.any()):
            raise ValueError(f"the latitude {float(where[beyond][0, 0]):g}: expected degrees from -90 to 90")
        # A row at a pole has no continuation on the other side.
        south = (-180.0 - latitude[:1]).minimum(latitude[:1])
        north = (180.0 - latitude[-1:]).maximum(latitude[-1:])
        index, share = between(where[:, 0], torch.cat([south, latitude, north]))
        both = torch.stack([index, index + 1], 1) - 1
        turned = (both < 0) | (both >= len(latitude))
        circle = Ring(self._axis(1).tolist(), 360.0)
        columns, column_weights = circle.interpolation(where[:, 1:])
        columns = (columns[:, None] + turned[:, :, None] * (count // 2)) % count
        rows = both.clamp(0, len(latitude) - 1) * count
        return corners(rows, torch.stack([1 - share, share], 1), columns, column_weights)

    def meets(self, other: Geometry) -> bool:
        """Whether the other geometry is a sphere."""
        return isinstance(other, Sphere)

    def order_of(self, dim: str, labels: Sequence[Any]) -> list[int]:
        """Find latitudes from either pole, and longitudes from any meridian."""
        return order_of(dim, self.coordinates[dim].values, labels, 360.0 if dim == self.dims[1] else None)

    def symmetries(self) -> dict[str, Tensor]:
        """The turn around the axis by one column, and the reflections of latitude and of longitude."""
        grid = torch.arange(self.size).reshape(self.shape)
        lat, lon = self.dims
        return {
            f"shift along {lon}": grid.roll(-1, 1).flatten(),
            f"reflection of {lon}": grid.flip(1).roll(1, 1).flatten(),
            f"reflection of {lat}": grid.flip(0).flatten(),
        }


def _rows(grid: str, count: int) -> _Numbers:
    """Latitudes of a Gaussian grid, or of a grid half a row from the poles, in degrees from south to north."""
    if grid == "gaussian":
        roots: _Numbers = np.asarray(np.polynomial.legendre.leggauss(count)[0], dtype=np.float64)
        return np.rad2deg(np.arcsin(roots))
    return (np.arange(count, dtype=np.float64) + 0.5) * (180.0 / count) - 90.0


def _kind_of(rows: _Numbers) -> str:
    """Kind of the grid with these latitudes."""
    near = _NEAR * 180.0 / len(rows)
    for places in (_rows("regular", len(rows)), np.linspace(-90.0, 90.0, len(rows))):
        if np.allclose(rows, places, rtol=0, atol=near):
            return "regular"
    if np.allclose(rows, _rows("gaussian", len(rows)), rtol=0, atol=near):
        return "gaussian"
    raise ValueError(
        f"latitudes={shown(rows.tolist())}: expected {len(rows)} rows from pole to pole, regular (at the poles or half "
        "a row from them) or Gaussian; take xdan.Plane with walls for a part of the sphere"
    )


def _check_columns(columns: _Numbers) -> None:
    spacing = 360.0 / len(columns)
    if not np.allclose(np.diff(columns), spacing, rtol=0, atol=_NEAR * spacing):
        raise ValueError(
            f"longitudes={shown(columns.tolist())}: expected them evenly all around the axis, {spacing:g} degrees "
            "apart; is the first repeated at the end? Take xdan.Plane with walls for a part of the sphere"
        )
    if len(columns) % 2:
        raise ValueError(
            f"{len(columns)} longitudes: expected an even number, so that a row goes on at the other side of the pole"
        )


def _unit_vectors(places: Tensor) -> Tensor:
    """Points of the unit sphere (n, 3) at latitudes and longitudes (n, 2) in degrees."""
    latitude, longitude = torch.deg2rad(places).unbind(-1)
    level = latitude.cos()
    return torch.stack([level * longitude.cos(), level * longitude.sin(), latitude.sin()], -1)
