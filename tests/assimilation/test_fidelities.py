"""Records cycled with several models: by name, in chunks, into stores, and what their descriptions hold."""

import json

import numpy as np
import pytest
import xarray as xr

import xdan

PAIRS = [(xdan.Lorenz96(8, 7.0), 4), (xdan.Lorenz96(8, 9.0), 6)]
CASES = {
    "multi-model-enkf": {"models": PAIRS},
    "multifidelity-enkf": {"principal": 3, "models": PAIRS},
}


@pytest.fixture(scope="module")
def record():
    return xdan.twin(xdan.Lorenz96(8), cycles=12, trajectories=4, dtype="float64", seed=3).compute()


@pytest.mark.parametrize("name", CASES)
def test_chunks_names_and_objects_give_one_run(record, name):
    run = record.dan.baseline(name, **CASES[name], keep_members=True)
    made = {"multi-model-enkf": xdan.MultiModelEnKF, "multifidelity-enkf": xdan.MultifidelityEnKF}[name]
    lazy = record.chunk(trajectory=3, time=5).dan.cycle(made(**CASES[name]), members=True)
    assert lazy.chunks
    xr.testing.assert_allclose(lazy.compute(), run, rtol=1e-9)
    assert run.members.sizes["member"] == {"multi-model-enkf": 10, "multifidelity-enkf": 13}[name]
    assert float(record.dan.score(run, burn_in=4).rmse) < 1.0


@pytest.mark.parametrize("name", CASES)
def test_a_run_says_which_models_made_it(record, name, tmp_path):
    run = record.dan.baseline(name, **CASES[name], store=tmp_path / "run.zarr", progress=False)
    held = json.loads(run.attrs["method_parameters"])
    assert [(one["name"], one["parameters"]["forcing"], members) for one, members in held["models"]] == [
        ("lorenz96", 7.0, 4),
        ("lorenz96", 9.0, 6),
    ]
    again = record.dan.baseline(name, **held)
    np.testing.assert_allclose(again.analysis, run.analysis, rtol=1e-9)
    other = {**CASES[name], "models": [(xdan.Lorenz96(8, 7.5), 4), PAIRS[1]]}
    with pytest.raises(FileExistsError):
        record.dan.baseline(name, **other, store=tmp_path / "run.zarr", progress=False)


def test_a_run_says_by_how_much_its_models_err(record):
    models = [(xdan.Lorenz96(8, 7.0).with_model_error(0.3), 4), (xdan.Lorenz96(8, 9.0).with_model_error(0.1), 6)]
    run = record.dan.baseline("multi-model-enkf", models=models, model_errors="known")
    again = record.dan.baseline("multi-model-enkf", **json.loads(run.attrs["method_parameters"]))
    np.testing.assert_allclose(again.model_error_1, 0.3)
    np.testing.assert_allclose(again.analysis, run.analysis, rtol=1e-9)
    models[0] = (xdan.Lorenz96(8, 7.0).with_model_error(np.linspace(0.1, 0.4, 8)), 4)
    run = record.dan.baseline("multi-model-enkf", models=models, model_errors="known")
    with pytest.raises(ValueError, match=r"models\[0\]: the model 'lorenz96'.*digest.*pass models= again"):
        record.dan.baseline("multi-model-enkf", **json.loads(run.attrs["method_parameters"]))


def test_weights_and_errors_are_labelled(record):
    run = record.dan.baseline("multi-model-enkf", models=PAIRS)
    weights = run.weight_1 + run.weight_2
    np.testing.assert_allclose(weights, 1.0)
    assert run.model_error_2.dims == ("trajectory", "time", "x")
    assert run.model_error_2.attrs["units"] == record.truth.attrs["units"]


@pytest.mark.filterwarnings("ignore:tuning inflation of:xdan.XdanWarning")  # a record of 12 cycles
def test_inflation_is_tuned(record):
    run = record.dan.baseline(
        "multi-model-enkf", models=PAIRS, inflation="tune", candidates={"inflation": [0.9, 1, 1.1]}
    )
    assert float(run.tuned_inflation) in (0.9, 1.0, 1.1)


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_model_is_refused_before_anything_is_computed(record, name):
    lazy = record.chunk(trajectory=2)
    with pytest.raises(ValueError, match=r"has the state x \{'x': 9\}: expected that of the record"):
        lazy.dan.baseline(name, models=[(xdan.Lorenz96(9), 20)])


@pytest.mark.parametrize("name", CASES)
def test_a_late_interval_that_a_model_cannot_fill_is_refused_at_once(name):
    intervals = [0.1] * 10 + [0.15]
    late = xdan.twin(xdan.Lorenz96(8), interval=intervals, cycles=12, trajectories=2, seed=3, chunks={"time": 4})
    with pytest.raises(ValueError, match=r"a time step of 0\.02, and the record an interval of 0\.15"):
        late.dan.baseline(name, models=[(xdan.Lorenz96(8, timestep=0.02), 20)])
