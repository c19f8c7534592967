"""Checks of derivatives, on functions whose derivative is known to be right, wrong or missing."""

import re

import numpy as np
import pytest
import torch

from xdan.core.derivative_checks import check_derivative, check_model, check_operator, climate_states, pull_back, sizes
from xdan.core.dynamics import CustomDynamics, Lorenz63, Lorenz96
from xdan.core.observing import FunctionOperator

LIKE = torch.zeros((), dtype=torch.float64)
RING = Lorenz96(8)
MODES = ["forward", "backward"]


def model(step, rest=lambda noise: 8.0 + noise, **parameters):
    return CustomDynamics(step=step, **{"state": {"x": 8}, "timestep": 0.05, "rest": rest} | parameters)


def through_numpy(x):
    return torch.from_numpy(RING.step(x.detach()).numpy())


def short(x):
    return x + 1e-3 * RING.tendency(x).detach()


RIGHT = {
    "lorenz96": RING,
    "one point": Lorenz96(8, forcing=0.5),
    "lorenz63": Lorenz63(),
    "clamped": model(lambda x: RING.step(x).clamp(-2, 5)),
    "clamped where the climate is": model(lambda x: (0.1 * x).clamp_min(0.0), rest=lambda noise: 0 * noise),
    "steps of a stair": model(lambda x: RING.step(x).round(decimals=3)),
    "identity": model(lambda x: 1.0 * x),
    "constant": model(lambda x: 0 * x + 3),
    "kelvin": model(lambda x: 288 + 1e-2 * RING.step(1e2 * (x - 288)), rest=lambda noise: 288.08 + 1e-2 * noise),
    "small units": model(lambda x: 1e-6 * RING.step(1e6 * x), rest=lambda noise: 1e-6 * (8 + noise)),
    "single precision inside": model(lambda x: RING.step(x.float()).to(x)),
    "one variable": model(lambda x: 3.9 * x * (1 - x), state={"x": 1}, rest=torch.sigmoid),
}
WRONG = {
    "numpy": model(through_numpy),
    "numpy without detach": model(lambda x: torch.from_numpy(np.asarray(RING.step(x)))),
    "detached": model(lambda x: RING.step(x.detach())),
    "tendency detached, short step": model(short, timestep=1e-3, spin_up_time=0.5),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_derivative_passes(name, mode):
    check_model(RIGHT[name], mode, climate_states(RIGHT[name], 0, LIKE), "ask")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_or_missing_derivative_is_refused_with_what_to_do(name, mode):
    states = climate_states(WRONG[name], 0, LIKE)
    with pytest.raises(ValueError, match=r"step of the model 'custom'.*expected.*detach.*Take 'etkf'"):
        check_model(WRONG[name], mode, states, "take 'etkf'")


def test_the_message_holds_both_numbers():
    # d(x^2) along v is 2 x v, and the function says 3 x v.
    states = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    number = r"(-?[\d.]+)"

    def along(x, directions):
        return 3 * x[:, None] * directions

    with pytest.raises(ValueError, match="the derivative of the square is wrong") as error:
        check_derivative(lambda x: x**2, states, "the square", "ask", along=along)
    says, differences = re.search(f"it is {number}.*differences give {number}", str(error.value)).groups()
    assert float(says) / float(differences) == pytest.approx(1.5, rel=0.02)


def test_a_derivative_written_out_is_compared_too():
    class Slanted(Lorenz96):
        def advance_along(self, x, directions, steps):
            after, pushed = super().advance_along(x, directions, steps)
            return after, pushed + 0.1 * directions.roll(1, -1)

    slanted = Slanted(8)
    states = climate_states(slanted, 0, LIKE)
    check_model(slanted, "backward", states, "ask")
    with pytest.raises(ValueError, match=r"forward mode.*correct a derivative that is written out"):
        check_model(slanted, "forward", states, "ask")


def test_a_model_in_single_precision_is_compared_in_its_own():
    layer = torch.nn.Linear(8, 8).requires_grad_(False)
    right, wrong = model(lambda x: 0.5 * layer(x)), model(lambda x: 0.5 * layer(x.detach()))
    for mode in MODES:
        check_model(right, mode, climate_states(right, 0, LIKE.float()), "ask")
        with pytest.raises(ValueError, match="expected"):
            check_model(wrong, mode, climate_states(wrong, 0, LIKE.float()), "ask")


@pytest.mark.parametrize("mode", MODES)
def test_an_operator_is_checked_like_a_model(mode):
    states = climate_states(RING, 0, LIKE)
    check_operator(None, mode, states, "ask")
    check_operator(FunctionOperator(lambda x: x[..., ::2].abs(), 4), mode, states, "ask")
    with pytest.raises(ValueError, match=r"the observation operator.*expected"):
        check_operator(FunctionOperator(lambda x: x[..., ::2].detach() ** 2, 4), mode, states, "ask")


def test_a_gradient_that_is_not_a_number_is_refused():
    # The untaken branch has an infinite derivative, which autodiff multiplies by zero.
    states = torch.tensor([[-1.0], [-2.0], [-3.0], [-0.5]], dtype=torch.float64)

    def trap(x):
        return torch.where(x > 0, x.sqrt(), 0.5 * x)

    with pytest.raises(ValueError, match="it is nan in backward mode"):
        check_derivative(trap, states, "the trap", "ask", adjoint=pull_back(trap))


def test_the_check_takes_one_step_of_the_model():
    calls = []

    def step(x):
        calls.append(len(x))
        return 0.9 * x

    counted = model(step, spin_up_time=0.0)
    check_model(counted, "forward", torch.randn(4, 8, dtype=torch.float64), "ask")
    assert len(calls) <= 4


def test_states_around_a_climate_of_one_point_are_apart():
    assert float(climate_states(Lorenz96(8, forcing=0.5), 0, LIKE).std(0).min()) > 0.01
    torch.testing.assert_close(sizes(torch.tensor([[0.0, 2.0, 1.0], [0.0, 2.0, 3.0]]))[1:], torch.tensor([2.0, 2**0.5]))
