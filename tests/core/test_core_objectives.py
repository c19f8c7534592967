"""Losses through the cycles: finite differences, and trajectories that are lost and start anew."""

import pytest
import torch
from torch.testing import assert_close

from xdan.core.dynamics import CustomDynamics, Lorenz96
from xdan.core.learning.objectives import objective_by_name, root_squared_error, squared_error
from xdan.core.learning.probabilistic import crps, energy_score
from xdan.core.learning.rollout import CappedGradient, Window, random_signs, roll_out
from xdan.core.methods import DataAssimilationNetwork, Record, run
from xdan.core.networks import ResidualCNN
from xdan.core.observing import LinearOperator, ObservingSystem, Sites, observe

DYNAMICS = Lorenz96(5)
ERROR = ObservingSystem(std=torch.tensor(1.0, dtype=torch.float64))
STEPS = (2, 1, 3)


SUPERVISED = {"mse": squared_error, "rmse": root_squared_error}


def triple(*arguments):
    """Analyses, lost trajectories and the state at the end."""
    rollout = roll_out(*arguments)
    return rollout.analysis, rollout.lost, rollout.state


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
    assert_close(SUPERVISED["mse"](analysis, truth), square, rtol=1e-13, atol=0)
    assert_close(SUPERVISED["rmse"](analysis, truth), square.sqrt(), rtol=1e-7, atol=0)


@pytest.mark.parametrize("objective", SUPERVISED)
def test_objectives_have_a_finite_gradient_at_a_perfect_analysis(objective):
    analysis = normals(2, 3, 5).requires_grad_()
    (gradient,) = torch.autograd.grad(SUPERVISED[objective](analysis, analysis.detach()).sum(), analysis)
    assert not gradient.any()


@pytest.mark.parametrize("objective", SUPERVISED)
@pytest.mark.parametrize("memory", [0, 2])
def test_gradient_through_three_cycles_is_the_finite_difference(objective, memory):
    dan, w = method(memory), window()
    parameters, state = list(dan.network.parameters()), carried_state(w, memory)

    def loss() -> torch.Tensor:
        analysis, lost, _ = triple(dan, DYNAMICS, ERROR, w, state)
        assert not lost.any()
        return SUPERVISED[objective](analysis, w.truth).mean()

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
    analysis, lost, end = triple(dan, DYNAMICS, ERROR, w, None)
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
    whole, _, end = triple(dan, DYNAMICS, ERROR, w, None)
    halves = slice(0, 2), slice(2, 4)
    first, second = (Window(w.truth[:, s], w.observation[:, s], w.steps[s]) for s in halves)
    head, _, middle = triple(dan, DYNAMICS, ERROR, first, None)
    tail, _, end_too = triple(dan, DYNAMICS, ERROR, second, middle)
    assert_close(torch.cat([head, tail], 1), whole, rtol=1e-12, atol=1e-12)
    for name, value in end.items():
        assert_close(end_too[name], value, rtol=1e-12, atol=1e-12)


def test_a_lost_trajectory_is_reported():
    w = lost_window()
    _, lost, _ = triple(method(), DYNAMICS, ERROR, w, carried_state(w))
    assert lost.nonzero().tolist() == [[1, 1]]


def test_a_trajectory_is_lost_beyond_the_climate_and_not_before():
    dan, w = method(), window((1,))
    state = carried_state(w)
    analysis, _, _ = triple(dan, DYNAMICS, ERROR, w, state)
    for distance, expected in ((3.59, False), (3.61, True)):
        near = Window(analysis.detach() + distance, w.observation, w.steps)
        _, lost, _ = triple(dan, DYNAMICS, ERROR, near, state)
        assert bool(lost.all()) is expected
        assert bool(lost.any()) is expected


def test_an_analysis_that_is_not_a_number_is_lost():
    dan, w = method(), window()
    state = carried_state(w)
    state["x"][2] = torch.nan
    analysis, lost, _ = triple(dan, DYNAMICS, ERROR, w, state)
    assert lost.nonzero().tolist() == [[2, 0]]
    assert analysis[2, 0].isnan().all()
    assert analysis[2, 1:].isfinite().all()


