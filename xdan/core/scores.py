"""Scores of estimates against the truth, as kernels of arrays: bounded memory, whatever the size of the record."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy.special import erf

Array = np.ndarray[Any, np.dtype[Any]]

_VALUES = 2**20  # bounds the values that a kernel copies at once, members included


def working_dtype(*dtypes: np.dtype[Any] | type) -> np.dtype[Any]:
    """Floating type that scores are computed in: single precision at least, double at most, native byte order."""
    dtype = np.result_type(np.float32, *dtypes)
    return np.dtype(np.float64) if dtype.itemsize > 8 else dtype.newbyteorder("=")


def rmse(truth: Array, estimate: Array, axes: int = 1) -> Array:
    """Root of the mean square error over the state.

    Parameters
    ----------
    truth, estimate : array, shape (..., *state)
    axes : int
        How many axes the state has.

    Returns
    -------
    array, shape (...)
        NaN where a variable of the state is NaN.
    """
    over = tuple(range(-axes, 0))

    def kernel(x: Array, estimate: Array) -> Array:
        root: Array = np.sqrt(np.square(x - estimate).mean(axis=over))
        return root

    lead = truth.shape[: truth.ndim - axes]
    return _in_pieces(kernel, lead, (), truth, estimate)


def absolute_error(truth: Array, estimate: Array) -> Array:
    """Absolute error: the continuous ranked probability score of a single state.

    Parameters
    ----------
    truth, estimate : array, shape S

    Returns
    -------
    array, shape S
    """
    return _in_pieces(lambda x, estimate: np.abs(x - estimate), truth.shape, (), truth, estimate)


def gaussian_crps(truth: Array, mean: Array, spread: Array) -> Array:
    """Continuous ranked probability score of a Gaussian; without spread it is the absolute error.

    With e = truth - mean, s the spread and z = e / s:
    CRPS = e (2 Phi(z) - 1) + s (2 phi(z) - 1 / sqrt(pi)), Phi and phi the standard normal distribution and density.

    Parameters
    ----------
    truth, mean, spread : array, shape S

    Returns
    -------
    array, shape S
        NaN where the spread is negative.

    References
    ----------
    Gneiting and Raftery (2007), doi:10.1198/016214506000001437, Eq. 21.
    """
    return _in_pieces(_gaussian_crps, truth.shape, (), truth, mean, spread)


def _gaussian_crps(truth: Array, mean: Array, spread: Array) -> Array:
    error = truth - mean
    spread = np.where(spread >= 0, spread, np.nan)
    # Without spread, and where the quotient overflows, z is infinite: its functions below then have their limits.
    z = np.where(spread == 0, np.copysign(np.inf, error), error / spread)
    density = math.sqrt(2 / math.pi) * np.exp(-0.5 * np.square(z))
    score: Array = error * erf(z / math.sqrt(2)) + spread * (density - 1 / math.sqrt(math.pi))
    return score


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
    return _in_pieces(_members_crps, truth.shape, (), truth, members)


def _members_crps(truth: Array, members: Array) -> Array:
    count = members.shape[-1]
    # About the truth, so that nothing is lost where the values are large beside their differences.
    away = members - truth[..., None]
    score: Array = np.abs(away).mean(axis=-1, dtype=np.float64)
    if count > 1:
        away.sort(axis=-1)
        weights = 2.0 * np.arange(1, count + 1) - count - 1
        score -= away @ weights / (count * (count - 1))
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
        lead = x.shape[: x.ndim - axes]
        row = np.broadcast_to(np.arange(math.prod(lead)).reshape(*lead, *[1] * axes), x.shape)
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
    return _in_pieces(kernel, lead, (ranks,), truth, members, dtype=np.dtype(np.float64))


def _in_pieces(
    kernel: Callable[..., Array],
    lead: tuple[int, ...],
    tail: tuple[int, ...],
    *arrays: Array,
    dtype: np.dtype[Any] | None = None,
) -> Array:
    """Apply a kernel to pieces of a bounded size along the leading axes, which all arrays share.

    Parameters
    ----------
    kernel : callable
        Of arrays of shape (..., *own), in `working_dtype`; gives (..., *tail).
    lead : tuple of int
        Sizes of the leading axes.
    tail : tuple of int
        Sizes of the result's axes beyond them.
    *arrays : array, shape (*lead, *own)
    dtype : dtype, optional
        Of the result, by default `working_dtype`.
    """
    working = working_dtype(*(array.dtype for array in arrays))
    result = np.empty((*lead, *tail), dtype or working)
    # A score that is not finite is the caller's to tell, once and with its cause.
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        for piece in _pieces(lead, max(math.prod(array.shape[len(lead) :]) for array in arrays)):
            result[piece] = kernel(*(np.array(array[piece], dtype=working, order="C") for array in arrays))
    return result


def _pieces(lead: tuple[int, ...], own: int) -> Iterator[tuple[slice, ...]]:
    """Indices along the leading axes that cut an array of shape (*lead, own) into pieces of bounded size."""
    row = max(1, math.prod(lead[1:]) * own)
    if not lead:
        yield ()
    elif row > _VALUES:
        for i in range(lead[0]):
            yield from ((slice(i, i + 1), *rest) for rest in _pieces(lead[1:], own))
    else:
        rows = _VALUES // row
        yield from ((slice(start, start + rows),) for start in range(0, lead[0], rows))
