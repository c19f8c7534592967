"""Backward passes and the EnKS against one Gaussian solution, each other, and other cuts of the record."""

import itertools
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import xdan
from xdan.core.dynamics import CustomDynamics
from xdan.core.methods import (
    EnsembleBackward,
    ExtendedKalmanFilter,
    GaussianBackward,
    Record,
    method_by_name,
    method_of,
    run,
    smooth,
    smoothing,
)
from xdan.core.methods.backward import smoothed_members, smoother_gain
from xdan.core.methods.base import METHODS
from xdan.core.networks import KalmanCNN, ResidualCNN
from xdan.core.observing import LinearOperator, ObservingSystem

N = 3
M = torch.tensor([[0.9, 0.3, 0.0], [-0.2, 1.1, 0.1], [0.1, 0.0, 0.7]], dtype=torch.float64)
H = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]], dtype=torch.float64)
R = torch.tensor([[0.5, 0.2], [0.2, 0.8]], dtype=torch.float64)
Q = torch.tensor([[0.3, 0.1, 0.0], [0.1, 0.4, 0.0], [0.0, 0.0, 0.2]], dtype=torch.float64)
STEPS = [0, 1, 2, 1, 3, 1, 1, 2]
CLIMATE = np.random.default_rng(0).normal([1.0, 0.0, -1.0], size=(20000, N))


def matrix_at(step: int) -> torch.Tensor:
    """Of the model from one step to the next: it turns with time."""
    angle = 0.3 * step
    turn = torch.eye(N, dtype=torch.float64)
    turn[:2, :2] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return turn @ M


def linear(moving: bool = False, error: torch.Tensor | None = None) -> xdan.Dynamics:
    def still(x):
        return x @ M.to(x).mT + 0.1

    def turning(x, t):
        return x @ matrix_at(round(t)).to(x).mT + 0.1 * t

    model = CustomDynamics(step=turning if moving else still, state={"x": N}, timestep=1.0, spin_up_time=0.0)
    model = model.with_climatology(torch.from_numpy(CLIMATE))
    return model if error is None else model.with_model_error(covariance=error.numpy())


def record_of(model, rows: int = 2, steps=STEPS, missing: float = 0.2, gaps: bool = True, seed: int = 0) -> Record:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(rows, len(steps), 2, generator=generator, dtype=torch.float64)
    y = torch.where(torch.rand(y.shape, generator=generator) < missing, torch.nan, y)
    if gaps and len(steps) > 4:
        y[:, 3:5] = torch.nan
    observing = ObservingSystem(covariance=R, operator=LinearOperator(H))
    return Record(model, observing, y, list(steps), torch.arange(rows), seed=0)


def posterior(record: Record, row: int, mean: torch.Tensor, covariance: torch.Tensor, moving: bool, q=None):
    """Means (K, N) and covariances (K, N, N) of all states of a trajectory, by one solution of a large system."""
    times = len(record.steps)
    # The states are a linear function of the first one, the constants and the errors of the intervals.
    maps, constants, clock = [np.eye(N)], [np.zeros(N)], 0
    for steps in record.steps[1:]:
        whole, constant = np.eye(N), np.zeros(N)
        for _ in range(steps):
            one = (matrix_at(clock) if moving else M).numpy()
            whole, constant = one @ whole, one @ constant + (0.1 * clock if moving else 0.1)
            clock += 1
        maps.append(whole)
        constants.append(constant)
    source = np.zeros((times * N, times * N))
    for j in range(times):
        power = np.eye(N)
        for k in range(j, times):
            power = power if k == j else maps[k] @ power
            source[k * N : (k + 1) * N, j * N : (j + 1) * N] = power
    errors = np.zeros((times * N, times * N))
    errors[:N, :N] = covariance.numpy()
    if q is not None:
        errors[N:, N:] = np.kron(np.eye(times - 1), q.numpy())
    first = source @ np.concatenate([mean.numpy(), *constants[1:]])
    p = source @ errors @ source.T
    y = record.observation[row].numpy().ravel()
    seen = ~np.isnan(y)
    operator = np.kron(np.eye(times), H.numpy())[seen]
    s = operator @ p @ operator.T + np.kron(np.eye(times), R.numpy())[np.ix_(seen, seen)]
    gain = np.linalg.solve(s, operator @ p).T
    states = (first + gain @ (y[seen] - operator @ first)).reshape(times, N)
    whole = p - gain @ operator @ p
    return states, np.stack([whole[k * N : (k + 1) * N, k * N : (k + 1) * N] for k in range(times)])


