"""Smoothers and estimates of Q and R against dense solutions, closed forms and plain NumPy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import xdan
from xdan.core.estimation import gaussian_filter
from xdan.core.estimation.desroziers import desroziers, observation_errors
from xdan.core.estimation.desroziers import standard_errors as desroziers_errors
from xdan.core.estimation.expectation_maximisation import (
    accelerated,
    errors_of_entries,
    maximised_both,
    scores,
    standard_errors,
)
from xdan.core.estimation.gaussian_filter import Gaussian, backward_segments, cycles_of, linearised
from xdan.core.estimation.lag_innovations import adapted
from xdan.core.estimation.smoother import disturbances, rauch_tung_striebel, smooth, smooth_ensemble
from xdan.core.estimation.structures import as_matrix, made_positive, structure_of
from xdan.core.estimation.uncertainty import errors_by_samples, errors_by_scores
from xdan.core.methods import Record
from xdan.core.observing import LinearOperator, ObservingSystem

M = torch.tensor([[0.9, 0.3, 0.0], [-0.2, 0.8, 0.1], [0.1, 0.0, 0.7]], dtype=torch.float64)
H = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]], dtype=torch.float64)
Q = torch.tensor([[0.3, 0.1, 0.0], [0.1, 0.4, 0.0], [0.0, 0.0, 0.2]], dtype=torch.float64)
R = torch.tensor([[0.5, 0.2], [0.2, 0.8]], dtype=torch.float64)


class Linear(xdan.Dynamics, pure=True):
    """x_{k+1} = M x_k."""

    name = "linear map of the tests"

    def __init__(self, matrix):
        self.matrix, self.timestep, self.spin_up_time = matrix, 1.0, 30.0
        self.space = xdan.StateSpace(xdan.Field("x", xdan.Components(len(matrix))))

    def config(self):
        return {"matrix": self.matrix.tolist()}

    def step(self, x):
        return x @ self.matrix.to(x).mT

    def advance_along(self, x, directions, steps):
        for _ in range(steps):
            x, directions = self.step(x), self.step(directions)
        return x, directions


def linear(matrix=M):
    return Linear(matrix)


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

    def conditional(joint, covariance, first):
        return first + joint @ weights @ d, covariance - joint @ weights @ joint.T

    states = conditional(p @ operator.T, p, mean)
    errors = conditional(spread @ source.T @ operator.T, spread, 0.0)
    of_observations = conditional(noise[:, seen], noise, 0.0)
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


def oracle(y, prior, q, r, m, h, iterations, full=True):
    """EM in plain NumPy for one trajectory: a filter, Rauch's recursion, and Shumway and Stoffer's Eq. 12 to 14."""
    m, h, n = m.numpy(), h.numpy(), len(m)
    for _ in range(iterations):
        xf, pf, xa, pa = [], [], [], []
        for k in range(len(y)):
            x = prior.x[0].numpy() if k == 0 else m @ xa[-1]
            p = prior.covariance[0].numpy() if k == 0 else m @ pa[-1] @ m.T + q
            seen = ~np.isnan(y[k])
            hs = h[seen]
            gain = p @ hs.T @ np.linalg.inv(hs @ p @ hs.T + r[np.ix_(seen, seen)])
            xf.append(x), pf.append(p)
            xa.append(x + gain @ (y[k][seen] - hs @ x)), pa.append((np.eye(n) - gain @ hs) @ p)
        xs, ps, joint = [xa[-1]], [pa[-1]], []
        for k in range(len(y) - 2, -1, -1):
            gain = pa[k] @ m.T @ np.linalg.inv(pf[k + 1])
            joint.insert(0, ps[0] @ gain.T)
            xs.insert(0, xa[k] + gain @ (xs[0] - xf[k + 1]))
            ps.insert(0, pa[k] + gain @ (ps[0] - pf[k + 1]) @ gain.T)
        now = sum(np.outer(x, x) + p for x, p in zip(xs[1:], ps[1:], strict=True))
        before = sum(np.outer(x, x) + p for x, p in zip(xs[:-1], ps[:-1], strict=True))
        cross = sum(np.outer(b, a) + c for a, b, c in zip(xs[:-1], xs[1:], joint, strict=True))
        q = (now - cross @ m.T - m @ cross.T + m @ before @ m.T) / (len(y) - 1)
        total = np.zeros_like(r)
        for k in range(len(y)):
            seen = ~np.isnan(y[k])
            residual = y[k][seen] - h[seen] @ xs[k]
            known = np.outer(residual, residual) + h[seen] @ ps[k] @ h[seen].T
            weights = r[:, seen] @ np.linalg.inv(r[np.ix_(seen, seen)])  # the missing ones, given those observed
            total += weights @ known @ weights.T + (r - weights @ r[seen] if full else 0.0)
        r = total / (len(y) if full else np.isfinite(y).sum())
    return q, r


def repeated(record, prior, q, r, structures, iterations, operator=None):
    for _ in range(iterations):
        observing = (
            ObservingSystem(std=r.sqrt(), operator=operator)
            if r.ndim == 1
            else ObservingSystem(covariance=r, operator=operator)
        )
        whole = tuple(structure.whole for structure in structures)
        sums = scores(replace(record, observing=observing), as_matrix(q), prior, whole=whole)
        step = maximised_both(vars(sums), (q, r), structures)
        q, r = step["model"], step["observation"]
    return q, r


def test_full_covariances_are_those_of_plain_numpy():
    y, prior = observations(rows=1, times=40), prior_of(1)
    structures = structure_of("full", [3]), structure_of("full", [2])
    q, r = repeated(record_of(y), prior, Q, R, structures, 12, LinearOperator(H))
    expected = oracle(y[0].numpy(), prior, Q.numpy(), R.numpy(), M, H, 12)
    np.testing.assert_allclose(q, expected[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(r, expected[1], rtol=1e-9, atol=1e-12)


def autoregressive(times=80, missing=0.0, seed=0):
    generator = np.random.default_rng(seed)
    x, values = 0.0, []
    for _ in range(times):
        x = 0.8 * x + generator.normal() * 0.7**0.5
        values.append(x + generator.normal() * 0.4**0.5)
    y = np.array(values)
    y[generator.random(times) < missing] = np.nan
    return torch.from_numpy(y)[None, :, None]


AR1 = torch.tensor([[0.8]], dtype=torch.float64)
SCALARS = structure_of("scalar", [1]), structure_of("scalar", [1])


def of_autoregressive(y, iterations):
    one = torch.ones(1, dtype=torch.float64)
    prior = Gaussian(torch.zeros(1, 1, dtype=torch.float64), 2.0 * one[None, None])
    record = record_of(y, ObservingSystem(std=one), linear(AR1))
    return *repeated(record, prior, one, one, SCALARS, iterations), prior


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_variances_are_those_of_plain_numpy(missing):
    y = autoregressive(missing=missing)
    q, r, prior = of_autoregressive(y, 15)
    unit = np.ones((1, 1))
    expected = oracle(y[0].numpy(), prior, unit, unit, AR1, torch.ones(1, 1, dtype=torch.float64), 15, full=False)
    np.testing.assert_allclose([q.item(), r.item()], [expected[0].item(), expected[1].item()], rtol=1e-10)


def test_variances_are_those_of_pykalman():
    pykalman = pytest.importorskip("pykalman")
    y = autoregressive()
    q, r, _ = of_autoregressive(y, 15)
    filter_ = pykalman.KalmanFilter(
        transition_matrices=[[0.8]],
        observation_matrices=[[1.0]],
        transition_covariance=[[1.0]],
        observation_covariance=[[1.0]],
        initial_state_mean=[0.0],
        initial_state_covariance=[[2.0]],
        em_vars=["transition_covariance", "observation_covariance"],
    ).em(y[0].numpy(), n_iter=15)
    assert q.item() == pytest.approx(filter_.transition_covariance.item(), rel=1e-6)
    assert r.item() == pytest.approx(filter_.observation_covariance.item(), rel=1e-6)


def test_scores_are_derivatives_of_the_likelihood():
    y, prior, step = observations(rows=2), prior_of(2), 1e-5
    sums = scores(record_of(y), Q, prior)

    def likelihood(q, r):
        observing = ObservingSystem(covariance=r, operator=LinearOperator(H))
        return sum(float(cycle.log_likelihood.sum()) for cycle in cycles_of(record_of(y, observing), q, prior))

    for value, name, size in ((Q, "model", 3), (R, "observation", 2)):
        for i, j in [(0, 0), (0, 1), (size - 1, size - 1)]:
            change = torch.zeros_like(value)
            change[i, j] = change[j, i] = step
            ends = [
                likelihood(value + sign * change, R) if name == "model" else likelihood(Q, value + sign * change)
                for sign in (1, -1)
            ]
            expected = 0.5 * float((getattr(sums, name).sum((0, 1)) * change / step).sum())
            assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(expected, rel=1e-6, abs=1e-8), (name, i, j)


def test_groups_and_burn_in_only_sort_the_sums():
    y, prior = observations(times=9), prior_of()
    whole = scores(record_of(y), Q, prior)
    parts = scores(record_of(y), Q, prior, groups=3)
    for name, value in vars(whole).items():
        torch.testing.assert_close(getattr(parts, name).sum(1, keepdim=True), value)
    assert parts.times.tolist() == [[3.0] * 3] * 3
    assert parts.intervals[0].tolist() == [2.0, 3.0, 3.0]  # no interval before the first time
    late = scores(record_of(y), Q, prior, groups=2, burn_in=3)
    torch.testing.assert_close(late.model.sum(1), parts.model[:, 1:].sum(1))


def test_a_trajectory_that_is_lost_does_not_count():
    y, prior = observations(), prior_of()
    structures = structure_of("full", [3]), structure_of("full", [2])
    sums = vars(scores(record_of(y), Q, prior))
    without = {name: value[1:] for name, value in sums.items()}
    sums["model"][0] = torch.nan
    step = maximised_both(sums, (Q, R), structures)
    assert int(step["lost"]) == 1
    for name, value in maximised_both(without, (Q, R), structures).items():
        if name != "lost":
            torch.testing.assert_close(step[name], value)


@pytest.mark.parametrize("kind", ["scalar", "diagonal", "full"])
def test_acceleration_ends_where_plain_steps_end(kind):
    y = observations(rows=20, times=20, missing=0.0, seed=4)
    prior, structures = prior_of(20), (structure_of(kind, [3]), structure_of(kind, [2]))
    estimate = tuple(s.start(value) for s, value in zip(structures, (Q, R), strict=True))
    record = record_of(y)

    def plain(at, steps=1):
        return repeated(record, prior, *at, structures, steps, LinearOperator(H))

    def likelihood(at):
        observing = ObservingSystem(covariance=as_matrix(at[1]), operator=LinearOperator(H))
        cycles = cycles_of(replace(record, observing=observing), as_matrix(at[0]), prior)
        return sum(float(cycle.log_likelihood.sum()) for cycle in cycles)

    point = estimate
    for _ in range(5):
        points = [point, plain(point)]
        points.append(plain(points[-1]))
        ahead = accelerated(points, structures)
        assert ahead[0].shape == estimate[0].shape
        point = ahead if likelihood(ahead) >= likelihood(points[-1]) else points[-1]
    # Ten smoothers with extrapolation come at least as far as 30 without.
    assert likelihood(point) > likelihood(plain(estimate, 30)) - 1e-3


def test_a_fixed_covariance_stays():
    y, prior = observations(), prior_of()
    structures = structure_of("fixed", [3]), structure_of("scalar", [2])
    q, r = repeated(record_of(y), prior, Q, R.diagonal(), structures, 2, LinearOperator(H))
    assert q is Q
    assert r[0] == r[1] != R[0, 0]


def test_parts_have_variances_of_their_own_and_no_covariances():
    scalar, full = structure_of("scalar", [2, 1]), structure_of("full", [2, 1])
    assert (scalar.count, full.count, structure_of("diagonal", [2, 1]).count) == (2, 4, 3)
    assert scalar.start(Q).tolist() == pytest.approx([0.35, 0.35, 0.2])
    assert full.start(Q + 1.0)[2, 0] == 0
    assert full.start(Q + 1.0)[1, 0] == pytest.approx(1.1)
    torch.testing.assert_close(full.from_numbers(full.numbers(Q), Q), Q)


def steady(a, q, r, gain, times=400, rows=200, seed=2):
    """Innovations of an AR(1) process."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, rows, times, generator=generator, dtype=torch.float64)
    x, values = torch.zeros(rows, dtype=torch.float64), []
    for k in range(times):
        x = a * x + q**0.5 * noise[0, :, k]
        values.append(x + r**0.5 * noise[1, :, k])
    return torch.stack(values, 1)[..., None]


