"""Roots of covariances, for batches of matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from .eigen import eigh


def cholesky_or_nan(matrices: Tensor) -> Tensor:
    """Lower Cholesky factors of symmetric matrices (B, N, N). NaN if a matrix is not positive or not finite."""
    root, failed = torch.linalg.cholesky_ex(matrices)
    return torch.where(failed[:, None, None] == 0, root, torch.nan)


def cholesky_solved(rows: Tensor, factor: Tensor) -> Tensor:
    """Solution X of A X = rows, (B, N, K), from the lower Cholesky factor of A, (B, N, N).

    On a GPU two triangular systems are solved. There `torch.cholesky_solve` of a batch uses MAGMA, which ends the
    process if a CUDA graph is recorded.
    """
    if not factor.is_cuda:
        return torch.cholesky_solve(rows, factor)
    half = torch.linalg.solve_triangular(factor, rows, upper=False)
    solution: Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    return solution


def eigh_or_nan(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (at least 0) and eigenvectors of symmetric matrices (..., N, N); NaN if a matrix is not finite."""
    whole = matrices.isfinite().flatten(-2).all(-1)[..., None, None]
    values, vectors = eigh(torch.where(whole, matrices, 0.0))
    return torch.where(whole[..., 0], values.clamp_min(0.0), torch.nan), torch.where(whole, vectors, torch.nan)


def root_of(covariance: Tensor) -> Tensor:
    """Rows (B, N, N) whose outer products add up to a covariance. Rows with the smallest variance come first.

    Negative eigenvalues count as zero. The root is not finite if the covariance is not finite.
    """
    values, vectors = eigh_or_nan(covariance)
    return (vectors * values.sqrt()[:, None]).mT


def triangular_root_of(covariance: Tensor) -> Tensor:
    """Such rows from a Cholesky factor, in a quarter of the time of `root_of`; without a factor, from `root_of`."""
    root, failed = torch.linalg.cholesky_ex(covariance)
    rows: Tensor = root.mT
    without = failed > 0
    if not bool(without.any()):
        return rows
    return torch.where(without[:, None, None], root_of(covariance), rows)
