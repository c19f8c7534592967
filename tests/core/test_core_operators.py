"""Observation operators: adjoints, and every method seeing the state through them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_core_methods import network, normals
from torch.testing import assert_close

from xdan.core.dynamics import Lorenz96
from xdan.core.learning.objectives import objective_by_name
from xdan.core.learning.rollout import Window, roll_out
from xdan.core.methods import DataAssimilationNetwork, Record, method_by_name, run
from xdan.core.observing import FunctionOperator, LinearOperator, ObservingSystem, Sites, observe

N = 8
CURVED = FunctionOperator(lambda x: torch.stack([x[..., 0] * x[..., 3], (0.3 * x[..., 5]).tanh(), x[..., 6]], -1), 3)
# Of their parameters, those that keep runs short.
METHODS = {
    "3d-var": {"scale": 0.1},
    "optimal-interpolation": {},
    "climatology": {},
    "extended-kalman": {"inflation": 1.05},
    "second-order-kalman": {"c2": 4.0},
    "iterated-kalman-smoother": {"lag": 2, "c2": 4.0},
    "etkf": {"members": 6},
    "enkf": {"members": 6},
    "enkf-n": {"members": 6},
    "ienkf": {"members": 6},
    "ienks-n": {"members": 6, "lag": 2},
    "4d-var": {"window": 2, "scale": 0.1},
    "eda": {"members": 3, "window": 2},
    "particle": {"members": 20},
    "state-covariance": {"depth": 2, "inflation": 1.0},
}


def matrix(rows: int = 5, seed: int = 2) -> torch.Tensor:
    return normals(rows, N, seed=seed) / math.sqrt(2)


def full_r(size: int) -> torch.Tensor:
    root = normals(size, size, seed=4)
    return 0.3 * torch.eye(size, dtype=torch.float64) + 0.1 * root @ root.T


def record(observing: ObservingSystem, cycles: int = 6, lanes: int = 2, dynamics=None) -> Record:
    dynamics = dynamics or Lorenz96(N)
    label = torch.arange(lanes)
    x, states = dynamics.climatology(label, 0, like=normals(1)).flatten(1), []
    for _ in range(cycles):
        states.append(x)
        x = dynamics.advance(x, 1)
    truth = torch.stack(states, 1)
    y = observe(truth, Sites.all(), observing, label, torch.arange(cycles), 0)
    y[0, 2, 1] = y[1, 3] = torch.nan
    return Record(dynamics, observing, y, (0, *[1] * (cycles - 1)), label, 1, truth)


@given(seed=st.integers(0, 10**6), rows=st.integers(1, 12))
@settings(deadline=None, max_examples=30)
def test_adjoint_of_a_matrix(seed, rows):
    h = LinearOperator(normals(rows, N, seed=seed))
    x, y = normals(3, N, seed=seed + 1), normals(3, rows, seed=seed + 2)
    assert_close((h(x) * y).sum(), (x * h.adjoint(x, y)).sum(), rtol=1e-12, atol=1e-12)


@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_adjoint_and_tangent_of_a_function(seed):
    x, dx, y = normals(3, N, seed=seed), normals(3, 4, N, seed=seed + 1), normals(3, 3, seed=seed + 2)
    pushed = CURVED.tangent(x, dx)
    assert_close((pushed * y[:, None]).sum(2), (dx * CURVED.adjoint(x, y)[:, None]).sum(2), rtol=1e-12, atol=1e-12)
    h = 1e-6
    assert_close(pushed, (CURVED(x[:, None] + h * dx) - CURVED(x[:, None] - h * dx)) / (2 * h), rtol=1e-7, atol=1e-7)


def test_projected_innovation_is_the_dense_product():
    h, r = matrix(), full_r(5)
    observing = ObservingSystem(covariance=r, operator=LinearOperator(h))
    d, x = normals(2, 5, seed=6), normals(2, N, seed=7)
    observed = torch.tensor([[True] * 5, [True, False, True, True, False]])
    for lane in range(2):
        rows = observed[lane]
        dense = h[rows].T @ torch.linalg.inv(r[rows][:, rows]) @ d[lane, rows]
        assert_close(observing.project_innovation(d, observed, x)[lane], dense, rtol=1e-11, atol=1e-11)


def test_increment_is_optimal_interpolation():
    h, r, v = matrix(), full_r(5), normals(N, seed=3).square() + 0.1
    observing = ObservingSystem(covariance=r, operator=LinearOperator(h))
    x, d = normals(2, N), normals(2, 5, seed=6)
    observed = torch.tensor([[True] * 5, [True, False, True, True, False]])
    increment = observing.interpolate(x, v, d, observed)
    for lane in range(2):
        rows = h[observed[lane]]
        total = rows @ torch.diag(v) @ rows.T + r[observed[lane]][:, observed[lane]]
        expected = torch.diag(v) @ rows.T @ torch.linalg.inv(total) @ d[lane, observed[lane]]
        assert_close(increment[lane], expected, rtol=1e-11, atol=1e-12)
    assert_close(observing.interpolate(x, v, d[:, None].expand(2, 3, 5), observed)[:, 1], increment)


def test_the_kalman_filter_with_a_matrix_is_its_closed_form():
    h, r = matrix(), full_r(5)
    observing = ObservingSystem(covariance=r, operator=LinearOperator(h))
    m = normals(N, N, seed=9) / 4
    rec = record(observing, dynamics=_linear(m))
    method = method_by_name("kalman").prepare(rec)
    outputs, _ = run(method, rec)
    state = method.start(rec)
    for lane in range(2):
        mean, p = state["x"][lane], state["covariance"][lane]
        for k in range(6):
            if k:
                mean, p = m @ mean, m @ p @ m.T
            seen = ~rec.observation[lane, k].isnan()
            rows = h[seen]
            gain = p @ rows.T @ torch.linalg.inv(rows @ p @ rows.T + r[seen][:, seen])
            mean = mean + gain @ (rec.observation[lane, k, seen] - rows @ mean)
            p = p - gain @ rows @ p
            assert_close(outputs["analysis"][lane, k], mean, rtol=1e-7, atol=1e-7)


def _linear(m: torch.Tensor):
    from xdan.core.dynamics import CustomDynamics

    return CustomDynamics(step=lambda x: x @ m.to(x).T, state={"x": N}, timestep=1.0, spin_up_time=0.0)


@pytest.mark.parametrize("name", METHODS)
def test_a_function_that_is_a_matrix_gives_what_the_matrix_gives(name):
    h = matrix()
    outputs = []
    for operator in (LinearOperator(h), FunctionOperator(lambda x: x @ h.to(x).T, 5)):
        rec = record(ObservingSystem(std=torch.tensor(0.7, dtype=torch.float64), operator=operator))
        outputs.append(run(method_by_name(name, **METHODS[name]).prepare(rec), rec)[0])
    assert not outputs[0]["diverged"].any()
    for key, value in outputs[0].items():
        assert_close(outputs[1][key], value, rtol=1e-7, atol=1e-7, equal_nan=True)


# Methods whose random draws, if any, do not depend on how many observations there are.
SAME_DRAWS = ("3d-var", "optimal-interpolation", "extended-kalman", "4d-var", "state-covariance", "climatology")


@pytest.mark.parametrize("name", SAME_DRAWS)
def test_rows_of_the_identity_are_sites_that_are_observed(name):
    sites = torch.arange(0, N, 2)
    observing = ObservingSystem(std=torch.tensor(0.7, dtype=torch.float64))
    rec = record(observing)
    gaps = torch.full_like(rec.observation, torch.nan)
    gaps[..., ::2] = rec.observation[..., ::2]
    chosen = ObservingSystem(std=observing.std, operator=LinearOperator(torch.eye(N, dtype=torch.float64)[sites]))
    masked = Record(rec.dynamics, observing, gaps, rec.steps, rec.trajectory, 1, rec.truth)
    picked = Record(rec.dynamics, chosen, rec.observation[..., ::2], rec.steps, rec.trajectory, 1, rec.truth)
    one, other = (run(method_by_name(name, **METHODS[name]).prepare(r), r)[0] for r in (masked, picked))
    assert_close(one["analysis"], other["analysis"], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("memory", [0, 2])
def test_the_network_sees_rows_of_the_identity_as_sites(memory):
    observing = ObservingSystem(std=torch.tensor(0.7, dtype=torch.float64))
    chosen = ObservingSystem(std=observing.std, operator=LinearOperator(torch.eye(N, dtype=torch.float64)[::2]))
    rec = record(observing)
    gaps = torch.full_like(rec.observation, torch.nan)
    gaps[..., ::2] = rec.observation[..., ::2]
    masked = Record(rec.dynamics, observing, gaps, rec.steps, rec.trajectory, 1)
    picked = Record(rec.dynamics, chosen, rec.observation[..., ::2], rec.steps, rec.trajectory, 1)
    method = DataAssimilationNetwork(network(memory=memory))
    one, other = (run(method, r)[0]["analysis"] for r in (masked, picked))
    assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_the_networks_zeta_is_the_gradient_of_the_misfit():
    observing = ObservingSystem(std=torch.tensor([0.5, 0.2, 0.9], dtype=torch.float64), operator=CURVED)
    x, y = normals(2, N, seed=1).requires_grad_(), normals(2, 3, seed=2)
    (gradient,) = torch.autograd.grad(0.5 * ((y - CURVED(x)) / observing.std).square().sum(), x)
    observed = torch.ones_like(y, dtype=torch.bool)
    assert_close(observing.project_innovation(y - CURVED(x), observed, x), -gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_a_curved_operator_draws_the_analysis_to_its_observations(name):
    observing = ObservingSystem(std=torch.tensor(0.3, dtype=torch.float64), operator=CURVED)
    rec = record(observing)
    outputs, _ = run(method_by_name(name, **METHODS[name]).prepare(rec), rec)
    if name == "climatology":
        return
    before, after = ((rec.observation - CURVED(outputs[key])).square().nanmean() for key in ("forecast", "analysis"))
    assert after < before


@pytest.mark.parametrize("objective", ["mse", "forecast", "analysis"])
def test_gradients_through_cycles_with_a_curved_operator_are_finite_differences(objective):
    # Gentle enough for a network of random weights.
    bounded = FunctionOperator(lambda x: 2 * (0.3 * x[..., ::2]).tanh(), 4)
    observing = ObservingSystem(std=torch.tensor(1.0, dtype=torch.float64), operator=bounded)
    rec = record(observing, cycles=4)
    net, chosen = network(memory=1), objective_by_name(objective)
    window = Window(rec.truth if chosen.needs_truth else None, rec.observation, rec.steps)
    method = DataAssimilationNetwork(net.train().requires_grad_(True))
    alpha = net.relative_alpha

    def loss() -> torch.Tensor:
        rollout = roll_out(method, rec.dynamics, observing, window, None, divergence=chosen.needs_divergence)
        return chosen.loss(rollout).mean()

    (gradient,) = torch.autograd.grad(loss(), alpha)
    ends = []
    for sign in (1, -1):
        alpha.data.add_(sign * 1e-6)
        ends.append(float(loss().detach()))
        alpha.data.sub_(sign * 1e-6)
    assert float(gradient) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4)
    assert gradient != 0


def test_operators_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"H has shape \(3,\): expected a matrix"):
        LinearOperator(torch.zeros(3))
    with pytest.raises(ValueError, match="size=0"):
        FunctionOperator(torch.sin, 0)
    with pytest.raises(ValueError, match=r"gave shape \(2, 8\) for states of shape \(2, 8\): expected \(2, 3\)"):
        FunctionOperator(torch.sin, 3)(torch.zeros(2, 8))
    rec = record(ObservingSystem(std=torch.tensor(0.3), operator=CURVED))
    for name, remedy in (("letkf", "etkf"), ("optimal-particle", "particle")):
        with pytest.raises(ValueError, match=f"take '{remedy}'"):
            method_by_name(name).prepare(rec)
