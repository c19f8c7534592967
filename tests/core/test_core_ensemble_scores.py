"""Scores of ensembles and probabilities against their definitions, closed forms and statistics of many draws."""

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
    found = ensemble_scores.energy_score(truth, members, weights, axes=2)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


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


def written_sums(truth, probability, threshold, bins, weights):
    """Sums by bin of one time, one case after the other."""
    sums = np.zeros((bins, 5))
    for x, p, level, w in zip(truth.ravel(), probability.ravel(), threshold.ravel(), weights.ravel(), strict=True):
        if not np.isnan([x, p]).any():
            o = float(x > level)
            sums[min(int(p * bins + 1e-9), bins - 1)] += w * np.array([1, p, p * p, o, p * o])
    return sums


@pytest.mark.parametrize("bound", [1, 30, 2**17])
@pytest.mark.parametrize("bins", [1, 4, 10])
def test_event_sums(rng, monkeypatch, bound, bins):
    monkeypatch.setattr(scores, "_VALUES", bound)
    truth, members = rng.normal(size=(3, 2, 4, 5)), rng.normal(size=(3, 2, 4, 5, 10))
    threshold, weights = rng.normal(size=(4, 5)), rng.random((4, 5))
    truth[1, 0, 2, 3] = members[2, 1, 0, 0, 4] = np.nan
    share = np.where(np.isnan(members).any(-1), np.nan, (members > threshold[..., None]).mean(-1))
    found = ensemble_scores.members_event_sums(truth, members, threshold, bins=bins, axes=2, weights=weights)
    for place in np.ndindex(3, 2):
        expected = written_sums(truth[place], share[place], threshold, bins, weights)
        np.testing.assert_allclose(found[place], expected, rtol=1e-12, atol=1e-12)
    mean, spread = members.mean(-1), members.std(-1)
    spread[0, 0, 0] = 0.0
    exceeds = stats.norm.sf(threshold, mean, np.where(spread > 0, spread, 1))
    probability = np.where(spread == 0, mean > threshold, exceeds)
    found = ensemble_scores.gaussian_event_sums(truth, mean, spread, threshold, bins=bins, axes=2, weights=weights)
    expected = written_sums(truth[0, 0], probability[0, 0], threshold, bins, weights)
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-11, atol=1e-12)


def test_parts_of_the_brier_score_add_up(rng):
    truth, members = rng.normal(size=(40, 50)), 0.7 * rng.normal(size=(40, 50, 8)) + 0.3
    sums = ensemble_scores.members_event_sums(truth, members, np.full(50, 0.5), bins=9).sum(0)
    parts = ensemble_scores.brier_parts(sums, 8)
    share = (members > 0.5).mean(-1)
    assert parts["brier_score"] == pytest.approx(((share - (truth > 0.5)) ** 2).mean(), rel=1e-12)
    assert parts["within_bins"] == pytest.approx(0, abs=1e-15)  # nine bins for nine probabilities
    three = parts["reliability"] - parts["resolution"] + parts["uncertainty"]
    assert three == pytest.approx(parts["brier_score"], rel=1e-12)
    wide = ensemble_scores.brier_parts(sums.reshape(3, 3, 5).sum(1), 8)
    four = wide["reliability"] - wide["resolution"] + wide["uncertainty"] + wide["within_bins"]
    assert four == pytest.approx(parts["brier_score"], rel=1e-12)
    assert abs(wide["within_bins"]) > 1e-4
    assert all(np.isnan(value) for value in ensemble_scores.brier_parts(np.zeros((4, 5)), 8).values())


@pytest.mark.parametrize("count", [2, 5, 40])
def test_fair_brier_score_does_not_depend_on_the_number_of_members(rng, count):
    """Truth and members exceed the threshold with one probability q: the mean is q (1 - q)."""
    truth, members = rng.random((400, 50)), rng.random((400, 50, count))
    sums = ensemble_scores.members_event_sums(truth, members, np.full(50, 0.8), bins=10)
    each = ensemble_scores.brier_parts(sums, count)
    agrees(each["brier_score_fair"], 0.16)
    assert each["brier_score"].mean() > 0.16 * (1 + 0.5 / count)


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


