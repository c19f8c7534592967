"""Cycling: against the equations, and the same for every chunking, scheduler, store and naming."""

from functools import cache

import dask
import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import xdan
from xdan.core.learning import Optimiser
from xdan.core.observing import Sites
from xdan.records.streams import Stream

# The network is used on gaps and uneven intervals, which it was not trained on.
pytestmark = pytest.mark.filterwarnings("ignore:the network is used out of the setting:xdan.XdanWarning")

CLOSE = {"rtol": 0, "atol": 1e-10}  # float64, 24 cycles of a chaotic model


def cuts(total):
    """Chunk sizes that add up to a total."""
    edges = st.sets(st.integers(1, total - 1)).map(lambda inner: [0, *sorted(inner), total])
    return edges.map(lambda e: tuple(np.diff(e).tolist()))


def assert_close(a, b):
    """Equal but for rounding; labels and attributes alike."""
    assert a.attrs == b.attrs
    assert set(a.variables) == set(b.variables)
    for name in a.variables:
        assert a[name].dims == b[name].dims
        assert a[name].attrs == b[name].attrs
        np.testing.assert_allclose(a[name].values, b[name].values, **CLOSE, err_msg=name)


@pytest.fixture(scope="module")
def gappy(model):
    """Sites that come and go, intervals of one to four steps."""
    intervals = np.resize([0.05, 0.1, 0.2, 0.05], 23)
    return xdan.twin(
        model, cycles=24, trajectories=4, seed=2, observe=Sites.random(2, 7), interval=intervals, dtype="float64"
    ).compute(scheduler="synchronous")


def by_hand(ds, net, model, error_variance=1.0):
    """Eq. 2, 3 and 22 with as little of xdan as can be."""
    module = net.module(torch.float64)
    y = torch.from_numpy(ds.observation.values)
    steps = np.rint(np.diff(ds.time.values) / model.timestep).astype(int)
    climate = module.state_std**2
    x, memory, forecasts, analyses = module.state_mean.expand(y[:, 0].shape), None, [], []
    with torch.no_grad():
        for k in range(y.shape[1]):
            if k:
                for _ in range(steps[k - 1]):
                    x = model.step(x)
            forecasts.append(x)
            innovation = torch.nan_to_num(y[:, k] - x, nan=0.0)
            if k:
                x, memory = module(x, innovation / error_variance, memory)
            else:
                x = x + climate / (climate + error_variance) * innovation
            analyses.append(x)
    return torch.stack(forecasts, 1).numpy(), torch.stack(analyses, 1).numpy()


@pytest.mark.parametrize("std", [1.0, 0.7])
def test_network_cycles_by_the_equations(gappy, net, model, std):
    run = xdan.cycle(gappy, net, observation_error=std)
    forecast, analysis = by_hand(gappy, net, model, std**2)
    np.testing.assert_allclose(run.forecast, forecast, **CLOSE)
    np.testing.assert_allclose(run.analysis, analysis, **CLOSE)
    assert not run.diverged.any()


def test_memory_matters(twin, net, run):
    """Otherwise no test of chunks would show that it is carried."""
    half = xdan.cycle(twin.isel(time=slice(12, None)), net)
    assert not np.allclose(half.analysis[:, 1:], run.analysis[:, 13:])
    forgetful = {**net.arrays, "weights.0": net.arrays["weights.0"].copy()}
    forgetful["weights.0"].reshape(4, 3, 4)[:, :, 2:] = 0  # the columns that read the memory
    other = xdan.cycle(twin, xdan.Network(net.description, forgetful))
    assert not np.allclose(other.analysis, run.analysis)


@cache
def guided(lag: int) -> xdan.Network:
    """A network whose forecast carries a covariance."""
    small = xdan.KalmanCNN(filters=4, blocks=1, kernel=3, memory=2, diagonals=3, lag=lag)
    return xdan.train(xdan.Lorenz96(8), small, steps=3, batch=2, window=3, progress=False)


