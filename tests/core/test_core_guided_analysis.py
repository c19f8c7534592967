"""Derivatives of analyses beside a Kalman filter, against the filter and finite differences of the whole analysis."""

import pytest
import torch
from test_core_kalman_network import network as in_training
from test_core_methods import DOUBLE, error_and_matrix, normals
from torch.testing import assert_close

from xdan.core.dynamics import CustomDynamics, Lorenz96
from xdan.core.guided_analysis import CarriedCovariance, GuidedAnalysis, RebuiltCovariance
from xdan.core.methods import method_of
from xdan.core.methods.kalman import kalman_gain
from xdan.core.observing import ObservingSystem
from xdan.core.sensitivity import (
    Points,
    analysis_covariance,
    composite_marginal_gain,
    forecast_derivative,
    marginal_gain,
    mixed_derivative,
    regressed_covariance,
    sites_that_matter,
    whole_marginal_gain,
)

SITES, B = 8, 2
UNIT = ObservingSystem(std=DOUBLE + 1.0)
LORENZ = Lorenz96(SITES)


def network(**settings):
    return in_training(**settings).eval()


def states():
    return LORENZ.climatology(range(B), 0, like=DOUBLE)[:, 0]


def seen(partly=False):
    observed = torch.ones(B, SITES, dtype=torch.bool)
    if partly:
        observed[0, 2] = observed[1, 5] = False
    return observed


def rebuilding(dynamics=LORENZ, **settings):
    """A method whose covariance is rebuilt over four intervals."""
    return method_of(network(past=4, **settings)).bound(dynamics)


def rebuilt(method, x, observed, observing=UNIT):
    return method.covariance_at(x, None, observed, observing, 1)


def central(function, x, direction, step=1e-5):
    """Central difference: at 1e-5 rounding (1e-16 / 1e-5) and the third derivative (1e-10) are alike."""
    return (function(x + step * direction) - function(x - step * direction)) / (2 * step)


def unit(site):
    direction = torch.zeros(SITES, dtype=torch.float64)
    direction[site] = 1.0
    return direction


def points_of(method, x, zeta=None, observed=None, memory=None):
    covariance = rebuilt(method, x, seen() if observed is None else observed)
    return Points(x, torch.zeros_like(x) if zeta is None else zeta, memory, covariance)


@pytest.mark.parametrize("kind", ["scalar", "full"])
@pytest.mark.parametrize("partly", [False, True])
def test_a_silent_network_has_the_covariance_of_the_filter(kind, partly):
    observing = UNIT if kind == "scalar" else ObservingSystem(covariance=_correlated())
    method, x, observed = rebuilding(quiet=True), states(), seen(partly)
    with torch.no_grad():
        forecast = method._rebuilt(x, 1, observed, observing)
        gain = kalman_gain(x, forecast, observed, observing)
        expected = forecast - gain @ forecast  # (I - K H) P_f, H the identity
        points = Points(x, torch.zeros_like(x), None, rebuilt(method, x, observed, observing))
        covariance = analysis_covariance(method.network, points)
    assert_close(covariance, expected, rtol=0, atol=1e-10)
    onto_state = observing.project_innovation(torch.eye(SITES).double(), observed[:1].expand(SITES, -1), x[:1]).mT
    assert_close(covariance[0] @ onto_state, gain[0], rtol=0, atol=1e-10)


def _correlated():
    root = torch.eye(SITES, dtype=torch.float64) + 0.2 * normals(SITES, SITES)
    return root @ root.mT


