"""Scores against their definitions, and against the statistics of a filter that is known to be consistent."""

import math
import re

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import xdan
from xdan.core.batch_means import series_error

DIMS = ("trajectory", "time", "x")
astray = pytest.mark.filterwarnings("ignore:the truth does not follow:xdan.XdanWarning")  # noise, or another model


def statistics(ds, run, error_variance=1.0):
    """All scores by NumPy."""
    truth, y = ds.truth.values, ds.observation.values
    xf, xa = run.forecast.values, run.analysis.values
    seen = np.isfinite(y)
    innovation, residual = (y - xf)[seen], (y - xa)[seen]
    scores = {
        "rmse": np.sqrt(((xa - truth) ** 2).mean(2)).mean(),
        "forecast_rmse": np.sqrt(((xf - truth) ** 2).mean(2)).mean(),
        "innovation_mean": innovation.mean(),
        "innovation_variance": innovation.var(),
        "residual_mean": residual.mean(),
        "residual_variance": residual.var(),
        "error_variance": error_variance,
        "error_variance_diagnosed": (innovation * residual).mean(),
        "forecast_variance_diagnosed": ((innovation - residual) * innovation).mean(),
        "diverged": 0,
    }
    if "spread" in run:
        scores |= {name: np.sqrt((run[name].values ** 2).mean(2)).mean() for name in ("spread", "forecast_spread")}
        scores["innovation_variance_expected"] = (run.forecast_spread.values**2 + error_variance)[seen].mean()
        scores["forecast_variance"] = (run.forecast_spread.values**2)[seen].mean()
        scores["consistency"] = scores["innovation_variance"] / scores["innovation_variance_expected"]
    return scores


@pytest.fixture(scope="module")
def sparse(twin):
    """Some observations fewer at every time."""
    rng = np.random.default_rng(0)
    return twin.assign(observation=twin.observation.where(rng.random(twin.observation.shape) < 0.6))


def test_by_definition(sparse, ensemble, run):
    for one in (ensemble.drop_dims("member"), run):
        scores = xdan.score(sparse, one)
        for name, value in statistics(sparse, one).items():
            np.testing.assert_allclose(scores[name], value, rtol=1e-12, atol=1e-12, err_msg=name)


def test_root_before_the_mean(twin, run):
    """The convention: root over the state at each time, mean after; the other order gives another number."""
    error = (run.analysis - twin.truth).values
    rmse = float(xdan.score(twin, run).rmse)
    assert rmse == pytest.approx(np.sqrt((error**2).mean(2)).mean(), rel=1e-12)
    assert rmse < np.sqrt((error**2).mean()) - 1e-3
    told = xdan.score(twin, run).attrs["rmse_convention"]
    assert told.startswith("root of the mean over the state's variables at each time, then mean")


def test_standard_error(twin, run):
    by_run = np.sqrt(((run.analysis - twin.truth).values ** 2).mean(2)).mean(1)
    scores = xdan.score(twin, run)
    np.testing.assert_allclose(scores.rmse_standard_error, by_run.std(ddof=1) / 2, rtol=1e-12)
    assert "rmse_standard_error" not in xdan.score(twin, run, dim="time")


def errors_of_one(cycles, burn_in=0, dims=("trajectory",)):
    """A record of one trajectory with a run whose errors are correlated in time."""
    ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=cycles, trajectories=1, seed=0).compute()
    rng = np.random.default_rng(1)
    size = np.convolve(rng.normal(size=cycles + 9), np.ones(10), "valid")[None, :, None]
    analysis = ds.truth + np.exp(0.1 * size) * rng.normal(size=ds.truth.shape)
    return ds, xr.Dataset({"analysis": analysis, "forecast": analysis})


@pytest.mark.parametrize("squeezed", [False, True])
def test_standard_error_of_one_trajectory(squeezed):
    """By batch means in time, the same for any chunks; the dim may be missing."""
    ds, run = errors_of_one(450)
    if squeezed:
        ds, run = ds.isel(trajectory=0, drop=True), run.isel(trajectory=0, drop=True)
    scores = xdan.score(ds, run, burn_in=20)
    by_time = np.sqrt(((run.analysis - ds.truth) ** 2).mean("x")).values.reshape(-1)[20:]
    expected = series_error(by_time)
    np.testing.assert_allclose(scores.rmse_standard_error, expected, rtol=1e-10)
    assert scores.rmse_standard_error.attrs["comment"] == "8 blocks of 53 cycles, one trajectory"
    lazy = xdan.score(ds.chunk(time=7), run.chunk(time=31), burn_in=20)
    assert lazy.rmse_standard_error.chunks is not None
    np.testing.assert_allclose(lazy.rmse_standard_error, expected, rtol=1e-10)
    if not squeezed:
        by_run = xdan.score(ds, run, dim="time", burn_in=20).rmse_standard_error
        np.testing.assert_allclose(by_run, [expected], rtol=1e-10)
        assert "rmse_standard_error" not in xdan.score(ds, run, dim="trajectory")