METHODS = {
    "dan": lambda net: net,
    "kalman network": lambda net: guided(0),
    "kalman network, lagged": lambda net: guided(2),
    "kalman network, rebuilt": lambda net: guided(0).with_parameters(past=3),
    "enkf-n": lambda net: xdan.FiniteSizeEnKF(members=5),
    "3d-var": lambda net: xdan.ThreeDVar(),
}
KEEPING = ("enkf-n", "kalman network")  # members, or memory and covariance
LONG = ("kalman network, lagged", "kalman network, rebuilt")


@pytest.fixture(scope="module")
def whole(gappy, net):
    """Result without chunks, computed once for every method."""
    return cache(lambda name: xdan.cycle(gappy, METHODS[name](net), members=name in KEEPING))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in METHODS]
)
@settings(max_examples=4)
@given(data=st.data())
def test_any_chunks(name, data, gappy, net, whole):
    rows, columns = data.draw(cuts(4)), data.draw(cuts(24))
    chunked = gappy.chunk(trajectory=rows, time=columns, x=data.draw(st.sampled_from([3, 8])))
    lazy = xdan.cycle(chunked, METHODS[name](net), members=name in KEEPING)
    assert lazy.analysis.chunks == (rows, columns, (8,))
    assert_close(lazy.compute(), whole(name))


@pytest.mark.parametrize("name", METHODS)
def test_threads(name, gappy, net, whole):
    lazy = xdan.cycle(gappy.chunk(trajectory=1, time=7), METHODS[name](net), members=name in KEEPING)
    with dask.config.set(scheduler="threads", num_workers=4):
        assert_close(lazy.compute(), whole(name))


@pytest.mark.slow
def test_processes(gappy, net, whole, tmp_path):
    distributed = pytest.importorskip("distributed")
    chunked = gappy.chunk(trajectory=2, time=7)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        distributed.Client(cluster),
        dask.config.set(scheduler=None),
    ):
        for name, method in METHODS.items():
            lazy = xdan.cycle(chunked, method(net), members=name in KEEPING)
            assert_close(lazy.compute(), whole(name))
        stored = xdan.cycle(chunked, net, store=tmp_path / "run.zarr", progress=False)
        assert_close(stored.compute(), whole("dan"))


@pytest.mark.parametrize(
    ("chunks", "name"),
    [
        *(({"trajectory": 3, "time": 7}, name) for name in METHODS),
        *((chunks, name) for chunks in ({}, {"time": 24}) for name in KEEPING),
    ],
)
def test_store_is_the_result(name, chunks, gappy, net, whole, tmp_path):
    stored = xdan.cycle(
        gappy.chunk(chunks) if chunks else gappy,
        METHODS[name](net),
        members=name in KEEPING,
        store=tmp_path / "run.zarr",
        progress=False,
    )
    assert stored.analysis.chunks is not None
    assert_close(stored.compute(), whole(name))
    assert_close(xr.open_zarr(tmp_path / "run.zarr", consolidated=False).compute(), whole(name))


def test_store_from_a_store(twin, net, run, tmp_path):
    twin.chunk(time=10, trajectory=2).to_zarr(tmp_path / "twin.zarr", consolidated=False)
    opened = xr.open_zarr(tmp_path / "twin.zarr", consolidated=False)
    stored = xdan.cycle(opened, net, store=tmp_path / "run.zarr", progress=False)
    assert_close(stored.compute(), run)


def test_existing_store(twin, net, run, tmp_path):
    settings = {"store": tmp_path / "run.zarr", "progress": False}
    xdan.cycle(twin, net, **settings)
    with pytest.raises(FileExistsError, match="exists; pass mode='w' to overwrite it, or another path"):
        xdan.cycle(twin, net, **settings)
    again = xdan.baseline(twin, "enkf-n", members=3, mode="w", **settings)
    xr.testing.assert_identical(again.compute(), xdan.baseline(twin, "enkf-n", members=3))


