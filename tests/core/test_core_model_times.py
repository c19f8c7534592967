"""Models that depend on time: exact solutions, conjugate autonomous models, and the Kalman filter."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from xdan.core.dynamics import CustomDynamics, Dynamics, Lorenz96, runge_kutta_4
from xdan.core.dynamics.stepping import takes_time
from xdan.core.learning.gradient import OneProcess, SeveralProcesses
from xdan.core.learning.imitation import TaughtTwin
from xdan.core.learning.objectives import objective_by_name
from xdan.core.learning.online_twin import EndlessTwin
from xdan.core.learning.rollout import Window, roll_out
from xdan.core.lyapunov import backward_vectors, orthonormal_directions, spectrum
from xdan.core.methods import DataAssimilationNetwork, Method, Record, method_by_name, method_of, run, tune
from xdan.core.methods.advancing import advance, advance_along
from xdan.core.networks import ResidualCNN
from xdan.core.observing import ObservingSystem, Sites, observe
from xdan.core.spaces import Coordinate, Ring

DOUBLE = torch.zeros((), dtype=torch.float64)
PAIR, OCTET = ({"x": Coordinate(tuple(range(size)))} for size in (2, 8))
RATE = 2.3  # of a forcing cos(RATE t)


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def forced_decay(timestep: float = 0.1, **options) -> CustomDynamics:
    """dx/dt = -x + cos(RATE t)."""
    return CustomDynamics(lambda x, t: math.cos(RATE * t) - x, state={"x": 2}, timestep=timestep, **options)


def attracting(t: float) -> float:
    """The solution of `forced_decay` that all others tend to."""
    return (math.cos(RATE * t) + RATE * math.sin(RATE * t)) / (1 + RATE**2)


def forced_decay_at(time: float, x: torch.Tensor, begin: float) -> torch.Tensor:
    """The solution of `forced_decay` that is x at `begin`."""
    return attracting(time) + (x - attracting(begin)) * math.exp(begin - time)


class Seasonal(Lorenz96):
    """Lorenz-96 whose forcing has a season."""

    def __init__(self, sites: int = 8, amplitude: float = 3.0) -> None:
        super().__init__(sites)
        self.amplitude = amplitude

    def config(self):
        return {"sites": self.sites, "amplitude": self.amplitude}

    def tendency(self, x, t):
        return super().tendency(x) + self.amplitude * math.sin(RATE * t)


PERIOD = 2.0  # of the shift below: a spin-up of so long begins where the record does
PATTERN = torch.linspace(1.0, 3.0, 8, dtype=torch.float64)


def shift(t: float) -> torch.Tensor:
    return math.sin(2 * math.pi * t / PERIOD) * PATTERN


def still_model() -> CustomDynamics:
    inner = Lorenz96(8)
    return CustomDynamics(step=inner.step, state={"x": 8}, timestep=0.05, spin_up_time=PERIOD, rest=inner.rest)


def moving_model() -> CustomDynamics:
    """Lorenz-96 seen from a moving origin: x(t) is that of Lorenz-96 plus shift(t)."""
    inner = Lorenz96(8)

    def step(x, t):
        return inner.step(x - shift(t).to(x)) + shift(t + 0.05).to(x)

    return CustomDynamics(step=step, state={"x": 8}, timestep=0.05, spin_up_time=PERIOD, rest=inner.rest)


# --- Integration ---


def test_runge_kutta_4_of_a_forced_decay_has_the_fourth_order():
    x, begin, end = normals(3, 2), 0.7, 2.7
    errors = []
    for steps in (20, 40, 80):
        model = forced_decay((end - begin) / steps).starting_at(begin)
        errors.append(float((model.advance(x, steps) - forced_decay_at(end, x, begin)).abs().max()))
    assert errors[0] < 3e-5
    assert all(14 < large / small < 18 for large, small in pairwise(errors))


@pytest.mark.parametrize("h", [0.3, -0.3])
def test_stages_are_at_the_beginning_the_middle_and_the_end(h):
    # With a tendency of time alone the scheme is Simpson's rule, exact for cubics.
    x, t = normals(2, 2), 0.4
    after = runge_kutta_4(lambda z, s: torch.full_like(z, 4 * s**3), x, h, time=t)
    assert_close(after, x + (t + h) ** 4 - t**4, rtol=1e-14, atol=1e-14)


@given(cut=st.integers(0, 12), start=st.integers(-5, 1000))
def test_any_cut_of_a_stretch_gives_the_same_bits(cut, start):
    for model in (forced_decay(), Seasonal(), moving_model()):
        x = normals(2, *model.shape)
        whole = model.from_step(start).advance(x, 12)
        first = model.from_step(start).advance(x, cut)
        assert torch.equal(model.from_step(start + cut).advance(first, 12 - cut), whole)


def test_time_is_a_product_not_a_sum():
    model = forced_decay().starting_at(3.0)
    assert model.from_step(10**6).model_time == (30 + 10**6) * 0.1
    assert forced_decay().starting_at(0.123).from_step(7).model_time == 0.123 + 7 * 0.1


def test_a_start_near_a_whole_step_is_that_step():
    assert forced_decay().starting_at(0.1 + 0.2).model_time == 3 * 0.1
    assert forced_decay().starting_at(0.1234).model_time == 0.1234


def test_an_autonomous_model_stands_at_no_time():
    model = Lorenz96(8)
    assert model.from_step(5) is model
    assert model.starting_at(5.0) is model
    assert (model.model_step, model.model_time) == (0, 0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, "noon", None])
def test_a_start_that_is_no_time_is_refused(bad):
    with pytest.raises((TypeError, ValueError), match="time="):
        forced_decay().starting_at(bad)


def test_way_back_is_that_of_the_tendency():
    for model in (forced_decay(0.01), Seasonal()):
        x = normals(2, *model.shape)
        after = model.from_step(7).advance(x, 6)
        assert_close(model.from_step(13).retreat(after, 6), x, rtol=1e-4, atol=1e-4)
        assert (model.from_step(50).retreat(after, 6) - x).abs().max() > 1e-2  # another season


def test_tangent_is_that_of_its_time():
    class Growth(Dynamics, pure=True):
        """dx/dt = cos(RATE t) x: directions grow as the time has it."""

        dims, timestep = ("x",), 0.05
        coordinates = PAIR

        def tendency(self, x, t):
            return math.cos(RATE * t) * x

    x, directions = normals(3, 2), normals(3, 4, 2)
    model = Growth().starting_at(0.35)
    after, pushed = advance_along(model, x, directions, 8)
    growth = math.exp((math.sin(RATE * 0.75) - math.sin(RATE * 0.35)) / RATE)
    assert_close(after, growth * x, rtol=1e-6, atol=1e-6)
    assert_close(pushed, growth * directions, rtol=1e-6, atol=1e-6)

    seasonal, x, directions, h = Seasonal().from_step(33), 4 * normals(3, 8), normals(3, 4, 8), 1e-6
    _, pushed = advance_along(seasonal, x, directions, 5)
    high, low = (advance(seasonal, x[:, None] + sign * h * directions, 5) for sign in (1, -1))
    assert_close(pushed, (high - low) / (2 * h), rtol=1e-6, atol=1e-6)


# --- Classes ---


def test_a_season_of_no_size_is_the_known_model():
    x = 4 * normals(3, 8)
    assert_close(Seasonal(amplitude=0.0).advance(x, 5), Lorenz96(8).advance(x, 5), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pure", [True, False])
def test_a_class_declares_its_time_by_its_signature(pure):
    class Timed(Dynamics, pure=pure):
        dims, timestep = ("x",), 0.1
        coordinates = PAIR

        def tendency(self, x, t):
            return math.cos(RATE * t) - x

    class Still(Timed, pure=pure):
        def step(self, x):
            return 0.5 * x

    class Named(Still, pure=pure):
        def step(self, x, time=0.0):
            return x + time

    class Heir(Timed, pure=pure):
        def rest(self, noise):
            return 2 * noise

    assert [cls.autonomous for cls in (Timed, Still, Named, Heir)] == [False, True, False, False]
    x = normals(3, 2)
    assert torch.equal(Timed().advance(x, 4), forced_decay().advance(x, 4))
    assert torch.equal(Timed().step(x), Timed().advance(x, 1))
    assert torch.equal(Heir().starting_at(0.5).step(x), forced_decay().starting_at(0.5).step(x))
    assert torch.equal(Still().from_step(9).advance(x, 2), 0.25 * x)
    assert_close(Named().from_step(2).advance(x, 3), x + 0.2 + 0.3 + 0.4)


@pytest.mark.parametrize(
    ("function", "timed"),
    [
        (lambda x: x, False),
        (lambda x, t: x, True),
        (lambda x, phase: x, True),
        (lambda x, t=0.0: x, True),
        (lambda x, weights=None: x, False),
        (lambda x, *more: x, False),
        (lambda x, *, t=0.0: x, False),
        (torch.neg, False),
        (torch.nn.Linear(2, 2), False),
    ],
)
def test_a_second_argument_without_a_default_is_a_time(function, timed):
    assert takes_time(function, 1) is timed
    assert CustomDynamics(function, state={"x": 2}, timestep=0.1).autonomous is not timed


def test_functions_of_several_fields_take_a_time():
    state = {"u": Ring(3), "v": Ring(4, dim="y")}

    def tendency(fields, t):
        return {"u": -fields["u"] + math.cos(RATE * t), "v": t - fields["v"]}

    model = CustomDynamics(tendency, state=state, timestep=0.1)
    x = normals(5, 7)
    after = model.from_step(4).advance(x, 3)
    forced = CustomDynamics(lambda u, t: -u + math.cos(RATE * t), state={"u": Ring(3)}, timestep=0.1)
    assert torch.equal(after[:, :3], forced.from_step(4).advance(x[:, :3], 3))
    # x - t + 1 decays, and the scheme follows lines exactly.
    decay = (1 - 0.1 + 0.1**2 / 2 - 0.1**3 / 6 + 0.1**4 / 24) ** 3
    assert_close(after[:, 3:], 0.7 - 1 + (x[:, 3:] - 0.4 + 1) * decay, rtol=1e-12, atol=1e-12)


def test_functions_in_place_are_guarded():
    buffer = torch.zeros(4, 2, dtype=torch.float64)

    def tendency(x, t):
        out = buffer[: len(x)]
        out.copy_(x.neg_().add_(math.cos(RATE * t)))
        return out

    class Guarded(Dynamics):
        dims, timestep = ("x",), 0.1
        coordinates = PAIR

        def tendency(self, x, t):
            return tendency(x, t)

    x = normals(4, 2)
    expected = forced_decay().from_step(3).advance(x, 5)
    for model in (Guarded(), CustomDynamics(tendency, state={"x": 2}, timestep=0.1)):
        assert torch.equal(model.from_step(3).advance(x, 5), expected)


def test_an_advance_that_forgets_the_time_is_refused():
    class Forgets(Seasonal):
        def advance(self, x, steps):
            for _ in range(steps):
                x = self._step_at(x, 0.0)
            return x

    class Knows(Seasonal):
        def advance(self, x, steps):
            for step in range(self.model_step, self.model_step + steps):
                x = self.from_step(step).one_step(x)
            return x

    with pytest.raises(ValueError, match="over 2 steps is not what two calls"):
        Forgets().vet()
    Knows().vet()


def test_a_model_is_tried_once_wherever_it_stands():
    calls = []

    def tendency(x, t):
        calls.append(t)
        return -x

    model = CustomDynamics(tendency, state={"x": 2}, timestep=0.1)
    model.from_step(1)
    before = len(calls)
    for step in range(2, 10):
        model.from_step(step).vet()
    assert len(calls) == before > 0


def test_fingerprints_tell_seasons_apart_and_not_where_a_model_stands():
    def forced(rate: float, phase: float = 0.0) -> CustomDynamics:
        return CustomDynamics(lambda x, t: math.cos(rate * t + phase) - x, state={"x": 2}, timestep=0.1)

    assert torch.equal(forced(1.0).fingerprint(), forced(1.0).starting_at(77.3).from_step(5).fingerprint())
    assert forced(1.0) == forced(1.0).from_step(50)
    assert forced(1.0) != forced(1.0, 0.01)
    assert forced(1.0) != forced(1.001)


@pytest.mark.parametrize("start", [0.0, 0.3, 12.37])
def test_spin_up_ends_on_the_attractor_of_its_time(start):
    model = forced_decay(0.05, spin_up_time=40.0).starting_at(start)
    for step in (0, 13):
        states = model.from_step(step).climatology([0, 1], 0, like=DOUBLE)
        attractor = torch.full_like(states, attracting(start + 0.05 * step))
        assert_close(states, attractor, rtol=0, atol=1e-5)


# --- Methods: the model from a moving origin ---

METHODS = {
    "enkf-n": lambda: method_by_name("enkf-n", members=5),
    "3d-var": lambda: method_by_name("3d-var", scale=0.1),
    "enkf": lambda: method_by_name("enkf", members=6, inflation=1.05),
    "ienkf": lambda: method_by_name("ienkf", members=5, inflation=1.05),
    "enks": lambda: method_by_name("enks", members=12, lag=3, inflation=1.05),
    "ienks-n": lambda: method_by_name("ienks-n", members=10, lag=3),
    "extended-kalman": lambda: method_by_name("extended-kalman", inflation=1.05),
    "second-order-kalman": lambda: method_by_name("second-order-kalman", c2=4.0),
    "iterated-kalman-smoother": lambda: method_by_name("iterated-kalman-smoother", lag=3, c2=4.0),
    "4d-var": lambda: method_by_name("4d-var", window=3, scale=0.1),
    "4d-var l-bfgs": lambda: method_by_name("4d-var", window=2, scale=0.1, solver="l-bfgs"),
    "eda": lambda: method_by_name("eda", members=3, window=2),
    "particle": lambda: method_by_name("particle", members=20, noise=0.1),
    "state-covariance": lambda: method_by_name("state-covariance", depth=3, inflation=1.0),
}
STEPS = [0, 1, 3, 2, 1, 4, 2, 1, 2, 3]


def record_of(dynamics: Dynamics, steps: list[int], lanes: int = 2) -> Record:
    trajectory, state, states, clock = torch.arange(lanes), None, [], 0
    state = dynamics.climatology(trajectory, 1, like=DOUBLE).flatten(1)
    for count in steps:
        state = advance(dynamics.from_step(clock), state, count)
        states.append(state)
        clock += count
    truth, observing = torch.stack(states, 1), ObservingSystem(std=DOUBLE + 0.7)
    observation = observe(truth, Sites.every(2), observing, trajectory, torch.arange(len(steps)), 1)
    return Record(dynamics, observing, observation, steps, trajectory, 1, truth)


def in_blocks(method: Method, record: Record, edges: list[int]) -> dict[str, torch.Tensor]:
    pieces, state = [], None
    for start, stop in pairwise(edges):
        part = replace(
            record,
            observation=record.observation[:, start:stop],
            steps=record.steps[start:stop],
            clock=sum(record.steps[:start]),
        )
        outputs, state = run(method, part, state)
        pieces.append(outputs)
    return {name: torch.cat([piece[name] for piece in pieces], 1) for name in pieces[0]}


LONG = {"eda", "4d-var", "iterated-kalman-smoother"}  # runs of some seconds each


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in METHODS])
def test_a_method_follows_a_moving_model_as_the_still_one(name):
    still, moving = record_of(still_model(), STEPS), record_of(moving_model(), STEPS)
    times = torch.tensor(STEPS).cumsum(0).double() * 0.05
    moved = torch.stack([shift(float(t)) for t in times])
    assert_close(moving.truth, still.truth + moved, rtol=1e-9, atol=1e-9)
    expected, _ = run(METHODS[name]().prepare(still), still)
    method = METHODS[name]().prepare(moving)
    outputs, _ = run(method, moving)
    # The iterations of a minimiser may differ by one where rounding decides.
    near = {"rtol": 1e-4, "atol": 1e-4} if name.startswith(("4d", "eda", "ienk")) else {"rtol": 1e-6, "atol": 1e-6}
    for output in ("forecast", "analysis"):
        assert_close(outputs[output], expected[output] + moved, **near)
    if "smoothed" in outputs:
        lag = {"ienkf": 1, "4d-var l-bfgs": 2}.get(name, 3)
        assert_close(outputs["smoothed"][:, lag:], expected["smoothed"][:, lag:] + moved[:-lag], **near)
    for edges in ([0, 4, 10], [0, 1, 2, 7, 10]):
        pieces = in_blocks(method, moving, edges)
        assert all(torch.equal(pieces[key].nan_to_num(), outputs[key].nan_to_num()) for key in outputs)


def test_a_past_that_is_integrated_backward_has_its_times():
    class Moving(Dynamics, pure=True):
        """dx/dt = f(x - s) + s', s linear in time: Runge-Kutta 4 follows it exactly."""

        dims, timestep, spin_up_time = ("x",), 0.05, 0.0
        coordinates = OCTET
        speed = 0.0

        def tendency(self, x, t):
            return Lorenz96(8).tendency(x - self.speed * t * PATTERN.to(x)) + self.speed * PATTERN.to(x)

        def rest(self, noise):
            return Lorenz96(8).rest(noise)

    still, moving = Moving(), Moving()
    moving.speed = 2.0
    runs = []
    for model in (still, moving):
        record = record_of(model, STEPS)
        method = method_by_name("state-covariance", depth=2, past="dynamics", inflation=1.0).prepare(record)
        runs.append(run(method, record)[0]["analysis"])
    times = torch.tensor(STEPS).cumsum(0).double() * 0.05
    assert_close(runs[1], runs[0] + 2.0 * times[:, None] * PATTERN, rtol=1e-6, atol=1e-6)


