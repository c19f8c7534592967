"""Forecasts from analyses: the model run by hand from each, whatever the times, fields, chunks and store."""

import datetime
import math

import dask
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import xdan
from xdan.records.streams import Stream

MODEL = xdan.Lorenz96(sites=8)
DAYS = np.timedelta64(5, "D")


def advanced(model, x, steps):
    """States (..., *shape) of an array, some steps later."""
    return model.advance(torch.from_numpy(np.ascontiguousarray(x)), steps).numpy()


@pytest.fixture(scope="module")
def kalman(twin):
    """A run with the covariance of its analyses."""
    return twin.dan.baseline("second-order-kalman", c2=2.0, keep_members=True)


def test_a_run_that_says_nothing_of_its_errors_names_what_does(twin):
    run = twin.dan.baseline("etkf", members=5).drop_vars(["spread", "forecast_spread"])
    with pytest.raises(
        ValueError, match="expected a run of an ensemble method, a Kalman filter or a network with a spr"
    ):
        twin.dan.forecast(run, lead=0.1, members=2)


def test_forecasts_are_the_model_by_hand(twin, run):
    forecasts = twin.dan.forecast(run, lead=0.3, step=0.1, every=4, burn_in=5)
    assert forecasts.forecast.dims == ("trajectory", "time", "lead", "x")
    np.testing.assert_array_equal(forecasts.time, twin.time[5::4])
    np.testing.assert_allclose(forecasts.lead, [0, 0.1, 0.2, 0.3])
    np.testing.assert_allclose(forecasts.valid_time, twin.time.values[5::4, None] + [0, 0.1, 0.2, 0.3])
    start = run.analysis.isel(time=slice(5, None, 4)).values
    for k in range(4):
        np.testing.assert_array_equal(forecasts.forecast.isel(lead=k), advanced(MODEL, start, 2 * k))
    assert forecasts.lead.attrs["standard_name"] == "forecast_period"
    assert forecasts.time.attrs["standard_name"] == "forecast_reference_time"
    assert not forecasts.diverged.any()


def test_the_first_lead_after_the_start_is_the_next_forecast_of_the_run(twin, run):
    """A network's run forecasts from its analysis by the same model."""
    forecasts = twin.dan.forecast(run, lead=0.05)
    following = run.forecast.isel(time=slice(1, None)).values
    np.testing.assert_allclose(forecasts.forecast.isel(lead=1).values[:, :-1], following, rtol=1e-12, atol=1e-12)


def test_uneven_times_count_in_the_shortest_interval(twin, net):
    uneven = twin.isel(time=[0, 2, 3, 7, 9, 12])
    with pytest.warns(xdan.XdanWarning):  # another interval than in training
        run = uneven.dan.cycle(net)
    forecasts = uneven.dan.forecast(run, lead=0.2)
    np.testing.assert_allclose(forecasts.lead, [0, 0.05, 0.1, 0.15, 0.2])
    np.testing.assert_array_equal(forecasts.forecast.isel(lead=3), advanced(MODEL, run.analysis.values, 3))


@pytest.mark.parametrize("start", [np.datetime64("2001-02-27"), "noleap"])
def test_dates(start):
    if start == "noleap":
        start = pytest.importorskip("cftime").DatetimeNoLeap(2001, 2, 27)
    model = xdan.Lorenz96(sites=8, time_unit=DAYS)
    ds = xdan.twin(model, cycles=8, trajectories=2, interval=0.2, start=start, seed=0, dtype="float64").compute()
    forecasts = ds.dan.forecast(which="truth", lead=datetime.timedelta(days=3), every=2)
    assert forecasts.lead.dtype.kind == "m"
    np.testing.assert_array_equal(forecasts.lead / np.timedelta64(1, "D"), [0, 1, 2, 3])
    # The record has an analysis a day.
    assert list(forecasts.valid_time.values[1]) == list(ds.time.values[2:6])
    np.testing.assert_allclose(forecasts.forecast.values[:, 0], ds.truth.values[:, :4], rtol=1e-12, atol=1e-12)
    xr.testing.assert_equal(forecasts, ds.dan.forecast(which="truth", lead=0.6, every=2))
    scores = ds.dan.score_forecasts(forecasts.isel(time=slice(0, 3)))
    np.testing.assert_allclose(scores.rmse, 0.0, atol=1e-12)
    assert scores.cases.values.tolist() == [6, 6, 6, 6]
    assert scores.skill_horizon.attrs["units"] == "days"


