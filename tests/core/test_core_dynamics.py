"""Dynamics: the written formula, its symmetries, the integrator's order, every route of `advance`."""

import datetime
import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from xdan.core.checks import XdanWarning
from xdan.core.dynamics import (
    CustomDynamics,
    Dynamics,
    Lorenz63,
    Lorenz96,
    dynamics_from_json,
    dynamics_to_json,
    register_dynamics,
    runge_kutta_4,
)
from xdan.core.random import Purpose
from xdan.core.spaces import Coordinate

DOUBLE = torch.zeros((), dtype=torch.float64)


@pytest.fixture(scope="module", autouse=True)
def spun_up_once() -> None:
    """None: every spin-up is made."""


def states(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2.3 + 3.6 * torch.randn(shape, generator=generator, dtype=torch.float64)


def decay(timestep: float = 0.1, rate: float = 1.0, **options) -> CustomDynamics:
    return CustomDynamics(lambda x: -rate * x, state={"x": 3}, timestep=timestep, **options)


def written_tendency(x: list[float], forcing: float) -> list[float]:
    n = len(x)
    return [(x[(i + 1) % n] - x[i - 2]) * x[i - 1] - x[i] + forcing for i in range(n)]


@pytest.mark.parametrize("sites", [4, 5, 11, 40])
def test_lorenz96_tendency_is_the_written_formula(sites):
    x = states(sites)
    expected = torch.tensor(written_tendency(x.tolist(), 7.5), dtype=torch.float64)
    assert_close(Lorenz96(sites, 7.5).tendency(x), expected, rtol=1e-14, atol=1e-13)


def test_lorenz96_takes_a_forcing_for_each_site():
    dynamics, x = Lorenz96(9, UNEVEN), states(2, 9)
    assert_close(dynamics.tendency(x), Lorenz96(9, 0.0).tendency(x) + torch.tensor(UNEVEN, dtype=x.dtype))
    assert_close(dynamics.rest(torch.zeros(9)), torch.tensor(UNEVEN))
    assert dynamics.tendency(x.float()).dtype == torch.float32
    alike = Lorenz96(9, [6.0] * 9)
    assert torch.equal(alike.advance(x, 3), Lorenz96(9, 6.0).advance(x, 3))


def test_lorenz96_keeps_a_forcing_for_each_site_in_stores():
    dynamics = Lorenz96(9, np.array(UNEVEN))
    described = json.loads(json.dumps(dynamics_to_json(dynamics)))
    assert described["parameters"] == {"sites": 9, "forcing": UNEVEN, "timestep": 0.05}
    opened = dynamics_from_json(described)
    assert opened == dynamics
    assert hash(opened) == hash(dynamics)
    assert torch.equal(opened.fingerprint(), dynamics.fingerprint())
    assert opened != Lorenz96(9, UNEVEN[::-1])


def test_lorenz96_has_a_direction():
    # With every roll flipped a model is the mirror image: its tendency is that of x read backwards.
    dynamics, x = Lorenz96(11), states(11)
    assert (dynamics.tendency(x.flip(-1)).flip(-1) - dynamics.tendency(x)).abs().max() > 1.0


@settings(max_examples=20, deadline=None)
@given(sites=st.integers(4, 13), turn=st.integers(-20, 20), seed=st.integers(0, 1000))
def test_lorenz96_turns_with_the_ring(sites, turn, seed):
    dynamics, x = Lorenz96(sites), states(2, sites, seed=seed)
    turned, unturned = dynamics.advance(x.roll(turn, -1), 3), dynamics.advance(x, 3)
    assert_close(turned, unturned.roll(turn, -1), rtol=1e-13, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(sites=st.integers(4, 20), seed=st.integers(0, 1000), forcing=st.floats(-10, 10))
def test_lorenz96_advection_conserves_energy(sites, seed, forcing):
    x = states(sites, seed=seed)
    advection = Lorenz96(sites, forcing).tendency(x) + x - forcing
    assert abs(float(x @ advection)) < 1e-12 * float(x.norm() * advection.norm())


def test_runge_kutta_4_of_a_linear_decay_is_its_taylor_polynomial():
    x, h = states(3), 0.3
    polynomial = 1 - h + h**2 / 2 - h**3 / 6 + h**4 / 24
    assert_close(runge_kutta_4(lambda x: -x, x, h), polynomial * x, rtol=1e-14, atol=0)


def test_custom_decay_is_of_fourth_order():
    x, exact = states(3), states(3) * math.exp(-2.0)
    errors = [(decay(h, 2.0).advance(x, round(1 / h)) - exact).norm() for h in (0.1, 0.05, 0.025)]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert orders == pytest.approx([4, 4], abs=0.15)


def test_lorenz96_is_of_fourth_order():
    x = states(12)
    exact = Lorenz96(12, timestep=0.2 / 512).advance(x, 512)
    errors = [(Lorenz96(12, timestep=0.2 / n).advance(x, n) - exact).norm() for n in (16, 32, 64)]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert orders == pytest.approx([4, 4], abs=0.15)


def stepped(dynamics: Dynamics, x: torch.Tensor, steps: int) -> torch.Tensor:
    for _ in range(steps):
        x = dynamics.step(x)
    return x


UNEVEN = [8.0, 8.0, 4.0, 4.0, 5.5, 6.0, -1.0, 0.0, 2.0]  # a forcing for each of nine sites


@pytest.mark.parametrize(("sites", "forcing"), [(4, 6.0), (9, 6.0), (9, UNEVEN)])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (1030,)])
def test_advance_without_a_gradient_is_repeated_steps(sites, forcing, shape):
    dynamics, x = Lorenz96(sites, forcing, 0.03), states(*shape, sites)
    assert_close(dynamics.advance(x, 4), stepped(dynamics, x, 4), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("forcing", [6.0, UNEVEN[:5]])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_advance_with_a_gradient_is_repeated_steps(forcing, shape):
    dynamics, x, weight = (
        Lorenz96(5, forcing, 0.03),
        states(*shape, 5).requires_grad_(),
        states(*shape, 5, seed=1),
    )
    answers = [dynamics.advance(x, 4), stepped(dynamics, x, 4)]
    assert_close(*answers, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad((answer * weight).sum(), x)[0] for answer in answers]
    assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_advance_under_jvp_is_repeated_steps():
    dynamics, x, direction = Lorenz96(5), states(2, 5), states(2, 5, seed=1)
    value, tangent = torch.func.jvp(lambda x: dynamics.advance(x, 4), (x,), (direction,))
    assert_close(value, stepped(dynamics, x, 4), rtol=1e-12, atol=1e-12)
    h = 1e-5
    quotient = (dynamics.advance(x + h * direction, 4) - dynamics.advance(x - h * direction, 4)) / (2 * h)
    assert_close(tangent, quotient, rtol=1e-7, atol=1e-7)


def test_advance_under_vmap_is_repeated_steps():
    dynamics, x = Lorenz96(5), states(3, 5)
    mapped = torch.func.vmap(lambda x: dynamics.advance(x, 4))(x)
    assert_close(mapped, stepped(dynamics, x, 4), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 3])
