"""Objectives of one's own: what a class says of itself, the registry, and the gradient that training takes."""

import math

import pytest
import torch
from torch.testing import assert_close

from xdan.core.dynamics import Lorenz96
from xdan.core.learning import Objective, WindowContents, objective_by_name, objective_names, register_objective
from xdan.core.learning.gradient import OneProcess, SeveralProcesses
from xdan.core.learning.objectives import _OBJECTIVES
from xdan.core.learning.online_twin import EndlessTwin
from xdan.core.learning.rollout import roll_out
from xdan.core.methods import DataAssimilationNetwork
from xdan.core.networks import EnsembleCNN, LinearInZeta, ResidualCNN
from xdan.core.observing import ObservingSystem, Sites

MODEL = Lorenz96(8)
ERROR = ObservingSystem(std=torch.tensor(1.0))
BUILT_IN = {
    "rmse",
    "mse",
    "crps",
    "energy",
    "log-score",
    "variational",
    "forecast",
    "analysis",
    "covariance",
    "rmse-across-members",
}


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(_OBJECTIVES, "_classes", dict(_OBJECTIVES._classes))


def quartic(power=4):
    class Quartic(Objective):
        """Mean of a power of the error."""

        name = "quartic"

        def __init__(self, power=power):
            self.exponent = power

        def config(self):
            return {"power": self.exponent}

        def loss(self, rollout):
            return (rollout.analysis - rollout.truth()).abs().pow(self.exponent).mean(-1)

    return Quartic


def network(memory=0):
    torch.manual_seed(0)
    net = ResidualCNN(filters=3, blocks=1, kernel=3, memory=memory)
    net.normalise(2.3, 3.6, 1.0)
    return net


def window(batch=4):
    twin = EndlessTwin(
        MODEL, Sites.all(), ERROR, steps=1, trajectories=batch, batch=batch, cycles=4, seed=0, like=torch.zeros(())
    )
    return twin.window(0)


def test_the_built_in_ones_are_known_by_their_names():
    assert set(objective_names()) == BUILT_IN
    for name in BUILT_IN:
        one = objective_by_name(name)
        assert one.to_json() == ({"name": name, "parameters": one.config()} if one.config() else name)


def test_a_registered_class_is_found_by_its_name():
    cls = register_objective(quartic())
    assert type(objective_by_name("quartic")) is cls
    assert objective_by_name("quartic").to_json() == {"name": "quartic", "parameters": {"power": 4}}
    assert cls(6).to_json() == {"name": "quartic", "parameters": {"power": 6}}


def test_a_class_that_is_defined_anew_takes_its_own_place():
    register_objective(quartic())
    again = register_objective(quartic(6))
    assert type(objective_by_name("quartic")) is again


def test_another_class_keeps_its_name():
    register_objective(quartic())

    class Other(Objective):
        name = "quartic"

        def loss(self, rollout):
            return rollout.misfit(rollout.forecast)

    with pytest.raises(ValueError, match=r"the name 'quartic' is that of .*Quartic: expected another `name` for .*Oth"):
        register_objective(Other)
    assert objective_by_name("quartic").to_json()["name"] == "quartic"


def test_what_is_no_objective_is_not_registered():
    class Nameless(Objective):
        def loss(self, rollout):
            return rollout.misfit(rollout.forecast)

    class Inherited(type(objective_by_name("mse"))):
        pass

    class Empty(Objective):
        name = "empty"

    for wrong, message in (
        (3, r"register_objective\(3\): expected a class derived from xdan.Objective"),
        (objective_by_name("mse"), "expected a class derived from xdan.Objective"),
        (Nameless, "Nameless has no name: expected a class attribute `name`"),
        (Inherited, "Inherited has no name"),
        (Empty, r"Empty has no loss: expected a method loss\(rollout\)"),
    ):
        with pytest.raises(TypeError, match=message):
            register_objective(wrong)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"objective='mae': expected one of \['analysis', .*'variational'\]"):
        objective_by_name("mae")
    with pytest.raises(TypeError, match="objective=3: expected one of"):
        objective_by_name(3)


LINEAR = LinearInZeta(form="hypernetwork", rank=2, width=3, filters=2, blocks=1, kernel=3)
ENSEMBLE = EnsembleCNN(members=3, filters=2, blocks=1, kernel=3)
ONE = EnsembleCNN(members=1, filters=2, blocks=1, kernel=3)