@pytest.mark.parametrize("error", [None, Q], ids=["perfect", "Q"])
@pytest.mark.parametrize("moving", [False, True])
def test_a_kalman_filter_smoothed_is_the_posterior_of_all_times(moving, error):
    record = record_of(linear(moving, error))
    method = ExtendedKalmanFilter(inflation=1.0).prepare(record)
    outputs, _ = smooth(method, record, members=True)
    for row in range(2):
        states, covariances = posterior(record, row, *method.climate, moving, error)
        np.testing.assert_allclose(outputs["smoothed"][row], states, atol=1e-10)
        np.testing.assert_allclose(outputs["smoothed_covariance"][row], covariances, atol=1e-10)
        spread = np.sqrt(np.diagonal(covariances, axis1=1, axis2=2))
        np.testing.assert_allclose(outputs["smoothed_spread"][row], spread, atol=1e-10)


@pytest.mark.parametrize("name", ["kalman", "second-order-kalman"])
def test_the_kalman_filters_smooth_alike_where_the_model_is_linear(name):
    record = record_of(linear(), gaps=False)
    method = method_by_name(name, **({"c2": 8.0} if name.startswith("second") else {})).prepare(record)
    states, _ = posterior(record, 0, *method.climate, False)
    np.testing.assert_allclose(smooth(method, record)[0]["smoothed"][0], states, atol=1e-8)


