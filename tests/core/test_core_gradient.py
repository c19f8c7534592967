"""The gradient of a window, in one process and shared."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from xdan.core.dynamics import CustomDynamics, KuramotoSivashinsky, Lorenz63, Lorenz96, SphereQG, TwoScaleLorenz96
from xdan.core.learning import objective_by_name
from xdan.core.learning.gradient import OneProcess, SeveralProcesses
from xdan.core.learning.online_twin import EndlessTwin
from xdan.core.learning.rollout import Window
from xdan.core.learning.trainer import Optimiser, Trainer
from xdan.core.networks import KalmanCNN, ResidualCNN
from xdan.core.observing import ObservingSystem, Sites

ERROR = ObservingSystem(std=torch.tensor(1.0, dtype=torch.float64))


def network() -> ResidualCNN:
    torch.manual_seed(0)
    net = ResidualCNN(filters=4, blocks=2, kernel=3, memory=2).double()
    net.normalise(2.3, 3.6, 1.0)
    return net


def twin(dynamics, batch: int = 7) -> EndlessTwin:
    like = torch.zeros((), dtype=torch.float64)
    return EndlessTwin(
        dynamics, Sites.random(6, 12), ERROR, steps=1, trajectories=batch, batch=batch, cycles=4, seed=0, like=like
    )


def assert_same(actual, expected):
    assert float(actual.loss) == pytest.approx(float(expected.loss), rel=1e-13)
    for gradient, other in zip(actual.gradients, expected.gradients, strict=True):
        assert_close(gradient, other, rtol=1e-11, atol=1e-15)
    assert torch.equal(actual.lost, expected.lost)
    assert_close(actual.square, expected.square, rtol=1e-11, atol=1e-13)
    for name, value in expected.state.items():
        assert_close(actual.state[name], value, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("objective", ["rmse", pytest.param("mse", marks=pytest.mark.slow)])
def test_shares_make_the_gradient_of_the_whole_batch(objective):
    forcing = 8.0
    # A function defined here, which the helpers cannot import.
    dynamics = CustomDynamics(
        lambda x: (x.roll(-1, -1) - x.roll(2, -1)) * x.roll(1, -1) - x + forcing,
        state={"site": 12},
        name="mine",
        timestep=0.05,
    )
    net, source = network(), twin(dynamics)
    alone, shared = (
        OneProcess(net, dynamics, ERROR, objective_by_name(objective)),
        SeveralProcesses(net, dynamics, ERROR, objective_by_name(objective), 3),
    )
    try:
        window = source.window(0)
        # A gradient that would be capped, and a trajectory that is lost, in the helpers' shares.
        window.truth[3, 2] += 2.0
        window.truth[6, 2] += 100.0
        first = alone(window, None)
        assert_same(shared(window, None), first)
        assert first.lost.sum() == 1
        with torch.no_grad():
            net.relative_alpha.add_(0.1)  # what the helpers must hear of
        window = source.window(1)
        expected = alone(window, first.state)
        assert_same(shared(window, first.state), expected)
        assert_same(shared(window, first.state), expected)
    finally:
        shared.close()


def test_more_processes_than_trajectories_and_threads_given_back():
    dynamics, net = Lorenz96(12), network()
    torch.set_num_threads(2)
    try:
        trainer = Trainer(net, dynamics, ERROR, objective_by_name("rmse"), Optimiser(), processes=2)
        window = twin(dynamics, batch=1).window(0)
        report = trainer.step(window, 0.0)
        assert torch.get_num_threads() == 1
        trainer.close()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert report.loss == Trainer(net, dynamics, ERROR, objective_by_name("rmse"), Optimiser()).step(window, 0.0).loss


@pytest.mark.slow
def test_helpers_end_with_a_killed_run(tmp_path):
    script = """
import xdan
xdan.train(xdan.Lorenz96(8), xdan.ResidualCNN(filters=2, blocks=1, kernel=3), batch=4, window=2, processes=2,
           minutes=5, progress=False, validate_every=10)
"""
    run = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)

    def alive() -> int:
        listing = subprocess.run(["ps", "-o", "pid=,stat=", "-s", str(run.pid)], capture_output=True, text=True)
        return sum(" Z" not in line for line in listing.stdout.splitlines())

    deadline = time.monotonic() + 60
    while alive() < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(5)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    deadline = time.monotonic() + 20
    while alive() and time.monotonic() < deadline:
        time.sleep(0.2)
    left = alive()
    if left:
        os.killpg(run.pid, signal.SIGKILL)
    assert left == 0


@pytest.mark.parametrize(("objective", "power"), [("rmse", 1), ("mse", 2), ("forecast", 0)])
@pytest.mark.parametrize("unit", [100.0, 0.01])
def test_units_change_no_gradient(objective, power, unit):
    """Of a window in which the bound between cycles is reached."""

    def tendency(x):
        x = x / unit
        return unit * ((x.roll(-1, -1) - x.roll(2, -1)) * x.roll(1, -1) - x + 8.0)

    plain, window = Lorenz96(12), twin(Lorenz96(12)).window(0)
    scaled = CustomDynamics(tendency, state={"site": 12}, timestep=0.05)
    other = replace(window, truth=unit * window.truth, observation=unit * window.observation)
    expected = OneProcess(network(), plain, ERROR, objective_by_name(objective))(window, None)
    net = network()
    net.normalise(2.3 * unit, 3.6 * unit, unit)
    gradient = OneProcess(net, scaled, ObservingSystem(std=unit * ERROR.std), objective_by_name(objective))(other, None)
    assert float(gradient.loss) == pytest.approx(unit**power * float(expected.loss), rel=1e-6)
    for a, b in zip(gradient.gradients, expected.gradients, strict=True):
        assert_close(a, unit**power * b, rtol=1e-5, atol=1e-7 * float(unit**power))


class NothingIsReadBack(TorchDispatchMode):
    """Refuses what would wait for a GPU: a number or a shape that depends on values."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert not any(word in str(function) for word in ("_local_scalar_dense", "nonzero", "masked_select", "unique"))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["rmse", "mse", "forecast"])
