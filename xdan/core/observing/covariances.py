"""Checks of covariance matrices, and their Cholesky factors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import shown

_SYMMETRIC = 1e-5  # largest difference between the halves of a covariance, relative to the two standard deviations


def covariance_factor(label: str, matrix: Tensor) -> Tensor:
    """Lower Cholesky factor of a covariance matrix.

    Parameters
    ----------
    label : str
        Name of the matrix in messages.
    matrix : Tensor, shape (P, P)

    Raises
    ------
    TypeError
        If the matrix is not a tensor of real numbers.
    ValueError
        If it is not square, finite, symmetric (relative to its variances), and positive definite in its dtype.
    """
    check_real(label, matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(f"{label} has shape {tuple(matrix.shape)}: expected a square matrix")
    if not bool(matrix.isfinite().all()):
        raise ValueError(f"{label} holds values that are not finite: expected a covariance matrix")
    if not is_symmetric(matrix):
        raise ValueError(f"{label} is not symmetric; expected a covariance matrix")
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(matrix)
    singular = 10 * len(matrix) * torch.finfo(matrix.dtype).eps  # relative to a variance: what rounding alone leaves
    if int(info) or not bool((pivots(factor, matrix) ** 2 > singular).all()):
        raise ValueError(f"{label} is not positive definite; expected a covariance matrix of full rank")
    return factor


def is_symmetric(matrix: Tensor) -> bool:
    """Whether the halves of a covariance matrix (P, P) are equal, relative to its standard deviations."""
    deviation = matrix.diagonal().abs().sqrt()
    return not bool(((matrix - matrix.T).abs() > _SYMMETRIC * deviation[:, None] * deviation).any())


def pivots(factor: Tensor, matrix: Tensor) -> Tensor:
    """Share of each standard deviation that earlier variables do not determine, shape (P,)."""
    return factor.diagonal() / matrix.diagonal().sqrt()


def check_real(label: str, value: Any) -> None:
    """Refuse a value that is not a tensor of real floating-point numbers.

    Raises
    ------
    TypeError
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else shown(value)
        raise TypeError(f"{label} is {kind}: expected a tensor of real floating-point numbers")
