"""Models of NumPy functions: the same numbers as in torch, however they are called, and no derivatives."""

import os
import pickle
import threading
import time

import cloudpickle
import numpy as np
import pytest
import torch

import xdan
from xdan.core.derivative_checks import check_model
from xdan.core.dynamics import Lorenz96, NumpyDynamics, black_box, dynamics_to_json
from xdan.core.methods.base import METHODS
from xdan.core.pieces import call_on

SITES, TIMESTEP = 8, 0.05
WAYS = [
    {"batched": True},
    {"batched": False},
    {"batched": True, "workers": 2},
    {"batched": False, "workers": 3},
    {"batched": True, "workers": 2, "executor": "processes"},
    {"batched": False, "workers": 2, "executor": "processes"},
]


def _made():
    """A function that is sent to processes by its value: they need not import this module, and torch."""

    def lorenz96(x, h=TIMESTEP):
        def tendency(x):
            return (np.roll(x, -1, -1) - np.roll(x, 2, -1)) * np.roll(x, 1, -1) - x + 8.0

        k1 = tendency(x)
        k2 = tendency(x + 0.5 * h * k1)
        k3 = tendency(x + 0.5 * h * k2)
        return x + h / 6 * (k1 + 2 * (k2 + k3) + tendency(x + h * k3))

    return lorenz96


lorenz96 = _made()


def model(step=lorenz96, **options):
    return NumpyDynamics(step, **{"state": {"x": SITES}, "timestep": TIMESTEP, **options})


@pytest.fixture(autouse=True)
def idle(monkeypatch):
    """Processes that end soon; the tests share them, as they are asked for alike."""
    monkeypatch.setattr(black_box, "_IDLE", 1.0)


def some_states(*lead, dtype=torch.float64):
    noise = torch.randn(*lead, SITES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return (2.0 + 3.0 * noise).to(dtype)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_steps_are_those_of_torch_in_loops_threads_and_processes(way):
    x = some_states(3, 2)
    expected = Lorenz96(sites=SITES).advance(x, 4)
    before = x.clone()
    torch.testing.assert_close(model(**way).advance(x, 4), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model(**way).step(x), Lorenz96(sites=SITES).step(x), rtol=1e-12, atol=1e-12)
    assert torch.equal(x, before)
    assert model(**way).advance(x[:0], 4).shape == (0, 2, SITES)


def test_a_step_in_place_and_a_buffer_of_its_own_do_no_harm():
    buffer = np.zeros((2, SITES))

    def in_place(x):
        x *= 0.5
        return x

    def buffered(x):
        buffer[: len(x)] = 0.5 * x
        return buffer[: len(x)]

    x = some_states(2)
    for step in (in_place, buffered):
        torch.testing.assert_close(model(step).advance(x, 3), x / 8)
        model(step).vet()


def test_the_function_gets_double_precision_and_states_come_back_as_they_were():
    kinds = []

    def step(x):
        kinds.append((x.dtype, x.flags.c_contiguous))
        return x.astype("f4").tolist()  # any array of real numbers will do

    x = some_states(3, dtype=torch.float32)
    after = model(step).step(x.T.contiguous().T)
    assert kinds == [(np.dtype("f8"), True)]
    assert after.dtype == torch.float32
    torch.testing.assert_close(after, x)


@pytest.mark.parametrize("batched", [True, False])
def test_a_state_where_the_model_cannot_go_on_is_lost_alone(batched):
    rows = []

    def step(x):
        rows.append(x.copy())
        return np.where(np.abs(x).max(-1, keepdims=True) < 5.0, 2.0 * x, np.nan)

    x = torch.ones(3, SITES, dtype=torch.float64)
    x[1] = 2.0
    x[2, 3] = torch.inf
    after = model(step, batched=batched).advance(x, 3)
    torch.testing.assert_close(after[0], 8.0 * x[0])
    assert bool(after[1:].isnan().all())
    assert all(np.isfinite(some).all() for some in rows)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            lambda x: x[..., :3],
            r"an array of float64, shape \(2, 3\), for states of shape \(2, 8\): expected real",
        ),
        (lambda x: x + 0j, r"gave an array of complex128"),
        (lambda x: None, r"gave an array of object"),
        (lambda x: 1 / 0, r"step= of the dynamics 'mine' failed .* \(ZeroDivisionError: division by zero\)"),
    ],
)
def test_a_step_that_is_none_is_refused(answer, words):
    mine = model(answer, name="mine")
    with pytest.raises(ValueError, match=words):
        mine.step(some_states(2))
    with pytest.raises(ValueError, match="mine"):
        mine.vet()


