"""What bad input gets: found, expected, remedy; before any work, and nothing is written."""

import numpy as np
import pytest
import xarray as xr

import xdan


def replaced(ds, name, position, value):
    values = ds[name].values.copy()
    values[position] = value
    return ds.assign({name: ds[name].copy(data=values)})


RECORDS = {
    "no observation": (
        lambda ds: ds.drop_vars("observation"),
        "a variable 'observation', found .*observation=",
    ),
    "no error": (lambda ds: ds.drop_vars("observation_error"), "no observation error: .* pass observation_error="),
    "no dynamics": (lambda ds: ds.assign_attrs({"dynamics": ""}), "is not JSON; pass dynamics="),
    "unknown dynamics": (
        lambda ds: ds.assign_attrs(dynamics='{"name": "os.system", "parameters": {}}'),
        "'os.system' is not registered; known are .*'lorenz96'.* Pass dynamics=",
    ),
    "no state dim": (lambda ds: ds.rename(x="site"), r"without \['x'\]: expected the dynamics' state dims"),
    "no time": (lambda ds: ds.rename(time="step").drop_vars("step"), "none is time: expected 'time'"),
    "wrong size": (lambda ds: ds.isel(x=slice(0, 5)), "state sizes {'x': 5}, the dynamics .* expects {'x': 8}"),
    "all NaN": (lambda ds: ds.assign(observation=ds.observation * np.nan), "every value of 'observation' is NaN"),
    "negative error": (lambda ds: ds.assign(observation_error=-1.0), "standard deviation -1: expected positive"),
    "zero error": (lambda ds: ds.assign(observation_error=0.0), "standard deviation 0: expected positive"),
    "error size": (
        lambda ds: ds.assign(observation_error=("z", np.ones(5))),
        r"observation error has shape \(5,\): expected \(\) or \(8,\)",
    ),
    "error in time": (
        lambda ds: ds.assign(observation_error=("time", np.ones(24))),
        r"varies along \['time'\]: expected dims",
    ),
    "interval": (lambda ds: ds.assign_coords(time=0.07 * np.arange(24)), "interval of 0.07 is not a positive multiple"),
    "time order": (lambda ds: ds.isel(time=slice(None, None, -1)), "time does not increase at index 1"),
    "dates": (
        lambda ds: ds.assign_coords(time=np.datetime64("2000-01-01", "ns") + np.arange(24)),
        "expected numbers in model time units. Convert",
    ),
    "labels": (lambda ds: ds.assign_coords(trajectory=list("abcd")), "expected integers"),
    "unfinished": (lambda ds: ds.assign_attrs(xdan_status="unfinished"), "Run the same call again"),
}


@pytest.mark.parametrize(("change", "message"), RECORDS.values(), ids=RECORDS.keys())
def test_records_are_refused_before_anything_is_written(twin, net, tmp_path, change, message):
    store = tmp_path / "run.zarr"
    for method in (net, xdan.FiniteSizeEnKF(members=3)):
        with pytest.raises(ValueError, match=message):
            xdan.cycle(change(twin), method, store=store, progress=False)
    with pytest.raises(ValueError, match=message):
        xdan.train(change(twin), steps=1, checkpoint=store, progress=False)
    assert not store.exists()


def test_no_dynamics_attribute(twin, net):
    bare = twin.assign_attrs({})
    del bare.attrs["dynamics"]
    with pytest.raises(ValueError, match=r"name no dynamics; pass dynamics=, for example xdan.Lorenz96\(\)"):
        xdan.cycle(bare, net)
    with pytest.raises(TypeError, match=r"wrap a torch function as xdan\.CustomDynamics"):
        xdan.cycle(bare, net, dynamics=lambda x: x)


ERRORS = {
    "not square": (np.ones((8, 5)), r"shape \(8, 5\): expected"),
    "other size": (np.eye(5), r"shape \(5, 5\): expected"),
    "not symmetric": (np.eye(8) + np.eye(8, k=1), "R is not symmetric"),
    "not definite": (np.ones((8, 8)), "R is not positive definite"),
    "negative": (-np.eye(8), "R is not positive definite"),
    "infinite": (np.inf, "standard deviation inf: expected positive finite"),
}