# --- Methods: the Kalman filter of a linear model whose matrix turns ---

SIZE = 4
TURNED = torch.linalg.qr(normals(SIZE, SIZE)).Q


def matrix_at(t: float) -> torch.Tensor:
    return (1.05 + 0.2 * math.sin(t)) * TURNED + 0.3 * math.cos(2 * t) * torch.ones(SIZE, SIZE).double().triu(1)


def linear_model() -> CustomDynamics:
    return CustomDynamics(
        step=lambda x, t: x @ matrix_at(t).to(x).T + math.sin(t), state={"x": SIZE}, timestep=1.0, spin_up_time=0.0
    )


def kalman_filter(record: Record, mean: torch.Tensor, p: torch.Tensor, first: int = 0) -> torch.Tensor:
    """Analyses of one trajectory from the first time on, whose forecast has these moments; first counts times."""
    y, clock, r, analyses = record.observation[0], sum(record.steps[:first]), 0.49, []
    for k in range(first, len(record.steps)):
        for _ in range(record.steps[k]):
            mean, p = matrix_at(clock) @ mean + math.sin(clock), matrix_at(clock) @ p @ matrix_at(clock).T
            clock += 1
        h = torch.eye(SIZE, dtype=torch.float64)[~y[k].isnan()]
        gain = p @ h.T @ torch.linalg.inv(h @ p @ h.T + r * torch.eye(len(h)))
        mean, p = mean + gain @ (y[k][~y[k].isnan()] - h @ mean), p - gain @ h @ p
        analyses.append(mean)
    return torch.stack(analyses)


