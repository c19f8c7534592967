"""The protocol of methods, with methods as a user would write them: one class each, that returns what it carries."""

import inspect
import itertools
import textwrap
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
import xarray as xr
from torch.testing import assert_close

import xdan
from xdan.core.dynamics import Lorenz96
from xdan.core.methods import (
    Choice,
    DataAssimilationNetwork,
    EnsembleMethod,
    Method,
    Output,
    Record,
    ThreeDVar,
    Tunable,
    method_by_name,
    register_method,
    run,
    tune,
)
from xdan.core.methods.base import METHODS
from xdan.core.methods.declarations import Search
from xdan.core.methods.tuning import burn_in, leading, search_grid
from xdan.core.methods.windowed import SlidingWindow, pushed
from xdan.core.networks import ResidualCNN
from xdan.core.observing import LinearOperator, ObservingSystem, Sites, observe

DOUBLE = torch.zeros((), dtype=torch.float64)


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(METHODS, "_classes", dict(METHODS._classes))


def record_of(cycles: int = 8, lanes: int = 2, observing: ObservingSystem | None = None, sites: int = 8) -> Record:
    dynamics, trajectory = Lorenz96(sites), torch.arange(lanes)
    observing = observing or ObservingSystem(std=DOUBLE + 1.0)
    steps = [int(k > 0) for k in range(cycles)]
    states = [dynamics.climatology(trajectory, 1, like=DOUBLE)[:, 0]]
    for _ in range(cycles - 1):
        states.append(dynamics.advance(states[-1], 1))
    truth = torch.stack(states, 1)
    observation = observe(truth, Sites.all(), observing, trajectory, torch.arange(cycles), 1)
    return Record(dynamics, observing, observation, steps, trajectory, 1, truth)


class Nudging(Method):
    """Pull the state towards the observations by a constant weight."""

    name: ClassVar[str] = "nudging"

    def __init__(self, weight: float = 0.3) -> None:
        self.weight = weight

    def start(self, record):
        return {"x": record.observation.new_zeros(record.shape)}

    def analyse(self, state, observation, observed, observing):
        x = state["x"]
        innovation = observation - observing.observe(x)
        return {"x": x + self.weight * observing.project_innovation(innovation, observed, x)}


class Jittered(EnsembleMethod):
    """Members that follow the observations, each with noise of its own; the state is the members alone."""

    name: ClassVar[str] = "jittered"

    def __init__(self, members: int = 3) -> None:
        super().__init__(members)

    def first(self, state, observation, observed, observing):
        return self.analyse(state, observation, observed, observing)

    def analyse(self, state, observation, observed, observing):
        x = state["x"]
        return {"x": 0.5 * (x + observation[:, None]) + self.draw(state, x[0].numel()).reshape(x.shape)}


class Remembering(Nudging):
    """Nudging that keeps the last innovation, and gives it where the observations lie."""

    name: ClassVar[str] = "remembering"
    outputs: tuple[Output, ...] = (
        Output("innovation", "observation minus forecast", "observations", "state"),
        Output("size", "mean square innovation"),
        Output("before", "the forecast of the cycle before", "state", "state", lag=1),
    )

    def start(self, record):
        nothing = torch.full(record.shape, torch.nan, dtype=record.observation.dtype)
        return {**super().start(record), "now": nothing, "before": nothing}

    def analyse(self, state, observation, observed, observing):
        innovation = observation - observing.observe(state["x"])
        after = super().analyse(state, observation, observed, observing)
        more = {"innovation": innovation, "size": innovation.square().mean(1)}
        return {**after, **more, "before": state["now"], "now": state["x"]}


def cut(record: Record, low: int, high: int) -> Record:
    return replace(record, observation=record.observation[:, low:high], steps=record.steps[low:high])


# --- what a user writes ---


