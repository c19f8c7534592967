"""Spherical harmonics on a Gaussian grid: transforms of many fields at once, as products with dense matrices.

A field with zero mean is the sum over m = 0 ... T and n = max(m, 1) ... T of a P_nm cos(m lon) + b P_nm sin(m lon).
P_nm is a function of the sine of latitude. The harmonics are real, and the mean square of each over the sphere is 1;
geodesists call this the norm 4 pi. The mean square of a field is therefore the sum of its squared coefficients.

Coefficients of B fields are a tensor of shape (R, T, B). Its rows are the waves around the axis: first those of even m,
then those of odd m; for each m the cosine comes before the sine. Its second axis is n = 1 ... T. Rows and degrees
without a harmonic, such as the sine of m = 0 and all n < m, are zero.

Waves of even m are the same on both halves of a circle of latitude; waves of odd m change their sign. A field on the
grid is therefore kept as two parts on the first half, of shape (2, columns / 2, rows, B): the even part e and the odd
part o. The field is e + o on the first half and e - o on the second.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..user_functions import in_transform

T = TypeVar("T")
_Numbers = NDArray[np.float64]


class SphericalHarmonics:
    """Transforms between fields on a Gaussian grid and their coefficients, for one dtype and device.

    Parameters
    ----------
    truncation : int
        T, the largest degree n and order m.
    rows, columns : int
        Size of the grid. Products of two fields have exact coefficients up to T if 2 rows - 1 and columns - 1 are at
        least 3 T.
    dtype : torch.dtype
        The matrices are made on the CPU. `to` gives a copy on another device.

    Attributes
    ----------
    order, degree : Tensor
        m of each row of the coefficients, shape (R, 1, 1), and n, shape (1, T, 1).
    values, slopes : Tensor, shape (R, rows, T)
        P_nm at each latitude; and its derivative with respect to latitude, times cos(latitude).
    waves, wave_slopes : Tensor, shape (2, columns / 2, R / 2)
        cos(m lon) and sin(m lon) on the first half of a circle, even m and odd m; and their derivatives by longitude.
    pair_share : Tensor, shape (rows,)
        For each row: share of the sphere's area that belongs to a pair of points on opposite sides of the axis.
    cosine : Tensor, shape (rows,)
        Cosine of latitude.

    Notes
    -----
    The matrices are made in double precision. The Legendre functions follow a recurrence in n from n = m on. It is
    stable for the degrees of models.

    References
    ----------
    Norm and recurrences: Holmes and Featherstone (2002), Eq. 11 to 13, doi:10.1007/s00190-002-0216-2; transforms:
    Orszag (1970), doi:10.1175/1520-0469(1970)027<0890:TMFTCO>2.0.CO;2.
    """

    def __init__(self, truncation: int, rows: int, columns: int, dtype: torch.dtype = torch.float64) -> None:
        self.rows, self.columns = rows, columns
        sine, weight = np.polynomial.legendre.leggauss(rows)
        legendre, derivative = legendre_functions(truncation, sine)
        orders = np.arange(truncation // 2 + 1)[None] * 2 + np.array([[0], [1]])  # even m, then odd m
        row_orders = np.repeat(orders.ravel(), 2)
        is_sine = np.tile([False, True], orders.size)
        stands_for_one = (row_orders <= truncation) & ~(is_sine & (row_orders == 0))
        source = np.where(stands_for_one, row_orders, 0)
        values, slopes = (
            np.where(stands_for_one[:, None, None], matrices[source, :, 1:], 0.0) for matrices in (legendre, derivative)
        )
        angle = orders[:, None, :] * (2 * np.pi / columns * np.arange(columns // 2))[None, :, None]
        waves = np.stack([np.cos(angle), np.sin(angle)], -1)
        wave_slopes = np.stack([-np.sin(angle), np.cos(angle)], -1) * orders[:, None, :, None]

        def kept(array: _Numbers) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(dtype)

        self.order = kept(row_orders.astype(np.float64)[:, None, None])
        self.degree = kept(np.arange(1.0, truncation + 1)[None, :, None])
        self.values, self.slopes = kept(values), kept(slopes)
        self.waves, self.wave_slopes = (kept(one.reshape(2, columns // 2, -1)) for one in (waves, wave_slopes))
        self.pair_share, self.cosine = kept(weight / columns), kept(np.sqrt(1.0 - sine**2))

    def to(self, device: torch.device) -> SphericalHarmonics:
        """The transforms on a device."""
        return moved(self, device)

    def to_halves(self, fields: Tensor) -> Tensor:
        """Even and odd parts, shape (2, columns / 2, rows, B), of fields of shape (B, rows, columns)."""
        first, second = fields.permute(2, 1, 0).unflatten(0, (2, -1)).unbind(0)
        return torch.stack([first + second, first - second]) / 2

    def from_halves(self, halves: Tensor) -> Tensor:
        """Fields of shape (B, rows, columns) from their even and odd parts."""
        even, odd = halves.unbind(0)
        return torch.cat([even + odd, even - odd]).permute(2, 1, 0)

    def to_coefficients(self, fields: Tensor) -> Tensor:
        """Coefficients, shape (R, T, B), of fields of shape (B, rows, columns)."""
        halves = self.to_halves(fields)
        along = torch.bmm(self.waves.mT, halves.flatten(2))
        rows = along.flatten(0, 1).unflatten(1, halves.shape[2:])
        return torch.bmm((self.values * self.pair_share[:, None]).mT, rows)

    def to_fields(self, coefficients: Tensor) -> Tensor:
        """Fields of shape (B, rows, columns) from coefficients (R, T, B)."""
        rows = torch.bmm(self.values, coefficients)
        halves = torch.bmm(self.waves, rows.flatten(1).unflatten(0, (2, -1)))
        return self.from_halves(halves.unflatten(2, rows.shape[1:]))


def legendre_functions(truncation: int, sine: _Numbers) -> tuple[_Numbers, _Numbers]:
    """Associated Legendre functions with the norm 4 pi, and their slopes.

    Parameters
    ----------
    truncation : int
        T.
    sine : array, shape (rows,)
        Sine of latitude, x.

    Returns
    -------
    values, slopes : array, shape (T + 1, rows, T + 1)
        P_nm(x) and (1 - x^2) dP_nm / dx at [m, row, n]; zero where n < m.
    """
    orders = np.arange(truncation + 1.0)[:, None]

    def ratio(n: float) -> _Numbers:
        """Square root of (n^2 - m^2) / (4 n^2 - 1), for every m up to n; zero beyond."""
        return np.sqrt(np.maximum(n**2 - orders**2, 0.0) / (4 * n**2 - 1))

    values = np.zeros((truncation + 1, len(sine), truncation + 2))
    values[0, :, 0] = 1.0
    for m in range(1, truncation + 1):
        step = math.sqrt(3.0) if m == 1 else math.sqrt((2 * m + 1) / (2 * m))
        values[m, :, m] = step * np.sqrt(1.0 - sine**2) * values[m - 1, :, m - 1]
    for n in range(1, truncation + 2):
        below = np.arange(min(n, truncation + 1))  # the recurrence is for these orders: P_nn is known
        before = values[below, :, n - 2] if n > 1 else 0.0
        values[below, :, n] = (sine * values[below, :, n - 1] - ratio(n - 1)[below] * before) / ratio(n)[below]
    slopes = np.zeros((truncation + 1, len(sine), truncation + 1))
    for n in range(1, truncation + 1):
        slopes[:, :, n] = (n + 1) * ratio(n) * values[:, :, n - 1] - n * ratio(n + 1) * values[:, :, n + 1]
    return values[:, :, :-1], slopes


def moved(holder: T, device: torch.device) -> T:
    """A copy of an object whose tensors lie on a device."""
    other = copy.copy(holder)
    for name, value in vars(holder).items():
        if isinstance(value, Tensor):
            setattr(other, name, value.to(device))
    return other


def multiplier(other: Tensor, space: Workspace) -> Callable[[str, Tensor], Tensor]:
    """Product of a field with others, as even and odd parts. Points of the second half are not needed.

    Parameters
    ----------
    other : Tensor, shape (2, ...)
        Parts e' and o' of the field.
    space : Workspace

    Returns
    -------
    callable
        product(name, parts) gives e e' + o o' and e o' + o e', where parts (2, ...) are e and o of another field. It
        uses the array `name` of the workspace. Shapes broadcast.
    """
    exchanged = torch.stack([other[1], other[0]], out=space("exchanged", other.shape))

    def product(name: str, one: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(one.shape, other.shape)
        first = torch.mul(one[:1], other, out=space(name, shape))
        return torch.addcmul(first, one[1:], exchanged, out=space(name, shape))

    return product


class Workspace:
    """Arrays by name, into which torch functions write by their `out` at every call, so that memory is used again.

    If a derivative is wanted, functions must make new arrays. All names then give None.

    Parameters
    ----------
    like : Tensor
        The arrays have its dtype and device.
    """

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._wanted = not (in_transform(like) or (torch.is_grad_enabled() and like.requires_grad))
        self._kept: dict[str, Tensor] = {}

    def __call__(self, name: str, shape: Sequence[int]) -> Tensor | None:
        """The array of a name, of a shape."""
        if not self._wanted:
            return None
        if name not in self._kept or self._kept[name].shape != torch.Size(shape):
            self._kept[name] = self._like.new_empty(tuple(shape))
        return self._kept[name]
