"""Scores of forecasts by lead time, as functions of arrays: sums over cases, and scores from these sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from .ensemble_scores import members_crps
from .scores import absolute_error, gaussian_crps

Array = np.ndarray[Any, np.dtype[Any]]

# Weighted sums over the components of each case. "weight" is the sum of weights. "cases" is 1 if a component counts.
MOMENTS = (
    "weight",
    "cases",
    "square",
    "error",
    "absolute",
    "product",
    "forecast",
    "actual",
    "persistence",
    "noise",
    "variance",
    "crps",
    "logarithm",
)
# Place of each sum in the last axis of sums.
AT = {name: k for k, name in enumerate(MOMENTS)}
_FEWEST = 3  # smallest number of leads to which a growth rate is fitted


def case_sums(
    forecast: Array,
    actual: Array,
    weights: Array,
    *,
    mean: Array,
    start: Array | None = None,
    noise: Array | None = None,
    spread: Array | None = None,
    members: Array | None = None,
) -> Array:
    """Sums over the components of each case, in the order of `MOMENTS`.

    Let f be the forecast, y the state to compare with, c the climate's mean and w the weights. "square" is the sum of
    w (f - y)^2, "error" of w (f - y), "absolute" of w |f - y|, "product" of w (f - c)(y - c), "forecast" of
    w (f - c)^2, "actual" of w (y - c)^2, "persistence" of w (x - y)^2 with the start x, "noise" of w times the error
    variance of y, "variance" of w times the forecast's variance, "crps" of w times the CRPS of the members, or of a
    Gaussian with the spread. "logarithm" is the logarithm of the root of "square" over "weight"; 0 if no component
    counts. Moments without their input are NaN.

    Parameters
    ----------
    forecast, actual : array, shape (..., P)
    weights : array, shape (..., P)
        0 where a component does not count. Values there may be NaN.
    mean : array, shape (..., P)
        Mean of the climate.
    start : array, shape (..., P), optional
    noise : array, shape (..., P), optional
        Variance of the errors of `actual`.
    spread : array, shape (..., P), optional
    members : array, shape (..., M, P), optional

    Returns
    -------
    array of float64, shape (..., 13)
    """
    counts = weights > 0
    f, y, c = (np.asarray(values, dtype=np.float64) for values in (forecast, actual, mean))

    def total(values: Array) -> Array:
        summed: Array = np.where(counts, weights * values, 0.0).sum(-1)
        return summed

    sums = np.full((*f.shape[:-1], len(MOMENTS)), np.nan)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # a caller warns, and names the cause
        sums[..., AT["weight"]], sums[..., AT["cases"]] = weights.sum(-1), counts.any(-1)
        sums[..., AT["square"]], sums[..., AT["error"]] = total(np.square(f - y)), total(f - y)
        sums[..., AT["absolute"]] = total(absolute_error(y, f))
        sums[..., AT["product"]] = total((f - c) * (y - c))
        sums[..., AT["forecast"]], sums[..., AT["actual"]] = total(np.square(f - c)), total(np.square(y - c))
        square = sums[..., AT["square"]] / np.where(sums[..., AT["cases"]] > 0, sums[..., AT["weight"]], np.nan)
        sums[..., AT["logarithm"]] = np.where(sums[..., AT["cases"]] > 0, 0.5 * np.log(square), 0.0)
        if start is not None:
            sums[..., AT["persistence"]] = total(np.square(np.asarray(start, dtype=np.float64) - y))
        if noise is not None:
            sums[..., AT["noise"]] = total(noise)
        if spread is not None:
            sums[..., AT["variance"]] = total(np.square(np.asarray(spread, dtype=np.float64)))
        if members is not None:
            sums[..., AT["crps"]] = total(members_crps(y, np.moveaxis(members, -2, -1)))
        elif spread is not None:
            sums[..., AT["crps"]] = total(gaussian_crps(y, f, np.broadcast_to(spread, f.shape)))
    return sums


def mean_and_error(sums: Array, weight: Array) -> tuple[Array, Array]:
    """Weighted mean over trajectories (the last axis), and its standard error.

    Let S_r be the sum and w_r the weight of trajectory r. Then m = sum S_r / sum w_r, and
    se^2 = R / (R - 1) sum (S_r - m w_r)^2 / (sum w_r)^2 is the linearised variance of the ratio.

    Parameters
    ----------
    sums, weight : array, shape (..., R)

    Returns
    -------
    mean, standard_error : array, shape (...)
        With one trajectory, the error is NaN.

    References
    ----------
    Cochran (1977), Sampling Techniques, Sect. 2.11.
    """
    count, total = sums.shape[-1], weight.sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = sums.sum(-1) / total
        if count < 2:
            return mean, np.full_like(mean, np.nan)
        error = np.sqrt(count / (count - 1) * np.square(sums - mean[..., None] * weight).sum(-1)) / total
    return mean, error


def rmse_by_lead(sums: Array) -> Array:
    """Root of: mean square error minus the observations' error variance, (L,), from sums (L, 13)."""
    noise = np.nan_to_num(sums[..., AT["noise"]])
    with np.errstate(divide="ignore", invalid="ignore"):
        root: Array = np.sqrt((sums[..., AT["square"]] - noise) / sums[..., AT["weight"]])
    return root


