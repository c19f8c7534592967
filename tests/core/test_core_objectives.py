"""Losses through the cycles: finite differences, and trajectories that are lost and start anew."""

import pytest
import torch
from torch.testing import assert_close

from xdan.core.dynamics import Lorenz96
from xdan.core.methods import DataAssimilationNetwork, Record, run
from xdan.core.networks import ResidualCNN
from xdan.core.objectives import OBJECTIVES, CappedGradient, Window, through_the_cycles
from xdan.core.observing import ErrorCovariance, Sites, observe

DYNAMICS = Lorenz96(5)
ERROR = ErrorCovariance(std=torch.tensor(1.0, dtype=torch.float64))
STEPS = (2, 1, 3)


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def method(memory: int = 0) -> DataAssimilationNetwork:
    net = ResidualCNN(filters=2, blocks=1, kernel=3, memory=memory).double().train()
    with torch.no_grad():
        for index, weight in enumerate([*net.weights, *net.biases]):
            weight.copy_(0.2 * normals(*weight.shape, seed=index))
    net.normalise(2.3, 3.6, 1.0)
    return DataAssimilationNetwork(net)


def window(steps: tuple[int, ...] = STEPS, lanes: int = 3) -> Window:
    trajectory = torch.arange(lanes)
    truth, states = DYNAMICS.climatology(trajectory, 0, like=normals(1)).flatten(1), []
    for count in steps:
        truth = DYNAMICS.advance(truth, count)
        states.append(truth)
    record = torch.stack(states, 1)
    time = torch.arange(len(steps))
    observation = observe(record, Sites.random(3, 5), ERROR, trajectory, time, 0)
    return Window(record, observation, steps)


def carried_state(w: Window, memory: int = 0) -> dict[str, torch.Tensor]:
    """An analysis before the window, close to the truth there."""
    before = DYNAMICS.climatology(range(3), 0, like=w.truth).flatten(1)
    state = {"x": before + 0.3 * normals(3, 5, seed=9)}
    if memory:
        state["memory"] = 0.5 * normals(3, memory, 5, seed=8)
    return state


def lost_window(cycle: int = 1) -> Window:
    """A window whose second trajectory has lost the truth at one cycle."""
    w = window((2, 1, 3, 1))
    w.truth[1, cycle] += 50.0
    return w