def test_standard_error_of_few_cycles_says_why_it_is_missing():
    """And does not warn."""
    scores = xdan.score(*errors_of_one(60))
    assert np.isnan(scores.rmse_standard_error)
    assert scores.rmse_standard_error.attrs["comment"].startswith("none: one trajectory of 60 cycles")


@pytest.mark.parametrize(
    ("dim", "kept"),
    [
        ("time", ("trajectory",)),
        ("trajectory", ("time",)),
        (["time", "trajectory"], ()),
        ((), ("trajectory", "time")),
    ],
)
def test_dims_averaged(sparse, ensemble, dim, kept):
    scores = xdan.score(sparse, ensemble, dim=dim)
    assert all(set(scores[name].dims) == set(kept) for name in scores if name != "diverged")
    one = {"trajectory": 2, "time": 5}
    for name, value in scores.items():
        if name == "rmse_standard_error":
            continue
        # The score of that trajectory or time alone.
        alone = {d: [one[d]] for d in kept}
        expected = xdan.score(sparse.isel(alone), ensemble.isel(alone))[name]
        here = value.isel({d: one[d] for d in kept if d in value.dims})
        np.testing.assert_allclose(here, expected, rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("burn_in", [0, 1, 10, 23])
def test_burn_in_leaves_out_exactly_that_many(sparse, ensemble, burn_in):
    later = {"time": slice(burn_in, None)}
    scores = xdan.score(sparse, ensemble, burn_in=burn_in)
    expected = xdan.score(sparse.isel(later), ensemble.isel(later))
    xr.testing.assert_allclose(scores, expected, rtol=1e-12)
    assert scores.attrs["burn_in"] == burn_in
    assert scores.attrs["cycles"] == 4 * (24 - burn_in)


def gaussian_crps(observing, spread):
    z = observing / spread
    return spread * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / math.sqrt(math.pi))


def test_a_run_without_spread_has_an_absolute_error_and_no_crps(twin, ensemble, run):
    scores = xdan.score(twin, run)
    np.testing.assert_allclose(scores.mean_absolute_error, abs(run.analysis - twin.truth).mean(), rtol=1e-12)
    assert "crps" not in scores
    assert "crps_of" not in scores.coords
    scores = xdan.score(twin, ensemble)
    np.testing.assert_allclose(scores.mean_absolute_error, abs(ensemble.analysis - twin.truth).mean(), rtol=1e-12)
    assert float(scores.crps) < float(scores.mean_absolute_error)
    by_site = xdan.score(twin, run, along="site")
    expected = abs(run.analysis - twin.truth).mean(["trajectory", "time"])
    np.testing.assert_allclose(by_site.mean_absolute_error, expected, rtol=1e-12)
    assert "crps" not in by_site


def test_crps_of_a_spread_is_the_gaussians(twin, ensemble):
    only_spread = ensemble.drop_dims("member")
    expected = gaussian_crps((twin.truth - ensemble.analysis).values, ensemble.spread.values).mean()
    np.testing.assert_allclose(xdan.score(twin, only_spread).crps, expected, rtol=1e-9)


def test_crps_of_members(twin, ensemble):
    members, truth = np.moveaxis(ensemble.members.values, 2, 0), twin.truth.values
    pairs = abs(members[:, None] - members[None]).sum((0, 1)) / (2 * 5 * 4)
    expected = (abs(members - truth).mean(0) - pairs).mean()
    np.testing.assert_allclose(xdan.score(twin, ensemble).crps, expected, rtol=1e-9)
    swapped = ensemble.transpose("x", "member", "time", "trajectory").chunk(member=2)
    np.testing.assert_allclose(xdan.score(twin, swapped).crps, expected, rtol=1e-9)
    alone = ensemble.isel(member=[3])
    np.testing.assert_allclose(xdan.score(twin, alone).crps, abs(members[3] - truth).mean(), rtol=1e-12)