def geometric_by_lead(sums: Array) -> Array:
    """Geometric mean of the cases' RMSEs, (L,), from sums (L, 13)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        mean: Array = np.exp(sums[..., AT["logarithm"]] / sums[..., AT["cases"]])
    return mean


def correlation_by_lead(sums: Array) -> Array:
    """Anomaly correlation, (L,), from sums (L, 13)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Array = sums[..., AT["product"]] / np.sqrt(sums[..., AT["forecast"]] * sums[..., AT["actual"]])
    return ratio


def crossing(lead: Array, curve: Array, level: float, *, rising: bool = True) -> float:
    """The lead at which a curve first reaches a level, by linear interpolation.

    Parameters
    ----------
    lead, curve : array, shape (L,)
        Leads at which the curve is NaN are left out.
    level : float
    rising : bool
        Whether the curve reaches the level from below.

    Returns
    -------
    float
        The first lead, if the curve begins beyond the level. NaN if it never reaches the level.
    """
    known = np.isfinite(curve)
    x, height = lead[known], (curve[known] - level) * (1 if rising else -1)
    beyond = np.flatnonzero(height >= 0)
    if not len(beyond):
        return float("nan")
    k = int(beyond[0])
    if k == 0:
        return float(x[0])
    return float(x[k - 1] + (x[k] - x[k - 1]) * -height[k - 1] / (height[k] - height[k - 1]))


def doubling_time(lead: Array, error: Array) -> float:
    """Time in which an error doubles: ln 2 over the slope of a line that is fitted to the error's logarithm.

    Parameters
    ----------
    lead, error : array, shape (L,)

    Returns
    -------
    float
        NaN for fewer than three leads, and if the error does not grow.
    """
    known = np.isfinite(error) & (error > 0)
    if known.sum() < _FEWEST:
        return float("nan")
    x, logarithm = lead[known], np.log(error[known])
    away = x - x.mean()
    slope = float(away @ logarithm / (away @ away))
    return float(np.log(2.0) / slope) if slope > 0 else float("nan")


def jackknife(sums: Array, statistics: Sequence[Callable[[Array], float]]) -> Array:
    """Statistics of the sums of all trajectories, and their standard errors by the jackknife over trajectories.

    se^2 = (R - 1) / R sum_r (t_(r) - mean t)^2, where t_(r) is the statistic without trajectory r.

    Parameters
    ----------
    sums : array, shape (R, ...)
    statistics : sequence of callable
        Each maps sums (...) to a number.

    Returns
    -------
    array, shape (statistics, 2)
        The error is NaN for one trajectory, and if the statistic is NaN without one of the trajectories.

    References
    ----------
    Efron and Tibshirani (1993), An Introduction to the Bootstrap, Eq. 11.5.
    """
    count, total = len(sums), sums.sum(0)
    made = np.full((len(statistics), 2), np.nan)
    for k, statistic in enumerate(statistics):
        made[k, 0] = statistic(total)
        if count > 1:
            without = np.array([statistic(total - one) for one in sums])
            made[k, 1] = np.sqrt((count - 1) / count * np.square(without - without.mean()).sum())
    return made


def horizons(sums: Array, deviation: float, lead: Array, fraction: float, correlation: float, small: float) -> Array:
    """Doubling time of the error, and the leads at which RMSE and anomaly correlation reach their levels.

    Parameters
    ----------
    sums : array, shape (R, L, 13)
    deviation : float
        The climate's standard deviation. Two independent states have an RMSE of sqrt(2) times this deviation.
    lead : array, shape (L,)
    fraction : float
        The horizon of the RMSE is where it reaches this fraction of sqrt(2) deviations.
    correlation : float
        The horizon of the anomaly correlation is where it reaches this value.
    small : float
        Doubling times are fitted to the leads before the error first exceeds this fraction of sqrt(2) deviations.

    Returns
    -------
    array, shape (6, 2)
        Doubling times of the geometric mean of the cases' RMSEs and of the RMSE; horizons of RMSE and correlation; and
        the longest leads to which the two doubling times are fitted. Each has its standard error, which is NaN for the
        last two.
    """
    most = np.sqrt(2.0) * deviation
    statistics: list[Callable[[Array], float]] = []
    longest = np.full((2, 2), np.nan)
    for k, curve in enumerate((geometric_by_lead, rmse_by_lead)):
        larger = np.flatnonzero(~(curve(sums.sum(0)) <= small * most))
        count = int(larger[0]) if len(larger) else len(lead)
        statistics.append(partial(_doubling, curve=curve, lead=lead[:count]))
        if count >= _FEWEST:
            longest[k, 0] = lead[count - 1]
    statistics += [
        lambda total: crossing(lead, rmse_by_lead(total), fraction * most),
        lambda total: crossing(lead, correlation_by_lead(total), correlation, rising=False),
    ]
    return np.concatenate([jackknife(sums, statistics), longest])


def _doubling(total: Array, curve: Callable[[Array], Array], lead: Array) -> float:
    """Doubling time of a curve that is computed from sums, over the first leads."""
    return doubling_time(lead, curve(total)[: len(lead)])
