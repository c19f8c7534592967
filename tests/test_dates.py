"""Every verb on a record with dates: the numbers of model time, under the record's own coordinate."""

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import xdan


@pytest.fixture(scope="module")
def dated_model():
    return xdan.Lorenz96(sites=8, time_unit=np.timedelta64(5, "D"))


@pytest.fixture(scope="module")
def times():
    """The times of a twin of 24 cycles by kind; a step is six hours."""
    hours = 6 * np.arange(24)
    known = {
        "datetime64": np.datetime64("2000-02-27", "ns") + hours * np.timedelta64(1, "h"),
        "timedelta64": (1000 + hours) * np.timedelta64(1, "h"),
    }
    try:
        import cftime
    except ImportError:
        return known
    calendars = {name: cftime.num2date(hours, "hours since 2000-02-27", name) for name in ("noleap", "360_day")}
    return known | calendars


@pytest.fixture(params=["datetime64", "timedelta64", pytest.param("noleap", marks=pytest.mark.slow), "360_day"])
def dated(request, twin, times, dated_model):
    """The twin with dates, described by a dynamics with a unit of time."""
    if request.param not in times:
        pytest.importorskip("cftime")
    described = xdan.twin(dated_model, cycles=2)
    return twin.assign_coords(time=("time", times[request.param], {"axis": "T"})).assign_attrs(described.attrs)


def same(ours: xr.Dataset | xr.DataArray, theirs: xr.Dataset | xr.DataArray, dates: xr.DataArray) -> None:
    """The numbers are bit for bit those of model time, 0.05 a cycle; the times are the record's."""
    if "time" in theirs.coords:
        np.testing.assert_array_equal(ours.time, dates[np.round(theirs.time.values / 0.05).astype(int)])
    drop = {"time"} & set(ours.coords)
    xr.testing.assert_equal(ours.drop_vars(drop), theirs.drop_vars(drop))


def test_cycles_baselines_and_scores(dated, twin, net):
    run, plain = dated.dan.cycle(net), twin.dan.cycle(net)
    same(run, plain, dated.time)
    for dim in ("trajectory", ["trajectory", "time"]):
        same(dated.dan.score(run, dim=dim, burn_in=4), twin.dan.score(plain, dim=dim, burn_in=4), dated.time)
    ensemble, numbers = (ds.dan.baseline("enkf-n", members=4, keep_members=True) for ds in (dated, twin))
    same(ensemble, numbers, dated.time)
    same(dated.dan.rank_histogram(ensemble), twin.dan.rank_histogram(numbers), dated.time)
    same(xdan.ensemble_covariance(ensemble), xdan.ensemble_covariance(numbers), dated.time)


def test_trained_networks(dated, twin, architecture, quick):
    nets = [ds.dan.train(architecture, **quick) for ds in (dated, twin)]
    weights = [one.module(torch.float64).state_dict() for one in nets]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_an_imitated_run_with_dates(dated, architecture, quick):
    teacher = dated.dan.baseline("enkf-n", members=4)
    dated.dan.train(architecture, objective="mse", teacher=teacher, **quick)
    with pytest.raises(ValueError, match=r"teacher and record differ in time: expected 24 labels \['.*Make the run on"):
        dated.dan.train(architecture, teacher=teacher.isel(time=slice(None, None, -1)), **quick)


def test_diagnostics(dated, twin, net, run):
    dates = dated.time
    plain = twin.dan.cycle(net, members=True)
    run = plain.assign_coords(time=dates)
    few = {"every": 12}
    for kind in ("covariance", "mean"):
        same(dated.dan.gain(net, kind=kind, **few), twin.dan.gain(net, kind=kind, **few), dates)
    same(dated.dan.zero_innovation_bias(net), twin.dan.zero_innovation_bias(net), dates)
    few |= {"burn_in": 1}
    some = {"elements": 2, **few}
    same(dated.dan.equivariance_error(net, **some), twin.dan.equivariance_error(net, **some), dates)
    some = {"samples": 10, **few}
    same(dated.dan.stein_identity(net, **some), twin.dan.stein_identity(net, **some), dates)
    same(dated.dan.innovation_histogram(net, run), twin.dan.innovation_histogram(net, plain), dates)
    same(dated.dan.scaling_of_increments(net, run, [1.0]), twin.dan.scaling_of_increments(net, plain, [1.0]), dates)
    vectors = dated.dan.lyapunov_vectors(spin_up=10)
    same(vectors.vector, twin.dan.lyapunov_vectors(spin_up=10).vector, dates)