@pytest.mark.parametrize("past", [0, 4])
def test_it_is_the_analysis_of_the_method(past):
    """K d is P_a zeta, whatever is observed."""
    observing, _ = error_and_matrix("full")
    sites = observing.covariance.shape[0]
    dynamics = Lorenz96(sites)
    method = method_of(network(past=past)).bound(dynamics)
    x = dynamics.climatology(range(B), 0, like=DOUBLE)[:, 0]
    observation, memory = x + normals(B, sites), normals(B, 2, sites, seed=1)
    observed = torch.rand(B, sites, generator=torch.Generator().manual_seed(1)) < 0.7
    root = 0.3 * normals(B, sites, sites, seed=2)
    state = {"x": x, "memory": memory, "covariance": root @ root.mT, "steps": torch.ones(B, dtype=torch.int64)}
    with torch.no_grad():
        after = method.analyse(state, observation, observed, observing)
        covariance = method.covariance_at(x, after.get("covariance"), observed, observing, 1)
        zeta = observing.project_innovation(observation - x, observed, x)
        analysis, remembered = GuidedAnalysis(method.network, covariance)(x, zeta, memory)
    assert_close(analysis, after["x"], rtol=0, atol=1e-10)
    assert_close(remembered, after["memory"], rtol=0, atol=1e-10)


def test_columns_are_differences_of_the_whole_analysis():
    method, x, zeta, memory = rebuilding(), states(), normals(B, SITES), normals(B, 2, SITES, seed=1)
    state = {"x": x, "memory": memory, "steps": torch.ones(B, dtype=torch.int64)}

    def analysis(z):
        return method.analyse(state, x + z, seen(), UNIT)["x"]  # R is the identity: zeta is y - x

    with torch.no_grad():
        covariance = analysis_covariance(method.network, points_of(method, x, zeta, memory=memory))
        for site in (0, 3):
            assert_close(covariance[..., site], central(analysis, zeta, unit(site)), rtol=1e-7, atol=1e-9)


def test_the_rebuilt_covariance_moves_with_the_forecast():
    method, x = rebuilding(), states()
    covariance = rebuilt(method, x, seen(partly=True))

    def matrices(at):
        return rebuilt(method, at, seen(partly=True)).matrices()

    direction = normals(B, SITES)
    assert_close(covariance.along(direction), central(matrices, x, direction), rtol=1e-7, atol=1e-9)
    assert_close(covariance.along(unit(2)), central(matrices, x, unit(2)), rtol=1e-7, atol=1e-9)
    assert covariance.along(unit(2)).abs().max() > 1e-3


def test_marginal_gains_are_differences_of_the_covariance():
    method, x, zeta = rebuilding(), states(), normals(B, SITES)

    def covariance(at):
        return analysis_covariance(method.network, points_of(method, at, zeta))

    def analysis(at):
        return GuidedAnalysis(method.network, rebuilt(method, at, seen()))(at, zeta, None)[0]

    with torch.no_grad():
        points = points_of(method, x, zeta)
        for site in (1, 6):
            gain = marginal_gain(method.network, points, site)
            assert_close(gain, central(covariance, x, unit(site)), rtol=1e-6, atol=1e-8)
            slope = forecast_derivative(method.network, points, site)
            assert_close(slope, central(analysis, x, unit(site)), rtol=1e-6, atol=1e-8)
        v, u = normals(B, SITES, seed=3), normals(B, SITES, seed=4)
        whole = torch.einsum("bijl,bj,bl->bi", whole_marginal_gain(method.network, points), v, u)
        assert_close(mixed_derivative(method.network, points, v, u), whole)


def test_a_carried_covariance_is_held_fixed():
    net, x, zeta = network(), states(), normals(B, SITES)
    root = 0.3 * normals(B, SITES, SITES, seed=2)
    points = Points(x, zeta, normals(B, 2, SITES, seed=1), CarriedCovariance(root @ root.mT))
    with torch.no_grad():
        gain = marginal_gain(net, points, 3)
        moved = [
            analysis_covariance(net, Points(x + step * unit(3), zeta, points.memory, points.covariance))
            for step in (1e-5, -1e-5)
        ]
    assert_close(gain, (moved[0] - moved[1]) / 2e-5, rtol=1e-6, atol=1e-8)
    assert sites_that_matter(net, 100) == 100