@pytest.mark.parametrize("memory", [0, 2])
def test_a_gradient_can_be_recorded_as_a_cuda_graph(name, memory, monkeypatch):
    """Recording fails where anything reads a number back; so does the plain pass wait, in vain."""
    monkeypatch.setattr("xdan.core.learning.rollout._may_hold_any", lambda lost: True)  # as on a GPU
    torch.manual_seed(0)
    net = ResidualCNN(filters=4, blocks=2, kernel=3, memory=memory).double()
    net.normalise(2.3, 3.6, 1.0)
    source = twin(Lorenz96(12))
    gradient = OneProcess(net, source.dynamics, source.observing, objective_by_name(name))
    first = gradient(source.window(0), None)
    window = source.window(1)
    plain = gradient(window, first.state)
    with NothingIsReadBack():
        watched = gradient(window, first.state)
    assert_same(watched, plain)
    with pytest.raises(AssertionError), NothingIsReadBack():
        float(watched.loss)


class NothingComesFromTheCPU(NothingIsReadBack):
    """Refuses a copy between devices, too, but for single numbers."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(function, types, args, kwargs)
        tensors = [one for one in tree_leaves((args, kwargs, result)) if isinstance(one, torch.Tensor) and one.ndim]
        assert len({one.device for one in tensors}) <= 1, function
        return result


ON_DEVICES = {
    "Lorenz-96": (lambda: Lorenz96(12), ResidualCNN, {"memory": 2}),
    "Lorenz-96 of two halves": (lambda: Lorenz96(12, forcing=[8.0] * 6 + [4.0] * 6), ResidualCNN, {}),
    "Lorenz-63": (Lorenz63, ResidualCNN, {"kernel": 1}),
    "two-scale Lorenz-96": (TwoScaleLorenz96, ResidualCNN, {}),
    "Kuramoto-Sivashinsky": (KuramotoSivashinsky, ResidualCNN, {"memory": 2}),
    "Kuramoto-Sivashinsky beside a filter": (KuramotoSivashinsky, KalmanCNN, {"memory": 2, "diagonals": 3}),
    "a model that errs, beside a filter": (lambda: Lorenz96(12).with_model_error(0.1), KalmanCNN, {"diagonals": 3}),
    "sphere": (SphereQG, ResidualCNN, {"memory": 2}),
}


@pytest.mark.parametrize("title", ON_DEVICES)
def test_models_and_networks_on_a_device_take_nothing_from_the_cpu(title):
    """The meta device, which has shapes and no numbers, stands for a GPU: a CUDA graph records no copy from the CPU."""
    model, kind, settings = ON_DEVICES[title]
    device, dynamics = torch.device("meta"), model()
    dynamics.vet()
    net = kind(filters=4, blocks=2, space=dynamics.space, **settings).to(device)
    size = dynamics.space.size
    observing = ObservingSystem(torch.ones(())).to(torch.float32, device)
    blank = torch.zeros(2, 2, size, device=device)
    window = Window(truth=blank, observation=blank, steps=(1, 1))
    state = {"x": blank[:, 0]}
    if net.memory:
        state["memory"] = torch.zeros(2, net.memory, size, device=device)
    if net.guides:
        state["covariance"] = torch.zeros(2, size, size, device=device)
    gradient = OneProcess(net, dynamics.on(device), observing, objective_by_name("mse"))
    gradient(window, state)  # what is moved to the device once
    with NothingComesFromTheCPU():
        result = gradient(window, state)
    assert all(one.device == device for one in result.gradients)
    assert dynamics.on(torch.device("cpu")) is dynamics


def test_a_restart_that_is_not_asked_for_changes_nothing(monkeypatch):
    net, source = network(), twin(Lorenz96(12))
    gradient = OneProcess(net, source.dynamics, source.observing, objective_by_name("rmse"))
    state = gradient(source.window(0), None).state
    state["x"][2] += 100.0  # one that is lost
    window = source.window(1)
    asked = gradient(window, state)
    assert asked.lost.any()
    assert not asked.lost.all()
    monkeypatch.setattr("xdan.core.learning.rollout._may_hold_any", lambda lost: True)
    assert_same(gradient(window, state), asked)
