"""Tendency networks and corrected models: closed forms, derivatives, other grids, and what is refused."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import xdan
from xdan.core.dynamics import CorrectedDynamics, dynamics_from_json, dynamics_to_json
from xdan.core.learning.increments import FOLDS, NormalEquations
from xdan.core.tendencies import TendencyNetwork, tendency_of_shapes

DOUBLE = torch.float64


def states(count, size=12, seed=0):
    return 4 * torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE) + 2


def random_weights(network, scale=0.3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return network


def lorenz96_terms(network, forcing):
    """The coefficients with which a quadratic polynomial of five points is the tendency of Lorenz-96."""
    with torch.no_grad():
        network.coefficients[0, 0] = forcing
        network.coefficients[0, 1 + 2] = -1.0
        pairs = [(i, j) for i in range(5) for j in range(i, 5)]
        network.coefficients[0, 6 + pairs.index((1, 3))] = 1.0  # x_{n-1} x_{n+1}
        network.coefficients[0, 6 + pairs.index((0, 1))] = -1.0  # x_{n-2} x_{n-1}
    return network


@pytest.mark.parametrize("sites", [4, 7, 40])
def test_a_quadratic_polynomial_holds_lorenz96(sites):
    network = lorenz96_terms(xdan.LocalPolynomial(kernel=5, degree=2), 8.0).double()
    x = states(3, sites)
    assert torch.allclose(network(x), xdan.Lorenz96(sites).tendency(x))


def test_the_normalisation_is_that_of_the_state():
    network = lorenz96_terms(xdan.LocalPolynomial(kernel=5, degree=2), 8.0)
    network.normalise(2.0, 4.0, 3.0)
    x = states(3)
    expected = 3.0 * xdan.Lorenz96(12).tendency((x - 2) / 4)
    assert torch.allclose(network.double()(x), expected)


def test_a_quadratic_layer_holds_products():
    network = random_weights(xdan.QuadraticCNN(filters=2, blocks=0, kernel=3)).double()
    x = states(4, 9)
    one, two = network(x), network(2 * x)
    zero = network(torch.zeros_like(x))
    third = network(3 * x)
    # A polynomial of degree two: its third differences vanish.
    assert torch.allclose(third - 3 * two + 3 * one - zero, torch.zeros_like(x), atol=1e-10)
    assert not torch.allclose(two - 2 * one + zero, torch.zeros_like(x), atol=1e-3)


@pytest.mark.parametrize(
    "make", [lambda: xdan.LocalPolynomial(5, 2), lambda: xdan.QuadraticCNN(filters=3, blocks=2, kernel=5)]
)
def test_every_place_is_treated_alike(make):
    network = random_weights(make()).double()
    x = states(3, 11)
    assert torch.allclose(network(x.roll(4, -1)), network(x).roll(4, -1))


@pytest.mark.parametrize("make", [lambda s: xdan.LocalPolynomial(3, 2, s), lambda s: xdan.QuadraticCNN(3, 3, space=s)])
def test_a_ring_is_a_plane_of_one_row(make):
    plane = xdan.StateSpace(xdan.Field("x", xdan.Plane((1, 9))))
    on_ring, on_plane = random_weights(make(None)).double(), random_weights(make(plane)).double()
    x = states(2, 9)
    assert torch.allclose(on_ring(x), on_plane(x))


def test_a_plane_is_padded_by_its_geometry():
    space = xdan.StateSpace(xdan.Field("x", xdan.Plane((5, 6))))
    network = xdan.LocalPolynomial(3, 1, space)
    with torch.no_grad():
        network.coefficients[0, 1 + 3 * 0 + 2] = 1.0  # the value one row before, one column after
    x = torch.arange(30.0).reshape(1, 30)
    assert torch.equal(network(x).reshape(5, 6), x.reshape(5, 6).roll((1, -1), (0, 1)))


def test_several_fields_have_their_own_scales():
    space = xdan.TwoScaleLorenz96(sites=4, fast=2).space
    network = xdan.LocalPolynomial(1, 0, space)
    network.normalise([1.0, 0.0], [2.0, 1.0], [3.0, 5.0])
    torch.nn.init.ones_(network.coefficients)
    assert torch.equal(network(torch.zeros(1, 12)), torch.tensor([[3.0] * 4 + [5.0] * 8]))


@given(offset=st.floats(-2, 2), steps=st.integers(1, 6))
def test_a_constant_correction_is_another_forcing(offset, steps):
    network = xdan.LocalPolynomial(degree=0, kernel=1)
    torch.nn.init.constant_(network.coefficients, offset)
    exact = network.coefficients.item()
    corrected, other = CorrectedDynamics(xdan.Lorenz96(12), network), xdan.Lorenz96(12, forcing=8.0 + exact)
    x = states(3)
    assert torch.allclose(corrected.advance(x, steps), other.advance(x, steps), rtol=1e-12)
    assert torch.allclose(corrected.retreat(x, 1), other.retreat(x, 1), rtol=1e-12)


class Stepped(xdan.Dynamics, pure=True):
    """dx/dt = -x by its exact step."""

    name = "stepped-decay"
    dims = ("x",)

    def __init__(self, sites=5, timestep=0.1):
        self.sites, self.timestep = sites, timestep
        self.space = xdan.StateSpace(xdan.Field("x", xdan.Ring(sites)))

    def step(self, x):
        return x * torch.exp(torch.tensor(-self.timestep, dtype=x.dtype))


def test_a_model_with_a_step_is_corrected_to_second_order():
    network = xdan.LocalPolynomial(degree=0, kernel=1)
    torch.nn.init.constant_(network.coefficients, 1.0)  # dx/dt = 1 - x, x = 1 + (x0 - 1) e^-t
    x = torch.full((1, 5), 3.0, dtype=DOUBLE)
    exact = 1 + 2 * torch.exp(torch.tensor(-1.0, dtype=DOUBLE))
    errors = []
    for count in (5, 10):
        corrected = CorrectedDynamics(Stepped(timestep=1.0 / count), network)
        errors.append(float((corrected.advance(x, count) - exact).abs().max()))
    assert 3.8 < errors[0] / errors[1] < 4.2
    with pytest.raises(ValueError, match="cannot be integrated backward"):
        corrected.retreat(x, 1)


class EulerLorenz96(xdan.Lorenz96):
    """Lorenz-96 whose `advance` is Euler's, and whose `step` is not."""

    def advance(self, x, steps):
        for _ in range(steps):
            x = x + self.timestep * self.tendency(x)
        return x