def test_samples_of_a_state_share_its_covariance():
    """A silent network is linear in zeta, so that regressions are exact; P is rebuilt once for each state."""
    method, x, calls = rebuilding(quiet=True, memory=0), states(), []
    unwrapped = method._rebuilt
    method._rebuilt = lambda at, *rest: calls.append(len(at)) or unwrapped(at, *rest)
    samples = normals(B, 12, SITES)
    with torch.no_grad():
        points = points_of(method, x)
        covariance = regressed_covariance(method.network, points, samples)
        assert_close(covariance, points.covariance.matrices(), rtol=0, atol=1e-10)
        assert calls == [B]
        slopes = composite_marginal_gain(method.network, points, samples, 4)
        assert calls == [B, B]
        assert_close(slopes, marginal_gain(method.network, points, 4), rtol=0, atol=1e-9)
    every = points.sampled(samples).at(torch.tensor([13, 0]))
    assert_close(every.covariance.matrices(), points.covariance.matrices()[[1, 0]])
    with pytest.raises(ValueError, match="expected one for all points"):
        every.covariance.along(normals(B, SITES))


@pytest.mark.parametrize("past", [0, 4])
def test_covariances_move_with_the_ring(past):
    turn = torch.arange(SITES).roll(3)
    method, x, observed = method_of(network(past=past)).bound(LORENZ), states(), seen(partly=True)
    root = normals(B, SITES, SITES, seed=2)
    covariance = method.covariance_at(x, root @ root.mT, observed, UNIT, 1)
    moved = covariance.permuted(turn)
    assert_close(moved.matrices(), covariance.matrices()[:, turn][:, :, turn], rtol=0, atol=1e-9)
    assert_close(moved.at(torch.tensor([1])).matrices(), moved.matrices()[1:])
    taken = covariance.at(torch.tensor([1])).permuted(turn)
    assert_close(taken.matrices(), moved.matrices()[1:])


def test_single_precision_is_rebuilt_in_double():
    method, x = rebuilding(), states()
    fine, coarse = rebuilt(method, x, seen()), rebuilt(method, x.float(), seen(), UNIT.to(torch.float32, "cpu"))
    assert coarse.matrices().dtype == torch.float32
    assert_close(coarse.matrices().double(), fine.matrices(), rtol=1e-4, atol=1e-6)
    assert_close(coarse.along(unit(1).float()).double(), fine.along(unit(1)), rtol=1e-3, atol=1e-5)


def test_a_model_without_a_second_order_tendency_is_differentiated():
    """Its second-order term is taken along a root of P."""
    plain = CustomDynamics(LORENZ.tendency, state={"x": SITES}, timestep=0.05)
    x = states()
    one, other = (rebuilt(rebuilding(model), x, seen()) for model in (LORENZ, plain))

    def matrices(at):
        return rebuilt(rebuilding(plain), at, seen()).matrices()

    assert_close(other.along(unit(2)), central(matrices, x, unit(2)), rtol=1e-5, atol=1e-7)
    scale = one.along(unit(2)).abs().max()
    assert (one.along(unit(2)) - other.along(unit(2))).abs().max() < 0.2 * scale  # quadratures of one step differ


def test_what_has_no_gain_is_refused():
    with pytest.raises(ValueError, match=r"lag=2 corrects a state 2 intervals back.* expected lag=0; network.with"):
        method_of(network(lag=2)).check_gains(LORENZ)
    moving = CustomDynamics(tendency=lambda x, t: torch.cos(t) - x, state={"x": 6}, timestep=0.05)
    with pytest.raises(ValueError, match="expected one that does not, or past=0"):
        method_of(network(past=2)).check_gains(moving)
    with pytest.raises(ValueError, match="expected the one that a run kept"):
        method_of(network()).covariance_at(states(), None, seen(), UNIT, 1)
    corner = RebuiltCovariance(0.0 * states(), seen(), UNIT, lambda x, *_: torch.diag_embed(x.abs().sqrt()))
    with pytest.raises(ValueError, match="not finite at some state: expected states that the model can follow"):
        corner.along(unit(0))
