"""The plan of a training: what is refused before data are read, and the defaults of its arguments."""

import inspect
import threading
from dataclasses import MISSING, fields

import numpy as np
import pytest
import torch
import xarray as xr

import xdan
from xdan.core.learning import Objective, Optimiser, objective_by_name
from xdan.core.observing import Sites
from xdan.core.twin import TwinExperiment
from xdan.training.arguments import TrainingArguments
from xdan.training.plan import plan
from xdan.training.record_source import RecordSource
from xdan.training.twin_source import TwinSource

SMALL = xdan.ResidualCNN(filters=2, blocks=1, kernel=3)


class Absolute(Objective):
    """Mean absolute error, of this module alone: it is not registered."""

    name = "absolute"

    def loss(self, rollout):
        return (rollout.analysis - rollout.truth()).abs().mean(-1)


def test_arguments_have_the_defaults_of_train():
    parameters = inspect.signature(xdan.train).parameters
    assert [entry.name for entry in fields(TrainingArguments)] == list(parameters)
    assert len(parameters) <= 22
    for entry in fields(TrainingArguments):
        if entry.default is not MISSING:
            assert parameters[entry.name].default == entry.default, entry.name
    usual = TrainingArguments(xdan.Lorenz96())
    assert usual.objective.name == parameters["objective"].default
    assert usual.optimiser == Optimiser()
    assert isinstance(usual.source, TwinExperiment)


def test_a_plan_of_a_twin(model):
    twin = TwinExperiment(model, interval=0.1, observe=Sites.every(2), error_std=0.5)
    planned = plan(TrainingArguments(twin, SMALL, batch=6, window=3))
    assert isinstance(planned.source, TwinSource)
    assert (planned.source.steps, planned.source.trajectories, planned.processes) == (2, 24, 1)
    assert planned.network is SMALL
    assert planned.trained is None


def test_a_plan_of_a_record_reads_a_few_states(single, untouchable, computed):
    lazy = single.chunk(trajectory=1)
    planned = plan(TrainingArguments(lazy, SMALL, batch=2, window=4))
    assert isinstance(planned.source, RecordSource)
    assert computed.calls == 1
    # Nothing at all where no gradient passes through the model.
    plan(TrainingArguments(untouchable(single, "truth", "observation"), SMALL, batch=2, window=1))


def test_observations_alone_are_planned_without_the_truth(single, untouchable):
    ds = untouchable(single, "truth", "observation")
    planned = plan(TrainingArguments(ds, SMALL, objective="forecast", batch=2, window=4))
    assert planned.source.contents.truth is False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "crps"}, "objective='crps' scores members"),
        ({"objective": "covariance", "teacher": "etkf"}, "'residual-cnn' forms no covariance"),
        ({"objective": "covariance"}, "teacher=NoneType: expected the name of a method to imitate"),
        ({"teacher": "etkf"}, r"\['teacher'\] go with a Dataset"),
        ({"source": TwinExperiment(xdan.Lorenz96(sites=8), interval=0.07)}, "not a positive multiple"),
        ({"source": TwinExperiment(xdan.Lorenz96(sites=8), interval=[0.05, 0.1])}, "interval=.*expected one interval"),
        (
            {"source": xdan.CustomDynamics(lambda x: -x, state={"x": 4, "y": 2}, timestep=0.05)},
            "says nothing of its grid .*expected a geometry",
        ),
        (
            {"source": xdan.CustomDynamics(lambda x: -x.detach(), state={"x": 8}, timestep=0.05)},
            "pass window=1",
        ),
        ({"network": "residual-cnn", "memory": -1}, "memory=-1: expected at least 0"),
    ],
)
def test_a_twin_is_refused_before_it_runs(model, monkeypatch, changes, message):
    monkeypatch.setattr(TwinSource, "data", lambda *_: pytest.fail("the twin was run"))
    with pytest.raises((TypeError, ValueError), match=message):
        xdan.train(**{"source": model, "network": SMALL, "progress": False, "steps": 1, **changes})