class EulerDecay(xdan.CustomDynamics):
    """A tendency that is stepped by Euler's method."""

    def step(self, x):
        return x + self.timestep * self.tendency(x)


def test_a_correction_of_zero_leaves_the_steps_of_the_model():
    x = states(3)
    with pytest.raises(ValueError, match=r"advance\(\).*over 2 steps is not what two calls of step\(\) give"):
        CorrectedDynamics(EulerLorenz96(12), xdan.LocalPolynomial())
    of_tendency = xdan.CustomDynamics(lambda x: -x, state=xdan.Ring(12), timestep=0.1)
    for model in (EulerDecay(lambda x: -x, state=xdan.Ring(12), timestep=0.1), of_tendency, xdan.Lorenz96(12)):
        corrected = CorrectedDynamics(model, xdan.LocalPolynomial())
        assert torch.allclose(corrected.advance(x, 2), model.advance(x, 2), rtol=1e-12)


def test_time_reaches_the_model():
    forced = xdan.CustomDynamics(lambda x, t: t + 0 * x, state=xdan.Ring(4), timestep=0.5)
    network = xdan.LocalPolynomial(degree=0, kernel=1)
    torch.nn.init.constant_(network.coefficients, 1.0)
    corrected = CorrectedDynamics(forced, network).starting_at(2.0)
    assert not corrected.autonomous
    x = corrected.advance(torch.zeros(1, 4, dtype=DOUBLE), 2)  # integral of t + 1 from 2 to 3
    assert torch.allclose(x, torch.full((1, 4), 3.5, dtype=DOUBLE))