def test_crps_of_says_which_of_two_scores_it_is(twin, ensemble, run, tmp_path):
    runs = {"members": ensemble, "Gaussian": ensemble.drop_dims("member")}
    scores = {of: xdan.score(twin, one) for of, one in runs.items()}
    assert {of: one.crps.crps_of.item() for of, one in scores.items()} == {of: of for of in runs}
    assert all(np.isfinite(float(one.crps)) for one in scores.values())
    column = xr.concat([one.crps for one in scores.values()], xr.Variable("scheme", list("ab")))
    assert column.crps_of.values.tolist() == list(runs)
    xr.concat(list(scores.values()), "scheme").to_zarr(tmp_path / "scores.zarr", consolidated=False)
    opened = xr.open_zarr(tmp_path / "scores.zarr", consolidated=False)
    assert opened.crps.crps_of.values.tolist() == list(runs)
    lazy = xdan.score(twin.chunk(), ensemble.chunk())
    assert lazy.crps.crps_of.item() == lazy.compute().crps.crps_of.item() == "members"
    assert "crps_of" not in xdan.score(twin.drop_vars("truth"), ensemble).coords


@pytest.mark.parametrize("sites", [slice(0), slice(0, 3), slice(None)])
def test_crps_where_there_is_no_spread_is_the_absolute_error(twin, ensemble, sites):
    still = ensemble.drop_dims("member").copy(deep=True)
    still.spread[{"x": sites}] = 0.0
    error = (twin.truth - still.analysis).values
    expected = np.abs(error)
    here = still.spread.values > 0
    expected[here] = gaussian_crps(error[here], still.spread.values[here])
    np.testing.assert_allclose(xdan.score(twin, still).crps, expected.mean(), rtol=1e-9)


@pytest.fixture(scope="module")
def consistent():
    """Forecast errors and observation errors of known variances, and the Kalman gain between: 10 x 2000 x 5."""
    rng = np.random.default_rng(1)
    shape = (10, 2000, 5)
    p = np.linspace(0.5, 3, 5)
    truth = rng.normal(scale=3, size=shape)
    forecast = truth + rng.normal(size=shape) * np.sqrt(p)
    y = truth + rng.normal(size=shape) * 0.8
    gain = p / (p + 0.64)
    spread = np.broadcast_to(np.sqrt(p), shape)
    time = 0.05 * np.arange(2000)
    coordinates = {"trajectory": np.arange(10), "time": time, "x": np.arange(5)}
    model = xdan.Lorenz96(sites=5)
    ds = xr.Dataset({"truth": (DIMS, truth), "observation": (DIMS, y), "observation_error": 0.8}, coordinates)
    ds = ds.assign_attrs(xdan.twin(model, cycles=1).attrs)
    run = xr.Dataset(
        {
            "forecast": (DIMS, forecast),
            "analysis": (DIMS, forecast + gain * (y - forecast)),
            "forecast_spread": (DIMS, spread),
            "spread": (DIMS, spread * np.sqrt(1 - gain)),
        },
        coordinates,
    )
    return ds, run, p


@astray
def test_statistics_of_a_consistent_filter(consistent):
    """Innovation variance P + R, residual variance R (P + R)^-1 R, diagnosed error R; each within 5 standard errors."""
    ds, run, p = consistent
    scores, r, count = xdan.score(ds, run), 0.64, 20_000
    sampling = np.sqrt(2 / count / 5)
    total = p + r
    assert float(scores.innovation_variance_expected) == pytest.approx(total.mean(), rel=1e-12)
    assert float(scores.innovation_variance) == pytest.approx(total.mean(), rel=5 * sampling * 1.2)
    assert float(scores.residual_variance) == pytest.approx((r**2 / total).mean(), rel=5 * sampling * 1.2)
    assert float(scores.error_variance_diagnosed) == pytest.approx(r, rel=5 * sampling)
    assert float(scores.forecast_variance) == pytest.approx(p.mean(), rel=1e-12)
    assert float(scores.forecast_variance_diagnosed) == pytest.approx(p.mean(), rel=5 * sampling * 1.2)
    assert float(scores.consistency) == pytest.approx(1, abs=5 * sampling * 1.2)
    assert float(scores.error_variance) == pytest.approx(r, rel=1e-12)
    assert abs(float(scores.innovation_mean)) < 5 * np.sqrt(total.mean() / count / 5)
    assert abs(float(scores.residual_mean)) < 5 * np.sqrt((r**2 / total).mean() / count / 5)
    expected = np.sqrt((p * r / total).mean())
    assert float(scores.spread) == pytest.approx(expected, rel=1e-12)
    assert float(np.sqrt((run.analysis - ds.truth) ** 2).mean()) < float(scores.rmse) * 1.2
    assert float(scores.rmse) == pytest.approx(expected, rel=0.1)


