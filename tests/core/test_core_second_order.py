"""Second-order Kalman schemes against Gaussian moments, the Kalman filter and the Rauch-Tung-Striebel smoother."""

import math
from dataclasses import replace

import pytest
import torch
from test_core_classical import moments
from test_core_methods import DOUBLE, KINDS, SITES, error_and_matrix, linear, model, normals, record_of
from torch.testing import assert_close

from xdan.core.dynamics import CustomDynamics, KuramotoSivashinsky, Lorenz96
from xdan.core.methods import method_by_name, run
from xdan.core.methods.advancing import advance_along
from xdan.core.methods.gaussian_forecast import (
    _by_derivatives,
    _nodes,
    forecast_moments,
)
from xdan.core.methods.rebuilding import past_of, rebuilt_covariance, views_of
from xdan.core.observing import ObservingSystem, Sites
from xdan.core.roots import root_of, triangular_root_of

NAMES = ("second-order-kalman", "iterated-kalman-smoother")


def second_moment(function, cross: torch.Tensor) -> torch.Tensor:
    """Covariance of f''[d, d] / 2 with f''[e, e] / 2 for E[d e^T] = cross: tr(H_a C H_b C^T) / 2, by Isserlis."""
    at = torch.zeros(len(cross), dtype=cross.dtype)
    hessians = torch.func.jacfwd(torch.func.jacfwd(function))(at)
    return 0.5 * torch.einsum("aij,jk,bkl,il->ab", hessians, cross, hessians, cross)


def test_second_order_tendency_of_lorenz96_is_the_gaussian_moment():
    cross = normals(9, 9)
    dynamics = Lorenz96(9)
    answer = dynamics.second_order_tendency(cross[None])[0]
    assert_close(answer, second_moment(dynamics.tendency, cross), rtol=1e-12, atol=1e-12)


def test_second_order_tendency_of_kuramoto_sivashinsky_is_the_gaussian_moment():
    cross = normals(24, 24)
    dynamics = KuramotoSivashinsky(24, 22.0, timestep=1e-7)  # a step in which nothing decays
    answer = dynamics.second_order_tendency(cross[None])[0]
    assert_close(answer, second_moment(dynamics.tendency, cross), rtol=1e-5, atol=1e-5 * float(answer.abs().max()))


def quadratic(sites: int = 5) -> CustomDynamics:
    """A map whose second derivative is the same everywhere."""
    tensor, matrix = 0.3 * normals(sites, sites, sites, seed=4), normals(sites, sites, seed=5)

    def step(x):
        return x @ matrix.T + torch.einsum("aij,...i,...j->...a", tensor.to(x), x, x)

    return CustomDynamics(step=step, state={"x": sites}, timestep=1.0, spin_up_time=0.0)


def test_second_order_of_a_quadratic_map_is_the_gaussian_moment():
    dynamics, root = quadratic(), 0.5 * normals(2, 3, 5, seed=6)  # covariances of rank three
    covariance = root.mT @ root
    x = normals(2, 5, seed=7)
    answer = forecast_moments(dynamics, x, covariance, 1)
    assert_close(answer.x, dynamics.advance(x, 1))
    for lane in range(2):
        assert_close(answer.second[lane], second_moment(dynamics.step, covariance[lane]), rtol=1e-10, atol=1e-12)
    # And by draws: what a cloud of states has beyond M P M^T.
    draws = normals(400_000, 3, seed=8) @ root[0]
    spread = torch.cov(dynamics.advance(x[0] + draws, 1).T)
    assert_close(spread, answer.covariance[0] + answer.second[0], rtol=0, atol=0.02 * float(spread.abs().max()))


def test_quadrature_meets_the_second_derivatives_of_the_whole_forecast(monkeypatch):
    monkeypatch.setattr("xdan.core.methods.gaussian_forecast.COLUMNS", 40)
    for dynamics, worst in (
        (Lorenz96(12), {1: 0.08, 2: 0.01, 3: 0.01, 4: 0.01}),
        (KuramotoSivashinsky(48, 44.0), {1: 0.25, 2: 0.2, 4: 0.25}),
    ):
        x = dynamics.climatology(range(2), 0, like=DOUBLE)[:, 0]
        x, root = advance_along(dynamics, x, normals(2, 6, x.shape[1]), 8)
        covariance = 0.05 * root.mT @ root / root.square().sum(1).mean()
        for steps, tolerance in worst.items():
            quick, slow = (f(dynamics, x, covariance, steps) for f in (forecast_moments, _by_derivatives))
            assert_close(quick.x, slow.x)
            assert_close(quick.covariance, slow.covariance, rtol=1e-9, atol=1e-12)
            assert (quick.second - slow.second).norm() < tolerance * slow.second.norm()


