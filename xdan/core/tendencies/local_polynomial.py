"""A polynomial of the values around every place: linear in its coefficients, so that least squares find them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..checks import integer
from ..networks.sizes import odd
from ..spaces import StateSpace
from .base import TendencyNetwork, register_tendency

MOST_TERMS = 2000  # of a polynomial: least squares hold a matrix of so many rows and columns
_HIGHEST = 4  # degree


@register_tendency
class LocalPolynomial(TendencyNetwork):
    """All monomials, up to a degree, of the normalised values within a window around each place.

    g_c(n) = sum_m w[c, m] phi_m(z at n - kernel // 2, ..., n + kernel // 2), with phi_0 = 1, then the values z
    themselves, then their products. The coefficients w are the same everywhere.

    Parameters
    ----------
    kernel : int
        Odd width of the window along each dim of the grid, in points.
    degree : int
        0 is a constant for each field, 1 a linear form, 2 adds all products of two values; at most 4.
    space : StateSpace, or its JSON, optional
        The fields of the states, joined on one grid as channels. One field on a ring of any length by default.

    Attributes
    ----------
    coefficients : Parameter, shape (C, terms)
        Of every channel, zeros at the start.
    terms : int

    Raises
    ------
    TypeError
        For sizes that are no integers.
    ValueError
        For sizes out of bounds, an even kernel, or more than 2000 terms.

    Examples
    --------
    >>> g = LocalPolynomial(kernel=3, degree=2)
    >>> g.terms  # 1, three values, six products
    10
    >>> g(torch.ones(2, 5)).shape
    torch.Size([2, 5])
    """

    name: ClassVar[str] = "local-polynomial"

    def __init__(self, kernel: int = 5, degree: int = 1, space: StateSpace | Mapping[str, Any] | None = None) -> None:
        super().__init__(space)
        self.kernel, self.degree = odd("kernel", kernel), integer("degree", degree, least=0, most=_HIGHEST)
        channels = self.arrangement.channels
        values = math.prod(self.arrangement.kernels(self.kernel)) * channels
        self.terms = math.comb(values + self.degree, self.degree)
        if self.terms > MOST_TERMS:
            raise ValueError(
                f"kernel={self.kernel}, degree={self.degree} make {self.terms} terms of {values} values: expected at "
                f"most {MOST_TERMS}; take a smaller kernel or degree, or a network such as xdan.QuadraticCNN()"
            )
        self._factors = [
            torch.tensor(list(itertools.combinations_with_replacement(range(values), count)))
            for count in range(1, self.degree + 1)
        ]
        self.coefficients = nn.Parameter(torch.zeros(channels, self.terms, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Give g of states of shape (B, N)."""
        features = self.features(x)
        return self._from_channels((self.coefficients @ features.flatten(1)).unflatten(1, features.shape[1:]))

    def features(self, x: Tensor) -> Tensor:
        """The monomials phi_m at every place, shape (terms, *sites, B), of states (B, N)."""
        channels = self._to_channels(x)
        monomials = [torch.ones_like(channels[:1])]
        if self.degree:
            taps = self._taps(channels, self.kernel)
            for factors in self._factors:
                product = taps[factors[:, 0]]
                for column in range(1, factors.shape[1]):
                    product = product * taps[factors[:, column]]
                monomials.append(product)
        return torch.cat(monomials)