@pytest.mark.parametrize(
    "network", [xdan.LocalPolynomial(5, 2), xdan.QuadraticCNN(filters=3, blocks=1)], ids=["polynomial", "cnn"]
)
def test_derivatives_are_those_of_finite_differences(network):
    corrected = CorrectedDynamics(xdan.Lorenz96(12), random_weights(copy.deepcopy(network), 0.1))
    x, d = states(2), states(4, seed=3).reshape(2, 2, 12)
    after, pushed = corrected.advance_along(x, d, 3)
    assert torch.allclose(after, corrected.advance(x, 3))
    h = 1e-6
    for number in range(2):
        ahead, behind = (corrected.advance(x + sign * h * d[:, number], 3) for sign in (1, -1))
        assert torch.allclose(pushed[:, number], (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-6)


def test_batches_dtypes_and_leading_axes():
    corrected = CorrectedDynamics(xdan.Lorenz96(12), random_weights(xdan.QuadraticCNN(filters=3)))
    x = states(6).reshape(2, 3, 12)
    together = corrected.advance(x, 2)
    assert torch.allclose(together[1, 2], corrected.advance(x[1, 2], 2))
    single = corrected.advance(x.float(), 2)
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), together, rtol=1e-4, atol=1e-4)


def test_training_the_network_further_leaves_the_model_alone():
    network = xdan.LocalPolynomial(degree=1)
    corrected = CorrectedDynamics(xdan.Lorenz96(12), network)
    before, known = corrected.advance(states(1), 1), corrected.config()
    torch.nn.init.ones_(network.coefficients)
    assert torch.equal(corrected.advance(states(1), 1), before)
    assert corrected.config() == known
    assert pickle.loads(pickle.dumps(corrected)) == corrected
    assert CorrectedDynamics(xdan.Lorenz96(12), network) != corrected


def test_other_ring_lengths():
    network = random_weights(xdan.LocalPolynomial(3, 1))
    short, long = (CorrectedDynamics(xdan.Lorenz96(n), network) for n in (6, 12))
    x = states(1, 6)
    twice = torch.cat([x, x], -1)
    assert torch.allclose(long.advance(twice, 2), torch.cat([short.advance(x, 2)] * 2, -1))


def test_climatology_and_model_error_pass_on():
    model = xdan.Lorenz96(6).with_climatology(states(5, 6)).with_model_error(0.1)
    corrected = CorrectedDynamics(model, xdan.LocalPolynomial())
    assert corrected.given_climate is model.given_climate
    assert corrected.model_error is model.model_error
    assert corrected.model.given_climate is None
    assert torch.equal(corrected.distances(torch.arange(2)), model.distances(torch.arange(2)))
    assert corrected.spin_up_time == model.spin_up_time