def test_a_step_that_mixes_states_or_is_random_is_refused():
    draws = np.random.default_rng(0)
    with pytest.raises(ValueError, match="mixes the states of a batch"):
        model(lambda x: x - x.mean(0)).vet()
    with pytest.raises(ValueError, match="gave two answers at the same states"):
        model(lambda x: x + draws.normal(size=x.shape)).vet()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"step": None}, TypeError, "step=None: expected a NumPy function"),
        ({"rest": 3}, TypeError, "rest=3: expected a NumPy function"),
        ({"workers": 0}, ValueError, "workers=0: expected"),
        ({"workers": 1.5}, TypeError, "workers=1.5: expected an integer"),
        ({"executor": "gpu"}, ValueError, "executor='gpu'.*threads"),
        ({"batched": 1}, TypeError, "batched=1"),
        ({"state": {"time": 3}}, ValueError, "expected another name for the dim"),
    ],
)
def test_arguments_are_checked(options, error, words):
    with pytest.raises(error, match=words):
        model(**options)


def test_rest_and_distance_are_numpy_functions_too():
    mine = model(
        rest=lambda noise: 8.0 + noise,
        distance=lambda i, j: np.minimum(abs(i - j), SITES - abs(i - j)),
        batched=False,
        spin_up_time=0.0,
    )
    ring, sites = Lorenz96(sites=SITES), torch.tensor([0, 5])
    torch.testing.assert_close(mine.distances(sites), ring.distances(sites))
    noise = some_states(3)
    torch.testing.assert_close(mine.rest(noise), 8.0 + noise)
    torch.testing.assert_close(model(state=xdan.Ring(SITES)).distances(sites), ring.distances(sites))
    assert model().distances(sites) is None
    with pytest.raises(ValueError, match="distance= of the dynamics 'numpy' gave"):
        model(distance=lambda i, j: i).distances(sites)


@pytest.mark.parametrize("batched", [True, False])
def test_several_fields_are_mappings_of_arrays(batched):
    state = {"u": xdan.Ring(5), "h": xdan.Ring(4, dim="cell")}

    def stepped(fields):
        return {"h": 0.5 * fields["h"] + fields["u"].sum(-1)[..., None], "u": -fields["u"]}

    mine = NumpyDynamics(stepped, state=state, timestep=0.1, batched=batched)
    theirs = xdan.CustomDynamics(step=stepped, state=state, timestep=0.1)
    x = torch.randn(3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mine.advance(x, 2), theirs.advance(x, 2))
    wrong = NumpyDynamics(lambda fields: {"u": fields["u"]}, state=state, timestep=0.1, batched=batched)
    with pytest.raises(ValueError, match=r"it gave \['u'\]: expected a mapping of the fields \['u', 'h'\]"):
        wrong.step(x)


def test_derivatives_are_refused_in_words():
    x = some_states(2).requires_grad_()
    mine = model(name="mine")
    with pytest.raises(ValueError, match="no derivative passes through the dynamics 'mine', as its step is"):
        mine.advance(x, 1)
    with torch.no_grad():
        assert not mine.advance(x, 1).requires_grad
    with pytest.raises(ValueError, match="no derivative passes through the dynamics 'mine'"):
        mine.advance_along(x.detach(), x.detach()[:, None], 1)
    for mode in ("forward", "backward"):
        with pytest.raises(ValueError, match="no derivative passes through"):
            check_model(mine, mode, x.detach(), "take another")
    with pytest.raises(ValueError, match="cannot be integrated backward"):
        mine.retreat(x.detach(), 1)


def test_registered_methods_declare_whether_they_differentiate_the_model():
    """The class attribute is what each object says of its derivatives; the members of an EDA share a 4D-Var's."""
    for name in METHODS:
        takes = any(what == "model" for what, _ in METHODS[name]().derivatives)
        assert METHODS[name].differentiates_model == takes or name == "eda", name
    assert METHODS["eda"].differentiates_model
    assert not METHODS["enkf-n"].differentiates_model


def test_a_method_of_a_user_is_refused_by_what_it_derives():
    class Tangent(xdan.Method):
        name = "tangent"
        derivatives = (("model", "forward"),)

        def start(self, record):
            raise AssertionError

        def analyse(self, state, observation, observed, observing):
            raise AssertionError

    Tangent().check_dynamics(Lorenz96())
    with pytest.raises(ValueError, match=r"the method 'tangent' needs derivatives .* \['3d-var', .*'enkf-n'.*'etkf'"):
        Tangent().check_dynamics(model())