def test_a_method_of_one_class_follows_its_formula():
    record = record_of()
    outputs, _ = run(Nudging(0.25).prepare(record), record)
    x = torch.zeros(2, 8, dtype=torch.float64)
    for k in range(8):
        x = record.dynamics.advance(x, record.steps[k]) if k else x
        assert_close(outputs["forecast"][:, k], x, rtol=1e-14, atol=0)
        x = x + 0.25 * (record.observation[:, k] - x)
        assert_close(outputs["analysis"][:, k], x, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("cls", [Nudging, Jittered])
def test_a_state_of_x_alone_goes_on_in_the_next_block(cls):
    record = record_of()
    method = cls().prepare(record)
    whole, _ = run(method, record)
    first, state = run(method, cut(record, 0, 3))
    second, _ = run(method, cut(record, 3, 8), state)
    for name, value in whole.items():
        assert torch.equal(torch.cat([first[name], second[name]], 1), value)


def test_draws_are_new_at_every_cycle_and_for_every_trajectory():
    record = record_of()
    moved = []

    class Noting(Jittered):
        def analyse(self, state, observation, observed, observing):
            moved.append(self.draw(state, 5))
            assert state["cycle"].tolist() == [len(moved) - 1] * 2
            assert torch.equal(state["label"], record.trajectory)
            return super().analyse(state, observation, observed, observing)

    run(Noting().prepare(record), record)
    drawn = torch.stack(moved).flatten(0, 1)
    assert len(torch.unique(drawn, dim=0)) == 16


def test_a_registered_method_is_a_baseline_and_its_parameters_are_written_down(single, tmp_path):
    register_method(Nudging)
    made = single.dan.baseline("nudging", weight=0.5)
    xr.testing.assert_identical(made, single.dan.cycle(Nudging(0.5)))
    assert made.attrs["method_parameters"] == '{"weight": 0.5}'
    chunked = single.chunk(time=7).dan.baseline("nudging", weight=0.5, store=tmp_path / "run", progress=False)
    np.testing.assert_array_equal(chunked.analysis, made.analysis)


@pytest.mark.parametrize("operator", [None, "pairs"])
def test_declared_outputs_are_labelled(single, operator):
    matrix = np.kron(np.eye(4), [[0.5, 0.5]])
    ds = single
    if operator:
        seen = (single.observation.values.reshape(*single.observation.shape[:-1], 4, 2)).mean(-1)
        dims = (*single.observation.dims[:-1], "obs")
        ds = single.drop_vars("observation").assign(observation=(dims, seen, single.observation.attrs))
    made = ds.dan.cycle(Remembering(), **({"operator": matrix} if operator else {}))
    assert made.innovation.dims == (*ds.observation.dims,)
    assert made.innovation.attrs == {"long_name": "observation minus forecast", "units": made.analysis.attrs["units"]}
    assert made["size"].attrs["units"] == "1"
    assert made["size"].dims == made.diverged.dims
    forecast = made.forecast.values @ matrix.T if operator else made.forecast.values
    np.testing.assert_allclose(made.innovation, ds.observation - forecast, rtol=0, atol=1e-5)
    np.testing.assert_allclose(made["size"], (made.innovation**2).mean(made.innovation.dims[-1]), rtol=1e-5)
    # An output with a lag lies at the time that it belongs to.
    np.testing.assert_array_equal(made.before.isel(time=slice(0, -1)), made.forecast.isel(time=slice(0, -1)))
    assert bool(made.before.isel(time=-1).isnull().all())


@pytest.mark.parametrize(("cls", "name"), [(Method, "nudging"), (EnsembleMethod, "perturbed")])
def test_the_example_of_a_docstring_follows_the_truth(cls, name):
    lines = inspect.getdoc(cls).split("::\n", 1)[1].splitlines()
    code = textwrap.dedent("\n".join(itertools.takewhile(lambda line: not line or line[:4].isspace(), lines)))
    namespace = {"xdan": xdan}
    exec(code, namespace)
    ds = xdan.twin(xdan.Lorenz96(), cycles=150, trajectories=2, observe=xdan.Sites.random(30, 40), seed=2).compute()
    score = ds.dan.score(ds.dan.baseline(name), burn_in=50)
    assert float(score.rmse) < 0.35 * float(ds.truth.std())


# --- what the loop refuses ---


class Short(Nudging):
    def start(self, record):
        return {"x": record.observation.new_zeros(2, 3)}


class Odd(Nudging):
    def start(self, record):
        return {**super().start(record), "cycle": torch.zeros(2), "alive": torch.ones(2)}


class Silent(Nudging):
    def analyse(self, state, observation, observed, observing):
        return None


class Forgetful(Nudging):
    def forecast(self, state, dynamics, steps):
        return {"y": state["x"]}


class Promising(Nudging):
    outputs: tuple[Output, ...] = (Output("gain", "weight in use"),)


class Chatty(Nudging):
    def analysis_outputs(self, state):
        return {"gain": state["x"][:, 0]}


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Short, r"start\(\) of the method 'nudging' returned x of shape \(2, 3\): expected .* x of shape \(2, 8\)"),
        (Odd, r"start\(\) .* returned the entries \['alive', 'cycle'\], which the loop itself keeps: expected"),
        (Silent, r"first\(\) .* returned NoneType: expected a dict"),
        (Forgetful, r"forecast\(\) .* returned a dict without a tensor 'x': expected"),
        (Promising, r"gave the outputs \[\]: expected those that it declares in `outputs`, \['gain'\]"),
        (Chatty, r"gave the outputs \['gain'\]: expected .*, \[\]"),
    ],
)
def test_what_is_no_state_is_named(cls, message):
    record = record_of()
    with pytest.raises(ValueError, match=message):
        run(cls().prepare(record), record)