@pytest.mark.parametrize("name", METHODS)
def test_nothing_is_read_until_it_is_wanted(name, twin, net, untouchable, computed):
    chunked = untouchable(twin, "truth", "observation")
    lazy = xdan.cycle(chunked, METHODS[name](net), members=name in KEEPING)
    assert computed.calls == 0
    assert all(lazy[v].chunks is not None or not lazy[v].ndim for v in lazy.data_vars)
    with pytest.raises(AssertionError, match="data was read"):
        lazy.analysis.compute()
    assert computed.calls == 1


def test_a_part_asks_for_no_more_than_its_past(gappy, net, whole):
    seen = []

    def note(block, block_info=None):
        if block_info:
            seen.append(tuple(block_info[0]["chunk-location"][:2]))
        return block

    chunked = gappy.chunk(trajectory=2, time=6)
    noted = chunked.assign(observation=chunked.observation.copy(data=chunked.observation.data.map_blocks(note)))
    part = xdan.cycle(noted, net).analysis.isel(trajectory=3, time=8).compute()
    np.testing.assert_allclose(part, whole("dan").analysis[3, 8], **CLOSE)
    # The leading blocks prepare methods that want it; the rest is trajectory block 1 up to time block 1.
    assert {place for place in seen if place[0] == 1} <= {(1, t) for t in range(4)}
    assert (1, 1) in seen


def test_subset_of_trajectories_is_the_subset(twin, net, run):
    part = xdan.cycle(twin.isel(trajectory=[3, 1]), net)
    np.testing.assert_allclose(part.analysis, run.analysis[[3, 1]], **CLOSE)
    members = xdan.baseline(twin.isel(trajectory=[3, 1]), "enkf-n", members=4)
    everything = xdan.baseline(twin, "enkf-n", members=4)
    np.testing.assert_allclose(members.analysis, everything.analysis[[3, 1]], **CLOSE)


@pytest.mark.parametrize("chunked", [False, True])
def test_without_trajectories(twin, net, run, chunked):
    bare = twin.isel(trajectory=2, drop=True)
    bare_run = xdan.cycle(bare.chunk(time=5) if chunked else bare, net)
    assert bare_run.analysis.dims == ("time", "x")
    assert "trajectory" not in bare_run.variables
    assert (bare_run.analysis.chunks is not None) == chunked
    np.testing.assert_allclose(bare_run.analysis, run.analysis[2], **CLOSE)


@pytest.mark.parametrize("drop", [False, True])
def test_without_trajectories_a_store_is_opened_as_the_run_in_memory(twin, net, drop, tmp_path):
    bare, place = twin.isel(trajectory=2, drop=drop), tmp_path / "run.zarr"
    stored = xdan.cycle(bare, net, store=place, progress=False)
    xr.testing.assert_allclose(stored.load(), xdan.cycle(bare, net))
    assert ("trajectory" in stored.coords) != drop
    scores = xdan.score(bare, stored), xdan.score(bare, xr.open_zarr(place))
    assert float(scores[0].rmse) == float(scores[1].rmse)
    chunk = next(path for path in sorted((place / "analysis" / "c").rglob("*")) if path.is_file())
    chunk.unlink()
    reopened = xr.open_zarr(place).isel(trajectory=0, drop=drop)
    with pytest.raises(ValueError, match=r"'analysis' has 0 of 1 chunks"):
        xdan.score(bare, reopened)


def test_labels_of_strings_bring_no_warning(twin, net, tmp_path):
    named = twin.assign_coords(station=("x", [f"station {k}" for k in range(twin.sizes["x"])]))
    stored = xdan.cycle(named, net, store=tmp_path / "run.zarr", progress=False)  # a warning is an error here
    assert stored.station.values.tolist() == named.station.values.tolist()
    ahead = named.dan.forecast(stored, lead=0.1, store=tmp_path / "forecasts.zarr", progress=False)
    assert ahead.station.values.tolist() == named.station.values.tolist()


def test_truth_is_not_needed(twin, net, run):
    for method in ("enkf-n", "3d-var"):
        xr.testing.assert_identical(xdan.baseline(twin.drop_vars("truth"), method), xdan.baseline(twin, method))
    xr.testing.assert_identical(xdan.cycle(twin.drop_vars("truth"), net), run)


