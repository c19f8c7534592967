"""The standard error of the mean of one series in time, from the means of consecutive blocks."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

MOST_BLOCKS = 10  # bound of the number of blocks: more would make them shorter, and neighbours more alike
FEWEST_BLOCKS = 8  # with fewer blocks, the standard error is too uncertain
SHORTEST = 50  # least number of cycles in a block
PARTS = 3  # parts of a block, whose means tell how much neighbouring blocks are alike


def block_count(cycles: int, shortest: int = SHORTEST) -> int:
    """Number of blocks into which a series is divided.

    Parameters
    ----------
    cycles : int
        Length of the series.
    shortest : int
        Least length of a block.

    Returns
    -------
    int
        At most 10. 0 if the series is too short for 8 blocks.
    """
    count = min(MOST_BLOCKS, cycles // shortest)
    return count if count >= FEWEST_BLOCKS else 0


def block_sizes(length: int, count: int) -> list[int]:
    """Lengths of `count` consecutive blocks of a series, in order. They differ by at most 1."""
    return [length // count + (k < length % count) for k in range(count)]


def lugsail(blocks: Any, parts: Any) -> Any:
    """Standard error from those of blocks and of their thirds, which removes most of the correlation's effect.

    se^2 = 2 se_b^2 - se_(b/3)^2, or se_b^2 if this is larger. Short blocks make the variance too small, by an amount
    that goes as 1 / b. The difference of the two tells this amount. As the larger value is taken, se is some 5 % too
    large if nothing is correlated.

    Parameters
    ----------
    blocks, parts : array
        Standard errors by batch means, from blocks of length b and of length b / 3.

    Returns
    -------
    array
    """
    square = blocks**2
    return np.sqrt(np.maximum(2 * square - parts**2, square))


def series_error(values: Array, left_out: Array | bool = False) -> Array:
    """Standard error of the mean of a series whose neighbours are correlated, by batch means.

    Let m be the mean of the T values, and m_k the mean of block k, of b_k values. Then
    se_b^2 = a / (a - 1) sum_k (b_k / T)^2 (m_k - m)^2, with a blocks. For blocks of equal length this is the variance
    of the block means, divided by a. `lugsail` combines it with that of thirds of the blocks.

    Parameters
    ----------
    values : array, shape (..., T)
    left_out : array of bool, shape (T,), or False
        Values that are in no mean.

    Returns
    -------
    array, shape (...)
        NaN if fewer than 400 values are in the mean, or if one of these is NaN.

    References
    ----------
    Flegal and Jones (2010), doi:10.1214/09-AOS735, Sect. 2; lugsail: Vats and Flegal (2022),
    doi:10.1093/biomet/asab049.
    """
    kept = np.asarray(values)[..., ~np.broadcast_to(left_out, np.shape(values)[-1:])]
    length = kept.shape[-1]
    count = block_count(length)
    if not count:
        return np.full(kept.shape[:-1], np.nan, dtype=kept.dtype)
    sizes = np.array(block_sizes(length, PARTS * count))
    sums = np.add.reduceat(kept.astype(np.float64), np.cumsum(sizes) - sizes, axis=-1)
    of_blocks = (*sums.shape[:-1], count, PARTS)
    coarse = _error(sums.reshape(of_blocks).sum(-1), sizes.reshape(count, PARTS).sum(-1))
    error: Array = np.asarray(lugsail(coarse, _error(sums, sizes))).astype(kept.dtype)
    return error


def _error(sums: Array, sizes: Array) -> Array:
    """Standard error of the mean, from the sums (..., a) and the lengths (a,) of blocks."""
    count, length = len(sizes), sizes.sum()
    mean = sums.sum(-1, keepdims=True) / length
    error: Array = np.sqrt(count / (count - 1) * np.square(sums - sizes * mean).sum(-1)) / length
    return error


def in_words(cycles: int, shortest: int = SHORTEST, each: str = "cycles") -> str:
    """What the standard error of one trajectory is of, or why there is none."""
    count = block_count(cycles, shortest)
    if count:
        return f"{count} blocks of {cycles // count} {each}, one trajectory"
    return (
        f"none: one trajectory of {cycles} {each}, and a standard error takes {FEWEST_BLOCKS} blocks of {shortest} "
        f"{each} at least"
    )
