"""Forecasts at lead times: equal to the model called by hand, at the right times, with keyed errors."""

import math

import pytest
import torch

from xdan import CustomDynamics, Lorenz96
from xdan.core.lead_times import ErrorDraws, states_by_lead

RING = Lorenz96(sites=8)
FORCED = CustomDynamics(lambda x, t: math.cos(3 * t) - x, state={"x": 3}, timestep=0.1, spin_up_time=0.0)


def starts(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(2, 3, 8), (2, 3, 4, 8)])
def test_states_are_those_of_the_model(shape):
    x = starts(*shape)
    for lead, (states, alive) in zip((0, 1, 4), states_by_lead(RING, x, [0, 5, 9], [0, 1, 4]), strict=True):
        torch.testing.assert_close(states, RING.advance(x, lead), rtol=0, atol=0)
        assert bool(alive.all())


def test_a_model_in_time_stands_at_each_start():
    x, clocks = starts(2, 3, 3), [0, 7, 12]
    made = list(states_by_lead(FORCED, x, clocks, [2, 5]))
    for k, clock in enumerate(clocks):
        for lead, (states, _) in zip((2, 5), made, strict=True):
            torch.testing.assert_close(states[:, k], FORCED.from_step(clock).advance(x[:, k], lead), rtol=0, atol=1e-14)
    assert not torch.allclose(made[0][0][:, 0], FORCED.from_step(7).advance(x[:, 0], 2))


def test_a_lost_forecast_is_nan_and_the_others_go_on():
    x = starts(2, 2, 3, 8)
    x[0, 1, 2, 5] = torch.nan
    (_, states), (_, alive) = zip(*states_by_lead(RING, x, [0, 1], [0, 2]), strict=True)
    assert alive.tolist() == [[True, False], [True, True]]
    assert bool(states[0, 1].isnan().all())
    torch.testing.assert_close(states[1], RING.advance(x[1], 2), rtol=0, atol=0)


def test_a_forecast_that_leaves_all_bounds_stays_lost():
    doubling = CustomDynamics(lambda x: x * x * x, state={"x": 1}, timestep=1.0, spin_up_time=0.0)
    x = torch.tensor([[[1.0], [0.0]]], dtype=torch.float64)
    flags = [alive.tolist() for _, alive in states_by_lead(doubling, x, [0, 0], [0, 20, 40])]
    assert flags == [[[True, True]], [[False, True]], [[False, True]]]


def test_errors_of_a_model_add_q_after_each_interval():
    """x_{k+1} = x_k + e: after n intervals the variance is n Q, and leads between intervals add nothing."""
    still = CustomDynamics(lambda x: 0 * x, state={"x": 2}, timestep=0.1, spin_up_time=0.0)
    error = still.with_model_error([0.5, 2.0]).model_error
    x = torch.zeros(3, 40, 100, 2, dtype=torch.float64)
    draws = ErrorDraws(error, 4, 1, torch.arange(3), torch.arange(40))
    made = [states for states, _ in states_by_lead(still, x, [0] * 40, [0, 3, 4, 7, 12], draws)]
    variances = torch.stack([states.flatten(0, 2).var(0) for states in made])
    expected = torch.tensor([0.0, 0.0, 1.0, 1.0, 3.0])[:, None] * torch.tensor([0.25, 4.0])
    torch.testing.assert_close(variances, expected.double(), rtol=0.04, atol=1e-12)


def test_errors_are_independent_and_follow_from_their_labels():
    error = RING.with_model_error(1.0).model_error
    x = torch.zeros(2, 3, 4, 8, dtype=torch.float64)
    whole = ErrorDraws(error, 1, 5, torch.tensor([3, 9]), torch.tensor([0, 10, 20]))
    rows = torch.stack([whole.added(x, number) for number in (0, 1)]).reshape(-1, 8)
    assert len(rows.unique(dim=0)) == len(rows)
    part = ErrorDraws(error, 1, 5, torch.tensor([9]), torch.tensor([10]))
    torch.testing.assert_close(part.added(x[1:, 1:2], 1), whole.added(x, 1)[1:, 1:2], rtol=0, atol=0)
