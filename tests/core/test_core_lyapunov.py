"""Lyapunov exponents and vectors: closed forms of linear maps, what every flow must obey, known spectra."""

import math

import pytest
import torch
from torch.testing import assert_close

from xdan.core.dynamics import CustomDynamics, Lorenz63, Lorenz96
from xdan.core.lyapunov import (
    backward_vectors,
    covariant_vectors,
    kaplan_yorke_dimension,
    orthonormal_directions,
    orthonormalise,
    propagate,
    random_coefficients,
    spectrum,
)

DOUBLE = torch.zeros((), dtype=torch.float64)
LABELS = torch.arange(3)
RATES = torch.tensor([0.9, -0.2, -1.6], dtype=torch.float64)
# Not normal: its eigenvectors are far from orthogonal.
COUPLED = torch.diag(RATES) + torch.tensor([[0, 2.0, -1.0], [0, 0, 3.0], [0, 0, 0]], dtype=torch.float64)
STEP = 0.2


@pytest.fixture(scope="module")
def linear():
    return CustomDynamics(lambda x: x @ COUPLED.T, state={"x": 3}, timestep=STEP, spin_up_time=0.0)


def multipliers(h):
    """Those of a Runge-Kutta 4 step: the exponential's Taylor polynomial, of each eigenvalue."""
    return 1 + h * RATES + (h * RATES) ** 2 / 2 + (h * RATES) ** 3 / 6 + (h * RATES) ** 4 / 24


def parallel(a, b):
    """How far two rows are from pointing along one line."""
    return 1 - (a * b).sum(-1).abs() / a.norm(dim=-1) / b.norm(dim=-1)


def on_attractor(dynamics, count):
    return dynamics.climatology(range(count), 0, like=DOUBLE)[:, 0].flatten(1)


def run(dynamics, count, time, vectors=None, between=5, spin_up=20.0):
    x, once = on_attractor(dynamics, count), between * dynamics.timestep
    start = orthonormal_directions(torch.arange(count), 0, vectors or x.shape[1], x.shape[1])
    sizes = {"between": between, "spin_up": round(spin_up / once), "repeats": round(time / once)}
    return spectrum(dynamics, x, start, **sizes)[0]


