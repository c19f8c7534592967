"""Trials of a model: its fingerprint on states that it can have, its start states."""

import math

import pytest
import torch
from torch.testing import assert_close

import xdan
from xdan.core.dynamics import CustomDynamics, Lorenz63, Lorenz96


def model(tendency, **options):
    return CustomDynamics(tendency, **{"state": {"x": 8}, "timestep": 0.01, "spin_up_time": 0.0, **options})


def runge_kutta_of(rate, h):
    """Factor of one step of dx/dt = rate x."""
    return sum((rate * h) ** k / math.factorial(k) for k in range(5))


@pytest.mark.parametrize("dynamics", [Lorenz96(8), Lorenz63(), model(lambda x: -2.0 * x)])
def test_a_fingerprint_is_one_step_from_a_ramp(dynamics):
    """Stores that exist hold the digest of these numbers."""
    size = math.prod(dynamics.shape)
    ramp = torch.tensor([0.1 + 0.9 * k / (size - 1) for k in range(size)], dtype=torch.float64)[None]
    expected = dynamics.advance(ramp, 1)
    assert_close(dynamics.fingerprint(), expected, rtol=0, atol=1e-9)
    assert torch.equal(dynamics.fingerprint(), dynamics.fingerprint().round(decimals=9))


def test_known_fingerprints():
    """Computed by hand from the tendency of Lorenz-63 at (0.1, 0.55, 1), with one step so short that Euler's is it."""
    a, b, c, h = 0.1, 0.55, 1.0, 1e-6
    tendency = [10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c]
    expected = [value + h * slope for value, slope in zip((a, b, c), tendency, strict=True)]
    assert_close(Lorenz63(timestep=h).fingerprint()[0], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)


def warm(noise):
    """States of a model in kelvin, or of rain: far from the ramp."""
    return 280.0 + noise


def cooling(rate):
    return lambda x: -rate * torch.log(x - 200.0)


def test_a_model_that_cannot_bear_the_ramp_has_a_fingerprint():
    slow, slow_too, fast = (model(cooling(rate), rest=warm) for rate in (1.0, 1.0, 1.5))
    assert bool(slow.fingerprint().isfinite().all())
    assert torch.equal(slow.fingerprint(), slow_too.fingerprint())
    assert not torch.equal(slow.fingerprint(), fast.fingerprint())
    assert slow == slow_too
    assert slow != fast


def test_the_fingerprint_of_such_a_model_is_a_step_from_its_start_states():
    """The step of a linear model is known; what cannot bear the ramp is a part of it that never changes a state."""
    dynamics = model(lambda x: -2.0 * x + 0.0 * torch.sqrt(x - 100.0), rest=warm)
    states = dynamics.start_states()
    assert states.shape == (2, 8)
    assert bool((states > 200).all())
    assert torch.equal(states, dynamics.start_states())
    expected = runge_kutta_of(-2.0, 0.01) * states / 1000.0
    assert_close(dynamics.fingerprint(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [1e-9, 1e9])
def test_small_and_large_units_do_not_hide_a_difference(size):
    """States of 1e-9 would all be rounded away by nine decimals, and of 1e9 not be rounded at all."""

    def of(rate):
        def tendency(x):  # of states between 1 and 2 sizes
            return -rate * x + 0.0 * torch.sqrt((x - 0.5 * size) * (2.5 * size - x))

        return model(tendency, rest=lambda noise: size * (1.0 + torch.sigmoid(noise)))

    assert torch.equal(of(1.0).fingerprint(), of(1.0 + 1e-12).fingerprint())
    assert not torch.equal(of(1.0).fingerprint(), of(1.0001).fingerprint())


def test_a_model_that_no_start_serves_says_so():
    with pytest.raises(ValueError, match=r"a step of the dynamics 'custom' from the states that rest\(\) gives is not"):
        model(lambda x: torch.sqrt(x - 100.0)).fingerprint()


def test_start_states_take_the_precision_that_rest_takes():
    shift = torch.full((8,), 2.0)
    dynamics = model(lambda x: -x, rest=lambda noise: torch.add(noise, 1.0) @ torch.diag(shift))
    assert dynamics.start_states().dtype == torch.float32
    assert Lorenz96(8).start_states().dtype == torch.float64


def test_a_function_of_several_fields_on_one_field_is_told_of_geometries():
    def coupled(x):
        return {"fast": x["slow"], "slow": x["fast"]}

    state = {"fast": 3, "slow": 4}
    one = xdan.CustomDynamics(step=coupled, state=state, timestep=0.1, spin_up_time=0.0)
    told = r"failed .*\. This is one field with the dims fast and slow; for 2 fields pass .*\{'fast': xdan.Ring\(3\), "
    with pytest.raises(ValueError, match=told):
        one.vet()
    rings = {"fast": xdan.Ring(3), "slow": xdan.Ring(3)}
    xdan.CustomDynamics(step=coupled, state=rings, timestep=0.1, spin_up_time=0.0).vet()


@pytest.mark.parametrize("state", [{"x": 3}, {"fast": xdan.Ring(3), "slow": xdan.Ring(3)}])
def test_one_dim_and_fields_with_geometries_have_no_such_hint(state):
    def fails(x):
        raise KeyError("no such thing")

    with pytest.raises(ValueError, match="failed for states") as caught:
        xdan.CustomDynamics(step=fails, state=state, timestep=0.1, spin_up_time=0.0).vet()
    assert "one field with the dims" not in str(caught.value)
