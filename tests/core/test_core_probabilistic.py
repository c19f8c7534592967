"""Scores of distributions as objectives: closed forms, quadrature, what each is least at, and Bayes's analysis."""

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch.testing import assert_close

from xdan.core.dynamics import CustomDynamics, Lorenz96
from xdan.core.learning import LogScore, Variational, WindowContents, objective_by_name
from xdan.core.learning.probabilistic import (
    advanced,
    energy_score,
    free_energy,
    gaussian_crps,
    log_score,
    noise_of,
)
from xdan.core.learning.rollout import Rollout, Window, roll_out
from xdan.core.local_roots import LocalRoot, diagonal_root
from xdan.core.methods import method_of
from xdan.core.networks import EnsembleCNN, GaussianCNN, ResidualCNN
from xdan.core.networks.neighbours import root_places
from xdan.core.observing import LinearOperator, ObservingSystem

SMALL = {"filters": 3, "blocks": 1, "kernel": 3}


def normals(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_root(lead, size=6, seed=0, width=5):
    places, distinct = root_places(None, width, size)
    entries = 0.2 * normals(*lead, size, places.shape[1], seed=seed) * distinct
    entries[..., 0] = 0.5 + normals(*lead, size, seed=seed + 1).abs()
    return LocalRoot(entries, places)


def rollout_of(mean, root, truth, observation=None, **more):
    batch, cycles = mean.shape[:2]
    observation = truth if observation is None else observation
    window = Window(truth, observation, (1,) * cycles)
    lost = torch.zeros(batch, cycles, dtype=torch.bool)
    observing = ObservingSystem(std=torch.tensor(1.0, dtype=torch.float64))
    known = {"forecast": mean, "members": None, "divergence": None, "state": {}, **more}
    return Rollout(analysis=mean, lost=lost, window=window, observing=observing, root=root, **known)


def test_gaussian_crps_is_the_integral():
    for mean, deviation, truth in ((0.0, 1.0, 0.3), (1.0, 0.2, -0.4), (-2.0, 3.0, 4.0)):
        one = norm(mean, deviation)
        below = quad(lambda x, one=one: one.cdf(x) ** 2, -60, truth)
        above = quad(lambda x, one=one: one.sf(x) ** 2, truth, 60)
        three = (torch.tensor([[[value]]], dtype=torch.float64) for value in (mean, deviation, truth))
        assert_close(gaussian_crps(*three)[0, 0].item(), below[0] + above[0], rtol=1e-6, atol=1e-8)


def test_log_score_is_the_density_of_torch():
    root, mean, truth = some_root((3,)), normals(3, 6, seed=5), normals(3, 6, seed=6)
    expected = torch.distributions.MultivariateNormal(mean, root.covariance).log_prob(truth)
    assert_close(log_score(mean, root, truth), -expected / 6)


def test_log_score_has_the_derivatives_of_finite_differences():
    root, mean, truth = some_root((2,)), normals(2, 6, seed=5), normals(2, 6, seed=6)

    def score(mean, entries):
        return log_score(mean, LocalRoot(entries, root.places), truth)

    assert torch.autograd.gradcheck(score, (mean.requires_grad_(), root.entries.requires_grad_()))


def test_energy_score_of_draws_does_not_depend_on_their_number():
    root, mean, truth = some_root((1, 1)), normals(1, 1, 6, seed=3), normals(1, 1, 6, seed=4)
    means = []
    for members in (2, 3, 8):
        noise = normals(4000, 1, members, 6, seed=members)
        drawn = mean[:, :, None] + LocalRoot(root.entries[:, :, None], root.places).apply(noise)
        scores = energy_score(drawn, truth.expand(4000, 1, 6))[:, 0]
        means.append((float(scores.mean()), float(scores.std()) / math.sqrt(4000)))
    for value, error in means[:2]:
        assert abs(value - means[2][0]) < 4 * math.hypot(error, means[2][1])


@pytest.mark.parametrize("name", ["log-score", "crps", "energy"])
def test_each_score_is_least_at_the_mean_and_the_deviation_of_the_truth(name):
    """Strictly proper: over Gaussians N(m, s^2 I), the mean score is least at those of the truth."""
    draws, size, mean, deviation = 4000, 3, 0.7, 0.4
    truth = mean + deviation * normals(draws, 1, size)
    objective = objective_by_name(name)
    places = torch.arange(size)[:, None]

    def score(shift, factor):
        centre = torch.full((draws, 1, size), mean + shift, dtype=torch.float64)
        root = diagonal_root(torch.full_like(centre, factor * deviation), places)
        return float(objective.loss(rollout_of(centre, root, truth)).mean())

    best = score(0.0, 1.0)
    for shift, factor in ((0.15, 1.0), (-0.15, 1.0), (0.0, 0.75), (0.0, 1.35)):
        assert score(shift, factor) > best + 1e-3


def test_the_log_score_is_least_at_the_covariance_of_the_truth():
    """Other than the CRPS, it knows correlations."""
    size, draws = 6, 4000
    right = some_root((), size)
    noise = normals(draws, 1, size, seed=9)
    truth, centre = right.apply(noise), torch.zeros(draws, 1, size, dtype=torch.float64)

    def score(root, name):
        spread = LocalRoot(root.entries.expand(draws, 1, *root.entries.shape), root.places)
        return float(objective_by_name(name).loss(rollout_of(centre, spread, truth)).mean())

    alone = diagonal_root(right.deviations, right.places)
    assert score(right, "log-score") < score(alone, "log-score") - 0.02
    assert score(right, "crps") == pytest.approx(score(alone, "crps"), rel=1e-12)


def test_deviations_learn_from_each_component_and_correlations_from_all():
    """A root without room for the correlations of the truth: only the first leaves its deviations right."""
    size, draws = 6, 1000
    factor = torch.eye(size, dtype=torch.float64) + 0.45 * normals(size, size, seed=3)
    truth = (normals(draws, size, seed=9) @ factor.T)[:, None]
    right = (factor @ factor.T).diagonal().sqrt()
    centre, places = torch.zeros_like(truth), root_places(None, 3, size)[0]
    learned = {}
    for marginal in (True, False):
        log_deviation = torch.zeros(size, dtype=torch.float64, requires_grad=True)
        sides = torch.zeros(size, 2, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.LBFGS([log_deviation, sides], max_iter=30, line_search_fn="strong_wolfe")

        def closure(marginal=marginal, log_deviation=log_deviation, sides=sides, optimiser=optimiser):
            optimiser.zero_grad()
            row = torch.cat([torch.ones(size, 1, dtype=torch.float64), 0.45 * sides.tanh()], 1)
            entries = log_deviation.exp()[:, None] * row / row.square().sum(-1, keepdim=True).sqrt()
            root = LocalRoot(entries.expand(draws, 1, size, 3), places)
            loss = LogScore(marginal).loss(rollout_of(centre, root, truth)).mean()
            loss.backward()
            return loss

        optimiser.step(closure)
        learned[marginal] = log_deviation.detach().exp() / right, sides.detach().abs().sum()
    assert_close(learned[True][0], torch.ones(size, dtype=torch.float64), rtol=0.1, atol=0)
    assert float((learned[False][0] - 1).abs().max()) > 0.1
    assert float(learned[True][1]) > 0.5  # correlations are learned all the same


# ---- the variational objective ----


def kalman(forecast, covariance, observation, error_variance, operator):
    gain = covariance @ operator.T @ torch.linalg.inv(operator @ covariance @ operator.T + torch.diag(error_variance))
    mean = forecast + gain @ (observation - operator @ forecast)
    return mean, covariance - gain @ operator @ covariance


@pytest.mark.parametrize("observed_by", ["sites", "operator"])
def test_free_energy_is_least_at_the_kalman_analysis(observed_by):
    n = 4
    factor = normals(n, n, seed=1)
    covariance = factor @ factor.T + torch.eye(n, dtype=torch.float64)
    forecast, error = normals(1, n, seed=2), torch.tensor([0.5, 0.7, 0.9, 1.1], dtype=torch.float64)
    if observed_by == "sites":
        operator, seen = torch.eye(n, dtype=torch.float64), torch.tensor([[True, True, False, True]])
        observing = ObservingSystem(std=error)
    else:
        operator, seen = normals(3, n, seed=3), torch.ones(1, 3, dtype=torch.bool)
        error = error[:3]
        observing = ObservingSystem(std=error, operator=LinearOperator(operator))
    observation = normals(1, len(operator), seed=4) * seen
    known = seen[0]
    mean, after = kalman(forecast[0], covariance, observation[0, known], error[known] ** 2, operator[known])
    mean, root = mean[None].requires_grad_(), torch.linalg.cholesky(after)[None].requires_grad_()

    def energy(mean, root):
        return free_energy(mean, root, forecast, covariance[None], observation, seen, observing)

    value = energy(mean, root)
    for gradient in torch.autograd.grad(value.sum(), (mean, root)):
        assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-10)
    # There it is the negative log evidence, up to the constants of y.
    joint = operator[known] @ covariance @ operator[known].T + torch.diag(error[known] ** 2)
    evidence = torch.distributions.MultivariateNormal(operator[known] @ forecast[0], joint).log_prob(
        observation[0, known]
    )
    constants = 0.5 * known.sum() * math.log(2 * math.pi) + error[known].log().sum()
    assert_close(n * value[0].detach(), -evidence - constants)
    mean, root, value = mean.detach(), root.detach(), value.detach()
    for seed in range(5):
        other = root + 0.1 * normals(1, n, n, seed=seed)
        assert float(energy(mean + 0.1 * normals(1, n, seed=10 + seed), other)) > float(value)


def test_the_forecast_covariance_is_that_of_advanced_draws():
    """Of a linear model, whose forecast of N(m, P) has the covariance A P A^T: the mean over many draws."""
    matrix = 0.9 * torch.eye(5, dtype=torch.float64) + 0.1 * normals(5, 5)
    dynamics = CustomDynamics(
        lambda x: x @ (matrix - torch.eye(5, dtype=torch.float64)).T, state={"x": 5}, timestep=0.01
    )
    root = some_root((64, 2), 5)
    root = LocalRoot(root.entries[:1].expand(64, -1, -1, -1), root.places)
    mean = normals(64, 2, 5, seed=8)
    objective = Variational(members=400, radius=1e9)
    made = rollout_of(mean, root, None, observation=normals(64, 2, 5, seed=9), dynamics=dynamics)
    made = Rollout(**{**made.__dict__, "window": Window(None, made.window.observation, (1, 3))})
    before = LocalRoot(root.entries[:, 0], root.places)
    covariance = objective._forecast_covariance(made, before, 1)
    step = torch.linalg.matrix_exp(0.03 * (matrix - torch.eye(5, dtype=torch.float64)))
    expected = step @ before.covariance[0] @ step.T
    size = expected.diagonal().mean()
    inflated = Variational(members=400, radius=1e9, inflation=1.5)._forecast_covariance(made, before, 1)
    assert_close(inflated, 1.5**2 * covariance)
    off = 1 - torch.eye(5, dtype=torch.float64)
    assert float((covariance.mean(0) - expected * (1 - 0.05 * off)).abs().max()) < 0.03 * float(size)


def test_gradients_of_the_variational_objective_pass_through_the_memory_and_not_through_the_model():
    dynamics, observing = Lorenz96(8), ObservingSystem(std=torch.tensor(1.0))
    net = GaussianCNN(ResidualCNN(**SMALL, memory=1), **SMALL)
    net.normalise(2.3, 3.6, 1.0)
    truth = [dynamics.advance(2 + 3 * normals(2, 8).float(), 20)]
    for _ in range(2):
        truth.append(dynamics.advance(truth[-1], 1))
    window = Window(None, torch.stack(truth, 1) + normals(2, 3, 8, seed=1).float(), (1, 1, 1))
    made = roll_out(method_of(net), dynamics, observing, window, None, through_model=False)
    with_model = roll_out(method_of(net), dynamics, observing, window, None)
    assert_close(with_model.analysis, made.analysis)
    assert not made.forecast.requires_grad
    assert with_model.forecast.requires_grad
    # The last gate of the memory acts on the next analysis alone, which reads it.
    gate = net.centre.biases[-1]
    (gradient,) = torch.autograd.grad(made.analysis[:, 2].sum(), gate, retain_graph=True)
    assert float(gradient[1].abs()) > 0
    losses = Variational().losses(made)
    assert losses.shape == (2, 3)
    assert bool((losses[:, 0] == 0).all())
    assert float(torch.autograd.grad(losses.sum(), net.cnn.weights[0])[0].abs().sum()) > 0


def test_members_are_advanced_from_the_times_of_their_trajectories():
    class Rising(Lorenz96):
        autonomous = False

    dynamics = Lorenz96(8)
    members = normals(3, 4, 8)
    assert_close(advanced(dynamics, members, 2, torch.tensor([0, 5, 0])), dynamics.advance(members, 2))


def test_noise_follows_from_the_observations_alone():
    observation = normals(5, 8).float()
    noise = noise_of(observation, 3, 6)
    assert noise.shape == (5, 3, 6)
    assert torch.equal(noise[2:4], noise_of(observation[2:4], 3, 6))
    many = noise_of(normals(2000, 8).float(), 2, 6)
    assert abs(float(many.mean())) < 0.03
    assert abs(float(many.var()) - 1) < 0.03
    assert abs(float((many[:, 0] * many[:, 1]).mean())) < 0.03


@pytest.mark.parametrize(
    ("objective", "network", "message"),
    [
        ("log-score", ResidualCNN(), "scores a spread, and the network 'residual-cnn' gives none.*xdan.with_spread"),
        ("variational", EnsembleCNN(), "scores a spread, and the network 'ensemble-cnn' gives none"),
        ("crps", ResidualCNN(), r"scores members, and the network has a single forecast.*xdan.GaussianCNN\(\)"),
    ],
)
def test_networks_without_a_spread_are_refused(objective, network, message):
    with pytest.raises(ValueError, match=message):
        objective_by_name(objective).check(network, WindowContents(4))


def test_networks_with_a_spread_are_taken_and_teachers_are_not():
    for name in ("log-score", "crps", "energy", "variational"):
        objective_by_name(name).check(GaussianCNN(), WindowContents(4))
        with pytest.raises(ValueError, match="has no use for a teacher's analyses"):
            objective_by_name(name).check(GaussianCNN(), WindowContents(4, forecast=True))
    with pytest.raises(ValueError, match="expected a window of at least 2"):
        Variational().check(GaussianCNN(), WindowContents(1))
    with pytest.raises(ValueError, match="members=1"):
        Variational(members=1)
    assert Variational(radius=3).config() == {"members": 20, "radius": 3.0, "inflation": 1.0}
