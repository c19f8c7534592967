"""The twin experiment: what it refuses, keeps and tells of itself."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import xarray as xr

import xdan
from xdan.core.twin import TwinExperiment, check_truth


def test_defaults_are_those_of_a_plain_twin(model):
    experiment = TwinExperiment(model)
    assert (experiment.interval, experiment.observe) == (0.05, xdan.Sites.all())
    assert (experiment.error_std, experiment.error_covariance, experiment.operator) == (1.0, None, None)
    assert TwinExperiment(model, observe=None, error_std=None).config() == experiment.config()


def test_numbers_are_copied_and_become_plain(model):
    each = np.linspace(0.5, 2, 8, dtype=np.float32)
    experiment = TwinExperiment(model, interval=np.float32(0.5), error_std=each, operator=torch.eye(8))
    each[0] = 99.0
    assert experiment.error_std[0] == 0.5
    assert experiment.error_std.dtype == experiment.operator.dtype == np.float64
    assert type(experiment.interval) is float
    assert TwinExperiment(model, interval=np.array([0.05, 0.1])).interval == (0.05, 0.1)
    assert type(TwinExperiment(model, error_std=torch.tensor(2.0)).error_std) is float


def test_labelled_numbers_keep_their_labels(model):
    each = xr.DataArray(np.ones(8), {"x": np.arange(8)}, "x")
    experiment = TwinExperiment(model, error_std=each)
    each[0] = 99.0
    xr.testing.assert_identical(experiment.error_std, xr.ones_like(each))
    covariance = xr.DataArray(np.eye(8), dims=("x", "x_dual"))
    xr.testing.assert_identical(TwinExperiment(model, error_covariance=covariance).error_covariance, covariance)


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ({"dynamics": 3}, TypeError, "dynamics=3: expected an xdan Dynamics"),
        ({"interval": 0.0}, ValueError, "interval=0.0: expected a positive finite"),
        ({"interval": [0.05, np.nan]}, ValueError, r"interval=\[0.05, nan\]: expected a positive finite"),
        ({"interval": [[0.05]]}, ValueError, r"interval has shape \(1, 1\): expected one number, or one for each"),
        ({"interval": "daily"}, TypeError, "interval='daily'.* expected real numbers"),
        ({"observe": 2}, TypeError, "observe=2: expected Sites"),
        ({"operator": "mean"}, TypeError, "operator='mean'.* expected real numbers"),
        ({"operator": np.eye(8) + 1j}, TypeError, "operator=.* expected real numbers"),
        ({"error_std": -2}, ValueError, "error_std holds the standard deviation -2: expected positive finite values"),
        ({"error_std": [1.0, np.inf]}, ValueError, "standard deviation inf: expected positive finite values"),
        ({"error_std": xr.Dataset()}, TypeError, "error_std=.* expected real numbers"),
        ({"error_std": True}, TypeError, "error_std=True is of bool: expected real numbers"),
        ({"error_covariance": "R"}, TypeError, "error_covariance='R'.* expected real numbers"),
        ({"error_std": 1.0, "error_covariance": np.eye(8)}, ValueError, "expected one of error_std= and error_cov"),
    ],
)
def test_what_cannot_be_is_refused_as_it_is_made(model, wrong, kind, message):
    with pytest.raises(kind, match=message):
        TwinExperiment(**{"dynamics": model, **wrong})


def test_replace_makes_another(model):
    experiment = TwinExperiment(model, interval=0.1, error_std=xr.DataArray(np.ones(8), dims="x"))
    other = dataclasses.replace(experiment, interval=0.2)
    assert (experiment.interval, other.interval) == (0.1, 0.2)
    xr.testing.assert_identical(other.error_std, experiment.error_std)
    full = dataclasses.replace(experiment, error_std=None, error_covariance=np.eye(8))
    assert full.error_std is None
    with pytest.raises(ValueError, match="both were given; None removes one of them"):
        dataclasses.replace(experiment, error_covariance=np.eye(8))
    with pytest.raises(dataclasses.FrozenInstanceError):
        experiment.interval = 0.2


def test_only_one_object_is_equal_to_itself(model):
    experiment = TwinExperiment(model, error_std=np.ones(8))
    assert experiment == experiment
    assert experiment != TwinExperiment(model, error_std=np.ones(8))
    assert len({experiment, TwinExperiment(model)}) == 2


def test_the_description_is_plain(model):
    def squared(x):
        return x**2

    config = TwinExperiment(model, interval=[0.05, 0.1], operator=squared, error_std=np.array([1.0, 2.0])).config()
    assert json.loads(json.dumps(config)) == {
        "dynamics": {"name": "lorenz96", "parameters": model.config()},
        "interval": [0.05, 0.1],
        "observe": {"name": "sites", "parameters": {"kind": "all"}},
        "operator": "test_the_description_is_plain.<locals>.squared",
        "error_std": [1.0, 2.0],
    }
    config = TwinExperiment(model, operator=np.eye(8)[:1], error_covariance=[[2.0]]).config()
    assert config["operator"] == [[1.0] + [0.0] * 7]
    assert config["error_covariance"] == [[2.0]]
    assert "error_std" not in config


def test_the_representation_is_short(model):
    assert repr(TwinExperiment(model, interval=0.1)) == (
        f"TwinExperiment(dynamics={model!r}, interval=0.1, observe={xdan.Sites.all()!r}, error_std=1.0)"
    )
    assert len(repr(TwinExperiment(model, error_covariance=np.eye(400)))) < 400


def test_steps_follow_from_the_intervals(model):
    intervals, steps = TwinExperiment(model, interval=[0.05, 0.2, 0.1]).steps(4)
    np.testing.assert_array_equal(intervals, [0.05, 0.2, 0.1])
    np.testing.assert_array_equal(steps, [1, 4, 2])
    intervals, steps = TwinExperiment(model, interval=0.1).steps(4)
    np.testing.assert_array_equal(intervals, [0.1, 0.1, 0.1])
    np.testing.assert_array_equal(steps, [2, 2, 2])
    assert TwinExperiment(model).steps(1)[1].shape == (0,)
    with pytest.raises(ValueError, match="3 intervals for 3 cycles: expected 2"):
        TwinExperiment(model, interval=[0.05, 0.2, 0.1]).steps(3)
    with pytest.raises(ValueError, match=r"an interval of 0.07 is not a positive multiple .* expected a multiple"):
        TwinExperiment(model, interval=0.07).steps(3)


def test_a_setting_goes_with_a_dynamics_only(model):
    experiment = TwinExperiment.of(model, {"interval": 0.1})
    assert experiment.interval == 0.1
    assert TwinExperiment.of(experiment, {}) is experiment
    with pytest.raises(TypeError, match=r"\['interval'\] beside a TwinExperiment"):
        TwinExperiment.of(experiment, {"interval": 0.1})
    with pytest.raises(TypeError, match=r"experiment='lorenz96': expected an xdan Dynamics .*, or a TwinExperiment"):
        TwinExperiment.of("lorenz96", {})


def test_a_truth_that_is_not_finite_is_told_by_its_first_time(model):
    truth = torch.zeros(2, 5, 8)
    check_truth(model, truth, torch.tensor([7, 9]), 10)
    truth[0, 4, 0], truth[1, 3, 2] = torch.nan, torch.inf
    with pytest.raises(ValueError, match="the truth of trajectory 9 is not finite from time index 13 on: expected"):
        check_truth(model, truth, torch.tensor([7, 9]), 10)
