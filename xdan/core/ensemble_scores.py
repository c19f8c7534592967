"""Scores of ensembles and of probabilities against the truth, as kernels of arrays in bounded memory.

Members lie along the last axis. The CRPS, the energy score and the ranks of members; counts of events by probability
and of errors by spread, from which reliability is read.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import erfc, fdtrc

from . import scores
from .scores import Array, in_pieces, pieces

_FLOAT = np.dtype(np.float64)
# Spreads are counted between powers of two: from 2**-40 to 2**24, 32 bins from one power to the next.
_LOWEST, _HIGHEST, _BY_OCTAVE = -40, 24, 32
FINE_BINS = (_HIGHEST - _LOWEST) * _BY_OCTAVE + 1  # the first holds what lies below, zero too
_FEWEST_TRAJECTORIES = 3  # for a covariance between ranks and how well it is known


def members_crps(truth: Array, members: Array) -> Array:
    """Fair continuous ranked probability score of an ensemble: its mean does not depend on the number of members.

    With m members x_i and the truth y: CRPS = 1/m sum_i |x_i - y| - 1/(2 m (m - 1)) sum_ij |x_i - x_j|.
    The second sum is 2 sum_i (2 i - m - 1) x_(i) of the sorted members x_(1) <= ... <= x_(m).
    One member has its absolute error.

    Parameters
    ----------
    truth : array, shape S
    members : array, shape (*S, m)

    Returns
    -------
    array, shape S
        NaN where a member is NaN.

    References
    ----------
    Ferro (2014), doi:10.1002/qj.2270.
    """
    return in_pieces(_members_crps, truth.shape, (), truth, members)


def _members_crps(truth: Array, members: Array) -> Array:
    count = members.shape[-1]
    # About the truth, so that nothing is lost where the values are large beside their differences.
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
    """Fair energy score of an ensemble: the CRPS of whole states, which sees how their variables vary together.

    With m members x_i and the truth y: ES = 1/m sum_i |x_i - y| - 1/(2 m (m - 1)) sum_ij |x_i - x_j|, where
    |z|^2 = sum_n w_n z_n^2. With weights that add up to 1 the distance of one member is its RMSE. Distances come from
    products of states, G_ij = sum_n w_n (x_i - y)_n (x_j - y)_n: |x_i - x_j|^2 = G_ii + G_jj - 2 G_ij, in O(m^2 N)
    operations.

    Parameters
    ----------
    truth : array, shape (..., *state)
    members : array, shape (..., *state, m)
    weights : array, shape (*state)
        Not negative.
    axes : int
        How many axes the state has.

    Returns
    -------
    array of float64, shape (...)
        NaN where a member or the truth is NaN.

    References
    ----------
    Gneiting and Raftery (2007), doi:10.1198/016214506000001437, Eq. 22; the fair form as in Ferro (2014).
    """
    lead, count = truth.shape[: truth.ndim - axes], members.shape[-1]
    size = math.prod(truth.shape[len(lead) :])
    result = np.empty(lead)
    roots = np.sqrt(weights.reshape(size).astype(_FLOAT))
    step = max(1, scores._VALUES // count)  # variables of the state that are copied at once
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
    """Energy score of products of states about the truth, shape (..., m, m)."""
    count = products.shape[-1]
    squares = np.diagonal(products, axis1=-2, axis2=-1)
    score: Array = np.sqrt(squares).mean(-1)
    if count > 1:
        # Rounding may leave less than nothing of two members that are one.
        apart = squares[..., :, None] + squares[..., None, :] - 2 * products
        score -= np.sqrt(np.maximum(apart, 0)).sum((-1, -2)) / (2 * count * (count - 1))
    return score


def rank_counts(truth: Array, members: Array, axes: int = 1) -> Array:
    """How often the truth takes each rank among the members, counted over the state.

    A truth that equals t members may have t + 1 ranks and counts as 1 / (t + 1) in each of them: the histogram of an
    exchangeable ensemble stays flat in the mean, and no random numbers are drawn. A truth that is NaN, or has a member
    that is NaN, is not counted.

    Parameters
    ----------
    truth : array, shape (..., *state)
    members : array, shape (..., *state, m)
    axes : int
        How many axes the state has.

    Returns
    -------
    array of float64, shape (..., m + 1)
    """
    ranks = members.shape[-1] + 1

    def kernel(x: Array, members: Array) -> Array:
        lead, row = _rows(x, axes)
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


def _rows(x: Array, axes: int) -> tuple[tuple[int, ...], Array]:
    """Sizes of the leading axes, and for each value the number of its row."""
    lead = x.shape[: x.ndim - axes]
    return lead, np.broadcast_to(np.arange(math.prod(lead)).reshape(*lead, *[1] * axes), x.shape)


def flatness(counts: Array) -> dict[str, Array]:
    """How flat a rank histogram is, and whether chance explains what is missing.

    With the shares p_k of K ranks: the reliability index is sum_k |p_k - 1/K|. Counts of one trajectory are not
    independent, so that the chi-square statistic of all counts says little. Trajectories are: their histograms give the
    covariance V of the p_k. `effective_counts` is the number of independent counts whose shares would have the trace of
    V, (1 - sum_k p_k^2) / tr V, and `chi_square` is the statistic of so many. Its distribution is a weighted sum of
    chi-square ones, which F approximates: sum_k (p_k - 1/K)^2 / tr V has d and d (R - 1) degrees of freedom for R
    trajectories, d = (tr V)^2 / tr V^2.

    Parameters
    ----------
    counts : array, shape (..., R, K)
        Of R independent trajectories.

    Returns
    -------
    dict of str to array, shape (...)
        `reliability_index`, `effective_counts`, `chi_square`, `p_value`; all but the first are NaN for fewer than 3
        trajectories.

    References
    ----------
    Reliability index: Delle Monache et al. (2006), doi:10.1029/2005JD006917. Chi-square statistics of clusters: Rao and
    Scott (1984), doi:10.1214/aos/1176346391.
    """
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
        # Without the share of the trace of V^2 that comes from its few trajectories.
        square = (square - trace**2 / free) * free**2 / ((free - 1) * (free + 2))
        degrees = np.clip(trace**2 / np.maximum(square, np.finfo(float).tiny), 1, ranks - 1)
        effective = (1 - np.square(shares).sum(-1)) / trace
        return {
            "reliability_index": index,
            "effective_counts": effective,
            "chi_square": effective * ranks * uneven,
            "p_value": np.where(total > 0, fdtrc(degrees, degrees * free, uneven / trace), np.nan),
        }


EVENT_SUMS = ("count", "probability", "squared", "events", "both")


def members_event_sums(
    truth: Array, members: Array, threshold: Array, *, bins: int, axes: int = 1, weights: Array | None = None
) -> Array:
    """Sums over the state, by bins of the probability that an ensemble gives to a value above a threshold.

    Parameters
    ----------
    truth : array, shape (..., *state)
    members : array, shape (..., *state, m)
        The probability p is the share of members above the threshold.
    threshold : array, shape (*state)
    bins : int
        Of equal width between 0 and 1.
    axes : int
        How many axes the state has.
    weights : array, shape (*state), optional
        How often each variable counts; once by default.

    Returns
    -------
    array of float64, shape (..., bins, 5)
        For each bin the sums of 1, p, p^2, o and p o, where o is 1 if the truth is above the threshold, else 0. What is
        NaN is not counted.
    """

    def kernel(x: Array, members: Array) -> Array:
        count = members.shape[-1]
        above = (members > threshold[..., None]).sum(-1)
        probability = np.where(np.isnan(members).any(-1), np.nan, above / count)
        place = np.minimum(above * bins // count, bins - 1)  # in whole numbers: 7 of 10 is in the bin from 0.7
        return _event_sums(x, probability, place, threshold, bins, axes, weights)

    lead = truth.shape[: truth.ndim - axes]
    return in_pieces(kernel, lead, (bins, len(EVENT_SUMS)), truth, members, dtype=_FLOAT)


def gaussian_event_sums(
    truth: Array,
    mean: Array,
    spread: Array,
    threshold: Array,
    *,
    bins: int,
    axes: int = 1,
    weights: Array | None = None,
) -> Array:
    """The sums of `members_event_sums` for a Gaussian, whose probability is Phi((mean - threshold) / spread)."""

    def kernel(x: Array, mean: Array, spread: Array) -> Array:
        away = threshold - mean
        # Without spread the event is certain or impossible.
        z = np.where(spread > 0, away / spread, np.where(away < 0, -np.inf, np.inf))
        known = (spread >= 0) & ~np.isnan(away)
        probability = np.where(known, 0.5 * erfc(z / math.sqrt(2)), np.nan)
        place = np.minimum((np.where(known, probability, 0.0) * bins).astype(np.int64), bins - 1)
        return _event_sums(x, probability, place, threshold, bins, axes, weights)

    lead = truth.shape[: truth.ndim - axes]
    return in_pieces(kernel, lead, (bins, len(EVENT_SUMS)), truth, mean, spread, dtype=_FLOAT)


def _event_sums(
    x: Array, probability: Array, place: Array, threshold: Array, bins: int, axes: int, weights: Array | None
) -> Array:
    lead, row = _rows(x, axes)
    known = ~(np.isnan(x) | np.isnan(probability) | np.isnan(threshold))
    share = np.broadcast_to(1.0 if weights is None else weights, x.shape)[known]
    event, p = (x > threshold)[known], probability[known]
    place = row[known] * bins + place[known]
    columns = (share, share * p, share * p * p, share * event, share * p * event)
    sums = [np.bincount(place, column, minlength=math.prod(lead) * bins) for column in columns]
    return np.stack(sums, -1).reshape(*lead, bins, len(columns))


def brier_parts(sums: Array, members: int | None = None) -> dict[str, Array]:
    """The Brier score and its decomposition, from the sums of `members_event_sums`.

    With probabilities p, outcomes o of 0 or 1, and n_k forecasts in bin k, of mean probability p_k and frequency o_k:
    BS = mean (p - o)^2 = reliability - resolution + uncertainty + within_bins,
    reliability = sum n_k (p_k - o_k)^2 / n, resolution = sum n_k (o_k - o)^2 / n, uncertainty = o (1 - o), o being the
    frequency of all. `within_bins` is what varies inside of the bins; 0 where each bin has one probability. The fair
    score takes mean p (1 - p) / (m - 1) off the Brier score of m members: its mean does not depend on m.

    Parameters
    ----------
    sums : array, shape (..., bins, 5)
    members : int, optional
        m, for the fair score.

    Returns
    -------
    dict of str to array, shape (...)

    References
    ----------
    Murphy (1973), doi:10.1175/1520-0450(1973)012<0595:ANVPOT>2.0.CO;2. Within bins: Stephenson et al. (2008),
    doi:10.1175/2007WAF2006116.1. Fair: Ferro (2014), doi:10.1002/qj.2270.
    """
    count, p, squared, events, both = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        total = count.sum(-1)
        rate = events.sum(-1) / total
        score = (squared - 2 * both + events).sum(-1) / total
        filled = np.where(count > 0, count, 1.0)  # an empty bin adds nothing
        reliability = (np.square(p - events) / filled).sum(-1) / total
        resolution = (np.square(events - count * rate[..., None]) / filled).sum(-1) / total
        parts = {
            "brier_score": score,
            "reliability": reliability,
            "resolution": resolution,
            "uncertainty": rate * (1 - rate),
            "within_bins": score - (reliability - resolution + rate * (1 - rate)),
            "base_rate": rate,
        }
        if members is not None and members > 1:
            parts["brier_score_fair"] = score - (p - squared).sum(-1) / total / (members - 1)
    return parts


def fine_edges() -> Array:
    """Lower edges of the fine bins of spread, shape (FINE_BINS,); 0 is the first."""
    octaves = np.arange(FINE_BINS - 1) / _BY_OCTAVE + _LOWEST
    return np.concatenate([[0.0], np.exp2(octaves)])


def spread_sums(
    truth: Array,
    estimate: Array,
    spread: Array,
    group: Array,
    *,
    groups: int,
    edges: Array,
    axes: int = 1,
    weights: Array | None = None,
) -> Array:
    """Squared spreads and squared errors, summed by bins of the spread and by groups of trajectories.

    Parameters
    ----------
    truth, estimate, spread : array, shape (B, K, *state)
    group : array of int, shape (B,)
        The group of each trajectory.
    groups : int
    edges : array, shape (bins,)
        Lower edges of the bins, ascending; the last has no upper edge. What lies below the first is not counted.
    axes : int
        How many axes the state has.
    weights : array, shape (*state), optional
        How often each variable counts; once by default.

    Returns
    -------
    array of float64, shape (groups, bins, 3)
        Sums of 1, of the squared spread and of the squared error. What is NaN is not counted.
    """
    sums = np.zeros((3, groups * len(edges)))
    lead, size = truth.shape[:2], math.prod(truth.shape[2:])
    bounds, shares = edges.astype(_FLOAT), None if weights is None else weights.astype(_FLOAT)
    for piece in pieces(lead, size):
        x, mean, deviation = (array[piece].astype(_FLOAT) for array in (truth, estimate, spread))
        known = ~np.isnan(x - mean) & (deviation >= bounds[0])
        of_row = np.broadcast_to(group[piece[:1]].reshape(-1, *[1] * (x.ndim - 1)), x.shape)
        place = of_row[known] * len(bounds) + np.searchsorted(bounds, deviation[known], "right") - 1
        share = np.broadcast_to(1.0 if shares is None else shares, x.shape)[known]
        columns = (share, share * np.square(deviation[known]), share * np.square((x - mean)[known]))
        for total, column in zip(sums, columns, strict=True):
            total += np.bincount(place, column, minlength=total.size)
    result: Array = np.moveaxis(sums.reshape(3, groups, len(edges)), 0, -1)
    return result


def merged_bins(sums: Array, bins: int) -> tuple[Array, Array]:
    """Join neighbouring bins of spread into a few that hold about as many values each.

    Parameters
    ----------
    sums : array, shape (groups, fine bins, 3)
        Of `spread_sums`.
    bins : int

    Returns
    -------
    array, shape (groups, bins, 3)
        A bin may be empty, where many spreads are alike.
    array of int, shape (bins + 1,)
        The first fine bin of each, and the end.
    """
    counts = sums[..., 0].sum(0)
    total = counts.sum()
    middle = (counts.cumsum() - counts / 2) / (total if total > 0 else 1.0)
    place = np.minimum((middle * bins).astype(np.int64), bins - 1)
    starts = np.searchsorted(place, np.arange(bins + 1))
    upto = np.concatenate([np.zeros_like(sums[:, :1]), sums.cumsum(1)], 1)
    return np.diff(upto[:, starts], axis=1), starts


def spread_error(sums: Array) -> dict[str, Array]:
    """Spread and RMSE of each bin of spread, with the standard error over groups of trajectories.

    Parameters
    ----------
    sums : array, shape (groups, bins, 3)
        Of `spread_sums`.

    Returns
    -------
    dict of str to array, shape (bins,)
        `spread`, `rmse`: roots of the means of the squares, NaN where a bin is empty; `count`;
        `rmse_standard_error`, NaN for one group.
    """
    groups = sums.shape[0]
    count, variance, squares = np.moveaxis(sums.sum(0), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = squares / count
        rmse = np.sqrt(mean)
        # Of a ratio of sums: groups have different counts in a bin.
        away = sums[..., 2] - mean * sums[..., 0]
        scatter = np.square(away).sum(0) * groups / max(groups - 1, 1) / count**2
        error = np.sqrt(scatter) / (2 * rmse) if groups > 1 else np.full_like(rmse, np.nan)
        return {"spread": np.sqrt(variance / count), "rmse": rmse, "rmse_standard_error": error, "count": count}


def trailing(nothing: Any) -> Array:
    """Which times at the end of a record have nothing: True where all from there on are True, shape (..., K)."""
    backward = np.logical_and.accumulate(np.asarray(nothing)[..., ::-1], axis=-1)
    result: Array = backward[..., ::-1]
    return result