def test_a_block_of_a_version_that_kept_no_cycle_is_carried_on():
    record = record_of()
    method = method_by_name("enkf-n", members=5).prepare(record)
    whole, _ = run(method, record)
    _, state = run(method, cut(record, 0, 3))
    earlier = {name: value for name, value in state.items() if name not in ("cycle", "label")}
    assert {"alive", "bound"} <= set(earlier)
    rest, _ = run(method, cut(record, 3, 8), earlier)
    assert torch.equal(rest["analysis"], whole["analysis"][:, 3:])


# --- config and the registry ---


def test_parameters_are_read_from_attributes_of_their_names():
    assert Nudging(0.5).config() == {"weight": 0.5}
    assert Jittered(4).config() == {"members": 4}

    class Passing(Jittered):
        def __init__(self, depth: int = 2, **parameters: int) -> None:
            super().__init__(**parameters)
            self.depth = depth

    assert Passing(3, members=5).config() == {"depth": 3, "members": 5}

    class Hiding(Nudging):
        def __init__(self, secret: int = 1) -> None:
            super().__init__()
            self._secret = secret

    with pytest.raises(
        TypeError, match=r"Hiding.secret is missing: expected the plain value .*, or a method config\(\)"
    ):
        Hiding().config()


def test_a_name_belongs_to_one_class():
    def make(tag):
        class Another(Nudging):
            name = tag

        return Another

    register_method(make("another"))
    again = register_method(make("another"))  # a cell that runs again
    assert type(method_by_name("another")) is again
    with pytest.raises(ValueError, match=r"the name 'etkf' is that of .*ETKF: expected another `name` for .*Another"):
        register_method(make("etkf"))


class Nameless(Nudging):
    """Its name is its parent's."""


@pytest.mark.parametrize("cls", [3, None, "etkf", dict, Nameless, Nudging()])
def test_what_has_no_name_or_is_no_method_is_not_registered(cls):
    with pytest.raises(TypeError, match="expected"):
        register_method(cls)


# --- tuning ---


class Tuned(Nudging):
    name: ClassVar[str] = "tuned"
    tunable: ClassVar[dict[str, Tunable]] = {"weight": Tunable((0.01, 0.1, 0.3, 0.9), long_name="weights tried")}

    def __init__(self, weight: float | str = "tune") -> None:
        self.weight = weight

    def analyse(self, state, observation, observed, observing):
        x = state["x"]
        return {"x": x + self.number("weight") * (observation - x)}


@pytest.mark.parametrize("tune_on", ["innovation", "truth"])
def test_the_curve_of_a_tuning_is_what_runs_with_each_value_give(tune_on):
    record = record_of(90)
    method = Tuned()
    method.tune_on = tune_on
    chosen = tune(method, record).chosen()
    runs = [run(Tuned(weight).prepare(record), record)[0] for weight in (0.01, 0.1, 0.3, 0.9)]
    if tune_on == "truth":
        errors = [(one["analysis"] - record.truth)[:, 30:].square().mean(-1).sqrt().mean() for one in runs]
    else:
        errors = [(one["forecast"] - record.observation)[:, 30:].square().mean() for one in runs]
    curve = chosen["truth_rmse" if tune_on == "truth" else "innovation_score"]
    np.testing.assert_allclose(curve, torch.stack(errors), rtol=1e-12)
    assert chosen["tuned_weight"] == (0.01, 0.1, 0.3, 0.9)[int(np.argmin(curve))]
    assert [choice.name for choice in method.choices] == list(chosen)
    assert method.choices[1] == Choice("candidate_weight", "weights tried", ("candidate_weight",), (4,))