def test_objectives_are_the_written_means():
    analysis, truth = normals(2, 3, 5), normals(2, 3, 5, seed=1)
    square = ((analysis - truth) ** 2).sum(-1) / 5
    assert_close(OBJECTIVES["mse"](analysis, truth), square, rtol=1e-13, atol=0)
    assert_close(OBJECTIVES["rmse"](analysis, truth), square.sqrt(), rtol=1e-7, atol=0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_objectives_have_a_finite_gradient_at_a_perfect_analysis(objective):
    analysis = normals(2, 3, 5).requires_grad_()
    (gradient,) = torch.autograd.grad(OBJECTIVES[objective](analysis, analysis.detach()).sum(), analysis)
    assert not gradient.any()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("memory", [0, 2])
def test_gradient_through_three_cycles_is_the_finite_difference(objective, memory):
    dan, w = method(memory), window()
    parameters, state = list(dan.network.parameters()), carried_state(w, memory)

    def loss() -> torch.Tensor:
        analysis, lost, _ = through_the_cycles(dan, DYNAMICS, ERROR, w, state)
        assert not lost.any()
        return OBJECTIVES[objective](analysis, w.truth).mean()

    h = 1e-5
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss(), parameters), strict=True):
        quotient = torch.empty_like(gradient).flatten()
        with torch.no_grad():
            entries = parameter.view(-1)
            for i in range(len(entries)):
                entries[i] += h
                up = loss()
                entries[i] -= 2 * h
                quotient[i] = (up - loss()) / (2 * h)
                entries[i] += h
        assert_close(gradient.flatten(), quotient, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("memory", [0, 2])
def test_cycles_of_training_are_those_of_a_run(memory):
    dan, w = method(memory), window((0, 1, 3, 2))
    analysis, lost, end = through_the_cycles(dan, DYNAMICS, ERROR, w, None)
    assert not lost.any()
    dan.network.eval()
    record = Record(DYNAMICS, ERROR, w.observation, w.steps, torch.arange(3), 0)
    outputs, state = run(dan, record)
    assert_close(analysis, outputs["analysis"], rtol=1e-11, atol=1e-11)
    for name, value in end.items():
        assert_close(value, state[name].detach(), rtol=1e-11, atol=1e-11)
        assert not value.requires_grad


def test_two_windows_give_what_one_long_window_gives():
    dan, w = method(2), window((0, 1, 3, 2))
    whole, _, end = through_the_cycles(dan, DYNAMICS, ERROR, w, None)
    halves = slice(0, 2), slice(2, 4)
    first, second = (Window(w.truth[:, s], w.observation[:, s], w.steps[s]) for s in halves)
    head, _, middle = through_the_cycles(dan, DYNAMICS, ERROR, first, None)
    tail, _, end_too = through_the_cycles(dan, DYNAMICS, ERROR, second, middle)
    assert_close(torch.cat([head, tail], 1), whole, rtol=1e-12, atol=1e-12)
    for name, value in end.items():
        assert_close(end_too[name], value, rtol=1e-12, atol=1e-12)


def test_a_lost_trajectory_is_reported():
    w = lost_window()
    _, lost, _ = through_the_cycles(method(), DYNAMICS, ERROR, w, carried_state(w))
    assert lost.nonzero().tolist() == [[1, 1]]


def test_a_trajectory_is_lost_beyond_the_climate_and_not_before():
    dan, w = method(), window((1,))
    state = carried_state(w)
    analysis, _, _ = through_the_cycles(dan, DYNAMICS, ERROR, w, state)
    for distance, expected in ((3.59, False), (3.61, True)):
        near = Window(analysis.detach() + distance, w.observation, w.steps)
        _, lost, _ = through_the_cycles(dan, DYNAMICS, ERROR, near, state)
        assert bool(lost.all()) is expected
        assert bool(lost.any()) is expected


def test_an_analysis_that_is_not_a_number_is_lost():
    dan, w = method(), window()
    state = carried_state(w)
    state["x"][2] = torch.nan
    analysis, lost, _ = through_the_cycles(dan, DYNAMICS, ERROR, w, state)
    assert lost.nonzero().tolist() == [[2, 0]]
    assert analysis[2, 0].isnan().all()
    assert analysis[2, 1:].isfinite().all()


@pytest.mark.parametrize("memory", [0, 2])
def test_a_lost_trajectory_starts_anew_from_the_observations_of_that_time(memory):
    dan, w = method(memory), lost_window()
    analysis, _, end = through_the_cycles(dan, DYNAMICS, ERROR, w, carried_state(w, memory))
    # A record that begins at the time of the loss.
    fresh = Window(w.truth[:, 1:], w.observation[:, 1:], (0, *w.steps[2:]))
    anew, _, anew_end = through_the_cycles(dan, DYNAMICS, ERROR, fresh, None)
    assert_close(analysis[1, 2:], anew[1, 1:], rtol=1e-12, atol=1e-12)
    for name, value in end.items():
        assert_close(value[1], anew_end[name][1], rtol=1e-12, atol=1e-12)


def test_a_lost_trajectory_changes_no_other():
    dan, w = method(2), lost_window()
    calm = window(w.steps)
    one, other = (through_the_cycles(dan, DYNAMICS, ERROR, v, carried_state(v, 2))[0] for v in (w, calm))
    assert_close(one[[0, 2]], other[[0, 2]], rtol=1e-12, atol=1e-12)
    assert_close(one[1, :2], other[1, :2], rtol=1e-12, atol=1e-12)
    assert (one[1, 2:] - other[1, 2:]).abs().max() > 0.1


def test_no_gradient_passes_a_restart():
    dan, w = method(2), lost_window()
    state = {name: value.requires_grad_() for name, value in carried_state(w, 2).items()}
    analysis, _, _ = through_the_cycles(dan, DYNAMICS, ERROR, w, state)
    for cycle in range(4):
        gradients = torch.autograd.grad(analysis[:, cycle].sum(), list(state.values()))
        analysis, _, _ = through_the_cycles(dan, DYNAMICS, ERROR, w, state)
        for gradient in gradients:
            assert gradient[[0, 2]].flatten(1).any(1).all()
            assert bool(gradient[1].any()) is (cycle < 2)


def test_capped_gradient_shortens_long_rows_and_nothing_else():
    x = normals(4, 3, 2).requires_grad_()
    gradient = normals(4, 3, 2, seed=1)
    gradient[0] *= 100
    gradient[1] *= 0.01
    gradient[2, 0, 0] = torch.nan
    gradient[3] = torch.inf
    y = CappedGradient.apply(x, 0.5)
    assert torch.equal(y, x)
    (capped,) = torch.autograd.grad(y, x, gradient)
    assert_close(capped[0], 0.5 * gradient[0] / gradient[0].norm(), rtol=1e-13, atol=0)
    assert torch.equal(capped[1], gradient[1])
    assert not capped[2].any()
    assert not capped[3].any()


def gradients_with(cap: float) -> list[torch.Tensor]:
    dan, w = method(2), window()
    analysis, _, _ = through_the_cycles(dan, DYNAMICS, ERROR, w, carried_state(w, 2), cap)
    loss = OBJECTIVES["rmse"](analysis, w.truth).mean()
    return list(torch.autograd.grad(loss, list(dan.network.parameters())))


def test_a_cap_that_is_not_reached_changes_nothing():
    for gradient, other in zip(gradients_with(1e6), gradients_with(float("inf")), strict=True):
        assert_close(gradient, other, rtol=1e-12, atol=1e-13)


def test_a_vanishing_cap_leaves_every_cycle_by_itself():
    dan, w = method(2), window()
    state, single = carried_state(w, 2), []
    for k in range(3):
        part = Window(w.truth[:, k : k + 1], w.observation[:, k : k + 1], w.steps[k : k + 1])
        analysis, _, state = through_the_cycles(dan, DYNAMICS, ERROR, part, state)
        single.append(OBJECTIVES["rmse"](analysis, part.truth).mean() / 3)
    expected = torch.autograd.grad(sum(single), list(dan.network.parameters()))
    for gradient, other in zip(gradients_with(1e-25), expected, strict=True):
        assert_close(gradient, other, rtol=1e-10, atol=1e-12)


def test_the_state_that_is_carried_has_no_gradient():
    w = window()
    _, _, end = through_the_cycles(method(2), DYNAMICS, ERROR, w, carried_state(w, 2))
    assert end.keys() == {"x", "memory"}
    assert not any(value.requires_grad for value in end.values())
