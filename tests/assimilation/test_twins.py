"""Twins: labels, random numbers that know no chunks, observing networks and errors."""

import json

import cf_xarray  # noqa: F401
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import xdan
from xdan.core.dynamics import dynamics_from_json
from xdan.core.observing import Sites
from xdan.core.twin import TwinExperiment


@given(st.integers(1, 5), st.integers(1, 30), st.sampled_from(["all", "every", "random"]))
def test_any_chunks_give_the_same_bits(model, rows, columns, kind):
    sites = {"all": Sites.all(), "every": Sites.every(3, 1), "random": Sites.random(2, 6)}[kind]
    settings = {"cycles": 24, "trajectories": 4, "seed": 1, "observe": sites}
    whole = xdan.twin(model, **settings, chunks={"trajectory": 4, "time": 24})
    cut = xdan.twin(model, **settings, chunks={"trajectory": rows, "time": columns})
    assert max(cut.chunksizes["time"]) == min(columns, 24)
    assert max(cut.chunksizes["trajectory"]) == min(rows, 4)
    xr.testing.assert_identical(whole.compute(), cut.compute())


def test_more_trajectories_and_cycles_change_none_of_the_first(model, twin):
    more = xdan.twin(model, cycles=31, trajectories=7, seed=1, dtype="float64").compute()
    first = more.isel(trajectory=slice(4), time=slice(24))
    xr.testing.assert_identical(first, twin)


def test_seeds_and_trajectories_differ(model, twin):
    other = xdan.twin(model, cycles=24, trajectories=4, seed=2, dtype="float64").compute()
    assert not np.isclose(other.truth, twin.truth).any()
    assert not np.isclose(other.observation - other.truth, twin.observation - twin.truth).any()
    assert len(np.unique(twin.truth.isel(time=0))) == twin.truth.isel(time=0).size


def test_truth_follows_the_dynamics(model, twin):
    states = torch.from_numpy(twin.truth.values)
    np.testing.assert_array_equal(model.advance(states[:, :-1].reshape(-1, 8), 1).reshape(4, 23, 8), states[:, 1:])


def test_uneven_intervals(model):
    intervals = [0.05, 0.2, 0.1]
    ds = xdan.twin(model, cycles=4, interval=intervals, dtype="float64", chunks={"time": 3}).compute()
    np.testing.assert_allclose(ds.time, [0, 0.05, 0.25, 0.35], rtol=0, atol=1e-12)
    states = torch.from_numpy(ds.truth.values)
    for k, steps in enumerate([1, 4, 2]):
        np.testing.assert_array_equal(model.advance(states[:, k], steps), states[:, k + 1])


def test_errors_have_the_covariance_asked_for(model):
    settings = {"cycles": 2000, "trajectories": 2, "seed": 3, "dtype": "float64"}
    each = np.linspace(0.5, 2, 8)
    full = np.diag(each) + 0.2
    for given_as, expected in (
        ({"error_std": 2.0}, 4 * np.eye(8)),
        ({"error_std": each}, np.diag(each**2)),
        ({"error_covariance": full}, full),
    ):
        ds = xdan.twin(model, **settings, **given_as)
        errors = (ds.observation - ds.truth).values.reshape(-1, 8)
        # Wishart: the standard deviation of an entry is sqrt((r_ii r_jj + r_ij^2) / n).
        sampling = np.sqrt((np.outer(np.diag(expected), np.diag(expected)) + expected**2) / len(errors))
        assert (np.abs(errors.T @ errors / len(errors) - expected) < 5 * sampling).all()
        assert (np.abs(errors.mean(0)) < 5 * np.sqrt(np.diag(expected) / len(errors))).all()


def test_errors_are_stored_as_given(model):
    each = np.linspace(0.5, 2, 8)
    full = np.diag(each) + 0.2
    scalar, by_site, matrix = (
        xdan.twin(model, cycles=2, **kind) for kind in ({}, {"error_std": each}, {"error_covariance": full})
    )
    assert scalar.observation_error.dims == ()
    assert by_site.observation_error.dims == ("x",)
    np.testing.assert_array_equal(by_site.observation_error, each)
    assert matrix.observation_error_covariance.dims == ("x", "x_dual")
    np.testing.assert_array_equal(matrix.observation_error_covariance, full)
    assert "observation_error" not in matrix