def test_gradient_of_advance_is_the_finite_difference(steps):
    dynamics = Lorenz96(5)
    x = states(2, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: dynamics.advance(x, steps), x, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("dynamics", [Lorenz96(5), decay()])
def test_no_steps_change_nothing(dynamics):
    x = states(2, *dynamics.shape)
    assert torch.equal(dynamics.advance(x, 0), x)


def test_advance_leaves_its_argument_alone():
    x = states(2, 5)
    Lorenz96(5).advance(x, 2)
    assert torch.equal(x, states(2, 5))


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("written", [True, False])
@pytest.mark.parametrize("forcing", [8.0, UNEVEN[:7]])
def test_directions_are_advanced_by_the_tangent_linear_model(steps, written, forcing):
    """The written one of Lorenz-96 and, for a dynamics without, autodiff: against finite differences."""
    model = Lorenz96(7, forcing)
    if not written:
        model = CustomDynamics(model.tendency, state={"x": 7}, timestep=0.05)
    generator = torch.Generator().manual_seed(3)
    x = 2.3 + 3.0 * torch.randn(2, 7, dtype=torch.float64, generator=generator)
    directions = torch.randn(2, 4, 7, dtype=torch.float64, generator=generator)
    after, pushed = model.advance_along(x, directions, steps)
    assert_close(after, model.advance(x, steps), rtol=1e-13, atol=1e-13)
    h = 1e-6
    plus, minus = (model.advance(x[:, None] + sign * h * directions, steps) for sign in (1, -1))
    assert_close(pushed, (plus - minus) / (2 * h), rtol=1e-7, atol=1e-7)
    for one, other in zip((after, pushed), Dynamics.advance_along(model, x, directions, steps), strict=True):
        assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_lorenz96_climatology_has_the_known_moments():
    x = Lorenz96().climatology(range(400), seed=0, like=DOUBLE)
    assert x.mean() == pytest.approx(2.34, abs=0.05)
    assert x.std() == pytest.approx(3.64, abs=0.05)


@settings(max_examples=10, deadline=None)
@given(labels=st.lists(st.integers(0, 36), min_size=1, max_size=20))
def test_climatology_is_keyed_by_label(labels):
    # Chaos would grow the smallest rounding difference to the size of the attractor.
    dynamics = Lorenz96(5)
    assert torch.equal(dynamics.climatology(labels, 1), dynamics.climatology(range(37), 1)[labels])


def test_climatology_differs_between_labels_members_seeds_and_purposes():
    dynamics = Lorenz96(5)
    draws = [
        dynamics.climatology([0, 1], seed, members=3, purpose=purpose, like=DOUBLE).flatten(0, 1)
        for seed in (0, 1)
        for purpose in (Purpose.INITIAL_STATE, Purpose.ENSEMBLE)
    ]
    x = torch.cat(draws)
    assert torch.pdist(x).min() > 0.1


def test_members_of_a_climatology_do_not_depend_on_their_number():
    dynamics = Lorenz96(5)
    two, five = (dynamics.climatology([4, 2], 0, members=members) for members in (2, 5))
    assert torch.equal(two, five[:, :2])


@pytest.mark.parametrize(("interval", "steps"), [(0.05, 1), (0.15, 3), (0.7, 14), (20.0, 400)])
def test_steps_in_counts_steps(interval, steps):
    assert Lorenz96().steps_in(interval) == steps


@pytest.mark.parametrize("interval", [0.0, -0.05, 0.01, 0.07, 0.0501])
def test_steps_in_refuses_what_is_no_positive_multiple(interval):
    with pytest.raises(ValueError, match=r"not a positive multiple of the lorenz96 time step 0\.05"):
        Lorenz96().steps_in(interval)


def test_lorenz96_survives_the_round_trip_through_json():
    dynamics = Lorenz96(7, forcing=6, timestep=0.025)
    opened = dynamics_from_json(dynamics_to_json(dynamics))
    assert opened == dynamics
    assert opened != Lorenz96(7, forcing=6)
    x = states(7)
    assert torch.equal(opened.step(x), dynamics.step(x))


def test_a_registered_dynamics_opens_by_its_name():
    class Halving(Lorenz96):
        name = "test-core-halving"

        def step(self, x):
            return x / 2

    register_dynamics(Halving)
    opened = dynamics_from_json({"name": "test-core-halving", "parameters": {"sites": 6}})
    assert type(opened) is Halving
    assert opened.shape == (6,)


def test_an_unknown_dynamics_is_refused():
    with pytest.raises(ValueError, match=r"Pass dynamics= .*'os.system' is not registered.*lorenz96"):
        dynamics_from_json({"name": "os.system", "parameters": {}})


def test_an_unknown_parameter_of_a_dynamics_is_refused():
    with pytest.raises(ValueError, match=r"no parameters \['sights'\].*'sites'"):
        dynamics_from_json({"name": "lorenz96", "parameters": {"sights": 40}})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"sites": 3}, "sites=3"),
        ({"sites": 9, "forcing": UNEVEN[:4]}, r"shape \(4,\): expected a number, or one for each of the 9 sites"),
        ({"sites": 4, "forcing": [8.0, 8.0, 8.0, math.nan]}, "forcing"),
        ({"timestep": 0.0}, "timestep=0: expected"),
        ({"timestep": 0.06}, "timestep=0.06"),
    ],
)
def test_lorenz96_refuses_parameters_out_of_range(parameters, message):
    with pytest.raises(ValueError, match=message):
        Lorenz96(**parameters)


