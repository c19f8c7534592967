"""Members drawn from Gaussian analyses."""

from __future__ import annotations

import torch
from torch import Tensor

from .random import Purpose, normal
from .roots import eigh_or_nan


def draw_gaussian(mean: Tensor, deviation: Tensor, trajectory: Tensor, time: Tensor, members: int, seed: int) -> Tensor:
    """Draw members x_m = x_a + s e_m with independent errors, or x_a + P^{1/2} e_m, with e_m standard normal.

    Parameters
    ----------
    mean : Tensor, shape (B, K, N)
        Analyses.
    deviation : Tensor, shape (B, K, N) or (B, K, N, N)
        Standard deviations s, or covariances P.
    trajectory, time : Tensor of int64, shape (B,) and (K,)
        Labels. The seed, the labels and the member's number are the keys of the random numbers.
    members : int
    seed : int

    Returns
    -------
    Tensor, shape (B, K, members, N), in the dtype of `mean`
        NaN if a mean or its deviation is not finite.
    """
    size = mean.shape[-1]
    noise = torch.stack(
        [normal(seed, Purpose.ANALYSIS_DRAW, trajectory, time, size, stream=m) for m in range(members)], 2
    )
    noise = noise.to(mean.device)
    independent = deviation.ndim == mean.ndim
    error = deviation.double()[:, :, None] * noise if independent else noise @ symmetric_root(deviation)
    return (mean.double()[:, :, None] + error).to(mean.dtype)


def symmetric_root(covariance: Tensor) -> Tensor:
    """Symmetric root of covariances (..., N, N) in double precision. Negative eigenvalues from rounding count as zero.

    NaN if a covariance is not finite. Unlike a Cholesky factor, this root does not depend on the order of the
    components, and exists for singular covariances.
    """
    matrix = covariance.double()
    values, vectors = eigh_or_nan(0.5 * (matrix + matrix.mT))
    root: Tensor = (vectors * values.sqrt()[..., None, :]) @ vectors.mT
    return root