def test_desroziers_statistics_of_a_wrong_gain():
    """Of a filter with the gain K, E[d_a d_f] = (1 - K) S, and S follows from the error's own equation."""
    a, q, r, wrong = 0.9, 0.5, 1.0, 3.0
    p = 1.0
    for _ in range(200):  # the filter's own variance, with R = 3
        gain = p / (p + wrong)
        p = a**2 * (1 - gain) * p + q
    true = (a**2 * gain**2 * r + q) / (1 - a**2 * (1 - gain) ** 2)
    s = true + r
    model = linear(torch.tensor([[a]], dtype=torch.float64)).with_model_error(q**0.5)
    y = steady(a, q, r, gain)
    observing = ObservingSystem(std=torch.full((), wrong**0.5, dtype=torch.float64))
    record = record_of(y, observing, model)
    method = xdan.core.methods.KalmanFilter().prepare(record)
    sums, diverged = desroziers(method, record, burn_in=40, groups=4)
    assert not diverged.any()
    step = observation_errors(vars(sums), torch.full((1,), wrong, dtype=torch.float64), structure_of("scalar", [1]))
    error = desroziers_errors(vars(sums), step["observation"], structure_of("scalar", [1]), 0.0).item()
    assert 0 < error < 0.02
    assert abs(step["observation"].item() - (1 - gain) * s) < 4 * error
    assert abs(step["forecast"].item() - gain * s) < 4 * error
    # The right filter's statistics are R itself.
    right = replace(record, observing=ObservingSystem(std=torch.ones((), dtype=torch.float64)))
    sums, _ = desroziers(method.prepare(right), right, burn_in=40, whole=True)
    step = observation_errors(vars(sums), torch.ones(1, 1, dtype=torch.float64), structure_of("full", [1]))
    assert abs(step["observation"].item() - r) < 4 * error
    assert float(step["innovation"]) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("kind", ["scalar", "diagonal", "full"])