def test_custom_dynamics_takes_a_step():
    dynamics = CustomDynamics(step=lambda x: 2 * x + 1, state={"x": 3}, timestep=1.0)
    assert torch.equal(dynamics.advance(torch.zeros(2, 3), 3), torch.full((2, 3), 7.0))


def test_custom_dynamics_starts_from_rest_and_spins_up():
    dynamics = decay(0.5, spin_up_time=1.0, rest=lambda noise: 3 + 0 * noise)
    once = 1 - 0.5 + 0.5**2 / 2 - 0.5**3 / 6 + 0.5**4 / 24
    start = dynamics.climatology([0, 1], 0, like=DOUBLE)
    assert_close(start, torch.full((2, 1, 3), 3 * once**2, dtype=torch.float64), rtol=1e-14, atol=0)


def test_custom_dynamics_names_its_dims():
    state = {"lat": [-30.0, 30.0], "lon": 4}
    dynamics = CustomDynamics(lambda x: -x, state=state, timestep=0.1, spin_up_time=0.0)
    assert (dynamics.dims, dynamics.shape) == (("lat", "lon"), (2, 4))
    assert dynamics.coordinates["lat"].values == (-30.0, 30.0)
    assert dynamics.climatology([0, 1, 2], 0, members=5).shape == (3, 5, 2, 4)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "exactly one"),
        ({"tendency": torch.neg, "step": torch.neg}, "exactly one"),
        ({"step": torch.neg, "state": {}}, "no dims"),
        ({"step": torch.neg, "timestep": 0.0}, "timestep=0: expected a finite number, above 0"),
    ],
)
def test_custom_dynamics_refuses_what_makes_no_model(parameters, message):
    with pytest.raises(ValueError, match=message):
        CustomDynamics(**{"state": {"x": 3}, "timestep": 0.1, **parameters})