@pytest.mark.parametrize(("error", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_observation_errors(twin, net, error, message):
    with pytest.raises(ValueError, match=message):
        xdan.cycle(twin, net, observation_error=error)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_training_needs_a_whole_truth(twin, tmp_path, value):
    broken = replaced(twin, "truth", (2, 7, 3), value)
    with pytest.raises(ValueError, match=r"1 values that are not finite, the first at indices .*2.*7.*cut short"):
        xdan.train(broken, steps=1, batch=2, window=4, checkpoint=tmp_path / "c.zarr", progress=False)
    assert not (tmp_path / "c.zarr").exists()


TRAINING = {
    "no truth": (lambda ds: ds.drop_vars("truth"), {}, "supervised objective 'rmse' needs the truth"),
    "objective": (lambda ds: ds, {"objective": "mae"}, r"'mae' is unknown; known are \['mse', 'rmse'\]"),
    "both budgets": (lambda ds: ds, {"steps": 3, "minutes": 1}, "steps= or minutes=, not both"),
    "window": (lambda ds: ds, {"window": 0}, "window=0: expected at least 1"),
    "minutes": (lambda ds: ds, {"minutes": -1.0}, "minutes=-1.0: expected a positive number"),
    "validation": (lambda ds: ds, {"validation": 1.5}, "expected a share between 0 and 1"),
    "network": (lambda ds: ds, {"network": "transformer"}, "'transformer' is unknown; known is 'residual-cnn'"),
    "memory twice": (lambda ds: ds, {"network": "architecture", "memory": 3}, "set it in the architecture"),
    "short": (lambda ds: ds.isel(trajectory=[0]), {"window": 12}, "too little for windows of 12 cycles. Expected"),
    "device": (lambda ds: ds, {"device": "cuda"}, "no CUDA device; use device='auto'"),
}


@pytest.mark.parametrize(("change", "arguments", "message"), TRAINING.values(), ids=TRAINING.keys())
def test_trainings_that_cannot_be(twin, architecture, change, arguments, message):
    if arguments.get("network") == "architecture":
        arguments = {**arguments, "network": architecture}
    with pytest.raises(ValueError, match=message):
        xdan.train(change(twin), **{"progress": False, **arguments})


def test_training_on_something_else():
    with pytest.raises(TypeError, match="cannot train on list: expected an xarray Dataset or an xdan Dynamics"):
        xdan.train([1, 2, 3])


def test_truth_of_another_dynamics_warns(twin, architecture, quick):
    with pytest.warns(xdan.XdanWarning, match=r"does not follow Lorenz96\(.*forcing=4.0"):
        xdan.train(twin, architecture, dynamics=xdan.Lorenz96(sites=8, forcing=4.0), **{**quick, "steps": 1})


TWINS = {
    "interval": ({"interval": 0.07}, "interval of 0.07 is not a positive multiple"),
    "negative interval": ({"interval": -0.05}, "interval of -0.05"),
    "intervals": ({"interval": [0.05, 0.1], "cycles": 5}, "2 intervals for 5 cycles: expected 4"),
    "cycles": ({"cycles": 0}, "cycles=0, trajectories=1: expected at least 1"),
    "chunks": ({"chunks": {"time": 0}}, "a chunk of 0: expected at least 1"),
    "seed": ({"seed": -1}, "seed=-1: expected an integer from 0"),
    "dtype": ({"dtype": "float16"}, "expected 'float32' or 'float64'"),
    "error": ({"error_std": 0.0}, "standard deviation 0: expected positive"),
    "covariance": ({"error_covariance": np.eye(3)}, r"shape \(3, 3\): expected"),
    "too many sites": ({"observe": xdan.Sites.random(2, 9)}, "up to 9 of 8: expected high <= 8"),
}


@pytest.mark.parametrize(("arguments", "message"), TWINS.values(), ids=TWINS.keys())
def test_twins_that_cannot_be(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        xdan.twin(model, **arguments)


BASELINES = {
    "name": (("4d-var", {}), r"'4d-var' is unknown; known are \['3d-var', 'enkf-n'\]"),
    "parameter": (("enkf-n", {"inflation": 1.1}), "unexpected keyword argument 'inflation'"),
    "members": (("enkf-n", {"members": 1}), "members=1: expected at least 2"),
    "keep": (("3d-var", {"keep_members": True}), "carries a single state, not an ensemble"),
    "background": (("3d-var", {"background": "flow"}), "expected 'climatology', 'trained' or a matrix"),
    "scale": (("3d-var", {"scale": 0.0}), "scale=0.0: expected 'tune' or a positive number"),
    "matrix": (("3d-var", {"background": np.eye(3), "scale": 1.0}), r"shape \(3, 3\): expected \(8, 8\)"),
}


@pytest.mark.parametrize(("call", "message"), BASELINES.values(), ids=BASELINES.keys())
def test_baselines_that_cannot_be(twin, call, message):
    name, arguments = call
    with pytest.raises(ValueError, match=message):
        xdan.baseline(twin, name, **arguments)


def test_a_trained_background_needs_the_truth(twin):
    with pytest.raises(ValueError, match="needs the truth, which the record lacks; use background='climatology'"):
        xdan.baseline(twin.drop_vars("truth"), "3d-var", background="trained")


def test_a_network_on_other_dims(net):
    ring = xdan.CustomDynamics(lambda x: -x, state={"lon": 8}, timestep=0.05, spin_up_time=0.1)
    ds = xdan.twin(ring, cycles=4)
    with pytest.raises(ValueError, match=r"states with dims \('x',\), the record's state has \('lon',\): rename"):
        xdan.cycle(ds, net, dynamics=ring)


def test_existing_stores_are_kept(twin, net, tmp_path):
    store = tmp_path / "run.zarr"
    xdan.cycle(twin, net, store=store, progress=False)
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match="mode='w' to overwrite"):
        xdan.cycle(twin, net, store=store, progress=False)
    with pytest.raises(FileExistsError, match="mode='w' to overwrite"):
        net.to_zarr(store)
    with pytest.raises(FileExistsError, match="is no checkpoint; choose another path"):
        xdan.train(twin, steps=1, checkpoint=store, progress=False)
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before
    xdan.cycle(twin, net, store=store, mode="w", progress=False)
    with pytest.raises(ValueError, match="expected 'w-'"):
        xdan.cycle(twin, net, store=store, mode="a", progress=False)


def test_a_store_cut_short(twin, net, tmp_path):
    store = tmp_path / "twin.zarr"
    twin.chunk(time=8).to_zarr(store, consolidated=False)
    next((store / "truth" / "c").rglob("*/1/*")).unlink()
    with xr.open_zarr(store, consolidated=False) as ds:
        for call in (lambda: xdan.cycle(ds, net), lambda: xdan.train(ds, steps=1, progress=False)):
            with pytest.raises(ValueError, match="was cut short: 'truth' has 2 of 3 chunks"):
                call()


def test_a_run_that_diverges_says_so(model):
    wild = xdan.CustomDynamics(
        step=lambda x: x + 40 * x**3, state={"x": 8}, timestep=0.05, spin_up_time=0.0, rest=lambda noise: 0.01 * noise
    )
    ds = xdan.twin(model, cycles=12, trajectories=2, dtype="float64").compute(scheduler="synchronous")
    run = xdan.baseline(ds, "enkf-n", members=4, dynamics=wild)
    assert run.diverged.any("time").all()
    first = run.diverged.argmax("time")
    for trajectory in range(2):
        k = int(first[trajectory])
        assert run.diverged[trajectory, k:].all()
        assert run.analysis[trajectory, k:].isnull().all()
        assert run.analysis[trajectory, :k].notnull().all()