@astray
def test_overconfident_filter_shows(consistent):
    ds, run, _ = consistent
    scores = xdan.score(ds, run.assign(forecast_spread=0.5 * run.forecast_spread))
    assert float(scores.innovation_variance) > 1.3 * float(scores.innovation_variance_expected)


def test_rank_histogram_counts_every_truth(twin, ensemble):
    for of in ("members", "forecast_members"):
        counts = xdan.rank_histogram(twin, ensemble, of=of)
        below = (ensemble[of] < twin.truth).sum("member").values
        np.testing.assert_array_equal(counts, np.bincount(below.ravel(), minlength=6))
        assert counts["rank"].values.tolist() == [1, 2, 3, 4, 5, 6]
        assert int(counts.sum()) == 4 * 24 * 8


def test_rank_histogram_dims_and_burn_in(twin, ensemble):
    by_run = xdan.rank_histogram(twin, ensemble, dim="time", burn_in=4)
    assert set(by_run.dims) == {"trajectory", "rank"}
    assert (by_run.sum("rank") == 20 * 8).all()
    np.testing.assert_array_equal(by_run.sum("trajectory"), xdan.rank_histogram(twin, ensemble, burn_in=4))


@astray
def test_rank_histogram_is_flat_for_exchangeable_members(consistent):
    ds, run, _ = consistent
    rng = np.random.default_rng(2)
    centre = rng.normal(size=(10, 2000, 1, 5))
    draws = centre + rng.normal(size=(10, 2000, 8, 5))  # the first is the truth
    ds = ds.assign(truth=(DIMS, draws[:, :, 0]))
    run = run.assign(members=(("trajectory", "time", "member", "x"), draws[:, :, 1:]))
    counts = xdan.rank_histogram(ds, run).values
    assert stats.chisquare(counts).pvalue > 1e-3
    narrow = run.assign(members=run.members * 0.5)
    assert stats.chisquare(xdan.rank_histogram(ds, narrow)).pvalue < 1e-6


def test_lost_trajectory_is_counted_and_not_averaged_over(twin, net):
    wild = twin.copy(deep=True)
    wild.observation[1, 10] = 1e12
    lost = xdan.cycle(wild, net)
    cause = r"not finite: 1 of 4 trajectories \(25%, the first at position 1\) diverged, from cycle 10 on, .*isel"
    with pytest.warns(xdan.XdanWarning, match=cause) as told:
        scores = xdan.score(wild, lost, dim="time")
    assert len(told) == 1
    assert scores.diverged.values.tolist() == [False, True, False, False]
    assert scores.rmse.isnull().values.tolist() == [False, True, False, False]
    with pytest.warns(xdan.XdanWarning, match=cause):
        whole = xdan.score(wild, lost, burn_in=15)  # cycles are the record's
    assert int(whole.diverged) == 1
    with pytest.warns(xdan.XdanWarning, match="'analysis' has NaN or infinite values in 1 of 4 trajectories"):
        assert int(xdan.score(wild, lost.drop_vars("diverged")).diverged) == 1
    others = [0, 2, 3]
    assert np.isfinite(xdan.score(wild.isel(trajectory=others), lost.isel(trajectory=others)).rmse)
    names = (
        "rmse",
        "rmse_standard_error",
        "forecast_rmse",
        "mean_absolute_error",
        "innovation_variance",
        "residual_mean",
    )
    for name in names:
        assert np.isnan(whole[name]), name


def test_chunks_do_not_matter_and_nothing_is_computed(sparse, ensemble, computed):
    chunks = {"trajectory": 2, "time": 7}
    lazy = xdan.score(sparse.chunk(chunks), ensemble.chunk(chunks), burn_in=3)
    assert computed.calls == 0
    assert all(lazy[name].chunks is not None for name in lazy)
    xr.testing.assert_allclose(lazy.compute(), xdan.score(sparse, ensemble, burn_in=3), rtol=1e-12)


def test_reading_is_left_to_the_end(twin, ensemble, untouchable, computed):
    ds = untouchable(twin, "truth", "observation")
    run = untouchable(ensemble, "forecast", "analysis", "spread", "forecast_spread")
    xdan.score(ds, run, burn_in=2)
    xdan.rank_histogram(ds, run)
    assert computed.calls == 0


def test_record_in_chunks_along_the_state(sparse, ensemble):
    lazy = xdan.score(sparse.chunk(x=3), ensemble)
    xr.testing.assert_allclose(lazy.compute(), xdan.score(sparse, ensemble), rtol=1e-12)


