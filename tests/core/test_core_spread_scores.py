"""Sums by bins of spread against selections of values, and the standard error of their RMSE."""

import numpy as np
import pytest

from xdan.core import scores, spread_scores


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("bound", [1, 30, 2**17])
def test_spread_sums_are_those_of_their_bins(rng, monkeypatch, bound):
    monkeypatch.setattr(scores, "_VALUES", bound)
    truth, estimate = rng.normal(size=(2, 6, 5, 4))
    spread, weights = rng.gamma(2.0, size=(6, 5, 4)), rng.random(4)
    spread[0, 0, 0], truth[1, 1, 1] = np.nan, np.nan
    edges, group = np.array([0.5, 1.0, 2.0]), np.array([0, 0, 1, 1, 2, 2])
    sums = spread_scores.spread_sums(truth, estimate, spread, group, groups=3, edges=edges, weights=weights)
    known = ~np.isnan(truth + spread)
    for g in range(3):
        for k in range(3):
            upper = np.append(edges, np.inf)[k + 1]
            here = known & (spread >= edges[k]) & (spread < upper) & (group == g)[:, None, None]
            share = np.broadcast_to(weights, truth.shape)[here]
            values = (1, spread[here] ** 2, (truth - estimate)[here] ** 2)
            np.testing.assert_allclose(sums[g, k], [(share * value).sum() for value in values], rtol=1e-12)


def test_merged_bins_hold_about_as_many_each(rng):
    spread = rng.gamma(3.0, size=(4, 50, 40))
    edges = spread_scores.fine_edges()
    sums = spread_scores.spread_sums(spread, 0 * spread, spread, np.arange(4), groups=4, edges=edges)
    merged, starts = spread_scores.merged_bins(sums, 10)
    np.testing.assert_allclose(merged.sum(1), sums.sum(1), rtol=1e-12)
    assert np.abs(merged.sum(0)[:, 0] / 800 - 1).max() < 0.2
    for k in (0, 4, 9):
        upper = np.append(edges, np.inf)[starts[k + 1]]
        inside = spread[(spread >= edges[starts[k]]) & (spread < upper)]
        np.testing.assert_allclose(merged.sum(0)[k], [len(inside), (inside**2).sum(), (inside**2).sum()], rtol=1e-9)
    alike = spread_scores.spread_sums(spread, spread, 0 * spread + 1, np.arange(4), groups=4, edges=edges)
    counts = spread_scores.merged_bins(alike, 10)[0].sum(0)[:, 0]
    assert sorted(counts) == [0] * 9 + [8000]
    nothing = spread_scores.merged_bins(np.zeros_like(sums), 3)[0]
    assert nothing.shape == (4, 3, 3)
    assert not nothing.any()


def test_standard_error_of_the_rmse_of_a_bin(rng):
    """Over groups it has the scatter that repeated experiments have."""
    rmse, errors = [], []
    for _ in range(300):
        error = rng.normal(size=(16, 30)) * (1 + 0.5 * rng.normal(size=(16, 1)))
        sums = np.stack([np.full(16, 30.0), np.full(16, 30.0), (error**2).sum(1)], -1)[:, None]
        made = spread_scores.spread_error(sums)
        rmse.append(made["rmse"][0])
        errors.append(made["rmse_standard_error"][0])
    assert np.mean(errors) == pytest.approx(np.std(rmse), rel=0.15)
    assert np.isnan(spread_scores.spread_error(np.ones((1, 2, 3)))["rmse_standard_error"]).all()