@pytest.mark.parametrize(
    ("name", "net", "contents", "message"),
    [
        ("forecast", None, {"cycles": 1}, "window=1 with objective='forecast': .*expected a window of at least 2"),
        ("crps", None, {}, "objective='crps' scores members, and the network has a single forecast"),
        ("energy", ONE, {}, "objective='energy' scores members"),
        ("forecast", None, {"forecast": True}, "objective='forecast' has no use for a teacher's analyses"),
        ("crps", ENSEMBLE, {"forecast": True}, "objective='crps' has no use for a teacher's analyses"),
        ("mse", ENSEMBLE, {"forecast": True}, "this network takes members: expected no teacher="),
        ("covariance", LINEAR, {}, "needs an ensemble beside the record: expected to train on the dynamics"),
        ("covariance", None, {"covariance": True}, "'residual-cnn' forms no covariance; expected xdan.Linear"),
    ],
)
def test_networks_and_windows_that_do_not_fit_are_refused(name, net, contents, message):
    with pytest.raises(ValueError, match=message):
        objective_by_name(name).check(net or network(), WindowContents(**{"cycles": 4, **contents}))


def test_networks_and_windows_that_fit_are_not():
    windows = WindowContents(4)
    for name in ("mse", "rmse", "forecast", "analysis"):
        objective_by_name(name).check(network(), windows)
        objective_by_name(name).check(ENSEMBLE, windows)
    objective_by_name("crps").check(ENSEMBLE, windows)
    objective_by_name("mse").check(network(), WindowContents(4, forecast=True))
    objective_by_name("covariance").check(LINEAR, WindowContents(4, covariance=True))


@pytest.mark.parametrize("memory", [0, 2])
def test_the_gradient_is_that_of_the_mean_loss(memory):
    net, seen, objective = network(memory), window(), quartic()()
    state = {name: value.detach() for name, value in roll_out_of(net, seen, None).state.items()}
    result = OneProcess(net, MODEL, ERROR, objective)(seen, state)
    size = 4.0 / (4 * 4 * math.sqrt(8))  # the bound that cycles pass back, of an objective whose power is 0
    loss = objective.loss(roll_out(DataAssimilationNetwork(net), MODEL, ERROR, seen, state, size)).mean()
    for gradient, expected in zip(result.gradients, torch.autograd.grad(loss, list(net.parameters())), strict=True):
        assert_close(gradient, expected)
    assert result.loss == pytest.approx(float(loss.detach()))


def roll_out_of(net, seen, state):
    return roll_out(DataAssimilationNetwork(net.train()), MODEL, ERROR, seen, state)


def test_helpers_get_the_object_of_a_class_that_they_do_not_know():
    """Neither registered, nor importable by its name."""
    seen, objective = window(), quartic()(6)
    one = OneProcess(network(), MODEL, ERROR, objective)(seen, None)
    shards = SeveralProcesses(network(), MODEL, ERROR, objective, 2)
    try:
        two = shards(seen, None)
    finally:
        shards.close()
    assert float(two.loss) == pytest.approx(float(one.loss), rel=1e-5)
    for a, b in zip(one.gradients, two.gradients, strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_an_objective_that_cannot_be_sent_names_the_remedy():
    import threading

    objective = quartic()()
    objective.lock = threading.Lock()
    with pytest.raises(ValueError, match=r"the objective 'quartic' cannot be sent to .*lock.*pass processes=1"):
        SeveralProcesses(network(), MODEL, ERROR, objective, 2)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda rollout: rollout.analysis.square().mean(), r"gave shape \(\): expected a tensor of shape \(4, 3\)"),
        (lambda rollout: rollout.analysis.square(), r"gave shape \(4, 3, 8\): expected"),
        (lambda rollout: 1.0, "gave 1.0: expected"),
    ],
)
def test_a_loss_of_another_shape_is_refused(loss, message):
    class Wrong(Objective):
        name = "wrong"

        def loss(self, rollout):
            return loss(rollout)

    with pytest.raises(ValueError, match=f"the loss of objective 'wrong' {message}"):
        OneProcess(network(), MODEL, ERROR, Wrong())(window(), None)


def test_the_history_shows_the_root_of_what_the_objective_says():
    class Largest(quartic()):
        def square(self, rollout):
            return (rollout.analysis - rollout.window.truth).square().amax(-1)

    net, seen = network(), window()
    square = OneProcess(net, MODEL, ERROR, Largest())(seen, None).square
    expected = (roll_out_of(net, seen, None).analysis - seen.truth).square().amax(-1).detach()
    assert_close(square, expected)
