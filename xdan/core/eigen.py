"""Eigendecompositions that do not fail if single precision is too coarse for the algorithm."""

from __future__ import annotations

import torch
from torch import Tensor


def eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of symmetric matrices (..., N, N), like `torch.linalg.eigh`.

    On some processors, the algorithm in single precision does not converge for a rare matrix of a large batch. The
    batch is then decomposed in double precision.

    Parameters
    ----------
    matrices : Tensor, shape (..., N, N)
        Finite matrices.

    Raises
    ------
    torch.linalg.LinAlgError
        If the algorithm does not converge in double precision either.

    Returns
    -------
    values : Tensor, shape (..., N)
        In ascending order.
    vectors : Tensor, shape (..., N, N)
        Eigenvectors as columns.
    """
    try:
        values, vectors = torch.linalg.eigh(matrices)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        if matrices.dtype == torch.float64:
            raise
        values, vectors = (part.to(matrices) for part in torch.linalg.eigh(matrices.double()))
    return values, vectors