def test_names_of_the_users_own(twin, net, run):
    named = twin.rename(truth="nature", observation="sondes", observation_error="sigma")
    bare = named.drop_attrs(deep=True)
    xr.testing.assert_identical(xdan.cycle(named, net), run)
    roles = {"truth": "nature", "observation": "sondes", "observation_error": "sigma"}
    again = xdan.cycle(bare, net, dynamics=xdan.Lorenz96(sites=8), **roles)
    for name in run.data_vars:
        np.testing.assert_array_equal(again[name], run[name])


def test_any_order_of_dims_and_any_byte_order(twin, net, run):
    changed = twin.transpose("x", "time", "trajectory")
    changed["observation"] = changed.observation.astype(">f8")
    changed["truth"] = changed.truth.isel(x=slice(None, None, -1)).isel(x=slice(None, None, -1))
    assert_close(xdan.cycle(changed, net), run)
    changed.observation.values.setflags(write=False)
    assert_close(xdan.cycle(changed.chunk(trajectory=1), net).compute(), run)


def test_single_precision_stays_so(single, net, run):
    single_run = xdan.cycle(single, net)
    assert single_run.analysis.dtype == np.float32
    np.testing.assert_allclose(single_run.analysis, run.analysis, rtol=0, atol=1e-3)


@pytest.mark.filterwarnings("ignore:the network sees")
def test_nothing_observed_is_a_free_forecast(twin, net, model):
    """Only the first time is observed: zeta is zero after it, and for 3D-Var the analysis is the forecast."""
    blind = twin.assign(observation=twin.observation.where(twin.time < 0.01))
    run = xdan.cycle(blind, xdan.ThreeDVar(scale=0.1))
    np.testing.assert_array_equal(run.forecast[:, 1:], run.analysis[:, 1:])
    start = torch.from_numpy(run.analysis.values[:, 0])
    np.testing.assert_allclose(model.advance(start, 5), run.analysis[:, 5], **CLOSE)
    _forecast, analysis = by_hand(blind, net, model)
    np.testing.assert_allclose(xdan.cycle(blind, net).analysis, analysis, **CLOSE)


@pytest.mark.parametrize("name", METHODS)
def test_lost_trajectory_is_reported_and_alone(name, twin, net):
    wild = twin.copy(deep=True)
    wild.observation[1, 10] = 1e12
    method = METHODS[name](net) if name != "3d-var" else xdan.ThreeDVar(scale=0.02)
    whole, run = (xdan.cycle(ds, method) for ds in (twin, wild))
    lost = xr.zeros_like(run.diverged)
    lost[1, 10:] = True
    np.testing.assert_array_equal(run.diverged, lost)
    assert run.analysis[1, 10:].isnull().all()
    assert run.forecast[1, 11:].isnull().all()
    others = {"trajectory": [0, 2, 3]}
    for variable in ("forecast", "analysis"):
        np.testing.assert_allclose(run[variable].isel(others), whole[variable].isel(others), **CLOSE)
        np.testing.assert_allclose(run[variable][1, :10], whole[variable][1, :10], **CLOSE)
    parts = xdan.cycle(wild.chunk(time=4, trajectory=2), method).compute()
    assert_close(parts, run)


@pytest.mark.filterwarnings("ignore:the truth does not follow", "ignore:every trajectory diverged")
def test_a_model_that_blows_up_is_reported(twin):
    wild = xdan.CustomDynamics(lambda x: 0.1 * x**3, state={"x": 8}, timestep=0.05, spin_up_time=0.0)
    blind = twin.assign(observation=twin.observation.where(twin.time < 0.01))
    run = xdan.baseline(blind, "enkf-n", members=4, dynamics=wild)
    assert run.diverged.any("time").all()
    assert not run.diverged[:, 0].any()
    assert (run.diverged.astype(int).diff("time") >= 0).all(), "what is lost stays lost"
    for name in ("forecast", "analysis", "spread"):
        assert np.isfinite(run[name].where(~run.diverged, 0)).all()
    assert run.analysis.where(run.diverged).isnull().all()


