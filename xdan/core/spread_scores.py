"""The spread of a run compared with its error: sums by bins of the spread, which can be added for any blocks."""

from __future__ import annotations

import math

import numpy as np

from .scores import Array, pieces

_FLOAT = np.dtype(np.float64)
# Spreads are counted between powers of two: from 2**-40 to 2**24, 32 bins from one power to the next.
_LOWEST, _HIGHEST, _BY_OCTAVE = -40, 24, 32
FINE_BINS = (_HIGHEST - _LOWEST) * _BY_OCTAVE + 1  # the first bin holds everything below, also zero


def fine_edges() -> Array:
    """Lower edges of the fine bins of spread, shape (FINE_BINS,). The first is 0."""
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
        Lower edges of the bins, ascending. The last bin has no upper edge. Values below the first are not counted.
    axes : int
        Number of axes of the state.
    weights : array, shape (*state), optional
        Weight of each variable; by default 1.

    Returns
    -------
    array of float64, shape (groups, bins, 3)
        Sums of 1, of the squared spread and of the squared error. NaN is not counted.
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
    """Join neighbouring bins of spread into a few bins with about equal numbers of values.

    Parameters
    ----------
    sums : array, shape (groups, fine bins, 3)
        Result of `spread_sums`.
    bins : int

    Returns
    -------
    array, shape (groups, bins, 3)
        A bin may be empty if many spreads are equal.
    array of int, shape (bins + 1,)
        The first fine bin of each bin, and the end.
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
        Result of `spread_sums`.

    Returns
    -------
    dict of str to array, shape (bins,)
        `spread` and `rmse`, roots of mean squares, NaN if a bin is empty; `count`; `rmse_standard_error`, NaN for one
        group.
    """
    groups = sums.shape[0]
    count, variance, squares = np.moveaxis(sums.sum(0), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = squares / count
        rmse = np.sqrt(mean)
        # The standard error is that of a ratio of sums, because groups have different counts in a bin.
        away = sums[..., 2] - mean * sums[..., 0]
        scatter = np.square(away).sum(0) * groups / max(groups - 1, 1) / count**2
        error = np.sqrt(scatter) / (2 * rmse) if groups > 1 else np.full_like(rmse, np.nan)
        return {"spread": np.sqrt(variance / count), "rmse": rmse, "rmse_standard_error": error, "count": count}