@pytest.mark.parametrize("bound", [1, 30, 2**17])
def test_spread_sums_are_those_of_their_bins(rng, monkeypatch, bound):
    monkeypatch.setattr(scores, "_VALUES", bound)
    truth, estimate = rng.normal(size=(2, 6, 5, 4))
    spread, weights = rng.gamma(2.0, size=(6, 5, 4)), rng.random(4)
    spread[0, 0, 0], truth[1, 1, 1] = np.nan, np.nan
    edges, group = np.array([0.5, 1.0, 2.0]), np.array([0, 0, 1, 1, 2, 2])
    found = ensemble_scores.spread_sums(truth, estimate, spread, group, groups=3, edges=edges, weights=weights)
    known = ~np.isnan(truth + spread)
    for g in range(3):
        for k in range(3):
            upper = np.append(edges, np.inf)[k + 1]
            here = known & (spread >= edges[k]) & (spread < upper) & (group == g)[:, None, None]
            share = np.broadcast_to(weights, truth.shape)[here]
            values = (1, spread[here] ** 2, (truth - estimate)[here] ** 2)
            np.testing.assert_allclose(found[g, k], [(share * value).sum() for value in values], rtol=1e-12)


def test_merged_bins_hold_about_as_many_each(rng):
    spread = rng.gamma(3.0, size=(4, 50, 40))
    edges = ensemble_scores.fine_edges()
    sums = ensemble_scores.spread_sums(spread, 0 * spread, spread, np.arange(4), groups=4, edges=edges)
    merged, starts = ensemble_scores.merged_bins(sums, 10)
    np.testing.assert_allclose(merged.sum(1), sums.sum(1), rtol=1e-12)
    assert np.abs(merged.sum(0)[:, 0] / 800 - 1).max() < 0.2
    for k in (0, 4, 9):
        upper = np.append(edges, np.inf)[starts[k + 1]]
        inside = spread[(spread >= edges[starts[k]]) & (spread < upper)]
        np.testing.assert_allclose(merged.sum(0)[k], [len(inside), (inside**2).sum(), (inside**2).sum()], rtol=1e-9)
    alike = ensemble_scores.spread_sums(spread, spread, 0 * spread + 1, np.arange(4), groups=4, edges=edges)
    counts = ensemble_scores.merged_bins(alike, 10)[0].sum(0)[:, 0]
    assert sorted(counts) == [0] * 9 + [8000]
    nothing = ensemble_scores.merged_bins(np.zeros_like(sums), 3)[0]
    assert nothing.shape == (4, 3, 3)
    assert not nothing.any()


def test_standard_error_of_the_rmse_of_a_bin(rng):
    """Over groups it has the scatter that repeated experiments have."""
    found, errors = [], []
    for _ in range(300):
        error = rng.normal(size=(16, 30)) * (1 + 0.5 * rng.normal(size=(16, 1)))
        sums = np.stack([np.full(16, 30.0), np.full(16, 30.0), (error**2).sum(1)], -1)[:, None]
        made = ensemble_scores.spread_error(sums)
        found.append(made["rmse"][0])
        errors.append(made["rmse_standard_error"][0])
    assert np.mean(errors) == pytest.approx(np.std(found), rel=0.15)
    assert np.isnan(ensemble_scores.spread_error(np.ones((1, 2, 3)))["rmse_standard_error"]).all()


@pytest.mark.parametrize(
    ("nothing", "expected"), [("0110011", "0000011"), ("000", "000"), ("111", "111"), ("10", "00")]
)
def test_trailing(nothing, expected):
    found = ensemble_scores.trailing(np.array(list(nothing)) == "1")
    assert "".join(map(str, found.astype(int))) == expected
