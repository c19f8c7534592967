"""NumPy models and a climatology of one's own through the verbs: runs, twins, trainings, sweeps and stores."""

import json
import pickle

import cloudpickle
import dask
import numpy as np
import pytest
import torch
import xarray as xr

import xdan
from xdan.records.climatology import with_climatology

SITES = 8
METHODS = {
    "enkf-n": {"members": 10},
    "letkf": {"members": 6, "radius": 2.0, "inflation": 1.05},
    "3d-var": {"scale": 0.1},
    "etkf": {"members": 10, "inflation": 1.02},
    "enkf": {"members": 20, "inflation": 1.02},
    "ienks": {"members": 9, "lag": 2},
    "particle": {"members": 50},
    "optimal-interpolation": {},
}
QUICK = {"batch": 2, "steps": 4, "validate_every": 2, "progress": False}


def step(x):
    """Lorenz-96 by Runge-Kutta 4 of NumPy arrays."""

    def tendency(x):
        return (np.roll(x, -1, -1) - np.roll(x, 2, -1)) * np.roll(x, 1, -1) - x + 8.0

    k1 = tendency(x)
    k2 = tendency(x + 0.025 * k1)
    k3 = tendency(x + 0.025 * k2)
    return x + 0.05 / 6 * (k1 + 2 * (k2 + k3) + tendency(x + 0.05 * k3))


def numpy_model(function=step, **options):
    def distance(i, j):
        return np.minimum(abs(i - j), SITES - abs(i - j))

    return xdan.NumpyDynamics(function, state={"x": SITES}, timestep=0.05, distance=distance, **options)


@pytest.fixture(scope="module")
def states(model):
    like = torch.zeros((), dtype=torch.float64)
    return model.climatology(range(200), 3, like=like)[:, 0].numpy()


@pytest.fixture(scope="module")
def record(model, states):
    ds = xdan.twin(model, cycles=16, trajectories=3, seed=1, dtype="float64", climatology=states)
    return ds.compute(scheduler="synchronous")


@pytest.mark.parametrize("name", METHODS)
def test_a_numpy_model_gives_the_run_of_the_torch_model(record, states, name):
    torch_run = record.dan.baseline(name, climatology=states, **METHODS[name])
    numpy_run = record.dan.baseline(name, climatology=states, dynamics=numpy_model(), **METHODS[name])
    np.testing.assert_allclose(numpy_run.analysis, torch_run.analysis, rtol=0, atol=1e-10)
    assert float(torch_run.analysis.std()) > 0.1
    other = record.dan.baseline(name, **METHODS[name])  # from its own spin-up: another start
    assert float(abs(other.analysis - torch_run.analysis).max()) > 1e-3


def test_a_twin_of_a_numpy_model_is_that_of_the_torch_model(record, states):
    twin = xdan.twin(numpy_model(), cycles=16, trajectories=3, seed=1, dtype="float64", climatology=states)
    np.testing.assert_allclose(twin.truth, record.truth, atol=1e-10)
    np.testing.assert_allclose(twin.observation, record.observation, atol=1e-10)
    first = record.truth.isel(time=0).to_numpy()
    assert {tuple(row) for row in first} <= {tuple(row) for row in states}
    assert len({tuple(row) for row in first}) == 3