def test_a_description_has_a_digest_and_needs_a_store():
    corrected = CorrectedDynamics(xdan.Lorenz96(6), xdan.LocalPolynomial(), {"verb": "by hand"})
    description = dynamics_to_json(corrected)
    assert len(description["parameters"]["network"]["digest"]) == 64
    assert "provenance" not in description["parameters"]
    with pytest.raises(ValueError, match=r"store of their own: pass dynamics=xdan.open_dynamics"):
        dynamics_from_json(description)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: CorrectedDynamics(8, xdan.LocalPolynomial()), TypeError, "expected an xdan Dynamics"),
        (lambda: CorrectedDynamics(xdan.Lorenz96(8), xdan.ResidualCNN()), TypeError, "expected a tendency network"),
        (
            lambda: CorrectedDynamics(xdan.TwoScaleLorenz96(), xdan.LocalPolynomial()),
            ValueError,
            r"one field on a ring, and the states have the fields \['U', 'V'\]",
        ),
        (
            lambda: CorrectedDynamics(xdan.Lorenz96(8), xdan.LocalPolynomial(1, 1, xdan.TwoScaleLorenz96().space)),
            ValueError,
            "expected one space",
        ),
        (
            lambda: CorrectedDynamics(
                CorrectedDynamics(xdan.Lorenz96(8), xdan.LocalPolynomial()), xdan.LocalPolynomial()
            ),
            ValueError,
            "is corrected already",
        ),
        (lambda: CorrectedDynamics(xdan.Lorenz96(8), broken()), ValueError, "not finite"),
        (lambda: CorrectedDynamics(xdan.Lorenz96(8), xdan.LocalPolynomial(), {1: set()}), TypeError, "plain JSON"),
        (lambda: xdan.LocalPolynomial(kernel=4), ValueError, "odd"),
        (lambda: xdan.LocalPolynomial(degree=7), ValueError, "degree=7"),
        (lambda: xdan.LocalPolynomial(kernel=21, degree=4), ValueError, "at most 2000"),
        (lambda: xdan.QuadraticCNN(filters=0), ValueError, "filters=0"),
        (lambda: xdan.LocalPolynomial().normalise(0.0, 0.0, 1.0), ValueError, "deviations above 0"),
    ],
)
def test_what_is_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


def broken():
    network = xdan.LocalPolynomial()
    torch.nn.init.constant_(network.coefficients, float("nan"))
    return network


def test_shapes_are_checked_before_memory_is_taken():
    with pytest.raises(ValueError, match="do not fit"):
        tendency_of_shapes("quadratic-cnn", {"filters": 9_000, "kernel": 9_999}, {"first": (3, 5)})
    with pytest.raises(ValueError, match="unknown"):
        tendency_of_shapes("os.system", {}, {})
    with pytest.raises(ValueError, match="has no parameters"):
        tendency_of_shapes("local-polynomial", {"sites": 3}, {})
    assert issubclass(xdan.LocalPolynomial, TendencyNetwork)


def test_least_squares_find_a_known_tendency():
    truth = lorenz96_terms(xdan.LocalPolynomial(kernel=5, degree=2), 0.7).double()
    x, tau = states(400), torch.full((400,), 0.05, dtype=DOUBLE)
    end = x + 0.01 * states(400, seed=5)
    increment = (tau[:, None] * (truth(x) + truth(end)) / 2).detach()
    network, group = xdan.LocalPolynomial(kernel=5, degree=2).double(), torch.arange(400) % FOLDS
    increment[7], x[9] = torch.nan, torch.inf  # lost trajectories
    equations = NormalEquations.of_increments(network, x, end, increment, tau, group)
    assert float(equations.count.sum()) == 398 * 12
    coefficients, penalty = equations.coefficients()
    assert penalty < 1e-6
    assert torch.allclose(coefficients, truth.coefficients.detach(), atol=1e-5)
    assert float(equations.standard_errors(penalty).max()) < 1e-5


def test_noise_is_shrunk_and_known():
    generator = torch.Generator().manual_seed(2)
    errors, values = [], []
    x, tau = states(4000, 5), torch.ones(4000, dtype=DOUBLE)
    network, group = xdan.LocalPolynomial(kernel=1, degree=1).double(), torch.arange(4000) % FOLDS
    network.normalise(2.0, 4.0, 1.0)
    for _ in range(30):
        noise = torch.randn(4000, 5, generator=generator, dtype=DOUBLE)
        equations = NormalEquations.of_increments(network, x, x, noise, tau, group)
        values.append(equations.coefficients(0.0)[0])
        errors.append(equations.standard_errors(0.0))
    spread = torch.stack(values).square().mean(0).sqrt()
    assert torch.allclose(spread, torch.full_like(spread, 20_000**-0.5), rtol=0.4)  # independent terms of size one
    assert torch.allclose(torch.stack(errors).square().mean(0).sqrt(), spread, rtol=0.35)
    plain = equations.coefficients(0.0)[0]
    chosen, penalty = equations.coefficients()
    assert float(chosen[0, 1].abs()) <= float(plain[0, 1].abs())
    assert penalty >= 0
