"""Multifidelity Monte Carlo: a mean under a costly model, from a few draws of this model and many of cheaper ones.

The draws v^(n) are nested. The high-fidelity model runs on the first N_0 of them, and low-fidelity model k on the first
N_k, with N_0 <= N_1 <= ... <= N_K.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import torch
from torch import Tensor

from ..checks import integer, real, real_array, shown
from ..keywords import checks_keywords
from ..roots import eigh_or_nan

_MOST_MODELS = 12  # largest number of low-fidelity models, because every subset of them is tried


def control_variate_mean(values: Sequence[Tensor], weights: Sequence[Tensor | float]) -> Tensor:
    """Estimate the mean of the high-fidelity model, m = m_0 + sum_k a_k (m_k - m'_k).

    m_k is the mean of model k over its N_k draws, and m'_k its mean over the first N_{k-1} draws. E[m_k] = E[m'_k], so
    the estimate has no bias for any weights that do not depend on the draws.

    Parameters
    ----------
    values : sequence of Tensor, shapes (..., N_k, D)
        Values of the high-fidelity model (k = 0) and then of each low-fidelity model, at the first N_k draws.
    weights : sequence of Tensor, shapes broadcastable to (..., D), or float
        Weight a_k of each low-fidelity model.

    Returns
    -------
    Tensor, shape (..., D)

    Raises
    ------
    ValueError
        If the number of weights is not the number of low-fidelity models, or the numbers of draws decrease.

    References
    ----------
    Peherstorfer, Willcox and Gunzburger (2016), doi:10.1137/15M1046472, Eq. 3.1.

    Examples
    --------
    >>> high, low = torch.tensor([[2.0], [4.0]]), torch.tensor([[1.0], [2.0], [3.0], [6.0]])
    >>> control_variate_mean([high, low], [2.0])  # high is twice low: the mean of all four draws, 6
    tensor([6.])
    """
    _check_nested([value.shape[-2] for value in values], len(weights))
    mean = values[0].mean(-2)
    for k, weight in enumerate(weights, 1):
        mean = mean + weight * (values[k].mean(-2) - values[k][..., : values[k - 1].shape[-2], :].mean(-2))
    return mean


def control_variate_covariance(values: Sequence[Tensor], weights: Sequence[Tensor | float]) -> Tensor:
    """Estimate the covariance of the high-fidelity model, C = C_0 + sum_k A_k (C_k - C'_k) A_k, A_k = diag(a_k).

    C_k and C'_k are sample covariances of model k over N_k and N_{k-1} draws. For normal variables, if a_k is the best
    weight of a mean then a_k^2 is the best weight of a variance. The estimate without bias may have negative
    eigenvalues. They are set to zero, which gives the nearest positive semi-definite matrix.

    Parameters
    ----------
    values : sequence of Tensor, shapes (..., N_k, D)
        See `control_variate_mean`; N_0 is at least 2.
    weights : sequence of Tensor, shapes broadcastable to (..., D), or float
        Weight a_k of each low-fidelity model.

    Returns
    -------
    Tensor, shape (..., D, D)

    Raises
    ------
    ValueError
        See `control_variate_mean`; also if there are fewer than 2 draws.

    References
    ----------
    Hoel, Law and Tempone (2016), doi:10.1137/15M100955X, Sect. 2.5, for zero in the place of negative eigenvalues.

    Examples
    --------
    >>> high, low = torch.tensor([[2.0], [4.0]]), torch.tensor([[1.0], [2.0], [3.0], [6.0]])
    >>> control_variate_covariance([high, low], [2.0]), 4 * low.var()
    (tensor([[18.6667]]), tensor(18.6667))
    """
    _check_nested([value.shape[-2] for value in values], len(weights), least=2)
    total = _sample_covariance(values[0])
    for k, weight in enumerate(weights, 1):
        scaled = values[k] * (weight[..., None, :] if isinstance(weight, Tensor) and weight.ndim else weight)
        total = total + _sample_covariance(scaled) - _sample_covariance(scaled[..., : values[k - 1].shape[-2], :])
    if not weights:
        return total
    eigenvalues, vectors = eigh_or_nan(total.flatten(0, -3) if total.ndim > 2 else total[None])
    return ((vectors * eigenvalues[:, None]) @ vectors.mT).reshape(total.shape)


def regression_weights(high: Tensor, low: Tensor, scalar: bool) -> Tensor:
    """Best weights a = rho Q_high / Q_low = Cov(high, low) / Var(low), from pairs of draws.

    Parameters
    ----------
    high, low : Tensor, shape (..., n, D)
        Values of both models at n common draws.
    scalar : bool
        Use one weight for all components, from the sums of their covariances and of their variances.

    Returns
    -------
    Tensor, shape (..., D), or (..., 1)

    Examples
    --------
    >>> low = torch.tensor([[1.0], [2.0], [6.0]])
    >>> regression_weights(3 * low + 5, low, scalar=False)
    tensor([3.])
    """
    dims = (-2, -1) if scalar else (-2,)
    high, low = high - high.mean(-2, keepdim=True), low - low.mean(-2, keepdim=True)
    covariance, variance = (high * low).sum(dims), low.square().sum(dims)
    weights = covariance / variance.clamp_min(torch.finfo(variance.dtype).tiny)
    return weights[..., None] if scalar else weights


@checks_keywords
def control_variate_variance(counts: Sequence[int], correlations: Sequence[float], variance: float = 1.0) -> float:
    """Variance of the multifidelity mean with the best weights a_k = rho_k Q_0 / Q_k.

    Var[m] = Q_0^2 / N_0 - sum_k (1 / N_{k-1} - 1 / N_k) rho_k^2 Q_0^2. This is exact for nested independent draws and
    weights that do not depend on them. A model with N_k = N_{k-1} changes nothing.

    Parameters
    ----------
    counts : sequence of int
        N_0 of the high-fidelity model, then N_1 <= ... <= N_K. N_1 is at least N_0.
    correlations : sequence of float
        Correlation rho_k between the high-fidelity model and each low-fidelity model.
    variance : float
        Variance Q_0^2 of one draw of the high-fidelity model.

    Returns
    -------
    float

    Raises
    ------
    TypeError
        If the counts are not integers.
    ValueError
        If the counts decrease or are below 1, a correlation is outside [-1, 1], or the numbers of both do not fit.

    References
    ----------
    Peherstorfer, Willcox and Gunzburger (2016), doi:10.1137/15M1046472, Lemma 3.3.

    Examples
    --------
    >>> control_variate_variance([10, 100], [0.9])  # without the low-fidelity model: a tenth
    0.0271
    """
    rho = _checked_correlations(correlations)
    numbers = [integer(f"counts[{k}]", count, least=1) for k, count in enumerate(_listed("counts", counts))]
    _check_nested(numbers, len(rho))
    total = 1.0 / numbers[0] - sum(
        (1.0 / before - 1.0 / after) * r**2 for (before, after), r in zip(pairwise(numbers), rho, strict=True)
    )
    return round(real("variance", variance, least=0.0) * total, 15)


@dataclass(frozen=True)
class MemberCounts:
    """Numbers of draws (members) of models of several fidelities.

    Attributes
    ----------
    counts : tuple of int
        Number of the high-fidelity model, then of each low-fidelity model; 0 for a model that does not pay.
    variance : float
        Variance of the multifidelity mean, in units of the variance of one draw.
    high_only : float
        Variance of the mean if the whole budget pays for high-fidelity draws, in the same units.
    cost : float
        Cost of all draws together.

    Examples
    --------
    >>> import xdan
    >>> chosen = xdan.member_counts([1.0, 0.01], [0.9], budget=20.0)
    >>> bool(chosen.variance < chosen.high_only and chosen.cost <= 20.0)
    True
    """

    counts: tuple[int, ...]
    variance: float
    high_only: float
    cost: float


@checks_keywords
def member_counts(costs: Sequence[float], correlations: Sequence[float], budget: float, least: int = 2) -> MemberCounts:
    """Choose the number of members of each model, so that the variance of the multifidelity mean is least in a budget.

    The variance is sum_k a_k / N_k with a_k = rho_k^2 - rho_{k+1}^2, rho_0 = 1 and rho_{K+1} = 0. The best N_k is
    therefore proportional to the root of a_k / w_k, where w_k is the cost of a run. Every subset of the low-fidelity
    models is tried.

    Parameters
    ----------
    costs : sequence of float
        Cost w_k of one run of the high-fidelity model, then of each low-fidelity model, in any unit.
    correlations : sequence of float
        Correlation rho_k between the high-fidelity model and each low-fidelity model, in the same order.
    budget : float
        Largest cost of all runs together, in the unit of the costs.
    least : int
        Smallest number of members of the high-fidelity model; a covariance needs 2.

    Returns
    -------
    MemberCounts

    Raises
    ------
    TypeError
        If the arguments are not numbers.
    ValueError
        If a cost is not positive, a correlation is outside [-1, 1], the numbers of costs and correlations do not fit,
        or the budget does not pay for the fewest members.

    References
    ----------
    Peherstorfer, Willcox and Gunzburger (2016), doi:10.1137/15M1046472, Theorem 3.4 and Algorithm 1.

    Examples
    --------
    >>> member_counts(costs=[1.0, 0.05], correlations=[0.95], budget=40.0)
    MemberCounts(counts=(23, 340), variance=0.006893..., high_only=0.025, cost=40.0)
    """
    rho = _checked_correlations(correlations)
    w = [real(f"costs[{k}]", cost, above=0.0) for k, cost in enumerate(_listed("costs", costs))]
    budget, least = real("budget", budget, above=0.0), integer("least", least, least=1)
    if len(w) != len(rho) + 1:
        raise ValueError(
            f"{len(w)} costs and {len(rho)} correlations: expected one cost more, that of the high-fidelity model first"
        )
    if len(rho) > _MOST_MODELS:
        raise ValueError(f"{len(rho)} low-fidelity models: expected at most {_MOST_MODELS}, as all subsets are tried")
    affordable = math.floor(budget / w[0] * (1 + 1e-12))
    if affordable < least:
        raise ValueError(
            f"budget={budget:g} does not pay for {least} runs of the high-fidelity model, which cost {least * w[0]:g}: "
            "expected a larger budget"
        )
    best: tuple[list[int], float, tuple[int, ...]] = ([affordable], 1.0 / affordable, ())
    for size in range(1, len(rho) + 1):
        for chosen in combinations(range(len(rho)), size):
            numbers = _counts([w[0], *(w[k + 1] for k in chosen)], [rho[k] for k in chosen], budget, least)
            if numbers is None:
                continue
            variance = control_variate_variance(numbers, [rho[k] for k in chosen])
            if variance < best[1] * (1 - 1e-12):
                best = (numbers, variance, chosen)
    counts = [0] * len(w)
    counts[0] = best[0][0]
    for k, number in zip(best[2], best[0][1:], strict=True):
        counts[k + 1] = number
    cost = sum(number * one for number, one in zip(counts, w, strict=True))
    return MemberCounts(tuple(counts), best[1], 1.0 / affordable, round(cost, 12))


def _counts(w: list[float], rho: list[float], budget: float, least: int) -> list[int] | None:
    """Best counts if all these models are used. None if a model does not pay, or the models need another order."""
    squares = [1.0, *(r**2 for r in rho), 0.0]
    gains = [before - after for before, after in pairwise(squares)]
    if min(gains[1:]) <= 0 or gains[0] < 0:
        return None
    ratios = [math.sqrt(gain / cost) for gain, cost in zip(gains, w, strict=True)]
    high = max(least, math.floor(budget * ratios[0] / sum(r * cost for r, cost in zip(ratios, w, strict=True)) + 1e-9))
    left = budget - high * w[0]
    scale = left / sum(r * cost for r, cost in zip(ratios[1:], w[1:], strict=True))
    numbers = [high, *(math.floor(scale * ratio + 1e-9) for ratio in ratios[1:])]
    if any(after < before for before, after in pairwise(numbers)):
        return None
    left = budget - sum(number * cost for number, cost in zip(numbers, w, strict=True))
    numbers[-1] += math.floor(left / w[-1] + 1e-9)
    return numbers


def _sample_covariance(values: Tensor) -> Tensor:
    """Unbiased covariance of draws (..., n, D)."""
    anomalies = values - values.mean(-2, keepdim=True)
    return anomalies.mT @ anomalies / (values.shape[-2] - 1)


def _check_nested(counts: Sequence[int], weights: int, least: int = 1) -> None:
    """Refuse numbers of draws that decrease, and any number of weights but one for each low-fidelity model."""
    if len(counts) != weights + 1:
        raise ValueError(
            f"{len(counts)} models and {weights} weights or correlations: expected one for each low-fidelity model"
        )
    if counts[0] < least or any(after < before for before, after in pairwise(counts)):
        raise ValueError(
            f"numbers of draws {list(counts)}: expected at least {least} of the high-fidelity model, and no fewer of "
            "each model that follows, as the draws of a model are the first ones of the next"
        )


def _checked_correlations(correlations: Any) -> list[float]:
    values = _listed("correlations", correlations)
    return [real(f"correlations[{k}]", value, least=-1.0, most=1.0) for k, value in enumerate(values)]


def _listed(label: str, values: Any) -> list[Any]:
    if isinstance(values, (str, bytes)) or real_array(label, values, finite=False).ndim != 1:
        raise TypeError(f"{label}={shown(values)}: expected a list of numbers")
    return list(values)
