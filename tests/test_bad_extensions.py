"""Models, networks, methods, objectives and scores of a user that cannot be: each is refused in words, and early."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest
import torch

import xdan


class _Hold(xdan.Method):
    """Keeps its forecast, by whatever `answer` says."""

    name = "hold"
    tunable: ClassVar[Mapping[str, xdan.Tunable]] = {"share": xdan.Tunable((0.1, 0.2))}
    answer: ClassVar[Callable[[torch.Tensor], Any]] = lambda x: {"x": x}

    def __init__(self, share=0.1):
        self.share = share

    def start(self, record):
        return {"x": record.observation[:, 0].nan_to_num()}

    def analyse(self, state, observation, observed, observing):
        return type(self).answer(state["x"])


def _double_output(x):
    return {"x": x, "drift": x}


@pytest.mark.parametrize(
    ("answer", "outputs", "message"),
    [
        (lambda x: {"x": x.double()}, (), "returned x of torch.float64: expected torch.float32"),
        (lambda x: {"x": x, "extra": 3}, (), "returned an entry 'extra' 3: expected a tensor with 4 trajectories"),
        (lambda x: {"x": x.add_(1.0)}, (), "wrote into the forecast that it got: expected new tensors"),
        (_double_output, (xdan.Output("drift", "drift"),), r"has shape \(4, 8\): expected a tensor of shape \(4,\)"),
        (_double_output, (xdan.Output("analysis", "drift"),), r"declares the outputs \['analysis'\]: expected other"),
        (_double_output, (xdan.Output("label", "drift"),), r"declares the outputs \['label'\].* expected other"),
        (_double_output, (xdan.Output("drift", "a"), xdan.Output("drift", "b")), "twice: expected distinct names"),
    ],
)
def test_a_method_that_gives_what_it_should_not_is_refused(answer, outputs, message):
    ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=4, trajectories=4).compute()
    method = type("Wrong", (_Hold,), {"answer": answer, "outputs": outputs})()
    with pytest.raises(ValueError, match=message):
        xdan.cycle(ds, method, progress=False)


@pytest.mark.parametrize("share", ["x", None, float("nan")])
def test_a_parameter_to_tune_is_a_number_or_tune(share):
    ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=4, trajectories=4)
    with pytest.raises((TypeError, ValueError), match="expected 'tune' or a positive finite number"):
        xdan.cycle(ds, _Hold(share))


@xdan.register_network
class _Shift(xdan.AnalysisNetwork):
    name = "shift-of-a-test"

    def __init__(self, size=8):
        super().__init__()
        self.size = size
        self.shift = torch.nn.Parameter(torch.zeros(size))
        self.wrong = {}

    def config(self):
        return self.wrong.get("config", {"size": self.size})

    def forward(self, x, zeta, memory=None):
        return self.wrong.get("answer", lambda y: (y, None))(x + zeta + self.shift)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"answer": lambda y: y}, "gave a Tensor: expected the analysis"),
        ({"answer": lambda y: (y[:, :3], None)}, r"gave torch.float32 of shape \(2, 3\): expected the analysis"),
        ({"answer": lambda y: (y.detach(), None)}, "torch sees no derivative of the network"),
        ({"answer": lambda y: (y - y.mean(0), None)}, "mixes the states of a batch"),
        ({"answer": lambda y: (y + torch.randn_like(y), None)}, "gave two analyses of the same states"),
        ({"answer": lambda y: (y, y)}, "gave a memory of shape .*: expected None"),
        ({"config": None}, "gave None: expected a dict of plain JSON values"),
        ({"config": {"size": 5}}, "makes another network: its 'shift' has shape"),
    ],
)
def test_a_network_that_cannot_be_trained_is_refused_at_once(wrong, message):
    network = _Shift()
    network.wrong = wrong
    with pytest.raises((TypeError, ValueError), match=message):
        xdan.train(xdan.Lorenz96(sites=8), network, steps=1, progress=False)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"dims": ("time",)}, "expected other names"),
        ({"dims": "cell"}, "expected a tuple of names"),
        ({"coordinates": {"y": xdan.Coordinate((0, 1))}}, "expected one for each of its dims"),
        ({"coordinates": {"cell": xdan.Coordinate((0, 0))}}, "expected distinct labels"),
        ({"timestep": 0.0}, "expected a finite number, above 0"),
        ({"config": lambda self: None}, "expected a dict of plain JSON values"),
    ],
)
def test_a_model_that_declares_what_cannot_be_is_refused(attributes, message):
    right = {
        "name": "decay-of-a-test",
        "dims": ("cell",),
        "coordinates": {"cell": xdan.Coordinate((0, 1))},
        "timestep": 0.1,
        "config": lambda self: {},
        "tendency": lambda self, x: -x,
    }
    model = type("Decay", (xdan.Dynamics,), {**right, **attributes})()
    with pytest.raises((TypeError, ValueError), match=message):
        xdan.TwinExperiment(model)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"loss": lambda self, rollout: rollout.analysis.detach().mean(-1)}, "torch sees no derivative of the loss"),
        ({"loss": lambda self, rollout: rollout.analysis.mean(-1) + 0j}, "expected real numbers"),
        ({"config": lambda self: {"a": torch.ones(2)}}, "expected a dict of plain JSON values"),
        ({"power": "two"}, "power='two': expected an integer"),
        ({"needs_truth": 3}, "needs_truth=3: expected True or False"),
    ],
)
def test_an_objective_that_cannot_be_is_refused(attributes, message):
    right = {"name": "mean-of-a-test", "loss": lambda self, rollout: rollout.analysis.mean(-1)}
    objective = type("Mean", (xdan.Objective,), {**right, **attributes})()
    settings = {"window": 4, "batch": 2, "steps": 1, "progress": False}
    with pytest.raises((TypeError, ValueError), match=message):
        xdan.train(xdan.Lorenz96(sites=8), xdan.ResidualCNN(filters=2, blocks=1), objective=objective, **settings)


def test_an_endless_twin_has_one_interval():
    experiment = xdan.TwinExperiment(xdan.Lorenz96(sites=8), interval=[0.05, 0.1])
    with pytest.raises(ValueError, match="expected one interval, as networks are trained on an endless twin"):
        xdan.train(experiment, steps=1, progress=False)


@pytest.mark.parametrize(
    ("function", "message"),
    [(lambda truth: truth[:, 0] * 1j, "expected real ones"), (lambda truth: truth.sort(-1), "read-only|sort")],
)
def test_a_score_gives_real_numbers_and_leaves_the_record_alone(function, message):
    ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=4, trajectories=4).compute()
    run = xdan.baseline(ds, "climatology")
    with pytest.raises(ValueError, match=message):
        xdan.score(ds, run, also=[xdan.StateScore(function, "test", name="test")]).compute()


def test_a_first_window_may_have_no_derivative():
    settings = {"window": 2, "batch": 2, "steps": 1, "progress": False}
    xdan.train(xdan.Lorenz96(sites=8), xdan.ResidualCNN(filters=2, blocks=1), objective="forecast", **settings)
