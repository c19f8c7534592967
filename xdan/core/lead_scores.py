"""Scores of forecasts by lead time, as kernels of arrays: sums over cases, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from .ensemble_scores import members_crps
from .scores import absolute_error, gaussian_crps

Array = np.ndarray[Any, np.dtype[Any]]

# Weighted sums over the components of each case; "weight" is the sum of the weights, "cases" counts cases with any.
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
# Position of each in the last axis of sums.
AT = {name: k for k, name in enumerate(MOMENTS)}
_FEWEST = 3  # leads that a growth rate is fitted over


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

    With f the forecast, y what it is compared with, c the climate's mean and w the weights: "square" is the sum of
    w (f - y)^2, "error" of w (f - y), "absolute" of w |f - y|, "product" of w (f - c)(y - c), "forecast" of
    w (f - c)^2, "actual" of w (y - c)^2, "persistence" of w (x - y)^2 with x the start, "noise" of w times the error
    variance of y, "variance" of w times the forecast's variance, "crps" of w times the CRPS of the members, or of a
    Gaussian of the spread. "logarithm" is that of the root of "square" over "weight", or 0 where nothing counts.
    Moments without their input are NaN.

    Parameters
    ----------
    forecast, actual : array, shape (..., P)
    weights : array, shape (..., P)
        0 where a component does not count; values there may be NaN.
    mean : array, shape (..., P)
        Of the climate.
    start : array, shape (..., P), optional
    noise : array, shape (..., P), optional
        Variance of errors of `actual`.
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
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # a caller warns, with the cause
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
    """Weighted mean over trajectories, the last axis, and its standard error.

    With S_r the sum and w_r the weight of trajectory r, m = sum S_r / sum w_r and
    se^2 = R / (R - 1) sum (S_r - m w_r)^2 / (sum w_r)^2, the linearised variance of a ratio.

    Parameters
    ----------
    sums, weight : array, shape (..., R)

    Returns
    -------
    mean, standard_error : array, shape (...)
        The error of one trajectory is NaN.

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
    """Root mean square error less the variance of the observations' errors, (L,), of sums (L, 13)."""
    noise = np.nan_to_num(sums[..., AT["noise"]])
    with np.errstate(divide="ignore", invalid="ignore"):
        root: Array = np.sqrt((sums[..., AT["square"]] - noise) / sums[..., AT["weight"]])
    return root


def geometric_by_lead(sums: Array) -> Array:
    """Geometric mean over the cases of their RMSEs, (L,), of sums (L, 13)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        mean: Array = np.exp(sums[..., AT["logarithm"]] / sums[..., AT["cases"]])
    return mean


def correlation_by_lead(sums: Array) -> Array:
    """Anomaly correlation, (L,), of sums (L, 13)."""
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
        Whether the curve comes from below.

    Returns
    -------
    float
        The first lead where the curve begins beyond the level; NaN where it never reaches it.
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
    """Time in which an error doubles, ln 2 over the slope of a line through the error's logarithm.

    Parameters
    ----------
    lead, error : array, shape (L,)

    Returns
    -------
    float
        NaN for fewer than three leads, and for an error that does not grow.
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

    se^2 = (R - 1) / R sum_r (t_(r) - mean t)^2, t_(r) the statistic without trajectory r.

    Parameters
    ----------
    sums : array, shape (R, ...)
    statistics : sequence of callable
        Each gives a number of sums (...).

    Returns
    -------
    array, shape (statistics, 2)
        The error is NaN for one trajectory, and where a statistic is NaN without one of them.

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
        The climate's standard deviation: the RMSE of states that know nothing of one another is sqrt(2) times as large.
    lead : array, shape (L,)
    fraction : float
        Of sqrt(2) deviations, at which the RMSE ends the horizon.
    correlation : float
        Anomaly correlation at which the other horizon ends.
    small : float
        Fraction of sqrt(2) deviations: doubling times are those of the leads before the first at which the error is
        larger.

    Returns
    -------
    array, shape (6, 2)
        Doubling times of the geometric mean of the cases' RMSEs and of the RMSE, the horizons of RMSE and correlation,
        and the longest leads that the two doubling times are fitted to; each with its standard error, NaN for the last
        two.
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
    """Doubling time of a curve of sums over the first leads."""
    return doubling_time(lead, curve(total)[: len(lead)])