def test_nan_where_nothing_is_observed(model):
    every = xdan.twin(model, cycles=5, observe=Sites.every(3, 1), dtype="float64").compute()
    np.testing.assert_array_equal(every.observation.notnull().all(["time", "trajectory"]), np.arange(8) % 3 == 1)
    np.testing.assert_array_equal(every.observation.notnull().any(["time", "trajectory"]), np.arange(8) % 3 == 1)
    random = xdan.twin(model, cycles=300, observe=Sites.random(2, 4), dtype="float64").compute()
    counts = random.observation.notnull().sum("x")
    assert set(np.unique(counts)) == {2, 3, 4}
    assert (random.observation.notnull().sum("time") > 0).all()
    assert random.truth.notnull().all()
    full = xdan.twin(model, cycles=300, dtype="float64").compute()
    seen = random.observation.notnull()
    np.testing.assert_array_equal(random.observation.where(seen), full.observation.where(seen))


def test_lazy(model, computed):
    ds = xdan.twin(model, cycles=1000, trajectories=200, observe=Sites.random(1, 8))
    assert computed.calls == 0
    assert ds.truth.chunks == ds.observation.chunks
    assert ds.truth.chunks[2] == (8,)
    ds.truth.isel(trajectory=0, time=0).compute()
    assert computed.calls == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype(model, dtype):
    ds = xdan.twin(model, cycles=3, dtype=dtype)
    assert ds.truth.dtype == ds.observation.dtype == ds.compute().truth.dtype == dtype


def test_conventions(model, twin):
    assert twin.attrs["Conventions"].startswith("CF-")
    assert twin.cf.axes == {"T": ["time"], "X": ["x"]}
    for name in twin.variables:
        assert twin[name].attrs["units"] == "1"
        assert twin[name].attrs["long_name"]
    assert {name: twin[name].attrs["xdan_role"] for name in twin.data_vars} == {n: n for n in twin.data_vars}
    matrix = xdan.twin(model, cycles=2, error_covariance=np.eye(8)).observation_error_covariance
    assert matrix.attrs["xdan_role"] == "observation_error_covariance"


def test_units_of_the_state():
    metres = xdan.CustomDynamics(lambda x: -x, state={"lon": [0.0, 90.0, 180.0]}, timestep=0.1, units="m")
    ds = xdan.twin(metres, interval=0.1, cycles=3, error_covariance=np.eye(3))
    assert ds.truth.attrs["units"] == ds.observation.attrs["units"] == "m"
    assert ds.observation_error_covariance.attrs["units"] == "(m)2"
    np.testing.assert_array_equal(ds.lon, [0, 90, 180])


def test_state_of_two_dims():
    grid = xdan.CustomDynamics(lambda x: -x, state={"lat": 2, "lon": 3}, timestep=0.1, spin_up_time=1.0)
    ds = xdan.twin(grid, interval=0.1, cycles=4, trajectories=2, observe=Sites.every(2), chunks={"time": 2})
    assert ds.truth.dims == ("trajectory", "time", "lat", "lon")
    seen = ds.observation.notnull().isel(trajectory=0, time=0).values
    np.testing.assert_array_equal(seen, [[True, False, True], [False, True, False]])


def test_a_store_describes_itself(tmp_path, twin):
    twin.to_zarr(tmp_path / "twin.zarr", consolidated=False)
    opened = xr.open_zarr(tmp_path / "twin.zarr", consolidated=False)
    xr.testing.assert_identical(opened.compute(), twin)
    dynamics = dynamics_from_json(json.loads(opened.attrs["dynamics"]))
    assert dynamics == xdan.Lorenz96(sites=8)
    assert Sites.from_json(json.loads(opened.attrs["observing"])) == Sites.all()
    assert opened.attrs["seed"] == 1


@pytest.mark.parametrize("sites", [Sites.all(), Sites.every(3, 2), Sites.random(1, 5)])
def test_observing_network_comes_back_from_json(sites):
    assert Sites.from_json(json.loads(json.dumps(sites.to_json()))) == sites


def test_labels_that_are_words_survive_a_store(tmp_path):
    """Without a warning: strings of fixed length have no specification in Zarr."""
    ds = xdan.twin(xdan.Lorenz63(), interval=0.1, cycles=3).compute()
    ds.to_zarr(tmp_path / "l63.zarr", consolidated=False)
    with xr.open_zarr(tmp_path / "l63.zarr", consolidated=False) as opened:
        assert opened.component.values.tolist() == ["x", "y", "z"]
        np.testing.assert_array_equal(opened.truth.sel(component="z"), ds.truth[..., 2])


def growing(**options):
    step = lambda x: 1e3 * x  # noqa: E731
    return xdan.CustomDynamics(step=step, state={"x": 4}, **{"timestep": 1.0, "spin_up_time": 0.0, **options})