def test_without_a_truth(twin, ensemble):
    scores = xdan.score(twin.drop_vars("truth"), ensemble)
    whole = xdan.score(twin, ensemble)
    assert set(whole) - set(scores) == {"rmse", "rmse_standard_error", "forecast_rmse", "crps", "mean_absolute_error"}
    xr.testing.assert_identical(scores, whole[list(scores)].drop_vars("crps_of"))
    with pytest.raises(ValueError, match="a rank histogram needs the truth, which the record lacks"):
        xdan.rank_histogram(twin.drop_vars("truth"), ensemble)


def test_without_trajectories(twin, ensemble):
    one = {"trajectory": 1}
    scores = xdan.score(twin.isel(one, drop=True), ensemble.isel(one, drop=True))
    expected = xdan.score(twin.isel(trajectory=[1]), ensemble.isel(trajectory=[1]))
    xr.testing.assert_allclose(scores, expected)


def test_names_of_the_users_own(twin, run):
    named = twin.rename(truth="nature", observation="sondes").drop_attrs(deep=True)
    scores = xdan.score(named, run, truth="nature", observation="sondes", dynamics=xdan.Lorenz96(sites=8))
    xr.testing.assert_identical(scores, xdan.score(twin, run))


def test_a_run_of_the_users_own(twin):
    """Any forecast and analysis will do: here the observations themselves, whose errors are the twin's."""
    run = xr.Dataset({"forecast": twin.observation, "analysis": twin.observation})
    scores = xdan.score(twin, run)
    error = (twin.observation - twin.truth).values
    np.testing.assert_allclose(scores.rmse, np.sqrt((error**2).mean(2)).mean(), rtol=1e-12)
    assert float(scores.innovation_variance) == float(scores.residual_variance) == 0
    assert int(scores.diverged) == 0


@pytest.mark.parametrize("name", ["time", "trajectory"])
def test_another_records_run_is_refused(twin, run, name):
    shifted = run.assign_coords({name: run[name] + 1})
    with pytest.raises(ValueError, match=f"run and record differ in {name}: expected .* Make the run on this record"):
        xdan.score(twin, shifted)
    shorter = run.isel({name: slice(3)})
    with pytest.raises(ValueError, match=f"run and record differ in {name}: expected .* has 3"):
        xdan.score(twin, shorter)


def test_another_state_is_refused(twin, run):
    with pytest.raises(ValueError, match="run and record differ in x"):
        xdan.score(twin, run.assign_coords(x=run.x + 1))


@astray
def test_units(twin, ensemble):
    metres = xdan.CustomDynamics(lambda x: -x, state={"x": 8}, timestep=0.05, units="m")
    scores = xdan.score(twin, ensemble, dynamics=metres)
    squares, plain = {name for name in scores if "variance" in name}, {"diverged", "consistency"}
    assert {scores[name].attrs["units"] for name in squares} == {"(m)2"}
    assert scores.diverged.attrs["units"] == "1"
    assert {scores[name].attrs["units"] for name in set(scores) - squares - plain} == {"m"}
    assert {scores[name].attrs["units"] for name in plain} == {"1"}
    assert all(scores[name].attrs["long_name"] for name in scores)


@pytest.mark.parametrize("far", [45000.0, 0.0])
def test_runs_of_neighbouring_times_are_told_apart(twin, run, far):
    """However large the labels are."""
    late, same = (ds.assign_coords(time=far + ds.time, trajectory=20240101 + ds.trajectory) for ds in (twin, run))
    assert np.isfinite(xdan.score(late, same).rmse)
    with pytest.raises(ValueError, match="run and record differ in time"):
        xdan.score(late.isel(time=slice(0, -1)), same.isel(time=slice(1, None)))
    with pytest.raises(ValueError, match="run and record differ in trajectory"):
        xdan.score(late.isel(trajectory=slice(0, -1)), same.isel(trajectory=slice(1, None)))


def test_a_run_with_the_records_own_names_and_chunks(twin, run):
    expected = xdan.score(twin, run)
    named = [
        ds.rename(time="t").assign_coords(time=("t", np.arange(24) * np.timedelta64(6, "h"))) for ds in (twin, run)
    ]
    for ds in named:
        ds.t.attrs["axis"] = "T"
    xr.testing.assert_allclose(xdan.score(*named), expected)
    xr.testing.assert_allclose(xdan.score(twin, run.chunk(x=3, time=5)).compute(), expected)


def broken(ds, run, name, where, value=np.nan):
    """Record and run with a value in the place of some of a variable's."""
    ds, run = ds.copy(deep=True), run.drop_dims("member", errors="ignore").copy(deep=True)
    (ds if name in ds else run)[name][where] = value
    return ds, run