@pytest.mark.parametrize("operator", [None, LinearOperator(torch.eye(8, dtype=torch.float64)[::2])])
def test_candidates_in_one_run_score_as_one_by_one(operator):
    record = record_of(60, observing=ObservingSystem(std=DOUBLE + 1.0, operator=operator))
    method = ThreeDVar().prepare(record)
    together, _ = search_grid(method, record)

    class OneByOne(ThreeDVar):
        search: ClassVar[Search] = replace(ThreeDVar.search, together=False)

    apart, _ = search_grid(OneByOne().prepare(record), record)
    one, other = together.chosen(), apart.chosen()
    np.testing.assert_allclose(one["innovation_rms"], other["innovation_rms"], rtol=1e-10)
    assert_close(one["background_scale"], other["background_scale"], rtol=1e-8, atol=0)


def test_the_leading_part_and_its_burn_in():
    record = record_of(20, lanes=3)
    part = leading(record, Search(trajectories=2, cycles=9))
    assert part.observation.shape == part.truth.shape == (2, 9, 8)
    assert (len(part.steps), len(part.trajectory)) == (9, 2)
    assert [burn_in(part, Search(burn_in=size)) for size in (2, 150)] == [2, 3]


# --- a window that slides ---


def test_a_window_slides_by_one():
    window, x = SlidingWindow(3), torch.arange(2.0)[:, None]
    state = {**window.opened(x), "begin": x}
    assert window.counts(state) == [0, 0, 0]
    for steps, expected in ((4, [0, 0, 4]), (5, [0, 4, 5]), (6, [4, 5, 6]), (7, [5, 6, 7])):
        assert window.smoothed(state, x).isnan().all()
        state |= window.slid(state, Lorenz96(8), steps)
        assert window.counts(state) == expected
        if steps == 6:
            break
    assert torch.equal(window.smoothed(state, x), x)
    buffer = window.buffer(x)
    assert buffer.shape == (2, 3, 1)
    assert pushed(buffer, x + 10)[:, :, 0].tolist() == [[0, 0, 10], [1, 1, 11]]
    assert (window.output.name, window.output.lag) == ("smoothed", 3)


def test_the_start_of_a_full_window_moves_by_its_oldest_interval():
    dynamics, window = Lorenz96(8), SlidingWindow(2)
    x = dynamics.climatology(range(2), 1, like=DOUBLE)[:, 0]
    state = {**window.opened(x), "begin": x}
    state |= window.slid(state, dynamics, 3)
    assert torch.equal(window.begin_after(state, dynamics), x)
    state |= window.slid(state, dynamics, 1)
    assert torch.equal(window.begin_after(state, dynamics), dynamics.advance(x, 3))


# --- how far the climate's observations spread ---


def test_the_variance_of_the_climate_in_observation_space():
    dynamics, matrix = Lorenz96(8), torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    observing = ObservingSystem(std=DOUBLE + 1.0, operator=LinearOperator(matrix))
    states = dynamics.climatology(range(64), 5, purpose=6, like=DOUBLE)[:, 0]
    method = Nudging()
    assert_close(method.climate_variance(dynamics, observing, 5), (states @ matrix.T).var(0))
    net = ResidualCNN(filters=3, blocks=1, kernel=3)
    net.normalise(2.0, 3.0, 1.0)
    network = DataAssimilationNetwork(net)
    assert_close(network.climate_variance(dynamics, ObservingSystem(std=DOUBLE + 1.0), 0), DOUBLE + 9.0)
    # Of independent sites with a variance of 9: 9 times the sum of the squares of a row, up to a sample's error.
    assert_close(network.climate_variance(dynamics, observing, 0), 9.0 * matrix.square().sum(1), rtol=0.6, atol=0.0)