def test_loops_threads_and_chunks_change_nothing(record, states):
    def run(ds, **options):
        words = {"dynamics": numpy_model(**options), "climatology": states}
        return ds.dan.baseline("etkf", members=6, inflation=1.02, **words).analysis

    expected = run(record)
    for options in ({"batched": False}, {"batched": False, "workers": 3}, {"workers": 2}):
        np.testing.assert_allclose(run(record, **options), expected, rtol=0, atol=1e-12)
    for chunks in ({"trajectory": 1, "time": 5}, {"trajectory": 2, "time": 16}):
        np.testing.assert_allclose(run(record.chunk(chunks)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "name",
    [
        "4d-var",
        "eda",
        "extended-kalman",
        "kalman",
        "second-order-kalman",
        "iterated-kalman-smoother",
        "state-covariance",
    ],
)
def test_methods_that_differentiate_are_refused_before_a_step(record, name):
    calls = []

    def counted(x):
        calls.append(None)
        return step(x)

    mine = numpy_model(counted, name="mine")
    words = rf"the method '{name}' needs derivatives of the model, and the dynamics 'mine' has none.*'enkf-n', .*'etkf'"
    with pytest.raises(ValueError, match=words):
        record.chunk().dan.baseline(name, dynamics=mine)
    with pytest.raises(ValueError, match="the Lyapunov spectrum needs derivatives"):
        xdan.lyapunov_spectrum(mine)
    with pytest.raises(ValueError, match="Lyapunov vectors needs derivatives"):
        record.dan.lyapunov_vectors(dynamics=mine)
    assert not calls
    with pytest.raises(ValueError, match=words):  # a few steps, of which a sweep's keys know the model
        xdan.sweep(mine, {"M": {"baseline": name}}, climatology=10 * np.eye(SITES), cycles=20, burn_in=5)
    assert len(calls) < 30


def test_training_through_cycles_is_refused_and_its_remedies_work(model, states, architecture):
    refused = "training through windows of several cycles needs derivatives .*teacher=ds.dan.baseline"
    calls = []

    def counted(x):
        calls.append(None)
        return step(x)

    with pytest.raises(ValueError, match=refused):
        xdan.train(numpy_model(counted), architecture, window=3, climatology=states, **QUICK)
    assert not calls
    ds = xdan.twin(model, cycles=24, trajectories=6, seed=2, climatology=states).compute()
    mine = {"dynamics": numpy_model(), "climatology": states}
    with pytest.raises(ValueError, match=refused):
        ds.dan.train(architecture, window=3, **mine, **QUICK)
    run = ds.dan.baseline("etkf", members=8, inflation=1.02, **mine)
    imitated = ds.dan.train(architecture, window=3, teacher=run, **mine, **QUICK)
    alone = ds.dan.train(architecture, window=1, **mine, **QUICK)
    endless = xdan.train(numpy_model(), architecture, window=1, climatology=states, **QUICK)
    for net in (imitated, alone, endless):
        assert np.isfinite(net.history.validation_rmse).all()
        assert bool(np.isfinite(ds.dan.cycle(net, **mine).analysis).all())


def test_b_and_its_mean_are_those_of_the_states(record, states):
    run = record.dan.baseline("3d-var", climatology=states, scale=0.3)
    np.testing.assert_allclose(run.background_covariance, np.cov(states.T), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(run.forecast[:, 0], np.broadcast_to(states.mean(0), (3, SITES)), rtol=1e-12)


def test_members_start_as_distinct_states(record, states):
    run = record.dan.baseline("etkf", members=12, inflation=1.0, keep_members=True, climatology=states)
    members = run.forecast_members.isel(time=0).transpose("trajectory", "member", "x").to_numpy()
    known = {tuple(row) for row in states}
    for ensemble in members:
        assert {tuple(row) for row in ensemble} <= known
        assert len({tuple(row) for row in ensemble}) == 12


def test_a_network_is_normalised_by_the_states(model, states, architecture):
    ds = xdan.twin(model, cycles=24, trajectories=6, seed=2).compute()
    net = ds.dan.train(architecture, window=3, climatology=3.0 * states + 5.0, **QUICK)
    module = net.module()
    np.testing.assert_allclose(float(module.state_mean), 3.0 * states.mean() + 5.0, rtol=1e-5)
    np.testing.assert_allclose(float(module.state_std), 3.0 * states.std(), rtol=1e-5)
    assert net.description["training"]["data"]["dynamics"]["climatology"].startswith("200 states, sha256 ")


def test_the_record_stands_for_its_own_climate(record):
    by_word = record.dan.baseline("3d-var", climatology="record", scale=0.3)
    by_array = record.dan.baseline("3d-var", climatology=record.truth, scale=0.3)
    xr.testing.assert_identical(by_word, by_array)
    rows = record.truth.stack(sample=["trajectory", "time"]).transpose("sample", "x").to_numpy()
    np.testing.assert_allclose(by_word.background_covariance, np.cov(rows.T), rtol=1e-10, atol=1e-12)
    turned = record.truth.transpose("x", "time", "trajectory")
    again = record.dan.baseline("3d-var", climatology=turned, scale=0.3)
    np.testing.assert_allclose(again.background_covariance, by_word.background_covariance, rtol=1e-10, atol=1e-12)


def test_a_long_record_gives_states_that_are_evenly_spaced(monkeypatch, record):
    from xdan.records import climatology

    monkeypatch.setattr(climatology, "_MOST", 12)
    spaced = climatology.spaced(record.truth)
    assert dict(spaced.sizes) == {"trajectory": 3, "time": 4, "x": SITES}
    assert spaced.time.values[[0, -1]].tolist() == record.time.values[[0, -1]].tolist()
    monkeypatch.setattr(climatology, "_MOST", 2)
    assert dict(climatology.spaced(record.truth).sizes) == {"trajectory": 2, "time": 1, "x": SITES}


def explosive(x):
    """A model that only bears states near its attractor."""
    if np.abs(x).max() > 30.0:
        raise FloatingPointError("the Courant number is too large")
    return step(x)


def test_a_model_that_does_not_spin_up_works_with_states_of_its_climate(record, states):
    model = numpy_model(explosive, rest=lambda noise: 1000.0 * noise, spin_up_time=1.0)
    with pytest.raises(ValueError, match="the Courant number is too large"):
        record.dan.baseline("etkf", members=6, inflation=1.02, dynamics=model)
    run = record.dan.baseline("etkf", members=6, inflation=1.02, dynamics=model, climatology=states)
    expected = record.dan.baseline("etkf", members=6, inflation=1.02, climatology=states)
    np.testing.assert_allclose(run.analysis, expected.analysis, atol=1e-10)
    with pytest.raises(ValueError, match=r"are not finite after .* or states of the climate as climatology="):
        xdan.twin(xdan.CustomDynamics(lambda x: x**3, state={"x": 3}, timestep=0.05), cycles=3)


def test_a_store_holds_a_digest_and_resumes_with_the_same_states_only(tmp_path, record, states):
    path = tmp_path / "run.zarr"
    options = {"members": 6, "inflation": 1.02, "store": path, "progress": False}
    run = record.chunk({"time": 8}).dan.baseline("etkf", climatology=states, **options)
    described = json.loads(run.attrs["dynamics"])
    assert described["climatology"].startswith("200 states, sha256 ")
    assert len(run.attrs["dynamics"]) < 200
    again = xr.open_zarr(path, consolidated=False)
    assert np.isfinite(float(record.dan.score(again).rmse))
    from xdan.assimilation.cycling import Run
    from xdan.assimilation.schemes import MethodScheme
    from xdan.core.methods import method_by_name
    from xdan.records.record import read

    def identity(climatology):
        scheme = MethodScheme(method_by_name("etkf", members=6, inflation=1.02))
        labelled = read(record, climatology=climatology)
        return Run(labelled, scheme, [], 0, False, "cpu", False, stored=True)._identity()

    assert identity(states) == identity(states.copy())
    assert len({identity(states), identity(states[:-1]), identity(None)}) == 3


def test_the_states_travel_once_in_a_graph(record, states):
    many = np.repeat(states, 20, axis=0) + np.linspace(0, 1, 20 * len(states))[:, None]
    chunked = record.chunk({"trajectory": 1, "time": 2})
    run = chunked.dan.baseline("3d-var", scale=0.3, climatology=many)
    twin = xdan.twin(
        xdan.Lorenz96(sites=SITES), cycles=16, trajectories=3, climatology=many, chunks={"trajectory": 1, "time": 2}
    )
    for ds in (run, twin):
        copies = sum(len(cloudpickle.dumps(task)) > many.nbytes / 2 for task in dict(ds.__dask_graph__()).values())
        assert copies == 1


def test_a_sweep_starts_from_the_states(tmp_path, states):
    schemes = {"3D-Var": {"baseline": "3d-var", "scale": 0.3}, "clim": {"baseline": "climatology"}}
    sizes = {"cycles": 12, "trajectories": 2, "burn_in": 2, "progress": False}
    model, store = xdan.Lorenz96(sites=SITES), tmp_path / "sweep.zarr"
    cube = xdan.sweep(model, schemes, climatology=states, store=store, **sizes)
    assert not cube.failed.any()
    ds = xdan.twin(model, cycles=12, trajectories=2, seed=1_000_000, climatology=states)
    run = ds.dan.baseline("3d-var", scale=0.3, climatology=states)
    expected = float(ds.dan.score(run, burn_in=2).rmse)
    np.testing.assert_allclose(float(cube.rmse.sel(scheme="3D-Var", seed=0)), expected, rtol=1e-5)
    lazy = xdan.sweep(model.with_climatology(states), schemes, **sizes)
    assert sum(len(cloudpickle.dumps(task)) > states.nbytes / 2 for task in dict(lazy.__dask_graph__()).values()) == 1
    np.testing.assert_allclose(lazy.rmse, cube.rmse)
    with pytest.raises(ValueError, match="with climatology= the dynamics' own are none"):
        xdan.sweep(model, schemes, {"forcing": [7.0, 8.0]}, climatology=states, **sizes)
    with pytest.raises(FileExistsError):
        xdan.sweep(model, schemes, climatology=states[1:], store=store, **sizes)


def test_too_few_states_are_said_before_a_run(record, states):
    with pytest.raises(ValueError, match="40 members start from the 30 states of climatology="):
        record.chunk().dan.baseline("enkf-n", members=40, climatology=states[:30])
    with pytest.raises(ValueError, match="covariance of the 8 states of climatology= has no full rank in 8 components"):
        record.dan.baseline("4d-var", window=2, scale=0.1, climatology=states[:8])
    record.dan.baseline("4d-var", window=2, scale=0.1, climatology=states[:30])
    with pytest.warns(xdan.XdanWarning, match="40 trajectories start from the 30 states of climatology="):
        xdan.twin(xdan.Lorenz96(sites=SITES), cycles=2, trajectories=40, climatology=states[:30])


@pytest.mark.parametrize(
    ("brought", "error", "words"),
    [
        ("truth", ValueError, "climatology='truth': expected 'record', or an array"),
        (xr.Dataset({"a": 1}), TypeError, r"climatology is a Dataset of \['a'\]: expected one of its variables"),
        (xr.DataArray(np.eye(8), dims=["sample", "y"]), ValueError, r"dims \('sample', 'y'\), without \['x'\]"),
        (np.ones((3, 7)), ValueError, r"shape \(3, 7\): expected \(states, 8\)"),
        (np.full((3, 8), np.inf), ValueError, "3 of the 3 states of climatology= are not finite"),
        (
            xr.DataArray(np.eye(8), dims=["sample", "x"], coords={"x": range(7, -1, -1)}),
            ValueError,
            "labels of 'x' in another order",
        ),
    ],
)
def test_what_is_no_climatology_is_refused(record, brought, error, words):
    with pytest.raises(error, match=words):
        record.dan.baseline("climatology", climatology=brought)


def test_a_record_without_a_truth_has_no_climate_of_its_own(record):
    with pytest.raises(ValueError, match="climatology='record' takes the states of the record's truth, and there"):
        record.drop_vars("truth").dan.baseline("climatology", climatology="record")
    with pytest.raises(ValueError, match="climatology='record' takes"):
        xdan.twin(xdan.Lorenz96(), cycles=2, climatology="record")


@pytest.mark.slow
def test_processes_of_a_model_work_in_a_worker_of_dask(record, states):
    """Under a nanny a worker has no processes of its own: the calls come one after another, with the same numbers."""
    distributed = pytest.importorskip("distributed")
    model = numpy_model(batched=False, workers=2, executor="processes")
    words = {"members": 6, "inflation": 1.02, "climatology": states}
    expected = record.dan.baseline("etkf", **words)
    run = record.chunk({"trajectory": 1, "time": 8}).dan.baseline("etkf", dynamics=model, **words)
    with (
        dask.config.set(scheduler=None),
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, memory_limit=None, dashboard_address=":0", silence_logs=50
        ) as cluster,
        distributed.Client(cluster),
    ):
        np.testing.assert_allclose(run.analysis.compute(), expected.analysis, atol=1e-10)
    assert pickle.loads(cloudpickle.dumps(model)).executor == "processes"


FIELDS = {
    "a twin": lambda past: past,
    "variables of the fields' names": lambda past: (
        past[["truth_u", "truth_h"]].drop_attrs().rename(truth_u="u", truth_h="h")
    ),
    "labelled": lambda past: {"u": past.truth_u.transpose("lon", "time", "lat", "trajectory"), "h": past.truth_h},
    "latitudes from the north": lambda past: past.isel(lat=slice(None, None, -1)),
    "stacked": lambda past: past[["truth_h", "truth_u"]].stack(sample=["trajectory", "time"]),
    "arrays": lambda past: {"u": past.truth_u.values, "h": past.truth_h.values},
}


def of_fields():
    def carried(f):
        return {"h": torch.cos(3 * f["h"].roll(1, -1)), "u": torch.cos(3 * f["u"] + f["h"])}

    sphere = xdan.Sphere(2, 4)
    state = [xdan.Field("h", sphere, units="m"), xdan.Field("u", sphere, units="m s-1")]
    return xdan.CustomDynamics(step=carried, state=state, timestep=1.0, spin_up_time=5.0)


@pytest.fixture(scope="module")
def past():
    return xdan.twin(of_fields(), cycles=20, interval=1.0, trajectories=2, seed=3).compute()


@pytest.fixture(scope="module")
def packed(past):
    return np.concatenate([past.truth_h.values.reshape(40, 8), past.truth_u.values.reshape(40, 8)], -1)


@pytest.mark.parametrize("brought", FIELDS.values(), ids=FIELDS)
def test_states_of_several_fields_are_packed(past, packed, brought):
    expected = with_climatology(of_fields(), packed).given_climate
    assert with_climatology(of_fields(), brought(past)).given_climate.word == expected.word


@pytest.mark.slow
def test_every_verb_takes_states_of_several_fields(past, packed):
    model, run = of_fields(), {"scale": 0.3}
    experiment = xdan.TwinExperiment(model, interval=1.0, error_std=0.1)
    ds = xdan.twin(experiment, cycles=12, climatology=past, seed=1)
    xr.testing.assert_identical(ds, xdan.twin(experiment, cycles=12, climatology=packed, seed=1))
    by_field, flat = (ds.dan.baseline("3d-var", dynamics=model, climatology=one, **run) for one in (past, packed))
    xr.testing.assert_identical(by_field, flat)
    net = xdan.train(experiment, climatology=past, **QUICK)
    assert net.description["training"]["data"]["dynamics"]["climatology"].startswith("40 states")
    sizes = {"cycles": 12, "burn_in": 4, "trajectories": 2}
    cube = xdan.sweep(experiment, {"var": {"baseline": "3d-var", **run}}, climatology=past, **sizes)
    assert np.isfinite(cube.rmse).all()


@pytest.mark.parametrize(
    ("brought", "error", "words"),
    [
        (lambda past: past[["truth_h"]], ValueError, r"no states of the fields \['u'\], there are \['h'\]"),
        (lambda past: {"h": past.truth_h}, ValueError, r"no states of the fields \['u'\], there are \['h'\]"),
        (lambda past: {"h": past.truth_h, "u": past.truth_u, "v": 1}, ValueError, r"climatology= names \['v'\]"),
        (lambda past: past.truth_u, ValueError, r"one variable with the dims .* expected a mapping of the fields"),
        (lambda past: {"h": "a", "u": "b"}, TypeError, r"climatology\['h'\]='a' .*: expected real numbers"),
        (
            lambda past: {"h": np.ones((9, 2, 4)), "u": np.ones((9, 4))},
            ValueError,
            r"shape \(9, 4\): expected \(sample",
        ),
        (
            lambda past: past.isel(lat=[0]),
            ValueError,
            r"climatology\['h'\] has the sizes .*'lat': 1.*: expected .*'lat': 2",
        ),
        (lambda past: past.isel(time=0, trajectory=0), ValueError, "and a dim for the states"),
        (lambda past: past.assign_coords(lat=[-30.0, 30.0]), ValueError, r"lies on other places than the field 'h'"),
        (
            lambda past: {"h": past.truth_h, "u": past.truth_u.isel(time=slice(5))},
            ValueError,
            "expected those of all fields at one time together",
        ),
        (
            lambda past: {"h": past.truth_h, "u": past.truth_u.assign_coords(time=past.time + 1)},
            ValueError,
            "or under other labels",
        ),
    ],
)
def test_states_of_several_fields_that_do_not_fit_are_refused(past, brought, error, words):
    with pytest.raises(error, match=words):
        with_climatology(of_fields(), brought(past))


def test_states_are_in_the_units_of_the_dynamics():
    model = xdan.CustomDynamics(lambda x: -x, state=xdan.Field("t", xdan.Ring(3), "degC"), timestep=0.1)
    warm = xr.DataArray(np.eye(3), dims=["sample", "x"], attrs={"units": "K"}, name="t")
    with pytest.raises(ValueError, match="'t' is in 'K' and 'the dynamics custom' in 'degC'"):
        with_climatology(model, warm)
