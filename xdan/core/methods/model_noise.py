"""How an ensemble includes the covariance Q of its model's errors: by draws, or by a square root in its space."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dynamics import ModelError
from ..roots import eigh_or_nan

WAYS = ("draws", "sqrt-core")


def with_draws(x: Tensor, error: ModelError, noise: Tensor) -> Tensor:
    """Members (B, M, N) with an error added to each, from normal numbers (B, M, N). The members keep their mean.

    The errors have zero mean over the members. The sample covariance grows by Q on average.
    """
    errors = error.from_noise(noise)
    return x + errors - errors.mean(1, keepdim=True)


def sqrt_core(x: Tensor, error: ModelError) -> Tensor:
    """Members (B, M, N) whose covariance grows by the part of Q in their span; their anomalies are transformed.

    With the anomalies A as rows, the new anomalies are T A, T^2 = I + (M - 1) A^{+T} Q A^+. No numbers are drawn, and
    the members keep their mean.

    References
    ----------
    Raanes, Carrassi and Bertino (2015), doi:10.1175/MWR-D-14-00401.1, Eq. 41.
    """
    mean = x.mean(1, keepdim=True)
    anomalies = x - mean
    values, vectors = eigh_or_nan(anomalies @ anomalies.mT)
    eps = torch.finfo(values.dtype).eps
    rounding = (eps * x.abs().amax((1, 2))).square()[:, None] * x[0].numel()  # if all members are equal
    kept = values > torch.maximum(values[:, -1:] * values.shape[1] * eps, rounding)
    inverse = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)
    # A^{+T} = (A A^T)^+ A, rows; its products with a root of Q.
    rows = (vectors * inverse[:, None]) @ vectors.mT @ anomalies
    core = rows @ error.root(x)
    size, turned = eigh_or_nan((x.shape[1] - 1) * core @ core.mT)
    longer = (turned * (1 + size).sqrt()[:, None]) @ turned.mT
    return mean + longer @ anomalies