def test_a_store_keeps_dates(tmp_path):
    ds = xdan.twin(xdan.Lorenz96(sites=8, time_unit=DAYS), cycles=8, trajectories=2, interval=0.2, seed=0,
                   start=np.datetime64("2001-02-27"), dtype="float64").compute()  # fmt: skip
    here = ds.dan.forecast(which="truth", lead=0.4)
    stored = ds.dan.forecast(which="truth", lead=0.4, store=tmp_path / "f.zarr", progress=False)
    xr.testing.assert_equal(stored.load(), here)
    xr.testing.assert_allclose(ds.dan.score_forecasts(stored), ds.dan.score_forecasts(here))


def test_a_model_in_time_stands_at_each_start():
    forced = xdan.CustomDynamics(lambda x, t: math.cos(3 * t) - x, state={"x": 3}, timestep=0.1, spin_up_time=0.0)
    ds = xdan.twin(forced, cycles=12, trajectories=2, interval=0.2, seed=0, dtype="float64").compute()
    later = ds.isel(time=slice(3, None))
    forecasts = later.dan.forecast(which="truth", lead=0.8, dynamics=forced)
    for k in range(5):
        np.testing.assert_allclose(forecasts.forecast[:, k, 4], later.truth[:, k + 4], rtol=1e-12)
    other = later.assign_coords(time=later.time + 0.7).dan.forecast(which="truth", lead=0.8, dynamics=forced)
    assert abs(other.forecast - forecasts.forecast.values).max() > 0.1


STATE = [xdan.Field("h", xdan.Sphere(4, 6), "m"), xdan.Field("c", xdan.Components(["p", "q"]), "K")]
TWO = xdan.CustomDynamics(
    lambda fields: {"h": 0.5 * fields["h"], "c": -fields["c"]}, state=STATE, timestep=0.05, spin_up_time=0.0
)


@pytest.fixture(scope="module")
def fields():
    """A twin of two fields, on the sphere and of components."""
    return xdan.twin(TWO, cycles=10, trajectories=3, interval=0.1, seed=0, dtype="float64").compute()


def test_several_fields(fields):
    run = fields.dan.baseline("etkf", members=5, keep_members=True, inflation=1.1, dynamics=TWO)
    forecasts = fields.dan.forecast(run, lead=0.3, members=3, every=3, dynamics=TWO)
    assert forecasts.forecast_h.dims == ("trajectory", "time", "lead", "lat", "lon")
    assert forecasts.forecast_members_c.dims == ("trajectory", "time", "lead", "member", "component")
    assert forecasts.forecast_h.attrs["units"] == "m"
    # The model is linear: each field grows or decays, in steps of Runge-Kutta.
    members = run.members_h.isel(time=slice(None, None, 3), member=slice(3)).values
    np.testing.assert_allclose(forecasts.forecast_members_h.isel(lead=3), members * np.exp(0.15), rtol=1e-6)
    np.testing.assert_allclose(forecasts.forecast_h.isel(lead=3), members.mean(2) * np.exp(0.15), rtol=1e-6, atol=1e-9)
    decayed = run.members_c.isel(time=slice(None, None, 3), member=slice(3)).values * np.exp(-0.3)
    np.testing.assert_allclose(forecasts.forecast_spread_c.isel(lead=3), decayed.std(2, ddof=1), rtol=1e-5)


def test_members_are_the_first_of_the_run(twin, ensemble):
    forecasts = twin.dan.forecast(ensemble, lead=0.2, members=3, every=5, burn_in=2)
    start = ensemble.members.isel(time=slice(2, None, 5), member=slice(3)).values
    for lead in (0, 4):
        expected = advanced(MODEL, start, lead)
        np.testing.assert_array_equal(forecasts.forecast_members.isel(lead=lead), expected)
        np.testing.assert_allclose(forecasts.forecast.isel(lead=lead), expected.mean(2), rtol=1e-12)
        np.testing.assert_allclose(forecasts.forecast_spread.isel(lead=lead), expected.std(2, ddof=1), rtol=1e-9)
    few = twin.dan.forecast(ensemble, lead=0.2, members=3, every=5, burn_in=2, keep_members=False)
    assert "forecast_members" not in few
    xr.testing.assert_identical(
        few.forecast_spread.drop_attrs(), forecasts.forecast_spread.drop_vars("member", errors="ignore").drop_attrs()
    )