@pytest.mark.parametrize("smoothing", [1.0, 25.0])
def test_lag_innovations_are_unbiased(kind, smoothing):
    """With the true Q and R every cycle's sample has their means; from wrong ones the average goes there."""
    unit = torch.eye(3, dtype=torch.float64)
    q, r = (
        (0.3 * unit, 0.8 * unit)
        if kind == "scalar"
        else (Q.diagonal().diag(), 0.8 * unit + unit.cumsum(0).diag().diag() * 0.1)
    )
    q, r = (Q, 0.8 * unit + 0.1) if kind == "full" else (q, r)
    rows, times = 400, 80
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(2, rows, times + 1, 3, generator=generator, dtype=torch.float64)
    roots = [torch.linalg.cholesky(value).mT for value in (q, r)]
    x, values = noise[0, :, -1], []
    for k in range(times):
        x = x @ M.mT + noise[0, :, k] @ roots[0] if k else x
        values.append(x + noise[1, :, k] @ roots[1])
    y = torch.stack(values, 1)
    prior = Gaussian(torch.zeros(rows, 3, dtype=torch.float64), unit.expand(rows, 3, 3))
    structures = structure_of(kind, [3]), structure_of(kind, [3])
    factor = 1.0 if smoothing == 1.0 else 1.5
    start = tuple(s.start(factor * value) for s, value in zip(structures, (q, r), strict=True))
    observing = ObservingSystem(std=torch.ones((), dtype=torch.float64))
    filtered = adapted(record_of(y, observing, linear()), prior, start, structures, smoothing=smoothing, burn_in=2)
    series = {"model": [], "observation": []}
    for k, one in enumerate(filtered):
        assert bool(one.alive.all())
        if smoothing == 1.0 and k == 2:  # one sample, of a filter that had the true values
            series["model"].append(one.model), series["observation"].append(one.observation)
            break
        if k >= 60:
            series["model"].append(one.model), series["observation"].append(one.observation)
    for name, value in (("model", q), ("observation", r)):
        structure = structures[name == "observation"]
        sample = torch.stack(series[name]).mean(0)
        error = sample.std(0) / rows**0.5
        bias = 0.06 if smoothing > 1 else 0.0  # the start is still remembered, and noisy values make the filter worse
        assert bool(((sample.mean(0) - structure.start(value)).abs() < 4 * error + bias).all()), name