def test_members(ensemble, twin):
    assert ensemble.members.dims == ("trajectory", "time", "member", "x")
    assert ensemble.member.attrs["standard_name"] == "realization"
    for members, mean, spread in (
        ("members", "analysis", "spread"),
        ("forecast_members", "forecast", "forecast_spread"),
    ):
        np.testing.assert_allclose(ensemble[members].mean("member"), ensemble[mean], **CLOSE)
        np.testing.assert_allclose(ensemble[members].std("member", ddof=1), ensemble[spread], **CLOSE)
    without = xdan.baseline(twin, "enkf-n", members=5)
    listed = {"xdan_whole": without.attrs["xdan_whole"]}
    xr.testing.assert_identical(ensemble.drop_dims("member").assign_attrs(listed), without)


def test_labels(run, twin, net):
    assert set(run.data_vars) == {"forecast", "analysis", "innovation_ratio", "diverged"}
    assert run.analysis.dims == ("trajectory", "time", "x")
    for name in ("trajectory", "time", "x"):
        xr.testing.assert_identical(run[name], twin[name])
    assert run.attrs["method"] == "dan"
    assert run.attrs["network_digest"] == net.digest
    assert run.attrs["dynamics"] == twin.attrs["dynamics"]
    assert all({"long_name", "units"} <= set(run[v].attrs) for v in run.data_vars)


def test_seed_is_of_the_ensemble(twin):
    first, same, other = (xdan.baseline(twin, "enkf-n", members=4, seed=seed) for seed in (1, 1, 2))
    xr.testing.assert_identical(first, same)
    assert not np.isclose(first.forecast[:, 0], other.forecast[:, 0]).any()


def test_training_further_does_not_change_what_was_built(twin, single, net, run, quick):
    lazy = xdan.cycle(twin.chunk(time=6), net)
    digest = net.digest
    gently = {"optimiser": Optimiser(1e-3, 2e-4), "steps": 40}
    further = xdan.train(single, net, **{**quick, **gently})
    assert further != net
    assert net.digest == digest
    assert_close(lazy.compute(), run)
    assert not np.allclose(xdan.cycle(twin, further).analysis, run.analysis)


def test_input_is_not_changed(twin, net):
    before = twin.copy(deep=True)
    xdan.cycle(twin, net)
    xdan.baseline(twin, "3d-var")
    xr.testing.assert_identical(twin, before)


def auxiliary(twin):
    """Coordinates beside the labels."""
    return twin.assign_coords(
        lat=("x", np.linspace(-30, 30, 8)),
        date=("time", np.datetime64("2020-01-01", "ns") + np.arange(24) * np.timedelta64(6, "h")),
        site_name=("trajectory", np.array(["a", "b", "c", "d"], dtype=object)),
    )


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_other_coordinates_come_with_a_streamed_run(twin, tmp_path, zarr_format):
    chunked = auxiliary(twin.chunk(time=6, trajectory=2))
    plain = chunked.drop_encoding() if zarr_format == 2 else chunked  # format 2 has no checksum
    plain.to_zarr(tmp_path / "record.zarr", consolidated=False, zarr_format=zarr_format)
    record = xr.open_zarr(tmp_path / "record.zarr", consolidated=False)
    run = record.dan.baseline("optimal-interpolation", store=tmp_path / "run.zarr", progress=False).load()
    for name in ("lat", "date", "site_name"):
        np.testing.assert_array_equal(run[name], auxiliary(twin)[name])
    opened = xr.open_zarr(tmp_path / "run.zarr", consolidated=False)
    expected = xdan.score(twin, twin.dan.baseline("optimal-interpolation"))
    for ds in (record, auxiliary(twin)):
        np.testing.assert_allclose(xdan.score(ds, opened).rmse, expected.rmse, rtol=1e-6)