@pytest.mark.parametrize(("timestep", "expected"), [(0.001, 20.0), (0.05, 20.0), (0.1, 40.0), (21600.0, 400 * 21600.0)])
def test_the_spin_up_follows_the_step(timestep, expected):
    dynamics = decay(timestep)
    assert dynamics.spin_up_time == dynamics.config()["spin_up_time"] == pytest.approx(expected)
    assert dynamics.spin_up_steps() == max(400, round(20 / timestep))
    assert decay(timestep, spin_up_time=0.0).spin_up_steps() == 0
    assert Lorenz96().spin_up_steps() == 400


def test_a_spin_up_in_other_units_is_told_or_refused():
    with pytest.warns(XdanWarning, match="spin_up_time=20 is less than one timestep=21600, .* 0 steps"):
        decay(21600.0, spin_up_time=20.0)
    with pytest.raises(
        ValueError, match=r"spin_up_time=1e\+09 takes 1e\+10 steps of timestep=0.1: expected at most 10"
    ):
        decay(spin_up_time=1e9)
    with pytest.warns(XdanWarning, match=r"a spin-up of 5 steps .* moved by .* still the noise that they began from"):
        decay(rate=1e-6, spin_up_time=0.5).climatology([0, 1], 0)


def test_a_start_that_blows_up_is_refused():
    def outflow(x):  # of tanks, whose levels are positive
        return 1.0 - torch.sqrt(x)

    with pytest.raises(ValueError, match=r"10 of 10 states of 'custom' are not finite after 400 steps .* give rest= "):
        CustomDynamics(outflow, state={"x": 8}, timestep=0.05).climatology(range(10), 0)
    full = CustomDynamics(outflow, state={"x": 8}, timestep=0.05, rest=torch.exp)
    assert_close(full.climatology([0, 1], 0), torch.ones(2, 1, 8), rtol=0, atol=1e-2)
    blunt = CustomDynamics(step=lambda x: x * 1e3, state={"x": 2}, timestep=1.0, spin_up_time=50.0, name="tanks")
    with pytest.raises(ValueError, match="1 of 1 states of 'tanks' are not finite after 50 steps"):
        blunt.try_start(0, 0, torch.zeros((), dtype=torch.float32))
    with pytest.raises(ValueError, match=r"an interval of 0\.5 is not a positive multiple of the tanks time step 1;"):
        blunt.steps_in(0.5)