def test_without_workers_no_two_calls_run_together():
    inside, most = [], []

    def step(x):
        inside.append(None)
        most.append(len(inside))
        time.sleep(0.002)
        inside.pop()
        return x

    mine, other = model(step), model(step, batched=False)
    threads = [threading.Thread(target=one.advance, args=(some_states(2), 3)) for one in (mine, other) * 3]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert max(most) == 1
    model(step, batched=False, workers=4).advance(some_states(8), 2)
    assert max(most) > 1


def test_processes_do_the_work_and_end_when_idle():
    here = os.getpid()

    def step(x):
        return np.full_like(x, os.getpid())

    with_processes = model(step, batched=False, workers=2, executor="processes")
    pids = set(with_processes.advance(some_states(6), 1)[:, 0].long().tolist())
    assert here not in pids
    assert len(pids) <= 2
    for _ in range(200):
        if not any(alive(pid) for pid in pids):
            break
        time.sleep(0.05)
    else:
        raise AssertionError("idle processes are still there")


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_errors_and_deaths_of_processes_are_said():
    def fails(x):
        raise OSError("no such file")

    with pytest.raises(ValueError, match=r"step= of the dynamics 'numpy' failed .*OSError: no such file"):
        model(fails, workers=2, executor="processes").advance(some_states(4), 1)
    with pytest.raises(ValueError, match="step= of the dynamics 'numpy' does not run in processes"):
        model(lambda x: os._exit(3), workers=2, executor="processes").advance(some_states(4), 1)
    lock = threading.Lock()
    with pytest.raises(ValueError, match=r"does not run in processes .*lock.*: expected a function that can be sent"):
        model(lambda x: x * (not lock.locked()), workers=2, executor="processes").advance(some_states(4), 1)
    x = some_states(4)
    torch.testing.assert_close(model(workers=2, executor="processes").step(x), Lorenz96(sites=SITES).step(x))


def test_a_model_travels():
    x = some_states(1)
    again = pickle.loads(cloudpickle.dumps(model(workers=2, executor="processes", batched=False)))
    assert (again.workers, again.executor, again.batched) == (2, "processes", False)
    torch.testing.assert_close(again.step(x), model().step(x))
    assert again == model(name="numpy")
    assert dynamics_to_json(again)["name"] == "numpy"
    assert dynamics_to_json(again)["parameters"]["function"].endswith("lorenz96")


def test_calls_of_pieces():
    x = some_states(3).numpy()
    twice = call_on(lorenz96, x, [(), ()], True, "it")
    np.testing.assert_allclose(twice, lorenz96(lorenz96(x)), rtol=1e-14)
    np.testing.assert_allclose(call_on(lorenz96, x, [(), ()], False, "it"), twice, rtol=1e-14)
    np.testing.assert_array_equal(call_on(lorenz96, x, [], True, "it"), x)
    masked = call_on(lambda x: np.ma.masked_less(x, 0.0), x, [()], True, "it")
    np.testing.assert_array_equal(np.isnan(masked), x < 0.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_states_of_a_gpu_go_to_the_cpu_and_back():
    x = some_states(3)
    after = model().advance(x.to("cuda"), 2)
    assert after.device.type == "cuda"
    torch.testing.assert_close(after.cpu(), model().advance(x, 2))


@pytest.mark.parametrize("way", [{"batched": True}, {"batched": False, "workers": 2}], ids=str)
def test_a_step_may_depend_on_time(way):
    def step(x, t):
        return 0.9 * x + t

    mine = model(step, **way)
    theirs = xdan.CustomDynamics(step=step, state={"x": SITES}, timestep=TIMESTEP)
    assert not mine.autonomous
    assert model().autonomous  # a default of another name is no time
    x = some_states(3)
    for one in (0, 7):
        torch.testing.assert_close(mine.from_step(one).advance(x, 4), theirs.from_step(one).advance(x, 4))
        late = mine.starting_at(2.5).from_step(one)
        torch.testing.assert_close(late.advance(x, 4), theirs.starting_at(2.5).from_step(one).advance(x, 4))
    mine.vet()
    fields = {"u": xdan.Ring(5), "h": xdan.Ring(3, dim="cell")}
    parts = NumpyDynamics(lambda f, t: {"u": f["u"] + t, "h": t * f["h"]}, state=fields, timestep=0.5, **way)
    torch.testing.assert_close(
        parts.advance(torch.ones(1, 8).double(), 3)[0, [0, 5]], torch.tensor([2.5, 0.0]).double()
    )