CAUSES = {
    "truth": ({"x": [3, 4]}, np.nan, "rmse", r"the truth has gaps in 4 of 4 trajectories .* at 24 of 24 cycles"),
    "analysis": (
        {"time": 7},
        np.nan,
        "rmse",
        r"run's 'analysis' has NaN or infinite values where nothing has diverged",
    ),
    "forecast": (
        {"trajectory": 2},
        np.inf,
        "forecast_rmse",
        r"run's 'forecast' has .* in 1 of 4 .* position 2\), at 24",
    ),
    "spread": (
        {"time": [7, 9]},
        -1.0,
        "spread",
        r"run's 'spread' has values that are NaN, infinite or negative.* at 2 of",
    ),
    "observation": ({"time": 3}, np.inf, "innovation_mean", "the observations have infinite values in 4 of 4"),
}


@pytest.mark.parametrize("name", CAUSES)
def test_a_score_that_is_no_number_names_its_cause(twin, ensemble, computed, name):
    where, value, score, cause = CAUSES[name]
    ds, run = broken(twin, ensemble, name, where, value)
    with pytest.warns(xdan.XdanWarning, match=cause) as told:
        scores = xdan.score(ds, run)
    assert len(told) == 1
    assert not np.isfinite(scores[score])
    lazy = xdan.score(ds.chunk(time=5), run.chunk(trajectory=2))
    assert computed.calls == 0
    with pytest.warns(xdan.XdanWarning, match=cause):
        assert not np.isfinite(float(lazy[score]))
    assert computed.calls == 1
    assert float(lazy.error_variance if name != "observation" else lazy.rmse) > 0  # without a word


def test_infinite_values_are_told_too(twin, ensemble):
    ds, run = broken(twin, ensemble, "forecast", {"trajectory": 2, "time": 5}, np.inf)
    with pytest.warns(
        xdan.XdanWarning, match="'forecast' has NaN or infinite values where nothing has diverged in 1 of 4"
    ):
        assert np.isinf(xdan.score(ds, run).forecast_rmse)


def test_gaps_in_the_truth_are_alike_in_rmse_and_crps(twin, ensemble, run):
    for one in (ensemble, ensemble.drop_dims("member"), run):
        ds, one = broken(twin, one, "truth", {"x": 2})
        with pytest.warns(xdan.XdanWarning, match="the truth has gaps"):
            scores = xdan.score(ds, one)
        assert np.isnan(scores.rmse)
        assert np.isnan(scores.mean_absolute_error)
        assert "crps" not in scores or np.isnan(scores.crps)


def test_members_with_gaps(twin, ensemble):
    members = ensemble.members.copy(deep=True)
    members[{"member": 1, "time": 4, "trajectory": 3}] = np.nan
    ds, holed = twin, ensemble.assign(members=members)
    with pytest.warns(xdan.XdanWarning, match=r"run's 'members' has .* in 1 of 4 .* position 3\), at 1 of 24 cycles"):
        assert np.isnan(xdan.score(ds, holed).crps)
    for one in (holed, holed.chunk(time=6)):
        with pytest.warns(xdan.XdanWarning, match="some states are not counted: the run's 'members' has"):
            counts = xdan.rank_histogram(ds, one).compute()
        assert int(counts.sum()) == 4 * 24 * 8 - 8


def test_nothing_observed_after_burn_in(twin, run):
    early = twin.assign(observation=twin.observation.where(twin.time < twin.time[6]))
    with pytest.warns(
        xdan.XdanWarning, match=r"nothing is observed in 4 of 4 trajectories .*expected a shorter burn_in"
    ):
        scores = xdan.score(early, run, burn_in=6)
    assert np.isnan(scores.innovation_variance)
    assert np.isfinite(scores.rmse)
    some = twin.assign(observation=twin.observation.where(twin.trajectory != 2))
    assert np.isfinite(xdan.score(some, run).innovation_variance)
    with pytest.warns(xdan.XdanWarning, match="nothing is observed in 1 of 4 trajectories"):
        assert np.isnan(xdan.score(some, run, dim="time").innovation_variance[2])
    even = xr.DataArray(np.arange(24) % 2 == 0, dims="time")
    alternate = twin.assign(observation=twin.observation.where(even))
    by_time = xdan.score(alternate, run, dim="trajectory")  # times without observations are nothing unusual
    assert by_time.innovation_variance.isnull().values.tolist() == [False, True] * 12


