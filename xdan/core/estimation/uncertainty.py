"""Standard errors of estimated covariances, from samples that are nearly independent."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_FEWEST = 3  # smallest number of samples for each estimated number, for a common covariance of all numbers


def errors_by_scores(scores: Tensor, blocks: list[list[int]]) -> Tensor:
    """Standard errors of the maximum of a likelihood, from the outer products of its derivatives.

    Parameters
    ----------
    scores : Tensor, shape (S, p)
        Derivatives of the log-likelihood of each sample with respect to each parameter, at the maximum.
    blocks : list of list of int
        Groups of parameters, used if there are too few samples for all parameters together. All have one length.

    Returns
    -------
    Tensor, shape (p,)
        NaN for fewer than 2 samples. Within a block, the inverse of the information matrix accounts for the uncertainty
        of the other parameters.

    References
    ----------
    Berndt, Hall, Hall and Hausman (1974), Annals of Economic and Social Measurement 3, 653.
    """
    samples, count = scores.shape
    errors = torch.full((count,), math.nan, dtype=scores.dtype)
    if samples < 2:
        return errors
    centred = scores - scores.mean(0)
    information = centred.mT @ centred * (samples / (samples - 1))
    chosen = [list(range(count))] if samples >= _FEWEST * count else blocks
    index = torch.tensor(chosen)
    parts = information[index[:, :, None], index[:, None, :]]
    variances = torch.linalg.pinv(parts, hermitian=True).diagonal(dim1=1, dim2=2)
    known = parts.diagonal(dim1=1, dim2=2) > 0
    errors[index] = torch.where(known, variances.clamp_min(0.0).sqrt(), math.nan)
    return errors


def errors_by_samples(samples: Tensor, weights: Tensor, rate: float) -> Tensor:
    """Standard errors of the fixed point of an iteration, from the estimates that each sample alone would give.

    Parameters
    ----------
    samples : Tensor, shape (S, *value)
        The next estimate from each sample alone.
    weights : Tensor, shape (S,), or that of `samples`
        Number of errors in each sample.
    rate : float
        Factor by which changes of the iteration shrink from step to step. An error of one step moves the fixed point by
        1 / (1 - rate) times the error.

    Returns
    -------
    Tensor, shape (*value)
        NaN for fewer than 2 samples.
    """
    count = len(samples)
    if count < 2:
        return torch.full(samples.shape[1:], math.nan, dtype=samples.dtype)
    weights = weights.reshape(-1, *(1 for _ in samples.shape[1:])) if weights.ndim == 1 else weights
    share = weights / weights.sum(0)
    samples = torch.where(weights > 0, samples, 0.0)
    mean = (share * samples).sum(0)
    variance = (share.square() * (samples - mean).square()).sum(0) * count / (count - 1)
    return variance.sqrt() / (1.0 - rate)