@pytest.mark.parametrize("interval", [1e9, 50_000.05])
def test_intervals_of_too_many_steps_are_refused(interval):
    with pytest.raises(ValueError, match="expected at most 1000000; is the time in other units"):
        Lorenz96().steps_in(interval)


def test_single_precision_whatever_torchs_default():
    torch.set_default_dtype(torch.float64)
    try:
        assert Lorenz96(5).climatology([0], 0).dtype == decay().climatology([0], 0).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("time_unit", "nanoseconds", "words"),
    [
        (np.timedelta64(5, "D"), 432_000 * 10**9, "5 days"),
        (datetime.timedelta(minutes=90), 5_400 * 10**9, "90 minutes"),
        (np.timedelta64(3, "ms"), 3 * 10**6, "3000000 nanoseconds"),
    ],
)
def test_the_unit_of_time_is_a_duration(time_unit, nanoseconds, words):
    dynamics = decay(time_unit=time_unit)
    assert dynamics.time_unit == np.timedelta64(nanoseconds, "ns")
    assert dynamics.time_unit.dtype == "m8[ns]"
    assert dynamics.config()["time_unit"] == words
    assert Lorenz96().time_unit is None
    assert "time_unit" not in decay().config()


class OwnUnit(Dynamics):
    """A model of a user that keeps its parameters and describes itself by default."""

    name, dims = "own-unit", ("x",)

    def __init__(self, sites=3, time_unit=None):
        self.sites, self.timestep, self.time_unit = sites, 0.5, time_unit
        self.coordinates = {"x": Coordinate(tuple(range(sites)))}

    def tendency(self, x):
        return -x


@pytest.mark.parametrize("cls", [Lorenz96, Lorenz63, OwnUnit])
@pytest.mark.parametrize(
    ("time_unit", "words"),
    [
        (np.timedelta64(5, "D"), "5 days"),
        (np.timedelta64(6, "h"), "6 hours"),
        (datetime.timedelta(seconds=90), "90 seconds"),
        ("7 minutes", "7 minutes"),
        (np.timedelta64(1_500_000_001, "ns"), "1500000001 nanoseconds"),
    ],
)
def test_a_description_keeps_the_unit_of_time(cls, time_unit, words):
    dynamics = cls(time_unit=time_unit)
    assert dynamics.config()["time_unit"] == words
    assert cls(**json.loads(json.dumps(dynamics.config()))) == dynamics != cls()
    assert cls(**dynamics.config()).time_unit == dynamics.time_unit
    assert "time_unit" not in cls().config()


@pytest.mark.parametrize("cls", [Lorenz96, Lorenz63])
def test_stores_name_the_unit_of_time(cls):
    dynamics = cls(time_unit=np.timedelta64(5, "D"))
    assert dynamics_from_json(json.loads(json.dumps(dynamics_to_json(dynamics)))).time_unit == np.timedelta64(5, "D")


@pytest.mark.parametrize("words", ["5", "5 weeks", "0 days", "-1 days", "5  days", "999999999 days", "5 days\n"])
def test_words_that_are_no_unit_of_time(words):
    with pytest.raises((TypeError, ValueError), match=r"time_unit=.*: expected"):
        Lorenz96(time_unit=words)