def test_draws_have_the_covariance_of_the_analysis(twin, kalman):
    one = twin.isel(trajectory=[1])
    forecasts = one.dan.forecast(kalman.isel(trajectory=[1]), lead=0.05, members=400, burn_in=23)
    start = forecasts.forecast_members.isel(trajectory=0, time=0, lead=0).values
    covariance = kalman.analysis_covariance.isel(trajectory=1, time=23).values
    error = np.sqrt((covariance**2 + np.outer(np.diag(covariance), np.diag(covariance))) / 400)
    assert (abs(np.cov(start.T) - covariance) < 4.5 * error).all()
    mean = kalman.analysis.isel(trajectory=1, time=23).values
    assert (abs(start.mean(0) - mean) < 4.5 * np.sqrt(np.diag(covariance) / 400)).all()


def test_draws_follow_from_trajectory_and_time(twin, kalman):
    whole = twin.dan.forecast(kalman, lead=0.1, members=4, burn_in=3)
    rows, columns = [1, 3], slice(7, None, 5)
    some = twin.isel(trajectory=rows).dan.forecast(
        kalman.isel(trajectory=rows), lead=0.1, members=4, every=5, burn_in=10
    )
    xr.testing.assert_equal(some.forecast_members, whole.forecast_members.isel(trajectory=rows, time=columns))
    other = twin.dan.forecast(kalman, lead=0.1, members=4, burn_in=3, seed=1)
    assert abs(other.forecast - whole.forecast).max() > 1e-3


def test_a_spread_gives_independent_draws_and_says_so(twin, kalman):
    only = kalman[["analysis", "spread"]]
    with pytest.warns(xdan.XdanWarning, match="as if the errors of different components were independent"):
        forecasts = twin.dan.forecast(only, lead=0.05, members=400, burn_in=22)
    ratio = forecasts.forecast_spread.isel(lead=0) / kalman.spread.isel(time=slice(22, None)).values
    assert abs(ratio - 1).max() < 0.2


def test_q_adds_to_members_and_not_to_a_single_forecast(twin, ensemble):
    noisy = MODEL.with_model_error(0.3)
    plain = twin.dan.forecast(ensemble, lead=0.1, members=5)
    erring = twin.dan.forecast(ensemble, lead=0.1, members=5, dynamics=noisy)
    errors = (erring.forecast_members - plain.forecast_members).isel(lead=1).values
    assert errors.std() == pytest.approx(0.3, rel=0.03)
    xr.testing.assert_equal(
        twin.dan.forecast(ensemble, lead=0.1, dynamics=noisy), twin.dan.forecast(ensemble, lead=0.1)
    )
    uneven = [0, 1, 3, 4]
    with pytest.warns(xdan.XdanWarning, match="an error after every 0.05, the shortest"):
        twin.isel(time=uneven).dan.forecast(ensemble.isel(time=uneven), lead=0.1, members=5, dynamics=noisy)


@settings(max_examples=3)
@given(st.integers(2, 4), st.integers(7, 24), st.integers(2, 3), st.integers(2, 7))
def test_any_chunks_give_the_same_forecasts(twin, ensemble, kalman, rows, columns, run_rows, every):
    for run, members in ((ensemble, 3), (kalman, 2), (ensemble, None)):
        words = {"lead": 0.1, "members": members, "every": every, "burn_in": 4}
        lazy = twin.chunk(trajectory=rows, time=columns).dan.forecast(
            run.chunk(trajectory=run_rows, time=columns), **words
        )
        xr.testing.assert_identical(lazy.compute(), twin.dan.forecast(run, **words))


def test_nothing_is_computed_early(twin, ensemble, computed):
    lazy = twin.chunk(trajectory=1).dan.forecast(ensemble.chunk(trajectory=1), lead=0.1, members=3)
    assert computed.calls == 0
    scores = twin.chunk(trajectory=1).dan.score_forecasts(lazy.isel(time=slice(0, 15)))
    assert computed.calls == 0
    scores.compute()
    assert computed.calls == 1


