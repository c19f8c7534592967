"""Q in a record: its variables, what a caller says instead, and twins whose model is wrong."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

import xdan
from xdan.core.learning.online_twin import EndlessTwin
from xdan.core.observing import ObservingSystem
from xdan.core.twin import TwinExperiment
from xdan.records.following import astray, followed
from xdan.records.record import read
from xdan.sweeps.cells import Cell
from xdan.sweeps.schemes import BaselineScheme

SITES = 8


def twin(**setting):
    sizes = {"cycles": 30, "trajectories": 3, "seed": 1, "dtype": "float64"}
    return xdan.twin(xdan.Lorenz96(SITES), **{**sizes, **setting})


def q_of(ds, **words):
    error = read(ds, **words).setup.dynamics.model_error
    return None if error is None else error.matrix(torch.zeros((), dtype=torch.float64)).numpy()


def correlated(scale=0.1):
    return scale * (np.eye(SITES) + 0.5 * np.eye(SITES, k=1) + 0.5 * np.eye(SITES, k=-1))


def test_the_truth_errs_by_q_between_times_and_not_before_the_first():
    q = correlated()
    ds = twin(model_error_covariance=q, cycles=400).compute()
    perfect = twin(cycles=400).compute()
    xr.testing.assert_allclose(ds.truth.isel(time=0), perfect.truth.isel(time=0))
    ahead = xdan.Lorenz96(SITES).advance(torch.from_numpy(ds.truth.values[:, :-1].reshape(-1, SITES)), 1)
    error = ds.truth.values[:, 1:].reshape(-1, SITES) - ahead.numpy()
    np.testing.assert_allclose(np.cov(error.T), q, atol=0.02)
    lagged = np.corrcoef(error[:-1, 0], error[1:, 0])[0, 1]
    assert abs(lagged) < 0.1


def test_chunks_change_no_error_of_the_truth():
    whole, cut = twin(model_error_std=0.2), twin(model_error_std=0.2, chunks={"trajectory": 1, "time": 7})
    xr.testing.assert_identical(whole.compute(), cut.compute())


def test_a_record_holds_its_q():
    alike, by_site, full = (
        twin(model_error_std=0.3),
        twin(model_error_std=np.arange(8.0)),
        twin(model_error_covariance=correlated()),
    )
    assert alike.model_error.dims == ()
    assert alike.model_error.attrs["xdan_role"] == "model_error"
    assert by_site.model_error.dims == ("x",)
    assert full.model_error_covariance.dims == ("x", "x_dual")
    np.testing.assert_allclose(q_of(alike), 0.09 * np.eye(8))
    np.testing.assert_allclose(q_of(by_site), np.diag(np.arange(8.0) ** 2))
    np.testing.assert_allclose(q_of(full), correlated())
    assert "model_error" not in twin()
    assert json.loads(alike.attrs["dynamics"])["model_error"] == 0.3


def test_a_store_keeps_q(tmp_path):
    twin(model_error_covariance=correlated()).to_zarr(tmp_path / "wrong.zarr", consolidated=False)
    np.testing.assert_allclose(q_of(xr.open_zarr(tmp_path / "wrong.zarr", consolidated=False)), correlated())


def test_what_the_caller_says_counts_first():
    ds = twin(model_error_std=0.3)
    assert q_of(ds, model_error=0) is None
    np.testing.assert_allclose(q_of(ds, model_error=0.5), 0.25 * np.eye(8))
    np.testing.assert_allclose(q_of(ds, model_error=np.arange(8.0)), np.diag(np.arange(8.0) ** 2))
    np.testing.assert_allclose(q_of(ds, model_error=correlated()), correlated())
    np.testing.assert_allclose(q_of(ds.rename(model_error="q"), model_error="q"), 0.09 * np.eye(8))
    np.testing.assert_allclose(q_of(ds, dynamics=xdan.Lorenz96(SITES).with_model_error(0.7)), 0.49 * np.eye(8))
    other = xdan.Lorenz96(SITES).with_model_error(0.7)
    np.testing.assert_allclose(q_of(ds, dynamics=other, model_error=0.1), 0.01 * np.eye(8))


def test_labels_in_another_order_are_refused():
    ds = twin()
    labelled = xr.DataArray(np.arange(8.0), dims="x", coords={"x": np.arange(8)[::-1]})
    with pytest.raises(ValueError, match="in another order"):
        read(ds, model_error=labelled)
    with pytest.raises(ValueError, match="in another order"):
        twin(model_error_std=labelled)
    matrix = xr.DataArray(correlated(), dims=("x_dual", "x"), coords={"x": np.arange(8)[::-1]}, name="q")
    with pytest.raises(ValueError, match="in another order"):
        read(ds, model_error=matrix)
    np.testing.assert_allclose(q_of(ds, model_error=matrix.assign_coords(x=np.arange(8))), correlated())


def test_places_that_a_geometry_names_are_brought_into_its_order():
    sphere = xdan.SphereQG()
    ds = xdan.twin(sphere, interval=0.25, cycles=2, model_error_std=1e5)
    q = np.arange(1.0, 1.0 + np.prod(sphere.shape)).reshape(sphere.shape)
    coordinates = {dim: list(sphere.coordinates[dim].values) for dim in sphere.dims}
    labelled = xr.DataArray(q, dims=sphere.dims, coords=coordinates)
    turned = labelled.isel({sphere.dims[-2]: slice(None, None, -1)})
    std = read(ds, model_error=turned).setup.dynamics.model_error.std
    np.testing.assert_allclose(std, q.ravel())


def test_q_of_fields():
    model = xdan.TwoScaleLorenz96(sites=4, fast=4)
    ds = xdan.twin(model, cycles=3, model_error_std={"U": 0.5})
    assert ds.model_error_U.dims == ()
    assert float(ds.model_error_U) == 0.5
    assert float(ds.model_error_V) == 0.0
    expected = np.diag([0.25] * 4 + [0.0] * 16)
    np.testing.assert_allclose(q_of(ds), expected)
    np.testing.assert_allclose(q_of(ds.drop_vars("model_error_V")), expected)
    np.testing.assert_allclose(q_of(ds, model_error={"V": 1.0}), np.diag([0.0] * 4 + [1.0] * 16))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (-1.0, "standard deviation -1"),
        ("no_such", "no variable 'no_such' for model_error=: expected one of"),
        (np.ones(3), r"shape \(3,\)"),
        (np.diag([-1.0] + [1.0] * 7), "positive semi-definite"),
        ({"u": 1.0}, "mapping"),
        (xr.DataArray(np.ones((8, 8)), dims=("x", "y_dual")), "those of the state twice"),
        (xr.DataArray(np.ones(3), dims="y"), "those of the state"),
    ],
)
def test_what_is_no_q_is_refused_before_anything_runs(word, message):
    with pytest.raises((TypeError, ValueError), match=message):
        twin().dan.baseline("etkf", model_error=word)


def test_two_kinds_of_q_are_refused():
    ds = twin(model_error_std=0.3)
    both = ds.assign(model_error_covariance=(("x", "x_dual"), correlated()))
    with pytest.raises(ValueError, match="expected one of them"):
        read(both)


def test_smoothers_of_a_perfect_model_say_what_to_do():
    ds = twin(model_error_std=0.3)
    with pytest.raises(ValueError, match=r"'ienks' assumes a perfect model.*expected model_error=0"):
        ds.dan.baseline("ienks")
    with pytest.warns(xdan.XdanWarning, match="does not follow"):
        ds.compute().dan.baseline("ienkf", members=5, model_error=0, progress=False)


def test_another_model_makes_the_truth():
    ds = twin(truth_dynamics=xdan.Lorenz96(SITES, forcing=5.0)).compute()
    right = xdan.twin(xdan.Lorenz96(SITES, forcing=5.0), cycles=30, trajectories=3, seed=1, dtype="float64").compute()
    xr.testing.assert_equal(ds.truth, right.truth)
    assert json.loads(ds.attrs["dynamics"])["parameters"]["forcing"] == 8.0
    assert json.loads(ds.attrs["truth_dynamics"])["parameters"]["forcing"] == 5.0
    labelled = read(ds)
    assert astray(labelled.setup, followed(labelled.setup, labelled.truth).to_numpy()) == ""
    unsaid = ds.copy()
    del unsaid.attrs["truth_dynamics"]
    labelled = read(unsaid)
    assert "does not follow" in astray(labelled.setup, followed(labelled.setup, labelled.truth).to_numpy())


def test_errors_of_the_size_of_q_are_no_other_model():
    ds = twin(model_error_std=0.3).compute()
    for q, said in ((None, ""), (0, "model_error="), (0.01, "model_error=")):
        labelled = read(ds, model_error=q)
        assert said in astray(labelled.setup, followed(labelled.setup, labelled.truth).to_numpy())
        assert bool(said) == bool(astray(labelled.setup, followed(labelled.setup, labelled.truth).to_numpy()))


def test_a_truth_with_more_fields_and_other_steps():
    """The forecast model's field is the truth's of its places; both run over the same intervals."""
    truth = xdan.TwoScaleLorenz96(sites=4, fast=4, timestep=0.005)
    model = xdan.Lorenz96(4, forcing=20.0)
    ds = xdan.twin(model, truth_dynamics=truth, interval=0.1, cycles=5, dtype="float64", chunks={"time": 2}).compute()
    whole = xdan.twin(truth, interval=0.1, cycles=5, dtype="float64").compute()
    np.testing.assert_allclose(ds.truth, whole.truth_U)
    assert set(ds.data_vars) == {"truth", "observation", "observation_error"}
    with pytest.raises(ValueError, match="multiple"):
        xdan.twin(model, truth_dynamics=xdan.TwoScaleLorenz96(sites=4, fast=4, timestep=0.007), interval=0.1, cycles=5)


def test_the_truth_has_its_own_errors_where_it_has_its_own_model():
    quiet = twin(truth_dynamics=xdan.Lorenz96(SITES), model_error_std=0.3).compute()
    xr.testing.assert_equal(quiet.truth, twin().compute().truth)
    noisy = twin(truth_dynamics=xdan.Lorenz96(SITES).with_model_error(0.3)).compute()
    xr.testing.assert_equal(noisy.truth, twin(model_error_std=0.3).compute().truth)
    assert "model_error" not in noisy


def test_experiments_describe_their_errors():
    experiment = TwinExperiment(xdan.Lorenz96(SITES), truth_dynamics=xdan.Lorenz96(SITES, 7.0), model_error_std=0.2)
    assert experiment.dynamics.model_error.word == 0.2
    assert experiment.config()["truth_dynamics"]["parameters"]["forcing"] == 7.0
    for wrong, kind in (({"truth_dynamics": 3}, TypeError), ({"truth_dynamics": xdan.Lorenz96(9)}, ValueError)):
        with pytest.raises(kind, match="truth_dynamics"):
            TwinExperiment(xdan.Lorenz96(SITES), **wrong)
    with pytest.raises(ValueError, match="exactly one"):
        TwinExperiment(xdan.Lorenz96(SITES), model_error_std=0.1, model_error_covariance=np.eye(SITES))


def test_an_endless_twin_is_the_record_of_its_experiment():
    experiment = TwinExperiment(
        xdan.Lorenz96(4, forcing=20.0),
        truth_dynamics=xdan.TwoScaleLorenz96(sites=4, fast=4).with_model_error({"U": 0.2, "V": 0.01}),
    )
    record = xdan.twin(experiment, cycles=6, trajectories=2, seed=3, dtype="float64").compute()
    source = EndlessTwin(
        experiment.dynamics,
        experiment.observe,
        ObservingSystem(torch.ones((), dtype=torch.float64)),
        steps=1,
        trajectories=2,
        batch=2,
        cycles=3,
        seed=3,
        like=torch.zeros((), dtype=torch.float64),
        model=experiment.truth,
        truth_steps=10,
    )
    windows = [source.window(0), source.window(1)]
    np.testing.assert_allclose(torch.cat([window.truth for window in windows], 1), record.truth)
    np.testing.assert_allclose(torch.cat([window.observation for window in windows], 1), record.observation)


def test_networks_are_trained_where_the_model_is_wrong(quick):
    experiment = TwinExperiment(
        xdan.Lorenz96(SITES, forcing=8.5), truth_dynamics=xdan.Lorenz96(SITES), model_error_std=0.1
    )
    net = xdan.train(experiment, xdan.ResidualCNN(filters=4, blocks=1, kernel=3), **quick)
    data = net.description["training"]["data"]
    assert data["endless"]["model_error"] == 0.1
    assert data["truth_dynamics"]["parameters"]["forcing"] == 8.0
    record = xdan.twin(xdan.Lorenz96(SITES, forcing=8.5), cycles=5).compute()
    with pytest.warns(xdan.XdanWarning, match=r"the model errs by 0.0 in an interval, in training by 0.1"):
        record.dan.cycle(net)


def test_sweeps_over_the_size_of_errors_and_over_the_model():
    experiment = TwinExperiment(xdan.Lorenz96(SITES), truth_dynamics=xdan.Lorenz96(SITES).with_model_error(0.2))
    schemes = {"etkf": {"baseline": "etkf", "members": 12, "inflation": 1.02}}
    axes = {"model_error_std": [0.0, 0.2], "forcing": [8.0, 6.0]}
    scores = xdan.sweep(experiment, schemes, axes, cycles=60, trajectories=4, burn_in=30, progress=False)
    rmse = scores.rmse.squeeze().transpose("model_error_std", "forcing").values
    assert rmse[1, 0] < rmse[0, 0]  # Q is accounted for
    assert rmse[1, 0] < rmse[1, 1]  # and the model is right


def test_cells_know_their_errors():
    keys = {
        Cell(BaselineScheme(method="etkf", parameters={}), experiment, experiment, {"cycles": 3}, 0).key
        for experiment in (
            TwinExperiment(xdan.Lorenz96(SITES)),
            TwinExperiment(xdan.Lorenz96(SITES), model_error_std=0.1),
            TwinExperiment(xdan.Lorenz96(SITES), truth_dynamics=xdan.Lorenz96(SITES, forcing=7.0)),
            TwinExperiment(xdan.Lorenz96(SITES), truth_dynamics=xdan.Lorenz96(SITES).with_model_error(0.1)),
        )
    }
    assert len(keys) == 4


def test_a_record_whose_q_was_left_out_still_has_it():
    parts = ["truth", "observation", "observation_error"]
    np.testing.assert_allclose(q_of(twin(model_error_std=0.3)[parts]), 0.09 * np.eye(8))
    assert q_of(twin(model_error_std=0.3)[parts], model_error=0) is None
    with pytest.raises(ValueError, match="no variable holds it"):
        read(twin(model_error_covariance=correlated())[parts])
    assert q_of(twin(model_error_covariance=correlated())[parts], model_error=0) is None


def test_an_experiment_keeps_q_in_one_place():
    experiment = TwinExperiment(xdan.Lorenz96(SITES), model_error_std=0.2)
    assert experiment.model_error_std is None
    full = replace(experiment, model_error_covariance=correlated())
    assert not full.dynamics.model_error.independent
    assert replace(experiment, interval=0.1).dynamics.model_error.word == 0.2
    assert replace(experiment, dynamics=xdan.Lorenz96(SITES).with_model_error(0.5)).dynamics.model_error.word == 0.5
    assert replace(experiment, model_error_std=0).dynamics.model_error is None


def test_a_labelled_matrix_of_an_experiment_is_brought_into_order():
    q = correlated()
    q[0, 1] = q[1, 0] = 0.02
    labelled = xr.DataArray(q, dims=("x", "x_dual"), coords={"x": np.arange(8)})
    turned = TwinExperiment(xdan.Lorenz96(SITES), model_error_covariance=labelled.transpose("x_dual", "x"))
    np.testing.assert_allclose(turned.dynamics.model_error.covariance, q)
    with pytest.raises(ValueError, match="in another order"):
        TwinExperiment(xdan.Lorenz96(SITES), model_error_covariance=labelled.isel(x=slice(None, None, -1)))
    with pytest.raises(ValueError, match="those of the state twice"):
        TwinExperiment(xdan.Lorenz96(SITES), model_error_covariance=labelled.rename(x_dual="y"))


def test_a_truth_on_other_places_is_refused():
    def on(places):
        ring = xdan.Field("x", xdan.Ring(places, 40.0))
        return xdan.CustomDynamics(lambda x: -x, state=ring, timestep=0.1, spin_up_time=0.0)

    near, far = on([0.0, 10.0, 20.0, 30.0]), on([5.0, 15.0, 25.0, 35.0])
    TwinExperiment(near, truth_dynamics=on([0.0, 10.0, 20.0, 30.0]))
    with pytest.raises(ValueError, match="expected one of them on its places"):
        TwinExperiment(near, truth_dynamics=far)