@pytest.mark.parametrize("memory", [0, 2])
def test_a_lost_trajectory_starts_anew_from_the_observations_of_that_time(memory):
    dan, w = method(memory), lost_window()
    analysis, _, end = triple(dan, DYNAMICS, ERROR, w, carried_state(w, memory))
    # A record that begins at the time of the loss.
    fresh = Window(w.truth[:, 1:], w.observation[:, 1:], (0, *w.steps[2:]))
    anew, _, anew_end = triple(dan, DYNAMICS, ERROR, fresh, None)
    assert_close(analysis[1, 2:], anew[1, 1:], rtol=1e-12, atol=1e-12)
    for name, value in end.items():
        assert_close(value[1], anew_end[name][1], rtol=1e-12, atol=1e-12)


def test_a_lost_trajectory_changes_no_other():
    dan, w = method(2), lost_window()
    calm = window(w.steps)
    one, other = (triple(dan, DYNAMICS, ERROR, v, carried_state(v, 2))[0] for v in (w, calm))
    assert_close(one[[0, 2]], other[[0, 2]], rtol=1e-12, atol=1e-12)
    assert_close(one[1, :2], other[1, :2], rtol=1e-12, atol=1e-12)
    assert (one[1, 2:] - other[1, 2:]).abs().max() > 0.1


def test_no_gradient_passes_a_restart():
    dan, w = method(2), lost_window()
    state = {name: value.requires_grad_() for name, value in carried_state(w, 2).items()}
    analysis, _, _ = triple(dan, DYNAMICS, ERROR, w, state)
    for cycle in range(4):
        gradients = torch.autograd.grad(analysis[:, cycle].sum(), list(state.values()))
        analysis, _, _ = triple(dan, DYNAMICS, ERROR, w, state)
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
    analysis, _, _ = triple(dan, DYNAMICS, ERROR, w, carried_state(w, 2), cap)
    loss = SUPERVISED["rmse"](analysis, w.truth).mean()
    return list(torch.autograd.grad(loss, list(dan.network.parameters())))


def test_a_cap_that_is_not_reached_changes_nothing():
    for gradient, other in zip(gradients_with(1e6), gradients_with(float("inf")), strict=True):
        assert_close(gradient, other, rtol=1e-12, atol=1e-13)


def test_a_vanishing_cap_leaves_every_cycle_by_itself():
    dan, w = method(2), window()
    state, single = carried_state(w, 2), []
    for k in range(3):
        part = Window(w.truth[:, k : k + 1], w.observation[:, k : k + 1], w.steps[k : k + 1])
        analysis, _, state = triple(dan, DYNAMICS, ERROR, part, state)
        single.append(SUPERVISED["rmse"](analysis, part.truth).mean() / 3)
    expected = torch.autograd.grad(sum(single), list(dan.network.parameters()))
    for gradient, other in zip(gradients_with(1e-25), expected, strict=True):
        assert_close(gradient, other, rtol=1e-10, atol=1e-12)


def test_the_state_that_is_carried_has_no_gradient():
    w = window()
    _, _, end = triple(method(2), DYNAMICS, ERROR, w, carried_state(w, 2))
    assert end.keys() == {"x", "memory"}
    assert not any(value.requires_grad for value in end.values())


# --- objectives for members, and from observations only ---