def test_a_model_that_blows_up_makes_no_record():
    with pytest.raises(ValueError, match=r"1 of 1 states of 'custom' are not finite .* give rest= "):
        xdan.twin(growing(spin_up_time=100.0), interval=1.0, cycles=3)
    ds = xdan.twin(growing(), interval=1.0, cycles=20, trajectories=2, chunks={"time": 5})
    ds.truth.isel(time=slice(5)).compute()
    with pytest.raises(ValueError, match=r"truth of trajectory \d is not finite from time index 1\d on: expected"):
        ds.compute()


def test_the_unit_of_time_stands_beside_the_times(tmp_path):
    daily = xdan.CustomDynamics(lambda x: -x, state={"x": 3}, timestep=0.1, time_unit=np.timedelta64(5, "D"))
    ds = xdan.twin(daily, interval=0.1, cycles=3)
    assert (ds.time.attrs["units"], ds.time.attrs["time_unit"]) == ("1", "5 days")
    ds.to_zarr(tmp_path / "twin.zarr", consolidated=False)
    assert xr.open_zarr(tmp_path / "twin.zarr", consolidated=False).time.dtype == np.float64
    assert "time_unit" not in xdan.twin(xdan.Lorenz96(), cycles=2).time.attrs


ODD = [
    "x",
    b"x",
    [],
    [1, "a"],
    {"a": 1},
    xr.Dataset(),
    1j,
    np.nan,
    -1,
    1.5,
    True,
    np.datetime64("2020"),
    np.ones(3) + 1j,
]
ARGUMENTS = ["interval", "cycles", "trajectories", "observe", "operator", "error_std", "error_covariance", "chunks"]


@pytest.mark.parametrize("argument", [*ARGUMENTS, "seed", "dtype", "experiment"])
def test_wrong_arguments_are_named(model, argument):
    # A number may be a standard deviation or an interval, and an empty Dataset a mapping of no chunks.
    right = {"error_std": float, "interval": float, "chunks": xr.Dataset}.get(argument, ())
    for value in ODD:
        if isinstance(value, right) and not (isinstance(value, float) and np.isnan(value)):
            continue
        with pytest.raises((TypeError, ValueError), match="expected"):
            xdan.twin(**{"experiment": model, "cycles": 3, argument: value})
    if argument in ("trajectories", "cycles", "dtype", "interval", "seed"):
        with pytest.raises(TypeError, match=f"{argument}=None.*expected"):
            xdan.twin(model, **{argument: None})


def test_an_experiment_is_a_dynamics_with_its_setting(model):
    setting = {"interval": 0.1, "observe": Sites.every(2), "error_std": np.linspace(0.5, 2, 8)}
    by_noun = xdan.twin(TwinExperiment(model, **setting), cycles=5, trajectories=2, seed=3)
    xr.testing.assert_identical(by_noun, xdan.twin(model, cycles=5, trajectories=2, seed=3, **setting))
    with pytest.raises(TypeError, match=r"\['interval'\] beside a TwinExperiment, which has them already"):
        xdan.twin(TwinExperiment(model), interval=0.1)
    with pytest.raises(TypeError, match=r"takes no \['error'\]: expected \['error_covariance', 'error_std',"):
        xdan.twin(model, error=2.0)


def test_labelled_errors_may_lie_along_time(model):
    along = xr.DataArray(np.linspace(0.5, 2, 6), dims="time")
    assert xdan.twin(model, cycles=6, error_std=along).observation_error.dims == ("time",)
    both = along * xr.DataArray(np.arange(1.0, 9.0), dims="x")
    turned = xdan.twin(model, cycles=6, error_std=both.transpose("x", "time"))
    assert turned.observation_error.dims == ("time", "x")
    np.testing.assert_array_equal(turned.observation_error, both.transpose("time", "x"))
    with pytest.raises(ValueError, match=r"error_std has sizes {'time': 6}: expected {'time': 7}"):
        xdan.twin(model, cycles=7, error_std=along)


def test_errors_are_given_once(model):
    with pytest.raises(ValueError, match="expected one of error_std= and error_covariance="):
        xdan.twin(model, error_std=2.0, error_covariance=np.eye(8))
    with pytest.raises(ValueError, match=r"error_covariance has shape \(8,\): expected \(8, 8\)"):
        xdan.twin(model, error_covariance=np.ones(8))
    turned = xr.DataArray(np.eye(8), {"x": np.arange(8)[::-1]}, ("x", "x_dual"))
    with pytest.raises(ValueError, match="labels of 'x' in another order"):
        xdan.twin(model, error_covariance=turned)