def test_errors_of_a_variance_are_those_of_the_chi_square():
    samples = torch.randn(400, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = samples.square().mean()
    derivative = 0.5 * (samples.square() / v - 1).sum(1, keepdim=True) / v
    error = errors_by_scores(derivative, [[0]]).item()
    assert error == pytest.approx(float(v) * math.sqrt(2 / samples.numel()), rel=0.1)
    means = samples.square().mean(1)
    assert errors_by_samples(means, torch.full((400,), 50.0), 0.0).item() == pytest.approx(error, rel=0.05)
    assert errors_by_samples(means, torch.full((400,), 50.0), 0.5).item() == pytest.approx(2 * error, rel=0.05)
    assert math.isnan(errors_by_scores(derivative[:1], [[0]]).item())


def test_variances_of_few_samples_are_made_positive():
    values = made_positive(torch.tensor([[2.0, -1.0]]), 0.1)
    assert values.tolist() == [[2.0, pytest.approx(0.1)]]
    matrix = torch.tensor([[[1.0, 2.0], [2.0, 1.0]]])
    assert torch.linalg.eigvalsh(made_positive(matrix, 0.1)).min() == pytest.approx(0.1, abs=1e-6)


def test_a_full_r_of_few_samples_is_raised_and_says_so():
    sums = {
        "observation": torch.tensor([[1.0, 2.0], [2.2, 1.0]]).expand(1, 1, 2, 2),
        "observed": torch.ones(1, 1, 2, 2),
        "forecast": torch.ones(1, 1, 2),
        "innovation": 2.0 * torch.ones(1, 1, 2),
    }
    step = observation_errors(sums, torch.eye(2), structure_of("full", [2]))
    assert float(step["raised"]) == pytest.approx(1.0 - 2.1, abs=1e-5)
    assert float(torch.linalg.eigvalsh(step["observation"])[0]) == pytest.approx(1e-3, rel=0.1)
    apart = observation_errors(sums, torch.eye(2), structure_of("full", [1, 1]))
    assert float(apart["raised"]) == 0.0
    torch.testing.assert_close(apart["observation"], torch.eye(2))


def test_errors_of_a_covariance_are_those_of_wishart():
    """Of n samples of N(0, V), the sample covariance has entries of the variance (V_ij^2 + V_ii V_jj) / n."""
    groups, count = 200, 25
    noise = torch.randn(groups, count, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    samples = noise @ torch.linalg.cholesky(Q).mT
    inverse = torch.linalg.inv(Q)
    products = samples.mT @ samples
    brackets = inverse @ (products - count * Q) @ inverse  # twice the derivative of the log-likelihood by V
    sums = {"model": brackets[None], "observation": torch.zeros(1, groups, 2, dtype=torch.float64)}
    structures = structure_of("full", [3]), structure_of("fixed", [2])
    errors = standard_errors(sums, (Q, R.diagonal()), structures)
    d = Q.diagonal()
    exact = ((Q.square() + d[:, None] * d) / (groups * count)).sqrt()
    torch.testing.assert_close(errors["model"], exact, rtol=0.12, atol=0.0)
    assert errors["observation"].isnan().all()
    # From the exact errors of A, which are 1 / root of n off the diagonal and of n / 2 on it.
    of_a = torch.full((3, 3), 1.0, dtype=torch.float64).fill_diagonal_(2**0.5) / (groups * count) ** 0.5
    torch.testing.assert_close(errors_of_entries(torch.linalg.cholesky(Q), of_a), exact)