def test_what_cannot_be_sent_or_saved_is_refused_before_data_are_read(single, untouchable):
    class Unknown(xdan.ResidualCNN):
        name = "unknown"

    objective, ds = Absolute(), untouchable(single, "truth", "observation")
    objective.lock = threading.Lock()
    for network, changes, message in (
        (SMALL, {"objective": objective, "processes": 2}, "the objective 'absolute' cannot be sent to .*processes=1"),
        (Unknown(), {}, "Unknown is not registered, so that a saved network could not be opened"),
    ):
        with pytest.raises(ValueError, match=message):
            xdan.train(ds, network, batch=2, window=4, steps=1, progress=False, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "crps"}, "objective='crps' scores members"),
        ({"window": 1, "objective": "forecast"}, "expected a window of at least 2"),
        ({"batch": 0}, "batch=0: expected at least 1"),
        ({"learning_rate": -1.0}, "learning_rate=-1: expected a finite number"),
    ],
)
def test_a_sweep_refuses_a_training_before_its_first_cell(model, monkeypatch, changes, message):
    monkeypatch.setattr("xdan.sweeps.schemes.fit", lambda *_: pytest.fail("a cell was trained"))
    schemes = {
        "good": {"network": "residual-cnn", "steps": 1},
        "bad": {"network": "residual-cnn", "steps": 1, **changes},
    }
    with pytest.raises(ValueError, match=message):
        xdan.sweep(model, schemes, seeds=1, cycles=12, trajectories=2, burn_in=2, progress=False)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_objective_of_ones_own(single, architecture, quick, processes):
    settings = {**quick, "processes": processes}
    net = xdan.train(single, architecture, objective=Absolute(), **settings)
    assert net.description["training"]["objective"] == "absolute"
    other = xdan.train(single, architecture, **settings)
    assert not np.array_equal(net.arrays["weights.0"], other.arrays["weights.0"])
    assert np.isfinite(net.history.loss).all()


def test_an_object_is_the_same_as_its_name(single, architecture, quick):
    one, two = (xdan.train(single, architecture, objective=o, **quick) for o in ("mse", objective_by_name("mse")))
    assert one == two


def test_what_is_no_objective_is_refused(single, architecture, quick):
    class Empty(Objective):
        name = "empty"

    for wrong, message in (
        (Absolute, r"objective=Absolute: expected an object of this class, such as Absolute\(\)"),
        (Empty(), r"Empty has no loss: expected a method loss\(rollout\)"),
        (lambda rollout: rollout, "expected an Objective, or one of"),
    ):
        with pytest.raises(TypeError, match=message):
            xdan.train(single, architecture, objective=wrong, **quick)


def test_a_twin_experiment_with_a_full_error_covariance(model, architecture, quick):
    covariance = 0.5 * np.eye(8) + 0.1
    net = xdan.train(TwinExperiment(model, error_covariance=covariance), architecture, **quick)
    data = net.description["training"]["data"]
    assert data["error_std"] == pytest.approx(np.sqrt(0.6), rel=1e-5)
    assert float(net.arrays["error_std"]) == pytest.approx(np.sqrt(0.6), rel=1e-5)


def test_a_dynamics_is_its_usual_twin_experiment(model, architecture, quick):
    assert xdan.train(model, architecture, **quick) == xdan.train(TwinExperiment(model), architecture, **quick)


def test_words_of_a_record(single, architecture, quick):
    renamed = single.rename(truth="nature")
    assert xdan.train(renamed, architecture, truth="nature", **quick) == xdan.train(single, architecture, **quick)
    with pytest.raises(TypeError, match=r"train\(\) got an unexpected keyword argument 'nature': expected"):
        xdan.train(single, architecture, nature="truth", **quick)
    with pytest.raises(ValueError, match=r"\['operator'\] go with a Dataset: expected none of them"):
        xdan.train(xdan.Lorenz96(sites=8), architecture, operator=torch.eye(8), **quick)


def test_a_first_state_that_is_missing_does_not_hide_the_rest(wide_gap, architecture, quick):
    with pytest.raises(ValueError, match="holds 8 values that are not finite"):
        xdan.train(wide_gap, architecture, **quick)


@pytest.fixture
def wide_gap(single):
    truth = single.truth.copy()
    truth[{"trajectory": 0, "time": 0}] = np.nan
    return single.assign(truth=xr.DataArray(truth))


@pytest.mark.parametrize("function", [lambda: None, lambda told, more: None, lambda *, told: None, 3])
def test_on_validation_takes_one_argument(function):
    with pytest.raises(TypeError, match=r"on_validation=.*: expected a function of one dict"):
        xdan.train(xdan.Lorenz96(sites=8), on_validation=function)


@pytest.mark.parametrize("function", [lambda told: None, lambda *told: None, lambda told, more=1: None, print, dict])
def test_functions_that_take_one_argument_are_taken(function):
    TrainingArguments(source=xdan.Lorenz96(sites=8), on_validation=function)
