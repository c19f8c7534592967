"""A climatology of states that the user brings: starts are drawn from it by keyed indices, moments are its own."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import xdan
from xdan.core.dynamics import CustomDynamics, Lorenz63, Lorenz96, dynamics_from_json, dynamics_to_json
from xdan.core.methods.climate import climate_moments
from xdan.core.random import Purpose

DOUBLE = torch.zeros((), dtype=torch.float64)
SITES = 4


def states(count, sites=SITES):
    """Distinct states: the first component of the k-th is k."""
    values = torch.arange(count, dtype=torch.float64)
    return torch.stack([values, *(torch.sin(values * (site + 1)) for site in range(sites - 1))], -1)


def model_with(count):
    return Lorenz96(sites=SITES).with_climatology(states(count))


def number(drawn):
    """Which states were drawn, by their first component."""
    return drawn[..., 0].long()


@given(
    count=st.integers(2, 40),
    members=st.integers(1, 40),
    labels=st.lists(st.integers(-5, 2**31), min_size=1, max_size=12, unique=True),
    seed=st.integers(0, 2**32 - 1),
)
def test_draws_are_states_keyed_by_label_and_members_are_distinct(count, members, labels, seed):
    model = model_with(max(count, members))
    count = max(count, members)
    drawn = model.climatology(labels, seed, members=members, purpose=Purpose.ENSEMBLE, like=DOUBLE)
    assert drawn.shape == (len(labels), members, SITES)
    index = number(drawn)
    assert torch.equal(drawn, states(count)[index])
    assert all(len(set(row)) == members for row in index.tolist())
    backward = model.climatology(labels[::-1], seed, members=members, purpose=Purpose.ENSEMBLE, like=DOUBLE)
    assert torch.equal(backward.flip(0), drawn)
    alone = model.climatology(labels[:1], seed, members=members, purpose=Purpose.ENSEMBLE, like=DOUBLE)
    assert torch.equal(alone, drawn[:1])


def test_neighbouring_trajectories_start_apart_until_the_states_are_used_up():
    drawn = number(model_with(60).climatology(range(60), 3, like=DOUBLE))[:, 0]
    assert sorted(drawn.tolist()) == list(range(60))
    more = number(model_with(60).climatology(range(120), 3, like=DOUBLE))[:, 0]
    assert torch.equal(more[:60], drawn)
    assert not torch.equal(more[60:], drawn)  # another order in the second pass
    several = number(model_with(60).climatology(range(6), 3, members=10, like=DOUBLE))
    assert sorted(several.flatten().tolist()) == list(range(60))


def test_seed_and_purpose_are_keys():
    model = model_with(50)
    one = model.climatology(range(20), 0, like=DOUBLE)
    assert torch.equal(model.climatology(range(20), 0, like=DOUBLE), one)
    assert not torch.equal(model.climatology(range(20), 1, like=DOUBLE), one)
    assert not torch.equal(model.climatology(range(20), 0, purpose=Purpose.ENSEMBLE, like=DOUBLE), one)


def test_all_states_are_drawn_equally_often():
    """Of 300 x 3 draws from 10 states each has 90, but for 3 * 10 / 300 of incomplete passes."""
    drawn = number(model_with(10).climatology(range(300), 5, members=3, like=DOUBLE))
    counts = torch.bincount(drawn.flatten(), minlength=10)
    assert counts.sum() == 900
    assert counts.min() > 70
    assert counts.max() < 110


def test_moments_are_those_of_all_states():
    mean, covariance = climate_moments(model_with(30), 0, DOUBLE)
    np.testing.assert_allclose(mean, states(30).mean(0), rtol=1e-14)
    np.testing.assert_allclose(covariance, np.cov(states(30).numpy().T), rtol=1e-12, atol=1e-14)
    like = torch.zeros((), dtype=torch.float32)
    assert climate_moments(model_with(30), 0, like)[1].dtype == torch.float32
    sample = model_with(30).climate_sample(8, 0, purpose=Purpose.CLIMATOLOGY, like=DOUBLE)
    assert torch.equal(sample, states(30))


def test_nothing_is_spun_up_and_the_model_itself_stays():
    calls = []

    def step(x):
        calls.append(len(x))
        return torch.where(x.abs() < 100.0, 0.5 * x, torch.nan)

    def rest(noise):
        raise AssertionError("nothing starts from noise")

    model = CustomDynamics(step=step, state={"x": SITES}, timestep=0.1, rest=rest)
    brought = model.with_climatology(states(30))
    assert model.given_climate is None
    brought.climatology(range(5), 0, members=4, like=DOUBLE)
    climate_moments(brought, 0, DOUBLE)
    assert not calls
    brought.try_start(0, 0, DOUBLE)  # a few steps from the first two states
    assert 0 < len(calls) < 10
    np.testing.assert_allclose(brought.start_states(), states(2))
    size = brought.fingerprint().abs().max()
    np.testing.assert_allclose(brought.fingerprint() / size, 0.5 * states(2) / (0.5 * states(2)).abs().max(), atol=1e-8)


def test_descriptions_and_equality_know_the_states_by_a_digest():
    model, plain = model_with(30), Lorenz96(sites=SITES)
    described = dynamics_to_json(model)
    assert described["climatology"].startswith("30 states, sha256 ")
    assert len(str(described)) < 200
    assert "climatology" not in dynamics_to_json(plain)
    assert dynamics_from_json(described) == plain
    assert model != plain
    assert model == model_with(30)
    assert model != model_with(31)
    other = states(30)
    other[7, 2] += 1e-9
    assert model != plain.with_climatology(other)
    assert model.with_climatology(None) == plain
    assert pickle.loads(pickle.dumps(model)) == model == copy.deepcopy(model)


def test_a_registered_class_of_a_user_is_described_with_it():
    class Decay(xdan.Dynamics):
        name = "decay"
        dims = ("x",)

        def __init__(self, rate=0.5):
            self.rate, self.timestep = rate, 0.1
            self.coordinates = {"x": xdan.Coordinate((0, 1, 2))}

        def tendency(self, x):
            return -self.rate * x

        def rest(self, noise):
            return noise / 0.0

    from xdan.core.dynamics.registry import _REGISTRY

    kept = dict(_REGISTRY._classes)
    try:
        xdan.register_dynamics(Decay)
        described = dynamics_to_json(Decay(0.2).with_climatology(states(5, 3)))
        assert described["parameters"] == {"rate": 0.2}
        assert described["climatology"].startswith("5 states")
    finally:
        _REGISTRY._classes = kept


def test_leading_axes_are_states_and_the_states_are_copied():
    series = states(30).reshape(5, 6, SITES).clone()
    model = Lorenz96(sites=SITES).with_climatology(series)
    assert model == model_with(30)
    series.zero_()
    assert model == model_with(30)
    assert Lorenz63().with_climatology([[0, 1, 2], [3, 4, 5]]).given_climate.states.shape == (2, 3)


@pytest.mark.parametrize(
    ("brought", "error", "words"),
    [
        (states(1), ValueError, r"climatology= holds 1 states: expected at least 2"),
        (states(5, 3), ValueError, r"shape \(5, 3\): expected \(states, 4\), states of 'lorenz96'"),
        (np.zeros(4), ValueError, r"shape \(4,\): expected \(states, 4\)"),
        (np.full((3, 4), np.nan), ValueError, r"3 of the 3 states of climatology= are not finite"),
        (np.ones((3, 4)), ValueError, r"all 3 states of climatology= are the same"),
        (np.ones((3, 4)) * 1j, TypeError, r"complex128: expected real numbers"),
        ("record", TypeError, r"expected real numbers"),
    ],
)
def test_what_is_no_climatology_is_refused(brought, error, words):
    with pytest.raises(error, match=words):
        Lorenz96(sites=SITES).with_climatology(brought)


def test_too_few_states_are_said():
    with pytest.raises(ValueError, match=r"40 members start from the 30 states .* expected at least 40 states"):
        model_with(30).climatology([0], 0, members=40)
    assert not model_with(30).shortage(30)
    assert "31 trajectories start from the 30 states" in model_with(30).shortage(31)
    assert not Lorenz96().shortage(10**6)
