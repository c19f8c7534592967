"""A polynomial of the values around each place. It is linear in its coefficients, so that least squares can fit it."""

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

MOST_TERMS = 2000  # largest number of terms: least squares need a matrix with this number of rows and columns
_HIGHEST = 4  # largest degree


@register_tendency
class LocalPolynomial(TendencyNetwork):
    """All monomials up to a degree, of the normalised values within a window around each place.

    g_c(n) = sum_m w[c, m] phi_m(z at n - kernel // 2, ..., n + kernel // 2), with phi_0 = 1, then the values z, then
    their products. The coefficients w are the same everywhere.

    Parameters
    ----------
    kernel : int
        Odd width of the window along each dim of the grid, in points.
    degree : int
        0: a constant for each field. 1: also a linear form. 2: also all products of two values. At most 4.
    space : StateSpace, or its JSON, optional
        The fields of the states, which become channels on one grid. By default one field on a ring of any length.

    Attributes
    ----------
    coefficients : Parameter, shape (C, terms)
        Coefficients of each channel. They begin at zero.
    terms : int
        Number of monomials.

    Raises
    ------
    TypeError
        If a size is not an integer.
    ValueError
        If a size is out of bounds, the kernel is even, or there are more than 2000 terms.

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
        """Return g for states of shape (B, N)."""
        features = self.features(x)
        return self._from_channels((self.coefficients @ features.flatten(1)).unflatten(1, features.shape[1:]))

    def features(self, x: Tensor) -> Tensor:
        """The monomials phi_m at each place, shape (terms, *sites, B), for states (B, N)."""
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
