"""Roots of covariances, a batch at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from .eigen import eigh


def cholesky_or_nan(matrices: Tensor) -> Tensor:
    """Lower factors of symmetric matrices (B, N, N), NaN where a matrix is not positive or not finite."""
    root, failed = torch.linalg.cholesky_ex(matrices)
    return torch.where(failed[:, None, None] == 0, root, torch.nan)


def cholesky_solved(rows: Tensor, factor: Tensor) -> Tensor:
    """The solution X of A X = rows, (B, N, K), from the lower factor of A, (B, N, N).

    On a GPU by two triangular systems: `torch.cholesky_solve` of a batch goes through MAGMA there, which ends the
    process where a CUDA graph is recorded.
    """
    if not factor.is_cuda:
        return torch.cholesky_solve(rows, factor)
    half = torch.linalg.solve_triangular(factor, rows, upper=False)
    solution: Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    return solution


def eigh_or_nan(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, at least 0, and vectors of symmetric matrices (..., N, N), NaN for those that are not finite."""
    whole = matrices.isfinite().flatten(-2).all(-1)[..., None, None]
    values, vectors = eigh(torch.where(whole, matrices, 0.0))
    return torch.where(whole[..., 0], values.clamp_min(0.0), torch.nan), torch.where(whole, vectors, torch.nan)


def root_of(covariance: Tensor) -> Tensor:
    """Rows (B, N, N) whose outer products add up to a covariance, those of the smallest variance first.

    Negative eigenvalues count as zero; a covariance that is not finite has a root that is not.
    """
    values, vectors = eigh_or_nan(covariance)
    return (vectors * values.sqrt()[:, None]).mT


def triangular_root_of(covariance: Tensor) -> Tensor:
    """The same rows from a Cholesky factor, in a quarter of the time; where there is none, those of `root_of`."""
    root, failed = torch.linalg.cholesky_ex(covariance)
    rows: Tensor = root.mT
    without = failed > 0
    if not bool(without.any()):
        return rows
    return torch.where(without[:, None, None], root_of(covariance), rows)