@pytest.mark.parametrize("name", ["kalman", "extended-kalman"])
def test_kalman_filters_of_a_linear_model_in_time(name):
    record = record_of(linear_model(), STEPS)
    method = method_by_name(name, inflation=1.0).prepare(record)
    outputs, _ = run(method, record)
    mean, covariance = method._climate
    assert_close(outputs["analysis"][0], kalman_filter(record, mean, covariance), rtol=1e-6, atol=1e-6)


def least_squares(record: Record, k: int, begin: int, background: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Analysis of the state at time `begin` by all observations from there to time k, written as one dense problem."""
    clock, m, c = sum(record.steps[: begin + 1]), torch.eye(SIZE, dtype=torch.float64), torch.zeros(SIZE).double()
    rows, values = [torch.linalg.inv(torch.linalg.cholesky(b))], []
    values.append(rows[0] @ background)
    # The first window has the observations of the first time; a window that slides leaves those at its start to the
    # window before.
    for j in range(begin, k + 1):
        for _ in range(record.steps[j] if j > begin else 0):
            m, c = matrix_at(clock) @ m, matrix_at(clock) @ c + math.sin(clock)
            clock += 1
        if j > begin or k < WINDOW:
            y = record.observation[0, j]
            rows.append(m[~y.isnan()] / 0.7)
            values.append((y - c)[~y.isnan()] / 0.7)
    return torch.linalg.lstsq(torch.cat(rows), torch.cat(values)[:, None]).solution[:, 0]


WINDOW = 3


@pytest.mark.parametrize("solver", ["gauss-newton", "l-bfgs"])
def test_4d_var_of_a_linear_model_in_time_is_the_least_squares_of_its_window(solver):
    record = record_of(linear_model(), STEPS)
    options = {"scale": 1.0, "solver": solver, "tolerance": 1e-10, "iterations": 200}
    method = method_by_name("4d-var", window=WINDOW, **options).prepare(record)
    outputs, _ = run(method, record)
    begin, b, model = method._mean, method._root @ method._root.T, linear_model()
    for k in range(len(STEPS)):
        first = max(0, k - WINDOW)
        if first:
            begin = advance(model.from_step(sum(STEPS[:first])), begin, STEPS[first])
        begin = least_squares(record, k, first, begin, b)
        end = advance(model.from_step(sum(STEPS[: first + 1])), begin, sum(STEPS[first + 1 : k + 1]))
        assert_close(outputs["analysis"][0, k], end, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lag", [1, 3])
def test_ienks_of_a_linear_model_in_time_is_the_kalman_filter(lag):
    record = record_of(linear_model(), STEPS)
    method = method_by_name("ienks", members=12, lag=lag, tolerance=1e-10).prepare(record)
    outputs, _ = run(method, record, members=True)
    first = outputs["members"][0, 0]
    expected = kalman_filter(record, first.mean(0), torch.cov(first.T), first=1)
    assert_close(outputs["analysis"][0, 1:], expected, rtol=1e-7, atol=1e-7)


# --- Training ---


def network() -> DataAssimilationNetwork:
    torch.manual_seed(0)
    net = ResidualCNN(filters=4, blocks=1, kernel=3, memory=2).double()
    net.normalise(2.3, 3.6, 0.7)
    return method_of(net)


def endless(model: Dynamics, **options) -> EndlessTwin:
    setting = {"steps": 3, "trajectories": 4, "batch": 2, "cycles": 5, "seed": 0, "like": DOUBLE}
    return EndlessTwin(model, Sites.all(), ObservingSystem(std=DOUBLE + 0.7), **{**setting, **options})


def test_an_endless_twin_goes_on_in_time():
    model = Seasonal().starting_at(0.35)
    twin = endless(model)
    windows = [twin.window(index) for index in range(6)]
    for group in (0, 1):
        mine = [window for window in windows if window.group == group]
        truth = torch.cat([window.truth for window in mine], 1)
        for k in range(truth.shape[1] - 1):
            assert torch.equal(truth[:, k + 1], advance(model.from_step(3 * k), truth[:, k], 3))
        clocks = [window.clock_at(k).tolist() for window in mine for k in range(5)]
        assert clocks == [[3 * (k - 1)] * 2 for k in range(15)]


def test_an_endless_twin_that_is_taken_up_again_has_the_same_bits():
    twin, again = endless(Seasonal()), endless(Seasonal())
    for index in range(3):
        twin.window(index)
    again.restore(twin.arrays())
    for index in range(3, 6):
        one, other = twin.window(index), again.window(index)
        assert torch.equal(one.truth, other.truth)
        assert torch.equal(one.clock, other.clock)


def test_windows_of_a_training_have_the_forecasts_of_a_run():
    model = Seasonal()
    twin, method = endless(model, trajectories=2), network()
    windows = [twin.window(index) for index in range(3)]
    record = Record(
        model,
        twin.observing,
        torch.cat([window.observation for window in windows], 1),
        [0] + [3] * 14,
        twin.trajectory,
        0,
    )
    expected, _ = run(method, record)
    state, pieces = None, []
    with torch.no_grad():
        for window in windows:
            rollout = roll_out(method, model, twin.observing, replace(window, truth=None), state)
            state = rollout.state
            pieces.append(rollout.forecast)
    assert torch.equal(torch.cat(pieces, 1), expected["forecast"])


def test_trajectories_of_one_window_may_be_at_several_times():
    model, method = Seasonal(), network()
    truth = 4 * normals(6, 4, 8)
    clock = torch.tensor([30, 0, 7, 30, 0, 12])
    window = Window(truth, truth + 0.1, (2, 2, 3, 1), start=1, clock=clock)
    state = {"x": 4 * normals(6, 8, seed=1), "memory": normals(6, 2, 8, seed=2)}
    observing = ObservingSystem(std=DOUBLE + 0.7)
    whole = roll_out(method, model, observing, window, state)
    for row in range(6):
        one = slice(row, row + 1)
        part = replace(window, truth=truth[one], observation=window.observation[one], clock=clock[one])
        alone = roll_out(method, model, observing, part, {name: value[one] for name, value in state.items()})
        assert_close(whole.analysis[one], alone.analysis, rtol=1e-10, atol=1e-10)
    later = whole.since(2).window
    assert later.clock_at(0).tolist() == (clock + 4).tolist()
    assert later.clock_at(1).tolist() == (clock + 7).tolist()


def test_processes_that_share_a_batch_share_its_times():
    model, observing = Seasonal(), ObservingSystem(std=torch.tensor(0.7))
    truth = (4 * normals(4, 3, 8)).float()
    window = Window(truth, truth + 0.1, (2, 2, 3), start=1, clock=torch.tensor([30, 0, 7, 30]))
    state = {"x": truth[:, 0], "memory": torch.zeros(4, 2, 8)}
    net, objective = network().network.float(), objective_by_name("analysis")
    one = OneProcess(net, model, observing, objective)(window, state)
    several = SeveralProcesses(net, model, observing, objective, 2)
    try:
        both = several(window, state)
    finally:
        several.close()
    assert float(both.loss) == pytest.approx(float(one.loss), rel=1e-5)
    for mine, theirs in zip(one.gradients, both.gradients, strict=True):
        assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


def test_a_teacher_runs_at_the_times_of_its_twin():
    still, moving = (
        TaughtTwin(
            endless(model, cycles=4),
            method_by_name("ienks", members=6, lag=2, tolerance=1e-9).prepare(record_of(model, STEPS)),
        )
        for model in (still_model(), moving_model())
    )
    for index in range(6):
        one, other = still.window(index), moving.window(index)
        times = [0.05 * float(other.clock_at(k + 1)[0]) for k in range(4)]
        moved = torch.stack([shift(t) for t in times])
        assert_close(other.forecast, one.forecast + moved, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:tuning:xdan.core.checks.XdanWarning")
def test_a_tuned_run_looks_at_the_times_of_the_record():
    still, moving = record_of(still_model(), STEPS), record_of(moving_model(), STEPS)
    for name in ("3d-var", "ienkf"):
        curves = []
        for record in (still, moving):
            parameters = {} if name == "3d-var" else {"members": 5, "inflation": "tune"}
            method = tune(method_by_name(name, **parameters), record)
            curves.append(method._curve)
        assert_close(curves[1], curves[0], rtol=1e-3, atol=1e-3)


# --- Lyapunov exponents ---


def test_exponents_are_those_of_the_times_passed():
    # d|x|/dt of a linear equation is its coefficient: the mean of 0.3 + cos(RATE t) over the times.
    model = CustomDynamics(
        lambda x, t: (0.3 + math.cos(RATE * t)) * x, state={"x": 2}, timestep=0.05, spin_up_time=0.0
    ).starting_at(0.6)
    start = orthonormal_directions(torch.arange(2), 0, 2, 2)
    exponents, _ = spectrum(model, normals(2, 2), start, between=4, spin_up=3, repeats=5)
    begin, end = 0.6 + 0.05 * 12, 0.6 + 0.05 * 32
    expected = 0.3 + (math.sin(RATE * end) - math.sin(RATE * begin)) / RATE
    assert_close(exponents, torch.full_like(exponents, expected), rtol=1e-6, atol=1e-6)

    steps = [0, 3, 5, 2]
    _, factors = backward_vectors(model, normals(2, 4, 2), steps, start, between=2)
    times = [0.6 + 0.05 * sum(steps[: k + 1]) for k in range(4)]
    for k in range(3):
        growth = 0.3 * (times[k + 1] - times[k]) + (math.sin(RATE * times[k + 1]) - math.sin(RATE * times[k])) / RATE
        logarithms = factors[:, k].diagonal(dim1=-2, dim2=-1).log()
        assert_close(logarithms, torch.full_like(logarithms, growth), rtol=1e-6, atol=1e-6)


def test_a_part_of_a_record_begins_where_the_part_before_ended():
    """A filter that goes on from the first part is at the times of the whole record."""
    model = CustomDynamics(lambda x, t: 3.0 * math.sin(3.0 * t) - x, state={"x": 2}, timestep=0.1, spin_up_time=0.0)
    observation = torch.linspace(-1.0, 1.0, 12, dtype=torch.float64).reshape(1, 6, 2)
    observing = ObservingSystem(std=torch.ones((), dtype=torch.float64))
    record = Record(model, observing, observation, [0, 1, 2, 1, 3, 1], torch.arange(1), 0)
    method = method_by_name("etkf", members=4).prepare(record)
    whole, _ = run(method, record)
    first, state = run(method, record.during(slice(0, 3)))
    rest, _ = run(method, record.during(slice(3, 6)), state)
    torch.testing.assert_close(torch.cat([first["analysis"], rest["analysis"]], 1), whole["analysis"])