def test_chunks_of_any_sizes_are_streamed(twin, tmp_path):
    """What a selection leaves of chunks, which Zarr cannot have."""
    part = twin.chunk(time=10, trajectory=3).isel(time=slice(3, None), trajectory=slice(1, None))
    streamed = part.dan.baseline("optimal-interpolation", store=tmp_path / "run.zarr", progress=False)
    expected = part.compute().dan.baseline("optimal-interpolation")
    np.testing.assert_allclose(streamed.analysis, expected.analysis, rtol=1e-12)


@pytest.mark.filterwarnings("ignore:the truth does not follow", "ignore:the observations are far")
def test_what_is_refused_leaves_a_finished_run(twin, net, tmp_path):
    xdan.cycle(twin, net, store=tmp_path / "run.zarr", progress=False)
    before = xr.open_zarr(tmp_path / "run.zarr", consolidated=False).load()
    other = twin.assign(observation=100 * twin.observation, truth=100 * twin.truth)
    with pytest.raises(ValueError, match="the network was trained on states of mean"):
        xdan.cycle(other, net, store=tmp_path / "run.zarr", mode="w", progress=False)
    xr.testing.assert_identical(xr.open_zarr(tmp_path / "run.zarr", consolidated=False).load(), before)


@pytest.mark.parametrize(
    "change", [lambda ds: ds, lambda ds: xr.merge([ds]), lambda ds: ds.map(np.abs, keep_attrs=True)]
)
def test_a_record_is_never_overwritten_by_a_run(twin, tmp_path, change):
    twin.to_zarr(tmp_path / "record.zarr", consolidated=False)
    ds = change(xr.open_zarr(tmp_path / "record.zarr", consolidated=False)).assign_attrs(twin.attrs)
    with pytest.raises(ValueError, match=r"is the store that the record is read from|holds a record"):
        ds.dan.baseline("optimal-interpolation", store=tmp_path / "record.zarr", mode="w", progress=False)
    xr.testing.assert_identical(xr.open_zarr(tmp_path / "record.zarr", consolidated=False).load().truth, twin.truth)


def forced(forcing):
    """Models that nothing tells apart but what they do."""
    return xdan.CustomDynamics(
        lambda x: (x.roll(-1, -1) - x.roll(2, -1)) * x.roll(1, -1) - x + forcing, state={"x": 8}, timestep=0.05
    )