def test_crps_and_energy_score_are_the_written_means():
    members, truth = normals(2, 3, 4, 5), normals(2, 3, 5, seed=1)
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    expected = (members - truth[:, :, None]).abs().mean(2)
    expected = expected - 0.5 * sum((members[:, :, i] - members[:, :, j]).abs() for i, j in pairs) / len(pairs)
    assert_close(crps(members, truth), expected.mean(-1), rtol=1e-12, atol=1e-12)

    def distance(v: torch.Tensor) -> torch.Tensor:
        return v.square().mean(-1).sqrt()

    energy = distance(members - truth[:, :, None]).mean(2)
    energy = energy - 0.5 * sum(distance(members[:, :, i] - members[:, :, j]) for i, j in pairs) / len(pairs)
    assert_close(energy_score(members, truth), energy, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("score", [crps, energy_score])
def test_scores_of_members_are_proper(score):
    """The right spread has the better score, and the fair form does not depend on the number of members."""
    truth = normals(400, 1, 3)

    def mean(spread: float, m: int) -> float:
        return float(score(spread * normals(400, 1, m, 3, seed=2), truth).mean())

    assert mean(1.0, 20) < min(mean(0.5, 20), mean(2.0, 20)) - 0.01
    assert mean(1.0, 2) == pytest.approx(mean(1.0, 40), abs=0.05)


def test_forecasts_are_scored_by_the_next_observations():
    dan, w = method(), window()
    blind = Window(None, w.observation, w.steps)
    rollout = roll_out(dan, DYNAMICS, ERROR, blind, carried_state(w))
    seen = ~w.observation.isnan()
    expected = torch.where(seen, (w.observation.nan_to_num() - rollout.forecast) ** 2, 0.0).mean(-1)
    assert_close(objective_by_name("forecast").loss(rollout), expected, rtol=1e-12, atol=1e-12)
    state = DYNAMICS.advance(rollout.analysis[:, 0], w.steps[1])
    assert_close(rollout.forecast[:, 1], state, rtol=1e-12, atol=1e-12)
    # The last analysis is scored by nothing, the ones before by their forecasts.
    (gradient,) = torch.autograd.grad(
        objective_by_name("forecast").loss(rollout)[:, 1:].sum(), dan.network.relative_alpha
    )
    assert gradient != 0


def linear_method(gain: torch.Tensor) -> DataAssimilationNetwork:
    """An analysis x + K (y - x) that is linear in the observations."""

    class Linear(DataAssimilationNetwork):
        def analyse(self, state, observation, observed, observing):
            innovation = torch.where(observed, observation - observing.observe(state["x"]), 0.0)
            return {**state, "x": state["x"] + innovation @ gain.T}

    return Linear(method().network)


CORRELATED = ObservingSystem(covariance=0.8 ** (torch.arange(5.0)[:, None] - torch.arange(5.0)).abs().double())


@pytest.mark.parametrize("observing", [ERROR, CORRELATED])
def test_divergence_of_a_linear_analysis_is_the_trace(observing):
    gain = 0.3 * normals(5, 5, seed=4)
    dan, w = linear_method(gain), window((1,) * 400, lanes=3)
    rollout = roll_out(dan, Lorenz96(5, forcing=0.0), observing, w, carried_state(w), divergence=True)
    seen = ~w.observation.isnan()
    # Of the sites that are observed; the off-diagonal part of a random sign's estimate has mean zero.
    trace = (seen * gain.diagonal()).sum(-1)
    kept = ~rollout.lost
    off = (rollout.divergence - trace)[kept]
    assert len(off) > 500
    assert abs(float(off.mean())) < 4 * float(off.std()) / len(off) ** 0.5
    assert float(off.std()) > 0


def test_the_corrected_misfit_is_the_error_of_the_analysis():
    """Out of sample: E|y - x_a|^2 + 2 tr = E|x_t - x_a|^2 + E|eta|^2, where the plain misfit is smaller by 2 tr."""
    gain = 0.5 * torch.eye(5, dtype=torch.float64)
    still = CustomDynamics(step=lambda x: x, state={"x": 5}, timestep=1.0)
    dan, lanes, cycles = linear_method(gain), 60, 50
    truth = normals(lanes, 1, 5).expand(lanes, cycles, 5).clone()
    w = Window(truth, truth + normals(lanes, cycles, 5, seed=3), (1,) * cycles)
    rollout = roll_out(dan, still, ERROR, w, {"x": truth[:, 0] + 0.1}, divergence=True)
    actual = squared_error(rollout.analysis, truth)[:, 10:].mean()
    corrected = objective_by_name("analysis").loss(rollout)[:, 10:].mean()
    plain = rollout.misfit(rollout.analysis)[:, 10:].mean()
    assert float(corrected) == pytest.approx(float(actual) + 1.0, abs=0.05)
    assert float(plain) == pytest.approx(float(actual), abs=0.15)  # as if the errors had no part in it


@pytest.mark.parametrize("rows", [2, 8])
def test_the_corrected_misfit_is_the_error_of_what_is_seen(rows):
    """The same through an operator: a mean over observations, fewer or more than there are sites."""
    h = normals(rows, 5, seed=6)
    observing = ObservingSystem(ERROR.std, operator=LinearOperator(h))
    still = CustomDynamics(step=lambda x: x, state={"x": 5}, timestep=1.0)
    dan, lanes, cycles = linear_method(0.05 * h.T), 60, 50
    truth = normals(lanes, 1, 5).expand(lanes, cycles, 5).clone()
    w = Window(truth, truth @ h.T + normals(lanes, cycles, rows, seed=3), (1,) * cycles)
    rollout = roll_out(dan, still, observing, w, {"x": truth[:, 0] + 0.1}, divergence=True)
    actual = squared_error(rollout.analysis @ h.T, truth @ h.T)[:, 10:].mean()
    corrected = objective_by_name("analysis").loss(rollout)[:, 10:].mean()
    assert float(corrected) == pytest.approx(float(actual) + 1.0, abs=0.05)
    assert abs(float(rollout.misfit(rollout.analysis)[:, 10:].mean()) - float(corrected)) > 0.1


@pytest.mark.parametrize("objective", ["forecast", "analysis"])
@pytest.mark.parametrize("memory", [0, 2])
def test_gradients_without_the_truth_are_finite_differences(objective, memory):
    dan, w = method(memory), window()
    w = Window(None, w.observation, w.steps)
    parameters = list(dan.network.parameters())
    chosen = objective_by_name(objective)

    def loss() -> torch.Tensor:
        state = carried_state(window(), memory)
        return chosen.loss(roll_out(dan, DYNAMICS, ERROR, w, state, divergence=chosen.needs_divergence)).mean()

    gradients = torch.autograd.grad(loss(), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        direction, h = normals(*parameter.shape, seed=3), 1e-6
        ends = []
        for sign in (1, -1):
            parameter.data.add_(sign * h * direction)
            ends.append(float(loss().detach()))
            parameter.data.sub_(sign * h * direction)
        assert float((gradient * direction).sum()) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-4, abs=1e-7)


def test_without_the_truth_a_trajectory_far_from_its_observations_is_lost():
    w = window((2, 1, 3, 1))
    w.observation[1, 1] += 50.0
    blind = Window(None, w.observation, w.steps)
    rollout = roll_out(method(), DYNAMICS, ERROR, blind, carried_state(w))
    assert rollout.lost[1, 1]
    assert not rollout.lost[[0, 2]].any()


@pytest.mark.parametrize("memory", [0, 2])
def test_with_a_teacher_every_analysis_starts_from_its_forecast(memory):
    dan, plain = method(memory), window()
    forecast = plain.truth + 0.3 * normals(*plain.truth.shape, seed=9)
    taught = Window(plain.truth, plain.observation, plain.steps, forecast=forecast)
    still = CustomDynamics(lambda x: 1 / 0, state={"x": 5}, timestep=0.05)  # never asked
    rollout = roll_out(dan, still, ERROR, taught, None)
    assert_close(rollout.forecast[:, 1:], forecast[:, 1:])
    state = {} if not memory else {"memory": torch.zeros(3, 2, 5, dtype=torch.float64)}
    for k in (1, 2):
        observed = ~plain.observation[:, k].isnan()
        state = dan.analyse({**state, "x": forecast[:, k]}, plain.observation[:, k].nan_to_num(0.0), observed, ERROR)
        assert_close(rollout.analysis[:, k], state["x"])


@pytest.mark.parametrize(("level", "spread"), [(0.0, 1.0), (101325.0, 800.0), (1e-5, 1e-6), (3.0, 0.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_coin_is_fair_in_any_units(level, spread, dtype):
    """Also where the same value stands at every site."""
    sign = random_signs((level + spread * normals(200, 40)).to(dtype))
    assert set(sign.unique().tolist()) == {-1.0, 1.0}
    pairs = (sign.T @ sign / 200).fill_diagonal_(0) if spread else sign.T @ sign / 200 - 1
    assert abs(float(sign.mean())) < 0.35 if not spread else abs(float(sign.mean())) < 0.05
    assert abs(float(pairs.mean())) < 0.02 or not spread
