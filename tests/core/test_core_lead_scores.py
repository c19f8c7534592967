"""Sums and scores by lead time against NumPy by hand and closed forms."""

import numpy as np
import pytest
from scipy.stats import norm

from xdan.core import lead_scores as kernels
from xdan.core.lead_scores import AT

RNG = np.random.default_rng(0)


def test_sums_of_a_case_by_hand():
    f, y, c, x = (RNG.normal(size=(2, 5)) for _ in range(4))
    w, noise = np.array([0.0, 0.5, 1.0, 2.0, 0.25]), RNG.uniform(1, 2, (2, 5))
    y[:, 0] = np.nan  # where nothing counts
    sums = kernels.case_sums(f, y, np.broadcast_to(w, f.shape), mean=c, start=x, noise=noise, spread=0 * f)
    on, w = slice(1, None), w[1:]
    f, y, c, x, noise = (values[:, on] for values in (f, y, c, x, noise))
    expected = {
        "weight": w.sum() + 0 * f[:, 0],
        "cases": 1 + 0 * f[:, 0],
        "square": (w * (f - y) ** 2).sum(1),
        "error": (w * (f - y)).sum(1),
        "absolute": (w * abs(f - y)).sum(1),
        "product": (w * (f - c) * (y - c)).sum(1),
        "forecast": (w * (f - c) ** 2).sum(1),
        "actual": (w * (y - c) ** 2).sum(1),
        "persistence": (w * (x - y) ** 2).sum(1),
        "noise": (w * noise).sum(1),
        "variance": 0 * f[:, 0],
        "crps": (w * abs(f - y)).sum(1),  # of a Gaussian without a spread
        "logarithm": 0.5 * np.log((w * (f - y) ** 2).sum(1) / w.sum()),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(sums[:, AT[name]], value, rtol=1e-12, atol=1e-12, err_msg=name)


def test_crps_of_members_is_fair():
    """Its mean is that of the distribution, sigma (2 phi(0) - 1 / sqrt(pi)) for y at the mean, for 2 members too."""
    members = RNG.normal(size=(40000, 2, 1))
    zero = np.zeros((40000, 1))
    sums = kernels.case_sums(zero, zero, zero + 1, mean=zero, spread=zero, members=members)
    crps = sums[:, AT["crps"]]
    expected = 2 * norm.pdf(0) - 1 / np.sqrt(np.pi)
    assert abs(crps.mean() - expected) < 4 * crps.std() / 200


def test_standard_error_of_equal_weights_is_the_plain_one():
    sums, weight = RNG.normal(size=(3, 20)), np.full((3, 20), 4.0)
    mean, error = kernels.mean_and_error(sums, weight)
    np.testing.assert_allclose(mean, sums.mean(1) / 4)
    np.testing.assert_allclose(error, sums.std(1, ddof=1) / np.sqrt(20) / 4)
    assert np.isnan(kernels.mean_and_error(sums[:, :1], weight[:, :1])[1]).all()


def test_standard_error_of_a_ratio():
    """The spread of m over many records of 50 trajectories with unlike weights is what the error says."""
    weight = RNG.integers(1, 9, (2000, 50)).astype(float)
    sums = weight * 3.0 + RNG.normal(size=weight.shape) * np.sqrt(weight)
    mean, error = kernels.mean_and_error(sums, weight)
    assert np.sqrt((error**2).mean()) == pytest.approx(mean.std(), rel=0.06)


def test_crossing_is_interpolated():
    lead = np.array([0.0, 1.0, 2.0, 4.0])
    assert kernels.crossing(lead, np.array([0.0, 1.0, 3.0, 4.0]), 2.5) == pytest.approx(1.75)
    assert kernels.crossing(lead, np.array([1.0, np.nan, 0.8, 0.4]), 0.5, rising=False) == pytest.approx(3.5)
    assert kernels.crossing(lead, np.array([3.0, 4.0, 5.0, 6.0]), 2.5) == 0.0
    assert np.isnan(kernels.crossing(lead, np.array([0.0, 0.1, 0.2, 0.3]), 2.5))


def test_doubling_time_of_exponential_growth():
    lead = np.linspace(0, 1, 9)
    assert kernels.doubling_time(lead, 0.3 * np.exp(1.7 * lead)) == pytest.approx(np.log(2) / 1.7, rel=1e-12)
    assert np.isnan(kernels.doubling_time(lead, np.exp(-lead)))
    assert np.isnan(kernels.doubling_time(lead[:2], np.exp(lead[:2])))


def sums_of(error, actual=1.0):
    """Sums (R, L, 12) of trajectories with these RMSEs, and no anomaly correlation but that of f = y."""
    sums = np.zeros((*error.shape, len(AT)))
    sums[..., AT["weight"]] = 1.0
    sums[..., AT["square"]] = error**2
    sums[..., AT["noise"]] = np.nan
    sums[..., AT["cases"]] = 1.0
    sums[..., AT["logarithm"]] = np.log(error)
    for name in ("product", "forecast", "actual"):
        sums[..., AT[name]] = actual
    return sums


def test_horizons_of_exponential_growth():
    lead, rate = np.arange(0, 3.01, 0.05), np.log(2) / 0.5
    factor = np.exp(RNG.normal(0, 0.05, 30))
    error = 0.1 * factor[:, None] * np.exp(rate * lead)
    doubling, of_rmse, *made = kernels.horizons(sums_of(error), 1.0, lead, 0.5, 0.6, 0.2)
    level = 0.5 * np.sqrt(2)
    root = np.sqrt((error[:, 0] ** 2).mean())
    for one in (doubling, of_rmse):
        assert one[0] == pytest.approx(0.5, rel=1e-6)
        assert one[1] == pytest.approx(0.0, abs=1e-9)  # all trajectories grow alike
    horizon, correlation, fitted, _ = made
    assert horizon[0] == pytest.approx(np.log(level / root) / rate, abs=0.01)
    # The error of the horizon is that of log(root) over the rate.
    squares = error[:, 0] ** 2
    assert horizon[1] == pytest.approx(squares.std(ddof=1) / np.sqrt(30) / (2 * root**2) / rate, rel=0.05)
    assert np.isnan(correlation[0])  # the correlation stays at 1
    assert fitted[0] == pytest.approx(np.log(0.2 * np.sqrt(2) / np.exp(np.log(error[:, 0]).mean())) / rate, abs=0.05)


def test_jackknife_of_a_mean_is_its_standard_error():
    sums = RNG.normal(size=(12, 1))
    ((value, error),) = kernels.jackknife(sums, [lambda total: float(total[0]) / 12])
    assert value == pytest.approx(sums.mean())
    # Without one trajectory the total is divided by 12 all the same: 11 / 12 of the mean's deviations.
    assert error == pytest.approx(sums.std(ddof=1) / np.sqrt(12) * 11 / 12)
    assert np.isnan(kernels.jackknife(sums[:1], [lambda total: 1.0])[0, 1])


def test_error_variance_is_subtracted():
    sums = sums_of(np.full((1, 2), 2.0))
    sums[..., AT["noise"]] = 1.0
    np.testing.assert_allclose(kernels.rmse_by_lead(sums.sum(0)), np.sqrt(3.0))


def test_unlike_growth_rates_double_in_the_mean_of_the_logarithm():
    """Rates of 1 and 3: the geometric mean grows at 2, the root of the mean square faster."""
    lead = np.linspace(0, 0.5, 11)
    error = 0.01 * np.exp(np.array([[1.0], [3.0]]) * lead)
    doubling, of_rmse, *_ = kernels.horizons(sums_of(error), 1.0, lead, 0.5, 0.6, 0.2)
    assert doubling[0] == pytest.approx(np.log(2) / 2, rel=1e-9)
    slope = np.polyfit(lead, 0.5 * np.log((error**2).mean(0)), 1)[0]
    assert of_rmse[0] == pytest.approx(np.log(2) / slope, rel=1e-9)
    assert slope > 2.2