def test_stores(dated, twin, net, tmp_path):
    dated.drop_encoding().to_zarr(tmp_path / "record.zarr", consolidated=False)
    ds = xr.open_zarr(tmp_path / "record.zarr", consolidated=False, decode_timedelta=True)
    np.testing.assert_array_equal(ds.time, dated.time)
    run = ds.dan.cycle(net, store=tmp_path / "run.zarr", progress=False)
    run = xr.open_zarr(tmp_path / "run.zarr", consolidated=False, decode_timedelta=True)
    np.testing.assert_array_equal(run.time, dated.time)
    assert float(ds.dan.score(run).rmse) == pytest.approx(float(dated.dan.score(dated.dan.cycle(net)).rmse), rel=1e-9)


def test_pictures(dated, run, tmp_path):
    """They are drawn, not made only: bokeh knows one calendar."""
    run = run.assign_coords(time=dated.time)
    figures = {"field": dated.dan.hovmoller(run), "rmse": dated.dan.rmse_in_time({"network": run})}
    xdan.save_page(tmp_path / "page.html", figures)
    page = (tmp_path / "page.html").read_text()
    label = {"M": '"time"', "m": '"days"', "O": '"days since 2000-02-27 00:00:00 ('}[dated.time.dtype.kind]
    assert page.count(f'"axis_label":{label}') == 4
    assert "model time" not in page
    dated.dan.explore({"network": run})


def test_a_run_on_other_dates_is_refused(dated, run):
    run = run.assign_coords(time=dated.time)
    dated.dan.score(run)
    for other in (dated.time[::-1], np.arange(24.0)):
        with pytest.raises(ValueError, match=r"run and record differ in time: expected 24 labels \['"):
            dated.dan.score(run.assign_coords(time=("time", np.asarray(other))))


def test_dates_need_a_unit_of_time(dated, run, net, model, quick):
    calls = {
        "cycle": lambda: dated.dan.cycle(net, dynamics=model),
        "baseline": lambda: dated.dan.baseline("3d-var", dynamics=model),
        "score": lambda: dated.dan.score(run, dynamics=model),
        "train": lambda: dated.dan.train(dynamics=model, **quick),
        "gain": lambda: dated.dan.gain(net, dynamics=model),
    }
    for call in calls.values():
        with pytest.raises(ValueError, match=r"no time_unit: .* Pass dynamics=xdan.Lorenz96\(time_unit="):
            call()


def test_a_sweep_of_a_dynamics_with_a_unit(dated_model, model):
    schemes, axes = {"3d": {"baseline": "3d-var"}}, {"forcing": [7.0, 8.0]}
    sizes = {"cycles": 12, "trajectories": 2, "burn_in": 2, "progress": False}
    cubes = [xdan.sweep(one, schemes, axes, **sizes) for one in (dated_model, model)]
    np.testing.assert_array_equal(*(cube.rmse for cube in cubes))


@given(cycles=st.integers(1, 30), chunk=st.integers(1, 7), interval=st.integers(1, 400))
def test_a_twin_from_a_date(cycles, chunk, interval):
    model = xdan.Lorenz96(sites=8, time_unit=np.timedelta64(5, "D"))
    sizes = {"cycles": cycles, "interval": 0.05 * interval, "chunks": {"time": chunk}}
    ds = xdan.twin(model, start=np.datetime64("1999-12-31T18"), **sizes)
    plain = xdan.twin(model, **sizes)
    expected = np.datetime64("1999-12-31T18", "s") + np.arange(cycles) * interval * np.timedelta64(6, "h")
    np.testing.assert_array_equal(ds.time, expected)
    assert ds.time.attrs == {"axis": "T", "standard_name": "time", "long_name": "time"}
    assert dict(ds.chunks) == dict(plain.chunks)


def test_a_twin_from_a_date_has_the_numbers_of_one_without(dated_model):
    one, other = (
        xdan.twin(dated_model, cycles=5, trajectories=2, start=start) for start in (np.datetime64("2000"), None)
    )
    xr.testing.assert_equal(one.drop_vars("time"), other.drop_vars("time"))
    assert one.attrs == other.attrs
    run = one.compute().dan.baseline("3d-var")  # needs no dynamics=
    np.testing.assert_array_equal(run.time, one.time)
    with pytest.raises(ValueError, match="has no time_unit"):
        xdan.twin(xdan.Lorenz96(), start=np.datetime64("2000"))
    with pytest.raises(TypeError, match="start='2000': expected a date"):
        xdan.twin(dated_model, start="2000")


def test_a_run_warns_once_of_times_beside_a_step(dated_model):
    ds = xdan.twin(dated_model, cycles=40, start=np.datetime64("2000-01-01"), seed=3).compute()
    late = ds.assign_coords(time=ds.time + np.timedelta64(10, "s") * (np.arange(40) % 2))
    with pytest.warns(xdan.XdanWarning, match="39 of 39 intervals of time") as caught:
        run = late.dan.baseline("3d-var")
    assert len(caught) == 1
    np.testing.assert_array_equal(run.time, late.time)
    np.testing.assert_array_equal(run.analysis, ds.dan.baseline("3d-var").analysis)