@pytest.mark.parametrize("steps", range(1, 12))
def test_weights_integrate_cubics(steps):
    """Simpson's rules do; the trapezoidal rule of one step integrates straight lines."""
    places, weights = torch.tensor(_nodes(steps), dtype=torch.float64).T
    for power in (0, 1, 2, 3) if steps > 1 else (0, 1):
        assert float((weights * (places / steps) ** power).sum()) == pytest.approx(1 / (power + 1))


def test_a_forecast_over_no_step_changes_nothing():
    x, covariance = normals(2, 9), torch.eye(9, dtype=torch.float64).expand(2, 9, 9)
    answer = forecast_moments(Lorenz96(9), x, covariance, 0)
    assert torch.equal(answer.x, x)
    assert torch.equal(answer.covariance, covariance)
    assert not answer.second.any()


def test_a_root_leaves_lost_trajectories_to_themselves():
    covariance = normals(3, 4, 4)
    covariance = covariance @ covariance.mT
    covariance[1, 0, 0] = torch.nan
    root = root_of(covariance)
    assert root[1].isnan().all()
    for lane in (0, 2):
        assert_close(root[lane].mT @ root[lane], covariance[lane])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sites", [Sites.all(), Sites.random(1, 3)])
@pytest.mark.parametrize("lag", [None, 1, 3])
def test_on_a_linear_model_they_are_the_kalman_filter(kind, sites, lag):
    matrix, (observing, r) = model(), error_and_matrix(kind)
    record = record_of(linear(matrix), observing, 9, sites=sites)
    settings = {"c2": 8.0} if lag is None else {"c2": 8.0, "lag": lag}
    method = method_by_name(NAMES[lag is not None], **settings).prepare(record)
    start = method.start(record)
    outputs, _ = run(method, record)
    for lane in range(2):
        means, covariances = moments(record, matrix, r, lane, start["x"][lane], start["covariance"][lane])
        assert_close(outputs["analysis"][lane], means, rtol=1e-8, atol=1e-9)
        assert_close(outputs["spread"][lane], covariances.diagonal(dim1=1, dim2=2).sqrt(), rtol=1e-7, atol=1e-8)
        for k in range(1, 9):
            p = matrix @ covariances[k - 1] @ matrix.T
            assert_close(outputs["forecast_spread"][lane, k], p.diagonal().sqrt(), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("lag", [1, 3])
def test_smoothed_is_the_rauch_tung_striebel_smoother(lag):
    matrix, (observing, r) = model(), error_and_matrix("full")
    record = record_of(linear(matrix), observing, 9)
    method = method_by_name("iterated-kalman-smoother", c2=1.0, lag=lag).prepare(record)
    start = method.start(record)
    outputs, _ = run(method, record)
    means, covariances = moments(record, matrix, r, 0, start["x"][0], start["covariance"][0])
    for k in range(lag, 9):
        smoothed = means[k]
        for before in range(k - 1, k - lag - 1, -1):
            forecast = matrix @ covariances[before] @ matrix.T
            gain = covariances[before] @ matrix.T @ torch.linalg.inv(forecast)
            smoothed = means[before] + gain @ (smoothed - matrix @ means[before])
        assert_close(outputs["smoothed"][0, k], smoothed, rtol=1e-7, atol=1e-8)
    assert outputs["smoothed"][:, :lag].isnan().all()


def test_gauss_newton_ends_where_the_gradient_of_the_cost_vanishes():
    dynamics = Lorenz96(8)
    record = record_of(dynamics, ObservingSystem(std=DOUBLE + 0.5), 5, steps=lambda k: 3 if k else 0)
    method = method_by_name("iterated-kalman-smoother", lag=2, c2=2.0, tolerance=1e-10, iterations=60).prepare(record)
    _, state = run(method, replace(record, observation=record.observation[:, :4], steps=record.steps[:4]))
    ahead = method.forecast(state, dynamics, 3)
    observation = record.observation[:, 4]
    after = method.analyse(ahead, observation, ~observation.isnan(), record.observing)
    begin = after["begin"].clone().requires_grad_()
    distance = begin - ahead["begin"]
    prior = (distance[:, None] @ torch.linalg.inv(ahead["covariance"]) @ distance[..., None]).sum()
    cost = 0.5 * prior + 0.5 * ((dynamics.advance(begin, 6) - observation) / 0.5).square().sum()
    (gradient,) = torch.autograd.grad(cost, begin)
    assert float(gradient.abs().max()) < 1e-6 * float(observation.abs().max())
    assert not after["unconverged"].any()


def test_second_order_keeps_a_filter_that_the_first_order_loses():
    """A short run from the climate: without the term, P falls below the true error and stays there."""
    record = record_of(Lorenz96(20), ObservingSystem(std=DOUBLE + 1.0), 250, lanes=4, steps=lambda k: 1 if k else 0)

    def rmse(name, **settings):
        outputs, _ = run(method_by_name(name, **settings).prepare(record), record)
        return float((outputs["analysis"] - record.truth)[:, 100:].square().mean().sqrt())

    assert rmse("second-order-kalman", c2=8.0) < 0.3 < rmse("extended-kalman", inflation=1.0)


@pytest.mark.parametrize("value", [-1.0, 0.0, math.nan, "best"])
@pytest.mark.parametrize("name", NAMES)
def test_a_factor_is_positive_or_to_be_tuned(name, value):
    with pytest.raises(ValueError, match=r"c2=.*: expected 'tune' or a positive finite number"):
        method_by_name(name, c2=value)


def test_a_lag_needs_a_longer_record():
    record = record_of(linear(model()), error_and_matrix("scalar")[0], 4)
    assert len(record.observation[0, 0]) == SITES
    with pytest.raises(ValueError, match="lag=4: the record has 4 times; expected more than the lag"):
        method_by_name("iterated-kalman-smoother", lag=4, c2=1.0).prepare(record)


# --- covariances rebuilt from the past ---


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_linear_model_the_second_order_changes_no_covariance_from_the_state(kind):
    record = record_of(linear(model()), error_and_matrix(kind)[0], 7, sites=Sites.random(1, 3))
    settings = {"depth": 4, "epsilon": 1.5, "inflation": 1.1}
    plain, second = (
        run(method_by_name("state-covariance", c2=c2, **settings).prepare(record), record)[0] for c2 in (0.0, 8.0)
    )
    for name, value in plain.items():
        assert_close(second[name], value, rtol=1e-9, atol=1e-9)


def test_a_rebuilt_covariance_is_that_of_the_filter_along_the_past():
    dynamics, observing = Lorenz96(SITES), ObservingSystem(std=DOUBLE + 1.0)
    record = record_of(dynamics, observing, 6)
    kalman = method_by_name("second-order-kalman", c2=8.0).prepare(record)
    state = {
        "x": dynamics.climatology(range(2), 3, like=DOUBLE)[:, 0],
        "covariance": torch.eye(SITES).double().expand(2, -1, -1),
    }
    start, past, seen = state["covariance"], [], []
    for k in range(5):
        past.append(state["x"])
        seen.append(~record.observation[:, k].isnan())
        state = kalman.analyse(state, state["x"], seen[-1], observing)  # without an innovation
        state = kalman.forecast(state, dynamics, 1)
    steps = [1] * 5
    most = kalman.climate[1].trace()
    rebuilt = rebuilt_covariance(views_of(dynamics, steps), past, steps, seen, start, observing, 8.0, most)
    assert_close(rebuilt, state["covariance"])


def test_the_past_leads_to_the_state_and_stays_near_the_climate():
    dynamics = Lorenz96(SITES, timestep=0.01)
    x = dynamics.climatology(range(3), 1, like=DOUBLE)[:, 0]
    climate = (DOUBLE + 2.3, DOUBLE + 3.6)
    steps = [1, 2, 0, 1]
    past = past_of(views_of(dynamics, steps), x, steps, climate)
    ahead = [*past[1:], x]
    for before, after, count in zip(past, ahead, steps, strict=True):
        assert_close(dynamics.advance(before, count), after, rtol=1e-5, atol=1e-5)
    long = torch.stack(past_of(views_of(dynamics, [9] * 60), x, [9] * 60, climate))
    assert long.isfinite().all()
    assert long.min() >= 2.3 - 4 * 3.6
    assert long.max() <= 2.3 + 4 * 3.6
    assert ((long == long.min()) | (long == long.max())).any()  # clipped somewhere


def test_a_second_order_of_a1_is_refused():
    with pytest.raises(ValueError, match=r"c2=2\.0 and algorithm='A1'"):
        method_by_name("state-covariance", algorithm="A1", c2=2.0)
    with pytest.raises(ValueError, match="c2=-1"):
        method_by_name("state-covariance", c2=-1.0)


def test_triangular_roots_where_there_is_one():
    root = normals(4, 6, 6)
    covariance = root.mT @ root
    covariance[1] = root[1, :3].mT @ root[1, :3]  # of rank three: no Cholesky factor
    rows = triangular_root_of(covariance)
    assert_close(rows.mT @ rows, covariance, rtol=1e-9, atol=1e-9)