def test_too_large_for_the_squares(twin, run):
    far = run.astype("float32").assign(analysis=(run.analysis + 1e30).astype("float32"))
    ds = twin.astype("float32")
    with pytest.warns(xdan.XdanWarning, match=r"the scores \['rmse', .*no cause is seen in the input"):
        assert np.isinf(xdan.score(ds, far).rmse)


@pytest.fixture(scope="module")
def settling(model):
    """A run whose error falls from 5 to 0.2 within ten cycles or so, on a record of 100."""
    ds = xdan.twin(model, cycles=100, trajectories=3, seed=2, dtype="float64").compute(scheduler="synchronous")
    error = 0.2 + 5 * np.exp(-np.arange(100) / 3)
    estimate = ds.truth + xr.DataArray(error, dims="time")
    return ds, xr.Dataset({"forecast": estimate, "analysis": estimate})


def test_a_beginning_far_from_the_rest_is_told(settling, computed):
    ds, run = settling
    cause = r"over the first 10 cycles that are scored the RMSE is 1\.9.*, over the others 0\.2.*burn_in=(\d+)"
    with pytest.warns(xdan.XdanWarning, match=cause) as told:
        xdan.score(ds, run)
    longer = int(re.search(cause, str(told[0].message))[1])
    assert 10 <= longer <= 25
    left = xdan.score(ds, run, burn_in=longer)  # without a word
    assert float(left.rmse) == pytest.approx(0.2, rel=0.05)
    lazy = xdan.score(ds.chunk(time=30), run.chunk(time=30))
    assert computed.calls == 0
    with pytest.warns(xdan.XdanWarning, match=cause):
        lazy.rmse.compute()
    with pytest.warns(xdan.XdanWarning, match="burn_in="):
        xdan.score(ds, run, dim="time")
    for dim in ("trajectory", ()):
        xdan.score(ds, run, dim=dim)
    xdan.score(ds.isel(time=slice(49)), run.isel(time=slice(49)))


@astray
def test_another_types_values_score_the_same(twin, ensemble):
    plain = ensemble.drop_dims("member")
    expected = xdan.score(twin, plain)
    for dtype, rtol in (("longdouble", 1e-12), (">f8", 1e-12), ("float32", 1e-4), ("float16", 2e-2)):
        names = ["forecast", "analysis", "spread", "forecast_spread"]
        scores = xdan.score(twin, plain.assign({name: plain[name].astype(dtype) for name in names}))
        xr.testing.assert_allclose(scores, expected, rtol=rtol, atol=rtol)
        assert all(value.dtype.itemsize <= 8 for value in scores.values())
    whole = twin.assign(truth=twin.truth.round().astype(int))
    rounded = xdan.score(twin.assign(truth=twin.truth.round()), plain)
    xr.testing.assert_identical(xdan.score(whole, plain), rounded)


WRONG = {
    "ds": (lambda ds, run: xdan.score(0, run), TypeError, "ds=0: expected the Dataset"),
    "ds a tree": (lambda ds, run: xdan.score(xr.DataTree(ds), run), TypeError, "ds=.*expected the Dataset"),
    "ds an array": (lambda ds, run: xdan.rank_histogram(ds.truth, run), TypeError, "ds=.*expected the Dataset"),
    "run": (lambda ds, run: xdan.score(ds, 0), TypeError, "run is a int: expected the Dataset"),
    "run an array": (lambda ds, run: xdan.score(ds, run.analysis), TypeError, "run is a DataArray: expected"),
    "dim": (lambda ds, run: xdan.score(ds, run, dim=1.0), TypeError, r"dim=1.0: expected some of \['trajectory'"),
    "dims": (lambda ds, run: xdan.score(ds, run, dim=["time", 1]), TypeError, r"dim=\['time', 1\]: expected some of"),
    "dim None": (lambda ds, run: xdan.rank_histogram(ds, run, dim=None), TypeError, "dim=None: expected some of"),
    "burn_in": (lambda ds, run: xdan.score(ds, run, burn_in=1.5), TypeError, "burn_in=1.5: expected an integer"),
    "burn_in None": (lambda ds, run: xdan.score(ds, run, burn_in=None), TypeError, "burn_in=None: expected an integer"),
    "burn_in True": (lambda ds, run: xdan.score(ds, run, burn_in=True), TypeError, "burn_in=True: expected an integer"),
    "of": (lambda ds, run: xdan.rank_histogram(ds, run, of=3), TypeError, "of=3: expected one of"),
    "of else": (lambda ds, run: xdan.rank_histogram(ds, run, of="spread"), ValueError, "of='spread': expected one of"),
    "role": (lambda ds, run: xdan.rank_histogram(ds, run, trut="x"), TypeError, "trut='x': expected no argument"),
    "members' labels": (
        lambda ds, run: xdan.rank_histogram(ds, run.assign_coords(x=range(5, 13))),
        ValueError,
        r"run and record differ in x: expected .*\[5, 6, 7\]",
    ),
    "labels that are NaN": (
        lambda ds, run: xdan.score(ds, run.assign_coords(x=[np.nan] * 8)), ValueError, "missing or occur twice",
    ),
    "spread of other dims": (
        lambda ds, run: xdan.score(ds, run.assign(spread=("trajectory", np.ones(4)))), ValueError, "'spread' has dims",
    ),
    "members of no dim": (
        lambda ds, run: xdan.score(ds, run.drop_dims("member").assign(members=run.analysis)),
        ValueError,
        "'members' has sizes .*expected one 'member' at least",
    ),
    "diverged of other dims": (
        lambda ds, run: xdan.score(ds, run.assign(diverged=run.diverged.any("time"))),
        ValueError,
        "'diverged' is of bool with sizes .*expected True and False",
    ),
}  # fmt: skip


