"""Scores by lead time: closed forms of linear models, NumPy by hand, and the same numbers for any chunks."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import xdan
from xdan.core.ensemble_scores import members_crps

RATE, SITES = 1.5, 400
GROWS = xdan.CustomDynamics(lambda x: RATE * x, state={"x": SITES}, timestep=0.01, spin_up_time=0.0)


@pytest.fixture(scope="module")
def forecasts(twin, ensemble):
    return twin.dan.forecast(ensemble, lead=0.3, members=4, every=3, burn_in=3).isel(time=slice(0, 5))


def errors_of(twin, forecasts):
    """Forecast minus truth (trajectory, time, lead, x) by hand, of starts every 3 cycles from the third on."""
    valid = 3 + 3 * np.arange(forecasts.sizes["time"])[:, None] + np.arange(forecasts.sizes["lead"])
    truth = twin.truth.values[:, valid]
    return forecasts.forecast.values - truth, truth, valid


def test_scores_by_hand(twin, forecasts):
    error, truth, _ = errors_of(twin, forecasts)
    scores = twin.dan.score_forecasts(forecasts)
    square = (error**2).mean((0, 1, 3))
    np.testing.assert_allclose(scores.rmse, np.sqrt(square), rtol=1e-12)
    by_run = (error**2).mean((1, 3))
    np.testing.assert_allclose(scores.rmse_standard_error, by_run.std(0, ddof=1) / 2 / (2 * np.sqrt(square)), rtol=1e-9)
    np.testing.assert_allclose(scores.bias, error.mean((0, 1, 3)), rtol=1e-9)
    np.testing.assert_allclose(scores.mean_absolute_error, abs(error).mean((0, 1, 3)), rtol=1e-12)
    geometric = np.exp(0.5 * np.log((error**2).mean(3)).mean((0, 1)))
    np.testing.assert_allclose(scores.geometric_rmse, geometric, rtol=1e-12)
    spread = np.sqrt((forecasts.forecast_spread.values**2).mean((0, 1, 3)))
    np.testing.assert_allclose(scores.spread, spread, rtol=1e-12)
    crps = members_crps(truth, np.moveaxis(forecasts.forecast_members.values, 3, -1)).mean((0, 1, 3))
    np.testing.assert_allclose(scores.crps, crps, rtol=1e-12)
    assert scores.crps_of == "members"
    start = forecasts.forecast.values[:, :, :1]
    np.testing.assert_allclose(scores.persistence_rmse, np.sqrt(((start - truth) ** 2).mean((0, 1, 3))), rtol=1e-12)
    assert scores.cases.values.tolist() == [20] * 7
    ranks = 1 + (forecasts.forecast_members.values < truth[:, :, :, None]).sum(3)
    for k in range(5):
        np.testing.assert_array_equal(scores.rank_histogram[:, k], (ranks == k + 1).sum((0, 1, 3)))
    assert scores.rmse.attrs["units"] == "1"
    assert scores.lead.attrs["standard_name"] == "forecast_period"


def test_anomalies_are_about_the_climatology(twin, forecasts):
    """Of states that the caller brings: their mean is known."""
    error, truth, _ = errors_of(twin, forecasts)
    states = np.random.default_rng(0).normal(2.0, 3.0, (50, 8))
    scores = twin.dan.score_forecasts(forecasts, climatology=states)
    f, x = error + truth - states.mean(0), truth - states.mean(0)
    expected = (f * x).sum((0, 1, 3)) / np.sqrt((f**2).sum((0, 1, 3)) * (x**2).sum((0, 1, 3)))
    np.testing.assert_allclose(scores.acc, expected, rtol=1e-10)
    np.testing.assert_allclose(scores.climatology_rmse, np.sqrt((x**2).mean((0, 1, 3))), rtol=1e-10)
    np.testing.assert_allclose(scores.deviation, np.sqrt(states.var(0, ddof=1).mean()), rtol=1e-10)
    assert scores.attrs["anomalies_about"] == "the mean of climatology="


def linear_twin(cycles=30, trajectories=6):
    rng = np.random.default_rng(1)
    first = rng.normal(size=(trajectories, 1, SITES))
    time = 0.05 * np.arange(cycles)
    truth = xr.DataArray(first * np.exp(RATE * time)[:, None], dims=("trajectory", "time", "x"),
                         coords={"time": time, "x": np.arange(SITES)})  # fmt: skip
    noise = rng.normal(size=truth.shape)
    return xr.Dataset({"truth": truth, "observation": truth + noise, "observation_error": 1.0}), rng


def test_errors_of_a_linear_model_grow_as_they_must():
    """e(t) = e(0) exp(1.5 t), whatever the start; and doubles in ln 2 / 1.5."""
    ds, rng = linear_twin()
    run = xr.Dataset({"analysis": ds.truth + 0.2 * rng.normal(size=ds.truth.shape)})
    forecasts = ds.dan.forecast(run, lead=1.0, dynamics=GROWS).isel(time=slice(0, 10))
    states = rng.normal(size=(300, SITES))
    scores = ds.dan.score_forecasts(forecasts, dynamics=GROWS, climatology=states, fraction=0.4, small=0.4)
    np.testing.assert_allclose(scores.rmse, float(scores.rmse[0]) * np.exp(RATE * scores.lead), rtol=1e-6)
    for name in ("doubling_time", "rmse_doubling_time"):
        assert float(scores[name]) == pytest.approx(np.log(2) / RATE, rel=1e-6)
    level = 0.4 * np.sqrt(2) * float(scores.deviation)
    horizon = np.log(level / float(scores.rmse[0])) / RATE
    assert float(scores.skill_horizon) == pytest.approx(horizon, abs=2e-3)
    assert 0 < float(scores.skill_horizon_standard_error) < 0.02
    assert np.isnan(float(scores.acc_horizon))  # the correlation stays


def test_perfect_forecasts(twin):
    forecasts = twin.dan.forecast(which="truth", lead=0.2).isel(time=slice(0, 20))
    scores = twin.dan.score_forecasts(forecasts)
    np.testing.assert_allclose(scores.rmse, 0.0, atol=1e-10)
    np.testing.assert_allclose(scores.acc, 1.0, rtol=1e-12)
    assert np.isnan(float(scores.skill_horizon))
    with pytest.warns(xdan.XdanWarning, match="smaller than R"):  # by chance
        seen = twin.dan.score_forecasts(forecasts, against="observations")
    np.testing.assert_allclose(seen.departure_rms, 1.0, atol=0.15)  # 640 numbers a lead, R = I
    assert "crps" not in scores


def test_observations_by_hand(twin, forecasts):
    """Some are missing; departures count those that are there, and R is that of each."""
    rng = np.random.default_rng(3)
    gaps = twin.observation.where(rng.random(twin.observation.shape) < 0.6)
    deviations = xr.DataArray(np.linspace(0.5, 1.5, 8), dims="x")
    ds = twin.assign(observation=gaps, observation_error=deviations)
    _, _, valid = errors_of(twin, forecasts)
    scores = ds.dan.score_forecasts(forecasts, against="observations")
    np.testing.assert_allclose(scores.lead, 0.05 * np.arange(1, 7))
    y = gaps.values[:, valid[:, 1:]]
    departure = forecasts.forecast.values[:, :, 1:] - y
    square = np.nanmean(departure**2, (0, 1, 3))
    variance = (np.isfinite(y) * deviations.values**2).sum((0, 1, 3)) / np.isfinite(y).sum((0, 1, 3))
    np.testing.assert_allclose(scores.departure_rms, np.sqrt(square), rtol=1e-12)
    np.testing.assert_allclose(scores.error_variance, variance, rtol=1e-12)
    np.testing.assert_allclose(scores.rmse[-2:], np.sqrt(square - variance)[-2:], rtol=1e-12)
    np.testing.assert_allclose(scores.bias, np.nanmean(departure, (0, 1, 3)), rtol=1e-9)
    start = forecasts.forecast.values[:, :, :1] - y
    expected = np.nanmean(start**2, (0, 1, 3)) - variance
    np.testing.assert_allclose(scores.persistence_rmse, np.sqrt(expected), rtol=1e-9)


def test_observations_agree_with_the_truth():
    """The errors of later observations are independent of the forecast: R taken off leaves its error."""
    ds, rng = linear_twin(cycles=60, trajectories=25)
    run = xr.Dataset({"analysis": ds.truth + 0.5 * rng.normal(size=ds.truth.shape)})
    forecasts = ds.dan.forecast(run, lead=0.4, every=9, dynamics=GROWS).isel(time=slice(0, 6))
    words = {"dynamics": GROWS, "dim": "time", "climatology": rng.normal(size=(300, SITES))}
    true, seen = (ds.dan.score_forecasts(forecasts, against=one, **words) for one in ("truth", "observations"))
    apart = seen.rmse**2 - (true.rmse**2).isel(lead=slice(1, None))
    sigmas = apart.mean("trajectory") / (apart.std("trajectory", ddof=1) / np.sqrt(25))
    assert abs(sigmas).max() < 3.5
    assert abs(seen.departure_rms**2 - seen.rmse**2 - 1.0).max() < 1e-9


def test_observations_of_an_operator(twin, forecasts):
    weights = np.random.default_rng(0).normal(size=(3, 8))
    y = xr.DataArray(twin.truth.values @ weights.T + 0.1, dims=("trajectory", "time", "obs"),
                     coords={"trajectory": twin.trajectory, "time": twin.time})  # fmt: skip
    ds = twin.drop_vars("observation").assign(observation=y)
    words = {"operator": weights, "observation_error": np.array([0.5, 1.0, 2.0]), "against": "observations"}
    scores = ds.dan.score_forecasts(forecasts, **words)
    error, _, _ = errors_of(twin, forecasts)
    square = ((error[:, :, 1:] @ weights.T - 0.1) ** 2).mean((0, 1, 3))
    np.testing.assert_allclose(scores.departure_rms, np.sqrt(square), rtol=1e-9)
    np.testing.assert_allclose(scores.error_variance, 5.25 / 3, rtol=1e-12)
    of_members = (forecasts.forecast_members.values[:, :, 1:] @ weights.T).std(3, ddof=1)
    np.testing.assert_allclose(scores.spread, np.sqrt((of_members**2).mean((0, 1, 3))), rtol=1e-9)
    assert "deviation" not in scores


def test_uneven_times_count_the_cases_that_there_are(twin):
    times = [0, 2, 3, 7, 9, 12]
    uneven = twin.isel(time=times)
    forecasts = uneven.dan.forecast(which="truth", lead=0.25)
    scores = uneven.dan.score_forecasts(forecasts.isel(time=slice(0, 4)))
    pairs = [sum(t + k in times for t in times[:4]) for k in range(6)]
    assert scores.cases.values.tolist() == [4 * n for n in pairs]
    np.testing.assert_allclose(scores.rmse.where(scores.cases > 0, 0.0), 0.0, atol=1e-12)
    few = uneven.isel(time=[0, 1, 3, 4])  # the first start has these others 0.1, 0.35 and 0.45 later
    forecasts = few.dan.forecast(which="truth", lead=0.3, step=0.1).isel(time=slice(0, 1))
    with pytest.warns(xdan.XdanWarning, match="2 of 4 lead times end at no time of the record"):
        few.dan.score_forecasts(forecasts)


SPHERE = xdan.Sphere(4, 6)
STATE = [xdan.Field("h", SPHERE, "m"), xdan.Field("c", xdan.Components(["p", "q"]), "K")]
TWO = xdan.CustomDynamics(
    lambda fields: {"h": 0.5 * fields["h"], "c": -fields["c"]}, state=STATE, timestep=0.05, spin_up_time=0.0
)


def test_fields_are_scored_apart_and_by_area():
    ds = xdan.twin(TWO, cycles=10, trajectories=3, interval=0.1, seed=0, dtype="float64").compute()
    run = ds.dan.baseline("etkf", members=5, keep_members=True, inflation=1.1, dynamics=TWO)
    forecasts = ds.dan.forecast(run, lead=0.2, members=3, dynamics=TWO).isel(time=slice(0, 8))
    scores = ds.dan.score_forecasts(forecasts, dynamics=TWO)
    assert scores.rmse.sizes == {"lead": 3, "field": 2}
    assert list(scores.field_units.values) == ["m", "K"]
    area = (SPHERE.weights().numpy() / SPHERE.weights().numpy().sum()).reshape(4, 6)
    h = (forecasts.forecast_h.isel(lead=2).values - ds.truth_h.values[:, 2:10]) ** 2
    np.testing.assert_allclose(scores.rmse[2, 0], np.sqrt((h * area).sum((2, 3)).mean()), rtol=1e-12)
    c = (forecasts.forecast_c.isel(lead=1).values - ds.truth_c.values[:, 1:9]) ** 2
    np.testing.assert_allclose(scores.rmse[1, 1], np.sqrt(c.mean()), rtol=1e-12)
    assert int(scores.rank_histogram.isel(field=0, lead=1).sum()) == 3 * 8 * 24
    seen = ds.dan.score_forecasts(forecasts, dynamics=TWO, against="observations")
    assert seen.departure_rms.sizes == {"lead": 2, "field": 2}


@settings(max_examples=3)
@given(st.integers(2, 4), st.integers(7, 24), st.integers(2, 4), st.sampled_from(["truth", "observations"]))
def test_any_chunks_give_the_same_scores(twin, forecasts, rows, columns, starts, against):
    whole = twin.dan.score_forecasts(forecasts, against=against)
    lazy = twin.chunk(trajectory=rows, time=columns)
    scores = lazy.dan.score_forecasts(forecasts.chunk(trajectory=rows, time=starts), against=against)
    assert all(one.chunks is not None for name, one in scores.data_vars.items())
    xr.testing.assert_allclose(scores.compute(), whole, rtol=1e-10)


def test_blocks_of_bounded_size(twin, forecasts, monkeypatch):
    whole = twin.dan.score_forecasts(forecasts)
    monkeypatch.setattr("xdan.assimilation.forecast_pair._VALUES", 500)
    xr.testing.assert_allclose(twin.dan.score_forecasts(forecasts), whole, rtol=1e-10)


def test_dims_that_are_not_averaged_stay(twin, forecasts):
    whole = twin.dan.score_forecasts(forecasts)
    by_run, by_start, each = (twin.dan.score_forecasts(forecasts, dim=dim) for dim in ("time", "trajectory", []))
    assert by_run.rmse.dims == ("trajectory", "lead")
    assert by_start.rmse.dims == ("time", "lead")
    assert set(each.rmse.dims) == {"trajectory", "time", "lead"}
    for one in (by_run, by_start, each):
        over = [dim for dim in one.rmse.dims if dim != "lead"]
        np.testing.assert_allclose((one.rmse**2).mean(over), whole.rmse**2, rtol=1e-10)
    assert "rmse_standard_error" not in by_run
    assert "rmse_standard_error" in by_start
    assert by_run.skill_horizon.dims == ("trajectory",)


def test_standard_errors_of_one_trajectory():
    """Blocks of starts, and their thirds, take the places of trajectories; the same for any chunks."""
    ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=440, trajectories=1, seed=0).compute()
    rng = np.random.default_rng(1)
    noise = 0.1 * rng.normal(size=ds.truth.shape)
    run = xr.Dataset({"analysis": ds.truth + noise, "forecast": ds.truth + noise}).compute()
    forecasts = ds.dan.forecast(run, lead=0.2, every=2)
    scores = ds.dan.score_forecasts(forecasts).compute()
    error = scores.rmse_standard_error
    assert error.attrs["comment"] == "8 blocks of 27 starts, one trajectory"
    start = forecasts.forecast.values[0, :, 0].astype(float)
    square = ((start - ds.truth.values[0, ::2].astype(float)) ** 2).mean(1)

    def by_blocks(count):
        means = np.array([part.sum() - len(part) * square.mean() for part in np.array_split(square, count)])
        return np.sqrt(count / (count - 1) * (means**2).sum()) / len(square)

    coarse = [part.sum() - len(part) * square.mean() for part in np.array_split(square, 24)]
    coarse = np.sqrt(8 / 7 * (np.reshape(coarse, (8, 3)).sum(1) ** 2).sum()) / len(square)
    expected = np.sqrt(max(2 * coarse**2 - by_blocks(24) ** 2, coarse**2)) / (2 * np.sqrt(square.mean()))
    np.testing.assert_allclose(error[0], expected, rtol=1e-8)
    assert np.isnan(scores.skill_horizon)
    assert scores.skill_horizon.attrs["comment"] == "NaN: not reached within the lead times"
    chunked = ds.chunk(time=33).dan.score_forecasts(forecasts.chunk(time=17)).compute()
    xr.testing.assert_allclose(chunked, scores, rtol=1e-10)
    seen = ds.dan.score_forecasts(forecasts, against="observations").compute()
    assert seen.rmse_standard_error.attrs["comment"] == "8 blocks of 27 starts, one trajectory"
    assert (seen.rmse_standard_error * seen.rmse)[0] > (error * scores.rmse)[0]  # observations' errors scatter too
    few = ds.dan.score_forecasts(forecasts.isel(time=slice(0, 50)))
    assert few.rmse_standard_error.isnull().all()
    assert few.rmse_standard_error.attrs["comment"].startswith("none: one trajectory of 50 starts")


def test_methods_side_by_side(twin, forecasts, ensemble):
    single = twin.dan.forecast(ensemble, lead=0.3, every=3, burn_in=3).isel(time=slice(0, 5))
    wide = forecasts.drop_vars("forecast_members")
    scores = twin.dan.score_forecasts({"members": forecasts, "spread": wide, "single": single})
    assert list(scores.method.values) == ["members", "spread", "single"]
    assert list(scores.crps_of.values) == ["members", "Gaussian", ""]
    for name, one in (("members", forecasts), ("single", single)):
        alone = twin.dan.score_forecasts(one)
        for variable in alone.data_vars:
            np.testing.assert_allclose(scores[variable].sel({"method": name}), alone[variable], rtol=1e-12)
    assert bool(scores.crps.sel({"method": "single"}).isnull().all())
    assert scores.rmse.attrs["long_name"].startswith("forecast RMSE")
    with pytest.raises(ValueError, match="has other lead times"):
        twin.dan.score_forecasts({"a": forecasts, "b": single.isel(lead=slice(0, 3))})
    with pytest.raises(ValueError, match="empty mapping"):
        twin.dan.score_forecasts({})


def test_scores_are_kept_in_a_store(twin, forecasts, tmp_path):
    scores = twin.dan.score_forecasts(
        {"a": forecasts, "b": forecasts.drop_vars(["forecast_members", "forecast_spread"])}
    )
    scores.to_zarr(tmp_path / "scores.zarr", consolidated=False)
    xr.testing.assert_equal(xr.open_zarr(tmp_path / "scores.zarr", consolidated=False).load(), scores)


def test_the_record_may_go_on_after_the_run(twin, run):
    """A run on the first part, scored on the whole record."""
    first = twin.isel(time=slice(0, 14))
    forecasts = first.dan.forecast(run.isel(time=slice(0, 14)), lead=0.4, burn_in=4)
    scores = twin.dan.score_forecasts(forecasts)
    assert scores.cases.values.tolist() == [40] * 9
    truth = twin.truth.values[:, 12:22]
    expected = np.sqrt(((forecasts.forecast.values[:, :, 8] - truth) ** 2).mean())
    assert float(scores.rmse[8]) == pytest.approx(expected, rel=1e-12)


def test_gaps_in_the_truth_are_no_cases(twin, forecasts):
    gap = twin.copy(deep=True)
    gap.truth[2, 9, 3] = np.nan
    scores = gap.dan.score_forecasts(forecasts)
    _, _, valid = errors_of(twin, forecasts)
    assert scores.cases.values.tolist() == (20 - (valid == 9).sum(0)).tolist()
    assert np.isfinite(scores.rmse).all()


def test_lost_forecasts_have_no_score_and_say_why(twin, forecasts):
    lost = forecasts.copy(deep=True)
    lost["forecast"][1, 2, 3:] = np.nan
    with pytest.warns(
        xdan.XdanWarning, match=r"1 of 20 forecasts are NaN .* 1 of 4 trajectories \(the first at position 1"
    ):
        scores = twin.dan.score_forecasts(lost)
    assert np.isfinite(scores.rmse).values.tolist() == [True] * 3 + [False] * 4
    chunked = twin.chunk().dan.score_forecasts(lost.chunk(trajectory=1))
    with pytest.warns(xdan.XdanWarning, match="1 of 20 forecasts are NaN"):
        chunked.rmse.compute()


def test_r_that_is_larger_than_departures_is_said(twin):
    forecasts = twin.dan.forecast(which="truth", lead=0.1).isel(time=slice(0, 20))
    with pytest.warns(xdan.XdanWarning, match="smaller than R's diagonal"):
        scores = twin.dan.score_forecasts(forecasts, against="observations", observation_error=3.0)
    assert np.isnan(scores.rmse).all()
    assert np.isfinite(scores.departure_rms).all()


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda f: f.assign_coords(lead=f.lead * 1.1), ValueError, "no whole numbers of the lorenz96 time step"),
        (lambda f: f.assign_coords(lead=f.lead.assign_attrs(units="hours")), ValueError, "dimensionless model time"),
        (lambda f: f.assign_coords(lead=f.lead.astype("timedelta64[s]")), ValueError, "no time_unit"),
        (lambda f: f.isel(lead=[2, 1]), ValueError, "ascending order"),
        (lambda f: f.assign_coords(time=f.time + 0.02), ValueError, "starts at no time of the record"),
        (lambda f: f.assign_coords(time=f.time.astype("datetime64[s]")), ValueError, "the same kind of times"),
        (lambda f: f.assign_coords(trajectory=f.trajectory + 1), ValueError, "differ in trajectory"),
        (lambda f: f.isel(lead=0, drop=True), ValueError, "without 'lead'"),
        (lambda f: f.drop_vars("forecast"), ValueError, "no variable 'forecast'"),
        (lambda f: f.forecast, TypeError, "expected the Dataset that forecast"),
    ],
)
def test_forecasts_that_are_refused(twin, forecasts, change, error, match):
    with pytest.raises(error, match=match):
        twin.dan.score_forecasts(change(forecasts))


def test_leads_beyond_the_record_are_refused(twin, run):
    forecasts = twin.dan.forecast(run, lead=0.5, burn_in=20)
    with pytest.raises(ValueError, match=r"reach beyond the record.*sel\(lead=slice\(None, 0.1"):
        twin.dan.score_forecasts(forecasts)
    scores = twin.dan.score_forecasts(forecasts.sel(lead=slice(None, 0.16)))
    assert scores.cases.values.tolist() == [16, 12, 8, 4]
    with pytest.raises(ValueError, match="no lead time but 0"):
        twin.dan.score_forecasts(forecasts.isel(lead=[0]), against="observations")


@pytest.mark.parametrize(
    ("words", "error", "match"),
    [
        ({"against": "analysis"}, ValueError, "against='analysis'"),
        ({"dim": "x"}, ValueError, "expected some of"),
        ({"fraction": 0.0}, ValueError, "fraction=0"),
        ({"correlation": 2.0}, ValueError, "correlation=2"),
        ({"small": "little"}, TypeError, "small='little'"),
    ],
)
def test_arguments_that_are_refused(twin, forecasts, words, error, match):
    with pytest.raises(error, match=match):
        twin.dan.score_forecasts(forecasts, **words)
    with pytest.raises(ValueError, match=r'needs the truth.*pass against="observations"'):
        twin.drop_vars("truth").dan.score_forecasts(forecasts)
