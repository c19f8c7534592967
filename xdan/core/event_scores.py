"""Probabilities of an event and its frequency: sums by bins of probability, and the Brier score with its parts."""

from __future__ import annotations

import math

import numpy as np
import torch

from .scores import Array, in_pieces, rows_of

_FLOAT = np.dtype(np.float64)
EVENT_SUMS = ("count", "probability", "squared", "events", "both")


def members_event_sums(
    truth: Array, members: Array, threshold: Array, *, bins: int, axes: int = 1, weights: Array | None = None
) -> Array:
    """Sums over the state, by bins of the probability of values above a threshold, for an ensemble.

    Parameters
    ----------
    truth : array, shape (..., *state)
    members : array, shape (..., *state, m)
        The probability p of the event is the share of members above the threshold.
    threshold : array, shape (*state)
    bins : int
        Number of bins of equal width between 0 and 1.
    axes : int
        Number of axes of the state.
    weights : array, shape (*state), optional
        Weight of each variable; by default 1.

    Returns
    -------
    array of float64, shape (..., bins, 5)
        For each bin the sums of 1, p, p^2, o and p o. o is 1 if the truth is above the threshold, and otherwise 0. NaN
        is not counted.
    """

    def kernel(x: Array, members: Array) -> Array:
        count = members.shape[-1]
        above = (members > threshold[..., None]).sum(-1)
        probability = np.where(np.isnan(members).any(-1), np.nan, above / count)
        place = np.minimum(above * bins // count, bins - 1)  # in integers, so that 7 of 10 is in the bin from 0.7
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
        # Without spread, the event is certain or impossible.
        z = np.where(spread > 0, away / spread, np.where(away < 0, -np.inf, np.inf))
        known = (spread >= 0) & ~np.isnan(away)
        probability = np.where(known, 0.5 * torch.from_numpy(z / math.sqrt(2)).erfc().numpy(), np.nan)
        place = np.minimum((np.where(known, probability, 0.0) * bins).astype(np.int64), bins - 1)
        return _event_sums(x, probability, place, threshold, bins, axes, weights)

    lead = truth.shape[: truth.ndim - axes]
    return in_pieces(kernel, lead, (bins, len(EVENT_SUMS)), truth, mean, spread, dtype=_FLOAT)


def _event_sums(
    x: Array, probability: Array, place: Array, threshold: Array, bins: int, axes: int, weights: Array | None
) -> Array:
    lead, row = rows_of(x, axes)
    known = ~(np.isnan(x) | np.isnan(probability) | np.isnan(threshold))
    share = np.broadcast_to(1.0 if weights is None else weights, x.shape)[known]
    event, p = (x > threshold)[known], probability[known]
    place = row[known] * bins + place[known]
    columns = (share, share * p, share * p * p, share * event, share * p * event)
    sums = [np.bincount(place, column, minlength=math.prod(lead) * bins) for column in columns]
    return np.stack(sums, -1).reshape(*lead, bins, len(columns))


def brier_parts(sums: Array, members: int | None = None) -> dict[str, Array]:
    """The Brier score and its decomposition, from the sums of `members_event_sums`.

    Let p be probabilities and o outcomes of 0 or 1. Bin k has n_k forecasts, with mean probability p_k and frequency
    o_k. BS = mean (p - o)^2 = reliability - resolution + uncertainty + within_bins,
    reliability = sum n_k (p_k - o_k)^2 / n, resolution = sum n_k (o_k - o)^2 / n, uncertainty = o (1 - o), where o is
    the overall frequency. `within_bins` is the variation inside the bins; it is 0 if each bin has one probability. The
    fair score of m members is the Brier score minus mean p (1 - p) / (m - 1): its mean does not depend on m.

    Parameters
    ----------
    sums : array, shape (..., bins, 5)
    members : int, optional
        Number m of members, for the fair score. By default there is none.

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