def test_numpys_numbers_are_taken():
    dynamics = CustomDynamics(
        lambda x: -x,
        state={"y": np.int64(2), "x": np.array([1.5, 2.5])},
        timestep=np.float32(0.25),
        spin_up_time=np.int8(1),
    )
    assert dynamics.config()["state"] == {"y": [0, 1], "x": [1.5, 2.5]}
    assert [type(value) for value in dynamics.coordinates["x"].values] == [float, float]
    assert (type(dynamics.timestep), type(dynamics.spin_up_time)) == (float, float)
    assert Lorenz96(np.int32(5), np.float64(6), np.float32(0.03125)).config() == {
        "sites": 5,
        "forcing": 6.0,
        "timestep": 0.03125,
    }


ODD = [None, "8", [8], {}, 1j, math.nan, True, np.datetime64("2020"), np.timedelta64(1, "D"), np.ones(2) + 1j]


@pytest.mark.parametrize("value", [*ODD, 8.0, 3, 10**12])
def test_sites_of_a_ring_are_an_integer_of_four_or_more(value):
    with pytest.raises((TypeError, ValueError), match=r"sites=.*expected"):
        Lorenz96(sites=value)


@pytest.mark.parametrize("value", ODD)
def test_parameters_of_the_known_models_are_numbers(value):
    for make, label in ((Lorenz96, "forcing"), (Lorenz63, "rho"), (Lorenz63, "sigma"), (Lorenz96, "timestep")):
        with pytest.raises((TypeError, ValueError), match=f"{label}=.*expected"):
            make(**{label: value})


@pytest.mark.parametrize(
    "label", ["timestep", "spin_up_time", "units", "name", "rest", "distance", "time_unit", "state"]
)
@pytest.mark.parametrize("value", [*ODD[1:], object()])
def test_arguments_of_a_model_are_named_when_they_are_wrong(label, value):
    if (label in ("units", "name") and isinstance(value, str)) or (
        label == "time_unit" and isinstance(value, np.timedelta64)
    ):
        return
    with pytest.raises((TypeError, ValueError), match=rf"{label}=.*expected"):
        CustomDynamics(**{"tendency": torch.neg, "state": {"x": 3}, "timestep": 0.1, label: value})


@pytest.mark.parametrize(
    "state",
    [
        *({"x": value} for value in (0, -3, 2.5, True, None, "abc", [], {1, 2}, [1, "a"], [1, 1.0], [0.0, math.nan])),
        *({"x": value} for value in ([True, False], np.array(["2020"], "M8[D]"), np.eye(2), 10**12, [math.inf])),
        *(
            {name: 3}
            for name in ("trajectory", "time", "member", "channel", "obs", "i", "j", "l", "x_dual", "truth", 3)
        ),
        {"x": 10**6, "y": 10**6},
    ],
)
def test_states_that_records_cannot_hold_are_refused(state):
    with pytest.raises((TypeError, ValueError), match=r"state.*expected"):
        CustomDynamics(torch.neg, state=state, timestep=0.1)


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "description",
    [
        None,
        3,
        "lorenz96",
        ["lorenz96"],
        {},
        {"name": ["lorenz96"]},
        {"name": "lorenz96", "parameters": [40]},
        {"name": "lorenz96", "parameters": None},
        {"name": nested(100_000)},
        *(
            {"name": "lorenz96", "parameters": {"sites": n}}
            for n in (10**12, 1e3, "40", True, [40], None, nested(100_000))
        ),
        {"name": "lorenz63", "parameters": {"rho": math.nan}},
        {"name": "lorenz96", "parameters": {3: 4}},
    ],
)
def test_odd_descriptions_are_refused_at_once(description):
    with pytest.raises(ValueError, match="expected"):
        dynamics_from_json(description)


def test_a_description_may_hold_more():
    assert dynamics_from_json({"name": "lorenz96", "parameters": {"sites": 5}, "comment": "a ring"}) == Lorenz96(5)


def test_a_registered_name_is_not_taken_over():
    with pytest.raises(ValueError, match=r"the name 'lorenz96' is that of .*expected another `name`"):
        register_dynamics(type("Other", (Lorenz96,), {"name": "lorenz96"}))
    with pytest.raises(TypeError, match=r"register_dynamics\(3\): expected a class"):
        register_dynamics(3)


