"""Probabilities and frequencies, case by case, and the parts of the Brier score."""

import math

import numpy as np
import pytest
from scipy import stats

from xdan.core import event_scores, scores


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def agrees(values, expected):
    """Whether the mean of draws is the expected one, within 5 standard errors."""
    assert values.mean() == pytest.approx(expected, abs=5 * values.std() / math.sqrt(values.size))


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
    sums = event_scores.members_event_sums(truth, members, threshold, bins=bins, axes=2, weights=weights)
    for place in np.ndindex(3, 2):
        expected = written_sums(truth[place], share[place], threshold, bins, weights)
        np.testing.assert_allclose(sums[place], expected, rtol=1e-12, atol=1e-12)
    mean, spread = members.mean(-1), members.std(-1)
    spread[0, 0, 0] = 0.0
    exceeds = stats.norm.sf(threshold, mean, np.where(spread > 0, spread, 1))
    probability = np.where(spread == 0, mean > threshold, exceeds)
    sums = event_scores.gaussian_event_sums(truth, mean, spread, threshold, bins=bins, axes=2, weights=weights)
    expected = written_sums(truth[0, 0], probability[0, 0], threshold, bins, weights)
    np.testing.assert_allclose(sums[0, 0], expected, rtol=1e-11, atol=1e-12)


def test_parts_of_the_brier_score_add_up(rng):
    truth, members = rng.normal(size=(40, 50)), 0.7 * rng.normal(size=(40, 50, 8)) + 0.3
    sums = event_scores.members_event_sums(truth, members, np.full(50, 0.5), bins=9).sum(0)
    parts = event_scores.brier_parts(sums, 8)
    share = (members > 0.5).mean(-1)
    assert parts["brier_score"] == pytest.approx(((share - (truth > 0.5)) ** 2).mean(), rel=1e-12)
    assert parts["within_bins"] == pytest.approx(0, abs=1e-15)  # nine bins for nine probabilities
    three = parts["reliability"] - parts["resolution"] + parts["uncertainty"]
    assert three == pytest.approx(parts["brier_score"], rel=1e-12)
    wide = event_scores.brier_parts(sums.reshape(3, 3, 5).sum(1), 8)
    four = wide["reliability"] - wide["resolution"] + wide["uncertainty"] + wide["within_bins"]
    assert four == pytest.approx(parts["brier_score"], rel=1e-12)
    assert abs(wide["within_bins"]) > 1e-4
    assert all(np.isnan(value) for value in event_scores.brier_parts(np.zeros((4, 5)), 8).values())


@pytest.mark.parametrize("count", [2, 5, 40])
def test_fair_brier_score_does_not_depend_on_the_number_of_members(rng, count):
    """Truth and members exceed the threshold with one probability q: the mean is q (1 - q)."""
    truth, members = rng.random((400, 50)), rng.random((400, 50, count))
    sums = event_scores.members_event_sums(truth, members, np.full(50, 0.8), bins=10)
    each = event_scores.brier_parts(sums, count)
    agrees(each["brier_score_fair"], 0.16)
    assert each["brier_score"].mean() > 0.16 * (1 + 0.5 / count)