@pytest.mark.parametrize("label", WRONG)
def test_wrong_arguments_are_named(twin, ensemble, label):
    call, error, message = WRONG[label]
    with pytest.raises(error, match=message):
        call(twin, ensemble)


def test_numbers_of_numpy_are_numbers(twin, run):
    scores = xdan.score(twin, run, burn_in=np.int64(3), dim=np.array(["time", "trajectory"]))
    xr.testing.assert_identical(scores, xdan.score(twin, run, burn_in=3, dim=("time", "trajectory")))
    assert type(scores.attrs["burn_in"]) is int


def test_flags_of_other_types(twin, run):
    """As a store or a merge may leave them."""
    for flags in (run.diverged.astype("int8"), run.diverged.astype(float), run.diverged.T):
        assert int(xdan.score(twin, run.assign(diverged=flags)).diverged) == 0


def worst(truth, analysis):
    return np.abs(analysis - truth).max(-1)


def beyond(truth, members):
    """Share of sites where the truth is outside the ensemble."""
    return ((truth < members.min(1)) | (truth > members.max(1))).mean(-1)


OWN = [xdan.StateScore(worst, "largest error of a site"), xdan.StateScore(beyond, "truths outside", units="1")]


@pytest.mark.parametrize("lazy", [False, True])
def test_scores_of_ones_own(twin, ensemble, lazy):
    ds, one = (twin.chunk(trajectory=2, time=7), ensemble.chunk(trajectory=2, time=7)) if lazy else (twin, ensemble)
    result = xdan.score(ds, one, burn_in=3, also=OWN).compute()
    error = np.abs(ensemble.analysis - twin.truth).max("x")[:, 3:]
    assert float(result.worst) == pytest.approx(float(error.mean()), rel=1e-6)
    outside = (twin.truth < ensemble.members.min("member")) | (twin.truth > ensemble.members.max("member"))
    assert float(result.beyond) == pytest.approx(float(outside[:, 3:].mean()), rel=1e-6)
    assert result.worst.attrs == {"long_name": "largest error of a site", "units": "1"}
    xr.testing.assert_identical(result.drop_vars(["worst", "beyond"]), xdan.score(ds, one, burn_in=3).compute())
    in_time = xdan.score(ds, one, dim="trajectory", also=OWN[:1]).worst.compute()
    np.testing.assert_allclose(in_time, np.abs(ensemble.analysis - twin.truth).max("x").mean("trajectory"), rtol=1e-6)


def test_scores_of_ones_own_are_refused_in_words(twin, ensemble, run):
    with pytest.raises(TypeError, match=r"also holds <function worst.*: expected xdan.StateScore"):
        xdan.score(twin, ensemble, also=[worst])
    with pytest.raises(ValueError, match="the score 'beyond' takes 'members', which record and run lack: expected one"):
        xdan.score(twin, run, also=OWN)
    with pytest.raises(ValueError, match="'worst' takes 'truth', which record and run lack"):
        xdan.score(twin.drop_vars("truth"), run, also=OWN[:1])
    for name in ("rmse", "diverged", "time"):
        with pytest.raises(ValueError, match=f"also holds a score '{name}': expected another name"):
            xdan.score(twin, ensemble, also=[xdan.StateScore(worst, "an error", name=name)])
    with pytest.warns(xdan.XdanWarning, match="scores are not finite.*the run's 'analysis' has NaN"):
        xdan.score(twin, run.assign(analysis=run.analysis.where(run.x > 0)), also=OWN[:1])