@pytest.mark.parametrize("size", [1, 3, 5])
def test_orthonormal_factors_give_the_directions_back(size):
    v = torch.randn(4, size, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q, r = orthonormalise(v)
    assert_close(q @ q.mT, torch.eye(size, dtype=torch.float64).expand(4, -1, -1), rtol=0, atol=1e-14)
    assert_close((q.mT @ r).mT, v, rtol=0, atol=1e-14)
    assert torch.equal(r, r.triu())
    assert (r.diagonal(dim1=1, dim2=2) > 0).all()


def test_directions_are_keyed_by_label():
    whole = orthonormal_directions(torch.tensor([4, 7, 9]), 1, 2, 5)
    assert torch.equal(orthonormal_directions(torch.tensor([9, 4]), 1, 2, 5), whole[[2, 0]])
    assert not torch.allclose(orthonormal_directions(torch.tensor([4, 7, 9]), 2, 2, 5), whole)


def test_coefficients_are_keyed_by_label_and_keep_signs():
    whole = random_coefficients(torch.arange(20), 1, 4)
    assert torch.equal(random_coefficients(torch.tensor([9, 4]), 1, 4), whole[[9, 4]])
    assert torch.equal(whole, whole.triu())
    assert_close(whole.norm(dim=1), torch.ones(20, 4, dtype=torch.float64), rtol=0, atol=1e-14)
    assert (whole.diagonal(dim1=1, dim2=2) > 0).all()


@pytest.mark.parametrize("between", [1, 3, 7, 50])
def test_orthonormalising_on_the_way_changes_nothing(between):
    dynamics = Lorenz96(6)
    x, start = on_attractor(dynamics, 3), orthonormal_directions(LABELS, 0, 4, 6)
    after, vectors, factor = propagate(dynamics, x, start, 7, between)
    ahead, pushed = dynamics.advance_along(x, start, 7)
    for value, expected in zip((after, vectors, factor), (ahead, *orthonormalise(pushed)), strict=True):
        assert_close(value, expected, rtol=1e-11, atol=1e-11)


def test_exponents_of_a_linear_map(linear):
    zero = torch.zeros(3, 3, dtype=torch.float64)
    sizes = {"between": 3, "spin_up": 60, "repeats": 10}
    exponents, _ = spectrum(linear, zero, orthonormal_directions(LABELS, 0, 3, 3), **sizes)
    expected = (multipliers(STEP).log() / STEP).expand(3, 3)
    assert_close(exponents, expected, rtol=0, atol=1e-9)
    fewer, _ = spectrum(linear, zero, orthonormal_directions(LABELS, 1, 2, 3), **sizes)
    assert_close(fewer, expected[:, :2], rtol=0, atol=1e-9)


def test_exponents_add_up_to_the_divergence_of_the_flow():
    """Which Lorenz-63 and Lorenz-96 have everywhere; Runge-Kutta 4 keeps it but for its own error."""
    assert_close(run(Lorenz63(), 3, 5.0).sum(1), torch.full((3,), -(10 + 1 + 8 / 3)).double(), rtol=0, atol=5e-4)
    assert_close(run(Lorenz96(9), 3, 10.0).sum(1), torch.full((3,), -9.0).double(), rtol=0, atol=0.01)


def test_exponents_do_not_depend_on_the_time_between():
    often, seldom = (run(Lorenz96(7), 2, 20.0, between=between) for between in (1, 20))
    assert_close(often, seldom, rtol=0, atol=1e-9)


def test_exponents_of_lorenz63():
    """Sprott (2003), Chaos and Time-Series Analysis: 0.9056, 0, -14.5723."""
    exponents = run(Lorenz63(), 150, 30.0, between=10)
    error = exponents.std(0) / math.sqrt(len(exponents))
    assert (error < 0.01).all()
    assert (exponents.mean(0) - torch.tensor([0.9056, 0.0, -14.5723]).double()).abs().max() < 0.015
    assert kaplan_yorke_dimension(exponents.mean(0)) == pytest.approx(2.062, abs=0.002)


def test_first_exponent_of_lorenz96():
    exponents = run(Lorenz96(), 32, 60.0, vectors=1)
    assert exponents.std() / math.sqrt(32) < 0.02
    assert exponents.mean() == pytest.approx(1.69, abs=0.05)


def record(dynamics, every, count, rows=2):
    states = [on_attractor(dynamics, rows)]
    states += [states[-1]]
    for _ in range(count - 1):
        states.append(dynamics.advance(states[-1], every))
    return torch.stack(states[1:], 1), [0] + [every] * (count - 1)


@pytest.fixture(scope="module", params=["lorenz63", pytest.param("lorenz96", marks=pytest.mark.slow)])
def chaos(request):
    """A record of a flow, and its vectors of both kinds."""
    dynamics, every = {"lorenz63": (Lorenz63(), 10), "lorenz96": (Lorenz96(8, timestep=0.025), 4)}[request.param]
    states, steps = record(dynamics, every, {"lorenz63": 600, "lorenz96": 1400}[request.param])
    start = orthonormal_directions(torch.arange(2), 0, states.shape[2], states.shape[2])
    q, r = backward_vectors(dynamics, states, steps, start, between=5)
    return dynamics, states, steps, q, r, *covariant_vectors(q, r)


def middle(vectors):
    """Times far from both ends."""
    half = vectors.shape[1] // 2
    return slice(half - 10, half + 10)


def pushed(dynamics, states, vectors, every):
    """What the tangent linear model makes of vectors, from each record time to the next."""
    along = dynamics.advance_along(states[:, :-1].flatten(0, 1), vectors[:, :-1].flatten(0, 1), every)[1]
    return along.unflatten(0, (len(states), -1))


def test_backward_vectors_are_factors_of_the_propagator(chaos):
    dynamics, states, steps, q, r = chaos[:5]
    identity = torch.eye(q.shape[2], dtype=torch.float64).expand_as(r)
    assert_close(q[:, 1:] @ q[:, 1:].mT, identity, rtol=0, atol=1e-13)
    assert_close(pushed(dynamics, states, q, steps[1]).mT, q[:, 1:].mT @ r, rtol=0, atol=1e-9)


def test_covariant_vectors_are_mapped_onto_each_other(chaos):
    dynamics, states, steps, q, _, c, growth = chaos
    ahead = pushed(dynamics, states, c, steps[1])
    assert_close(ahead, growth.exp()[..., None] * c[:, 1:], rtol=0, atol=1e-8)
    assert_close(c.norm(dim=-1), torch.ones_like(c[..., 0]), rtol=0, atol=1e-13)
    assert_close(c[:, :, 0], q[:, :, 0], rtol=0, atol=1e-13)


def test_covariant_vectors_forget_where_they_began(chaos):
    dynamics, states, steps, q, _, c, _ = chaos
    """At both ends."""
    keys, size = torch.arange(2), q.shape[2]
    start, end = orthonormal_directions(keys, 5, size, size), random_coefficients(keys, 5, size)
    again, _ = covariant_vectors(*backward_vectors(dynamics, states, steps, start, between=5), end)
    assert parallel(again[:, middle(c)], c[:, middle(c)]).max() < 1e-6
    for edge in (0, -1):
        assert parallel(again[:, edge], c[:, edge]).max() > 1e-3


def test_neutral_covariant_vector_is_along_the_flow(chaos):
    """Up to the error of the steps, to which alone the tendency is no direction of the stepped map."""
    dynamics, states, _, q, _, c, _ = chaos
    neutral = {3: 1, 8: 2}[c.shape[2]]
    flow = dynamics.tendency(states[:, middle(c)])
    assert parallel(c[:, middle(c), neutral], flow).max() < 1e-6
    assert parallel(q[:, middle(c), neutral], flow).max() > 1e-3


def test_fewer_vectors_are_the_first_ones(chaos):
    dynamics, states, steps, q, r, c, growth = chaos
    few, factors = backward_vectors(dynamics, states[:, :20], steps[:20], q[:, 0, :2], between=5)
    assert_close(few, q[:, :20, :2], rtol=0, atol=1e-9)
    assert_close(factors, r[:, :19, :2, :2], rtol=0, atol=1e-9)
    fewer, rates = covariant_vectors(q[:, :, :2], r[:, :, :2, :2])
    assert_close(fewer, c[:, :, :2], rtol=0, atol=1e-12)
    assert_close(rates, growth[:, :, :2], rtol=0, atol=1e-12)


def test_vectors_of_a_linear_map(linear):
    """Covariant ones are its eigenvectors, backward ones those orthonormalised; each grows by its multiplier."""
    steps = [0] + [2, 5, 3] * 20
    states = torch.zeros(3, len(steps), 3, dtype=torch.float64)
    q, r = backward_vectors(linear, states, steps, orthonormal_directions(LABELS, 0, 3, 3), between=4)
    c, growth = covariant_vectors(q, r)
    eigenvalues, columns = torch.linalg.eig(COUPLED)
    order = eigenvalues.real.argsort(descending=True)
    eigenvectors = columns.real.mT[order]
    inner = slice(28, 33)
    assert parallel(c[:, inner], eigenvectors).max() < 1e-12
    assert parallel(q[:, inner], orthonormalise(eigenvectors[None])[0][0]).max() < 1e-12
    expected = torch.tensor(steps[1:])[:, None] * multipliers(STEP).log()
    assert_close(growth[:, inner], expected[inner].expand(3, -1, -1), rtol=0, atol=1e-7)
    local = r.diagonal(dim1=2, dim2=3).log()
    assert_close(local[:, inner], expected[inner].expand(3, -1, -1), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("exponents", "dimension"),
    [
        ([0.9056, 0.0, -14.5723], 2 + 0.9056 / 14.5723),
        ([-14.5723, 0.9056, 0.0], 2 + 0.9056 / 14.5723),
        ([1.0, 0.5, -1.0, -2.0], 3 + 0.5 / 2.0),
        ([1.0, -1.0, -3.0], 2.0),
        ([0.0, -1.0], 1.0),
        ([-0.5, -1.0], 0.0),
        ([-0.5], 0.0),
        ([1.0, 0.0, -0.5], 3.0),
        ([1.0, -math.inf], 1.0),
        ([0.0, 0.0], 2.0),
    ],
)
def test_kaplan_yorke_dimension(exponents, dimension):
    values = torch.tensor(exponents, dtype=torch.float64)
    assert kaplan_yorke_dimension(values).item() == pytest.approx(dimension, abs=1e-12)
    stacked = torch.stack([values, torch.full_like(values, -1.0)])
    assert_close(kaplan_yorke_dimension(stacked), torch.tensor([dimension, 0.0], dtype=torch.float64))


def test_kaplan_yorke_dimension_that_cannot_be_told():
    assert kaplan_yorke_dimension(torch.tensor([1.0, 0.0, -0.5]), whole=False).isnan()
    assert kaplan_yorke_dimension(torch.tensor([1.0, 0.0, -2.0]), whole=False) == 2.5
    assert kaplan_yorke_dimension(torch.tensor([1.0, math.nan, -2.0])).isnan()