@pytest.mark.filterwarnings("ignore:the truth does not follow")
def test_a_run_is_not_resumed_with_another_model(twin, tmp_path, monkeypatch):
    ds = twin.chunk(time=6)
    write = Stream.write

    def killed(self, i, t, *rest):
        if t == 2:
            raise KeyboardInterrupt
        return write(self, i, t, *rest)

    call = {"store": tmp_path / "run.zarr", "progress": False, "members": 5}
    with monkeypatch.context() as m:
        m.setattr(Stream, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            ds.dan.baseline("etkf", dynamics=forced(8.0), **call)
    with pytest.raises(FileExistsError, match="unfinished run of another method, record or setting"):
        ds.dan.baseline("etkf", dynamics=forced(4.0), **call)
    resumed = ds.dan.baseline("etkf", dynamics=forced(8.0), **call)
    whole = ds.dan.baseline("etkf", dynamics=forced(8.0), **{**call, "store": tmp_path / "whole.zarr"})
    xr.testing.assert_identical(resumed.load(), whole.load())
    assert forced(8.0) == forced(8.0) != forced(4.0)


@pytest.mark.parametrize("moment", ["before the first block", "after the last"])
def test_a_kill_as_a_run_begins_or_ends(twin, tmp_path, monkeypatch, moment):
    call = {"store": tmp_path / "run.zarr", "progress": False}
    with monkeypatch.context() as m:
        if moment == "after the last":
            m.setattr(zarr.Group, "__delitem__", lambda *args: 1 / 0)
        else:
            m.setattr(zarr.Group, "create_group", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            twin.dan.baseline("optimal-interpolation", **call)
    run = twin.dan.baseline("optimal-interpolation", **call)
    xr.testing.assert_allclose(run.load(), twin.dan.baseline("optimal-interpolation"))
    assert "xdan_status" not in run.attrs
    assert "xdan_resume" not in zarr.open_group(tmp_path / "run.zarr", mode="r")


def test_a_trajectory_that_was_chosen_keeps_its_label(twin):
    whole = twin.dan.baseline("enkf", members=5, seed=1)
    one = twin.isel(trajectory=3).dan.baseline("enkf", members=5, seed=1)
    assert int(one.trajectory) == 3
    np.testing.assert_allclose(one.analysis, whole.analysis.isel(trajectory=3), rtol=1e-9, atol=1e-9)
    assert float(twin.isel(trajectory=3).dan.score(one).rmse) == pytest.approx(
        float(twin.dan.score(whole, dim="time").rmse[3]), rel=1e-6
    )
    with pytest.raises(ValueError, match="run and record differ in trajectory"):
        twin.isel(trajectory=3).dan.score(whole.isel(trajectory=1))


@pytest.mark.parametrize("name", ["etkf", "3d-var", "enkf-n"])
def test_states_of_large_units_are_not_lost(model, name):
    unit = 1e7
    scaled = xdan.CustomDynamics(lambda x: unit * model.tendency(x / unit), state={"x": 8}, timestep=0.05)
    ds = xdan.twin(scaled, cycles=20, trajectories=2, error_std=unit, dtype="float64")
    run = ds.dan.baseline(name, dynamics=scaled, **({} if name == "3d-var" else {"members": 9}))
    assert not run.diverged.compute().any()


def test_a_model_in_single_precision_cycles_into_a_store_and_is_scored(tmp_path):
    weights = torch.linspace(-0.5, 0.5, 16, dtype=torch.float32).reshape(4, 4)
    model = xdan.CustomDynamics(
        step=lambda x: x + 0.1 * torch.tanh(x @ weights), state={"x": 4}, timestep=0.1, spin_up_time=2.0
    )
    assert model == model
    truth = xdan.twin(model, interval=0.1, cycles=6, trajectories=2, seed=0).load()
    run = truth.dan.baseline(
        "etkf", dynamics=model, members=5, inflation=1.0, store=tmp_path / "run.zarr", progress=False
    )
    assert np.isfinite(float(truth.dan.score(run, dynamics=model).rmse))
    variational = truth.dan.baseline("4d-var", dynamics=model, window=2, scale=1.0)
    assert bool(np.isfinite(variational.innovation_ratio).all())


# A start from the climatology after a gap.


@pytest.fixture(scope="module")
def interrupted(model):
    """Intervals of 0.05, and one of 3.0 before the analysis 20; of trajectory 1 nothing is seen from 30 to 42."""
    intervals = np.full(49, 0.05)
    intervals[19] = 3.0
    ds = xdan.twin(model, cycles=50, trajectories=3, seed=5, interval=intervals, dtype="float64").compute()
    blind = (np.arange(50) >= 30) & (np.arange(50) < 42)
    observation = ds.observation.where(~xr.DataArray(blind, dims="time") | (ds.trajectory != 1))
    return ds.assign(observation=observation)


GAPS = [
    ("3d-var", {"scale": 0.05}),
    ("extended-kalman", {"inflation": 1.1}),
    ("enkf-n", {"members": 6}),
    ("4d-var", {"window": 3, "scale": 0.05}),
    ("eda", {"members": 3, "window": 2}),
    ("ienks", {"members": 6, "lag": 3, "inflation": 1.05}),
    ("letkf", {"members": 5}),
    ("eakf", {"members": 5, "radius": 4.0, "inflation": "adaptive", "spin_up": 10}),
    ("iterated-kalman-smoother", {"lag": 2, "c2": 4.0}),
]


@pytest.mark.filterwarnings("ignore:.*lost the truth")  # as they do without a new start
@pytest.mark.parametrize(
    ("name", "settings"), [*GAPS[:4], *(pytest.param(*case, marks=pytest.mark.slow) for case in GAPS[4:7]), *GAPS[7:]]
)
def test_a_trajectory_starts_anew_after_a_gap(interrupted, name, settings):
    """From then on it is the run of a record that begins there, for methods without draws and spin-up."""
    run = interrupted.dan.baseline(name, **settings, restart_after=0.5)
    assert run.attrs["restart_after"] == 0.5
    windowed = name in ("4d-var", "eda", "ienks", "iterated-kalman-smoother")
    expected = np.zeros((3, 50), bool)
    expected[:, 20] = True
    expected[1, 42] = not windowed  # a window is shared by all trajectories: intervals alone count
    np.testing.assert_array_equal(run.restarted, expected)
    plain = interrupted.dan.baseline(name, **settings)
    np.testing.assert_array_equal(run.analysis[:, :20], plain.analysis[:, :20])
    assert "restarted" not in plain
    if name in ("3d-var", "extended-kalman", "4d-var", "iterated-kalman-smoother"):
        anew = interrupted.isel(time=slice(20, 30)).dan.baseline(name, **settings)
        for variable in ("forecast", "analysis"):
            np.testing.assert_allclose(run[variable][:, 20:30], anew[variable], **CLOSE)
        rmse = [float(interrupted.dan.score(one, dim=[]).rmse[:, 21:30].mean()) for one in (run, plain)]
        assert rmse[0] < rmse[1]
    alone = interrupted.isel(trajectory=[0, 2]).dan.baseline(name, **settings, restart_after=0.5)
    np.testing.assert_allclose(run.analysis[[0, 2]], alone.analysis, **CLOSE)  # one that starts anew moves no other


@pytest.mark.parametrize(("name", "settings"), GAPS[:4])
@pytest.mark.slow
def test_gaps_are_found_in_any_blocks_and_after_a_kill(interrupted, name, settings, tmp_path, monkeypatch):
    whole = interrupted.dan.baseline(name, **settings, restart_after=0.5)
    pieces = interrupted.chunk(trajectory=2, time=18)
    np.testing.assert_allclose(
        pieces.dan.baseline(name, **settings, restart_after=0.5).analysis, whole.analysis, **CLOSE
    )
    done, write = [], Stream.write

    def cut_short(*arguments):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(write(*arguments))

    def stream(longest):
        store = tmp_path / "run.zarr"
        return pieces.dan.baseline(name, **settings, restart_after=longest, store=store, progress=False)

    with monkeypatch.context() as patched:
        patched.setattr(Stream, "write", cut_short)
        with pytest.raises(KeyboardInterrupt):
            stream(0.5)
    with pytest.raises(FileExistsError):
        stream(2.0)  # another run
    resumed = stream(0.5)
    np.testing.assert_allclose(resumed.analysis, whole.analysis, **CLOSE)
    np.testing.assert_array_equal(resumed.restarted, whole.restarted)


def test_a_network_starts_anew_with_an_empty_memory(interrupted, net):
    run = interrupted.dan.cycle(net, restart_after=0.5, members=True)
    assert run.restarted.sum("time").values.tolist() == [1, 2, 1]
    assert not run.memory.values[:, 20].any()
    assert run.memory.values[:, 19].any()
    assert not run.memory.values[1, 42].any()
    assert run.memory.values[0, 42].any()
    np.testing.assert_array_equal(run.forecast.values[:, 20], run.forecast.values[:, 0])  # the climate's mean


def test_no_gap_is_as_long_as_itself(interrupted, net):
    """The end counts as no gap: 0.05 after 0.05, whatever rounding makes of the steps."""
    assert int(interrupted.dan.cycle(net, restart_after=3.0).restarted.sum()) == 0
    assert int(interrupted.dan.cycle(net, restart_after=2.95).restarted.sum()) == 3


@pytest.mark.parametrize(("value", "error"), [(0.0, ValueError), (-1, ValueError), ("soon", ValueError)])
def test_a_gap_has_a_length(twin, net, value, error):
    with pytest.raises(error, match="restart_after="):
        twin.dan.cycle(net, restart_after=value)
