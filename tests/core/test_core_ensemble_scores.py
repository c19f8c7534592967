"""Scores of ensembles against their definitions, closed forms and statistics of many draws."""

import math

import numpy as np
import pytest
from scipy import special, stats

from xdan.core import ensemble_scores, scores


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def agrees(values, expected):
    """Whether the mean of draws is the expected one, within 5 standard errors."""
    assert values.mean() == pytest.approx(expected, abs=5 * values.std() / math.sqrt(values.size))


@pytest.mark.parametrize("count", [2, 7, 30])
@pytest.mark.parametrize("deviation", [0.5, 1.0, 2.0])
def test_expected_crps_of_a_gaussian_ensemble(rng, count, deviation):
    """E|x - y| - E|x - x'| / 2 for x of deviation s and y of 1: sqrt(2 (1 + s^2) / pi) - s / sqrt(pi), for any m."""
    truth, members = rng.normal(size=40_000), deviation * rng.normal(size=(40_000, count))
    expected = math.sqrt(2 * (1 + deviation**2) / math.pi) - deviation / math.sqrt(math.pi)
    agrees(ensemble_scores.members_crps(truth, members), expected)


@pytest.mark.parametrize("count", [2, 5, 20])
@pytest.mark.parametrize("size", [1, 3])
def test_expected_energy_score_of_a_gaussian_ensemble(rng, count, size):
    """The mean length of a normal vector of N components is sqrt(2) Gamma((N + 1) / 2) / Gamma(N / 2)."""
    truth, members = rng.normal(size=(10_000, size)), 0.5 * rng.normal(size=(10_000, size, count))
    length = math.sqrt(2 / size) * special.gamma((size + 1) / 2) / special.gamma(size / 2)
    expected = length * (math.sqrt(1.25) - 0.5 * math.sqrt(0.5))
    agrees(ensemble_scores.energy_score(truth, members, np.full(size, 1 / size)), expected)


@pytest.mark.parametrize("count", [1, 2, 9])
@pytest.mark.parametrize("bound", [1, 5, 2**17])
def test_energy_score_is_its_double_sum(rng, monkeypatch, count, bound):
    monkeypatch.setattr(scores, "_VALUES", bound)
    weights = rng.random((2, 3))
    truth, members = rng.normal(size=(4, 5, 2, 3)), rng.normal(size=(4, 5, 2, 3, count))

    def length(difference):
        return np.sqrt((weights[..., None] * difference**2).sum((2, 3)))

    expected = length(members - truth[..., None]).mean(-1)
    if count > 1:
        pairs = sum(length(members - members[..., [k]]).sum(-1) for k in range(count))
        expected -= pairs / (2 * count * (count - 1))
    score = ensemble_scores.energy_score(truth, members, weights, axes=2)
    np.testing.assert_allclose(score, expected, rtol=1e-12)


def test_energy_score_of_one_variable_is_the_crps(rng):
    truth, members = 300 + rng.normal(size=(50, 1)), 300 + rng.normal(size=(50, 1, 8))
    expected = ensemble_scores.members_crps(truth, members)[:, 0]
    np.testing.assert_allclose(ensemble_scores.energy_score(truth, members, np.ones(1)), expected, rtol=1e-11)
    members[3, 0, 2] = np.nan
    assert np.isnan(ensemble_scores.energy_score(truth, members, np.ones(1))).nonzero()[0].tolist() == [3]


def test_energy_score_sees_correlations_that_the_crps_does_not(rng):
    """Members with the right deviations and without the truth's correlation."""
    shared = rng.normal(size=(4000, 1, 11)) * math.sqrt(0.9)
    draws = shared + math.sqrt(0.1) * rng.normal(size=(4000, 6, 11))
    loose = rng.normal(size=(4000, 6, 10))
    even = np.full(6, 1 / 6)
    tied = ensemble_scores.energy_score(draws[..., 0], draws[..., 1:], even)
    apart = ensemble_scores.energy_score(draws[..., 0], loose, even)
    error = (apart - tied).std() / math.sqrt(4000)
    assert (apart - tied).mean() > 10 * error
    crps = [ensemble_scores.members_crps(draws[..., 0], m).mean(1) for m in (draws[..., 1:], loose)]
    assert abs((crps[1] - crps[0]).mean()) < 4 * (crps[1] - crps[0]).std() / math.sqrt(4000)


def clustered(rng, rows, ranks=8, each=400, tied=20):
    """Rank histograms of trajectories in which the ranks of `tied` cases in a row are one."""
    values = rng.integers(ranks, size=(rows, each // tied)).repeat(tied, 1)
    return np.stack([(values == k).sum(1) for k in range(ranks)], -1).astype(float)


def test_flatness_takes_trajectories_for_independent_and_counts_not(rng):
    """P values of flat ensembles are even; those of a test that takes 400 tied counts for 400 are not."""
    made = [ensemble_scores.flatness(clustered(rng, 16)) for _ in range(400)]
    assert stats.kstest([one["p_value"] for one in made], "uniform").pvalue > 1e-3
    naive = [stats.chisquare(clustered(rng, 16).sum(0)).pvalue for _ in range(100)]
    assert np.median(naive) < 1e-6
    effective = np.median([one["effective_counts"] for one in made])
    assert effective == pytest.approx(16 * 400 / 20, rel=0.1)
    independent = [ensemble_scores.flatness(clustered(rng, 16, tied=1))["effective_counts"] for _ in range(100)]
    assert np.median(independent) == pytest.approx(16 * 400, rel=0.1)


def test_flatness_of_a_bent_histogram(rng):
    counts = np.array([[[30.0, 10, 10, 30]] * 5, [[20.0, 20, 20, 20]] * 5]) + rng.integers(3, size=(2, 5, 4))
    bent, flat = (ensemble_scores.flatness(one) for one in counts)
    assert bent["reliability_index"] == pytest.approx(0.5, abs=0.05)
    assert bent["p_value"] < 1e-3 < flat["p_value"]
    share = counts[0].sum(0) / counts[0].sum()
    expected = bent["effective_counts"] * 4 * ((share - 0.25) ** 2).sum()
    assert bent["chi_square"] == pytest.approx(expected, rel=1e-12)
    few = ensemble_scores.flatness(counts[0, :2])
    assert np.isnan(few["p_value"])
    assert np.isfinite(few["reliability_index"])


@pytest.mark.parametrize(
    ("nothing", "expected"), [("0110011", "0000011"), ("000", "000"), ("111", "111"), ("10", "00")]
)
def test_trailing(nothing, expected):
    flags = ensemble_scores.trailing(np.array(list(nothing)) == "1")
    assert "".join(map(str, flags.astype(int))) == expected