class Damped(Dynamics):
    """A user's class with a tendency and nothing else, which spoils its argument."""

    name, dims, spin_up_time = "test-core-damped", ("x",), 0.0

    def __init__(self, sites: int = 3, rate: float = 1.0, timestep: float = 0.1) -> None:
        self.sites, self.rate, self.timestep = sites, rate, timestep
        self.coordinates = {"x": Coordinate(tuple(range(sites)))}

    def config(self):
        return {"sites": self.sites, "rate": self.rate, "timestep": self.timestep}

    def tendency(self, x):
        return x.mul_(-self.rate)


def test_a_tendency_makes_a_model():
    dynamics, x = Damped(rate=2.0), states(4, 3)
    factor = sum((-0.2) ** k / math.factorial(k) for k in range(5))
    assert_close(dynamics.advance(x, 3), factor**3 * x, rtol=1e-14, atol=0)
    assert torch.equal(x, states(4, 3)), "the argument is left alone"
    back = sum(0.2**k / math.factorial(k) for k in range(5))
    assert_close(dynamics.retreat(x, 2), back**2 * x, rtol=1e-14, atol=0)
    assert_close(dynamics.tendency(states(2, 5, 3)), -2.0 * states(2, 5, 3), rtol=1e-15, atol=0)
    pushed = dynamics.advance_along(x, 3 * x[:, None], 3)[1][:, 0]
    assert_close(pushed, 3 * factor**3 * x, rtol=1e-13, atol=0)


def test_a_class_without_tendency_and_step_is_told():
    class Empty(Damped):
        name = "test-core-empty"
        tendency = Dynamics.tendency

    with pytest.raises(ValueError, match=r"Empty has no tendency\(\): expected tendency\(\) or step\(\) in its class"):
        Empty().climatology([0], 0)


def test_a_subclass_with_another_tendency_may_work_in_place():
    class Decaying(Lorenz96):
        def tendency(self, x):
            return x.mul_(-1.0)

    factor, x = sum((-0.05) ** k / math.factorial(k) for k in range(5)), states(2, 6)
    assert_close(Decaying(6).advance(x, 2), factor**2 * x, rtol=1e-14, atol=0)
    assert torch.equal(x, states(2, 6))


def test_a_config_that_makes_another_model_is_refused():
    class Whole(Damped):
        name = "test-core-whole"

    class Forgets(Damped):
        name = "test-core-forgets"

        def config(self):
            return {"sites": self.sites}

    class Odd(Damped):
        name = "test-core-odd"

        def config(self):
            return {"sites": self.sites, "rate": torch.tensor(self.rate)}

    for cls in (Whole, Forgets, Odd):
        assert register_dynamics(cls) is cls
    assert dynamics_from_json(dynamics_to_json(Whole(4, 2.0, 0.2))) == Whole(4, 2.0, 0.2)
    assert dynamics_to_json(Forgets()) == {"name": "test-core-forgets", "parameters": {"sites": 3}}
    for forgotten in ({"rate": 2.0}, {"timestep": 0.2}):
        with pytest.raises(ValueError, match=r"config\(\) of the dynamics 'test-core-forgets' .* makes another model"):
            dynamics_to_json(Forgets(**forgotten))
    with pytest.raises(ValueError, match=r"config\(\) .* cannot be made \(.*not JSON serial.*\): expected the constr"):
        dynamics_to_json(Odd())


@pytest.mark.parametrize(("device", "kept"), [("cpu", 3), ("meta", 0)])
def test_buffers_of_a_gpu_go_with_the_gradient(device, kept):
    """The meta device stands for a GPU: its tensors take no memory."""
    dynamics, x = Lorenz96(5), torch.ones(2, 5, device=device, requires_grad=True)
    after = dynamics.advance(x, 3)
    (gradient,) = torch.autograd.grad(after.sum(), x)
    del after
    assert gradient.shape == x.shape
    assert sum(map(len, dynamics._tapes._free.values())) == kept
