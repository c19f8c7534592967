"""Which part of a covariance is estimated: one variance, one for each component, or the whole matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..eigen import eigh
from ..roots import eigh_or_nan

KINDS = ("scalar", "diagonal", "full", "fixed")


@dataclass(frozen=True)
class Structure:
    """The set of covariances of n components from which an estimate is chosen.

    A value is a tensor of variances, shape (n,), or of a full covariance, shape (n, n).

    Attributes
    ----------
    kind : {"scalar", "diagonal", "full", "fixed"}
        "scalar": one variance for each part, such as each field of the state. "diagonal": one variance for each
        component. "full": the whole covariance. "fixed": nothing is estimated.
    parts : Tensor of int64, shape (n,)
        Number of the part that each component belongs to, from 0. A full covariance is zero between parts.

    Examples
    --------
    >>> Structure("scalar", torch.tensor([0, 0, 1])).pooled(torch.tensor([1.0, 3.0, 5.0]), torch.ones(3))
    tensor([2., 2., 5.])
    """

    kind: str
    parts: Tensor

    @property
    def whole(self) -> bool:
        """Whether values are matrices that are estimated."""
        return self.kind == "full"

    @property
    def fixed(self) -> bool:
        """Whether nothing is estimated."""
        return self.kind == "fixed"

    @property
    def count(self) -> int:
        """How many numbers are estimated."""
        sizes = self.parts.bincount()
        counts = {"scalar": (sizes > 0).sum(), "diagonal": sizes.sum(), "full": (sizes * (sizes + 1) // 2).sum()}
        return int(counts.get(self.kind, torch.zeros(())))

    def start(self, covariance: Tensor) -> Tensor:
        """The value that is closest to a covariance (n, n)."""
        if self.whole:
            return self.apart(covariance)
        if self.fixed:
            variances = covariance.diagonal()
            return variances if bool((covariance == variances.diag()).all()) else covariance
        return self.pooled(covariance.diagonal(), torch.ones_like(covariance.diagonal()))

    def pooled(self, values: Tensor, weights: Tensor) -> Tensor:
        """Weighted means of variances (..., n) over components with a common one; NaN if the weights are zero."""
        if self.kind != "scalar":
            return torch.where(weights > 0, values, torch.nan)
        onto = self.onto_parts(values)
        means: Tensor = (weights * values) @ onto / (weights @ onto)
        return means[..., self.parts]

    def apart(self, matrices: Tensor) -> Tensor:
        """Covariances (..., n, n) with zeros between the parts."""
        together = (self.parts[:, None] == self.parts).to(matrices.device)
        return torch.where(together, matrices, 0.0)

    def onto_parts(self, like: Tensor) -> Tensor:
        """Matrix (n, parts) with ones where a component belongs to a part, in a tensor's dtype and on its device."""
        count = int(self.parts.max()) + 1
        return torch.nn.functional.one_hot(self.parts, count).to(like)

    def numbers(self, value: Tensor) -> Tensor:
        """Logarithms of a value, flattened: of variances, or of a covariance as a matrix. Steps are taken in these."""
        if self.fixed:
            return value.new_zeros(0)
        if value.ndim == 1:
            return value.log()
        eigenvalues, vectors = eigh(value)
        logarithm: Tensor = (vectors * eigenvalues.log()) @ vectors.mT
        return logarithm.flatten()

    def from_numbers(self, numbers: Tensor, value: Tensor) -> Tensor:
        """The value for these logarithms. If nothing is estimated, `value`."""
        if self.fixed:
            return value
        return numbers.exp() if value.ndim == 1 else torch.linalg.matrix_exp(numbers.reshape(value.shape))


def structure_of(kind: str, sizes: Sequence[int]) -> Structure:
    """The structure of a covariance whose parts have these numbers of components."""
    return Structure(kind, torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(list(sizes))))


def as_matrix(value: Tensor) -> Tensor:
    """A value as a covariance, shape (n, n)."""
    return value.diag() if value.ndim == 1 else value


def made_positive(value: Tensor, least: float) -> Tensor:
    """Variances (..., n) or covariances (B, n, n) whose eigenvalues are at least `least`.

    Statistics from few samples may give variances that are not positive.
    """
    if value.ndim < 3:
        return value.clamp_min(least)
    eigenvalues, vectors = eigh_or_nan(value)
    return (vectors * eigenvalues.clamp_min(least)[:, None]) @ vectors.mT
