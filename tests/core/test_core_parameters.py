"""Parameters as tensors, in the state of a filter, in its likelihood, and in a smoother's least squares."""

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch

import xdan
from xdan.core.dynamics import Dynamics
from xdan.core.dynamics.parameters import check_read_at_every_step
from xdan.core.estimation.augmented import AugmentedDynamics, observing_augmented
from xdan.core.estimation.likelihood import FilterLikelihood, innovation_cost
from xdan.core.estimation.parameter_em import ExpectationMaximisation
from xdan.core.estimation.priors import check_parameter_derivatives, read_priors
from xdan.core.methods import Record, method_by_name, run
from xdan.core.observing import LinearOperator, ObservingSystem
from xdan.core.random import Purpose

DOUBLE = torch.float64


def number(value):
    return torch.tensor(value, dtype=DOUBLE)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


class Pushed(xdan.Dynamics):
    """x -> decay x + push, by a step of a user's class that works in place."""

    name = "pushed"
    dims = ("x",)
    spin_up_time = 0.0

    def __init__(self, decay=0.9, push=1.0, timestep=1.0, sites=2):
        self.decay, self.push, self.timestep, self.sites = decay, push, timestep, sites
        self.coordinates = {"x": xdan.Coordinate(tuple(range(sites)), {})}

    def step(self, x):
        x *= self.decay
        return x + self.push


class Cached(Pushed):
    """A model that does not read its parameter at every step."""

    name = "cached"

    def __init__(self, decay=0.9, push=1.0, timestep=1.0, sites=2):
        super().__init__(decay, push, timestep, sites)
        self.twice = 2 * push

    def step(self, x):
        return self.decay * x + self.twice


class Lazy(Pushed):
    """A model that computes something of its parameter when it is first read."""

    name = "lazy"

    @functools.cached_property
    def twice(self):
        return 2 * self.push

    def step(self, x):
        return self.decay * x + self.twice


class Seasonal(Pushed):
    """A model that depends on time."""

    name = "seasonal-push"

    def step(self, x, t):
        return self.decay * x + self.push * math.cos(t)


class ByFloats(Pushed):
    """A model that vmap cannot see through."""

    name = "by-floats"

    def step(self, x):
        return self.decay * x + math.sin(self.push)


def ring(x, forcing):
    return (x.roll(-1, -1) - x.roll(2, -1)) * x.roll(1, -1) - x + forcing


def custom(sites=6, **words):
    return xdan.CustomDynamics(ring, state={"x": sites}, timestep=0.05, parameters={"forcing": 8.0}, **words)