def test_a_store_is_filled_and_resumed(twin, ensemble, tmp_path, monkeypatch):
    words = {"lead": 0.1, "members": 3, "store": tmp_path / "f.zarr", "progress": False}
    chunked = ensemble.chunk(trajectory=2, time=6)
    real, written = Stream.write, []

    def killed(self, i, t, outputs, carry):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append((i, t))
        real(self, i, t, outputs, carry)

    with monkeypatch.context() as patch:
        patch.setattr(Stream, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            twin.dan.forecast(chunked, **words)
    half = xr.open_zarr(tmp_path / "f.zarr", consolidated=False)
    with pytest.raises(ValueError, match="unfinished"):
        twin.dan.score_forecasts(half)
    with pytest.raises(FileExistsError, match="unfinished run of another"):
        twin.dan.forecast(chunked, **{**words, "lead": 0.2})
    with pytest.raises(FileExistsError, match="unfinished run of another"):
        twin.dan.forecast(chunked + 1.0, **words)
    before = list(written)
    monkeypatch.setattr(Stream, "write", lambda self, i, t, *rest: (written.append((i, t)), real(self, i, t, *rest)))
    stored = twin.dan.forecast(chunked, **words)
    assert sorted(written) == [(i, t) for i in range(2) for t in range(4)]
    assert before == written[:3]
    xr.testing.assert_equal(stored.load(), twin.dan.forecast(ensemble, lead=0.1, members=3))
    with pytest.raises(FileExistsError, match="mode='w'"):
        twin.dan.forecast(chunked, **words)


def test_lost_trajectories_are_nan_and_said_once(twin, run):
    lost = run.copy(deep=True)
    lost.analysis[1, 9:] = np.nan
    with pytest.warns(xdan.XdanWarning, match="15 of 96 forecasts start from states that are not finite") as warned:
        forecasts = twin.dan.forecast(lost, lead=0.1)
    assert len(warned) == 1
    assert bool(forecasts.forecast[1, 9:].isnull().all())
    assert bool(forecasts.diverged[1, 9:].all())
    assert int(forecasts.forecast.isnull().sum()) == 15 * 3 * 8
    kept = forecasts.drop_isel(trajectory=1)
    xr.testing.assert_equal(kept, twin.dan.forecast(run, lead=0.1).drop_isel(trajectory=1))
    lazy = twin.dan.forecast(lost.chunk(trajectory=1), lead=0.1)
    with pytest.warns(xdan.XdanWarning, match="15 of 24 forecasts"):
        lazy.compute()


def test_a_forecast_that_leaves_all_bounds_says_when():
    cubic = xdan.CustomDynamics(lambda x: x**3, state={"x": 4}, timestep=0.1, spin_up_time=0.0)
    ds = xr.Dataset(
        {"truth": (("trajectory", "time", "x"), np.full((1, 3, 4), 2.0))}, {"time": [0.0, 0.1, 0.2], "x": range(4)}
    )
    ds = ds.assign(observation=ds.truth, observation_error=1.0)
    with pytest.warns(xdan.XdanWarning, match="3 of 3 forecasts leave all bounds, the first after 0.[3-9]"):
        forecasts = ds.dan.forecast(which="truth", lead=2.0, dynamics=cubic)
    assert bool(forecasts.diverged[:, :, -1].all())
    assert not forecasts.diverged[:, :, 0].any()


def test_smoothed_states_and_the_truth_as_starts(twin):
    run = twin.dan.baseline("ienks-n", members=6, lag=3)
    forecasts = twin.dan.forecast(run, lead=0.05, which="smoothed")
    np.testing.assert_array_equal(forecasts.forecast.isel(lead=0), run.smoothed)
    assert bool(forecasts.forecast.isel(time=slice(-3, None)).isnull().all())  # and no warning
    scores = twin.dan.score_forecasts(forecasts.isel(time=slice(0, 23)))
    assert scores.cases.values.tolist() == [4 * 21, 4 * 21]
    error = (run.smoothed - twin.truth).isel(time=slice(0, 21)).values
    np.testing.assert_allclose(scores.rmse[0], np.sqrt((error**2).mean()), rtol=1e-10)
    with pytest.warns(xdan.XdanWarning, match="smoothed states, which have used the observations"):
        twin.dan.score_forecasts(forecasts.isel(time=slice(0, 22)), against="observations")
    truth = twin.dan.forecast(run, lead=0.1, which="truth", burn_in=10)
    xr.testing.assert_identical(truth.drop_attrs(), twin.dan.forecast(which="truth", lead=0.1, burn_in=10).drop_attrs())


def test_a_record_of_one_run_without_the_dim(twin, run, tmp_path):
    one = twin.isel(trajectory=2, drop=True)
    forecasts = one.dan.forecast(run.isel(trajectory=2, drop=True), lead=0.1)
    assert forecasts.forecast.dims == ("time", "lead", "x")
    expected = twin.dan.forecast(run, lead=0.1).forecast.isel(trajectory=2, drop=True)
    np.testing.assert_array_equal(forecasts.forecast, expected)
    scores = one.dan.score_forecasts(forecasts.isel(time=slice(0, 20)))
    assert scores.rmse.dims == ("lead",)
    words = {"lead": 0.1, "store": tmp_path / "f.zarr", "progress": False}
    stored = one.dan.forecast(run.isel(trajectory=2, drop=True), **words)
    np.testing.assert_array_equal(stored.forecast, expected)
    xr.testing.assert_equal(one.dan.score_forecasts(stored.isel(time=slice(0, 20))).compute().rmse, scores.rmse)


@pytest.mark.parametrize(
    ("words", "error", "match"),
    [
        ({"lead": 0.12}, ValueError, "lead=0.12: an interval of 0.12 is not a positive multiple"),
        ({"lead": 0.15, "step": 0.1}, ValueError, "lead=0.15 is no multiple of the step 0.1.*lead=0.2"),
        ({"lead": -1.0}, ValueError, "lead=-1"),
        ({"lead": "long"}, ValueError, "lead='long'"),
        ({"step": 0.03}, ValueError, "step=0.03: an interval"),
        ({"lead": np.timedelta64(1, "D")}, ValueError, "has no length: expected model time"),
        ({"every": 0}, ValueError, "every=0"),
        ({"burn_in": 24}, ValueError, "burn_in=24: expected 0 to 23"),
        ({"members": 6}, ValueError, "members=6: the run holds 5"),
        ({"members": 2, "which": "truth"}, ValueError, "members are of analyses"),
        ({"which": "forecasted"}, ValueError, "which='forecasted': expected one of"),
        ({"which": "smoothed"}, ValueError, "lacks"),
        ({"mode": "a"}, ValueError, "mode='a'"),
        ({"keep_members": 1}, TypeError, "keep_members=1"),
    ],
)
def test_what_is_refused(twin, ensemble, words, error, match):
    with pytest.raises(error, match=match):
        twin.dan.forecast(ensemble, **words)


def test_runs_that_are_refused(twin, run, ensemble, tmp_path):
    with pytest.raises(ValueError, match="starts from a run"):
        twin.dan.forecast()
    with pytest.raises(ValueError, match="run and record differ in time"):
        twin.dan.forecast(run.assign_coords(time=run.time + 1.0), lead=0.1)
    with pytest.raises(ValueError, match="differ"):
        twin.dan.forecast(run.isel(time=slice(0, 20)), lead=0.1)
    with pytest.raises(ValueError, match="holds neither 'members' nor 'analysis_covariance' nor 'spread'"):
        twin.dan.forecast(run, lead=0.1, members=3)
    with pytest.raises(ValueError, match="the record has none: expected a twin"):
        twin.drop_vars("truth").dan.forecast(which="truth", lead=0.1)
    with pytest.raises(TypeError, match="expected the Dataset"):
        twin.dan.forecast(run.analysis, lead=0.1)
    ensemble.to_zarr(tmp_path / "run.zarr", consolidated=False)
    with (
        xr.open_zarr(tmp_path / "run.zarr", consolidated=False) as stored,
        pytest.raises(ValueError, match="read from"),
    ):
        twin.dan.forecast(stored, lead=0.1, store=tmp_path / "run.zarr", mode="w")


def test_blocks_are_of_bounded_size(twin, ensemble, monkeypatch):
    monkeypatch.setattr("xdan.assimilation.forecasts._VALUES", 2000)
    small = twin.dan.forecast(ensemble.chunk(trajectory=4), lead=0.3, members=5)
    assert (
        small.forecast_members.chunks[:2] == ((1,) * 4, (5, 5, 5, 5, 4)) or max(small.forecast_members.chunks[1]) <= 5
    )
    with dask.config.set(scheduler="synchronous"):
        xr.testing.assert_identical(small.compute(), twin.dan.forecast(ensemble, lead=0.3, members=5))