def test_inflation_counts_as_an_error_of_the_model():
    """With f, the filter is that of the error covariance (f^2 - 1) M P_a M^T, and its smoother so too."""
    record, f = record_of(linear()), 1.2
    method = ExtendedKalmanFilter(inflation=f).prepare(record)
    outputs, _ = run(method, record, members=True)
    x, p = outputs["analysis"][0], outputs["analysis_covariance"][0] / f**2
    state, covariance = x[-1], p[-1]
    for k in range(len(STEPS) - 2, -1, -1):
        move = torch.linalg.matrix_power(M, STEPS[k + 1])
        ahead = move @ p[k] @ move.mT + (f**2 - 1) * move @ p[k] @ move.mT
        gain = p[k] @ move.mT @ torch.linalg.inv(ahead)
        state = x[k] + gain @ (state - outputs["forecast"][0, k + 1])
        covariance = p[k] + gain @ (covariance - ahead) @ gain.mT
    smoothed, _ = smooth(method, record, members=True)
    assert_close(smoothed["smoothed"][0, 0], state, rtol=0, atol=1e-9)
    assert_close(smoothed["smoothed_covariance"][0, 0], covariance, rtol=0, atol=1e-9)
    assert_close(smoothed["smoothed_covariance"][0, -1], p[-1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("spin_up", [0, 3])
@pytest.mark.parametrize("inflation", [1.0, 1.1])
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_enks_with_a_long_lag_is_the_backward_pass_of_the_etkf(missing, inflation, spin_up):
    """Means and spreads to rounding, with inflation too, and with what the finite-size prior adds at first."""
    record = record_of(linear(), missing=missing)
    lag = len(STEPS) - 1
    back = smooth(method_by_name("etkf", members=9, inflation=inflation, spin_up=spin_up).prepare(record), record)[0]
    enks = method_by_name("enks", members=9, inflation=inflation, spin_up=spin_up, lag=lag).prepare(record)
    outputs, _ = run(enks, record)
    assert outputs["smoothed"][:, :-1].isnan().all()
    for name in ("smoothed", "smoothed_spread"):
        assert_close(outputs[name][:, -1], back[name][:, 0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("lag", [1, 3])
def test_enks_of_a_lag_is_the_backward_pass_over_so_many_times(lag):
    record = record_of(linear(), gaps=False)
    enks = method_by_name("enks", members=9, inflation=1.05, spin_up=0, lag=lag).prepare(record)
    etkf = method_by_name("etkf", members=9, inflation=1.05, spin_up=0).prepare(record)
    outputs, _ = run(enks, record)
    assert_close(outputs["analysis"], run(etkf, record)[0]["analysis"])
    for k in range(lag, len(STEPS)):
        part = smooth(etkf, record.during(slice(0, k + 1)))[0]
        for name in ("smoothed", "smoothed_spread"):
            assert_close(outputs[name][:, k], part[name][:, k - lag], rtol=0, atol=1e-9)


@pytest.mark.parametrize("lag", [1, 3])
def test_windows_smooth_as_backward_passes_where_the_model_is_linear(lag):
    """The iterated Kalman smoother as a Kalman filter gone back over so many times, the IEnKS as the EnKS."""
    record = record_of(linear(), gaps=False)
    filtered = ExtendedKalmanFilter(inflation=1.0).prepare(record)
    window = method_by_name("iterated-kalman-smoother", lag=lag, c2=1.0, tolerance=1e-9).prepare(record)
    outputs, _ = run(window, record)
    for k in range(lag, len(STEPS)):
        part = smooth(filtered, record.during(slice(0, k + 1)))[0]
        for name in ("smoothed", "smoothed_spread"):
            assert_close(outputs[name][:, k], part[name][:, k - lag], rtol=0, atol=1e-7)
    ienks = method_by_name("ienks", members=9, lag=lag, tolerance=1e-9).prepare(record)
    enks = method_by_name("enks", members=9, lag=lag, inflation=1.0, spin_up=0).prepare(record)
    pair = [run(method, record)[0] for method in (ienks, enks)]
    for name in ("smoothed", "smoothed_spread"):
        assert_close(pair[0][name][:, lag:], pair[1][name][:, lag:], rtol=0, atol=1e-7)
        assert pair[0][name][:, :lag].isnan().all()


def test_finite_size_enks_filters_as_enkf_n():
    record = record_of(linear(), gaps=False)
    enks = method_by_name("enks", members=5, finite_size=True, lag=3)
    assert "inflation" not in enks.config()
    outputs, _ = run(enks.prepare(record), record)
    assert_close(outputs["analysis"], run(method_by_name("enkf-n", members=5).prepare(record), record)[0]["analysis"])
    for name in ("smoothed", "smoothed_spread"):
        part = smooth(method_by_name("enkf-n", members=5).prepare(record), record.during(slice(0, 4)))[0]
        assert_close(outputs[name][:, 3], part[name][:, 0], rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match=r"inflation=1\.02 with finite_size=True: expected one of the two"):
        method_by_name("enks", finite_size=True, inflation=1.02)


def test_smoothed_anomalies_with_inflation_have_the_covariance_of_the_recursion():
    generator = torch.Generator().manual_seed(0)
    members = [torch.randn(1, 6, 4, generator=generator, dtype=torch.float64) for _ in range(2)]
    analysis, turn, f = members[0], members[1][0, :4], 1.3
    anomalies = analysis - analysis.mean(1, keepdim=True)
    forecast = analysis.mean(1, keepdim=True) + f * anomalies @ turn  # and some later correction of it
    shrunk = forecast.mean(1, keepdim=True) + 0.4 * (forecast - forecast.mean(1, keepdim=True)) + 0.2
    answer = smoothed_members(analysis, forecast, shrunk, torch.full((1, 1, 1), f, dtype=torch.float64))
    p, ahead = torch.cov(anomalies[0].T), torch.cov(forecast[0].T)
    gain = p @ turn @ torch.linalg.inv(ahead)
    assert_close(torch.cov(answer[0].T), p + gain @ (torch.cov(shrunk[0].T) - ahead) @ gain.T)
    assert_close(answer.mean(1), analysis.mean(1) + (shrunk - forecast).mean(1) @ gain.T)


def test_a_direction_without_variance_is_left_alone():
    p = torch.diag(torch.tensor([1.0, 1e-12], dtype=torch.float32))[None]
    assert_close(smoother_gain(p, p), torch.diag(torch.tensor([1.0, 0.0]))[None])
    assert smoother_gain(p, torch.full_like(p, torch.nan)).isnan().all()


def test_an_ensemble_meets_the_posterior_as_its_members_grow():
    """The error falls with the root of the number of members."""
    record = record_of(linear(), gaps=False)
    prepared = ExtendedKalmanFilter(inflation=1.0).prepare(record)
    states = torch.stack([torch.from_numpy(posterior(record, row, *prepared.climate, False)[0]) for row in range(2)])
    errors = []
    for members in (50, 200):
        each = []
        for seed in range(8):
            again = replace(record, seed=seed)
            method = method_by_name("etkf", members=members, inflation=1.0, spin_up=0).prepare(again)
            each.append((smooth(method, again)[0]["smoothed"] - states).square().mean())
        errors.append(float(torch.stack(each).mean().sqrt()))
    assert 1.6 < errors[0] / errors[1] < 2.5


LORENZ = xdan.Lorenz96(sites=6)


def lorenz_record(times: int = 9, rows: int = 3) -> Record:
    truth = LORENZ.climatology(range(rows), 0, like=torch.zeros((), dtype=torch.float64))[:, 0]
    states = [truth]
    for _ in range(times - 1):
        states.append(LORENZ.advance(states[-1], 1))
    generator = torch.Generator().manual_seed(1)
    y = torch.stack(states, 1)
    y = y + torch.randn(y.shape, generator=generator, dtype=torch.float64)
    y[:, 4] = torch.nan
    observing = ObservingSystem(std=torch.ones((), dtype=torch.float64))
    return Record(LORENZ, observing, y, [0] + [1] * (times - 1), torch.arange(rows), seed=0)


def networks():
    torch.manual_seed(0)
    yield "kalman network", method_of(KalmanCNN(filters=3, blocks=1, kernel=3, inflation=1.1).double())
    yield "ensemble network", method_of(xdan.EnsembleCNN(filters=3, blocks=1, kernel=3, members=4).double())


PASSES = [
    ("extended-kalman", method_by_name("extended-kalman", inflation=1.05)),
    ("etkf", method_by_name("etkf", members=5, inflation=1.05)),
    ("enkf", method_by_name("enkf", members=9, inflation=1.05)),
    ("enkf-n", method_by_name("enkf-n", members=5)),
    *networks(),
]


@pytest.mark.parametrize(("name", "method"), PASSES, ids=[name for name, _ in PASSES])
@settings(max_examples=4)
@given(cuts=st.sets(st.integers(1, 8), max_size=4), most=st.sampled_from([1, 10**9]))
def test_any_cut_of_a_record_gives_the_same(name, method, cuts, most):
    record = lorenz_record()
    method = method.prepare(record)
    whole, _ = smooth(method, record, members=True)
    edges = [0, *sorted(cuts), 9]
    blocks = list(itertools.starmap(slice, itertools.pairwise(edges)))
    states = [None]
    for block in blocks[:-1]:
        states.append(run(method, record.during(block), states[-1])[1])
    parts, after = [], None
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(smoothing, "BYTES", most)
        for block, state in zip(reversed(blocks), reversed(states), strict=True):
            part, after = smooth(method, record.during(block), state, after, members=True)
            parts.insert(0, part)
    for key, value in whole.items():
        assert_close(torch.cat([part[key] for part in parts], 1), value, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["etkf", "extended-kalman"])
def test_a_trajectory_that_starts_anew_is_smoothed_on_both_sides_by_itself(name):
    record = lorenz_record(12)
    observation = record.observation.clone()
    observation[1, 4:8] = torch.nan
    record = replace(record, observation=observation, restart_after=0.12)
    method = method_by_name(name, inflation=1.02).prepare(record)
    outputs, _ = run(method, record)
    assert outputs["restarted"][1].nonzero().ravel().tolist() == [8]
    smoothed = smooth(method, record)[0]["smoothed"]
    # The last time before the start knows nothing later; nor do the other trajectories notice.
    assert_close(smoothed[1, 7], outputs["analysis"][1, 7])
    first = smooth(method, record.during(slice(0, 8)))[0]["smoothed"]
    assert_close(smoothed[1, :8], first[1])
    calm = smooth(method, replace(record, restart_after=None))[0]["smoothed"]
    assert_close(smoothed[0], calm[0])
    assert not torch.equal(smoothed[1, 8], outputs["analysis"][1, 8])


def test_enks_keeps_what_lies_before_a_start():
    record = lorenz_record(12)
    observation = record.observation.clone()
    observation[1, 4:8] = torch.nan
    method = method_by_name("enks", lag=3, inflation=1.02).prepare(record)
    outputs, _ = run(method, replace(record, observation=observation, restart_after=0.12))
    etkf = method_by_name("etkf", inflation=1.02).prepare(record)
    before = smooth(etkf, replace(record, observation=observation).during(slice(0, 8)))[0]
    smoothed = outputs["smoothed"][:, 3:]
    assert smoothed.isfinite().all()
    assert_close(smoothed[1, 5:8], before["smoothed"][1, 5:8], rtol=0, atol=1e-2)
    assert_close(smoothed[1, 7], outputs["analysis"][1, 7])
    unharmed = run(method, replace(record, observation=observation))[0]["smoothed"]
    assert_close(smoothed[0], unharmed[0, 3:])


@pytest.mark.parametrize("name", ["etkf", "extended-kalman"])
def test_a_lost_trajectory_is_nan_from_there_and_harms_no_other(name):
    record = lorenz_record()
    observation = record.observation.clone()
    observation[1, 5] = 1e30
    harmed = replace(record, observation=observation)
    method = method_by_name(name, inflation=1.02, **({"spin_up": 0} if name == "etkf" else {})).prepare(record)
    outputs, _ = run(method, harmed)
    assert outputs["diverged"][1].tolist() == [False] * 5 + [True] * 4
    smoothed = smooth(method, harmed)[0]["smoothed"]
    assert smoothed[1, 5:].isnan().all()
    assert_close(smoothed[1, 4], outputs["analysis"][1, 4])
    assert_close(smoothed[1, :5], smooth(method, record.during(slice(0, 5)))[0]["smoothed"][1])
    assert_close(smoothed[[0, 2]], smooth(method, record)[0]["smoothed"][[0, 2]])


def test_methods_without_a_backward_pass_say_what_has_one():
    model = LORENZ
    plain = method_of(ResidualCNN(filters=3, blocks=1, kernel=3))
    for method, words in (
        (method_by_name("letkf"), "each component has weights of its own"),
        (method_by_name("denkf", radius=4.0), "with a radius, each component has weights of its own"),
        (method_by_name("etkf", relaxation="rtpp"), "relaxation='rtpp' changes the anomalies beside the weights"),
        (method_by_name("hybrid-envar"), "the static part of its covariance is not in its members"),
        (method_by_name("particle"), "its particles have weights"),
        (method_by_name("multi-model-enkf"), "its members belong to several models"),
        (method_by_name("3d-var"), "neither members nor a covariance"),
        (method_by_name("eda"), "a window of several times"),
        (method_by_name("state-covariance"), "a window of several times"),
        (method_by_name("ienks-n", lag=4), "smooths by its lag already: .* of up to 4 later times"),
        (method_by_name("enks", lag=7), "smooths by its lag already: .* of up to 7 later times"),
        (method_by_name("4d-var"), "smooths by its lag already"),
        (method_by_name("second-order-kalman", c2=1.0, columns=3), "columns=3 has no backward pass"),
        (plain, "a network with a single forecast has no covariance"),
        (method_of(KalmanCNN(filters=3, blocks=1, kernel=3, lag=2)), "smooths by its lag already"),
        (method_of(KalmanCNN(filters=3, blocks=1, kernel=3, past=4)), "carries no covariance"),
        (method_of(KalmanCNN(filters=3, blocks=1, kernel=3, columns=3)), "columns=3 has no backward pass"),
    ):
        with pytest.raises(ValueError, match=words) as refused:
            method.check_backward(model)
        assert "expected" in str(refused.value)
        with pytest.raises(ValueError, match=words):
            method.backward_pass(model)
    with pytest.raises(ValueError, match="expected one of") as refused:
        method_by_name("letkf").check_backward(model)
    named = re.findall(r"'([a-z0-9-]+)'", str(refused.value).split("expected")[1])
    assert {"kalman", "extended-kalman", "second-order-kalman", "enkf", "etkf", "enkf-n"} <= set(named)
    for name in set(named) & set(METHODS):
        method_by_name(name, **({"c2": 1.0} if "second" in name else {})).check_backward(model)
    wrong = method_by_name("etkf")
    wrong.backward = True
    with pytest.raises(TypeError, match="backward=True of the method 'etkf': expected a class derived from"):
        wrong.check_declarations()
    assert isinstance(method_by_name("etkf").backward_pass(model), EnsembleBackward)
    assert isinstance(method_by_name("extended-kalman", inflation=1.1).backward_pass(model), GaussianBackward)
