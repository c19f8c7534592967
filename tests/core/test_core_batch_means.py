"""Batch means against the known variance of the mean of a correlated series."""

import numpy as np
import pytest

from xdan.core import batch_means


def autoregressive(correlation, count, length, seed=0):
    """Stationary series of variance 1, shape (count, length)."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(count, length)) * np.sqrt(1 - correlation**2)
    series = np.empty((count, length))
    series[:, 0] = rng.normal(size=count)
    for k in range(1, length):
        series[:, k] = correlation * series[:, k - 1] + noise[:, k]
    return series


@pytest.mark.parametrize("correlation", [0.0, 0.8, 0.95])
def test_the_variance_of_the_mean_of_an_autoregression(correlation):
    """It is (1 + r) / (1 - r) / T, up to 39 times that of independent values. The larger of two estimates is taken,
    which is too large by some 0.11 of the variance for Gaussian values."""
    error = batch_means.series_error(autoregressive(correlation, 400, 8000))
    expected = (1 + correlation) / (1 - correlation) / 8000
    assert (error**2).mean() == pytest.approx(1.1 * expected, rel=0.1)


def test_thirds_of_blocks_remove_most_of_what_short_blocks_lack():
    """Blocks of 50 values with a correlation of 0.95 know little more than half of the variance."""
    series = autoregressive(0.95, 2000, 500)
    plain = series.reshape(2000, 10, 50).mean(2).var(1, ddof=1) / 10
    expected = 39 / 500
    assert plain.mean() < 0.75 * expected
    assert (batch_means.series_error(series) ** 2).mean() == pytest.approx(expected, rel=0.2)


def test_few_values_have_no_error():
    series = autoregressive(0.5, 3, 400)
    assert np.isfinite(batch_means.series_error(series)).all()
    assert np.isnan(batch_means.series_error(series[:, :399])).all()
    late = np.arange(400) >= 399
    assert np.isnan(batch_means.series_error(series, late)).all()
    series[1, 7] = np.nan
    assert np.isnan(batch_means.series_error(series)).tolist() == [False, True, False]


def test_values_left_out_do_not_count():
    series = autoregressive(0.5, 2, 700)
    late = np.arange(700) >= 650
    np.testing.assert_array_equal(batch_means.series_error(series, late), batch_means.series_error(series[:, :650]))


@pytest.mark.parametrize(("length", "count"), [(800, 10), (523, 10), (405, 8), (30, 30)])
def test_sizes_of_blocks(length, count):
    sizes = batch_means.block_sizes(length, count)
    assert sum(sizes) == length
    assert len(sizes) == count
    assert max(sizes) - min(sizes) <= 1


def test_words():
    assert batch_means.in_words(1400) == "10 blocks of 140 cycles, one trajectory"
    assert batch_means.in_words(399).startswith("none: one trajectory of 399 cycles")
