"""Smoothers and estimates of Q and R against dense solutions, closed forms and plain NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import xdan
from xdan.core.estimation import gaussian_filter
from xdan.core.estimation.expectation_maximisation import scores
from xdan.core.estimation.gaussian_filter import Gaussian, backward_segments, cycles_of, linearised
from xdan.core.estimation.smoother import disturbances, rauch_tung_striebel, smooth, smooth_ensemble
from xdan.core.methods import Record
from xdan.core.observing import LinearOperator, ObservingSystem

M = torch.tensor([[0.9, 0.3, 0.0], [-0.2, 0.8, 0.1], [0.1, 0.0, 0.7]], dtype=torch.float64)
H = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]], dtype=torch.float64)
Q = torch.tensor([[0.3, 0.1, 0.0], [0.1, 0.4, 0.0], [0.0, 0.0, 0.2]], dtype=torch.float64)
R = torch.tensor([[0.5, 0.2], [0.2, 0.8]], dtype=torch.float64)


def linear(matrix=M):
    def step(x):
        return x @ matrix.to(x).T

    return xdan.CustomDynamics(step=step, state={"component": len(matrix)}, timestep=1.0, spin_up_time=30.0)


def record_of(y, observing=None, model=None, steps=None):
    observing = ObservingSystem(covariance=R, operator=LinearOperator(H)) if observing is None else observing
    steps = [0] + [1] * (y.shape[1] - 1) if steps is None else steps
    return Record(linear() if model is None else model, observing, y, steps, torch.arange(len(y)), seed=0)


def observations(rows=3, times=6, size=2, missing=0.25, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(rows, times, size, generator=generator, dtype=torch.float64)
    return torch.where(torch.rand(y.shape, generator=generator) < missing, torch.nan, y)


def prior_of(rows=3, size=3):
    mean = torch.linspace(-1.0, 1.0, size, dtype=torch.float64)
    covariance = torch.eye(size, dtype=torch.float64) + 0.3
    return Gaussian(mean.expand(rows, size), covariance.expand(rows, size, size))


def dense(y, prior, q=Q, r=R, m=M, h=H):
    """Mean and covariance of all states of one trajectory (K, N), and of the errors e and o, by one big solution."""
    times, n = len(y), len(m)
    # The states are a linear function of x_0 and the errors of the intervals.
    source = np.zeros((times * n, times * n))
    for k in range(times):
        for j in range(k + 1):
            source[k * n : (k + 1) * n, j * n : (j + 1) * n] = np.linalg.matrix_power(m.numpy(), k - j)
    spread = np.kron(np.eye(times), q.numpy())
    spread[:n, :n] = prior.covariance[0].numpy()
    mean = source[:, :n] @ prior.x[0].numpy()
    seen = ~np.isnan(y.numpy().ravel())
    operator = np.kron(np.eye(times), h.numpy())[seen]
    noise = np.kron(np.eye(times), r.numpy())
    p = source @ spread @ source.T
    s = operator @ p @ operator.T + noise[np.ix_(seen, seen)]
    d = y.numpy().ravel()[seen] - operator @ mean
    weights = np.linalg.inv(s)

    def given(joint, covariance, first):
        return first + joint @ weights @ d, covariance - joint @ weights @ joint.T

    states = given(p @ operator.T, p, mean)
    errors = given(spread @ source.T @ operator.T, spread, 0.0)
    of_observations = given(noise[:, seen], noise, 0.0)
    likelihood = -0.5 * (d @ weights @ d + np.linalg.slogdet(s)[1] + len(d) * math.log(2 * math.pi))
    return states, errors, of_observations, likelihood


def test_the_smoother_is_the_posterior_of_all_times():
    y, prior = observations(), prior_of()
    smoothed = smooth(record_of(y), Q, prior)
    for row in range(3):
        (mean, covariance), *_ = dense(y[row], prior)
        np.testing.assert_allclose(smoothed.x[row].ravel(), mean, atol=1e-12)
        for k in range(6):
            block = covariance[3 * k : 3 * k + 3, 3 * k : 3 * k + 3]
            np.testing.assert_allclose(smoothed.covariance[row, k], block, atol=1e-12)
            joint = covariance[3 * k + 3 : 3 * k + 6, 3 * k : 3 * k + 3] if k < 5 else np.zeros((3, 3))
            np.testing.assert_allclose(smoothed.lag_one[row, k], joint, atol=1e-12)


def test_disturbances_are_the_posterior_of_the_errors():
    y, prior = observations(rows=1), prior_of(1)
    cycles, carried = list(cycles_of(record_of(y), Q, prior)), None
    _, (e, e_covariance), (o, o_covariance), likelihood = dense(y[0], prior)
    for k in reversed(range(6)):
        errors, carried = disturbances(cycles[k], carried)
        at = slice(2 * k, 2 * k + 2)
        np.testing.assert_allclose(R @ errors.observation[0], o[at], atol=1e-12)
        np.testing.assert_allclose(R - R @ errors.observation_precision[0] @ R, o_covariance[at, at], atol=1e-12)
        if k:
            at = slice(3 * k, 3 * k + 3)
            np.testing.assert_allclose(Q @ errors.model[0], e[at], atol=1e-12)
            np.testing.assert_allclose(Q - Q @ errors.model_precision[0] @ Q, e_covariance[at, at], atol=1e-12)
    total = sum(float(cycle.log_likelihood[0]) for cycle in cycles)
    assert total == pytest.approx(likelihood, abs=1e-11)


def test_both_smoothers_give_the_same_states():
    cycles, carried = list(cycles_of(record_of(observations()), Q, prior_of())), None
    smoothed = rauch_tung_striebel(cycles)
    for k in reversed(range(6)):
        errors, carried = disturbances(cycles[k], carried)
        p = cycles[k].forecast.covariance
        x = cycles[k].forecast.x + (p @ errors.model[..., None])[..., 0]
        torch.testing.assert_close(x, smoothed.x[:, k])
        torch.testing.assert_close(p - p @ errors.model_precision @ p, smoothed.covariance[:, k])


@pytest.mark.parametrize("size", [1, 300, 10**9])
def test_segments_change_nothing(size, monkeypatch):
    record, prior = record_of(observations(times=7)), prior_of()
    monkeypatch.setattr(gaussian_filter, "BYTES", 10**9)
    whole, sums = smooth(record, Q, prior), scores(record, Q, prior, burn_in=1, groups=2)
    cut = list(backward_segments(record, Q, prior, most_bytes=size))
    assert [start for start, _ in cut] == sorted((start for start, _ in cut), reverse=True)
    assert sum(len(cycles) for _, cycles in cut) == 7
    assert len(cut) == (1 if size > 300 else len(cut))
    monkeypatch.setattr("xdan.core.estimation.smoother.BYTES", size)
    monkeypatch.setattr("xdan.core.estimation.expectation_maximisation.BYTES", size)
    again, sums_again = smooth(record, Q, prior), scores(record, Q, prior, burn_in=1, groups=2)
    for one, other in ((whole, again), (sums, sums_again)):
        for name, value in vars(one).items():
            torch.testing.assert_close(value, getattr(other, name), rtol=1e-13, atol=1e-13)


def test_the_ensemble_smoother_of_many_members_is_the_smoother():
    """Members whose sample moments are those of the filter, and whose forecasts carry the errors of the model."""
    record, prior = record_of(observations(rows=1, missing=0.0)), prior_of(1)
    cycles = list(cycles_of(record, Q, prior))
    generator, m = torch.Generator().manual_seed(1), 4000

    def sample(gaussian, anomalies):
        """Move and turn anomalies so that mean and covariance are exact."""
        centred = anomalies - anomalies.mean(0)
        root = torch.linalg.cholesky(torch.cov(centred.T))
        return gaussian.x[0] + centred @ torch.linalg.inv(root).T @ torch.linalg.cholesky(gaussian.covariance[0]).T

    forecasts, analyses = [], []
    members = sample(cycles[0].forecast, torch.randn(m, 3, generator=generator, dtype=torch.float64))
    for k, cycle in enumerate(cycles):
        if k:
            noise = torch.randn(m, 3, generator=generator, dtype=torch.float64)
            # Noise without any sample correlation with the members.
            centred = members - members.mean(0)
            noise = noise - noise.mean(0)
            noise = noise - centred @ torch.linalg.lstsq(centred, noise).solution
            noise = noise @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(noise.T))).T @ torch.linalg.cholesky(Q).T
            members = members @ M.T + noise
        forecasts.append(members)
        # The analysis of an ensemble transform: a linear map of the anomalies.
        members = sample(cycle.analysis, members)
        analyses.append(members)
    smoothed = smooth_ensemble(torch.stack(forecasts)[None], torch.stack(analyses)[None])
    exact = rauch_tung_striebel(cycles)
    torch.testing.assert_close(smoothed.mean(2), exact.x, rtol=1e-9, atol=1e-9)


def test_a_model_without_derivatives_is_linearised_by_differences():
    black_box = xdan.NumpyDynamics(step=lambda x: x @ M.numpy().T, state={"component": 3}, timestep=1.0)
    at = prior_of()
    x, matrix = linearised(black_box, at, 2)
    torch.testing.assert_close(x, at.x @ (M @ M).T)
    torch.testing.assert_close(matrix, (M @ M).expand(3, 3, 3))
