"""Surrogates as models, and the gradient steps that fit them."""

import pickle

import pytest
import torch
from test_core_corrected import DOUBLE, lorenz96_terms, random_weights, states

import xdan
from xdan.core.dynamics import CorrectedDynamics, SurrogateDynamics, dynamics_from_json, dynamics_to_json
from xdan.core.learning.model_fit import ModelFit


def exact(sites=12, timestep=0.05):
    """A surrogate that is Lorenz-96."""
    return SurrogateDynamics(lorenz96_terms(xdan.LocalPolynomial(5, 2), 8.0), xdan.Ring(sites), timestep)


def test_a_surrogate_steps_by_runge_kutta():
    x = states(3)
    assert torch.allclose(exact().advance(x, 4), xdan.Lorenz96(12).advance(x, 4))
    assert torch.allclose(exact(20).advance(states(2, 20), 1), xdan.Lorenz96(20).advance(states(2, 20), 1))
    after, along = exact().advance_along(x, states(3, seed=4)[:, None], 2)
    expected = xdan.Lorenz96(12).advance_along(x, states(3, seed=4)[:, None], 2)
    assert torch.allclose(after, expected[0])
    assert torch.allclose(along, expected[1])


def test_starts_have_the_mean_and_deviation_of_the_climate():
    network = xdan.LocalPolynomial()
    network.normalise(2.0, 3.0, 1.0)
    noise = torch.tensor([[1.0, -1.0, 0.0]])
    assert torch.equal(SurrogateDynamics(network, xdan.Ring(3), 0.1).rest(noise), torch.tensor([[5.0, -1.0, 2.0]]))
    space = xdan.TwoScaleLorenz96(sites=4, fast=1).space
    several = xdan.LocalPolynomial(1, 1, space)
    several.normalise([1.0, 10.0], [2.0, 3.0], [1.0, 1.0])
    start = SurrogateDynamics(several, space, 0.01).rest(torch.ones(1, 8))
    assert torch.equal(start, torch.tensor([[3.0] * 4 + [13.0] * 4]))


def test_identity_and_description():
    model = exact()
    assert pickle.loads(pickle.dumps(model)) == model
    assert exact(timestep=0.025) != model
    assert SurrogateDynamics(random_weights(xdan.LocalPolynomial(5, 2)), xdan.Ring(12), 0.05) != model
    with pytest.raises(ValueError, match="open_dynamics"):
        dynamics_from_json(dynamics_to_json(model))


def test_an_ensemble_of_the_exact_surrogate_is_the_models():
    ds = xdan.twin(xdan.Lorenz96(12), cycles=12, trajectories=2, seed=0, dtype="float64").compute()
    words = {"members": 8, "inflation": 1.02, "climatology": "record", "progress": False}
    one, other = ds.dan.baseline("etkf", **words), ds.dan.baseline("etkf", dynamics=exact(), **words)
    assert abs(one.analysis - other.analysis).max() < 1e-9


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: SurrogateDynamics(xdan.QuadraticCNN(), 12, 0.05), TypeError, "expected the space"),
        (lambda: SurrogateDynamics(xdan.QuadraticCNN(), xdan.Ring(12), 0.0), ValueError, "timestep"),
        (lambda: SurrogateDynamics(xdan.QuadraticCNN(), xdan.Plane((4, 4)), 0.1), ValueError, "one field on a ring"),
        (lambda: SurrogateDynamics("cnn", xdan.Ring(12), 0.1), TypeError, "expected a tendency network"),
    ],
)
def test_what_is_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_the_gradient_is_that_of_finite_differences():
    network = random_weights(xdan.LocalPolynomial(3, 1), 0.1).double()
    live = CorrectedDynamics.trained_with(xdan.Lorenz96(8), network)
    fit = ModelFit(live, 2, torch.full((8,), 2.0, dtype=DOUBLE), 1e-3)
    stretch = states(3 * 4, 8).reshape(3, 4, 8)
    fit.loss(stretch).mean().backward()
    gradient, h = network.coefficients.grad.clone(), 1e-6
    for term in (0, 2):
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                network.coefficients[0, term] += sign * h
                losses.append(float(fit.loss(stretch).mean()))
                network.coefficients[0, term] -= sign * h
        assert float(gradient[0, term]) == pytest.approx((losses[0] - losses[1]) / (2 * h), rel=1e-4)


def test_steps_find_the_missing_forcing():
    truth, network = xdan.Lorenz96(8, forcing=8.5), xdan.LocalPolynomial(1, 0)
    fit = ModelFit(CorrectedDynamics.trained_with(xdan.Lorenz96(8), network), 1, torch.ones(8), 0.05)
    x = states(16, 8).float()
    stretch = torch.stack([x, truth.advance(x, 1), truth.advance(x, 2)], 1)
    for step in range(200):
        fit.step(stretch, 1 - step / 200)
    assert network.coefficients.item() == pytest.approx(0.5, abs=1e-3)
    assert float(fit.validate(stretch).max()) < 1e-4


def test_gradients_that_are_not_finite_end_the_fit():
    network = xdan.LocalPolynomial(1, 0)
    fit = ModelFit(CorrectedDynamics.trained_with(xdan.Lorenz96(8), network), 1, torch.ones(8), 0.05)
    stretch = torch.full((2, 2, 8), torch.inf)
    for _ in range(49):
        fit.step(stretch, 1.0)
    with pytest.raises(RuntimeError, match="no finite gradient in 50 steps"):
        fit.step(stretch, 1.0)
    assert bool(network.coefficients.isfinite().all())
