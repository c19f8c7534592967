"""Scores of ensembles against the truth, as functions of arrays in bounded memory. Members are the last axis."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import scores
from .extras import optional
from .scores import Array, in_pieces, pieces, rows_of

_FLOAT = np.dtype(np.float64)
_FEWEST_TRAJECTORIES = 3  # smallest number for a covariance between ranks and its uncertainty


def members_crps(truth: Array, members: Array) -> Array:
    """Fair continuous ranked probability score of an ensemble. Its mean does not depend on the number of members.

    With m members x_i and the truth y: CRPS = 1/m sum_i |x_i - y| - 1/(2 m (m - 1)) sum_ij |x_i - x_j|.
    The second sum is 2 sum_i (2 i - m - 1) x_(i) of the sorted members x_(1) <= ... <= x_(m).
    The score of one member is its absolute error.

    Parameters
    ----------
    truth : array, shape S
    members : array, shape (*S, m)

    Returns
    -------
    array, shape S
        NaN if a member is NaN.

    References
    ----------
    Ferro (2014), doi:10.1002/qj.2270.
    """
    return in_pieces(_members_crps, truth.shape, (), truth, members)


def _members_crps(truth: Array, members: Array) -> Array:
    count = members.shape[-1]
    # Differences from the truth lose no digits where values are large compared with their differences.
    away = members
    away -= truth[..., None]
    between: Array | float = 0.0
    if count > 1:
        away.sort(axis=-1)
        weights = (2.0 * np.arange(1, count + 1) - count - 1) / (count * (count - 1))
        between = away @ weights.astype(away.dtype)
    np.abs(away, out=away)
    score: Array = away @ np.full(count, 1 / count, away.dtype)
    score -= between
    return score


def energy_score(truth: Array, members: Array, weights: Array, axes: int = 1) -> Array:
    """Fair energy score of an ensemble: the CRPS for whole states. It depends on how their variables vary together.

    With m members x_i and the truth y: ES = 1/m sum_i |x_i - y| - 1/(2 m (m - 1)) sum_ij |x_i - x_j|, where
    |z|^2 = sum_n w_n z_n^2. If the weights add up to 1, the score of one member is its RMSE. Distances are computed
    from products of states, G_ij = sum_n w_n (x_i - y)_n (x_j - y)_n: |x_i - x_j|^2 = G_ii + G_jj - 2 G_ij. This takes
    O(m^2 N) operations.

    Parameters
    ----------
    truth : array, shape (..., *state)
    members : array, shape (..., *state, m)
    weights : array, shape (*state)
        Weights, not negative.
    axes : int
        Number of axes of the state.

    Returns
    -------
    array of float64, shape (...)
        NaN if a member or the truth is NaN.

    References
    ----------
    Gneiting and Raftery (2007), doi:10.1198/016214506000001437, Eq. 22; fair form: Ferro (2014).
    """
    lead, count = truth.shape[: truth.ndim - axes], members.shape[-1]
    size = math.prod(truth.shape[len(lead) :])
    result = np.empty(lead)
    roots = np.sqrt(weights.reshape(size).astype(_FLOAT))
    step = max(1, scores._VALUES // count)  # number of variables of the state that are copied at once
    with np.errstate(over="ignore", invalid="ignore"):
        for piece in pieces(lead, size * count):
            x, ensemble = truth[piece], members[piece]
            rows = x.shape[: x.ndim - axes]
            x, ensemble = x.reshape(*rows, size), ensemble.reshape(*rows, size, count)
            products = np.zeros((*rows, count, count))
            for start in range(0, size, step):
                part = slice(start, start + step)
                away = ensemble[..., part, :].astype(_FLOAT) - x[..., part, None].astype(_FLOAT)
                away *= roots[part, None]
                products += away.swapaxes(-1, -2) @ away
            result[piece] = _energy(products)
    return result


def _energy(products: Array) -> Array:
    """Energy score from products of differences from the truth, shape (..., m, m)."""
    count = products.shape[-1]
    squares = np.diagonal(products, axis1=-2, axis2=-1)
    score: Array = np.sqrt(squares).mean(-1)
    if count > 1:
        # If two members are equal, rounding may give a negative square.
        apart = squares[..., :, None] + squares[..., None, :] - 2 * products
        score -= np.sqrt(np.maximum(apart, 0)).sum((-1, -2)) / (2 * count * (count - 1))
    return score


def rank_counts(truth: Array, members: Array, axes: int = 1) -> Array:
    """How often the truth takes each rank among the members, counted over the state.

    A truth that equals t members may have t + 1 ranks. It counts as 1 / (t + 1) in each of them. The histogram of an
    exchangeable ensemble then stays flat in the mean, and no random numbers are drawn. Values are not counted if the
    truth or a member is NaN.

    Parameters
    ----------
    truth : array, shape (..., *state)
    members : array, shape (..., *state, m)
    axes : int
        Number of axes of the state.

    Returns
    -------
    array of float64, shape (..., m + 1)
    """
    ranks = members.shape[-1] + 1

    def kernel(x: Array, members: Array) -> Array:
        lead, row = rows_of(x, axes)
        known = ~(np.isnan(x) | np.isnan(members).any(axis=-1))
        below = (members < x[..., None]).sum(axis=-1)
        ties = (members == x[..., None]).sum(axis=-1)
        counts = np.zeros(math.prod(lead) * ranks)
        for k in range(int(ties.max(initial=0)) + 1):
            taken = known & (ties >= k)
            place = row[taken] * ranks + below[taken] + k
            counts += np.bincount(place, 1.0 / (1.0 + ties[taken]), minlength=counts.size)
        return counts.reshape(*lead, ranks)

    lead = truth.shape[: truth.ndim - axes]
    return in_pieces(kernel, lead, (ranks,), truth, members, dtype=_FLOAT)


def flatness(counts: Array) -> dict[str, Array]:
    """How flat a rank histogram is, and whether chance explains the differences from a flat one.

    Let p_k be the shares of K ranks. The reliability index is sum_k |p_k - 1/K|. Counts of one trajectory are not
    independent, so that the chi-square statistic of all counts says little. Trajectories are independent: their
    histograms give the covariance V of the p_k. `effective_counts`, (1 - sum_k p_k^2) / tr V, is the number of
    independent counts whose shares would have the trace of V. `chi_square` is the statistic for this number. Its
    distribution is a weighted sum of chi-square distributions, which an F distribution approximates:
    sum_k (p_k - 1/K)^2 / tr V has d and d (R - 1) degrees of freedom for R trajectories, d = (tr V)^2 / tr V^2.

    Parameters
    ----------
    counts : array, shape (..., R, K)
        Counts of R independent trajectories.

    Returns
    -------
    dict of str to array, shape (...)
        `reliability_index`, `effective_counts`, `chi_square` and `p_value`. With fewer than 3 trajectories, all but the
        first are NaN.

    References
    ----------
    Reliability index: Delle Monache et al. (2006), doi:10.1029/2005JD006917. Chi-square statistic of clusters: Rao and
    Scott (1984), doi:10.1214/aos/1176346391.
    """
    special = optional("scipy.special", "statistics", "p values")
    rows, ranks = counts.shape[-2:]
    free = rows - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        total = counts.sum((-1, -2))
        shares = counts.sum(-2) / total[..., None]
        uneven = np.square(shares - 1 / ranks).sum(-1)
        index = np.abs(shares - 1 / ranks).sum(-1)
        nothing = np.full_like(index, np.nan)
        if rows < _FEWEST_TRAJECTORIES:
            return {"reliability_index": index} | dict.fromkeys(("effective_counts", "chi_square", "p_value"), nothing)
        away = (counts - counts.sum(-1, keepdims=True) * shares[..., None, :]) / total[..., None, None]
        between = away @ away.swapaxes(-1, -2) * (rows / free)  # R by R, with the trace of V and of its square
        trace = np.trace(between, axis1=-2, axis2=-1)
        square = np.square(between).sum((-1, -2))
        # Subtract the part of the trace of V^2 that comes from the small number of trajectories.
        square = (square - trace**2 / free) * free**2 / ((free - 1) * (free + 2))
        degrees = np.clip(trace**2 / np.maximum(square, np.finfo(float).tiny), 1, ranks - 1)
        effective = (1 - np.square(shares).sum(-1)) / trace
        return {
            "reliability_index": index,
            "effective_counts": effective,
            "chi_square": effective * ranks * uneven,
            "p_value": np.where(total > 0, special.fdtrc(degrees, degrees * free, uneven / trace), np.nan),
        }


def trailing(nothing: Any) -> Array:
    """Which times at the end of a record have nothing, (..., K): True if this and all later entries are True."""
    backward = np.logical_and.accumulate(np.asarray(nothing)[..., ::-1], axis=-1)
    result: Array = backward[..., ::-1]
    return result