@pytest.mark.parametrize("shape", [(5,), (5, 6)])
def test_lorenz96_with_a_forcing_for_each_state_is_the_default_and_so_is_its_gradient(shape):
    model, x, weights = xdan.Lorenz96(sites=6), normal(5, 6), normal(5, 6, seed=1)
    forcing = (8 + normal(*shape, seed=2)).requires_grad_()
    x.requires_grad_()
    fast = model.advance_each(x, 3, {"forcing": forcing})
    slow = Dynamics.advance_each(model, x, 3, {"forcing": forcing})
    torch.testing.assert_close(fast, slow)
    for one, other in zip(*(torch.autograd.grad((y * weights).sum(), (forcing, x)) for y in (fast, slow)), strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(model.advance_each(x, 3, {"forcing": forcing}), slow)
        row = xdan.Lorenz96(sites=6, forcing=forcing[2].tolist()).advance(x[2:3], 3)
    torch.testing.assert_close(row[0], slow[2])


def test_a_class_derived_from_lorenz96_does_not_inherit_the_faster_way():
    class Damped(xdan.Lorenz96):
        name = "damped96"

        def __init__(self, sites=6, forcing=8.0, timestep=0.05, damping=1.0):
            super().__init__(sites, forcing, timestep)
            self.damping = damping

        def config(self):
            return {**super().config(), "damping": self.damping}

        def tendency(self, x):
            return super().tendency(x) + (1 - self.damping) * x

    priors = read_priors(Damped(), {"forcing": (7.0, 1.0), "damping": (1.0, 0.5)})
    x, forcing, damping = normal(2, 6), number([7.0, 8.0]), number([1.0, 0.5])
    each = Damped().advance_each(x, 3, {"forcing": forcing, "damping": damping})
    torch.testing.assert_close(each[1], Damped(damping=0.5).advance(x[1:], 3)[0])
    assert priors.sizes == (1, 1)


@pytest.mark.parametrize("shape", [(), (6,)])
def test_gradient_of_a_shared_forcing_is_that_of_differences(shape):
    model, x = xdan.Lorenz96(sites=6), normal(4, 6)
    forcing = torch.full(shape, 8.0, dtype=DOUBLE, requires_grad=True)
    function = lambda f: model.computing_with({"forcing": f}).advance(x, 2)  # noqa: E731
    assert torch.autograd.gradcheck(function, forcing)


@pytest.mark.parametrize(
    ("model", "name", "value"),
    [
        (xdan.Lorenz63(), "rho", 27.0),
        (xdan.TwoScaleLorenz96(sites=4, fast=2), "coupling", 0.8),
        (custom(), "forcing", 7.0),
        (Pushed(), "decay", 0.5),
        (ByFloats(), "push", 0.5),
        (Seasonal(), "push", 0.5),
    ],
)
def test_a_tensor_in_the_place_of_a_parameter_steps_as_the_constructor_says(model, name, value):
    check_read_at_every_step(model, {name: number(value)}, {name: number(1.1 * value)})
    assert model.with_parameters(**{name: value}).parameter_values()[name] == value


def test_gradient_reaches_the_parameters_of_the_two_scale_model_from_states_without_one():
    model, x = xdan.TwoScaleLorenz96(sites=4, fast=2), normal(3, 12)
    function = lambda c: model.computing_with({"coupling": c}).advance(x, 2)  # noqa: E731
    assert torch.autograd.gradcheck(function, number(0.9).requires_grad_())


def test_a_model_that_depends_on_time_goes_on_in_time_with_other_parameters():
    model = Seasonal().starting_at(3.0).from_step(2)
    x = normal(2, 2)
    changed = model.with_parameters(push=2.0)
    assert changed.model_time == model.model_time
    torch.testing.assert_close(model.advance_each(x, 2, {"push": number([2.0, 2.0])}), changed.advance(x, 2))


def test_what_was_set_on_a_model_goes_on_with_other_parameters():
    model = xdan.Lorenz96(sites=4).with_model_error(0.1).with_climatology(normal(3, 4))
    other = model.with_parameters(forcing=7)
    assert other.forcing == 7.0
    assert other.model_error is model.model_error
    assert other.given_climate is model.given_climate


def test_parameters_of_functions_are_in_description_and_fingerprint():
    seven, eight = custom().with_parameters(forcing=7.0), custom()
    assert eight.config()["parameters"] == {"forcing": 8.0}
    assert seven != eight
    assert eight.autonomous  # the second argument is no time
    with pytest.raises(TypeError, match="expected a mapping"):
        xdan.CustomDynamics(ring, state={"x": 4}, timestep=0.1, parameters=[8.0])
    fields = [xdan.Field("u", xdan.Ring(3)), xdan.Field("v", xdan.Ring(3))]

    def swing(state, t, weights):
        return {"u": weights[0] * state["v"] + t, "v": -weights[1] * state["u"]}

    model = xdan.CustomDynamics(swing, state=fields, timestep=0.1, parameters={"weights": [1.0, 2.0]})
    assert not model.autonomous
    mean, changed = number([1.0, 2.0]), number([1.5, 2.5])
    check_read_at_every_step(model, {"weights": mean}, {"weights": changed})


@pytest.mark.parametrize(
    ("model", "parameters", "message"),
    [
        (xdan.Lorenz96(), {"wind": (1.0, 1.0)}, "has no parameter 'wind': expected some of its real parameters"),
        (xdan.Lorenz96(), {"sites": (40.0, 1.0)}, "'sites' of the dynamics 'lorenz96' is 40, no real number"),
        (xdan.Lorenz96(), {"timestep": (0.05, 0.01)}, "belongs to the numerical scheme"),
        (xdan.Lorenz96(), {"forcing": (8.0, 0.0)}, "deviation of 'forcing' is 0: expected a positive number"),
        (xdan.Lorenz96(), {"forcing": (8.0, [1.0, 2.0])}, "a deviation of shape"),
        (xdan.Lorenz96(), {}, "names none"),
        (Cached(), {"push": (1.0, 0.5)}, "does not read 'push' at every step"),
        (xdan.KuramotoSivashinsky(), {"length": (100.0, 1.0)}, "does not read 'length' at every step"),
        (Pushed(), {"decay": (0.0, 0.5), "push": (1.0, math.inf)}, "expected finite numbers"),
    ],
)
def test_priors_that_cannot_be(model, parameters, message):
    with pytest.raises(ValueError, match=message):
        read_priors(model, parameters)


def test_a_parameter_without_effect_is_refused():
    model = xdan.CustomDynamics(
        lambda x, idle: -x + 0 * idle, state={"x": 3}, timestep=0.1, spin_up_time=0.0, parameters={"idle": 1.0}
    )
    with pytest.raises(ValueError, match="does not depend on the parameter 'idle'"):
        read_priors(model, {"idle": (1.0, 1.0)})
    with pytest.raises(TypeError, match="expected a pair"):
        read_priors(xdan.Lorenz96(), {"forcing": 8.0})


def test_a_derivative_that_torch_does_not_see_is_refused():
    model = ByFloats()
    with pytest.raises(ValueError, match="by its parameters"):
        check_parameter_derivatives(model, read_priors(model, {"push": (1.0, 0.5)}), "method='likelihood'")
    check_parameter_derivatives(Pushed(), read_priors(Pushed(), {"push": (1.0, 0.5)}), "method='likelihood'")


@pytest.mark.parametrize("correlated", [False, True])
def test_cost_is_the_gaussian_density_without_the_part_of_r(correlated):
    size, members = 4, normal(3, 3, 4, seed=3)
    r = 0.5 * torch.eye(size, dtype=DOUBLE)
    if correlated:
        r += 0.2
    system = ObservingSystem(covariance=r) if correlated else ObservingSystem(std=number(0.5**0.5))
    y = normal(3, size, seed=4)
    y[1, 2] = torch.nan
    costs = innovation_cost(members, y, system)
    for b in range(3):
        seen = ~y[b].isnan()
        some = r[seen][:, seen]
        mean, p = members[b].mean(0)[seen], members[b].T.cov()[seen][:, seen]
        whole = torch.distributions.MultivariateNormal(mean, p + some).log_prob(y[b, seen])
        of_r = torch.distributions.MultivariateNormal(mean, some).log_prob(mean)
        torch.testing.assert_close(costs[b], of_r - whole)


def pushed_record(cycles=6, trajectories=2, std=0.5, seed=0):
    model = Pushed()
    x, truth = normal(trajectories, 2, seed=seed), []
    for _ in range(cycles):
        truth.append(x)
        x = model.advance(x, 1)
    y = torch.stack(truth, 1) + std * normal(trajectories, cycles, 2, seed=seed + 1)
    steps = [0] + [1] * (cycles - 1)
    return Record(model, ObservingSystem(std=number(std)), y, steps, torch.arange(trajectories), 0)


def kalman(mean, covariance, transition, shift, y, h, r):
    """Costs of a Kalman filter, and its last mean: an oracle in plain NumPy."""
    costs = []
    for one in y:
        mean, covariance = transition @ mean + shift, transition @ covariance @ transition.T
        s, d = h @ covariance @ h.T + r, one - h @ mean
        costs.append(0.5 * (d @ np.linalg.solve(s, d) + np.linalg.slogdet(s)[1] - np.linalg.slogdet(r)[1]))
        gain = covariance @ h.T @ np.linalg.inv(s)
        mean, covariance = mean + gain @ d, covariance - gain @ h @ covariance
    return np.array(costs), mean


def test_the_likelihood_of_a_linear_model_is_that_of_the_kalman_filter_and_so_is_its_gradient():
    record = pushed_record()
    priors = read_priors(record.dynamics, {"decay": (0.8, 0.2), "push": (0.5, 1.0)})
    method = method_by_name("etkf", members=5, inflation=1.0, spin_up=0).prepare(record)
    likelihood = FilterLikelihood.of(method, record, record.dynamics, priors, window=5)

    def oracle(standard):
        decay, push = priors.scaled(standard).tolist()
        start, costs = likelihood.start["x"], []
        for b in range(2):
            known = start[b].mean(0).numpy(), np.cov(start[b].T.numpy())
            y = record.observation[b, 1:].numpy()
            costs.append(kalman(*known, decay * np.eye(2), push, y, np.eye(2), 0.25 * np.eye(2))[0])
        return np.sum(costs)

    standard = number([0.3, -0.2])
    cost, gradient = likelihood.total(standard)
    np.testing.assert_allclose(float(cost), oracle(standard), rtol=1e-10)
    step = 1e-5
    for k, unit in enumerate(torch.eye(2, dtype=DOUBLE)):
        slope = (oracle(standard + step * unit) - oracle(standard - step * unit)) / (2 * step)
        np.testing.assert_allclose(float(gradient[k]), slope, rtol=1e-6)
    curvature = likelihood.curvature(standard, gradient)
    unit, step = torch.eye(2, dtype=DOUBLE)[1], 1e-3
    second = (oracle(standard + step * unit) - 2 * oracle(standard) + oracle(standard - step * unit)) / step**2
    np.testing.assert_allclose(float(curvature[1, 1]), second, rtol=1e-4)  # quadratic in the push


def test_a_trajectory_that_the_filter_loses_does_not_count():
    record, alone = pushed_record(), pushed_record()
    record.observation[1, 2] = 1e30
    alone = dataclasses.replace(alone, observation=alone.observation[:1], trajectory=alone.trajectory[:1])
    priors = read_priors(record.dynamics, {"decay": (0.8, 0.2)})
    method = method_by_name("etkf", members=5, inflation=1.0, spin_up=0)
    totals = []
    for one in (record, alone):
        likelihood = FilterLikelihood.of(method.prepare(one), one, one.dynamics, priors, window=5)
        totals.append(next(iter(likelihood.gradients(number([0.3])))))
    assert totals[0][2].tolist() == [False, True]
    torch.testing.assert_close(totals[0][0], totals[1][0])
    torch.testing.assert_close(totals[0][1], totals[1][1])
    em = ExpectationMaximisation.of(method.prepare(record), record, record.dynamics, priors, burn_in=1)
    _, lost = em.iterate()
    assert lost.tolist() == [False, True]
    assert bool(em.parameters.isfinite().all())


@pytest.mark.parametrize("name", ["etkf", "enkf", "enkf-n", "letkf"])
def test_gradient_of_a_window_is_that_of_differences(name):
    model = xdan.Lorenz96(sites=8, forcing=7.0)
    y = model.climatology(range(2), 0, like=torch.zeros((), dtype=DOUBLE))[:, 0]
    record = Record(
        model.with_model_error(0.1),
        ObservingSystem(std=number(1.0)),
        torch.stack([model.advance(y, k) for k in range(4)], 1),
        [0, 1, 1, 1],
        torch.arange(2),
        0,
    )
    priors = read_priors(model, {"forcing": (7.0, 1.0)})
    method = method_by_name(name, members=12).prepare(record)
    likelihood = FilterLikelihood.of(method, record, record.dynamics, priors, window=3)
    cost = lambda s: likelihood.cost(s, likelihood.start, slice(1, 4))[0]  # noqa: E731
    standard = number([0.2]).requires_grad_()
    (gradient,) = torch.autograd.grad(cost(standard), standard)
    with torch.no_grad():
        slope = (cost(standard + 1e-5) - cost(standard - 1e-5)) / 2e-5
    torch.testing.assert_close(gradient[0], slope, rtol=1e-5, atol=1e-8)


def test_an_augmented_linear_model_is_filtered_as_by_the_kalman_filter():
    record = pushed_record(cycles=8, trajectories=1)
    priors = read_priors(record.dynamics, {"push": (0.5, 1.0)})
    augmented = AugmentedDynamics(record.dynamics, priors)
    blank = torch.full((1, 8, 1), torch.nan, dtype=DOUBLE)
    observing = observing_augmented(record.observing, 2, 1)
    both = dataclasses.replace(
        record, dynamics=augmented, observing=observing, observation=torch.cat([record.observation, blank], 2)
    )
    method = method_by_name("etkf", members=6, inflation=1.0, spin_up=0).prepare(both)
    outputs, _ = run(method, both, members=True)
    first = outputs["members"][0, 0].numpy()
    transition = np.array([[0.9, 0, 1], [0, 0.9, 1], [0, 0, 1]])
    h, y = np.eye(3)[:2], record.observation[0, 1:].numpy()
    _, mean = kalman(first.mean(0), np.cov(first.T), transition, 0.0, y, h, 0.25 * np.eye(2))
    np.testing.assert_allclose(outputs["analysis"][0, -1].numpy(), mean, rtol=1e-8)


def test_observing_an_augmented_state_leaves_the_parameters_alone():
    h = LinearOperator(normal(3, 4))
    wide = observing_augmented(ObservingSystem(std=number(1.0), operator=h), 4, 2)
    x, v = normal(5, 6, seed=1), normal(5, 3, seed=2)
    torch.testing.assert_close(wide.observe(x), h(x[:, :4]))
    torch.testing.assert_close(wide.adjoint(x, v), torch.nn.functional.pad(h.adjoint(x[:, :4], v), (0, 2)))
    torch.testing.assert_close(wide.as_matrix() @ x[0], h(x[:1, :4])[0])
    r = torch.eye(4, dtype=DOUBLE) + 0.3
    full = observing_augmented(ObservingSystem(covariance=r), 4, 2)
    torch.testing.assert_close(full.covariance[:4, :4], r)
    assert observing_augmented(ObservingSystem(std=torch.ones(4)), 4, 2).std.shape == (6,)


def test_climatology_draws_from_the_prior_and_a_walk_is_a_part_of_q():
    model = xdan.Lorenz96(sites=4).with_climatology(normal(50, 4))
    priors = read_priors(model, {"forcing": (7.0, 0.5)})
    augmented = AugmentedDynamics(model.with_model_error(0.2), priors, number([0.1]))
    drawn = augmented.climatology(range(100), 3, members=40, purpose=Purpose.ENSEMBLE)[..., 4].double()
    assert abs(float(drawn.mean()) - 7.0) < 0.04
    assert abs(float(drawn.std()) - 0.5) < 0.03
    torch.testing.assert_close(augmented.model_error.std, number([0.2, 0.2, 0.2, 0.2, 0.1]))
    spun = AugmentedDynamics(xdan.Lorenz96(sites=4), priors).climatology(range(3), 3, members=2)
    each = xdan.Lorenz96(sites=4).with_parameters(forcing=float(spun[0, 1, 4])).climatology(range(3), 3, members=2)
    assert spun.shape == (3, 2, 5)
    assert not torch.equal(spun[1, 0, :4], each[1, 0])
    distances = augmented.distances(torch.tensor([0, 4]))
    assert distances[1, :4].tolist() == [0.0] * 4
    assert distances[0, 4] > 1e6
    with pytest.raises(ValueError, match="called as fields of its state"):
        AugmentedDynamics(
            xdan.CustomDynamics(
                lambda z, u: {"u": -u * z["u"], "v": -z["v"]},
                state=[xdan.Field("u", xdan.Ring(3)), xdan.Field("v", xdan.Ring(3))],
                timestep=0.1,
                spin_up_time=0.0,
                parameters={"u": 1.0},
            ),
            read_priors(custom(), {"forcing": (8.0, 1.0)}).__class__(("u",), ((),), number([1.0]), number([1.0])),
        )


@pytest.mark.parametrize("q", [None, "diagonal", "full"])
def test_the_m_step_of_a_linear_model_is_least_squares(q):
    record = pushed_record(cycles=7, trajectories=2)
    model = record.dynamics
    matrix = np.array([[0.04, 0.01], [0.01, 0.09]]) if q == "full" else np.diag([0.04, 0.09])
    if q is not None:
        model = model.with_model_error(covariance=matrix) if q == "full" else model.with_model_error(std=[0.2, 0.3])
    priors = read_priors(model, {"decay": (0.5, 0.3), "push": (0.0, 2.0)})
    method = method_by_name("etkf", members=5).prepare(record)
    em = ExpectationMaximisation.of(method, record, model, priors, burn_in=2)
    members = normal(2, 7, 5, 2, seed=7)
    estimate = em._improved(members)
    before, after = members[:, 1:6].flatten(0, 2).numpy(), members[:, 2:7].flatten(0, 2).numpy()
    weight = np.linalg.inv(np.eye(2) if q is None else matrix)
    ones = np.ones(2)
    normal_matrix = np.array(
        [
            [np.einsum("ni,ij,nj->", a, weight, b) for a in (before, np.broadcast_to(ones, before.shape))]
            for b in (before, np.broadcast_to(ones, before.shape))
        ]
    )
    right = [np.einsum("ni,ij,nj->", a, weight, after) for a in (before, np.broadcast_to(ones, before.shape))]
    np.testing.assert_allclose(estimate.numpy(), np.linalg.solve(normal_matrix, right), rtol=1e-6)


def test_em_finds_the_parameters_and_q_of_a_noisy_linear_model():
    cycles, rows, generator = 60, 8, torch.Generator().manual_seed(5)
    x, truth = torch.zeros(rows, 2, dtype=DOUBLE), []
    for _ in range(cycles):
        truth.append(x)
        x = 0.9 * x + 1.0 + 0.3 * torch.randn(rows, 2, dtype=DOUBLE, generator=generator)
    y = torch.stack(truth, 1) + 0.2 * torch.randn(rows, cycles, 2, dtype=DOUBLE, generator=generator)
    record = Record(Pushed(), ObservingSystem(std=number(0.2)), y, [0] + [1] * (cycles - 1), torch.arange(rows), 0)
    priors = read_priors(record.dynamics, {"decay": (0.6, 0.3), "push": (0.5, 1.0)})
    method = method_by_name("etkf", members=20, inflation=1.0, spin_up=0).prepare(record)
    em = ExpectationMaximisation.of(method, record, record.dynamics, priors, burn_in=5)
    for _ in range(15):
        deviation, lost = em.iterate()
    estimate, error, converged = em.finish()
    assert converged
    assert not bool(lost.any())
    assert abs(deviation - 0.3) < 0.03
    assert bool(((estimate - number([0.9, 1.0])).abs() < 3 * error + 0.01).all())
    assert float(error[0]) < 0.03


def test_parameters_of_a_function_are_those_that_it_takes():
    state = {"state": {"x": 4}, "timestep": 0.05}
    with pytest.raises(ValueError, match=r"takes no \['F'\], which parameters= names: expected some of \['forcing'\]"):
        xdan.CustomDynamics(lambda x, forcing: forcing - x, parameters={"F": 8.0}, **state)
    with pytest.raises(ValueError, match="takes 'forcing', which parameters= does not name"):
        xdan.CustomDynamics(lambda x, forcing, damping: forcing - damping * x, parameters={"damping": 1.0}, **state)
    timed = xdan.CustomDynamics(lambda x, t, damping: t - damping * x, parameters={"damping": 1.0}, **state)
    assert not timed.autonomous


def test_what_a_model_computed_lazily_is_computed_anew_with_other_parameters():
    model, x = Lazy(push=1.0).starting_at(3.0).from_step(2), normal(2, 2)
    before = model.advance(x.clone(), 1)
    changed = model.with_parameters(push=4.0)
    torch.testing.assert_close(changed.advance(x.clone(), 1), before + 6.0)
    torch.testing.assert_close(model.computing_with({"push": number(4.0)}).advance(x.clone(), 1), before + 6.0)
    assert changed.model_time == model.model_time
    read_priors(model, {"push": (1.0, 0.5)})


def test_parameters_of_a_corrected_model_are_those_of_its_model():
    network = xdan.LocalPolynomial(degree=1)
    torch.nn.init.constant_(network.coefficients, 0.3)
    corrected = xdan.CorrectedDynamics(xdan.Lorenz96(sites=6, forcing=7.0).with_model_error(0.1), network)
    other, x = corrected.with_parameters(forcing=9.0), normal(2, 6)
    assert corrected.parameter_values() == {"forcing": 7.0}
    assert other.model.forcing == 9.0
    assert other.model_error is corrected.model_error
    exact = xdan.CorrectedDynamics(xdan.Lorenz96(sites=6, forcing=9.0), network).advance(x, 3)
    torch.testing.assert_close(other.advance(x, 3), exact)
    torch.testing.assert_close(corrected.advance_each(x, 3, {"forcing": number([9.0, 9.0])}), exact)
    assert read_priors(corrected, {"forcing": (7.0, 1.0)}).names == ("forcing",)


def em_with_history(*values):
    """An iteration that has these estimates of the push behind it."""
    record = pushed_record()
    priors = read_priors(record.dynamics, {"push": (values[0], 1.0)})
    past = [number([value]) for value in values]
    return ExpectationMaximisation(None, record, record.dynamics, priors, None, 1, past[-1], 1.0, past)


def test_the_extrapolation_of_a_geometric_iteration_is_its_end():
    em = em_with_history(*(2.0 - 0.5**k for k in range(5)))
    jump, unsure = em._way_left()
    torch.testing.assert_close(em.parameters + jump, number([2.0]))
    torch.testing.assert_close(unsure, number([0.0]))


@pytest.mark.parametrize(
    "values",
    [
        (7.0, 11.5, 10.2, 9.1),  # the ratios are 0.29 and 0.85
        (0.0, 1.0, 2.0, 4.0),  # it grows
        (0.0, 1.0, 2.0),  # nothing is known of the ratio
        (0.0, 2.0, 3.7, 5.145),  # 0.85: more than 8 deviations are left
    ],
)
def test_an_iteration_far_from_its_end_is_not_extrapolated(values):
    jump, unsure = em_with_history(*values)._way_left()
    assert float(jump) == 0.0
    assert float(unsure) > 1.0


def test_a_way_left_by_a_rate_that_changes_is_bounded():
    """Changes 1, 1/2 and 1/5: of r = 0.4, d r / (1 - r) is left, and |0.4 - 0.5| / 0.36 of d may be wrong with it."""
    jump, unsure = em_with_history(0.0, 1.0, 1.5, 1.7)._way_left()
    assert 0.1 < float(jump) < 0.25
    assert float(unsure) > 0.2 * 0.1 / 0.36 - 1e-12
