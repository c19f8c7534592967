"""Sparse roots of covariances: each component's error combines random numbers of a few components near it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class LocalRoot:
    """A matrix L with few entries in a row, P = L L^T.

    Row n has the entries `entries[..., n, l]` in the columns `places[n, l]`. The first column of each row is its
    diagonal: `places[n, 0] = n`. No other column occurs twice in a row, unless its entry is zero.

    Attributes
    ----------
    entries : Tensor, shape (..., N, L)
    places : Tensor of int64, shape (N, L)
    """

    entries: Tensor
    places: Tensor

    @property
    def deviations(self) -> Tensor:
        """Standard deviation of each component, the root of the diagonal of P; shape (..., N)."""
        return self.entries.square().sum(-1).sqrt()

    @property
    def dense(self) -> Tensor:
        """L as a matrix, (..., N, N)."""
        n = len(self.places)
        return self.entries.new_zeros(*self.entries.shape[:-1], n).scatter_add(
            -1, self.places.expand(self.entries.shape), self.entries
        )

    @property
    def covariance(self) -> Tensor:
        """P, shape (..., N, N)."""
        root = self.dense
        return root @ root.mT

    @property
    def is_diagonal(self) -> bool:
        """Whether each row has only its diagonal entry."""
        return self.places.shape[1] == 1

    def apply(self, noise: Tensor) -> Tensor:
        """L times vectors (..., N). For independent standard normal numbers, the result has the covariance P."""
        return (self.entries * noise[..., self.places]).sum(-1)

    def solve(self, error: Tensor) -> tuple[Tensor, Tensor]:
        """Solve L u = e, and compute the logarithm of the determinant of L.

        Parameters
        ----------
        error : Tensor, shape (..., N)

        Returns
        -------
        u : Tensor, shape (..., N)
        log_determinant : Tensor, shape (...)
            ln |det L|.
        """
        if self.is_diagonal:
            diagonal = self.entries[..., 0]
            return error / diagonal, diagonal.abs().log().sum(-1)
        factors, pivots = torch.linalg.lu_factor(self.dense)
        solved = torch.linalg.lu_solve(factors, pivots, error[..., None])[..., 0]
        return solved, factors.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)

    def scaled(self, scale: Tensor) -> LocalRoot:
        """The root for errors that are divided by a scale (N,)."""
        return replace(self, entries=self.entries / scale[:, None])

    def since(self, first: int) -> LocalRoot:
        """The root of entries (B, T, N, L) without the cycles before `first`."""
        return replace(self, entries=self.entries[:, first:])

    def detached(self) -> LocalRoot:
        """The root without its derivatives."""
        return replace(self, entries=self.entries.detach())


def diagonal_root(deviations: Tensor, places: Tensor) -> LocalRoot:
    """Root of independent errors with these standard deviations (..., N). Its rows have the columns of `places`."""
    entries = deviations.new_zeros(*deviations.shape, places.shape[1])
    entries[..., 0] = deviations
    return LocalRoot(entries, places)
